//! When a subscription is confirmed: as soon as its client gets everything that is published from then on.
//!
//! A node alone knows that at once. Among several, the server between them has to acknowledge first that this node gets what
//! is published to the subscription's streams elsewhere; streams that the node follows already cost no wait. Until the
//! client is told, what is published to the subscription is not for it.

use crate::model::{Question, Topic};

use super::activity::{Asked, Confirmation, Doing, Said, Wanted};
use super::{Context, Session};

impl Session {
    /// A subscription stands. Its client is told, and gets what it asked for together with it, when it gets everything.
    pub(super) fn confirm_when_followed(
        &mut self,
        at: usize,
        confirmation: Confirmation,
        then: Wanted,
        ctx: &mut Context<'_>,
    ) {
        let Some(subscription) = self.subscriptions.get(at).filter(|_| ctx.rules.cluster) else {
            return self.confirm(at, confirmation, then, ctx);
        };
        let identifier = subscription.shared_identifier();
        let streams: Vec<_> = subscription.topics().map(Topic::stream).map(Into::into).collect();
        if streams.is_empty() {
            return self.confirm(at, confirmation, then, ctx);
        }
        self.ask(Asked::Followed { identifier, confirmation, then }, Question::Followed(streams), ctx);
    }

    /// Tells the client.
    pub(super) fn confirm(&mut self, at: usize, confirmation: Confirmation, then: Wanted, ctx: &mut Context<'_>) {
        let closes = match confirmation {
            Confirmation::Here => {
                if let Some(subscription) = self.subscriptions.get(at) {
                    let identifier = subscription.identifier();
                    self.say(ctx, |language, out| language.write_confirm(out, identifier));
                }
                false
            }
            Confirmation::App(said) => {
                let closes = said.disconnect;
                self.pass_on(at, said, ctx);
                closes
            }
        };
        if !closes {
            self.give_wanted(at, then, ctx);
        }
    }

    /// Sends what the app says, and does the rest of what it wants.
    pub(super) fn pass_on(&mut self, at: usize, said: Said, ctx: &mut Context<'_>) {
        let Said { transmissions, disconnect, presence } = said;
        self.finish(transmissions, disconnect, ctx);
        // Who is sent away is not there.
        if let Some(presence) = presence.filter(|_| !disconnect) {
            self.presence_from_app(at, presence, ctx);
        }
    }

    /// Whether a subscription under this identifier waits to be confirmed.
    pub(super) fn is_unconfirmed(&self, identifier: &str) -> bool {
        matches!(self.doing(), Some(Doing::Asking(Asked::Followed { identifier: waits, .. })) if &**waits == identifier)
    }

    /// Whether some subscription waits to be confirmed.
    pub(super) fn awaits_confirmation(&self) -> bool {
        matches!(self.doing(), Some(Doing::Asking(Asked::Followed { .. })))
    }
}
