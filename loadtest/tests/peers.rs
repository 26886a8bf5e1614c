//! The client engine against a server, and the yardstick against a client, that somebody else wrote (tungstenite); and
//! the engine against servers that misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use cableway_loadtest::bare;
use cableway_loadtest::engine::{Counts, Engine, Failure, Goodbye, Pace, Reply, Saying, Settings, Sources};
use cableway_loadtest::protocol::{self, Protocol, Script, Target};
use cableway_loadtest::publish::{Credentials, Publisher};
use cableway_loadtest::template::Template;
use tungstenite::{Message, WebSocket, accept};

const LIMIT: Duration = Duration::from_secs(20);

/// Listens on a free port and gives each connection its own thread.
fn serve(handle: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

fn settings(server: SocketAddr, protocol: Protocol, connections: u32) -> Settings {
    let target = Target { authority: server.to_string(), path: "/".into() };
    let identifier = (protocol == Protocol::ActionCable).then_some(r#"{"channel":"Test","id":"{n}"}"#);
    Settings {
        server,
        script: Script::new(protocol, &target, 0, identifier),
        connections,
        first_number: 0,
        lanes: 2,
        sources: Sources::for_server(server, connections),
        ready_timeout: Duration::from_secs(10),
        retry_after: None,
    }
}

fn opened(settings: &Settings) -> Engine {
    let engine = Engine::start(settings).unwrap();
    engine.open(Pace::Window(16));
    let all = u64::from(settings.connections);
    assert!(engine.wait(LIMIT, |counts| counts.ready + counts.failed() >= all), "{:?}", engine.counts());
    engine
}

fn failures(settings: &Settings) -> Counts {
    opened(settings).counts()
}

fn echo(stream: TcpStream) {
    let Ok(mut socket) = accept(stream) else { return };
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            return;
        }
    }
}

#[test]
fn messages_of_all_sizes_come_back_from_tungstenite() {
    let engine = opened(&settings(serve(echo), Protocol::Raw, 10));
    for (round, size) in [0, 125, 126, 10_000, 70_000, 300_000].into_iter().enumerate() {
        let texts = vec![Template::new(&"x".repeat(size))];
        engine.say(Saying { texts, reply: Reply::Any, rounds: 3, at_once: 4 });
        let expected = 10 * (round as u64 + 1);
        assert!(engine.wait(LIMIT, |counts| counts.said == expected), "size {size}: {:?}", engine.counts());
    }
    assert_eq!(engine.counts().replies, 180);
    assert_eq!(engine.collect(0).reply_us.len(), 180);
    assert_eq!(engine.counts().failed(), 0);
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let (seen, pongs) = std::sync::mpsc::channel();
    let server = serve(move |stream| {
        let mut socket = accept(stream).unwrap();
        socket.send(Message::Ping(vec![1, 2, 3].into())).unwrap();
        while let Ok(message) = socket.read() {
            seen.send(message).unwrap();
        }
    });
    let engine = opened(&settings(server, Protocol::Raw, 1));
    assert_eq!(pongs.recv_timeout(LIMIT).unwrap(), Message::Pong(vec![1, 2, 3].into()));
    assert_eq!(engine.counts().pings, 1);
}

fn send_marks(socket: &mut WebSocket<TcpStream>, numbers: &[u32]) {
    for number in numbers {
        socket.send(Message::text(format!("\"{}\"", protocol::mark(*number, 1)))).unwrap();
    }
}

#[test]
fn lost_doubled_and_reordered_messages_are_each_counted() {
    let server = serve(|stream| {
        let mut socket = accept(stream).unwrap();
        // 2 comes late, 3 comes twice, 5 and 6 never.
        send_marks(&mut socket, &[0, 1, 3, 2, 3, 4, 7]);
        let _ = socket.read();
    });
    let engine = opened(&settings(server, Protocol::Raw, 3));
    assert!(engine.wait(LIMIT, |counts| counts.marked == 21));
    let counts = engine.counts();
    assert_eq!((counts.reordered, counts.duplicated, counts.lost_between()), (3, 3, 6));
    assert_eq!(engine.collect(10).missing_at_end, 6, "8 and 9 are missing at the end of each");
}

#[test]
fn fragments_and_frames_cut_anywhere_make_whole_messages() {
    let server = serve(|stream| {
        let mut raw = stream.try_clone().unwrap();
        raw.set_nodelay(true).unwrap();
        let _socket = accept(stream).unwrap();
        // "~0@1~" in three fragments with a ping between, one byte at a time.
        let bytes = b"\x01\x02~0\x89\x00\x00\x02@1\x80\x01~\x81\x05~1@1~";
        for byte in bytes {
            raw.write_all(&[*byte]).unwrap();
        }
        std::thread::park();
    });
    let engine = opened(&settings(server, Protocol::Raw, 2));
    assert!(engine.wait(LIMIT, |counts| counts.marked == 4), "{:?}", engine.counts());
    let counts = engine.counts();
    assert_eq!((counts.skipped, counts.pings, counts.failed()), (0, 2, 0));
}

