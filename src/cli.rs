//! What the command line asks for, carried out.

mod ask;
mod doctor;
mod healthcheck;
mod log;
mod print;
mod top;
mod upgrade;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::bail;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{
    self, BroadcastAdapter, BrokerKind, Command, Config, ConfigError, Invocation, ListenOn, Processes, PubSub,
    Reloaded, RpcImplementation, Secret, Secrets,
};
use crate::demo::{self, Demo, Site};
use crate::node::{self, Node, Parent, ParentEnd, ReloadError, Renewed, Terms};
use crate::os::clock::Clock;
use crate::os::family::{self, Inherited};
use crate::os::{orphan, signals};
use log::{Log, Name, Stream};

/// A usage error, as in sysexits.h.
const USAGE_ERROR: u8 = 64;

/// Runs the program; what `main` does.
pub fn run() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map_while(|argument| argument.into_string().ok());
    match arguments.next().as_deref() {
        // Started by the demo's page, not by people, and not in the help.
        Some(demo::IDLE_CLIENTS_COMMAND) => return demo::hold_idle_clients(arguments),
        // Nor is this, by a server that is upgraded. Its words are another program's, and need not be text.
        Some(orphan::COMMAND) => return start_successor(),
        // It has no server, and none of a server's options.
        Some(top::COMMAND) => return top::run(arguments),
        Some(doctor::COMMAND) => return doctor::run(arguments, &environment()),
        Some(upgrade::COMMAND) => return upgrade::run(arguments, &environment()),
        Some(healthcheck::COMMAND) => return healthcheck::run(arguments, &environment()),
        Some(print::COMPLETIONS_COMMAND) => return print::completions(arguments),
        Some(print::MAN_COMMAND) => return print::man(arguments),
        Some(node::TRY_RENEWAL_COMMAND) => return try_renewal(arguments),
        _ => {}
    }
    match family::inherited() {
        Ok(None) => {}
        Ok(Some(inherited)) => return serve_as_child(inherited),
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(ConfigError::EXIT_CODE);
        }
    }
    let env = environment();
    match config::parse(std::env::args_os().skip(1), &env) {
        Ok(invocation) => match Renewed::find() {
            Ok(renewed) => carry_out(invocation, renewed),
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(ConfigError::EXIT_CODE)
        }
    }
}

fn start_successor() -> ExitCode {
    match orphan::start_successor(std::env::args_os().skip(2)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{}: {error}", orphan::COMMAND));
            ExitCode::from(USAGE_ERROR)
        }
    }
}

