//! One session on one channel identifier, and all subscriptions of a session.

use serde::{Deserialize, Serialize};

use crate::model::{ChannelIdentifier, State, StateChanges, Topic};

/// Who confirmed a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answerer {
    App,
    /// This server, for a signed or public stream.
    Here {
        whisper: bool,
    },
}

/// A subscription: its streams in the order they were added, and the app's state for the channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Subscription {
    /// The identifier, and the first stream; an empty one while there is none.
    first: Topic,
    /// What few subscriptions have.
    more: Option<Box<More>>,
    by: Answerer,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct More {
    /// Further streams.
    topics: Vec<Topic>,
    /// The app's state for this channel.
    istate: State,
}

/// A subscription to look at.
#[derive(Clone, Copy)]
pub(super) struct SubscriptionRef<'a> {
    first: &'a Topic,
    more: Option<&'a More>,
    pub by: Answerer,
}

impl<'a> SubscriptionRef<'a> {
    pub fn identifier(self) -> &'a str {
        self.first.identifier()
    }

    /// The identifier for somebody who keeps it.
    pub fn shared_identifier(self) -> ChannelIdentifier {
        ChannelIdentifier::of(self.first)
    }

    /// The app's state for this channel.
    pub fn istate(self) -> State {
        self.more.map(|more| more.istate.clone()).unwrap_or_default()
    }

    /// What the app's state has under a key.
    pub fn state(self, key: &str) -> Option<&'a str> {
        self.more?.istate.get(key)
    }

    /// Its streams.
    pub fn topics(self) -> impl Iterator<Item = &'a Topic> {
        let first = Some(self.first).filter(|topic| !topic.stream().is_empty());
        first.into_iter().chain(self.more.into_iter().flat_map(|more| &more.topics))
    }
}

impl Subscription {
    /// One with this stream; with none if its name is empty.
    pub fn new(first: Topic, by: Answerer) -> Subscription {
        Subscription { first, more: None, by }
    }

    pub fn as_ref(&self) -> SubscriptionRef<'_> {
        SubscriptionRef { first: &self.first, more: self.more.as_deref(), by: self.by }
    }

    pub fn merge(&mut self, changes: StateChanges) {
        if !changes.is_empty() {
            self.more.get_or_insert_default().istate.merge(changes);
            self.forget_empty();
        }
    }

    /// Follows one more stream, whose name is not empty.
    pub fn push(&mut self, topic: Topic) {
        if self.first.stream().is_empty() {
            self.first = topic;
        } else {
            self.more.get_or_insert_default().topics.push(topic);
        }
    }

    /// Takes out the streams for which `out` is true.
    pub fn take_out(&mut self, out: impl Fn(&str) -> bool) -> Vec<Topic> {
        let (taken, kept) = self.as_ref().topics().cloned().partition::<Vec<_>, _>(|topic| out(topic.stream()));
        self.replace_topics(kept);
        taken
    }

    /// Has each topic replaced by what `shared` makes of it.
    pub fn share(&mut self, shared: impl Fn(&Topic) -> Topic) {
        self.replace_topics(self.as_ref().topics().map(shared).collect());
    }

    fn replace_topics(&mut self, topics: Vec<Topic>) {
        self.first = Topic::new(self.first.identifier(), "");
        if let Some(more) = &mut self.more {
            more.topics = Vec::new();
        }
        topics.into_iter().for_each(|topic| self.push(topic));
        self.forget_empty();
    }

    fn forget_empty(&mut self) {
        self.more.take_if(|more| more.topics.is_empty() && more.istate.is_empty());
    }
}

