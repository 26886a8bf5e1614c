//! Clients that are alive and say nothing of their own.

use crate::client::{Client, connect, identifier, json_string, response_head, upgrade_request};
use crate::server::Start;

/// One that speaks the protocol that has pongs.
fn extended(server: &crate::server::Server) -> Client {
    let mut socket = connect(server.address());
    let request = upgrade_request("/cable").replace("actioncable-v1-json", "actioncable-v1-ext-json");
    std::io::Write::write_all(&mut socket, request.as_bytes()).expect("sent");
    let response = response_head(&mut socket).expect("an answer");
    assert_eq!(response.status, 101);
    Client::on(socket, Vec::new())
}

#[test]
fn a_client_that_only_answers_pings_is_closed_when_it_is_idle_and_one_that_speaks_is_not() {
    let server = Start::with(&["--ping-interval", "1s", "--idle-timeout", "3s"]).start();
    let mut talker = Client::welcomed(server.address());
    let mut quiet = extended(&server);
    // Each ping is answered with a pong, and is the moment for the other one to say something.
    let mut pings = 0;
    let last = loop {
        let message = quiet.0.read().expect("a message").into_text().expect("text").to_string();
        if message.starts_with("{\"type\":\"ping\"") {
            pings += 1;
            quiet.send("{\"command\":\"pong\"}");
            let identifier = json_string(&identifier(&format!("stream {pings}")));
            talker.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{identifier}}}"));
            assert!(talker.text().contains("confirm_subscription"));
        } else if !message.starts_with("{\"type\":\"welcome\"") {
            break message;
        }
    };
    assert_eq!(last, "{\"type\":\"disconnect\",\"reason\":\"idle_timeout\",\"reconnect\":false}");
    assert_eq!(quiet.close_frame(), (1000, "Idle Timeout".to_owned()));
    assert!(pings >= 2, "{pings}");
    server.closed_for("idle_timeout", 1);
    let metrics = server.metrics();
    assert_eq!((metrics.get("clients_num"), metrics.closed_in_all() - metrics.closed("http")), (1, 1));

    // The other one falls silent.
    while !talker.text().contains("idle_timeout") {}
    server.closed_for("idle_timeout", 2);
}

#[test]
fn without_the_option_nobody_is_closed_for_saying_nothing() {
    let server = Start::with(&["--ping-interval", "1s"]).start();
    let _quiet = Client::welcomed(server.address());
    let metrics = server.metrics_until("five seconds have passed", |metrics| metrics.get("pings_total") >= 5);
    assert_eq!((metrics.get("clients_num"), metrics.closed("idle_timeout")), (1, 0));
}
