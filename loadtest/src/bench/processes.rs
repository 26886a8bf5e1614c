//! One server of several processes beside one of one: latency from publication to receipt, CPU of a publication over all of
//! its processes and of the parent that relays it, and what the parent holds for each client that can come back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::subscribers::Subscribers;
use super::{Figure, Limit, OPENING_WINDOW, Options, Running, Side, TIMEOUT, Want};
use crate::clock::now_ns;
use crate::engine::Pace;
use crate::observe;
use crate::protocol::{self, Protocol, json_string};
use crate::publish::{Credentials, Publisher};

/// How many processes hold the clients.
const PROCESSES: u32 = 6;

/// Clients that follow the stream: some on each process.
const RECEIVERS: u32 = 100;

/// Publications whose receipts are timed, one after the other.
const TIMED: u32 = 1000;

/// Publications in one request, and requests.
const BATCH: u32 = 500;
const BATCHES: u32 = 40;

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    ensure!(options.server.is_some(), "this compares a server with itself: give --server");
    let mut rounds: [Vec<(f64, Option<f64>)>; 6] = Default::default();
    let mut put = |at: usize, several: f64, one: Option<f64>| rounds[at].push((several, one));
    for _ in 0..options.rounds_or(3) {
        let (several, one) = (one_by_one(options, PROCESSES)?, one_by_one(options, 1)?);
        put(0, several.median_us, Some(one.median_us));
        put(1, several.late_us, Some(one.late_us));
        put(2, several.cpu_us[0], Some(one.cpu_us[0]));
        put(3, several.cpu_us[1], None);
        let (several, one) = (many_at_once(options, PROCESSES)?, many_at_once(options, 1)?);
        put(4, several[0], Some(one[0]));
        put(5, several[1], None);
    }
    let of = format!("processes: {RECEIVERS} receivers on {PROCESSES} processes / on 1");
    let names = [
        format!("{of}, publish to receipt, median"),
        format!("{of}, publish to receipt, 99 %"),
        format!("{of}, CPU of a publication"),
        "processes: … of the parent".to_owned(),
        format!("{of}, CPU of a publication, {BATCH} in a request"),
        "processes: … of the parent, many at once".to_owned(),
    ];
    let mut figures: Vec<_> =
        names.into_iter().zip(rounds).map(|(name, rounds)| Figure::new(name, "us", Limit::None, rounds)).collect();
    figures.extend(residents(options)?);
    Ok(figures)
}

/// A server of so many processes, each of which has one shard and serves.
fn start(options: &Options, processes: u32, want: &Want) -> anyhow::Result<Running> {
    let mut options = options.clone();
    options.acceptors = Some(processes);
    options.server_args.extend(["--processes".to_owned(), processes.to_string()]);
    let server = Running::start(Side::Server, &options, want)?;
    let end = Instant::now() + TIMEOUT;
    while processes > 1 && server.metric("process_up").unwrap_or(0.0) < f64::from(processes) {
        ensure!(Instant::now() < end, "not all processes serve");
        super::pause(Duration::from_millis(10));
    }
    Ok(server)
}

/// CPU time of all processes of a server, and of its first one, in microseconds.
fn cpu_us(server: &Running) -> anyhow::Result<[f64; 2]> {
    let of = |pid| Ok::<_, anyhow::Error>(observe::cpu_time(pid).context("a process is gone")?.as_secs_f64() * 1e6);
    let all = observe::processes_of_group(server.pid())?.into_iter().map(of).sum::<anyhow::Result<f64>>()?;
    Ok([all, of(server.pid())?])
}

struct OneByOne {
    median_us: f64,
    late_us: f64,
    /// Of all processes, and of the parent.
    cpu_us: [f64; 2],
}

