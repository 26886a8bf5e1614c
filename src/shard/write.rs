//! The way down: frames into outboxes, and outboxes into sockets.

use std::io::ErrorKind;
use std::sync::Arc;

use crate::model::{CloseCause, tick_after};

use super::outbox::Outbox;
use super::slots::{Stage, flag};
use super::{Interest, Machine, Services, Shard};

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Puts a frame into a connection's outbox; it leaves at the end of the turn. A connection whose outbox is
    /// full is closed as too slow.
    pub(super) fn push(&mut self, index: u32, frame: Arc<[u8]>) {
        if !self.is_live(index) {
            return;
        }
        let limit = self.settings.outbox_bytes_max;
        let full = |outbox: &Outbox| limit > 0 && !outbox.given_up && outbox.bytes() >= limit;
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
            Stage::Session(_) => {
                self.session_input(index, |session, ctx| session.disconnect(CloseCause::TooSlow, ctx));
            }
            _ => self.close(index, CloseCause::TooSlow),
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
                // What nearly always holds: nobody had to wait.
                if !outbox.last && slot.flags & flag::WATCHES_WRITE == 0 && outbox.stalled_until.is_none() {
                    slot.outbox = None;
                    return;
                }
                return self.emptied(index);
            }
            let machine = &mut self.machine;
            match outbox.write_with(|slices| machine.write(socket, slices)) {
                Ok(written) => {
                    self.metrics.counters.data_sent_total.add(written as u64);
                    let until = tick_after(self.now.mono + self.settings.write_timeout);
                    outbox.stalled_until = outbox.stalled_until.map(|_| until);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if outbox.stalled_until.is_none() {
                        outbox.stalled_until = Some(tick_after(self.now.mono + self.settings.write_timeout));
                    }
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
    }

    /// Everything is out of a connection that had to wait, or that is to be closed.
    fn emptied(&mut self, index: u32) {
        let Some(outbox) = self.slots[index].outbox.take() else { return };
        if outbox.last {
            return self.all_out(index);
        }
        // A slow client that has caught up is one like all others again.
        if self.watch_for(index, Interest::Read) && outbox.stalled_until.is_some() {
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
