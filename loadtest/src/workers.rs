//! The same engine in one process or in many: one where the open-file limit allows it, otherwise a process per share.
//!
//! Workers are this program again (`worker`), fed with one JSON order per line on their input; they answer with one
//! JSON line per report on their output and end with their input. A worker that dies makes the run fail: its
//! connections are gone.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::engine::{BadNetwork, Collected, Counts, Engine, Goodbye, Pace, Reply, Saying, Settings, Sources};
use crate::observe;
use crate::protocol::{Protocol, Script, Target};
use crate::template::Template;

/// Descriptors of a process that are not connections: epoll, wake-ups, pipes, logs.
const DESCRIPTORS_RESERVED: u64 = 64;

/// How often a worker reports its counters.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// How long a worker may take to answer.
const WORKER_TIMEOUT: Duration = Duration::from_secs(30);

/// What all clients of a run have in common, as it travels to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// `ws://HOST:PORT/PATH`.
    pub target: String,
    /// Where that is, and where other servers are that clients are spread over; see [`Settings::servers`].
    pub servers: Vec<SocketAddr>,
    /// The dialect.
    pub protocol: Protocol,
    /// Length of the `Cookie` value; 0 for none.
    pub cookie_bytes: usize,
    /// What to subscribe to, with `{n}`.
    pub identifier: Option<String>,
    /// How many clients.
    pub connections: u32,
    /// The number of the first one.
    pub first_number: u32,
    /// Pings are answered with pongs.
    pub pongs: bool,
    /// Threads.
    pub lanes: usize,
    /// Addresses to connect from; empty: chosen here.
    pub sources: Vec<IpAddr>,
    /// How long a connection may take until it is ready.
    pub ready_timeout_ms: u64,
    /// How long after a failure it tries again.
    pub retry_after_ms: Option<u64>,
    /// See [`Settings::ping_late_after`].
    pub ping_late_after_ms: Option<u64>,
}

impl Plan {
    fn settings(&self, all: u32) -> anyhow::Result<Settings> {
        let target = Target::parse(&self.target)?;
        let sources = match self.sources.is_empty() {
            true => Sources::for_servers(&self.servers, all),
            false => Sources::list(self.sources.clone()),
        };
        let mut script = Script::new(self.protocol, &target, self.cookie_bytes, self.identifier.as_deref());
        script.pongs = self.pongs;
        Ok(Settings {
            servers: self.servers.clone(),
            script,
            connections: self.connections,
            first_number: self.first_number,
            lanes: self.lanes,
            sources,
            ready_timeout: Duration::from_millis(self.ready_timeout_ms),
            retry_after: self.retry_after_ms.map(Duration::from_millis),
            ping_late_after: self.ping_late_after_ms.map(Duration::from_millis),
        })
    }
}

/// Raises the soft open-file limit to the hard one and says what it is then.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(1 << 20);
    if limit.current != Some(hard) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(hard)
}

/// How many processes that many connections need.
pub fn processes_needed(connections: u32, descriptor_limit: u64) -> u32 {
    let each = descriptor_limit.saturating_sub(DESCRIPTORS_RESERVED).max(1);
    u64::from(connections).div_ceil(each).max(1).try_into().unwrap_or(u32::MAX)
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Start { plan: Plan, all: u32 },
    Open(Pace),
    StopOpening,
    Drop { share: f64, goodbye: Goodbye },
    Say { texts: Vec<String>, reply: Reply, rounds: u32, at_once: u32 },
    Slow { share: f64, bytes_per_second: u32 },
    BadNetwork(Option<BadNetwork>),
    Collect { expected: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Counts(Counts),
    Collected(Measured),
}

/// [`Collected`] on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    ready: String,
    reply: String,
    delivery: String,
    replay: String,
    lag_us_max: u64,
    ping_gap_ms_max: u64,
    pings_overdue: u64,
    missing_at_end: u64,
}

impl Measured {
    fn pack(collected: &Collected) -> anyhow::Result<Self> {
        let Collected { lag_us_max, ping_gap_ms_max, pings_overdue, missing_at_end, .. } = *collected;
        Ok(Self {
            ready: pack(&collected.ready_us)?,
            reply: pack(&collected.reply_us)?,
            delivery: pack(&collected.delivery_us)?,
            replay: pack(&collected.replay_us)?,
            lag_us_max,
            ping_gap_ms_max,
            pings_overdue,
            missing_at_end,
        })
    }

    fn unpack(&self) -> anyhow::Result<Collected> {
        let Self { lag_us_max, ping_gap_ms_max, pings_overdue, missing_at_end, .. } = *self;
        Ok(Collected {
            ready_us: unpack(&self.ready)?,
            reply_us: unpack(&self.reply)?,
            delivery_us: unpack(&self.delivery)?,
            replay_us: unpack(&self.replay)?,
            lag_us_max,
            ping_gap_ms_max,
            pings_overdue,
            missing_at_end,
        })
    }
}

/// All clients of a run.
pub struct Workers {
    members: Members,
}

enum Members {
    Here(Engine),
    Processes(Vec<Worker>),
}

