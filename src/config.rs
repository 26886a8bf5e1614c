//! Every option: its names, its default, its help, where its value came from.
//!
//! [`parse`] turns a command line and an environment into a [`Command`]. It reads the layers (defaults, file,
//! environment, flags) into a [`Config`], then refuses what cannot work together; the only thing it touches
//! is the configuration file. The options themselves are written down once, in the tables under `options/`:
//! `--help`, the sample file and the parser all come from there.

mod arguments;
mod carried;
mod check;
mod cluster;
mod commands;
mod completions;
mod definition;
mod error;
mod file;
mod layers;
mod man;
mod options;
mod presets;
mod reload;
mod resolved;
mod secrets;
mod setting;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

pub use carried::Carried;
pub use check::ACCEPTORS_MAX;
pub use commands::{CommandFlag, SHELLS, SUBCOMMANDS, Subcommand};
pub use completions::completions;
pub use definition::{Definition, Kind, Status, Unit, default_number};
pub use error::{ConfigError, Problem};
pub use file::SEARCHED;
pub use man::man;
pub use options::{
    Admin, Api, App, Broadcast, Broker, Cluster, Config, Disconnect, Jwt, Log, Metrics, Nats, Redis, Rpc, Server,
    Streams, Tcp, Ws, all,
};
pub use reload::Reloaded;
pub use resolved::{ListenOn, OPEN_BROADCAST_PORT};
pub use secrets::Secrets;
pub use setting::{
    BroadcastAdapter, BrokerKind, LogFormat, LogLevel, Processes, PubSub, Reaping, RpcImplementation, Secret, Tags,
};
pub use text::{help, sample};

use arguments::{Arguments, Verb};
use layers::{Layers, Origin};
use setting::Input;

/// The variable that names the configuration file, weaker than `--config`.
pub const CONFIG_VARIABLE: &str = "CABLEWAY_CONFIG";

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Run the server.
    Serve(Box<Config>),
    /// Run the server with the sample app.
    Demo(Box<Config>),
    /// Print this text: the configuration in force, or the sample file.
    PrintConfig(String),
    /// Print this text.
    Help(String),
    /// Print this text: the bare version.
    Version(String),
}

/// A command, and what to say before it is carried out.
#[derive(Debug, PartialEq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// What to log as warnings: deprecated and ignored options, things that are probably not meant.
    pub warnings: Vec<String>,
    /// What to log for somebody who looks closely, at debug.
    pub notes: Vec<String>,
    /// The configuration file that was read.
    pub file: Option<PathBuf>,
}

/// Reads a command line (without the program's name) and an environment.
pub fn parse<I>(args: I, env: &BTreeMap<String, String>) -> Result<Invocation, ConfigError>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    parse_with(args, env, &|path| std::fs::read_to_string(path))
}

/// The same with another way to read a file.
pub fn parse_with<I>(
    args: I,
    env: &BTreeMap<String, String>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Invocation, ConfigError>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let arguments = arguments::read(args)?;
    let command = match arguments.verb {
        Verb::Help => Command::Help(help(arguments.all)),
        Verb::Version => Command::Version(env!("CARGO_PKG_VERSION").to_owned()),
        Verb::Config if arguments.sample => Command::PrintConfig(sample()),
        Verb::Serve | Verb::Demo | Verb::Config => return configure(arguments, env, read),
    };
    Ok(Invocation { command, warnings: Vec::new(), notes: Vec::new(), file: None })
}

fn configure(
    arguments: Arguments,
    env: &BTreeMap<String, String>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Invocation, ConfigError> {
    let mut layers = Layers::default();
    let mut problems = arguments.problems;
    let named =
        arguments.config.or_else(|| env.get(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from));
    let found = if arguments.ignore_config { None } else { file::find(named.as_deref(), read)? };
    if let Some(found) = &found {
        let origin = Origin::File(found.path.display().to_string().into());
        let contents = file::read(found);
        problems.extend(contents.problems);
        layers.warnings.extend(contents.warnings);
        for (definition, input) in contents.given {
            layers.put(definition, input, origin.clone());
        }
    }
    layers.put_env(env);
    for (definition, flag, value) in arguments.flags {
        layers.put(definition, Input::One(value), Origin::Flag(flag));
    }
    presets::apply(&mut layers, env);
    presets::broadcasts(&mut layers);
    presets::reaping(&mut layers);
    let (mut effective, wrong) = layers.apply();
    problems.extend(wrong);
    let Layers { mut warnings, notes, .. } = layers;
    check::normalize(&mut effective.config, &mut warnings);
    cluster::normalize(&mut effective, &mut warnings);
    // What is not there yet leaves nothing behind; after other mistakes, values would be found wrong that are not.
    if problems.iter().all(|problem| matches!(problem, Problem::NotThereYet { .. })) {
        problems.extend(check::check(&effective.config));
        problems.extend(cluster::unreadable_files(&effective.config, read));
    }
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    warnings.extend(check::warnings(&effective.config));
    warnings.extend(check::app_elsewhere(&effective.config, env));
    let command = match arguments.verb {
        Verb::Config => Command::PrintConfig(text::effective(&effective)),
        Verb::Demo => Command::Demo(Box::new(effective.config)),
        _ => Command::Serve(Box::new(effective.config)),
    };
    Ok(Invocation { command, warnings, notes, file: found.map(|found| found.path) })
}
