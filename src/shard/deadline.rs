//! Every deadline a connection can have: one table, kept and judged here.
//!
//! A slot stands in the wheel under the nearest of them. Each is kept where it belongs (the session knows when it pings,
//! the outbox since when nothing gets out), so that none costs a connection that does not have it.

use std::collections::HashMap;
use std::time::Duration;

use smallvec::SmallVec;

use crate::model::{CloseCause, Tick, tick, tick_after};
use crate::proto::handshake;

use super::slots::{Slot, Stage, flag};
use super::{Machine, Services, Shard};

/// Something that has to happen until a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The upgrade request is complete.
    Handshake,
    /// Some byte gets out to a client that has bytes waiting (`--ws-write-timeout`).
    Write,
    /// A message that was begun is complete (`--ws-message-timeout`).
    Message,
    /// The client's token is good until then (`--jwt-close-expired`).
    Token,
    /// The client says something of its own (`--idle-timeout`).
    Idle,
    /// The client gives a sign of life after a ping (`--pong-timeout`).
    Pong,
    /// The client is pinged (`--ping-interval`).
    Ping,
    /// The peer of a connection that we have closed closes its half.
    Linger,
}

/// Deadlines that few connections have, or only some servers, by slot.
#[derive(Debug, Default)]
pub(super) struct RareDeadlines {
    /// Of messages that are not complete.
    pub messages: HashMap<u32, Tick>,
    /// Of tokens.
    pub tokens: HashMap<u32, Tick>,
    /// Of clients that say nothing.
    pub idle: HashMap<u32, Tick>,
}

impl RareDeadlines {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.tokens.is_empty() && self.idle.is_empty()
    }
}

/// No deadline.
const NEVER: Tick = Tick::MAX;

