//! `--max-conn`, and the capacity that follows from the descriptors: one client too many is told so, and everything
//! that is no client still gets through.

use crate::client::{Client, try_upgrade, upgrade};
use crate::server::{Server, Start};

/// Fills the server, tries one more, and lets one leave.
fn fill(server: &Server, room: u64) {
    let mut first = Client::following(server.address(), "news");
    let mut others: Vec<Client> = (1..room).map(|_| upgrade(server.address(), "/cable")).collect();

    for n in 1..=3 {
        let refused = try_upgrade(server.address(), "/cable").err().expect("no room");
        assert_eq!(refused.status, 503);
        assert!(refused.header("Retry-After").is_some_and(|wait| wait.parse::<u32>().is_ok()), "{refused:?}");
        server.closed_for("max_connections", n);
    }
    assert_eq!(server.get("/health").status, 200);
    let ready = server.get("/ready");
    assert_eq!((ready.status, ready.body.contains("\"room_for_clients\":false")), (503, true), "{ready:?}");
    let metrics = server.metrics();
    assert_eq!((metrics.get("websockets_num"), metrics.get("websockets_max")), (room, room));
    server.broadcast("news", "1");
    assert!(first.text().contains("\"message\":1"));

    others.pop().expect("somebody").leave();
    server.closed_for("client_gone", 1);
    Client::welcomed(server.address()).leave();
    server.closed_for("client_gone", 2);
    server.is_ready();
}

#[test]
fn one_client_over_max_conn_is_told_503_and_everything_else_is_served() {
    fill(&Start::with(&["--max-conn", "5"]).start(), 5);
}

#[test]
fn clients_leave_descriptors_for_operators_when_no_max_conn_is_given() {
    let server = Start::with(&[]).open_files(128, 128).start();
    let room = server.metrics().get("websockets_max");
    assert!((50..=100).contains(&room), "{room}");
    fill(&server, room);
}

#[test]
fn max_conn_counts_over_all_shards() {
    let server = Start::with(&["--max-conn", "8", "--acceptors", "4"]).start();
    fill(&server, 8);
}
