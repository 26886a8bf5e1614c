//! The logical client after the handshake: who it is, what it is subscribed to, what it waits for.
//!
//! Pure: a session takes an input (a message, an answer, a moment in time) and says what to do as [`Effect`]s; it has
//! no socket, no clock, no task and no lock, only plain data that can be written out and read back ([`Session`] is
//! `Serialize`). What it says is written in its [`Dialect`]; how that travels is not known here. How to drive it:
//!
//! * [`Session::open`] when the upgrade is answered; carry out its effects.
//! * While [`Session::is_waiting`] give it no message: one command at a time, in arrival order. [`Session::answer`]
//!   ends the wait, whoever was asked. Everything else may come at any time.
//! * [`Session::ping_due`] when the moment of [`Session::ping_at`] has come, [`Session::pong_overdue`] at that of
//!   [`Session::pong_by`].
//! * [`Session::end`] exactly once, when the connection is over for whatever reason.

mod activity;
mod answer;
mod command;
mod confirm;
mod effect;
mod heartbeat;
mod hold;
mod presence;
mod replay;
mod resume;
mod subscription;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{
    Admission, BrokerQuestion, CloseCause, Disconnect, DisconnectMode, Ending, Env, Now, PingPrecision, PresenceChange,
    Question, Request, ResumeTicket, Routed, Sid, State, StateChanges, Tick, TokenOutcome, Topic,
};
use crate::proto::{Dialect, Language};

use activity::{Activity, Asked, Confirmation, Doing, Said, Wanted};
use subscription::{Answerer, Subscription, SubscriptionRef, Subscriptions};

pub use effect::{Effect, LogEvent, SessionCounter};

/// Subscriptions of one session. Phoenix and Action Cable have no limit; the busiest real clients hold dozens.
pub const SUBSCRIPTIONS_MAX: usize = 1024;

/// Streams of one subscription, given by the app.
pub const STREAMS_MAX: usize = 1024;

/// What sessions are told by the configuration.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Milliseconds between pings; 0: none.
    pub ping_interval_ms: u64,
    /// Precision of ping timestamps.
    pub ping_precision: PingPrecision,
    /// Milliseconds from a ping to the next sign of life; 0: not enforced.
    pub pong_timeout_ms: u64,
    /// How long a client may say nothing of its own, in milliseconds; zero: for ever, and the shard is not told when it does.
    pub idle_timeout_ms: u64,
    /// Send the carrier's own ping with each ping, so that the pong time-out can hold for every client.
    pub native_pings: bool,
    /// Bytes of a channel identifier (`--max-identifier-size`).
    pub identifier_bytes_max: usize,
    /// Bytes of all that is kept for one session: request, identifiers, names of streams, states (`--max-session-size`).
    pub session_bytes_max: usize,
    /// Whether there is an app server to ask.
    pub has_backend: bool,
    /// Let clients in that no token identified, without asking the app.
    pub no_auth: bool,
    /// When the app is told that a session is over.
    pub disconnect_mode: DisconnectMode,
    /// Whether there is a broker to ask for history and presence.
    pub broker: bool,
    /// Whether there may be other nodes, so that a stream has to be followed there too.
    pub cluster: bool,
    /// Bytes of messages that a client missed and is sent at once; the rest follows when they are out.
    pub replay_bytes: usize,
    /// Whether the broker keeps sessions for clients that come back.
    pub sessions: bool,
}

/// What a session is told and may use while it handles one input.
pub struct Context<'a> {
    /// The configuration.
    pub rules: &'a Rules,
    /// The time.
    pub now: Now,
    /// Where in the interval this client is pinged, as a share of it in 2^-32: those of one phase are pinged together.
    pub heartbeat_phase: u32,
    /// The topic of an identifier and a stream, shared with those who follow it already.
    pub topic: &'a dyn Fn(&str, &str) -> Topic,
    /// What a client shows to come back to its session; none where it cannot.
    pub resume_token: &'a dyn Fn(Sid) -> Option<String>,
    /// Who answers for a channel: this server or the app.
    pub route: &'a dyn Fn(&str) -> Routed,
    /// Where effects go, in order.
    pub effects: &'a mut Vec<Effect>,
}

