//! A run while it runs: the clients, a sample of everything once a second, the progress line, and Ctrl-C.
//!
//! Scenarios wait only through [`Session::wait`], so that whatever happens the curves go on, a person sees where it
//! stands, and an interrupted run still ends in a report.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::crew::Crew;
use crate::engine::Counts;
use crate::observe::{self, KernelCost, ProcessCost};

/// Between two samples, and two looks at a condition.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(2);
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
    /// Resident memory of the watched server processes, 0 without any.
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

/// A run.
pub struct Session {
    /// The clients.
    pub crew: Crew,
    /// One a second.
    pub samples: Vec<Sample>,
    /// The named moments.
    pub snapshots: Vec<Snapshot>,
    pids: Vec<u32>,
    total: u32,
    began: Instant,
    next_sample: Instant,
    next_line: Instant,
    doing: &'static str,
    interrupted: Arc<AtomicBool>,
    terminal: bool,
}

impl Session {
    /// Begins a run with clients that are not connected yet.
    pub fn begin(crew: Crew, total: u32, pids: Vec<u32>) -> anyhow::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                // The second one means it.
                std::process::exit(130);
            }
        })
        .context("cannot handle Ctrl-C")?;
        let now = Instant::now();
        let mut session = Self {
            crew,
            samples: Vec::new(),
            snapshots: Vec::new(),
            pids,
            total,
            began: now,
            next_sample: now,
            next_line: now,
            doing: "starting",
            interrupted,
            terminal: std::io::stderr().is_terminal(),
        };
        session.snapshot("before")?;
        Ok(session)
    }

    /// Whether Ctrl-C was pressed.
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
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
            let counts = self.crew.counts();
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

    /// Records everything about memory under a name.
    pub fn snapshot(&mut self, moment: &str) -> anyhow::Result<()> {
        let mut server: Option<ProcessCost> = None;
        for pid in &self.pids {
            let one = observe::process_cost(*pid).with_context(|| format!("process {pid} cannot be watched"))?;
            server.get_or_insert_default().add(&one);
        }
        let (client_cpu_us, client_rss_bytes) = self.crew.cost();
        self.snapshots.push(Snapshot {
            moment: moment.to_owned(),
            ready: self.crew.counts().ready_now(),
            server,
            kernel: observe::kernel_cost()?,
            client_rss_bytes,
            server_cpu_us: server.map_or(0.0, |server| server.cpu_ns as f64 / 1e3),
            client_cpu_us,
            at_s: self.elapsed_s(),
        });
        Ok(())
    }

    fn observe(&mut self, counts: &Counts) -> anyhow::Result<()> {
        let now = Instant::now();
        if now < self.next_sample {
            return Ok(());
        }
        self.next_sample = now + SAMPLE_EVERY;
        self.crew.check()?;
        let (client_cpu_us, client_rss_bytes) = self.crew.cost();
        let server_cpu = self.pids.iter().filter_map(|pid| observe::cpu_time(*pid).ok()).sum::<Duration>();
        let sample = Sample {
            at_s: self.elapsed_s(),
            ready: counts.ready_now(),
            failed: counts.failed(),
            messages: counts.messages,
            server_rss_bytes: self.pids.iter().map(|pid| observe::rss_bytes(*pid)).sum(),
            server_cpu_us: server_cpu.as_secs_f64() * 1e6,
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
