//! A process that had no processor for a while: stopped, moved to another machine, or out of its share. What came
//! meanwhile lies in its sockets, and nobody is closed for its own lateness.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use crate::client::{Client, connect, response_head, upgrade_request};
use crate::server::Start;

#[test]
fn after_a_stop_clients_are_judged_by_what_lies_in_their_sockets() {
    let server = Start::with(&["--ping-interval", "1s", "--pong-timeout", "2s", "--handshake-timeout", "2s"])
        .and(&["--ws-message-timeout", "2s", "--ws-write-timeout", "2s", "--ws-max-pending-size", "64MiB"])
        .start();
    // One that answers pings, and has one to answer.
    let mut prompt = connect(server.address());
    let request = upgrade_request("/cable").replace("actioncable-v1-json", "actioncable-v1-ext-json");
    prompt.write_all(request.as_bytes()).expect("sent");
    let mut seen = String::new();
    let mut piece = [0; 4096];
    while !seen.contains("\"type\":\"ping\"") {
        let n = prompt.read(&mut piece).expect("bytes");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    // One whose request is half there, and one in the middle of a message.
    let mut late = connect(server.address());
    late.write_all(&upgrade_request("/cable").as_bytes()[..50]).expect("sent");
    let mut talker = Client::following(server.address(), "talk");
    talker.send_raw(&[0x01, 0x81, 0, 0, 0, 0, b'{']);
    // One that has not read what it was sent.
    let mut slow = Client::following(server.address(), "news");
    for n in 0..100 {
        server.broadcast("news", &format!("\"{n}:{}\"", "x".repeat(100_000)));
    }
    server.metrics_until("it waits", |metrics| metrics.kept("outbox") > 0);

    server.signal("STOP");
    prompt.write_all(&[&[0x81, 0x92, 0, 0, 0, 0][..], b"{\"command\":\"pong\"}"].concat()).expect("sent");
    late.write_all(&upgrade_request("/cable").as_bytes()[50..]).expect("sent");
    talker.send_raw(&[0x80, 0x81, 0, 0, 0, 0, b'}']);
    let reader = thread::spawn(move || {
        for n in 0..100 {
            assert!(slow.text().contains(&format!("\"message\":\"{n}:x")));
        }
        slow
    });
    // The time that the process is stopped is what is tested; it is longer than every deadline.
    thread::sleep(Duration::from_secs(4));
    server.signal("CONT");

    assert_eq!(response_head(&mut late).expect("an answer").status, 101);
    let slow = reader.join().expect("it got everything");
    seen.clear();
    while !seen.contains("\"type\":\"ping\"") {
        let n = prompt.read(&mut piece).expect("bytes");
        assert!(n > 0, "closed: {seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    assert!(!seen.contains("no_pong"), "{seen}");
    server.broadcast("talk", "1");
    assert!(talker.text().contains("\"message\":1"));
    let metrics = server.metrics();
    assert_eq!(metrics.closed_in_all(), metrics.closed("http"), "nobody was closed but HTTP requests");
    drop((slow, talker, prompt, late));
}
