//! A run while it runs: the clients, a sample of everything once a second, the progress line, and Ctrl-C.
//!
//! Scenarios wait only through [`Run::wait`], so that whatever happens the curves go on, a person sees where it
//! stands, and an interrupted run still ends in a report.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::engine::{Collected, Counts};
use crate::metrics::{Calls, Pages, ServerMetrics};
use crate::observe::{self, KernelCost, ProcessCost};
use crate::workers::Workers;

/// Between two samples, and two looks at a condition.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Between two looks at the calls to the backend while their peak is wanted: the page costs the server something too.
const CALLS_EVERY: Duration = Duration::from_millis(100);
/// Between two progress lines when the output is a file.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// One second of a run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Since the run began.
    pub at_s: f64,
    /// Connections ready at that moment.
    pub ready: u64,
    /// Failures so far.
    pub failed: u64,
    /// Messages received so far.
    pub messages: u64,
    /// Resident memory of the watched server processes, or what the server says of it; 0 when nothing is known.
    pub server_rss_bytes: u64,
    /// Their CPU time so far, microseconds.
    pub server_cpu_us: f64,
    /// Resident memory of this tool.
    pub client_rss_bytes: u64,
    /// Its CPU time so far, microseconds.
    pub client_cpu_us: f64,
}

/// Everything about memory at one named moment.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// "before", "held", "after", …
    pub moment: String,
    /// Connections ready then.
    pub ready: u64,
    /// The watched server processes, added.
    pub server: Option<ProcessCost>,
    /// What the server says of itself.
    pub metrics: Option<ServerMetrics>,
    /// The whole machine's kernel.
    pub kernel: KernelCost,
    /// Resident memory of this tool.
    pub client_rss_bytes: u64,
    /// CPU of both sides so far, microseconds.
    pub server_cpu_us: f64,
    /// The same for this tool.
    pub client_cpu_us: f64,
    /// Since the run began.
    pub at_s: f64,
}

impl Snapshot {
    /// Resident memory of the server: as the kernel sees it, else as the server says.
    pub fn server_rss_bytes(&self) -> Option<u64> {
        self.server.map(|server| server.rss_bytes).or_else(|| self.metrics.as_ref()?.rss_bytes)
    }
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// What was waited for is there.
    Done,
    /// It did not come in time.
    TimedOut,
    /// Ctrl-C: report what there is.
    Interrupted,
}

/// Whether Ctrl-C was pressed: it ends all runs of this process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Sees to it that Ctrl-C sets the flag; the first call counts.
fn watch_for_interrupts() -> anyhow::Result<()> {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // The second one means it.
            std::process::exit(130);
        }
    })
    .context("cannot handle Ctrl-C")
}

/// A run.
pub struct Run {
    /// The clients.
    pub workers: Workers,
    /// One a second.
    pub samples: Vec<Sample>,
    /// The named moments.
    pub snapshots: Vec<Snapshot>,
    /// Calls to the backend while [`Run::watch_calls`] was on, with their time.
    pub calls: Vec<(f64, Calls)>,
    /// Longest turn of an event loop of the clients, microseconds.
    pub lag_us_max: u64,
    /// Why a metrics page could not be read, the last time that happened.
    pub unread: Option<String>,
    pids: Vec<u32>,
    /// CPU of processes that are watched no more, microseconds.
    gone_cpu_us: f64,
    pages: Pages,
    calls_watched: bool,
    next_calls: Instant,
    total: u32,
    began: Instant,
    next_sample: Instant,
    next_line: Instant,
    doing: &'static str,
    terminal: bool,
}

impl Run {
    /// Begins a run with clients that are not connected yet. `metrics` are the URLs of the server's metrics pages; that
    /// they can be read is made sure of now.
    pub fn begin(workers: Workers, total: u32, pids: Vec<u32>, metrics: &[String]) -> anyhow::Result<Self> {
        let mut pages = Pages::connect(metrics).context("the server's metrics")?;
        pages.read().context("the server's metrics")?;
        watch_for_interrupts()?;
        let now = Instant::now();
        let mut run = Self {
            workers,
            samples: Vec::new(),
            snapshots: Vec::new(),
            calls: Vec::new(),
            lag_us_max: 0,
            unread: None,
            pids,
            gone_cpu_us: 0.0,
            pages,
            calls_watched: false,
            next_calls: now,
            total,
            began: now,
            next_sample: now,
            next_line: now,
            doing: "starting",
            terminal: std::io::stderr().is_terminal(),
        };
        run.snapshot("before")?;
        Ok(run)
    }

    /// Watches these processes of the server from now on: others have taken their place. What those used that are gone stays in
    /// the sum, as it was at the last sample.
    pub fn watch(&mut self, pids: Vec<u32>) {
        let cpu = pids.iter().filter_map(|pid| observe::cpu_time(*pid).ok()).sum::<Duration>();
        let last_us = self.samples.last().map_or(0.0, |sample| sample.server_cpu_us);
        self.gone_cpu_us = (last_us - cpu.as_secs_f64() * 1e6).max(0.0);
        self.pids = pids;
    }

