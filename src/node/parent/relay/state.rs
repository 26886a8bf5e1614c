//! The children, what each has been given, and who waits.

mod export;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::broker::{Departure, PRESENT_BYTES_MAX, Place, Resumption};
use crate::hub::{StreamHasher, StreamKey};
use crate::link::local::messages::{ToChild, ToParent};
use crate::link::local::{Frame, Sender};
use crate::model::{
    BrokerError, BrokerQuestion, BrokerReply, PresenceChange, Publication, RemoteDisconnect, ResumeTicket, Sid, SlotKey,
};
use crate::node::followers::Followers;
use crate::node::publish::{PUBLICATIONS_MAX, places};

use super::Relay;
use super::change::Change;
pub use export::GivenState;

/// Shards of one child, at most. Over all children they are counted on: the third shard of child 2 is 2 * 64 + 2.
const SHARDS_MAX: u16 = 64;

/// Children at a time.
const CHILDREN_MAX: usize = 1 << (16 - SHARDS_MAX.trailing_zeros());

pub struct State {
    /// By number. A number is used again when everything of its child is forgotten.
    pub(super) children: Vec<Option<Child>>,
    /// Which children follow which stream.
    pub(super) followers: Followers,
    hasher: StreamHasher,
    /// Places that are free, of [`PUBLICATIONS_MAX`].
    free: u32,
    /// Who waits for places, in order.
    waiting: VecDeque<Waiting>,
}

pub struct Child {
    pub(super) sender: Sender<ToChild>,
    /// What it was given and has not delivered, in order.
    pub(super) on_way: VecDeque<OnWay>,
    /// How often it has said that it follows something.
    follows: u64,
    /// Who of its sessions is present where.
    pub(super) present: HashSet<(StreamKey, Sid)>,
    /// Its part when one child takes over from another one.
    pub(super) change: Change,
}

/// A child's part of a publication.
pub struct OnWay {
    /// Of all children that got it. The last one gives its places back.
    whole: Arc<u32>,
    /// What this child has not given back.
    left: u32,
}

/// Publications that wait.
struct Waiting {
    child: u16,
    number: u64,
    publications: VecDeque<Publication>,
}

impl State {
    pub fn new(stream_seed: u64) -> State {
        State {
            children: Vec::new(),
            followers: Followers::default(),
            hasher: StreamHasher::new(stream_seed),
            free: PUBLICATIONS_MAX as u32,
            waiting: VecDeque::new(),
        }
    }

    /// One child more. Gives its number, unless there are too many.
    pub fn add(&mut self, sender: Sender<ToChild>) -> Option<u16> {
        let number = self.children.iter().position(Option::is_none).unwrap_or(self.children.len());
        if number >= CHILDREN_MAX {
            return None;
        }
        if number == self.children.len() {
            self.children.push(None);
        }
        let (on_way, present, change) = (VecDeque::new(), HashSet::new(), Change::None);
        self.children[number] = Some(Child { sender, on_way, follows: 0, present, change });
        Some(number as u16)
    }

    /// A child is lost, and with it everything that only it had.
    pub fn lost(&mut self, relay: &Relay, number: u16) {
        self.lost_in_change(number);
        let Some(Child { on_way, present, .. }) = self.children[usize::from(number)].take() else { return };
        on_way.into_iter().for_each(|part| self.free_places(part));
        self.waiting.retain(|waiting| waiting.child != number);
        self.followers.forget(number);
        if let Some(sessions) = relay.broker.sessions() {
            let shards = number * SHARDS_MAX..=number * SHARDS_MAX + (SHARDS_MAX - 1);
            let departures = sessions.lost(shards, &relay.broker.metrics);
            departures.into_iter().for_each(|departure| self.tell_of(Some(departure)));
        }
        if !present.is_empty() {
            let (hasher, children) = (&self.hasher, &self.children);
            let is_lost = |stream: &str, sid| {
                let who = (hasher.key(stream), sid);
                // Some have come back to another child.
                present.contains(&who) && !children.iter().flatten().any(|child| child.present.contains(&who))
            };
            relay.broker.lost(relay.clock.now(), is_lost);
        }
        self.place_waiting(relay);
    }

    /// Children, publications that wait for places, and bytes that wait to be read.
    pub fn amounts(&self) -> (usize, usize, usize) {
        let children = self.children.iter().flatten();
        let waiting = self.waiting.iter().map(|waiting| waiting.publications.len()).sum();
        (children.clone().count(), waiting, children.map(|child| child.sender.waiting_bytes()).sum())
    }

    /// Places that are free.
    #[cfg(test)]
    pub fn free(&self) -> u32 {
        self.free
    }

