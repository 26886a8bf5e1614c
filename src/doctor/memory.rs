//! Memory: what a parked connection costs the kernel and the server, and what a message to all of them costs for a moment.

use crate::os::facts::Facts;

use super::fix::{Fix, Hardware};
use super::goal::Goal;
use super::numbers::{bytes, grouped, round_up};
use super::row::{Layer, Row, Source, Verdict};
use super::settings::{SWAPPINESS, Setting, TCP_MEM, TCP_RMEM, TCP_WMEM};

/// The kernel's memory for one parked socket: TCP socket, inode, file, name, epoll entry, and its share of slabs that are not
/// full. 3,700 bytes of objects, 4 to 5 KB as slabs grow; measured with a million on Linux 6.18.
const KERNEL_BYTES: u64 = 4_500;

/// The server's memory for a welcomed session that shares neither identifier nor stream; `bench memory` has 693.
const SESSION_BYTES: u64 = 700;

/// The program itself, without clients.
const BASE_BYTES: u64 = 16 << 20;

/// Part of the memory that may be full, in percent; the rest is for messages on their way.
const USABLE_PERCENT: u64 = 90;

/// Bytes for one client.
fn each(goal: &Goal) -> u64 {
    KERNEL_BYTES * goal.sockets_each() + SESSION_BYTES
}

/// Memory that a goal needs.
fn needed(goal: &Goal) -> u64 {
    let clients = goal.connections.saturating_mul(each(goal)).saturating_add(BASE_BYTES);
    clients / USABLE_PERCENT * 100 + 100
}

/// Clients that fit.
fn fit(room_bytes: u64, goal: &Goal) -> u64 {
    (room_bytes / 100 * USABLE_PERCENT).saturating_sub(BASE_BYTES) / each(goal)
}

const WHY: &str = "A parked client takes 4.5 KB of the kernel and 0.7 KB of the server, measured with a million. [listener] \
                   counts 135 KB a socket, as if its buffers were filled: the kernel allocates them when there is data. \
                   [millions] counts 2.2 KB, without inode, file and epoll entry. A tenth is left free for messages.";

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let mut rows = vec![machine(facts, goal)];
    rows.extend(group(facts, goal));
    rows.push(tcp_mem_row(facts, goal));
    rows.push(minimum(&TCP_RMEM, facts, goal));
    rows.push(minimum(&TCP_WMEM, facts, goal));
    rows.push(swap(facts, goal));
    rows.push(huge_pages(facts));
    rows
}

/// What a server that runs has taken already.
fn taken(facts: &Facts, goal: &Goal) -> u64 {
    let resident = goal.server(facts).map_or(0, |server| server.resident_bytes);
    resident + goal.server_open(facts) * KERNEL_BYTES
}

fn machine(facts: &Facts, goal: &Goal) -> Row {
    let (total, available) = (facts.memory.total_bytes, facts.memory.available_bytes);
    let set = format!("{}, {} free", bytes(total), bytes(available));
    let row = Row::new(Layer::Memory, "memory", set, bytes(needed(goal)), WHY, &[Source::Measured, Source::Millions]);
    if total == 0 {
        return Row { set: "not readable".to_owned(), verdict: Verdict::Unknown, ..row };
    }
    let others = total.saturating_sub(available).saturating_sub(taken(facts, goal));
    let holds = fit(total.saturating_sub(others), goal);
    let wanted = round_up(needed(goal).saturating_add(others), 1 << 20);
    row.bound(holds, goal, [Fix::Hardware(Hardware::Memory { bytes: wanted, place: facts.place })])
}

fn group(facts: &Facts, goal: &Goal) -> Option<Row> {
    let group = facts.memory.cgroup?;
    let others = group.used_bytes.saturating_sub(taken(facts, goal));
    let why = format!(
        "The limit of the control group (version {}) counts the kernel's memory for sockets too; over it the server is \
         killed. {WHY}",
        group.version
    );
    let set = format!("{}, {} used", bytes(group.limit_bytes), bytes(group.used_bytes));
    let name = "memory (control group)";
    let row = Row::new(Layer::Memory, name, set, bytes(needed(goal)), why, &[Source::Measured, Source::Kernel]);
    let wanted = round_up(needed(goal).saturating_add(others), 1 << 20);
    let fix = Fix::GroupMemory { bytes: wanted, place: facts.place };
    Some(row.bound(fit(group.limit_bytes.saturating_sub(others), goal), goal, [fix]))
}

