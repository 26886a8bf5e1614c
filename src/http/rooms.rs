//! Who has a place at the HTTP server, and who gives it up when there are more than places.
//!
//! Whoever connects is a stranger until a request shows a key. Strangers have a room, those who showed a key have one
//! of their own, and a small reserve is left for what operators ask when the strangers' room is full of requests that are
//! being answered. A full room throws out the one who needs its place least ([`Doing`]) for the newcomer: a newcomer
//! with a request is served however many connect and say nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::HttpMetrics;

/// What a connection is at, in the order in which connections are thrown out. Of two that do the same, the one that
/// began first goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    /// It has its last answer, and its end is awaited.
    Lingering,
    /// It has no request under way: it says nothing, or its head is not complete.
    Waiting,
    /// Its body is under way.
    Sending,
    /// Its request is complete and is being answered. It is never thrown out; the time-outs bound how long it stays.
    Answered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Strangers,
    Known,
    Reserve,
}

/// How many fit into each room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub strangers: usize,
    pub known: usize,
    pub reserve: usize,
}

/// All rooms of a server.
pub(super) struct Rooms {
    sizes: Sizes,
    /// Held for a look at every guest at most: about a thousand.
    state: Mutex<State>,
    left: Notify,
    metrics: Arc<HttpMetrics>,
}

#[derive(Default)]
struct State {
    /// By number, which grows with every arrival.
    guests: BTreeMap<u64, Guest>,
    /// Counts arrivals and changes; tells which came first.
    changes: u64,
}

struct Guest {
    room: Room,
    doing: Doing,
    /// The count of changes when it began with that.
    since: u64,
    /// Bytes of its request body that are held.
    body_bytes: usize,
    out: Arc<Notify>,
}

/// A connection's place; given up when it is dropped.
pub struct Place {
    rooms: Arc<Rooms>,
    number: u64,
    out: Arc<Notify>,
}

impl Rooms {
    pub(super) fn new(sizes: Sizes, metrics: Arc<HttpMetrics>) -> Arc<Rooms> {
        Arc::new(Rooms { sizes, state: Mutex::default(), left: Notify::new(), metrics })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes somebody in: as a stranger, or into the reserve while every stranger is being answered. `None` when not
    /// even that has room.
    pub(super) fn enter(self: &Arc<Rooms>) -> Option<Arc<Place>> {
        let mut state = self.state();
        let mut rooms = [(Room::Strangers, self.sizes.strangers), (Room::Reserve, self.sizes.reserve)].into_iter();
        let (room, _) = rooms.find(|(room, size)| self.make_place(&mut state, *room, *size))?;
        state.changes += 1;
        let (number, out) = (state.changes, Arc::new(Notify::new()));
        let guest = Guest { room, doing: Doing::Waiting, since: number, body_bytes: 0, out: Arc::clone(&out) };
        state.guests.insert(number, guest);
        Some(Arc::new(Place { rooms: Arc::clone(self), number, out }))
    }

    /// Waits until nobody is left.
    pub(super) async fn empty(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.state().guests.is_empty() {
                return;
            }
            left.await;
        }
    }

    /// Whether a room has a free place, if need be after somebody was thrown out.
    fn make_place(&self, state: &mut State, room: Room, size: usize) -> bool {
        let guests = state.guests.iter().filter(|(_, guest)| guest.room == room);
        let (mut count, mut least) = (0, None);
        for (number, guest) in guests {
            count += 1;
            let rank = (guest.doing, guest.since, *number);
            if least.is_none_or(|least| rank < least) {
                least = Some(rank);
            }
        }
        if count < size {
            return true;
        }
        let Some((_, _, number)) = least.filter(|(doing, ..)| *doing != Doing::Answered) else { return false };
        self.throw_out(state, number);
        true
    }

    fn throw_out(&self, state: &mut State, number: u64) {
        if let Some(guest) = state.guests.remove(&number) {
            guest.out.notify_one();
            self.metrics.http_connections_evicted_total.inc();
        }
    }
}

impl Place {
    /// The connection begins to do this.
    pub(super) fn begins(&self, doing: Doing) {
        let mut state = self.rooms.state();
        state.changes += 1;
        let since = state.changes;
        if let Some(guest) = state.guests.get_mut(&self.number) {
            (guest.doing, guest.since, guest.body_bytes) = (doing, since, 0);
        }
    }

    /// Of the body that is under way, so many bytes are held.
    pub(super) fn holds(&self, body_bytes: usize) {
        if let Some(guest) = self.rooms.state().guests.get_mut(&self.number) {
            guest.body_bytes = body_bytes;
        }
    }

    /// All bodies together are too large: throws out whoever holds most of one that is not complete, strangers before
    /// those who showed a key. Tells whether that was somebody else, with more than this connection `wants`.
    pub(super) fn takes_room_of_a_larger_body(&self, wants: usize) -> bool {
        let mut state = self.rooms.state();
        let is_stranger = |guest: &Guest| guest.room != Room::Known;
        let Some(own) = state.guests.get(&self.number).map(|guest| (is_stranger(guest), wants)) else { return false };
        let sending = state.guests.iter().filter(|(_, guest)| guest.doing == Doing::Sending);
        let largest = sending.map(|(number, guest)| ((is_stranger(guest), guest.body_bytes), *number)).max();
        let Some((_, number)) = largest.filter(|(rank, number)| *rank > own && *number != self.number) else {
            return false;
        };
        self.rooms.throw_out(&mut state, number);
        true
    }