struct Worker {
    child: Child,
    orders: Option<BufWriter<ChildStdin>>,
    counts: Arc<Mutex<Counts>>,
    collected: Receiver<Collected>,
}

impl Workers {
    /// Prepares the clients; `processes` 1 keeps them in this process.
    pub fn start(plan: &Plan, processes: u32) -> anyhow::Result<Self> {
        if processes <= 1 {
            return Ok(Self { members: Members::Here(Engine::start(&plan.settings(plan.connections)?)?) });
        }
        let share = plan.connections.div_ceil(processes);
        let workers = (0..processes)
            .map(|worker| {
                let first = worker * share;
                let connections = share.min(plan.connections.saturating_sub(first));
                let plan = Plan {
                    connections,
                    first_number: plan.first_number + first,
                    // There are more processes than cores already.
                    lanes: 1,
                    ..plan.clone()
                };
                Worker::start()?.with_order(&Order::Start { plan, all: share * processes })
            })
            .collect::<anyhow::Result<_>>()
            .context("cannot start a worker process")?;
        let mut workers = Self { members: Members::Processes(workers) };
        // Once all have answered, they are as large as they are without connections: what is measured from here on is
        // what connections cost.
        workers.collect(0)?;
        Ok(workers)
    }

    /// How many processes the clients live in.
    pub fn processes(&self) -> usize {
        match &self.members {
            Members::Here(_) => 1,
            Members::Processes(workers) => workers.len(),
        }
    }

    /// See [`Engine::open`].
    pub fn open(&mut self, pace: Pace) -> anyhow::Result<()> {
        match &mut self.members {
            Members::Here(engine) => engine.open(pace),
            Members::Processes(workers) => {
                let count = workers.len() as u32;
                let pace = match pace {
                    Pace::Window(window) => Pace::Window(window.div_ceil(count)),
                    Pace::Rate(rate) => Pace::Rate(rate / f64::from(count)),
                    Pace::Storm | Pace::Burst => pace,
                };
                order_all(workers, &Order::Open(pace))?;
            }
        }
        Ok(())
    }

    /// See [`Engine::stop_opening`].
    pub fn stop_opening(&mut self) -> anyhow::Result<()> {
        match &mut self.members {
            Members::Here(engine) => engine.stop_opening(),
            Members::Processes(workers) => order_all(workers, &Order::StopOpening)?,
        }
        Ok(())
    }

    /// See [`Engine::drop_share`].
    pub fn drop_share(&mut self, share: f64, goodbye: Goodbye) -> anyhow::Result<()> {
        match &mut self.members {
            Members::Here(engine) => engine.drop_share(share, goodbye),
            Members::Processes(workers) => order_all(workers, &Order::Drop { share, goodbye })?,
        }
        Ok(())
    }

    /// See [`Engine::say`].
    pub fn say(&mut self, texts: Vec<String>, reply: Reply, rounds: u32, at_once: u32) -> anyhow::Result<()> {
        match &mut self.members {
            Members::Here(engine) => engine.say(saying(&texts, reply, rounds, at_once)),
            Members::Processes(workers) => {
                let at_once = at_once.div_ceil(workers.len() as u32);
                order_all(workers, &Order::Say { texts, reply, rounds, at_once })?;
            }
        }
        Ok(())
    }

    /// See [`Engine::slow`].
    pub fn slow(&mut self, share: f64, bytes_per_second: u32) -> anyhow::Result<()> {
        match &mut self.members {
            Members::Here(engine) => engine.slow(share, bytes_per_second),
            Members::Processes(workers) => order_all(workers, &Order::Slow { share, bytes_per_second })?,
        }
        Ok(())
    }

    /// See [`Engine::bad_network`].
    pub fn bad_network(&mut self, bad_network: Option<BadNetwork>) -> anyhow::Result<()> {
        match &mut self.members {
            Members::Here(engine) => engine.bad_network(bad_network),
            Members::Processes(workers) => order_all(workers, &Order::BadNetwork(bad_network))?,
        }
        Ok(())
    }

    /// See [`Engine::collect`].
    pub fn collect(&mut self, expected: u32) -> anyhow::Result<Collected> {
        match &mut self.members {
            Members::Here(engine) => Ok(engine.collect(expected)),
            Members::Processes(workers) => {
                order_all(workers, &Order::Collect { expected })?;
                let mut all = Collected::empty();
                for worker in workers {
                    all.add(&worker.collected.recv_timeout(WORKER_TIMEOUT).context("a worker process is gone")?);
                }
                Ok(all)
            }
        }
    }

    /// The counters of all clients, at most [`REPORT_EVERY`] old.
    pub fn counts(&self) -> Counts {
        match &self.members {
            Members::Here(engine) => engine.counts(),
            Members::Processes(workers) => {
                workers.iter().map(|worker| *worker.counts.lock().unwrap_or_else(PoisonError::into_inner)).sum()
            }
        }
    }

