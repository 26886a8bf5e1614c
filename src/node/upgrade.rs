//! One process hands everything over to a new one, of the same or another version, and no client notices.
//!
//! The order of events is the protocol's (`protocol`): the new process says hello, is offered the listeners, makes all its
//! parts, and gets one lane for each of its shards. Then the old one stops: publications are delivered and more wait,
//! shards settle, and every connection is copied into the lanes. Nothing changes in the old process until it says
//! "yours", which is one message: an upgrade that fails before is undone by going on.

pub(super) mod successor;

use std::time::Duration;

use super::Node;

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
    /// The label `result` in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            UpgradeError::Refused(_) => "refused",
            UpgradeError::New(_) => "new_process_failed",
            UpgradeError::Late(..) => "timeout",
            UpgradeError::Old(_) => "old_process_failed",
        }
    }
}

impl Node {
    /// Starts the program anew, with the arguments and the environment of this process, and hands everything over to it. When
    /// that is done this node serves nobody; what is left is to wait for [`Node::outlive`] and to end.
    ///
    /// # Errors
    /// See [`UpgradeError`]; then this node goes on as if nothing had been.
    pub fn upgrade(&mut self) -> Result<Upgraded, UpgradeError> {
        Err(UpgradeError::Refused("this version cannot".to_owned()))
    }

    /// Starts the program anew as [`Node::upgrade`] does, as far as it can be said whether both versions understand each
    /// other, and ends it again.
    ///
    /// # Errors
    /// See [`UpgradeError`].
    pub fn check_upgrade(&self) -> Result<Understood, UpgradeError> {
        Err(UpgradeError::Refused("this version cannot".to_owned()))
    }
}
