//! The server that is upgraded again and again: its first process is started here, the others start each other.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};

use crate::control::Control;
use crate::observe::{self, ProcessCost};
use crate::server::{self, Process};

/// How long an old process may take to end after it has handed over.
const END_MAX: Duration = Duration::from_secs(60);

/// How often something is looked at that tells nobody when it changes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A running server.
pub struct Serving {
    process: Process,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where publications are posted.
    pub publish_url: String,
    control: Control,
    /// The process that serves.
    pub pid: u32,
}

impl Serving {
    /// Starts it.
    pub fn start(program: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        let (address, publish) = (server::free_address()?, server::free_address()?);
        let control = Control::new(program);
        let mut command = server::cableway(Command::new(program), address.port(), publish.port());
        command.args(["--metrics-port", &publish.port().to_string()]).args(control.arguments());
        let mut process = Process::spawn(command.args(arguments))?;
        process.await_accepting(address)?;
        process.await_accepting(publish)?;
        let pid = process.pid();
        Ok(Self { process, address, publish_url: format!("http://{publish}/_broadcast"), control, pid })
    }

    /// Upgrades it as a person does, and gives what that printed. Another process serves afterwards, and the old one ends.
    pub fn upgrade(&mut self) -> anyhow::Result<String> {
        let old = self.pid;
        let said = self.control.upgrade();
        let said = said.map_err(|error| anyhow!("{error:#}\nthe log ends:\n{}", self.process.log_tail()))?;
        self.pid = self.control.pid()?;
        ensure!(self.pid != old, "the process is the same");
        self.await_end(old)?;
        Ok(said)
    }

    fn await_end(&self, pid: u32) -> anyhow::Result<()> {
        let start = Instant::now();
        while !server::has_ended(pid) {
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
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}
