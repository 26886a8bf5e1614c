//! Comparisons with a promised limit: a server beside the yardstick, in the same run, round by round.
//!
//! A scenario starts each side fresh, drives it, and yields numbers per round; what is printed is the median over the
//! rounds and the median of the ratios of each round's pair. CPU time and memory are the server's own, so a loaded
//! machine makes a run slower but hardly changes a ratio. A message lost, doubled or out of order, or a connection that
//! fails, is an error and not a figure.

mod app;
mod commands;
mod fanout;
mod handshake;
mod idle;
mod instructions;
mod memory;
mod nodes;
mod processes;
mod publish;
mod restore;
mod server;
mod stored;
mod subscribers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

pub use app::{App, CONNECTS_PATH, serve as serve_app};
pub use commands::{ClientOptions, RelayOptions, bare_client, bare_relay};
pub use instructions::{FunctionCount, InstructionCount, InstructionsOptions, instructions};
pub use nodes::Medium;
pub use server::{Running, Side, Want};

use self::commands::Transport;
use crate::engine::{self, Engine, Pace, Sources};
use crate::protocol::{Protocol, Script, Target};

/// Connections that are unfinished at a time where a scenario just needs them open: enough to keep two cores busy.
const OPENING_WINDOW: u32 = 512;

/// For the last event loops to go back to sleep before a clock or counter is read.
const QUIET: Duration = Duration::from_millis(30);

/// How long a bench waits for anything that must happen before it calls the run failed.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Which comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// User memory of a parked connection, before and after a large message.
    Memory,
    /// CPU of delivering a publication to parked subscribers.
    Fanout,
    /// CPU of delivering publications to many streams of ten.
    Rooms,
    /// CPU of publications without subscribers, and with ten, by the number of shards.
    Publish,
    /// CPU of a handshake.
    Handshake,
    /// Everybody is dropped and comes back at once.
    Storm,
    /// More simultaneous connects than the accept queue is long.
    Spike,
    /// CPU of heartbeats.
    Idle,
    /// CPU of connections that do nothing, with everything on that looks after them, and with nothing of it.
    IdleAll,
    /// CPU of a command through gRPC.
    Commands,
    /// CPU of a command through HTTP.
    CommandsHttp,
    /// CPU of publications without subscribers, with a broker and without.
    PublishStored,
    /// CPU of delivering a publication, with a broker and without.
    FanoutStored,
    /// Memory of history, and answers to clients that ask for it.
    History,
    /// Everybody is dropped and goes on with their session.
    Restore,
    /// Memory of a session that can be resumed.
    Resumable,
    /// Several nodes that meet at Redis or NATS, beside one alone: latency, CPU, a storm of subscriptions.
    Nodes,
    /// One server of several processes beside one of one: latency, CPU, memory of the parent.
    Processes,
    /// All of them but nodes and processes; without a server those that compare one with itself are left out.
    All,
}

/// How a comparison is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The Cableway binary to test; without it the yardstick is compared with itself, which shows the noise.
    #[arg(long, value_name = "PATH")]
    pub server: Option<PathBuf>,
    /// One more argument for the server; may be given several times.
    #[arg(long = "server-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub server_args: Vec<String>,
    /// Connections [default: 15000; fanout, fanout-stored, rooms 10000; spike 5000; commands, commands-http, history 100].
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,
    /// Rounds, each with both sides [default: 3; idle, idle-all, memory, resumable 1].
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// Publications to each stream of a fanout, fanout-stored or rooms round, requests of 500 publications of a publish or
    /// publish-stored round, calls of each connection of a commands round, or streams of a history round and answers to each
    /// connection [default: fanout 50; rooms 10; publish, commands, commands-http 200; history 100].
    #[arg(long, value_name = "N")]
    pub repeat: Option<u32>,
    /// How long idle connections are watched.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub seconds: f64,
    /// Heartbeat interval of the idle comparison.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub ping_interval: u64,
    /// Idle time before memory is read after traffic.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub settle: f64,
    /// Connections that send their large message at the same time in the memory comparison.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub at_once: u32,
    /// Accept queue given to both sides.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub backlog: u32,
    /// Threads that hold connections, given to both sides except in the publish comparison [default: one per core].
    #[arg(long, value_name = "N")]
    pub acceptors: Option<u32>,
    /// Limit of concurrent calls given to the server in the commands comparison.
    #[arg(long, value_name = "N", default_value_t = 28)]
    pub rpc_concurrency: u32,
    /// What the nodes of the nodes comparison meet at; a program of the path.
    #[arg(long, value_enum, default_value = "redis")]
    pub medium: Medium,
    /// Where the yardstick's binary is: this one, unless a test says otherwise.
    #[arg(long, value_name = "PATH", hide = true)]
    pub yardstick: Option<PathBuf>,
}

