//! One stream of the gate.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Permit, Then};
use crate::model::Publication;

/// A node has one for each stream that it follows, which may be one for each client: what most have nothing of is apart.
pub struct Stream {
    /// Everything up to here has been delivered, or was there before. [`NOT_OPEN`] until the counter is read for the first
    /// time.
    last: u64,
    more: Option<Box<More>>,
    /// When it came as far as it is, in seconds; 0: it has not.
    came: u32,
    /// Shards that follow it.
    pub shards: u16,
    /// [`FILLING`], [`ANEW`] and [`SHUT`].
    flags: u8,
}

/// It is wanted to be filled, or is being filled.
const FILLING: u8 = 1;

/// What `last` says was so in an epoch that is over; it is not open.
const ANEW: u8 = 2;

/// It could not be opened, and is not wanted to be.
const SHUT: u8 = 4;

const NOT_OPEN: u64 = u64::MAX;

const _: () = assert!(size_of::<Stream>() == 24);

/// What a stream has that is not open, or of which something is missing.
#[derive(Default)]
pub struct More {
    /// It has come at least this far.
    pub head: u64,
    pub waiting: BTreeMap<u64, (Publication, Permit)>,
    /// Who wants to know when everything up to an offset is delivered; 0: when it is open.
    pub watchers: Vec<(u64, oneshot::Sender<()>)>,
    /// Who wants to know when it is open, or cannot be opened now.
    pub openings: Vec<Then>,
}

impl Stream {
    /// One that a shard has begun to follow.
    pub fn followed() -> Stream {
        Stream { last: NOT_OPEN, more: None, came: 0, shards: 1, flags: 0 }
    }

    /// Everything up to here has been delivered; none if it is not open.
    pub fn last(&self) -> Option<u64> {
        (self.last != NOT_OPEN && !self.has(ANEW)).then_some(self.last)
    }

    /// Everything up to here was delivered in an epoch that is over, of one that is to be opened again.
    pub fn before(&self) -> Option<u64> {
        self.has(ANEW).then_some(self.last)
    }

    pub fn set_last(&mut self, last: u64) {
        self.last = last;
    }

    /// It has come this far and no further, as far as is known.
    pub fn open_at(&mut self, head: u64) {
        self.last = head;
        self.set(ANEW, false);
        self.more.iter_mut().for_each(|more| more.head = 0);
    }

    /// It is to be opened again, with other offsets.
    pub fn begin_anew(&mut self) {
        self.set(ANEW, self.last != NOT_OPEN);
        if let Some(more) = &mut self.more {
            more.head = 0;
            more.waiting.clear();
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    /// It is wanted to be filled, or not any more. Tells whether it was.
    pub fn fills(&mut self, on: bool) -> bool {
        let was = self.has(FILLING);
        self.set(FILLING, on);
        was
    }

    /// It could not be opened; or it is wanted to be.
    pub fn shut(&mut self, on: bool) {
        self.set(SHUT, on);
    }

    /// It is not open, and will be or will be shut.
    pub fn is_opening(&self) -> bool {
        self.last().is_none() && !self.has(SHUT)
    }

    /// It has come at least this far.
    pub fn head(&self) -> u64 {
        self.last().unwrap_or(0).max(self.more.as_ref().map_or(0, |more| more.head))
    }

    /// It came further after this time.
    pub fn came_at(&mut self, time: Duration) {
        self.came = 1 + time.as_secs() as u32;
    }

    /// For how long it has not come further: this or a little less.
    pub fn age(&self, time: Duration) -> Option<Duration> {
        let came = self.came.checked_sub(1)?;
        Some(time.saturating_sub(Duration::from_secs(came.into())))
    }

    /// The rare part, there from now on.
    pub fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub fn first_waiting(&self) -> Option<u64> {
        self.next_waiting(0..=u64::MAX)
    }

    pub fn next_waiting(&self, range: RangeInclusive<u64>) -> Option<u64> {
        self.more.as_ref()?.waiting.range(range).next().map(|(offset, _)| *offset)
    }

    pub fn take_waiting(&mut self, offset: u64) -> Option<(Publication, Permit)> {
        self.more.as_mut()?.waiting.remove(&offset)
    }

    pub fn take_openings(&mut self) -> Vec<Then> {
        let openings = self.more.as_mut().map(|more| std::mem::take(&mut more.openings));
        self.settle();
        openings.unwrap_or_default()
    }

    /// Tells those who watch that it has come as far as they want, and gives up the rare part if it says nothing.
    pub fn settle(&mut self) {
        let last = self.last();
        let Some(more) = &mut self.more else { return };
        if let Some(last) = last {
            // Whoever watches has perhaps not waited for this long.
            more.watchers.extract_if(.., |(offset, _)| *offset <= last).for_each(|(_, watcher)| _ = watcher.send(()));
        }
        let has_come = last.is_none_or(|last| more.head <= last);
        self.more.take_if(|more| {
            has_come && more.waiting.is_empty() && more.watchers.is_empty() && more.openings.is_empty()
        });
    }
}
