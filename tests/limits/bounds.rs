//! What one client, or many together, can make the server keep: every kind of bytes has an end.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::client::{Client, connect, identifier, json_string, upgrade, upgrade_request};
use crate::server::{SOON, Server, Start};

/// Resident memory of the server, in bytes.
fn resident(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// The head of a text frame with a mask of zeros.
fn text_head(len: u16) -> Vec<u8> {
    let mut head = vec![0x81, 0xFE];
    head.extend_from_slice(&len.to_be_bytes());
    head.extend_from_slice(&[0; 4]);
    head
}

fn subscribe(identifier: &str) -> String {
    format!("{{\"command\":\"subscribe\",\"identifier\":{}}}", json_string(identifier))
}

/// An identifier of this length that follows `stream`, like no other.
fn long_identifier(stream: &str, n: usize, len: usize) -> String {
    let start = format!("{{\"channel\":\"$pubsub\",\"stream_name\":\"{stream}\",\"n\":{n},\"x\":\"");
    format!("{start}{}\"}}", "x".repeat(len.saturating_sub(start.len() + 2)))
}

#[test]
fn one_large_publication_is_kept_once_for_many_identifiers() {
    // Aim: memory does not grow with publication times identifiers. Nobody reads, so nothing leaves early.
    const CLIENTS: usize = 200;
    const BYTES: usize = 900_000;
    let server = Start::with(&["--acceptors", "1", "--ws-write-timeout", "60s"]).start();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::welcomed(server.address())).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(&subscribe(&long_identifier("news", n, 100)));
        assert!(client.text().contains("confirm_subscription"));
    }
    let before = resident(&server);
    server.broadcast("news", &format!("\"{}\"", "x".repeat(BYTES)));
    let mut piece = [0; 1 << 16];
    // Each gets the first bytes, so the fan-out is under way; the last one gets all of it.
    for client in &mut clients {
        assert!(client.0.get_mut().read(&mut piece).expect("bytes") > 0);
    }
    let grown = resident(&server).saturating_sub(before);
    assert!(grown < 20 * BYTES, "{grown} bytes more for {CLIENTS} identifiers");
}

#[test]
fn pings_without_end_from_a_client_that_reads_nothing_leave_one_pong_waiting() {
    let server = Start::with(&["--acceptors", "1", "--ws-write-timeout", "60s"]).start();
    let mut client = Client::welcomed(server.address());
    let before = resident(&server);
    let pings: Vec<u8> = [0x89, 0x80, 0, 0, 0, 0].repeat(10_000);
    client.0.get_mut().set_nonblocking(false).expect("set");
    for _ in 0..100 {
        client.send_raw(&pings);
    }
    // The last of them is handled when this is answered; what is read before it are pongs.
    client.send("{\"command\":\"ping\"}");
    let mut seen = Vec::new();
    let mut piece = [0; 1 << 16];
    while !seen.ends_with(b"{\"type\":\"pong\"}") {
        let n = client.0.get_mut().read(&mut piece).expect("bytes");
        assert!(n > 0, "it was closed");
        seen.extend_from_slice(&piece[..n]);
        seen.drain(..seen.len().saturating_sub(64));
    }
    let grown = resident(&server).saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    assert_eq!(server.metrics().closed("too_slow"), 0);
}

#[test]
fn a_message_that_is_never_finished_is_closed_with_1008() {
    let server = Start::with(&["--ws-message-timeout", "1s", "--echo-path", "/echo"]).start();
    for path in ["/cable", "/echo"] {
        let mut client = upgrade(server.address(), path);
        if path == "/cable" {
            client.text();
        }
        let began = Instant::now();
        client.send_raw(&text_head(65_535));
        client.send_raw(&[b'x'; 60_000]);
        assert_eq!(client.close_frame(), (1008, "Message Timeout".into()), "{path}");
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    }
    server.closed_for("message_timeout", 2);
    // One that trickles in time, and pings in the middle of it, is served.
    let mut slow = upgrade(server.address(), "/echo");
    slow.send_raw(&[0x01, 0x81, 0, 0, 0, 0, b'a']);
    slow.send_raw(&[0x89, 0x80, 0, 0, 0, 0]);
    slow.send_raw(&[0x80, 0x81, 0, 0, 0, 0, b'b']);
    let mut said = Vec::new();
    while said.len() < 6 {
        let mut piece = [0; 16];
        let n = slow.0.get_mut().read(&mut piece).expect("bytes");
        said.extend_from_slice(&piece[..n]);
    }
    assert_eq!(said, [0x8A, 0, 0x81, 2, b'a', b'b']);
}

#[test]
fn identifiers_and_sessions_have_a_size() {
    let server = Start::with(&["--max-identifier-size", "1KiB", "--max-session-size", "20KiB"]).start();
    let mut client = Client::welcomed(server.address());
    client.send(&subscribe(&long_identifier("a", 0, 1_025)));
    assert!(client.text().contains("reject_subscription"), "longer than an identifier may be");
    let (mut confirmed, mut rejected) = (0, 0);
    for n in 0..30 {
        client.send(&subscribe(&long_identifier("a", n, 1_000)));
        let answer = client.text();
        match answer.contains("confirm_subscription") {
            true => confirmed += 1,
            false => rejected += 1,
        }
        assert!(answer.contains("_subscription"), "{answer}");
    }
    assert!((10..20).contains(&confirmed) && confirmed + rejected == 30, "{confirmed} fit");
    assert_eq!(server.metrics().get("failed_client_msg_total"), rejected + 1);
    // What is given back makes room.
    let first = long_identifier("a", 0, 1_000);
    client.send(&format!("{{\"command\":\"unsubscribe\",\"identifier\":{}}}", json_string(&first)));
    client.send(&subscribe(&first));
    assert!(client.text().contains("confirm_subscription"));
}

