//! How many bytes a shard keeps for its clients, by what they are, and what happens when they are too many.
//!
//! A limit for each connection does not bound what a hundred thousand of them hold together. When the shard's share of
//! `--ws-max-buffers-size` is used up, the kind of bytes of which there are most gives way, and of that kind those
//! connections that hold most: clients that hold little notice nothing.

use super::{Machine, Services, Shard};
use crate::model::CloseCause;
use crate::proto::handshake;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buffer {
    /// Requests that are not complete.
    Head,
    /// Messages of clients that are not complete.
    Message,
    /// What was read behind a command that still runs.
    Stash,
    /// What clients have not taken yet.
    Outbox,
    /// What clients are to be told of what they missed, and what waits until they are.
    Missed,
}

impl Buffer {
    pub const ALL: [Buffer; 5] = [Buffer::Head, Buffer::Message, Buffer::Stash, Buffer::Outbox, Buffer::Missed];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Buffer::Head => "request",
            Buffer::Message => "message",
            Buffer::Stash => "waiting_commands",
            Buffer::Outbox => "outbox",
            Buffer::Missed => "missed",
        }
    }
}

/// Bytes kept, by kind.
#[derive(Debug)]
pub(super) struct Buffers {
    kept: [usize; Buffer::ALL.len()],
    /// `usize::MAX`: no limit.
    max: usize,
}

impl Buffers {
    pub fn new(max: usize) -> Buffers {
        Buffers { kept: [0; Buffer::ALL.len()], max }
    }

    /// If there is more now, it is closed down to this when something grows next.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Something grew, shrank, came or went.
    pub fn change(&mut self, kind: Buffer, from: usize, to: usize) {
        let kept = &mut self.kept[kind as usize];
        debug_assert!(*kept >= from, "{kind:?}: {from} of {kept}");
        *kept = (*kept).saturating_sub(from) + to;
    }

    pub fn kept(&self, kind: Buffer) -> usize {
        self.kept[kind as usize]
    }

    pub fn total(&self) -> usize {
        self.kept.iter().sum()
    }

    pub fn is_over(&self) -> bool {
        self.total() > self.max
    }

    /// What must be gone before it is enough: an eighth more than what is too much, so that the search for the largest
    /// is worth its while.
    fn excess(&self) -> usize {
        self.total().saturating_sub(self.max - self.max / 8)
    }

    fn largest(&self) -> Buffer {
        Buffer::ALL.into_iter().max_by_key(|&kind| self.kept(kind)).unwrap_or(Buffer::Outbox)
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Ends connections until what is kept is within the limit again.
    pub(super) fn make_room(&mut self) {
        while self.buffers.is_over() {
            let kind = self.buffers.largest();
            let mut holders: Vec<(usize, u32)> = (0..self.slots.end())
                .map(|index| (self.held(kind, index), index))
                .filter(|&(bytes, _)| bytes > 0)
                .collect();
            if holders.is_empty() {
                return;
            }
            holders.sort_unstable_by(|a, b| b.cmp(a));
            let (before, mut excess) = (self.buffers.total(), self.buffers.excess());
            for (bytes, index) in holders {
                if excess == 0 {
                    break;
                }
                excess = excess.saturating_sub(bytes);
                self.end_holder(kind, index);
            }
            // Ending a holder gives back what it held. Should that ever not be so, a turn must end all the same.
            if self.buffers.total() >= before {
                return;
            }
        }
    }

    /// Bytes of this kind that a connection holds.
    fn held(&self, kind: Buffer, index: u32) -> usize {
        let slot = &self.slots[index];
        match kind {
            Buffer::Head => self.heads.bytes(index),
            Buffer::Message => slot.reader.heap_bytes(),
            Buffer::Stash => self.stashes.bytes(index),
            Buffer::Outbox => slot.outbox.as_ref().map_or(0, |outbox| outbox.counted()),
            Buffer::Missed => self.holding.get(&index).copied().unwrap_or(0),
        }
    }

    fn end_holder(&mut self, kind: Buffer, index: u32) {
        match kind {
            Buffer::Head => {
                let response = handshake::unavailable(super::RETRY_AFTER_S).response;
                self.refuse(index, &response, CloseCause::BuffersFull);
            }
            Buffer::Message | Buffer::Stash | Buffer::Missed => self.close(index, CloseCause::BuffersFull),
            // Told nothing, since it does not read.
            Buffer::Outbox if self.is_live(index) => {
                self.metrics.counters.disconnected_slow_clients_total.inc();
                self.drop_now(index, CloseCause::TooSlow);
            }
            Buffer::Outbox => self.free(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_which_there_is_most_gives_way() {
        let mut buffers = Buffers::new(1_000);
        buffers.change(Buffer::Head, 0, 300);
        buffers.change(Buffer::Outbox, 0, 600);
        assert!(!buffers.is_over());
        buffers.change(Buffer::Outbox, 600, 701);
        assert!(buffers.is_over());
        assert_eq!((buffers.largest(), buffers.excess()), (Buffer::Outbox, 126));
        buffers.change(Buffer::Outbox, 701, 0);
        assert_eq!((buffers.total(), buffers.largest(), buffers.excess()), (300, Buffer::Head, 0));
    }
}
