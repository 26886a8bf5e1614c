//! Subscriptions that catch up: what is published to them waits until they are told what they missed, so that a client
//! gets each message once and in order.
//!
//! A subscription catches up from the moment a client asks for what it missed until it has been told. One of a session
//! that was resumed does so from the start, because its client is about to ask; if it does not, it goes on with what
//! waited at its second ping. The broker's answer comes behind every publication that it covers, so what waits and is not
//! covered comes next, and what is published later comes after that. What waits and is older than all that the broker
//! gives to a client that asks by time comes first.

use serde::{Deserialize, Serialize};

use crate::model::{ChannelIdentifier, CloseCause, Publication};

use super::{Activity, Context, Session};

/// Publications that may wait for one subscription.
const HELD_MAX: usize = 1024;

/// Bytes of messages that may wait for one subscription.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Pings after which a client that was told that its session is back does not ask any more.
const PINGS: u8 = 2;

/// One subscription that catches up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    identifier: ChannelIdentifier,
    publications: Vec<Publication>,
    /// Of their messages.
    bytes: usize,
    /// Pings since it began.
    pings: u8,
}

impl Session {
    /// Whether some of its subscriptions catch up.
    pub fn is_holding(&self) -> bool {
        self.activity.as_ref().is_some_and(|activity| !activity.held.is_empty())
    }

    /// A publication under an identifier. Tells whether it waits; if not, it is to be delivered now.
    pub fn withhold(&mut self, identifier: &str, publication: &Publication, ctx: &mut Context<'_>) -> bool {
        // What has no position is not in the history, and comes when it comes.
        if publication.position.is_none() {
            return false;
        }
        let Some(Activity { held, .. }) = self.activity.as_deref_mut() else { return false };
        let Some(held) = held.iter_mut().find(|held| &*held.identifier == identifier) else { return false };
        held.bytes += publication.message.len();
        if held.publications.len() == HELD_MAX || held.bytes > HELD_BYTES_MAX {
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
            held.push(Held { identifier, publications: Vec::new(), bytes: 0, pings: 0 });
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
        self.settle();
        held.publications
    }

    /// A ping is due: who has not asked by the second does not ask.
    pub(super) fn stop_waiting_for_requests(&mut self, ctx: &mut Context<'_>) {
        if self.is_waiting() {
            return;
        }
        let Some(activity) = self.activity.as_deref_mut() else { return };
        activity.held.iter_mut().for_each(|held| held.pings += 1);
        let tired = activity.held.iter().filter(|held| held.pings >= PINGS);
        for identifier in tired.map(|held| held.identifier.clone()).collect::<Vec<_>>() {
            self.release(&identifier, ctx);
        }
    }

    /// An activity that says nothing is none.
    pub(super) fn settle(&mut self) {
        self.activity.take_if(|activity| activity.doing.is_none() && activity.held.is_empty());
    }
}
