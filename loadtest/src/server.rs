//! Servers that this tool starts itself: a process with a log that only a failure shows, ended when it is dropped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::observe;

/// How long a server may take until it accepts.
pub const START_MAX: Duration = Duration::from_secs(15);

/// How long it may take until it is gone.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Between a request to end and the next one, which tells a draining server not to wait.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// A started server.
pub struct Process {
    child: Child,
    log: File,
}

impl Process {
    /// Starts it. Ctrl-C does not reach it: it is for us, and we end our servers.
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let log = nameless_file()?;
        Self::spawn_with(command.stdout(log.try_clone()?), log)
    }

    /// Starts one whose first line on standard output says where it listens, and waits for that line.
    pub fn spawn_talking(command: &mut Command, timeout: Duration) -> anyhow::Result<(Self, String)> {
        let mut process = Self::spawn_with(command.stdout(Stdio::piped()), nameless_file()?)?;
        let mut output = BufReader::new(process.child.stdout.take().context("the server has no output")?);
        let (sender, first_line) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = output.read_line(&mut line);
            let _ = sender.send(line);
            // Read on, or the server would wait for us once the pipe is full. Ends with the server.
            std::io::copy(&mut output, &mut std::io::sink())
        });
        match first_line.recv_timeout(timeout) {
            Ok(line) if !line.is_empty() => Ok((process, line)),
            Ok(_) => bail!("the server ended before it listened:\n{}", process.log_tail()),
            Err(_) => bail!("the server said nothing within {timeout:?}:\n{}", process.log_tail()),
        }
    }

    fn spawn_with(command: &mut Command, log: File) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, log })
    }

    /// Waits until it accepts on an address that is its own.
    pub fn await_accepting(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended at once with {status}:\n{}", self.log_tail());
            }
            if start.elapsed() > START_MAX {
                bail!("the server does not accept on {address}:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it logged.
    pub fn log_tail(&self) -> String {
        let mut text = Vec::new();
        let mut log = &self.log;
        let length = log.seek(SeekFrom::End(0)).unwrap_or(0);
        let _ = log.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let _ = log.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Asks it, and what it has started, to end, and does not wait.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }

    /// Whether it and all that it has started have ended.
    fn ended(&mut self) -> bool {
        if matches!(self.child.try_wait(), Ok(None)) {
            return false;
        }
        let left = observe::processes_of_group(self.child.id()).unwrap_or_default();
        left.into_iter().all(has_ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended() {
            return;
        }
        self.ask_to_end();
        std::thread::sleep(ASK_AGAIN_AFTER);
        self.ask_to_end();
        let start = Instant::now();
        while !self.ended() {
            if start.elapsed() > STOP_MAX {
                self.signal(Signal::KILL);
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether a process is gone, or has ended and nobody has asked for its status yet (a zombie, proc(5)).
pub fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// `cableway serve` on loopback, without the variables of a deployment, which must not change what is measured. `command` is
/// the binary, or what runs it.
pub fn cableway(mut command: Command, port: u16, publish_port: u16) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("ANYCABLE_") || text.starts_with("CABLEWAY_") {
            command.env_remove(&name);
        }
    }
    command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--http-broadcast-port", &publish_port.to_string()]);
    command
}

/// A loopback address whose port was free a moment ago, for a server that must be told one.
pub fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// A file without a name, for a log.
fn nameless_file() -> anyhow::Result<File> {
    let path =
        std::env::temp_dir().join(format!("cableway-loadtest-{}-{}", std::process::id(), crate::clock::now_ns()));
    let file = File::options().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
