//! The admin port: who may ask, and what is answered.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use serde_json::Value;

use crate::client::{Client, Response, connect, upgrade, whole_response};
use crate::server::{SOON, Server, Start};

/// Where the admin port is, as the boot log says.
fn admin(server: &Server) -> SocketAddr {
    let line = server.log.wait_for(|line| line.starts_with("admin: http://")).expect("there is an admin port");
    let place = line.trim_start_matches("admin: http://").split('/').next().expect("an address");
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

/// What the admin port says at a path, in JSON.
fn json(address: SocketAddr, path: &str) -> Value {
    let response = ask(address, "GET", path, &[HERE]);
    assert_eq!(response.status, 200, "{response:?}");
    serde_json::from_str(&response.body).unwrap_or_else(|_| panic!("{} is no JSON", response.body))
}

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

#[test]
fn the_last_closes_are_shown_with_cause_code_bytes_and_network_and_without_names() {
    let server = Start::with(&["--admin-port", "0", "--acceptors", "2", "--echo-path", "/echo"]).start();
    let admin = admin(&server);
    assert_eq!(json(admin, "/debug/closes")["closes"], Value::Array(vec![]));
    let mut polite = Client::welcomed(server.address());
    polite.0.close(Some(tungstenite::protocol::CloseFrame { code: 4001.into(), reason: "".into() })).expect("sent");
    while polite.0.read().is_ok() {}
    server.closed_for("client_closed", 1);
    let mut wild = upgrade(server.address(), "/echo");
    wild.send_raw(&[0x81, 0x00]);
    assert_eq!(wild.close_frame().0, 1002);
    drop(connect(server.address()));
    server.closed_for("handshake_gone", 1);
    // A socket that asks for ordinary HTTP goes on elsewhere.
    assert_eq!(server.get("/health").status, 200);

    let closes = json(admin, "/debug/closes");
    assert_eq!(closes["silent_shards"], 0);
    let closes = closes["closes"].as_array().expect("a list");
    let newest_first: Vec<&str> = closes.iter().map(|closed| closed["cause"].as_str().expect("a cause")).collect();
    assert_eq!(newest_first.len(), 3, "{newest_first:?}");
    assert!(closes.windows(2).all(|two| two[0]["at_ms"].as_u64() >= two[1]["at_ms"].as_u64()), "{closes:?}");
    let of = |cause: &str| closes.iter().find(|closed| closed["cause"] == cause).unwrap_or_else(|| panic!("{cause}"));
    for (cause, side, code, route) in [
        ("client_closed", "client", Some(4001), "cable"),
        ("protocol_error", "server", Some(1002), "echo"),
        ("handshake_gone", "client", None, "handshake"),
    ] {
        let closed = of(cause);
        assert_eq!((&closed["side"], &closed["route"]), (&Value::from(side), &Value::from(route)), "{closed}");
        assert_eq!(closed["code"].as_u64(), code, "{closed}");
        assert_eq!(closed["peer"], "127.0.0.0/24", "{closed}");
        assert!(closed["silent_ms"].as_u64().is_some_and(|ms| ms < 20_000), "{closed}");
        assert!(closed.get("sid").is_none() && closed.get("identifiers").is_none(), "{closed}");
    }
    assert!(of("client_closed")["received_bytes"].as_u64() > Some(100), "the upgrade alone is more");
    assert!(of("client_closed")["sent_bytes"].as_u64() > Some(100), "the upgrade alone is more");
    // The kernel counts the end of the stream.
    assert_eq!(of("handshake_gone")["received_bytes"], 1);

    let table = ask(admin, "GET", "/debug/closes?format=text", &[HERE]).body;
    assert!(table.starts_with("at_ms ") && table.lines().count() == 4 && table.contains(" 1002 "), "{table}");
    let chosen = json(admin, "/debug/closes?cause=protocol_error");
    assert_eq!(chosen["closes"].as_array().expect("a list"), std::slice::from_ref(of("protocol_error")));
    assert_eq!(json(admin, "/debug/closes?limit=2")["closes"], Value::from(&closes[..2]));
    assert_eq!(json(admin, "/debug/closes?cause=no_pong")["closes"], Value::Array(vec![]));
    let unknown = ask(admin, "GET", "/debug/closes?cause=boredom", &[HERE]);
    assert!(unknown.status == 400 && unknown.body.contains("\"boredom\"; the causes are "), "{unknown:?}");
    assert!(unknown.body.contains("protocol_error"), "{unknown:?}");
    let metrics = server.metrics();
    for cause in ["client_closed", "protocol_error", "handshake_gone"] {
        for histogram in ["detection_delay_seconds", "connection_age_seconds"] {
            assert_eq!(metrics.get(&format!("{histogram}_count{{cause=\"{cause}\"}}")), 1, "{histogram} {cause}");
        }
    }
    // Nobody was found dead, and the series to watch are there all the same; those of rare causes are not.
    assert_eq!(metrics.get("detection_delay_seconds_bucket{cause=\"peer_timeout\",le=\"3600\"}"), 0);
    assert!(!metrics.0.keys().any(|name| name.contains("delay_seconds_count{cause=\"remote\"}")));
}

#[test]
fn only_the_last_thousand_closes_are_kept() {
    let server = Start::with(&["--admin-port", "0", "--acceptors", "1"]).start();
    let admin = admin(&server);
    for _ in 0..1010 {
        drop(connect(server.address()));
    }
    server.closed_for("handshake_gone", 1010);
    let closes = json(admin, "/debug/closes");
    assert_eq!(closes["closes"].as_array().expect("a list").len(), 1000);
}

#[test]
fn a_peer_that_resets_is_known_by_its_network_and_its_bytes_all_the_same() {
    let server = Start::with(&["--admin-port", "0"]).start();
    let client = Client::welcomed(server.address());
    socket2::SockRef::from(client.0.get_ref()).set_linger(Some(std::time::Duration::ZERO)).expect("set");
    drop(client);
    server.closed_for("peer_reset", 1);
    let closed = &json(admin(&server), "/debug/closes")["closes"][0];
    assert_eq!((&closed["cause"], &closed["peer"]), (&Value::from("peer_reset"), &Value::from("127.0.0.0/24")));
    assert!(closed["received_bytes"].as_u64() > Some(100), "{closed}");
}

#[test]
fn live_connections_are_found_by_age_id_and_identifiers_and_who_they_are_only_if_asked_for() {
    for shows in [false, true] {
        let debug: &[&str] = if shows { &["--debug-identifiers"] } else { &[] };
        let server = Start::with(&["--admin-port", "0", "--acceptors", "2"]).and(debug).start();
        let admin = admin(&server);
        let mut first = upgrade(server.address(), "/cable");
        let welcome: Value = serde_json::from_str(&first.text()).expect("JSON");
        let sid = welcome["sid"].as_str().expect("a sid").to_owned();
        first.follow("news");
        let _others: Vec<_> = (0..4).map(|_| Client::following(server.address(), "news")).collect();
        let found = |query: &str| json(admin, &format!("/debug/connections?{query}"))["connections"].clone();

        let oldest = found("oldest");
        let oldest = oldest.as_array().expect("a list");
        assert_eq!(oldest.len(), 5, "{oldest:?}");
        assert!(oldest.windows(2).all(|two| two[0]["age_ms"].as_u64() >= two[1]["age_ms"].as_u64()), "{oldest:?}");
        assert_eq!(found("oldest&limit=2").as_array().map(Vec::len), Some(2));
        let one = found(&format!("sid={sid}"));
        assert_eq!(one.as_array().map(Vec::len), Some(1), "{one}");
        let one = &one[0];
        assert_eq!((&one["route"], &one["streams"]), (&Value::from("cable"), &Value::from(1)), "{one}");
        assert!(one["received_bytes"].as_u64() > Some(100) && one["rtt_us"].as_u64() > Some(0), "{one}");
        if shows {
            assert_eq!(one["sid"], sid.as_str());
            assert!(one["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{one}");
            let identifiers = one["identifiers"].as_str().expect("identifiers");
            let query: String = identifiers.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let same = found(&format!("identifier={query}"));
            assert!(same.as_array().expect("a list").iter().any(|live| live["sid"] == sid.as_str()), "{same}");
        } else {
            assert_eq!(one["peer"], "127.0.0.0/24");
            assert!(one.get("sid").is_none() && one.get("identifiers").is_none(), "{one}");
        }
        assert_eq!(found("sid=AAAAAAAAAAAAAAAAAAAAA"), Value::Array(vec![]));
        assert_eq!(found("identifier=nobody"), Value::Array(vec![]));
        assert_eq!(found("slowest"), Value::Array(vec![]), "nothing waits for anybody");
        assert_eq!(ask(admin, "GET", "/debug/connections", &[HERE]).status, 400);
        assert_eq!(ask(admin, "GET", "/debug/connections?sid=x", &[HERE]).status, 400);
    }
}

#[test]
fn the_slowest_client_is_the_one_that_does_not_read() {
    // A slow machine takes longer to publish than a client may by default take nothing.
    let server = Start::with(&["--admin-port", "0", "--acceptors", "1", "--ws-max-pending-size", "64MiB"])
        .and(&["--ws-write-timeout", "60s"])
        .start();
    let admin = admin(&server);
    let _deaf = Client::following(server.address(), "news");
    let mut reads = Client::following(server.address(), "other");
    // More than the buffers of both kernels hold.
    let data = format!("\"{}\"", "x".repeat(1 << 20));
    for _ in 0..24 {
        server.broadcast("news", &data);
    }
    server.broadcast("other", "1");
    assert!(reads.text().ends_with("\"message\":1}"));
    let slowest = json(admin, "/debug/connections?slowest")["connections"].clone();
    assert_eq!(slowest.as_array().map(Vec::len), Some(1), "{slowest}");
    assert!(slowest[0]["waiting_bytes"].as_u64() > Some(1 << 20), "{slowest}");
}

#[test]
fn connections_are_sampled_in_the_turns_that_there_are() {
    let server = Start::with(&["--admin-port", "0", "--acceptors", "1"]).and(&["--ping-interval", "1"]).start();
    let _stay: Vec<_> = (0..5).map(|_| Client::welcomed(server.address())).collect();
    let metrics = server.metrics_until("all are sampled", |metrics| {
        metrics.get("connections_sampled{shard=\"0\"}") >= 5
            && metrics.get("connections_silent{silent_for=\"0-10s\"}") >= 5
    });
    assert_eq!(metrics.get("connections_silent{silent_for=\"60m+\"}"), 0);
    assert!(metrics.0["cableway_connections_rtt_seconds{shard=\"0\",percentile=\"50\"}"] > 0.0);
}

#[test]
fn the_delay_of_a_detection_is_counted_from_the_last_sign_of_life_of_what_is_waited_for() {
    let pings = ["--ping-interval", "1", "--pong-timeout", "2", "--enable-native-pings", "--ws-write-timeout", "1"];
    let server = Start::with(&["--admin-port", "0", "--acceptors", "1"]).and(&pings).start();
    let admin = admin(&server);
    // Its kernel acknowledges every ping, and the program behind it does nothing.
    let _frozen = Client::welcomed(server.address());
    server.closed_for("no_pong", 1);
    // It never reads; what its kernel has no room for waits here.
    let mut deaf = Client::following(server.address(), "news");
    let data = format!("\"{}\"", "x".repeat(900 << 10));
    let until = std::time::Instant::now() + SOON;
    while server.metrics().closed("write_timeout") == 0 {
        assert!(std::time::Instant::now() < until, "{:#?}", server.metrics());
        // A pong; it may be closed at this moment.
        let _ = deaf.0.get_mut().write_all(&[0x8a, 0x80, 0, 0, 0, 0]);
        if server.metrics().kept("outbox") == 0 {
            server.broadcast("news", &data);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let closes = json(admin, "/debug/closes")["closes"].clone();
    let metrics = server.metrics();
    for (cause, at_least_ms, sooner_than_ms) in [("no_pong", 2_000, 20_000), ("write_timeout", 1_000, 20_000)] {
        let closed = closes.as_array().expect("a list").iter().find(|closed| closed["cause"] == cause);
        let silent = closed.expect("it is among the last")["silent_ms"].as_u64().expect("known");
        assert!((at_least_ms..sooner_than_ms).contains(&silent), "{cause}: {silent} ms");
        let sum = metrics.0[&format!("cableway_detection_delay_seconds_sum{{cause=\"{cause}\"}}")];
        assert!((sum * 1e3 - silent as f64).abs() < 1.0, "{cause}: {sum} s and {silent} ms");
    }
}
