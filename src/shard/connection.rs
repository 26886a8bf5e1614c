//! A whole connection taken apart and put together again: in another shard, with another clock, other slot numbers,
//! in another process.
//!
//! Everything a shard knows of a connection is plain data but the socket, so this is what handing live sockets to a new
//! process needs. Deadlines travel as the time that is left. The form is MessagePack with names and begins with a
//! version; what a newer version adds has to be optional.
//!
//! Both happen within a turn, because that is when a shard knows what time it is.
//!
//! Two things are the caller's business. Publications: one that a shard was given and has not delivered stays there, so
//! both shards must have been given the same ones and have delivered them ([`Shard::is_delivering`]). Questions: the
//! answer to one that is open must be given to the connection's new key.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{SlotKey, Tick, moved_tick, tick, tick_phase};
use crate::proto::frame::FrameReader;
use crate::proto::{Carrier, Dialect};
use crate::session::Session;

use super::handshake::Began;
use super::outbox::{Outbox, OutboxState};
use super::read::Stash;
use super::slots::{Form, Stage, flag};
use super::{Machine, Services, Shard, UNKNOWN_PEER};

/// Version of the form. It changes when an older reader could not make sense of what is written.
pub const FORMAT: u16 = 1;

/// A connection that is nowhere at the moment.
#[derive(Debug)]
pub struct TakenApart<S> {
    /// Where it was. Answers to this key must be given to the new one.
    pub key: SlotKey,
    /// Its socket.
    pub socket: S,
    /// Everything else.
    pub state: Vec<u8>,
}

/// Why a connection cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BadState {
    /// It cannot be read.
    #[error("the state of a connection cannot be read: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
    /// It says that it has a socket, and none came with it, or the other way round.
    #[error("the state of a connection does not fit the socket that came with it")]
    Socket,
    /// It was sent ahead of the others, and is not at rest.
    #[error("the state of a connection that came ahead of the others is that of one that is not at rest")]
    NotAtRest,
    /// Another version wrote it.
    #[error("the state of a connection has format {0}, and {FORMAT} is understood here")]
    Format(u16),
}

/// What can be read of every format.
#[derive(Deserialize)]
struct Version {
    format: u16,
}

/// All but the socket. What is written borrows the session and the reader, what is read owns them.
#[derive(Serialize, Deserialize)]
pub(super) struct ConnectionState<S, R> {
    format: u16,
    /// Where the moment of taking apart stood in its tick: everything below that is measured in ticks is measured from
    /// the beginning of that tick.
    phase_ms: u16,
    carrier: Carrier,
    dialect: Dialect,
    listener: u8,
    stage: StageState<S>,
    reader: R,
    /// How long it has been open; what an older version wrote does not say it.
    #[serde(default)]
    age_ticks: Tick,
    /// The tick that the deadlines of the session are measured from.
    #[serde(default)]
    session_clock: Tick,
    /// For a message that is not complete.
    message_ticks_left: Option<Tick>,
    /// For a client that is closed when its token runs out.
    token_ticks_left: Option<Tick>,
    /// For a client that is closed when it says nothing.
    idle_ticks_left: Option<Tick>,
    outbox: Option<OutboxState>,
    /// Read behind a command that waits for an answer.
    #[serde(with = "serde_bytes")]
    stash: Vec<u8>,
    /// It is one of the open WebSockets that are counted.
    counted: bool,
    /// The session was let in and is found by its identifiers.
    indexed: bool,
    /// The peer sends nothing more.
    peer_shut: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) enum StageState<S> {
    Handshake {
        /// Older versions do not ask the socket.
        peer: SocketAddr,
        lasted: Duration,
        ticks_left: Tick,
        #[serde(with = "serde_bytes")]
        head: Vec<u8>,
    },
    Echo,
    Session(S),
    Closing {
        ticks_left: Tick,
    },
    /// Without a socket: the answer that it waits for comes all the same.
    Orphan(S),
}

type ToWrite<'a> = ConnectionState<&'a Session, &'a FrameReader>;
pub(super) type ToRead = ConnectionState<Box<Session>, FrameReader>;

impl ToRead {
    /// Nothing of it is unfinished.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_open = matches!(self.stage, StageState::Echo | StageState::Session(_));
        is_open && self.outbox.is_none() && self.stash.is_empty() && self.reader.is_parked()
    }
}

