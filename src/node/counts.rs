//! What the shards of a node count together.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dashmap::DashMap;

use crate::model::NameHasher;

/// Open WebSockets and distinct identities of all shards.
pub(super) struct Counts {
    open: AtomicU64,
    open_max: u64,
    /// On how many shards there are sessions with these connection identifiers, by 48 bits of their hash: with a
    /// million identities, one run in 500 counts a single one too few. An entry is 8 bytes.
    identities: DashMap<[u8; 6], u16, NameHasher>,
    hasher: NameHasher,
}

impl Counts {
    /// Nothing yet, and room for this many WebSockets.
    pub fn new(open_max: u64) -> Counts {
        Counts {
            open: AtomicU64::new(0),
            open_max,
            identities: DashMap::with_hasher(NameHasher::default()),
            hasher: NameHasher::default(),
        }
    }

    /// WebSockets that are open.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Distinct connection identifiers.
    pub fn identities(&self) -> usize {
        self.identities.len()
    }

    /// Counts one more WebSocket if there is room for it.
    pub fn try_open(&self) -> bool {
        let fits = self.open.fetch_add(1, Relaxed) < self.open_max;
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
        *self.identities.entry(self.identity(identifiers)).or_default() += 1;
    }

    /// A shard has lost its last session with these identifiers.
    pub fn identity_left(&self, identifiers: &str) {
        if let dashmap::Entry::Occupied(mut entry) = self.identities.entry(self.identity(identifiers)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn identity(&self, identifiers: &str) -> [u8; 6] {
        let [hash @ .., _, _] = self.hasher.hash_one(identifiers).to_le_bytes();
        hash
    }
}
