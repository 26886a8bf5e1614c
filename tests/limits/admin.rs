//! The admin port: who may ask, and what is answered.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use crate::client::{Response, connect, whole_response};
use crate::server::{Server, Start};

/// Where the admin port is, as the boot log says.
fn admin(server: &Server) -> SocketAddr {
    let line = server.log.wait_for(|line| line.starts_with("admin: http://")).expect("there is an admin port");
    let place = line.trim_start_matches("admin: http://").split(' ').next().expect("an address");
    place.parse().unwrap_or_else(|_| panic!("{line:?} holds no address"))
}

/// One request with these header lines.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &[&str]) -> Response {
    let mut socket = connect(address);
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    write!(socket, "{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").expect("sent");
    whole_response(&mut socket).expect("an answer")
}

const HERE: &str = "Host: localhost";

#[test]
fn the_admin_port_is_off_until_it_is_asked_for_and_never_the_main_port() {
    let server = Start::with(&[]).start();
    assert!(server.log.messages().iter().any(|(_, line)| line == "admin: off"), "{}", server.log.text());
    assert_eq!(server.get("/debug/closes").status, 404);

    let server = Start::with(&["--admin-port", "0"]).start();
    let admin = admin(&server);
    assert!(admin.ip().is_loopback());
    assert_eq!(server.get("/debug/closes").status, 404);
    let metrics = ask(admin, "GET", "/metrics", &[HERE]);
    assert!(metrics.status == 200 && metrics.body.contains("cableway_clients_num"), "{metrics:?}");
    assert_eq!(metrics.header("Cache-Control"), Some("no-store"));
    assert_eq!(ask(admin, "POST", "/metrics", &[HERE]).status, 405);
    // What is on the main port is not here.
    for path in ["/health", "/ready", "/_broadcast", "/cable", "/nowhere"] {
        assert_eq!(ask(admin, "GET", path, &[HERE]).status, 404, "{path}");
    }
    // A page of a site whose name leads to this machine.
    assert_eq!(ask(admin, "GET", "/metrics", &["Host: evil.example"]).status, 403);
}

#[test]
fn an_admin_port_that_others_can_reach_wants_a_key() {
    let (status, log) = Start::with(&["--admin-port", "0", "--admin-host", "0.0.0.0"]).expect_end();
    assert!(!status.success() && log.contains("set --admin-key"), "{log}");

    let server = Start::with(&["--admin-port", "0", "--admin-host", "0.0.0.0", "--admin-key", "s3cret"]).start();
    let admin = SocketAddr::from(([127, 0, 0, 1], admin(&server).port()));
    for (headers, status) in [
        (&[HERE][..], 401),
        (&[HERE, "Authorization: Bearer guess"], 401),
        (&[HERE, "Authorization: Bearer s3cret"], 200),
        // Whoever shows the key may call this machine what they like.
        (&["Host: cableway.internal", "Authorization: Bearer s3cret"], 200),
        // operator:s3cret
        (&[HERE, "Authorization: Basic b3BlcmF0b3I6czNjcmV0"], 200),
    ] {
        assert_eq!(ask(admin, "GET", "/metrics", headers).status, status, "{headers:?}");
    }
    let refused = ask(admin, "GET", "/nowhere", &[HERE]);
    assert_eq!(refused.status, 401, "which paths there are is told to nobody without the key");
    assert!(refused.header("WWW-Authenticate").is_some_and(|challenge| challenge.starts_with("Basic ")));
    assert!(!server.log.text().contains("s3cret"), "{}", server.log.text());
}

#[test]
fn an_admin_port_that_something_else_has_ends_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (status, log) = Start::with(&["--admin-port", &port]).expect_end();
    assert!(!status.success() && log.contains(&format!("127.0.0.1:{port}")), "{log}");
    let (status, log) = Start::with(&["--admin-port", &port, "--metrics-port", &port]).expect_end();
    assert!(!status.success() && log.contains("it needs a port of its own"), "{log}");
}
