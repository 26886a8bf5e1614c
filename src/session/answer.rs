//! What was answered, and what follows from it (`contracts/action-cable.md` section 4, `contracts/rpc-grpc.md` sections
//! 3 and 4).

use crate::model::{
    Admission, AppReply, BrokerError, BrokerReply, CallError, ChannelIdentifier, CloseCause, CommandKind, CommandReply,
    ConnectReply, Reply, Status,
};

use super::effect::word;
use super::{Answerer, Asked, Confirmation, Context, Doing, Effect, LogEvent, Marks, Said, Session, Wanted};

impl Session {
    /// The answer to the question that [`Session::awaits_answer`] is about.
    pub fn answer(&mut self, reply: Reply, ctx: &mut Context<'_>) {
        let asked = match self.doing() {
            Some(Doing::Connecting) => return self.connect_answered(reply, ctx),
            Some(Doing::Resuming { identifiers }) => {
                let identifiers = identifiers.clone();
                return self.resume_answered(identifiers.as_deref(), reply, ctx);
            }
            Some(Doing::Asking(asked)) => asked.clone(),
            Some(Doing::Replaying(_) | Doing::Over) | None => return,
        };
        self.set_doing(None);
        match (asked, reply) {
            (Asked::Command { kind, identifier, then }, Reply::App(result)) => {
                self.command_answered(kind, &identifier, then, result, ctx);
            }
            (Asked::History { identifier }, Reply::Broker(Ok(BrokerReply::History(missed)))) => {
                self.replay(identifier, missed, ctx);
            }
            (Asked::History { identifier }, Reply::Broker(Err(error))) => {
                ctx.emit(Effect::Log(LogEvent::BrokerFailed("history", error)));
                self.say(ctx, |language, out| language.write_reject_history(out, &identifier));
                self.release(&identifier, ctx);
            }
            (Asked::Present { identifier }, Reply::Broker(Ok(BrokerReply::Present(message)))) => {
                self.say(ctx, |language, out| language.write_presence(out, &identifier, &message));
            }
            (Asked::Present { identifier }, Reply::Broker(Err(error))) => {
                ctx.emit(Effect::Log(LogEvent::BrokerFailed("presence", error)));
                self.say(ctx, |language, out| language.write_presence_error(out, &identifier));
            }
            (Asked::Followed { identifier, confirmation, then }, Reply::Followed) => {
                if let Some(at) = self.subscriptions.find(&identifier) {
                    self.confirm(at, confirmation, then, ctx);
                }
            }
            _ => ctx.fail(LogEvent::WrongAnswer),
        }
    }

    /// A client without a session to go on with is a new one.
    fn resume_answered(&mut self, identifiers: Option<&str>, reply: Reply, ctx: &mut Context<'_>) {
        match reply {
            Reply::Broker(Ok(BrokerReply::Resumed(Some(saved)))) => return self.resume(*saved, ctx),
            Reply::Broker(Ok(BrokerReply::Resumed(None)) | Err(BrokerError::NotKept)) => {}
            Reply::Broker(Err(error)) => ctx.emit(Effect::Log(LogEvent::BrokerFailed("resume", error))),
            _ => ctx.fail(LogEvent::WrongAnswer),
        }
        self.admit(identifiers, ctx);
    }

    fn connect_answered(&mut self, reply: Reply, ctx: &mut Context<'_>) {
        let log = match reply {
            Reply::App(Ok(AppReply::Connect(reply))) if reply.status == Status::Error => {
                LogEvent::AppError(word(None), reply.error_msg)
            }
            Reply::App(Ok(AppReply::Connect(reply))) => return self.connected(reply, ctx),
            Reply::App(Err(error)) => LogEvent::CallFailed(word(None), error),
            Reply::App(Ok(AppReply::Command(_))) | Reply::Broker(_) | Reply::Followed => LogEvent::WrongAnswer,
        };
        ctx.emit(Effect::Log(log));
        self.close(CloseCause::AuthError, ctx);
    }

