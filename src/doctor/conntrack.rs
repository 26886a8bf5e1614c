//! The table of a stateful firewall.

use crate::os::facts::Facts;

use super::goal::Goal;
use super::numbers::{grouped, round_up};
use super::row::{Layer, Row, Source, Verdict};
use super::settings::{CONNTRACK_BUCKETS, CONNTRACK_MAX};

const COUNT: &str = "net.netfilter.nf_conntrack_count";

/// Entries for a goal: every connection, a fifth for those that have left and wait, and what others have.
pub(super) fn entries(facts: &Facts, goal: &Goal) -> u64 {
    round_up((goal.sockets().saturating_mul(6) / 5).saturating_add(others(facts, goal)), 100_000)
}

/// Entries that are not the server's.
fn others(facts: &Facts, goal: &Goal) -> u64 {
    facts.number(COUNT).unwrap_or(0).saturating_sub(goal.server_open(facts))
}

/// More entries a chain make every packet slower.
const CHAIN_MAX: u64 = 8;

/// Whether anything on this machine asks for tracking.
pub(super) fn is_tracked(facts: &Facts) -> bool {
    facts.number(CONNTRACK_MAX.name).is_some() && !tracks_nothing(facts)
}

/// Whether the module is there and has not one entry although there are connections.
fn tracks_nothing(facts: &Facts) -> bool {
    facts.number(COUNT) == Some(0) && facts.sockets.tcp.is_some_and(|sockets| sockets > 0)
}

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let Some(most) = facts.number(CONNTRACK_MAX.name) else {
        return vec![untracked("not loaded", "No stateful firewall: nothing is tracked, nothing is bound.")];
    };
    if facts.untracked_ports.as_ref().is_some_and(|ports| ports.contains(&goal.port)) {
        let why = "The port is exempt (NOTRACK): its connections take no entry.";
        return vec![untracked(&format!("not for port {}", goal.port), why)];
    }
    if tracks_nothing(facts) {
        let why =
            "Loaded, and not one entry: no rule here asks for tracking. A firewall that does would bring it back.";
        return vec![untracked("loaded, tracks nothing", why)];
    }
    let others = others(facts, goal);
    let wanted = goal.sockets().saturating_add(others);
    let mut table = Row::setting(&CONNTRACK_MAX, facts, goal, grouped(wanted), |_| Verdict::Ok);
    if facts.untracked_ports.is_none() {
        table.why = format!("{} The rules could not be read here: a NOTRACK rule would exempt the port.", table.why);
    }
    let holds = most.saturating_sub(others) / goal.sockets_each();
    let chains = wanted.div_ceil(CHAIN_MAX);
    let buckets = Row::setting(&CONNTRACK_BUCKETS, facts, goal, grouped(chains), |buckets| match buckets {
        buckets if buckets < chains => Verdict::Warn,
        _ => Verdict::Ok,
    });
    vec![table.bound(holds, goal, CONNTRACK_MAX.fix(facts, goal)), buckets]
}

fn untracked(set: &str, why: &str) -> Row {
    Row::new(Layer::Conntrack, "connection tracking", set, "any", why, &[Source::Millions])
}
