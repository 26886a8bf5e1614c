//! A crowd: thousands of idle clients that anyone can call up from the demo page.
//!
//! They live in a process of their own, this program again under a hidden command, because their half of every
//! connection would otherwise count as memory of the server and spoil the figure that the page is there to show.
//! The process reports on its standard output, one JSON object a line, and ends when its standard input does: on
//! release, and whenever the server ends, however that happens.

mod hold;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use hold::hold;

/// The hidden command under which this program holds a crowd: `cableway demo-crowd ADDRESS PATH CONNECTIONS`.
pub const COMMAND: &str = "demo-crowd";

/// Most connections in a crowd. Each end takes a descriptor and about 3.7 KB of kernel memory.
pub const CONNECTIONS_MAX: usize = 5_000;

/// Longest report that is read; more ends the crowd.
const REPORT_BYTES_MAX: u64 = 1024;

/// What the holding process says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Connections that are subscribed and idle now.
    pub open: usize,
    /// Connections that could not be opened, or were closed by the server.
    pub failed: usize,
    /// Why the last of them was.
    pub error: Option<String>,
}

/// A crowd as the page sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// How many were asked for.
    pub wanted: usize,
    /// Whether it was released and is going away.
    pub leaving: bool,
    /// Where it stands.
    #[serde(flatten)]
    pub report: Report,
}

/// Why no crowd was called up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrowdError {
    /// See [`CONNECTIONS_MAX`].
    #[error("A crowd has 1 to {CONNECTIONS_MAX} connections.")]
    Size,
    /// There is one already, or one is still going away.
    #[error("There is a crowd already.")]
    Taken,
    /// The holding process could not be started.
    #[error("The crowd could not be started: {0}.")]
    Start(String),
}

/// At most one crowd. Dropping it ends the crowd.
#[derive(Default)]
pub struct Crowd(Arc<Mutex<Option<Held>>>);

struct Held {
    wanted: usize,
    report: Report,
    /// Closing it ends the holding process. `None` once it was.
    stdin: Option<ChildStdin>,
}

fn lock(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    // Nothing panics under it, and a plain value cannot be half-changed.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crowd {
    /// Calls up a crowd of `connections` to a WebSocket endpoint. Takes some milliseconds, for starting a process.
    ///
    /// # Errors
    /// The size is not allowed, there is a crowd, or the process cannot be started.
    pub fn call(&self, address: SocketAddr, path: &str, connections: usize) -> Result<(), CrowdError> {
        // The running program, even if its file has been replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("cableway").args([COMMAND, &address.to_string(), path, &connections.to_string()]);
        self.call_with(command, connections)
    }

    fn call_with(&self, mut command: Command, connections: usize) -> Result<(), CrowdError> {
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            return Err(CrowdError::Size);
        }
        let mut held = lock(&self.0);
        if held.is_some() {
            return Err(CrowdError::Taken);
        }
        let start = |error: std::io::Error| CrowdError::Start(error.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(start)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let shared = Arc::clone(&self.0);
        // It blocks on the pipe, so it has a thread, with as small a stack as reading lines needs.
        let watch = std::thread::Builder::new().name("demo-crowd".to_owned()).stack_size(128 << 10);
        let watching = watch.spawn(move || {
            if let Some(stdout) = stdout {
                read_reports(stdout, &shared);
            }
            // Its output has ended, so it is ending, too. Reaped first: only then is there room for another crowd.
            let _ = child.kill();
            let _ = child.wait();
            *lock(&shared) = None;
        });
        watching.map_err(start)?;
        *held = Some(Held { wanted: connections, report: Report::default(), stdin });
        Ok(())
    }

    /// Lets the crowd go. Without one, nothing happens.
    pub fn release(&self) {
        if let Some(held) = &mut *lock(&self.0) {
            held.stdin = None;
        }
    }

    /// Where the crowd stands, if there is one.
    pub fn status(&self) -> Option<Status> {
        let held = lock(&self.0);
        let Held { wanted, report, stdin } = held.as_ref()?;
        Some(Status { wanted: *wanted, leaving: stdin.is_none(), report: report.clone() })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.release();
    }
}

/// Takes over every report until there are no more, or one is none.
fn read_reports(stdout: ChildStdout, held: &Mutex<Option<Held>>) {
    let mut stdout = BufReader::with_capacity(REPORT_BYTES_MAX as usize, stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(REPORT_BYTES_MAX).read_until(b'\n', &mut line);
        let Ok(report) = serde_json::from_slice(&line) else { return };
        match (read, &mut *lock(held)) {
            (Ok(_), Some(held)) => held.report = report,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// Looks until it is so: another process decides when, and tells nobody. Between two looks it sleeps, for 20 s in
    /// all.
    fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        for _ in 0..4_000 {
            if let Some(found) = look() {
                return found;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("what was waited for has not come");
    }

    #[test]
    fn a_crowd_is_held_until_it_is_released() {
        let crowd = Crowd::default();
        crowd.call_with(shell(r#"echo '{"open":3,"failed":1,"error":"no room"}'; cat"#), 4).unwrap();
        let status = until(|| crowd.status().filter(|status| status.report.open > 0));
        let report = Report { open: 3, failed: 1, error: Some("no room".to_owned()) };
        assert_eq!(status, Status { wanted: 4, leaving: false, report });
        assert_eq!(crowd.call_with(shell("cat"), 1), Err(CrowdError::Taken));
        crowd.release();
        until(|| crowd.status().is_none().then_some(()));
        crowd.call_with(shell("cat"), 1).unwrap();
    }

    #[test]
    fn a_crowd_that_ends_or_babbles_makes_room_for_another() {
        let crowd = Crowd::default();
        for script in ["exit 1", "echo nonsense; exec cat", "exec cat /dev/zero"] {
            crowd.call_with(shell(script), 1).unwrap();
            until(|| crowd.status().is_none().then_some(()));
        }
    }

    #[test]
    fn sizes_outside_the_limits_and_missing_programs_are_errors() {
        let crowd = Crowd::default();
        assert_eq!(crowd.call_with(shell("cat"), 0), Err(CrowdError::Size));
        assert_eq!(crowd.call_with(shell("cat"), CONNECTIONS_MAX + 1), Err(CrowdError::Size));
        assert!(matches!(crowd.call_with(Command::new("/nonexistent"), 1), Err(CrowdError::Start(_))));
        assert_eq!(crowd.status(), None);
    }
}
