//! What the old and the new process say to each other, over one channel.
//!
//! ```text
//! old                                    new
//!      <--------------------- Hello         read its configuration
//! Listeners.. Offer --------------->        make everything that needs no port of its own
//!      <---------- Lanes.. Prepared         one lane for each of its shards
//! Snapshot.. SnapshotEnds --------->        what is large, while the old one still serves
//!      <---------------------- Kept
//!                                           connections that are at rest, through the lanes, still served
//! Snapshot, SnapshotEnds ---------->        streams that are followed since, if any
//!      <---------------------- Kept
//! State --------------------------->        and all other connections, through the lanes
//!      <---------------------- Have         everything is put together
//! Yours --------------------------->        the point of no return: from here on it serves
//!      <------------------- Started
//! Forward.. ----------------------->        what comes to the old process all the same
//!      <------------------- Taken..
//! ```
//!
//! Before `Yours` either of them may give up: the old process says `Abort` or closes its end, the new one says `Failed` or
//! ends. When the old one ends between `Have` and `Yours` without a word, nobody else has the connections, and the new one
//! serves.
//!
//! MessagePack with names: what a later version adds is optional, and what is not known is passed over.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::link::local::messages::LINK_FORMAT;
use crate::model::{Answer, Call, Publication, Reply, ResumeTicket, SlotKey};
use crate::node::state::{self, Given};
use crate::os::hand_over::{Channel, DESCRIPTORS_MAX};
use crate::shard;

/// Version of this protocol. It changes when an older process could not follow.
const PROTOCOL: u16 = 1;

/// What a new process says first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Hello {
    pub protocol: u16,
    /// For people.
    pub version: String,
    pub pid: u32,
    /// Formats of connections that it reads.
    pub connections: Vec<u16>,
    /// Formats of everything else that it reads.
    pub states: Vec<u16>,
    /// What it can say to the parent of several processes.
    #[serde(default)]
    pub links: Vec<u16>,
    /// It takes connections while they are served, and puts those together that do not change.
    #[serde(default)]
    pub ahead: bool,
    /// It takes a second snapshot of what links follow.
    #[serde(default)]
    pub follows_more: bool,
}

impl Hello {
    /// This program's.
    pub fn own() -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            connections: vec![shard::FORMAT],
            states: vec![state::STATE_FORMAT],
            links: vec![LINK_FORMAT],
            ahead: true,
            follows_more: true,
        }
    }

    /// Whether it can be a child of this process's parent.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn understands_parent(&self, format: u16) -> Result<(), String> {
        if self.links.contains(&format) {
            return Ok(());
        }
        Err(format!("version {} does not understand what the parent process says (format {format})", self.version))
    }

    /// Whether it understands what this process says and writes.
    ///
    /// # Errors
    /// What it does not.
    pub fn understands_us(&self) -> Result<(), String> {
        let Hello { protocol, version, connections, states, .. } = self;
        let read = |formats: &[u16]| formats.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let missing = if *protocol != PROTOCOL {
            format!("protocol {PROTOCOL}, but {protocol}")
        } else if !connections.contains(&shard::FORMAT) {
            format!("format {} of connections, but {}", shard::FORMAT, read(connections))
        } else if !states.contains(&state::STATE_FORMAT) {
            format!("format {} of the state, but {}", state::STATE_FORMAT, read(states))
        } else {
            return Ok(());
        };
        Err(format!("version {version} does not understand {missing}"))
    }
}

/// A port that is handed over with its listeners, by where the configuration says it is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Port {
    pub host: String,
    pub port: u16,
    /// How many of the listeners that were sent are its, in their order.
    pub listeners: usize,
}

/// What a new process is made of.
#[derive(Serialize, Deserialize)]
pub(super) struct Offer {
    pub given: Given,
    /// Whose clients connections are.
    pub main: Port,
    /// A supervisor has opened the main port.
    #[serde(default)]
    pub main_was_passed: bool,
    /// Of ordinary HTTP.
    #[serde(default)]
    pub others: Vec<Port>,
    /// How many shards will copy what they have.
    pub shards: usize,
    /// The old process. Without it, it is the parent of the new one.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// What the new process has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Have {
    /// Connections, and sessions without one that wait for an answer.
    pub connections: usize,
    /// Bytes of their state.
    pub bytes: usize,
}

/// The point of no return.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Yours {
    /// When the old process stopped, on `CLOCK_MONOTONIC` in microseconds.
    pub stopped_usec: u64,
    /// The longest pause that processes before have made.
    #[serde(default)]
    pub longest_pause_usec: u64,
}

/// From the new process to the old one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToOld {
    Hello(Hello),
    /// With writing ends of lanes, in the order of the shards.
    Lanes {},
    Prepared {},
    /// It has read the snapshot.
    Kept {},
    Have(Have),
    /// It cannot go on, and ends.
    Failed {
        why: String,
    },
    /// It serves.
    Started {
        /// On the same clock as [`Yours::stopped_usec`].
        at_usec: u64,
    },
    /// What was sent under this number is in the hands of its shards, or why it is not.
    Taken {
        number: u64,
        #[serde(default)]
        error: Option<String>,
    },
}

