//! Sessions that their clients may come back to: where they live, and what is left of them when they are over.
//!
//! A session is listed from the moment its client is let in. When its connection is over it is kept for a while. A client
//! that comes back takes it, once; if the old connection still stands, as it does for minutes when a phone changes its
//! network, the shard that has it gives it up first, and the newcomer waits for that.

mod hand_over;

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{NameHasher, Now, ResumeTicket, SavedSession, Sid, SlotKey};

use super::sent_away::SentAway;
use super::{BrokerMetrics, STRIPES};

pub use hand_over::{LivingSession, SessionNote};

/// Places of sessions that are gone which a stripe may have at any time.
const ORDER_SPARE: usize = 64;

/// What the configuration says of sessions that are over.
#[derive(Clone, Debug)]
pub struct SessionsSettings {
    /// How long they are kept (`--sessions-ttl`). Zero: not at all.
    pub ttl: Duration,
    /// Bytes of all of them (`--sessions-max-size`).
    pub bytes_max: usize,
}

/// All sessions that can be resumed.
pub struct Sessions {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: NameHasher,
    ttl: u32,
    bytes_max: usize,
    bytes: AtomicUsize,
    saved: AtomicUsize,
    sent_away: SentAway,
}

#[derive(Default)]
struct Stripe {
    entries: HashMap<Sid, Entry, NameHasher>,
    /// Saved sessions in the order in which they were saved, with when; some are gone by now.
    order: VecDeque<(u32, Sid)>,
    /// How many are saved.
    saved: usize,
    /// What `order` had when those that are gone were taken out of it last.
    tidied: usize,
    /// What was saved and what has gone since, while somebody wants to know.
    touched: Option<Vec<Sid>>,
}

impl Stripe {
    /// Forgets the places of those that are gone once they are more than those that are there: clients that come and go
    /// all the time would leave one each time.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.saved.max(self.tidied) + ORDER_SPARE {
            let Stripe { entries, order, tidied, .. } = self;
            order.retain(|(saved_at, sid)| is_saved(entries, *sid, *saved_at));
            order.shrink_to(order.len() * 2);
            *tidied = order.len();
        }
    }
}

impl Stripe {
    fn touch(&mut self, sid: Sid) {
        if let Some(touched) = &mut self.touched {
            touched.push(sid);
        }
    }
}

/// Whether this session is kept since then.
fn is_saved(entries: &HashMap<Sid, Entry, NameHasher>, sid: Sid, since: u32) -> bool {
    matches!(entries.get(&sid), Some(Entry::Saved(saved)) if saved.saved_at == since)
}

enum Entry {
    Live {
        place: Place,
        /// Who wants it.
        waiter: Option<Box<Waiter>>,
    },
    Saved(Box<SavedSession>),
}

/// Where a session lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The shard.
    pub shard: u16,
    /// The slot.
    pub index: u32,
}

struct Waiter {
    key: SlotKey,
    ticket: ResumeTicket,
}

/// What becomes of a client that asks for its session.
#[derive(Debug, PartialEq)]
pub enum Resumption {
    /// It gets this, or has none.
    Now(Option<Box<SavedSession>>),
    /// Whoever has it is to be told to give it up for this client; the answer follows when that is done.
    AfterYield(Place, ResumeTicket),
}

/// An answer that somebody waited for.
#[derive(Debug, PartialEq)]
pub struct Departure {
    /// Who.
    pub key: SlotKey,
    /// What they get.
    pub saved: Option<Box<SavedSession>>,
}

/// What is kept at a moment.
pub(super) struct Amounts {
    pub saved: usize,
    pub bytes: usize,
}

fn seconds(now: Now) -> u32 {
    now.mono.as_secs() as u32
}

impl Sessions {
    pub(super) fn new(settings: &SessionsSettings, hasher: NameHasher) -> Sessions {
        Sessions {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher,
            ttl: u32::try_from(settings.ttl.as_secs()).unwrap_or(u32::MAX),
            bytes_max: settings.bytes_max,
            bytes: AtomicUsize::new(0),
            saved: AtomicUsize::new(0),
            sent_away: SentAway::new(settings.ttl),
        }
    }

