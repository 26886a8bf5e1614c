//! How a connection ends. Every way out leads through [`Shard::close`] (we say something last) or
//! [`Shard::gone`] (there is nobody to say it to), and each counts one cause.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{CallError, CloseCause, Reply, tick, tick_after};
use crate::proto::frame::{self, FrameReader};
use crate::proto::handshake;

use super::slots::{Stage, flag};
use super::{Accepting, LINGER, Shard, World};

/// Clients a shard sends away in a second of draining, at least: a node with few of them goes quickly, one with
/// many spreads them over the time it was given, so that the other nodes are not stormed.
const DRAIN_RATE_MIN: f64 = 2_000.0;

/// How often a draining shard sends the next few away.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// Emptying a shard before it stops.
pub(super) struct Drain {
    started: Duration,
    over: Duration,
    /// Connections there were at the start.
    total: usize,
    /// Slots below this one have been told.
    told: u32,
    /// Connections told so far.
    sent_away: usize,
    step_at: Duration,
    end: u32,
}

impl Drain {
    pub fn next_wake(&self, now: Duration) -> Option<Duration> {
        (self.told < self.end).then_some(self.step_at.max(now))
    }
}

impl<W: World> Shard<W> {
    /// Ends a connection in good order: `last` is written after what waits already, then our half is shut, and
    /// the socket goes when the peer has shut its half too, or after a while.
    pub(super) fn close(&mut self, index: u32, last: Option<Arc<[u8]>>, cause: CloseCause) {
        if !self.is_live(index) {
            return;
        }
        self.leave(index, cause);
        let slot = &mut self.slots[index];
        slot.stage = Stage::Closing;
        slot.reader = FrameReader::new();
        let outbox = slot.outbox.get_or_insert_default();
        if let Some(frame) = last {
            outbox.push(frame);
        }
        outbox.last = true;
        self.mark_dirty(index);
        let due = self.now.mono + self.settings.write_timeout + LINGER;
        self.wheel.set(&mut self.slots, index, tick(due));
    }

    /// Ends a connection whose socket is of no use any more.
    pub(super) fn gone(&mut self, index: u32, cause: CloseCause) {
        if !self.is_live(index) {
            return self.free_closing(index);
        }
        let slot = &mut self.slots[index];
        if matches!(&slot.stage, Stage::Session(session) if session.is_waiting()) {
            // The app will believe that this command was carried out, so the session lives until it has
            // answered and is ended with what came of it.
            self.uncount(index, cause);
            let slot = &mut self.slots[index];
            let Stage::Session(session) = std::mem::replace(&mut slot.stage, Stage::Free) else { return };
            slot.stage = Stage::Orphan(session);
            slot.socket = None;
            slot.outbox = None;
            slot.reader = FrameReader::new();
            self.stashed.remove(&index);
            self.wheel.clear(&mut self.slots, index);
            return;
        }
        self.leave(index, cause);
        self.free(index);
    }

    /// The last answer for a client that is gone.
    pub(super) fn answer_orphan(&mut self, index: u32, result: Result<Reply, CallError>) {
        self.session_input(index, |session, ctx| session.answer(result, ctx));
        self.session_input(index, |session, ctx| session.end(ctx));
        self.free(index);
    }

    /// Reading or writing failed.
    pub(super) fn failed(&mut self, index: u32, error: &io::Error) {
        let cause = match error.kind() {
            _ if matches!(self.slots[index].stage, Stage::Door(_)) => CloseCause::HandshakeGone,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => CloseCause::PeerReset,
            // ETIMEDOUT: keepalive probes or data stayed without acknowledgement. The two unreachables are what
            // the same looks like behind a router that answers for the peer.
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => CloseCause::PeerTimeout,
            _ => CloseCause::IoError,
        };
        self.gone(index, cause);
    }

    /// The peer ended the stream.
    pub(super) fn peer_gone(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if matches!(slot.stage, Stage::Closing) && slot.outbox.is_some() {
            // It may have shut only its half and still wait for our last word; the socket goes when that is out.
            slot.flags = slot.flags & !flag::READABLE | flag::PEER_SHUT;
            return;
        }
        // It may have ended only its half, and wait for the answer to what it said in the same breath.
        let generation = self.slots[index].generation;
        self.flush(index);
        if self.slots[index].generation != generation {
            return;
        }
        let at_the_door = matches!(self.slots[index].stage, Stage::Door(_));
        self.gone(index, if at_the_door { CloseCause::HandshakeGone } else { CloseCause::ClientGone });
    }

    /// The client sent a close frame: its code goes back, and nothing more is expected of it.
    pub(super) fn client_closes(&mut self, index: u32, code: Option<u16>) {
        self.slots[index].flags |= flag::PEER_SHUT;
        self.close(index, Some(frame::close(code, "")), CloseCause::ClientClosed);
    }

