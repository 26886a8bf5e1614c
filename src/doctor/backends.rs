//! Ports for connections to the app. Clients need none: what differs between them is their own address and port.

use crate::os::facts::Facts;

use super::fix::Fix;
use super::goal::{Backend, Goal};
use super::numbers::grouped;
use super::row::{Row, Verdict};
use super::settings::{PORT_RANGE, RESERVED_PORTS, TW_REUSE, is_reserved};

/// Connections that gRPC keeps to the app, generously.
const GRPC_CONNECTIONS: u64 = 16;

/// Whether connections to the app come and go.
fn has_many_ports(goal: &Goal) -> bool {
    goal.backend != Backend::Grpc
}

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let reuse = Row::setting(&TW_REUSE, facts, goal, if has_many_ports(goal) { "1 or 2" } else { "any" }, |set| {
        if set == 0 && has_many_ports(goal) { Verdict::Warn } else { Verdict::Ok }
    });
    vec![range(facts, goal), reserved(facts, goal), reuse]
}

/// Ports in a range of the kernel's.
fn ports(facts: &Facts) -> Option<(u64, u64, u64)> {
    match facts.numbers(PORT_RANGE.name)?[..] {
        [first, last] => Some((first, last, (last + 1).saturating_sub(first))),
        _ => None,
    }
}

/// Ports of the widest range.
const PORTS_MAX: u64 = 65_535 - 1_024 + 1;

fn range(facts: &Facts, goal: &Goal) -> Row {
    let addresses = goal.backend_addresses.max(1);
    let (wanted, passes) = match goal.backend {
        Backend::Grpc => (GRPC_CONNECTIONS, false),
        Backend::Http => (goal.calls, false),
        Backend::Pass => (goal.connections.div_ceil(addresses), true),
    };
    let row = Row::setting(&PORT_RANGE, facts, goal, format!("{} ports", grouped(wanted)), |_| Verdict::Ok);
    let Some((_, _, ports)) = ports(facts) else { return row };
    let row = Row { set: format!("{} ({} ports)", facts.sysctls[PORT_RANGE.name], grouped(ports)), ..row };
    if !passes {
        return if ports < wanted { row.fail(Verdict::No, PORT_RANGE.fix(facts, goal)) } else { row };
    }
    let mut row = row.bound(ports.saturating_mul(addresses), goal, PORT_RANGE.fix(facts, goal));
    // The reserved ports are taken off, too, wherever they lie.
    let most = PORTS_MAX - goal.own_ports.len() as u64;
    if row.verdict == Verdict::No && wanted > most {
        row.fixes.push(Fix::BackendAddresses(goal.connections.div_ceil(most)));
    }
    row
}

fn reserved(facts: &Facts, goal: &Goal) -> Row {
    let range = ports(facts);
    let set = facts.sysctls.get(RESERVED_PORTS.name).map_or("", String::as_str);
    let in_danger = goal.own_ports.iter().filter(|port| {
        range.is_some_and(|(first, last, _)| (first..=last).contains(&u64::from(**port))) && !is_reserved(set, **port)
    });
    let in_danger: Vec<String> = in_danger.map(u16::to_string).collect();
    let needs = if in_danger.is_empty() { "none in the range".to_owned() } else { in_danger.join(",") };
    let row = Row::setting(&RESERVED_PORTS, facts, goal, needs, |_| Verdict::Ok);
    // It is empty as a rule, which is no number.
    let is_known = facts.sysctls.contains_key(RESERVED_PORTS.name);
    let row = Row { verdict: if is_known { Verdict::Ok } else { Verdict::Unknown }, ..row };
    let row = if set.is_empty() && is_known { Row { set: "none".to_owned(), ..row } } else { row };
    if in_danger.is_empty() { row } else { row.fail(Verdict::Warn, RESERVED_PORTS.fix(facts, goal)) }
}
