//! What was published lately, by stream, and how far each stream has come.
//!
//! Every stream has a counter, the offset of its newest message, and a queue of its newest messages. Messages leave by
//! number, by bytes, by age and when memory is needed; the counter stays longer, so that offsets go on after a quiet
//! time. Plain data: no clock, no lock. Whoever holds it keeps a stream always in the same one and gives the time.
//!
//! **No offset means two messages.** A counter that is forgotten and begun again would let a client of the old one take
//! later messages for the next, with those between missing. So a [`History`] remembers the highest offset of all counters
//! that it forgot, and a stream that is new to it begins behind that.
//!
//! **Memory.** A message costs its texts' blocks ([`SharedText::heap_bytes`]: 39 bytes at most beside the text), its
//! entry (24), and its part of the queue's spare room (a 32nd of an entry): less than 64 beside its text, and 39 more if it
//! has a kind. Texts of 32 KiB or more stand in whole pages and can take one page more. Blocks that are shared with frames
//! in flight are counted here in full. A stream costs [`STREAM_BYTES`], the block of its name, and, while it has
//! messages, its queue's block (16) with at most as many free places as it has entries, and no more than 8 (192). Holes
//! between the blocks are not counted; `tests/store_memory.rs` measures them: 3 % after 2000 queues grew side by side.

mod hand_over;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::BuildHasher;

use crate::model::shared_text::block_bytes;
use crate::model::{IndexSet, Keyed, NameHasher, SharedText};

pub use hand_over::KeptStream;

/// When something was published, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Moment {
    /// Monotonic, for time-outs.
    pub mono: u32,
    /// Unix time, for `since`.
    pub wall: u32,
}

/// What a [`History`] keeps at most.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Messages of a stream. With 0 none is kept, but offsets are counted.
    pub messages_max: u32,
    /// How long a message is kept, in seconds. Its age is told in whole seconds, so it is kept up to one longer. The
    /// counter of a stream is kept ten times as long after its last message.
    pub ttl: u32,
    /// Bytes of a stream's messages, as they are counted in [`History::bytes`], without its queue's spare room. The
    /// newest message is kept however long it is.
    pub stream_bytes_max: usize,
}

/// A message out of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its place in its stream.
    pub offset: u64,
    /// As in [`Publication`](crate::model::Publication).
    pub message: SharedText,
    /// As in [`Publication`](crate::model::Publication).
    pub kind: Option<SharedText>,
}

/// The history does not reach back that far, or the position never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the history does not reach back to this position")]
pub struct Gone;

/// Counters live this many times as long as messages (contract, section 4).
pub const COUNTER_TTLS: u32 = 10;

/// No stream.
const NONE: u32 = u32::MAX;

struct Entry {
    message: SharedText,
    kind: Option<SharedText>,
    /// Never less than that of the entry before.
    mono: u32,
    wall: u32,
}

const _: () = assert!(size_of::<Entry>() == 24);

// The promise of the module's comment: 39 + 24 + a 32nd of 24 (rounded up).
const _: () = assert!(SharedText::OVERHEAD_BYTES_MAX + size_of::<Entry>() + size_of::<Entry>().div_ceil(32) <= 64);

impl Entry {
    fn bytes(&self) -> usize {
        entry_bytes(&self.message, self.kind.as_ref())
    }
}

fn entry_bytes(message: &SharedText, kind: Option<&SharedText>) -> usize {
    size_of::<Entry>() + message.heap_bytes() + kind.map_or(0, SharedText::heap_bytes)
}

/// Places that a queue of this many entries may have free. A queue that grows by one leaves behind, each time, a hole too
/// small for a message.
fn spare_max(entries: usize) -> usize {
    entries.clamp(1, 8).max(entries / 32)
}

struct Stream {
    name: Box<str>,
    kept: VecDeque<Entry>,
    /// Offset of the newest message, kept or not.
    head: u64,
    /// Sum of the entries' bytes.
    kept_bytes: usize,
    /// When the newest message came.
    mono: u32,
    /// Messages that came since [`History::all`] or [`History::changed`] gave this stream.
    unseen: u32,
    /// The stream that was published to next after this one, and the one before.
    newer: u32,
    older: u32,
}

/// What a stream costs beside the block of its name and its messages: itself, with the free eighth of the row it stands
/// in, and its place in the index, a table that is never less than 7/16 full.
pub const STREAM_BYTES: usize = size_of::<Stream>() + size_of::<Stream>() / 8 + (size_of::<u32>() + 1) * 16 / 7 + 1;

const _: () = assert!(size_of::<Stream>() <= 80 && STREAM_BYTES <= 102);

impl Keyed for Stream {
    type Key = str;

    fn key(&self) -> &str {
        &self.name
    }
}

impl Stream {
    /// What all of it takes.
    fn bytes(&self) -> usize {
        let spare = match self.kept.capacity() {
            0 => 0,
            places => block_bytes(places * size_of::<Entry>()) - self.kept.len() * size_of::<Entry>(),
        };
        STREAM_BYTES + block_bytes(self.name.len()) + spare + self.kept_bytes
    }

