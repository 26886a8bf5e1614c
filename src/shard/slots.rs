//! The slab of a shard: one slot for each connection.
//!
//! Slots stand in blocks that never move, so a shard with a million connections never copies them to grow and
//! holds no half-empty doubling. Free slots are chained through their timer links. Blocks are kept once made:
//! many that left at once usually come back.

use std::time::Duration;

use crate::model::{Now, SlotKey, TICK_MS, Tick, tick};
use crate::proto::frame::FrameReader;
use crate::proto::{Carrier, Dialect};
use crate::session::Session;

use super::ahead::CopiedAhead;
use super::handshake::Began;
use super::outbox::Outbox;

/// Marks the end of a chain of slots, and a slot that is in none.
pub(super) const NONE: u32 = u32::MAX;

/// Slots in a block: 512 KiB worth. A block comes from the kernel in whole pages and one more for the allocator's
/// header, which for blocks of 64 KiB would be 4 bytes a slot.
const BLOCK: usize = 8192;

/// One connection. Parked, it is this and what its session holds: no buffer, no task.
pub(super) struct Slot<S> {
    /// `None` exactly when the slot is free, or when its socket is gone and only an answer is awaited.
    pub socket: Option<S>,
    /// Counts the uses of this slot.
    pub generation: u32,
    /// When the slot's timer is due, in ticks; meaningless while it is not in the wheel.
    pub due: u32,
    /// Chain of the wheel's bucket, or of free slots.
    pub timer: Chain,
    /// Chain of the slots with the same connection identifiers.
    pub same_identity: Chain,
    /// What the connection is at.
    pub stage: Stage,
    /// The rest of an unfinished frame or message; nothing between messages.
    pub reader: FrameReader,
    /// Bytes that wait to be written; nothing when all are out.
    pub outbox: Option<Box<Outbox>>,
    /// Small facts, see [`flag`].
    pub flags: u8,
    /// How its messages are written.
    pub form: Form,
    /// Which listener it came through.
    pub listener: u8,
}

/// What decides the bytes of a message to many: receivers of one form share them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    pub carrier: Carrier,
    /// Means something once there is a session.
    pub dialect: Dialect,
}

/// Bits of [`Slot::flags`].
pub(super) mod flag {
    /// The slot is in the timer wheel.
    pub const TIMED: u8 = 1;
    /// The slot stands in the list of those to be written at the end of this turn.
    pub const DIRTY: u8 = 1 << 1;
    /// There may be more to read than was read.
    pub const READABLE: u8 = 1 << 2;
    /// The slot stands in the list of those to be read from in the next turn.
    pub const AGAIN: u8 = 1 << 3;
    /// The poller watches for room to write too.
    pub const WATCHES_WRITE: u8 = 1 << 4;
    /// Counts as an open WebSocket.
    pub const COUNTED: u8 = 1 << 5;
    /// Stands in the index of connection identifiers.
    pub const INDEXED: u8 = 1 << 6;
    /// The peer sends nothing more: what can be read ends with the end of the stream.
    pub const PEER_SHUT: u8 = 1 << 7;
}

/// Links of a doubly linked chain of slots.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub previous: u32,
    pub next: u32,
}

impl Chain {
    pub const LOOSE: Chain = Chain { previous: NONE, next: NONE };
}

/// What a connection is at.
///
/// ```text
/// accept or adopt -> Handshake -> Echo ----------> Closing -> free
///                     |     \-> Session -------> Closing -> free
///                     |           \-> Orphan -------------> free     (socket gone, an answer is awaited)
///                     \-> served by the HTTP server, or refused -> Closing -> free
/// ```
pub(super) enum Stage {
    Free,
    /// Waiting for the upgrade request, since then. What came of it in pieces is kept elsewhere.
    Handshake(Began),
    /// Open, without a session: each message goes back as it came.
    ///
    /// With the tick in which it was accepted. The age of a connection costs nothing: it lies where there would be
    /// padding.
    Echo(Tick),
    /// Open, with a session, and the tick in which it was accepted.
    Session(Box<Session>, Tick),
    /// The socket is gone, but somebody is still at work on this client's last command; when the answer comes, the
    /// session ends as if the client had left then.
    Orphan(Box<Session>),
    /// The last bytes are on their way and our half is or will be shut; what the peer still sends is dropped.
    Closing {
        /// Bytes dropped so far.
        drained: u32,
    },
}

impl Stage {
    /// How long the connection has been there, since it was accepted; not known once it is closing.
    pub fn age(&self, now: Now) -> Option<Duration> {
        match self {
            Stage::Handshake(began) => Some(began.age(now.mono)),
            // Of a connection that came from elsewhere it may be before this clock began.
            Stage::Echo(since) | Stage::Session(_, since) => {
                let ticks = tick(now.mono).wrapping_sub(*since);
                Some(Duration::from_millis(u64::from(ticks) * TICK_MS))
            }
            Stage::Free | Stage::Orphan(_) | Stage::Closing { .. } => None,
        }
    }
}

// socket 4, generation 4, due 4, timer 8, same_identity 8, stage 16, reader 8, outbox 8, flags 1, form 2, listener 1.
const _: () = assert!(size_of::<Slot<std::os::fd::OwnedFd>>() == 64);

