//! What is given of saved sessions to another process that goes on with them: first all, then, as often as it is asked, only
//! what has changed since. Sessions that live are not given: whoever has their connections lists them.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{BrokerMetrics, Entry, Place, Sessions, Stripe, Waiter};
use crate::broker::sent_away::GivenAway;
use crate::model::{NameHasher, ResumeTicket, SavedSession, Sid, SlotKey};

/// Something that is known of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SessionNote {
    /// It is kept.
    Saved(Box<SavedSession>),
    /// It is not kept any more.
    Gone(Sid),
}

/// A session that lives, with its shard and its slot, and who waits for it. In a row: there are as many as clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LivingSession(Sid, u16, u32, Option<(SlotKey, ResumeTicket)>);

impl Sessions {
    /// All sessions that live.
    pub fn living(&self) -> Vec<LivingSession> {
        let mut living = Vec::new();
        for stripe in 0..self.stripes.len() {
            living.extend(self.stripe(stripe).entries.iter().filter_map(|(sid, entry)| match entry {
                Entry::Live { place: Place { shard, index }, waiter } => {
                    let waiter = waiter.as_ref().map(|waiter| (waiter.key, waiter.ticket.clone()));
                    Some(LivingSession(*sid, *shard, *index, waiter))
                }
                Entry::Saved(_) => None,
            }));
        }
        living
    }

    /// They live here, too. To be called behind everything else that is taken over.
    pub fn take_over_living(&self, living: Vec<LivingSession>) {
        for LivingSession(sid, shard, index, waiter) in living {
            let waiter = waiter.map(|(key, ticket)| Box::new(Waiter { key, ticket }));
            let mut stripe = self.lock(sid);
            self.take_if_saved(&mut stripe, sid);
            stripe.entries.insert(sid, Entry::Live { place: Place { shard, index }, waiter });
        }
    }

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
    fn sessions_that_live_and_whoever_waits_for_them_are_known_elsewhere() {
        let metrics = BrokerMetrics::default();
        let (ours, theirs) = (sessions(usize::MAX), sessions(usize::MAX));
        let sid = Sid::from_bits;
        let key = SlotKey { shard: 65, index: 7, generation: 3 };
        let ticket = |n| ResumeTicket { sid: sid(n), identifiers: None };
        (1..=100).for_each(|n| ours.resident(sid(n), Place { shard: n as u16, index: n as u32 }));
        let place = |n: u128| Place { shard: n as u16, index: n as u32 };
        assert_eq!(ours.resume(ticket(5), key, at(1), &metrics), Resumption::AfterYield(place(5), ticket(5)));
        let text = rmp_serde::to_vec_named(&ours.living()).unwrap();
        theirs.take_over_living(rmp_serde::from_slice(&text).unwrap());
        assert_eq!(theirs.listed().0, 100);
        assert_eq!(theirs.resume(ticket(6), key, at(1), &metrics), Resumption::AfterYield(place(6), ticket(6)));
        let departure = theirs.departed(sid(5), Some(saved(sid(5))), at(2), &metrics).expect("somebody waits");
        assert_eq!((departure.key, departure.saved.map(|saved| saved.sid)), (key, Some(sid(5))));
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
