//! Several nodes that meet at a Redis or a NATS, beside one alone: latency from publication to receipt on another node, CPU
//! of a publication by the number of nodes that do not follow it, and what a storm of distinct streams costs.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::subscribers::Subscribers;
use super::{Figure, Limit, OPENING_WINDOW, Options, Running, Side, TIMEOUT, Want};
use crate::clock::now_ns;
use crate::engine::Pace;
use crate::observe;
use crate::protocol::{self, Protocol, json_string};
use crate::publish::{Credentials, Publisher};
use crate::server::{self, Process};

/// Numbers of nodes whose CPU is compared. The first is what the others are compared with.
const NODES: [usize; 3] = [1, 3, 10];

/// How much more a publication may cost all nodes together where more of them do not follow it.
const MORE_MAX: f64 = 1.25;

/// Publications in one request.
const BATCH: u32 = 500;

/// Clients whose receipts are timed, and publications.
const RECEIVERS: u32 = 100;
const TIMED: u32 = 500;

/// What nodes meet at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Medium {
    /// `redis-server` in the path.
    Redis,
    /// `nats-server` in the path.
    Nats,
}

/// A started Redis or NATS.
struct Meeting {
    process: Process,
    address: SocketAddr,
    medium: Medium,
    folder: PathBuf,
}

impl Meeting {
    fn start(medium: Medium) -> anyhow::Result<Self> {
        let address = server::free_address()?;
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let folder = std::env::temp_dir().join(format!("cableway-loadtest-{}-{port}", std::process::id()));
        std::fs::create_dir(&folder)?;
        let mut command = match medium {
            Medium::Redis => {
                let mut redis = Command::new("redis-server");
                redis.args(["--port", &port, "--bind", &host, "--save", "", "--dir"]).arg(&folder);
                redis
            }
            Medium::Nats => {
                let mut nats = Command::new("nats-server");
                nats.args(["--port", &port, "--addr", &host]);
                nats
            }
        };
        let mut process = Process::spawn(&mut command)?;
        process.await_accepting(address)?;
        Ok(Self { process, address, medium, folder })
    }

    /// The options of a server with what makes it a node here.
    fn options(&self, options: &Options) -> Options {
        let mut options = options.clone();
        let address = self.address;
        let meet = match self.medium {
            Medium::Redis => ["--pubsub=redis".to_owned(), format!("--redis-url=redis://{address}")],
            Medium::Nats => ["--pubsub=nats".to_owned(), format!("--nats-servers=nats://{address}")],
        };
        options.server_args.push("--broadcast-adapter=http".to_owned());
        options.server_args.extend(meet);
        options
    }

    fn node(&self, options: &Options) -> anyhow::Result<Running> {
        let node = Running::start(Side::Server, &self.options(options), &Want::quiet(Protocol::ActionCable))?;
        let end = Instant::now() + TIMEOUT;
        while node.metric("link_up")? < 1.0 {
            ensure!(Instant::now() < end, "a node does not find what it is to meet the others at");
            super::pause(Duration::from_millis(10));
        }
        Ok(node)
    }

    fn cpu_us(&self) -> anyhow::Result<f64> {
        Ok(observe::cpu_time(self.process.pid()).context("Redis or NATS is gone")?.as_secs_f64() * 1e6)
    }

    /// How often each command of Redis was called so far, summed over those that begin with `command`.
    fn commands(&self, command: &str) -> anyhow::Result<f64> {
        let mut socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.write_all(b"INFO commandstats\r\nQUIT\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let counts = text.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            name.starts_with(command).then(|| rest.split(',').next()?.parse::<f64>().ok()).flatten()
        });
        Ok(counts.sum())
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    ensure!(options.server.is_some(), "this compares a server with itself: give --server");
    let mut figures = latency(options)?;
    figures.append(&mut cpu(options)?);
    figures.append(&mut storm(options)?);
    Ok(figures)
}

/// Median and 99th percentile from publication to receipt: on another node than that which is published to, and on one alone.
fn latency(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds_or(3) {
        let meeting = Meeting::start(options.medium)?;
        let (near, far) = (meeting.node(options)?, meeting.node(options)?);
        let across = receipts(&far, &near.publish_url, options)?;
        let alone = Running::start(Side::Server, options, &Want::quiet(Protocol::ActionCable))?;
        let alone = receipts(&alone, &alone.publish_url, options)?;
        for ((rounds, across), alone) in rounds.iter_mut().zip(across).zip(alone) {
            rounds.push((across, Some(alone)));
        }
    }
    let [median, late] = rounds;
    let name = |which: &str| format!("nodes: publish to receipt on another node, {which} / one node alone");
    Ok(vec![Figure::new(name("median"), "us", Limit::None, median), Figure::new(name("99 %"), "us", Limit::None, late)])
}

fn receipts(followed: &Running, publish_url: &str, options: &Options) -> anyhow::Result<[f64; 2]> {
    let connections = options.connections.unwrap_or(RECEIVERS).min(RECEIVERS);
    let mut subscribers = Subscribers::published_to(followed, publish_url, connections)?;
    subscribers.open()?;
    let publications = options.repeat.unwrap_or(TIMED);
    // The first ones open connections and warm caches.
    (0..publications.div_ceil(10)).try_for_each(|_| subscribers.publish())?;
    subscribers.collect()?;
    (0..publications).try_for_each(|_| subscribers.publish())?;
    let delivery_us = subscribers.collect()?.delivery_us;
    Ok([0.5, 0.99].map(|share| delivery_us.value_at_quantile(share) as f64))
}

