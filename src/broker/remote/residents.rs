//! The sessions of this node that their clients may come back to, here or on another node, and who has asked for them.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::broker::Place;
use crate::model::{NameHasher, ResumeTicket, Sid, SlotKey};

/// Who asks for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A connection of this node.
    Here(SlotKey),
    /// One of another node.
    Elsewhere,
}

/// What becomes of somebody who asks for a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Whoever has it is to be told to give it up; the answer follows when that is done.
    Here(Place),
    /// Somebody else was first.
    Taken,
    /// It does not live on this node.
    Nowhere,
}

#[derive(Debug)]
struct Resident {
    place: Place,
    /// Nearly nobody has one, and there is a resident for each session.
    waiter: Option<Box<(Asker, ResumeTicket)>>,
}

const _: () = assert!(size_of::<(Sid, Resident)>() <= 32);

/// A power of two. Two shards rarely want the same lock.
const BUCKETS: usize = 64;

type Bucket = HashMap<Sid, Resident, NameHasher>;

/// The table. Each lock is taken once when a client is let in and once when it goes.
pub struct Residents {
    hasher: NameHasher,
    buckets: Box<[Mutex<Bucket>]>,
}

impl Default for Residents {
    fn default() -> Residents {
        let hasher = NameHasher::default();
        Residents { hasher, buckets: (0..BUCKETS).map(|_| Mutex::new(HashMap::with_hasher(hasher))).collect() }
    }
}

impl Residents {
    /// A session lives there from now on.
    pub fn resident(&self, sid: Sid, place: Place) {
        self.bucket(sid).entry(sid).and_modify(|known| known.place = place).or_insert(Resident { place, waiter: None });
    }

    /// Somebody asks for a session.
    pub fn ask(&self, ticket: &ResumeTicket, asker: Asker) -> Found {
        match self.bucket(ticket.sid).get_mut(&ticket.sid) {
            Some(Resident { place, waiter: waiter @ None }) => {
                *waiter = Some(Box::new((asker, ticket.clone())));
                Found::Here(*place)
            }
            Some(_) => Found::Taken,
            None => Found::Nowhere,
        }
    }

    /// A session is over. Gives who has asked for it.
    pub fn departed(&self, sid: Sid) -> Option<(Asker, ResumeTicket)> {
        self.bucket(sid).remove(&sid)?.waiter.map(|waiter| *waiter)
    }

    /// A session is not given up. Gives who has asked for it.
    pub fn stays(&self, sid: Sid) -> Option<Asker> {
        self.bucket(sid).get_mut(&sid)?.waiter.take().map(|waiter| waiter.0)
    }

    /// A session is not where it was asked for. Gives where else to ask, if it has moved.
    pub fn moved(&self, sid: Sid, from: Place) -> Option<(Place, ResumeTicket)> {
        match self.bucket(sid).get(&sid) {
            Some(Resident { place, waiter: Some(waiter) }) if *place != from => Some((*place, waiter.1.clone())),
            _ => None,
        }
    }

    fn bucket(&self, sid: Sid) -> MutexGuard<'_, Bucket> {
        // Bits that the bucket's own table uses neither for places nor for tags.
        let bucket = (self.hasher.hash_one(sid) >> 32) as usize % BUCKETS;
        self.buckets[bucket].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
