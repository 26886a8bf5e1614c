//! The steps of each scenario over a run, and what they find.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::options::{Load, Publishing};
use super::{Findings, Scenario, idle, resume};
use crate::clock::now_ns;
use crate::engine::{Collected, Counts, Goodbye, Pace, Reply};
use crate::fleet::Fleet;
use crate::metrics::Calls;
use crate::observe;
use crate::protocol::{self, Protocol, json_string};
use crate::publish::Publisher;
use crate::report::Latency;
use crate::run::{Ended, Run};

/// For sockets to be closed and buffers to be freed before memory is read.
pub(super) const SETTLE: Duration = Duration::from_secs(3);

/// After the last publication, for a copy too many to arrive.
const LINGER: Duration = Duration::from_millis(300);

/// Runs a scenario's steps; what was found until an error stays found.
pub(super) fn run(
    load: &Load,
    fleet: Option<&Fleet>,
    scenario: &Scenario,
    run: &mut Run,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    open(load, run, findings)?;
    let ready_us = run.collect(0)?.ready_us;
    findings.latencies.push(Latency::new("connect until ready", &ready_us));
    run.snapshot("held")?;
    if run.interrupted() {
        return Ok(());
    }
    match scenario {
        Scenario::Connect => {}
        Scenario::Idle { hold, finale, .. } => {
            idle::hold(load, run, findings, Duration::from_secs_f64(*hold))?;
            finale.run(load, fleet, run, findings)?;
            if fleet.is_some() {
                idle::server_agrees(run, findings);
            }
        }
        Scenario::Broadcast { publishing, bad_network } => {
            if let Some(bad_network) = bad_network {
                resume::bad_network(load, fleet, run, findings, publishing, *bad_network)?;
            } else {
                let collected = publish(load, fleet, run, findings, publishing, 0, Receivers::All)?;
                findings.latencies.push(Latency::new("publish to receipt", &collected.delivery_us));
            }
            after_traffic(run)?;
        }
        Scenario::Echo { rounds, at_once, text } => {
            echo(load, run, findings, *rounds, *at_once, text)?;
            after_traffic(run)?;
        }
        Scenario::Storm { share, goodbye, restore } => match restore {
            Some(publishing) => resume::storm(load, fleet, run, findings, *share, *goodbye, publishing)?,
            None => storm(load, run, findings, *share, *goodbye)?,
        },
        Scenario::Slow { share, read_rate, publishing } => {
            slow(load, fleet, run, findings, *share, *read_rate, publishing)?;
        }
        Scenario::Churn { seconds, share, goodbye } => {
            churn(load, run, findings, *seconds, *share, *goodbye)?;
        }
    }
    Ok(())
}

fn open(load: &Load, run: &mut Run, findings: &mut Findings) -> anyhow::Result<()> {
    let pace = load.rate.map_or(Pace::Window(load.window.max(1)), Pace::Rate);
    let began_s = run.elapsed_s();
    run.workers.open(pace)?;
    let all = u64::from(load.connections);
    let retries = load.retry_after.is_some();
    let limit = Duration::from_secs_f64(load.timeout)
        + load.rate.map_or(Duration::from_secs(3600), |rate| {
            Duration::from_secs_f64(f64::from(load.connections) / rate.max(0.001))
        });
    let leave_bytes = load.leave_memory << 20;
    let mut short = false;
    let mut look_at = Instant::now();
    run.wait("opening", limit, |counts| {
        if Instant::now() >= look_at {
            look_at += Duration::from_secs(1);
            short = observe::free_memory_bytes().is_ok_and(|free| free < leave_bytes);
        }
        short || counts.ready_now() >= all || (!retries && counts.ready + counts.failed() >= all)
    })?;
    if short && run.workers.counts().ready_now() < all {
        // Rather fewer connections than a kernel that ends processes to get memory.
        run.workers.stop_opening()?;
        run.pause("stopping", SETTLE)?;
        findings.problem(format!("opening stopped: less than {} MiB of memory were left", load.leave_memory));
    }
    let counts = run.workers.counts();
    let took_s = run.elapsed_s() - began_s;
    findings.opened_s = took_s;
    findings.fact("opened", format!("{} of {all} in {took_s:.1} s", counts.ready_now()));
    findings.fact("rate", format!("{:.0} a second", counts.ready as f64 / took_s.max(1e-3)));
    if counts.retransmitted > 0 {
        findings.fact("connections that sent a segment twice", counts.retransmitted.to_string());
    }
    // Whatever comes next would measure a server without clients.
    ensure!(
        counts.ready_now() > 0 || run.interrupted(),
        "none of {all} connections got ready; failures: {}",
        counts.failure_words()
    );
    if counts.ready_now() < all {
        findings.problem(format!("{} of {all} connections are ready", counts.ready_now()));
    }
    Ok(())
}

