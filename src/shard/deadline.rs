//! Every deadline a connection can have: one table, kept and judged here.
//!
//! A slot stands in the wheel under the nearest of them. Each is kept where it belongs (the session knows when it pings,
//! the outbox since when nothing gets out), so that none costs a connection that does not have it.

use std::time::Duration;

use crate::model::{CloseCause, Tick, tick};
use crate::proto::handshake;

use super::slots::{Slot, Stage};
use super::{Machine, Services, Shard};

/// Something that has to happen until a moment. Those that have passed are handled in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The upgrade request is complete.
    Handshake,
    /// Some byte gets out to a client that has bytes waiting (`--write-timeout`).
    Write,
    /// The client gives a sign of life after a ping (`--pong-timeout`).
    Pong,
    /// The client is pinged (`--ping-interval`).
    Ping,
    /// The peer of a connection that we have closed closes its half.
    Linger,
}

impl Deadline {
    const ALL: [Deadline; 5] = [Deadline::Handshake, Deadline::Write, Deadline::Pong, Deadline::Ping, Deadline::Linger];

    /// When it passes for this connection; `None`: it has no such deadline.
    fn of<S>(self, slot: &Slot<S>) -> Option<Tick> {
        match (self, &slot.stage) {
            (Deadline::Handshake, Stage::Handshake(handshake)) => Some(handshake.due),
            (Deadline::Write, Stage::Echo | Stage::Session(_)) => slot.outbox.as_ref()?.stalled_until,
            (Deadline::Pong, Stage::Session(session)) => session.pong_by(),
            (Deadline::Ping, Stage::Session(session)) => session.ping_at(),
            // The only one of its stage, so the wheel's own note of it serves.
            (Deadline::Linger, Stage::Closing) => Some(slot.due),
            _ => None,
        }
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Sets the slot's timer to the nearest of its deadlines.
    pub(super) fn set_timer(&mut self, index: u32) {
        let slot = &self.slots[index];
        match Deadline::ALL.iter().filter_map(|deadline| deadline.of(slot)).min() {
            Some(due) => self.wheel.set(&mut self.slots, index, due),
            None => self.wheel.clear(&mut self.slots, index),
        }
    }

    /// Gives a connection that is closing this long until it is let go.
    pub(super) fn linger(&mut self, index: u32, time: Duration) {
        let due = self.now.mono + time;
        self.wheel.set(&mut self.slots, index, tick(due));
    }

    /// The nearest deadline of a connection has passed, and perhaps others with it.
    pub(super) fn due(&mut self, index: u32) {
        let generation = self.slots[index].generation;
        let now = tick(self.now.mono);
        for deadline in Deadline::ALL {
            if self.slots[index].generation == generation
                && deadline.of(&self.slots[index]).is_some_and(|due| due <= now)
            {
                self.passed(index, deadline);
            }
        }
        if self.slots[index].generation == generation {
            self.set_timer(index);
        }
    }

    fn passed(&mut self, index: u32, deadline: Deadline) {
        match deadline {
            Deadline::Handshake => match &self.slots[index].stage {
                // Whoever has said nothing is told nothing.
                Stage::Handshake(handshake) if handshake.head.is_empty() => {
                    self.gone(index, CloseCause::HandshakeTimeout);
                }
                _ => self.refuse(index, handshake::timed_out().response, CloseCause::HandshakeTimeout),
            },
            Deadline::Write => {
                self.metrics.counters.failed_server_msg_total.inc();
                self.metrics.counters.timeout_server_msg_total.inc();
                self.drop_now(index, CloseCause::WriteTimeout);
            }
            Deadline::Pong => self.session_input(index, |session, ctx| session.pong_overdue(ctx)),
            Deadline::Ping => {
                let outbox = self.slots[index].outbox.as_ref();
                let stalled = outbox.is_some_and(|outbox| outbox.stalled_until.is_some());
                self.session_input(index, |session, ctx| session.ping_due(stalled, ctx));
            }
            Deadline::Linger => self.free(index),
        }
    }
}
