//! What clients missed, when it is much.

use crate::client::{Client, http, identifier, json_string};
use crate::server::Start;

#[test]
fn a_slow_client_gets_much_more_of_what_it_missed_than_may_wait_for_it() {
    // Aim: a client that comes back is not closed for being too slow to take what it missed at once, or it would come
    // back for ever. 90 MiB are more than both kernels take; 1 MiB may wait here.
    let server = Start::with(&["--broker", "memory", "--acceptors", "1", "--ws-write-timeout", "60s"]).start();
    for n in 0..100 {
        server.broadcast("news", &format!("\"{n}:{}\"", "x".repeat(900 << 10)));
    }
    let mut client = Client::welcomed(server.address());
    let news = json_string(&identifier("news"));
    client.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{news},\"history\":{{\"since\":1}}}}"));
    assert!(client.text().contains("confirm_subscription"));
    server.metrics_until("it waits", |metrics| metrics.kept("outbox") > 0);
    // It is published to meanwhile.
    server.broadcast("news", "\"now\"");
    for n in 0..100 {
        let text = client.text();
        assert!(text.contains(&format!("\"message\":\"{n}:x")), "{n}: {}", &text[..200.min(text.len())]);
        assert!(text.ends_with(&format!("\"offset\":{}}}", n + 1)));
    }
    assert!(client.text().contains("confirm_history"));
    assert!(client.text().contains("\"message\":\"now\""));
    assert_eq!(server.metrics().get("connections_closed_total{cause=\"too_slow\"}"), 0);
}

#[test]
fn positions_of_streams_that_are_not_followed_are_passed_over() {
    // As many as a message has room for.
    let server = Start::with(&["--broker", "memory", "--acceptors", "1"]).start();
    server.broadcast("s", "1");
    let mut client = Client::following(server.address(), "s");
    let positions: Vec<String> = (0..2000).map(|n| format!("\"{n}\":{{\"offset\":{n}}}")).collect();
    let identifier = json_string(&identifier("s"));
    let history = format!("{{\"since\":1,\"streams\":{{{}}}}}", positions.join(","));
    client.send(&format!("{{\"command\":\"history\",\"identifier\":{identifier},\"history\":{history}}}"));
    assert!(client.text().contains("\"offset\":1}"));
    assert!(client.text().contains("confirm_history"));
}

#[test]
fn what_many_clients_missed_is_bounded_together() {
    // Aim: the list of what a client missed is kept until it has taken it, and a client that reads nothing takes nothing.
    // Three lists of 40,000 are one too many for 12 MiB.
    let server = Start::with(&["--broker", "memory", "--acceptors", "1", "--ws-write-timeout", "60s"])
        .and(&["--history-limit", "40000", "--ws-max-buffers-size", "12MiB"])
        .start();
    let mut honest = Client::following(server.address(), "s");
    let publication = format!("{{\"stream\":\"news\",\"data\":\"\\\"{}\\\"\"}}", "x".repeat(400));
    let batch = format!("[{}]", vec![publication; 1000].join(","));
    for _ in 0..40 {
        assert_eq!(http(server.address(), "POST", "/_broadcast", &batch).unwrap().status, 201);
    }
    let news = json_string(&identifier("news"));
    let ask = || {
        let mut client = Client::welcomed(server.address());
        client.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{news},\"history\":{{\"since\":1}}}}"));
        client
    };
    let two = [ask(), ask()];
    server.metrics_until("two have missed much", |metrics| metrics.kept("missed") > 6 << 20);
    let third = ask();
    server.closed_for("buffers_full", 1);
    let metrics = server.metrics_until("it is within the bound", |metrics| metrics.kept("missed") < 12 << 20);
    assert_eq!(metrics.get("clients_num"), 3);
    server.broadcast("s", "\"still here\"");
    assert!(honest.text().contains("still here"));
    drop((two, third));
    server.metrics_until("nothing is kept for who is gone", |metrics| metrics.kept("missed") == 0);
}
