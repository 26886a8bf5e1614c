//! The command line: what a person can ask for, and where the answer goes.
#![allow(clippy::disallowed_methods, reason = "a load test measures: it has no clock to be given")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use cableway_loadtest::engine::{BadNetwork, Goodbye};
use cableway_loadtest::protocol::Protocol;
use cableway_loadtest::report::Provenance;
use cableway_loadtest::scenario::{self, Load, Publishing, Scenario};
use cableway_loadtest::{bare, bench, check, dead_peers, os, processes, upgrade, versus, workers};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about, long_about = None, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Run(Box<Run>),
    /// Say what this machine can drive, and how to raise it.
    Check {
        /// Connections wanted.
        #[arg(short = 'n', long, default_value_t = 1_000_000)]
        connections: u64,
    },
    /// Compare a server with the yardstick, figure by figure, against promised limits.
    Bench {
        /// Which comparison.
        #[arg(value_enum)]
        name: bench::Name,
        #[command(flatten)]
        options: bench::Options,
        /// Write the figures to this file as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Count the instructions that Cableway executes for one command, publication, delivered message and heartbeat, with
    /// valgrind.
    Instructions {
        #[command(flatten)]
        options: bench::InstructionsOptions,
        /// Write the counts to this file as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Let clients die each death in a network that is cut, and see whether Cableway finds them in time. As root.
    DeadPeers(dead_peers::Options),
    /// The clients of `dead-peers`, in a process of their own.
    #[command(hide = true)]
    DeadPeer(dead_peers::PeerOptions),
    /// Upgrade Cableway again and again under load, and see that no client notices.
    Upgrade(upgrade::Options),
    /// Compare Cableway and other servers under the same load, one after the other.
    Versus(versus::Options),
    /// See that several processes of Cableway are one server: many subscribers, one of the processes is killed, and what
    /// publications cost.
    Processes(processes::Options),
    /// Run the yardstick: the least a WebSocket server can do.
    Bare(BareOptions),
    /// Run a small app server that answers every command, through gRPC, and through HTTP below /anycable.RPC.
    App {
        /// Where it listens.
        #[arg(long, default_value = "127.0.0.1:50051")]
        listen: SocketAddr,
        /// How long every call takes.
        #[arg(long, value_name = "MS", default_value_t = 0)]
        delay: u64,
    },
    /// Call an app server with nothing around: the other side of `bench commands`.
    #[command(hide = true)]
    AppClient(bench::ClientOptions),
    /// Pass what WebSockets say to an app server, with nothing around: the other side of `bench commands-http`.
    #[command(hide = true)]
    AppRelay(bench::RelayOptions),
    /// Hold a share of the clients of another process of this program.
    #[command(hide = true)]
    Worker,
}

/// The scenarios.
#[derive(Subcommand)]
enum Run {
    /// Open many connections and hold them.
    Idle {
        #[command(flatten)]
        load: Load,
        /// How long they are held.
        #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
        hold: f64,
        /// Open as many connections on the yardstick, too, with as many client and server processes, before the server or
        /// after it, and compare.
        #[arg(long, value_enum, value_name = "TURN", num_args = 0..=1, require_equals = true, default_missing_value = "first",
              requires = "server")]
        beside_bare: Option<scenario::Turn>,
        #[command(flatten)]
        finale: scenario::Finale,
    },
    /// Open connections and report how fast that went.
    Connect {
        #[command(flatten)]
        load: Load,
    },
    /// Publish to all subscribers; any message lost, doubled or out of order fails the run.
    Broadcast {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        publishing: Publishing,
        /// Drop the connection of each client this often, one client after the other; with --protocol actioncable-ext.
        #[arg(long, value_name = "SECONDS")]
        drop_every: Option<f64>,
        /// How long a client that was dropped stays away.
        #[arg(long, value_name = "SECONDS", default_value_t = 2.0, requires = "drop_every")]
        drop_for: f64,
    },
    /// Let every client say something and wait for the answer.
    Echo {
        #[command(flatten)]
        load: Load,
        /// Rounds of each client.
        #[arg(long, default_value_t = 10)]
        rounds: u32,
        /// Clients that do it at the same time.
        #[arg(long, default_value_t = 100)]
        at_once: u32,
        /// What they say: with Action Cable the data of a message command, with Pusher that of a ping.
        #[arg(long, default_value = r#"{"action":"echo","text":"hello"}"#)]
        text: String,
    },
    /// Drop all or a share at once and let them come back.
    Storm {
        #[command(flatten)]
        load: Load,
        /// The share that is dropped, 0 to 1.
        #[arg(long, default_value_t = 1.0)]
        share: f64,
        /// How they go.
        #[arg(long, value_enum, default_value = "reset")]
        goodbye: Goodbye,
        /// Let them go on with their sessions, with --protocol actioncable-ext: one half of the publications is made while
        /// they are away and the other half while they come back, and all must reach everybody once and in order.
        #[arg(long)]
        restore: bool,
        #[command(flatten)]
        publishing: Publishing,
    },
    /// Let a share read slowly or not at all while everybody is published to, and see what the others notice.
    Slow {
        #[command(flatten)]
        load: Load,
        /// The share that reads slowly, 0 to 1.
        #[arg(long, default_value_t = 0.1)]
        share: f64,
        /// Bytes a second that they read; 0 for none.
        #[arg(long, default_value_t = 1024)]
        read_rate: u32,
        #[command(flatten)]
        publishing: Publishing,
    },
    /// Let clients come and go; memory must come back.
    Churn {
        #[command(flatten)]
        load: Load,
        /// How long.
        #[arg(long, default_value_t = 30.0)]
        seconds: f64,
        /// The share that goes and comes each second, 0 to 1.
        #[arg(long, default_value_t = 0.1)]
        share: f64,
        /// How they go.
        #[arg(long, value_enum, default_value = "close")]
        goodbye: Goodbye,
    },
}

