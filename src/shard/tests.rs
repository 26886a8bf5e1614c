//! A shard with a machine and a node that do what a test says: what runs of the simulator rarely meet.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;

use super::*;
use crate::hub::StreamChange;
use crate::identity::StreamSettings;
use crate::model::{
    AppReply, CommandReply, DisconnectMode, PingPrecision, PresenceChange, Publication, Question, RemoteDisconnect,
    Request, SavedSession, Sid, SlotKey, Status,
};
use crate::proto::handshake::{Origins, PathPattern, Rules};

const SUBSCRIBE: &str = r#"{"command":"subscribe","identifier":"{\"channel\":\"$pubsub\",\"stream_name\":\"news\"}"}"#;
const UNSUBSCRIBE: &str =
    r#"{"command":"unsubscribe","identifier":"{\"channel\":\"$pubsub\",\"stream_name\":\"news\"}"}"#;

/// A connection, as the kernel has it.
struct Wire {
    token: u64,
    to_server: VecDeque<u8>,
    to_client: Vec<u8>,
    /// Bytes that the server can write.
    room: usize,
    is_gone: bool,
}

/// Everything around the shard.
#[derive(Default)]
struct State {
    now: Duration,
    wires: Vec<Wire>,
    /// Publications that the shard has been given.
    given: u64,
    /// What it followed and did not follow any more.
    changes: Vec<String>,
    /// Questions that are answered by the test.
    asked: Vec<(SlotKey, Question)>,
}

#[derive(Clone, Default)]
struct World(Rc<RefCell<State>>);

struct Socket {
    world: World,
    wire: usize,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.world.0.borrow_mut().wires[self.wire].is_gone = true;
    }
}

impl Machine for World {
    type Socket = Socket;

    fn now(&mut self) -> Now {
        let mono = self.0.borrow().now;
        Now { mono, unix: mono }
    }

    fn random(&mut self) -> u128 {
        7
    }

    fn accept(&mut self) -> Accepted<Socket> {
        Accepted::Nobody
    }

    fn pause_listening(&mut self) {}

    fn resume_listening(&mut self) {}

    fn stop_listening(&mut self) {}

    fn watch(&mut self, socket: &Socket, token: u64) -> io::Result<()> {
        self.0.borrow_mut().wires[socket.wire].token = token;
        Ok(())
    }

    fn set_interest(&mut self, _: &Socket, _: u64, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn unwatch(&mut self, _: &Socket) {}

    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<Received> {
        let bytes = &mut self.0.borrow_mut().wires[socket.wire].to_server;
        let count = bytes.len().min(buffer.len());
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        buffer.iter_mut().zip(bytes.drain(..count)).for_each(|(to, from)| *to = from);
        Ok(Received { bytes: count, maybe_more: false })
    }

    fn write(&mut self, socket: &Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let wire = &mut self.0.borrow_mut().wires[socket.wire];
        let bytes: Vec<u8> = bytes.iter().flat_map(|slice| slice.iter().copied()).take(wire.room).collect();
        wire.room -= bytes.len();
        wire.to_client.extend(&bytes);
        if bytes.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { Ok(bytes.len()) }
    }

    fn set_user_timeout(&mut self, _: &Socket, _: Duration) {}

    fn shut(&mut self, _: &Socket) {}

    fn tcp_info(&self, _: &Socket) -> Option<TcpInfo> {
        None
    }

    fn peer(&self, _: &Socket) -> Option<SocketAddr> {
        None
    }
}

impl Services<Socket> for World {
    fn ask(&mut self, key: SlotKey, _: Sid, question: Question) -> Option<Reply> {
        self.0.borrow_mut().asked.push((key, question));
        None
    }

    fn cancel(&mut self, _: SlotKey) {}

    fn tell(&mut self, _: SlotKey, _: Sid, _: Request) {}

    fn publish(&mut self, _: Publication) {}

    fn change_presence(&mut self, _: Sid, _: &str, _: PresenceChange) {}

    fn resident(&mut self, _: Sid, _: u32) {}

    fn departed(&mut self, _: Sid, _: Option<Box<SavedSession>>) {}

    fn stays(&mut self, _: Sid) {}

    fn not_here(&mut self, _: Sid, _: u32) {}

    fn may_go_on(&mut self, _: &SavedSession) -> bool {
        true
    }

    fn follow(&mut self, stream: &str, _: StreamChange) -> u64 {
        let state = &mut *self.0.borrow_mut();
        state.changes.push(format!("follows {stream}"));
        state.given
    }