/// The table: which deadlines a connection has, and when each passes, in the order in which they are handled.
#[inline]
fn each<S>(slot: &Slot<S>, index: u32, rare: &RareDeadlines, mut has: impl FnMut(Deadline, Tick)) {
    let write = || slot.outbox.as_ref().and_then(|outbox| outbox.stalled_until()).unwrap_or(NEVER);
    let message = || match slot.reader.is_parked() {
        true => NEVER,
        false => rare.messages.get(&index).copied().unwrap_or(NEVER),
    };
    let of = |those: &HashMap<u32, Tick>| match those.is_empty() {
        true => NEVER,
        false => those.get(&index).copied().unwrap_or(NEVER),
    };
    match &slot.stage {
        Stage::Session(session, _) => {
            has(Deadline::Write, write());
            has(Deadline::Message, message());
            has(Deadline::Token, of(&rare.tokens));
            has(Deadline::Idle, of(&rare.idle));
            has(Deadline::Pong, session.pong_by().unwrap_or(NEVER));
            has(Deadline::Ping, session.ping_at().unwrap_or(NEVER));
        }
        Stage::Echo(_) => {
            has(Deadline::Write, write());
            has(Deadline::Message, message());
        }
        // Each is the only one of its stage, so the wheel's own note of it serves.
        Stage::Handshake(_) => has(Deadline::Handshake, slot.due),
        Stage::Closing { .. } => has(Deadline::Linger, slot.due),
        Stage::Free | Stage::Orphan(_) => {}
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Sets the slot's timer to the nearest of its deadlines.
    pub(super) fn set_timer(&mut self, index: u32) {
        let mut nearest = NEVER;
        each(&self.slots[index], index, &self.rare_deadlines, |_, at| nearest = nearest.min(at));
        match nearest {
            NEVER => self.wheel.clear(&mut self.slots, index),
            due => self.wheel.set(&mut self.slots, index, due),
        }
    }

    /// Gives a connection that is closing this long until it is let go.
    pub(super) fn linger(&mut self, index: u32, time: Duration) {
        self.wheel.set(&mut self.slots, index, tick_after(self.now.mono + time));
    }

    /// The nearest deadline of a connection has passed, and perhaps others with it.
    pub(super) fn due(&mut self, index: u32) {
        let generation = self.slots[index].generation;
        let mut passed: SmallVec<[Deadline; 2]> = SmallVec::new();
        let now = tick(self.now.mono);
        each(&self.slots[index], index, &self.rare_deadlines, |deadline, at| {
            if at <= now {
                passed.push(deadline);
            }
        });
        for (nth, deadline) in passed.into_iter().enumerate() {
            // What was done about one may have settled the next.
            if nth > 0 && (self.slots[index].generation != generation || !self.has_passed(index, deadline)) {
                continue;
            }
            self.passed(index, deadline);
        }
        if self.slots[index].generation != generation {
            return;
        }
        // An input has set it already; one that found nothing due has not.
        if self.slots[index].flags & flag::TIMED == 0 {
            self.set_timer(index);
        }
    }

    fn has_passed(&self, index: u32, deadline: Deadline) -> bool {
        let now = tick(self.now.mono);
        let mut passed = false;
        each(&self.slots[index], index, &self.rare_deadlines, |known, at| passed |= known == deadline && at <= now);
        passed
    }

    fn passed(&mut self, index: u32, deadline: Deadline) {
        match deadline {
            Deadline::Ping => {
                let stalled = self.slots[index].outbox.as_ref().is_some_and(|outbox| outbox.stalled_until().is_some());
                self.session_input(index, |session, ctx| session.ping_due(stalled, ctx));
            }
            Deadline::Linger => self.free(index),
            Deadline::Token => {
                self.session_input(index, |session, ctx| session.disconnect(CloseCause::TokenRanOut, ctx));
            }
            Deadline::Handshake | Deadline::Write | Deadline::Message | Deadline::Idle | Deadline::Pong => {
                if self.is_overdue(index, deadline) {
                    self.overdue(index, deadline);
                }
            }
        }
    }

    /// A client has said something of its own.
    pub(super) fn spoken(&mut self, index: u32) {
        // Its socket may be gone, or its connection closed by an effect before.
        if matches!(self.slots[index].stage, Stage::Session(..)) {
            let timeout = Duration::from_millis(self.settings.session.idle_timeout_ms);
            self.slots.ahead.changes(index);
            self.rare_deadlines.idle.insert(index, tick_after(self.now.mono + timeout));
        }
    }

    fn is_waiting(&self, index: u32) -> bool {
        matches!(&self.slots[index].stage, Stage::Session(session, _) if session.is_waiting())
    }

    /// Whether a peer has really let a deadline pass. This thread may be late itself, after the process was stopped or
    /// had no processor, and what it waits for has long been there: so it reads and writes before it judges.
    fn is_overdue(&mut self, index: u32, deadline: Deadline) -> bool {
        let generation = self.slots[index].generation;
        match deadline {
            Deadline::Write => self.flush(index),
            _ => {
                self.slots[index].flags |= flag::READABLE;
                self.read(index);
            }
        }
        self.slots[index].generation == generation && self.has_passed(index, deadline)
    }

    /// A peer has let a deadline pass.
    fn overdue(&mut self, index: u32, deadline: Deadline) {
        match deadline {
            Deadline::Handshake => match &self.slots[index].stage {
                // Whoever has said nothing is told nothing.
                Stage::Handshake(_) if self.heads.get(index).is_empty() => {
                    self.gone(index, CloseCause::HandshakeTimeout);
                }
                _ => self.refuse(index, &handshake::timed_out().response, CloseCause::HandshakeTimeout),
            },
            Deadline::Write => {
                self.metrics.counters.failed_server_msg_total.inc();
                self.metrics.counters.timeout_server_msg_total.inc();
                self.drop_now(index, CloseCause::WriteTimeout);
            }
            Deadline::Message => self.close(index, CloseCause::MessageTimeout),
            // Not while a command is carried out: more of what it said may lie unread behind that.
            Deadline::Idle if self.is_waiting(index) => self.spoken(index),
            Deadline::Idle => {
                self.session_input(index, |session, ctx| session.disconnect(CloseCause::IdleTimeout, ctx));
            }
            Deadline::Pong => self.session_input(index, |session, ctx| session.pong_overdue(ctx)),
            Deadline::Ping | Deadline::Token | Deadline::Linger => {}
        }
    }
}
