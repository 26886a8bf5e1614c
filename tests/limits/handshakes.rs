//! Before the WebSocket: clients that say nothing, too little, too much, too slowly, or end their half at once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::client::{Client, connect, response_head, upgrade, upgrade_request, whole_response};
use crate::server::Start;

fn reads_end(mut socket: TcpStream) {
    let read = socket.read(&mut [0]);
    assert!(matches!(read, Ok(0)), "{read:?}");
}

#[test]
fn a_client_that_says_nothing_is_closed_and_half_a_head_gets_408() {
    let server = Start::with(&["--handshake-timeout", "1s"]).start();
    let started = Instant::now();
    let silent = connect(server.address());
    let mut half = connect(server.address());
    half.write_all(b"GET /cable HTTP/1.1\r\nHost: te").expect("sent");
    reads_end(silent);
    let response = whole_response(&mut half).expect("an answer");
    assert_eq!(response.status, 408, "{response:?}");
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    server.closed_for("handshake_timeout", 2);
}

#[test]
fn trickling_bytes_do_not_prolong_a_handshake() {
    let server = Start::with(&["--handshake-timeout", "1s"]).start();
    let mut trickle = connect(server.address());
    trickle.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
    let started = Instant::now();
    trickle.write_all(b"GET /cable HTTP/1.1\r\n").expect("sent");
    // The read's time-out is the client's rhythm.
    let mut piece = [0; 512];
    let answer = loop {
        match trickle.read(&mut piece) {
            Ok(n) => break String::from_utf8_lossy(&piece[..n]).into_owned(),
            Err(_) => trickle.write_all(b"X-A: b\r\n").expect("sent"),
        }
        assert!(started.elapsed() < Duration::from_secs(15), "still waiting for the rest of a trickle");
    };
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    server.closed_for("handshake_timeout", 1);
}

#[test]
fn silent_connections_over_the_bound_make_way_and_open_websockets_do_not_count() {
    let server = Start::with(&["--handshakes-max", "3", "--acceptors", "1"]).start();
    let open: Vec<Client> = (0..5).map(|_| upgrade(server.address(), "/cable")).collect();
    let mut silent: Vec<TcpStream> = (0..5).map(|_| connect(server.address())).collect();
    // Those that came first are told; the last three stay.
    for refused in &mut silent[..2] {
        let response = whole_response(refused).expect("an answer");
        assert_eq!((response.status, response.header("Retry-After").is_some()), (503, true), "{response:?}");
    }
    // Who asks for the metrics is one more, for which another one makes way.
    server.metrics_until("they are counted", |metrics| metrics.closed("too_many_handshakes") >= 3);
    drop(silent);
    server.metrics_until("all are counted", |metrics| {
        metrics.closed("too_many_handshakes") + metrics.closed("handshake_gone") == 5
            && metrics.get("handshakes_num") <= 1
    });
    drop(open);
}

#[test]
fn silent_connections_keep_neither_upgrades_nor_health_checks_out() {
    let server = Start::with(&["--handshakes-max", "20", "--acceptors", "1"]).start();
    let mut silent: Vec<TcpStream> = (0..20).map(|_| connect(server.address())).collect();
    for _ in 0..20 {
        assert_eq!(server.get("/health").status, 200);
        upgrade(server.address(), "/cable").leave();
        silent.push(connect(server.address()));
    }
    assert!(server.metrics().closed("too_many_handshakes") >= 20);
}

#[test]
fn silent_connections_on_all_descriptors_make_way() {
    let server = Start::with(&["--acceptors", "1"]).open_files(200, 200).start();
    let clients = server.metrics().get("websockets_max");
    // WebSockets have most of the descriptors; then come more than there are descriptors, and say nothing.
    let open: Vec<Client> = (0..clients * 3 / 4).map(|_| upgrade(server.address(), "/cable")).collect();
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(server.address())).collect();
    server.metrics_until("they were turned away", |metrics| metrics.closed("no_descriptors") > 0);
    for _ in 0..10 {
        assert_eq!(server.get("/health").status, 200);
        upgrade(server.address(), "/cable").leave();
    }
    assert_eq!(server.metrics().get("websockets_num") as usize, open.len());
    drop(silent);
}

