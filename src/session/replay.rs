//! What a client missed, on its way to it: a piece at a time, so that what is kept for many messages is not also kept for
//! each client that comes back.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::model::{ChannelIdentifier, Missed, MissedSide, Publication};

use super::{Context, Doing, Session};

/// Missed messages of one subscription, as far as they are not sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Replay {
    identifier: ChannelIdentifier,
    left: VecDeque<Publication>,
}

impl Replay {
    pub fn len(&self) -> usize {
        self.left.len()
    }
}

impl Session {
    /// Whether its client is being told what it missed: [`Session::go_on_replaying`] wants to be called when all that was
    /// sent to it is out.
    pub fn is_replaying(&self) -> bool {
        matches!(self.doing(), Some(Doing::Replaying(_)))
    }

    /// Tells a client what it missed, and then that this was all. What waited meanwhile comes in its place.
    pub(super) fn replay(&mut self, identifier: ChannelIdentifier, missed: Vec<Missed>, ctx: &mut Context<'_>) {
        let mut left = VecDeque::new();
        let mut after = Vec::new();
        for publication in self.take_held(&identifier) {
            let of_stream = missed.iter().find(|missed| missed.stream == publication.stream);
            match of_stream.map_or(MissedSide::After, |missed| missed.side(&publication)) {
                MissedSide::Before => left.push_back(publication),
                MissedSide::Within => {}
                MissedSide::After => after.push(publication),
            }
        }
        self.put_held(&identifier, after);
        left.extend(missed.into_iter().flat_map(|missed| missed.publications));
        self.set_doing(Some(Doing::Replaying(Box::new(Replay { identifier, left }))));
        self.go_on_replaying(ctx);
    }

    /// Sends the next piece of what the client missed.
    pub fn go_on_replaying(&mut self, ctx: &mut Context<'_>) {
        let Some(Doing::Replaying(mut replay)) = self.take_doing() else { return };
        let mut bytes = 0;
        while bytes < ctx.rules.replay_bytes {
            let Some(publication) = replay.left.pop_front() else { break };
            bytes += publication.message.len();
            self.say(ctx, |language, out| language.write_publication(out, &replay.identifier, &publication));
        }
        if !replay.left.is_empty() {
            return self.set_doing(Some(Doing::Replaying(replay)));
        }
        self.say(ctx, |language, out| language.write_confirm_history(out, &replay.identifier));
        self.release(&replay.identifier, ctx);
    }
}