/// Connections that are gone although nobody here let them go.
pub(super) fn all_stayed(run: &Run, findings: &mut Findings, lost_before: u64) {
    let lost = run.workers.counts().lost - lost_before;
    if lost > 0 {
        findings.problem(format!("{lost} connections were lost"));
    }
}

fn after_traffic(run: &mut Run) -> anyhow::Result<()> {
    run.pause("settling", SETTLE)?;
    run.snapshot("after traffic")
}

/// Which of the clients are expected to receive all that is published.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Receivers {
    /// All of them, or the run has failed.
    All,
    /// Those that read; how many messages the others get, nobody knows.
    Fast,
}

/// Publishes and waits for the receipts. `from` is the first sequence number.
pub(super) fn publish(
    load: &Load,
    fleet: Option<&Fleet>,
    run: &mut Run,
    findings: &mut Findings,
    publishing: &Publishing,
    from: u32,
    receivers: Receivers,
) -> anyhow::Result<Collected> {
    let before = run.workers.counts();
    let published = post_all(load, fleet, run, publishing, from)?;
    findings.published = from + published;
    let expected = u64::from(published) * before.ready_now();
    await_receipts(load, run, before.marked + expected, receivers)?;
    let collected = run.collect(from + published)?;
    compare_receipts(run, findings, &before, expected, collected.missing_at_end, receivers);
    Ok(collected)
}

/// Posts every publication at its time, to all servers or to the first one of those that tell each other; how many were
/// posted.
pub(super) fn post_all(
    load: &Load,
    fleet: Option<&Fleet>,
    run: &mut Run,
    publishing: &Publishing,
    from: u32,
) -> anyhow::Result<u32> {
    let body = publishing.body(load)?;
    let credentials = publishing.credentials()?;
    let urls = publishing.publish_urls.iter().chain(fleet.iter().flat_map(|fleet| &fleet.publish_urls));
    let count = if publishing.publish_to_one { 1 } else { usize::MAX };
    let mut publishers =
        urls.take(count).map(|url| Publisher::connect(url, &credentials)).collect::<anyhow::Result<Vec<_>>>()?;
    let start_ns = now_ns();
    for message in 0..publishing.messages {
        // The time it should go out, whatever the server or this tool were busy with until then.
        let due_ns = start_ns + (f64::from(message) / publishing.publish_rate * 1e9) as u64;
        let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns()));
        if run.pause("publishing", wait)? == Ended::Interrupted {
            return Ok(message);
        }
        let mut mark = protocol::mark(from + message, due_ns);
        mark.push_str(&"x".repeat(publishing.bytes.saturating_sub(mark.len())));
        let body = body.replace("{mark}", &mark);
        publishers.iter_mut().try_for_each(|publisher| publisher.post(&body))?;
    }
    Ok(publishing.messages)
}

/// Waits until so many marked messages have come, or no more come.
pub(super) fn await_receipts(load: &Load, run: &mut Run, expected: u64, receivers: Receivers) -> anyhow::Result<()> {
    let limit = Duration::from_secs_f64(load.timeout);
    match receivers {
        Receivers::All => run.wait("receiving", limit, |counts| counts.marked >= expected)?,
        // Nobody knows how many will come: until a second passes without any.
        Receivers::Fast => {
            let (mut last, mut since_ns) = (0, now_ns());
            run.wait("receiving", limit, |counts| {
                if counts.marked != last {
                    (last, since_ns) = (counts.marked, now_ns());
                }
                now_ns() - since_ns > 1_000_000_000
            })?
        }
    };
    run.pause("receiving", LINGER)?;
    Ok(())
}

