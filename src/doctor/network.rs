//! The network card: its rings, and how its packets come to the cores.

use crate::os::facts::{Facts, Interface, Ring};

use super::accept::MANY;
use super::fix::Fix;
use super::goal::Goal;
use super::numbers::grouped;
use super::row::{Layer, Row, Source, Verdict};
use super::settings::RPS_FLOWS;

/// As the guide for a balancer has it; more makes packets wait longer than it keeps.
const RING: u32 = 4096;

/// Flows of all receive queues together, as the kernel's guide has it for a moderately loaded server.
const FLOWS: u64 = 32_768;

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let Some(card) = &facts.interface else {
        let why = "No card with a default route; name one with --interface.";
        let row = Row::new(Layer::Nic, "network card", "none found", "", why, &[]);
        return vec![Row { verdict: Verdict::Unknown, ..row }];
    };
    let mut rows = vec![rings(card, goal), spread(card, facts, goal)];
    rows.extend(steering(card, facts, goal));
    rows
}

fn rings(card: &Interface, goal: &Goal) -> Row {
    let why = format!(
        "Packets that the card keeps until a core takes them; over it they are dropped ({} since boot, for any reason). \
         [balancer] sets 4096; not every card can. [man]",
        grouped(card.rx_dropped)
    );
    let name = format!("{}: rings rx, tx", card.name);
    let row = |set: String, needs: String| {
        Row::new(Layer::Nic, name.clone(), set, needs, why.clone(), &[Source::Balancer, Source::Man])
    };
    let Some(rings) = card.rings else {
        return Row { verdict: Verdict::Unknown, ..row("not told by the driver".to_owned(), format!("up to {RING}")) };
    };
    // Never shorter than it is.
    let wanted = |ring: Ring| ring.max.min(RING).max(ring.now);
    let (rx, tx) = (wanted(rings.rx), wanted(rings.tx));
    let row = row(format!("{}, {}", rings.rx.now, rings.tx.now), format!("{rx}, {tx}"));
    if goal.connections >= MANY && (rx, tx) != (rings.rx.now, rings.tx.now) {
        return row.fail(Verdict::Warn, [Fix::Rings { interface: card.name.clone(), rx, tx }]);
    }
    row
}

/// Whether as many queues as cores receive, or packets are spread in software.
fn spread(card: &Interface, facts: &Facts, goal: &Goal) -> Row {
    let cores = facts.cpu.cores.max(1);
    let spread = card.rps_cpus.iter().any(|cores| *cores > 1);
    let why = "One receive queue is worked off by one core. With queues for less than half of the cores, receive packet \
               steering (RPS) lets the others help. Where the card has more queues, `ethtool -L` is better. [balancer] names it and gives no \
               line. [kernel]";
    let set = format!("{} of the card, RPS {}", card.rx_queues, if spread { "on" } else { "off" });
    let name = format!("{}: receive queues", card.name);
    let needs = if cores > 1 { format!("{}, or RPS", cores / 2 + 1) } else { "1".to_owned() };
    let row = Row::new(Layer::Nic, name, set, needs, why, &[Source::Balancer, Source::Kernel]);
    if card.rx_queues == 0 || card.rx_queues * 2 > cores || spread || goal.connections < MANY {
        return row;
    }
    let fix = Fix::SpreadPackets { interface: card.name.clone(), queues: card.rx_queues, cores };
    row.fail(Verdict::Warn, [fix])
}

/// Steering by flow, where packets are spread in software.
fn steering(card: &Interface, facts: &Facts, goal: &Goal) -> Option<Row> {
    let spread = card.rps_cpus.iter().any(|cores| *cores > 1);
    if !spread || goal.connections < MANY {
        return None;
    }
    let row = Row::setting(&RPS_FLOWS, facts, goal, grouped(FLOWS), |_| Verdict::Ok);
    let entries = facts.number(RPS_FLOWS.name)?;
    let row = Row { set: format!("{}, {} a queue", grouped(entries), grouped(card.rps_flows)), ..row };
    if entries >= FLOWS && card.rps_flows > 0 {
        return Some(row);
    }
    let queues = card.rx_queues;
    let flows = Fix::Flows { interface: card.name.clone(), queues, flows: FLOWS / queues.max(1) as u64 };
    Some(row.fail(Verdict::Warn, RPS_FLOWS.fix(facts, goal).into_iter().chain([flows])))
}