impl Context<'_> {
    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// The client has said something of its own.
    fn spoken(&mut self) {
        if self.rules.idle_timeout_ms > 0 {
            self.emit(Effect::Spoken);
        }
    }

    /// A client's command that could not be carried out: counted, logged, and nothing said to the client.
    fn fail(&mut self, event: LogEvent) {
        self.emit(Effect::Count(SessionCounter::FailedClientMessage));
        self.emit(Effect::Log(event));
    }
}

/// What is known of a client when its upgrade is answered.
pub struct Opening<'a> {
    /// The new session's id.
    pub sid: Sid,
    /// URL and headers for the app.
    pub env: Env,
    /// What both speak.
    pub dialect: Dialect,
    /// What the token said.
    pub token: TokenOutcome,
    /// Query parameter `pi`.
    pub ping_interval: Option<&'a str>,
    /// Query parameter `ptp`.
    pub ping_precision: Option<&'a str>,
    /// The session that the client wants to go on with.
    pub resume: Option<Sid>,
}

/// Who is asked the question that a session has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The app.
    App,
    /// The broker.
    Broker,
    /// The cluster.
    Cluster,
}

/// One client. What it is at is drawn above [`Activity`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    sid: Sid,
    env: Env,
    cstate: State,
    subscriptions: Subscriptions,
    /// `None`: idle, with nothing to catch up. Parked sessions are, so that costs one null pointer.
    activity: Option<Box<Activity>>,
    /// When the next ping is due, or never.
    ping_at: Tick,
    /// When the client is given up unless it says something before, or never.
    pong_by: Tick,
    ping_interval_ms: u32,
    ping_precision: PingPrecision,
    dialect: Dialect,
    /// By whom the client was let in; nobody, too, when the app has sent it away.
    admission: Admission,
    /// What else is true of it.
    marks: Marks,
}

/// Small facts of a session, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Marks(u8);

impl Marks {
    /// The app has heard of this session and is told when it ends.
    const DISCONNECTABLE: Marks = Marks(1);
    /// Bytes of the client have come since the last ping.
    const HEARD: Marks = Marks(1 << 1);

    fn has(self, mark: Marks) -> bool {
        self.0 & mark.0 != 0
    }

    fn set(&mut self, mark: Marks, on: bool) {
        self.0 = if on { self.0 | mark.0 } else { self.0 & !mark.0 };
    }
}

// sid 16, env 8, cstate 8, subscriptions 16, activity 8, two deadlines 8, interval 4, four bytes. In glibc's
// steps of 16 bytes with 8 of its own this takes 80; the next step is 96.
const _: () = assert!(size_of::<Session>() == 72);

impl Session {
    /// Begins a session: welcomes the client, refuses it, or asks the app.
    pub fn open(opening: Opening<'_>, ctx: &mut Context<'_>) -> Session {
        let Opening { sid, env, dialect, token, ping_interval, ping_precision, resume } = opening;
        let interval = heartbeat::interval(ping_interval, dialect, ctx.rules);
        let mut session = Session {
            sid,
            env,
            cstate: State::default(),
            subscriptions: Subscriptions::default(),
            activity: None,
            ping_at: heartbeat::first_ping(ctx.now, interval, ctx.heartbeat_phase),
            pong_by: heartbeat::NEVER,
            ping_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
            ping_precision: ping_precision.and_then(PingPrecision::parse).unwrap_or(ctx.rules.ping_precision),
            dialect,
            admission: Admission::No,
            marks: Marks::default(),
        };
        session.set_doing(Some(Doing::Connecting));
        let identifiers: Option<Box<str>> = match token {
            TokenOutcome::Identified { identifiers, .. } => Some(identifiers.into()),
            TokenOutcome::NoToken => None,
            refused => {
                match refused {
                    TokenOutcome::Expired => session.refuse(CloseCause::TokenExpired, ctx),
                    TokenOutcome::Error => session.close(CloseCause::AuthError, ctx),
                    _ => session.refuse(CloseCause::Unauthorized, ctx),
                }
                return session;
            }
        };
        match resume.filter(|_| ctx.rules.sessions && dialect.language().resumes()) {
            Some(sid) => {
                session.set_doing(Some(Doing::Resuming { identifiers: identifiers.clone() }));
                let question = BrokerQuestion::Resume(ResumeTicket { sid, identifiers });
                ctx.emit(Effect::Ask(Box::new(Question::Broker(question))));
            }
            None => session.admit(identifiers.as_deref(), ctx),
        }
        session
    }

