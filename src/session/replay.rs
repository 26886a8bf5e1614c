//! What a client missed, on its way to it: a piece at a time, so that what is kept for many messages is not also kept for
//! each client that comes back.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::model::{ChannelIdentifier, Missed, Publication};

use super::{Context, Doing, Session};

/// Bytes of messages that are sent at once; the rest follows when they are out.
const AT_ONCE: usize = 64 << 10;

/// Missed messages of one subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Replay {
    identifier: ChannelIdentifier,
    /// Not sent yet.
    left: VecDeque<Publication>,
    /// Of each stream: all up to this offset is among them or was not asked for.
    heads: Vec<(Box<str>, u64)>,
}

impl Replay {
    /// Whether a publication that came meanwhile is among the missed ones.
    fn covers(&self, publication: &Publication) -> bool {
        let head = self.heads.iter().find(|(stream, _)| *stream == publication.stream).map_or(0, |(_, head)| *head);
        publication.position.as_ref().is_some_and(|position| position.offset <= head)
    }
}

impl Session {
    /// Whether its client is being told what it missed: [`Session::go_on_replaying`] wants to be called when all that was
    /// sent to it is out.
    pub fn is_replaying(&self) -> bool {
        matches!(self.doing(), Some(Doing::Replaying(_)))
    }

    /// Tells a client what it missed, and then that this was all. What waited meanwhile comes next.
    pub(super) fn replay(&mut self, identifier: ChannelIdentifier, missed: Vec<Missed>, ctx: &mut Context<'_>) {
        let mut replay = Replay { identifier, left: VecDeque::new(), heads: Vec::with_capacity(missed.len()) };
        for Missed { stream, head, publications } in missed {
            replay.heads.push((stream, head));
            replay.left.extend(publications);
        }
        self.set_doing(Some(Doing::Replaying(Box::new(replay))));
        self.go_on_replaying(ctx);
    }

    /// Sends the next piece of what the client missed.
    pub fn go_on_replaying(&mut self, ctx: &mut Context<'_>) {
        let Some(Doing::Replaying(mut replay)) = self.take_doing() else { return };
        let mut bytes = 0;
        while bytes < AT_ONCE
            && let Some(publication) = replay.left.pop_front()
        {
            bytes += publication.message.len();
            self.say(ctx, |language, out| language.write_publication(out, &replay.identifier, &publication));
        }
        if !replay.left.is_empty() {
            return self.set_doing(Some(Doing::Replaying(replay)));
        }
        self.say(ctx, |language, out| language.write_confirm_history(out, &replay.identifier));
        self.release(&replay.identifier, |publication| replay.covers(publication), ctx);
    }
}
