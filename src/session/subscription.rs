//! One session on one channel identifier.

use serde::{Deserialize, Serialize};

use crate::model::{State, StateChanges, Topic};

/// A subscription: its streams in the order they were added, and the app's state for the channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Subscription {
    /// The identifier, and the first stream; an empty one while there is none.
    first: Topic,
    /// What few subscriptions have.
    rest: Option<Box<Rest>>,
    pub by: Answerer,
}

const _: () = assert!(size_of::<Subscription>() == 24);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Rest {
    /// Further streams.
    topics: Vec<Topic>,
    /// The app's state for this channel.
    istate: State,
}

/// Who confirmed a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answerer {
    App,
    /// This server, for a signed or public stream.
    Here {
        whisper: bool,
    },
}

impl Subscription {
    /// One with this stream; with none if its name is empty.
    pub fn new(first: Topic, by: Answerer) -> Subscription {
        Subscription { first, rest: None, by }
    }

    pub fn identifier(&self) -> &str {
        self.first.identifier()
    }

    /// The app's state for this channel.
    pub fn istate(&self) -> State {
        self.rest.as_ref().map(|rest| rest.istate.clone()).unwrap_or_default()
    }

    /// What the app's state has under a key.
    pub fn state(&self, key: &str) -> Option<&str> {
        self.rest.as_ref()?.istate.get(key)
    }

    pub fn merge(&mut self, changes: StateChanges) {
        if !changes.is_empty() {
            self.rest.get_or_insert_default().istate.merge(changes);
            self.forget_empty();
        }
    }

    /// Its streams.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        let first = Some(&self.first).filter(|topic| !topic.stream().is_empty());
        first.into_iter().chain(self.rest.iter().flat_map(|rest| &rest.topics))
    }

    /// Follows one more stream, whose name is not empty.
    pub fn push(&mut self, topic: Topic) {
        if self.first.stream().is_empty() {
            self.first = topic;
        } else {
            self.rest.get_or_insert_default().topics.push(topic);
        }
    }

    /// Takes out the streams for which `out` is true.
    pub fn take_out(&mut self, out: impl Fn(&str) -> bool) -> Vec<Topic> {
        let (taken, kept) = self.topics().cloned().partition::<Vec<_>, _>(|topic| out(topic.stream()));
        self.replace_topics(kept);
        taken
    }

    /// Has each topic replaced by what `shared` makes of it.
    pub fn share(&mut self, shared: impl Fn(&Topic) -> Topic) {
        self.replace_topics(self.topics().map(shared).collect());
    }

    fn replace_topics(&mut self, topics: Vec<Topic>) {
        self.first = Topic::new(self.identifier(), "");
        if let Some(rest) = &mut self.rest {
            rest.topics = Vec::new();
        }
        topics.into_iter().for_each(|topic| self.push(topic));
        self.forget_empty();
    }

    fn forget_empty(&mut self) {
        self.rest.take_if(|rest| rest.topics.is_empty() && rest.istate.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(subscription: &Subscription) -> Vec<&str> {
        subscription.topics().map(Topic::stream).collect()
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
        assert_eq!(subscription.state("a"), Some("1"));
        assert_eq!(subscription.take_out(|_| true).len(), 2);
        subscription.merge(vec![("a".into(), String::new())]);
        assert_eq!(subscription, Subscription::new(Topic::new("id", ""), Answerer::App));
    }
}