    /// A session lives there from now on.
    pub fn resident(&self, sid: Sid, place: Place) {
        let mut stripe = self.lock(sid);
        match stripe.entries.get_mut(&sid) {
            Some(Entry::Live { place: old, .. }) => *old = place,
            _ => drop(stripe.entries.insert(sid, Entry::Live { place, waiter: None })),
        }
    }

    /// A client asks for its session.
    pub fn resume(&self, ticket: ResumeTicket, key: SlotKey, now: Now, metrics: &BrokerMetrics) -> Resumption {
        let mut stripe = self.lock(ticket.sid);
        let found = match stripe.entries.get_mut(&ticket.sid) {
            Some(Entry::Live { place, waiter: waiter @ None }) => {
                let place = *place;
                *waiter = Some(Box::new(Waiter { key, ticket: ticket.clone() }));
                return Resumption::AfterYield(place, ticket);
            }
            // Somebody else was first.
            Some(Entry::Live { .. }) | None => None,
            Some(Entry::Saved(saved)) => {
                let is_over = saved.saved_at.saturating_add(self.ttl) < seconds(now);
                let may_have = !is_over && saved.may_be_resumed_by(&ticket);
                may_have.then(|| self.take(&mut stripe, ticket.sid)).flatten()
            }
        };
        drop(stripe);
        Resumption::Now(self.checked(found, metrics))
    }

    /// A session is over. What is left of it is kept, unless somebody waits for it.
    pub fn departed(
        &self,
        sid: Sid,
        mut saved: Option<Box<SavedSession>>,
        now: Now,
        metrics: &BrokerMetrics,
    ) -> Option<Departure> {
        let mut stripe = self.lock(sid);
        let was = stripe.entries.remove(&sid);
        saved.iter_mut().for_each(|saved| saved.saved_at = seconds(now));
        if let Some(Entry::Live { waiter: Some(waiter), .. }) = was {
            drop(stripe);
            let saved = saved.filter(|saved| saved.may_be_resumed_by(&waiter.ticket));
            return Some(Departure { key: waiter.key, saved: self.checked(saved, metrics) });
        }
        let saved = saved.filter(|_| self.ttl > 0)?;
        self.save(&mut stripe, saved, metrics);
        None
    }

    fn save(&self, stripe: &mut Stripe, saved: Box<SavedSession>, metrics: &BrokerMetrics) {
        let sid = saved.sid;
        self.bytes.fetch_add(saved.bytes(), Ordering::Relaxed);
        self.saved.fetch_add(1, Ordering::Relaxed);
        stripe.touch(sid);
        stripe.order.push_back((saved.saved_at, sid));
        stripe.entries.insert(sid, Entry::Saved(saved));
        stripe.saved += 1;
        stripe.tidy();
        // The oldest go first, of those that share a lock with the newest.
        while self.bytes.load(Ordering::Relaxed) > self.bytes_max {
            let Some((saved_at, sid)) = stripe.order.pop_front() else { break };
            if self.drop_saved(stripe, sid, saved_at) {
                metrics.sessions_evicted_total.inc();
            }
        }
    }

    /// A session is not given up: who waits for it may not have it.
    pub fn stays(&self, sid: Sid, metrics: &BrokerMetrics) -> Option<Departure> {
        let mut stripe = self.lock(sid);
        let Some(Entry::Live { waiter, .. }) = stripe.entries.get_mut(&sid) else { return None };
        let waiter = waiter.take()?;
        drop(stripe);
        Some(Departure { key: waiter.key, saved: self.checked(None, metrics) })
    }

    /// A session is not where it was asked for. Gives where else to ask, if it has moved.
    pub fn moved(&self, sid: Sid, from: Place) -> Option<(Place, ResumeTicket)> {
        match self.lock(sid).entries.get(&sid) {
            Some(Entry::Live { place, waiter: Some(waiter) }) if *place != from => {
                Some((*place, waiter.ticket.clone()))
            }
            _ => None,
        }
    }

