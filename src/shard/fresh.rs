//! Streams that the shard has just begun to follow, again perhaps, while publications waited for it.
//!
//! What waited may be to such a stream: it was given to the shard for those who followed the stream then. Between these and
//! whoever follows it now, the shard did not follow it, and what was published meanwhile went past it. So what waited is for
//! nobody any more: a client that was given it, and then what is published next, would not notice that something is missing.
//!
//! Nothing is kept of a stream for longer than what waited when it was followed, and nothing at all where nothing did.

use std::collections::{HashMap, VecDeque};

use crate::hub::{StreamChange, StreamKey};

/// Streams for which there is room when there are none. After a rush the rest is given back.
const KEPT: usize = 1024;

/// The streams, and which publications are for those who follow them. The publications that the shard is given are numbered from
/// 0 on.
#[derive(Default)]
pub(super) struct FreshStreams {
    /// The number of the publication that comes up next.
    next: u64,
    /// By stream, the first number that is for those who follow it.
    first: HashMap<StreamKey, u64>,
    /// The same in the order of the numbers. A stream that was followed several times stands here as often.
    order: VecDeque<(u64, StreamKey)>,
}

impl FreshStreams {
    /// The shard follows a stream from now on. `given`: how many publications it has been given so far.
    pub fn add(&mut self, change: StreamChange, given: u64) {
        // With the key of another stream that the shard follows already, everything has been coming.
        if change.of_key && given > self.next {
            self.first.insert(change.key, given);
            self.order.push_back((given, change.key));
        }
    }

    /// The next publication comes up. Tells whether it is for those who follow its stream now.
    pub fn is_for_followers(&mut self, stream: impl FnOnce() -> StreamKey) -> bool {
        let number = self.next;
        self.next += 1;
        if self.order.is_empty() {
            return true;
        }
        while let Some(&(first, stream)) = self.order.front().filter(|(first, _)| *first <= number) {
            self.order.pop_front();
            // Unless it was followed once more.
            if self.first.get(&stream) == Some(&first) {
                self.first.remove(&stream);
            }
        }
        if self.order.is_empty() && self.order.capacity() > KEPT {
            *self = FreshStreams { next: self.next, ..FreshStreams::default() };
        }
        // Those that are left begin later.
        !self.first.contains_key(&stream())
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::StreamHasher;

    fn key(stream: &str) -> StreamKey {
        StreamHasher::new(1).key(stream)
    }

    fn of(stream: &str) -> StreamChange {
        StreamChange { key: key(stream), of_key: true }
    }

    #[test]
    fn what_waited_when_a_stream_was_followed_is_for_nobody() {
        let mut fresh = FreshStreams::default();
        let comes = |fresh: &mut FreshStreams, stream: &str| fresh.is_for_followers(|| key(stream));
        // Followed while nothing waits.
        fresh.add(of("a"), 0);
        assert!(fresh.is_empty() && comes(&mut fresh, "a"));
        // Numbers 1 to 3 wait, then the stream is followed; then 4, and it is followed again; 5 comes after that.
        fresh.add(of("a"), 4);
        assert!(!comes(&mut fresh, "a"));
        assert!(comes(&mut fresh, "b"));
        fresh.add(of("b"), 4);
        fresh.add(of("a"), 5);
        assert!(!comes(&mut fresh, "b"));
        assert!(!comes(&mut fresh, "a"));
        assert!(comes(&mut fresh, "a") && comes(&mut fresh, "b"));
        assert!(fresh.is_empty());
    }

    #[test]
    fn nothing_is_kept_of_streams_that_are_followed_for_a_while() {
        let mut fresh = FreshStreams::default();
        for given in 1..1_000 {
            fresh.add(of(&given.to_string()), given);
            assert!(fresh.is_for_followers(|| key("other")));
            assert!(fresh.first.len() <= 1 && fresh.order.len() <= 1);
        }
        assert!(fresh.is_for_followers(|| key("other")) && fresh.is_empty());
    }
}
