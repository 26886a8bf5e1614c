//! A set of things in a row, and an index to find them by a text: half the memory of things in a hash table, whose free
//! places are as large as its full ones.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::shrink;

/// What a thing in an [`IndexSet`] is found by. It must not change while the thing is there.
pub(super) trait Keyed {
    fn key(&self) -> &str;
}

/// Things with distinct keys. Every call on one set must be given the same hash function.
pub(super) struct IndexSet<T> {
    things: Vec<T>,
    places: HashTable<u32>,
}

impl<T: Keyed> IndexSet<T> {
    pub fn new() -> IndexSet<T> {
        IndexSet { things: Vec::new(), places: HashTable::new() }
    }

    pub fn as_slice(&self) -> &[T] {
        &self.things
    }

    pub fn find(&self, key: &str, hash: impl Fn(&str) -> u64) -> Option<&T> {
        let place = self.places.find(hash(key), |&at| self.things[at as usize].key() == key)?;
        Some(&self.things[*place as usize])
    }

    pub fn find_mut(&mut self, key: &str, hash: impl Fn(&str) -> u64) -> Option<&mut T> {
        let place = self.places.find(hash(key), |&at| self.things[at as usize].key() == key)?;
        Some(&mut self.things[*place as usize])
    }

    /// Things whose key has this hash, and perhaps some more.
    pub fn with_hash(&self, hash: u64) -> impl Iterator<Item = &T> {
        self.places.iter_hash(hash).map(|&at| &self.things[at as usize])
    }

    /// The thing with this key. `None` when there was none: then one has been made.
    pub fn find_or_add(&mut self, key: &str, hash: impl Fn(&str) -> u64, make: impl FnOnce() -> T) -> Option<&mut T> {
        let things = &mut self.things;
        let is_it = |&at: &u32| things[at as usize].key() == key;
        match self.places.entry(hash(key), is_it, |&at| hash(things[at as usize].key())) {
            Entry::Occupied(entry) => Some(&mut things[*entry.get() as usize]),
            Entry::Vacant(entry) => {
                entry.insert(things.len() as u32);
                things.push(make());
                None
            }
        }
    }

    pub fn remove(&mut self, key: &str, hash: impl Fn(&str) -> u64) {
        let IndexSet { things, places } = self;
        let Ok(place) = places.find_entry(hash(key), |&at| things[at as usize].key() == key) else { return };
        let (at, _) = place.remove();
        things.swap_remove(at as usize);
        if let Some(moved) = things.get(at as usize) {
            // The last thing has taken the empty place.
            let last = things.len() as u32;
            if let Some(place) = places.find_mut(hash(moved.key()), |&at| at == last) {
                *place = at;
            }
        }
        shrink(places, |&at| hash(things[at as usize].key()));
        if things.capacity() > 64 && things.len() < things.capacity() / 8 {
            things.shrink_to(things.len() * 2);
        }
    }
}
