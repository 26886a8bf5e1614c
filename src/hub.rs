//! Who gets what: streams and their subscribers on one shard.
//!
//! Subscribers of a stream stand in groups by channel identifier, because a publication reads the same for
//! everybody in a group: it is encoded once and the bytes are shared. Plain data; a member is the index of a
//! slot and the hub neither knows nor asks what lives there. The rule its callers keep: whatever was attached
//! is detached before its slot is reused.

mod groups;
mod members;
mod stream_key;

use std::hash::BuildHasher;

use crate::model::{IndexSet, Keyed, NameHasher, Topic};

use groups::{Group, Groups};
use members::{MemberSets, Members};

pub use stream_key::{StreamHasher, StreamKey};

/// A stream that a shard follows from now on, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamChange {
    /// The key of its name.
    pub key: StreamKey,
    /// It is the only one with that key that the shard follows, or followed.
    pub of_key: bool,
}

/// Streams and subscribers of one shard.
pub struct Hub {
    hasher: StreamHasher,
    /// For identifiers, which clients choose.
    identifier_hasher: NameHasher,
    streams: IndexSet<Groups>,
    sets: MemberSets,
    attachments: usize,
}

impl Hub {
    /// An empty hub. `hasher` is the node's.
    pub fn new(hasher: StreamHasher) -> Hub {
        Hub {
            hasher,
            identifier_hasher: NameHasher::default(),
            streams: IndexSet::new(),
            sets: MemberSets::default(),
            attachments: 0,
        }
    }

    /// The topic of a stream and an identifier, shared with those who follow it already.
    pub fn topic(&self, identifier: &str, stream: &str) -> Topic {
        let groups = self.streams.find(stream, |stream| self.hasher.table_hash(stream));
        let shared = groups.and_then(|groups| groups.topic(identifier, |text| self.identifier_hasher.hash_one(text)));
        shared.cloned().unwrap_or_else(|| Topic::new(identifier, stream))
    }

    /// Adds a subscriber. A second time for the same topic changes nothing. Says so if it is the first of its stream.
    pub fn attach(&mut self, member: u32, topic: &Topic) -> Option<StreamChange> {
        let Hub { hasher, identifier_hasher, streams, sets, attachments } = self;
        let groups = || Groups::One(Group { topic: topic.clone(), members: Members::One(member) });
        if let Some(known) = streams.find_or_add(topic.stream(), |stream| hasher.table_hash(stream), groups) {
            let added = known.insert(topic, member, |text| identifier_hasher.hash_one(text), sets);
            *attachments += usize::from(added);
            return None;
        }
        *attachments += 1;
        let key = hasher.key(topic.stream());
        Some(StreamChange { key, of_key: self.streams_with(key) == 1 })
    }

    /// Removes a subscriber. A stream or group without subscribers is forgotten. Says so if it was the last of its stream.
    pub fn detach(&mut self, member: u32, topic: &Topic) -> Option<StreamChange> {
        let Hub { hasher, identifier_hasher, streams, sets, attachments } = self;
        let groups = streams.find_mut(topic.stream(), |stream| hasher.table_hash(stream))?;
        let others = groups.remove(topic, member, |text| identifier_hasher.hash_one(text), sets)?;
        *attachments -= 1;
        if others {
            return None;
        }
        streams.remove(topic.stream(), |stream| hasher.table_hash(stream));
        let key = hasher.key(topic.stream());
        Some(StreamChange { key, of_key: self.streams_with(key) == 0 })
    }

    /// Visits the subscribers of a stream, group by group. `enter` is called once for a group and gives what `visit`
    /// gets with each member.
    pub fn for_each<T>(&self, stream: &str, mut enter: impl FnMut(&Topic) -> T, mut visit: impl FnMut(u32, &T)) {
        let Some(groups) = self.streams.find(stream, |stream| self.hasher.table_hash(stream)) else { return };
        for group in groups.as_slice() {
            let shared = enter(&group.topic);
            group.members.for_each(&self.sets, |member| visit(member, &shared));
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
        self.streams.as_slice().is_empty() && self.attachments == 0 && self.sets.is_empty()
    }

    fn streams_with(&self, key: StreamKey) -> usize {
        let same = self.streams.with_hash(key.spread());
        same.filter(|groups| self.hasher.key(groups.key()) == key).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> Hub {
        Hub::new(StreamHasher::new(7))
    }

    fn receivers(hub: &Hub, stream: &str) -> Vec<(String, u32)> {
        let mut seen = Vec::new();
        hub.for_each(stream, |topic| topic.identifier().to_owned(), |m, id| seen.push((id.clone(), m)));
        seen.sort();
        seen
    }

    #[test]
    fn every_subscriber_is_visited_once_per_identifier() {
        let mut hub = hub();
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
        let mut hub = hub();
        let (a, b) = (Topic::new("a", "room"), Topic::new("b", "room"));
        for member in 0..100 {
            hub.attach(member, if member % 2 == 0 { &a } else { &b });
        }
        let mut entered = 0;
        hub.for_each("room", |_| entered += 1, |_, _| {});
        assert_eq!(entered, 2);
    }

    #[test]
    fn detaching_everybody_leaves_nothing() {
        let mut hub = hub();
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
        let mut hub = hub();
        let (a, b) = (Topic::new("a", "room"), Topic::new("b", "room"));
        hub.attach(1, &a);
        hub.detach(2, &a);
        hub.detach(1, &b);
        assert_eq!(receivers(&hub, "room"), [("a".into(), 1)]);
    }

    #[test]
    fn a_topic_is_shared_with_those_who_follow_it() {
        let mut hub = hub();
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

    #[test]
    fn the_first_and_the_last_subscriber_of_a_stream_are_told() {
        let mut hub = hub();
        let (a, b) = (Topic::new("a", "room"), Topic::new("b", "room"));
        let change = StreamChange { key: StreamHasher::new(7).key("room"), of_key: true };
        assert_eq!(hub.attach(1, &a), Some(change));
        assert_eq!((hub.attach(2, &a), hub.attach(1, &b)), (None, None));
        assert_eq!((hub.detach(1, &a), hub.detach(3, &b), hub.detach(1, &b)), (None, None, None));
        assert_eq!(hub.detach(2, &a), Some(change));
        assert_eq!(hub.detach(2, &a), None);
    }

    #[test]
    fn a_key_is_followed_until_the_last_of_its_streams_is_gone() {
        // Two names with one key: found by trying, because 38 bits cannot be asked for.
        let hasher = StreamHasher::new(7);
        let mut seen = std::collections::HashMap::new();
        let (one, other) = (0u32..)
            .find_map(|n| seen.insert(hasher.key(&n.to_string()), n).map(|m| (m.to_string(), n.to_string())))
            .unwrap();
        let (one, other) = (Topic::new("i", &one), Topic::new("i", &other));
        let mut hub = hub();
        let alone = |change: Option<StreamChange>| change.map(|change| change.of_key);
        assert_eq!(alone(hub.attach(1, &one)), Some(true));
        assert_eq!((alone(hub.attach(1, &other)), alone(hub.detach(1, &one))), (Some(false), Some(false)));
        assert_eq!(alone(hub.detach(1, &other)), Some(true));
    }
}
