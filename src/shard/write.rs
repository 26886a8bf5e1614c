//! The way down: frames into outboxes, and outboxes into sockets.

use std::io::ErrorKind;

use crate::model::{CloseCause, tick_after};

use super::buffers::Buffer;
use super::frame::Frame;
use super::outbox::Outbox;
use super::slots::{Stage, flag};
use super::{Interest, Machine, Services, Shard};

/// Slots that wait to be written before a turn writes them out although it is not over: their outboxes are used again
/// while the processor has them at hand.
const DIRTY_MAX: usize = 128;

/// Outboxes kept to be used again.
pub(super) const SPARE_OUTBOXES: usize = DIRTY_MAX;

/// `writev` calls for one connection at a time; then others have their turn.
const WRITES_PER_FLUSH: usize = 16;

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Puts a frame into a connection's outbox; it leaves at the end of the turn at the latest. A connection whose outbox
    /// is full is closed as too slow.
    pub(super) fn push(&mut self, index: u32, frame: Frame) {
        if let Some(outbox) = self.open_outbox(index) {
            outbox.push(frame);
            self.mark_dirty(index);
        }
    }

    /// Answers a ping of the carrier.
    pub(super) fn push_pong(&mut self, index: u32, payload: &[u8]) {
        let carrier = self.slots[index].form.carrier;
        let pong = Frame::written(&mut self.room, |out| carrier.write_pong(out, payload));
        if let Some(outbox) = self.open_outbox(index) {
            outbox.push_pong(pong);
            self.mark_dirty(index);
        }
    }

    /// The outbox of a live connection, if there is room in it.
    #[inline]
    fn open_outbox(&mut self, index: u32) -> Option<&mut Outbox> {
        if !self.is_live(index) || self.slots[index].outbox.is_some() && !self.has_room(index) {
            return None;
        }
        Some(self.outbox(index))
    }

    /// A connection's outbox; one is made if it has none.
    pub(super) fn outbox(&mut self, index: u32) -> &mut Outbox {
        let spare = &mut self.spare_outboxes;
        self.slots.passing(index).outbox.get_or_insert_with(|| spare.pop().unwrap_or_default())
    }

    /// Whether one more frame may wait for this connection. One that has no room is closed.
    fn has_room(&mut self, index: u32) -> bool {
        let limit = self.settings.outbox_bytes_max;
        let full = |outbox: &Outbox| limit > 0 && !outbox.given_up && outbox.cost() >= limit;
        if !self.slots[index].outbox.as_deref().is_some_and(full) {
            return true;
        }
        // What one turn produces may be more than the limit; only what does not fit into the kernel counts.
        self.flush(index);
        if self.is_live(index) && self.slots[index].outbox.as_deref().is_some_and(full) {
            self.too_slow(index);
            return false;
        }
        self.is_live(index)
    }

    fn too_slow(&mut self, index: u32) {
        self.metrics.counters.disconnected_slow_clients_total.inc();
        if let Some(outbox) = &mut self.slots[index].outbox {
            outbox.clear_unsent();
            outbox.given_up = true;
        }
        match self.slots[index].stage {
            Stage::Session(..) => {
                self.session_input(index, |session, ctx| session.disconnect(CloseCause::TooSlow, ctx));
            }
            _ => self.close(index, CloseCause::TooSlow),
        }
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        let slot = self.slots.passing(index);
        if slot.flags & flag::DIRTY == 0 {
            slot.flags |= flag::DIRTY;
            self.dirty.push(index);
        }
    }

    /// Writes out what the turn produced so far, if it is much.
    #[inline]
    pub(super) fn flush_if_many(&mut self) {
        if self.dirty.len() >= DIRTY_MAX {
            self.flush_dirty();
        }
    }

    /// Writes out everything the turn produced. Who takes very much is written to again in the next turn.
    pub(super) fn flush_dirty(&mut self) {
        self.write_dirty();
        if self.buffers.is_over() {
            self.make_room();
            self.write_dirty();
        }
    }

    fn write_dirty(&mut self) {
        // Writing may close connections, and closing one may produce more to write. In the order of the list, which is
        // that of the sockets' age when a publication made it: what the kernel holds for neighbours lies together.
        let mut at = 0;
        while let Some(&index) = self.dirty.get(at) {
            at += 1;
            if self.slots[index].flags & flag::DIRTY != 0 {
                self.slots.passing(index).flags &= !flag::DIRTY;
                self.flush(index);
            }
        }
        self.dirty.clear();
    }

    /// Writes what there is room for.
    pub(super) fn flush(&mut self, index: u32) {
        for _ in 0..WRITES_PER_FLUSH {
            let slot = self.slots.passing(index);
            let (Some(socket), Some(outbox)) = (&slot.socket, &mut slot.outbox) else { return };
            let machine = &mut self.machine;
            match outbox.write_with(|slices| machine.write(socket, slices)) {
                Ok(written) => {
                    self.metrics.counters.data_sent_total.add(written as u64);
                    if outbox.stalled_until().is_some() {
                        outbox.set_stalled_until(tick_after(self.now.mono + self.settings.write_timeout));
                    }
                    if outbox.is_empty() {
                        // What nearly always holds: nobody had to wait.
                        if outbox.renew() && slot.flags & flag::WATCHES_WRITE == 0 {
                            let outbox = slot.outbox.take();
                            if self.spare_outboxes.len() < SPARE_OUTBOXES {
                                self.spare_outboxes.extend(outbox);
                            }
                            return self.note_written(index);
                        }
                        return self.emptied(index);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if outbox.stalled_until().is_none() {
                        outbox.set_stalled_until(tick_after(self.now.mono + self.settings.write_timeout));
                    }
                    let (before, now) = outbox.count();
                    self.buffers.change(Buffer::Outbox, before, now);
                    if !self.watch_for(index, Interest::ReadWrite) {
                        return;
                    }
                    return self.set_timer(index);
                }
                Err(error) => {
                    self.metrics.counters.failed_server_msg_total.inc();
                    return self.failed(index, &error);
                }
            }
        }
        if self.slots[index].flags & flag::DIRTY == 0 {
            self.slots.passing(index).flags |= flag::DIRTY;
            self.unfinished_writes.push(index);
        }
    }

    /// Takes a connection's outbox away, with whatever is in it.
    pub(super) fn take_outbox(&mut self, index: u32) -> Option<Box<Outbox>> {
        let outbox = self.slots[index].outbox.take()?;
        self.buffers.change(Buffer::Outbox, outbox.counted(), 0);
        Some(outbox)
    }

    /// Everything is out of a connection that had to wait, or that is to be closed.
    fn emptied(&mut self, index: u32) {
        let Some(outbox) = self.take_outbox(index) else { return };
        if outbox.last {
            return self.all_out(index);
        }
        self.note_written(index);
        // A slow client that has caught up is one like all others again.
        if self.watch_for(index, Interest::Read) && outbox.stalled_until().is_some() {
            self.set_timer(index);
        }
    }

    /// Has the socket reported for this and nothing else; false when the connection is over because of it.
    fn watch_for(&mut self, index: u32, interest: Interest) -> bool {
        let watches_write = self.slots[index].flags & flag::WATCHES_WRITE != 0;
        if watches_write == (interest == Interest::ReadWrite) {
            return true;
        }
        let token = self.slots.token(index);
        let Some(socket) = &self.slots[index].socket else { return false };
        if let Err(error) = self.machine.set_interest(socket, token, interest) {
            self.failed(index, &error);
            return false;
        }
        self.slots[index].flags ^= flag::WATCHES_WRITE;
        true
    }
}
