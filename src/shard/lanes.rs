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

/// Slots that are looked at in one turn, for one that is worth a copy.
const LOOKED_AT: u32 = 65_536;

/// What a connection takes in a chunk beside its state: its key, and the length of the state, as numbers.
const ENTRY_BYTES: usize = 24;

/// What a shard is told while its connections are handed over.
#[derive(Debug)]
pub enum HandOver {
    /// Stand still, and say so when everything is carried out that was given before.
    Settle(Sender<Settled>),
    /// Go on as if nothing had been.
    GoOn,
    /// Copy what is at rest, and go on meanwhile. It may be told several times.
    CopyAhead(CopyingAhead),
    /// Copy everything, and wait for what comes of it.
    Copy(Copying),
}

/// A shard stands still.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Something came since it said so last: others may have got something from it.
    pub was_busy: bool,
}

/// How to copy while the shard serves.
#[derive(Debug)]
pub struct CopyingAhead {
    /// The way.
    pub lanes: Lanes,
    /// Where to say how many were copied when all are that can be.
    pub done: Sender<io::Result<usize>>,
}

/// How to copy.
#[derive(Debug)]
pub struct Copying {
    /// The way.
    pub lanes: Lanes,
    /// Where to say what the new process has then: connections, and sessions without one that wait for an answer.
    pub done: Sender<io::Result<usize>>,
    /// Where it is said what comes of it.
    pub verdict: Receiver<Verdict>,
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
    /// Connections, and sessions without one that wait for an answer.
    pub connections: usize,
    /// Bytes of their state.
    pub bytes: usize,
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
    /// These are served there meanwhile; they come again if they change.
    #[serde(default)]
    ahead: bool,
    /// Those that came ahead and are not as they were, or not there any more.
    #[serde(default)]
    outdated: Vec<PlainKey>,
}

/// Shard, index and generation of a key.
type PlainKey = (u16, u32, u32);

/// Outdated connections in one chunk.
const OUTDATED_MAX: usize = 4096;

/// A connection: shard, index and generation of its key, whether one of the sockets is its, its state.
type Entry<'a> = (u16, u32, u32, bool, &'a Bytes);

/// Lanes to the new shards, for one of the old ones.
#[derive(Clone, Debug)]
pub struct Lanes {
    all: Arc<[Channel]>,
    shard: usize,
    is_own: bool,
}

impl Lanes {
    /// For the shard with this number, of so many.
    pub fn new(all: Arc<[Channel]>, shard: usize, shards: usize) -> Lanes {
        let is_own = all.len() == shards;
        Lanes { all, shard, is_own }
    }

    /// Those that it sends on.
    fn used(&self) -> &[Channel] {
        if self.is_own { std::slice::from_ref(&self.all[self.shard]) } else { &self.all }
    }

    /// Which of these a connection goes to, whenever it is copied. Those that follow each other go to the same.
    fn number(&self, index: u32) -> usize {
        (self.shard + index as usize / DESCRIPTORS_MAX) % self.used().len()
    }

    /// Outdated connections by the lanes that they went to, as many in a part as go into a chunk.
    fn parts(&self, outdated: Vec<SlotKey>) -> Vec<(usize, Vec<PlainKey>)> {
        let mut of_lanes: Vec<Vec<PlainKey>> = self.used().iter().map(|_| Vec::new()).collect();
        for SlotKey { shard, index, generation } in outdated {
            of_lanes[self.number(index)].push((shard, index, generation));
        }
        let parts = |(number, keys): (usize, Vec<PlainKey>)| {
            let parts: Vec<_> = keys.chunks(OUTDATED_MAX).map(|part| (number, part.to_vec())).collect();
            parts
        };
        of_lanes.into_iter().enumerate().flat_map(parts).collect()
    }
}

/// A round of copies that are made while the shard serves.
#[derive(Debug)]
pub(super) struct Round {
    lanes: Lanes,
    /// What the new process is to be told first.
    outdated: Vec<(usize, Vec<PlainKey>)>,
    /// The slot that is looked at next.
    next: u32,
}

/// Connections to be sent in one chunk.
#[derive(Default)]
struct Batch {
    states: Vec<u8>,
    /// Whose states, and where each ends.
    ends: Vec<(SlotKey, usize)>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.ends.len() == DESCRIPTORS_MAX || self.states.len() > CHUNK_BYTES
    }
}

/// How far it has come.
pub(super) enum Progress {
    /// The new process has to read something first.
    Waits,
    /// So many more are copied.
    Copied(usize),
    Finished,
}

fn encode(chunk: &Chunk<'_>) -> Vec<u8> {
    // Memory takes every write, and nothing in it refuses to be written.
    rmp_serde::to_vec_named(chunk).expect("plain data can be written")
}

impl<N: Services<Socket>> Shard<Epoll, N> {
    /// Sends copies of everything that has not been copied ahead, or is not as it was. Gives how many connections are copied then.
    pub(super) fn copy_into(&mut self, lanes: &Lanes) -> io::Result<usize> {
        // The clock that deadlines are measured from.
        self.look_at_the_clock();
        // First, so that the new process never holds more sockets than this one.
        for (number, outdated) in lanes.parts(self.take_outdated()) {
            lanes.used()[number].send(&encode(&Chunk { outdated, ..Chunk::default() }), &[])?;
        }
        let mut connections = 0;
        let mut batches: Vec<Batch> = lanes.used().iter().map(|_| Batch::default()).collect();
        for key in self.all_keys() {
            connections += 1;
            if self.is_copied(key) {
                continue;
            }
            let number = lanes.number(key.index);
            let (lane, batch) = (&lanes.used()[number], &mut batches[number]);
            let begin = batch.states.len();
            self.write_state(key.index, &mut batch.states);
            if batch.states.len() > CHUNK_BYTES && begin > 0 {
                let last = batch.states.split_off(begin);
                lane.send(&encode(&self.chunk(batch)), &self.sockets(batch))?;
                (batch.states, batch.ends) = (last, Vec::new());
            }
            batch.ends.push((key, batch.states.len()));
            if batch.is_full() {
                lane.send(&encode(&self.chunk(batch)), &self.sockets(batch))?;
                *batch = Batch::default();
            }
        }
        for (lane, batch) in lanes.used().iter().zip(&batches) {
            lane.send(&encode(&Chunk { last: true, ..self.chunk(batch) }), &self.sockets(batch))?;
        }
        Ok(connections)
    }

