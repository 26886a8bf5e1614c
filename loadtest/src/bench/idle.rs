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
        let mut results = [Watched::default(); 4];
        for side in Side::all(round) {
            results[side as usize] = watch(side, options, connections, interval, 1.0)?;
        }
        per_frame.push(results.map(|result| result.us_per_ping));
        let [server, bare, ..] = results;
        per_second.push((server.us_per_second, Some(bare.us_per_second)));
        rate.push((server.pings_per_second, Some(bare.pings_per_second)));
    }
    let name = format!("idle: server CPU per heartbeat, {connections} every {} s", interval.as_secs());
    let mut figures = super::beside_both(&name, Limit::Ratio(1.15), &per_frame);
    figures.extend([
        Figure::new("idle: server CPU per second, everything included", "us", Limit::None, per_second),
        Figure::new("idle: heartbeats received", "per second", Limit::None, rate),
    ]);
    Ok(figures)
}

/// Everything that looks after connections: the notes of an admin port, keepalive, and answers to pings. Samples are taken
/// in any case.
const EVERYTHING_ON: &[&str] =
    &["--admin-port", "0", "--enable-native-pings", "--pong-timeout", "20s", "--tcp-keepalive-time", "30s"];
/// Nothing of it, but pings.
const EVERYTHING_OFF: &[&str] = &["--tcp-keepalive-time", "0", "--tcp-user-timeout", "0"];

/// Ping messages and ping frames in an interval, with [`EVERYTHING_ON`]: a client that answers is asked at every second one.
const PINGS_ON: f64 = 1.5;

/// The server with everything on and with everything off, and the yardstick: CPU per connection and second.
pub(super) fn everything(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let interval = Duration::from_secs(options.ping_interval.max(1));
    let with = |more: &[&str]| {
        let mut options = options.clone();
        options.server_args.extend(more.iter().map(|argument| (*argument).to_owned()));
        options
    };
    // Without a server the yardstick stands for it, and sends one ping.
    let pings_on = if options.server.is_some() { PINGS_ON } else { 1.0 };
    let sides = [
        (Side::Server, with(EVERYTHING_ON), pings_on),
        (Side::Server, with(EVERYTHING_OFF), 1.0),
        (Side::Bare, options.clone(), 1.0),
    ];
    let [mut on_bare, mut off_bare, mut on_off] = [const { Vec::new() }; 3];
    for round in 0..options.rounds_or(1) {
        let mut ns = [0.0; 3];
        for at in (0..3).map(|at| (at + round as usize) % 3) {
            let (side, options, pings) = &sides[at];
            let watched = watch(*side, options, connections, interval, *pings)?;
            ns[at] = watched.us_per_second * 1e3 / f64::from(connections);
        }
        let [on, off, bare] = ns;
        on_bare.push((on, Some(bare)));
        off_bare.push((off, Some(bare)));
        on_off.push((on, Some(off)));
    }
    let every = format!("{connections} pinged every {} s", interval.as_secs());
    let figure = |name, rounds| Figure::new(name, "ns", Limit::None, rounds);
    Ok(vec![
        figure(format!("CPU per connection and second, all on, {every}"), on_bare),
        figure("... all off".to_owned(), off_bare),
        figure("... all on / all off, instead of bare".to_owned(), on_off),
    ])
}

/// What a side did while it was watched.
#[derive(Clone, Copy, Default)]
struct Watched {
    us_per_ping: f64,
    us_per_second: f64,
    pings_per_second: f64,
}

/// Watches a side that sends each client so many pings in an interval.
fn watch(
    side: Side,
    options: &Options,
    connections: u32,
    interval: Duration,
    pings_each: f64,
) -> anyhow::Result<Watched> {
    let want = Want { ping_interval: interval, ..Want::quiet(Protocol::ActionCable) };
    let server = Running::start(side, options, &want)?;
    let identifier = r#"{"channel":"$pubsub","stream_name":"room:7"}"#;
    let engine = super::clients(&server, Protocol::ActionCable, connections, 0, Some(identifier))?;
    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    // The first comes within one interval; opening takes no part of what is watched.
    super::pause(interval.mul_f64(0.55));
    let (before, pings_before, start) = (server.cpu_us()?, engine.counts().pings, std::time::Instant::now());
    super::pause(Duration::from_secs_f64(options.seconds));
    let (after, pings_after, elapsed) = (server.cpu_us()?, engine.counts().pings, start.elapsed().as_secs_f64());
    super::all_ready(&engine, connections)?;
    let pings = (pings_after - pings_before) as f64;
    let due = f64::from(connections) * elapsed / interval.as_secs_f64() * pings_each;
    ensure!(
        (pings - due).abs() <= due * 0.1 + 10.0,
        "{side:?} sent {pings} heartbeats in {elapsed:.1} s where {due:.0} were due"
    );
    let cpu_us = after - before;
    Ok(Watched { us_per_ping: cpu_us / pings, us_per_second: cpu_us / elapsed, pings_per_second: pings / elapsed })
}
