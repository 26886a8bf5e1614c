//! The way of connections from the shards of one process to those of another: a lane for each new shard.
//!
//! Every old shard copies what it has by itself, in chunks, while the new shards put together what has arrived. With as many
//! shards on both sides each has a lane to itself; else the chunks of all are dealt out. Until it is told what became of it a
//! shard that has copied touches no socket and takes no message.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use crate::model::SlotKey;
use crate::os::hand_over::{Channel, DESCRIPTORS_MAX, INLINE_MAX};
use crate::session::Asks;

use super::epoll::{Epoll, Socket};
use super::slots::Stage;
use super::{BadState, Message, Services, Shard};

/// Bytes of state in a chunk, but for a connection that has more by itself: so a chunk fits into a message.
const CHUNK_BYTES: usize = INLINE_MAX - DESCRIPTORS_MAX * ENTRY_BYTES;

/// What a connection takes in a chunk beside its state: its key, and the length of the state, as numbers.
const ENTRY_BYTES: usize = 24;

/// What a shard is told while its connections are handed over.
#[derive(Debug)]
pub enum HandOver {
    /// Stand still, and say so when everything is carried out that was given before.
    Settle(Sender<Settled>),
    /// Go on as if nothing had been.
    GoOn,
    /// Copy everything, and wait for what comes of it.
    Copy(Copying),
}

/// A shard stands still.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Something came since it said so last: others may have got something from it.
    pub was_busy: bool,
}

/// How to copy.
#[derive(Debug)]
pub struct Copying {
    /// The new shards' lanes.
    pub lanes: Arc<[Channel]>,
    /// This shard's number.
    pub shard: usize,
    /// How many shards copy.
    pub shards: usize,
    /// Where to say that it is done.
    pub done: Sender<io::Result<Copied>>,
    /// Where it is said what comes of it.
    pub verdict: Receiver<Verdict>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Sockets.
    pub sockets: usize,
    /// Connections, and sessions without one that wait for an answer.
    pub connections: usize,
    /// Bytes of state.
    pub bytes: usize,
}

/// Takes what is for a shard that has left.
pub type Divert = Arc<dyn Fn(Message<Socket>) + Send + Sync>;

/// What becomes of a shard whose connections were copied.
pub enum Verdict {
    /// It goes on.
    GoOn,
    /// The connections are somebody else's now. So are the messages here and to come.
    Leave(Divert),
}

/// Why connections did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// A lane ended too early.
    #[error("the old process ended while it sent its connections")]
    Ended,
    /// Nothing came, or it cannot be received.
    #[error("connections cannot be received: {0}")]
    Receive(#[from] io::Error),
    /// What came is no chunk.
    #[error("what the old process sent cannot be read: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
    /// There are more or fewer sockets than connections that have one.
    #[error("the old process sent other sockets than it says")]
    Sockets,
    /// A connection's state cannot be used.
    #[error(transparent)]
    State(#[from] BadState),
}

/// What arrived.
#[derive(Debug, Default)]
pub struct Arrived {
    /// How much.
    pub copied: Copied,
    /// Old and new keys of those who wait for an answer, and whose. What the cluster is asked it is asked again here.
    pub waiting: Vec<(SlotKey, SlotKey, Asks)>,
}

/// A part of what an old shard has.
#[derive(Default, Serialize, Deserialize)]
struct Chunk<'a> {
    /// Nothing more comes from this shard on this lane.
    #[serde(default)]
    last: bool,
    #[serde(borrow)]
    connections: Vec<Entry<'a>>,
}

/// A connection: shard, index and generation of its key, whether one of the sockets is its, its state.
type Entry<'a> = (u16, u32, u32, bool, &'a Bytes);

impl Copying {
    fn lane(&self, chunk: usize) -> &Channel {
        let is_own = self.lanes.len() == self.shards;
        &self.lanes[if is_own { self.shard } else { (self.shard + chunk) % self.lanes.len() }]
    }
}

fn encode(chunk: &Chunk<'_>) -> Vec<u8> {
    // Memory takes every write, and nothing in it refuses to be written.
    rmp_serde::to_vec_named(chunk).expect("plain data can be written")
}

