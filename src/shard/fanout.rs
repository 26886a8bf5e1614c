//! Publications to their receivers, and remote disconnects among them: one thing after the other, in the order in which
//! they came, a bounded number of receivers a turn.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::model::{Answer, Publication, RemoteDisconnect, ResumeTicket, Topic};
use crate::proto::Dialect;
use crate::proto::frame::Kind;

use super::frame::{Body, Frame};
use super::inbox::Delivery;
use super::slots::{Form, Stage};
use super::{DELIVERIES_PER_TURN, DISCONNECTS_PER_TURN, Machine, Services, Shard};

/// Receivers whose list is kept for the next publication; a longer one is given back.
const RECEIVERS_KEPT: usize = 65_536;

/// A publication of this size and more is written once for all who read it under different identifiers, and the bytes of
/// each of these begin in one place and end in another. For shorter ones that costs more than it saves.
const SHARED_FROM: usize = 2048;

/// Bytes whose way into a socket takes about as long as what every delivery costs.
const BYTES_PER_DELIVERY: usize = 32 * 1024;

/// Receivers that are sorted in one go.
const SORTED_AT_ONCE: usize = 65_536;

/// What waits to be done, in order.
pub(super) enum Work {
    Publish(Arc<Delivery>),
    Disconnect(RemoteDisconnect),
    /// The broker's, or about streams that are followed; what was published before it was given comes first.
    Answer(Box<Answer>),
    Yield {
        index: u32,
        ticket: ResumeTicket,
    },
}

/// A publication on its way to its receivers.
///
/// The receivers are listed once, at the start: whoever subscribes while a large fan-out goes on over several
/// turns came after it.
#[derive(Default)]
pub(super) struct Fanout {
    /// What is delivered; it holds its place in the bound on publications.
    delivery: Option<Arc<Delivery>>,
    groups: Vec<Group>,
    /// The ends of its frames, for each dialect of which a receiver came up.
    bodies: SmallVec<[(Dialect, Body); 1]>,
    receivers: Vec<Receiver>,
    next: usize,
    /// How many of the receivers, from the first on, are in order and before all others.
    sorted: usize,
    started: Duration,
}

/// Receivers who know the publication under one identifier.
struct Group {
    topic: Topic,
    /// Those who have not been served.
    left: u32,
    /// As it is written, for each form of which a receiver came up. Gone when everybody is served.
    frames: SmallVec<[(Form, Frame); 1]>,
}

impl Fanout {
    /// Brings the next receivers into the order of their slots: members come in the order of a hash, and memory, ours and
    /// the kernel's, is kinder to neighbours in a row. Not all at once, so that a turn has an end.
    fn sort_more(&mut self) {
        let rest = &mut self.receivers[self.sorted..];
        let index = |receiver: &Receiver| receiver.index;
        let next =
            if rest.len() > SORTED_AT_ONCE { rest.select_nth_unstable_by_key(SORTED_AT_ONCE, index).0 } else { rest };
        next.sort_unstable_by_key(index);
        self.sorted += next.len();
    }

    /// The publication as a receiver of this group and form gets it.
    #[inline]
    fn frame(&mut self, group: u32, form: Form, publication: &Publication, room: &mut Vec<u8>) -> Frame {
        match self.groups[group as usize].frames.iter().find(|(known, _)| *known == form) {
            Some((_, frame)) => frame.clone(),
            None => self.encode(group, form, publication, room),
        }
    }

    #[cold]
    fn encode(&mut self, group: u32, form: Form, publication: &Publication, room: &mut Vec<u8>) -> Frame {
        let Fanout { groups, bodies, .. } = self;
        let group = &mut groups[group as usize];
        let (language, identifier) = (form.dialect.language(), group.topic.identifier());
        let mut text = Vec::new();
        let frame = if publication.message.len() < SHARED_FROM {
            language.write_publication(&mut text, identifier, publication);
            Frame::message(form, Kind::Text, &text, room)
        } else {
            let body = bodies.iter().find(|(dialect, _)| *dialect == form.dialect).map(|(_, body)| body.clone());
            let body = body.unwrap_or_else(|| {
                language.write_publication_rest(&mut text, publication);
                let body = Body::new(&text);
                bodies.push((form.dialect, body.clone()));
                text.clear();
                body
            });
            language.write_publication_head(&mut text, identifier, publication);
            room.clear();
            form.carrier.write_message_head(room, Kind::Text, &text, body.len());
            Frame::with_body(room, body)
        };
        group.frames.push((form, frame.clone()));
        frame
    }

    /// One receiver of this group less is waiting.
    #[inline]
    fn served(&mut self, group: u32) {
        let group = &mut self.groups[group as usize];
        group.left -= 1;
        if group.left == 0 {
            group.frames.clear();
        }
    }
}