impl Options {
    fn connections_or(&self, default: u32) -> u32 {
        self.connections.unwrap_or(default)
    }

    fn rounds_or(&self, default: u32) -> u32 {
        self.rounds.unwrap_or(default).max(1)
    }

    fn yardstick(&self) -> anyhow::Result<PathBuf> {
        match &self.yardstick {
            Some(path) => Ok(path.clone()),
            None => std::env::current_exe().context("cannot find this program's own file"),
        }
    }
}

/// What a limit is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The server's number itself.
    Value(f64),
    /// The server's number divided by the yardstick's.
    Ratio(f64),
    /// Nothing is promised about it.
    None,
}

/// One line of a result.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The scenario and what was measured.
    pub name: String,
    /// Of the numbers.
    pub unit: &'static str,
    /// Median over the rounds.
    pub server: f64,
    /// The same for the yardstick, where it has one.
    pub bare: Option<f64>,
    /// Median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// What was promised.
    pub limit: Limit,
    /// Each round's numbers: server, yardstick.
    pub rounds: Vec<(f64, Option<f64>)>,
}

impl Figure {
    pub(crate) fn new(
        name: impl Into<String>,
        unit: &'static str,
        limit: Limit,
        rounds: Vec<(f64, Option<f64>)>,
    ) -> Self {
        let bare: Vec<f64> = rounds.iter().filter_map(|round| round.1).collect();
        let ratios: Vec<f64> = rounds
            .iter()
            .filter_map(|(server, bare)| bare.filter(|bare| *bare > 0.0).map(|bare| server / bare))
            .collect();
        Self {
            name: name.into(),
            unit,
            server: median(rounds.iter().map(|round| round.0).collect()).unwrap_or(0.0),
            bare: median(bare),
            ratio: median(ratios),
            limit,
            rounds,
        }
    }

    #[cfg(test)]
    fn alone(name: impl Into<String>, unit: &'static str, limit: Limit, value: f64) -> Self {
        Self::new(name, unit, limit, vec![(value, None)])
    }

