//! Publications to their receivers, and remote disconnects among them: one thing after the other, in the order in which
//! they came, a bounded number of receivers a turn.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::model::{Publication, RemoteDisconnect, Topic};
use crate::proto::frame::Kind;

use super::inbox::Delivery;
use super::slots::{Form, Stage};
use super::{DELIVERIES_PER_TURN, DISCONNECTS_PER_TURN, Machine, Services, Shard};

/// Receivers whose list is kept for the next publication; a longer one is given back.
const RECEIVERS_KEPT: usize = 65_536;

/// What waits to be done, in order.
pub(super) enum Work {
    Publish(Arc<Delivery>),
    Disconnect(RemoteDisconnect),
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
    receivers: Vec<Receiver>,
    next: usize,
    started: Duration,
}

/// Receivers who know the publication under one identifier.
struct Group {
    topic: Topic,
    /// As it is written, for each form of which a receiver came up.
    frames: SmallVec<[(Form, Arc<[u8]>); 1]>,
}

impl Group {
    fn frame(&mut self, form: Form, publication: &Publication) -> Arc<[u8]> {
        match self.frames.iter().find(|(known, _)| *known == form) {
            Some((_, frame)) => Arc::clone(frame),
            None => self.encode(form, publication),
        }
    }

    #[cold]
    fn encode(&mut self, form: Form, publication: &Publication) -> Arc<[u8]> {
        let mut text = Vec::new();
        form.dialect.language().write_publication(&mut text, self.topic.identifier(), publication);
        let frame = form.carrier.message(Kind::Text, &text);
        self.frames.push((form, Arc::clone(&frame)));
        frame
    }
}

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
                Some(Work::Publish(delivery)) => self.fanout = Some(self.start_fanout(delivery)),
                Some(Work::Disconnect(disconnect)) => {
                    if !self.disconnect_some(&disconnect, &mut disconnects) {
                        self.work.push_front(Work::Disconnect(disconnect));
                    }
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
        // Publications without receivers use up the turn too.
        let share = (fanout.receivers.len() - fanout.next).min(*budget);
        *budget -= share.max(1);
        if let Some(delivery) = &fanout.delivery {
            let publication = &delivery.publication;
            for receiver in &fanout.receivers[fanout.next..fanout.next + share] {
                let slot = &self.slots[receiver.index];
                let Stage::Session(session) = &slot.stage else { continue };
                let excluded = publication.exclude.is_some_and(|excluded| excluded == session.sid());
                if slot.generation != receiver.generation || excluded {
                    continue;
                }
                let frame = fanout.groups[receiver.group as usize].frame(slot.form, publication);
                self.metrics.counters.server_msg_total.inc();
                self.push(receiver.index, frame);
            }
        }
        fanout.next += share;
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
                groups.push(Group { topic: topic.clone(), frames: SmallVec::new() });
                groups.len() as u32 - 1
            },
            |index, &group| {
                receivers.push(Receiver { index, generation: self.slots[index].generation, group });
            },
        );
        // Members come in the order of a hash; memory, ours and the kernel's, is kinder to neighbours in a row.
        receivers.sort_unstable_by_key(|receiver| receiver.index);
        fanout.delivery = Some(delivery);
        fanout
    }

    fn keep_buffers(&mut self, mut fanout: Fanout) {
        fanout.delivery = None;
        if fanout.receivers.capacity() <= RECEIVERS_KEPT && fanout.groups.capacity() <= RECEIVERS_KEPT {
            fanout.groups.clear();
            fanout.receivers.clear();
            fanout.next = 0;
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