    /// Fails when a worker has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Members::Processes(workers) = &mut self.members {
            for worker in workers {
                if let Some(status) = worker.child.try_wait()? {
                    bail!("a worker process ended with {status}");
                }
            }
        }
        Ok(())
    }

    /// CPU time of all clients and their memory, in microseconds and bytes.
    pub fn cost(&self) -> (f64, u64) {
        let own = std::process::id();
        let pids: Vec<u32> = match &self.members {
            Members::Here(_) => vec![own],
            Members::Processes(workers) => workers.iter().map(|worker| worker.child.id()).chain([own]).collect(),
        };
        let cpu = pids.iter().filter_map(|pid| observe::cpu_time(*pid).ok()).sum::<Duration>();
        (cpu.as_secs_f64() * 1e6, pids.iter().map(|pid| observe::rss_bytes(*pid)).sum())
    }
}

fn saying(texts: &[String], reply: Reply, rounds: u32, at_once: u32) -> Saying {
    Saying { texts: texts.iter().map(|text| Template::new(text)).collect(), reply, rounds, at_once }
}

fn order_all(workers: &mut [Worker], order: &Order) -> anyhow::Result<()> {
    workers.iter_mut().try_for_each(|worker| worker.order(order))
}

impl Worker {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().map(BufWriter::new);
        let reports = BufReader::new(child.stdout.take().context("a worker has no output")?);
        let counts = Arc::new(Mutex::new(Counts::default()));
        let (sender, collected) = channel();
        let shared = Arc::clone(&counts);
        thread::spawn(move || {
            for line in reports.lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(Report::Counts(counts)) => *shared.lock().unwrap_or_else(PoisonError::into_inner) = counts,
                    Ok(Report::Collected(measured)) => {
                        let Ok(collected) = measured.unpack() else { return };
                        if sender.send(collected).is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        });
        Ok(Self { child, orders, counts, collected })
    }

    fn with_order(mut self, order: &Order) -> anyhow::Result<Self> {
        self.order(order)?;
        Ok(self)
    }

    fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().context("the worker has been dismissed")?;
        serde_json::to_writer(&mut *orders, order)?;
        orders.write_all(b"\n")?;
        orders.flush().context("a worker process is gone")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its input is its order to end.
        self.orders = None;
        let _ = self.child.wait();
    }
}

fn pack(histogram: &Histogram<u64>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(histogram, &mut bytes).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(BASE64.encode(bytes))
}

fn unpack(text: &str) -> anyhow::Result<Histogram<u64>> {
    let bytes = BASE64.decode(text)?;
    let mut histogram: Histogram<u64> =
        Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    histogram.auto(true);
    Ok(histogram)
}

/// What a worker process does until its input ends.
pub fn work() -> anyhow::Result<()> {
    raise_descriptor_limit();
    // Ctrl-C goes to the whole group; the parent reports first and then closes our input.
    ctrlc::set_handler(|| {}).context("cannot ignore Ctrl-C")?;
    let (sender, orders) = channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut engine: Option<Engine> = None;
    let report = |report: &Report| -> anyhow::Result<()> {
        let mut output = std::io::stdout().lock();
        serde_json::to_writer(&mut output, report)?;
        output.write_all(b"\n")?;
        Ok(output.flush()?)
    };
    loop {
        let line = match orders.recv_timeout(REPORT_EVERY) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                if let Some(engine) = &engine {
                    report(&Report::Counts(engine.counts()))?;
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let order: Order = serde_json::from_str(&line).context("an order that is not one")?;
        let Some(running) = &engine else {
            let Order::Start { plan, all } = order else { bail!("the first order is always to start") };
            engine = Some(Engine::start(&plan.settings(all)?)?);
            continue;
        };
        match order {
            Order::Start { .. } => bail!("started already"),
            Order::Open(pace) => running.open(pace),
            Order::StopOpening => running.stop_opening(),
            Order::Drop { share, goodbye } => running.drop_share(share, goodbye),
            Order::Say { texts, reply, rounds, at_once } => running.say(saying(&texts, reply, rounds, at_once)),
            Order::Slow { share, bytes_per_second } => running.slow(share, bytes_per_second),
            Order::BadNetwork(bad_network) => running.bad_network(bad_network),
            Order::Collect { expected } => {
                // The counters of the same moment first, so that the parent's sums agree with the histograms.
                report(&Report::Counts(running.counts()))?;
                report(&Report::Collected(Measured::pack(&running.collect(expected))?))?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_added_for_every_share_of_the_limit() {
        assert_eq!(processes_needed(15_000, 20_000), 1);
        assert_eq!(processes_needed(19_936, 20_000), 1);
        assert_eq!(processes_needed(19_937, 20_000), 2);
        assert_eq!(processes_needed(1_000_000, 20_000), 51);
        assert_eq!(processes_needed(1_000_000, 10_000_000), 1);
    }

    #[test]
    fn a_histogram_survives_the_pipe() {
        let mut collected = Collected::empty();
        for value in [1, 10, 1_000_000] {
            collected.ready_us.record(value).unwrap();
        }
        let mut back = unpack(&pack(&collected.ready_us).unwrap()).unwrap();
        assert_eq!(back, collected.ready_us);
        back.record(1 << 40).unwrap();
    }
}
