//! Transcripts: what a session is given on one line, what it wants done on the next.

use super::*;
use crate::model::{
    AppReply, BrokerError, BrokerReply, CallError, CommandReply, ConnectReply, Missed, Position, Publication, Reply,
    SavedSession, Status, tick,
};
use crate::proto::frame::Message;
use std::time::Duration;

const ROOM: &str = r#"{"channel":"Room"}"#;
const OPEN: &str = r#"{"channel":"$pubsub","stream_name":"open"}"#;
const CLOSED: &str = r#"{"channel":"$pubsub","stream_name":"closed"}"#;

/// A session, its clock and what it is told by the configuration.
struct Transcript {
    session: Session,
    rules: Rules,
    now: Duration,
}

pub(super) fn rules() -> Rules {
    Rules {
        ping_interval_ms: 3_000,
        ping_precision: PingPrecision::Seconds,
        pong_timeout_ms: 0,
        idle_timeout_ms: 0,
        native_pings: false,
        identifier_bytes_max: 4096,
        session_bytes_max: 256 << 10,
        has_backend: true,
        no_auth: false,
        disconnect_mode: DisconnectMode::Auto,
        broker: false,
        cluster: false,
        replay_bytes: 64 << 10,
        sessions: false,
    }
}

fn route(identifier: &str) -> Routed {
    match identifier {
        OPEN => Routed::Stream { name: "open".into(), whisper: true, presence: true },
        CLOSED => Routed::Rejected,
        _ => Routed::Backend,
    }
}

/// One line for each effect.
fn lines(effects: Vec<Effect>) -> Vec<String> {
    effects
        .into_iter()
        .map(|effect| match effect {
            Effect::Send(text) => format!("send {}", String::from_utf8(text).unwrap()),
            Effect::Ask(question) => match *question {
                Question::App(Request::Connect { .. }) => "ask app connect".into(),
                Question::App(Request::Command { command, identifier, data, istate, cstate, .. }) => {
                    let state: Vec<_> = cstate.iter().chain(istate.iter()).map(|(k, v)| format!("{k}={v}")).collect();
                    format!("ask app {} {} {data:?} {}", command.as_str(), &*identifier, state.join(" "))
                }
                question => format!("ask {question:?}"),
            },
            Effect::Tell(request) => match *request {
                Request::Disconnect { subscriptions, env, .. } => {
                    let channels: Vec<_> = subscriptions.iter().map(|(identifier, _)| &**identifier).collect();
                    format!("tell app disconnect {:?} {channels:?}", env.identifiers())
                }
                request => format!("tell {request:?}"),
            },
            Effect::Attach(topic) => format!("attach {}", topic.stream()),
            Effect::Detach(topic) => format!("detach {}", topic.stream()),
            Effect::Whisper { stream, message } => format!("whisper {stream} {message}"),
            Effect::Presence { stream, change } => format!("presence {stream} {change:?}"),
            Effect::Depart(saved) => {
                let subscriptions = saved.map(|saved| saved.subscriptions.len());
                format!("depart {subscriptions:?}")
            }
            Effect::Close(cause) => format!("close {}", cause.label()),
            Effect::Count(counter) => format!("count {counter:?}"),
            Effect::Log(event) => format!("log {event}"),
            Effect::Ping(_) => "ping".into(),
            Effect::NativePing => "native ping".into(),
            Effect::Cancel => "cancel".into(),
            Effect::LetIn => "let in".into(),
            Effect::Spoken => "spoken".into(),
        })
        .collect()
}

impl Transcript {
    /// A session of this token, and what it does first.
    fn open(token: TokenOutcome, dialect: Dialect, rules: Rules) -> (Transcript, Vec<String>) {
        Transcript::open_again(token, dialect, rules, None)
    }

    /// One of a client that wants to go on with the session `resume`.
    fn open_again(
        token: TokenOutcome,
        dialect: Dialect,
        rules: Rules,
        resume: Option<Sid>,
    ) -> (Transcript, Vec<String>) {
        let mut effects = Vec::new();
        let now = Duration::from_secs(1_000);
        let opening = Opening {
            sid: Sid::from_bits(0),
            env: Env::new("http://h/cable", [("cookie", "a=1")]),
            dialect,
            token,
            ping_interval: None,
            ping_precision: None,
            resume,
        };
        let mut ctx = Context {
            rules: &rules,
            now: Now { mono: now, unix: now },
            heartbeat_phase: 0,
            topic: &Topic::new,
            resume_token: &|_| None,
            route: &route,
            effects: &mut effects,
        };
        let session = Session::open(opening, &mut ctx);
        (Transcript { session, rules, now }, lines(effects))
    }