    fn connected(&mut self, reply: ConnectReply, ctx: &mut Context<'_>) {
        let may_connect = reply.status == Status::Success;
        if may_connect {
            self.marks.set(Marks::DISCONNECTABLE, true);
            self.merge_cstate(reply.cstate, ctx);
            self.let_in(&reply.identifiers, Admission::App, ctx);
        }
        for mut text in reply.transmissions {
            // The app welcomes its client, and cannot know the token.
            if may_connect && let Some(token) = self.resume_token(ctx) {
                self.dialect.language().add_resume_token(&mut text, &token);
            }
            ctx.emit(Effect::Send(text.into_bytes()));
        }
        if !may_connect {
            ctx.emit(Effect::Count(super::SessionCounter::FailedAuth));
            self.close(CloseCause::Unauthorized, ctx);
        }
    }

    fn command_answered(
        &mut self,
        kind: CommandKind,
        identifier: &ChannelIdentifier,
        then: Wanted,
        result: Result<AppReply, CallError>,
        ctx: &mut Context<'_>,
    ) {
        let reply = match result {
            Ok(AppReply::Command(reply)) if reply.status == Status::Error => {
                return ctx.fail(LogEvent::AppError(word(Some(kind)), reply.error_msg));
            }
            Ok(AppReply::Command(reply)) => reply,
            Ok(AppReply::Connect(_)) => return ctx.fail(LogEvent::WrongAnswer),
            Err(error) => return ctx.fail(LogEvent::CallFailed(word(Some(kind)), error)),
        };
        match kind {
            CommandKind::Subscribe => self.subscribed(identifier, then, reply, ctx),
            CommandKind::Unsubscribe => self.unsubscribed(identifier, reply, ctx),
            CommandKind::Message => match self.subscriptions.find(identifier) {
                Some(at) => {
                    let said = self.apply(at, reply, ctx);
                    self.pass_on(at, said, ctx);
                }
                None => ctx.fail(LogEvent::NotSubscribed("message")),
            },
        }
    }

    fn subscribed(&mut self, identifier: &str, then: Wanted, mut reply: CommandReply, ctx: &mut Context<'_>) {
        // The app has heard of this session, whatever it thinks of the subscription.
        self.marks.set(Marks::DISCONNECTABLE, true);
        if reply.status == Status::Success {
            let first = reply.streams.first().map_or("", String::as_str);
            let at = self.record(identifier, first, Answerer::App, ctx);
            let said = self.apply(at, reply, ctx);
            return self.confirm_when_followed(at, Confirmation::App(said), then, ctx);
        }
        // A rejection lists streams when the app rejects after it began to stream: those are not for this
        // client. State of a channel that is not there goes nowhere either.
        self.merge_cstate(std::mem::take(&mut reply.cstate), ctx);
        self.finish(reply.transmissions, reply.disconnect, ctx);
    }

    fn unsubscribed(&mut self, identifier: &str, mut reply: CommandReply, ctx: &mut Context<'_>) {
        if let Some(at) = self.subscriptions.find(identifier) {
            self.forget(at, ctx);
        }
        self.merge_cstate(std::mem::take(&mut reply.cstate), ctx);
        self.finish(reply.transmissions, reply.disconnect, ctx);
    }

    /// Carries out an answer for a subscription that stands; what is to be said to its client is given back. All of it
    /// happens within one turn of the shard, so no broadcast can come between a stream's attachment and what follows.
    fn apply(&mut self, at: usize, mut reply: CommandReply, ctx: &mut Context<'_>) -> Said {
        let presence_stream = self.presence_stream(at, ctx);
        if reply.stop_streams {
            self.unfollow(at, |_| true, ctx);
        } else if !reply.stopped_streams.is_empty() {
            self.unfollow(at, |stream| reply.stopped_streams.iter().any(|stopped| stopped == stream), ctx);
        }
        for stream in std::mem::take(&mut reply.streams) {
            self.follow(at, &stream, ctx);
        }
        self.merge_istate(at, std::mem::take(&mut reply.istate), ctx);
        self.merge_cstate(std::mem::take(&mut reply.cstate), ctx);
        self.leave_old_presence(at, presence_stream, ctx);
        Said { transmissions: reply.transmissions, disconnect: reply.disconnect, presence: reply.presence }
    }

    pub(super) fn finish(&mut self, transmissions: Vec<String>, disconnect: bool, ctx: &mut Context<'_>) {
        transmissions.into_iter().for_each(|text| ctx.emit(Effect::Send(text.into_bytes())));
        if disconnect {
            self.admission = Admission::No;
            ctx.emit(Effect::Close(CloseCause::CommandDisconnect));
        }
    }
}
