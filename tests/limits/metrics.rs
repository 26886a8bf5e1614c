//! The metrics: every connection is accounted for, names are those that dashboards know, labels are as configured.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::client::{Client, connect, http, try_upgrade, upgrade, upgrade_request, whole_response};
use crate::server::{Metrics, Server, Start};

/// Every connection that was accepted is either still there or ended for one cause.
fn all_accounted_for(metrics: &Metrics) -> bool {
    metrics.closed_in_all() + metrics.get("connections_num") == metrics.get("connections_accepted_total")
}

/// Clients that leave in every way there is; returns those that stay.
fn mixed_run(server: &Server) -> Vec<Client> {
    let address = server.address();
    let mut stay = Vec::new();
    for n in 0..6 {
        stay.push(Client::following(address, "news"));
        // One that says goodbye, one that does not, one that only looks in, one that talks nonsense.
        let mut polite = Client::welcomed(address);
        polite.0.close(None).expect("sent");
        while polite.0.read().is_ok() {}
        Client::welcomed(address).leave();
        drop(connect(address));
        let mut odd = connect(address);
        odd.write_all(b"GET /cable HTTP/1.1\r\nHost: t\r\n\r\n").expect("sent");
        assert_eq!(whole_response(&mut odd).expect("an answer").status, 400);
        let mut half = connect(address);
        half.write_all(&upgrade_request("/cable").as_bytes()[..n * 20]).expect("sent");
        drop(half);
        // One that breaks the rules, one over the limit, and some ordinary HTTP.
        let mut wild = Client::welcomed(address);
        wild.send_raw(&[0x81, 0x00]);
        assert_eq!(wild.close_frame().0, 1002);
        assert_eq!(http(address, "GET", "/nowhere", "").expect("an answer").status, 404);
        server.broadcast("news", &n.to_string());
    }
    // The others of before may still be counted for a moment.
    server.metrics_until("only those that stay are left", |m| m.get("websockets_num") == 6);
    stay.extend((6..10).map(|_| upgrade(address, "/cable")));
    for _ in 0..3 {
        assert_eq!(try_upgrade(address, "/cable").err().expect("no room").status, 503);
    }
    stay
}

#[test]
fn every_accepted_connection_is_there_or_ended_for_one_cause() {
    let server = Start::with(&["--max-conn", "10", "--acceptors", "2"]).start();
    let stay = mixed_run(&server);
    let metrics =
        server.metrics_until("all are accounted for", |m| all_accounted_for(m) && m.get("handshakes_num") <= 1);
    let expected = [
        ("client_closed", 6),
        ("client_gone", 6),
        ("protocol_error", 6),
        ("handshake_gone", 12),
        ("handshake_refused", 6),
        ("max_connections", 3),
    ];
    for (cause, count) in expected {
        let counted = metrics.closed(cause);
        // A reset can overtake the end of a stream when the client leaves with something unread.
        let counted = if cause == "client_gone" { counted + metrics.closed("peer_reset") } else { counted };
        assert_eq!(counted, count, "{cause}");
    }
    assert_eq!(metrics.get("clients_num"), 10);
    assert_eq!(metrics.get("websockets_num"), 10);

    stay.into_iter().for_each(Client::leave);
    let metrics = server.metrics_until("nobody is left", |m| m.get("connections_num") <= 1 && all_accounted_for(m));
    for gauge in ["clients_num", "clients_uniq_num", "websockets_num", "broadcast_streams_num", "subscriptions_num"] {
        assert_eq!(metrics.get(gauge), 0, "{gauge}");
    }
}

