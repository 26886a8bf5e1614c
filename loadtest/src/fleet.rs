//! A Cableway of as many processes as the open-file limit makes necessary (`--processes`), on a machine whose limit cannot be
//! raised. The kernel spreads connections over them (`SO_REUSEPORT`, socket(7)).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::bench;
use crate::control::Control;
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
    /// One more argument for it; may be given several times.
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

    /// How many processes it has.
    pub(crate) fn processes(&self, connections: u32, descriptor_limit: u64) -> u32 {
        self.server_processes.unwrap_or_else(|| processes_needed(connections, descriptor_limit))
    }
}

/// Where clients that speak plain WebSocket connect on a started server.
pub const ECHO_PATH: &str = "/echo";

/// Between two looks at whether all processes serve.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long processes that have handed over may take to end.
const HAND_OVER_MAX: Duration = Duration::from_secs(120);

/// Share of the open-file limit that Cableway keeps for itself.
const RESERVE: u64 = 16;

/// The kernel picks a process by a hash, so the fullest one gets more than its share: this many standard deviations of a
/// fair draw are left free.
const DEVIATIONS: f64 = 6.0;

/// A started server. Dropping it ends it.
pub struct Fleet {
    server: Process,
    count: u32,
    app: Option<(Process, SocketAddr)>,
    control: Option<Control>,
    /// The process that was started, or the one that has taken over from it.
    first: AtomicU32,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where publications are posted.
    pub publish_urls: Vec<String>,
    /// What it says of itself, all processes together.
    pub metrics_urls: Vec<String>,
}

impl Fleet {
    /// Starts what the options ask for, and gives it these arguments, too; none when they name no server. One that takes
    /// orders can be upgraded.
    pub fn start(
        options: &FleetOptions,
        connections: u32,
        descriptor_limit: u64,
        arguments: &[String],
        takes_orders: bool,
    ) -> anyhow::Result<Option<Self>> {
        let Some(path) = &options.server else { return Ok(None) };
        let count = options.processes(connections, descriptor_limit);
        ensure!(count > 0, "--server-processes must be at least 1");
        let app = options.server_app.then(start_app).transpose()?;
        let control = takes_orders.then(|| Control::new(path));
        let mut arguments = [arguments, &options.server_args].concat();
        arguments.extend(control.iter().flat_map(Control::arguments));
        let fleet = Self::start_with(path, count, &arguments, app)?;
        Ok(Some(Self { control, ..fleet }))
    }

    /// Starts a server of so many processes, and waits until all of them serve.
    pub(crate) fn start_with(
        path: &Path,
        count: u32,
        arguments: &[String],
        app: Option<(Process, SocketAddr)>,
    ) -> anyhow::Result<Self> {
        let (address, publish) = (server::free_address()?, server::free_address()?);
        let mut command = server::cableway(Command::new(path), address.port(), publish.port());
        command.args(["--metrics-port", &publish.port().to_string()]);
        command.args(["--echo-path", ECHO_PATH, "--processes", &count.to_string()]);
        match &app {
            Some((_, app)) => command.args(["--rpc-host", &app.to_string()]),
            None => command.args(["--public", "--norpc"]),
        };
        let mut server = Process::spawn(command.args(arguments))?;
        server.await_accepting(publish)?;
        let url = |path: &str| format!("http://{publish}{path}");
        let (publish_urls, metrics_urls) = (vec![url("/_broadcast")], vec![url("/metrics")]);
        let (control, first) = (None, AtomicU32::new(server.pid()));
        let fleet = Self { server, count, app, control, first, address, publish_urls, metrics_urls };
        fleet.await_all()?;
        Ok(fleet)
    }

    /// Waits until every process has begun to serve.
    pub(crate) fn await_all(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        if self.count == 1 {
            return Ok(());
        }
        loop {
            let ready = Client::connect(&self.address.to_string())?.request("GET", "/ready", "", b"")?;
            if String::from_utf8_lossy(&ready.body).contains("\"all_processes\":true") {
                return Ok(());
            }
            ensure!(begun.elapsed() < server::START_MAX, "not all of {} server processes serve", self.count);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The server's process ids: the parent, if it has several, and those that hold connections.
    pub fn pids(&self) -> Vec<u32> {
        std::iter::once(self.parent()).chain(self.children()).collect()
    }

    /// The process that was started, or the one that has taken over from it.
    pub fn parent(&self) -> u32 {
        self.first.load(Ordering::Relaxed)
    }

    /// The processes that it has started, whichever of its threads did.
    pub fn children(&self) -> Vec<u32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.parent())).into_iter().flatten().flatten();
        let children =
            threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        let children: Vec<String> = children.collect();
        children.iter().flat_map(|text| text.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Where it takes orders, if it does.
    pub(crate) fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// Finds the processes that serve after an upgrade, once those that have handed over are gone.
    pub(crate) fn follow(&self) -> anyhow::Result<()> {
        let control = self.control.as_ref().context("this server takes no orders")?;
        let before = self.parent();
        self.first.store(control.pid()?, Ordering::Relaxed);
        let begun = Instant::now();
        let handed_over = |fleet: &Self| match fleet.count {
            1 => before != fleet.parent() && server::has_ended(before),
            count => fleet.children().len() == count as usize,
        };
        while !handed_over(self) {
            ensure!(begun.elapsed() < HAND_OVER_MAX, "processes that have handed over do not end");
            std::thread::sleep(LOOK_EVERY);
        }
        self.await_all()
    }

    /// The end of what its processes logged.
    pub(crate) fn log_tail(&self) -> String {
        self.server.log_tail()
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
        format!("{} process(es) on port {}, {app}", self.count, self.address.port())
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