    fn unfollow(&mut self, stream: &str, _: StreamChange) {
        self.0.borrow_mut().changes.push(format!("leaves {stream}"));
    }

    fn identity_came(&mut self, _: &str) {}

    fn identity_left(&mut self, _: &str) {}

    fn try_open(&mut self) -> bool {
        true
    }

    fn reopened(&mut self) {}

    fn closed(&mut self) {}

    fn serve_http(&mut self, incoming: Incoming<Socket>, _: Vec<u8>) -> Result<(), Socket> {
        Err(incoming.socket)
    }
}

fn settings() -> Settings {
    Settings {
        listeners: Vec::new(),
        stream_hasher: StreamHasher::new(1),
        handshake: Rules {
            cable_paths: vec![PathPattern::parse("/cable").unwrap()],
            echo_path: None,
            allowed_origins: Origins::parse(""),
            version_header: "test".into(),
            head_bytes_max: 1024,
            http_paths: Vec::new(),
        },
        handshake_timeout: Duration::from_secs(10),
        handshakes_max: 10,
        message_timeout: Duration::from_secs(60),
        limits: Limits { message_bytes_max: 1024, fragments_max: 10 },
        echo_limits: Limits { message_bytes_max: 1024, fragments_max: 10 },
        outbox_bytes_max: 0,
        buffers_bytes_max: usize::MAX,
        write_timeout: Duration::from_secs(2),
        user_timeouts: UserTimeouts::default(),
        session: session::Rules {
            ping_interval_ms: 0,
            ping_precision: PingPrecision::Seconds,
            pong_timeout_ms: 0,
            idle_timeout_ms: 0,
            native_pings: false,
            identifier_bytes_max: 1024,
            session_bytes_max: 64 << 10,
            has_backend: true,
            no_auth: true,
            disconnect_mode: DisconnectMode::Never,
            broker: false,
            cluster: false,
            replay_bytes: 64 << 10,
            sessions: false,
        },
        tokens: Tokens::default(),
        resume_tokens: None,
        router: StreamRouter::new(StreamSettings { public: true, ..Default::default() }),
        proxy: ProxyRules::default(),
        closes_max: 0,
        debug_identifiers: false,
    }
}

/// The shard, and who drives it.
struct Driver {
    shard: Shard<World, World>,
    world: World,
    /// What it has been given and has not received.
    inbox: VecDeque<Message<Socket>>,
}

impl Driver {
    fn new(change: impl FnOnce(&mut Settings)) -> Driver {
        let mut settings = settings();
        change(&mut settings);
        let world = World::default();
        world.0.borrow_mut().now = Duration::from_secs(1_000);
        let shard = Shard::new(0, world.clone(), world.clone(), Arc::new(settings), Arc::new(ShardMetrics::new(0)));
        Driver { shard, world, inbox: VecDeque::new() }
    }

    fn wire<T>(&self, wire: usize, look: impl FnOnce(&mut Wire) -> T) -> T {
        look(&mut self.world.0.borrow_mut().wires[wire])
    }

    fn turn(&mut self, does: impl FnOnce(&mut Shard<World, World>)) {
        self.shard.begin_turn();
        does(&mut self.shard);
        self.shard.end_turn();
    }

    /// The shard receives what it has been given.
    fn receive(&mut self) {
        let inbox = std::mem::take(&mut self.inbox);
        self.turn(|shard| inbox.into_iter().for_each(|message| shard.receive(message)));
    }

    fn pass(&mut self, time: Duration) {
        self.world.0.borrow_mut().now += time;
        self.turn(|_| {});
    }

    /// A socket to which so much can be written.
    fn socket(&self, room: usize) -> (usize, Socket) {
        let wires = &mut self.world.0.borrow_mut().wires;
        wires.push(Wire { token: 0, to_server: VecDeque::new(), to_client: Vec::new(), room, is_gone: false });
        (wires.len() - 1, Socket { world: self.world.clone(), wire: wires.len() - 1 })
    }

    fn connect(&mut self) -> usize {
        let (wire, socket) = self.socket(usize::MAX);
        let incoming = Incoming { socket, listener: 0 };
        let read = b"GET /cable HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Protocol: actioncable-v1-json\r\n\r\n";
        self.turn(|shard| shard.receive(Message::Adopt { incoming, read: read.to_vec() }));
        let heard = self.heard(wire);
        assert!(heard[0].starts_with("HTTP/1.1 101") && heard[1].contains("welcome"), "{heard:?}");
        wire
    }

