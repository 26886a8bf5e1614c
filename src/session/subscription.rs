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
        presence: bool,
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
        self.all_topics().filter(|topic| !topic.stream().is_empty())
    }

    /// The same; the identifier with an empty stream while it has none.
    pub fn all_topics(self) -> impl Iterator<Item = &'a Topic> {
        std::iter::once(self.first).chain(self.more.into_iter().flat_map(|more| &more.topics))
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

    /// What is kept of it, in bytes of memory.
    fn bytes(&self) -> usize {
        let more = self.more.as_ref().map_or(0, |more| {
            size_of::<More>() + more.topics.iter().map(Topic::bytes).sum::<usize>() + more.istate.bytes()
        });
        size_of::<Subscription>() + self.first.bytes() + more
    }

    pub fn merge(&mut self, changes: StateChanges) {
        if !changes.is_empty() {
            self.more.get_or_insert_default().istate.merge(changes);
            self.forget_empty();
        }
    }

    /// Takes over the app's state.
    pub fn set_istate(&mut self, istate: State) {
        if !istate.is_empty() {
            self.more.get_or_insert_default().istate = istate;
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
#[serde(from = "Vec<Subscription>", into = "Vec<Subscription>")]
pub(super) struct List {
    subscriptions: Vec<Subscription>,
    /// Places in `subscriptions`, sorted by identifier: a client may have a thousand, and name one in every command.
    sorted: Vec<u16>,
    /// Over all of them.
    bytes: usize,
}

const _: () = assert!(super::SUBSCRIPTIONS_MAX <= u16::MAX as usize + 1);

impl From<Vec<Subscription>> for List {
    fn from(subscriptions: Vec<Subscription>) -> List {
        let mut sorted: Vec<u16> = (0..subscriptions.len()).map(|at| at as u16).collect();
        sorted.sort_by(|&a, &b| {
            let (a, b) = (&subscriptions[usize::from(a)], &subscriptions[usize::from(b)]);
            a.first.cmp_identifier(b.first.identifier())
        });
        let bytes = subscriptions.iter().map(Subscription::bytes).sum();
        List { subscriptions, sorted, bytes }
    }
}

impl From<List> for Vec<Subscription> {
    fn from(list: List) -> Vec<Subscription> {
        list.subscriptions
    }
}

impl List {
    /// Where in `sorted` an identifier stands, or would.
    fn search(&self, identifier: &str) -> Result<usize, usize> {
        self.sorted.binary_search_by(|&at| self.subscriptions[usize::from(at)].first.cmp_identifier(identifier))
    }

    fn find(&self, identifier: &str) -> Option<usize> {
        Some(usize::from(self.sorted[self.search(identifier).ok()?]))
    }

    fn push(&mut self, subscription: Subscription) {
        let (Ok(place) | Err(place)) = self.search(subscription.first.identifier());
        // Lists grow by one at a time and rarely: what is not used would be kept for hours.
        self.sorted.reserve_exact(1);
        self.sorted.insert(place, self.subscriptions.len() as u16);
        self.bytes += subscription.bytes();
        self.subscriptions.reserve_exact(1);
        self.subscriptions.push(subscription);
    }

    fn remove(&mut self, at: usize) -> Subscription {
        let removed = self.subscriptions.remove(at);
        self.sorted.retain(|&place| usize::from(place) != at);
        self.sorted.iter_mut().for_each(|place| *place -= u16::from(usize::from(*place) > at));
        self.bytes -= removed.bytes();
        if self.subscriptions.capacity() > 2 * self.subscriptions.len() {
            self.subscriptions.shrink_to_fit();
            self.sorted.shrink_to_fit();
        }
        removed
    }

    /// The identifier stays as it is.
    fn edit<R>(&mut self, at: usize, change: impl FnOnce(&mut Subscription) -> R) -> R {
        let subscription = &mut self.subscriptions[at];
        self.bytes -= subscription.bytes();
        let result = change(subscription);
        self.bytes += subscription.bytes();
        result
    }
}

const _: () = assert!(size_of::<Subscriptions>() == 16 && size_of::<Subscription>() == 24);

impl Subscriptions {
    pub fn len(&self) -> usize {
        match self {
            Subscriptions::None => 0,
            Subscriptions::One { .. } => 1,
            Subscriptions::Many(list) => list.subscriptions.len(),
        }
    }

    pub fn get(&self, at: usize) -> Option<SubscriptionRef<'_>> {
        match self {
            Subscriptions::One { first, by } if at == 0 => Some(SubscriptionRef { first, more: None, by: *by }),
            Subscriptions::None | Subscriptions::One { .. } => None,
            Subscriptions::Many(list) => list.subscriptions.get(at).map(Subscription::as_ref),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = SubscriptionRef<'_>> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// Where the subscription to an identifier stands.
    pub fn find(&self, identifier: &str) -> Option<usize> {
        match self {
            Subscriptions::None => None,
            Subscriptions::One { first, .. } => first.has_identifier(identifier).then_some(0),
            Subscriptions::Many(list) => list.find(identifier),
        }
    }

    /// What is kept of them, in bytes of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Subscriptions::None => 0,
            Subscriptions::One { first, .. } => first.bytes(),
            Subscriptions::Many(list) => list.bytes,
        }
    }

    pub fn push(&mut self, subscription: Subscription) {
        self.change(|list| list.push(subscription));
    }

    pub fn remove(&mut self, at: usize) -> Subscription {
        self.change(|list| list.remove(at))
    }

    /// Changes one of them; not its identifier.
    pub fn edit<R>(&mut self, at: usize, change: impl FnOnce(&mut Subscription) -> R) -> R {
        self.change(|list| list.edit(at, change))
    }

    /// Changes the list, and keeps what is left in the smallest form.
    fn change<R>(&mut self, change: impl FnOnce(&mut List) -> R) -> R {
        let mut list = match std::mem::take(self) {
            Subscriptions::None => Box::new(List::from(Vec::new())),
            Subscriptions::One { first, by } => Box::new(List::from(vec![Subscription::new(first, by)])),
            Subscriptions::Many(list) => list,
        };
        let result = change(&mut list);
        *self = match list.subscriptions.as_mut_slice() {
            [] => Subscriptions::None,
            [Subscription { more: None, first, by }] => Subscriptions::One { first: first.clone(), by: *by },
            _ => Subscriptions::Many(list),
        };
        result
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
