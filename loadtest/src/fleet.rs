//! Cableway processes on one port, as many as the open-file limit makes necessary: what a person does by hand on a
//! machine whose limit cannot be raised. The kernel spreads connections over them (`SO_REUSEPORT`, socket(7)).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::bench;
use crate::http1::Client;
use crate::server::{self, Process};

/// Which servers are started, if any.
#[derive(Debug, Clone, Args)]
pub struct FleetOptions {
    /// Start this Cableway binary on a free loopback port instead of using a server that runs.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Processes of it on that port [default: as many as the open-file limit makes necessary].
    #[arg(long, value_name = "N", requires = "server")]
    server_processes: Option<u32>,
    /// One more argument for each of them; may be given several times.
    #[arg(long = "server-arg", value_name = "ARG", requires = "server", allow_hyphen_values = true)]
    server_args: Vec<String>,
    /// Put a small app server behind them, called through gRPC for every connect and subscribe. Without it clients are let in
    /// unasked and streams are public.
    #[arg(long, requires = "server")]
    pub(crate) server_app: bool,
}

impl FleetOptions {
    /// Whether any are.
    pub(crate) fn starts_servers(&self) -> bool {
        self.server.is_some()
    }
}

/// Where clients that speak plain WebSocket connect on a started server.
pub const ECHO_PATH: &str = "/echo";

/// Share of the open-file limit that Cableway keeps for itself.
const RESERVE: u64 = 16;

/// The kernel picks a process by a hash, so the fullest one gets more than its share: this many standard deviations of a
/// fair draw are left free.
const DEVIATIONS: f64 = 6.0;

/// Started servers. Dropping it ends them.
pub struct Fleet {
    servers: Vec<Process>,
    app: Option<(Process, SocketAddr)>,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where publications are posted: to each of them, for it reaches only the clients of that process.
    pub publish_urls: Vec<String>,
    /// What each says of itself.
    pub metrics_urls: Vec<String>,
}

impl Fleet {
    /// Starts what the options ask for; none when they name no server.
    pub fn start(options: &FleetOptions, connections: u32, descriptor_limit: u64) -> anyhow::Result<Option<Self>> {
        let Some(path) = &options.server else { return Ok(None) };
        let count = options.server_processes.unwrap_or_else(|| processes_needed(connections, descriptor_limit));
        ensure!(count > 0, "--server-processes must be at least 1");
        let app = options.server_app.then(start_app).transpose()?;
        let app_address = app.as_ref().map(|(_, address)| *address);
        let address = server::free_address()?;
        let mut fleet = Self { servers: Vec::new(), app, address, publish_urls: Vec::new(), metrics_urls: Vec::new() };
        for _ in 0..count {
            fleet
                .add(path, options, count, app_address)
                .with_context(|| format!("server process {} of {count} does not start", fleet.servers.len() + 1))?;
        }
        Ok(Some(fleet))
    }

    fn add(&mut self, path: &Path, options: &FleetOptions, count: u32, app: Option<SocketAddr>) -> anyhow::Result<()> {
        let publish = server::free_address()?;
        let mut command = server::cableway(Command::new(path), self.address.port(), publish.port());
        command.args(["--metrics-port", &publish.port().to_string()]);
        command.args(["--echo-path", ECHO_PATH]);
        if count > 1 {
            command.arg("--reuse-port");
        }
        match app {
            Some(app) => command.args(["--rpc-host", &app.to_string()]),
            None => command.args(["--public", "--norpc"]),
        };
        if count as usize > std::thread::available_parallelism().map_or(1, usize::from) {
            // More processes than cores already.
            command.args(["--acceptors", "1"]);
        }
        let mut process = Process::spawn(command.args(&options.server_args))?;
        // The port that all share is bound before this one, which is its own.
        process.await_accepting(publish)?;
        self.servers.push(process);
        self.publish_urls.push(format!("http://{publish}/_broadcast"));
        self.metrics_urls.push(format!("http://{publish}/metrics"));
        Ok(())
    }

    /// The servers' process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Process::pid).collect()
    }

    /// How often the app server was asked to let a client in, if there is one.
    pub fn connects(&self) -> anyhow::Result<Option<u64>> {
        let Some((_, address)) = &self.app else { return Ok(None) };
        let answer = Client::connect(&address.to_string())?.request("GET", bench::CONNECTS_PATH, "", b"")?;
        let text = String::from_utf8_lossy(&answer.body);
        Ok(Some(text.trim().parse().with_context(|| format!("the app server counts {text:?} clients"))?))
    }

    /// What was started, for the report.
    pub fn words(&self) -> String {
        let app = if self.app.is_some() { "one app server behind gRPC" } else { "no app server" };
        format!("{} process(es) on port {}, {app}", self.servers.len(), self.address.port())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All at once; each is then waited for as it is dropped.
        self.servers.iter().for_each(Process::ask_to_end);
    }
}

fn start_app() -> anyhow::Result<(Process, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    let (process, line) = Process::spawn_talking(command.args(["app", "--listen", "127.0.0.1:0"]), server::START_MAX)?;
    let address = line.trim().rsplit(' ').next().unwrap_or_default();
    Ok((process, address.parse().with_context(|| format!("the app server said {line:?}"))?))
}

/// How many server processes hold that many connections.
fn processes_needed(connections: u32, descriptor_limit: u64) -> u32 {
    let capacity = (descriptor_limit - descriptor_limit / RESERVE) as f64;
    (1..)
        .find(|count| {
            let mean = f64::from(connections) / f64::from(*count);
            let deviation = if *count > 1 { mean.sqrt() } else { 0.0 };
            mean + DEVIATIONS * deviation <= capacity.max(1.0)
        })
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_added_until_the_fullest_has_room() {
        assert_eq!(processes_needed(15_000, 20_000), 1);
        assert_eq!(processes_needed(18_750, 20_000), 1);
        assert_eq!(processes_needed(18_751, 20_000), 2);
        assert_eq!(processes_needed(1_000_000, 20_000), 56);
        assert_eq!(processes_needed(1_000_000, 2_000_000), 1);
    }
}
