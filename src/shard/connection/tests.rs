//! What this version writes is read by every later one: `tests/fixtures/upgrade/connections-1.bin` is what the first version
//! wrote of one connection of each kind. `CABLEWAY_BLESS=1` writes the file of a new format.

use std::path::PathBuf;
use std::{env, fs};

use serde_bytes::ByteBuf;

use super::*;
use crate::model::{DisconnectMode, Env, Now, PingPrecision, Question, Routed, Sid, TokenOutcome, Topic};
use crate::proto::frame::{Limits, Message};
use crate::session::{Asks, Context, Opening, Rules};
use crate::shard::frame::Frame;

const STREAM: &str = r#"{"channel":"$pubsub","stream_name":"news"}"#;

const NOW: Duration = Duration::from_secs(1_000);

fn rules(no_auth: bool) -> Rules {
    Rules {
        ping_interval_ms: 3_000,
        ping_precision: PingPrecision::Seconds,
        pong_timeout_ms: 0,
        idle_timeout_ms: 0,
        native_pings: false,
        identifier_bytes_max: 4096,
        session_bytes_max: 256 << 10,
        has_backend: true,
        no_auth,
        disconnect_mode: DisconnectMode::Auto,
        broker: false,
        cluster: true,
        replay_bytes: 64 << 10,
        sessions: false,
    }
}

/// A session that has said this.
fn session(no_auth: bool, said: &[&str]) -> Session {
    let (rules, mut effects) = (rules(no_auth), Vec::new());
    let route = |identifier: &str| match identifier {
        STREAM => Routed::Stream { name: "news".into(), whisper: false, presence: false },
        _ => Routed::Backend,
    };
    let mut ctx = Context {
        rules: &rules,
        now: Now { mono: NOW, unix: NOW },
        heartbeat_phase: 0,
        topic: &Topic::new,
        resume_token: &|_| None,
        route: &route,
        effects: &mut effects,
    };
    let opening = Opening {
        sid: Sid::from_bits(7),
        env: Env::new("http://h/cable", [("cookie", "a=1")]),
        dialect: Dialect::CableExtended,
        token: TokenOutcome::NoToken,
        ping_interval: None,
        ping_precision: None,
        resume: None,
    };
    let mut session = Session::open(opening, &mut ctx);
    said.iter().for_each(|text| session.message(&Message::Text((*text).into()), &mut ctx));
    drop(effects);
    session
}

fn state<'a>(stage: StageState<&'a Session>, reader: &'a FrameReader) -> ToWrite<'a> {
    ConnectionState {
        format: FORMAT,
        phase_ms: 150,
        carrier: Carrier::WebSocket,
        dialect: Dialect::CableExtended,
        listener: 1,
        stage,
        reader,
        age_ticks: 11,
        session_clock: tick(NOW),
        message_ticks_left: None,
        token_ticks_left: Some(12),
        idle_ticks_left: None,
        outbox: None,
        stash: Vec::new(),
        counted: true,
        indexed: true,
        peer_shut: false,
    }
}

/// One connection of each kind, as this version writes them.
fn written() -> Vec<ByteBuf> {
    let parked = FrameReader::new();
    let mut unfinished = FrameReader::new();
    let limits = Limits { message_bytes_max: 1000, fragments_max: 10 };
    // Half of a masked text frame of 5 bytes.
    let mut half = [0x81, 0x85, 0, 0, 0, 0, b'h', b'a'];
    let event = unfinished.next(&mut &mut half[..], &limits);
    assert!(matches!(event, Ok(None)));
    let outbox = {
        let mut outbox = Outbox::default();
        outbox.push(Frame::new(b"\x81\x05hello"));
        outbox.write_with(|_| Ok(3)).unwrap();
        outbox.push(Frame::new(b"\x81\x01!"));
        outbox.set_stalled_until(tick(NOW) + 9);
        outbox.copy(tick(NOW))
    };
    let peer = "192.0.2.1:99".parse().unwrap();
    let handshake = StageState::Handshake {
        peer,
        lasted: Duration::from_millis(1500),
        ticks_left: 20,
        head: b"GET /cable HTTP/1.1\r\n".to_vec(),
    };
    let idle = session(true, &[&format!("{{\"command\":\"subscribe\",\"identifier\":{STREAM:?}}}")]);
    let asking = session(false, &[]);
    let to_write = [
        state(handshake, &parked),
        ToWrite { message_ticks_left: Some(5), outbox: Some(outbox), ..state(StageState::Echo, &unfinished) },
        state(StageState::Session(&idle), &parked),
        ToWrite { stash: b"\x81\x80".to_vec(), ..state(StageState::Session(&asking), &parked) },
        ToWrite { peer_shut: true, ..state(StageState::Closing { ticks_left: 3 }, &parked) },
        state(StageState::Orphan(&asking), &parked),
    ];
    to_write.iter().map(|state| ByteBuf::from(rmp_serde::to_vec_named(state).unwrap())).collect()
}