fn environment() -> BTreeMap<String, String> {
    let variables = std::env::vars_os();
    variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// Started by the parent of several processes, not by people: says whether this program could go on in its place.
fn try_renewal(words: impl Iterator<Item = String>) -> ExitCode {
    let (line, code) = match config::parse(words, &environment()) {
        Ok(Invocation { command: Command::Serve(config), .. }) => match node::try_renewal(*config) {
            Ok(line) => (line, ExitCode::SUCCESS),
            Err(why) => (why, ExitCode::FAILURE),
        },
        Ok(_) => ("the arguments do not start a server".to_owned(), ExitCode::FAILURE),
        Err(error) => (error.to_string(), ExitCode::from(ConfigError::EXIT_CODE)),
    };
    // Whoever has closed it does not want to know.
    let _ = writeln!(io::stdout(), "{}", line.trim_end().replace('\n', "; "));
    code
}

/// `renewed` is what another program has left in this process.
fn carry_out(Invocation { command, warnings, notes, file }: Invocation, renewed: Option<Renewed>) -> ExitCode {
    let tell_of_config = || {
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        notes.iter().for_each(|note| tracing::debug!("{note}"));
    };
    match command {
        Command::Help(text) | Command::PrintConfig(text) | Command::Version(text) => {
            warnings.iter().for_each(|warning| complain(warning));
            // Somebody who closed the pipe has read enough.
            let _ = writeln!(io::stdout(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Command::Serve(config) => {
            let level = log::level(config.log.level);
            let node_id = renewed.as_ref().map_or_else(|| node_id(&config), |renewed| renewed.node_id.clone());
            let name = Name { node_id: node_id.clone(), process: None };
            serve(*config, name, tell_of_config, level, Stream::Stdout, |config, log| {
                let started = match renewed {
                    Some(renewed) => Ok(Parent::go_on(config, renewed)?),
                    None => one_or_several(config, file.as_deref(), node_id)?,
                };
                let config = match started {
                    Ok(parent) => {
                        let new = |parent: &mut Parent| reload(log, |new| parent.reload(new));
                        return Ok(parent.run_until_signalled(|| log.limit(), new, || log.flush())?);
                    }
                    Err(config) => config,
                };
                let node = Node::start(config, file.as_deref(), None)?;
                Ok(node.run_until_signalled(|| log.limit(), |node| reload(log, |new| node.reload(new)))?)
            })
        }
        Command::Demo(config) => {
            // Standard output is for the one thing that a person needs now: the URL. Of the log only what is wrong is
            // shown, unless somebody wants to see everything.
            let level = log::level(config.log.level);
            let level = if level == LevelFilter::INFO { LevelFilter::WARN } else { level };
            let name = Name { node_id: node_id(&config), process: None };
            serve(*config, name, tell_of_config, level, Stream::Stderr, |config, log| {
                serve_demo(config, file.as_deref(), log)
            })
        }
    }
}

/// The name of this node in the log.
fn node_id(config: &Config) -> String {
    let given = Some(&config.app.node_id).filter(|node_id| !node_id.is_empty()).cloned();
    given.unwrap_or_else(log::random_node_id)
}

/// The parent of several processes, or the configuration, if it wants one only.
fn one_or_several(config: Config, file: Option<&Path>, node_id: String) -> anyhow::Result<Result<Parent, Config>> {
    match config.server.processes {
        Processes::Count(1) => Ok(Err(config)),
        _ => Ok(Parent::start(config, file, node_id)?),
    }
}

/// Runs one of several processes, which its parent has started.
fn serve_as_child(inherited: Inherited) -> ExitCode {
    let process = Some(inherited.child);
    let read = |text: &[u8]| {
        let Terms { config, node_id, room } = Terms::read(text).map_err(|error| error.to_string())?;
        Ok((config.into_config()?, node_id, room))
    };
    let (config, node_id, room) = match read(&inherited.text) {
        Ok(terms) => terms,
        // A parent that has ended by now has said nothing.
        Err::<_, String>(error) => {
            complain(&format!("what the parent process has said cannot be used: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let level = log::level(config.log.level);
    serve(
        config,
        Name { node_id, process },
        || (),
        level,
        Stream::Stdout,
        |config, log| {
            let node = Node::start_child(config, ParentEnd::greet(inherited, room)?)?;
            let reload = |node: &mut Node| match node.take_order() {
                Some(order) => {
                    let taken = node.reload(&order.config);
                    if let Ok(reloaded) = &taken {
                        log.set_level(log::level(reloaded.config.log.level));
                    }
                    order.done(taken.map(drop).map_err(|error| error.to_string()));
                }
                None => tracing::debug!("SIGHUP ignored: the parent process reads the configuration"),
            };
            Ok(node.run_until_signalled(|| log.limit(), reload)?)
        },
    )
}

/// Reads the configuration again as it was read at the start, and has taken over what can be.
fn reload(log: &Log, take: impl FnOnce(&Config) -> Result<Reloaded, ReloadError>) {
    let refused = |error: &dyn Display| {
        let why = error.to_string().replace('\n', "; ");
        tracing::error!("the configuration was read again and refused, nothing has changed: {why}");
    };
    let Invocation { command, warnings, .. } = match config::parse(std::env::args_os().skip(1), &environment()) {
        Ok(invocation) => invocation,
        Err(error) => return refused(&error),
    };
    let Command::Serve(new) = command else { return };
    let reloaded = match take(&new) {
        Ok(reloaded) => reloaded,
        Err(error) => return refused(&error),
    };
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let or_nothing = |options: &[String]| if options.is_empty() { "nothing".to_owned() } else { options.join(", ") };
    tracing::info!(
        "the configuration was read again: changed: {}; needs a restart: {}",
        or_nothing(&reloaded.changed),
        or_nothing(&reloaded.needs_restart)
    );
    log.set_level(log::level(reloaded.config.log.level));
}

/// Starts the log, runs a server until it ends, and says why if it did not want to.
fn serve(
    config: Config,
    name: Name,
    tell_of_config: impl FnOnce(),
    level: LevelFilter,
    stream: Stream,
    run: impl FnOnce(Config, &Log) -> anyhow::Result<()>,
) -> ExitCode {
    signals::ignore_meaningless();
    let log = match Log::start(config.log.format, level, &name, stream) {
        Ok(log) => log,
        Err(error) => {
            complain(&format!("cannot start the log: {error}"));
            return ExitCode::FAILURE;
        }
    };
    tell_of_config();
    match run(config, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A line on standard error, for whoever started the program. It may be closed, or on a full disk; then there is nobody to
/// tell.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Leaves the demo to itself, whatever Redis the environment names, unless several nodes are asked for.
fn alone(config: &mut Config) {
    if config.cluster.pubsub == PubSub::Auto {
        config.cluster.pubsub = PubSub::None;
        config.broker.kind = BrokerKind::Memory;
        config.broadcast.adapters = vec![BroadcastAdapter::Http];
    } else if config.broker.kind == BrokerKind::None {
        config.broker.kind = match config.pubsub() {
            PubSub::Redis => BrokerKind::Redis,
            PubSub::Nats => BrokerKind::Nats,
            PubSub::None | PubSub::Auto => BrokerKind::Memory,
        };
    }
}

/// Serves the sample app and its page in front of it. A broadcast key is made if none is given: with one, broadcasts
/// are taken on the main port, and pages of other sites cannot send any.
fn serve_demo(mut config: Config, file: Option<&Path>, log: &Log) -> anyhow::Result<()> {
    if !matches!(config.server.processes, Processes::Count(1) | Processes::Auto) {
        bail!("the demo is one process with its sample app: leave --processes away");
    }
    let demo = Demo::bind()?;
    config.rpc.host = demo.rpc_address().to_string();
    config.rpc.implementation = RpcImplementation::Grpc;
    // The page goes on with its session after it has cut its network, and gets what it missed.
    alone(&mut config);
    // Idle clients leave all at once. The app is in this process and loses nothing by hearing of it at once.
    config.disconnect.rate = 0;
    config.disconnect.backlog = config.disconnect.backlog.max(2 * demo::IDLE_CLIENTS_MAX);
    if config.broadcast.key.or(&config.app.secret).key().is_none() {
        config.broadcast.key = Secret::Key(format!("{:016x}", rand::random::<u64>()));
    }
    let broadcast_key = Secrets::resolve(&config).broadcast;
    let cable_path = config.ws.paths.first().cloned().unwrap_or_default();
    let broadcast_path = config.broadcast.http_path.clone();
    let broadcast_on = config.broadcast_on();
    let mut node = Node::start(config, file, Some(demo.routes()))?;
    // Whoever has the page open shows it, also when another process has taken over.
    node.hand_on("CABLEWAY_BROADCAST_KEY", broadcast_key.clone().unwrap_or_default());
    let mut address = node.address();
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let broadcast_at = match broadcast_on {
        ListenOn::Main => address.to_string(),
        ListenOn::Own { port, .. } => SocketAddr::new(address.ip(), port).to_string(),
    };
    let site =
        Site { address, cable_path, broadcast_url: format!("http://{broadcast_at}{broadcast_path}"), broadcast_key };
    let observer = Arc::clone(node.observer());
    let clock = Clock::start();
    demo.run(node.runtime().handle(), site, move || {
        let facts = observer.facts();
        demo::Facts {
            connections: facts.websockets,
            connections_max: facts.capacity,
            resident_bytes: Some(facts.resident_bytes).filter(|&bytes| bytes > 0),
            open_files_limit: facts.descriptors_max,
            open_files: Some(facts.descriptors).filter(|&files| files > 0),
            shards: facts.shards,
            messages_delivered: facts.messages_sent,
            uptime: clock.now().mono,
        }
    })?;
    // The log of a demo tells what is wrong only.
    let first_line = (!tracing::enabled!(tracing::Level::INFO)).then(|| {
        let facts = node.observer().facts();
        node::first_line(facts.descriptors_max, facts.shards)
    });
    // It runs on even if nobody reads this, so it does not wait for a reader.
    let tell = move || {
        first_line.inspect(|line| complain(line));
        complain("The Cableway demo is running; Ctrl-C ends it. Open this page in two tabs:");
        let _ = writeln!(io::stdout(), "http://{address}/");
    };
    let has_taken_over = node.has_taken_over();
    let ready = || {
        log.limit();
        if has_taken_over {
            return;
        }
        if let Err(error) = thread::Builder::new().name("tell".into()).spawn(tell) {
            tracing::error!(%error, "cannot tell where the demo is");
        }
    };
    Ok(node.run_until_signalled(ready, |_| tracing::info!("SIGHUP ignored: the demo reads nothing again"))?)
}
