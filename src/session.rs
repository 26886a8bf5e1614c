//! The logical client after the handshake: who it is, what it is subscribed to, what it waits for.
//!
//! Pure: a session takes an input (a message, an answer of the app, a moment in time) and says what to do as
//! [`Effect`]s; it has no socket, no clock, no task and no lock, only plain data that can be written out and
//! read back ([`Session`] is `Serialize`). How to drive it:
//!
//! * [`Session::open`] when the upgrade is answered; carry out its effects.
//! * While [`Session::is_waiting`] give it no message: one command at a time, in arrival order. [`Session::answer`]
//!   ends the wait. Everything else may come at any time.
//! * [`Session::due`] when the moment of [`Session::deadline`] has come.
//! * [`Session::end`] exactly once, when the connection is over for whatever reason.

mod command;
mod effect;
mod reply;
mod subscription;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::model::{
    CloseCause, CommandKind, DisconnectMode, DisconnectReason, Env, Now, PingPrecision, Request, Routed, Sid, State,
    Tick, TokenOutcome, Topic, tick, tick_after,
};
use crate::proto::cable;
use crate::proto::handshake::Subprotocol;

use subscription::{Answerer, Subscription};

pub use effect::{Effect, Note, Tally};

/// Subscriptions of one session. Phoenix and Action Cable have no limit; the busiest real clients hold dozens.
pub const SUBSCRIPTIONS_MAX: usize = 1024;

/// Streams of one subscription, given by the app.
pub const STREAMS_MAX: usize = 1024;

/// Bounds of a ping interval asked for by a client (`pi`), in milliseconds: more often would let a client choose
/// how much work it makes, less often is as good as never.
const PING_INTERVAL_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;

/// What sessions are told by the configuration.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Milliseconds between pings; 0: none.
    pub ping_interval_ms: u64,
    /// Precision of ping timestamps.
    pub ping_precision: PingPrecision,
    /// Milliseconds from a ping to the next sign of life; 0: not enforced.
    pub pong_timeout_ms: u64,
    /// Send a WebSocket ping with each ping, so that the pong time-out can hold for every client.
    pub native_pings: bool,
    /// Whether there is an app server to ask.
    pub has_backend: bool,
    /// Let clients in that no token identified, without asking the app.
    pub no_auth: bool,
    /// When the app is told that a session is over.
    pub disconnect_mode: DisconnectMode,
}

/// What a session is told and may use while it handles one input.
pub struct Context<'a> {
    /// The configuration.
    pub rules: &'a Rules,
    /// The time.
    pub now: Now,
    /// The topic of an identifier and a stream, shared with those who follow it already.
    pub topic: &'a dyn Fn(&str, &str) -> Topic,
    /// Who answers for a channel: this server or the app.
    pub route: &'a dyn Fn(&str) -> Routed,
    /// Where effects go, in order.
    pub effects: &'a mut Vec<Effect>,
}

impl Context<'_> {
    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::new();
        write(&mut text);
        self.emit(Effect::Send(text));
    }

    /// A client's command that could not be carried out: counted, noted, and nothing said to the client.
    fn fail(&mut self, note: Note) {
        self.emit(Effect::Count(Tally::FailedClientMessage));
        self.emit(Effect::Note(note));
    }
}

/// What is known of a client when its upgrade is answered.
pub struct Opening<'a> {
    /// The new session's id.
    pub sid: Sid,
    /// URL and headers for the app.
    pub env: Env,
    /// The chosen subprotocol.
    pub protocol: Option<Subprotocol>,
    /// What the token said.
    pub verdict: TokenOutcome,
    /// Query parameter `pi`.
    pub ping_interval: Option<&'a str>,
    /// Query parameter `ptp`.
    pub ping_precision: Option<&'a str>,
    /// A random number, to spread first pings.
    pub random: u64,
}

/// One client.
///
/// ```text
///            Connect needed            answer: yes
/// open ----------------> connecting ----------------> idle <----> calling
///   \------ token or noauth says yes ------------------^            (one command at the app)
///    any state --- refused, disconnect, end ---> over
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    sid: Sid,
    env: Env,
    cstate: State,
    subscriptions: SmallVec<[Subscription; 1]>,
    /// What the app is asked about at the moment.
    call: Option<Box<Pending>>,
    /// When the next ping is due, or [`NEVER`].
    ping_at: Tick,
    /// When the client is given up unless it says something before, or [`NEVER`].
    pong_by: Tick,
    ping_interval_ms: u32,
    ping_precision: PingPrecision,
    phase: Phase,
    /// Pongs can be expected of this client.
    pongs: bool,
    /// The app has heard of this session and is told when it ends.
    disconnectable: bool,
}

// sid 16, env 8, cstate 8, subscriptions 32, call 8, two deadlines 8, interval 4, four bytes.
const _: () = assert!(size_of::<Session>() == 88);

/// No deadline.
const NEVER: Tick = Tick::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Connecting,
    Open,
    Over,
}

/// What the app is asked about at the moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Pending {
    Connect,
    Command { kind: CommandKind, identifier: Box<str>, history: bool },
}

