//! What the app answered, and what follows from it (`contracts/action-cable.md` section 4,
//! `contracts/rpc-grpc.md` sections 3 and 4).

use crate::model::{CallError, CloseCause, CommandKind, CommandReply, ConnectReply, Reply, Status};

use super::effect::word;
use super::{Answerer, Context, Effect, Note, Pending, Session};

impl Session {
    /// The answer to the call that [`Session::is_waiting`] is about.
    pub fn answer(&mut self, result: Result<Reply, CallError>, ctx: &mut Context<'_>) {
        let Some(pending) = self.call.take() else { return };
        match (*pending, result) {
            (Pending::Connect, Ok(Reply::Connect(reply))) => self.connected(reply, ctx),
            (Pending::Connect, Ok(Reply::Command(_))) => {
                ctx.emit(Effect::Note(Note::WrongAnswer));
                self.fail_auth(ctx);
            }
            (Pending::Connect, Err(error)) => {
                ctx.emit(Effect::Note(Note::CallFailed(word(None), error)));
                self.fail_auth(ctx);
            }
            (Pending::Command { kind, .. }, Err(error)) => ctx.fail(Note::CallFailed(word(Some(kind)), error)),
            (Pending::Command { .. }, Ok(Reply::Connect(_))) => ctx.fail(Note::WrongAnswer),
            (Pending::Command { kind, .. }, Ok(Reply::Command(reply))) if reply.status == Status::Error => {
                ctx.fail(Note::AppError(word(Some(kind)), reply.error_msg));
            }
            (Pending::Command { kind, identifier, history }, Ok(Reply::Command(reply))) => match kind {
                CommandKind::Subscribe => self.subscribed(&identifier, history, reply, ctx),
                CommandKind::Unsubscribe => self.unsubscribed(&identifier, reply, ctx),
                CommandKind::Message => match self.find(&identifier) {
                    Some(at) => self.apply(at, reply, ctx),
                    None => ctx.fail(Note::NotSubscribed("message")),
                },
            },
        }
    }

    fn connected(&mut self, reply: ConnectReply, ctx: &mut Context<'_>) {
        match reply.status {
            Status::Success => {
                self.disconnectable = true;
                self.cstate.merge(reply.cstate);
                self.let_in(&reply.identifiers, ctx);
                reply.transmissions.into_iter().for_each(|text| ctx.emit(Effect::Send(text.into_bytes())));
            }
            Status::Failure => {
                reply.transmissions.into_iter().for_each(|text| ctx.emit(Effect::Send(text.into_bytes())));
                self.refused(ctx);
            }
            Status::Error => {
                ctx.emit(Effect::Note(Note::AppError(word(None), reply.error_msg)));
                self.fail_auth(ctx);
            }
        }
    }

    fn subscribed(&mut self, identifier: &str, history: bool, mut reply: CommandReply, ctx: &mut Context<'_>) {
        // The app has heard of this session, whatever it thinks of the subscription.
        self.disconnectable = true;
        if reply.status == Status::Success {
            let first = reply.streams.first().map_or("", String::as_str);
            let at = self.record(identifier, first, Answerer::App, ctx);
            self.apply(at, reply, ctx);
            if history {
                self.history(identifier, ctx);
            }
            return;
        }
        // A rejection lists streams when the app rejects after it began to stream: those are not for this
        // client. State of a channel that is not there goes nowhere either.
        self.cstate.merge(std::mem::take(&mut reply.cstate));
        self.finish(reply, ctx);
    }

    fn unsubscribed(&mut self, identifier: &str, mut reply: CommandReply, ctx: &mut Context<'_>) {
        if let Some(at) = self.find(identifier) {
            self.forget(at, ctx);
        }
        self.cstate.merge(std::mem::take(&mut reply.cstate));
        self.finish(reply, ctx);
    }

    /// Carries out an answer for a subscription that stands. All of it happens within one turn of the shard, so
    /// no broadcast can come between a stream's attachment and the confirmation that follows.
    fn apply(&mut self, at: usize, mut reply: CommandReply, ctx: &mut Context<'_>) {
        if reply.stop_streams {
            self.unfollow(at, |_| true, ctx);
        } else if !reply.stopped_streams.is_empty() {
            self.unfollow(at, |stream| reply.stopped_streams.iter().any(|stopped| stopped == stream), ctx);
        }
        for stream in std::mem::take(&mut reply.streams) {
            self.follow(at, &stream, ctx);
        }
        self.subscriptions[at].merge(std::mem::take(&mut reply.istate));
        self.cstate.merge(std::mem::take(&mut reply.cstate));
        if reply.presence.is_some() {
            ctx.emit(Effect::Note(Note::NoBroker("presence")));
        }
        self.finish(reply, ctx);
    }

    fn finish(&mut self, reply: CommandReply, ctx: &mut Context<'_>) {
        reply.transmissions.into_iter().for_each(|text| ctx.emit(Effect::Send(text.into_bytes())));
        if reply.disconnect {
            let cause = CloseCause::CommandDisconnect;
            ctx.emit(Effect::Close { code: 1000, reason: "Closed by the app", cause });
        }
    }
}
