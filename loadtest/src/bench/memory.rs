//! What a parked connection holds of the server's memory, before and after it sent a large message.
//!
//! Growth of resident memory while N connections open, divided by N. A few connections open and close before, so that
//! code pages and first-time tables are not counted as theirs.

use std::time::Duration;

use anyhow::ensure;

use super::{Figure, Limit, OPENING_WINDOW, Options, Running, Side, TIMEOUT, Want};
use crate::engine::{Goodbye, Pace, Reply, Saying};
use crate::protocol::Protocol;
use crate::template::Template;

/// Bytes of the large message. Below 64 KiB, which is where servers of this contract refuse.
const LARGE_BYTES: usize = 60_000;
const COOKIE_BYTES: usize = 200;
const IDENTIFIER_BYTES: usize = 100;
/// Few, and one message at a time: what they leave free in the allocator would otherwise be found by the connections
/// that are measured, and make them look cheaper than they are.
const WARM_UP: u32 = 16;
/// Growth allowed by traffic that is over.
const AFTER_TRAFFIC: f64 = 1.05;
/// A connection that holds less counts as holding this much in that comparison: a single page of 4 KiB more or less
/// would decide it otherwise.
const COMPARED_BYTES_MIN: f64 = 64.0;

struct Variant {
    name: &'static str,
    protocol: Protocol,
    /// Start of the identifier, padded to its length.
    identifier: Option<&'static str>,
    bytes_max: f64,
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "plain WebSocket", protocol: Protocol::Raw, identifier: None, bytes_max: 160.0 },
    Variant {
        name: "session, one identifier for all",
        protocol: Protocol::ActionCable,
        identifier: Some(r#"{"channel":"$pubsub","stream_name":"room:7","pad":""#),
        bytes_max: 700.0,
    },
    Variant {
        name: "session, an identifier each",
        protocol: Protocol::ActionCable,
        identifier: Some(r#"{"channel":"$pubsub","stream_name":"room:7","pad":"{n}"#),
        bytes_max: 700.0,
    },
    Variant {
        name: "session, a stream each",
        protocol: Protocol::ActionCable,
        identifier: Some(r#"{"channel":"$pubsub","stream_name":"room:{n}","pad":""#),
        bytes_max: 700.0,
    },
];

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let mut figures = Vec::new();
    for variant in VARIANTS {
        let (mut parked, mut anonymous, mut after, mut growth) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds_or(1) {
            let mut results = [PerConnection::default(); 2];
            for side in Side::both(round) {
                results[side as usize] = measure(side, options, &variant, connections)?;
            }
            let [server, bare] = results;
            parked.push((server.parked, Some(bare.parked)));
            anonymous.push((server.anonymous, Some(bare.anonymous)));
            after.push((server.after, Some(bare.after)));
            growth.push((server.after_by_before(), Some(bare.after_by_before())));
        }
        let name = variant.name;
        figures.push(Figure::new(format!("memory: {name}"), "bytes", Limit::Value(variant.bytes_max), parked));
        figures.push(Figure::new(format!("memory: {name}, heap and stacks only"), "bytes", Limit::None, anonymous));
        figures.push(Figure::new(format!("memory: {name}, after 60 KB each"), "bytes", Limit::None, after));
        figures.push(Figure::new(format!("memory: {name}, after / before"), "x", Limit::Value(AFTER_TRAFFIC), growth));
    }
    Ok(figures)
}

#[derive(Debug, Clone, Copy, Default)]
struct PerConnection {
    parked: f64,
    anonymous: f64,
    after: f64,
}

impl PerConnection {
    fn after_by_before(self) -> f64 {
        self.after.max(COMPARED_BYTES_MIN) / self.parked.max(COMPARED_BYTES_MIN)
    }
}

/// The identifier with as many `x` as its expanded length lacks, and its end.
fn padded(start: &str) -> String {
    let length = Template::new(start).expand(0).len();
    format!("{start}{}\"}}", "x".repeat(IDENTIFIER_BYTES.saturating_sub(length + 2)))
}

fn measure(side: Side, options: &Options, variant: &Variant, connections: u32) -> anyhow::Result<PerConnection> {
    let identifier = variant.identifier.map(padded);
    let cookie = if variant.protocol == Protocol::ActionCable { COOKIE_BYTES } else { 0 };
    let server = Running::start(side, options, &Want::quiet(variant.protocol))?;
    let engine = super::clients(&server, variant.protocol, connections, cookie, identifier.as_deref())?;
    let settle = Duration::from_secs_f64(options.settle);

    let warm_up = WARM_UP.min(connections);
    super::open_to(&engine, warm_up, warm_up, Pace::Window(OPENING_WINDOW))?;
    say_large(&engine, 1, variant, identifier.as_deref(), warm_up)?;
    engine.drop_share(1.0, Goodbye::Reset);
    engine.wait(TIMEOUT, |counts| counts.ready_now() == 0);
    super::pause(settle);
    let before = server.cost()?;

    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    super::pause(settle);
    let parked = server.cost()?;
    say_large(&engine, options.at_once, variant, identifier.as_deref(), connections)?;
    super::pause(settle);
    let after = server.cost()?;
    super::all_ready(&engine, connections)?;

    let each = |now: u64, then: u64| (now as f64 - then as f64) / f64::from(connections);
    Ok(PerConnection {
        parked: each(parked.rss_bytes, before.rss_bytes),
        anonymous: each(parked.anonymous_bytes, before.anonymous_bytes),
        after: each(after.rss_bytes, before.rss_bytes),
    })
}

/// Lets everybody send one large message and waits until the server has dealt with all of them.
fn say_large(
    engine: &crate::engine::Engine,
    at_once: u32,
    variant: &Variant,
    identifier: Option<&str>,
    connections: u32,
) -> anyhow::Result<()> {
    let large = "x".repeat(LARGE_BYTES);
    let (texts, reply) = match (variant.protocol, identifier) {
        (Protocol::ActionCable, Some(identifier)) => {
            let identifier = crate::protocol::json_string(identifier);
            let message = format!(r#"{{"command":"message","identifier":{identifier},"data":"{large}"}}"#);
            // Nobody answers a message on a public stream; the pong says that it has been dealt with.
            (vec![Template::new(&message), Template::new(r#"{"command":"ping"}"#)], Reply::Pong)
        }
        _ => (vec![Template::new(&large)], Reply::Any),
    };
    let before = engine.counts();
    engine.say(Saying { texts, reply, rounds: 1, at_once });
    let connections = u64::from(connections);
    let done = engine.wait(TIMEOUT, |counts| counts.said - before.said >= connections);
    let counts = engine.counts();
    ensure!(
        done && counts.replies - before.replies == connections && counts.failed() == 0,
        "{} of {connections} large messages were answered; failures: {}",
        counts.replies - before.replies,
        counts.failure_words()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_the_promised_length_and_are_json() {
        for variant in VARIANTS {
            let Some(start) = variant.identifier else { continue };
            let text = Template::new(&padded(start)).expand(12_345);
            assert_eq!(text.len(), IDENTIFIER_BYTES);
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    }
}
