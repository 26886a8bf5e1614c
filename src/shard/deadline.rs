//! Every deadline a connection can have: one table, kept and judged here.
//!
//! A slot stands in the wheel under the nearest of them. Each is kept where it belongs (the session knows when it pings,
//! the outbox since when nothing gets out), so that none costs a connection that does not have it.

use std::time::Duration;

use crate::model::{CloseCause, Tick, tick};
use crate::proto::handshake;

use super::slots::{Slot, Stage, flag};
use super::{Machine, Services, Shard};

/// Something that has to happen until a moment.
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
    /// When it passes for this connection.
    #[inline]
    fn of<S>(self, slot: &Slot<S>) -> Tick {
        match (self, &slot.stage) {
            (Deadline::Handshake, Stage::Handshake(handshake)) => handshake.due,
            (Deadline::Write, Stage::Echo | Stage::Session(_)) => stalled_until(slot),
            (Deadline::Pong, Stage::Session(session)) => session.pong_by().unwrap_or(NEVER),
            (Deadline::Ping, Stage::Session(session)) => session.ping_at().unwrap_or(NEVER),
            // The only one of its stage, so the wheel's own note of it serves.
            (Deadline::Linger, Stage::Closing) => slot.due,
            _ => NEVER,
        }
    }

    /// Those that a connection at this stage can have, in the order in which they are handled.
    #[inline]
    fn at(stage: &Stage) -> &'static [Deadline] {
        match stage {
            Stage::Session(_) => &[Deadline::Write, Deadline::Pong, Deadline::Ping],
            Stage::Echo => &[Deadline::Write],
            Stage::Handshake(_) => &[Deadline::Handshake],
            Stage::Closing => &[Deadline::Linger],
            Stage::Free | Stage::Orphan(_) => &[],
        }
    }

    /// When the first of a connection's deadlines passes.
    #[inline]
    fn nearest<S>(slot: &Slot<S>) -> Tick {
        let mut nearest = NEVER;
        for deadline in Deadline::at(&slot.stage) {
            nearest = nearest.min(deadline.of(slot));
        }
        nearest
    }
}

/// No deadline.
const NEVER: Tick = Tick::MAX;

fn stalled_until<S>(slot: &Slot<S>) -> Tick {
    slot.outbox.as_ref().and_then(|outbox| outbox.stalled_until).unwrap_or(NEVER)
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Sets the slot's timer to the nearest of its deadlines.
    pub(super) fn set_timer(&mut self, index: u32) {
        match Deadline::nearest(&self.slots[index]) {
            NEVER => self.wheel.clear(&mut self.slots, index),
            due => self.wheel.set(&mut self.slots, index, due),
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
        for &deadline in Deadline::at(&self.slots[index].stage) {
            let slot = &self.slots[index];
            if slot.generation == generation && deadline.of(slot) <= now {
                self.passed(index, deadline);
            }
        }
        // An input has set it already; one that found nothing due has not.
        let slot = &self.slots[index];
        if slot.generation == generation && slot.flags & flag::TIMED == 0 {
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
                let stalled = stalled_until(&self.slots[index]) != NEVER;
                self.session_input(index, |session, ctx| session.ping_due(stalled, ctx));
            }
            Deadline::Linger => self.free(index),
        }
    }
}
