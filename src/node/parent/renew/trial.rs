//! Whether another program could go on: it is started once, with the arguments of this process behind a command of its own, reads
//! its configuration and a copy of the state, and says what it thinks of them. A program that does not know the command refuses it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::config::Config;
use crate::link::local::Unfinished;
use crate::os::clock::Clock;
use crate::os::renew;

use super::given::{GivenParent, Renewed};
use super::sized;
use crate::node::parent::ports::Ports;
use crate::node::parent::relay::Relay;
use crate::node::upgrade::UpgradeError;

/// The command.
pub const COMMAND: &str = "try-renewal";

/// What the answer begins with if the program can go on; its version follows.
const OK: &str = "ok ";

/// Bytes of what the broker keeps that are tried, about: all of it looks alike.
pub(super) const BROKER_BYTES: u64 = 1 << 20;

/// Longest answer in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// How often it is looked whether the program has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What a supervisor has told this process, and a trial is not to hear.
const NOT_INHERITED: [&str; 7] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", renew::VARIABLE];

/// Has the program try it; gives its version.
pub(super) fn run(program: &Path, state: File, patience: Duration) -> Result<String, UpgradeError> {
    let cannot = |error: io::Error| UpgradeError::New(format!("{}: {error}", program.display()));
    let mut command = Command::new(program);
    command.arg(COMMAND).args(std::env::args_os().skip(1)).stdin(state).stdout(Stdio::piped());
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    let mut child = command.spawn().map_err(cannot)?;
    let clock = Clock::start();
    let status = loop {
        match child.try_wait().map_err(cannot)? {
            Some(status) => break status,
            None if clock.now().mono < patience => thread::sleep(LOOK_EVERY),
            None => {
                // Both fail only if it has ended by now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(UpgradeError::Late(patience, "try the state"));
            }
        }
    };
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(cannot)?;
    }
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default();
    match (status.success(), line.strip_prefix(OK), line) {
        (true, Some(version), _) => Ok(version.to_owned()),
        (false, None, why) if !why.is_empty() => Err(UpgradeError::New(why.to_owned())),
        _ => Err(UpgradeError::New(format!("{} ended ({status}); its log says why", program.display()))),
    }
}

/// The other side of it: standard input is the state, and the line that this gives belongs on standard output.
///
/// # Errors
/// Why this program, with this configuration, cannot go on; it belongs there, too.
pub fn try_renewal(config: Config) -> Result<String, String> {
    let state = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(io::Error::from);
    let state = state.and_then(renew::is_sealed).map_err(|error| format!("standard input is no state: {error}"))?;
    let (broker, given) = Renewed::of(state)?.read(&config)?;
    let GivenParent { of, relay, ports, .. } = given;
    sized(&config, of).map_err(|error| explained(&error))?;
    Ports::try_renewed(&config, &ports).map_err(|error| explained(&error))?;
    // With links that lead nowhere.
    let links = relay.numbers().map(|number| Ok((number, (UnixStream::pair()?.0, Unfinished::default()))));
    let links = links.collect::<io::Result<HashMap<_, _>>>().map_err(|error| error.to_string())?;
    Relay::import(&config, broker, relay, links)?;
    Ok(format!("{OK}{}", env!("CARGO_PKG_VERSION")))
}

/// With its cause, in one line.
fn explained(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
