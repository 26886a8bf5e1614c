//! Cores, memory nodes, and the kernel itself.

use std::time::Duration;

use crate::os::facts::Facts;

use super::fix::{Fix, Hardware};
use super::goal::Goal;
use super::row::{Layer, Row, Source, Verdict};

/// CPU of one ping to a client that is otherwise idle, kernel and server together; `bench idle` measured 9.7 us.
const PING_NANOSECONDS: u64 = 10_000;

/// Part of the cores that pings may take, in percent; the rest is for messages.
const PINGS_PERCENT: u64 = 75;

/// The longest interval that every client waits for: `@rails/actioncable` reconnects after 6 s without a ping.
const PING_INTERVAL_MAX_S: u64 = 5;

/// The first kernel that it runs on, for `SO_REUSEPORT`.
const KERNEL_MIN: (u32, u32) = (3, 9);

/// The kernel that tells the number of open descriptors without walking them.
const KERNEL_COUNTS: (u32, u32) = (6, 2);

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let mut rows = Vec::new();
    if facts.cpu.cores > 0 {
        rows.extend(pings(facts, goal));
        rows.push(acceptors(facts, goal));
        rows.push(nodes(facts));
    }
    rows.push(kernel(facts));
    rows.push(features(facts));
    rows
}

/// Cores that there are, in thousandths.
fn millicores(facts: &Facts) -> u64 {
    let cores = facts.cpu.cores as f64;
    (facts.cpu.quota.map_or(cores, |quota| quota.min(cores)) * 1000.0) as u64
}

/// Pings that so much of the cores sends in that time.
fn pings_within(millicores: u64, interval: Duration) -> u64 {
    let nanoseconds = interval.as_nanos() * u128::from(millicores) / 1000 * u128::from(PINGS_PERCENT) / 100;
    u64::try_from(nanoseconds / u128::from(PING_NANOSECONDS)).unwrap_or(u64::MAX)
}

fn pings(facts: &Facts, goal: &Goal) -> Option<Row> {
    let interval = Some(goal.ping_interval).filter(|interval| !interval.is_zero())?;
    let cores = millicores(facts);
    let holds = pings_within(cores, interval);
    let core = pings_within(1000, interval).max(1);
    let wanted = goal.connections.div_ceil(core);
    let why = "A ping to an idle client costs 10 us of kernel and server, measured; all of them together take most of the CPU \
               of parked connections. A quarter of the cores is left for messages. @rails/actioncable reconnects after 6 s \
               without a ping, so the interval cannot grow at will; other clients can wait longer. None of the guides counts \
               it. [measured]";
    let row = Row::new(
        Layer::Processors,
        format!("cores (a ping every {} s)", interval.as_secs_f64()),
        cores as f64 / 1000.0,
        wanted,
        why,
        &[Source::Measured],
    );
    let longest = Duration::from_secs(PING_INTERVAL_MAX_S);
    let longer = interval < longest && pings_within(cores, longest) >= goal.connections;
    let fix = match longer {
        true => Fix::Option { name: "ping-interval", value: PING_INTERVAL_MAX_S },
        false => Fix::Hardware(Hardware::Cores(wanted)),
    };
    Some(row.bound(holds, goal, [fix]))
}

fn acceptors(facts: &Facts, goal: &Goal) -> Row {
    let cores = facts.cpu.usable_cores();
    let acceptors = goal.shards(facts);
    let why = "Threads that accept and hold connections. One for each core that the machine or a control group's quota \
               gives is the default; more of them wait for each other. [balancer]";
    let row =
        Row::new(Layer::Processors, "--acceptors", acceptors, format!("{cores} at most"), why, &[Source::Balancer]);
    let row = Row { is_option: true, ..row };
    if acceptors > cores {
        return row.fail(Verdict::Warn, [Fix::Option { name: "acceptors", value: cores as u64 }]);
    }
    row
}

fn nodes(facts: &Facts) -> Row {
    let nodes = facts.cpu.numa_nodes;
    let why = "Memory of another node is slower. One process takes all nodes: its threads are not bound to one. For the last \
               part of speed run one server for each node on the same port: numactl --cpunodebind=0 --membind=0 cableway \
               serve --reuse-port. [balancer] advises to set the number of acceptors, which does not change it.";
    let row = Row::new(Layer::Processors, "NUMA nodes", nodes, "1", why, &[Source::Balancer]);
    if nodes > 1 { Row { verdict: Verdict::Warn, ..row } } else { row }
}

fn kernel(facts: &Facts) -> Row {
    let why = "SO_REUSEPORT, which every shard's listener needs, is there from 3.9 on. Before 6.2 the number of open \
               descriptors is counted by walking them, which costs 900 bytes each for a while. [kernel]";
    let mut numbers = facts.kernel.split(['.', '-']).map(|number| number.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let (major, minor) = KERNEL_MIN;
    let row = Row::new(
        Layer::Processors,
        "kernel",
        if facts.kernel.is_empty() { "not readable" } else { &facts.kernel },
        format!("{major}.{minor}, better {}.{}", KERNEL_COUNTS.0, KERNEL_COUNTS.1),
        why,
        &[Source::Kernel],
    );
    match version {
        Some(version) if version < KERNEL_MIN => row.fail(Verdict::No, [Fix::Hardware(Hardware::Kernel("3.9"))]),
        Some(_) => row,
        None => Row { verdict: Verdict::Unknown, ..row },
    }
}

/// What the server uses of the kernel, as it was tried out.
fn features(facts: &Facts) -> Row {
    let why = "SO_REUSEPORT (a listener for each shard), TCP_USER_TIMEOUT and TCP_KEEPCNT (dead clients), TCP_INFO (why connections \
               end), epoll and eventfd, each tried out: where Linux is imitated, its version says little. [man]";
    let missing = facts.missing_features.as_deref();
    let set = match missing {
        None => "not tried".to_owned(),
        Some([]) => "all there".to_owned(),
        Some(missing) => format!("no {}", missing.join(", ")),
    };
    let row = Row::new(Layer::Processors, "kernel features", set, "all", why, &[Source::Man]);
    match missing {
        None => Row { verdict: Verdict::Unknown, ..row },
        Some([]) => row,
        Some(_) => row.fail(Verdict::No, [Fix::Hardware(Hardware::Kernel("3.9"))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_counted_by_core_and_interval() {
        assert_eq!(pings_within(2000, Duration::from_secs(3)), 450_000);
        assert_eq!(pings_within(500, Duration::from_secs(30)), 1_125_000);
        assert_eq!(pings_within(64_000, Duration::from_secs(3)), 14_400_000);
    }
}