    /// A session that the app has let in.
    fn let_in() -> Transcript {
        let (mut transcript, _) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, rules());
        let reply = ConnectReply { status: Status::Success, identifiers: "me".into(), ..Default::default() };
        transcript.answer(Ok(AppReply::Connect(reply)));
        transcript
    }

    /// One that is also subscribed to the room, which follows the stream `room`.
    fn subscribed() -> Transcript {
        let mut transcript = Transcript::let_in();
        transcript.say(&command("subscribe", ROOM, ""));
        transcript.answer(Ok(success(|reply| reply.streams = vec!["room".into()])));
        transcript
    }

    fn input(&mut self, input: impl FnOnce(&mut Session, &mut Context<'_>)) -> Vec<String> {
        let mut effects = Vec::new();
        let mut ctx = Context {
            rules: &self.rules,
            now: Now { mono: self.now, unix: self.now },
            heartbeat_phase: 0,
            topic: &Topic::new,
            resume_token: &|_| None,
            route: &route,
            effects: &mut effects,
        };
        input(&mut self.session, &mut ctx);
        // Whatever happens to it, it can be written out and read back.
        let written = rmp_serde::to_vec_named(&self.session).unwrap();
        assert_eq!(rmp_serde::from_slice::<Session>(&written).unwrap(), self.session);
        lines(effects)
    }

    fn say(&mut self, text: &str) -> Vec<String> {
        self.session.alive();
        self.input(|session, ctx| session.message(&Message::Text(text.into()), ctx))
    }

    fn answer(&mut self, result: Result<AppReply, CallError>) -> Vec<String> {
        self.input(|session, ctx| session.answer(Reply::App(result), ctx))
    }

    /// Whether a publication is withheld, and what is done for it.
    fn comes(&mut self, identifier: &str, stream: &str, offset: Option<u64>) -> (bool, Vec<String>) {
        let position = offset.map(|offset| Position { epoch: "e".into(), offset });
        let publication = Publication { position, ..Publication::new(stream, "1") };
        let mut is_withheld = false;
        let lines = self.input(|session, ctx| is_withheld = session.withhold(identifier, &publication, ctx));
        (is_withheld, lines)
    }

    fn broker(&mut self, result: Result<BrokerReply, BrokerError>) -> Vec<String> {
        self.input(|session, ctx| session.answer(Reply::Broker(result), ctx))
    }
}

fn command(name: &str, identifier: &str, more: &str) -> String {
    format!("{{\"command\":\"{name}\",\"identifier\":{}{more}}}", serde_json::to_string(identifier).unwrap())
}

fn about(kind: &str, identifier: &str) -> String {
    format!("send {{\"type\":\"{kind}\",\"identifier\":{}}}", serde_json::to_string(identifier).unwrap())
}

fn success(change: impl FnOnce(&mut CommandReply)) -> AppReply {
    let mut reply = CommandReply { status: Status::Success, ..Default::default() };
    change(&mut reply);
    AppReply::Command(reply)
}

#[test]
fn the_app_lets_a_client_in_and_what_it_says_is_sent_as_it_is() {
    let (mut t, first) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, rules());
    assert_eq!(first, ["ask app connect"]);
    assert!(t.session.is_waiting());
    let reply = ConnectReply {
        status: Status::Success,
        identifiers: "me".into(),
        transmissions: vec!["welcome, as the app has it".into()],
        cstate: vec![("k".into(), "v".into())],
        ..Default::default()
    };
    assert_eq!(t.answer(Ok(AppReply::Connect(reply))), ["let in", "send welcome, as the app has it"]);
    assert_eq!((t.session.identifiers(), t.session.is_waiting()), ("me", false));
    assert_eq!(t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx)), ["tell app disconnect \"me\" []"]);
}

#[test]
fn the_app_refuses_a_client_in_its_own_words() {
    let (mut t, _) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, rules());
    let reply = ConnectReply { status: Status::Failure, transmissions: vec!["no".into()], ..Default::default() };
    assert_eq!(t.answer(Ok(AppReply::Connect(reply))), ["send no", "count FailedAuth", "close unauthorized"]);
    assert_eq!(t.say(&command("subscribe", ROOM, "")), [""; 0], "it is over");
    assert_eq!(t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx)), [""; 0], "the app need not be told");
}

#[test]
fn when_nobody_can_say_whether_a_client_may_connect_it_is_closed() {
    let failed = ConnectReply { error_msg: "oops".into(), ..Default::default() };
    for (reply, log) in [
        (Reply::App(Err(CallError::Timeout)), "log connect failed: app server did not answer in time"),
        (Reply::App(Ok(AppReply::Connect(failed))), "log app server answered ERROR to connect: oops"),
        (Reply::App(Ok(success(|_| ()))), "log the answer does not fit the question"),
        (Reply::Broker(Err(BrokerError::NotKept)), "log the answer does not fit the question"),
    ] {
        let (mut t, _) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, rules());
        assert_eq!(t.input(|session, ctx| session.answer(reply, ctx)), [log, "close auth_error"]);
    }
}

#[test]
fn a_token_decides_without_the_app() {
    let refused =
        |reason: &str| format!("send {{\"type\":\"disconnect\",\"reason\":\"{reason}\",\"reconnect\":false}}");
    let me = TokenOutcome::Identified { identifiers: "me".into(), expires: None };
    let welcome = "send {\"type\":\"welcome\",\"sid\":\"AAAAAAAAAAAAAAAAAAAAA\"}";
    assert_eq!(Transcript::open(me, Dialect::Cable, rules()).1, ["let in", welcome]);
    for (token, reason) in [(TokenOutcome::Expired, "token_expired"), (TokenOutcome::Unauthorized, "unauthorized")] {
        let (mut t, first) = Transcript::open(token, Dialect::Cable, rules());
        assert_eq!(first, ["count FailedAuth", &refused(reason), &format!("close {reason}")]);
        assert_eq!(
            (t.session.ping_at(), t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx))),
            (None, vec![])
        );
    }
    let (_, first) = Transcript::open(TokenOutcome::Error, Dialect::Cable, rules());
    assert_eq!(first, ["close auth_error"]);
    let without_app = Rules { has_backend: false, ..rules() };
    let (_, first) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, without_app.clone());
    assert_eq!(first[1], refused("unauthorized"));
    let (t, first) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, Rules { no_auth: true, ..without_app });
    assert_eq!(first, ["let in", welcome]);
    assert_eq!(t.session.identifiers(), "{\"sid\":\"AAAAAAAAAAAAAAAAAAAAA\"}");
}

