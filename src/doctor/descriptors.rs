//! Open files: one for each client, two when its frames are passed to a socket of the app, and some for everything else.

use crate::os::facts::{Facts, Process};

use super::fix::Fix;
use super::goal::Goal;
use super::numbers::grouped;
use super::row::{Layer, Row, Source, Verdict};
use super::settings::{EPOLL_WATCHES, FILE_MAX, NR_OPEN};

/// Descriptors kept for everything that is not a client, at least: the shards' own, calls to the app, log files.
const RESERVE_MIN: u64 = 64;

/// Descriptors kept, at most: the HTTP server's connections and unfinished handshakes need some too, but most of a large
/// limit is for clients.
const RESERVE_MAX: u64 = 2048;

/// Calls of the app that descriptors are kept for.
const CALLS_MAX: u64 = 256;

/// systemd's own hard limit for services that name none (systemd-system.conf(5), DefaultLimitNOFILE=).
const SYSTEMD_DEFAULT: u64 = 524_288;

/// Descriptors of a limit that are not given to clients.
pub fn reserve(limit: u64, shards: usize, calls: u64) -> u64 {
    let own = 16 + 8 * shards as u64 + calls.min(CALLS_MAX);
    (limit / 16).clamp(RESERVE_MIN, RESERVE_MAX).max(own).min(limit / 2)
}

/// Clients within a limit of open files.
fn clients_within(limit: u64, facts: &Facts, goal: &Goal) -> u64 {
    (limit - reserve(limit, goal.shards(facts), goal.calls)) / goal.sockets_each()
}

/// The least limit of open files for a goal.
pub(super) fn limit_for(facts: &Facts, goal: &Goal) -> u64 {
    let (mut least, mut most) = (goal.connections, goal.sockets().saturating_mul(2).saturating_add(4 * RESERVE_MAX));
    while least < most {
        let middle = least + (most - least) / 2;
        if clients_within(middle, facts, goal) < goal.connections { least = middle + 1 } else { most = middle }
    }
    least
}

const WHY: &str = "Every client is one open file, two when its frames are passed on. [proxy] counts two for every client, \
                   whatever is done with it; 1,024, the usual soft limit, is no bound, because the server raises it to the \
                   hard one. LimitNOFILE=16384, as a popular unit has it, is 14,000 clients. [proxy] [anycable]";

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let mut rows = limits(facts, goal);
    let limit = limit_for(facts, goal);
    let each = goal.sockets_each();
    let mut machine = |setting, needs: u64, holds: fn(u64, &Facts, &Goal) -> u64| {
        let row = Row::setting(setting, facts, goal, grouped(needs), |_| Verdict::Ok);
        rows.push(match facts.number(setting.name) {
            Some(value) => row.bound(holds(value, facts, goal), goal, setting.fix(facts, goal)),
            None => row,
        });
    };
    machine(&NR_OPEN, limit, clients_within);
    let others = others_files(facts, goal);
    machine(&FILE_MAX, goal.sockets().saturating_add(others), |value, facts, goal| {
        value.saturating_sub(others_files(facts, goal)) / goal.sockets_each()
    });
    machine(&EPOLL_WATCHES, goal.connections.saturating_mul(each), |value, _, goal| value / goal.sockets_each());
    if goal.max_conn > 0 {
        let why = "The server answers 503 above it. An option of its own.";
        let row =
            Row::new(Layer::Descriptors, "--max-conn", grouped(goal.max_conn), grouped(goal.connections), why, &[]);
        let fix = Fix::Option { name: "max-conn", value: goal.connections };
        rows.push(Row { is_option: true, ..row }.bound(goal.max_conn, goal, [fix]));
    }
    rows
}

/// Descriptors of the machine that are in use by others than the server.
pub(super) fn others_files(facts: &Facts, goal: &Goal) -> u64 {
    facts.files_used.unwrap_or(0).saturating_sub(goal.server_open(facts))
}

/// The limits of whoever will serve: a server that runs, the service, or else what this shell starts.
fn limits(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let wanted = limit_for(facts, goal);
    // No limit is granted above it.
    let most = facts.number(NR_OPEN.name).unwrap_or(u64::MAX);
    let with_ceiling = |fix| NR_OPEN.fix(facts, goal).filter(|_| wanted > most).into_iter().chain([fix]);
    let sources = &[Source::Proxy, Source::AnyCable, Source::Millions, Source::Man];
    let row = |name: &str, set: u64, why: &str| {
        Row::new(Layer::Descriptors, name, grouped(set), grouped(wanted), why, sources)
    };
    let Process { soft, hard, .. } = facts.own;
    let raised = "The server raises its soft limit to the hard one when it starts, so it need not be set. [proxy] and \
                  [balancer] set both; other programs that use select(2) break above 1,024.";
    let mut rows = vec![Row { needs: "any".to_owned(), ..row("open files (soft limit)", soft, raised) }];
    let own = row("open files (hard limit)", hard, WHY);
    rows.push(if facts.unit.is_some() || goal.server(facts).is_some() {
        Row {
            needs: "not used".to_owned(),
            why: "That of this shell. The service, or the server that runs, has one of its own.".to_owned(),
            ..own
        }
    } else {
        let fix = Fix::OpenFiles { limit: wanted, place: facts.place };
        own.bound(clients_within(hard, facts, goal), goal, with_ceiling(fix))
    });
    if let Some(unit) = &facts.unit {
        let limit = unit.nofile.unwrap_or(SYSTEMD_DEFAULT).min(most.max(1));
        let holds = clients_within(limit, facts, goal);
        let row = row("open files (cableway.service)", limit, WHY);
        rows.push(row.bound(holds, goal, with_ceiling(Fix::UnitOpenFiles(wanted))));
    }
    if let Some(server) = goal.server(facts) {
        let row = row(&format!("open files (running, pid {})", server.pid), server.soft, WHY);
        let fix = Fix::Restart { limit: wanted, is_unit: facts.unit.is_some() };
        rows.push(row.bound(clients_within(server.soft, facts, goal), goal, with_ceiling(fix)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::doctor::Backend;

    #[test]
    fn a_limit_for_a_goal_is_the_least_that_holds_it() {
        for connections in [1, 1_000, 18_750, 1_000_000, 5_000_000] {
            for backend in [Backend::Grpc, Backend::Pass] {
                let goal = Goal::new(connections, backend, &Config::default());
                let facts = Facts::default();
                let limit = limit_for(&facts, &goal);
                assert!(clients_within(limit, &facts, &goal) >= connections, "{connections}");
                assert!(clients_within(limit - 1, &facts, &goal) < connections, "{connections}");
            }
        }
    }
}
