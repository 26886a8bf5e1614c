//! What `cableway doctor` is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::{self, Command};
use crate::doctor::{Backend, Goal};

pub(super) const USAGE: &str = "\
cableway doctor: whether this machine holds so many connections, and what to set if not

Usage:
  cableway doctor --connections N [--backend grpc|http|pass] [--interface eth0] [--json]
                  [--write DIR] [--apply] [options of the server]

  --connections N      clients, like 1000000, 1_000_000 or 1M
  --backend KIND       how the app is reached: grpc [default], http, or pass (frames of each
                       client go to a socket of its own)
  --backends N         addresses of the app, with --backend pass   [default 1]
  --interface NAME     the network card   [default: that of the default route]
  --explain            a reason for every check, also for those that are passed
  --json               one JSON document instead of the table
  --write DIR          write files for sysctl.d, limits.d, modules-load.d, systemd and nftables
  --apply              set now what can be set now (root), and show what was and what is
  --facts              print what was read of the machine as JSON, and end
  --from FILE          judge a machine by what --facts printed there

Options of the server, its variables and its file count as for `cableway serve`: --port, --backlog,
--acceptors, --max-conn, --ping-interval, --rpc-host and others. Without --write and --apply nothing
is written. Exit status: 0 the goal is met, 1 it is not, 2 wrong call.
";

/// What is wanted.
#[derive(Debug, PartialEq)]
pub(super) enum Wanted {
    /// The usage.
    Help,
    /// A look at a machine.
    Look(Box<Asked>),
}

/// A look.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Asked {
    /// What the machine should hold; `None`: only the facts.
    pub goal: Option<Goal>,
    /// The network card.
    pub interface: Option<String>,
    /// One document.
    pub json: bool,
    /// Reasons for everything.
    pub explain: bool,
    /// Where to write files.
    pub write: Option<PathBuf>,
    /// Whether to set what can be set.
    pub apply: bool,
    /// Recorded facts.
    pub from: Option<PathBuf>,
}

/// Reads the words behind `doctor`. What is no option of its own is one of the server.
pub(super) fn read(words: impl IntoIterator<Item = String>, env: &BTreeMap<String, String>) -> Result<Wanted, String> {
    let mut words = words.into_iter();
    let mut asked = Asked::default();
    let mut of_server = vec!["serve".to_owned()];
    let (mut connections, mut backend, mut addresses, mut facts) = (None, Backend::Grpc, None, false);
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let is_switch = matches!(name, "--json" | "--explain" | "--apply" | "--facts");
        if is_switch && value.is_some() {
            return Err(format!("{name} takes no value"));
        }
        let mut value = || value.clone().or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value"));
        match name {
            "--help" | "-h" => return Ok(Wanted::Help),
            "--json" => asked.json = true,
            "--explain" => asked.explain = true,
            "--apply" => asked.apply = true,
            "--facts" => facts = true,
            "--connections" => connections = Some(count(name, &value()?)?),
            "--backends" => addresses = Some(count(name, &value()?)?),
            "--backend" => backend = kind(&value()?)?,
            "--interface" => asked.interface = Some(value()?),
            "--write" => asked.write = Some(value()?.into()),
            "--from" => asked.from = Some(value()?.into()),
            _ => of_server.push(word),
        }
    }
    if asked.from.is_some() && (asked.apply || facts || asked.interface.is_some()) {
        return Err("--from is about another machine: --apply, --facts and --interface are about this one".to_owned());
    }
    if facts {
        return Ok(Wanted::Look(Box::new(asked)));
    }
    let connections = connections.ok_or("--connections N is missing: how many clients should it hold?")?;
    if addresses.is_some() && backend != Backend::Pass {
        return Err("--backends counts only with --backend pass".to_owned());
    }
    let invocation = config::parse(of_server, env).map_err(|error| error.to_string())?;
    let Command::Serve(config) = invocation.command else {
        return Err("only options of `serve` can stand beside those of doctor".to_owned());
    };
    let goal = Goal::new(connections, backend, &config);
    asked.goal = Some(Goal { backend_addresses: addresses.unwrap_or(1), ..goal });
    Ok(Wanted::Look(Box::new(asked)))
}

fn kind(word: &str) -> Result<Backend, String> {
    match word {
        "grpc" => Ok(Backend::Grpc),
        "http" => Ok(Backend::Http),
        "pass" => Ok(Backend::Pass),
        _ => Err(format!("--backend {word}: grpc, http or pass")),
    }
}

/// More clients than any machine has sockets.
const COUNT_MAX: u64 = 1_000_000_000;

/// A number, with `_` or `,` between digits, and `k` or `M` behind it.
fn count(name: &str, word: &str) -> Result<u64, String> {
    let plain: String = word.chars().filter(|c| !matches!(c, '_' | ',')).collect();
    let (digits, factor) = match plain.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => plain.strip_suffix(['m', 'M']).map_or((plain.as_str(), 1), |digits| (digits, 1_000_000)),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match number {
        Some(number @ 1..=COUNT_MAX) => Ok(number),
        _ => Err(format!("{name} {word}: a number from 1 to {COUNT_MAX}, like 1000000, 1_000_000 or 1M")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Wanted, String> {
        read(line.split_whitespace().map(str::to_owned), &BTreeMap::new())
    }

    fn goal(line: &str) -> Goal {
        match asked(line).unwrap() {
            Wanted::Look(asked) => asked.goal.expect("a goal"),
            Wanted::Help => panic!("no help is wanted"),
        }
    }

    #[test]
    fn numbers_are_written_as_people_do() {
        for word in ["1000000", "1_000_000", "1,000,000", "1M", "1000k"] {
            assert_eq!(goal(&format!("--connections {word}")).connections, 1_000_000, "{word}");
        }
    }

    #[test]
    fn options_of_the_server_count() {
        let goal = goal("--connections=5 --port 80 --backlog 77 --backend pass --backends 3 --ping-interval 30");
        assert_eq!((goal.port, goal.backlog, goal.backend, goal.backend_addresses), (80, 77, Backend::Pass, 3));
        assert_eq!(goal.ping_interval.as_secs(), 30);
        assert!(goal.own_ports.contains(&80), "{goal:?}");
    }

    #[test]
    fn a_wrong_call_is_told_what_is_wrong() {
        for (line, part) in [
            ("", "--connections"),
            ("--connections", "needs a value"),
            ("--connections 0", "a number from 1"),
            ("--connections -5", "a number from 1"),
            ("--connections 99999999999999999999", "a number from 1"),
            ("--connections 10 --backend carrier-pigeon", "grpc, http or pass"),
            ("--connections 10 --backends 3", "--backend pass"),
            ("--connections 10 --json=yes", "takes no value"),
            ("--connections 10 --apply --from x", "another machine"),
            ("--connections 10 --portt 80", "--portt"),
            ("--connections 10 demo", "demo"),
        ] {
            let why = asked(line).expect_err(line);
            assert!(why.contains(part), "{line}: {why}");
        }
        assert_eq!(asked("--connections 10 --help"), Ok(Wanted::Help));
    }
}
