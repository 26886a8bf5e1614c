//! What a person asks for: open and hold, publish, perform, drop and return, read slowly, come and go.
//!
//! Each scenario is a list of steps over a [`Run`] and ends in a [`Report`], also when it is interrupted. A lost,
//! doubled or reordered message, a connection that did not get ready or did not stay, makes the run fail.

mod idle;
mod options;
mod resume;
mod steps;

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
            _ => return Ok(()),
        };
        publishing.check(load)
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
}

impl Findings {
    fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.facts.push((name.to_owned(), value.into()));
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }
}

/// Runs a scenario, prints its table and writes its files. True when the run is clean.
pub fn run(load: &Load, scenario: &Scenario) -> anyhow::Result<bool> {
    scenario.check(load)?;
    let descriptors = workers::raise_descriptor_limit();
    let mut findings = Findings::default();
    if let Some(note) = &load.note {
        findings.fact("note", note);
    }
    // Outlives the run: the clients go before their servers.
    let fleet = Fleet::start(&load.fleet, load.connections, descriptors)?;
    let targets = options::targets(load, fleet.as_ref())?;
    let (mut pids, mut metrics) = (load.pids.clone(), load.server_metrics.clone());
    if let Some(fleet) = &fleet {
        findings.fact("server", fleet.words());
        pids.extend(fleet.pids());
        metrics.extend_from_slice(&fleet.metrics_urls);
    }
    let processes = load.processes.unwrap_or_else(|| workers::processes_needed(load.connections, descriptors));
    let workers = Workers::start(&options::plan(load, &targets)?, processes)?;
    let mut run = Run::begin(workers, load.connections, pids, &metrics)?;
    // Whatever a step ran into, what was seen until then is reported.
    if let Err(error) = steps::run(load, fleet.as_ref(), scenario, &mut run, &mut findings) {
        findings.problem(format!("{error:#}"));
    }
    // How late the clients were until the end; a worker that is gone has been reported above.
    let _ = run.collect(findings.published);
    run.clear_line();
    let report = Report::new(scenario.name(), &run, findings.facts, findings.latencies, findings.problems);
    println!("{} on {}\n{}", scenario.name(), targets.join(", "), report.text());
    report.write(load.json.as_deref(), load.html.as_deref())?;
    Ok(report.problems.is_empty())
}