/// Pages for a message to every client at once, and the most that is sensible to allow: half of the memory.
fn burst_pages(facts: &Facts, goal: &Goal) -> (u64, u64) {
    (goal.connections, facts.memory.total_bytes / 2 / facts.page_bytes.max(1))
}

/// The value of `net.ipv4.tcp_mem`: pressure begins where every client has a page.
pub(super) fn tcp_mem(facts: &Facts, goal: &Goal) -> Option<String> {
    let set = facts.numbers(TCP_MEM.name).filter(|numbers| numbers.len() == 3);
    if facts.memory.total_bytes == 0 {
        return None;
    }
    let (wanted, most) = burst_pages(facts, goal);
    let pressure = (wanted.min(most)).max(set.as_ref().map_or(0, |numbers| numbers[1]));
    let maximum = (pressure / 2 * 3).min(most.max(pressure)).max(set.as_ref().map_or(0, |numbers| numbers[2]));
    let low = (pressure / 4 * 3).max(set.map_or(0, |numbers| numbers[0])).min(pressure);
    Some(format!("{low} {pressure} {maximum}"))
}

fn tcp_mem_row(facts: &Facts, goal: &Goal) -> Row {
    let (wanted, most) = burst_pages(facts, goal);
    let needs = format!("{} pages at most", grouped(wanted));
    let row = Row::setting(&TCP_MEM, facts, goal, needs, |_| Verdict::Ok);
    let Some(&[_, _, maximum]) = facts.numbers(TCP_MEM.name).as_deref() else { return row };
    if maximum >= wanted {
        return row;
    }
    // Half of the memory is allowed at most: more would not be there.
    let set = TCP_MEM.fix(facts, goal).filter(|_| maximum < most);
    let memory = round_up(wanted.saturating_mul(2 * facts.page_bytes), 1 << 30);
    let more = Fix::Hardware(Hardware::Memory { bytes: memory, place: facts.place });
    row.fail(Verdict::Warn, set.into_iter().chain((wanted > most).then_some(more)))
}

/// A minimum above this is for few connections with much data.
const MINIMUM_MAX: u64 = 64 << 10;

fn minimum(setting: &'static Setting, facts: &Facts, goal: &Goal) -> Row {
    let mut row = Row::setting(setting, facts, goal, "a minimum of a page", |minimum| match minimum {
        0..=MINIMUM_MAX => Verdict::Ok,
        _ => Verdict::Warn,
    });
    if let Some(numbers) = facts.numbers(setting.name) {
        row.set = numbers.into_iter().map(bytes).collect::<Vec<_>>().join(", ");
    }
    if row.verdict == Verdict::Warn {
        let minimum = facts.number(setting.name).unwrap_or(0);
        let together = bytes(minimum.saturating_mul(goal.sockets()));
        row.why = format!("The minimum is {}, {together} for this goal. {}", bytes(minimum), row.why);
    }
    row
}

fn swap(facts: &Facts, goal: &Goal) -> Row {
    /// Up to here file caches go first.
    const READINESS_MAX: u64 = 10;
    let has_swap = facts.memory.swap_bytes > 0;
    let row = Row::setting(&SWAPPINESS, facts, goal, "1, or no swap", |readiness| match readiness {
        READINESS_MAX.. if has_swap => Verdict::Warn,
        _ => Verdict::Ok,
    });
    let swap = if has_swap { format!("{} of swap", bytes(facts.memory.swap_bytes)) } else { "no swap".to_owned() };
    Row { set: format!("{}, {swap}", row.set), ..row }
}

fn huge_pages(facts: &Facts) -> Row {
    let why = "With `always` the kernel backs sparse memory by pages of 2 MiB: what is freed after a burst comes back later or \
               not at all. None of the guides names it, and it was not measured here. [kernel]";
    let set = facts.memory.huge_pages.as_deref();
    let row = Row::new(
        Layer::Memory,
        "transparent huge pages",
        set.unwrap_or("not there"),
        "madvise or never",
        why,
        &[Source::Kernel],
    );
    if set == Some("always") { row.fail(Verdict::Warn, [Fix::HugePagesOnRequest]) } else { row }
}
