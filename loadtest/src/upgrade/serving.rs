//! The server that is upgraded again and again: its first process is started here, the others start each other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::observe::{self, ProcessCost};
use crate::server::{self, Process};

/// How long an old process may take to end after it has handed over.
const END_MAX: Duration = Duration::from_secs(60);

/// How often something is looked at that tells nobody when it changes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A running server.
pub struct Serving {
    process: Process,
    program: PathBuf,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where publications are posted.
    pub publish_url: String,
    control: PathBuf,
    /// The process that serves.
    pub pid: u32,
}

impl Serving {
    /// Starts it.
    pub fn start(program: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        let (address, publish) = (server::free_address()?, server::free_address()?);
        let control = std::env::temp_dir().join(format!("cableway-loadtest-{}.sock", std::process::id()));
        let mut command = server::cableway(Command::new(program), address.port(), publish.port());
        command.args(["--metrics-port", &publish.port().to_string()]).arg("--control-socket").arg(&control);
        let mut process = Process::spawn(command.args(arguments))?;
        process.await_accepting(address)?;
        process.await_accepting(publish)?;
        let pid = process.pid();
        Ok(Self {
            process,
            program: program.to_owned(),
            address,
            publish_url: format!("http://{publish}/_broadcast"),
            control,
            pid,
        })
    }

    /// Upgrades it as a person does, and gives what that printed. Another process serves afterwards, and the old one ends.
    pub fn upgrade(&mut self) -> anyhow::Result<String> {
        let old = self.pid;
        let mut command = Command::new(&self.program);
        let output = command.args(["upgrade", "--control-socket"]).arg(&self.control).output()?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            let log = self.process.log_tail();
            bail!("the upgrade was refused ({}): {}\nthe log ends:\n{log}", output.status, said(&output.stderr));
        }
        self.pid = self.status_pid()?;
        ensure!(self.pid != old, "the process is the same");
        self.await_end(old)?;
        Ok(said(&output.stdout))
    }

    /// The process that answers at the control socket.
    fn status_pid(&self) -> anyhow::Result<u32> {
        let mut stream = UnixStream::connect(&self.control).context("the control socket")?;
        stream.set_read_timeout(Some(END_MAX))?;
        stream.write_all(b"{\"command\":\"status\"}\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let status: serde_json::Value = serde_json::from_str(&line)?;
        let pid = status["status"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.with_context(|| format!("the status is {line}"))
    }

    fn await_end(&mut self, pid: u32) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.process.is_running(pid) {
            ensure!(start.elapsed() < END_MAX, "the old process (pid {pid}) does not end");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Memory and descriptors of the process that serves.
    pub fn cost(&self) -> anyhow::Result<ProcessCost> {
        observe::process_cost(self.pid).context("the server is gone")
    }

    /// The end of what all of its processes logged.
    pub fn log_tail(&mut self) -> String {
        self.process.log_tail()
    }
}
