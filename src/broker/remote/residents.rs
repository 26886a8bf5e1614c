//! The sessions of this node that their clients may come back to, here or on another node, and who has asked for them.

use std::collections::HashMap;
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

/// The table. One lock: it is taken once when a client is let in and once when it goes.
#[derive(Default)]
pub struct Residents(Mutex<HashMap<Sid, Resident, NameHasher>>);

impl Residents {
    /// A session lives there from now on.
    pub fn resident(&self, sid: Sid, place: Place) {
        self.lock().entry(sid).and_modify(|known| known.place = place).or_insert(Resident { place, waiter: None });
    }

    /// Somebody asks for a session.
    pub fn ask(&self, ticket: &ResumeTicket, asker: Asker) -> Found {
        match self.lock().get_mut(&ticket.sid) {
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
        self.lock().remove(&sid)?.waiter.map(|waiter| *waiter)
    }

    /// A session is not given up. Gives who has asked for it.
    pub fn stays(&self, sid: Sid) -> Option<Asker> {
        self.lock().get_mut(&sid)?.waiter.take().map(|waiter| waiter.0)
    }

    /// A session is not where it was asked for. Gives where else to ask, if it has moved.
    pub fn moved(&self, sid: Sid, from: Place) -> Option<(Place, ResumeTicket)> {
        match self.lock().get(&sid) {
            Some(Resident { place, waiter: Some(waiter) }) if *place != from => Some((*place, waiter.1.clone())),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Sid, Resident, NameHasher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