#[test]
fn every_kind_of_refusal_has_its_own_counter() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(failures(&settings(nobody, Protocol::Raw, 3)).failures[Failure::Refused as usize], 3);

    let answer = |bytes: &'static [u8]| {
        serve(move |mut stream| {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(bytes);
            let _ = stream.read(&mut head);
        })
    };
    for (bytes, failure) in [
        (&b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"[..], Failure::Status),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n", Failure::Handshake),
        (b"SSH-2.0-nothing\r\n", Failure::Handshake),
    ] {
        assert_eq!(failures(&settings(answer(bytes), Protocol::Raw, 2)).failures[failure as usize], 2, "{failure:?}");
    }

    let silent = serve(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let hasty = Settings { ready_timeout: Duration::from_millis(200), ..settings(silent, Protocol::Raw, 2) };
    assert_eq!(failures(&hasty).failures[Failure::Timeout as usize], 2);

    let closing = serve(|stream| {
        let mut socket = accept(stream).unwrap();
        let _ = socket.close(None);
        while socket.read().is_ok() {}
    });
    let engine = opened(&settings(closing, Protocol::Raw, 2));
    assert!(engine.wait(LIMIT, |counts| counts.lost == 2));
    assert_eq!(engine.counts().failures[Failure::Closed as usize], 2);
    assert_eq!(engine.counts().ready_now(), 0);
}

#[test]
fn a_rejected_subscription_and_a_goodbye_are_failures_by_name() {
    for (text, failure) in [
        (r#"{"type":"reject_subscription","identifier":"x"}"#, Failure::Rejected),
        (r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#, Failure::Disconnected),
    ] {
        let server = serve(move |stream| {
            let mut socket = accept(stream).unwrap();
            socket.send(Message::text(r#"{"type":"welcome"}"#)).unwrap();
            let command = socket.read().unwrap().into_text().unwrap();
            assert!(command.contains("subscribe"), "{command}");
            socket.send(Message::text(text)).unwrap();
            let _ = socket.read();
        });
        let counts = failures(&settings(server, Protocol::ActionCable, 2));
        assert_eq!(counts.failures[failure as usize], 2, "{failure:?}");
    }
}

fn yardstick(settings: bare::Settings) -> bare::Bare {
    bare::start(&bare::Settings { shards: 2, ..settings }).unwrap()
}

#[test]
fn the_yardstick_does_a_real_handshake_echo_and_close_with_tungstenite() {
    let bare = yardstick(bare::Settings { echo: true, ..bare::Settings::default() });
    let (mut socket, _) = tungstenite::connect(format!("ws://{}/", bare.address)).unwrap();
    for size in [0, 5, 126, 65_536, 900_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), message);
    }
    socket.send(Message::Ping(vec![9].into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong(vec![9].into()));
    socket.close(None).unwrap();
    assert!(matches!(socket.read(), Ok(Message::Close(_))));
}

#[test]
fn the_yardstick_takes_a_head_in_pieces() {
    let bare = yardstick(bare::Settings::default());
    let mut stream = TcpStream::connect(bare.address).unwrap();
    stream.set_nodelay(true).unwrap();
    let head = "GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for byte in head.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    let mut answer = [0; 129];
    stream.read_exact(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer).ends_with("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"));
}

#[test]
fn the_yardstick_speaks_enough_action_cable_to_be_subscribed_and_published_to() {
    let bare = yardstick(bare::Settings { protocol: Protocol::ActionCable, ..bare::Settings::default() });
    let engine = opened(&settings(bare.address, Protocol::ActionCable, 50));
    assert_eq!(engine.counts().ready_now(), 50);
    let mut publisher = Publisher::connect(&format!("http://{}/_broadcast", bare.control), &Credentials::None).unwrap();
    for number in 0..20 {
        publisher.post(&format!(r#"{{"identifier":"x","message":"{}"}}"#, protocol::mark(number, 1))).unwrap();
    }
    assert!(engine.wait(LIMIT, |counts| counts.marked == 1_000), "{:?}", engine.counts());
    let counts = engine.counts();
    assert_eq!((counts.skipped, counts.reordered, counts.duplicated), (0, 0, 0));
    assert_eq!(engine.collect(20).missing_at_end, 0);
}

#[test]
fn connections_that_are_dropped_come_back_when_opened_again() {
    let bare = yardstick(bare::Settings::default());
    let engine = opened(&settings(bare.address, Protocol::Raw, 40));
    for (times, goodbye) in [Goodbye::Reset, Goodbye::Fin, Goodbye::Close].into_iter().enumerate() {
        engine.drop_share(0.5, goodbye);
        engine.open(Pace::Storm);
        let ready = 40 + 20 * (times as u64 + 1);
        assert!(engine.wait(LIMIT, |counts| counts.ready == ready), "{goodbye:?}: {:?}", engine.counts());
        assert_eq!(engine.counts().ready_now(), 40);
    }
    assert_eq!(engine.counts().lost, 0, "what we drop ourselves is not lost");
}
