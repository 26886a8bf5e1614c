//! A shard that stands still: while its connections are copied into another process, or have come from one.
//!
//! It accepts nobody, reads nothing and lets no deadline pass. What it was given before is carried out, publications, remote
//! disconnects, answers of the broker, and what that produces is written, until it [is settled](Shard::is_settled). What
//! could go on without end waits: answers of the app, after which a client's next command would be read. Readiness that is
//! reported meanwhile is noted down, since it is not reported again.
//!
//! Then it may be copied: nothing of it changes as long as nobody takes a turn with it. It goes on as if nothing had been, or
//! is dropped, which neither closes nor counts a connection that somebody else has too.

use std::time::Duration;

use crate::model::{Answer, Reply, TICK_MS, Tick};

use super::slots::{Stage, flag};
use super::{Accepting, Machine, Message, Services, Shard};

/// What waits until the shard goes on.
pub(super) struct Still<S> {
    /// In the order in which they came.
    messages: Vec<Message<S>>,
    /// Connections that cannot be watched. They have not ended as long as somebody else may have them.
    unwatched: Vec<u32>,
    /// Sessions that wait for the cluster, which was asked elsewhere.
    unasked: Vec<u32>,
    /// Since when, on the shard's clock; for connections of another process, since they came.
    since: Duration,
}

fn ticks_of(pause: Duration) -> Tick {
    let ticks = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).div_ceil(TICK_MS);
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Stands still from now on.
    pub fn stop(&mut self) {
        if self.still.is_none() {
            let since = self.now.mono;
            self.still = Some(Still { messages: Vec::new(), unwatched: Vec::new(), unasked: Vec::new(), since });
            if matches!(self.accepting, Accepting::Yes) {
                self.machine.pause_listening();
            }
        }
    }

    /// Whether it stands still.
    #[inline]
    pub fn is_still(&self) -> bool {
        self.still.is_some()
    }

    /// Whether everything is carried out and written that can be while it stands still.
    pub fn is_settled(&self) -> bool {
        self.is_still() && !self.is_delivering() && self.dirty.is_empty()
    }

    /// Sets the clock, for connections that are put together before its first turn.
    pub fn look_at_the_clock(&mut self) {
        self.now = self.machine.now();
    }

    /// Goes on. In a turn.
    pub fn go_on(&mut self) {
        self.forget_copies();
        let Some(Still { messages, unwatched, unasked, since }) = self.still.take() else { return };
        self.make_up_for(self.now.mono.saturating_sub(since));
        if matches!(self.accepting, Accepting::Yes) {
            self.machine.resume_listening();
        }
        for index in unwatched {
            if let Err(error) = self.watch(index) {
                self.failed(index, &error);
            }
        }
        // What was read behind a command that was answered meanwhile.
        for index in self.stashes.indexes() {
            if !matches!(&self.slots[index].stage, Stage::Session(session, _) if session.is_waiting()) {
                self.go_on_reading(index);
            }
        }
        for index in unasked {
            let Stage::Session(session, _) = &self.slots[index].stage else { continue };
            let (sid, key) = (session.sid(), self.slots.key(index));
            if let Some(question) = session.cluster_question()
                && let Some(reply) = self.services.ask(key, sid, question)
            {
                self.answer(Answer { key, reply });
            }
        }
        messages.into_iter().for_each(|message| self.receive(message));
    }

    /// Peers who were in the middle of something had this time less for it: what they had said filled their socket, and was not
    /// read, or what they are to be told filled it, and they could take no more of it than was there: a ping, or our last word.
    /// Everything else is there to be read, or is sent by us.
    fn make_up_for(&mut self, pause: Duration) {
        let ticks = ticks_of(pause);
        for due in self.rare_deadlines.messages.values_mut() {
            *due = due.saturating_add(ticks);
        }
        // One look at each slot, which costs what a copy of it begins with.
        for index in 0..self.slots.end() {
            let slot = &self.slots[index];
            match &slot.stage {
                Stage::Closing { .. } | Stage::Handshake(_) => {
                    let due = slot.due.saturating_add(ticks);
                    self.wheel.set(&mut self.slots, index, due);
                }
                Stage::Session(..) if slot.outbox.is_some() => {
                    if let Stage::Session(session, _) = &mut self.slots[index].stage {
                        session.has_longer(ticks);
                    }
                }
                _ => {}
            }
        }
    }

    /// What deadlines of connections that are copied now are to get back of the pause so far.
    pub(super) fn lost_ticks(&self) -> Tick {
        self.still.as_ref().map_or(0, |still| ticks_of(self.now.mono.saturating_sub(still.since)))
    }

    /// Connections begin to come that nobody serves meanwhile.
    pub fn note_arrival(&mut self) {
        let now = self.now.mono;
        self.still.iter_mut().for_each(|still| still.since = now);
    }

    /// A session waits for the cluster, which is asked when the shard goes on.
    pub(super) fn ask_again(&mut self, index: u32) {
        self.still.iter_mut().for_each(|still| still.unasked.push(index));
    }

    /// What it was given and has not carried out, to be carried out by whoever has its connections now.
    pub fn take_messages(&mut self) -> Vec<Message<M::Socket>> {
        self.still.as_mut().map(|still| std::mem::take(&mut still.messages)).unwrap_or_default()
    }

    /// Keeps a message that has to wait; gives one that need not.
    pub(super) fn keep_still(&mut self, message: Message<M::Socket>) -> Option<Message<M::Socket>> {
        let Some(still) = &mut self.still else { return Some(message) };
        let waits = match &message {
            Message::Answer(answer) => matches!(answer.reply, Reply::App(_)),
            Message::Adopt { .. } | Message::Drain { .. } => true,
            _ => false,
        };
        if waits {
            still.messages.push(message);
            return None;
        }
        Some(message)
    }

    /// A socket is ready that must not be touched: noted down.
    pub(super) fn note_ready(&mut self, index: u32) {
        self.slots[index].flags |= flag::READABLE;
        self.read_again(index);
    }

    /// A connection that could not be watched is not to be watched any more.
    pub(super) fn forget_unwatched(&mut self, index: u32) {
        self.still.iter_mut().for_each(|still| still.unwatched.retain(|&unwatched| unwatched != index));
    }

    /// A connection cannot be watched.
    pub(super) fn unwatched(&mut self, index: u32, error: &std::io::Error) {
        match &mut self.still {
            Some(still) => still.unwatched.push(index),
            None => self.failed(index, error),
        }
    }
}
