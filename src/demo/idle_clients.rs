//! Thousands of idle clients that anyone can start from the demo page.
//!
//! They run in a process of their own, this program again under a hidden command, because their half of every
//! connection would otherwise count as memory of the server and spoil the figure that the page is there to show.
//! The process reports on its standard output, one JSON object a line, and ends when its standard input does: on
//! release, and whenever the process that started it ends, however that happens, also when another one has taken over from that.

mod hold;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use hold::hold;

/// The hidden command under which this program holds idle clients: `cableway demo-idle-clients ADDRESS PATH CONNECTIONS`.
pub const COMMAND: &str = "demo-idle-clients";

/// Most idle clients at once. Each end of a connection takes a descriptor and about 3.7 KB of kernel memory.
pub const CONNECTIONS_MAX: usize = 5_000;

/// Longest report that is read; more ends the holding process.
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

/// The idle clients as the page sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// How many were asked for.
    pub wanted: usize,
    /// Whether they were released and are being closed.
    pub leaving: bool,
    /// How many there are.
    #[serde(flatten)]
    pub report: Report,
}

/// Why no idle clients were started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdleClientsError {
    /// See [`CONNECTIONS_MAX`].
    #[error("There can be 1 to {CONNECTIONS_MAX} idle clients.")]
    Size,
    /// There are some already, or some that are still being closed.
    #[error("There are idle clients already.")]
    Taken,
    /// The holding process could not be started.
    #[error("The idle clients could not be started: {0}.")]
    Start(String),
}

/// At most one process with idle clients. Dropping this ends it.
#[derive(Default)]
pub struct IdleClients(Arc<Mutex<Option<HoldingProcess>>>);

struct HoldingProcess {
    wanted: usize,
    report: Report,
    /// Closing it ends the holding process. `None` once it was.
    stdin: Option<ChildStdin>,
}

fn lock(process: &Mutex<Option<HoldingProcess>>) -> MutexGuard<'_, Option<HoldingProcess>> {
    // Nothing panics under it, and a plain value cannot be half-changed.
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IdleClients {
    /// Starts `connections` idle clients of a WebSocket endpoint. Takes some milliseconds, for starting a process.
    ///
    /// # Errors
    /// The size is not allowed, there are some already, or the process cannot be started.
    pub fn start(&self, address: SocketAddr, path: &str, connections: usize) -> Result<(), IdleClientsError> {
        // The running program, even if its file has been replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("cableway").args([COMMAND, &address.to_string(), path, &connections.to_string()]);
        self.start_with(command, connections)
    }

    fn start_with(&self, mut command: Command, connections: usize) -> Result<(), IdleClientsError> {
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            return Err(IdleClientsError::Size);
        }
        let mut process = lock(&self.0);
        if process.is_some() {
            return Err(IdleClientsError::Taken);
        }
        let start = |error: std::io::Error| IdleClientsError::Start(error.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(start)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let shared = Arc::clone(&self.0);
        // It blocks on the pipe, so it has a thread, with as small a stack as reading lines needs.
        let watch = std::thread::Builder::new().name("demo-idle".to_owned()).stack_size(128 << 10);
        let watching = watch.spawn(move || {
            if let Some(stdout) = stdout {
                read_reports(stdout, &shared);
            }
            // Its output has ended, so it is ending, too. Reaped first: only then may another be started.
            let _ = child.kill();
            let _ = child.wait();
            *lock(&shared) = None;
        });
        watching.map_err(start)?;
        *process = Some(HoldingProcess { wanted: connections, report: Report::default(), stdin });
        Ok(())
    }

    /// Lets the idle clients go. Without any, nothing happens.
    pub fn release(&self) {
        if let Some(process) = &mut *lock(&self.0) {
            process.stdin = None;
        }
    }

    /// How many there are, if any were started.
    pub fn status(&self) -> Option<Status> {
        let process = lock(&self.0);
        let HoldingProcess { wanted, report, stdin } = process.as_ref()?;
        Some(Status { wanted: *wanted, leaving: stdin.is_none(), report: report.clone() })
    }
}

impl Drop for IdleClients {
    fn drop(&mut self) {
        self.release();
    }
}

/// Takes over every report until there are no more, or one is none.
fn read_reports(stdout: ChildStdout, process: &Mutex<Option<HoldingProcess>>) {
    let mut stdout = BufReader::with_capacity(REPORT_BYTES_MAX as usize, stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(REPORT_BYTES_MAX).read_until(b'\n', &mut line);
        let Ok(report) = serde_json::from_slice(&line) else { return };
        match (read, &mut *lock(process)) {
            (Ok(_), Some(process)) => process.report = report,
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
    fn idle_clients_are_held_until_they_are_released() {
        let clients = IdleClients::default();
        clients.start_with(shell(r#"echo '{"open":3,"failed":1,"error":"no room"}'; cat"#), 4).unwrap();
        let status = until(|| clients.status().filter(|status| status.report.open > 0));
        let report = Report { open: 3, failed: 1, error: Some("no room".to_owned()) };
        assert_eq!(status, Status { wanted: 4, leaving: false, report });
        assert_eq!(clients.start_with(shell("cat"), 1), Err(IdleClientsError::Taken));
        clients.release();
        until(|| clients.status().is_none().then_some(()));
        clients.start_with(shell("cat"), 1).unwrap();
    }

    #[test]
    fn a_process_that_ends_or_reports_nonsense_makes_room_for_another() {
        let clients = IdleClients::default();
        for script in ["exit 1", "echo nonsense; exec cat", "exec cat /dev/zero"] {
            clients.start_with(shell(script), 1).unwrap();
            until(|| clients.status().is_none().then_some(()));
        }
    }

    #[test]
    fn sizes_outside_the_limits_and_missing_programs_are_errors() {
        let clients = IdleClients::default();
        assert_eq!(clients.start_with(shell("cat"), 0), Err(IdleClientsError::Size));
        assert_eq!(clients.start_with(shell("cat"), CONNECTIONS_MAX + 1), Err(IdleClientsError::Size));
        assert!(matches!(clients.start_with(Command::new("/nonexistent"), 1), Err(IdleClientsError::Start(_))));
        assert_eq!(clients.status(), None);
    }
}