    /// These shards are lost, with their sessions and whoever asked for one there. Gives those elsewhere who asked for one of
    /// theirs: they get none.
    pub fn lost(&self, shards: RangeInclusive<u16>, metrics: &BrokerMetrics) -> Vec<Departure> {
        let mut waited = Vec::new();
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            stripe.entries.retain(|_, entry| {
                let Entry::Live { place, waiter } = entry else { return true };
                waiter.take_if(|waiter| shards.contains(&waiter.key.shard));
                let is_lost = shards.contains(&place.shard);
                if is_lost && let Some(waiter) = waiter.take() {
                    waited.push(Departure { key: waiter.key, saved: self.checked(None, metrics) });
                }
                !is_lost
            });
        }
        waited
    }

    /// The app sends everybody with these identifiers away: what was saved of them is not given out any more.
    pub fn send_away(&self, identifiers: &str, now: Now) {
        if !self.sent_away.note(identifiers, now) {
            return;
        }
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            for (saved_at, sid) in std::mem::take(&mut stripe.order) {
                self.drop_saved(&mut stripe, sid, saved_at);
            }
        }
    }

    /// Whether the app has not sent its client away since it was saved.
    pub fn may_go_on(&self, saved: &SavedSession) -> bool {
        self.sent_away.may_go_on(saved)
    }

    /// How many sessions are listed, those that live included, and how many identities that were sent away.
    pub fn listed(&self) -> (usize, usize) {
        let entries =
            self.stripes.iter().map(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner).entries.len());
        (entries.sum(), self.sent_away.len())
    }

    /// Places in the queues of saved sessions.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        let places = |stripe: &Mutex<Stripe>| stripe.lock().unwrap_or_else(PoisonError::into_inner).order.capacity();
        self.stripes.iter().map(places).sum()
    }

    /// Forgets what is over in one part.
    pub(super) fn sweep(&self, part: usize, now: Now) {
        if part.is_multiple_of(STRIPES) {
            self.sent_away.sweep(now);
        }
        let now = seconds(now);
        let mut stripe = self.stripes[part % STRIPES].lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(saved_at, sid)) = stripe.order.front() {
            if saved_at.saturating_add(self.ttl) >= now {
                break;
            }
            stripe.order.pop_front();
            self.drop_saved(&mut stripe, sid, saved_at);
        }
        if stripe.entries.capacity() > 64 && stripe.entries.len() < stripe.entries.capacity() / 8 {
            stripe.entries.shrink_to_fit();
            stripe.order.shrink_to_fit();
        }
    }

    pub(super) fn measure(&self) -> Amounts {
        Amounts { saved: self.saved.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// What somebody gets at last, counted.
    fn checked(&self, found: Option<Box<SavedSession>>, metrics: &BrokerMetrics) -> Option<Box<SavedSession>> {
        let found = found.filter(|saved| self.may_go_on(saved));
        match found {
            Some(_) => metrics.sessions_resumed_total.inc(),
            None => metrics.sessions_refused_total.inc(),
        }
        found
    }

    fn take(&self, stripe: &mut Stripe, sid: Sid) -> Option<Box<SavedSession>> {
        let Some(Entry::Saved(saved)) = stripe.entries.remove(&sid) else { return None };
        self.bytes.fetch_sub(saved.bytes(), Ordering::Relaxed);
        self.saved.fetch_sub(1, Ordering::Relaxed);
        stripe.saved -= 1;
        stripe.touch(sid);
        Some(saved)
    }

    /// Tells whether it was there.
    fn drop_saved(&self, stripe: &mut Stripe, sid: Sid, saved_at: u32) -> bool {
        is_saved(&stripe.entries, sid, saved_at) && self.take(stripe, sid).is_some()
    }

    fn lock(&self, sid: Sid) -> MutexGuard<'_, Stripe> {
        let stripe = &self.stripes[self.hasher.hash_one(sid) as usize % STRIPES];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