/// CPU of all nodes together for a publication that a client of the first one follows, and of what they meet at.
fn cpu(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut rounds = NODES.map(|_| (Vec::new(), Vec::new()));
    for round in 0..options.rounds_or(3) {
        let mut each = [[0.0; 2]; NODES.len()];
        for index in 0..NODES.len() {
            // No number of nodes always comes first.
            let index = (index + round as usize) % NODES.len();
            each[index] = publications(options, NODES[index])?;
        }
        for (index, (nodes, meeting)) in rounds.iter_mut().enumerate() {
            nodes.push((each[index][0], (index > 0).then_some(each[0][0])));
            meeting.push((each[index][1], (index > 0).then_some(each[0][1])));
        }
    }
    let figures = NODES.into_iter().zip(rounds).flat_map(|(count, (nodes, meeting))| {
        let (beside, limit) = if count == NODES[0] {
            (String::new(), Limit::None)
        } else {
            (format!(" / {}", NODES[0]), Limit::Ratio(MORE_MAX))
        };
        [
            Figure::new(format!("nodes: CPU of a publication, followed on 1 of {count}{beside}"), "us", limit, nodes),
            Figure::new(format!("nodes: … of Redis or NATS for it, {count} nodes{beside}"), "us", Limit::None, meeting),
        ]
    });
    Ok(figures.collect())
}

fn publications(options: &Options, count: usize) -> anyhow::Result<[f64; 2]> {
    let meeting = Meeting::start(options.medium)?;
    // What many nodes cost by standing there is their threads; one each, so that ten are not forty.
    let one_shard = Options { acceptors: Some(options.acceptors.unwrap_or(1)), ..options.clone() };
    let nodes = (0..count).map(|_| meeting.node(&one_shard)).collect::<anyhow::Result<Vec<_>>>()?;
    let identifier = r#"{"channel":"$pubsub","stream_name":"followed"}"#;
    let follower = super::clients(&nodes[0], Protocol::ActionCable, 1, 0, Some(identifier))?;
    super::open_all(&follower, 1, Pace::Window(1))?;
    follower.expect(0);
    // Its answer says that the order was taken before anything is published.
    follower.collect(0);
    let mut publisher = Publisher::connect(&nodes[0].publish_url, &Credentials::None)?;
    let mut sequence = 0;
    let mut post = |batches: u32| -> anyhow::Result<()> {
        for _ in 0..batches {
            let data = |number| json_string(&json_string(&protocol::mark(number, now_ns())));
            let texts: Vec<String> = (sequence..sequence + BATCH)
                .map(|number| format!(r#"{{"stream":"followed","data":{}}}"#, data(number)))
                .collect();
            publisher.post(&format!("[{}]", texts.join(",")))?;
            sequence += BATCH;
            let expected = u64::from(sequence);
            let arrived = follower.wait(TIMEOUT, |counts| counts.marked >= expected);
            ensure!(arrived, "{} of {expected} publications came", follower.counts().marked);
        }
        Ok(())
    };
    let batches = options.repeat.unwrap_or(200);
    post(batches.div_ceil(10))?;
    let cost = || -> anyhow::Result<[f64; 2]> {
        let of_nodes = nodes.iter().map(Running::cpu_us).sum::<anyhow::Result<f64>>()?;
        Ok([of_nodes, meeting.cpu_us()?])
    };
    let before = cost()?;
    post(batches)?;
    let after = cost()?;
    let counts = follower.counts();
    ensure!(
        counts.marked == u64::from(sequence) && counts.skipped + counts.reordered + counts.duplicated == 0,
        "{} of {sequence} came; {} skipped, {} doubled, {} out of order",
        counts.marked,
        counts.skipped,
        counts.duplicated,
        counts.reordered
    );
    Ok([0, 1].map(|of| (after[of] - before[of]) / f64::from(batches * BATCH)))
}

/// Clients that each follow a stream of their own, all at once: how long until all are confirmed, and what Redis is asked.
fn storm(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(15_000);
    let (mut time, mut commands) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds_or(3) {
        let meeting = Meeting::start(options.medium)?;
        let node = meeting.node(options)?;
        let before = if options.medium == Medium::Redis { meeting.commands("subscribe")? } else { 0.0 };
        let beside_others = follow_all(&node, connections)?;
        if options.medium == Medium::Redis {
            commands.push((meeting.commands("subscribe")? - before, None));
        }
        let alone = Running::start(Side::Server, options, &Want::quiet(Protocol::ActionCable))?;
        time.push((beside_others, Some(follow_all(&alone, connections)?)));
    }
    let name = format!("nodes: {connections} clients follow a stream each / one node alone");
    let mut figures = vec![Figure::new(name, "ms", Limit::None, time)];
    if !commands.is_empty() {
        figures.push(Figure::new("nodes: … SUBSCRIBE commands for it", "commands", Limit::None, commands));
    }
    Ok(figures)
}

/// Milliseconds from the first connect to the last confirmation.
fn follow_all(node: &Running, connections: u32) -> anyhow::Result<f64> {
    let identifier = r#"{"channel":"$pubsub","stream_name":"storm:{n}"}"#;
    let engine = super::clients(node, Protocol::ActionCable, connections, 0, Some(identifier))?;
    let began = Instant::now();
    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