    /// Lets a new client in, refuses it, or asks the app: it is who its token says, if it showed one.
    fn admit(&mut self, identifiers: Option<&str>, ctx: &mut Context<'_>) {
        match identifiers {
            Some(identifiers) => self.welcome(identifiers, Admission::Token, ctx),
            None if ctx.rules.no_auth => {
                self.welcome(&format!("{{\"sid\":\"{}\"}}", self.sid), Admission::Open, ctx);
            }
            None if !ctx.rules.has_backend => self.refuse(CloseCause::Unauthorized, ctx),
            None => {
                self.set_doing(Some(Doing::Connecting));
                let connect = Question::App(Request::Connect { env: self.env.clone() });
                ctx.emit(Effect::Ask(Box::new(connect)));
            }
        }
    }

    fn doing(&self) -> Option<&Doing> {
        self.activity.as_ref()?.doing.as_ref()
    }

    /// What it was at; it is idle from here on.
    fn take_doing(&mut self) -> Option<Doing> {
        let doing = self.activity.as_mut()?.doing.take();
        self.settle();
        doing
    }

    fn set_doing(&mut self, doing: Option<Doing>) {
        if doing.is_some() || self.activity.is_some() {
            self.activity.get_or_insert_default().doing = doing;
            self.settle();
        }
    }

    /// The session's id.
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// The connection identifiers; empty until the client is let in.
    pub fn identifiers(&self) -> &str {
        self.env.identifiers()
    }

    /// Time between pings; zero: none.
    pub fn ping_interval(&self) -> Duration {
        Duration::from_millis(self.ping_interval_ms.into())
    }

    /// What is spoken.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// True while messages of the client have to wait: a question is open, or what it missed is on its way to it.
    pub fn is_waiting(&self) -> bool {
        self.awaits_answer() || self.is_replaying()
    }

    /// True while a question is open.
    pub fn awaits_answer(&self) -> bool {
        self.asks().is_some()
    }

    /// True while the client is let in.
    pub fn is_in(&self) -> bool {
        self.admission != Admission::No
    }

    /// True while the app is asked, which will believe that what it answers was carried out: so the session waits for that,
    /// even without its client. What the broker says is for the client alone.
    pub fn is_app_asked(&self) -> bool {
        self.asks() == Some(Asks::App)
    }

    /// Who is asked, while a question is open.
    pub fn asks(&self) -> Option<Asks> {
        match self.doing()? {
            Doing::Connecting | Doing::Asking(Asked::Command { .. }) => Some(Asks::App),
            Doing::Resuming { .. } | Doing::Asking(Asked::History { .. } | Asked::Present { .. }) => Some(Asks::Broker),
            Doing::Asking(Asked::Followed { .. }) => Some(Asks::Cluster),
            Doing::Replaying(_) | Doing::Over => None,
        }
    }

