//! What is given of saved sessions to another process that goes on with them: first all, then, as often as it is asked, only
//! what has changed since. Sessions that live are not given: whoever has their connections lists them.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{BrokerMetrics, Entry, Sessions, Stripe};
use crate::broker::sent_away::GivenAway;
use crate::model::{NameHasher, SavedSession, Sid};

/// Something that is known of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SessionNote {
    /// It is kept.
    Saved(Box<SavedSession>),
    /// It is not kept any more.
    Gone(Sid),
}

impl Sessions {
    /// All that one stripe keeps, the oldest first. From now on it is noted what changes in it, until
    /// [`forget_changes`](Self::forget_changes).
    pub fn all(&self, stripe: usize) -> Vec<SessionNote> {
        let mut stripe = self.stripe(stripe);
        stripe.touched = Some(Vec::new());
        let saved = stripe.order.iter().filter_map(|(saved_at, sid)| match stripe.entries.get(sid) {
            Some(Entry::Saved(saved)) if saved.saved_at == *saved_at => Some(SessionNote::Saved(saved.clone())),
            _ => None,
        });
        saved.collect()
    }

    /// What has changed in one stripe since [`all`](Self::all) or this was called last, the oldest first.
    pub fn changed(&self, stripe: usize) -> Vec<SessionNote> {
        let mut stripe = self.stripe(stripe);
        let Some(touched) = stripe.touched.replace(Vec::new()) else { return Vec::new() };
        // One that was saved again stands where that was.
        let mut known = HashSet::with_hasher(NameHasher::default());
        let mut notes: Vec<_> = touched
            .into_iter()
            .rev()
            .filter(|sid| known.insert(*sid))
            .map(|sid| match stripe.entries.get(&sid) {
                Some(Entry::Saved(saved)) => SessionNote::Saved(saved.clone()),
                _ => SessionNote::Gone(sid),
            })
            .collect();
        notes.reverse();
        notes
    }

    /// Nobody wants to know what changes any more.
    pub fn forget_changes(&self) {
        (0..self.stripes.len()).for_each(|stripe| self.stripe(stripe).touched = None);
    }

    /// Whom the app has sent away since that moment (monotonic seconds); 0: of late.
    pub fn sent_away(&self, since: u32) -> GivenAway {
        self.sent_away.given(since)
    }

    /// The same of another process.
    pub fn take_over_sent_away(&self, given: GivenAway) {
        self.sent_away.take_over(given);
    }

    /// Goes on with what is known elsewhere. What is over the limit here is dropped and counted.
    pub fn take_over(&self, note: SessionNote, metrics: &BrokerMetrics) {
        let sid = match &note {
            SessionNote::Saved(saved) => saved.sid,
            SessionNote::Gone(sid) => *sid,
        };
        let mut stripe = self.lock(sid);
        self.take_if_saved(&mut stripe, sid);
        if let SessionNote::Saved(saved) = note
            && self.ttl > 0
            && !stripe.entries.contains_key(&sid)
        {
            self.save(&mut stripe, saved, metrics);
        }
    }

    fn take_if_saved(&self, stripe: &mut Stripe, sid: Sid) {
        if matches!(stripe.entries.get(&sid), Some(Entry::Saved(_))) {
            self.take(stripe, sid);
        }
    }

    fn stripe(&self, stripe: usize) -> MutexGuard<'_, Stripe> {
        self.stripes[stripe % self.stripes.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Place, Resumption, SessionsSettings};
    use super::*;
    use crate::broker::STRIPES;
    use crate::model::seeded;
    use crate::model::{Admission, Now, ResumeTicket, SlotKey, State};

    fn sessions(bytes_max: usize) -> Sessions {
        Sessions::new(&SessionsSettings { ttl: Duration::from_secs(60), bytes_max }, NameHasher::default())
    }