    /// A deadline of the connection has passed.
    pub(super) fn due(&mut self, index: u32) {
        let now = self.now.mono;
        let slot = &mut self.slots[index];
        let stalled_until = slot.outbox.as_ref().and_then(|outbox| outbox.stalled_until);
        let (waiting, stalled) = (stalled_until.is_some(), stalled_until.is_some_and(|due| due <= tick(now)));
        match &slot.stage {
            Stage::Free | Stage::Orphan(_) => {}
            Stage::Closing => self.free(index),
            Stage::Door(door) if door.head.is_empty() => self.gone(index, CloseCause::HandshakeTimeout),
            Stage::Door(_) => self.refuse(index, handshake::timed_out().response, CloseCause::HandshakeTimeout),
            Stage::Echo | Stage::Session(_) if stalled => {
                self.metrics.counters.failed_server_msg_total.inc();
                self.metrics.counters.timeout_server_msg_total.inc();
                self.gone_by_us(index, CloseCause::WriteTimeout);
            }
            Stage::Echo => self.set_timer(index),
            Stage::Session(_) => self.session_input(index, |session, ctx| session.due(waiting, ctx)),
        }
    }

    /// Ends a connection at once on our own decision; a call that runs for it is dropped.
    fn gone_by_us(&mut self, index: u32, cause: CloseCause) {
        self.leave(index, cause);
        self.free(index);
    }

    /// Everything is written of a connection that is to be closed.
    pub(super) fn all_out(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        let Some(socket) = &slot.socket else { return };
        if slot.flags & flag::PEER_SHUT != 0 {
            return self.free(index);
        }
        self.world.shut(socket);
        let due = self.now.mono + LINGER;
        self.wheel.set(&mut self.slots, index, tick(due));
    }

    /// Sets the slot's timer to the nearest of its deadlines.
    pub(super) fn set_timer(&mut self, index: u32) {
        let slot = &self.slots[index];
        let stalled = slot.outbox.as_ref().and_then(|outbox| outbox.stalled_until);
        let deadline = match &slot.stage {
            Stage::Free | Stage::Closing | Stage::Orphan(_) => return,
            Stage::Door(door) => Some(tick_after(door.accepted_at + self.settings.handshake_timeout)),
            Stage::Echo => None,
            Stage::Session(session) => session.deadline(),
        };
        match [deadline, stalled].into_iter().flatten().min() {
            Some(due) => self.wheel.set(&mut self.slots, index, due),
            None => self.wheel.clear(&mut self.slots, index),
        }
    }

    /// Starts to send everybody away, within the time given.
    pub(super) fn start_drain(&mut self, over: Duration) {
        if self.drain.is_some() {
            return;
        }
        self.world.stop_listening();
        self.accepting = Accepting::No;
        let total = self.slots.used();
        let over = over.min(Duration::from_secs_f64(total as f64 / DRAIN_RATE_MIN));
        let now = self.now.mono;
        let end = self.slots.end();
        self.drain = Some(Drain { started: now, over, total, told: 0, sent_away: 0, step_at: now, end });
    }

    /// Sends the next few away: as many as bring the number told in line with the time that has passed.
    pub(super) fn go_on_draining(&mut self) {
        let now = self.now.mono;
        let Some(drain) = &mut self.drain else { return };
        if now < drain.step_at {
            return;
        }
        let passed = now.saturating_sub(drain.started) + DRAIN_STEP;
        let share = if drain.over.is_zero() { 1.0 } else { passed.as_secs_f64() / drain.over.as_secs_f64() };
        let target = (drain.total as f64 * share).ceil() as usize;
        drain.step_at = now + DRAIN_STEP;
        let (mut told, mut sent_away, end) = (drain.told, drain.sent_away, drain.end);
        while told < end && sent_away < target {
            let index = told;
            told += 1;
            match self.slots[index].stage {
                Stage::Free | Stage::Closing | Stage::Orphan(_) => continue,
                Stage::Door(_) => self.refuse(index, handshake::unavailable(1).response, CloseCause::Draining),
                Stage::Echo => {
                    let last = frame::close(Some(1001), "Server restart");
                    self.close(index, Some(last), CloseCause::ServerRestart);
                }
                Stage::Session(_) => self.session_input(index, |session, ctx| session.server_restart(ctx)),
            }
            sent_away += 1;
        }
        if let Some(drain) = &mut self.drain {
            (drain.told, drain.sent_away) = (told, sent_away);
        }
    }

    /// True for a connection whose end has not been counted yet.
    pub(super) fn is_live(&self, index: u32) -> bool {
        matches!(self.slots[index].stage, Stage::Door(_) | Stage::Echo | Stage::Session(_))
    }

    /// Undoes everything that stands elsewhere for this connection, and counts why it ended.
    fn leave(&mut self, index: u32, cause: CloseCause) {
        self.uncount(index, cause);
        if matches!(self.slots[index].stage, Stage::Session(_)) {
            self.session_input(index, |session, ctx| session.end(ctx));
        }
        self.stashed.remove(&index);
    }

    fn uncount(&mut self, index: u32, cause: CloseCause) {
        self.metrics.closed(cause);
        match &self.slots[index].stage {
            Stage::Door(_) => self.handshakes -= 1,
            Stage::Session(_) => self.session_closed(index),
            _ => {}
        }
        if self.slots[index].flags & flag::COUNTED != 0 {
            self.slots[index].flags &= !flag::COUNTED;
            self.world.count_open(false);
        }
    }

    fn free_closing(&mut self, index: u32) {
        if matches!(self.slots[index].stage, Stage::Closing) {
            self.free(index);
        }
    }

    fn free(&mut self, index: u32) {
        self.wheel.clear(&mut self.slots, index);
        drop(self.slots.remove(index));
    }
}
