//! What it costs that a server remembers: the same server with `--broker memory` and without, round by round. CPU of a
//! publication that nobody follows and of a delivered message, and memory of what is kept.

use std::time::Duration;

use anyhow::ensure;

use super::{Figure, Limit, Options, QUIET, Running, Side, Want, fanout, publish};
use crate::engine::{Reply, Saying};
use crate::protocol::{Protocol, json_string};
use crate::publish::{Credentials, Publisher};
use crate::template::Template;

/// Publications in one request.
const BATCH: u32 = 500;

/// Length of the text that is published.
const DATA_BYTES: usize = 100;

/// Publications that warm the server up, to one stream that keeps few of them.
const WARM_UP: u32 = 10_000;

/// Messages that one history answer holds.
const ASKED: u32 = 50;

/// Both kinds of server in the order of a round: without and with a broker.
fn both(round: u32) -> [bool; 2] {
    if round.is_multiple_of(2) { [false, true] } else { [true, false] }
}

/// Each round's numbers with a broker, and beside them those without.
pub(super) fn beside(
    options: &Options,
    rounds: u32,
    mut measure: impl FnMut(bool) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<(f64, Option<f64>)>> {
    ensure!(options.server.is_some(), "this compares a server with itself: give --server");
    let mut pairs = Vec::new();
    for round in 0..options.rounds_or(rounds) {
        let mut results = [0.0; 2];
        for broker in both(round) {
            results[usize::from(broker)] = measure(broker)?;
        }
        pairs.push((results[1], Some(results[0])));
    }
    Ok(pairs)
}

/// CPU of publications without subscribers.
pub(super) fn publish(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let acceptors = options.acceptors.unwrap_or(1);
    let cpu = beside(options, 3, |broker| publish::to_nobody(options, acceptors, broker))?;
    let name = "publish-stored: CPU each without subscribers / without broker";
    Ok(vec![Figure::new(name, "us", Limit::None, cpu)])
}

/// CPU of delivered messages, which have a place in their stream with a broker and so are longer.
pub(super) fn fanout(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(10_000);
    let repeat = options.repeat.unwrap_or(50);
    let cpu = beside(options, 3, |broker| {
        let want = Want { broker, ..Want::quiet(Protocol::ActionCable) };
        Ok(fanout::deliver(Side::Server, options, &want, connections, 1, repeat)?.cpu_us)
    })?;
    let name = format!("fanout-stored: CPU per message, {connections} subscribers / without broker");
    Ok(vec![Figure::new(name, "us", Limit::None, cpu)])
}

/// Memory of history, and answers to clients that ask for it.
pub(super) fn history(options: &Options) -> anyhow::Result<Vec<Figure>> {
    ensure!(options.server.is_some(), "this measures what a server keeps: give --server");
    let mut figures = Vec::new();
    let scale = options.repeat.unwrap_or(100);
    for (streams, messages, each) in [(scale, 100, "message"), (scale * 1000, 1, "stream")] {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds_or(1) {
            rounds.push(kept(options, streams, messages)?);
        }
        let name = format!("history: {streams} streams x {messages}, RSS per {each} / its own figure");
        figures.push(Figure::new(name, "bytes", Limit::None, rounds));
    }
    let (mut rate, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds_or(3) {
        let (a_second, cpu_us) = answers(options)?;
        rate.push((a_second, None));
        cpu.push((cpu_us, None));
    }
    figures.push(Figure::new(format!("history: answers with {ASKED} messages"), "a second", Limit::None, rate));
    figures.push(Figure::new(format!("history: CPU per answer with {ASKED} messages"), "us", Limit::None, cpu));
    Ok(figures)
}

/// A server that keeps what is published for longer than a run.
fn keeping(options: &Options) -> anyhow::Result<(Running, Publisher)> {
    let mut options = options.clone();
    options.server_args.extend(["--history-ttl".to_owned(), "3600s".to_owned()]);
    let server =
        Running::start(Side::Server, &options, &Want { broker: true, ..Want::quiet(Protocol::ActionCableExt) })?;
    let publisher = Publisher::connect(&server.publish_url, &Credentials::None)?;
    Ok((server, publisher))
}

/// Publishes to streams by turns, in batches.
fn publish_to(publisher: &mut Publisher, streams: u32, name: &str, publications: u32) -> anyhow::Result<()> {
    let data = json_string(&json_string(&"x".repeat(DATA_BYTES)));
    let mut number = 0;
    while number < publications {
        let batch = BATCH.min(publications - number);
        let texts: Vec<String> = (number..number + batch)
            .map(|number| format!(r#"{{"stream":"{name}:{:07}","data":{data}}}"#, number % streams))
            .collect();
        publisher.post(&format!("[{}]", texts.join(",")))?;
        number += batch;
    }
    Ok(())
}

/// Bytes of a kept message by the growth of resident memory, and as the server counts itself.
fn kept(options: &Options, streams: u32, messages: u32) -> anyhow::Result<(f64, Option<f64>)> {
    let (server, mut publisher) = keeping(options)?;
    publish_to(&mut publisher, 1, "warm", WARM_UP)?;
    super::pause(QUIET);
    let before = (server.cost()?.rss_bytes, server.metric("history_bytes")?);
    let publications = streams * messages;
    publish_to(&mut publisher, streams, "room", publications)?;
    super::pause(Duration::from_secs_f64(options.settle));
    let after = (server.cost()?.rss_bytes, server.metric("history_bytes")?);
    let kept = server.metric("history_messages_num")?;
    // The stream of the warm-up keeps as many as fit.
    ensure!(kept >= f64::from(publications), "{kept} of {publications} messages are kept");
    let each = |now: f64, then: f64| (now - then) / f64::from(publications);
    Ok((each(after.0 as f64, before.0 as f64), Some(each(after.1, before.1))))
}

/// History answers a second, and the server's CPU for each.
fn answers(options: &Options) -> anyhow::Result<(f64, f64)> {
    let connections = options.connections.unwrap_or(100).min(1000);
    let rounds = options.repeat.unwrap_or(100);
    let (server, mut publisher) = keeping(options)?;
    publish_to(&mut publisher, 1, "room", ASKED)?;
    let identifier = r#"{"channel":"$pubsub","stream_name":"room:0000000"}"#;
    let engine = super::clients(&server, Protocol::ActionCableExt, connections, 0, Some(identifier))?;
    super::open_all(&engine, connections, crate::engine::Pace::Window(super::OPENING_WINDOW))?;
    let ask = format!(r#"{{"command":"history","identifier":{},"history":{{"since":1}}}}"#, json_string(identifier));
    let (cpu_before, before) = (server.cpu_us()?, engine.counts());
    let began = std::time::Instant::now();
    engine.say(Saying { texts: vec![Template::new(&ask)], reply: Reply::History, rounds, at_once: connections });
    let asked = u64::from(connections) * u64::from(rounds);
    engine.wait(super::TIMEOUT, |counts| counts.said - before.said >= u64::from(connections));
    let (took, cpu_us) = (began.elapsed(), server.cpu_us()? - cpu_before);
    let counts = engine.counts();
    let messages = counts.messages - before.messages;
    ensure!(
        counts.replies - before.replies == asked && messages == asked * u64::from(ASKED + 1) && counts.failed() == 0,
        "{} of {asked} answers came, {messages} messages; failures: {}",
        counts.replies - before.replies,
        counts.failure_words()
    );
    Ok((asked as f64 / took.as_secs_f64(), cpu_us / asked as f64))
}
