//! From a SYN to `accept`: the queues in between, and what they dropped.

use crate::os::facts::Facts;

use super::goal::Goal;
use super::numbers::grouped;
use super::row::{Layer, Row, Source, Verdict};
use super::settings::{NETDEV_BACKLOG, SOMAXCONN, SYN_BACKLOG, SYNCOOKIES};

/// From so many clients on a reconnection of all is a storm.
pub(super) const MANY: u64 = 100_000;

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    // Fewer clients than that never wait.
    let queue = goal.backlog.min(goal.connections);
    let short = |wanted: u64, verdict: Verdict| move |set: u64| if set < wanted { verdict } else { Verdict::Ok };
    let syncookies = facts.number(SYNCOOKIES.name) != Some(0);
    let half_open = if syncookies { Verdict::Warn } else { Verdict::No };
    let packets = if goal.connections >= MANY { NETDEV_BACKLOG_MANY } else { NETDEV_BACKLOG_DEFAULT };
    let mut somaxconn = Row::setting(&SOMAXCONN, facts, goal, grouped(queue), short(queue, Verdict::No));
    somaxconn.name = format!("accept queue ({})", SOMAXCONN.name);
    vec![
        somaxconn,
        Row::setting(&SYN_BACKLOG, facts, goal, grouped(queue), short(queue, half_open)),
        Row::setting(&NETDEV_BACKLOG, facts, goal, grouped(packets), short(packets, Verdict::Warn)),
        Row::setting(&SYNCOOKIES, facts, goal, "1", short(1, Verdict::Warn)),
        overflows(facts),
        waiting(facts, goal),
    ]
}

const NETDEV_BACKLOG_DEFAULT: u64 = 1_000;
const NETDEV_BACKLOG_MANY: u64 = 5_000;

/// What has been dropped since boot. It stays until the next boot, so it is a hint, and nothing resets it.
fn overflows(facts: &Facts) -> Row {
    let why = "Connections that found an accept queue full, and SYNs that listeners dropped, on this machine since boot. \
               If the number grows while clients come, the queue is too short or the server too busy. [listener] says that \
               such a connection waits in the SYN queue until there is room: its last packet is dropped, and it waits for \
               its own timer, a second and more.";
    let (overflows, drops) = (facts.sockets.listen_overflows, facts.sockets.listen_drops);
    let set = overflows.zip(drops).map(|(overflows, drops)| format!("{}, {}", grouped(overflows), grouped(drops)));
    let row = Row::new(
        Layer::AcceptPath,
        "ListenOverflows, ListenDrops",
        set.unwrap_or_else(|| "not readable".to_owned()),
        "0, 0",
        why,
        &[Source::Listener, Source::Kernel],
    );
    let verdict = match overflows {
        Some(0) => Verdict::Ok,
        Some(_) => Verdict::Warn,
        None => Verdict::Unknown,
    };
    Row { verdict, ..row }
}

/// The accept queues of our port, as long as they are now.
fn waiting(facts: &Facts, goal: &Goal) -> Row {
    let why = "Connections that wait in the accept queues of this port right now, one queue for each shard. A server that \
               keeps up leaves nobody waiting.";
    let queues: Vec<u64> =
        facts.listeners.iter().filter(|listener| listener.port == goal.port).map(|listener| listener.waiting).collect();
    let longest = queues.iter().copied().max();
    let most = goal.backlog.min(facts.number(SOMAXCONN.name).unwrap_or(goal.backlog)) / 2;
    let set = match longest {
        Some(longest) => format!("{} waiting (queues: {})", grouped(longest), queues.len()),
        None => "nobody listens".to_owned(),
    };
    let name = format!("longest queue of port {}", goal.port);
    let row = Row::new(Layer::AcceptPath, name, set, format!("below {}", grouped(most)), why, &[Source::Listener]);
    let verdict = if longest.is_some_and(|longest| longest >= most.max(1)) { Verdict::Warn } else { Verdict::Ok };
    Row { verdict, ..row }
}
