//! `cableway upgrade`: asks a running server at its control socket to hand all of its connections to a new process, and tells what
//! becomes of it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use super::{USAGE_ERROR, complain};
use crate::config::{self, Command};
use crate::node::control::place;
use crate::node::control::talk::{Done, Line, Request, Status};
use crate::os::clock::Clock;
use crate::os::control_socket;

/// The command.
pub(super) const COMMAND: &str = "upgrade";

const USAGE: &str = "\
cableway upgrade: let a new process take over all connections of a running server

Usage:
  cableway upgrade [--check] [--wait SECONDS] [--control-socket PATH | OPTIONS]

  --check                only see whether the new program starts, takes the configuration, and understands
                         what it would be given; nothing changes
  --wait SECONDS         how long to wait for the end of it; it goes on without a reader (120)
  --control-socket PATH  the server's control socket
  OPTIONS                as for serve, and as there from the environment and the configuration file: they say
                         where the control socket is. A server on another port needs the same --port here.

The running process starts the program that lies where its own did, with its own arguments and environment. When the
new one has everything, the old one ends. If that fails, the old one goes on and nobody has noticed.

Exit status: 0 when it is done, 1 when the server goes on as it was (the reason is printed), 64 for a wrong call.
";

/// How long the end of an upgrade is waited for, without `--wait`.
const WAIT: Duration = Duration::from_secs(120);

/// How long the new process may take to answer at the control socket, and how often it is asked.
const SHOW_UP: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Longest line that is read of a server, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 16;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
struct Wanted {
    check: bool,
    wait: Duration,
    socket: PathBuf,
}

/// Runs it with the words behind the command.
pub(super) fn run(words: impl IntoIterator<Item = String>, env: &BTreeMap<String, String>) -> ExitCode {
    let wanted = match wanted(words, env) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => {
            // Somebody who closed the pipe has read enough.
            let _ = write!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(Wrong::Call(why)) => {
            complain(&why);
            return ExitCode::from(USAGE_ERROR);
        }
        Err(Wrong::Elsewhere(why)) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    match ask(&wanted) {
        Ok(done) => {
            say(&done.text);
            if let Some(pid) = done.pid {
                match shows_up(&wanted.socket, pid) {
                    Some(status) => say(&format!(
                        "process {pid} (cableway {}) serves {} connections",
                        status.version, status.websockets
                    )),
                    None => complain(&format!("process {pid} does not answer at {}", wanted.socket.display())),
                }
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            complain(&printable(&why));
            ExitCode::FAILURE
        }
    }
}

/// Why there is nothing to ask.
#[derive(Debug)]
enum Wrong {
    /// The words are wrong.
    Call(String),
    /// The configuration is, or there is no server.
    Elsewhere(String),
}

/// What is wanted; `None`: the usage.
fn wanted(words: impl IntoIterator<Item = String>, env: &BTreeMap<String, String>) -> Result<Option<Wanted>, Wrong> {
    let (mut options, mut check, mut wait, mut socket) = (Vec::new(), false, WAIT, None);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        let mut value = || {
            let value = value.map(str::to_owned).or_else(|| words.next());
            value.filter(|value| !value.is_empty()).ok_or_else(|| Wrong::Call(format!("{name} needs a value")))
        };
        match name {
            "--help" | "-h" => return Ok(None),
            "--check" => check = true,
            "--wait" => wait = seconds(&value()?)?,
            "--control-socket" => socket = Some(PathBuf::from(value()?)),
            _ => options.push(word),
        }
    }
    if let Some(socket) = socket {
        // The configuration is not read, so it may be as wrong as the upgrade is to find out.
        return match options.first() {
            Some(option) => Err(Wrong::Call(format!("{option} means nothing beside --control-socket"))),
            None => Ok(Some(Wanted { check, wait, socket })),
        };
    }
    let invocation = config::parse(options, env).map_err(|error| Wrong::Elsewhere(error.to_string()))?;
    let (Command::Serve(config) | Command::Demo(config)) = invocation.command else {
        return Err(Wrong::Call("upgrade takes options of the server, and no other command".to_owned()));
    };
    let socket = place::find(config.app.control_socket.as_deref(), config.server.port).map_err(Wrong::Elsewhere)?;
    Ok(Some(Wanted { check, wait, socket }))
}

fn seconds(text: &str) -> Result<Duration, Wrong> {
    let seconds = text.trim_end_matches('s').parse().ok().filter(|&seconds| seconds > 0.0);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| Wrong::Call(format!("--wait {text} is no number of seconds above 0")))
}