/// From the old process to the new one.
#[derive(Serialize, Deserialize)]
pub(super) enum ToNew {
    /// With listeners, in the order of the ports.
    Listeners {},
    Offer(Box<Offer>),
    /// A piece of it.
    Snapshot(ByteBuf),
    SnapshotEnds {},
    State(ByteBuf),
    Yours(Yours),
    /// The old process goes on; the new one ends.
    Abort {},
    Forward(Box<Forward>),
}

/// What came to the old process behind the point of no return.
#[derive(Serialize, Deserialize)]
pub(super) enum Forward {
    /// An answer to a question that was asked there.
    Answer { key: SlotKey, reply: Reply },
    /// Publications that were taken in there. Their sender waits.
    Publish { number: u64, publications: Vec<Publication> },
    /// One that has its place in its stream already.
    Deliver(Publication),
    /// Sessions are to be sent away. Their sender waits.
    Disconnect { number: u64, identifiers: Arc<str>, reconnect: bool },
    /// Sessions are to be sent away in all shards, which is known everywhere else.
    DisconnectHere { identifiers: Arc<str>, reconnect: bool },
    /// A session is to be given up.
    Yield(ResumeTicket),
    /// With the socket of a connection that is to become a WebSocket, and what was read of it. Older versions do not ask
    /// the socket for its peer.
    Adopt { peer: SocketAddr, listener: u8, read: ByteBuf },
    /// The app is to be told that a session is over.
    Tell(Box<Call>),
    /// All that was begun is finished.
    Finished {},
}

impl Forward {
    pub fn answer(Answer { key, reply }: Answer) -> Forward {
        Forward::Answer { key, reply }
    }
}

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the other process has ended")]
    Ended,
    #[error("the other process said nothing for {0:?}")]
    Silent(Duration),
    #[error("what the other process said cannot be read: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
    #[error(transparent)]
    Channel(io::Error),
}

/// One end of the channel between the two.
pub(super) struct Talk(pub Channel);

impl Talk {
    /// Says something.
    pub fn say<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Memory takes every write, and nothing in it refuses to be written.
        let bytes = rmp_serde::to_vec_named(message).expect("plain data can be written");
        self.0.send(&bytes, descriptors)
    }

    /// Says the same with parts of many descriptors, as often as it takes.
    pub fn say_with_all<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        descriptors.chunks(DESCRIPTORS_MAX).try_for_each(|some| self.say(message, some))
    }

    /// Waits for what is said next; `None`: as long as it takes.
    pub fn hear<T: DeserializeOwned>(&self, patience: Option<Duration>) -> Result<(T, Vec<OwnedFd>), LineError> {
        // The kernel takes zero for "for ever".
        let waits = patience.map(|patience| patience.max(Duration::from_millis(1)));
        self.0.set_patience(waits).map_err(LineError::Channel)?;
        match self.0.receive() {
            Ok(Some(received)) => Ok((rmp_serde::from_slice(&received.bytes)?, received.descriptors)),
            Ok(None) => Err(LineError::Ended),
            Err(error) if error.kind() == ErrorKind::TimedOut => Err(LineError::Silent(patience.unwrap_or_default())),
            Err(error) => Err(LineError::Channel(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        #[derive(Serialize)]
        struct LaterHello<'a> {
            protocol: u16,
            version: &'a str,
            pid: u32,
            mood: &'a str,
            connections: Vec<u16>,
            states: Vec<u16>,
        }
        #[derive(Serialize)]
        enum Later<'a> {
            Hello(LaterHello<'a>),
        }
        let (here, there) = Channel::pair().unwrap();
        let (here, there) = (Talk(here), Talk(there));
        let hello = LaterHello {
            protocol: PROTOCOL,
            version: "9",
            pid: 7,
            mood: "good",
            connections: vec![shard::FORMAT, 9],
            states: vec![state::STATE_FORMAT],
        };
        there.say(&Later::Hello(hello), &[]).unwrap();
        let (ToOld::Hello(hello), _) = here.hear(None).unwrap() else { panic!("no hello") };
        assert_eq!((hello.pid, hello.understands_us()), (7, Ok(())));
        let why = Hello { connections: vec![7, 9], ..hello }.understands_us().unwrap_err();
        assert_eq!(why, "version 9 does not understand format 1 of connections, but 7, 9");
        // What cannot be read is an error, and what comes behind it can be heard.
        there.say(&"what?", &[]).unwrap();
        there.say(&ToOld::Prepared {}, &[]).unwrap();
        assert!(matches!(here.hear::<ToOld>(None), Err(LineError::Unreadable(_))));
        assert!(matches!(here.hear::<ToOld>(None), Ok((ToOld::Prepared {}, _))));
        assert!(matches!(here.hear::<ToOld>(Some(Duration::from_millis(5))), Err(LineError::Silent(_))));
        drop(there);
        assert!(matches!(here.hear::<ToOld>(None), Err(LineError::Ended)));
    }
}
