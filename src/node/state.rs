//! What a node knows beside its connections, as data: what a new process needs to go on with it.
//!
//! Three pieces, by when they are taken. [`Given`] is small and goes first, because parts are made of it. [`Snapshot`] is
//! what may be large and is taken while everything runs. [`NodeState`] is what the moment of change needs, taken while
//! nothing moves: every publication is delivered and every shard has stopped; it holds what has changed since the snapshot.
//!
//! Each is MessagePack with names. The first thing in it is the number of its format; whatever a later version adds is
//! optional, and what it adds is passed over by this one. Reading takes time and memory in proportion to the bytes that are
//! there, and changes nothing before all of it is read.

mod calls;
pub(super) mod counted;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::broker::{Broker, BrokerPart, LocalBroker};
use crate::identity::Secret;
use crate::model::{Now, SlotKey};
use crate::{shard, telemetry};

use self::calls::GivenCalls;
use super::look;
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
    /// Not all of it is there.
    #[error("the state of the old process ends too early")]
    Truncated,
    /// Another version wrote it.
    #[error("the state of the old process has format {0}, and {STATE_FORMAT} is understood here")]
    Format(u16),
}

/// What a process that has taken over has of those before it, beside what its parts go on with.
#[derive(Default)]
pub(super) struct Inherited {
    /// What they counted.
    totals: OnceLock<telemetry::Parts>,
    /// Connections that ended there, as operators are told, oldest first.
    closes: OnceLock<Vec<Value>>,
    /// Calls that were not started there, until their sessions are known here.
    calls: OnceLock<GivenCalls>,
}

impl Inherited {
    /// Connections that ended in the processes before this one, as operators are told, oldest first.
    pub fn closes(&self) -> &[Value] {
        self.closes.get().map_or(&[], Vec::as_slice)
    }
}

/// What parts are made of that both processes must have alike.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Given {
    format: u16,
    /// `CLOCK_MONOTONIC` where the clock of the node began, in nanoseconds.
    pub clock_began_ns: u64,
    /// The key of the tokens that clients show to come back.
    #[serde(default)]
    resume_key: Option<String>,
}

impl Given {
    /// Of a running node.
    pub fn of(parts: &Parts, settings: &shard::Settings) -> Given {
        let resume_key = settings.resume_tokens.as_ref().map(|tokens| tokens.secret.expose().to_owned());
        Given { format: STATE_FORMAT, clock_began_ns: parts.pipeline.clock.began_ns(), resume_key }
    }

    /// To be sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        written(self)
    }

    /// What was sent.
    ///
    /// # Errors
    /// See [`BadNodeState`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Given, BadNodeState> {
        check_format(bytes)?;
        Ok(rmp_serde::from_slice(bytes)?)
    }

    /// Changes settings of shards to what the old process has.
    pub fn change(&self, settings: &mut shard::Settings) {
        let known = settings.resume_tokens.as_mut().zip(self.resume_key.as_deref().and_then(Secret::new));
        if let Some((tokens, secret)) = known {
            tokens.secret = secret;
        }
    }
}

/// What may be large, as it was before the node stopped: a head, and behind it any number of pieces, each behind its length.
pub(super) struct Snapshot {
    bytes: Vec<u8>,
    /// When it was begun.
    since: Now,
}

/// Begins everything.
#[derive(Serialize, Deserialize)]
struct Head {
    format: u16,
}

/// A piece of a [`Snapshot`].
#[derive(Default, Serialize, Deserialize)]
struct Piece {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local: Option<BrokerPart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closes: Option<Vec<Value>>,
}

/// A [`Snapshot`] that was read.
pub(super) struct ReadSnapshot(Vec<Piece>);

impl Snapshot {
    /// Of a running node. Takes its time; everything goes on meanwhile, and it is noted what changes.
    pub fn take(parts: &Parts) -> Snapshot {
        let (mut bytes, since) = (Vec::new(), parts.pipeline.clock.now());
        put_framed(&mut bytes, &Head { format: STATE_FORMAT });
        let mut put = |piece: Piece| put_framed(&mut bytes, &piece);
        if let Broker::Local(local) = &parts.pipeline.broker {
            for part in local.snapshot() {
                put(Piece { local: Some(part), ..Piece::default() });
            }
        }
        let closes = look::all_closes(&parts.inboxes, parts.inherited.closes());
        put(Piece { closes: Some(closes), ..Piece::default() });
        Snapshot { bytes, since }
    }

