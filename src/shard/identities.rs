//! Which sessions have which connection identifiers, so that the app can send them away by those.
//!
//! Sessions with equal identifiers are chained through their slots; a table holds the first slot of each chain.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::model::NameHasher;

use super::slots::{Chain, NONE, Slots, Stage, flag};
use super::{Machine, Services, Shard};

/// First slot of each chain.
pub(super) struct Identities {
    firsts: HashTable<u32>,
    hasher: NameHasher,
}

impl Identities {
    pub fn new(seed: u64) -> Identities {
        Identities { firsts: HashTable::new(), hasher: NameHasher::new(seed) }
    }

    pub fn is_empty(&self) -> bool {
        self.firsts.is_empty()
    }

    /// A slot whose session has these identifiers.
    pub fn find<S>(&self, slots: &Slots<S>, identifiers: &str) -> Option<u32> {
        let is_it = |&first: &u32| identifiers_of(&slots[first].stage) == identifiers;
        self.firsts.find(self.hasher.hash_one(identifiers), is_it).copied()
    }

    /// Puts a slot first into its chain; tells whether it is a new one.
    fn insert<S>(&mut self, slots: &mut Slots<S>, index: u32) -> bool {
        let Identities { firsts, hasher } = self;
        let identifiers = identifiers_of(&slots[index].stage);
        let entry = firsts.entry(
            hasher.hash_one(identifiers),
            |&first| identifiers_of(&slots[first].stage) == identifiers,
            |&first| hasher.hash_one(identifiers_of(&slots[first].stage)),
        );
        match entry {
            Entry::Vacant(entry) => {
                entry.insert(index);
                true
            }
            Entry::Occupied(mut entry) => {
                let second = std::mem::replace(entry.get_mut(), index);
                slots.passing(second).same_identity.previous = index;
                slots.passing(index).same_identity.next = second;
                false
            }
        }
    }

    /// Takes a slot out of its chain; tells whether that was the last of it.
    fn remove<S>(&mut self, slots: &mut Slots<S>, index: u32) -> bool {
        let Identities { firsts, hasher } = self;
        let Chain { previous, next } = std::mem::replace(&mut slots.passing(index).same_identity, Chain::LOOSE);
        if next != NONE {
            slots.passing(next).same_identity.previous = previous;
        }
        if previous != NONE {
            slots.passing(previous).same_identity.next = next;
            return false;
        }
        let hash = hasher.hash_one(identifiers_of(&slots[index].stage));
        let Ok(mut entry) = firsts.find_entry(hash, |&first| first == index) else { return false };
        if next != NONE {
            *entry.get_mut() = next;
            return false;
        }
        entry.remove();
        if firsts.capacity() > 64 && firsts.len() < firsts.capacity() / 8 {
            firsts.shrink_to(firsts.len() * 2, |&first| hasher.hash_one(identifiers_of(&slots[first].stage)));
        }
        true
    }
}

/// The connection identifiers of whoever lives there.
fn identifiers_of(stage: &Stage) -> &str {
    match stage {
        Stage::Session(session, _) => session.identifiers(),
        _ => "",
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// A client was let in: from here on the app can find it by its identifiers.
    pub(super) fn index(&mut self, index: u32) {
        if !matches!(self.slots[index].stage, Stage::Session(..)) {
            return;
        }
        self.metrics.counters.clients_num.add(1);
        self.slots[index].flags |= flag::INDEXED;
        if self.identities.insert(&mut self.slots, index) {
            self.services.identity_came(identifiers_of(&self.slots[index].stage));
        }
    }

    /// Undoes [`Shard::index`].
    pub(super) fn unindex(&mut self, index: u32) {
        if self.slots[index].flags & flag::INDEXED == 0 {
            return;
        }
        self.slots[index].flags &= !flag::INDEXED;
        self.metrics.counters.clients_num.add(-1);
        if self.identities.remove(&mut self.slots, index) {
            self.services.identity_left(identifiers_of(&self.slots[index].stage));
        }
    }
}