impl<N: Services<Socket>> Shard<Epoll, N> {
    /// Sends copies of everything.
    pub(super) fn copy_into(&mut self, copying: &Copying) -> io::Result<Copied> {
        // The clock that deadlines are measured from.
        self.look_at_the_clock();
        let (mut copied, mut chunks) = (Copied::default(), 0);
        let (mut states, mut ends) = (Vec::with_capacity(INLINE_MAX), Vec::new());
        let mut send = |states: &mut Vec<u8>, ends: &mut Vec<(SlotKey, usize)>| {
            let (mut begin, mut connections) = (0, Vec::with_capacity(ends.len()));
            let mut sockets: Vec<BorrowedFd<'_>> = Vec::with_capacity(ends.len());
            for &(key, end) in ends.iter() {
                let socket = self.slots[key.index].socket.as_ref();
                sockets.extend(socket.map(AsFd::as_fd));
                let state = Bytes::new(&states[begin..end]);
                connections.push((key.shard, key.index, key.generation, socket.is_some(), state));
                begin = end;
            }
            copied.sockets += sockets.len();
            copied.connections += connections.len();
            copied.bytes += states.len();
            copying.lane(chunks).send(&encode(&Chunk { last: false, connections }), &sockets)?;
            chunks += 1;
            states.clear();
            ends.clear();
            io::Result::Ok(())
        };
        for key in self.all_keys() {
            let begin = states.len();
            self.write_state(key.index, &mut states);
            if states.len() > CHUNK_BYTES && begin > 0 {
                let last = states.split_off(begin);
                send(&mut states, &mut ends)?;
                states = last;
            }
            ends.push((key, states.len()));
            if ends.len() == DESCRIPTORS_MAX || states.len() > CHUNK_BYTES {
                send(&mut states, &mut ends)?;
            }
        }
        if !ends.is_empty() {
            send(&mut states, &mut ends)?;
        }
        let last = encode(&Chunk { last: true, connections: Vec::new() });
        let is_own = copying.lanes.len() == copying.shards;
        let lanes = if is_own { std::slice::from_ref(copying.lane(0)) } else { &copying.lanes };
        lanes.iter().try_for_each(|lane| lane.send(&last, &[]))?;
        Ok(copied)
    }

    /// Puts together everything that comes through a lane, from so many shards. This shard stands still, and has not had a
    /// turn.
    ///
    /// # Errors
    /// See [`LaneError`]. What has arrived is here, and ends with the shard.
    pub fn arrive(&mut self, lane: &Channel, senders: usize) -> Result<Arrived, LaneError> {
        let (mut arrived, mut left) = (Arrived::default(), senders);
        while left > 0 {
            let received = lane.receive()?.ok_or(LaneError::Ended)?;
            let chunk: Chunk<'_> = rmp_serde::from_slice(&received.bytes)?;
            let mut sockets = received.descriptors.into_iter();
            left -= usize::from(chunk.last);
            self.look_at_the_clock();
            if arrived.copied.connections == 0 {
                self.note_arrival();
            }
            for (shard, index, generation, has_socket, state) in chunk.connections {
                let socket = if has_socket { Some(sockets.next().ok_or(LaneError::Sockets)?) } else { None };
                let key = self.put_together(socket.map(Socket::from), state).map_err(|(_, bad)| bad)?;
                arrived.copied.sockets += usize::from(has_socket);
                arrived.copied.connections += 1;
                arrived.copied.bytes += state.len();
                match self.asks(key.index) {
                    Some(Asks::Cluster) => self.ask_again(key.index),
                    Some(asks) => arrived.waiting.push((SlotKey { shard, index, generation }, key, asks)),
                    None => {}
                }
            }
            if sockets.next().is_some() {
                return Err(LaneError::Sockets);
            }
        }
        Ok(arrived)
    }

    fn asks(&self, index: u32) -> Option<Asks> {
        match &self.slots[index].stage {
            Stage::Session(session, _) | Stage::Orphan(session) => session.asks(),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::GoOn => "GoOn",
            Verdict::Leave(_) => "Leave",
        })
    }
}
