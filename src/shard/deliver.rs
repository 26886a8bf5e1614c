//! The way down: publications, pings and answers into outboxes, and outboxes into sockets.

use std::hash::BuildHasher;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{RemoteDisconnect, Sid, tick, tick_after};
use crate::proto::cable;
use crate::proto::frame::{self, Opcode};
use crate::session::PingPrecision;

use super::inbox::Delivery;
use super::open::identifiers_of;
use super::slots::{Stage, flag};
use super::{DELIVERIES_PER_TURN, EVICTIONS_PER_TURN, Shard, World};

/// Receivers whose list is kept for the next publication; a longer one is given back.
const RECEIVERS_KEPT: usize = 65_536;

/// A publication on its way to its receivers.
///
/// The receivers are listed once, at the start: whoever subscribes while a large fan-out goes on over several
/// turns came after it.
#[derive(Default)]
pub(super) struct Fanout {
    /// The encoded frame of each group.
    frames: Vec<Arc<[u8]>>,
    receivers: Vec<Receiver>,
    next: usize,
    exclude: Option<Sid>,
    /// What is delivered; let go of when everybody has it.
    delivery: Option<Arc<Delivery>>,
    started: Duration,
}

struct Receiver {
    index: u32,
    generation: u32,
    frame: u32,
}

/// A ping as it was sent last: everybody pinged in the same second gets the same bytes.
#[derive(Default)]
pub(super) struct PingFrame {
    timestamp: u128,
    frame: Option<Arc<[u8]>>,
}

/// Sessions to be sent away on the app's demand.
pub(super) struct Eviction(RemoteDisconnect);

impl<W: World> Shard<W> {
    /// Puts a frame into a connection's outbox; it leaves at the end of the turn. A connection whose outbox is
    /// full is closed as too slow.
    pub(super) fn push(&mut self, index: u32, frame: Arc<[u8]>) {
        if !self.is_live(index) {
            return;
        }
        let limit = self.settings.outbox_bytes_max;
        let full = |outbox: &super::outbox::Outbox| limit > 0 && !outbox.given_up && outbox.bytes() >= limit;
        if self.slots[index].outbox.as_deref().is_some_and(full) {
            // What one turn produces may be more than the limit; only what does not fit into the kernel counts.
            self.flush(index);
            if !self.is_live(index) {
                return;
            }
            if self.slots[index].outbox.as_deref().is_some_and(full) {
                return self.too_slow(index);
            }
        }
        self.slots[index].outbox.get_or_insert_default().push(frame);
        self.mark_dirty(index);
    }

    fn too_slow(&mut self, index: u32) {
        self.metrics.counters.disconnected_slow_clients_total.inc();
        if let Some(outbox) = &mut self.slots[index].outbox {
            outbox.clear_unsent();
            outbox.given_up = true;
        }
        match self.slots[index].stage {
            Stage::Session(_) => self.session_input(index, |session, ctx| session.too_slow(ctx)),
            _ => {
                let last = frame::close(Some(1000), "");
                self.close(index, Some(last), crate::model::CloseCause::TooSlow);
            }
        }
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.flags & flag::DIRTY == 0 {
            slot.flags |= flag::DIRTY;
            self.dirty.push(index);
        }
    }

    /// Writes out everything the turn produced.
    pub(super) fn flush_dirty(&mut self) {
        // Writing may close connections, and closing one may produce more to write. In the order of the list, which is
        // that of the sockets' age when a publication made it: what the kernel holds for neighbours lies together.
        let mut at = 0;
        while let Some(&index) = self.dirty.get(at) {
            at += 1;
            if self.slots[index].flags & flag::DIRTY != 0 {
                self.slots[index].flags &= !flag::DIRTY;
                self.flush(index);
            }
        }
        self.dirty.clear();
    }

    /// Writes what there is room for.
    pub(super) fn flush(&mut self, index: u32) {
        loop {
            let slot = &mut self.slots[index];
            let (Some(socket), Some(outbox)) = (&slot.socket, &mut slot.outbox) else { return };
            if outbox.is_empty() {
                let (last, stalled) = (outbox.last, outbox.stalled_until.is_some());
                slot.outbox = None;
                if last {
                    self.all_out(index);
                } else if stalled {
                    self.set_timer(index);
                }
                return;
            }
            let world = &mut self.world;
            match outbox.write_with(|slices| world.write(socket, slices)) {
                Ok(written) => {
                    self.metrics.counters.data_sent_total.add(written as u64);
                    outbox.stalled_until =
                        outbox.stalled_until.map(|_| tick(self.now.mono + self.settings.write_timeout));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if outbox.stalled_until.is_none() {
                        outbox.stalled_until = Some(tick_after(self.now.mono + self.settings.write_timeout));
                    }
                    if slot.flags & flag::WATCHES_WRITE == 0 {
                        slot.flags |= flag::WATCHES_WRITE;
                        let token = self.slots.token(index);
                        let Some(socket) = &self.slots[index].socket else { return };
                        if let Err(error) = self.world.watch(socket, token, true, true) {
                            return self.failed(index, &error);
                        }
                    }
                    return self.set_timer(index);
                }
                Err(error) => {
                    self.metrics.counters.failed_server_msg_total.inc();
                    return self.failed(index, &error);
                }
            }
        }
    }

