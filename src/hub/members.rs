//! The members of one group: one in place, or several in a set of their own.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::model::shrink;

/// Members of one group, in 8 bytes.
#[derive(Clone, Copy)]
pub(super) enum Members {
    /// A stream of one user has one subscriber, so that case holds no table.
    One(u32),
    /// Its number in [`MemberSets`].
    Set(u32),
}

/// The sets of all groups with more than one member. By number, because a pointer would take a group's place twice.
#[derive(Default)]
pub(super) struct MemberSets {
    tables: Vec<HashTable<u32>>,
    free: Vec<u32>,
}

/// Slots are numbered by us, so their hash needs no key.
fn hash(member: &u32) -> u64 {
    FxBuildHasher.hash_one(member)
}

impl MemberSets {
    /// True when no group has more than one member.
    pub fn is_empty(&self) -> bool {
        self.tables.len() == self.free.len()
    }

    fn make(&mut self, table: HashTable<u32>) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.tables[number as usize] = table;
                number
            }
            None => {
                self.tables.push(table);
                (self.tables.len() - 1) as u32
            }
        }
    }
}

impl Members {
    /// Adds a member; false when it was there already.
    pub fn insert(&mut self, member: u32, sets: &mut MemberSets) -> bool {
        match *self {
            Members::One(only) if only == member => false,
            Members::One(only) => {
                let mut table = HashTable::with_capacity(2);
                table.insert_unique(hash(&only), only, hash);
                table.insert_unique(hash(&member), member, hash);
                *self = Members::Set(sets.make(table));
                true
            }
            Members::Set(number) => {
                let table = &mut sets.tables[number as usize];
                match table.entry(hash(&member), |m| *m == member, hash) {
                    hashbrown::hash_table::Entry::Occupied(_) => false,
                    hashbrown::hash_table::Entry::Vacant(entry) => {
                        entry.insert(member);
                        true
                    }
                }
            }
        }
    }

    /// Removes a member and tells how many are left; `None` when it was not there. A group of none is to be dropped.
    pub fn remove(&mut self, member: u32, sets: &mut MemberSets) -> Option<usize> {
        match *self {
            Members::One(only) => (only == member).then_some(0),
            Members::Set(number) => {
                let table = &mut sets.tables[number as usize];
                table.find_entry(hash(&member), |m| *m == member).ok()?.remove();
                shrink(table, hash);
                let left = table.len();
                if left == 0 {
                    *table = HashTable::new();
                    sets.free.push(number);
                }
                Some(left)
            }
        }
    }

    /// Visits every member.
    pub fn for_each(&self, sets: &MemberSets, mut visit: impl FnMut(u32)) {
        match *self {
            Members::One(only) => visit(only),
            Members::Set(number) => sets.tables[number as usize].iter().for_each(|member| visit(*member)),
        }
    }
}
