//! What it costs to come in: CPU of a handshake, everybody at once, and a spike longer than the accept queue.

use anyhow::ensure;

use super::{Figure, Limit, OPENING_WINDOW, Options, QUIET, Running, Side, TIMEOUT, Want};
use crate::engine::{Goodbye, Pace};
use crate::observe;
use crate::protocol::Protocol;

/// Connections made before measuring, so that code and tables are in memory.
const WARM_UP: u32 = 200;

/// Server CPU of a plain WebSocket's handshake while clients connect as fast as they can. A round takes three seconds, and
/// rounds differ by a tenth, so there are more of them than of other figures.
pub(super) fn cpu(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let warm_up = WARM_UP.min(connections / 10);
    let mut rounds = Vec::new();
    for round in 0..options.rounds_or(9) {
        let mut results = [0.0; 4];
        for side in Side::all(round) {
            let server = Running::start(side, options, &Want::quiet(Protocol::Raw))?;
            let engine = super::clients(&server, Protocol::Raw, connections, 0, None)?;
            super::open_to(&engine, warm_up, warm_up, Pace::Window(OPENING_WINDOW))?;
            super::pause(QUIET);
            let before = server.cpu_us()?;
            super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
            super::pause(QUIET);
            results[side as usize] = (server.cpu_us()? - before) / f64::from(connections - warm_up);
        }
        rounds.push(results);
    }
    let name = format!("handshake: server CPU each, {connections} connections");
    Ok(super::beside_both(&name, Limit::Ratio(1.15), &rounds))
}

/// All are reset and come back at once: how long until the last one is ready, and whether any SYN was sent twice.
pub(super) fn storm(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let (mut last, mut half, mut twice) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds_or(3) {
        let mut times = [(0.0, 0.0); 2];
        let mut repeated = [0.0; 2];
        for side in Side::both(round) {
            let server = Running::start(side, options, &Want::quiet(Protocol::Raw))?;
            let engine = super::clients(&server, Protocol::Raw, connections, 0, None)?;
            super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
            super::pause(QUIET);
            engine.collect(0);
            let queue_before = observe::queue_counters()?;
            let again = u64::from(connections) * 2;
            engine.drop_share(1.0, Goodbye::Reset);
            engine.open(Pace::Storm);
            engine.wait(TIMEOUT, |counts| counts.ready + counts.failed() >= again);
            super::all_ready(&engine, connections)?;
            let queue = observe::queue_counters()?.since(queue_before);
            let ready = engine.collect(0).ready_us;
            ensure!(ready.len() == u64::from(connections), "{} came back, not {connections}", ready.len());
            times[side as usize] = (ready.max() as f64 / 1e6, ready.value_at_quantile(0.5) as f64 / 1e6);
            repeated[side as usize] = engine.counts().retransmitted as f64;
            if queue.listen_overflows > 0 {
                eprintln!(
                    "storm, {side:?}: {} handshakes found an accept queue full in this network namespace meanwhile",
                    queue.listen_overflows
                );
            }
        }
        last.push((times[0].0, Some(times[1].0)));
        half.push((times[0].1, Some(times[1].1)));
        twice.push((repeated[0], Some(repeated[1])));
    }
    Ok(vec![
        Figure::new(format!("storm: until the last of {connections} is back"), "s", Limit::Ratio(1.3), last),
        Figure::new("storm: until half are back", "s", Limit::None, half),
        Figure::new("storm: connections that sent a segment twice", "connections", Limit::Value(0.0), twice),
    ])
}

/// A burst of connects, none of which waits for anything, against the accept queue asked for.
pub(super) fn spike(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(5_000);
    let (mut lost, mut twice, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds_or(3) {
        let (mut missing, mut repeated, mut time) = ([0.0; 2], [0.0; 2], [0.0; 2]);
        for side in Side::both(round) {
            let server = Running::start(side, options, &Want::quiet(Protocol::Raw))?;
            let engine = super::clients(&server, Protocol::Raw, connections, 0, None)?;
            engine.open(Pace::Burst);
            engine.wait(TIMEOUT, |counts| counts.ready + counts.failed() >= u64::from(connections));
            let counts = engine.counts();
            missing[side as usize] = f64::from(connections) - counts.ready_now() as f64;
            repeated[side as usize] = counts.retransmitted as f64;
            time[side as usize] = engine.collect(0).ready_us.max() as f64 / 1e6;
            if counts.failed() > 0 {
                eprintln!("spike, {side:?}: {}", counts.failure_words());
            }
        }
        lost.push((missing[0], Some(missing[1])));
        twice.push((repeated[0], Some(repeated[1])));
        last.push((time[0], Some(time[1])));
    }
    let worst = lost.iter().map(|round| round.0).fold(0.0, f64::max);
    let mut none_lost = Figure::new(
        format!("spike: lost of {connections} at once, backlog {}", options.backlog),
        "connections",
        Limit::Value(0.0),
        lost,
    );
    // One lost connection in any round breaks the promise; a median would hide it.
    none_lost.server = worst;
    Ok(vec![
        none_lost,
        Figure::new("spike: connections that sent a segment twice", "connections", Limit::None, twice),
        Figure::new("spike: until the last is ready", "s", Limit::None, last),
    ])
}