/// One publication after the other, each when the one before has been received by all.
fn one_by_one(options: &Options, processes: u32) -> anyhow::Result<OneByOne> {
    let server = start(options, processes, &Want::quiet(Protocol::ActionCable))?;
    let mut subscribers = Subscribers::new(&server, false, options.connections.unwrap_or(RECEIVERS).min(RECEIVERS), 1)?;
    subscribers.open()?;
    let publications = options.repeat.unwrap_or(TIMED);
    // The first ones open connections and warm caches.
    (0..publications.div_ceil(10)).try_for_each(|_| subscribers.publish())?;
    subscribers.collect()?;
    let before = cpu_us(&server)?;
    (0..publications).try_for_each(|_| subscribers.publish())?;
    let after = cpu_us(&server)?;
    let delivery_us = subscribers.collect()?.delivery_us;
    let [median_us, late_us] = [0.5, 0.99].map(|share| delivery_us.value_at_quantile(share) as f64);
    Ok(OneByOne { median_us, late_us, cpu_us: [0, 1].map(|of| (after[of] - before[of]) / f64::from(publications)) })
}

/// As many as go through, many in a request.
fn many_at_once(options: &Options, processes: u32) -> anyhow::Result<[f64; 2]> {
    let server = start(options, processes, &Want::quiet(Protocol::ActionCable))?;
    let receivers = options.connections.unwrap_or(RECEIVERS).min(RECEIVERS);
    let identifier = r#"{"channel":"$pubsub","stream_name":"followed"}"#;
    let followers = super::clients(&server, Protocol::ActionCable, receivers, 0, Some(identifier))?;
    super::open_all(&followers, receivers, Pace::Window(OPENING_WINDOW))?;
    followers.expect(0);
    // Its answer says that the order was taken before anything is published.
    followers.collect(0);
    let mut publisher = Publisher::connect(&server.publish_url, &Credentials::None)?;
    let mut sequence = 0;
    let mut post = |batches: u32| -> anyhow::Result<()> {
        for _ in 0..batches {
            let data = |number| json_string(&json_string(&protocol::mark(number, now_ns())));
            let texts: Vec<String> = (sequence..sequence + BATCH)
                .map(|number| format!(r#"{{"stream":"followed","data":{}}}"#, data(number)))
                .collect();
            publisher.post(&format!("[{}]", texts.join(",")))?;
            sequence += BATCH;
            let expected = u64::from(sequence) * u64::from(receivers);
            let arrived = followers.wait(TIMEOUT, |counts| counts.marked >= expected);
            ensure!(arrived, "{} of {expected} deliveries came", followers.counts().marked);
        }
        Ok(())
    };
    post(BATCHES.div_ceil(10))?;
    let before = cpu_us(&server)?;
    post(BATCHES)?;
    let after = cpu_us(&server)?;
    let counts = followers.counts();
    ensure!(
        counts.skipped + counts.reordered + counts.duplicated == 0,
        "{} skipped, {} doubled, {} out of order",
        counts.skipped,
        counts.duplicated,
        counts.reordered
    );
    Ok([0, 1].map(|of| (after[of] - before[of]) / f64::from(BATCHES * BATCH)))
}

/// Memory of the parent for each client that can come back to its session, and its CPU for each that comes.
fn residents(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let identifier = r#"{"channel":"$pubsub","stream_name":"room:{n}"}"#;
    let want = Want { broker: true, ..Want::quiet(Protocol::ActionCableExt) };
    let server = start(options, PROCESSES, &want)?;
    let engine = super::clients(&server, Protocol::ActionCableExt, connections, 0, Some(identifier))?;
    let warm_up = connections.min(1000);
    super::open_to(&engine, warm_up, warm_up, Pace::Window(OPENING_WINDOW))?;
    super::pause(Duration::from_secs_f64(options.settle));
    let (before, cpu_before) = (server.cost()?.rss_bytes, cpu_us(&server)?);
    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    super::pause(Duration::from_secs_f64(options.settle));
    let (after, cpu_after) = (server.cost()?.rss_bytes, cpu_us(&server)?);
    let each = |difference: f64| difference / f64::from(connections - warm_up).max(1.0);
    let bytes = each(after as f64 - before as f64);
    let name = "processes: memory of the parent for a client that follows a stream and can come back";
    let figures = [
        (name, "bytes", bytes),
        ("processes: its memory at rest", "bytes", before as f64),
        ("processes: CPU of the parent for such a client that comes", "us", each(cpu_after[1] - cpu_before[1])),
        ("processes: … of all processes", "us", each(cpu_after[0] - cpu_before[0])),
    ];
    Ok(figures.map(|(name, unit, value)| Figure::new(name, unit, Limit::None, vec![(value, None)])).into())
}
