//! Between sessions and everything else: inputs in, effects out, answers back.

use crate::model::{Answer, Publication, Reply, Sid};
use crate::proto::frame::Kind;
use crate::session::{Context, Effect, Session, SessionCounter};

use super::frame::Frame;
use super::slots::Stage;
use super::{Machine, Services, Shard};

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// The answer to a question. One for a session that is gone is dropped and counted.
    pub(super) fn answer(&mut self, answer: Answer) {
        let Some(index) = self.slots.find(answer.key) else {
            self.metrics.counters.late_answers_total.inc();
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
        let (rules, now) = (&self.settings.session, self.now);
        input(
            session,
            &mut Context { rules, now, heartbeat_phase, topic: &topic, route: &route, effects: &mut effects },
        );
        self.carry_out(index, &mut effects);
        self.effects = effects;
        self.set_timer(index);
    }

    /// Carries out a session's effects, in order.
    pub(super) fn carry_out(&mut self, index: u32, effects: &mut Vec<Effect>) {
        let generation = self.slots[index].generation;
        let mut answered: Option<Reply> = None;
        for effect in effects.drain(..) {
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
                Effect::LetIn => self.index(index),
                Effect::Spoken => self.spoken(index),
                Effect::Attach(topic) if self.is_live(index) => {
                    if let Some(stream) = self.hub.attach(index, &topic) {
                        self.services.follow(stream);
                    }
                }
                // An effect before this one has closed the connection, and nobody would detach it any more.
                Effect::Attach(_) => {}
                Effect::Detach(topic) => {
                    if let Some(stream) = self.hub.detach(index, &topic) {
                        self.services.unfollow(stream);
                    }
                }
                Effect::Whisper { stream, message } => {
                    let publication = Publication { stream, message, exclude: self.sid(index), kind: None };
                    self.services.publish(publication);
                }
                Effect::Close(cause) => self.close(index, cause),
                Effect::Count(counter) => self.count(counter),
                Effect::Log(event) => self.log(index, || event.to_string()),
            }
        }
        // A question that is answered at once, as one that could not even be queued.
        if let Some(reply) = answered
            && self.slots[index].generation == generation
        {
            self.answer(Answer { key: self.slots.key(index), reply });
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
