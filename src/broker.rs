//! The broker: what gives a publication its place in its stream, and what remembers.
//!
//! One authority for each stream. With [`LocalBroker`] ("none", "memory") that is this process, and everything is known at
//! once. With [`RemoteBroker`] it is a server beside all nodes of a cluster, and everything is known later. With
//! [`ParentBroker`] it is the `LocalBroker` of the parent process, over a link.
//!
//! It knows no shards and no sources. Time is an argument.

mod local;
mod metrics;
mod nats;
mod parent;
mod redis;
mod remote;
mod sent_away;
mod sessions;

use crate::model::Publication;
use crate::presence;

pub use crate::history::COUNTER_TTLS;
pub use local::{BrokerPart, LocalBroker, LocalSnapshot, MemorySettings};
pub use metrics::BrokerMetrics;
pub use nats::{NatsBrokerSettings, NatsStore};
pub use parent::{Credit, FromParent, ParentBroker};
pub use redis::{Channels, RedisBrokerSettings, RedisStore};
pub use remote::{GivenRemote, Outlet, RemoteBroker, RemoteMetrics, RemoteSettings, Running};
pub use sent_away::GivenAway;
pub use sessions::{Departure, LivingSession, Place, Resumption, SessionNote, Sessions, SessionsSettings};

/// Where things are kept.
pub enum Broker {
    /// In this process, or nowhere.
    Local(LocalBroker),
    /// On other machines.
    Remote(RemoteBroker),
    /// In the parent of this process, which is one of several.
    Parent(ParentBroker),
}

impl Broker {
    /// What was counted.
    pub fn metrics(&self) -> &BrokerMetrics {
        match self {
            Broker::Local(local) => &local.metrics,
            Broker::Remote(remote) => remote.metrics(),
            Broker::Parent(parent) => parent.metrics(),
        }
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        match self {
            Broker::Local(local) => local.measure(),
            Broker::Remote(remote) => remote.measure(),
            // The parent tells its own.
            Broker::Parent(_) => {}
        }
    }

    /// Whether anything is remembered.
    pub fn remembers(&self) -> bool {
        match self {
            Broker::Local(local) => local.sessions().is_some(),
            Broker::Remote(_) => true,
            Broker::Parent(parent) => parent.remembers(),
        }
    }
}

/// Locks that all streams share. Two streams with the same one wait for each other for as long as one hand-over takes,
/// some microseconds; with 64 and a handful of publishing threads that is rare. A power of two.
const STRIPES: usize = 64;

/// Bytes of an answer to a client that asks who is present. One that is larger comes without the records: a client that
/// may have 1 MiB waiting (`--ws-max-pending-size`) could not take it.
pub const PRESENT_BYTES_MAX: usize = 512 << 10;

/// Parts that are swept one after the other by [`LocalBroker::sweep`].
pub const SWEEPS: usize = STRIPES;

/// The publication that tells that somebody has come or gone.
fn event_of(stream: &str, id: &str, info: Option<&str>, is_there: bool) -> Option<Publication> {
    let mut event = Vec::new();
    if is_there {
        presence::write_join(&mut event, id, info)
    } else {
        presence::write_leave(&mut event, id)
    }
    presence_event(stream, event)
}

/// The publication that tells of a change, if there is anything to tell.
fn presence_event(stream: &str, event: Vec<u8>) -> Option<Publication> {
    let event = String::from_utf8(event).ok().filter(|event| !event.is_empty())?;
    let event = Publication { kind: Some("presence".into()), transient: true, ..Publication::new(stream, event) };
    Some(event)
}
