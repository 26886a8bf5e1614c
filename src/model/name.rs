//! Shared texts: channel identifiers and stream names.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use triomphe::ThinArc;

/// A text that many sessions hold at once: one word for each holder, the text once.
///
/// Thin on purpose: a session with one subscription holds two of these and the hub two more, so a second word
/// for the length in each would cost every parked session 32 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(ThinArc<(), u8>);

impl Name {
    /// Makes a name of its own; use [`Names::get`] to share it.
    pub fn new(text: &str) -> Name {
        Name(ThinArc::from_header_and_slice((), text.as_bytes()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Checked again each time because the thin pointer forgets the type; 100 bytes take a few nanoseconds.
        std::str::from_utf8(&self.0.slice).expect("a name is made from text")
    }

    fn is_shared(&self) -> bool {
        // One holder is the table itself.
        ThinArc::strong_count(&self.0) > 1
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.slice);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Name::new(&std::borrow::Cow::<str>::deserialize(deserializer)?))
    }
}

/// The names in use on one shard, so that equal texts are one allocation.
///
/// Clients choose some of these texts, so the hash is keyed: nobody outside can pick texts that collide.
pub struct Names {
    table: HashTable<Name>,
    hasher: FixedState,
}

impl Names {
    /// An empty table; `seed` keys the hash and should be random outside of tests.
    pub fn new(seed: u64) -> Names {
        Names { table: HashTable::new(), hasher: FixedState::with_seed(seed) }
    }

    /// The keyed hash of a text, the same as of the name made from it.
    pub fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text.as_bytes())
    }

    /// The shared name for `text`.
    pub fn get(&mut self, text: &str) -> Name {
        let hasher = &self.hasher;
        let entry = self.table.entry(
            hasher.hash_one(text.as_bytes()),
            |name| name.0.slice == *text.as_bytes(),
            |name| hasher.hash_one(&name.0.slice),
        );
        entry.or_insert_with(|| Name::new(text)).get().clone()
    }

    /// Gives a name back. When nobody else holds it any more, it is forgotten.
    pub fn release(&mut self, name: Name) {
        let hasher = &self.hasher;
        let found = self.table.find_entry(hasher.hash_one(&name.0.slice), |known| *known == name);
        let Ok(entry) = found else { return };
        drop(name);
        if !entry.get().is_shared() {
            entry.remove();
            if self.table.capacity() > 64 && self.table.len() < self.table.capacity() / 8 {
                self.table.shrink_to(self.table.len() * 2, |name| hasher.hash_one(&name.0.slice));
            }
        }
    }

    /// How many distinct names are in use.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True when no name is in use.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

const _: () = assert!(size_of::<Name>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_allocation_until_the_last_holder_lets_go() {
        let mut names = Names::new(7);
        let (one, two) = (names.get("room:7"), names.get("room:7"));
        assert!(std::ptr::eq(one.as_str(), two.as_str()));
        names.release(one);
        assert_eq!(names.len(), 1);
        names.release(two);
        assert!(names.is_empty());
    }

    #[test]
    fn many_names_come_and_go_and_leave_nothing() {
        let mut names = Names::new(7);
        let held: Vec<_> = (0..5_000).map(|n| names.get(&format!("name {n}"))).collect();
        assert_eq!(names.len(), 5_000);
        held.into_iter().for_each(|name| names.release(name));
        assert!(names.is_empty());
        assert!(names.table.capacity() < 1_000);
    }
}