#[derive(clap::Args)]
struct BareOptions {
    /// Where it listens; port 0 for any.
    #[arg(long, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Accept queue of each thread.
    #[arg(long, default_value_t = 4096)]
    backlog: u32,
    /// Threads [default: one per core].
    #[arg(long)]
    shards: Option<usize>,
    /// What it speaks.
    #[arg(long, value_enum, default_value = "raw")]
    protocol: Protocol,
    /// Seconds between heartbeats of a connection; none without it.
    #[arg(long, value_name = "SECONDS")]
    ping_interval: Option<f64>,
    /// Send every message back.
    #[arg(long)]
    echo: bool,
    /// Send what is posted only to those that subscribed to its `identifier`.
    #[arg(long)]
    rooms: bool,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cableway-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(command) => run_scenario(*command),
        Command::Bench { name, options, json } => run_bench(name, &options, json),
        Command::Instructions { options, json } => run_instructions(&options, json),
        Command::DeadPeers(options) => {
            let clean = dead_peers::run(&options)?;
            Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::DeadPeer(options) => dead_peers::peers(&options).map(|()| ExitCode::SUCCESS),
        Command::Upgrade(options) => {
            let unnoticed = upgrade::run(&options)?;
            Ok(if unnoticed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Versus(options) => {
            let complete = versus::run(&options)?;
            Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Processes(options) => {
            let clean = processes::run(&options)?;
            Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Bare(options) => run_bare(&options),
        Command::App { listen, delay } => match bench::serve_app(listen, Duration::from_millis(delay))? {},
        Command::AppClient(options) => bench::bare_client(&options).map(|()| ExitCode::SUCCESS),
        Command::AppRelay(options) => match bench::bare_relay(&options)? {},
        Command::Worker => workers::work().map(|()| ExitCode::SUCCESS),
        Command::Check { connections } => Ok(run_check(connections)),
    }
}

fn run_scenario(command: Run) -> anyhow::Result<ExitCode> {
    let (load, scenario) = match command {
        Run::Idle { load, hold, beside_bare, finale } => (load, Scenario::Idle { hold, beside_bare, finale }),
        Run::Connect { load } => (load, Scenario::Connect),
        Run::Broadcast { load, publishing, drop_every, drop_for } => {
            let seconds = |option: &str, seconds: f64| {
                Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()).context(option.to_owned())
            };
            let bad_network = drop_every.map(|drop_every| {
                anyhow::Ok(BadNetwork {
                    drop_every: seconds("--drop-every must be above 0", drop_every)?,
                    drop_for: seconds("--drop-for must be above 0", drop_for)?,
                })
            });
            (load, Scenario::Broadcast { publishing, bad_network: bad_network.transpose()? })
        }
        Run::Echo { load, rounds, at_once, text } => (load, Scenario::Echo { rounds, at_once, text }),
        Run::Storm { load, share, goodbye, restore, publishing } => {
            (load, Scenario::Storm { share, goodbye, restore: restore.then_some(publishing) })
        }
        Run::Slow { load, share, read_rate, publishing } => (load, Scenario::Slow { share, read_rate, publishing }),
        Run::Churn { load, seconds, share, goodbye } => (load, Scenario::Churn { seconds, share, goodbye }),
    };
    let clean = scenario::run(&load, &scenario)?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_check(connections: u64) -> ExitCode {
    println!("for {connections} connections:");
    let findings = check::findings(connections);
    for finding in &findings {
        let verdict = if finding.remedy.is_some() { "LOW" } else { "ok" };
        println!("  {verdict:<4} {:<28} {}", finding.name, finding.words);
        if let Some(remedy) = &finding.remedy {
            println!("       {:<28} {remedy}", "");
        }
    }
    ExitCode::SUCCESS
}

fn run_bench(name: bench::Name, options: &bench::Options, json: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut figures = Vec::new();
    println!("{}", bench::Figure::heading());
    let outcome = bench::run(name, options, &mut |figure| {
        println!("{}", figure.line());
        figures.push(figure);
    });
    write_json(json, "figures", &figures, outcome.as_ref().err())?;
    outcome?;
    let over = figures.iter().filter(|figure| !figure.kept()).count();
    if over > 0 {
        eprintln!("{over} figure(s) over the limit");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn run_instructions(options: &bench::InstructionsOptions, json: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut counts = Vec::new();
    println!("{}", bench::InstructionCount::heading());
    let outcome = bench::instructions(options, &mut |count| {
        println!("{}", count.lines());
        counts.push(count);
    });
    write_json(json, "instructions", &counts, outcome.as_ref().err())?;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Writes what was measured, as far as it came, and where and how.
fn write_json(
    path: Option<PathBuf>,
    name: &str,
    measured: &impl serde::Serialize,
    error: Option<&anyhow::Error>,
) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut record = serde_json::to_value(Provenance::now())?;
    record[name] = serde_json::to_value(measured)?;
    record["error"] = error.map(|error| format!("{error:#}")).into();
    let text = serde_json::to_string_pretty(&record)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn run_bare(options: &BareOptions) -> anyhow::Result<ExitCode> {
    if options.die_with_parent {
        os::die_with_parent()?;
    }
    let mut settings = bare::Settings {
        listen: options.listen,
        backlog: i32::try_from(options.backlog)?,
        protocol: options.protocol,
        ping_interval: options.ping_interval.filter(|s| *s > 0.0).map(Duration::from_secs_f64),
        echo: options.echo,
        rooms: options.rooms,
        ..bare::Settings::default()
    };
    if let Some(shards) = options.shards {
        settings.shards = shards;
    }
    let bare = bare::start(&settings)?;
    println!("listening {} control {}", bare.address, bare.control);
    loop {
        std::thread::park();
    }
}