#[test]
fn a_subscription_that_the_app_confirms_follows_its_streams_from_before_the_confirmation() {
    let mut t = Transcript::let_in();
    let ask = format!("ask app subscribe {ROOM} \"\" ");
    assert_eq!(t.say(&command("subscribe", ROOM, "")), ["count ClientMessage", &ask]);
    let reply = success(|reply| {
        reply.streams = vec!["a".into(), "b".into(), "a".into(), String::new()];
        reply.transmissions = vec!["confirmed".into()];
        reply.istate = vec![("k".into(), "v".into())];
    });
    assert_eq!(t.answer(Ok(reply)), ["attach a", "attach b", "send confirmed"]);
    let perform = command("message", ROOM, r#","data":"{\"action\":\"say\"}""#);
    let ask = format!("ask app message {ROOM} {:?} k=v", r#"{"action":"say"}"#);
    assert_eq!(t.say(&perform), ["count ClientMessage", &ask]);
    let reply = success(|reply| {
        reply.stopped_streams = vec!["a".into()];
        reply.streams = vec!["c".into()];
    });
    assert_eq!(t.answer(Ok(reply)), ["detach a", "attach c"]);
    assert_eq!(t.say(&command("unsubscribe", ROOM, "")).len(), 2);
    let reply = success(|reply| reply.transmissions = vec!["bye".into()]);
    assert_eq!(t.answer(Ok(reply)), ["detach b", "detach c", "send bye"]);
    assert_eq!(t.session.topics().count(), 0);
}

#[test]
fn a_subscription_that_the_app_rejects_leaves_nothing() {
    let mut t = Transcript::let_in();
    t.say(&command("subscribe", ROOM, ""));
    let reply = CommandReply {
        status: Status::Failure,
        streams: vec!["a".into()],
        transmissions: vec!["rejected".into()],
        ..Default::default()
    };
    assert_eq!(t.answer(Ok(AppReply::Command(reply))), ["send rejected"]);
    assert_eq!(t.session.topics().count(), 0);
    t.say(&command("subscribe", ROOM, ""));
    let failed = t.answer(Err(CallError::Overloaded));
    assert_eq!(failed[0], "count FailedClientMessage");
    assert!(failed[1].starts_with("log subscribe failed"), "{failed:?}");
}

#[test]
fn our_own_channels_need_no_app() {
    let mut t = Transcript::let_in();
    let confirmed = about("confirm_subscription", OPEN);
    assert_eq!(t.say(&command("subscribe", OPEN, "")), ["count ClientMessage", "attach open", &confirmed]);
    assert_eq!(t.say(&command("subscribe", CLOSED, ""))[1], about("reject_subscription", CLOSED));
    assert_eq!(t.say(&command("whisper", OPEN, r#","data":{"a":1}"#))[1], r#"whisper open {"a":1}"#);
    assert_eq!(t.say(&command("subscribe", OPEN, ""))[1], "count FailedClientMessage", "it is there already");
    assert_eq!(t.say(&command("unsubscribe", OPEN, "")), ["count ClientMessage", "detach open"]);
}

#[test]
fn among_several_nodes_a_subscription_is_confirmed_when_the_cluster_says_so() {
    let mut t = Transcript::let_in();
    t.rules = Rules { cluster: true, broker: true, ..rules() };
    let asked = t.say(&command("subscribe", OPEN, r#","history":{"since":7}"#));
    assert_eq!(asked[1..], ["attach open", r#"ask Followed(["open"])"#]);
    assert!(t.session.is_waiting() && t.session.is_holding());
    // What is published before that is not for this client, with a position or without.
    assert_eq!(t.comes(OPEN, "open", None), (true, vec![]));
    assert_eq!(t.comes(OPEN, "open", Some(1)), (true, vec![]));
    assert_eq!(t.comes(ROOM, "room", None), (false, vec![]), "another one is not touched");
    let answered = t.input(|session, ctx| session.answer(Reply::Followed, ctx));
    assert_eq!(answered[0], about("confirm_subscription", OPEN));
    assert!(answered[1].starts_with("ask Broker(History"), "{answered:?}");
    assert_eq!(t.comes(OPEN, "open", None), (false, vec![]));

    // What the app says to a new subscriber waits, too, and who is sent away by it is not given anything more.
    for disconnect in [false, true] {
        let mut t = Transcript::let_in();
        t.rules = Rules { cluster: true, ..rules() };
        t.say(&command("subscribe", ROOM, ""));
        let asked = t.answer(Ok(success(|reply| {
            reply.streams = vec!["room".into(), "lobby".into()];
            reply.transmissions = vec!["confirmed".into()];
            reply.disconnect = disconnect;
        })));
        assert_eq!(asked, ["attach room", "attach lobby", r#"ask Followed(["room", "lobby"])"#]);
        let answered = t.input(|session, ctx| session.answer(Reply::Followed, ctx));
        assert_eq!(answered[0], "send confirmed");
        assert_eq!(answered.len(), if disconnect { 2 } else { 1 }, "{answered:?}");
    }
    // Without a stream there is nothing to wait for.
    let mut t = Transcript::let_in();
    t.rules = Rules { cluster: true, ..rules() };
    t.say(&command("subscribe", ROOM, ""));
    assert_eq!(t.answer(Ok(success(|reply| reply.transmissions = vec!["confirmed".into()]))), ["send confirmed"]);
}

#[test]
fn history_is_asked_of_the_broker_and_everything_else_waits() {
    let since = r#","history":{"since":7}"#;
    let mut t = Transcript::subscribed();
    let asked = t.say(&command("history", ROOM, since));
    assert!(asked[1].starts_with("ask Broker(History { streams: [\"room\"]"), "{asked:?}");
    assert!(t.session.is_waiting());
    let [reject, confirm] = ["reject_history", "confirm_history"].map(|kind| about(kind, ROOM));
    assert_eq!(t.broker(Err(BrokerError::NotKept)), ["log history failed: no history is kept", &reject]);
    t.say(&command("history", ROOM, since));
    let missed = Publication::new("room", "1");
    let missed = Missed { stream: "room".into(), had: 0, publications: vec![missed.clone(), missed] };
    let replayed = t.broker(Ok(BrokerReply::History(vec![missed])));
    let message = format!("send {{\"identifier\":{},\"message\":1}}", serde_json::to_string(ROOM).unwrap());
    assert_eq!(replayed, [message.clone(), message, confirm]);
    t.say(&command("history", ROOM, since));
    assert_eq!(t.answer(Ok(success(|_| ())))[1], "log the answer does not fit the question");
}

#[test]
fn history_that_rides_on_a_subscription_is_asked_for_once_that_stands() {
    let mut t = Transcript::let_in();
    t.say(&command("subscribe", ROOM, r#","history":{"since":7}"#));
    let answered = t.answer(Ok(success(|reply| {
        reply.streams = vec!["room".into()];
        reply.transmissions = vec!["confirmed".into()];
    })));
    assert_eq!(answered[..2], ["attach room", "send confirmed"]);
    assert!(answered[2].starts_with("ask Broker(History"), "{answered:?}");
    let mut t = Transcript::let_in();
    t.say(&command("subscribe", ROOM, r#","history":{"since":7}"#));
    let answered = t.answer(Ok(success(|_| ())));
    assert_eq!(answered, [about("confirm_history", ROOM)], "without a stream nothing can have been missed");
    let mut t = Transcript::let_in();
    t.say(&command("subscribe", ROOM, r#","history":{"since":7}"#));
    let answered = t.answer(Ok(success(|reply| (reply.disconnect, reply.streams) = (true, vec!["room".into()]))));
    assert_eq!(answered, ["attach room", "close command_disconnect"], "nobody is there to read it");
}

#[test]
fn what_cannot_be_read_or_done_is_counted_and_said_in_the_log_alone() {
    let mut t = Transcript::let_in();
    for said in ["", "{", "[]", "{\"command\":\"dance\"}", "{\"command\":\"subscribe\"}"] {
        let done = t.say(said);
        assert_eq!((done.len(), done[0].as_str()), (2, "count FailedClientMessage"), "{said}");
    }
    for name in ["message", "unsubscribe", "history", "presence"] {
        let done = t.say(&command(name, ROOM, r#","data":"x","history":{"since":1}"#));
        assert_eq!(done.last().unwrap(), &format!("log {name} for an identifier that is not subscribed"));
    }
    assert_eq!(t.say("null"), [""; 0]);
    assert_eq!(t.say("{\"command\":\"ping\"}")[1], "send {\"type\":\"pong\"}");
}

#[test]
fn the_end_detaches_everything_cancels_what_is_asked_and_tells_the_app_once() {
    let mut t = Transcript::subscribed();
    t.say(&command("message", ROOM, r#","data":"x""#));
    let told = format!("tell app disconnect \"me\" [{ROOM:?}]");
    assert_eq!(t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx)), ["cancel", &told, "detach room"]);
    assert_eq!(t.answer(Ok(success(|_| ()))), [""; 0], "a late answer");
    assert_eq!(t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx)), [""; 0]);
}

#[test]
fn when_the_app_is_told_depends_on_the_mode() {
    let me = || TokenOutcome::Identified { identifiers: "me".into(), expires: None };
    for (mode, told) in [(DisconnectMode::Auto, 0), (DisconnectMode::Always, 1), (DisconnectMode::Never, 0)] {
        let rules = Rules { disconnect_mode: mode, ..rules() };
        let (mut t, _) = Transcript::open(me(), Dialect::Cable, rules.clone());
        assert_eq!(
            t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx)).len(),
            told,
            "{mode:?}, never asked"
        );
        let (mut t, _) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, rules);
        assert_eq!(
            t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx)),
            ["cancel"],
            "{mode:?}, not let in"
        );
    }
}

#[test]
fn every_goodbye_has_its_words() {
    let goodbye = |cause| {
        let mut t = Transcript::let_in();
        t.input(|session, ctx| session.disconnect(cause, ctx))
    };
    let text = |reason: &str, reconnect| {
        format!("send {{\"type\":\"disconnect\",\"reason\":\"{reason}\",\"reconnect\":{reconnect}}}")
    };
    for (cause, word, reconnect) in [
        (CloseCause::ServerRestart, "server_restart", true),
        (CloseCause::TooSlow, "too_slow", true),
        (CloseCause::NoPong, "no_pong", true),
        (CloseCause::IdleTimeout, "idle_timeout", false),
    ] {
        assert_eq!(goodbye(cause), [text(word, reconnect), format!("close {word}")]);
    }
    for reconnect in [true, false] {
        let mut t = Transcript::let_in();
        let said = t.input(|session, ctx| session.remote_disconnect(reconnect, ctx));
        assert_eq!(said, [text("remote", reconnect), "close remote".into()]);
    }
}

#[test]
fn where_silence_is_watched_everything_counts_but_pings_and_pongs() {
    let me = TokenOutcome::Identified { identifiers: "me".into(), expires: None };
    let watched = Rules { idle_timeout_ms: 1_000, ..rules() };
    let (mut t, opened) = Transcript::open(me.clone(), Dialect::CableExtended, watched);
    assert!(opened.contains(&"spoken".to_owned()), "it begins when the client is let in: {opened:?}");
    for (message, counts) in [
        ("{\"command\":\"pong\"}", false),
        ("{\"command\":\"ping\"}", false),
        ("nonsense", true),
        (&*command("unsubscribe", OPEN, ""), true),
        (&command("subscribe", OPEN, ""), true),
    ] {
        assert_eq!(t.say(message).contains(&"spoken".to_owned()), counts, "{message}");
    }
    let (mut t, opened) = Transcript::open(me, Dialect::CableExtended, rules());
    assert!(![opened, t.say("nonsense")].concat().contains(&"spoken".to_owned()));
}

#[test]
fn a_client_that_does_not_answer_pings_is_given_up_unless_a_command_of_it_runs() {
    let rules = Rules { pong_timeout_ms: 6_000, ..rules() };
    let me = TokenOutcome::Identified { identifiers: "me".into(), expires: None };
    let (mut t, _) = Transcript::open(me.clone(), Dialect::CableExtended, rules.clone());
    t.say(&command("subscribe", OPEN, ""));
    t.now += Duration::from_secs(2);
    assert_eq!((t.session.ping_at(), t.session.pong_by()), (Some(tick(t.now)), None));
    assert_eq!(t.input(|session, ctx| session.ping_due(false, ctx)), ["ping"]);
    assert_eq!(t.session.pong_by(), Some(tick(t.now) + 31));
    t.say("{\"command\":\"pong\"}");
    assert_eq!(t.session.pong_by(), None, "any sign of life will do");
    t.input(|session, ctx| session.ping_due(false, ctx));
    t.say(&command("subscribe", ROOM, ""));
    t.input(|session, ctx| session.ping_due(false, ctx));
    assert_eq!(t.input(|session, ctx| session.pong_overdue(ctx)), [""; 0], "its pong may lie behind the command");
    t.answer(Err(CallError::Timeout));
    assert_eq!(t.input(|session, ctx| session.pong_overdue(ctx))[1], "close no_pong");
    let (mut t, _) = Transcript::open(me, Dialect::Cable, rules);
    assert_eq!(t.input(|session, ctx| session.ping_due(false, ctx)), ["ping"]);
    assert_eq!(t.session.pong_by(), None, "clients of the base dialect do not answer");
    assert_eq!(t.input(|session, ctx| session.ping_due(true, ctx)), [""; 0], "bytes that wait tell it as much");
}

#[test]
fn a_client_that_was_heard_since_the_last_ping_is_not_asked_for_a_sign_of_life() {
    let rules = Rules { pong_timeout_ms: 6_000, native_pings: true, ..rules() };
    let me = TokenOutcome::Identified { identifiers: "me".into(), expires: None };
    let (mut t, _) = Transcript::open(me.clone(), Dialect::Cable, rules.clone());
    let ping = |t: &mut Transcript, stalled| {
        t.now += Duration::from_secs(3);
        let said = t.input(|session, ctx| session.ping_due(stalled, ctx));
        (said, t.session.pong_by().is_some())
    };
    let asked = (vec!["ping".to_owned(), "native ping".to_owned()], true);
    let not_asked = (vec!["ping".to_owned()], false);
    assert_eq!(ping(&mut t, false), asked, "it has said nothing yet");
    t.session.alive();
    assert_eq!(ping(&mut t, false), not_asked, "what it answered will do");
    assert_eq!(ping(&mut t, false), asked, "and only once");
    let pong_by = t.session.pong_by();
    assert_eq!(ping(&mut t, false), asked);
    assert_eq!(t.session.pong_by(), pong_by, "another ping gives no more time");
    t.session.alive();
    assert_eq!(ping(&mut t, true), (vec![], false), "nothing is sent where bytes wait");
    assert_eq!(ping(&mut t, false), asked, "what came before that is too long ago");

    // A client that answers ping messages is asked by those.
    let (mut t, _) = Transcript::open(me, Dialect::CableExtended, rules);
    t.session.alive();
    assert_eq!(ping(&mut t, false), (vec!["ping".to_owned()], true));
}

#[test]
fn deadlines_move_to_another_clock_as_the_time_that_is_left() {
    let rules = Rules { pong_timeout_ms: 6_000, ..rules() };
    let me = TokenOutcome::Identified { identifiers: "me".into(), expires: None };
    let (mut t, _) = Transcript::open(me, Dialect::CableExtended, rules);
    t.input(|session, ctx| session.ping_due(false, ctx));
    let (ping_at, pong_by) = (t.session.ping_at().unwrap(), t.session.pong_by().unwrap());
    let here = tick(t.now);
    t.session.move_clock(here, 0);
    assert_eq!((t.session.ping_at(), t.session.pong_by()), (Some(ping_at - here), Some(pong_by - here)));
    t.session.move_clock(0, 77);
    assert_eq!(t.session.ping_at(), Some(ping_at - here + 77));
    t.session.move_clock(1_000_000, 5);
    assert_eq!(t.session.ping_at(), Some(5), "what has passed is due at once");
    t.session.alive();
    t.session.move_clock(5, 0);
    assert_eq!(t.session.pong_by(), None, "never is never on every clock");
}

#[test]
fn what_would_make_a_session_too_large_is_not_kept() {
    let rules = Rules { identifier_bytes_max: 100, session_bytes_max: 2_000, ..rules() };
    let (mut t, _) = Transcript::open(TokenOutcome::NoToken, Dialect::Cable, rules);
    t.answer(Ok(AppReply::Connect(ConnectReply { status: Status::Success, ..Default::default() })));
    let long = format!("{{\"channel\":\"{}\"}}", "x".repeat(100));
    let said = t.say(&command("subscribe", &long, ""));
    assert_eq!(
        said[1..3],
        ["count FailedClientMessage", "log bytes of an identifier (--max-identifier-size) limit reached"]
    );
    assert!(said[3].contains("reject_subscription"), "{said:?}");
    // The app gives more than there is room for: streams and states that do not fit are left out, the rest holds.
    t.say(&command("subscribe", ROOM, ""));
    let said = t.answer(Ok(success(|reply| {
        reply.streams = vec!["a".into(), "b".repeat(3_000), "c".into()];
        reply.istate = vec![("k".into(), "v".repeat(3_000))];
        reply.cstate = vec![("k".into(), "v".into())];
    })));
    let attached: Vec<_> = said.iter().filter(|line| line.starts_with("attach")).collect();
    assert_eq!(attached, ["attach a", "attach c"]);
    assert_eq!(said.iter().filter(|line| line.contains("--max-session-size")).count(), 2, "{said:?}");
    assert_eq!(t.session.cstate.get("k"), Some("v"));
}

#[test]
fn a_command_with_half_a_character_is_carried_out_with_a_replacement() {
    let mut t = Transcript::subscribed();
    let said = t.say(&command("message", ROOM, r#","data":"hi \ud83d!""#));
    assert!(said.iter().any(|line| line.contains("hi \u{fffd}!")), "{said:?}");
}

/// A broker is there, and keeps sessions.
fn with_broker() -> Rules {
    Rules { broker: true, sessions: true, ..rules() }
}

fn me() -> TokenOutcome {
    TokenOutcome::Identified { identifiers: "me".into(), expires: None }
}

/// A session of a token that is subscribed to our own channel.
fn on_our_channel(rules: Rules) -> Transcript {
    let (mut t, _) = Transcript::open(me(), Dialect::CableExtended, rules);
    t.say(&command("subscribe", OPEN, ""));
    t
}

fn at(offset: u64) -> Publication {
    let position = Some(Position { epoch: "e".into(), offset });
    Publication { position, ..Publication::new("open", offset.to_string()) }
}

/// Offsets of the messages that are sent, and other lines as they are.
fn offsets(lines: Vec<String>) -> Vec<String> {
    let short = |line: String| match (line.find("\"offset\":"), line.contains("confirm_history")) {
        (Some(at), _) => line[at + 9..].trim_end_matches('}').to_owned(),
        (None, true) => "confirmed".into(),
        (None, false) => line,
    };
    lines.into_iter().map(short).collect()
}

fn history_of(offsets: std::ops::RangeInclusive<u64>) -> Result<BrokerReply, BrokerError> {
    let had = *offsets.start() - 1;
    Ok(BrokerReply::History(vec![Missed { stream: "open".into(), had, publications: offsets.map(at).collect() }]))
}

impl Transcript {
    fn published(&mut self, publication: Publication) -> (bool, Vec<String>) {
        let mut waits = false;
        let lines = self.input(|session, ctx| waits = session.withhold(OPEN, &publication, ctx));
        (waits, lines)
    }
}

const SINCE_3: &str = r#","history":{"streams":{"open":{"epoch":"e","offset":3}}}"#;

#[test]
fn what_is_published_while_a_client_catches_up_comes_once_and_behind_what_it_missed() {
    let mut t = on_our_channel(with_broker());
    assert_eq!(t.published(at(3)), (false, vec![]), "nothing is asked for yet");
    t.say(&command("history", OPEN, SINCE_3));
    assert!(t.session.is_holding());
    for offset in 4..=7 {
        assert_eq!(t.published(at(offset)), (true, vec![]));
    }
    let whisper = Publication { transient: true, ..Publication::new("open", "1") };
    assert_eq!(t.published(whisper), (false, vec![]), "what has no position is no part of the order");
    let told = offsets(t.broker(history_of(4..=6)));
    assert_eq!(told, ["4", "5", "6", "confirmed", "7"], "4 to 6 waited too, and were covered");
    assert!(!t.session.is_holding());
    assert_eq!(t.published(at(8)), (false, vec![]));
}

#[test]
fn what_waits_and_is_too_old_for_the_history_comes_all_the_same() {
    // Aim: a subscription loses nothing live because its client asks for history by time, whatever the broker keeps.
    let wait_for = |offsets: std::ops::RangeInclusive<u64>, publications: Vec<Publication>| {
        let mut t = on_our_channel(with_broker());
        t.say(&command("history", OPEN, r#","history":{"since":7}"#));
        offsets.for_each(|offset| assert!(t.published(at(offset)).0));
        let missed = Missed { stream: "open".into(), had: 0, publications };
        self::offsets(t.broker(Ok(BrokerReply::History(vec![missed]))))
    };
    assert_eq!(wait_for(4..=7, vec![at(5), at(6)]), ["4", "5", "6", "confirmed", "7"]);
    assert_eq!(wait_for(4..=5, vec![]), ["confirmed", "4", "5"]);
    assert_eq!(wait_for(4..=5, vec![at(3), at(4)]), ["3", "4", "confirmed", "5"]);
}

#[test]
fn what_waited_is_delivered_when_the_history_is_rejected() {
    let mut t = on_our_channel(with_broker());
    t.say(&command("history", OPEN, SINCE_3));
    t.published(at(9));
    let told = offsets(t.broker(Err(BrokerError::Gone)));
    assert_eq!(
        told,
        ["log history failed: the history does not reach back that far", &about("reject_history", OPEN), "9"]
    );
}

#[test]
fn what_was_missed_is_sent_a_piece_at_a_time_and_commands_wait_for_all_of_it() {
    let mut t = on_our_channel(with_broker());
    t.say(&command("history", OPEN, SINCE_3));
    let long = |offset| Publication { message: format!("\"{}\"", "x".repeat(40_000)).into(), ..at(offset) };
    t.published(at(6));
    let missed = Missed { stream: "open".into(), had: 3, publications: (4..=6).map(long).collect() };
    assert_eq!(offsets(t.broker(Ok(BrokerReply::History(vec![missed])))), ["4", "5"]);
    assert!(t.session.is_waiting() && !t.session.awaits_answer() && t.session.is_replaying());
    assert_eq!(t.published(at(7)), (true, vec![]));
    assert_eq!(offsets(t.input(|session, ctx| session.go_on_replaying(ctx))), ["6", "confirmed", "7"]);
    assert!(!t.session.is_waiting() && !t.session.is_holding());
    assert_eq!(t.input(|session, ctx| session.go_on_replaying(ctx)), [""; 0]);
}

#[test]
fn a_subscription_that_is_given_up_takes_what_waits_along() {
    let (mut t, _) = Transcript::open(me(), Dialect::CableExtended, with_broker());
    t.input(|session, ctx| session.resume(saved(), ctx));
    t.published(at(1));
    t.say(&command("unsubscribe", OPEN, ""));
    assert!(!t.session.is_holding());
}

#[test]
fn more_than_may_wait_ends_the_connection_and_loses_nothing() {
    let mut t = on_our_channel(with_broker());
    t.say(&command("history", OPEN, SINCE_3));
    let long = |offset| Publication { message: "x".repeat(100_000).into(), ..at(offset) };
    let closed = (1..).find_map(|offset| t.published(long(offset)).1.pop().map(|line| (offset, line)));
    assert_eq!(closed, Some((11, "close too_slow".into())));
}

/// The session of [`on_our_channel`] as the broker has it.
fn saved() -> SavedSession {
    let mut t = on_our_channel(with_broker());
    let mut saved = None;
    t.input(|session, ctx| {
        session.end(CloseCause::ClientGone, ctx);
        let departed = ctx.effects.iter().find_map(|effect| match effect {
            Effect::Depart(left) => Some(left.clone()),
            _ => None,
        });
        saved = departed.flatten();
    });
    *saved.expect("it can be resumed")
}

#[test]
fn a_client_comes_back_to_its_session_without_the_app() {
    let sid = Sid::from_bits(7);
    let (mut t, first) = Transcript::open_again(me(), Dialect::CableExtended, with_broker(), Some(sid));
    assert_eq!(first.len(), 1);
    assert!(first[0].starts_with("ask Broker(Resume("), "{first:?}");
    assert!(t.session.is_waiting());
    let told = t.broker(Ok(BrokerReply::Resumed(Some(Box::new(saved())))));
    let ids = serde_json::to_string(&[OPEN]).unwrap();
    let welcome = format!(
        "send {{\"type\":\"welcome\",\"sid\":\"AAAAAAAAAAAAAAAAAAAAA\",\"restored\":true,\"restored_ids\":{ids}}}"
    );
    assert_eq!(told, ["let in", "attach open", &welcome], "its streams are followed before it hears of it");
    assert_eq!(t.session.identifiers(), "me");
    // It is about to say where it was, so what is published waits until then.
    assert_eq!(t.published(at(5)), (true, vec![]));
    t.say(&command("history", OPEN, SINCE_3));
    assert_eq!(offsets(t.broker(history_of(4..=5))), ["4", "5", "confirmed"]);
}

#[test]
fn a_client_that_answers_pings_and_does_not_say_where_it_was_goes_on() {
    let (mut t, _) = Transcript::open(me(), Dialect::CableExtended, with_broker());
    t.input(|session, ctx| session.resume(saved(), ctx));
    t.published(at(5));
    // Its welcome may be on the way to it for as long as it is silent, and then its request on the way back.
    t.input(|session, _| session.alive());
    for answered in [false, false, true, false, true] {
        assert_eq!(t.input(|session, ctx| session.ping_due(false, ctx)), ["ping", "native ping"]);
        if answered {
            t.input(|session, _| session.alive());
        }
    }
    assert_eq!(offsets(t.input(|session, ctx| session.ping_due(false, ctx))), ["5", "ping"]);
    assert!(!t.session.is_holding());
}

#[test]
fn a_client_whose_session_is_not_there_is_a_new_one() {
    let sid = Some(Sid::from_bits(7));
    let missing = || Ok(BrokerReply::Resumed(None));
    let (mut t, _) = Transcript::open_again(me(), Dialect::CableExtended, with_broker(), sid);
    assert_eq!(t.broker(missing())[0], "let in");
    let (mut t, _) = Transcript::open_again(TokenOutcome::NoToken, Dialect::CableExtended, with_broker(), sid);
    assert_eq!(t.broker(missing()), ["ask app connect"]);
    let (mut t, _) = Transcript::open_again(TokenOutcome::NoToken, Dialect::CableExtended, with_broker(), sid);
    assert_eq!(t.broker(Err(BrokerError::Unavailable))[1], "ask app connect");
    // A token that does not hold is refused whatever session it names; others are not asked at all.
    let (_, first) = Transcript::open_again(TokenOutcome::Expired, Dialect::CableExtended, with_broker(), sid);
    assert_eq!(first.last().unwrap(), "close token_expired");
    let (_, first) = Transcript::open_again(me(), Dialect::Cable, with_broker(), sid);
    assert_eq!(first[0], "let in", "clients of the base dialect have no sessions to come back to");
    let (_, first) = Transcript::open_again(me(), Dialect::CableExtended, rules(), sid);
    assert_eq!(first[0], "let in");
}

#[test]
fn a_session_is_left_for_its_client_unless_somebody_has_sent_it_away() {
    let end = |t: &mut Transcript, cause| t.input(|session, ctx| session.end(cause, ctx));
    assert!(end(&mut on_our_channel(with_broker()), CloseCause::PeerTimeout).contains(&"depart Some(1)".into()));
    assert!(end(&mut on_our_channel(with_broker()), CloseCause::IdleTimeout).contains(&"depart None".into()));
    let mut t = on_our_channel(with_broker());
    t.input(|session, ctx| session.remote_disconnect(true, ctx));
    assert!(end(&mut t, CloseCause::ClientGone).contains(&"depart None".into()), "whatever ends it first");
    assert!(!end(&mut on_our_channel(rules()), CloseCause::ClientGone).concat().contains("depart"));
    let (mut t, _) = Transcript::open(TokenOutcome::NoToken, Dialect::CableExtended, with_broker());
    assert_eq!(end(&mut t, CloseCause::ClientGone), ["cancel"], "who was not let in has none");
}

#[test]
fn presence_is_joined_left_and_asked_for_where_a_channel_has_it() {
    let mut t = on_our_channel(with_broker());
    let join = r#","presence":{"id":"42","info":{"name":"Ada"}}"#;
    let joined = r#"presence open Join { id: "42", info: Some("{\"name\":\"Ada\"}") }"#;
    assert_eq!(t.say(&command("join", OPEN, join))[1], joined);
    assert_eq!(t.say(&command("leave", OPEN, ""))[1], "presence open Leave");
    let asked = t.say(&command("presence", OPEN, r#","data":{"return_records":false}"#));
    assert_eq!(asked[1], r#"ask Broker(Present { stream: "open", records: false })"#);
    let told = t.broker(Ok(BrokerReply::Present(br#"{"type":"info","total":0}"#.to_vec())));
    let id = serde_json::to_string(OPEN).unwrap();
    assert_eq!(
        told,
        [format!(r#"send {{"type":"presence","identifier":{id},"message":{{"type":"info","total":0}}}}"#)]
    );
    assert_eq!(t.say(&command("unsubscribe", OPEN, ""))[1..], ["detach open", "presence open Leave"]);
    let mut t = on_our_channel(with_broker());
    assert!(t.input(|session, ctx| session.end(CloseCause::ClientGone, ctx)).contains(&"presence open Gone".into()));
    // A subscription may join at once; one whose app names no stream has no presence.
    let (mut t, _) = Transcript::open(me(), Dialect::CableExtended, with_broker());
    assert_eq!(t.say(&command("subscribe", OPEN, join)).last().unwrap(), joined);
    t.say(&command("subscribe", ROOM, ""));
    t.answer(Ok(success(|reply| reply.streams = vec!["room".into()])));
    assert!(t.say(&command("join", ROOM, join))[2].contains("presence on a channel that has none"));
}

#[test]
fn the_app_names_the_presence_stream_and_lets_its_client_join_and_leave() {
    let (mut t, _) = Transcript::open(me(), Dialect::CableExtended, with_broker());
    t.say(&command("subscribe", ROOM, ""));
    let presence = |kind: &str, id: &str, info: &str| {
        Some(crate::model::rpc::PresenceReply { kind: kind.into(), id: id.into(), info: info.into() })
    };
    let told = t.answer(Ok(success(|reply| {
        reply.streams = vec!["room".into()];
        reply.istate = vec![("$p".into(), "people".into())];
        reply.presence = presence("join", "1", "not JSON");
        reply.transmissions = vec!["confirmed".into()];
    })));
    assert_eq!(
        told,
        ["attach room", "send confirmed", r#"presence people Join { id: "1", info: Some("\"not JSON\"") }"#],
        "behind the confirmation, so that the client sees itself come"
    );
    t.say(&command("message", ROOM, r#","data":"x""#));
    assert_eq!(t.answer(Ok(success(|reply| reply.presence = presence("leave", "", "")))), ["presence people Leave"]);
    t.say(&command("message", ROOM, r#","data":"x""#));
    let told = t.answer(Ok(success(|reply| reply.presence = presence("dance", "", ""))));
    assert!(told[1].contains("\"dance\""), "{told:?}");
}
