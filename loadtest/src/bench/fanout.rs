//! One publication for everybody: server CPU per delivered message beside a plain `send` loop on as many sockets.
//!
//! Publications go out one after the other, the next when the last receiver has the one before, so that neither side
//! can save calls by sending two messages at once. Each must reach everybody once and in order, or there is no figure.

use std::time::Duration;

use anyhow::ensure;

use super::{Figure, Limit, OPENING_WINDOW, Options, Running, Side, TIMEOUT, Want};
use crate::clock::now_ns;
use crate::engine::Pace;
use crate::observe;
use crate::protocol::{self, Protocol};
use crate::publish::{Credentials, Publisher};

const STREAM: &str = "room:7";
const IDENTIFIER: &str = r#"{"channel":"$pubsub","stream_name":"room:7"}"#;

/// Length of a publication's data: a chat message.
const DATA_BYTES: usize = 100;

/// Publications before measuring.
const WARM_UP: u32 = 3;

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(10_000);
    let repeat = options.repeat.unwrap_or(50);
    let (mut cpu, mut slowest, mut client) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds_or(3) {
        let mut results = [Delivered::default(); 2];
        for side in Side::both(round) {
            results[side as usize] = deliver(side, options, connections, repeat)?;
        }
        let [server, bare] = results;
        cpu.push((server.cpu_us, Some(bare.cpu_us)));
        slowest.push((server.p99_ms, Some(bare.p99_ms)));
        client.push((server.client_cpu_us, Some(bare.client_cpu_us)));
    }
    Ok(vec![
        Figure::new(
            format!("fanout: server CPU per delivered message, {connections} subscribers"),
            "us",
            Limit::Ratio(1.2),
            cpu,
        ),
        Figure::new("fanout: publish to receipt, p99", "ms", Limit::None, slowest),
        Figure::new("fanout: this tool's CPU per delivered message", "us", Limit::None, client),
    ])
}

#[derive(Debug, Clone, Copy, Default)]
struct Delivered {
    cpu_us: f64,
    client_cpu_us: f64,
    p99_ms: f64,
}

fn deliver(side: Side, options: &Options, connections: u32, repeat: u32) -> anyhow::Result<Delivered> {
    let plain = side == Side::Bare || options.server.is_none();
    let protocol = if plain { Protocol::Raw } else { Protocol::ActionCable };
    let server = Running::start(side, options, &Want::quiet(protocol))?;
    let engine = super::clients(&server, protocol, connections, 0, (!plain).then_some(IDENTIFIER))?;
    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    let mut publisher = Publisher::connect(&server.publish_url, &Credentials::None)?;

    let (mut before, mut client_before) = (0.0, 0.0);
    for sequence in 0..WARM_UP + repeat {
        if sequence == WARM_UP {
            engine.collect(0);
            before = server.cpu_us()?;
            client_before = own_cpu_us()?;
        }
        let mut data = protocol::mark(sequence, now_ns());
        data.push_str(&"x".repeat(DATA_BYTES.saturating_sub(data.len())));
        let data = protocol::json_string(&data);
        // The text that every receiver gets, of the same length on both sides.
        let body = if plain {
            format!(r#"{{"identifier":{},"message":{data}}}"#, protocol::json_string(IDENTIFIER))
        } else {
            format!(r#"{{"stream":"{STREAM}","data":{}}}"#, protocol::json_string(&data))
        };
        publisher.post(&body)?;
        let expected = u64::from(sequence + 1) * u64::from(connections);
        let arrived = engine.wait(TIMEOUT, |counts| counts.marked >= expected || counts.failed() > 0);
        ensure!(arrived, "publication {sequence}: {} of {expected} deliveries came", engine.counts().marked);
    }
    let (after, client_after) = (server.cpu_us()?, own_cpu_us()?);
    // A copy too many would come now.
    super::pause(Duration::from_millis(50));
    let counts = engine.counts();
    let collected = engine.collect(WARM_UP + repeat);
    super::all_ready(&engine, connections)?;
    ensure!(
        counts.marked == u64::from(WARM_UP + repeat) * u64::from(connections)
            && counts.skipped == 0
            && counts.reordered == 0
            && counts.duplicated == 0
            && collected.missing_at_end == 0,
        "{} delivered; {} lost, {} doubled, {} out of order",
        counts.marked,
        counts.lost_between() + collected.missing_at_end,
        counts.duplicated,
        counts.reordered
    );
    let deliveries = f64::from(repeat) * f64::from(connections);
    Ok(Delivered {
        cpu_us: (after - before) / deliveries,
        client_cpu_us: (client_after - client_before) / deliveries,
        p99_ms: collected.delivery_us.value_at_quantile(0.99) as f64 / 1e3,
    })
}

fn own_cpu_us() -> anyhow::Result<f64> {
    Ok(observe::cpu_time(std::process::id())?.as_secs_f64() * 1e6)
}