    /// A child says something.
    pub fn heard(&mut self, relay: &Relay, number: u16, message: ToParent) {
        // What it follows and who is present there is its successor's already, if it hands over.
        let who = self.goes_on_as(number);
        match message {
            ToParent::Publish { number: of_child, publications } => {
                let publications = publications.into();
                self.waiting.push_back(Waiting { child: number, number: of_child, publications });
                self.place_waiting(relay);
            }
            ToParent::GiveUp { number: of_child } => {
                self.waiting.retain(|waiting| (waiting.child, waiting.number) != (number, of_child));
                self.place_waiting(relay);
            }
            ToParent::Whisper(publication) => self.whispered(relay, publication),
            ToParent::Disconnect { number: of_child, disconnect } => {
                self.disconnect(relay, disconnect);
                self.tell(number, &ToChild::Taken(of_child));
            }
            ToParent::SentAway(identifiers) => self.sent_away(relay, &identifiers),
            ToParent::Follow(key) => {
                self.followers.follow(StreamKey::from_bits(key), who, || {});
                self.children[usize::from(number)].iter_mut().for_each(|child| child.follows += 1);
            }
            ToParent::Unfollow(key) => self.followers.unfollow(StreamKey::from_bits(key), who, || {}),
            ToParent::IsFollowed(key) => {
                let follows = self.children[usize::from(number)].as_ref().map_or(0, |child| child.follows);
                self.tell(number, &ToChild::Followed { key, follows });
            }
            ToParent::WhoIsPresent { number: of_child, stream } => {
                let text = relay.broker.present(&stream, true, usize::MAX);
                let result = text.and_then(|text| String::from_utf8(text).map_err(|_| BrokerError::Unavailable));
                self.tell(number, &ToChild::Present { number: of_child, result: result.map(Into::into) });
            }
            ToParent::Presence { sid, stream, change } => self.change_presence(relay, who, sid, &stream, change),
            ToParent::Delivered(places) => self.delivered(relay, number, places),
            ToParent::CarryOut { number: of_child } => _ = self.tell(number, &ToChild::Taken(of_child)),
            ToParent::HandOver { number: of_child } => {
                self.hands_over(number);
                self.tell(number, &ToChild::Taken(of_child));
            }
            ToParent::AwaitSuccessor { number: of_child } => {
                if self.asks_for_successor(number, of_child) {
                    self.tell(number, &ToChild::Taken(of_child));
                }
            }
            ToParent::GoOn => self.goes_on(number),
            ToParent::TakenOver => self.taken_over(number),
            of_session => self.heard_of_session(relay, number, of_session),
        }
    }

    /// A child says something of a session that can be resumed, or asks for one.
    fn heard_of_session(&mut self, relay: &Relay, number: u16, message: ToParent) {
        let Relay { broker, clock, metrics, .. } = relay;
        // Asked only where something is remembered.
        let Some(sessions) = broker.sessions() else { return metrics.relay_refused_total.inc() };
        match message {
            ToParent::Ask { key, question } if key.shard < SHARDS_MAX => self.asked(relay, number, key, question),
            ToParent::Resident { sid, shard, index } if shard < SHARDS_MAX => {
                sessions.resident(sid, Place { shard: over_all(number, shard), index });
            }
            ToParent::Departed { sid, saved } => {
                self.tell_of(sessions.departed(sid, saved, clock.now(), &broker.metrics));
            }
            ToParent::Stays(sid) => self.tell_of(sessions.stays(sid, &broker.metrics)),
            ToParent::NotHere { sid, shard, index } if shard < SHARDS_MAX => {
                match sessions.moved(sid, Place { shard: over_all(number, shard), index }) {
                    Some((place, ticket)) => self.ask_to_yield(place, ticket),
                    // It has ended, and whoever waited has heard of that; or it is lost.
                    None => self.tell_of(sessions.stays(sid, &broker.metrics)),
                }
            }
            _ => metrics.relay_refused_total.inc(),
        }
    }

    fn asked(&mut self, relay: &Relay, number: u16, key: SlotKey, question: BrokerQuestion) {
        let Relay { broker, clock, .. } = relay;
        let Some(sessions) = broker.sessions() else { return };
        let result = match question {
            BrokerQuestion::History { streams, since } => broker.history(&streams, &since, clock.now()),
            BrokerQuestion::Present { stream, records } => {
                broker.present(&stream, records, PRESENT_BYTES_MAX).map(BrokerReply::Present)
            }
            BrokerQuestion::Resume(ticket) => {
                let key = SlotKey { shard: over_all(number, key.shard), ..key };
                match sessions.resume(ticket, key, clock.now(), &broker.metrics) {
                    Resumption::Now(saved) => Ok(BrokerReply::Resumed(saved)),
                    Resumption::AfterYield(place, ticket) => return self.ask_to_yield(place, ticket),
                }
            }
        };
        if !self.tell(number, &ToChild::Answer { key, result }) {
            // What was missed is more than a frame holds.
            self.tell(number, &ToChild::Answer { key, result: Err(BrokerError::Gone) });
        }
    }

    /// Somebody who waited for a session gets an answer.
    fn tell_of(&self, departure: Option<Departure>) {
        if let Some(Departure { key, saved }) = departure {
            let (number, shard) = of_child(key.shard);
            let result = Ok(BrokerReply::Resumed(saved));
            self.tell(number, &ToChild::Answer { key: SlotKey { shard, ..key }, result });
        }
    }

