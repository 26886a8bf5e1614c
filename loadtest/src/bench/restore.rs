//! Clients that go on with their sessions: everybody is dropped and comes back at once, beside clients of the same server
//! that must be let in and subscribe anew; and what a session costs that can be resumed.

use std::time::Duration;

use anyhow::ensure;

use super::{App, Figure, Limit, OPENING_WINDOW, Options, QUIET, Running, Side, TIMEOUT, Want, stored};
use crate::clock::now_ns;
use crate::engine::{Engine, Goodbye, Pace};
use crate::protocol::{self, Protocol, json_string};
use crate::publish::{Credentials, Publisher};

/// What the app's clients subscribe to; it puts them on the stream "load".
const IDENTIFIER: &str = r#"{"channel":"LoadChannel"}"#;

/// Messages that each client misses.
const MISSED: u32 = 10;

/// Length of the text that is published.
const DATA_BYTES: usize = 100;

/// Connections that come and go before memory is read.
const WARM_UP: u32 = 16;

/// A storm, behind an app that is asked for every client that is let in and every subscription.
pub(super) fn storm(options: &Options) -> anyhow::Result<Vec<Figure>> {
    ensure!(options.server.is_some(), "this compares a server with itself: give --server");
    let connections = options.connections_or(15_000);
    let (mut last, mut half, mut cpu, mut calls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds_or(3) {
        let mut results = [Returned::default(); 2];
        for resumes in if round.is_multiple_of(2) { [false, true] } else { [true, false] } {
            results[usize::from(resumes)] = return_of_all(options, connections, resumes)?;
        }
        let [plain, resumed] = results;
        last.push((resumed.last_s, Some(plain.last_s)));
        half.push((resumed.half_s, Some(plain.half_s)));
        cpu.push((resumed.cpu_us, Some(plain.cpu_us)));
        calls.push((resumed.calls, Some(plain.calls)));
    }
    let missed = format!("{MISSED} missed each");
    Ok(vec![
        Figure::new(
            format!("restore: until the last of {connections} has all, {missed} / anew"),
            "s",
            Limit::None,
            last,
        ),
        Figure::new("restore: until half have all / are in anew", "s", Limit::None, half),
        Figure::new("restore: server CPU each / anew", "us", Limit::None, cpu),
        Figure::new("restore: Connect calls to the app each / anew", "calls", Limit::Value(0.0), calls),
    ])
}

#[derive(Clone, Copy, Default)]
struct Returned {
    last_s: f64,
    half_s: f64,
    cpu_us: f64,
    calls: f64,
}

/// The same server both times; the clients speak the protocol that resumes, or the one that does not.
fn return_of_all(options: &Options, connections: u32, resumes: bool) -> anyhow::Result<Returned> {
    let app = App::start()?;
    let protocol = if resumes { Protocol::ActionCableExt } else { Protocol::ActionCable };
    let app_address = Some(app.address.to_string());
    let want = Want { broker: true, connect: true, app: app_address, ..Want::quiet(protocol) };
    let server = Running::start(Side::Server, options, &want)?;
    let engine = super::clients(&server, protocol, connections, 0, Some(IDENTIFIER))?;
    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    let mut publisher = Publisher::connect(&server.publish_url, &Credentials::None)?;
    let all = u64::from(connections);
    publish(&mut publisher, 0..1)?;
    ensure!(engine.wait(TIMEOUT, |counts| counts.marked == all), "{} of {all} heard", engine.counts().marked);
    super::pause(QUIET);
    engine.collect(1);

    let (calls_before, before) = (app.connects(), engine.counts());
    engine.drop_share(1.0, Goodbye::Reset);
    ensure!(engine.wait(TIMEOUT, |counts| counts.ready_now() == 0), "the clients do not go");
    publish(&mut publisher, 1..1 + MISSED)?;
    let cpu_before = server.cpu_us()?;
    engine.open(Pace::Storm);
    engine.wait(TIMEOUT, |counts| counts.ready - before.ready + counts.failed() >= all);
    super::all_ready(&engine, connections)?;
    super::pause(QUIET);
    let cpu_us = server.cpu_us()? - cpu_before;
    let collected = engine.collect(1 + MISSED);
    if resumes {
        all_came(&engine, all, collected.missing_at_end)?;
    }
    let ready = collected.ready_us;
    Ok(Returned {
        last_s: ready.max() as f64 / 1e6,
        half_s: ready.value_at_quantile(0.5) as f64 / 1e6,
        cpu_us: cpu_us / f64::from(connections),
        calls: (app.connects() - calls_before) as f64 / f64::from(connections),
    })
}

fn publish(publisher: &mut Publisher, numbers: std::ops::Range<u32>) -> anyhow::Result<()> {
    for number in numbers {
        let mut data = protocol::mark(number, now_ns());
        data.push_str(&"x".repeat(DATA_BYTES.saturating_sub(data.len())));
        publisher.post(&format!(r#"{{"stream":"load","data":{}}}"#, json_string(&json_string(&data))))?;
    }
    Ok(())
}

/// Every session goes on, and every missed message has come once and in order.
fn all_came(engine: &Engine, all: u64, missing_at_end: u64) -> anyhow::Result<()> {
    let counts = engine.counts();
    ensure!(
        counts.restored == all && counts.replayed == all * u64::from(MISSED) && counts.unrecoverable == 0,
        "{} of {all} sessions were restored, {} messages replayed, {} clients got none",
        counts.restored,
        counts.replayed,
        counts.unrecoverable
    );
    let lost = counts.lost_between() + missing_at_end;
    ensure!(
        lost + counts.duplicated + counts.reordered == 0,
        "{lost} lost, {} doubled, {} out of order",
        counts.duplicated,
        counts.reordered
    );
    Ok(())
}

/// Memory of a parked session of the extended protocol, with a broker that would let its client come back and without.
pub(super) fn memory(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let identifier = r#"{"channel":"$pubsub","stream_name":"room:7"}"#;
    let rounds = stored::beside(options, 1, |broker| {
        let want = Want { broker, ..Want::quiet(Protocol::ActionCableExt) };
        let server = Running::start(Side::Server, options, &want)?;
        let engine = super::clients(&server, Protocol::ActionCableExt, connections, 0, Some(identifier))?;
        let warm_up = WARM_UP.min(connections);
        super::open_to(&engine, warm_up, warm_up, Pace::Window(OPENING_WINDOW))?;
        super::pause(Duration::from_secs_f64(options.settle));
        let before = server.cost()?.rss_bytes;
        super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
        super::pause(Duration::from_secs_f64(options.settle));
        Ok((server.cost()?.rss_bytes as f64 - before as f64) / f64::from(connections - warm_up).max(1.0))
    })?;
    Ok(vec![Figure::new("resumable: memory of a parked session / without broker", "bytes", Limit::None, rounds)])
}
