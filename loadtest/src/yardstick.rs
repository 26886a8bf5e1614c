//! The yardstick ([`crate::bare`]) in as many processes as a server has, all on one port, which the kernel spreads
//! connections over (`SO_REUSEPORT`, socket(7)).

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::protocol::Protocol;
use crate::server::{self, Process};

/// A running yardstick of several processes. Dropping it ends them.
pub struct Yardstick {
    processes: Vec<Process>,
    /// Where clients connect.
    pub address: SocketAddr,
}

impl Yardstick {
    /// Starts so many processes, each with its share of a thread for each core, and one at least: as Cableway divides its own.
    pub fn start(count: u32, protocol: Protocol, ping_interval_s: f64) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / count.max(1) as usize).max(1).to_string();
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut processes = Vec::new();
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        for _ in 0..count.max(1) {
            let mut command = Command::new(&program);
            command.args(["bare", "--die-with-parent", "--listen", &address.to_string(), "--shards", &threads]);
            command.args(["--protocol", protocol.name(), "--ping-interval", &ping_interval_s.to_string()]);
            let (process, line) = Process::spawn_talking(&mut command, server::START_MAX)?;
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let ["listening", listening, "control", _] = words[..] else { bail!("the yardstick said: {line}") };
            // The first one has chosen the port.
            address = listening.parse()?;
            processes.push(process);
        }
        Ok(Self { processes, address })
    }

    /// Its process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

impl Drop for Yardstick {
    fn drop(&mut self) {
        // All at once, not one after the other.
        self.processes.iter().for_each(Process::ask_to_end);
    }
}