    /// To be sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// It has been sent, and what it holds is not needed any more.
    pub fn forget(&mut self) {
        self.bytes = Vec::new();
    }

    /// What was sent.
    ///
    /// # Errors
    /// See [`BadNodeState`].
    pub fn from_bytes(bytes: &[u8]) -> Result<ReadSnapshot, BadNodeState> {
        let (head, mut rest) = framed(bytes)?;
        check_format(head)?;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (piece, behind) = framed(rest)?;
            pieces.push(rmp_serde::from_slice(piece)?);
            rest = behind;
        }
        Ok(ReadSnapshot(pieces))
    }
}

impl ReadSnapshot {
    /// Puts it into a node that does not run yet.
    pub fn apply(self, parts: &Parts) {
        for Piece { local, closes } in self.0 {
            if let (Some(part), Broker::Local(broker)) = (local, &parts.pipeline.broker) {
                broker.take_over(part);
            }
            if let Some(closes) = closes {
                // There is one list.
                let _ = parts.inherited.closes.set(closes);
            }
        }
    }
}

/// What the moment of change needs.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct NodeState {
    format: u16,
    #[serde(default)]
    local: BrokerPart,
    #[serde(default)]
    calls: GivenCalls,
    #[serde(default)]
    totals: telemetry::Parts,
}

impl NodeState {
    /// Of a node in which nothing moves; `snapshot` has been sent. It is short.
    pub fn collect(parts: &Parts, snapshot: &Snapshot) -> NodeState {
        let local = match &parts.pipeline.broker {
            Broker::Local(local) => local.changes(snapshot.since),
            Broker::Remote(_) | Broker::Parent(_) => BrokerPart::default(),
        };
        NodeState { format: STATE_FORMAT, local, calls: GivenCalls::of(&parts.backend), totals: counted::totals(parts) }
    }

    /// To be sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        written(self)
    }

    /// What was sent.
    ///
    /// # Errors
    /// See [`BadNodeState`].
    pub fn from_bytes(bytes: &[u8]) -> Result<NodeState, BadNodeState> {
        check_format(bytes)?;
        Ok(rmp_serde::from_slice(bytes)?)
    }

    /// Puts it into a node that does not run yet, while its shards put connections together on their threads.
    pub fn apply(self, parts: &Parts) {
        let NodeState { local, calls, totals, .. } = self;
        if let Broker::Local(broker) = &parts.pipeline.broker {
            broker.take_over(local);
        }
        // There is one state.
        let _ = parts.inherited.totals.set(totals);
        let _ = parts.inherited.calls.set(calls);
    }
}

/// An upgrade has come to nothing, or is over: nobody needs to know any more what changes.
pub(super) fn forget_changes(parts: &Parts) {
    if let Broker::Local(local) = &parts.pipeline.broker {
        LocalBroker::forget_changes(local);
    }
}

/// All connections are put together: whoever was known by an old key, such as a client that waits for its session, is known
/// by a new one. Called once, behind [`NodeState::apply`] and before anything runs. Gives the old keys of those whose calls are
/// made here now: the old process does not answer them.
pub(super) fn renamed(parts: &Parts, moved: &Moved) -> Vec<SlotKey> {
    parts.inherited.calls.get().map(|calls| calls.make(&parts.backend, moved)).unwrap_or_default()
}

fn written(plain: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, plain);
    bytes
}

fn put(bytes: &mut Vec<u8>, plain: &impl Serialize) {
    let mut writer = rmp_serde::Serializer::new(bytes).with_struct_map();
    plain.serialize(&mut writer).expect("plain data can be written");
}

/// In front of a piece stands its length.
const LENGTH_BYTES: usize = size_of::<u64>();

fn put_framed(bytes: &mut Vec<u8>, plain: &impl Serialize) {
    let begin = bytes.len();
    bytes.extend([0; LENGTH_BYTES]);
    put(bytes, plain);
    let length = (bytes.len() - begin - LENGTH_BYTES) as u64;
    bytes[begin..begin + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// The first piece, and what is behind it.
fn framed(bytes: &[u8]) -> Result<(&[u8], &[u8]), BadNodeState> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or(BadNodeState::Truncated)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| BadNodeState::Truncated)?;
    rest.split_at_checked(length).ok_or(BadNodeState::Truncated)
}

fn check_format(bytes: &[u8]) -> Result<(), BadNodeState> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    match Head::deserialize(&mut reader)? {
        Head { format: STATE_FORMAT } => Ok(()),
        Head { format } => Err(BadNodeState::Format(format)),
    }
}
