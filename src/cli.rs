//! What the command line asks for, carried out.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use tracing_subscriber::filter::LevelFilter;

use crate::config::{self, Command, Config, ConfigError, Invocation, LogFormat, LogLevel};
use crate::node::Node;

/// Runs the program; what `main` does.
pub fn run() -> ExitCode {
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match config::parse(std::env::args_os().skip(1), &env) {
        Ok(invocation) => carry_out(invocation),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(ConfigError::EXIT_CODE)
        }
    }
}

fn carry_out(Invocation { command, warnings, file }: Invocation) -> ExitCode {
    let served = match command {
        Command::Help(text) | Command::PrintConfig(text) | Command::Version(text) => {
            warnings.iter().for_each(|warning| eprintln!("{warning}"));
            // Somebody who closed the pipe has read enough.
            let _ = writeln!(io::stdout(), "{}", text.trim_end());
            return ExitCode::SUCCESS;
        }
        Command::Serve(config) => {
            start_log(&config);
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            if let Some(file) = file {
                tracing::info!("configuration file: {}", file.display());
            }
            Node::start(*config, None).map_err(anyhow::Error::from).and_then(|node| Ok(node.run_until_signalled()?))
        }
        Command::Demo(config) => {
            start_log(&config);
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            Err(anyhow::anyhow!("{config:?}"))
        }
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lines go to stdout, as operators of AnyCable expect.
fn start_log(config: &Config) {
    let level = match config.log.level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_target(level == LevelFilter::DEBUG);
    match config.log.format {
        LogFormat::Text => log.with_ansi(io::IsTerminal::is_terminal(&io::stdout())).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
