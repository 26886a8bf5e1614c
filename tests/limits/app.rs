//! An app that is set up wrongly, as its operator sees it: one line says what is wrong, and readiness knows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use crate::client::{Client, try_upgrade};
use crate::server::{Server, Start};

/// Answers every request alike, until the test ends.
fn answering(answer: &'static str) -> SocketAddr {
    serving(move |_| answer.to_owned())
}

/// Answers each request, given whole, on a thread of its connection, until the test ends.
fn serving(answer: impl Fn(&str) -> String + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.expect("a connection"), answer.clone());
            thread::spawn(move || {
                let mut seen = Vec::new();
                let mut piece = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut piece) {
                    seen.extend_from_slice(&piece[..n]);
                    // One call is one object.
                    if seen.ends_with(b"}}") {
                        let _ = stream.write_all(answer(&String::from_utf8_lossy(&seen)).as_bytes());
                        seen.clear();
                    }
                }
            });
        }
    });
    address
}

fn calling(rpc_host: &str) -> Server {
    calls(rpc_host).start()
}

fn calls(rpc_host: &str) -> Start {
    Start::bare()
        .and(&["--host", "127.0.0.1", "--port", "0", "--broadcast-key", "unused", "--ping-interval", "0"])
        .and(&["--rpc-host", rpc_host])
}

/// A client that is not let in.
fn turned_away(server: &Server) {
    let mut client: Client = try_upgrade(server.address(), "/cable").expect("an upgrade");
    assert_eq!(client.close_frame().0, 1011);
}

fn ready_becomes(server: &Server, status: u16, check: &str) {
    let until = std::time::Instant::now() + crate::server::SOON;
    loop {
        let ready = server.get("/ready");
        if ready.status == status && ready.body.contains(check) {
            return;
        }
        assert!(std::time::Instant::now() < until, "{ready:?}");
        thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The warning with this message, whole.
fn warning(server: &Server, message: &str) -> String {
    server.log.wait_for(|line| line == message).expect("a line about it");
    let text = server.log.text();
    let line = text.lines().find(|line| line.contains(&format!("\"{message}\""))).expect("seen above");
    assert!(line.contains("\"WARN\""), "{line}");
    line.to_owned()
}

#[test]
fn an_app_that_answers_something_else_is_named_with_what_it_said_and_a_hint() {
    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\n<!DOCTYPE html>\n<title>Shop<";
    const RAILS: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 46\r\n\r\n\
                         We're sorry, but something went wrong. (500)\r\n";
    const BLOCKED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 23\r\n\r\nBlocked hosts: app:3000";
    let cases = [
        ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", &["HTTP 401", "the secrets differ"][..]),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope", &["HTTP 403", "nope", "the secrets differ"]),
        (BLOCKED, &["HTTP 403", "Blocked hosts", "config.hosts"]),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", &["HTTP 404", "nothing is served at this path"]),
        (
            "HTTP/1.1 301 Moved\r\nLocation: https://app.test/\r\nContent-Length: 0\r\n\r\n",
            &["HTTP 301 to https://app.test/", "redirects are not followed"],
        ),
        (PAGE, &["<!DOCTYPE html> <title>Shop", "a page and no RPC"]),
        (RAILS, &["HTTP 500", "We're sorry", "a Rails error page"]),
    ];
    let check = |answer: &'static str, words: &[&str]| {
        let app = answering(answer);
        let server = calling(&format!("http://{app}/_anycable"));
        ready_becomes(&server, 200, "\"backend_reachable\":true");
        turned_away(&server);
        let line = warning(&server, "call to the app failed");
        for word in words.iter().chain(&["Connect", &format!("http://{app}/_anycable/connect")]) {
            assert!(line.contains(word), "{word:?} is not in {line}");
        }
        ready_becomes(&server, 503, "\"backend_reachable\":false");
    };
    // At once, for each takes as long as readiness looks again.
    thread::scope(|scope| {
        for (answer, words) in cases {
            scope.spawn(move || check(answer, words));
        }
    });
}

#[test]
fn a_grpc_port_that_takes_connections_and_says_nothing_is_not_reachable() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let app = silent.local_addr().expect("an address");
    let server = calling(&app.to_string());
    turned_away(&server);
    let line = warning(&server, "cannot reach the app server; trying again");
    assert!(line.contains("says nothing") && line.contains(&app.to_string()), "{line}");
    ready_becomes(&server, 503, "\"backend_reachable\":false");
}

#[test]
fn calls_that_fail_without_end_are_a_few_lines_and_a_count() {
    let app = answering("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    let server = calling(&format!("http://{app}/_anycable"));
    for _ in 0..100 {
        turned_away(&server);
    }
    server.log.wait_for(|line| line.starts_with("more lines like: call to the app failed")).expect("a count");
    let shown = server.log.messages().iter().filter(|(_, line)| line == "call to the app failed").count();
    assert!(shown < 50, "{shown}");
}

#[test]
fn a_client_is_let_in_and_served_while_others_perform_without_pause() {
    // Aim: nobody waits for those who never stop. The app needs 100 ms for a message and nothing for anything else; 150
    // clients with two places would keep whoever comes last waiting for 7.5 s, longer than a call may wait.
    const BUSY: usize = 150;
    let app = serving(|request| {
        let (transmission, slow) = match request {
            _ if request.contains("/connect ") => ("welcome", false),
            _ if request.contains(r#""command":"subscribe""#) => ("subscribed", false),
            _ => ("performed", true),
        };
        if slow {
            thread::sleep(std::time::Duration::from_millis(100));
        }
        let body = format!(r#"{{"status":1,"identifiers":"x","transmissions":["{transmission}"]}}"#);
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    });
    let server = calls(&format!("http://{app}/_anycable")).and(&["--rpc-concurrency", "2"]).start();
    let come = || {
        let mut client = try_upgrade(server.address(), "/cable").expect("an upgrade");
        assert_eq!(client.text(), "welcome");
        client.send(r#"{"command":"subscribe","identifier":"{\"channel\":\"Room\"}"}"#);
        assert_eq!(client.text(), "subscribed");
        client
    };
    let perform = |client: &mut Client| {
        client.send(r#"{"command":"message","identifier":"{\"channel\":\"Room\"}","data":"{}"}"#);
    };
    let mut busy: Vec<Client> = (0..BUSY).map(|_| come()).collect();
    for client in &mut busy {
        (0..30).for_each(|_| perform(client));
    }
    server.metrics_until("they wait", |metrics| metrics.get("rpc_pending_num") >= BUSY as u64 - 2);
    // Who arrives stands behind none of them.
    come();
    // Until each of them has asked more than once, nobody can tell them from quiet ones.
    server.metrics_until("a round is over", |metrics| metrics.get("rpc_overloaded_total") >= BUSY as u64 / 4);
    for _ in 0..3 {
        let mut quiet = come();
        perform(&mut quiet);
        assert_eq!(quiet.text(), "performed");
    }
    assert!(server.metrics().get("rpc_pending_num") >= BUSY as u64 / 2, "they still wait");
}