    /// A client says something, and the shard reads it, in a turn of its own.
    fn say(&mut self, wire: usize, text: &str) {
        self.shard.begin_turn();
        self.say_in_turn(wire, text);
        self.shard.end_turn();
    }

    /// The same in a turn that goes on.
    fn say_in_turn(&mut self, wire: usize, text: &str) {
        let token = self.wire(wire, |wire| {
            let len = u8::try_from(text.len()).ok().filter(|len| *len < 126).expect("a short text");
            // With a key of zeros.
            wire.to_server.extend([0x81, 0x80 | len, 0, 0, 0, 0].into_iter().chain(text.bytes()));
            wire.token
        });
        self.shard.ready(token, Readiness { readable: true, writable: false, hangup: false });
    }

    /// A client has so much room again.
    fn makes_room(&mut self, wire: usize, room: usize) {
        let token = self.wire(wire, |wire| {
            wire.room = room;
            wire.token
        });
        self.shard.ready(token, Readiness { readable: false, writable: true, hangup: false });
    }

    fn publish(&mut self, stream: &str, message: &str) {
        self.world.0.borrow_mut().given += 1;
        let publication = Publication::new(stream, message);
        self.inbox.push_back(Message::Publication(Arc::new(Delivery { publication, permit: None })));
    }

    fn answer(&mut self, reply: Reply) {
        let (key, _) = self.world.0.borrow_mut().asked.pop().expect("something was asked");
        self.inbox.push_back(Message::Answer(Answer { key, reply }));
    }

    /// Everything whole that has come to a client: the response, texts, close codes.
    fn heard(&self, wire: usize) -> Vec<String> {
        self.wire(wire, |wire| {
            let mut heard = Vec::new();
            while let Some((text, len)) = next_heard(&wire.to_client) {
                wire.to_client.drain(..len);
                heard.push(text);
            }
            heard
        })
    }