    fn push(&mut self, entry: Entry) {
        if self.kept.len() == self.kept.capacity() {
            self.kept.reserve_exact(spare_max(self.kept.len()));
        }
        self.kept_bytes += entry.bytes();
        self.kept.push_back(entry);
    }

    /// Drops the oldest message. Gives its bytes, 0 when there was none.
    fn pop(&mut self) -> usize {
        let bytes = self.kept.pop_front().map_or(0, |entry| entry.bytes());
        self.kept_bytes -= bytes;
        bytes
    }

    /// Gives back room that the queue does not need any more.
    fn trim(&mut self) {
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        } else if self.kept.capacity() > self.kept.len() + spare_max(self.kept.len()) {
            self.kept.shrink_to_fit();
        }
    }

    /// Messages that are too old now; they are the first.
    fn expired(&self, now: u32, ttl: u32) -> usize {
        self.kept.partition_point(|entry| is_over(entry.mono, ttl, now))
    }

    /// The kept messages from a place in the queue on.
    fn messages(&self, from: usize) -> Vec<StoredMessage> {
        let oldest = self.head - self.kept.len() as u64 + 1;
        let entries = self.kept.iter().enumerate().skip(from);
        let stored = |(n, entry): (usize, &Entry)| StoredMessage {
            offset: oldest + n as u64,
            message: entry.message.clone(),
            kind: entry.kind.clone(),
        };
        entries.map(stored).collect()
    }
}

/// Whether more than `ttl` seconds have passed.
fn is_over(since: u32, ttl: u32, now: u32) -> bool {
    now.saturating_sub(since) > ttl
}

/// One stripe: the history of the streams that fall into it.
pub struct History {
    limits: HistoryLimits,
    hasher: NameHasher,
    streams: IndexSet<Stream>,
    /// The ends of the list of streams by last publication.
    newest: u32,
    oldest: u32,
    bytes: usize,
    messages: usize,
    /// The highest offset of all streams whose counter was forgotten.
    forgotten: u64,
}

impl History {
    /// An empty history.
    pub fn new(limits: HistoryLimits) -> History {
        History {
            limits,
            hasher: NameHasher::default(),
            streams: IndexSet::new(),
            newest: NONE,
            oldest: NONE,
            bytes: 0,
            messages: 0,
            forgotten: 0,
        }
    }

    /// Appends a message to its stream and drops what is over the stream's limits. Gives its offset: 1 for the first
    /// message of a stream, or more once a counter was forgotten (the module's comment says why).
    pub fn store(&mut self, stream: &str, message: &SharedText, kind: Option<&SharedText>, at: Moment) -> u64 {
        let place = self.place_or_add(stream);
        let limits = self.limits;
        self.change(place, |stream| {
            stream.head += 1;
            stream.unseen = stream.unseen.saturating_add(1);
            // Publishers read the clock before they wait for each other, so it may seem to go back a little.
            stream.mono = stream.mono.max(at.mono);
            if limits.messages_max > 0 {
                let bytes = entry_bytes(message, kind);
                while stream.kept.len() >= limits.messages_max as usize
                    || (!stream.kept.is_empty() && stream.kept_bytes + bytes > limits.stream_bytes_max)
                {
                    stream.pop();
                }
                let (message, kind) = (message.clone(), kind.cloned());
                stream.push(Entry { message, kind, mono: stream.mono, wall: at.wall });
            }
        });
        self.unlink(place);
        self.link_newest(place);
        self.streams.as_slice()[place as usize].head
    }

    /// Offset of the newest message of a stream; 0 if the stream is not known.
    pub fn head(&self, stream: &str) -> u64 {
        self.find(stream).map_or(0, |stream| stream.head)
    }

    /// Everything after the message with this offset, oldest first.
    ///
    /// # Errors
    /// [`Gone`] unless it is certain that nothing is missing: for offset 0, an unknown stream, an offset that was not
    /// given out yet, and one after which a message is not kept any more. Whoever has the newest message misses nothing,
    /// however little is kept.
    pub fn after(&self, stream: &str, offset: u64, now: Moment) -> Result<Vec<StoredMessage>, Gone> {
        let stream = self.find(stream).ok_or(Gone)?;
        if offset == 0 || offset > stream.head || self.is_dead(stream, now) {
            return Err(Gone);
        }
        let alive = stream.kept.len() - stream.expired(now.mono, self.limits.ttl);
        let missed = stream.head - offset;
        if missed > alive as u64 {
            return Err(Gone);
        }
        Ok(stream.messages(stream.kept.len() - missed as usize))
    }