    fn saved(sid: Sid) -> Box<SavedSession> {
        let identifiers = format!("user {}", sid).into();
        Box::new(SavedSession {
            sid,
            saved_at: 0,
            identifiers,
            admission: Admission::Open,
            cstate: [("a", "b")].into_iter().collect::<State>(),
            subscriptions: Vec::new(),
            disconnectable: true,
        })
    }

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), unix: Duration::from_secs(seconds) }
    }

    fn give(ours: &Sessions, theirs: &Sessions, what: fn(&Sessions, usize) -> Vec<SessionNote>) -> usize {
        let metrics = BrokerMetrics::default();
        let notes: Vec<SessionNote> = (0..STRIPES).flat_map(|stripe| what(ours, stripe)).collect();
        let text = rmp_serde::to_vec_named(&notes).unwrap();
        let read: Vec<SessionNote> = rmp_serde::from_slice(&text).unwrap();
        assert_eq!(read, notes);
        read.into_iter().for_each(|note| theirs.take_over(note, &metrics));
        notes.len()
    }

    /// All that is kept, each in the order of its stripe.
    fn story(sessions: &Sessions) -> Vec<String> {
        let all = (0..STRIPES).flat_map(|stripe| sessions.all(stripe));
        let mut all: Vec<_> = all.map(|note| format!("{note:?}")).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn others_are_the_same_after_all_and_any_number_of_changes() {
        let metrics = BrokerMetrics::default();
        for seed in 0..100u64 {
            let mut next = seeded::numbers(seed);
            let (ours, theirs) = (sessions(usize::MAX), sessions(usize::MAX));
            let mut last = 0u64;
            for step in 0..300 {
                match next(4) {
                    0 => {
                        let sid = Sid::from_bits(next(last + 1).into());
                        let key = SlotKey { shard: 0, index: 1, generation: 0 };
                        let found = ours.resume(ResumeTicket { sid, identifiers: None }, key, at(step), &metrics);
                        // Its client goes again, or stays.
                        if let Resumption::Now(Some(saved)) = found
                            && next(2) == 0
                        {
                            ours.departed(sid, Some(saved), at(step), &metrics);
                        }
                    }
                    1 => (0..3).for_each(|part| ours.sweep(next(64) as usize + part, at(step))),
                    _ => {
                        last += 1;
                        let sid = Sid::from_bits(last.into());
                        ours.departed(sid, Some(saved(sid)), at(step), &metrics);
                    }
                }
                if step == 100 {
                    give(&ours, &theirs, Sessions::all);
                    assert_eq!(give(&ours, &theirs, Sessions::changed), 0);
                } else if step > 100 && next(20) == 0 {
                    give(&ours, &theirs, Sessions::changed);
                }
            }
            give(&ours, &theirs, Sessions::changed);
            assert_eq!((theirs.measure().saved, theirs.measure().bytes), (ours.measure().saved, ours.measure().bytes));
            assert_eq!(story(&theirs), story(&ours), "seed {seed}");
        }
    }

    #[test]
    fn sessions_that_live_are_not_given_and_bounds_hold() {
        let metrics = BrokerMetrics::default();
        let (ours, theirs) = (sessions(usize::MAX), sessions(2 * saved(Sid::from_bits(1)).bytes()));
        let sid = Sid::from_bits;
        ours.resident(sid(1), Place { shard: 0, index: 1 });
        (2..100).for_each(|n| _ = ours.departed(sid(n), Some(saved(sid(n))), at(0), &metrics));
        assert_eq!(give(&ours, &theirs, Sessions::all), 98);
        assert!(theirs.measure().bytes <= 64 * 2 * saved(sid(1)).bytes());
        ours.forget_changes();
        ours.departed(sid(200), Some(saved(sid(200))), at(0), &metrics);
        assert_eq!(give(&ours, &theirs, Sessions::changed), 0);
    }

    #[test]
    fn who_was_sent_away_stays_so() {
        let (ours, theirs) = (sessions(usize::MAX), sessions(usize::MAX));
        let sid = Sid::from_bits(1);
        ours.send_away(&saved(sid).identifiers, at(10));
        let text = rmp_serde::to_vec_named(&ours.sent_away(0)).unwrap();
        theirs.take_over_sent_away(rmp_serde::from_slice(&text).unwrap());
        let of_then = SavedSession { saved_at: 9, ..*saved(sid) };
        assert!(!theirs.may_go_on(&of_then) && !ours.may_go_on(&of_then));
        assert!(theirs.may_go_on(&SavedSession { saved_at: 30, ..of_then.clone() }));
        theirs.send_away("another", at(11));
        assert!(!theirs.may_go_on(&of_then));
        assert!(ours.sent_away(30).is_empty() && !ours.sent_away(12).is_empty(), "what is said now may be of 5 s ago");
    }
}
