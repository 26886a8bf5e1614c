//! Subscriptions that catch up: what is published to them waits until they are told what they missed, so that a client
//! gets each message once and in order.
//!
//! A subscription catches up from the moment a client asks for what it missed until it has been told. One of a session
//! that was resumed does so from the start, because its client is about to ask; if it does not although it lives, it goes
//! on with what waited. A client that is silent may have its request in a network that stalls, so for that one everything
//! waits: what came before the answer would be a gap, and for good if the connection ends in between. The broker's answer
//! comes behind every publication that it covers, so what waits and is not covered comes next, and what is published later
//! comes after that. What waits and is older than all that the broker gives to a client that asks by time comes first.

use serde::{Deserialize, Serialize};

use crate::model::{ChannelIdentifier, CloseCause, Publication};

use super::{Activity, Context, Doing, Session};

/// Bytes that may wait for one session.
const HELD_BYTES_MAX: usize = 1 << 20;

/// What a publication that waits takes beside its texts.
const HELD_BYTES: usize = 128;

/// Pings that a client has answered, one after the other and with whatever it has said, after which it does not ask any
/// more.
const ANSWERS: u8 = 2;

/// One subscription that catches up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    identifier: ChannelIdentifier,
    publications: Vec<Publication>,
    /// What the client has done since it began.
    signs: Signs,
}

/// Whether a client lives that has not asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Signs {
    /// It was sent a ping.
    was_pinged: bool,
    /// And something came from it after that.
    was_heard: bool,
    /// Pings before that for which the same is true.
    answers: u8,
}

fn cost(publication: &Publication) -> usize {
    HELD_BYTES + publication.stream.len() + publication.message.len()
}

impl Session {
    /// Whether publications to some of its subscriptions are not to be delivered now.
    pub fn is_holding(&self) -> bool {
        self.activity.as_ref().is_some_and(|activity| !activity.held.is_empty()) || self.awaits_confirmation()
    }

    /// Bytes of what its client is still to be told, and of what waits for that, without the messages: these are shared with
    /// the history, or with all the others that are still to be told.
    pub fn missed_bytes(&self) -> usize {
        let waiting = self.activity.iter().flat_map(|activity| &activity.held).map(|held| held.publications.len());
        let left = match self.doing() {
            Some(Doing::Replaying(replay)) => replay.len(),
            _ => 0,
        };
        (waiting.sum::<usize>() + left) * HELD_BYTES
    }

    /// A publication under an identifier. Tells whether it waits, or came before the subscription was confirmed and is not
    /// for its client; if not, it is to be delivered now.
    pub fn withhold(&mut self, identifier: &str, publication: &Publication, ctx: &mut Context<'_>) -> bool {
        if self.is_unconfirmed(identifier) {
            return true;
        }
        // What has no position is not in the history, and comes when it comes.
        if publication.position.is_none() {
            return false;
        }
        let Some(Activity { held, held_bytes, .. }) = self.activity.as_deref_mut() else { return false };
        let Some(held) = held.iter_mut().find(|held| &*held.identifier == identifier) else { return false };
        *held_bytes += cost(publication);
        if *held_bytes > HELD_BYTES_MAX {
            self.disconnect(CloseCause::TooSlow, ctx);
        } else {
            held.publications.push(publication.clone());
        }
        true
    }

    /// From now on publications under this identifier wait.
    pub(super) fn hold(&mut self, identifier: ChannelIdentifier) {
        let held = &mut self.activity.get_or_insert_default().held;
        if !held.iter().any(|held| held.identifier == identifier) {
            held.push(Held { identifier, publications: Vec::new(), signs: Signs::default() });
        }
    }

    /// What waited under this identifier is delivered.
    pub(super) fn release(&mut self, identifier: &str, ctx: &mut Context<'_>) {
        for publication in self.let_go(identifier) {
            self.say(ctx, |language, out| language.write_publication(out, identifier, &publication));
        }
    }

    /// Nothing waits under this identifier any more; gives what did.
    pub(super) fn let_go(&mut self, identifier: &str) -> Vec<Publication> {
        let Some(activity) = self.activity.as_deref_mut() else { return Vec::new() };
        let Some(at) = activity.held.iter().position(|held| &*held.identifier == identifier) else { return Vec::new() };
        let held = activity.held.swap_remove(at);
        activity.held_bytes -= held.publications.iter().map(cost).sum::<usize>();
        self.settle();
        held.publications
    }

    /// What waits under this identifier; nothing does after that, but what comes waits on.
    pub(super) fn take_held(&mut self, identifier: &str) -> Vec<Publication> {
        let Some(activity) = self.activity.as_deref_mut() else { return Vec::new() };
        let Some(held) = activity.held.iter_mut().find(|held| &*held.identifier == identifier) else {
            return Vec::new();
        };
        let publications = std::mem::take(&mut held.publications);
        activity.held_bytes -= publications.iter().map(cost).sum::<usize>();
        publications
    }

    /// Puts back what was taken and goes on waiting.
    pub(super) fn put_held(&mut self, identifier: &str, publications: Vec<Publication>) {
        let Some(activity) = self.activity.as_deref_mut() else { return };
        let Some(held) = activity.held.iter_mut().find(|held| &*held.identifier == identifier) else { return };
        activity.held_bytes += publications.iter().map(cost).sum::<usize>();
        held.publications = publications;
    }

    /// The client gave a sign of life.
    pub(super) fn heard(&mut self) {
        let Some(activity) = self.activity.as_deref_mut() else { return };
        activity.held.iter_mut().for_each(|held| held.signs.was_heard = held.signs.was_pinged);
    }

    /// A ping is about to be sent: who has answered the two before and has not asked does not ask. Tells whether the
    /// client has to answer this one, too.
    pub(super) fn stop_waiting_for_requests(&mut self, ctx: &mut Context<'_>) -> bool {
        let Some(activity) = self.activity.as_deref_mut().filter(|activity| !activity.held.is_empty()) else {
            return false;
        };
        // What it is at may be its request.
        if activity.doing.is_some() {
            return false;
        }
        for Held { signs, .. } in &mut activity.held {
            signs.answers += u8::from(std::mem::take(&mut signs.was_heard));
            signs.was_pinged = true;
        }
        let tired = activity.held.iter().filter(|held| held.signs.answers >= ANSWERS);
        for identifier in tired.map(|held| held.identifier.clone()).collect::<Vec<_>>() {
            self.release(&identifier, ctx);
        }
        self.is_holding()
    }

    /// An activity that says nothing is none.
    pub(super) fn settle(&mut self) {
        self.activity.take_if(|activity| activity.doing.is_none() && activity.held.is_empty());
    }
}
