//! Ordinary HTTP and WebSockets on the same port, and on the same connection.

use std::io::Write;

use crate::client::{connect, http, response_head, upgrade, upgrade_on, upgrade_request};
use crate::server::Start;

/// Asks for something on a connection that stays open, and reads the answer, which has no body.
fn asked(socket: &mut std::net::TcpStream, path: &str) -> u16 {
    write!(socket, "HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    response_head(socket).expect("an answer").status
}

#[test]
fn an_upgrade_behind_an_answered_request_becomes_a_websocket() {
    let server = Start::with(&["--acceptors", "2"]).start();
    for before in [&["/health"][..], &["/favicon.ico"], &["/nothing", "/health", "/metrics"]] {
        let mut socket = connect(server.address());
        for path in before {
            asked(&mut socket, path);
        }
        let mut client = upgrade_on(socket, "/cable").expect("101");
        assert!(client.text().starts_with("{\"type\":\"welcome\""));
        client.follow("news");
        server.broadcast("news", "1");
        assert!(client.text().ends_with("\"message\":1}"));
        client.leave();
    }
    // A connection that came back has been accepted twice, and is gone from the first place for `http`.
    server.metrics_until("every connection is counted once", |metrics| {
        metrics.get("connections_accepted_total") == metrics.closed_in_all() + metrics.get("connections_num")
    });
}

#[test]
fn a_bad_upgrade_behind_an_answered_request_is_refused_as_if_it_came_alone() {
    let server = Start::with(&["--allowed-origins", "app.test"]).start();
    let good = upgrade_request("/cable").replace("Host: test\r\n", "Host: test\r\nOrigin: http://app.test\r\n");
    for (request, status) in [
        (good.clone(), 101),
        (good.replace("app.test", "evil.test"), 403),
        (good.replace("GET ", "POST "), 405),
        (good.replace("Version: 13", "Version: 8"), 400),
        ("GET /cable HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(), 400),
    ] {
        let mut socket = connect(server.address());
        assert_eq!(asked(&mut socket, "/health"), 200);
        socket.write_all(request.as_bytes()).expect("sent");
        assert_eq!(response_head(&mut socket).expect("an answer").status, status, "{request}");
    }
}

#[test]
fn a_pattern_for_every_path_leaves_health_and_publications_alone() {
    let server = Start::with(&["--path", "/*"]).start();
    for (path, status) in [("/health", 200), ("/ready", 200), ("/metrics", 200), ("/else", 400)] {
        assert_eq!(http(server.address(), "GET", path, "").expect("an answer").status, status, "{path}");
    }
    let mut client = upgrade(server.address(), "/any/where");
    assert!(client.text().starts_with("{\"type\":\"welcome\""));
}

#[test]
fn a_page_whose_origin_is_refused_leaves_a_line_that_names_it() {
    let server = Start::with(&["--allowed-origins", "app.test"]).start();
    let mut socket = connect(server.address());
    let request =
        upgrade_request("/cable").replace("Host: test\r\n", "Host: test\r\nOrigin: https://evil.test:8443\r\n");
    socket.write_all(request.as_bytes()).expect("sent");
    assert_eq!(response_head(&mut socket).expect("an answer").status, 403);
    let line = server.log.wait_for(|line| line.contains("--allowed-origins")).expect("a line");
    assert!(line.contains("\"https://evil.test:8443\""), "{line}");
}

#[test]
fn a_head_with_a_large_cookie_passes_and_one_that_is_too_large_names_the_header() {
    let with_cookie = |bytes: usize| {
        let cookie = format!("Host: test\r\nCookie: sso={}\r\n", "x".repeat(bytes));
        upgrade_request("/cable").replace("Host: test\r\n", &cookie)
    };
    for (options, fits, is_too_large) in [(&[][..], 60_000, 70_000), (&["--max-head-size=8KiB"], 7_000, 9_000)] {
        let server = Start::with(options).start();
        for (bytes, status) in [(fits, 101), (is_too_large, 431)] {
            let mut socket = connect(server.address());
            // The server may have had enough before all is sent.
            let _ = socket.write_all(with_cookie(bytes).as_bytes());
            assert_eq!(response_head(&mut socket).expect("an answer").status, status, "{options:?} {bytes}");
        }
        let line = server.log.wait_for(|line| line.contains("431")).expect("a line");
        assert!(line.contains("--max-head-size") && line.contains("\"Cookie\""), "{line}");
    }
}

#[test]
fn silent_strangers_keep_neither_the_apps_broadcasts_nor_health_checks_out() {
    // A small limit of open files means few connections of ordinary HTTP: there are more strangers than that.
    let server = Start::bare()
        .and(&["--host", "127.0.0.1", "--port", "0", "--norpc", "--noauth", "--broadcast-key", "k3y"])
        .open_files(400, 400)
        .start();
    let mut strangers = Vec::new();
    for path in ["/nothing", "/health"] {
        for _ in 0..40 {
            let mut stranger = connect(server.address());
            assert!(matches!(asked(&mut stranger, path), 200 | 404), "{path}");
            strangers.push(stranger);
        }
    }
    for _ in 0..5 {
        let mut app = connect(server.address());
        let body = "{\"stream\":\"news\",\"data\":\"1\"}";
        let length = body.len();
        let key = "Authorization: Bearer k3y\r\n";
        write!(app, "POST /_broadcast HTTP/1.1\r\nHost: test\r\n{key}Content-Length: {length}\r\n\r\n{body}")
            .expect("sent");
        assert_eq!(response_head(&mut app).expect("an answer").status, 201);
        assert_eq!(server.get("/health").status, 200);
    }
    let metrics = server.metrics();
    assert_eq!(metrics.get("http_connections_refused_total"), 0);
    assert!(metrics.get("http_connections_evicted_total") > 0);
}