pub(super) struct Slots<S> {
    shard: u16,
    /// All full but the last, whose memory is touched only as far as it is used.
    blocks: Vec<Vec<Slot<S>>>,
    free: u32,
    used: usize,
    /// What was copied while the shard serves.
    pub ahead: CopiedAhead,
}

impl<S> Slots<S> {
    pub fn new(shard: u16) -> Slots<S> {
        Slots { shard, blocks: Vec::new(), free: NONE, used: 0, ahead: CopiedAhead::default() }
    }

    /// Takes a free slot into use and names it.
    pub fn insert(&mut self, socket: impl Into<Option<S>>, listener: u8, stage: Stage) -> u32 {
        let socket = socket.into();
        self.used += 1;
        if self.free == NONE {
            return self.append(socket, listener, stage);
        }
        let index = self.free;
        let slot = &mut self[index];
        let next = slot.timer.next;
        slot.socket = socket;
        slot.stage = stage;
        slot.timer = Chain::LOOSE;
        slot.flags = 0;
        slot.form = Form::default();
        slot.listener = listener;
        self.free = next;
        index
    }

    /// Frees a slot; its key is worthless from here on. The caller has taken it out of every list.
    pub fn remove(&mut self, index: u32) -> Option<S> {
        let free = self.free;
        let slot = &mut self[index];
        debug_assert!(!matches!(slot.stage, Stage::Free));
        slot.generation = slot.generation.wrapping_add(1);
        slot.stage = Stage::Free;
        slot.reader = FrameReader::new();
        debug_assert!(slot.outbox.is_none());
        slot.timer = Chain { previous: NONE, next: free };
        slot.flags = 0;
        let socket = slot.socket.take();
        self.free = index;
        self.used -= 1;
        socket
    }

    /// A slot, for what a copy of it does not hold: bytes on their way out, the links of chains, what there is to do in a
    /// turn. Whoever copies a connection sees for himself whether something stays in its outbox.
    #[inline]
    pub fn passing(&mut self, index: u32) -> &mut Slot<S> {
        &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK]
    }

    pub fn key(&self, index: u32) -> SlotKey {
        SlotKey { shard: self.shard, index, generation: self[index].generation }
    }

    /// The shard's number.
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// The slot's index if the key still names its present use.
    pub fn find(&self, key: SlotKey) -> Option<u32> {
        let slot = self.blocks.get(key.index as usize / BLOCK)?.get(key.index as usize % BLOCK)?;
        (slot.generation == key.generation && !matches!(slot.stage, Stage::Free)).then_some(key.index)
    }

    /// What the poller reports events under: index and generation.
    pub fn token(&self, index: u32) -> u64 {
        u64::from(self[index].generation) << 32 | u64::from(index)
    }

    /// The slot's index if the token still names its present use.
    pub fn find_token(&self, token: u64) -> Option<u32> {
        self.find(SlotKey { shard: self.shard, index: token as u32, generation: (token >> 32) as u32 })
    }

    /// Slots in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// How many slots there are, free ones included: the bound for walking all of them.
    pub fn end(&self) -> u32 {
        self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * BLOCK + last.len()) as u32
    }

    fn append(&mut self, socket: Option<S>, listener: u8, stage: Stage) -> u32 {
        let index = self.end();
        if (index as usize).is_multiple_of(BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let slot = Slot {
            socket,
            generation: 0,
            due: 0,
            timer: Chain::LOOSE,
            same_identity: Chain::LOOSE,
            stage,
            reader: FrameReader::new(),
            outbox: None,
            flags: 0,
            form: Form::default(),
            listener,
        };
        self.blocks[index as usize / BLOCK].push(slot);
        index
    }
}

impl<S> std::ops::Index<u32> for Slots<S> {
    type Output = Slot<S>;

    fn index(&self, index: u32) -> &Slot<S> {
        &self.blocks[index as usize / BLOCK][index as usize % BLOCK]
    }
}

impl<S> std::ops::IndexMut<u32> for Slots<S> {
    /// A copy that was made of it is not as it is any more.
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Slot<S> {
        self.ahead.changes(index);
        &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_reused_slot_finds_nothing() {
        let mut slots = Slots::new(3);
        let index = slots.insert('a', 0, Stage::Echo(0));
        let key = slots.key(index);
        assert_eq!(slots.find(key), Some(index));
        assert_eq!(slots.remove(index), Some('a'));
        assert_eq!(slots.find(key), None);
        assert_eq!(slots.insert('b', 0, Stage::Echo(0)), index);
        assert_eq!(slots.find(key), None);
        assert_eq!(slots.find(SlotKey { shard: 3, index: 1 << 30, generation: 0 }), None);
    }

    #[test]
    fn all_slots_are_used_before_a_block_is_added() {
        let mut slots = Slots::new(0);
        let indexes: Vec<_> = (0..BLOCK as u32).map(|n| slots.insert(n, 0, Stage::Echo(0))).collect();
        assert_eq!((slots.used(), slots.end(), slots.blocks.len()), (BLOCK, BLOCK as u32, 1));
        slots.insert(0, 0, Stage::Echo(0));
        assert_eq!((slots.end(), slots.blocks.len()), (BLOCK as u32 + 1, 2));
        for index in indexes {
            slots.remove(index);
        }
        assert_eq!(slots.used(), 1);
        (0..BLOCK as u32).for_each(|n| assert!(slots.insert(n, 0, Stage::Echo(0)) < BLOCK as u32));
        assert_eq!(slots.blocks.len(), 2);
    }
}