/// Asks for the upgrade, and prints what is told until it has ended.
fn ask(wanted: &Wanted) -> Result<Done, String> {
    let Wanted { check, wait, ref socket } = *wanted;
    let clock = Clock::start();
    let mut server = Server::connect(socket)?;
    server.send(&Request::Upgrade { check })?;
    loop {
        let left = wait.checked_sub(clock.now().mono).filter(|left| !left.is_zero());
        let left = left.ok_or_else(|| format!("it is not done after {wait:?}; the log of the server says more"))?;
        match server.line(left)? {
            Some(Line::Progress(text)) => say(&text),
            Some(Line::Done(done)) => return Ok(done),
            Some(Line::Error(why)) => return Err(why),
            Some(Line::Status(_)) => return Err("the server answers something else".to_owned()),
            None => {}
        }
    }
}

/// Waits until this process answers at the socket.
fn shows_up(socket: &Path, pid: u32) -> Option<Status> {
    let clock = Clock::start();
    while clock.now().mono < SHOW_UP {
        match status(socket) {
            Ok(status) if status.pid == pid => return Some(status),
            _ => thread::sleep(ASK_EVERY),
        }
    }
    None
}

fn status(socket: &Path) -> Result<Status, String> {
    let mut server = Server::connect(socket)?;
    server.send(&Request::Status {})?;
    match server.line(SHOW_UP)? {
        Some(Line::Status(status)) => Ok(status),
        _ => Err("the server answers something else".to_owned()),
    }
}

/// The server at its control socket.
struct Server {
    stream: BufReader<std::os::unix::net::UnixStream>,
    /// What came of the next line.
    begun: Vec<u8>,
}

impl Server {
    fn connect(socket: &Path) -> Result<Server, String> {
        let connected = control_socket::connect(socket).and_then(|stream| {
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(SHOW_UP))?;
            Ok(Server { stream: BufReader::new(stream), begun: Vec::new() })
        });
        let hint = |error: &io::Error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "; no server runs there",
            io::ErrorKind::PermissionDenied => "; it is for the user of the server and for root",
            _ => "",
        };
        connected.map_err(|error| format!("{}: {error}{}", socket.display(), hint(&error)))
    }

    fn send(&mut self, request: &Request) -> Result<(), String> {
        // Plain words always make JSON.
        let mut text = serde_json::to_vec(request).unwrap_or_default();
        text.push(b'\n');
        match self.stream.get_mut().write_all(&text) {
            // It has said why before it read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|error| format!("the server takes no request: {error}")),
        }
    }

    /// The next line; `None`: it did not come in this time.
    fn line(&mut self, within: Duration) -> Result<Option<Line>, String> {
        let failed = |error: io::Error| format!("the server has gone without an answer: {error}");
        self.stream.get_ref().set_read_timeout(Some(within)).map_err(failed)?;
        let room = LINE_BYTES_MAX - self.begun.len() as u64;
        match self.stream.by_ref().take(room).read_until(b'\n', &mut self.begun) {
            Ok(_) if self.begun.ends_with(b"\n") => {
                let line = std::mem::take(&mut self.begun);
                let line = serde_json::from_slice(&line);
                line.map(Some).map_err(|error| format!("the server answers what this version does not know: {error}"))
            }
            Ok(_) => Err("the server has gone without an answer; its log says more".to_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

/// A line on standard output; whoever closed it has read enough.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{}", printable(line));
}

/// What came from somewhere else, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Wanted, Wrong> {
        wanted(words.split_whitespace().map(str::to_owned), &BTreeMap::new()).map(|wanted| wanted.expect("no usage"))
    }

    #[test]
    fn words_are_read() {
        let socket = PathBuf::from("/x");
        for (words, check, wait) in [
            ("--control-socket /x", false, 120.0),
            ("--check --control-socket=/x --wait 1.5", true, 1.5),
            ("--control-socket /x --wait=7s", false, 7.0),
        ] {
            let expected = Wanted { check, wait: Duration::from_secs_f64(wait), socket: socket.clone() };
            assert_eq!(read(words).unwrap(), expected, "{words}");
        }
        assert!(wanted(["--help".to_owned()], &BTreeMap::new()).unwrap().is_none());
    }

    #[test]
    fn wrong_words_are_told_from_what_is_wrong_elsewhere() {
        for (words, part) in [
            ("--control-socket", "needs a value"),
            ("--wait 0 --control-socket /x", "above 0"),
            ("--wait soon --control-socket /x", "number of seconds"),
            ("--control-socket /x --port 7", "means nothing"),
            ("--ignore-config-path config", "no other command"),
        ] {
            match read(words) {
                Err(Wrong::Call(why)) => assert!(why.contains(part), "{words}: {why}"),
                other => panic!("{words}: {other:?}"),
            }
        }
        for (words, part) in [("--prot 7", "--port"), ("--ignore-config-path --port 1", "1.sock")] {
            match read(words) {
                Err(Wrong::Elsewhere(why)) => assert!(why.contains(part), "{words}: {why}"),
                other => panic!("{words}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\nc");
    }
}
