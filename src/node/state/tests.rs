use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs};

use serde_bytes::ByteBuf;
use tokio::runtime::Runtime;

use super::*;
use crate::backend::{self, Backend, Target};
use crate::broadcast::Broadcast;
use crate::broker::{MemorySettings, Resumption, SessionsSettings};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::http::HttpMetrics;
use crate::hub::StreamHasher;
use crate::model::{
    Admission, BrokerReply, Call, CommandKind, Env, HistoryRequest, Position, PresenceChange, Publication, Request,
    ResumeTicket, SavedSession, SavedSubscription, Sid, State, Topic,
};
use crate::node::counts::Counts;
use crate::node::publish::Pipeline;
use crate::os::clock::Clock;
use crate::shard::{Inbox, ShardMetrics};

/// The parts of a node, of which no thread runs.
struct Bare {
    parts: Parts,
    _runtime: Runtime,
}

fn memory() -> MemorySettings {
    MemorySettings {
        epoch: "e".into(),
        history_limit: 10,
        history_ttl: Duration::from_secs(300),
        history_bytes_max: 1 << 30,
        presence_ttl: Duration::from_secs(15),
        presence_bytes_max: 1 << 30,
        sessions: SessionsSettings { ttl: Duration::from_secs(300), bytes_max: 1 << 30 },
    }
}

fn bare(epoch: &str) -> Bare {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let inboxes: Arc<[_]> = [Arc::new(Inbox::new().unwrap())].into();
    let settings = backend::Settings { target: Target::parse("127.0.0.1:1").unwrap(), ..backend::Settings::default() };
    let backend = Arc::new(Backend::start(settings, runtime.handle(), Arc::new(drop)).unwrap());
    backend.hold();
    let broker = Broker::Local(LocalBroker::new(Some(MemorySettings { epoch: epoch.into(), ..memory() })));
    let hasher = StreamHasher::new(1);
    let pipeline = Arc::new(Pipeline::new(Arc::clone(&inboxes), hasher, broker, Cluster::default(), Clock::start()));
    let parts = Parts {
        config: Mutex::new(Arc::new(Config::default())),
        open_files: 1000,
        shards: [Arc::new(ShardMetrics::new(0))].into(),
        inboxes,
        http: Arc::new(HttpMetrics::default()),
        backend,
        counts: Arc::new(Counts::new(10)),
        broadcast: Arc::new(Broadcast::new(Arc::clone(&pipeline) as Arc<_>)),
        pipeline,
        listeners: Arc::default(),
        draining: Arc::new(AtomicBool::new(false)),
        links: Vec::new(),
        redisx: None,
        handed: Arc::default(),
        inherited: Arc::default(),
        control: Arc::default(),
        family: None,
        upgrades: Arc::default(),
    };
    Bare { parts, _runtime: runtime }
}

fn local(bare: &Bare) -> &LocalBroker {
    match &bare.parts.pipeline.broker {
        Broker::Local(local) => local,
        Broker::Remote(_) | Broker::Parent(_) => unreachable!(),
    }
}

fn at(seconds: u64) -> Now {
    Now { mono: Duration::from_secs(seconds), unix: Duration::from_secs(1_790_000_000 + seconds) }
}

fn key(index: u32) -> SlotKey {
    SlotKey { shard: 0, index, generation: 3 }
}

fn saved(n: u128) -> SavedSession {
    SavedSession {
        sid: Sid::from_bits(n),
        saved_at: 0,
        identifiers: format!("{{\"user\":\"{n}\"}}").into(),
        admission: Admission::App,
        cstate: [("a", "b")].into_iter().collect(),
        subscriptions: vec![SavedSubscription {
            topics: vec![Topic::new("{\"channel\":\"Room\"}", "room:1")],
            istate: [("c", "d")].into_iter().collect(),
            here: Some((true, false)),
        }],
        disconnectable: true,
    }
}

fn call(index: u32, request: Request) -> Call {
    Call { key: key(index), sid: Sid::from_bits(index.into()), request }
}

fn env() -> Env {
    Env::new("http://h/cable?a=1", [("cookie", "a=b"), ("x-api", "1")]).with_identifiers("me")
}

