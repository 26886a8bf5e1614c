//! The log is a helper: whatever becomes of it, the server serves.

use std::net::{SocketAddr, TcpListener};

use crate::client::{self, Client};
use crate::server::{Reader, SOON, Server, Start};

/// Makes the server warn.
fn send_nonsense(server: &Server) {
    let response = client::http(server.address(), "POST", "/_broadcast", "nonsense").expect("an answer");
    assert_eq!(response.status, 201, "{response:?}");
}

fn serves(server: &Server) {
    let mut client = Client::following(server.address(), "news");
    server.broadcast("news", "1");
    assert!(client.text().contains("\"message\":1"));
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

#[test]
fn a_reader_of_the_log_that_leaves_takes_nobody_along() {
    let mut server = Start::with(&[]).read_by(Reader::Leaves).start();
    server.log.is_left();
    let mut before = Client::following(server.address(), "news");
    for _ in 0..3 {
        send_nonsense(&server);
    }
    server.metrics_until("lines are lost", |metrics| metrics.get("log_lines_dropped_total") >= 1);
    server.broadcast("news", "1");
    assert!(before.text().contains("\"message\":1"));
    serves(&server);
    server.signal("TERM");
    assert_eq!(server.wait(SOON).code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let mut server = Start::with(&["--debug"]).read_by(Reader::Stalls).start();
    let mut talker = Client::welcomed(server.address());
    // Each makes a line of some 200 bytes: more than the pipe and the queue hold.
    for _ in 0..20_000 {
        talker.send("{\"command\":\"nothing that is known\"}");
    }
    server.metrics_until("lines are lost", |metrics| metrics.get("log_lines_dropped_total") >= 1);
    assert_eq!(server.get("/ready").status, 200);
    serves(&server);
    server.signal("TERM");
    assert_eq!(server.wait(SOON).code(), Some(0));
}

#[test]
fn a_full_disk_under_the_log_ends_nothing() {
    let address = free_port();
    let mut server = Start::with(&[]).to(">/dev/full 2>&1").start_unread(address);
    send_nonsense(&server);
    server.metrics_until("the boot log is lost", |metrics| metrics.get("log_lines_dropped_total") >= 5);
    serves(&server);
    server.signal("TERM");
    assert_eq!(server.wait(SOON).code(), Some(0));
    // And the demo, whose log is standard error.
    let demo =
        Start::bare().and(&["--host", "127.0.0.1"]).first("demo").to(">/dev/full 2>&1").start_unread(free_port());
    assert_eq!(demo.get("/health").status, 200);
}

#[test]
fn a_start_that_fails_has_its_status_whoever_reads_why() {
    for redirect in [">/dev/full 2>&1", ">&- 2>&-"] {
        for arguments in [&["--handshake-timeout", "soon"][..], &["--norpc", "--host", "nowhere.invalid"]] {
            let (status, log) = Start::bare().and(arguments).to(redirect).expect_end();
            assert_eq!((status.code(), log.as_str()), (Some(1), ""), "{arguments:?} {redirect}");
        }
    }
}

#[test]
fn the_last_line_of_an_orderly_end_is_written() {
    let mut server = Start::with(&[]).start();
    server.signal("TERM");
    assert_eq!(server.wait(SOON).code(), Some(0));
    server.log.is_left();
    assert!(server.log.text().contains("app told of ended sessions"), "{}", server.log.text());
}

#[test]
fn a_warning_that_comes_without_end_is_limited_and_says_how_many_were_left_out() {
    const TIMES: u64 = 300;
    let server = Start::with(&[]).start();
    for _ in 0..TIMES {
        send_nonsense(&server);
    }
    let all_told = || {
        let told = server.log.numbers_of("more lines like: broadcast ignored", "left_out");
        let shown = server.log.messages().iter().filter(|(_, line)| line.starts_with("broadcast ignored")).count();
        (shown as u64 + told.iter().sum::<u64>(), shown)
    };
    let until = std::time::Instant::now() + SOON;
    while all_told().0 < TIMES {
        assert!(std::time::Instant::now() < until, "{}", server.log.text());
        std::thread::yield_now();
    }
    let (all, shown) = all_told();
    assert_eq!(all, TIMES, "each is shown or counted");
    assert!(shown < 100, "{shown} of {TIMES} shown");
}
