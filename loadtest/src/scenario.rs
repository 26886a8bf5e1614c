//! What a person asks for: open and hold, publish, perform, drop and return, read slowly, come and go.
//!
//! Each scenario is a list of steps over a [`Run`] and ends in a [`Report`], also when it is interrupted. A lost,
//! doubled or reordered message, a connection that did not get ready or did not stay, makes the run fail.

mod beside;
mod finale;
mod idle;
mod options;
mod resume;
mod steps;

pub use beside::Turn;
pub use finale::Finale;
pub use options::{Load, Publishing};

use anyhow::ensure;

use crate::engine::{BadNetwork, Goodbye};
use crate::fleet::Fleet;
use crate::report::{Latency, Report};
use crate::run::Run;
use crate::workers::{self, Workers};

/// A scenario and its own settings.
#[derive(Debug, Clone)]
pub enum Scenario {
    /// Open and hold.
    Idle {
        /// How long, in seconds.
        hold: f64,
        /// Open as many on the yardstick, too.
        beside_bare: Option<Turn>,
        /// What happens at the end.
        finale: Finale,
    },
    /// Open and see how fast that goes.
    Connect,
    /// Publish to everybody.
    Broadcast {
        /// The publications.
        publishing: Publishing,
        /// What becomes of connections meanwhile.
        bad_network: Option<BadNetwork>,
    },
    /// Say something and wait for the answer.
    Echo {
        /// Rounds of each client.
        rounds: u32,
        /// Clients that do it at the same time.
        at_once: u32,
        /// What they say.
        text: String,
    },
    /// Drop a share at once and come back.
    Storm {
        /// The share, 0 to 1.
        share: f64,
        /// How they go.
        goodbye: Goodbye,
        /// They go on with their sessions, and this is published while they are away and while they come back.
        restore: Option<Publishing>,
    },
    /// A share reads slowly while everybody is published to.
    Slow {
        /// The share, 0 to 1.
        share: f64,
        /// Bytes a second; 0 for none at all.
        read_rate: u32,
        /// The publications.
        publishing: Publishing,
    },
    /// Clients come and go.
    Churn {
        /// How long, in seconds.
        seconds: f64,
        /// The share that goes and comes each second.
        share: f64,
        /// How they go.
        goodbye: Goodbye,
    },
}

impl Scenario {
    /// Fails early: nobody wants to hear of it when ten thousand clients have been opened.
    fn check(&self, load: &Load) -> anyhow::Result<()> {
        let resumes = load.protocol.resumes();
        let publishing = match self {
            Self::Broadcast { publishing, bad_network } => {
                ensure!(resumes || bad_network.is_none(), "--drop-every needs --protocol actioncable-ext");
                let leaves_time = bad_network.is_none_or(|network| network.drop_for < network.drop_every);
                ensure!(leaves_time, "--drop-for must be shorter than --drop-every");
                publishing
            }
            Self::Storm { restore: Some(publishing), .. } => {
                ensure!(resumes, "--restore needs --protocol actioncable-ext");
                publishing
            }
            Self::Slow { publishing, .. } => publishing,
            Self::Idle { beside_bare, finale, .. } => {
                if beside_bare.is_some() {
                    beside::check(load)?;
                }
                return finale.check(load);
            }
            _ => return Ok(()),
        };
        publishing.check(load)
    }

    /// Whether the server is upgraded.
    fn upgrades(&self) -> bool {
        matches!(self, Self::Idle { finale, .. } if finale.upgrade)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Connect => "connect",
            Self::Broadcast { .. } => "broadcast",
            Self::Echo { .. } => "echo",
            Self::Storm { .. } => "storm",
            Self::Slow { .. } => "slow",
            Self::Churn { .. } => "churn",
        }
    }
}

/// What a scenario gathers.
#[derive(Default)]
struct Findings {
    facts: Vec<(String, String)>,
    latencies: Vec<Latency>,
    problems: Vec<String>,
    published: u32,
    /// How long it took until all were open, in seconds.
    opened_s: f64,
}

impl Findings {
    fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.facts.push((name.to_owned(), value.into()));
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }
}

/// What clients connect to, and what is watched of it.
struct Subject<'a> {
    targets: &'a [String],
    fleet: Option<&'a Fleet>,
    words: Option<String>,
    pids: Vec<u32>,
    metrics: Vec<String>,
}

/// Runs a scenario, prints its table and writes its files. True when the run is clean.
pub fn run(load: &Load, scenario: &Scenario) -> anyhow::Result<bool> {
    scenario.check(load)?;
    let descriptors = workers::raise_descriptor_limit();
    let report = match scenario {
        Scenario::Idle { hold, beside_bare: Some(turn), .. } => beside::run(load, scenario, *hold, *turn, descriptors)?,
        _ => serve_and_measure(load, scenario, descriptors)?.0,
    };
    println!("{}", report.text());
    report.write(load.json.as_deref(), load.html.as_deref())?;
    Ok(report.problems.is_empty())
}

/// Starts servers, if it is asked for, and runs a scenario against them, or those that run; also, how long opening took.
fn serve_and_measure(load: &Load, scenario: &Scenario, descriptors: u64) -> anyhow::Result<(Report, f64)> {
    // Outlives the run: the clients go before their servers.
    let fleet =
        Fleet::start(&load.fleet, load.connections, descriptors, &load.server_arguments(), scenario.upgrades())?;
    let targets = options::targets(load, fleet.as_ref())?;
    let (mut pids, mut metrics) = (load.pids.clone(), load.server_metrics.clone());
    if let Some(fleet) = &fleet {
        pids.extend(fleet.pids());
        metrics.extend_from_slice(&fleet.metrics_urls);
    }
    let words = fleet.as_ref().map(Fleet::words);
    measure(load, scenario, descriptors, Subject { targets: &targets, fleet: fleet.as_ref(), words, pids, metrics })
}

/// Runs a scenario against something that runs; also, how long opening took.
fn measure(load: &Load, scenario: &Scenario, descriptors: u64, subject: Subject<'_>) -> anyhow::Result<(Report, f64)> {
    let Subject { targets, fleet, words, pids, metrics } = subject;
    let mut findings = Findings::default();
    if let Some(note) = &load.note {
        findings.fact("note", note);
    }
    if let Some(words) = words {
        findings.fact("server", words);
    }
    let processes = load.processes.unwrap_or_else(|| workers::processes_needed(load.connections, descriptors));
    let workers = Workers::start(&options::plan(load, targets)?, processes)?;
    let mut run = Run::begin(workers, load.connections, pids, &metrics)?;
    // Whatever a step ran into, what was seen until then is reported.
    if let Err(error) = steps::run(load, fleet, scenario, &mut run, &mut findings) {
        findings.problem(format!("{error:#}"));
    }
    // How late the clients were until the end; a worker that is gone has been reported above.
    let _ = run.collect(findings.published);
    run.clear_line();
    let opened_s = findings.opened_s;
    let report = Report::new(scenario.name(), targets, &run, findings.facts, findings.latencies, findings.problems);
    Ok((report, opened_s))
}