    /// The question to the cluster that is open, for one that has not been asked it: it knows of this process only.
    pub fn cluster_question(&self) -> Option<Question> {
        let Some(Doing::Asking(Asked::Followed { identifier, .. })) = self.doing() else { return None };
        let subscription = self.subscriptions.get(self.subscriptions.find(identifier)?)?;
        Some(Question::Followed(subscription.topics().map(Topic::stream).map(Into::into).collect()))
    }

    /// True once nothing more will happen but [`Session::end`].
    fn is_over(&self) -> bool {
        matches!(self.doing(), Some(Doing::Over))
    }

    /// The app asked to disconnect these identifiers.
    pub fn remote_disconnect(&mut self, reconnect: bool, ctx: &mut Context<'_>) {
        if let Ending::Close { disconnect: Some(Disconnect { reason, .. }), .. } = CloseCause::Remote.ending() {
            self.say(ctx, |language, out| language.write_disconnect(out, Disconnect { reason, reconnect }));
        }
        self.admission = Admission::No;
        ctx.emit(Effect::Close(CloseCause::Remote));
    }

    /// This server ends the connection for a reason that a client is told: it is going away, or the client does not
    /// read what it is sent.
    pub fn disconnect(&mut self, cause: CloseCause, ctx: &mut Context<'_>) {
        if let Ending::Close { disconnect: Some(disconnect), .. } = cause.ending() {
            self.say(ctx, |language, out| language.write_disconnect(out, disconnect));
        }
        ctx.emit(Effect::Close(cause));
    }

    /// The connection is over. Detaches every stream, drops a question that is open, and tells the app if it is to be
    /// told. A client that can come back to it finds it with the broker.
    pub fn end(&mut self, cause: CloseCause, ctx: &mut Context<'_>) {
        if self.awaits_answer() {
            ctx.emit(Effect::Cancel);
        }
        let was_let_in = !matches!(self.doing(), Some(Doing::Connecting | Doing::Resuming { .. } | Doing::Over));
        let due = match ctx.rules.disconnect_mode {
            DisconnectMode::Auto => self.marks.has(Marks::DISCONNECTABLE),
            DisconnectMode::Always => self.marks.has(Marks::DISCONNECTABLE) || was_let_in,
            DisconnectMode::Never => false,
        };
        let subscriptions = std::mem::take(&mut self.subscriptions);
        if due && ctx.rules.has_backend {
            ctx.emit(Effect::Tell(Box::new(Request::Disconnect {
                subscriptions: subscriptions.iter().map(|s| (s.shared_identifier(), s.istate())).collect(),
                env: self.env.clone(),
                cstate: self.cstate.clone(),
            })));
        }
        if was_let_in && self.is_resumable(ctx.rules) {
            ctx.emit(Effect::Depart(self.saved(cause, &subscriptions)));
        }
        self.marks.set(Marks::DISCONNECTABLE, false);
        self.activity = None;
        self.set_doing(Some(Doing::Over));
        for subscription in subscriptions.iter() {
            detach(subscription, ctx);
            Session::leave_presence(subscription, PresenceChange::Gone, ctx);
        }
    }