    /// Begins to copy what is at rest.
    pub(super) fn begin_round(&mut self, lanes: Lanes) -> Round {
        Round { outdated: lanes.parts(self.take_outdated()), lanes, next: 0 }
    }

    /// Sends copies of some more connections, without waiting.
    pub(super) fn copy_some_ahead(&mut self, round: &mut Round) -> io::Result<Progress> {
        let Round { lanes, outdated, next } = round;
        if let Some((number, some)) = outdated.last() {
            let lane = &lanes.used()[*number];
            let chunk = Chunk { outdated: some.clone(), ..Chunk::default() };
            if !lane.has_room()? || !lane.try_send(&encode(&chunk), &[])? {
                return Ok(Progress::Waits);
            }
            outdated.pop();
            return Ok(Progress::Copied(0));
        }
        let some = *next..next.saturating_add(LOOKED_AT);
        let Some(first) = self.next_to_copy(some.clone()) else {
            *next = some.end;
            return Ok(if *next < self.slots.end() { Progress::Copied(0) } else { Progress::Finished });
        };
        let lane = &lanes.used()[lanes.number(first.index)];
        if !lane.has_room()? {
            return Ok(Progress::Waits);
        }
        // Those that go to the same lane.
        let block = DESCRIPTORS_MAX as u32;
        let end = (first.index / block + 1) * block;
        *next = first.index;
        let mut batch = Batch::default();
        while let Some(key) = self.next_to_copy(*next..end) {
            let begin = batch.states.len();
            self.write_state(key.index, &mut batch.states);
            if batch.states.len() <= CHUNK_BYTES {
                batch.ends.push((key, batch.states.len()));
            } else {
                batch.states.truncate(begin);
                // One that has so much by itself is copied when everything stands still.
                if begin > 0 {
                    break;
                }
            }
            *next = key.index + 1;
        }
        let chunk = Chunk { ahead: true, ..self.chunk(&batch) };
        if !lane.try_send(&encode(&chunk), &self.sockets(&batch))? {
            *next = first.index;
            return Ok(Progress::Waits);
        }
        let copied = batch.ends.len();
        batch.ends.into_iter().for_each(|(key, _)| self.note_copied(key));
        Ok(Progress::Copied(copied))
    }

    fn chunk<'a>(&self, batch: &'a Batch) -> Chunk<'a> {
        let mut begin = 0;
        let entry = |&(key, end): &(SlotKey, usize)| {
            let state = Bytes::new(&batch.states[std::mem::replace(&mut begin, end)..end]);
            (key.shard, key.index, key.generation, self.slots[key.index].socket.is_some(), state)
        };
        Chunk { connections: batch.ends.iter().map(entry).collect(), ..Chunk::default() }
    }

    fn sockets(&self, batch: &Batch) -> Vec<BorrowedFd<'_>> {
        let sockets = batch.ends.iter().filter_map(|(key, _)| self.slots[key.index].socket.as_ref());
        sockets.map(AsFd::as_fd).collect()
    }

    /// Puts together everything that comes through a lane, from so many shards. This shard stands still, and has not had a
    /// turn.
    ///
    /// # Errors
    /// See [`LaneError`]. What has arrived is here, and ends with the shard.
    pub fn arrive(&mut self, lane: &Channel, senders: usize) -> Result<Arrived, LaneError> {
        let (mut arrived, mut left, mut is_noted) = (Arrived::default(), senders, false);
        while left > 0 {
            let received = lane.receive()?.ok_or(LaneError::Ended)?;
            let chunk: Chunk<'_> = rmp_serde::from_slice(&received.bytes)?;
            let mut sockets = received.descriptors.into_iter();
            left -= usize::from(chunk.last);
            self.look_at_the_clock();
            let is_final = chunk.last || !chunk.ahead && !chunk.connections.is_empty();
            if is_final && !is_noted {
                self.note_arrival();
                is_noted = true;
            }
            // From behind: a slot that comes free last is used first, so those that come again find theirs, beside their neighbours.
            for (shard, index, generation) in chunk.outdated.into_iter().rev() {
                self.take_away(SlotKey { shard, index, generation });
            }
            for (shard, index, generation, has_socket, state) in chunk.connections {
                let socket = if has_socket { Some(sockets.next().ok_or(LaneError::Sockets)?) } else { None };
                let (old, socket) = (SlotKey { shard, index, generation }, socket.map(Socket::from));
                if chunk.ahead {
                    self.lay_out(old, socket.ok_or(LaneError::Sockets)?, state)?;
                    continue;
                }
                let key = self.put_together(socket, state).map_err(|(_, bad)| bad)?;
                arrived.connections += 1;
                arrived.bytes += state.len();
                match self.asks(key.index) {
                    Some(Asks::Cluster) => self.ask_again(key.index),
                    Some(asks) => arrived.waiting.push((old, key, asks)),
                    None => {}
                }
            }
            if sockets.next().is_some() {
                return Err(LaneError::Sockets);
            }
        }
        let (entered, bytes) = self.enter_all();
        arrived.connections += entered;
        arrived.bytes += bytes;
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
