//! Between sessions and everything else: inputs in, effects out, answers back.

use smallvec::SmallVec;

use crate::hub::StreamChange;
use crate::model::{Answer, BrokerReply, CloseCause, Publication, Reply, ResumeTicket, Sid, Topic};
use crate::proto::frame::Kind;
use crate::session::{Context, Effect, Session, SessionCounter};

use super::buffers::Buffer;
use super::frame::Frame;
use super::slots::Stage;
use super::{Machine, Services, Shard};

/// Streams whose last subscriber stops and starts them again by the same input, as apps do that stop all streams before they
/// start some. The shard follows them all the time, so that nothing goes past it.
#[derive(Default)]
struct Restarts(SmallVec<[(Topic, StreamChange); 1]>);

impl Restarts {
    /// The last subscriber stops a stream. Tells whether it starts it again by one of the effects behind this.
    fn begin(&mut self, topic: &Topic, change: StreamChange, rest: &[Effect]) -> bool {
        let is_it = |effect: &Effect| matches!(effect, Effect::Attach(other) if other.stream() == topic.stream());
        let begins = rest.iter().any(is_it);
        if begins {
            self.0.push((topic.clone(), change));
        }
        begins
    }

    /// A stream has its first subscriber. Tells whether it was stopped in the same breath.
    fn end(&mut self, topic: &Topic) -> bool {
        let at = self.0.iter().position(|(stopped, _)| stopped.stream() == topic.stream());
        at.map(|at| self.0.swap_remove(at)).is_some()
    }

