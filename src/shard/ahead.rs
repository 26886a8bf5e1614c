//! Connections that are copied into another process while they are served, so that few are left to be copied while nobody is.
//!
//! The old shard copies those that are at rest, and notes which of them change afterwards: [`CopiedAhead`]. Later, and at last
//! when it stands still, it says which copies are out of date, and copies what has changed or come. The new shard lays them out
//! beside each other and tells nobody, until it is known which of them are to stay. A connection that ends meanwhile is open in the
//! kernel until its copy is dropped, too; its peer has been told by then, or is not there.
//!
//! Whatever touches a slot changes it, unless it asks for [`Slots::passing`](super::slots::Slots::passing).

use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::model::SlotKey;

use super::connection::{BadState, Entering, read};
use super::slots::Stage;
use super::{Machine, Services, Shard};

/// Which slots were copied, and which of them are still as they were. Empty and without cost while nothing is copied.
#[derive(Default)]
pub(super) struct CopiedAhead {
    slots: Vec<SlotCopy>,
    /// Copied in slots that others have been copied in since: index and generation.
    gone: Vec<(u32, u32)>,
}

#[derive(Clone, Copy, Default)]
struct SlotCopy {
    generation: u32,
    state: CopyState,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum CopyState {
    #[default]
    None,
    /// It is not as it was copied, or is not there any more.
    Outdated,
    Current,
}

impl CopiedAhead {
    /// The slot is about to change.
    #[inline]
    pub fn changes(&mut self, index: u32) {
        if let Some(copy) = self.slots.get_mut(index as usize)
            && copy.state == CopyState::Current
        {
            copy.state = CopyState::Outdated;
        }
    }

    fn is_current(&self, index: u32) -> bool {
        self.slots.get(index as usize).is_some_and(|copy| copy.state == CopyState::Current)
    }

    fn note(&mut self, SlotKey { index, generation, .. }: SlotKey) {
        if self.slots.len() <= index as usize {
            self.slots.resize(index as usize + 1, SlotCopy::default());
        }
        let copy = &mut self.slots[index as usize];
        if copy.state != CopyState::None && copy.generation != generation {
            self.gone.push((index, copy.generation));
        }
        *copy = SlotCopy { generation, state: CopyState::Current };
    }

    /// Copies that are not as what they were made of, or of what is gone, by index and generation. They count as not made from
    /// now on.
    fn take_outdated(&mut self) -> Vec<(u32, u32)> {
        let mut outdated = std::mem::take(&mut self.gone);
        for (copy, index) in self.slots.iter_mut().zip(0..) {
            if copy.state == CopyState::Outdated {
                copy.state = CopyState::None;
                outdated.push((index, copy.generation));
            }
        }
        outdated
    }
}

/// Connections that have come and are known to nobody yet, by their keys where they are served.
pub(super) type LaidOut = FxHashMap<SlotKey, Laid>;

/// One of them.
#[derive(Debug)]
pub(super) struct Laid {
    index: u32,
    entering: Entering,
    bytes: usize,
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// The first connection in these slots that is worth a copy while it is served: it is at rest, and was not copied or has
    /// changed since.
    pub fn next_to_copy(&self, slots: Range<u32>) -> Option<SlotKey> {
        let wants = |&index: &u32| self.is_at_rest(index) && !self.slots.ahead.is_current(index);
        (slots.start..slots.end.min(self.slots.end())).find(wants).map(|index| self.slots.key(index))
    }

    /// It waits for nothing, and nothing of it is unfinished.
    fn is_at_rest(&self, index: u32) -> bool {
        let slot = &self.slots[index];
        let is_idle = match &slot.stage {
            Stage::Echo(_) => true,
            Stage::Session(session, _) => session.asks().is_none() && !session.is_waiting() && !session.is_holding(),
            Stage::Free | Stage::Handshake(_) | Stage::Orphan(_) | Stage::Closing { .. } => false,
        };
        is_idle && slot.outbox.is_none() && slot.reader.is_parked() && self.stashes.rest(index).is_empty()
    }

    /// A copy of this connection is in other hands. From now on it is noted whether it is as that is.
    pub fn note_copied(&mut self, key: SlotKey) {
        self.slots.ahead.note(key);
    }

    /// Whether the copy that was made of it is as good as one that would be made now.
    pub fn is_copied(&self, key: SlotKey) -> bool {
        self.slots.ahead.is_current(key.index)
    }

    /// What was copied and is not as it was, or not here any more. It counts as not copied from now on.
    pub fn take_outdated(&mut self) -> Vec<SlotKey> {
        // What is on its way out has stayed on the way.
        for index in 0..self.slots.end() {
            if self.slots[index].outbox.is_some() {
                self.slots.ahead.changes(index);
            }
        }
        let shard = self.slots.shard();
        let outdated = self.slots.ahead.take_outdated().into_iter();
        outdated.map(|(index, generation)| SlotKey { shard, index, generation }).collect()
    }

    /// The copies are nobody's any more.
    pub fn forget_copies(&mut self) {
        self.slots.ahead = CopiedAhead::default();
    }

    /// Lays a connection out that is served elsewhere, under its key there, in place of what was laid out for that before. This
    /// shard stands still. Gives its key here.
    ///
    /// # Errors
    /// The state cannot be used, or is not that of a connection that is at rest.
    pub fn lay_out(&mut self, old: SlotKey, socket: M::Socket, state: &[u8]) -> Result<SlotKey, BadState> {
        self.take_away(old);
        let read = read(state)?;
        if !read.is_at_rest() {
            return Err(BadState::NotAtRest);
        }
        let (index, entering) = self.make(Some(socket), read);
        self.watch_made(index);
        self.laid_out.insert(old, Laid { index, entering, bytes: state.len() });
        Ok(self.slots.key(index))
    }

    /// What was laid out under this key is not as it was where it is served, or not served any more.
    pub fn take_away(&mut self, old: SlotKey) {
        let Some(Laid { index, .. }) = self.laid_out.remove(&old) else { return };
        self.forget_unwatched(index);
        if let Some(socket) = &self.slots[index].socket {
            self.machine.unwatch(socket);
        }
        self.rare_deadlines.tokens.remove(&index);
        self.rare_deadlines.idle.remove(&index);
        self.forget_read(index);
        self.free(index);
    }

    /// Everything that is laid out is to stay. Gives how many, and the bytes of their state.
    pub fn enter_all(&mut self) -> (usize, usize) {
        let laid_out = std::mem::take(&mut self.laid_out);
        let sum = laid_out.values().fold((0, 0), |(count, bytes), laid| (count + 1, bytes + laid.bytes));
        // In the order of their slots: what is kept of neighbours lies together.
        let mut laid_out: Vec<Laid> = laid_out.into_values().collect();
        laid_out.sort_unstable_by_key(|laid| laid.index);
        laid_out.into_iter().for_each(|laid| self.enter(laid.index, laid.entering));
        sum
    }
}
