//! The subscribers of one stream, in groups by channel identifier.

use crate::model::{IndexSet, Keyed, Topic};

use super::members::{MemberSets, Members};

/// Subscribers of one stream with one identifier.
#[derive(Clone)]
pub(super) struct Group {
    pub topic: Topic,
    pub members: Members,
}

impl Keyed for Group {
    type Key = str;

    fn key(&self) -> &str {
        self.topic.identifier()
    }
}

/// Most streams have all their subscribers under one identifier, so that case holds no index set.
pub(super) enum Groups {
    One(Group),
    /// Two at least.
    Many(Box<IndexSet<Group>>),
}

const _: () = assert!(size_of::<Group>() == 16 && size_of::<Groups>() == 16);

impl Keyed for Groups {
    type Key = str;

    fn key(&self) -> &str {
        self.as_slice()[0].topic.stream()
    }
}

impl Groups {
    /// Every group.
    pub fn as_slice(&self) -> &[Group] {
        match self {
            Groups::One(group) => std::slice::from_ref(group),
            Groups::Many(groups) => groups.as_slice(),
        }
    }

    /// The topic of a group as its members share it.
    pub fn topic(&self, identifier: &str, hash: impl Fn(&str) -> u64) -> Option<&Topic> {
        let group = match self {
            Groups::One(group) => Some(group).filter(|group| group.key() == identifier),
            Groups::Many(groups) => groups.find(identifier, &hash),
        };
        group.map(|group| &group.topic)
    }

    /// Adds a member; false when it was there already.
    pub fn insert(&mut self, topic: &Topic, member: u32, hash: impl Fn(&str) -> u64, sets: &mut MemberSets) -> bool {
        if let Groups::One(only) = self {
            if only.topic == *topic {
                return only.members.insert(member, sets);
            }
            let mut groups = Box::new(IndexSet::new());
            groups.find_or_add(only.key(), &hash, || only.clone());
            *self = Groups::Many(groups);
        }
        let Groups::Many(groups) = self else { return false };
        let group = || Group { topic: topic.clone(), members: Members::One(member) };
        let known = groups.find_or_add(topic.identifier(), &hash, group);
        known.is_none_or(|group| group.members.insert(member, sets))
    }

    /// Removes a member and tells whether anybody is left. `None` when the member was not there. Groups without a
    /// member are to be dropped.
    pub fn remove(
        &mut self,
        topic: &Topic,
        member: u32,
        hash: impl Fn(&str) -> u64,
        sets: &mut MemberSets,
    ) -> Option<bool> {
        let groups = match self {
            Groups::One(only) if only.topic == *topic => return Some(only.members.remove(member, sets)? > 0),
            Groups::One(_) => return None,
            Groups::Many(groups) => groups,
        };
        let group = groups.find_mut(topic.identifier(), &hash)?;
        if group.members.remove(member, sets)? == 0 {
            groups.remove(topic.identifier(), &hash);
            if let [only] = groups.as_slice() {
                *self = Groups::One(only.clone());
            }
        }
        Some(true)
    }
}
