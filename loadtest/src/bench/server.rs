//! Starting and stopping the two sides of a comparison. Each listens on a free loopback port and ends with us.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Options;
use crate::observe::{self, ProcessCost};
use crate::protocol::Protocol;

/// How long a server may take until it accepts, and until it is gone.
const START_MAX: Duration = Duration::from_secs(15);
const STOP_MAX: Duration = Duration::from_secs(10);

/// Which side of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The server under test, or the yardstick again when none was given.
    Server,
    /// The yardstick.
    Bare,
}

impl Side {
    /// Both, in the order of a round. Rounds alternate it, so that neither side always comes second.
    pub fn both(round: u32) -> [Self; 2] {
        if round.is_multiple_of(2) { [Self::Server, Self::Bare] } else { [Self::Bare, Self::Server] }
    }
}

/// What a scenario needs of the server.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// What the clients speak.
    pub protocol: Protocol,
    /// Heartbeat.
    pub ping_interval: Duration,
    /// The app server, for commands.
    pub app: Option<SocketAddr>,
}

impl Want {
    /// Plain WebSockets, or Action Cable without an app, that are left in peace.
    pub fn quiet(protocol: Protocol) -> Self {
        Self { protocol, ping_interval: Duration::from_secs(3600), app: None }
    }
}

/// A started server. Dropping it ends it.
pub struct Running {
    child: Child,
    log: File,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where publications are posted.
    pub publish_url: String,
    /// Whether a publication is the frame's text itself (the yardstick) or AnyCable's JSON.
    pub publishes_plain_text: bool,
}

impl Running {
    /// Starts a side.
    pub fn start(side: Side, options: &Options, want: &Want) -> anyhow::Result<Self> {
        match (side, &options.server) {
            (Side::Server, Some(path)) => Self::start_cableway(path.clone(), options, want),
            _ => Self::start_bare(options, want),
        }
    }

    fn start_bare(options: &Options, want: &Want) -> anyhow::Result<Self> {
        let mut command = Command::new(options.yardstick()?);
        command.args(["bare", "--listen", "127.0.0.1:0", "--backlog", &options.backlog.to_string()]);
        match want.protocol {
            Protocol::Raw => command.args(["--protocol", "raw", "--echo"]),
            protocol => {
                command.args(["--protocol", protocol.name(), "--ping-interval"]);
                command.arg(want.ping_interval.as_secs_f64().to_string())
            }
        };
        let log = tempfile()?;
        let mut child = command
            .arg("--die-with-parent")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot start the yardstick")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the yardstick has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let mut running = Self {
            child,
            log,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            publish_url: String::new(),
            publishes_plain_text: true,
        };
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let ["listening", address, "control", control] = words[..] else {
            bail!("the yardstick did not start: {line}{}", running.log_tail());
        };
        running.address = address.parse()?;
        running.publish_url = format!("http://{control}/_broadcast");
        Ok(running)
    }

    fn start_cableway(path: PathBuf, options: &Options, want: &Want) -> anyhow::Result<Self> {
        let (port, publish_port) = (free_port()?, free_port()?);
        let mut command = Command::new(&path);
        command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string(), "--echo-path", "/echo"]);
        command.args(["--http-broadcast-port", &publish_port.to_string(), "--public"]);
        command.args(["--backlog", &options.backlog.to_string()]);
        command.args(["--ping-interval", &format!("{}s", want.ping_interval.as_secs())]);
        match want.app {
            Some(app) => {
                command.args(["--rpc-host", &app.to_string()]);
                command.args(["--rpc-concurrency", &options.rpc_concurrency.to_string()])
            }
            None => command.args(["--norpc", "--noauth"]),
        };
        command.args(&options.server_args);
        // A deployment's variables must not change what is measured.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("ANYCABLE_") || text.starts_with("CABLEWAY_") {
                command.env_remove(&name);
            }
        }
        let log = tempfile()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let mut running = Self {
            child,
            log,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            publish_url: format!("http://127.0.0.1:{publish_port}/_broadcast"),
            publishes_plain_text: false,
        };
        let start = Instant::now();
        while TcpStream::connect(running.address).is_err() {
            if let Some(status) = running.child.try_wait()? {
                bail!("{} ended at once with {status}:\n{}", path.display(), running.log_tail());
            }
            if start.elapsed() > START_MAX {
                let (address, log) = (running.address, running.log_tail());
                bail!("{} does not accept on {address}:\n{log}", path.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its memory and CPU now.
    pub fn cost(&self) -> anyhow::Result<ProcessCost> {
        observe::process_cost(self.pid()).context("the server is gone")
    }

    /// Its CPU time so far, in microseconds.
    pub fn cpu_us(&self) -> anyhow::Result<f64> {
        Ok(observe::cpu_time(self.pid()).context("the server is gone")?.as_secs_f64() * 1e6)
    }

    /// The end of what it logged.
    pub fn log_tail(&mut self) -> String {
        let mut text = Vec::new();
        let length = self.log.seek(SeekFrom::End(0)).unwrap_or(0);
        let _ = self.log.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let _ = self.log.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Twice: the second one tells a draining server not to wait.
            let _ = kill_process(pid, Signal::TERM);
            std::thread::sleep(Duration::from_millis(50));
            let _ = kill_process(pid, Signal::TERM);
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > STOP_MAX {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A port that was free a moment ago, for a server that must be told one.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A file without a name, for a log that only a failure shows.
fn tempfile() -> anyhow::Result<File> {
    let path =
        std::env::temp_dir().join(format!("cableway-loadtest-{}-{}", std::process::id(), crate::clock::now_ns()));
    let file = File::options().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
