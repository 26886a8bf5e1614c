//! What the shards of a node count together.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::NameHasher;

use super::sorted_runs::SortedRuns;

/// Open WebSockets and distinct identities of all shards.
pub(super) struct Counts {
    open: AtomicU64,
    open_max: AtomicU64,
    /// On how many shards there are sessions with these connection identifiers, in tables that are rarely wanted by two
    /// threads at once.
    identities: Box<[Mutex<Identities>]>,
    hasher: NameHasher,
}

/// By 54 bits of their hash, 6 of which choose a table: two of a million are hardly ever taken for one. An entry is 8
/// bytes.
type Identities = SortedRuns<[u16; 3], u16>;

const TABLE_BITS: u32 = 6;

const _: () = assert!(size_of::<([u16; 3], u16)>() == 8);

impl Counts {
    /// Nothing yet, and room for this many WebSockets.
    pub fn new(open_max: u64) -> Counts {
        Counts {
            open: AtomicU64::new(0),
            open_max: AtomicU64::new(open_max),
            identities: (0..1 << TABLE_BITS).map(|_| Mutex::default()).collect(),
            hasher: NameHasher::default(),
        }
    }

    /// WebSockets that are open.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// How many may be.
    pub fn open_max(&self) -> u64 {
        self.open_max.load(Relaxed)
    }

    /// From now on there is room for this many. Whoever is there stays: gives how many that are, at most, if none comes.
    pub fn set_open_max(&self, open_max: u64) -> u64 {
        // In one order with `try_open`: whoever found room by the old number is counted here.
        self.open_max.store(open_max, SeqCst);
        self.open.load(SeqCst)
    }

    /// Distinct connection identifiers.
    pub fn identities(&self) -> usize {
        self.identities.iter().map(|table| lock(table).len()).sum()
    }

    /// Counts one more WebSocket if there is room for it.
    pub fn try_open(&self) -> bool {
        let fits = self.open.fetch_add(1, SeqCst) < self.open_max.load(SeqCst);
        if !fits {
            self.open.fetch_sub(1, Relaxed);
        }
        fits
    }

    /// Counts one more WebSocket, whether or not there is room.
    pub fn reopened(&self) {
        self.open.fetch_add(1, Relaxed);
    }

    /// Counts one WebSocket less.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// A shard has its first session with these identifiers.
    pub fn identity_came(&self, identifiers: &str) {
        let (mut table, key) = self.identity(identifiers);
        if let Some(shards) = table.find_or_add(key, 1) {
            *shards += 1;
        }
    }

    /// A shard has lost its last session with these identifiers.
    pub fn identity_left(&self, identifiers: &str) {
        let (mut table, key) = self.identity(identifiers);
        match table.find_mut(key) {
            Some(shards) if *shards > 1 => *shards -= 1,
            _ => table.remove(key),
        }
    }

    fn identity(&self, identifiers: &str) -> (MutexGuard<'_, Identities>, [u16; 3]) {
        let hash = self.hasher.hash_one(identifiers);
        let key = [hash >> 32, hash >> 16, hash].map(|bits| bits as u16);
        (lock(&self.identities[(hash >> (u64::BITS - TABLE_BITS)) as usize]), key)
    }
}

/// A panic cannot leave a table half changed, so a poisoned lock is used as it is.
fn lock(table: &Mutex<Identities>) -> MutexGuard<'_, Identities> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_counts_once_however_many_shards_have_it() {
        let counts = Counts::new(1);
        for n in 0..1_000 {
            counts.identity_came(&n.to_string());
        }
        assert_eq!(counts.identities(), 1_000);
        (0..3).for_each(|_| counts.identity_came("7"));
        (0..3).for_each(|_| counts.identity_left("7"));
        assert_eq!(counts.identities(), 1_000);
        for n in 0..1_000 {
            counts.identity_left(&n.to_string());
        }
        counts.identity_left("nobody");
        assert_eq!(counts.identities(), 0);
    }
}