    /// Whether Ctrl-C was pressed.
    pub fn interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }

    /// Seconds since the run began.
    pub fn elapsed_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Waits until the counters satisfy `done`.
    pub fn wait(
        &mut self,
        doing: &'static str,
        limit: Duration,
        mut done: impl FnMut(&Counts) -> bool,
    ) -> anyhow::Result<Ended> {
        self.doing = doing;
        let start = Instant::now();
        loop {
            let counts = self.workers.counts();
            self.observe(&counts)?;
            if done(&counts) {
                return Ok(Ended::Done);
            }
            if self.interrupted() {
                return Ok(Ended::Interrupted);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(Ended::TimedOut);
            }
            std::thread::sleep(LOOK_EVERY.min(left));
        }
    }

    /// Lets time pass.
    pub fn pause(&mut self, doing: &'static str, duration: Duration) -> anyhow::Result<Ended> {
        Ok(match self.wait(doing, duration, |_| false)? {
            Ended::TimedOut => Ended::Done,
            other => other,
        })
    }

    /// Takes what the clients have measured since the last time; see [`Workers::collect`].
    pub fn collect(&mut self, expected: u32) -> anyhow::Result<Collected> {
        let collected = self.workers.collect(expected)?;
        self.lag_us_max = self.lag_us_max.max(collected.lag_us_max);
        Ok(collected)
    }

    /// Records everything about memory under a name.
    pub fn snapshot(&mut self, moment: &str) -> anyhow::Result<()> {
        let mut server: Option<ProcessCost> = None;
        for pid in &self.pids {
            let one = observe::process_cost(*pid).with_context(|| format!("process {pid} cannot be watched"))?;
            server.get_or_insert_default().add(&one);
        }
        let metrics = self.read_metrics();
        let server_cpu_us = match &server {
            Some(server) => self.gone_cpu_us + server.cpu_ns as f64 / 1e3,
            None => metrics.as_ref().and_then(|metrics| metrics.cpu_s).unwrap_or(0.0) * 1e6,
        };
        let (client_cpu_us, client_rss_bytes) = self.workers.cost();
        self.snapshots.push(Snapshot {
            moment: moment.to_owned(),
            ready: self.workers.counts().ready_now(),
            server,
            metrics,
            kernel: observe::kernel_cost()?,
            client_rss_bytes,
            server_cpu_us,
            client_cpu_us,
            at_s: self.elapsed_s(),
        });
        // Short phases have their point on the curves too.
        self.next_sample = Instant::now();
        self.observe(&self.workers.counts())
    }

    /// Whether the calls to the backend are looked at, at once and then ten times a second, for their peak.
    pub fn watch_calls(&mut self, on: bool) {
        self.look_at_calls();
        self.calls_watched = on;
    }

    fn look_at_calls(&mut self) {
        self.next_calls = Instant::now() + CALLS_EVERY;
        if let Some(calls) = self.read_metrics().and_then(|metrics| metrics.calls) {
            self.calls.push((self.elapsed_s(), calls));
        }
    }

    /// What the server says of itself now. A run goes on without, and says so at its end.
    fn read_metrics(&mut self) -> Option<ServerMetrics> {
        if self.pages.is_empty() {
            return None;
        }
        match self.pages.read() {
            Ok(metrics) => Some(metrics),
            Err(error) => {
                self.unread = Some(format!("{error:#}"));
                None
            }
        }
    }

    fn observe(&mut self, counts: &Counts) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.calls_watched && now >= self.next_calls {
            self.look_at_calls();
        }
        if now < self.next_sample {
            return Ok(());
        }
        self.next_sample = now + SAMPLE_EVERY;
        self.workers.check()?;
        let (client_cpu_us, client_rss_bytes) = self.workers.cost();
        let (server_cpu_us, server_rss_bytes) = if self.pids.is_empty() {
            let metrics = self.read_metrics().unwrap_or_default();
            (metrics.cpu_s.unwrap_or(0.0) * 1e6, metrics.rss_bytes.unwrap_or(0))
        } else {
            let cpu = self.pids.iter().filter_map(|pid| observe::cpu_time(*pid).ok()).sum::<Duration>();
            (self.gone_cpu_us + cpu.as_secs_f64() * 1e6, self.pids.iter().map(|pid| observe::rss_bytes(*pid)).sum())
        };
        // Processes that end during an upgrade take theirs along.
        let server_cpu_us = self.samples.last().map_or(0.0, |last| last.server_cpu_us).max(server_cpu_us);
        let sample = Sample {
            at_s: self.elapsed_s(),
            ready: counts.ready_now(),
            failed: counts.failed(),
            messages: counts.messages,
            server_rss_bytes,
            server_cpu_us,
            client_rss_bytes,
            client_cpu_us,
        };
        self.samples.push(sample);
        self.progress(&sample);
        Ok(())
    }

    fn progress(&mut self, sample: &Sample) {
        let before = self.samples.iter().rev().nth(1).copied();
        let rate = before
            .map_or(0.0, |before| (sample.ready as f64 - before.ready as f64) / (sample.at_s - before.at_s).max(0.001));
        let width = 24;
        let full = (sample.ready as usize * width / (self.total as usize).max(1)).min(width);
        let line = format!(
            "{:>5.0} s  {:<9} [{}{}] {}/{}  {:+.0}/s  failed {}  server {} MiB  client {} MiB",
            sample.at_s,
            self.doing,
            "#".repeat(full),
            ".".repeat(width - full),
            sample.ready,
            self.total,
            rate,
            sample.failed,
            sample.server_rss_bytes >> 20,
            sample.client_rss_bytes >> 20,
        );
        if self.terminal {
            eprint!("\r\x1b[2K{line}");
            let _ = std::io::stderr().flush();
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_EVERY;
            eprintln!("{line}");
        }
    }

    /// Takes the progress line away.
    pub fn clear_line(&self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }
}
