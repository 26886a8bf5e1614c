//! One server with its app, clients that are about to die, and as many healthy ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::interrupt;
use super::network::{FOR_HEALTHY, FOR_VICTIMS, Network, within};
use super::peers::Death;
use crate::bench::App;
use crate::http1::Client;
use crate::observe;
use crate::server::{Process, cableway};

/// Between two looks at the server's metrics.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long the app and the kernel may take to have everything back.
const BACK_MAX: Duration = Duration::from_secs(20);

/// Descriptors more than before that are no leak: connections for HTTP come and go.
const DESCRIPTORS_MORE: u64 = 2;

/// Memory more than before that is no leak: what the allocator keeps for the next clients, a slot and its like for each, and
/// what a process of this kind takes when it does something for the first time.
const MEMORY_MORE: u64 = 2 << 20;
const MEMORY_MORE_EACH: u64 = 1 << 10;

const KEY: &str = "dead-peers";

/// Settings with which a run takes minutes.
const SHORT: &str = "--ping-interval 1s --tcp-user-timeout 3s --tcp-keepalive-time 3s --tcp-keepalive-interval 1s \
                     --tcp-keepalive-probes 3 --handshake-timeout 3s --ws-message-timeout 3s --ws-write-timeout 2s";

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// The row of the server's table of deaths; `None`: nobody dies.
    pub kind: Option<&'static str>,
    /// What the victims do.
    pub death: Death,
    /// Options of the server besides [`SHORT`].
    pub server: &'static str,
    /// The victims speak the extended protocol.
    pub extended: bool,
    /// They ask for no pings.
    pub no_pings: bool,
    /// The bound counts from the last byte that the server got rid of: a kernel that nobody reads from still takes some.
    pub from_last_byte: bool,
}

impl Cast {
    /// Clients that somebody else kills.
    pub const fn new(kind: &'static str) -> Self {
        let death = Death::None;
        Self { kind: Some(kind), death, server: "", extended: false, no_pings: false, from_last_byte: false }
    }
}

/// What a page of metrics holds, by name and labels.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn value(&self, name: &str) -> anyhow::Result<f64> {
        self.0.get(&format!("cableway_{name}")).copied().with_context(|| format!("the server has no metric {name}"))
    }

    fn labelled<'a>(&'a self, name: &str, labels: &str) -> impl Iterator<Item = (&'a str, f64)> {
        let start = format!("cableway_{name}{{{labels}");
        let matching = self.0.iter().filter(move |(name, _)| name.starts_with(&start));
        matching.filter_map(|(name, value)| Some((name.rsplit_once("cause=\"")?.1.split_once('"')?.0, *value)))
    }

    fn closed(&self) -> BTreeMap<String, u64> {
        self.labelled("connections_closed_total", "").map(|(cause, count)| (cause.to_owned(), count as u64)).collect()
    }

    /// Of the causes for which these ended, how many detection delays were recorded, and their sum in seconds.
    fn delays(&self, causes: impl Iterator<Item = impl AsRef<str>>) -> (u64, f64) {
        let of = |what: &str, cause: &str| {
            self.value(&format!("detection_delay_seconds_{what}{{cause=\"{cause}\"}}")).unwrap_or(0.0)
        };
        causes.fold((0, 0.0), |(count, sum), cause| {
            (count + of("count", cause.as_ref()) as u64, sum + of("sum", cause.as_ref()))
        })
    }

    /// Bytes kept for clients.
    fn buffers(&self) -> f64 {
        self.0.iter().filter(|(name, _)| name.starts_with("cableway_buffers_bytes{")).map(|(_, bytes)| bytes).sum()
    }
}

/// The process of some clients.
struct Peers {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peers {
    fn start(space: &str, address: SocketAddr, count: usize, name: &str, cast: Option<&Cast>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["dead-peer", "--address", &address.to_string(), "--count", &count.to_string(), "--name", name]);
        let death = clap::ValueEnum::to_possible_value(&cast.map_or(Death::None, |cast| cast.death));
        command.args(["--death", death.context("no death is hidden")?.get_name()]);
        for (flag, is_set) in [("--extended", |cast: &Cast| cast.extended), ("--no-pings", |cast: &Cast| cast.no_pings)]
            as [(_, fn(&Cast) -> bool); 2]
        {
            command.args(cast.filter(|cast| is_set(cast)).map(|_| flag));
        }
        // The healthy do everything that a client is expected to do.
        if cast.is_none_or(|cast| cast.death == Death::FallSilent) {
            command.arg("--talk");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = within(space, || command.spawn())??;
        let input = child.stdin.take().context("it was piped")?;
        let output = BufReader::new(child.stdout.take().context("it was piped")?);
        Ok(Self { child, input, output })
    }

    fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the clients' process ended");
        Ok(line.trim_end().to_owned())
    }

    fn is_ready(&mut self) -> anyhow::Result<()> {
        let line = self.hear()?;
        ensure!(line == "ready", "the clients say {line:?}");
        Ok(())
    }

    fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{line}")?;
        self.hear()
    }

    fn freeze(&self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        Ok(kill_process(pid, Signal::STOP)?)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How it went.
pub struct Outcome {
    pub bound: Option<Duration>,
    /// How long after the death the last one was closed.
    pub last: Option<Duration>,
    /// By cause.
    pub closed: BTreeMap<String, u64>,
    /// The mean of the detection delays that the server recorded.
    pub recorded: Option<Duration>,
    /// Memory that the server has more than before the victims came.
    pub memory_kept: Option<u64>,
    pub faults: Vec<String>,
}

/// A running server with everybody who takes part.
pub struct Party {
    pub cast: Cast,
    peers: usize,
    // Dropped in this order: a server without clients ends at once.
    healthy: Peers,
    victims: Peers,
    process: Process,
    app: App,
    http: Client,
    /// Without the victims.
    descriptors: u64,
    memory: u64,
    buffers: f64,
    /// When the victims were there and alive.
    before: Metrics,
    causes: BTreeSet<String>,
    pub bound: Option<Duration>,
    last: Option<Duration>,
    /// When the last of the victims did what it does, or was sent what it does not read.
    done_at: Option<Instant>,
    /// What was sent by when.
    sent: Option<(f64, Instant)>,
}

impl Party {
    /// Starts everybody. Must run in the server's namespace.
    pub fn start(network: &Network, binary: &Path, port: u16, peers: usize, cast: Cast) -> anyhow::Result<Self> {
        let app = App::start()?;
        let mut command = cableway(Command::new(binary), port, port);
        command.args(["--host", "0.0.0.0", "--rpc-host", &app.address.to_string()]);
        command.args(["--public-streams", "--broadcast-key", KEY, "--disconnect-rate", "10000"]);
        command.args(SHORT.split_ascii_whitespace()).args(cast.server.split_ascii_whitespace());
        let mut process = Process::spawn(&mut command)?;
        let own = SocketAddr::from(([127, 0, 0, 1], port));
        process.await_accepting(own)?;
        let mut http = Client::connect(&own.to_string())?;
        let address = |host: &str| format!("{host}:{port}").parse::<SocketAddr>();
        let mut healthy = Peers::start(&network.healthy, address(FOR_HEALTHY)?, peers, "h", None)?;
        healthy.is_ready()?;
        let buffers = metrics(&mut http)?.buffers();
        let cost = observe::process_cost(process.pid())?;
        let mut victims = Peers::start(&network.victims, address(FOR_VICTIMS)?, peers, "v", Some(&cast))?;
        victims.is_ready()?;
        let now = metrics(&mut http)?;
        let mut causes = BTreeSet::new();
        let mut bound = None;
        for (cause, seconds) in cast
            .kind
            .into_iter()
            .flat_map(|kind| now.labelled("detection_bound_seconds", &format!("kind=\"{kind}\",")).collect::<Vec<_>>())
        {
            ensure!(seconds.is_finite(), "with these settings nothing finds {:?}", cast.kind);
            bound = Some(Duration::from_secs_f64(seconds));
            causes.insert(cause.to_owned());
        }
        ensure!(cast.kind.is_none() || bound.is_some(), "the server knows no {:?}", cast.kind);
        let (last, done_at, sent) = (None, None, None);
        Ok(Self {
            cast,
            peers,
            healthy,
            victims,
            process,
            app,
            http,
            descriptors: cost.descriptors,
            memory: cost.rss_bytes,
            buffers,
            before: now,
            causes,
            bound,
            last,
            done_at,
            sent,
        })
    }

    /// Publishes so many bytes to the victims.
    pub fn publish(&mut self, bytes: usize) -> anyhow::Result<()> {
        let data = "x".repeat(bytes);
        let body = serde_json::json!({"stream": super::peers::STREAM, "data": format!("\"{data}\"")}).to_string();
        let headers = format!("Authorization: Bearer {KEY}\r\n");
        let answer = self.http.request("POST", "/_broadcast", &headers, body.as_bytes())?;
        ensure!(answer.status == 201, "the publication was answered with {}", answer.status);
        self.done_at = Some(Instant::now());
        Ok(())
    }

    /// Lets the victims do what they do.
    pub fn die(&mut self) -> anyhow::Result<()> {
        let line = self.victims.ask("die")?;
        ensure!(line == "dead", "the clients say {line:?}");
        self.done_at = Some(Instant::now());
        Ok(())
    }

    /// Stops the victims' process.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.victims.freeze()
    }

    /// Connections closed since the death, by cause.
    fn closed(&mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut closed = metrics(&mut self.http)?.closed();
        let before = self.before.closed();
        for (cause, count) in &mut closed {
            *count -= before.get(cause).copied().unwrap_or(0);
        }
        closed.retain(|_, count| *count > 0);
        Ok(closed)
    }

    /// Looks whether all victims are closed.
    pub fn look(&mut self, begun: Instant) -> anyhow::Result<bool> {
        if self.last.is_some() {
            return Ok(true);
        }
        let closed = self.closed()?.values().sum::<u64>();
        let sent = metrics(&mut self.http)?.value("data_sent_total")?;
        if closed == 0 && self.sent.is_none_or(|(before, _)| before != sent) {
            self.sent = Some((sent, Instant::now()));
        }
        if closed >= self.peers as u64 {
            let since =
                self.sent.filter(|_| self.cast.from_last_byte).map_or(self.done_at.unwrap_or(begun), |(_, at)| at);
            self.last = Some(since.elapsed());
        }
        Ok(self.last.is_some())
    }

    /// Judges it, when nothing more is to come.
    pub fn end(mut self) -> anyhow::Result<Outcome> {
        let mut faults = Vec::new();
        let closed = self.closed()?;
        let wanted = if self.cast.kind.is_some() { self.peers as u64 } else { 0 };
        let rightly: u64 =
            closed.iter().filter(|(cause, _)| self.causes.contains(*cause)).map(|(_, count)| count).sum();
        if rightly != wanted {
            faults.push(format!("{rightly} of {wanted} closed under the right cause"));
        }
        if closed.values().sum::<u64>() != rightly {
            faults.push(format!("closed otherwise: {closed:?}"));
        }
        match (self.last, self.bound) {
            (Some(last), Some(bound)) if last > bound => faults.push(format!("{last:.1?} after the death")),
            (None, Some(_)) => faults.push("not all were closed".to_owned()),
            _ => {}
        }
        let open = self.healthy.ask("count")?;
        if open != self.peers.to_string() {
            faults.push(format!("{open} of {} healthy clients are open", self.peers));
        }
        let (mut recorded, mut memory_kept) = (None, None);
        if let (Some(_), Some(bound)) = (self.cast.kind, self.bound) {
            let mean = self.recorded(&closed, &mut faults)?;
            // Where the victim itself ends it, this is how long it was quiet before.
            let ends_itself = matches!(self.cast.death, Death::Reset | Death::HalfClose | Death::SayGoodbye);
            if mean > bound && !ends_itself {
                faults.push(format!("{mean:.1?} of silence recorded"));
            }
            recorded = Some(mean);
            memory_kept = Some(self.is_back(&mut faults)?);
        }
        let log = self.process.log_tail();
        if log.contains("ERROR") || log.contains("panicked") {
            faults.push(format!("the server's log has an error:\n{log}"));
        }
        Ok(Outcome { bound: self.bound, last: self.last, closed, recorded, memory_kept, faults })
    }

    /// The mean of the detection delays of those who were closed; there must be one of each.
    fn recorded(&mut self, closed: &BTreeMap<String, u64>, faults: &mut Vec<String>) -> anyhow::Result<Duration> {
        let (count, sum) = metrics(&mut self.http)?.delays(closed.keys());
        let before = self.before.delays(closed.keys());
        let (count, sum) = (count - before.0, sum - before.1);
        if count != closed.values().sum::<u64>() {
            faults.push(format!("{count} detection delays recorded"));
        }
        Ok(Duration::from_secs_f64((sum / count.max(1) as f64).max(0.0)))
    }

    /// Waits until descriptors, buffers and memory are back and the app is told of everybody once. Adds what is not so, and
    /// gives how much memory there is more than before.
    fn is_back(&mut self, into: &mut Vec<String>) -> anyhow::Result<u64> {
        let had_sessions = !matches!(self.cast.death, Death::SayNothing | Death::StallRequest);
        let wanted = if had_sessions { self.peers } else { 0 };
        let until = Instant::now() + BACK_MAX;
        loop {
            let told = self.app.told();
            let page = metrics(&mut self.http)?;
            let connections = page.value("websockets_num")? as usize;
            let cost = observe::process_cost(self.process.pid())?;
            let (descriptors, memory_kept) = (cost.descriptors, cost.rss_bytes.saturating_sub(self.memory));
            let mut faults = Vec::new();
            if page.buffers() > self.buffers {
                faults.push(format!("{} bytes kept for clients, {} before", page.buffers(), self.buffers));
            }
            if memory_kept > MEMORY_MORE + MEMORY_MORE_EACH * self.peers as u64 {
                faults.push(format!("{} KiB of memory more than before", memory_kept / 1024));
            }
            if descriptors > self.descriptors + DESCRIPTORS_MORE {
                faults.push(format!("{descriptors} descriptors, {} before", self.descriptors));
            }
            if connections != self.peers {
                faults.push(format!("{connections} WebSockets for {} healthy clients", self.peers));
            }
            let times: u32 = told.values().sum();
            if told.len() != wanted || times as usize != wanted {
                faults.push(format!("the app was told {times} times of {} clients", told.len()));
            }
            if faults.is_empty() || Instant::now() > until {
                into.extend(faults);
                return Ok(memory_kept);
            }
            interrupt::sleep(LOOK_EVERY)?;
        }
    }
}

fn metrics(http: &mut Client) -> anyhow::Result<Metrics> {
    let answer = http.request("GET", "/metrics", "", b"")?;
    if answer.status != 200 {
        bail!("metrics were answered with {}", answer.status);
    }
    let page = String::from_utf8_lossy(&answer.body);
    let samples = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    Ok(Metrics(samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()))
}
