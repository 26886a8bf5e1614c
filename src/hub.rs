//! Who gets what: streams and their subscribers on one shard.
//!
//! Subscribers of a stream stand in groups by channel identifier, because a publication reads the same for
//! everybody in a group: it is encoded once and the bytes are shared. Plain data; a member is the index of a
//! slot and the hub neither knows nor asks what lives there. The rule its callers keep: whatever was attached
//! is detached before its slot is reused.

mod groups;
mod members;

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::model::Name;

use groups::{Group, Groups};
use members::{Crowds, Members};

/// Streams and subscribers of one shard.
pub struct Hub {
    hasher: FixedState,
    streams: HashTable<Stream>,
    crowds: Crowds,
    attachments: usize,
}

struct Stream {
    name: Name,
    groups: Groups,
}

// A stream in the table: its name, one identifier, one member; the tags fit beside the member.
const _: () = assert!(size_of::<Stream>() == 24);

/// Gives memory back after a crowd has left, yet does not shrink and grow again around one size.
fn shrink<T>(table: &mut HashTable<T>, hasher: impl Fn(&T) -> u64) {
    if table.capacity() > 64 && table.len() < table.capacity() / 8 {
        table.shrink_to(table.len() * 2, hasher);
    }
}

impl Hub {
    /// An empty hub; `seed` keys the hash of names, which clients may choose, and should be random outside of tests.
    pub fn new(seed: u64) -> Hub {
        let hasher = FixedState::with_seed(seed);
        Hub { hasher, streams: HashTable::new(), crowds: Crowds::default(), attachments: 0 }
    }

    /// Adds a subscriber. A second time for the same stream and identifier changes nothing.
    pub fn attach(&mut self, member: u32, identifier: &Name, stream: &Name) {
        let hash = |name: &Name| self.hasher.hash_one(name.as_str());
        let added = match self.streams.entry(hash(stream), |s| s.name == *stream, |s| hash(&s.name)) {
            Entry::Occupied(mut entry) => entry
                .get_mut()
                .groups
                .find_or_add(identifier, hash, member)
                .is_none_or(|group| group.members.insert(member, &mut self.crowds)),
            Entry::Vacant(entry) => {
                let group = Group { identifier: identifier.clone(), members: Members::One(member) };
                entry.insert(Stream { name: stream.clone(), groups: Groups::One(group) });
                true
            }
        };
        self.attachments += usize::from(added);
    }

    /// Removes a subscriber. A stream or group without subscribers is forgotten.
    pub fn detach(&mut self, member: u32, identifier: &Name, stream: &Name) {
        let hash = |name: &Name| self.hasher.hash_one(name.as_str());
        let Ok(mut entry) = self.streams.find_entry(hash(stream), |s| s.name == *stream) else { return };
        let left = entry.get_mut().groups.remove(identifier, member, hash, &mut self.crowds);
        self.attachments -= usize::from(left.is_some());
        if left == Some(0) {
            entry.remove();
            shrink(&mut self.streams, |s| hash(&s.name));
        }
    }

    /// Visits the subscribers of a stream, group by group. `enter` is called once for a group with its
    /// identifier and gives what `visit` gets with each member: the encoded frame.
    pub fn for_each<T>(&self, stream: &str, mut enter: impl FnMut(&Name) -> T, mut visit: impl FnMut(u32, &T)) {
        let Some(stream) = self.streams.find(self.hasher.hash_one(stream), |s| s.name.as_str() == stream) else {
            return;
        };
        let visit_group = |group: &Group| {
            let shared = enter(&group.identifier);
            group.members.for_each(&self.crowds, |member| visit(member, &shared));
        };
        stream.groups.iter().for_each(visit_group);
    }

    /// Streams with at least one subscriber.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Subscribers over all streams and identifiers.
    pub fn attachments(&self) -> usize {
        self.attachments
    }

    /// True when nothing is subscribed: what a shard without sessions must be.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.attachments == 0 && self.crowds.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receivers(hub: &Hub, stream: &str) -> Vec<(String, u32)> {
        let mut seen = Vec::new();
        hub.for_each(stream, |identifier| identifier.as_str().to_owned(), |m, id| seen.push((id.clone(), m)));
        seen.sort();
        seen
    }

    #[test]
    fn every_subscriber_is_visited_once_per_identifier() {
        let mut hub = Hub::new(7);
        let (a, b, room) = (Name::new("a"), Name::new("b"), Name::new("room"));
        for member in 0..3 {
            hub.attach(member, &a, &room);
        }
        hub.attach(1, &b, &room);
        hub.attach(1, &b, &room);
        let seen = receivers(&hub, "room");
        assert_eq!(seen, [("a".into(), 0), ("a".into(), 1), ("a".into(), 2), ("b".into(), 1)]);
        assert_eq!((hub.streams(), hub.attachments()), (1, 4));
    }

    #[test]
    fn a_publication_is_encoded_once_for_each_identifier() {
        let mut hub = Hub::new(7);
        let (a, b, room) = (Name::new("a"), Name::new("b"), Name::new("room"));
        (0..100).for_each(|member| hub.attach(member, if member % 2 == 0 { &a } else { &b }, &room));
        let mut entered = 0;
        hub.for_each("room", |_| entered += 1, |_, _| {});
        assert_eq!(entered, 2);
    }

    #[test]
    fn detaching_everybody_leaves_nothing() {
        let mut hub = Hub::new(7);
        for round in 0..3 {
            let names: Vec<_> = (0..50).map(|n| Name::new(&format!("id {n}"))).collect();
            let streams: Vec<_> = (0..20).map(|n| Name::new(&format!("stream {n}"))).collect();
            for member in 0..500u32 {
                hub.attach(member, &names[member as usize % 50], &streams[member as usize % 20]);
            }
            for member in 0..500u32 {
                let member = (member * 7 + round) % 500;
                hub.detach(member, &names[member as usize % 50], &streams[member as usize % 20]);
                hub.detach(member, &names[0], &streams[1]);
            }
            assert!(hub.is_empty());
        }
    }

    #[test]
    fn detaching_what_was_never_attached_changes_nothing() {
        let mut hub = Hub::new(7);
        let (a, b, room) = (Name::new("a"), Name::new("b"), Name::new("room"));
        hub.attach(1, &a, &room);
        hub.detach(2, &a, &room);
        hub.detach(1, &b, &room);
        assert_eq!(receivers(&hub, "room"), [("a".into(), 1)]);
    }
}
