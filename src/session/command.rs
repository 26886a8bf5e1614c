//! What a client says: commands, one at a time (`contracts/action-cable.md` sections 3 and 4).

use crate::model::{
    BrokerQuestion, ChannelIdentifier, CommandKind, HistoryRequest, PresenceChange, Question, Request, Routed, State,
    Topic,
};
use crate::proto::cable::Command;
use crate::proto::frame::Message;

use super::{
    Answerer, Asked, Confirmation, Context, Doing, Effect, LogEvent, SUBSCRIPTIONS_MAX, Session, SessionCounter,
    Subscription, Wanted, presence,
};

/// What a subscription takes beside its identifier and a stream's name of that length.
const SUBSCRIPTION_BYTES: usize = 64;

impl Session {
    /// A message of the client. Must not be called while [`Session::is_waiting`].
    pub fn message(&mut self, message: &Message<'_>, ctx: &mut Context<'_>) {
        debug_assert!(!self.is_waiting());
        if self.is_over() {
            return;
        }
        let language = self.dialect.language();
        let mended;
        let parsed = match language.parse(message) {
            Err(bad) => match language.mend(message, &bad) {
                Some(other) => {
                    mended = other;
                    language.parse(&mended)
                }
                None => Err(bad),
            },
            parsed => parsed,
        };
        let command = match parsed {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(bad) => {
                ctx.spoken();
                return ctx.fail(LogEvent::BadCommand(bad.to_string()));
            }
        };
        if !matches!(command, Command::Ping | Command::Pong) {
            ctx.spoken();
        }
        ctx.emit(Effect::Count(SessionCounter::ClientMessage));
        match command {
            Command::Subscribe { identifier, history, presence } => {
                let wanted = Wanted {
                    history: history.map(|history| history.to_owned()),
                    presence: presence.map(|presence| (presence.id.into(), presence.info.map(Into::into))),
                };
                self.subscribe(&identifier, wanted, ctx);
            }
            Command::Unsubscribe { identifier } => self.unsubscribe(&identifier, ctx),
            Command::Message { identifier, data } => self.perform(&identifier, data.into_owned(), ctx),
            Command::Ping => self.say(ctx, |language, out| language.write_pong(out)),
            Command::Pong => {}
            Command::Whisper { identifier, data } => self.whisper(&identifier, data, ctx),
            Command::History { identifier, request } => match self.subscriptions.find(&identifier) {
                Some(at) => self.history(at, request.to_owned(), ctx),
                None => ctx.fail(LogEvent::NotSubscribed("history")),
            },
            Command::Presence { identifier, return_records } => self.who_is_present(&identifier, return_records, ctx),
            Command::Join { identifier, presence } => {
                self.change_presence(&identifier, presence::join(&presence), ctx);
            }
            Command::Leave { identifier } => self.change_presence(&identifier, PresenceChange::Leave, ctx),
        }
    }

    fn subscribe(&mut self, identifier: &str, wanted: Wanted, ctx: &mut Context<'_>) {
        if self.subscriptions.find(identifier).is_some() {
            return ctx.fail(LogEvent::AlreadySubscribed);
        }
        if self.subscriptions.len() == SUBSCRIPTIONS_MAX {
            ctx.fail(LogEvent::LimitReached("subscriptions per session"));
            return self.reject(identifier, ctx);
        }
        if identifier.len() > ctx.rules.identifier_bytes_max {
            ctx.fail(LogEvent::LimitReached("bytes of an identifier (--max-identifier-size)"));
            return self.reject(identifier, ctx);
        }
        if !self.has_room(2 * identifier.len() + SUBSCRIPTION_BYTES, ctx) {
            return self.reject(identifier, ctx);
        }
        match (ctx.route)(identifier) {
            Routed::Stream { name, whisper, presence } => {
                let at = self.record(identifier, &name, Answerer::Here { whisper, presence }, ctx);
                self.confirm_when_followed(at, Confirmation::Here, wanted, ctx);
            }
            Routed::Backend if ctx.rules.has_backend => {
                let call = AppCall {
                    kind: CommandKind::Subscribe,
                    data: String::new(),
                    istate: State::default(),
                    then: wanted,
                };
                self.ask_app(identifier.into(), call, ctx);
            }
            Routed::Rejected | Routed::Backend => self.reject(identifier, ctx),
        }
    }

    /// What the client asked for together with a subscription, which is confirmed now.
    pub(super) fn give_wanted(&mut self, at: usize, wanted: Wanted, ctx: &mut Context<'_>) {
        let Wanted { history, presence } = wanted;
        if let Some((id, info)) = presence {
            self.change_presence_at(at, PresenceChange::Join { id, info }, ctx);
        }
        if let Some(history) = history {
            self.history(at, history, ctx);
        }
    }

    fn reject(&mut self, identifier: &str, ctx: &mut Context<'_>) {
        self.say(ctx, |language, out| language.write_reject(out, identifier));
    }