    /// The first message of this Unix time or later and all that came after it, oldest first. They are in order of
    /// publication, so a wall clock that was set back makes them more and never leaves a gap. None of an unknown stream.
    pub fn since(&self, stream: &str, wall: i64, now: Moment) -> Vec<StoredMessage> {
        let Some(stream) = self.find(stream) else { return Vec::new() };
        let expired = stream.expired(now.mono, self.limits.ttl);
        let is_in = |entry: &Entry| i64::from(entry.wall) >= wall;
        let first = stream.kept.iter().skip(expired).position(is_in);
        first.map_or(Vec::new(), |first| stream.messages(expired + first))
    }

    /// Forgets messages that are older than the limit, and streams without a message for ten times as long. Looks at the
    /// oldest message of every stream that has one.
    pub fn expire(&mut self, now: Moment) {
        while let Some(oldest) = self.streams.as_slice().get(self.oldest as usize)
            && self.is_dead(oldest, now)
        {
            self.forget(self.oldest);
        }
        for place in 0..self.streams.as_slice().len() {
            let expired = self.streams.as_slice()[place].expired(now.mono, self.limits.ttl);
            if expired > 0 {
                self.change(place as u32, |stream| (0..expired).for_each(|_| _ = stream.pop()));
            }
        }
    }

    /// Gives back at least this many bytes, if there are: from the stream that nobody has published to for longest the
    /// oldest messages, then its counter, and then from the next. Gives how many it were.
    pub fn evict(&mut self, bytes: usize) -> usize {
        let before = self.bytes;
        loop {
            let freed = before - self.bytes;
            let Some(oldest) = self.streams.as_slice().get(self.oldest as usize).filter(|_| freed < bytes) else {
                return freed;
            };
            if oldest.kept.is_empty() {
                self.forget(self.oldest);
                continue;
            }
            let mut wanted = bytes - freed;
            self.change(self.oldest, |stream| {
                while wanted > 0 && !stream.kept.is_empty() {
                    wanted = wanted.saturating_sub(stream.pop());
                }
            });
        }
    }

    /// What all of it takes, in bytes, with the allocator's share.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that are kept.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Streams whose counter is kept.
    pub fn streams(&self) -> usize {
        self.streams.as_slice().len()
    }

    fn find(&self, stream: &str) -> Option<&Stream> {
        self.streams.find(stream, |name| self.hasher.hash_one(name))
    }

    /// Whether its counter is past its time too.
    fn is_dead(&self, stream: &Stream, now: Moment) -> bool {
        is_over(stream.mono, self.limits.ttl.saturating_mul(COUNTER_TTLS), now.mono)
    }

    fn place_or_add(&mut self, stream: &str) -> u32 {
        let History { streams, hasher, forgotten, .. } = self;
        let fresh = || Stream {
            name: stream.into(),
            kept: VecDeque::new(),
            head: *forgotten,
            kept_bytes: 0,
            mono: 0,
            unseen: 0,
            newer: NONE,
            older: NONE,
        };
        let (place, is_new) = streams.place_or_add(stream, |name| hasher.hash_one(name), fresh);
        if is_new {
            self.bytes += streams.as_slice()[place as usize].bytes();
            self.link_newest(place);
        }
        place
    }

    /// Changes what a stream keeps, and the sums with it.
    fn change(&mut self, place: u32, change: impl FnOnce(&mut Stream)) {
        let stream = &mut self.streams.as_mut_slice()[place as usize];
        self.bytes -= stream.bytes();
        self.messages -= stream.kept.len();
        change(stream);
        stream.trim();
        self.bytes += stream.bytes();
        self.messages += stream.kept.len();
    }

    /// Forgets a stream and its counter.
    fn forget(&mut self, place: u32) {
        self.unlink(place);
        let name = self.streams.as_slice()[place as usize].name.clone();
        let Some((_, stream)) = self.streams.remove(&name, |name| self.hasher.hash_one(name)) else { return };
        self.bytes -= stream.bytes();
        self.messages -= stream.kept.len();
        self.forgotten = self.forgotten.max(stream.head);
        if (place as usize) < self.streams.as_slice().len() {
            // The last one stands there now.
            let (newer, older) = self.neighbours(place);
            self.join(newer, place);
            self.join(place, older);
        }
    }

    fn neighbours(&self, place: u32) -> (u32, u32) {
        let stream = &self.streams.as_slice()[place as usize];
        (stream.newer, stream.older)
    }

    /// Takes a stream out of the list.
    fn unlink(&mut self, place: u32) {
        let (newer, older) = self.neighbours(place);
        self.join(newer, older);
    }

    fn link_newest(&mut self, place: u32) {
        let second = self.newest;
        self.join(NONE, place);
        self.join(place, second);
    }

    /// Makes two streams neighbours in the list; without one of them the other is at its end.
    fn join(&mut self, newer: u32, older: u32) {
        let streams = self.streams.as_mut_slice();
        match streams.get_mut(newer as usize) {
            Some(stream) => stream.older = older,
            None => self.newest = older,
        }
        match streams.get_mut(older as usize) {
            Some(stream) => stream.newer = newer,
            None => self.oldest = newer,
        }
    }
}
