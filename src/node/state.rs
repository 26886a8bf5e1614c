//! What a node knows beside its connections, as data: what a new process needs to go on with it.
//!
//! Three pieces, by when they are taken. [`Given`] is small and goes first, because parts are made of it. [`Snapshot`] is
//! what may be large and is taken while everything runs. [`NodeState`] is what the moment of change needs, taken while
//! nothing moves: every publication is delivered and every shard has stopped.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::model::SlotKey;

use super::observe::Parts;

/// Version of the form of all three. It changes when an older reader could not make sense of what is written; what a newer
/// one adds is optional.
pub(super) const STATE_FORMAT: u16 = 1;

/// Keys of connections in the old process, and what they are in this one.
pub(super) type Moved = HashMap<SlotKey, SlotKey>;

/// Why what was handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadNodeState {
    /// It cannot be read.
    #[error("the state of the old process cannot be read: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
    /// Another version wrote it.
    #[error("the state of the old process has format {0}, and {STATE_FORMAT} is understood here")]
    Format(u16),
}

/// What parts are made of that both processes must have alike.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Given {
    format: u16,
    /// `CLOCK_MONOTONIC` where the clock of the node began, in nanoseconds.
    pub clock_began_ns: u64,
}

impl Given {
    /// Of a running node.
    pub fn of(parts: &Parts) -> Given {
        Given { format: STATE_FORMAT, clock_began_ns: parts.pipeline.clock.began_ns() }
    }
}

/// What may be large, as it was before the node stopped.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Snapshot {
    format: u16,
}

impl Snapshot {
    /// Of a running node. Takes its time; everything goes on meanwhile.
    pub fn take(_parts: &Parts) -> Snapshot {
        Snapshot { format: STATE_FORMAT }
    }

    /// To be sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("plain data can be written")
    }

    /// What was sent.
    ///
    /// # Errors
    /// See [`BadNodeState`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Snapshot, BadNodeState> {
        Ok(rmp_serde::from_slice(bytes)?)
    }

    /// Puts it into a node that does not run yet.
    pub fn apply(self, _parts: &Parts) {}
}

/// What the moment of change needs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct NodeState {
    format: u16,
}

impl NodeState {
    /// Of a node in which nothing moves; `snapshot` has been sent. It is short.
    pub fn collect(_parts: &Parts, _snapshot: &Snapshot) -> NodeState {
        NodeState { format: STATE_FORMAT }
    }

    /// To be sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("plain data can be written")
    }

    /// What was sent.
    ///
    /// # Errors
    /// See [`BadNodeState`].
    pub fn from_bytes(bytes: &[u8]) -> Result<NodeState, BadNodeState> {
        Ok(rmp_serde::from_slice(bytes)?)
    }

    /// Puts it into a node that does not run yet, while its shards put connections together on their threads.
    pub fn apply(self, _parts: &Parts) {}
}

/// All connections are put together: whoever was known by an old key, such as a client that waits for its session, is known
/// by a new one. Called once, behind [`NodeState::apply`] and before anything runs.
pub(super) fn renamed(_parts: &Parts, _moved: &Moved) {}
