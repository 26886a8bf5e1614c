//! Who gets what: streams and their subscribers on one shard.
//!
//! Subscribers of a stream stand in groups by channel identifier, because a publication reads the same for
//! everybody in a group: it is encoded once and the bytes are shared. Plain data; a member is the index of a
//! slot and the hub neither knows nor asks what lives there. The rule its callers keep: whatever was attached
//! is detached before its slot is reused.

mod groups;
mod members;
mod shelf;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::model::Topic;

use groups::{Group, Groups};
use members::{Crowds, Members};
use shelf::Shelf;

/// Streams and subscribers of one shard.
pub struct Hub {
    hasher: FixedState,
    streams: Shelf<Groups>,
    crowds: Crowds,
    attachments: usize,
}

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
        Hub { hasher, streams: Shelf::new(), crowds: Crowds::default(), attachments: 0 }
    }

    /// The topic of a stream and an identifier, shared with those who follow it already.
    pub fn topic(&self, identifier: &str, stream: &str) -> Topic {
        let groups = self.streams.find(stream, &self.hasher);
        let shared = groups.and_then(|groups| groups.topic(identifier, &self.hasher));
        shared.cloned().unwrap_or_else(|| Topic::new(identifier, stream))
    }

    /// Adds a subscriber. A second time for the same topic changes nothing.
    pub fn attach(&mut self, member: u32, topic: &Topic) {
        let groups = || Groups::One(Group { topic: topic.clone(), members: Members::One(member) });
        let known = self.streams.find_or_add(topic.stream(), &self.hasher, groups);
        let added = known.is_none_or(|groups| groups.insert(topic, member, &self.hasher, &mut self.crowds));
        self.attachments += usize::from(added);
    }

    /// Removes a subscriber. A stream or group without subscribers is forgotten.
    pub fn detach(&mut self, member: u32, topic: &Topic) {
        let Some(groups) = self.streams.find_mut(topic.stream(), &self.hasher) else { return };
        let Some(others) = groups.remove(topic, member, &self.hasher, &mut self.crowds) else { return };
        self.attachments -= 1;
        if !others {
            self.streams.remove(topic.stream(), &self.hasher);
        }
    }

    /// Visits the subscribers of a stream, group by group. `enter` is called once for a group with its
    /// identifier and gives what `visit` gets with each member: the encoded frame.
    pub fn for_each<T>(&self, stream: &str, mut enter: impl FnMut(&str) -> T, mut visit: impl FnMut(u32, &T)) {
        let Some(groups) = self.streams.find(stream, &self.hasher) else { return };
        for group in groups.as_slice() {
            let shared = enter(group.topic.identifier());
            group.members.for_each(&self.crowds, |member| visit(member, &shared));
        }
    }

    /// Streams with at least one subscriber.
    pub fn streams(&self) -> usize {
        self.streams.as_slice().len()
    }

    /// Subscribers over all streams and identifiers.
    pub fn attachments(&self) -> usize {
        self.attachments
    }

    /// True when nothing is subscribed: what a shard without sessions must be.
    pub fn is_empty(&self) -> bool {
        self.streams.as_slice().is_empty() && self.attachments == 0 && self.crowds.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receivers(hub: &Hub, stream: &str) -> Vec<(String, u32)> {
        let mut seen = Vec::new();
        hub.for_each(stream, str::to_owned, |m, id| seen.push((id.clone(), m)));
        seen.sort();
        seen
    }

    #[test]
    fn every_subscriber_is_visited_once_per_identifier() {
        let mut hub = Hub::new(7);
        let (a, b) = (Topic::new("a", "room"), Topic::new("b", "room"));
        for member in 0..3 {
            hub.attach(member, &a);
        }
        hub.attach(1, &b);
        hub.attach(1, &b);
        let seen = receivers(&hub, "room");
        assert_eq!(seen, [("a".into(), 0), ("a".into(), 1), ("a".into(), 2), ("b".into(), 1)]);
        assert_eq!((hub.streams(), hub.attachments()), (1, 4));
    }

    #[test]
    fn a_publication_is_encoded_once_for_each_identifier() {
        let mut hub = Hub::new(7);
        let (a, b) = (Topic::new("a", "room"), Topic::new("b", "room"));
        (0..100).for_each(|member| hub.attach(member, if member % 2 == 0 { &a } else { &b }));
        let mut entered = 0;
        hub.for_each("room", |_| entered += 1, |_, _| {});
        assert_eq!(entered, 2);
    }

    #[test]
    fn detaching_everybody_leaves_nothing() {
        let mut hub = Hub::new(7);
        for round in 0..3 {
            let topic = |member: u32| Topic::new(&format!("id {}", member % 50), &format!("stream {}", member % 20));
            for member in 0..500u32 {
                hub.attach(member, &topic(member));
            }
            for member in 0..500u32 {
                let member = (member * 7 + round) % 500;
                hub.detach(member, &topic(member));
                hub.detach(member, &Topic::new("id 0", "stream 1"));
            }
            assert!(hub.is_empty());
        }
    }

    #[test]
    fn detaching_what_was_never_attached_changes_nothing() {
        let mut hub = Hub::new(7);
        let (a, b) = (Topic::new("a", "room"), Topic::new("b", "room"));
        hub.attach(1, &a);
        hub.detach(2, &a);
        hub.detach(1, &b);
        assert_eq!(receivers(&hub, "room"), [("a".into(), 1)]);
    }

    #[test]
    fn a_topic_is_shared_with_those_who_follow_it() {
        let mut hub = Hub::new(7);
        for (identifier, stream) in [("a", "room"), ("b", "room"), ("a", "hall")] {
            let topic = hub.topic(identifier, stream);
            hub.attach(1, &topic);
            assert!(std::ptr::eq(hub.topic(identifier, stream).stream(), topic.stream()));
        }
        hub.detach(1, &Topic::new("b", "room"));
        hub.detach(1, &Topic::new("a", "room"));
        hub.detach(1, &Topic::new("a", "hall"));
        assert!(hub.is_empty());
    }
}