/// A snapshot and its pieces.
fn snapshot(bare: &Bare) -> (Snapshot, Vec<ByteBuf>) {
    let mut pieces = Vec::new();
    let send = |piece: Vec<u8>| {
        pieces.push(ByteBuf::from(piece));
        Ok::<(), ()>(())
    };
    let snapshot = Snapshot::give(&bare.parts, send).unwrap();
    (snapshot, pieces)
}

/// Something of everything. The same each time.
fn fill(bare: &Bare) -> (Snapshot, Vec<ByteBuf>) {
    let local = local(bare);
    let publish = |stream: &str, message: &str, kind: Option<&str>, seconds| {
        let publication = Publication { kind: kind.map(Into::into), ..Publication::new(stream, message) };
        local.in_order(publication, at(seconds), |_| {});
    };
    publish("room:1", "\"before\"", None, 1);
    publish("room:2", "{\"a\":1}", Some("event"), 2);
    let sessions = local.sessions().unwrap();
    sessions.departed(Sid::from_bits(1), Some(Box::new(saved(1))), at(3), &local.metrics);
    sessions.departed(Sid::from_bits(2), Some(Box::new(saved(2))), at(3), &local.metrics);
    let join = |id: &str, info: Option<&str>| PresenceChange::Join { id: id.into(), info: info.map(Into::into) };
    local.change_presence("room:1", Sid::from_bits(1), join("ann", Some("{\"n\":1}")), at(3), |_| {});
    bare.parts.broadcast.metrics().publications_total.add(7);
    bare.parts.backend.metrics().rpc_call_seconds.observe(Duration::from_millis(3));
    bare.parts.shards[0].counters.clients_num.set(5);
    let snapshot = snapshot(bare);
    publish("room:1", "\"behind\"", None, 4);
    sessions.send_away(&saved(2).identifiers, at(5));
    sessions.departed(Sid::from_bits(3), Some(Box::new(saved(3))), at(30), &local.metrics);
    local.change_presence("room:1", Sid::from_bits(1), PresenceChange::Gone, at(5), |_| {});
    local.change_presence("room:2", Sid::from_bits(3), join("bob", None), at(5), |_| {});
    let command = Request::Command {
        command: CommandKind::Message,
        identifier: "{\"channel\":\"Room\"}".into(),
        data: "{\"action\":\"x\"}".to_owned(),
        env: env(),
        cstate: State::default(),
        istate: [("c", "d")].into_iter().collect(),
    };
    bare.parts.backend.submit(call(1, command)).unwrap();
    let subscriptions = vec![("{\"channel\":\"Room\"}".into(), State::default())];
    let goodbye = Request::Disconnect { subscriptions, env: env(), cstate: [("a", "b")].into_iter().collect() };
    bare.parts.backend.disconnect(call(2, goodbye)).unwrap();
    snapshot
}