    /// Whether the promise is kept.
    pub fn kept(&self) -> bool {
        match self.limit {
            Limit::Value(limit) => self.server <= limit,
            Limit::Ratio(limit) => self.ratio.is_some_and(|ratio| ratio <= limit),
            Limit::None => true,
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let number = |value: f64| if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        let or_dash = |value: Option<f64>| value.map_or("-".to_owned(), number);
        let (limit, verdict) = match self.limit {
            Limit::Value(limit) => (format!("<= {} {}", number(limit), self.unit), self.kept()),
            Limit::Ratio(limit) => (format!("<= {limit:.2} x"), self.kept()),
            Limit::None => ("-".to_owned(), true),
        };
        format!(
            "{:<58} {:>10} {:>10} {:<11} {:>6} {:>14}  {}",
            self.name,
            number(self.server),
            or_dash(self.bare),
            self.unit,
            or_dash(self.ratio),
            limit,
            if verdict { "ok" } else { "OVER" }
        )
    }

    /// The same in words, without the name.
    pub fn words(&self) -> String {
        let Self { unit, server, .. } = self;
        let mut words = format!("{server:.2} {unit}");
        if let Some(bare) = self.bare {
            words += &format!(", the yardstick {bare:.2} {unit}");
        }
        if let Some(ratio) = self.ratio {
            words += &format!(", {ratio:.2} times");
        }
        if let Limit::Ratio(limit) = self.limit {
            words += &format!(" ({limit:.2} allowed)");
        }
        words
    }

    /// The line above those of [`Figure::line`].
    pub fn heading() -> String {
        format!("{:<58} {:>10} {:>10} {:<11} {:>6} {:>14}", "figure", "server", "bare", "unit", "ratio", "limit")
    }
}

/// What each of [`Side::all`] measured in each round, as three figures: the server beside the yardstick with as many
/// threads; both with one; and the server with all its shards beside one thread. The last has no limit: it holds what a
/// second thread costs in the kernel, and the yardstick pays that too.
fn beside_both(name: &str, limit: Limit, rounds: &[[f64; 4]]) -> Vec<Figure> {
    let pairs = |server: Side, bare: Side| {
        rounds.iter().map(|round| (round[server as usize], Some(round[bare as usize]))).collect()
    };
    vec![
        Figure::new(name, "us", limit, pairs(Side::Server, Side::Bare)),
        Figure::new(format!("{name} / both one thread"), "us", limit, pairs(Side::OneShard, Side::OneThread)),
        Figure::new(format!("{name} / yardstick one thread"), "us", Limit::None, pairs(Side::Server, Side::OneThread)),
    ]
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Runs one comparison, or all, handing over each scenario's figures as they are done.
pub fn run(name: Name, options: &Options, report: &mut dyn FnMut(Figure)) -> anyhow::Result<()> {
    if name == Name::All {
        // The quick ones first.
        use Name::{Commands, CommandsHttp, Fanout, Handshake, Idle, IdleAll, Memory, Publish, Rooms, Spike, Storm};
        use Name::{FanoutStored, History, PublishStored, Restore, Resumable};
        let beside_yardstick =
            [Spike, Handshake, Storm, Fanout, Rooms, Publish, Commands, CommandsHttp, Memory, Idle, IdleAll];
        let beside_itself = [PublishStored, FanoutStored, History, Restore, Resumable];
        let beside_itself = beside_itself.into_iter().filter(|_| options.server.is_some());
        for name in beside_yardstick.into_iter().chain(beside_itself) {
            run(name, options, report)?;
        }
        return Ok(());
    }
    let figures = match name {
        Name::Memory => memory::run(options),
        Name::Fanout => fanout::run(options),
        Name::Rooms => fanout::rooms(options),
        Name::Publish => publish::run(options),
        Name::Handshake => handshake::cpu(options),
        Name::Storm => handshake::storm(options),
        Name::Spike => handshake::spike(options),
        Name::Idle => idle::run(options),
        Name::IdleAll => idle::everything(options),
        Name::Commands => commands::run(options, Transport::Grpc),
        Name::CommandsHttp => commands::run(options, Transport::Http),
        Name::PublishStored => stored::publish(options),
        Name::FanoutStored => stored::fanout(options),
        Name::History => stored::history(options),
        Name::Restore => restore::storm(options),
        Name::Resumable => restore::memory(options),
        Name::Nodes => nodes::run(options),
        Name::Processes => processes::run(options),
        Name::All => unreachable!("handled above"),
    };
    for figure in figures.with_context(|| format!("bench {name:?} failed"))? {
        report(figure);
    }
    Ok(())
}

/// Clients for a scenario, not connected yet.
fn clients(
    server: &Running,
    protocol: Protocol,
    connections: u32,
    cookie_bytes: usize,
    identifier: Option<&str>,
) -> anyhow::Result<Engine> {
    let address: SocketAddr = server.address;
    let path = match protocol {
        Protocol::Raw => "/echo",
        _ => "/cable",
    };
    let target = Target { authority: address.to_string(), path: path.to_owned() };
    Engine::start(&engine::Settings {
        servers: vec![address],
        script: Script::new(protocol, &target, cookie_bytes, identifier),
        connections,
        first_number: 0,
        lanes: std::thread::available_parallelism().map_or(1, usize::from),
        sources: Sources::for_servers(&[address], connections),
        ready_timeout: Duration::from_secs(60),
        retry_after: None,
        ping_late_after: None,
    })
}

/// Opens all of them and fails unless every one gets ready.
fn open_all(engine: &Engine, connections: u32, pace: Pace) -> anyhow::Result<()> {
    open_to(engine, connections, connections, pace)
}

fn open_to(engine: &Engine, below: u32, ready: u32, pace: Pace) -> anyhow::Result<()> {
    engine.open_below(below, pace);
    engine.wait(TIMEOUT, |counts| counts.ready_now() + counts.failed() >= u64::from(ready));
    all_ready(engine, ready)
}

fn all_ready(engine: &Engine, connections: u32) -> anyhow::Result<()> {
    let counts = engine.counts();
    ensure!(
        counts.failed() == 0 && counts.ready_now() == u64::from(connections),
        "{} of {connections} connections are ready; failures: {}",
        counts.ready_now(),
        counts.failure_words()
    );
    Ok(())
}

fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_and_is_compared_with_its_limit() {
        let rounds = vec![(10.0, Some(10.0)), (30.0, Some(10.0)), (12.0, Some(10.0))];
        let figure = Figure::new("x", "us", Limit::Ratio(1.25), rounds);
        assert_eq!((figure.server, figure.bare, figure.ratio), (12.0, Some(10.0), Some(1.2)));
        assert!(figure.kept() && figure.line().ends_with("ok"));
        let over = Figure::alone("x", "B", Limit::Value(160.0), 161.0);
        assert!(!over.kept() && over.line().ends_with("OVER"));
        assert!(!Figure::alone("no yardstick", "B", Limit::Ratio(1.0), 1.0).kept());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