#[derive(Clone, Copy)]
struct Receiver {
    index: u32,
    generation: u32,
    group: u32,
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Goes on with what waits.
    pub(super) fn go_on_delivering(&mut self) {
        let (mut deliveries, mut disconnects) = (DELIVERIES_PER_TURN, DISCONNECTS_PER_TURN);
        let mut finished: SmallVec<[Duration; 8]> = SmallVec::new();
        while deliveries > 0 && disconnects > 0 {
            if let Some(fanout) = self.fanout.take() {
                finished.extend(self.deliver(fanout, &mut deliveries));
                continue;
            }
            match self.work.pop_front() {
                Some(Work::Publish(delivery)) => {
                    let stream = || self.settings.stream_hasher.key(&delivery.publication.stream);
                    match self.fresh_streams.is_for_followers(stream) {
                        true => self.fanout = Some(self.start_fanout(delivery)),
                        false => deliveries -= 1,
                    }
                }
                Some(Work::Disconnect(disconnect)) => {
                    if !self.disconnect_some(&disconnect, &mut disconnects) {
                        self.work.push_front(Work::Disconnect(disconnect));
                    }
                }
                Some(Work::Answer(answer)) => {
                    deliveries -= 1;
                    self.answer(*answer);
                }
                Some(Work::Yield { index, ticket }) => {
                    disconnects -= 1;
                    self.yield_session(index, &ticket);
                }
                None => break,
            }
        }
        if !finished.is_empty() {
            self.flush_dirty();
            let now = self.machine.now().mono;
            for started in finished {
                self.metrics.counters.fanout_seconds.observe(now.saturating_sub(started));
            }
        }
    }

    /// Serves as many receivers as there are left of `budget`. Gives when the fan-out was started if it is finished.
    fn deliver(&mut self, mut fanout: Fanout, budget: &mut usize) -> Option<Duration> {
        let delivery = fanout.delivery.clone()?;
        let publication = &delivery.publication;
        // Publications without receivers use up the turn too.
        *budget = budget.saturating_sub(usize::from(fanout.receivers.is_empty()));
        let cost = 1 + publication.message.len() / BYTES_PER_DELIVERY;
        let mut sent = 0;
        while *budget > 0 && fanout.next < fanout.receivers.len() {
            if fanout.next == fanout.sorted {
                fanout.sort_more();
            }
            let Receiver { index, generation, group } = fanout.receivers[fanout.next];
            fanout.next += 1;
            *budget = budget.saturating_sub(cost);
            let slot = &self.slots[index];
            let form = slot.form;
            if let Stage::Session(session, _) = &slot.stage
                && slot.generation == generation
                && publication.exclude.is_none_or(|excluded| excluded != session.sid())
                && !self.is_withheld(index, &fanout.groups[group as usize].topic, publication)
            {
                let frame = fanout.frame(group, form, publication, &mut self.room);
                sent += 1;
                self.push(index, frame);
                self.flush_if_many();
            }
            fanout.served(group);
        }
        self.metrics.counters.server_msg_total.add(sent);
        if fanout.next < fanout.receivers.len() {
            self.fanout = Some(fanout);
            return None;
        }
        let started = fanout.started;
        self.keep_buffers(fanout);
        Some(started)
    }

    fn start_fanout(&mut self, delivery: Arc<Delivery>) -> Fanout {
        let mut fanout = std::mem::take(&mut self.spare_fanout);
        fanout.started = self.machine.now().mono;
        let Fanout { groups, receivers, .. } = &mut fanout;
        self.hub.for_each(
            &delivery.publication.stream,
            |topic| {
                groups.push(Group { topic: topic.clone(), left: 0, frames: SmallVec::new() });
                groups.len() as u32 - 1
            },
            |index, &group| {
                receivers.push(Receiver { index, generation: self.slots[index].generation, group });
            },
        );
        receivers.iter().for_each(|receiver| groups[receiver.group as usize].left += 1);
        fanout.delivery = Some(delivery);
        fanout
    }

    fn keep_buffers(&mut self, mut fanout: Fanout) {
        fanout.delivery = None;
        fanout.bodies.clear();
        if fanout.receivers.capacity() <= RECEIVERS_KEPT && fanout.groups.capacity() <= RECEIVERS_KEPT {
            fanout.groups.clear();
            fanout.receivers.clear();
            (fanout.next, fanout.sorted) = (0, 0);
            self.spare_fanout = fanout;
        }
    }

    /// The app wants everybody with these identifiers sent away. Tells whether all are.
    fn disconnect_some(&mut self, disconnect: &RemoteDisconnect, budget: &mut usize) -> bool {
        while *budget > 0 {
            *budget -= 1;
            // Closing a session takes it off the front of its chain, so this comes to the end.
            let Some(first) = self.identities.find(&self.slots, &disconnect.identifiers) else { return true };
            self.session_input(first, |session, ctx| session.remote_disconnect(disconnect.reconnect, ctx));
        }
        false
    }
}