    /// What it follows, to attach it again after the session was read back.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.subscriptions.iter().flat_map(SubscriptionRef::topics)
    }

    /// Replaces every topic by the shared one with the same texts, as after reading a session back.
    pub fn share_topics(&mut self, shared: impl Fn(&str, &str) -> Topic) {
        for at in 0..self.subscriptions.len() {
            self.subscriptions.edit(at, |subscription| {
                subscription.share(|topic| shared(topic.identifier(), topic.stream()));
            });
        }
    }

    /// Says something to the client.
    fn say(&self, ctx: &mut Context<'_>, write: impl FnOnce(&dyn Language, &mut Vec<u8>)) {
        let mut text = Vec::new();
        write(self.dialect.language(), &mut text);
        ctx.emit(Effect::Send(text));
    }

    /// Lets the client in on our own word, without the app.
    fn welcome(&mut self, identifiers: &str, admission: Admission, ctx: &mut Context<'_>) {
        self.let_in(identifiers, admission, ctx);
        let token = self.resume_token(ctx);
        self.say(ctx, |language, out| language.write_welcome(out, self.sid, token.as_deref()));
    }

    fn let_in(&mut self, identifiers: &str, admission: Admission, ctx: &mut Context<'_>) {
        self.env = self.env.with_identifiers(identifiers);
        self.admission = admission;
        self.set_doing(None);
        ctx.emit(Effect::LetIn);
        ctx.spoken();
    }

    /// Says that the client may not connect, and closes.
    fn refuse(&mut self, cause: CloseCause, ctx: &mut Context<'_>) {
        ctx.emit(Effect::Count(SessionCounter::FailedAuth));
        self.disconnect(cause, ctx);
        self.set_doing(Some(Doing::Over));
    }

    /// Closes without a disconnect message: the app has said it, or there is nothing to say.
    fn close(&mut self, cause: CloseCause, ctx: &mut Context<'_>) {
        self.set_doing(Some(Doing::Over));
        ctx.emit(Effect::Close(cause));
    }

    /// Follows one more stream under a subscription. A stream twice under one identifier counts once, and to the
    /// stream without a name nobody can publish.
    fn follow(&mut self, at: usize, stream: &str, ctx: &mut Context<'_>) {
        let Some(subscription) = self.subscriptions.get(at) else { return };
        if stream.is_empty() || subscription.topics().any(|known| known.stream() == stream) {
            return;
        }
        if subscription.topics().count() == STREAMS_MAX {
            return ctx.fail(LogEvent::LimitReached("streams per subscription"));
        }
        let topic = (ctx.topic)(subscription.identifier(), stream);
        if !self.has_room(topic.bytes(), ctx) {
            return;
        }
        ctx.emit(Effect::Attach(topic.clone()));
        self.subscriptions.edit(at, |subscription| subscription.push(topic));
    }

    /// Whether this many bytes more may be kept for this session; if not, it is said in the log.
    fn has_room(&self, more: usize, ctx: &mut Context<'_>) -> bool {
        let fits = self.bytes().saturating_add(more) <= ctx.rules.session_bytes_max;
        if !fits {
            ctx.fail(LogEvent::LimitReached("bytes per session (--max-session-size)"));
        }
        fits
    }

    /// What is kept for it, in bytes of memory.
    fn bytes(&self) -> usize {
        size_of::<Session>() + self.env.packed_len() + self.cstate.bytes() + self.subscriptions.bytes()
    }

    /// Keeps what the app wants to have kept for the connection, if there is room.
    fn merge_cstate(&mut self, changes: StateChanges, ctx: &mut Context<'_>) {
        if !changes.is_empty() && self.has_room(changes_bytes(&changes), ctx) {
            self.cstate.merge(changes);
        }
    }

    /// Keeps what the app wants to have kept for a channel, if there is room.
    fn merge_istate(&mut self, at: usize, changes: StateChanges, ctx: &mut Context<'_>) {
        if !changes.is_empty() && self.has_room(changes_bytes(&changes), ctx) {
            self.subscriptions.edit(at, |subscription| subscription.merge(changes));
        }
    }

    /// Stops following the streams that `stop` names.
    fn unfollow(&mut self, at: usize, stop: impl Fn(&str) -> bool, ctx: &mut Context<'_>) {
        let stopped = self.subscriptions.edit(at, |subscription| subscription.take_out(stop));
        stopped.into_iter().for_each(|topic| ctx.emit(Effect::Detach(topic)));
    }
}

fn changes_bytes(changes: &StateChanges) -> usize {
    changes.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// Stops every stream of a subscription that is over.
fn detach(subscription: SubscriptionRef<'_>, ctx: &mut Context<'_>) {
    subscription.topics().for_each(|topic| ctx.emit(Effect::Detach(topic.clone())));
}
