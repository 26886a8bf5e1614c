//! Who is present on a channel's presence stream (`contracts/action-cable-extended.md` section 7).

use crate::model::rpc::PresenceReply;
use crate::model::{BrokerQuestion, PresenceChange, Question, Topic};
use crate::proto::cable::PresenceRequest;

use super::subscription::{Answerer, SubscriptionRef};
use super::{Asked, Context, Effect, LogEvent, Session};

/// The app's state has the name of the presence stream under this key.
const STREAM: &str = "$p";

impl SubscriptionRef<'_> {
    /// The stream on which its subscribers see each other come and go, if there is one.
    fn presence_stream(&self) -> Option<&str> {
        match (self.state(STREAM), self.by) {
            (Some(stream), _) => Some(stream).filter(|stream| !stream.is_empty()),
            (None, Answerer::Here { presence: true, .. }) => self.topics().next().map(Topic::stream),
            (None, _) => None,
        }
    }
}

impl Session {
    /// The client is there as somebody, or not any more.
    pub(super) fn change_presence(&mut self, identifier: &str, change: PresenceChange, ctx: &mut Context<'_>) {
        let Some(at) = self.subscriptions.find(identifier) else {
            return ctx.fail(LogEvent::NotSubscribed("presence"));
        };
        self.change_presence_at(at, change, ctx);
    }

    pub(super) fn change_presence_at(&mut self, at: usize, change: PresenceChange, ctx: &mut Context<'_>) {
        if !ctx.rules.broker {
            return ctx.fail(LogEvent::NoBroker("presence"));
        }
        let Some(subscription) = self.subscriptions.get(at) else { return };
        match subscription.presence_stream() {
            Some(stream) => ctx.emit(Effect::Presence { stream: stream.into(), change }),
            None => ctx.fail(LogEvent::NoPresenceStream),
        }
    }

    /// Where its client may be present, for [`leave_old_presence`](Self::leave_old_presence).
    pub(super) fn presence_stream(&self, at: usize, ctx: &Context<'_>) -> Option<Box<str>> {
        let subscription = self.subscriptions.get(at).filter(|_| ctx.rules.broker)?;
        subscription.presence_stream().map(Into::into)
    }

    /// The app may have given a subscription another presence stream than `old`, or none: its client is not there any more.
    pub(super) fn leave_old_presence(&mut self, at: usize, old: Option<Box<str>>, ctx: &mut Context<'_>) {
        if let Some(stream) = old
            && self.presence_stream(at, ctx).as_ref() != Some(&stream)
        {
            ctx.emit(Effect::Presence { stream, change: PresenceChange::Leave });
        }
    }

    /// A subscription or the whole session is over.
    pub(super) fn leave_presence(subscription: SubscriptionRef<'_>, change: PresenceChange, ctx: &mut Context<'_>) {
        if ctx.rules.broker
            && let Some(stream) = subscription.presence_stream()
        {
            ctx.emit(Effect::Presence { stream: stream.into(), change });
        }
    }

    /// What the app says of its client's presence.
    pub(super) fn presence_from_app(&mut self, at: usize, presence: PresenceReply, ctx: &mut Context<'_>) {
        let PresenceReply { kind, id, info } = presence;
        let change = match kind.as_str() {
            "join" if !id.is_empty() => PresenceChange::Join {
                id: id.into(),
                info: (!info.is_empty()).then(|| crate::proto::publication::message_json(&info).into()),
            },
            "leave" => PresenceChange::Leave,
            _ => return ctx.fail(LogEvent::BadPresence(kind)),
        };
        self.change_presence_at(at, change, ctx);
    }

    /// The client asks who is there.
    pub(super) fn who_is_present(&mut self, identifier: &str, records: bool, ctx: &mut Context<'_>) {
        let found = self.subscriptions.find(identifier).and_then(|at| self.subscriptions.get(at));
        let Some(subscription) = found else { return ctx.fail(LogEvent::NotSubscribed("presence")) };
        if !ctx.rules.broker {
            return self.say(ctx, |language, out| language.write_presence_error(out, identifier));
        }
        let Some(stream) = subscription.presence_stream() else { return ctx.fail(LogEvent::NoPresenceStream) };
        let question = BrokerQuestion::Present { stream: stream.into(), records };
        let identifier = subscription.shared_identifier();
        self.ask(Asked::Present { identifier }, Question::Broker(question), ctx);
    }
}

/// What a `join` says.
pub(super) fn join(presence: &PresenceRequest<'_>) -> PresenceChange {
    PresenceChange::Join { id: presence.id.as_ref().into(), info: presence.info.map(Into::into) }
}
