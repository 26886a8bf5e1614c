//! Server CPU per delivered message beside a plain `send` loop on as many sockets: one stream that everybody follows, and
//! many streams with ten subscribers each.
//!
//! A stream's next publication goes out when the last receiver has the one before, so that neither side can save calls by
//! sending two messages at once. Each must reach every subscriber once and in order, or there is no figure.

use super::subscribers::Subscribers;
use super::{Figure, Limit, Options, Running, Side, Want};
use crate::observe;
use crate::protocol::Protocol;

/// Publications to each stream before measuring.
const WARM_UP: u32 = 3;

/// Subscribers of each stream of [`rooms`].
const ROOM_SIZE: u32 = 10;

/// One stream for everybody.
pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(10_000);
    let repeat = options.repeat.unwrap_or(50);
    compare(options, "fanout", &format!("{connections} subscribers"), Limit::Ratio(1.2), (connections, 1, repeat))
}

/// Streams of ten. No limit: with ten deliveries the request that publishes is a large part of the cost, and the
/// yardstick's HTTP is a few lines.
pub(super) fn rooms(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(10_000);
    let streams = connections.div_ceil(ROOM_SIZE);
    let repeat = options.repeat.unwrap_or(10);
    let what = format!("{connections} subscribers of {streams} streams");
    compare(options, "rooms", &what, Limit::None, (connections, streams, repeat))
}

fn compare(
    options: &Options,
    name: &str,
    what: &str,
    limit: Limit,
    (connections, streams, repeat): (u32, u32, u32),
) -> anyhow::Result<Vec<Figure>> {
    let (mut cpu, mut slowest, mut client) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds_or(3) {
        let mut results = [Delivered::default(); 2];
        for side in Side::both(round) {
            let want = Want { rooms: true, ..Want::quiet(Protocol::ActionCable) };
            results[side as usize] = deliver(side, options, &want, connections, streams, repeat)?;
        }
        let [server, bare] = results;
        cpu.push((server.cpu_us, Some(bare.cpu_us)));
        slowest.push((server.p99_ms, Some(bare.p99_ms)));
        client.push((server.client_cpu_us, Some(bare.client_cpu_us)));
    }
    Ok(vec![
        Figure::new(format!("{name}: server CPU per delivered message, {what}"), "us", limit, cpu),
        Figure::new(format!("{name}: publish to receipt, p99"), "ms", Limit::None, slowest),
        Figure::new(format!("{name}: this tool's CPU per delivered message"), "us", Limit::None, client),
    ])
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivered {
    pub cpu_us: f64,
    client_cpu_us: f64,
    p99_ms: f64,
}

pub(super) fn deliver(
    side: Side,
    options: &Options,
    want: &Want,
    connections: u32,
    streams: u32,
    repeat: u32,
) -> anyhow::Result<Delivered> {
    let server = Running::start(side, options, want)?;
    let mut subscribers = Subscribers::new(&server, side.is_bare(options), connections, streams)?;
    subscribers.open()?;
    (0..WARM_UP).try_for_each(|_| subscribers.publish())?;
    subscribers.collect()?;
    let (before, client_before) = (server.cpu_us()?, own_cpu_us()?);
    (0..repeat).try_for_each(|_| subscribers.publish())?;
    let (after, client_after) = (server.cpu_us()?, own_cpu_us()?);
    let collected = subscribers.collect()?;
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