pub(super) fn compare_receipts(
    run: &Run,
    findings: &mut Findings,
    before: &Counts,
    expected: u64,
    missing_at_end: u64,
    receivers: Receivers,
) {
    let counts = run.workers.counts();
    let lost = counts.lost_between() - before.lost_between() + missing_at_end;
    let doubled = counts.duplicated - before.duplicated;
    let reordered = counts.reordered - before.reordered;
    let name = match receivers {
        Receivers::All => "delivered",
        Receivers::Fast => "delivered while some read slowly",
    };
    let marked = counts.marked - before.marked;
    findings.fact(name, format!("{marked} of {expected}; lost {lost}, doubled {doubled}, out of order {reordered}"));
    if receivers == Receivers::All {
        if lost + doubled + reordered > 0 {
            findings.problem(format!("{lost} messages lost, {doubled} doubled, {reordered} out of order"));
        }
        all_stayed(run, findings, before.lost);
    }
}

fn echo(
    load: &Load,
    run: &mut Run,
    findings: &mut Findings,
    rounds: u32,
    at_once: u32,
    text: &str,
) -> anyhow::Result<()> {
    let (texts, reply) = match load.protocol {
        Protocol::Raw => (vec![text.to_owned()], Reply::Any),
        Protocol::ActionCable | Protocol::ActionCableExt => {
            let identifier = json_string(load.identifier());
            let data = json_string(text);
            (vec![format!(r#"{{"command":"message","identifier":{identifier},"data":{data}}}"#)], Reply::Data)
        }
        Protocol::Pusher => (vec![format!(r#"{{"event":"pusher:ping","data":{}}}"#, json_string(text))], Reply::Pong),
        Protocol::Centrifugo => bail!("Centrifugo's clients have nothing to say that every server answers"),
    };
    let before = run.workers.counts();
    let began_s = run.elapsed_s();
    run.workers.say(texts, reply, rounds, at_once.max(1))?;
    let ready = before.ready_now();
    let limit = Duration::from_secs_f64(load.timeout * f64::from(rounds.max(1)));
    let ended = run.wait("saying", limit, |counts| counts.said - before.said >= ready)?;
    let replies = run.workers.counts().replies - before.replies;
    let expected = u64::from(rounds) * ready;
    let took_s = run.elapsed_s() - began_s;
    findings.fact("replies", format!("{replies} of {expected}, {:.0} a second", replies as f64 / took_s.max(1e-3)));
    if ended == Ended::TimedOut || replies < expected {
        findings.problem(format!("{} of {expected} messages were not answered", expected - replies.min(expected)));
    }
    let collected = run.collect(0)?;
    findings.latencies.push(Latency::new("message to reply", &collected.reply_us));
    all_stayed(run, findings, before.lost);
    Ok(())
}

fn storm(load: &Load, run: &mut Run, findings: &mut Findings, share: f64, goodbye: Goodbye) -> anyhow::Result<()> {
    let before = run.workers.counts();
    let queue_before = observe::queue_counters()?;
    run.watch_calls(true);
    run.workers.drop_share(share.clamp(0.0, 1.0), goodbye)?;
    run.workers.open(Pace::Storm)?;
    await_return(load, run, &before)?;
    let all = u64::from(load.connections);
    let counts = run.workers.counts();
    let queue = observe::queue_counters()?.since(queue_before);
    let ready = run.collect(0)?.ready_us;
    let at = |quantile: f64| ready.value_at_quantile(quantile) as f64 / 1e6;
    findings.fact("dropped", (counts.ended - before.ended).to_string());
    findings.fact(
        "back: 50 %, 99 %, all",
        format!("{:.2} s, {:.2} s, {:.2} s", at(0.5), at(0.99), ready.max() as f64 / 1e6),
    );
    findings.fact("refused or failed", counts.failures_since(&before).failure_words());
    findings.fact("tried again", (counts.retried - before.retried).to_string());
    findings.fact("sent a segment twice", (counts.retransmitted - before.retransmitted).to_string());
    findings.fact(
        "accept queues (whole network namespace)",
        format!("{} overflows, {} drops", queue.listen_overflows, queue.listen_drops),
    );
    findings.latencies.push(Latency::new("start of the storm until ready", &ready));
    if counts.ready_now() < all {
        findings.problem(format!("{} of {all} are back", counts.ready_now()));
    }
    // Disconnect calls of the clients that went are still under way.
    run.pause("settling", SETTLE)?;
    run.watch_calls(false);
    findings.fact("calls to the backend", backend_calls(run));
    run.snapshot("after traffic")
}

/// Waits until all that were dropped are back, or have failed for good.
pub(super) fn await_return(load: &Load, run: &mut Run, before: &Counts) -> anyhow::Result<()> {
    let all = u64::from(load.connections);
    let retries = load.retry_after.is_some();
    run.wait("returning", Duration::from_secs_f64(load.timeout), |counts| {
        let dropped = counts.ended - before.ended;
        let back = counts.ready - before.ready;
        let failed = if retries { 0 } else { counts.failed() - before.failed() };
        dropped > 0 && counts.ready_now() + failed >= all && back + failed >= dropped
    })?;
    Ok(())
}

/// The calls of a storm in words.
pub(super) fn backend_calls(run: &Run) -> String {
    let (Some((_, first)), Some((_, last))) = (run.calls.first(), run.calls.last()) else {
        return "not observed: give --server-metrics of a server that counts them".to_owned();
    };
    let rate = |pair: &[(f64, Calls)]| {
        let [(then_s, then), (now_s, now)] = pair else { return 0.0 };
        now.made.saturating_sub(then.made) as f64 / (now_s - then_s).max(1e-3)
    };
    let peak = run.calls.windows(2).map(rate).fold(0.0, f64::max);
    let mut words = format!("{}; at peak {peak:.0} a second", last.words_since(first));
    if let Some(waiting) = run.calls.iter().filter_map(|(_, calls)| calls.waiting).max() {
        words.push_str(&format!(", {waiting} waiting for their turn"));
    }
    if let Some(at_once) = last.at_once_max {
        words.push_str(&format!(", {at_once} at once allowed"));
    }
    if let Some(queued) = last.queued {
        words.push_str(&format!("; {queued} calls about clients that left still to come"));
    }
    words
}

fn slow(
    load: &Load,
    fleet: Option<&Fleet>,
    run: &mut Run,
    findings: &mut Findings,
    share: f64,
    read_rate: u32,
    publishing: &Publishing,
) -> anyhow::Result<()> {
    let all_fast = publish(load, fleet, run, findings, publishing, 0, Receivers::All)?;
    findings.latencies.push(Latency::new("publish to receipt, nobody slow", &all_fast.delivery_us));
    run.workers.slow(share.clamp(0.0, 1.0), read_rate)?;
    let before = run.workers.counts();
    let some_slow = publish(load, fleet, run, findings, publishing, publishing.messages, Receivers::Fast)?;
    findings.latencies.push(Latency::new("publish to receipt, with slow readers", &some_slow.delivery_us));
    run.snapshot("with slow readers")?;
    run.workers.slow(0.0, 0)?;
    run.pause("catching up", SETTLE)?;
    let lost = run.workers.counts().lost - before.lost;
    let slow_ones = (f64::from(load.connections) * share).round() as u64;
    findings.fact("slow clients that the server let go", format!("{lost} of {slow_ones}"));
    if lost > slow_ones {
        findings.problem(format!("{} clients were lost that read as fast as they could", lost - slow_ones));
    }
    run.snapshot("after traffic")
}

fn churn(
    load: &Load,
    run: &mut Run,
    findings: &mut Findings,
    seconds: f64,
    share: f64,
    goodbye: Goodbye,
) -> anyhow::Result<()> {
    let before = run.workers.counts();
    let began_s = run.elapsed_s();
    while run.elapsed_s() - began_s < seconds {
        run.workers.drop_share(share.clamp(0.0, 1.0), goodbye)?;
        run.workers.open(Pace::Window(load.window.max(1)))?;
        if run.pause("churning", Duration::from_secs(1))? == Ended::Interrupted {
            return Ok(());
        }
    }
    let all = u64::from(load.connections);
    run.wait("churning", Duration::from_secs_f64(load.timeout), |counts| counts.ready_now() >= all)?;
    let counts = run.workers.counts();
    findings.fact("came and went", (counts.ended - before.ended).to_string());
    run.pause("settling", SETTLE)?;
    run.snapshot("after churn")?;
    if counts.ready_now() < all {
        findings.problem(format!("{} of {all} are back", counts.ready_now()));
    }
    all_stayed(run, findings, before.lost);
    run.workers.drop_share(1.0, Goodbye::Close)?;
    run.wait("leaving", SETTLE, |counts| counts.ready_now() == 0)?;
    run.pause("settling", SETTLE)?;
    run.snapshot("everybody gone")?;
    let rss = |moment: &str| {
        let snapshot = run.snapshots.iter().find(|snapshot| snapshot.moment == moment)?;
        Some(snapshot.server_rss_bytes()? as f64)
    };
    if let (Some(held), Some(churned)) = (rss("held"), rss("after churn")) {
        findings.fact("server memory after churn / before", format!("{:.3}", churned / held));
    }
    Ok(())
}
