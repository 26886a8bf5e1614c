//! One process hands everything over to a new one, of the same or another version, and no client notices.
//!
//! The order of events is the protocol's (`protocol`): the new process says hello, is offered the listeners, makes all its
//! parts, and gets one lane for each of its shards. Then the old one stops: publications are delivered and more wait,
//! shards settle, and every connection is copied into the lanes. Nothing changes in the old process until it says
//! "yours", which is one message: an upgrade that fails before is undone by going on.

mod new;
mod old;
mod protocol;
pub(super) mod successor;

use std::io;
use std::time::Duration;

use crate::telemetry::{Collect, Counter, Families, Gauge, Value};

use super::Node;

pub(super) use new::{Following, Lane, Predecessor, Receivers, lanes, refuse_predecessor};
pub(super) use old::NewProcess;
pub(super) use successor::ToSuccessor;

/// What an upgrade came to.
#[derive(Clone, Debug)]
pub struct Upgraded {
    /// The new process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Connections that it has now.
    pub connections: usize,
    /// Bytes of state, sockets not counted.
    pub state_bytes: usize,
    /// From when the first shard stopped until the new process had everything and was told to go on.
    pub pause: Duration,
    /// From the beginning.
    pub took: Duration,
}

/// What a new version says of itself before anything is handed over.
#[derive(Clone, Debug)]
pub struct Understood {
    /// This process's version.
    pub old_version: String,
    /// The version that would be started.
    pub new_version: String,
    /// Its executable.
    pub program: std::path::PathBuf,
}

/// Why nothing was handed over. The old process goes on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It cannot be done here at all.
    #[error("cannot be upgraded: {0}")]
    Refused(String),
    /// The new process does not come up, or does not understand what it would be given.
    #[error("the new process cannot take over: {0}")]
    New(String),
    /// It did not do its part in time.
    #[error("the new process took longer than {0:?} to {1}")]
    Late(Duration, &'static str),
    /// This process could not do its own part.
    #[error("this process cannot hand over: {0}")]
    Old(String),
}

impl UpgradeError {
    /// What may be the matter, as the label `result` in metrics.
    const LABELS: [&str; 4] = ["refused", "new_process_failed", "timeout", "old_process_failed"];

    /// The label `result` in metrics.
    pub fn label(&self) -> &'static str {
        UpgradeError::LABELS[self.number()]
    }

    fn number(&self) -> usize {
        match self {
            UpgradeError::Refused(_) => 0,
            UpgradeError::New(_) => 1,
            UpgradeError::Late(..) => 2,
            UpgradeError::Old(_) => 3,
        }
    }

    pub(super) fn old(error: io::Error) -> UpgradeError {
        UpgradeError::Old(error.to_string())
    }
}

/// The name of what is counted of upgrades, and what it means.
const TOTAL: (&str, &str) = ("upgrades_total", "Upgrades of this server, by what came of them.");

/// Upgrades that came to nothing, by why.
#[derive(Debug, Default)]
pub(super) struct FailedUpgrades([Counter; UpgradeError::LABELS.len()]);

impl FailedUpgrades {
    /// One more.
    pub fn note(&self, why: &UpgradeError) {
        self.0[why.number()].inc();
    }
}

impl Collect for FailedUpgrades {
    fn collect(&self, _labels: &[(&str, &str)], into: &mut Families) {
        for (result, count) in UpgradeError::LABELS.into_iter().zip(&self.0) {
            into.put(TOTAL.0, TOTAL.1, &[("result", result)], count.into());
        }
    }
}

/// What is counted of upgrades. Those that were successful are counted by the new process.
#[derive(Debug, Default)]
pub(super) struct UpgradeMetrics {
    succeeded: Counter,
    failed: FailedUpgrades,
    connections: Counter,
    last_pause_usec: Gauge,
    longest_pause_usec: Gauge,
}

impl UpgradeMetrics {
    fn taken_over(&self, connections: usize, pause: Duration, longest_before_usec: u64) {
        let pause = i64::try_from(pause.as_micros()).unwrap_or(i64::MAX);
        self.succeeded.inc();
        self.connections.add(connections as u64);
        self.last_pause_usec.set(pause);
        self.longest_pause_usec.set(pause.max(i64::try_from(longest_before_usec).unwrap_or(0)));
    }

    fn longest_pause_usec(&self) -> u64 {
        self.longest_pause_usec.get().unsigned_abs()
    }
}

impl Collect for UpgradeMetrics {
    fn collect(&self, labels: &[(&str, &str)], into: &mut Families) {
        self.failed.collect(labels, into);
        into.put(TOTAL.0, TOTAL.1, &[("result", "ok")], (&self.succeeded).into());
        let help = "Connections that were handed over to another process.";
        into.put("upgrade_connections_total", help, &[], (&self.connections).into());
        for (which, usec) in [("last", &self.last_pause_usec), ("longest", &self.longest_pause_usec)] {
            let help = "Pause of an upgrade: from when the old process stopped until the new one served.";
            into.put("upgrade_pause_seconds", help, &[("which", which)], Value::Gauge(usec.get() as f64 / 1e6));
        }
    }
}

impl Node {
    /// Starts the program anew, with the arguments and the environment of this process, and hands everything over to it. When
    /// that is done this node serves nobody; what is left is to finish what it has begun, and to end.
    ///
    /// # Errors
    /// See [`UpgradeError`]; then this node goes on as if nothing had been.
    pub fn upgrade(&mut self) -> Result<Upgraded, UpgradeError> {
        tracing::info!("upgrade: starting the program anew");
        let result = self.start_and_hand_over();
        self.note(&result);
        result
    }

    /// The same with a process that the parent of this one has started.
    ///
    /// # Errors
    /// See [`UpgradeError`]; then this node goes on as if nothing had been.
    pub(super) fn upgrade_to(&mut self, new: Result<NewProcess, UpgradeError>) -> Result<Upgraded, UpgradeError> {
        let result = new.and_then(|new| self.hand_over_to(new));
        self.note(&result);
        result
    }

    fn note(&self, result: &Result<Upgraded, UpgradeError>) {
        match result {
            Ok(Upgraded { pid, version, connections, state_bytes, pause, took }) => {
                let (pause_ms, took_ms) = (pause.as_secs_f64() * 1e3, took.as_secs_f64() * 1e3);
                tracing::info!(
                    pid,
                    connections,
                    state_bytes,
                    pause_ms,
                    took_ms,
                    "upgrade: process {pid} (version {version}) has everything"
                );
            }
            Err(error) => {
                self.observer.parts.upgrades.failed.note(error);
                tracing::error!(%error, "upgrade: nothing has changed, this process goes on");
            }
        }
    }

    /// Starts the program anew as [`Node::upgrade`] does, as far as it can be said whether both versions understand each
    /// other, and ends it again.
    ///
    /// # Errors
    /// See [`UpgradeError`].
    pub fn check_upgrade(&self) -> Result<Understood, UpgradeError> {
        self.try_check()
    }
}