impl Session {
    /// Begins a session: welcomes the client, refuses it, or asks the app.
    pub fn open(opening: Opening<'_>, ctx: &mut Context<'_>) -> Session {
        let Opening { sid, env, protocol, verdict, ping_interval, ping_precision, random } = opening;
        let interval = asked_interval(ping_interval).unwrap_or(ctx.rules.ping_interval_ms);
        let mut session = Session {
            sid,
            env,
            cstate: State::default(),
            subscriptions: SmallVec::new(),
            call: None,
            ping_at: first_ping(ctx.now, interval, random),
            pong_by: NEVER,
            ping_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
            ping_precision: ping_precision.and_then(PingPrecision::parse).unwrap_or(ctx.rules.ping_precision),
            phase: Phase::Connecting,
            pongs: protocol == Some(Subprotocol::Ext) || ctx.rules.native_pings,
            disconnectable: false,
        };
        match verdict {
            TokenOutcome::Identified { identifiers } => session.welcome(&identifiers, ctx),
            TokenOutcome::Expired => session.refuse(DisconnectReason::TokenExpired, ctx),
            TokenOutcome::Unauthorized => session.refuse(DisconnectReason::Unauthorized, ctx),
            TokenOutcome::Error => session.fail_auth(ctx),
            TokenOutcome::NoToken if ctx.rules.no_auth => session.welcome(&format!("{{\"sid\":\"{sid}\"}}"), ctx),
            TokenOutcome::NoToken if !ctx.rules.has_backend => session.refuse(DisconnectReason::Unauthorized, ctx),
            TokenOutcome::NoToken => {
                session.call = Some(Box::new(Pending::Connect));
                ctx.emit(Effect::Call(Box::new(Request::Connect { env: session.env.clone() })));
            }
        }
        session
    }

    /// The session's id.
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// The connection identifiers; empty until the client is let in.
    pub fn identifiers(&self) -> &str {
        self.env.identifiers()
    }

    /// True while the app is asked about something: messages of the client have to wait.
    pub fn is_waiting(&self) -> bool {
        self.call.is_some()
    }

    /// True when the client was let in and not sent away yet.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// When [`Session::due`] wants to be called; `None`: never.
    pub fn deadline(&self) -> Option<Tick> {
        Some(self.ping_at.min(self.pong_by)).filter(|&tick| tick != NEVER && self.phase != Phase::Over)
    }

    /// A moment has come: sends the ping that is due, gives up a client that has not answered. A client that is
    /// `stalled`, with bytes waiting for it, is sent no ping: they tell it as much, and it must not collect pings.
    pub fn due(&mut self, stalled: bool, ctx: &mut Context<'_>) {
        if self.phase == Phase::Over {
            return;
        }
        let now = tick(ctx.now.mono);
        if now >= self.pong_by {
            if !self.is_waiting() {
                self.disconnect(DisconnectReason::NoPong, true, ctx);
                return ctx.emit(Effect::Close { code: 1000, reason: "No Pong", cause: CloseCause::NoPong });
            }
            // Its pong may lie unread behind the command that runs.
            self.pong_by = after(ctx.now, ctx.rules.pong_timeout_ms);
        }
        if now >= self.ping_at {
            self.ping_at = after(ctx.now, u64::from(self.ping_interval_ms));
            if stalled {
                return;
            }
            ctx.emit(Effect::Ping(self.ping_precision));
            if ctx.rules.native_pings {
                ctx.emit(Effect::NativePing);
            }
            if self.pongs && ctx.rules.pong_timeout_ms > 0 && self.pong_by == NEVER {
                self.pong_by = after(ctx.now, ctx.rules.pong_timeout_ms);
            }
        }
    }

    /// The client gave a sign of life: a message, or a pong frame.
    pub fn alive(&mut self) {
        self.pong_by = NEVER;
    }

    /// The app asked to disconnect these identifiers.
    pub fn remote_disconnect(&mut self, reconnect: bool, ctx: &mut Context<'_>) {
        self.disconnect(DisconnectReason::Remote, reconnect, ctx);
        ctx.emit(Effect::Close { code: 1000, reason: "Closed remotely", cause: CloseCause::Remote });
    }

    /// This server is going away.
    pub fn server_restart(&mut self, ctx: &mut Context<'_>) {
        self.disconnect(DisconnectReason::ServerRestart, true, ctx);
        ctx.emit(Effect::Close { code: 1001, reason: "Server restart", cause: CloseCause::ServerRestart });
    }

    /// The client does not read what it is sent.
    pub fn too_slow(&mut self, ctx: &mut Context<'_>) {
        self.disconnect(DisconnectReason::TooSlow, true, ctx);
        ctx.emit(Effect::Close { code: 1000, reason: "", cause: CloseCause::TooSlow });
    }