/// All subscriptions of a session, in their order.
///
/// Nearly every session has one with one stream and no state, so that is held in place, in 16 bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) enum Subscriptions {
    #[default]
    None,
    /// One without [`More`].
    One { first: Topic, by: Answerer },
    /// Several, or one with more.
    Many(Box<List>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct List(Vec<Subscription>);

const _: () = assert!(size_of::<Subscriptions>() == 16 && size_of::<Subscription>() == 24);

impl Subscriptions {
    pub fn len(&self) -> usize {
        match self {
            Subscriptions::None => 0,
            Subscriptions::One { .. } => 1,
            Subscriptions::Many(list) => list.0.len(),
        }
    }

    pub fn get(&self, at: usize) -> Option<SubscriptionRef<'_>> {
        match self {
            Subscriptions::One { first, by } if at == 0 => Some(SubscriptionRef { first, more: None, by: *by }),
            Subscriptions::None | Subscriptions::One { .. } => None,
            Subscriptions::Many(list) => list.0.get(at).map(Subscription::as_ref),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = SubscriptionRef<'_>> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// Where the subscription to an identifier stands.
    pub fn find(&self, identifier: &str) -> Option<usize> {
        self.iter().position(|subscription| subscription.first.has_identifier(identifier))
    }

    pub fn push(&mut self, subscription: Subscription) {
        let mut list = std::mem::take(self).into_list();
        list.reserve_exact(1);
        list.push(subscription);
        *self = Subscriptions::from_list(list);
    }

    pub fn remove(&mut self, at: usize) -> Subscription {
        let mut list = std::mem::take(self).into_list();
        let removed = list.remove(at);
        *self = Subscriptions::from_list(list);
        removed
    }

    /// Changes one of them.
    pub fn edit<R>(&mut self, at: usize, change: impl FnOnce(&mut Subscription) -> R) -> R {
        match self {
            Subscriptions::Many(list) if list.0.len() > 1 => change(&mut list.0[at]),
            _ => {
                let mut only = self.remove(at);
                let result = change(&mut only);
                self.push(only);
                result
            }
        }
    }

    fn into_list(self) -> Vec<Subscription> {
        match self {
            Subscriptions::None => Vec::new(),
            Subscriptions::One { first, by } => vec![Subscription::new(first, by)],
            Subscriptions::Many(list) => list.0,
        }
    }

    fn from_list(mut list: Vec<Subscription>) -> Subscriptions {
        match list.as_slice() {
            [] => Subscriptions::None,
            [Subscription { more: None, .. }] => {
                let Subscription { first, by, .. } = list.remove(0);
                Subscriptions::One { first, by }
            }
            _ => {
                // Lists grow by one at a time and rarely: what is not used would be kept for hours.
                list.shrink_to_fit();
                Subscriptions::Many(Box::new(List(list)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(subscription: &Subscription) -> Vec<&str> {
        subscription.as_ref().topics().map(Topic::stream).collect()
    }

    #[test]
    fn streams_keep_their_order_through_pushes_and_removals() {
        let mut subscription = Subscription::new(Topic::new("id", ""), Answerer::App);
        assert_eq!(streams(&subscription), [""; 0]);
        for stream in ["a", "b", "c", "d"] {
            subscription.push(Topic::new("id", stream));
        }
        let taken = subscription.take_out(|stream| stream == "a" || stream == "c");
        assert_eq!(taken, [Topic::new("id", "a"), Topic::new("id", "c")]);
        subscription.push(Topic::new("id", "e"));
        assert_eq!(streams(&subscription), ["b", "d", "e"]);
    }

    #[test]
    fn what_is_empty_again_costs_nothing() {
        let mut subscription = Subscription::new(Topic::new("id", ""), Answerer::App);
        subscription.merge(vec![("a".into(), "1".into())]);
        ["x", "y"].into_iter().for_each(|stream| subscription.push(Topic::new("id", stream)));
        assert_eq!(subscription.as_ref().state("a"), Some("1"));
        assert_eq!(subscription.take_out(|_| true).len(), 2);
        subscription.merge(vec![("a".into(), String::new())]);
        assert_eq!(subscription, Subscription::new(Topic::new("id", ""), Answerer::App));
    }

    #[test]
    fn one_plain_subscription_is_held_in_place_whatever_there_was_before() {
        let mut all = Subscriptions::default();
        for identifier in ["a", "b", "c"] {
            all.push(Subscription::new(Topic::new(identifier, "s"), Answerer::App));
        }
        assert_eq!((all.len(), all.find("b"), all.find("d")), (3, Some(1), None));
        all.edit(2, |c| c.merge(vec![("k".into(), "v".into())]));
        assert_eq!(all.remove(1).as_ref().identifier(), "b");
        assert_eq!(all.remove(0).as_ref().identifier(), "a");
        assert!(matches!(all, Subscriptions::Many(_)), "it has state");
        all.edit(0, |c| c.merge(vec![("k".into(), String::new())]));
        assert!(matches!(all, Subscriptions::One { .. }));
        assert_eq!(all.iter().map(SubscriptionRef::identifier).collect::<Vec<_>>(), ["c"]);
        all.remove(0);
        assert_eq!(all, Subscriptions::None);
    }
}