    /// A request showed a key: from now on strangers cannot take this place. With the room full of others who are being
    /// answered it stays where it is.
    pub(super) fn showed_a_key(&self) {
        let mut state = self.rooms.state();
        if state.guests.get(&self.number).is_some_and(|guest| guest.room != Room::Known)
            && self.rooms.make_place(&mut state, Room::Known, self.rooms.sizes.known)
            && let Some(guest) = state.guests.get_mut(&self.number)
        {
            guest.room = Room::Known;
        }
    }

    /// Whether only what operators ask is answered here.
    pub(super) fn is_reserve(&self) -> bool {
        self.rooms.state().guests.get(&self.number).is_some_and(|guest| guest.room == Room::Reserve)
    }

    /// Waits until the place is taken away.
    pub(super) async fn thrown_out(&self) {
        self.out.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.rooms.state().guests.remove(&self.number);
        self.rooms.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(strangers: usize, known: usize, reserve: usize) -> Arc<Rooms> {
        Rooms::new(Sizes { strangers, known, reserve }, Arc::default())
    }

    impl Place {
        fn is_out(&self) -> bool {
            !self.rooms.state().guests.contains_key(&self.number)
        }
    }

    #[test]
    fn a_full_room_throws_out_whoever_needs_its_place_least() {
        let rooms = rooms(4, 0, 0);
        let guests: Vec<_> = (0..4).map(|_| rooms.enter().unwrap()).collect();
        guests[0].begins(Doing::Answered);
        guests[1].begins(Doing::Sending);
        guests[3].begins(Doing::Lingering);
        let mut newcomers = Vec::new();
        for goes in [3, 2, 1] {
            let newcomer = rooms.enter().unwrap();
            newcomer.begins(Doing::Answered);
            newcomers.push(newcomer);
            let out: Vec<_> = (0..4).filter(|n| guests[*n].is_out()).collect();
            assert!(out.contains(&goes), "{goes}: {out:?}");
        }
        assert!(rooms.enter().is_none() && !guests[0].is_out(), "everybody is being answered");
        assert_eq!(rooms.metrics.http_connections_evicted_total.get(), 3);
        drop(newcomers.pop());
        assert!(rooms.enter().is_some());
    }

    #[test]
    fn of_two_that_wait_the_longest_silent_goes_first() {
        let rooms = rooms(2, 0, 0);
        let (first, second) = (rooms.enter().unwrap(), rooms.enter().unwrap());
        first.begins(Doing::Answered);
        first.begins(Doing::Waiting);
        let _newcomer = rooms.enter().unwrap();
        assert!(second.is_out() && !first.is_out());
    }

    #[test]
    fn strangers_cannot_take_the_place_of_one_who_showed_a_key() {
        let rooms = rooms(2, 1, 0);
        let known = rooms.enter().unwrap();
        known.showed_a_key();
        let strangers: Vec<_> = (0..100).map(|_| rooms.enter().unwrap()).collect();
        assert!(!known.is_out());
        assert_eq!(strangers.iter().filter(|stranger| !stranger.is_out()).count(), 2);
        // Another one with a key takes the place of the first, which has nothing to do.
        strangers[99].showed_a_key();
        assert!(known.is_out() && !strangers[99].is_out());
        // With the first being answered, the next one stays a stranger.
        strangers[99].begins(Doing::Answered);
        strangers[98].showed_a_key();
        assert!(!strangers[99].is_out() && !strangers[98].is_out());
    }

    #[test]
    fn the_reserve_is_there_when_all_strangers_are_being_answered() {
        let rooms = rooms(1, 1, 1);
        let busy = rooms.enter().unwrap();
        busy.begins(Doing::Answered);
        let operator = rooms.enter().unwrap();
        assert!(operator.is_reserve() && !busy.is_reserve());
        let next = rooms.enter().unwrap();
        assert!(operator.is_out() && next.is_reserve(), "one that says nothing keeps nobody out of it");
        next.showed_a_key();
        assert!(!next.is_reserve());
    }

    #[test]
    fn the_largest_unfinished_body_of_a_stranger_makes_way_for_a_smaller_one() {
        let rooms = rooms(9, 9, 0);
        let sending = |bytes: usize| {
            let place = rooms.enter().unwrap();
            place.begins(Doing::Sending);
            place.holds(bytes);
            place
        };
        let (small, large, known) = (sending(10), sending(70), sending(90));
        known.showed_a_key();
        assert!(!large.takes_room_of_a_larger_body(71) && !small.takes_room_of_a_larger_body(70));
        assert!(small.takes_room_of_a_larger_body(11) && large.is_out());
        assert!(!small.takes_room_of_a_larger_body(11), "the other one showed a key");
        let answered = sending(80);
        answered.begins(Doing::Answered);
        assert!(!small.takes_room_of_a_larger_body(11), "what is complete is not thrown away");
        assert!(known.takes_room_of_a_larger_body(95) && small.is_out() && !known.is_out());
    }

    #[tokio::test]
    async fn whoever_is_thrown_out_is_told_and_an_empty_server_is_noticed() {
        let rooms = rooms(1, 0, 0);
        let first = rooms.enter().unwrap();
        let second = rooms.enter().unwrap();
        first.thrown_out().await;
        let empty = tokio::spawn({
            let rooms = Arc::clone(&rooms);
            async move { rooms.empty().await }
        });
        drop((first, second));
        empty.await.unwrap();
    }
}