    /// The connection is over. Detaches every stream, drops a call that still runs, and tells the app if it is
    /// to be told.
    pub fn end(&mut self, ctx: &mut Context<'_>) {
        if self.call.take().is_some() {
            ctx.emit(Effect::Cancel);
        }
        let due = match ctx.rules.disconnect_mode {
            DisconnectMode::Auto => self.disconnectable,
            DisconnectMode::Always => self.disconnectable || self.phase == Phase::Open,
            DisconnectMode::Never => false,
        };
        let subscriptions = std::mem::take(&mut self.subscriptions);
        if due && ctx.rules.has_backend {
            ctx.emit(Effect::Disconnect(Box::new(Request::Disconnect {
                subscriptions: subscriptions.iter().map(|s| (s.identifier().into(), s.istate())).collect(),
                env: self.env.clone(),
                cstate: self.cstate.clone(),
            })));
        }
        self.disconnectable = false;
        self.phase = Phase::Over;
        subscriptions.iter().for_each(|subscription| detach(subscription, ctx));
    }

    /// What it follows, to attach it again after the session was read back.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.subscriptions.iter().flat_map(Subscription::topics)
    }

    /// Replaces every topic by the shared one with the same texts, as after reading a session back.
    pub fn share_topics(&mut self, shared: impl Fn(&str, &str) -> Topic) {
        for subscription in &mut self.subscriptions {
            subscription.share(|topic| shared(topic.identifier(), topic.stream()));
        }
    }

    /// Lets the client in on our own word, without the app.
    fn welcome(&mut self, identifiers: &str, ctx: &mut Context<'_>) {
        self.let_in(identifiers, ctx);
        ctx.say(|out| cable::write::welcome(out, self.sid));
    }

    fn let_in(&mut self, identifiers: &str, ctx: &mut Context<'_>) {
        self.env = self.env.with_identifiers(identifiers);
        self.phase = Phase::Open;
        ctx.emit(Effect::Open);
    }

    fn refuse(&mut self, reason: DisconnectReason, ctx: &mut Context<'_>) {
        self.disconnect(reason, false, ctx);
        self.refused(ctx);
    }

    /// Closes after the refusal was said.
    fn refused(&mut self, ctx: &mut Context<'_>) {
        self.phase = Phase::Over;
        ctx.emit(Effect::Count(Tally::FailedAuth));
        ctx.emit(Effect::Close { code: 1000, reason: "Auth Failed", cause: CloseCause::Unauthorized });
    }

    /// Nobody could say whether the client may connect.
    fn fail_auth(&mut self, ctx: &mut Context<'_>) {
        self.phase = Phase::Over;
        ctx.emit(Effect::Close { code: 1011, reason: "Auth Error", cause: CloseCause::AuthError });
    }

    fn disconnect(&mut self, reason: DisconnectReason, reconnect: bool, ctx: &mut Context<'_>) {
        ctx.say(|out| cable::write::disconnect(out, reason, reconnect));
    }

    fn find(&self, identifier: &str) -> Option<usize> {
        self.subscriptions.iter().position(|s| s.identifier() == identifier)
    }

    /// Follows one more stream under a subscription. A stream twice under one identifier counts once, and to the
    /// stream without a name nobody can publish.
    fn follow(&mut self, at: usize, stream: &str, ctx: &mut Context<'_>) {
        let subscription = &mut self.subscriptions[at];
        if stream.is_empty() || subscription.topics().any(|known| known.stream() == stream) {
            return;
        }
        if subscription.topics().count() == STREAMS_MAX {
            return ctx.fail(Note::LimitReached("streams per subscription"));
        }
        let topic = (ctx.topic)(subscription.identifier(), stream);
        ctx.emit(Effect::Attach(topic.clone()));
        subscription.push(topic);
    }

    /// Stops following the streams that `stop` names.
    fn unfollow(&mut self, at: usize, stop: impl Fn(&str) -> bool, ctx: &mut Context<'_>) {
        let subscription = &mut self.subscriptions[at];
        subscription.take_out(stop).into_iter().for_each(|topic| ctx.emit(Effect::Detach(topic)));
    }
}

/// Stops every stream of a subscription that is over.
fn detach(subscription: &Subscription, ctx: &mut Context<'_>) {
    subscription.topics().for_each(|topic| ctx.emit(Effect::Detach(topic.clone())));
}

/// The interval a client asked for, in milliseconds: bounded; 0 or less turns pings off; what is no integer is
/// ignored.
fn asked_interval(text: Option<&str>) -> Option<u64> {
    let seconds: i64 = text?.parse().ok()?;
    let Ok(seconds) = u64::try_from(seconds) else { return Some(0) };
    let asked = seconds.saturating_mul(1_000);
    Some(if asked == 0 { 0 } else { asked.clamp(*PING_INTERVAL_MS.start(), *PING_INTERVAL_MS.end()) })
}

/// The first ping comes at a random point between half and one and a half intervals, so that clients that came
/// together are not pinged together.
fn first_ping(now: Now, interval_ms: u64, random: u64) -> Tick {
    if interval_ms == 0 { NEVER } else { after(now, interval_ms / 2 + random % interval_ms) }
}

fn after(now: Now, ms: u64) -> Tick {
    tick_after(now.mono + Duration::from_millis(ms))
}