#[test]
fn a_thousand_subscriptions_are_found_by_their_identifiers() {
    let server = Start::with(&[]).start();
    let mut client = Client::welcomed(server.address());
    for n in 0..1_024 {
        client.follow(&format!("s{n}"));
    }
    client.send(&subscribe(&identifier("one more")));
    assert!(client.text().contains("reject_subscription"));
    for n in (0..1_024).step_by(2) {
        let identifier = json_string(&identifier(&format!("s{n}")));
        client.send(&format!("{{\"command\":\"unsubscribe\",\"identifier\":{identifier}}}"));
    }
    client.follow("the last");
    for n in [0, 1, 511, 512, 1_023] {
        server.broadcast(&format!("s{n}"), &n.to_string());
    }
    server.broadcast("the last", "\"end\"");
    let mut heard = Vec::new();
    loop {
        let text = client.text();
        if text.contains("\"end\"") {
            break;
        }
        heard.push(text.rsplit_once("\"message\":").expect("a publication").1.to_owned());
    }
    assert_eq!(heard, ["1}", "511}", "1023}"]);
}

#[test]
fn the_largest_holder_goes_first_when_all_together_hold_too_much() {
    let server = Start::with(&["--acceptors", "1", "--ws-max-buffers-size", "1MiB"])
        .and(&["--ws-message-timeout", "60s", "--handshake-timeout", "60s"])
        .start();
    // An honest client in the middle of a small message.
    let mut small = Client::welcomed(server.address());
    small.send_raw(&[0x01, 0x81, 0, 0, 0, 0, b'{']);
    let mut large: Vec<Client> = (0..40).map(|_| Client::welcomed(server.address())).collect();
    for client in &mut large {
        client.send_raw(&text_head(65_535));
        client.send_raw(&[b'x'; 60_000]);
    }
    let metrics = server.metrics_until("some are closed", |m| m.closed("buffers_full") >= 20);
    assert!(metrics.kept("message") <= 1 << 20);
    let told = large.iter_mut().filter_map(|client| {
        client.0.get_mut().set_read_timeout(Some(Duration::from_millis(50))).expect("set");
        client.0.read().ok()
    });
    let told: Vec<_> = told.map(|message| message.to_string()).collect();
    assert!(told.iter().all(|reason| reason.contains("Try again later")), "{told:?}");
    small.send_raw(&[0x80, 0x81, 0, 0, 0, 0, b'}']);
    small.follow("news");
    server.broadcast("news", "1");
    assert!(small.text().contains("\"message\":1"));
    drop(large);
    // Requests that are not complete are the same kind.
    let mut heads: Vec<_> = (0..100).map(|_| connect(server.address())).collect();
    for head in &mut heads {
        let request = upgrade_request("/cable");
        let start = request.strip_suffix("\r\n").expect("the empty line");
        head.write_all(format!("{start}X-Fill: {}", "f".repeat(15_000)).as_bytes()).expect("sent");
    }
    let before = metrics.closed("buffers_full");
    server.metrics_until("heads are refused", |m| m.closed("buffers_full") > before);
    server.broadcast("news", "2");
    assert!(small.text().contains("\"message\":2"));
    drop(heads);
    server.metrics_until("nothing is kept", |m| m.kept("request") < 10_000);
}

#[test]
fn clients_that_read_nothing_hold_no_more_together_than_they_may() {
    let server = Start::with(&["--acceptors", "1", "--ws-max-buffers-size", "2MiB"])
        .and(&["--ws-write-timeout", "60s", "--ws-max-pending-size", "1MiB"])
        .start();
    let slow: Vec<Client> = (0..8).map(|n| Client::following(server.address(), &format!("s{n}"))).collect();
    let mut reader = Client::following(server.address(), "read");
    for n in 0..2_000 {
        for stream in 0..slow.len() {
            server.broadcast(&format!("s{stream}"), &format!("\"{}\"", "x".repeat(50_000)));
        }
        server.broadcast("read", &n.to_string());
        assert!(reader.text().contains(&format!("\"message\":{n}}}")));
        let metrics = server.metrics();
        assert!(metrics.kept("outbox") <= 2 << 20);
        if metrics.closed("too_slow") > 0 {
            return;
        }
    }
    panic!("nobody was closed");
}

#[test]
fn a_peer_that_goes_on_sending_after_the_end_is_cut_off() {
    let server = Start::with(&["--acceptors", "1"]).start();
    let mut client = Client::welcomed(server.address());
    // An unknown opcode: closed with 1002.
    client.send_raw(&[0x83, 0x80, 0, 0, 0, 0]);
    assert_eq!(client.close_frame().0, 1002);
    let began = Instant::now();
    let mut sent = 0;
    while client.0.get_mut().write_all(&[b'x'; 1 << 16]).is_ok() {
        sent += 1 << 16;
        assert!(began.elapsed() < SOON, "{sent} bytes are read of it");
    }
    // What is on its way in the kernel's buffers comes on top of the bound.
    assert!(sent < 32 << 20, "{sent} bytes");
    server.metrics_until("it is let go", |metrics| metrics.get("connections_num") == 0);
}
