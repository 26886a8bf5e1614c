//! A set of things in a row, and an index to find them by a key: half the memory of things in a hash table, whose free
//! places are as large as its full ones.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// What a thing in an [`IndexSet`] is found by. It must not change while the thing is there.
pub(crate) trait Keyed {
    type Key: Eq + ?Sized;

    fn key(&self) -> &Self::Key;
}

/// Things with distinct keys. Every call on one set must be given the same hash function.
pub(crate) struct IndexSet<T> {
    things: Vec<T>,
    places: HashTable<u32>,
}

/// Gives memory back after many have left, yet does not shrink and grow again around one size.
pub(crate) fn shrink<T>(table: &mut HashTable<T>, hasher: impl Fn(&T) -> u64) {
    if table.capacity() > 64 && table.len() < table.capacity() / 8 {
        table.shrink_to(table.len() * 2, hasher);
    }
}

impl<T: Keyed> IndexSet<T> {
    pub fn new() -> IndexSet<T> {
        IndexSet { things: Vec::new(), places: HashTable::new() }
    }

    pub fn as_slice(&self) -> &[T] {
        &self.things
    }

    /// Everything, to change what is no key.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.things
    }

    /// Where a thing stands in the slice.
    fn place(&self, key: &T::Key, hash: impl Fn(&T::Key) -> u64) -> Option<u32> {
        self.places.find(hash(key), |&at| self.things[at as usize].key() == key).copied()
    }

    pub fn find(&self, key: &T::Key, hash: impl Fn(&T::Key) -> u64) -> Option<&T> {
        let place = self.place(key, hash)?;
        Some(&self.things[place as usize])
    }

    pub fn find_mut(&mut self, key: &T::Key, hash: impl Fn(&T::Key) -> u64) -> Option<&mut T> {
        let place = self.place(key, hash)?;
        Some(&mut self.things[place as usize])
    }

    /// Things whose key has this hash, and perhaps some more.
    pub fn with_hash(&self, hash: u64) -> impl Iterator<Item = &T> {
        self.places.iter_hash(hash).map(|&at| &self.things[at as usize])
    }

    /// The thing with this key. `None` when there was none: then one has been made.
    pub fn find_or_add(
        &mut self,
        key: &T::Key,
        hash: impl Fn(&T::Key) -> u64,
        make: impl FnOnce() -> T,
    ) -> Option<&mut T> {
        let (place, is_new) = self.place_or_add(key, hash, make);
        if is_new { None } else { Some(&mut self.things[place as usize]) }
    }

    /// Where the thing with this key stands, and whether it has just been made.
    pub fn place_or_add(
        &mut self,
        key: &T::Key,
        hash: impl Fn(&T::Key) -> u64,
        make: impl FnOnce() -> T,
    ) -> (u32, bool) {
        let things = &mut self.things;
        let is_it = |&at: &u32| things[at as usize].key() == key;
        match self.places.entry(hash(key), is_it, |&at| hash(things[at as usize].key())) {
            Entry::Occupied(entry) => (*entry.get(), false),
            Entry::Vacant(entry) => {
                let place = things.len() as u32;
                entry.insert(place);
                if things.len() == things.capacity() {
                    // By an eighth: most sets are of one or two, and a large one is not half empty.
                    things.reserve_exact(1 + things.len() / 8);
                }
                things.push(make());
                (place, true)
            }
        }
    }

    /// Takes a thing out and tells where it stood. The last one stands there now, if it was not itself the last.
    pub fn remove(&mut self, key: &T::Key, hash: impl Fn(&T::Key) -> u64) -> Option<(u32, T)> {
        let IndexSet { things, places } = self;
        let place = places.find_entry(hash(key), |&at| things[at as usize].key() == key).ok()?;
        let (at, _) = place.remove();
        let removed = things.swap_remove(at as usize);
        if let Some(moved) = things.get(at as usize) {
            // The last thing has taken the empty place.
            let last = things.len() as u32;
            if let Some(place) = places.find_mut(hash(moved.key()), |&at| at == last) {
                *place = at;
            }
        }
        shrink(places, |&at| hash(things[at as usize].key()));
        if things.is_empty() {
            *self = IndexSet::new();
        } else if things.capacity() > 64 && things.len() < things.capacity() / 8 {
            things.shrink_to(things.len() * 2);
        }
        Some((at, removed))
    }
}
