//! Holding connections that say nothing: what they cost, and whether their pings come in time.

use std::time::Duration;

use super::Findings;
use super::options::Load;
use super::steps::all_stayed;
use crate::engine::Counts;
use crate::run::Run;

/// Holds what is open.
pub(super) fn hold(load: &Load, run: &mut Run, findings: &mut Findings, hold: Duration) -> anyhow::Result<()> {
    let before = run.workers.counts();
    let began_s = run.elapsed_s();
    run.pause("holding", hold)?;
    let counts = run.workers.counts();
    let held_s = run.elapsed_s() - began_s;
    findings.fact("held", format!("{} for {held_s:.0} s", counts.ready_now()));
    findings.fact("heartbeats received", format!("{:.0} a second", (counts.pings - before.pings) as f64 / held_s));
    late_pings(load, run, findings, "late pings: holding", &before)?;
    run.snapshot("after holding")?;
    let [.., held, after] = &run.snapshots[..] else { return Ok(()) };
    if after.server_cpu_us > 0.0 && after.ready > 0 {
        let cpu_us = after.server_cpu_us - held.server_cpu_us;
        let each_ns = cpu_us * 1e3 / held_s / after.ready as f64;
        findings.fact("server CPU while holding", format!("{each_ns:.0} ns a second and connection"));
    }
    all_stayed(run, findings, 0);
    Ok(())
}

/// Reports pings that came late since `before`, and those that are late now and have not come, where it is known when they
/// are due. A client that is pinged late notices that its server is.
pub(super) fn late_pings(
    load: &Load,
    run: &mut Run,
    findings: &mut Findings,
    name: &str,
    before: &Counts,
) -> anyhow::Result<()> {
    let Some(late_s) = load.ping_late_after_s() else { return Ok(()) };
    let collected = run.collect(findings.published)?;
    let late = run.workers.counts().pings_late - before.pings_late;
    let (overdue, longest_s) = (collected.pings_overdue, collected.ping_gap_ms_max as f64 / 1e3);
    let mut words = format!("{late}, and {overdue} overdue");
    if longest_s > 0.0 {
        words += &format!("; longest time without one {longest_s:.1} s");
    }
    if late + overdue > 0 {
        findings.problem(format!("{name}: {words}, allowed {late_s:.1} s"));
    }
    findings.fact(name, words);
    Ok(())
}

/// Whether servers that have no other clients still hold all of ours: one that gives up a peer resets it, and when that
/// segment is lost on a loopback that is overrun, the client never learns that it is gone.
pub(super) fn server_agrees(run: &Run, findings: &mut Findings) {
    let Some(last) = run.snapshots.last() else { return };
    let held = last.metrics.as_ref().and_then(|metrics| metrics.connections);
    if let Some(problem) = disagreement(held, last.ready) {
        findings.problem(problem);
    }
}

fn disagreement(held: Option<u64>, ready: u64) -> Option<String> {
    let held = held.filter(|held| *held < ready)?;
    Some(format!("the server holds {held} of {ready} connections that are open here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_holds_fewer_than_its_clients_believe_is_a_problem() {
        assert_eq!(disagreement(Some(5), 5), None);
        assert_eq!(disagreement(Some(6), 5), None, "the one that reads its metrics");
        assert_eq!(disagreement(None, 5), None, "it does not say");
        assert!(disagreement(Some(2_035_329), 2_600_000).unwrap().contains("2035329 of 2600000"));
    }
}