#[test]
fn connections_of_the_first_format_are_read() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/upgrade/connections-1.bin");
    if FORMAT == 1 && env::var_os("CABLEWAY_BLESS").is_some() {
        fs::write(&file, rmp_serde::to_vec(&written()).unwrap()).unwrap();
    }
    let states: Vec<ByteBuf> = rmp_serde::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut states = states.iter().map(|state| read(state).unwrap());
    let mut next = || states.next().unwrap();

    let handshake = next();
    let StageState::Handshake { peer, lasted, ticks_left, head } = handshake.stage else { panic!() };
    assert_eq!((peer.to_string(), lasted.as_millis(), ticks_left), ("192.0.2.1:99".to_owned(), 1500, 20));
    assert_eq!(head, b"GET /cable HTTP/1.1\r\n");
    assert_eq!((handshake.phase_ms, handshake.listener, handshake.age_ticks), (150, 1, 11));
    assert_eq!((handshake.token_ticks_left, handshake.counted, handshake.indexed), (Some(12), true, true));

    let echo = next();
    assert!(matches!(echo.stage, StageState::Echo) && !echo.reader.is_parked());
    assert_eq!(echo.message_ticks_left, Some(5));
    let mut outbox = Outbox::put_together(echo.outbox.unwrap(), 100);
    assert_eq!(outbox.stalled_until(), Some(109));
    let mut out = Vec::new();
    let write = |slices: &[std::io::IoSlice<'_>]| {
        slices.iter().for_each(|slice| out.extend_from_slice(slice));
        Ok(out.len())
    };
    outbox.write_with(write).unwrap();
    assert_eq!(out, b"ello\x81\x01!");
    let (mut reader, mut rest) = (echo.reader, *b"llo");
    let limits = Limits { message_bytes_max: 1000, fragments_max: 10 };
    let mut rest = &mut rest[..];
    let event = reader.next(&mut rest, &limits).unwrap().unwrap();
    assert!(matches!(event, crate::proto::frame::Event::Message(Message::Text(text)) if text == "hallo"));

    let StageState::Session(idle) = next().stage else { panic!() };
    assert_eq!((idle.sid(), idle.topics().next().unwrap().stream()), (Sid::from_bits(7), "news"));
    assert_eq!(idle.asks(), Some(Asks::Cluster));
    assert_eq!(idle.cluster_question(), Some(Question::Followed(vec!["news".into()])));

    let asking = next();
    assert_eq!(asking.stash, b"\x81\x80");
    assert!(matches!(asking.stage, StageState::Session(session) if session.asks() == Some(Asks::App)));
    let closing = next();
    assert!(matches!(closing.stage, StageState::Closing { ticks_left: 3 }) && closing.peer_shut);
    assert!(matches!(next().stage, StageState::Orphan(session) if session.is_app_asked()));
}

#[test]
fn a_connection_of_another_format_is_refused_by_its_number() {
    let parked = FrameReader::new();
    let mut other = state(StageState::Echo, &parked);
    other.format = FORMAT + 1;
    let bytes = rmp_serde::to_vec_named(&other).unwrap();
    assert!(matches!(read(&bytes), Err(BadState::Format(format)) if format == FORMAT + 1));
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_err());
    }
}