    /// Notes down a confirmed subscription with its first stream, if that has a name, and tells where.
    pub(super) fn record(&mut self, identifier: &str, stream: &str, by: Answerer, ctx: &mut Context<'_>) -> usize {
        let subscription = Subscription::new((ctx.topic)(identifier, stream), by);
        subscription.as_ref().topics().for_each(|topic| ctx.emit(Effect::Attach(topic.clone())));
        self.subscriptions.push(subscription);
        self.subscriptions.len() - 1
    }

    fn unsubscribe(&mut self, identifier: &str, ctx: &mut Context<'_>) {
        let found = self.subscriptions.find(identifier);
        match found.and_then(|at| Some((at, self.subscriptions.get(at)?.by))) {
            None => ctx.fail(LogEvent::NotSubscribed("unsubscribe")),
            Some((at, Answerer::Here { .. })) => self.forget(at, ctx),
            Some((at, Answerer::App)) => self.ask_about(at, CommandKind::Unsubscribe, String::new(), ctx),
        }
    }

    fn perform(&mut self, identifier: &str, data: String, ctx: &mut Context<'_>) {
        match self.subscriptions.find(identifier) {
            Some(_) if !ctx.rules.has_backend => ctx.fail(LogEvent::NothingToPerformOn),
            Some(at) => self.ask_about(at, CommandKind::Message, data, ctx),
            None => ctx.fail(LogEvent::NotSubscribed("message")),
        }
    }

    /// Drops a subscription with its state and all its streams.
    pub(super) fn forget(&mut self, at: usize, ctx: &mut Context<'_>) {
        let subscription = self.subscriptions.remove(at);
        let subscription = subscription.as_ref();
        self.let_go(subscription.identifier());
        super::detach(subscription, ctx);
        Session::leave_presence(subscription, PresenceChange::Leave, ctx);
    }

    /// Asks the app to carry out a command on a subscription that stands.
    fn ask_about(&mut self, at: usize, kind: CommandKind, data: String, ctx: &mut Context<'_>) {
        let Some(subscription) = self.subscriptions.get(at) else { return };
        let call = AppCall { kind, data, istate: subscription.istate(), then: Wanted::default() };
        self.ask_app(subscription.shared_identifier(), call, ctx);
    }

    fn ask_app(&mut self, identifier: ChannelIdentifier, call: AppCall, ctx: &mut Context<'_>) {
        let AppCall { kind, data, istate, then } = call;
        let request = Request::Command {
            command: kind,
            identifier: identifier.clone(),
            data,
            env: self.env.clone(),
            cstate: self.cstate.clone(),
            istate,
        };
        self.ask(Asked::Command { kind, identifier, then }, Question::App(request), ctx);
    }

    pub(super) fn ask(&mut self, asked: Asked, question: Question, ctx: &mut Context<'_>) {
        self.set_doing(Some(Doing::Asking(asked)));
        ctx.emit(Effect::Ask(Box::new(question)));
    }

    /// Whispers go to the stream that the app (`$w`) or the stream's own rules name; without one they are
    /// ignored in silence, as the contract has it.
    fn whisper(&mut self, identifier: &str, data: &str, ctx: &mut Context<'_>) {
        let found = self.subscriptions.find(identifier);
        let Some(subscription) = found.and_then(|at| self.subscriptions.get(at)) else { return };
        let stream = match (subscription.state("$w"), subscription.by) {
            (Some(stream), _) => Some(stream),
            (None, Answerer::Here { whisper: true, .. }) => subscription.topics().next().map(Topic::stream),
            (None, _) => None,
        };
        let Some(stream) = stream else { return };
        let message = if data == "null" { "\"null\"" } else { data };
        ctx.emit(Effect::Whisper { stream: stream.into(), message: message.into() });
    }

    /// The client wants what it missed. Without a stream there is nothing it could have missed; else the broker knows.
    pub(super) fn history(&mut self, at: usize, since: HistoryRequest, ctx: &mut Context<'_>) {
        let Some(subscription) = self.subscriptions.get(at) else { return };
        let streams: Vec<Box<str>> = subscription.topics().map(|topic| topic.stream().into()).collect();
        if streams.is_empty() {
            let identifier = subscription.identifier();
            return self.say(ctx, |language, out| language.write_confirm_history(out, identifier));
        }
        let identifier = subscription.shared_identifier();
        if ctx.rules.broker {
            self.hold(identifier.clone());
        }
        let question = Question::Broker(BrokerQuestion::History { streams, since });
        self.ask(Asked::History { identifier }, question, ctx);
    }
}

/// A command for the app, without what the session knows anyway.
struct AppCall {
    kind: CommandKind,
    /// Only for [`CommandKind::Message`].
    data: String,
    istate: State,
    /// When the app says yes.
    then: Wanted,
}
