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
use super::links::{LinksGiven, LinksSnapshot, LinksState};
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
    /// What comes meanwhile would be lost.
    #[error("the old process has its link to {0}, and this one does not get one")]
    Link(&'static str),
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
    #[serde(default)]
    links: Option<LinksGiven>,
}

impl Given {
    /// Of a running node. From now on its links note what comes, until [`forget_changes`].
    pub fn of(parts: &Parts, settings: &shard::Settings) -> Given {
        let links = Some(parts.handed.given(&parts.pipeline));
        let resume_key = settings.resume_tokens.as_ref().map(|tokens| tokens.secret.expose().to_owned());
        Given { format: STATE_FORMAT, clock_began_ns: parts.pipeline.clock.began_ns(), resume_key, links }
    }

    /// What the links go on with.
    pub fn links(&self) -> Option<&LinksGiven> {
        self.links.as_ref()
    }

    /// Changes settings of shards to what the old process has.
    pub fn change(&self, settings: &mut shard::Settings) {
        let known = settings.resume_tokens.as_mut().zip(self.resume_key.as_deref().and_then(Secret::new));
        if let Some((tokens, secret)) = known {
            tokens.secret = secret;
        }
    }
}

/// What may be large, as it was before the node stopped. It is sent a piece at a time, so that it never lies anywhere twice.
pub(super) struct Snapshot {
    /// When it was begun.
    since: Now,
    /// Bytes of all pieces.
    pub bytes: usize,
}

/// Begins everything.
#[derive(Deserialize)]
struct Head {
    format: u16,
}

/// A piece of a [`Snapshot`].
#[derive(Serialize, Deserialize)]
pub(super) struct Piece {
    format: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local: Option<BrokerPart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closes: Option<Vec<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    links: Option<LinksSnapshot>,
}

impl Snapshot {
    /// Gives all of a running node to `send`, piece by piece. Takes its time; everything goes on meanwhile, and it is noted
    /// what changes.
    ///
    /// # Errors
    /// A piece was not sent.
    pub fn give<E>(parts: &Parts, mut send: impl FnMut(Vec<u8>) -> Result<(), E>) -> Result<Snapshot, E> {
        let mut snapshot = Snapshot { since: parts.pipeline.clock.now(), bytes: 0 };
        let mut give = |piece: Piece| {
            let bytes = written(&piece);
            snapshot.bytes += bytes.len();
            send(bytes)
        };
        let empty = || Piece { format: STATE_FORMAT, local: None, closes: None, links: None };
        if let Broker::Local(local) = &parts.pipeline.broker {
            for part in local.snapshot() {
                give(Piece { local: Some(part), ..empty() })?;
            }
        }
        let closes = look::all_closes(&parts.inboxes, parts.inherited.closes());
        give(Piece { closes: Some(closes), ..empty() })?;
        // Last, because the new process waits for its links.
        give(Piece { links: Some(parts.handed.snapshot(&parts.pipeline, &parts.links)), ..empty() })?;
        Ok(snapshot)
    }

    /// What the links follow that they did not then, if anything. See [`HandedLinks::more`](super::links::HandedLinks::more).
    pub fn more(&mut self, parts: &Parts) -> Option<Vec<u8>> {
        let links = Some(parts.handed.more(&parts.pipeline, &parts.links)?);
        let bytes = written(&Piece { format: STATE_FORMAT, local: None, closes: None, links });
        self.bytes += bytes.len();
        Some(bytes)
    }
}

impl Piece {
    /// What was sent.
    ///
    /// # Errors
    /// See [`BadNodeState`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Piece, BadNodeState> {
        check_format(bytes)?;
        Ok(rmp_serde::from_slice(bytes)?)
    }

    /// Puts it into a node that does not run yet; that of the links waits until they get what those of the old process get.
    ///
    /// # Errors
    /// One of them does not.
    pub fn apply(self, parts: &Parts) -> Result<(), BadNodeState> {
        let Piece { local, closes, links, .. } = self;
        if let (Some(part), Broker::Local(broker)) = (local, &parts.pipeline.broker) {
            broker.take_over(part);
        }
        if let Some(closes) = closes {
            // There is one list.
            let _ = parts.inherited.closes.set(closes);
        }
        if let Some(links) = links {
            parts.handed.follow(links, &parts.pipeline, &parts.links).map_err(BadNodeState::Link)?;
        }
        Ok(())
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
    #[serde(default)]
    links: LinksState,
    /// For how many clients there is room in one of several processes.
    #[serde(default)]
    room: Option<u64>,
}

impl NodeState {
    /// Of a node in which nothing moves; `snapshot` has been sent. It is short.
    pub fn collect(parts: &Parts, snapshot: &Snapshot) -> NodeState {
        let local = match &parts.pipeline.broker {
            Broker::Local(local) => local.changes(snapshot.since),
            Broker::Remote(_) | Broker::Parent(_) => BrokerPart::default(),
        };
        NodeState {
            format: STATE_FORMAT,
            local,
            calls: GivenCalls::of(&parts.backend),
            totals: counted::totals(parts),
            links: parts.handed.state(&parts.pipeline),
            room: parts.family.as_ref().map(|_| parts.counts.open_max()),
        }
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
        let NodeState { local, calls, totals, links, room, .. } = self;
        if let Broker::Local(broker) = &parts.pipeline.broker {
            broker.take_over(local);
        }
        parts.handed.take_over(links, &parts.pipeline);
        room.into_iter().for_each(|clients| _ = parts.set_room(clients));
        // There is one state.
        let _ = parts.inherited.totals.set(totals);
        let _ = parts.inherited.calls.set(calls);
    }
}

/// An upgrade has come to nothing, or is over: nobody needs to know any more what changes.
pub(super) fn forget_changes(parts: &Parts) {
    parts.handed.forget(&parts.pipeline);
    if let Broker::Local(local) = &parts.pipeline.broker {
        LocalBroker::forget_changes(local);
    }
}

/// All connections are put together: whoever was known by an old key, such as a client that waits for its session, is known
/// by a new one. Called once, behind [`NodeState::apply`] and before anything runs. Gives the old keys of those whose calls are
/// made here now: the old process does not answer them.
pub(super) fn renamed(parts: &Parts, moved: &Moved) -> Vec<SlotKey> {
    parts.handed.all_are_here(&parts.pipeline);
    parts.inherited.calls.get().map(|calls| calls.make(&parts.backend, moved)).unwrap_or_default()
}

fn written(plain: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(plain).expect("plain data can be written")
}

fn check_format(bytes: &[u8]) -> Result<(), BadNodeState> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    match Head::deserialize(&mut reader)? {
        Head { format: STATE_FORMAT } => Ok(()),
        Head { format } => Err(BadNodeState::Format(format)),
    }
}
