//! Heartbeats for connections that do nothing else: server CPU beside a loop that sends as many frames.

use std::time::Duration;

use anyhow::ensure;

use super::{Figure, Limit, OPENING_WINDOW, Options, Running, Side, Want};
use crate::engine::Pace;
use crate::protocol::Protocol;

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let interval = Duration::from_secs(options.ping_interval.max(1));
    let (mut per_frame, mut per_second, mut rate) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds_or(1) {
        let mut results = [(0.0, 0.0, 0.0); 4];
        for side in Side::all(round) {
            results[side as usize] = watch(side, options, connections, interval)?;
        }
        per_frame.push(results.map(|result| result.0));
        let [server, bare, ..] = results;
        per_second.push((server.1, Some(bare.1)));
        rate.push((server.2, Some(bare.2)));
    }
    let name = format!("idle: server CPU per heartbeat, {connections} every {} s", interval.as_secs());
    let mut figures = super::beside_both(&name, Limit::Ratio(1.15), &per_frame);
    figures.extend([
        Figure::new("idle: server CPU per second, everything included", "us", Limit::None, per_second),
        Figure::new("idle: heartbeats received", "per second", Limit::None, rate),
    ]);
    Ok(figures)
}

/// CPU per heartbeat and per second, and heartbeats per second.
fn watch(side: Side, options: &Options, connections: u32, interval: Duration) -> anyhow::Result<(f64, f64, f64)> {
    let want = Want { ping_interval: interval, ..Want::quiet(Protocol::ActionCable) };
    let server = Running::start(side, options, &want)?;
    let identifier = r#"{"channel":"$pubsub","stream_name":"room:7"}"#;
    let engine = super::clients(&server, Protocol::ActionCable, connections, 0, Some(identifier))?;
    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    // First heartbeats come at a random point of [0.5, 1.5) intervals; from half an interval on their rate is constant.
    super::pause(interval.mul_f64(0.55));
    let (before, pings_before, start) = (server.cpu_us()?, engine.counts().pings, std::time::Instant::now());
    super::pause(Duration::from_secs_f64(options.seconds));
    let (after, pings_after, elapsed) = (server.cpu_us()?, engine.counts().pings, start.elapsed().as_secs_f64());
    super::all_ready(&engine, connections)?;
    let pings = (pings_after - pings_before) as f64;
    let due = f64::from(connections) * elapsed / interval.as_secs_f64();
    ensure!(
        (pings - due).abs() <= due * 0.1 + 10.0,
        "{side:?} sent {pings} heartbeats in {elapsed:.1} s where {due:.0} were due"
    );
    Ok(((after - before) / pings, (after - before) / elapsed, pings / elapsed))
}