/// What a connection that was made has not told the rest of the shard and of the node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entering {
    counted: bool,
    indexed: bool,
    /// When it is let go, if it is closing, or given up, if its request is not complete.
    due: Option<Tick>,
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Whether a publication or a remote disconnect that this shard was given is not carried out completely.
    pub fn is_delivering(&self) -> bool {
        self.fanout.is_some() || !self.work.is_empty()
    }

    /// The connections that can be taken apart: all that have a socket.
    pub fn keys(&self) -> impl Iterator<Item = SlotKey> {
        let used = (0..self.slots.end()).filter(|&index| self.slots[index].socket.is_some());
        used.map(|index| self.slots.key(index))
    }

    /// Everything in this shard's hands: also those whose socket is gone, and whose session waits for an answer.
    pub fn all_keys(&self) -> impl Iterator<Item = SlotKey> {
        let used = (0..self.slots.end()).filter(|&index| !matches!(self.slots[index].stage, Stage::Free));
        used.map(|index| self.slots.key(index))
    }

    /// What is needed to go on with a connection elsewhere, and its socket unless that is gone. Nothing changes here: the
    /// connection may as well go on here. `None` for a key that names nothing.
    pub fn copy(&self, key: SlotKey) -> Option<(Option<&M::Socket>, Vec<u8>)> {
        let index = self.slots.find(key)?;
        let mut state = Vec::new();
        self.write_state(index, &mut state);
        Some((self.slots[index].socket.as_ref(), state))
    }

    /// Appends what is needed to go on with a connection.
    pub(super) fn write_state(&self, index: u32, out: &mut Vec<u8>) {
        // Memory takes every write, and nothing in it refuses to be written.
        rmp_serde::encode::write_named(out, &self.state(index)).expect("plain data can be written");
    }

    fn state(&self, index: u32) -> ToWrite<'_> {
        let (slot, now) = (&self.slots[index], tick(self.now.mono));
        let left = |due: &Tick| due.saturating_sub(now);
        // Of these the peer lost as much as this shard has stood still.
        let lost = self.lost_ticks();
        let left_and_lost = |due: &Tick| due.saturating_add(lost).saturating_sub(now);
        let age_ticks = match slot.stage {
            Stage::Echo(since) | Stage::Session(_, since) => now.wrapping_sub(since),
            _ => 0,
        };
        let stage = match &slot.stage {
            Stage::Handshake(began) => StageState::Handshake {
                peer: self.peer(index).unwrap_or(UNKNOWN_PEER),
                lasted: began.age(self.now.mono),
                ticks_left: left_and_lost(&slot.due),
                head: self.heads.get(index).to_vec(),
            },
            Stage::Echo(_) => StageState::Echo,
            Stage::Session(session, _) => StageState::Session(&**session),
            Stage::Orphan(session) => StageState::Orphan(&**session),
            Stage::Closing { .. } | Stage::Free => StageState::Closing { ticks_left: left_and_lost(&slot.due) },
        };
        ConnectionState {
            format: FORMAT,
            phase_ms: tick_phase(self.now.mono),
            carrier: slot.form.carrier,
            dialect: slot.form.dialect,
            listener: slot.listener,
            stage,
            reader: &slot.reader,
            age_ticks,
            // A ping may wait for room.
            session_clock: if slot.outbox.is_some() { now.saturating_sub(lost) } else { now },
            message_ticks_left: self.rare_deadlines.messages.get(&index).map(left_and_lost),
            token_ticks_left: self.rare_deadlines.tokens.get(&index).map(left),
            idle_ticks_left: self.rare_deadlines.idle.get(&index).map(left),
            outbox: slot.outbox.as_ref().map(|outbox| outbox.copy(now)),
            stash: self.stashes.rest(index).to_vec(),
            counted: slot.flags & flag::COUNTED != 0,
            indexed: slot.flags & flag::INDEXED != 0,
            peer_shut: slot.flags & flag::PEER_SHUT != 0,
        }
    }

    /// Takes a connection apart. This shard knows nothing of it afterwards, and neither closes nor counts it. `None` for
    /// a key that names nothing, or a connection without a socket.
    pub fn take_apart(&mut self, key: SlotKey) -> Option<TakenApart<M::Socket>> {
        let (_, state) = self.copy(key)?;
        let index = key.index;
        let socket = self.slots[index].socket.take()?;
        self.machine.unwatch(&socket);
        self.unindex(index);
        self.forget_missed(index);
        match std::mem::replace(&mut self.slots[index].stage, Stage::Closing { drained: 0 }) {
            Stage::Handshake(_) => self.leave_handshake(index),
            Stage::Session(session, _) => {
                for topic in session.topics() {
                    if let Some(change) = self.hub.detach(index, topic) {
                        self.services.unfollow(topic.stream(), change);
                    }
                }
            }
            Stage::Echo(_) | Stage::Orphan(_) | Stage::Closing { .. } | Stage::Free => {}
        }
        if self.slots[index].flags & flag::COUNTED != 0 {
            self.services.closed();
        }
        self.rare_deadlines.tokens.remove(&index);
        self.rare_deadlines.idle.remove(&index);
        self.forget_read(index);
        self.free(index);
        Some(TakenApart { key, socket, state })
    }

    /// Puts a connection together that was taken apart or copied elsewhere, and goes on with it in this turn. Gives its key
    /// here. The answer to its open question must be given to that, even if the connection is over at once because its
    /// socket cannot be watched.
    ///
    /// # Errors
    /// The state cannot be used; the socket comes back.
    pub fn put_together(
        &mut self,
        socket: impl Into<Option<M::Socket>>,
        state: &[u8],
    ) -> Result<SlotKey, (Option<M::Socket>, BadState)> {
        let socket = socket.into();
        let read = match read(state) {
            Ok(read) => read,
            Err(bad) => return Err((socket, bad)),
        };
        if socket.is_some() == matches!(read.stage, StageState::Orphan(_)) {
            return Err((socket, BadState::Socket));
        }
        let (index, entering) = self.make(socket, read);
        self.enter(index, entering);
        let key = self.slots.key(index);
        self.watch_made(index);
        Ok(key)
    }

    /// Makes a connection of what was read, of which nobody else knows yet.
    pub(super) fn make(&mut self, socket: Option<M::Socket>, read: ToRead) -> (u32, Entering) {
        let now = moved_tick(self.now.mono, read.phase_ms);
        let due = match read.stage {
            StageState::Closing { ticks_left } | StageState::Handshake { ticks_left, .. } => {
                Some(now.saturating_add(ticks_left))
            }
            _ => None,
        };
        let (stage, head) = self.stage(read.stage, now, read.session_clock, now.wrapping_sub(read.age_ticks));
        let index = self.slots.insert(socket, read.listener, stage);
        if let Some(head) = head {
            self.handshakes += 1;
            self.note_handshake(index);
            self.keep_head(index, head);
        }
        let slot = &mut self.slots[index];
        slot.form = Form { carrier: read.carrier, dialect: read.dialect };
        let message_due = read.message_ticks_left.map_or(now, |left| now.saturating_add(left));
        slot.outbox = read.outbox.map(|outbox| Box::new(Outbox::put_together(outbox, now)));
        if read.peer_shut {
            slot.flags |= flag::PEER_SHUT;
        }
        self.put_reader(index, read.reader, message_due);
        if let Some(left) = read.token_ticks_left {
            self.rare_deadlines.tokens.insert(index, now.saturating_add(left));
        }
        if self.settings.session.idle_timeout_ms > 0 && read.indexed {
            // It may come from where silence was not watched.
            self.spoken(index);
            let due = self.rare_deadlines.idle.get_mut(&index).zip(read.idle_ticks_left);
            due.into_iter().for_each(|(due, left)| *due = now.saturating_add(left));
        }
        if !read.stash.is_empty() {
            self.keep_stash(index, Stash::new(read.stash));
        }
        (index, Entering { counted: read.counted, indexed: read.indexed, due })
    }

    /// Everybody is told of a connection that was made.
    pub(super) fn enter(&mut self, index: u32, Entering { counted, indexed, due }: Entering) {
        if let Stage::Session(session, _) | Stage::Orphan(session) = &mut self.slots[index].stage {
            session.share_topics(|identifier, stream| self.hub.topic(identifier, stream));
        }
        if counted {
            self.slots[index].flags |= flag::COUNTED;
            self.services.reopened();
        }
        if indexed {
            self.index(index);
            self.note_resident(index);
        }
        self.note_holding(index);
        self.note_written(index);
        self.attach_all(index);
        match due {
            Some(due) => self.wheel.set(&mut self.slots, index, due),
            None => self.set_timer(index),
        }
    }

    /// Watches a connection that was made.
    pub(super) fn watch_made(&mut self, index: u32) {
        match self.watch(index) {
            Err(error) => self.unwatched(index, &error),
            Ok(()) if self.slots[index].outbox.is_some() => self.mark_dirty(index),
            Ok(()) => {}
        }
    }

    /// What a connection is at, on the clock here, and what came of its request if that is not complete. `since` is when
    /// it was accepted.
    fn stage(
        &self,
        state: StageState<Box<Session>>,
        now: Tick,
        session_clock: Tick,
        since: Tick,
    ) -> (Stage, Option<Vec<u8>>) {
        let settle = |mut session: Box<Session>| {
            session.move_clock(session_clock, now);
            session
        };
        let stage = match state {
            StageState::Handshake { lasted, head, .. } => {
                return (Stage::Handshake(Began::ago(lasted, self.now.mono)), Some(head));
            }
            StageState::Echo => Stage::Echo(since),
            StageState::Session(session) => Stage::Session(settle(session), since),
            StageState::Orphan(session) => Stage::Orphan(settle(session)),
            StageState::Closing { .. } => Stage::Closing { drained: 0 },
        };
        (stage, None)
    }

    /// Attaches a session to the streams it follows.
    fn attach_all(&mut self, index: u32) {
        let (Stage::Session(session, _) | Stage::Orphan(session)) = &self.slots[index].stage else { return };
        for topic in session.topics() {
            if let Some(change) = self.hub.attach(index, topic) {
                let given = self.services.follow(topic.stream(), change);
                self.fresh_streams.add(change, given);
            }
        }
    }
}

pub(super) fn read(state: &[u8]) -> Result<ToRead, BadState> {
    // In one go: hundreds of thousands are read while clients wait.
    let read = rmp_serde::from_slice(state);
    let format = match &read {
        Ok(ConnectionState { format, .. }) => Ok(*format),
        Err(_) => rmp_serde::from_slice(state).map(|Version { format }| format),
    };
    match format {
        Ok(format) if format != FORMAT => Err(BadState::Format(format)),
        _ => Ok(read?),
    }
}

#[cfg(test)]
mod tests;
