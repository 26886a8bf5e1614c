//! No descriptors left: nobody hangs in silence, nothing spins, and all is well again when room returns.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Response, connect, http, response_head, upgrade, whole_response};
use crate::server::{SOON, Server, Start};

/// Small enough that a test can use them up, large enough for the server's own needs.
const OPEN_FILES: u32 = 128;

/// How long a client may have to wait for its refusal: one pause of accepting, and a slow test machine.
const PROMPT: Duration = Duration::from_secs(5);

fn start() -> Server {
    // Long enough that no silent connection times out while the test looks.
    Start::with(&["--handshake-timeout", "300"]).open_files(OPEN_FILES, OPEN_FILES).start()
}

/// Silent connections, opened from several threads at once so that all shards run out at the same time.
fn connect_silently(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let threads: Vec<_> =
        (0..4).map(|_| thread::spawn(move || (0..count / 4).map(|_| connect(address)).collect::<Vec<_>>())).collect();
    threads.into_iter().flat_map(|thread| thread.join().expect("connected")).collect()
}

/// Waits until at most `silent` sockets have neither an answer nor an end, and gives those that have.
fn answered(sockets: &mut Vec<TcpStream>, silent: usize) -> Vec<TcpStream> {
    let mut answered = Vec::new();
    let until = Instant::now() + SOON;
    while sockets.len() > silent {
        assert!(Instant::now() < until, "{} clients hang in silence", sockets.len() - silent);
        for socket in std::mem::take(sockets) {
            socket.set_nonblocking(true).expect("set");
            match socket.peek(&mut [0]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => sockets.push(socket),
                _ => answered.push(socket),
            }
        }
        // A sleep between looks: no one event says that a whole crowd has been answered.
        thread::sleep(Duration::from_millis(5));
    }
    answered
}

/// What a client without a word was told: 503, or nothing but a prompt end. Tells whether it was 503.
fn turned_away(mut socket: TcpStream) -> bool {
    socket.set_nonblocking(false).expect("set");
    socket.set_read_timeout(Some(PROMPT)).expect("set");
    match whole_response(&mut socket) {
        Ok(response) => {
            assert_unavailable(&response);
            true
        }
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => false,
        Err(error) => panic!("a client hangs in silence: {error}"),
    }
}

fn assert_unavailable(response: &Response) {
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.header("Retry-After").is_some_and(|wait| wait.parse::<u32>().is_ok()), "{response:?}");
}

/// Asks for health so often, each time on a new connection, and tells how often the server said that it is alive. The
/// others were turned away at once.
fn healthy(server: &Server, times: usize) -> usize {
    let alive = |_: &usize| {
        // It may be turned away before it has said anything.
        let answer = http(server.address(), "GET", "/health", "");
        answer.is_ok_and(|response| {
            if response.status != 200 {
                assert_unavailable(&response);
            }
            response.status == 200
        })
    };
    (0..times).filter(alive).count()
}

#[test]
fn everyone_beyond_the_descriptors_is_told_503_and_all_is_well_when_they_leave() {
    let server = start();
    let mut silent = connect_silently(server.address(), 400);
    let told = answered(&mut silent, OPEN_FILES as usize);
    let in_crowd = told.len() as u64;
    let said_503 = told.into_iter().map(turned_away).filter(|&told| told).count();
    assert!(said_503 * 10 >= in_crowd as usize * 9, "only {said_503} of {in_crowd} were told why");

    // Late comers one by one: the silent ones make way for them.
    let before = server.cpu_time();
    let alive = healthy(&server, 40);
    assert!(alive >= 30, "alive in only {alive} of 40 answers");
    let late = server.cpu_time() - before;
    assert!(late < Duration::from_secs(2), "40 answers took {late:?} of CPU");

    drop(silent);
    let metrics = server.metrics_until("the silent ones are forgotten", |m| m.get("handshakes_num") <= 1);
    let turned_away = metrics.closed("no_descriptors") + metrics.closed("too_many_handshakes");
    let gone = metrics.closed("handshake_gone");
    assert!(turned_away >= in_crowd && turned_away + gone >= 400, "{turned_away} turned away, {gone} gone");
    assert_eq!(metrics.get("open_descriptors_max"), u64::from(OPEN_FILES));
    assert_eq!(server.get("/health").status, 200);
    upgrade(server.address(), "/cable").leave();
}

#[test]
fn a_server_without_descriptors_does_not_spin() {
    let server = start();
    let mut silent = connect_silently(server.address(), 400);
    drop(answered(&mut silent, OPEN_FILES as usize));
    // More who come all the time must not make it spin either: one is always in the queue.
    let before = server.cpu_time();
    // A sleep, because there is no event to wait for: that nothing goes on in this second is what is tested.
    thread::sleep(Duration::from_secs(1));
    let idle = server.cpu_time() - before;
    assert!(idle <= Duration::from_millis(100), "{idle:?} of CPU in an idle second without descriptors");
}

#[test]
fn open_websockets_are_served_while_silent_connections_hold_every_other_descriptor() {
    let server = start();
    let mut follower = crate::client::Client::following(server.address(), "news");
    let mut other = crate::client::Client::welcomed(server.address());
    let mut silent = connect_silently(server.address(), 400);
    drop(answered(&mut silent, OPEN_FILES as usize));

    let whisper_to = crate::client::json_string(&crate::client::identifier("news"));
    other.follow("news");
    other.send(&format!("{{\"command\":\"whisper\",\"identifier\":{whisper_to},\"data\":{{\"n\":1}}}}"));
    assert!(follower.text().contains("{\"n\":1}"));

    // One silent client leaves, and an operator gets in: the healthy path needs one descriptor, not an idle server.
    silent.truncate(silent.len() / 2);
    let until = Instant::now() + SOON;
    while !http(server.address(), "GET", "/health", "").is_ok_and(|response| response.status == 200) {
        assert!(Instant::now() < until, "no room for /health although half the silent ones left");
    }
    server.broadcast("news", "2");
    assert!(follower.text().contains("\"message\":2"));
}

#[test]
fn the_reserve_still_answers_when_something_else_has_taken_the_last_descriptors() {
    // Idle HTTP connections belong to no shard: they take what the shards leave free, until accepting itself fails.
    // So do more shards, each with some of its own.
    let server =
        Start::with(&["--handshake-timeout", "300", "--acceptors", "4"]).open_files(OPEN_FILES, OPEN_FILES).start();
    let idle: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut socket = connect(server.address());
            socket.write_all(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
            assert_eq!(response_head(&mut socket).expect("an answer").status, 200);
            socket
        })
        .collect();
    let mut silent = connect_silently(server.address(), 400);
    drop(answered(&mut silent, OPEN_FILES as usize));
    healthy(&server, 20);
    drop((idle, silent));
    let metrics = server.metrics_until("the silent ones are forgotten", |m| m.get("handshakes_num") <= 1);
    let told = metrics.closed("no_descriptors") + metrics.closed("too_many_handshakes");
    assert!(told >= 250 && metrics.closed("no_descriptors") > 0, "{told}");
}
