//! `cableway healthcheck`: whether a server lives, as an exit status, for containers that have no other program to ask with.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use super::ask::{self, Place};
use super::{USAGE_ERROR, complain};
use crate::config::{self, Command, Config};

/// The command.
pub(super) const COMMAND: &str = "healthcheck";

const USAGE: &str = "\
cableway healthcheck: whether a running server lives

Usage:
  cableway healthcheck [--url URL | OPTIONS]

  --url URL   what to ask; without a path: /health
  OPTIONS     as for serve, and as there from the environment and the configuration file: they say
              where the server listens. A server on another port needs the same --port here.

Exit status: 0 when it answers 200 within 3 seconds, 1 when not, 64 for a wrong call.
";

/// How long each step of asking may take. A supervisor's own time-out is longer, and would not say why.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs it with the words behind the command.
pub(super) fn run(words: impl IntoIterator<Item = String>, env: &BTreeMap<String, String>) -> ExitCode {
    let place = match place(words, env) {
        Ok(Some(place)) => place,
        Ok(None) => {
            // Somebody who closed the pipe has read enough.
            let _ = write!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            complain(&why);
            return ExitCode::from(USAGE_ERROR);
        }
    };
    let trouble = match ask::get(&place, PATIENCE) {
        Ok(answer) if answer.status == 200 => return ExitCode::SUCCESS,
        Ok(answer) => format!("answers {}", answer.status),
        Err(trouble) => trouble.to_string(),
    };
    complain(&format!("http://{}{} {trouble}", place.authority(), place.path));
    ExitCode::FAILURE
}

/// What to ask; `None`: the usage is wanted.
fn place(words: impl IntoIterator<Item = String>, env: &BTreeMap<String, String>) -> Result<Option<Place>, String> {
    let (mut options, mut url) = (Vec::new(), None);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--url" => url = Some(words.next().ok_or("--url needs a value")?),
            _ => match word.strip_prefix("--url=") {
                Some(value) => url = Some(value.to_owned()),
                None => options.push(word),
            },
        }
    }
    if let Some(url) = url {
        return match options.first() {
            Some(option) => Err(format!("{option} means nothing beside --url")),
            None => Place::parse(&url, &Config::default().server.health_path).map(Some),
        };
    }
    match config::parse(options, env).map_err(|error| error.to_string())?.command {
        Command::Serve(config) => of_server(&config).map(Some),
        _ => Err("healthcheck takes options of the server, and no other command".to_owned()),
    }
}

/// Where a server with this configuration answers.
fn of_server(config: &Config) -> Result<Place, String> {
    let server = &config.server;
    if server.port == 0 {
        return Err("--port 0 is chosen by the server when it starts: give --url".to_owned());
    }
    let host = server.host.trim_matches(['[', ']']);
    let host = match host.parse() {
        Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Ipv6Addr::LOCALHOST.to_string(),
        // As the server has it.
        Err(_) if host == "localhost" => Ipv4Addr::LOCALHOST.to_string(),
        _ => host.to_owned(),
    };
    Ok(Place { host, port: server.port, path: server.health_path.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &str, env: &[(&str, &str)]) -> Result<String, String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let place = place(words.split_whitespace().map(str::to_owned), &env)?.expect("a place");
        Ok(format!("{}{}", place.authority(), place.path))
    }

    #[test]
    fn what_is_asked_follows_from_the_configuration_of_the_server() {
        let none: &[(&str, &str)] = &[];
        for (words, env, expected) in [
            ("", none, "127.0.0.1:8080/health"),
            ("--host 0.0.0.0 --port 80", none, "127.0.0.1:80/health"),
            ("--host :: --health-path /up", none, "[::1]:8080/up"),
            ("", &[("CABLEWAY_HOST", "::1"), ("PORT", "3334")], "[::1]:3334/health"),
            ("--host 10.0.0.7", &[("ANYCABLE_PORT", "7")], "10.0.0.7:7/health"),
            ("--url http://10.0.0.7:7", &[("PORT", "3334")], "10.0.0.7:7/health"),
            ("--url=10.0.0.7:7/ready", none, "10.0.0.7:7/ready"),
        ] {
            assert_eq!(
                asked(&format!("--ignore-config-path {words}").replace("--ignore-config-path --url", "--url"), env),
                Ok(expected.to_owned()),
                "{words}"
            );
        }
    }

    #[test]
    fn wrong_calls_are_named() {
        for (words, part) in [
            ("--url", "needs a value"),
            ("--url x --port 7", "--port means nothing"),
            ("--port 0", "give --url"),
            ("--prot 7", "--port"),
            ("config", "no other command"),
        ] {
            let error = asked(words, &[]).expect_err(words);
            assert!(error.contains(part), "{words}: {error}");
        }
    }
}
