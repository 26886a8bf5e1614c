//! The client engine against a server, and the yardstick against a client, that somebody else wrote (tungstenite); and
//! the engine against servers that misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
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
    let identifier = match protocol {
        Protocol::Raw => None,
        Protocol::ActionCable | Protocol::ActionCableExt => Some(r#"{"channel":"Test","id":"{n}"}"#),
        Protocol::Pusher | Protocol::Centrifugo => Some("room-{n}"),
    };
    Settings {
        servers: vec![server],
        script: Script::new(protocol, &target, 0, identifier),
        connections,
        first_number: 0,
        lanes: 2,
        sources: Sources::for_servers(&[server], connections),
        ready_timeout: Duration::from_secs(10),
        retry_after: None,
        ping_late_after: None,
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

/// Waits for one text of the client.
fn heard(socket: &mut WebSocket<TcpStream>) -> String {
    socket.read().unwrap().into_text().unwrap().to_string()
}

const ESTABLISHED: &str =
    r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.1\",\"activity_timeout\":1}"}"#;
const SUCCEEDED: &str = r#"{"event":"pusher_internal:subscription_succeeded","data":"{}","channel":"room-0000000"}"#;

#[test]
fn a_refusal_and_a_goodbye_are_failures_by_name_in_every_protocol() {
    use Protocol::{ActionCable, Centrifugo, Pusher};
    let welcomed = r#"{"id":1,"connect":{"client":"c"}}"#;
    let cable = r#"{"type":"welcome"}"#;
    for (protocol, welcome, answer, failure) in [
        (ActionCable, cable, r#"{"type":"reject_subscription","identifier":"x"}"#, Failure::Rejected),
        (ActionCable, cable, r#"{"type":"disconnect","reason":"unauthorized"}"#, Failure::Disconnected),
        (Pusher, ESTABLISHED, r#"{"event":"pusher:error","data":{"code":4009,"message":"no"}}"#, Failure::Rejected),
        (Pusher, ESTABLISHED, r#"{"event":"pusher_internal:subscription_error","data":"{}"}"#, Failure::Rejected),
        (Centrifugo, welcomed, r#"{"id":2,"error":{"code":103,"message":"no"}}"#, Failure::Rejected),
        (Centrifugo, welcomed, r#"{"push":{"disconnect":{"code":3000,"reason":"x"}}}"#, Failure::Disconnected),
        // Before the welcome nothing is subscribed to that could be rejected.
        (Pusher, r#"{"event":"pusher:error","data":{"code":4001}}"#, "", Failure::Error),
        (Centrifugo, r#"{"id":1,"error":{"code":109,"message":"no"}}"#, "", Failure::Error),
    ] {
        let server = serve(move |stream| {
            let mut socket = accept(stream).unwrap();
            if protocol == Centrifugo {
                assert_eq!(heard(&mut socket), r#"{"id":1,"connect":{}}"#);
            }
            socket.send(Message::text(welcome)).unwrap();
            if !answer.is_empty() {
                let command = heard(&mut socket);
                assert!(command.contains("subscribe"), "{command}");
                socket.send(Message::text(answer)).unwrap();
            }
            let _ = socket.read();
        });
        let counts = failures(&settings(server, protocol, 2));
        assert_eq!(counts.failures[failure as usize], 2, "{answer}: {}", counts.failure_words());
    }
}

#[test]
fn a_close_code_of_the_application_is_a_goodbye() {
    let server = serve(|stream| {
        let mut socket = accept(stream).unwrap();
        let code = tungstenite::protocol::frame::coding::CloseCode::from(4201);
        let _ = socket.close(Some(tungstenite::protocol::CloseFrame { code, reason: "".into() }));
        while socket.read().is_ok() {}
    });
    let engine = opened(&settings(server, Protocol::Raw, 2));
    assert!(engine.wait(LIMIT, |counts| counts.lost == 2));
    assert_eq!(engine.counts().failures[Failure::Disconnected as usize], 2);
}

#[test]
fn a_pusher_client_subscribes_answers_pings_and_pings_after_a_silence() {
    let (seen, texts) = std::sync::mpsc::channel();
    let server = serve(move |stream| {
        let mut socket = accept(stream).unwrap();
        socket.send(Message::text(ESTABLISHED)).unwrap();
        seen.send(heard(&mut socket)).unwrap();
        socket.send(Message::text(SUCCEEDED)).unwrap();
        socket.send(Message::text(r#"{"event":"pusher:ping","data":"{}"}"#)).unwrap();
        let data = protocol::mark(0, 1);
        socket.send(Message::text(format!(r#"{{"event":"e","data":"{data}","channel":"x"}}"#))).unwrap();
        while let Ok(message) = socket.read() {
            let _ = seen.send(message.into_text().unwrap().to_string());
        }
    });
    let engine = opened(&settings(server, Protocol::Pusher, 1));
    let next = || texts.recv_timeout(LIMIT).unwrap();
    assert_eq!(next(), r#"{"event":"pusher:subscribe","data":{"channel":"room-0000000"}}"#);
    assert_eq!(next(), r#"{"event":"pusher:pong","data":{}}"#);
    // The server asked for one after a second without a word.
    assert_eq!(next(), protocol::PUSHER_PING);
    assert_eq!((engine.counts().pings, engine.counts().marked, engine.counts().failed()), (1, 1, 0));
}

#[test]
fn a_centrifugo_client_reads_several_replies_from_one_frame_and_answers_pings_if_asked_to() {
    for (connected, answers) in [(r#"{"client":"c","ping":25,"pong":true}"#, true), (r#"{"client":"c"}"#, false)] {
        let (seen, texts) = std::sync::mpsc::channel();
        let server = serve(move |stream| {
            let mut socket = accept(stream).unwrap();
            seen.send(heard(&mut socket)).unwrap();
            socket.send(Message::text(format!(r#"{{"id":1,"connect":{connected}}}"#))).unwrap();
            seen.send(heard(&mut socket)).unwrap();
            let push = |n| format!(r#"{{"push":{{"channel":"x","pub":{{"data":"{}"}}}}}}"#, protocol::mark(n, 1));
            let replies = format!("{{\"id\":2,\"subscribe\":{{}}}}\n{{}}\n{}\n{}", push(0), push(1));
            socket.send(Message::text(replies)).unwrap();
            while let Ok(message) = socket.read() {
                let _ = seen.send(message.into_text().unwrap().to_string());
            }
        });
        let engine = opened(&settings(server, Protocol::Centrifugo, 1));
        assert!(engine.wait(LIMIT, |counts| counts.marked == 2), "{:?}", engine.counts());
        assert_eq!((engine.counts().pings, engine.counts().skipped, engine.counts().failed()), (1, 0, 0));
        // Its end comes after whatever it had to answer.
        engine.drop_share(1.0, Goodbye::Fin);
        let mut expected = vec![r#"{"id":1,"connect":{}}"#, r#"{"id":2,"subscribe":{"channel":"room-0000000"}}"#];
        expected.extend(answers.then_some("{}"));
        assert_eq!(texts.iter().take(expected.len()).collect::<Vec<_>>(), expected);
        assert!(texts.recv_timeout(Duration::from_millis(200)).is_err(), "nothing else was said");
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
fn the_yardstick_speaks_enough_of_every_protocol_to_be_subscribed_and_published_to() {
    for (protocol, before, behind) in [
        (Protocol::ActionCable, r#"{"identifier":"x","message":""#, r#""}"#),
        (Protocol::Pusher, r#"{"event":"e","channel":"x","data":""#, r#""}"#),
        (Protocol::Centrifugo, r#"{"push":{"channel":"x","pub":{"data":""#, r#""}}}"#),
    ] {
        let bare = yardstick(bare::Settings {
            protocol,
            ping_interval: Some(Duration::from_millis(500)),
            ..bare::Settings::default()
        });
        let engine = opened(&settings(bare.address, protocol, 50));
        assert_eq!(engine.counts().ready_now(), 50);
        let url = format!("http://{}/_broadcast", bare.control);
        let mut publisher = Publisher::connect(&url, &Credentials::None).unwrap();
        for number in 0..20 {
            publisher.post(&format!("{before}{}{behind}", protocol::mark(number, 1))).unwrap();
        }
        let done = engine.wait(LIMIT, |counts| counts.marked == 1_000 && counts.pings > 50);
        assert!(done, "{protocol:?}: {:?}", engine.counts());
        let counts = engine.counts();
        assert_eq!((counts.skipped, counts.reordered, counts.duplicated, counts.lost), (0, 0, 0, 0));
        assert_eq!(engine.collect(20).missing_at_end, 0);
    }
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

#[test]
fn a_server_that_pings_and_does_not_read_is_not_answered_without_end() {
    const PONG_BYTES: u64 = 2 + 4 + 125;
    // So many answers that the kernel cannot take them all from us, however large it lets the socket's buffer grow.
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap();
    let kernel_bytes_max: u64 = limits.split_whitespace().next_back().unwrap().parse().unwrap();
    let pings = 2 * kernel_bytes_max / PONG_BYTES;
    let (sender, pongs) = std::sync::mpsc::channel();
    let in_step = Arc::new(Barrier::new(2));
    let server = serve({
        let in_step = Arc::clone(&in_step);
        move |stream| {
            // A fixed size, or it would grow while nobody reads.
            rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 256 * 1024).unwrap();
            let mut stream = accept(stream).unwrap().get_ref().try_clone().unwrap();
            let ping = [&[0x89, 125][..], &[b'x'; 125]].concat();
            // In one piece: small writes would wait for acknowledgements that the client delays.
            stream.write_all(&ping.repeat(pings as usize)).unwrap();
            in_step.wait();
            // Only now does it read, until nothing more comes.
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut received = 0;
            let mut buffer = [0; 65_536];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                received += count as u64;
            }
            sender.send(received / PONG_BYTES).unwrap();
            // Stays connected until the client has been looked at.
            in_step.wait();
        }
    });
    let engine = opened(&settings(server, Protocol::Raw, 1));
    assert!(engine.wait(LIMIT, |counts| counts.pings == pings), "{:?}", engine.counts());
    in_step.wait();
    let answered = pongs.recv_timeout(LIMIT).unwrap();
    assert!((1..pings).contains(&answered), "{answered} of {pings} pings were answered");
    assert_eq!(engine.counts().failed(), 0, "and the connection stays");
    in_step.wait();
}
