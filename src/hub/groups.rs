//! The subscribers of one stream, in groups by channel identifier.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::model::Name;

use super::members::{Crowds, Members};
use super::shrink;

/// Subscribers with one identifier.
pub(super) struct Group {
    pub identifier: Name,
    pub members: Members,
}

/// Most streams have all their subscribers under one identifier, so that case holds no table.
pub(super) enum Groups {
    One(Group),
    Many(Box<Table>),
}

/// Groups side by side and an index to find them: half the memory of groups in a table, whose free places are as
/// large as its full ones.
#[derive(Default)]
pub(super) struct Table {
    groups: Vec<Group>,
    places: HashTable<u32>,
}

const _: () = assert!(size_of::<Group>() == 16 && size_of::<Groups>() == 16);

impl Groups {
    /// Every group.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        match self {
            Groups::One(group) => std::slice::from_ref(group).iter(),
            Groups::Many(table) => table.groups.iter(),
        }
    }

    /// The group of an identifier. `None` when there was none: then it has been made, with this member.
    pub fn find_or_add(&mut self, identifier: &Name, hash: impl Fn(&Name) -> u64, member: u32) -> Option<&mut Group> {
        if matches!(self, Groups::One(group) if group.identifier != *identifier) {
            let Groups::One(only) = std::mem::replace(self, Groups::Many(Box::default())) else { return None };
            let Groups::Many(table) = self else { return None };
            table.places.insert_unique(hash(&only.identifier), 0, |_| 0);
            table.groups.push(only);
        }
        let table = match self {
            Groups::One(group) => return Some(group),
            Groups::Many(table) => &mut **table,
        };
        let (groups, places) = (&mut table.groups, &mut table.places);
        let is_it = |&at: &u32| groups[at as usize].identifier == *identifier;
        match places.entry(hash(identifier), is_it, |&at| hash(&groups[at as usize].identifier)) {
            Entry::Occupied(entry) => Some(&mut groups[*entry.get() as usize]),
            Entry::Vacant(entry) => {
                entry.insert(groups.len() as u32);
                groups.push(Group { identifier: identifier.clone(), members: Members::One(member) });
                None
            }
        }
    }

    /// Removes a member and tells whether anybody is left: 0 when not. `None` when the member was not there.
    pub fn remove(
        &mut self,
        identifier: &Name,
        member: u32,
        hash: impl Fn(&Name) -> u64,
        crowds: &mut Crowds,
    ) -> Option<usize> {
        let table = match self {
            Groups::One(group) if group.identifier == *identifier => return group.members.remove(member, crowds),
            Groups::One(_) => return None,
            Groups::Many(table) => &mut **table,
        };
        let (groups, places) = (&mut table.groups, &mut table.places);
        let place = places.find_entry(hash(identifier), |&at| groups[at as usize].identifier == *identifier).ok()?;
        let at = *place.get();
        if groups[at as usize].members.remove(member, crowds)? == 0 {
            place.remove();
            groups.swap_remove(at as usize);
            if let Some(moved) = groups.get(at as usize) {
                // The last group has taken the empty place.
                let last = groups.len() as u32;
                if let Some(place) = places.find_mut(hash(&moved.identifier), |&at| at == last) {
                    *place = at;
                }
            }
            shrink(places, |&at| hash(&groups[at as usize].identifier));
            if groups.capacity() > 64 && groups.len() < groups.capacity() / 8 {
                groups.shrink_to(groups.len() * 2);
            }
        }
        Some(groups.len())
    }
}