#[test]
fn the_names_that_dashboards_know_are_there_and_labelled_as_configured() {
    // The list of the contract, without what needs features that are not there (SSE, durable streams, Pro) and
    // Go's own (goroutines, heap, stack).
    const NAMES: [&str; 24] = [
        "clients_num gauge",
        "clients_uniq_num gauge",
        "broadcast_streams_num gauge",
        "disconnect_queue_size gauge",
        "mem_sys_bytes gauge",
        "failed_auths_total counter",
        "client_msg_total counter",
        "failed_client_msg_total counter",
        "data_rcvd_total counter",
        "data_sent_total counter",
        "server_msg_total counter",
        "failed_server_msg_total counter",
        "timeout_server_msg_total counter",
        "disconnected_slow_clients_total counter",
        "publications_total counter",
        "broadcast_msg_total counter",
        "failed_broadcast_msg_total counter",
        "remote_commands_total counter",
        "rpc_call_total counter",
        "rpc_error_total counter",
        "rpc_retries_total counter",
        "rpc_timeout_total counter",
        "rpc_canceled_total counter",
        "rpc_pending_num gauge",
    ];
    const OURS: [&str; 19] = [
        "connections_closed_total counter",
        "connections_accepted_total counter",
        "connections_num gauge",
        "handshakes_num gauge",
        "shard_connections_num gauge",
        "subscriptions_num gauge",
        "websockets_num gauge",
        "websockets_max gauge",
        "user_bytes_per_connection gauge",
        "kernel_bytes_per_connection gauge",
        "open_descriptors_num gauge",
        "open_descriptors_max gauge",
        "accept_queue_length gauge",
        "accept_queue_max gauge",
        "listen_overflows_total counter",
        "handshake_seconds histogram",
        "fanout_seconds histogram",
        "rpc_call_seconds histogram",
        "late_answers_total counter",
    ];
    let tags = ["--metrics-tags", "env:prod,rack:a\"7"];
    let server = Start::with(&["--metrics-prefix", "anycable_go_"]).and(&tags).start();
    Client::following(server.address(), "news").leave();
    let response = server.get("/metrics");
    assert!(response.header("Content-Type").is_some_and(|kind| kind.starts_with("text/plain")), "{response:?}");
    let text = response.body;
    let mut missing = Vec::new();
    for line in NAMES.iter().chain(&OURS) {
        if !text.contains(&format!("\n# TYPE anycable_go_{line}\n"))
            && !text.starts_with(&format!("# TYPE anycable_go_{line}\n"))
        {
            missing.push(line);
        }
    }
    assert!(missing.is_empty(), "missing {missing:?} in\n{text}");
    assert!(!text.contains("cableway_"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for sample in samples {
        assert!(sample.contains("env=\"prod\"") && sample.contains("rack=\"a\\\"7\""), "{sample}");
    }
}

#[test]
fn descriptors_are_counted_again_at_the_interval_and_only_at_boot_without_one() {
    let server = Start::with(&["--stats-refresh-interval", "10ms"]).start();
    let before = server.metrics().get("open_descriptors_num");
    let _clients: Vec<_> = (0..20).map(|_| upgrade(server.address(), "/cable")).collect();
    server.metrics_until("they are counted", |m| m.get("open_descriptors_num") > before + 10);

    let server = Start::with(&["--stats-refresh-interval", "0"]).start();
    let before = server.metrics().get("open_descriptors_num");
    assert!(before > 0);
    let _clients: Vec<_> = (0..20).map(|_| upgrade(server.address(), "/cable")).collect();
    server.metrics_until("they are there", |m| m.get("websockets_num") == 20);
    assert_eq!(server.metrics().get("open_descriptors_num"), before);
}

/// A server whose metrics have something of everything.
fn busy() -> (Server, Vec<Client>) {
    let tags = ["--metrics-tags", "env:prod,rack:a\"7", "--acceptors", "2"];
    let server = Start::with(&tags).start();
    let stay = (0..3).map(|_| Client::following(server.address(), "news")).collect();
    server.broadcast("news", "1");
    let mut polite = Client::welcomed(server.address());
    polite.0.close(None).expect("sent");
    while polite.0.read().is_ok() {}
    drop(connect(server.address()));
    server.metrics_until("two have ended", |metrics| metrics.closed_in_all() >= 2);
    (server, stay)
}

#[test]
fn openmetrics_is_given_to_whoever_accepts_it_and_names_every_family_once() {
    let (server, _stay) = busy();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let mut socket = connect(server.address());
    write!(socket, "GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAccept: {accept}\r\n\r\n").expect("sent");
    let response = whole_response(&mut socket).expect("an answer");
    let kind = response.header("Content-Type").expect("a type");
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(response.body.ends_with("\n# EOF\n"), "{}", response.body);
    let mut families = BTreeSet::new();
    let mut family = ("", "");
    for line in response.body.lines() {
        assert!(!line.is_empty());
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "TYPE", name, kind] => {
                assert!(families.insert(name), "{name} is there twice");
                family = (name, kind);
            }
            ["#", "UNIT", name, unit] => assert!(name.ends_with(&format!("_{unit}")), "{line}"),
            ["#", "HELP" | "EOF", ..] => {}
            _ => {
                let name = line.split(['{', ' ']).next().expect("a name");
                let suffixes: &[&str] = match family.1 {
                    "counter" => &["_total"],
                    "gauge" => &[""],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    other => panic!("{other}"),
                };
                assert!(suffixes.iter().any(|suffix| name == format!("{}{suffix}", family.0)), "{line} in {family:?}");
            }
        }
    }
    assert!(families.len() >= 50, "{}", families.len());
    // Whoever does not ask gets the same samples in the old form.
    let old = Metrics::parse(&server.get("/metrics").body);
    assert_eq!(old.get("connections_closed_total{env=\"prod\",rack=\"a\\\"7\",cause=\"client_closed\"}"), 1);
}

#[test]
#[ignore = "needs promtool (Debian package prometheus)"]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let (server, _stay) = busy();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    promtool.stdin.take().expect("piped").write_all(server.get("/metrics").body.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