    /// Sends a heartbeat.
    pub(super) fn ping(&mut self, index: u32, precision: PingPrecision) {
        self.metrics.counters.pings_total.inc();
        let timestamp = precision.timestamp(self.now.unix);
        let encode = || {
            let mut text = Vec::new();
            cable::write::ping(&mut text, timestamp as u64);
            frame::encode(Opcode::Text, &text)
        };
        let frame = match precision {
            PingPrecision::Nanoseconds => encode(),
            PingPrecision::Seconds | PingPrecision::Milliseconds => {
                let known = &mut self.ping_frames[usize::from(precision == PingPrecision::Milliseconds)];
                if known.timestamp != timestamp {
                    known.frame = None;
                }
                known.timestamp = timestamp;
                Arc::clone(known.frame.get_or_insert_with(encode))
            }
        };
        self.push(index, frame);
    }

    /// Delivers publications, a bounded number of receivers a turn, one publication after the other.
    pub(super) fn go_on_delivering(&mut self) {
        let mut budget = DELIVERIES_PER_TURN;
        let mut finished: smallvec::SmallVec<[Duration; 8]> = Default::default();
        while budget > 0 {
            let mut fanout = match (self.fanout.take(), self.publications.pop_front()) {
                (Some(fanout), publication) => {
                    if let Some(publication) = publication {
                        self.publications.push_front(publication);
                    }
                    fanout
                }
                (None, Some(publication)) => self.start_fanout(publication),
                (None, None) => break,
            };
            // Publications without receivers use up the turn too.
            let share = (fanout.receivers.len() - fanout.next).min(budget);
            budget -= share.max(1);
            for at in fanout.next..fanout.next + share {
                let Receiver { index, generation, frame } = fanout.receivers[at];
                let slot = &self.slots[index];
                let Stage::Session(session) = &slot.stage else { continue };
                if slot.generation != generation || (fanout.exclude.is_some() && fanout.exclude == Some(session.sid()))
                {
                    continue;
                }
                self.metrics.counters.server_msg_total.inc();
                self.push(index, Arc::clone(&fanout.frames[frame as usize]));
            }
            fanout.next += share;
            if fanout.next < fanout.receivers.len() {
                self.fanout = Some(fanout);
            } else {
                finished.push(fanout.started);
                self.keep_buffers(fanout);
            }
        }
        if !finished.is_empty() {
            self.flush_dirty();
            let now = self.world.now().mono;
            for started in finished {
                self.metrics.counters.fanout_seconds.observe(now.saturating_sub(started));
            }
        }
    }

    fn start_fanout(&mut self, delivery: Arc<Delivery>) -> Fanout {
        let mut fanout = std::mem::take(&mut self.spare_fanout);
        fanout.started = self.world.now().mono;
        let publication = &delivery.publication;
        fanout.exclude = publication.exclude;
        let Fanout { frames, receivers, .. } = &mut fanout;
        let mut text = Vec::new();
        self.hub.for_each(
            &publication.stream,
            |identifier| {
                text.clear();
                cable::write::publication(&mut text, identifier, publication);
                frames.push(frame::encode(Opcode::Text, &text));
                frames.len() as u32 - 1
            },
            |index, &frame| {
                receivers.push(Receiver { index, generation: self.slots[index].generation, frame });
            },
        );
        // Members come in the order of a hash; memory, ours and the kernel's, is kinder to neighbours in a row.
        receivers.sort_unstable_by_key(|receiver| receiver.index);
        fanout.delivery = Some(delivery);
        fanout
    }

    fn keep_buffers(&mut self, mut fanout: Fanout) {
        fanout.delivery = None;
        if fanout.receivers.capacity() <= RECEIVERS_KEPT && fanout.frames.capacity() <= RECEIVERS_KEPT {
            fanout.frames.clear();
            fanout.receivers.clear();
            fanout.next = 0;
            self.spare_fanout = fanout;
        }
    }

    /// The app wants everybody with these identifiers sent away.
    pub(super) fn evict(&mut self, disconnect: RemoteDisconnect) {
        self.evictions.push_back(Eviction(disconnect));
    }

    pub(super) fn go_on_evicting(&mut self) {
        let mut budget = EVICTIONS_PER_TURN;
        while budget > 0 {
            budget -= 1;
            let Some(Eviction(disconnect)) = self.evictions.front() else { return };
            let (identifiers, reconnect) = (Arc::clone(&disconnect.identifiers), disconnect.reconnect);
            let slots = &self.slots;
            let first = self.identities.find(self.hasher.hash_one(&*identifiers), |&first| {
                identifiers_of(&slots[first].stage) == &*identifiers
            });
            match first.copied() {
                // Closing a session takes it off the front of its chain, so this comes to the end.
                Some(first) => self.session_input(first, |session, ctx| session.remote_disconnect(reconnect, ctx)),
                None => drop(self.evictions.pop_front()),
            }
        }
    }
}