    fn ask_to_yield(&self, Place { shard, index }: Place, ticket: ResumeTicket) {
        let (number, shard) = of_child(shard);
        self.tell(number, &ToChild::Yield { shard, index, ticket });
    }

    /// Tells whether it fits into a frame.
    fn tell(&self, number: u16, message: &ToChild) -> bool {
        let child = self.children.get(usize::from(number)).and_then(Option::as_ref);
        child.is_none_or(|child| child.sender.put(message))
    }

    fn disconnect(&mut self, relay: &Relay, disconnect: RemoteDisconnect) {
        relay.metrics.broadcast_msg_total.inc();
        self.sent_away(relay, &disconnect.identifiers);
        let frame = Frame::new(&ToChild::Disconnect(disconnect));
        for (child, frame) in self.children.iter_mut().flatten().zip(std::iter::repeat(frame)) {
            frame.into_iter().for_each(|frame| child.give(frame));
        }
    }

    fn sent_away(&self, relay: &Relay, identifiers: &str) {
        if let Some(sessions) = relay.broker.sessions() {
            sessions.send_away(identifiers, relay.clock.now());
        }
    }

    fn whispered(&mut self, relay: &Relay, publication: Publication) {
        let places = places(&publication);
        match self.try_take(places) {
            true => {
                relay.broker.in_order(publication, relay.clock.now(), |placed| self.hand_over(relay, placed, places))
            }
            false => relay.metrics.whispers_dropped_total.inc(),
        }
    }

    fn change_presence(&mut self, relay: &Relay, number: u16, sid: Sid, stream: &str, change: PresenceChange) {
        let has_place = self.try_take(1);
        let is_join = matches!(change, PresenceChange::Join { .. });
        if is_join && !has_place {
            return relay.broker.metrics.presence_refused_total.inc();
        }
        if let Some(child) = &mut self.children[usize::from(number)] {
            let who = (self.hasher.key(stream), sid);
            if is_join {
                child.present.insert(who)
            } else {
                child.present.remove(&who)
            };
        }
        let mut places = u32::from(has_place);
        let now = relay.clock.now();
        relay.broker.change_presence(stream, sid, change, now, |event| {
            self.hand_over(relay, event, std::mem::take(&mut places));
        });
        // Nobody is told of anything.
        self.free += places;
    }

    /// Takes places if there are so many, and nobody waits for any.
    fn try_take(&mut self, places: u32) -> bool {
        let has_room = self.waiting.is_empty() && self.free >= places;
        if has_room {
            self.free -= places;
        }
        has_room
    }

    /// Places what waits, as far as there is room.
    fn place_waiting(&mut self, relay: &Relay) {
        while let Some(first) = self.waiting.front_mut() {
            if let Some(publication) = first.publications.front() {
                let places = places(publication);
                if self.free < places {
                    return;
                }
                self.free -= places;
                let Some(publication) = first.publications.pop_front() else { return };
                relay.broker.in_order(publication, relay.clock.now(), |placed| self.hand_over(relay, placed, places));
            } else {
                let (number, of_child) = (first.child, first.number);
                self.waiting.pop_front();
                self.tell(number, &ToChild::Taken(of_child));
            }
        }
    }

    /// Gives a publication that has its place, and holds `places`, to all children that follow its stream.
    pub fn hand_over(&mut self, relay: &Relay, publication: Publication, places: u32) {
        relay.metrics.broadcast_msg_total.inc();
        let mut numbers: SmallVec<[u16; 16]> = SmallVec::new();
        self.followers.for_each(self.hasher.key(&publication.stream), |number| numbers.push(number));
        let whole = Arc::new(places);
        if !numbers.is_empty()
            && let Some(frame) = Frame::new(&ToChild::Publication { places, publication })
        {
            for number in numbers {
                let Some(child) = &mut self.children[usize::from(number)] else { continue };
                child.on_way.push_back(OnWay { whole: Arc::clone(&whole), left: places });
                child.give(frame.clone());
            }
        }
        // Nobody follows it.
        self.free += Arc::into_inner(whole).unwrap_or(0);
    }

    /// A child has delivered publications that took so many places. Which ones is of no matter to a bound.
    fn delivered(&mut self, relay: &Relay, number: u16, mut places: u32) {
        while let Some(child) = &mut self.children[usize::from(number)]
            && let Some(first) = child.on_way.front_mut()
        {
            let part = first.left.min(places);
            first.left -= part;
            places -= part;
            if first.left > 0 {
                break;
            }
            let done = child.on_way.pop_front();
            done.into_iter().for_each(|part| self.free_places(part));
        }
        self.place_waiting(relay);
    }

    fn free_places(&mut self, part: OnWay) {
        self.free += Arc::into_inner(part.whole).unwrap_or(0);
    }
}

/// A child's shard, counted over all children.
fn over_all(number: u16, shard: u16) -> u16 {
    number * SHARDS_MAX + shard
}

/// A shard that is counted over all children: the child's number, and the shard's there.
fn of_child(shard: u16) -> (u16, u16) {
    (shard / SHARDS_MAX, shard % SHARDS_MAX)
}