    fn changes(&self) -> Vec<String> {
        std::mem::take(&mut self.world.0.borrow_mut().changes)
    }
}

fn next_heard(bytes: &[u8]) -> Option<(String, usize)> {
    if bytes.starts_with(b"HTTP") {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        return Some((String::from_utf8_lossy(&bytes[..end]).into_owned(), end));
    }
    let (head, len) = match bytes {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        [_, len, ..] => (2, usize::from(*len)),
        _ => return None,
    };
    let payload = bytes.get(head..head + len)?;
    let text = match bytes[0] & 0x0f {
        8 => format!("close {}", u16::from_be_bytes([payload[0], payload[1]])),
        9 => "ping".to_owned(),
        _ => String::from_utf8_lossy(payload).into_owned(),
    };
    Some((text, head + len))
}

fn messages(heard: Vec<String>) -> Vec<String> {
    heard.into_iter().filter(|text| text.contains("\"message\"")).collect()
}

#[test]
fn who_follows_a_stream_anew_gets_nothing_from_before() {
    for was_received in [false, true] {
        let mut driver = Driver::new(|_| {});
        let (one, other) = (driver.connect(), driver.connect());
        driver.say(one, SUBSCRIBE);
        driver.publish("news", "14");
        driver.shard.begin_turn();
        if was_received {
            let waiting = std::mem::take(&mut driver.inbox);
            waiting.into_iter().for_each(|message| driver.shard.receive(message));
        }
        driver.say_in_turn(one, UNSUBSCRIBE);
        // What is published here goes past the shard.
        assert_eq!(driver.changes(), ["follows news", "leaves news"]);
        driver.say_in_turn(other, SUBSCRIBE);
        driver.publish("news", "16");
        driver.shard.end_turn();
        driver.receive();
        let got = messages(driver.heard(other));
        assert!(matches!(&got[..], [only] if only.contains("16")), "{got:?}");
        assert!(messages(driver.heard(one)).is_empty());
    }
}

#[test]
fn who_follows_beside_others_gets_what_waited() {
    let mut driver = Driver::new(|_| {});
    let (one, other) = (driver.connect(), driver.connect());
    driver.say(one, SUBSCRIBE);
    driver.publish("news", "14");
    driver.say(other, SUBSCRIBE);
    driver.say(one, UNSUBSCRIBE);
    driver.receive();
    assert_eq!(messages(driver.heard(other)).len(), 1);
}

#[test]
fn a_subscription_that_is_confirmed_later_gets_nothing_from_before() {
    let mut driver = Driver::new(|settings| settings.session.cluster = true);
    let client = driver.connect();
    driver.say(client, SUBSCRIBE);
    assert!(driver.heard(client).is_empty());
    // Behind it comes the word that everything comes now.
    driver.publish("news", "14");
    driver.answer(Reply::Followed);
    driver.publish("news", "16");
    driver.receive();
    let heard = driver.heard(client);
    assert!(matches!(&heard[..], [first, last] if first.contains("confirm") && last.contains("16")), "{heard:?}");
}

#[test]
fn a_stream_that_is_stopped_and_started_in_one_breath_is_followed_all_the_time() {
    let mut driver = Driver::new(|_| {});
    let client = driver.connect();
    let said = |command: &str| format!(r#"{{"command":"{command}","identifier":"room","data":"x"}}"#);
    let reply = |stop_streams, streams: &[&str]| {
        let streams = streams.iter().map(|&stream| stream.to_owned()).collect();
        let reply = CommandReply { status: Status::Success, stop_streams, streams, ..Default::default() };
        Reply::App(Ok(AppReply::Command(reply)))
    };
    driver.say(client, &said("subscribe"));
    driver.answer(reply(false, &["a", "b"]));
    driver.receive();
    assert_eq!(driver.changes(), ["follows a", "follows b"]);
    driver.say(client, &said("message"));
    driver.publish("b", "14");
    driver.answer(reply(true, &["b", "c"]));
    driver.receive();
    assert_eq!(driver.changes(), ["leaves a", "follows c"]);
    assert_eq!(messages(driver.heard(client)).len(), 1);
    driver.say(client, &said("message"));
    driver.answer(reply(true, &[]));
    driver.receive();
    assert_eq!(driver.changes(), ["leaves b", "leaves c"]);
}

/// A driver whose only client is being closed and has no room for its last words, and whose shard has stood still for nearly
/// all of the 4 s that it has for that.
fn closing_and_still() -> (Driver, usize) {
    let mut driver = Driver::new(|_| {});
    let client = driver.connect();
    driver.wire(client, |wire| wire.room = 3);
    let identifiers = driver.shard.sid(0).map(|sid| format!("{{\"sid\":\"{sid}\"}}")).unwrap();
    let disconnect = RemoteDisconnect { identifiers: identifiers.as_str().into(), reconnect: false };
    driver.turn(|shard| shard.receive(Message::Disconnect(disconnect)));
    driver.turn(Shard::stop);
    driver.pass(Duration::from_millis(3_700));
    (driver, client)
}

#[test]
fn a_pause_takes_no_time_from_a_client_that_is_being_closed() {
    let (mut driver, client) = closing_and_still();
    driver.turn(Shard::go_on);
    driver.pass(Duration::from_millis(3_500));
    assert!(!driver.wire(client, |wire| wire.is_gone));
    driver.makes_room(client, 1_000);
    driver.turn(|_| {});
    assert_eq!(driver.heard(client).last().map(String::as_str), Some("close 1000"));
    driver.pass(Duration::from_secs(3));
    assert!(driver.wire(client, |wire| wire.is_gone));
}

#[test]
fn the_time_of_a_pause_goes_along_to_another_process() {
    let (driver, _) = closing_and_still();
    let key = driver.shard.all_keys().next().unwrap();
    let (_, state) = driver.shard.copy(key).unwrap();
    let mut driver = Driver::new(|_| {});
    let (client, socket) = driver.socket(0);
    driver.turn(|shard| assert!(shard.put_together(socket, &state).is_ok()));
    driver.pass(Duration::from_millis(3_500));
    assert!(!driver.wire(client, |wire| wire.is_gone));
    driver.pass(Duration::from_secs(1));
    assert!(driver.wire(client, |wire| wire.is_gone));
}

#[test]
fn a_pause_takes_no_time_from_a_client_that_has_no_room_for_its_ping() {
    let mut driver = Driver::new(|settings| {
        (settings.session.ping_interval_ms, settings.session.pong_timeout_ms) = (3_000, 1_000);
        settings.session.native_pings = true;
    });
    let client = driver.connect();
    driver.wire(client, |wire| wire.room = 3);
    while driver.wire(client, |wire| wire.room) > 0 {
        driver.pass(Duration::from_millis(100));
    }
    driver.turn(Shard::stop);
    driver.pass(Duration::from_millis(900));
    driver.makes_room(client, 1_000);
    driver.turn(Shard::go_on);
    assert_eq!(driver.heard(client).last().map(String::as_str), Some("ping"));
    driver.pass(Duration::from_millis(800));
    assert!(driver.heard(client).is_empty());
    driver.pass(Duration::from_secs(1));
    let heard = driver.heard(client);
    assert!(heard.iter().any(|text| text.contains("no_pong")), "{heard:?}");
}
