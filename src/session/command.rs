//! What a client says: commands, one at a time (`contracts/action-cable.md` sections 3 and 4).

use crate::model::{CommandKind, Request, Routed, Topic};
use crate::proto::cable::{self, Command};

use super::{Answerer, Context, Effect, Note, Pending, Phase, SUBSCRIPTIONS_MAX, Session, Subscription, Tally};

impl Session {
    /// A message of the client. Must not be called while [`Session::is_waiting`].
    pub fn message(&mut self, payload: &[u8], ctx: &mut Context<'_>) {
        debug_assert!(!self.is_waiting());
        if self.phase != Phase::Open {
            return;
        }
        self.alive();
        let command = match cable::parse(payload) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(bad) => return ctx.fail(Note::BadCommand(bad.to_string())),
        };
        ctx.emit(Effect::Count(Tally::ClientMessage));
        match command {
            Command::Subscribe { identifier, history, .. } => self.subscribe(&identifier, history.is_some(), ctx),
            Command::Unsubscribe { identifier } => self.unsubscribe(&identifier, ctx),
            Command::Message { identifier, data } => match self.find(&identifier) {
                Some(_) if !ctx.rules.has_backend => ctx.fail(Note::NothingToPerformOn),
                Some(at) => self.call_app(CommandKind::Message, &identifier, data.into_owned(), Some(at), false, ctx),
                None => ctx.fail(Note::NotSubscribed("message")),
            },
            Command::Ping => ctx.say(cable::write::pong),
            Command::Pong => {}
            Command::Whisper { identifier, data } => self.whisper(&identifier, data, ctx),
            Command::History { identifier, .. } => match self.find(&identifier) {
                Some(_) => self.history(&identifier, ctx),
                None => ctx.fail(Note::NotSubscribed("history")),
            },
            Command::Presence { identifier, .. } => match self.find(&identifier) {
                Some(_) => ctx.say(|out| cable::write::presence_error(out, &identifier)),
                None => ctx.fail(Note::NotSubscribed("presence")),
            },
            Command::Join { .. } | Command::Leave { .. } => ctx.fail(Note::NoBroker("presence")),
        }
    }

    fn subscribe(&mut self, identifier: &str, history: bool, ctx: &mut Context<'_>) {
        if self.find(identifier).is_some() {
            return ctx.fail(Note::AlreadySubscribed);
        }
        if self.subscriptions.len() == SUBSCRIPTIONS_MAX {
            ctx.fail(Note::LimitReached("subscriptions per session"));
            return ctx.say(|out| cable::write::reject_subscription(out, identifier));
        }
        match (ctx.route)(identifier) {
            Routed::Stream { name, whisper, .. } => {
                self.record(identifier, &name, Answerer::Here { whisper }, ctx);
                ctx.say(|out| cable::write::confirm_subscription(out, identifier));
                if history {
                    self.history(identifier, ctx);
                }
            }
            Routed::Rejected => ctx.say(|out| cable::write::reject_subscription(out, identifier)),
            Routed::Backend if !ctx.rules.has_backend => {
                ctx.say(|out| cable::write::reject_subscription(out, identifier))
            }
            Routed::Backend => self.call_app(CommandKind::Subscribe, identifier, String::new(), None, history, ctx),
        }
    }

    /// Notes down a confirmed subscription with its first stream, if that has a name, and tells where.
    pub(super) fn record(&mut self, identifier: &str, stream: &str, by: Answerer, ctx: &mut Context<'_>) -> usize {
        let subscription = Subscription::new((ctx.topic)(identifier, stream), by);
        subscription.topics().for_each(|topic| ctx.emit(Effect::Attach(topic.clone())));
        self.subscriptions.push(subscription);
        self.subscriptions.len() - 1
    }

    fn unsubscribe(&mut self, identifier: &str, ctx: &mut Context<'_>) {
        match self.find(identifier).map(|at| (at, self.subscriptions[at].by)) {
            None => ctx.fail(Note::NotSubscribed("unsubscribe")),
            Some((at, Answerer::Here { .. })) => self.forget(at, ctx),
            Some((at, Answerer::App)) => {
                self.call_app(CommandKind::Unsubscribe, identifier, String::new(), Some(at), false, ctx);
            }
        }
    }

    /// Drops a subscription with its state and all its streams.
    pub(super) fn forget(&mut self, at: usize, ctx: &mut Context<'_>) {
        let subscription = self.subscriptions.remove(at);
        super::detach(&subscription, ctx);
        self.subscriptions.shrink_to_fit();
    }

    fn call_app(
        &mut self,
        kind: CommandKind,
        identifier: &str,
        data: String,
        at: Option<usize>,
        history: bool,
        ctx: &mut Context<'_>,
    ) {
        self.call = Some(Box::new(Pending::Command { kind, identifier: identifier.into(), history }));
        ctx.emit(Effect::Call(Box::new(Request::Command {
            command: kind,
            identifier: identifier.into(),
            data,
            env: self.env.clone(),
            cstate: self.cstate.clone(),
            istate: at.map(|at| self.subscriptions[at].istate()).unwrap_or_default(),
        })));
    }

    /// Whispers go to the stream that the app (`$w`) or the stream's own rules name; without one they are
    /// ignored in silence, as the contract has it.
    fn whisper(&mut self, identifier: &str, data: &str, ctx: &mut Context<'_>) {
        let Some(at) = self.find(identifier) else { return };
        let subscription = &self.subscriptions[at];
        let stream = match (subscription.state("$w"), subscription.by) {
            (Some(stream), _) => Some(stream),
            (None, Answerer::Here { whisper: true }) => subscription.topics().next().map(Topic::stream),
            (None, _) => None,
        };
        let Some(stream) = stream else { return };
        let message = if data == "null" { "\"null\"" } else { data };
        ctx.emit(Effect::Whisper { stream: stream.into(), message: message.into() });
    }

    /// Without a broker there is no history: a request for it is refused, unless there is no stream it could
    /// have been about.
    pub(super) fn history(&mut self, identifier: &str, ctx: &mut Context<'_>) {
        let Some(at) = self.find(identifier) else { return };
        let nothing_to_miss = self.subscriptions[at].topics().next().is_none();
        let answer = if nothing_to_miss { cable::write::confirm_history } else { cable::write::reject_history };
        ctx.say(|out| answer(out, identifier));
    }
}
