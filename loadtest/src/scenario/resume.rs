//! Clients that lose their connections and go on with their sessions: what they missed must come, once and in order.

use std::time::Duration;

use super::Findings;
use super::options::{Load, Publishing};
use super::steps::{self, Receivers};
use crate::engine::{BadNetwork, Collected, Counts, Goodbye, Pace};
use crate::fleet::Fleet;
use crate::report::Latency;
use crate::run::Run;

/// What AnyCable has published of the same test.
const ANYCABLE: &str = "2 s every 15 s, 10,000 clients: 100 % delivered, replay tail p95 4100 ms";

/// For an order to reach the clients, in other processes too.
const ORDERED: Duration = Duration::from_millis(500);

/// Publishes while each client is dropped again and again.
pub(super) fn bad_network(
    load: &Load,
    fleet: Option<&Fleet>,
    run: &mut Run,
    findings: &mut Findings,
    publishing: &Publishing,
    bad_network: BadNetwork,
) -> anyhow::Result<()> {
    let before = run.workers.counts();
    run.workers.bad_network(Some(bad_network))?;
    let published = steps::post_all(load, fleet, run, publishing, 0)?;
    findings.published = published;
    run.workers.bad_network(None)?;
    // The order takes a moment to reach everybody, and until then connections are dropped.
    run.pause("returning", ORDERED)?;
    let all = u64::from(load.connections);
    let failed = |counts: &Counts| counts.failed() > before.failed() && load.retry_after.is_none();
    let limit = Duration::from_secs_f64(load.timeout);
    run.wait("returning", limit, |counts| counts.ready_now() >= all || failed(counts))?;
    let collected = receipts(load, run, findings, &before, (0, published))?;
    let dropped = run.workers.counts().dropped - before.dropped;
    if dropped == 0 {
        findings.problem("nobody was dropped: publish for longer than --drop-every");
    }
    let BadNetwork { drop_every, drop_for } = bad_network;
    findings.fact(
        "dropped",
        format!(
            "{dropped} times: each client every {:.1} s for {:.1} s",
            drop_every.as_secs_f64(),
            drop_for.as_secs_f64()
        ),
    );
    found(run, findings, &before, &collected);
    findings.latencies.push(Latency::new("return until caught up", &collected.ready_us));
    findings.fact("published figure of AnyCable", ANYCABLE);
    Ok(())
}

/// Drops a share at once, publishes while they are away and while they come back.
pub(super) fn storm(
    load: &Load,
    fleet: Option<&Fleet>,
    run: &mut Run,
    findings: &mut Findings,
    share: f64,
    goodbye: Goodbye,
    publishing: &Publishing,
) -> anyhow::Result<()> {
    let part = |messages| Publishing { messages, ..publishing.clone() };
    // From now on everybody has a place in the stream.
    steps::publish(load, fleet, run, findings, &part(1), 0, Receivers::All)?;
    let before = run.workers.counts();
    let connects_before = fleet.map_or(Ok(None), Fleet::connects)?;
    run.watch_calls(true);
    run.workers.drop_share(share.clamp(0.0, 1.0), goodbye)?;
    let missed = steps::post_all(load, fleet, run, &part(publishing.messages / 2), 1)?;
    run.workers.open(Pace::Storm)?;
    let rest = part(publishing.messages - publishing.messages / 2);
    let published = missed + steps::post_all(load, fleet, run, &rest, 1 + missed)?;
    findings.published = 1 + published;
    steps::await_return(load, run, &before)?;
    let collected = receipts(load, run, findings, &before, (1, published))?;
    let connects_after = fleet.map_or(Ok(None), Fleet::connects)?;

    let counts = run.workers.counts();
    let dropped = counts.ended - before.ended;
    let at = |quantile: f64| collected.ready_us.value_at_quantile(quantile) as f64 / 1e6;
    findings.fact("dropped", dropped.to_string());
    findings.fact(
        "back and caught up: 50 %, 99 %, all",
        format!("{:.2} s, {:.2} s, {:.2} s", at(0.5), at(0.99), collected.ready_us.max() as f64 / 1e6),
    );
    findings.fact("published meanwhile", format!("{missed} while they were away, {} since", published - missed));
    findings.fact("refused or failed", counts.failures_since(&before).failure_words());
    found(run, findings, &before, &collected);
    findings.latencies.push(Latency::new("start of the storm until caught up", &collected.ready_us));
    if counts.restored - before.restored < dropped {
        findings.problem(format!("{} of {dropped} clients got their session again", counts.restored - before.restored));
    }
    if let (Some(then), Some(now)) = (connects_before, connects_after) {
        findings.fact("Connect calls that the app got", (now - then).to_string());
        if now - then > counts.anew - before.anew {
            findings.problem(format!("{} Connect calls for clients whose session went on", now - then));
        }
    }
    // Disconnect calls of the clients that went may still be under way.
    run.pause("settling", steps::SETTLE)?;
    run.watch_calls(false);
    findings.fact("calls to the backend", steps::backend_calls(run));
    run.snapshot("after traffic")
}

/// Waits for everything that was published since `before`, numbered from `first`, to have come to everybody.
fn receipts(
    load: &Load,
    run: &mut Run,
    findings: &mut Findings,
    before: &Counts,
    (first, published): (u32, u32),
) -> anyhow::Result<Collected> {
    let expected = u64::from(published) * before.ready_now();
    steps::await_receipts(load, run, before.marked + expected, Receivers::All)?;
    let collected = run.collect(first + published)?;
    steps::compare_receipts(run, findings, before, expected, collected.missing_at_end, Receivers::All);
    let ready = run.workers.counts().ready_now();
    if ready < u64::from(load.connections) {
        findings.problem(format!("{ready} of {} are back", load.connections));
    }
    Ok(collected)
}

/// What became of the sessions and of what was missed.
fn found(run: &Run, findings: &mut Findings, before: &Counts, collected: &Collected) {
    let counts = run.workers.counts();
    let since = |count: fn(&Counts) -> u64| count(&counts) - count(before);
    let (restored, anew) = (since(|counts| counts.restored), since(|counts| counts.anew));
    findings.fact("sessions restored / let in anew", format!("{restored} / {anew}"));
    findings.fact("missed messages that came by replay", since(|counts| counts.replayed).to_string());
    let unrecoverable = since(|counts| counts.unrecoverable);
    if unrecoverable > 0 {
        findings.problem(format!("{unrecoverable} clients were told that what they missed is gone"));
    }
    findings.latencies.push(Latency::new("publish to receipt", &collected.delivery_us));
    findings.latencies.push(Latency::new("publish to receipt by replay, absence included", &collected.replay_us));
}
