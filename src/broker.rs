//! The broker: what gives a publication its place in its stream, and what remembers.
//!
//! One authority for each stream. [`Broker::in_order`] takes the lock of the stream, places the publication and lets
//! the caller hand it on under that lock, so whoever publishes to a stream at the same time, from whichever thread,
//! reaches every shard in the same order.
//!
//! A broker that keeps history is given, beside publications: requests for what a stream had since a position, sessions
//! to save, take back and touch, and presence to join, leave and list. The only broker there is today is "none". It
//! keeps the order, gives no positions, and answers every question with [`BrokerError::NotKept`].
//!
//! It knows no shards, nodes or sources.

use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};

use crate::model::{BrokerError, BrokerQuestion, BrokerReply, NameHasher, Publication};

/// Locks that all streams share. Two streams with the same one wait for each other for as long as one hand-over takes,
/// some microseconds; with 64 and a handful of publishing threads that is rare. A power of two.
const STRIPES: usize = 64;

/// The broker "none": order, and no memory.
#[derive(Debug)]
pub struct Broker {
    /// By a keyed hash of the stream's name, so that nobody can choose names that share a lock. Taken by a publisher
    /// for one hand-over, which puts a pointer into each inbox and waits for nothing.
    order: [Mutex<()>; STRIPES],
    hasher: NameHasher,
}

impl Default for Broker {
    fn default() -> Broker {
        Broker { order: [const { Mutex::new(()) }; STRIPES], hasher: NameHasher::default() }
    }
}

impl Broker {
    /// Gives the publication its place in its stream and hands it on before the next one of that stream gets its own.
    ///
    /// `hand_over` must not wait and must not publish. A broker that stores does so here, under the lock, and then
    /// hands on the publication with the position it got.
    pub fn in_order<R>(&self, publication: Publication, hand_over: impl FnOnce(Publication) -> R) -> R {
        let _place = self.lock_of(&publication.stream).lock().unwrap_or_else(PoisonError::into_inner);
        hand_over(publication)
    }

    /// Asks on behalf of a session. Gives the answer if it is known at once, which without memory it is; else it comes
    /// through the session's shard.
    pub fn ask(&self, question: &BrokerQuestion) -> Option<Result<BrokerReply, BrokerError>> {
        match question {
            BrokerQuestion::History { .. } => Some(Err(BrokerError::NotKept)),
        }
    }

    fn lock_of(&self, stream: &str) -> &Mutex<()> {
        &self.order[self.hasher.hash_one(stream) as usize % STRIPES]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn to(stream: &str) -> Publication {
        Publication { stream: stream.into(), message: "1".into(), exclude: None, kind: None }
    }

    #[test]
    fn a_publication_waits_for_the_one_before_it_in_its_stream_and_for_no_other_stream() {
        // Aim: order is kept for each stream, and a slow hand-over holds up its own stream only. The first hand-over is
        // kept open while a second thread publishes to the same stream and this one to another.
        let broker = Broker::default();
        let other =
            (0..).map(|n| format!("other:{n}")).find(|name| !std::ptr::eq(broker.lock_of(name), broker.lock_of("s")));
        let other = other.unwrap();
        let (done, order) = mpsc::channel();
        thread::scope(|scope| {
            let (entered, has_entered) = mpsc::channel();
            let (leave, may_leave) = mpsc::channel::<()>();
            let (broker, first, second) = (&broker, done.clone(), done.clone());
            scope.spawn(move || {
                broker.in_order(to("s"), |_| {
                    entered.send(()).unwrap();
                    may_leave.recv().unwrap();
                    first.send("first").unwrap();
                });
            });
            has_entered.recv().unwrap();
            assert!(broker.lock_of("s").try_lock().is_err());
            scope.spawn(move || broker.in_order(to("s"), |_| second.send("second").unwrap()));
            broker.in_order(to(&other), |_| done.send("other").unwrap());
            leave.send(()).unwrap();
        });
        assert_eq!(order.iter().take(3).collect::<Vec<_>>(), ["other", "first", "second"]);
    }

    #[test]
    fn names_are_spread_over_the_locks() {
        let broker = Broker::default();
        let mut used: Vec<_> = (0..4096).map(|n| std::ptr::from_ref(broker.lock_of(&format!("room:{n}")))).collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), STRIPES);
    }

    #[test]
    fn the_publication_and_what_the_hand_over_gives_pass_through() {
        let broker = Broker::default();
        assert_eq!(broker.in_order(to("s"), |publication| publication), to("s"));
        let question = BrokerQuestion::History { streams: vec!["s".into()], since: Default::default() };
        assert_eq!(broker.ask(&question), Some(Err(BrokerError::NotKept)));
    }
}