/// Whether a node goes on from what [`fill`] has put into another one.
fn check(new: &Bare) {
    let broker = local(new);
    let since = |offset| HistoryRequest {
        since: 0,
        positions: vec![("room:1".into(), Position { epoch: "e".into(), offset })],
    };
    let missed = |offset| match broker.history(&["room:1".into()], &since(offset), at(6)) {
        Ok(BrokerReply::History(missed)) => {
            missed[0].publications.iter().map(|publication| publication.message.to_string()).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((missed(1), missed(2)), (vec!["\"behind\"".to_owned()], vec![]));
    let next = broker.in_order(Publication::new("room:1", "1"), at(7), |publication| publication.position.unwrap());
    assert_eq!((&*next.epoch, next.offset), ("e", 3));
    let present = |stream: &str| String::from_utf8(broker.present(stream, true, 1000).unwrap()).unwrap();
    assert!(present("room:1").contains("\"info\":{\"n\":1},\"id\":\"ann\""), "{}", present("room:1"));
    assert!(present("room:2").contains("bob"));
    // Its connection was over at 5, and it is present for 15 seconds.
    (0..64).for_each(|part| broker.sweep(part, at(21), |_| {}));
    assert!(!present("room:1").contains("ann") && present("room:2").contains("bob"));
    let sessions = broker.sessions().unwrap();
    let resume = |n: u128| {
        let ticket = ResumeTicket { sid: Sid::from_bits(n), identifiers: None };
        match sessions.resume(ticket, key(9), at(31), &broker.metrics) {
            Resumption::Now(saved) => saved,
            Resumption::AfterYield(..) => panic!("nobody lives"),
        }
    };
    assert_eq!(resume(1), Some(Box::new(SavedSession { saved_at: 3, ..saved(1) })));
    assert_eq!(resume(1), None, "once");
    assert_eq!(resume(2), None, "sent away");
    assert_eq!(resume(3), Some(Box::new(SavedSession { saved_at: 30, ..saved(3) })));

    renamed(&new.parts, &Moved::from([(key(1), key(77))]));
    let held = new.parts.backend.held();
    assert_eq!(held.of_sessions.iter().map(|call| call.key).collect::<Vec<_>>(), [key(77)]);
    assert!(matches!(&held.of_sessions[0].request, Request::Command { env, .. } if env.url() == "http://h/cable?a=1"));
    assert_eq!(held.disconnects.len(), 1);
    let mut families = telemetry::Families::default();
    new.parts.broadcast.metrics().publications_total.inc();
    counted::collect(&new.parts, &mut families);
    let text = families.to_text("", telemetry::Text::Prometheus);
    for line in ["publications_total 8", "rpc_call_seconds_count 1", "clients_num 0"] {
        assert!(text.lines().any(|known| known == line), "{line}");
    }
}

fn over(pieces: &[ByteBuf], state: &[u8]) -> Result<Bare, BadNodeState> {
    let new = bare("other");
    pieces.iter().try_for_each(|piece| Piece::from_bytes(piece)?.apply(&new.parts))?;
    NodeState::from_bytes(state)?.apply(&new.parts);
    Ok(new)
}

#[test]
fn a_node_goes_on_where_another_was() {
    let old = bare("e");
    let (first, pieces) = fill(&old);
    let state = NodeState::collect(&old.parts, &first).to_bytes();
    check(&over(&pieces, &state).unwrap());
    // And a third where the second was, of which all is in the snapshot.
    let second = over(&pieces, &state).unwrap();
    renamed(&second.parts, &Moved::from([(key(1), key(1))]));
    let (again, pieces) = snapshot(&second);
    let state = NodeState::collect(&second.parts, &again).to_bytes();
    assert!(again.bytes > first.bytes);
    check(&over(&pieces, &state).unwrap());
}

/// Where the files of all formats that were released lie.
fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/upgrade")
}

#[test]
fn what_was_written_in_every_released_format_is_understood() {
    let folder = fixtures();
    if env::var_os("CABLEWAY_BLESS").is_some() {
        let old = bare("e");
        let (snapshot, pieces) = fill(&old);
        let state = NodeState::collect(&old.parts, &snapshot);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in [("snapshot", written(&pieces)), ("state", state.to_bytes())] {
            let path = folder.join(format!("format-{STATE_FORMAT}.{name}"));
            // A file that was released stays as it was.
            if !path.exists() {
                fs::write(path, bytes).unwrap();
            }
        }
    }
    for format in 1..=STATE_FORMAT {
        let read =
            |name: &str| fs::read(folder.join(format!("format-{format}.{name}"))).expect("CABLEWAY_BLESS=1 writes it");
        let pieces: Vec<ByteBuf> = rmp_serde::from_slice(&read("snapshot")).unwrap();
        check(&over(&pieces, &read("state")).unwrap());
    }
}

#[test]
fn what_a_later_version_adds_is_passed_over_and_another_format_is_refused() {
    #[derive(Serialize)]
    struct Later {
        format: u16,
        colour: &'static str,
        local: BrokerPart,
        shapes: Vec<(u8, Option<&'static str>)>,
    }
    let later = |format| {
        let shapes = vec![(1, None), (2, Some("round"))];
        written(&Later { format, colour: "red", local: BrokerPart::default(), shapes })
    };
    NodeState::from_bytes(&later(STATE_FORMAT)).unwrap();
    let error = NodeState::from_bytes(&later(STATE_FORMAT + 1)).err().unwrap();
    assert_eq!(error.to_string(), "the state of the old process has format 2, and 1 is understood here");
    assert!(matches!(NodeState::from_bytes(&later(0)).err(), Some(BadNodeState::Format(0))));
}

#[test]
fn bad_bytes_are_an_error_and_change_nothing() {
    // Aim: no panic, and nothing is taken over unless all of it can be read. Each prefix, and bytes changed at random.
    let old = bare("e");
    let (snapshot, pieces) = fill(&old);
    let state = NodeState::collect(&old.parts, &snapshot).to_bytes();
    for end in 0..state.len() {
        assert!(NodeState::from_bytes(&state[..end]).is_err(), "{end}");
    }
    for piece in &pieces {
        assert!((0..piece.len()).all(|end| Piece::from_bytes(&piece[..end]).is_err()));
    }
    let mut random = 7u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize
    };
    let (mut read, mut refused) = (0, 0);
    for _ in 0..500 {
        let (mut bad_pieces, mut bad_state) = (pieces.clone(), state.clone());
        let changed = next() % pieces.len();
        for bytes in [&mut *bad_pieces[changed], &mut bad_state] {
            for _ in 0..next() % 3 {
                let at = next() % bytes.len();
                bytes[at] = next() as u8;
            }
        }
        match over(&bad_pieces, &bad_state) {
            Ok(new) => {
                read += 1;
                // Whatever it says, it can be gone on with.
                renamed(&new.parts, &Moved::default());
                local(&new).in_order(Publication::new("room:1", "1"), at(100), |_| {});
                (0..64).for_each(|part| local(&new).sweep(part, at(10_000), |_| {}));
                local(&new).measure();
                let mut families = telemetry::Families::default();
                counted::collect(&new.parts, &mut families);
                drop(families.to_text("", telemetry::Text::Prometheus));
            }
            Err(_) => refused += 1,
        }
    }
    assert!(read > 20 && refused > 20, "{read} {refused}");
}

/// Figures for the documentation: `cargo test --release --lib state::tests::figures -- --ignored --nocapture`.
#[test]
#[ignore = "takes memory and time, and proves nothing"]
fn figures_of_much_history_and_of_many_sessions() {
    let clock = Clock::start();
    let took = |what: &str, from: Duration| {
        println!("{what}: {} ms", (clock.now().mono - from).as_millis());
        clock.now().mono
    };
    let old = bare("e");
    let text = format!("\"{}\"", "x".repeat(1000));
    let mut streams = 0u64;
    while local(&old).metrics.history_bytes.get() < 256 << 20 {
        for _ in 0..1000 {
            for _ in 0..10 {
                local(&old).in_order(Publication::new(format!("room:{streams}"), &*text), at(1), |_| {});
            }
            streams += 1;
        }
        local(&old).measure();
    }
    let sessions = local(&old).sessions().unwrap();
    for n in 0..100_000u128 {
        sessions.departed(Sid::from_bits(n), Some(Box::new(saved(n))), at(1), &local(&old).metrics);
    }
    println!("{streams} streams, {} messages", local(&old).metrics.history_messages_num.get());
    let begun = clock.now().mono;
    let (snapshot, pieces) = snapshot(&old);
    let at_snapshot = took(&format!("snapshot of {} bytes taken", snapshot.bytes), begun);
    for n in 0..10_000u64 {
        local(&old).in_order(Publication::new(format!("room:{}", n * 7 % streams), &*text), at(1), |_| {});
    }
    let published = took("10,000 publications", at_snapshot);
    let state = NodeState::collect(&old.parts, &snapshot);
    let bytes = state.to_bytes();
    let collected = took(&format!("state of {} bytes collected", bytes.len()), published);
    let new = bare("other");
    pieces.iter().for_each(|piece| Piece::from_bytes(piece).unwrap().apply(&new.parts).unwrap());
    let applied = took("snapshot read and applied", collected);
    NodeState::from_bytes(&bytes).unwrap().apply(&new.parts);
    took("state read and applied", applied);
    local(&new).measure();
    let count = |bare: &Bare| {
        let metrics = &local(bare).metrics;
        [&metrics.history_messages_num, &metrics.history_bytes, &metrics.saved_sessions_num].map(|gauge| gauge.get())
    };
    local(&old).measure();
    assert_eq!(count(&new)[0], count(&old)[0]);
    assert_eq!(count(&new)[2], count(&old)[2]);
}