#[test]
fn a_head_may_have_64_kib_and_not_more() {
    let server = Start::with(&[]).start();
    let filled = |to: usize| {
        let request = upgrade_request("/cable");
        let start = request.strip_suffix("\r\n").expect("the empty line");
        let filler = "f".repeat(to - start.len() - "X-Fill: \r\n\r\n".len());
        format!("{start}X-Fill: {filler}\r\n\r\n")
    };
    let mut fits = connect(server.address());
    fits.write_all(filled(64 << 10).as_bytes()).expect("sent");
    assert_eq!(response_head(&mut fits).expect("an answer").status, 101);

    let mut too_large = connect(server.address());
    // The end of it may find the connection closed already.
    let _ = too_large.write_all(filled(65 << 10).as_bytes());
    let response = whole_response(&mut too_large).expect("an answer");
    assert_eq!(response.status, 431, "{response:?}");
    server.closed_for("handshake_refused", 1);
}

#[test]
fn a_head_without_end_is_refused_at_64_kib_and_not_kept() {
    let server = Start::with(&[]).start();
    let mut endless = connect(server.address());
    endless.write_all(b"GET /cable HTTP/1.1\r\n").expect("sent");
    let mut sent = 0;
    while sent < 128 << 10 && endless.write_all(b"X-Header: and another one\r\n").is_ok() {
        sent += 27;
    }
    let response = whole_response(&mut endless).expect("an answer");
    assert!(matches!(response.status, 431 | 400), "{response:?}");
    server.closed_for("handshake_refused", 1);
}

#[test]
fn a_head_sent_byte_by_byte_is_answered() {
    let server = Start::with(&[]).start();
    let mut socket = connect(server.address());
    for byte in upgrade_request("/cable").as_bytes() {
        socket.write_all(&[*byte]).expect("sent");
    }
    let response = response_head(&mut socket).expect("an answer");
    assert_eq!(response.status, 101);
}

#[test]
fn a_client_that_ends_its_half_behind_the_request_still_gets_its_answer() {
    let server = Start::with(&["--echo-path", "/echo"]).start();
    for (path, status) in [("/cable", 101), ("/echo", 101), ("/health", 200), ("/nowhere", 404)] {
        let mut socket = connect(server.address());
        socket.write_all(upgrade_request(path).as_bytes()).expect("sent");
        socket.shutdown(Shutdown::Write).expect("shut");
        let response = response_head(&mut socket).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(response.status, status, "{path}: {response:?}");
    }
    for request in ["GET /cable HTTP/1.1\r\nHost: test\r\n\r\n", "\0\r\n\r\n"] {
        let mut socket = connect(server.address());
        socket.write_all(request.as_bytes()).expect("sent");
        socket.shutdown(Shutdown::Write).expect("shut");
        assert_eq!(whole_response(&mut socket).expect("an answer").status, 400, "{request:?}");
    }
}

#[test]
fn what_a_client_said_before_it_ended_its_half_is_answered_before_the_end() {
    let server = Start::with(&["--echo-path", "/echo"]).start();
    // An empty message with a zero mask, right behind the request.
    let mut socket = connect(server.address());
    let mut bytes = upgrade_request("/echo").into_bytes();
    bytes.extend_from_slice(&[0x81, 0x80, 0, 0, 0, 0]);
    socket.write_all(&bytes).expect("sent");
    socket.shutdown(Shutdown::Write).expect("shut");
    let response = whole_response(&mut socket).expect("an answer");
    assert_eq!((response.status, response.body.as_bytes()), (101, &b"\xef\xbf\xbd\0"[..]), "{response:?}");
    server.closed_for("client_gone", 1);
}