    /// The change that another stream makes beside those that are stopped and not yet started.
    fn apart_from(&self, change: StreamChange) -> StreamChange {
        let shares_key = self.0.iter().any(|(_, stopped)| stopped.key == change.key);
        StreamChange { of_key: change.of_key && !shares_key, ..change }
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// The answer to a question. One for a session that is gone is dropped and counted.
    pub(super) fn answer(&mut self, mut answer: Answer) {
        if let Reply::Broker(Ok(BrokerReply::Resumed(saved))) = &mut answer.reply {
            saved.take_if(|saved| !self.services.may_go_on(saved));
        }
        let Some(index) = self.slots.find(answer.key) else {
            self.metrics.counters.late_answers_total.inc();
            // Who asked for a session is gone; its client may come back to it again.
            if let Reply::Broker(Ok(BrokerReply::Resumed(Some(saved)))) = answer.reply {
                self.services.departed(saved.sid, Some(saved));
            }
            return;
        };
        match self.slots[index].stage {
            Stage::Session(..) => {
                self.session_input(index, |session, ctx| session.answer(answer.reply, ctx));
                self.go_on_reading(index);
            }
            Stage::Orphan(_) => self.answer_orphan(index, answer.reply),
            _ => self.metrics.counters.late_answers_total.inc(),
        }
    }

    /// Gives a session an input and carries out what it decides.
    pub(super) fn session_input(&mut self, index: u32, input: impl FnOnce(&mut Session, &mut Context<'_>)) {
        let mut effects = std::mem::take(&mut self.effects);
        let heartbeat_phase = self.heartbeat_phase(index);
        let (Stage::Session(session, _) | Stage::Orphan(session)) = &mut self.slots[index].stage else { return };
        let route = |identifier: &str| self.settings.router.route(identifier);
        let topic = |identifier: &str, stream: &str| self.hub.topic(identifier, stream);
        let resume_token = |sid| self.settings.resume_tokens.as_ref().map(|tokens| tokens.token(sid));
        let (rules, now) = (&self.settings.session, self.now);
        input(
            session,
            &mut Context {
                rules,
                now,
                heartbeat_phase,
                topic: &topic,
                resume_token: &resume_token,
                route: &route,
                effects: &mut effects,
            },
        );
        self.note_holding(index);
        self.carry_out(index, &mut effects);
        self.effects = effects;
        self.set_timer(index);
    }

    /// Notes down whether publications may have to wait for this session, and what is kept for it.
    pub(super) fn note_holding(&mut self, index: u32) {
        match &self.slots[index].stage {
            Stage::Session(session, _) if session.is_holding() => {
                let kept = session.missed_bytes();
                let before = self.holding.insert(index, kept).unwrap_or(0);
                self.buffers.change(Buffer::Missed, before, kept);
            }
            _ => self.forget_missed(index),
        }
    }

    /// Nothing waits for this session any more.
    pub(super) fn forget_missed(&mut self, index: u32) {
        if !self.holding.is_empty()
            && let Some(kept) = self.holding.remove(&index)
        {
            self.buffers.change(Buffer::Missed, kept, 0);
        }
    }

    /// Everything is out that was sent to a client: if it is being told what it missed, the next piece follows.
    #[inline]
    pub(super) fn note_written(&mut self, index: u32) {
        if !self.holding.is_empty() && self.holding.contains_key(&index) {
            self.replays_due.push(index);
        }
    }

    /// Sends the next pieces of what clients missed.
    pub(super) fn go_on_replaying(&mut self) {
        let mut due = std::mem::take(&mut self.replays_due);
        for index in due.drain(..) {
            let slot = &self.slots[index];
            if slot.outbox.is_none() && matches!(&slot.stage, Stage::Session(session, _) if session.is_replaying()) {
                let key = self.slots.key(index);
                self.session_input(index, |session, ctx| session.go_on_replaying(ctx));
                if self.slots.find(key).is_some() {
                    self.go_on_reading(index);
                }
            }
        }
        // Whoever got all of it in this moment stands there for the next turn.
        due.append(&mut self.replays_due);
        self.replays_due = due;
    }

    /// Whether a publication waits until this client has been told what it missed.
    #[inline]
    pub(super) fn is_withheld(&mut self, index: u32, topic: &Topic, publication: &Publication) -> bool {
        !self.holding.is_empty() && self.holding.contains_key(&index) && self.withhold(index, topic, publication)
    }

    #[cold]
    fn withhold(&mut self, index: u32, topic: &Topic, publication: &Publication) -> bool {
        let mut waits = false;
        self.session_input(index, |session, ctx| waits = session.withhold(topic.identifier(), publication, ctx));
        waits
    }

    /// The client of this session has come back on another connection.
    pub(super) fn yield_session(&mut self, index: u32, ticket: &ResumeTicket) {
        let sid = ticket.sid;
        let stage = (index < self.slots.end()).then(|| &self.slots[index].stage);
        match stage {
            Some(Stage::Session(session, _) | Stage::Orphan(session))
                if session.sid() == sid && !session.may_be_resumed_by(ticket) =>
            {
                self.services.stays(sid);
            }
            // What its last command comes to is a part of it, so it ends when that is known.
            Some(Stage::Session(session, _)) if session.sid() == sid && session.awaits_answer() => {
                self.gone(index, CloseCause::Resumed);
            }
            Some(Stage::Session(session, _)) if session.sid() == sid => {
                self.session_input(index, |session, ctx| session.disconnect(CloseCause::Resumed, ctx));
            }
            Some(Stage::Orphan(session)) if session.sid() == sid => {}
            _ => self.services.not_here(sid, index),
        }
    }

    /// Carries out a session's effects, in order.
    pub(super) fn carry_out(&mut self, index: u32, effects: &mut Vec<Effect>) {
        let generation = self.slots[index].generation;
        let mut answered: Option<Reply> = None;
        let mut stopped = Restarts::default();
        let starts_some = effects.iter().any(|effect| matches!(effect, Effect::Attach(_)));
        let mut rest = effects.drain(..);
        while let Some(effect) = rest.next() {
            match effect {
                Effect::Send(text) => {
                    self.metrics.counters.server_msg_total.inc();
                    let frame = Frame::message(self.slots[index].form, Kind::Text, &text, &mut self.room);
                    self.push(index, frame);
                }
                Effect::Ping(precision) => self.ping(index, precision),
                Effect::NativePing => {
                    let carrier = self.slots[index].form.carrier;
                    let frame = Frame::written(&mut self.room, |out| carrier.write_ping(out));
                    if frame.len() > 0 {
                        self.push(index, frame);
                    }
                }
                Effect::Ask(question) => {
                    let Some(sid) = self.sid(index) else { continue };
                    answered = self.services.ask(self.slots.key(index), sid, *question);
                }
                Effect::Tell(request) => {
                    let Some(sid) = self.sid(index) else { continue };
                    self.services.tell(self.slots.key(index), sid, *request);
                }
                Effect::Cancel => self.services.cancel(self.slots.key(index)),
                Effect::LetIn => {
                    self.index(index);
                    self.note_resident(index);
                }
                Effect::Spoken => self.spoken(index),
                Effect::Attach(topic) if self.is_live(index) => {
                    if let Some(change) = self.hub.attach(index, &topic)
                        && !stopped.end(&topic)
                    {
                        self.follow(topic.stream(), stopped.apart_from(change));
                    }
                }
                // An effect before this one has closed the connection, and nobody would detach it any more.
                Effect::Attach(_) => {}
                Effect::Detach(topic) => {
                    if let Some(change) = self.hub.detach(index, &topic) {
                        let restarts = starts_some && self.is_live(index);
                        if !(restarts && stopped.begin(&topic, change, rest.as_slice())) {
                            self.services.unfollow(topic.stream(), change);
                        }
                    }
                }
                Effect::Whisper { stream, message } => {
                    let exclude = self.sid(index);
                    let publication = Publication { exclude, transient: true, ..Publication::new(stream, message) };
                    self.services.publish(publication);
                }
                Effect::Presence { stream, change } => {
                    let Some(sid) = self.sid(index) else { continue };
                    self.services.change_presence(sid, &stream, change);
                }
                Effect::Depart(saved) => {
                    let Some(sid) = self.sid(index) else { continue };
                    self.services.departed(sid, saved);
                }
                Effect::Close(cause) => self.close(index, cause),
                Effect::Count(counter) => self.count(counter),
                Effect::Log(event) => self.log(index, || event.to_string()),
            }
        }
        drop(rest);
        // An effect between the two has closed the connection.
        for (topic, change) in stopped.0 {
            self.services.unfollow(topic.stream(), change);
        }
        // A question that is answered at once, as one that could not even be queued.
        if let Some(reply) = answered
            && self.slots[index].generation == generation
        {
            self.answer(Answer { key: self.slots.key(index), reply });
        }
    }

    /// The first subscriber of a stream has come.
    pub(super) fn follow(&mut self, stream: &str, change: StreamChange) {
        let given = self.services.follow(stream, change);
        self.fresh_streams.add(change, given);
    }

    /// A session that its client can come back to is in this slot.
    pub(super) fn note_resident(&mut self, index: u32) {
        if let Stage::Session(session, _) = &self.slots[index].stage
            && session.is_resumable(&self.settings.session)
        {
            self.services.resident(session.sid(), index);
        }
    }

    pub(super) fn sid(&self, index: u32) -> Option<Sid> {
        match &self.slots[index].stage {
            Stage::Session(session, _) | Stage::Orphan(session) => Some(session.sid()),
            _ => None,
        }
    }

    fn count(&self, counter: SessionCounter) {
        let counters = &self.metrics.counters;
        match counter {
            SessionCounter::FailedAuth => counters.failed_auths_total.inc(),
            SessionCounter::ClientMessage => counters.client_msg_total.inc(),
            SessionCounter::FailedClientMessage => counters.failed_client_msg_total.inc(),
        }
    }
}
