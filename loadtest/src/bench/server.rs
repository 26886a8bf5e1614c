//! Starting the two sides of a comparison. Each listens on a free loopback port and ends with us.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::Options;
use crate::metrics;
use crate::observe::{self, ProcessCost};
use crate::protocol::Protocol;
use crate::server::{self, Process};

/// Which side of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The server under test, or the yardstick again when none was given.
    Server,
    /// The yardstick, with as many threads as the server has shards.
    Bare,
    /// The server with one shard.
    OneShard,
    /// The yardstick with one thread.
    OneThread,
}

impl Side {
    /// Both, in the order of a round. Rounds alternate it, so that neither side always comes second.
    pub fn both(round: u32) -> [Self; 2] {
        if round.is_multiple_of(2) { [Self::Server, Self::Bare] } else { [Self::Bare, Self::Server] }
    }

    /// Whether the yardstick is started for it: always, when no server was given.
    pub fn is_bare(self, options: &Options) -> bool {
        matches!(self, Self::Bare | Self::OneThread) || options.server.is_none()
    }

    /// All four, each in turn the first.
    pub fn all(round: u32) -> [Self; 4] {
        let mut sides = [Self::Server, Self::Bare, Self::OneShard, Self::OneThread];
        sides.rotate_left(round as usize % 4);
        sides
    }

    /// How many threads hold connections, where the side itself decides.
    fn threads(self) -> Option<u32> {
        matches!(self, Self::OneShard | Self::OneThread).then_some(1)
    }
}

/// What a scenario needs of the server.
#[derive(Debug, Clone)]
pub struct Want {
    /// What the clients speak.
    pub protocol: Protocol,
    /// Heartbeat.
    pub ping_interval: Duration,
    /// Threads that hold connections, on both sides; without it as many as the options say.
    pub acceptors: Option<u32>,
    /// The yardstick sends a publication only to those that subscribed to its identifier.
    pub rooms: bool,
    /// The server remembers: `--broker memory`.
    pub broker: bool,
    /// The app is asked for every client; without it they are let in unasked.
    pub connect: bool,
    /// The app server, for commands, as `--rpc-host` takes it.
    pub app: Option<String>,
}

impl Want {
    /// Plain WebSockets, or Action Cable without an app, that are left in peace.
    pub fn quiet(protocol: Protocol) -> Self {
        Self {
            protocol,
            ping_interval: Duration::from_secs(3600),
            acceptors: None,
            rooms: false,
            broker: false,
            connect: false,
            app: None,
        }
    }
}

/// A started server. Dropping it ends it.
pub struct Running {
    process: Process,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where publications are posted; nowhere for the bare relay.
    pub publish_url: String,
    /// What Cableway says of itself; nowhere for the others.
    metrics_url: String,
}

impl Running {
    /// Starts a side. Where an app is wanted, the yardstick is the bare relay.
    pub fn start(side: Side, options: &Options, want: &Want) -> anyhow::Result<Self> {
        match (side, &options.server, &want.app) {
            (Side::Server | Side::OneShard, Some(path), _) => Self::start_cableway(side, path, options, want),
            (.., Some(app)) => Self::start_relay(options, app),
            (.., None) => Self::start_bare(side, options, want),
        }
    }

    fn start_relay(options: &Options, app: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(options.yardstick()?);
        command.args(["app-relay", "--app", app, "--at-once", &options.rpc_concurrency.to_string()]);
        let (process, line) = Process::spawn_talking(&mut command, server::START_MAX)?;
        let Some(address) = line.trim_end().strip_prefix("listening ") else { bail!("the relay said: {line}") };
        Ok(Self { process, address: address.parse()?, publish_url: String::new(), metrics_url: String::new() })
    }

    fn start_bare(side: Side, options: &Options, want: &Want) -> anyhow::Result<Self> {
        let mut command = Command::new(options.yardstick()?);
        command.args(["bare", "--listen", "127.0.0.1:0", "--backlog", &options.backlog.to_string()]);
        match want.protocol {
            Protocol::Raw => command.args(["--protocol", "raw", "--echo"]),
            protocol => {
                command.args(["--protocol", protocol.name(), "--ping-interval"]);
                command.arg(want.ping_interval.as_secs_f64().to_string())
            }
        };
        if want.rooms {
            command.arg("--rooms");
        }
        if let Some(acceptors) = side.threads().or(want.acceptors).or(options.acceptors) {
            command.args(["--shards", &acceptors.to_string()]);
        }
        let (process, line) = Process::spawn_talking(command.arg("--die-with-parent"), server::START_MAX)?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let ["listening", address, "control", control] = words[..] else { bail!("the yardstick said: {line}") };
        let publish_url = format!("http://{control}/_broadcast");
        Ok(Self { process, address: address.parse()?, publish_url, metrics_url: String::new() })
    }

    fn start_cableway(side: Side, path: &Path, options: &Options, want: &Want) -> anyhow::Result<Self> {
        let mut arguments = vec!["--backlog".to_owned(), options.backlog.to_string()];
        if let Some(acceptors) = side.threads().or(want.acceptors).or(options.acceptors) {
            arguments.extend(["--acceptors".to_owned(), acceptors.to_string()]);
        }
        if want.app.is_some() {
            arguments.extend(["--rpc-concurrency".to_owned(), options.rpc_concurrency.to_string()]);
        }
        if want.broker {
            arguments.extend(["--broker".to_owned(), "memory".to_owned()]);
        }
        arguments.extend_from_slice(&options.server_args);
        Self::launch(Command::new(path), arguments, want)
    }

    /// Starts Cableway through `launcher`: the binary, or what runs it.
    pub(super) fn launch(
        launcher: Command,
        arguments: impl IntoIterator<Item = String>,
        want: &Want,
    ) -> anyhow::Result<Self> {
        let (address, publish) = (server::free_address()?, server::free_address()?);
        let mut command = server::cableway(launcher, address.port(), publish.port());
        command.args(["--echo-path", "/echo", "--metrics-port", &publish.port().to_string()]);
        if !want.connect {
            command.arg("--public");
        }
        command.args(["--ping-interval", &format!("{}s", want.ping_interval.as_secs())]);
        match &want.app {
            Some(app) => command.args(["--rpc-host", app]),
            None => command.args(["--norpc", "--noauth"]),
        };
        let mut process = Process::spawn(command.args(arguments))?;
        process.await_accepting(address)?;
        process.await_accepting(publish)?;
        let publish_url = format!("http://{publish}/_broadcast");
        Ok(Self { process, address, publish_url, metrics_url: format!("http://{publish}/metrics") })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its memory and CPU now.
    pub fn cost(&self) -> anyhow::Result<ProcessCost> {
        observe::process_cost(self.process.pid()).context("the server is gone")
    }

    /// One of its own figures, by its name behind the prefix. Only Cableway has any.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        metrics::read_one(&self.metrics_url, name)
    }

    /// Its CPU time so far, in microseconds.
    pub fn cpu_us(&self) -> anyhow::Result<f64> {
        Ok(observe::cpu_time(self.process.pid()).context("the server is gone")?.as_secs_f64() * 1e6)
    }
}
