//! Nodes that tell each other by NATS, and apps that publish there: what is published reaches the clients of all nodes, once
//! and in order.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::client::{Client, connect, http, json_string};
use crate::nodes::{Nodes, each_gets};
use crate::server::{Server, Start};
use crate::servers::{Authority, Nats, NatsStart, Wire, until};

const BROADCASTS: &str = "__anycable__";
const COMMANDS: &str = "__anycable_internal__";

/// Nodes with pub/sub at this NATS, and broadcasts from there.
fn nodes(count: usize, url: &str, more: &[&str]) -> Nodes {
    let usual = ["--nats-servers", url, "--pubsub", "nats", "--broadcast-adapter", "http,nats", "--noauth"];
    let nodes = Nodes::start(count, &[&usual[..], more].concat());
    nodes.0.iter().for_each(|node| is_up(node, true));
    nodes
}

fn is_up(node: &Server, up: bool) {
    node.metrics_until("the links", |metrics| {
        ["nats", "nats_pubsub"].iter().all(|link| metrics.get(&format!("link_up{{link=\"{link}\"}}")) == u64::from(up))
    });
}

/// Waits until so many connections are subscribed to a subject.
fn is_heard(nats: &Nats, subject: &str, nodes: usize) {
    until("subscribed", || nats.subscriptions().iter().filter(|one| *one == subject).count() == nodes);
}

/// Connects, follows a stream, and gives the connection identifiers too, in JSON.
fn identified(node: &Server, stream: &str) -> (Client, Value) {
    let mut client = crate::client::upgrade(node.address(), "/cable");
    let welcome: Value = serde_json::from_str(&client.text()).expect("JSON");
    client.follow(stream);
    (client, json!({"sid": welcome["sid"].as_str().expect("a sid")}).to_string().into())
}

fn disconnect(identifiers: &Value, reconnect: bool) -> String {
    json!({"command": "disconnect", "payload": {"identifier": identifiers, "reconnect": reconnect}}).to_string()
}

fn message(client: &mut Client) -> Value {
    let text = client.text();
    serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))["message"].clone()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn publish(node: &Server, stream: &str, data: &str) {
    let body = json!({"stream": stream, "data": data}).to_string();
    let response = http(node.address(), "POST", "/_broadcast", &body).expect("an answer");
    assert_eq!(response.status, 201, "{response:?}");
}

/// A client of NATS that shares nothing with the one under test.
pub struct Plain {
    socket: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Plain {
    pub fn at(nats: &Nats) -> Plain {
        let socket = connect(([127, 0, 0, 1], nats.port()).into());
        let lines = BufReader::new(socket.try_clone().expect("twice"));
        let mut plain = Plain { socket, lines };
        assert!(plain.line().starts_with("INFO "));
        plain.say("CONNECT {\"verbose\":false}\r\n");
        plain.flush();
        plain
    }

    fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).expect("sent");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Waits until the server has done everything.
    pub fn flush(&mut self) {
        self.say("PING\r\n");
        assert_eq!(self.line(), "PONG");
    }

    pub fn publish(&mut self, subject: &str, payload: &str) {
        self.say(&format!("PUB {subject} {}\r\n{payload}\r\n", payload.len()));
    }

    /// Where the next message of its subscriptions was published, and what.
    fn message(&mut self) -> (String, String) {
        let line = self.line();
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields[0], fields.len()), ("MSG", 4), "{line}");
        let mut payload = vec![0; fields[3].parse::<usize>().expect("a length") + 2];
        self.lines.read_exact(&mut payload).expect("a payload");
        payload.truncate(payload.len() - 2);
        (fields[1].to_owned(), String::from_utf8(payload).expect("text"))
    }
}

#[test]
#[ignore = "needs nats-server"]
fn what_one_node_takes_reaches_the_clients_of_all_once_and_in_order() {
    let nats = Nats::start();
    let nodes = nodes(3, &nats.url(), &[]);
    let streams = ["a", "b", "c.d"];
    let mut clients: Vec<Vec<Client>> = streams.iter().map(|stream| nodes.followers(6, stream)).collect();
    streams.iter().for_each(|stream| is_heard(&nats, stream, 3));
    for n in 0..200 {
        for (stream, node) in streams.iter().zip(&nodes.0) {
            node.broadcast(stream, &n.to_string());
        }
    }
    clients.iter_mut().for_each(|clients| each_gets(clients, &numbers(0..200)));
    for node in &nodes.0 {
        // Its own do not even come back.
        let metrics = node.metrics_until("all came", |metrics| metrics.get("cluster_received_total") == 400);
        assert_eq!((metrics.get("cluster_sent_total"), metrics.get("cluster_own_total")), (200, 0));
        let troubles = ["dropped", "doubles", "gaps", "missing", "overflow"];
        assert_eq!(troubles.map(|name| metrics.get(&format!("cluster_{name}_total"))), [0; 5]);
    }
}

#[test]
#[ignore = "needs nats-server"]
fn what_an_app_publishes_in_nats_reaches_the_clients_of_all_nodes() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats.url(), &[]);
    let mut clients = nodes.followers(4, "room");
    let (mut away, identifiers) = identified(&nodes.0[1], "other");
    let mut app = Plain::at(&nats);
    for n in 0..50 {
        app.publish(BROADCASTS, &json!({"stream": "room", "data": n.to_string()}).to_string());
    }
    app.publish(BROADCASTS, "no JSON");
    app.publish(BROADCASTS, "");
    let batch: Vec<_> = (50..100).map(|n| json!({"stream": "room", "data": n.to_string()})).collect();
    app.publish(BROADCASTS, &Value::from(batch).to_string());
    each_gets(&mut clients, &numbers(0..100));
    app.publish(BROADCASTS, &disconnect(&identifiers, true));
    let text = away.text();
    assert!(text.contains(r#""reason":"remote","reconnect":true"#), "{text}");
    for node in &nodes.0 {
        let metrics = node.metrics_until("all came", |metrics| metrics.get("remote_commands_total") == 1);
        let counted = ["fanout_publications", "failed_broadcast_msg", "cluster_sent"];
        assert_eq!(counted.map(|name| metrics.get(&format!("{name}_total"))), [52, 2, 0]);
    }
}

#[test]
#[ignore = "needs nats-server"]
fn whispers_and_remote_disconnects_cross() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats.url(), &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&nats, "room", 2);
    let identifier = json_string(&crate::client::identifier("room"));
    clients[0].send(&format!("{{\"command\":\"whisper\",\"identifier\":{identifier},\"data\":{{\"n\":1}}}}"));
    assert_eq!(message(&mut clients[1]), json!({"n": 1}));
    let (mut away, identifiers) = identified(&nodes.0[1], "other");
    let command = disconnect(&identifiers, true);
    let response = http(nodes.0[0].address(), "POST", "/_broadcast", &command).expect("an answer");
    assert_eq!(response.status, 201);
    let text = away.text();
    assert!(text.contains(r#""reason":"remote","reconnect":true"#), "{text}");
    assert_eq!(nodes.0[0].metrics().get("broadcast_msg_total"), 2, "neither is carried out a second time");
}

#[test]
#[ignore = "needs nats-server"]
fn names_of_any_kind_cross_and_none_is_another() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats.url(), &[]);
    let long = "x".repeat(3000);
    let mut names = vec![
        "a b",
        "a.b",
        "a*",
        "*",
        ">",
        "a.*",
        "a.>",
        "a/b",
        "über",
        "\u{1F600}",
        "\"quoted\"",
        "a\\b",
        "$x",
        "$SYS.>",
        "_cw_.x",
        "a\tb",
        ".",
        "a..b",
        ".a",
        "a.",
        "_INBOX.x",
        "a\r\nPUB b 0\r\n",
        "a\u{a0}b",
        "$JS.API.INFO",
    ];
    names.push(&long);
    let mut client = Client::welcomed(nodes.0[1].address());
    let before = nats.subscriptions().len();
    for name in &names {
        let identifier = json!({"channel": "$pubsub", "stream_name": name}).to_string();
        client.send(&json!({"command": "subscribe", "identifier": identifier}).to_string());
        let answer = client.text();
        assert!(answer.contains("confirm_subscription"), "{name:?}: {answer}");
    }
    until("all are subscribed to", || nats.subscriptions().len() == before + names.len());
    for (n, name) in names.iter().enumerate() {
        publish(&nodes.0[0], name, &n.to_string());
        assert_eq!(message(&mut client), json!(n), "{name}");
    }
    for node in &nodes.0 {
        let reconnects = node.metrics().get("link_reconnects_total{link=\"nats_pubsub\"}");
        assert_eq!(reconnects, 0, "the server minds none of these subjects");
    }
}

#[test]
#[ignore = "needs nats-server"]
fn a_node_of_anycable_and_ours_understand_each_other() {
    let nats = Nats::start();
    let nodes = nodes(1, &nats.url(), &[]);
    let (mut client, identifiers) = identified(&nodes.0[0], "room/7");
    is_heard(&nats, "room/7", 1);
    let mut other = Plain::at(&nats);
    let publication =
        r#"{"stream":"room/7","data":"{\"a\":1}","meta":{"broadcast_type":"presence"},"offset":4,"epoch":"x"}"#;
    other.publish("room/7", publication);
    let text: Value = serde_json::from_str(&client.text()).expect("JSON");
    assert_eq!((&text["message"], &text["type"]), (&json!({"a": 1}), &json!("presence")));
    // The stream in the payload decides, whatever subject it came by.
    other.publish(COMMANDS, r#"{"stream":"room/7","data":"text"}"#);
    assert_eq!(message(&mut client), json!("text"));
    other.publish("room/7", "no JSON");
    other.publish(COMMANDS, r#"{"command":"dance"}"#);
    // What ours says is what AnyCable reads.
    other.say(&format!("SUB room/7 1\r\nSUB {COMMANDS} 2\r\n"));
    other.flush();
    publish(&nodes.0[0], "room/7", "{\"b\": 2}");
    let (subject, payload) = other.message();
    let payload: Value = serde_json::from_str(&payload).expect("JSON");
    assert_eq!(
        (&*subject, &payload["stream"], &payload["data"], payload.get("meta")),
        ("room/7", &json!("room/7"), &json!("{\"b\": 2}"), None)
    );
    http(nodes.0[0].address(), "POST", "/_broadcast", &disconnect(&json!("nobody"), true)).expect("an answer");
    let (subject, payload) = other.message();
    let payload: Value = serde_json::from_str(&payload).expect("JSON");
    assert_eq!((&*subject, &payload["command"]), (COMMANDS, &json!("disconnect")));
    assert_eq!(payload["payload"], json!({"identifier": "nobody", "reconnect": true}));
    assert_eq!(message(&mut client), json!({"b": 2}));
    other.publish(COMMANDS, &disconnect(&identifiers, false));
    let text = client.text();
    assert!(text.contains(r#""reason":"remote","reconnect":false"#), "{text}");
    nodes.0[0].metrics_until("counted", |metrics| {
        metrics.get("failed_broadcast_msg_total") == 1 && metrics.get("cluster_own_total") == 0
    });
}

#[test]
#[ignore = "needs nats-server"]
fn without_nats_a_node_serves_its_own_clients_and_afterwards_all_again() {
    let mut nats = Nats::start();
    let nodes = nodes(2, &nats.url(), &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&nats, "room", 2);
    let [first, second] = &nodes.0[..] else { panic!("two") };
    first.broadcast("room", "0");
    each_gets(&mut clients, &numbers(0..1));
    nats.kill();
    nodes.0.iter().for_each(|node| is_up(node, false));
    for n in 1..20 {
        first.broadcast("room", &n.to_string());
    }
    each_gets(&mut clients[..1], &numbers(1..20));
    let ready = second.get("/ready");
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("\"nats_pubsub\":false"), "{}", ready.body);
    // A client that comes meanwhile is confirmed without waiting, and hears of all when NATS is back.
    clients.push(Client::following(second.address(), "room"));
    nats.restart();
    nodes.0.iter().for_each(|node| is_up(node, true));
    is_heard(&nats, "room", 2);
    first.metrics_until("what waited is out", |metrics| metrics.get("cluster_queue_size") == 0);
    second.broadcast("room", "\"from the second\"");
    assert_eq!(message(&mut clients[0]), json!("from the second"));
    // What was published while NATS was away waited there, if both nodes were back by then, and is else noticed as missing.
    first.broadcast("room", "\"last\"");
    let mut seen = Vec::new();
    loop {
        match message(&mut clients[1]) {
            Value::Number(n) => seen.push(n.as_u64().expect("a number")),
            Value::String(text) if text == "last" => break,
            _ => {}
        }
    }
    assert!(seen.is_sorted_by(|a, b| a < b), "once and in order: {seen:?}");
    let metrics = second.metrics();
    let (seen, missing) = (seen.len() as u64, metrics.get("cluster_missing_total"));
    assert_eq!((seen + missing, metrics.get("cluster_doubles_total")), (19, 0));
    assert_eq!(metrics.get("link_reconnects_total{link=\"nats_pubsub\"}"), 1);
    let log = second.log.text();
    let lost = log.lines().filter(|line| line.contains("a link is away") && line.contains("nats_pubsub")).count();
    assert_eq!(lost, 1, "one line says so: {log}");
}

#[test]
#[ignore = "needs nats-server"]
fn a_nats_that_says_nothing_any_more_is_left() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats.url(), &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&nats, "room", 2);
    nats.freeze();
    nodes.0[0].broadcast("room", "1");
    assert_eq!(message(&mut clients[0]), json!(1));
    nodes.0.iter().for_each(|node| is_up(node, false));
    nats.go_on();
    nodes.0.iter().for_each(|node| is_up(node, true));
    is_heard(&nats, "room", 2);
    nodes.0[0].broadcast("room", "2");
    let seen: Vec<_> = std::iter::from_fn(|| Some(message(&mut clients[1])).filter(|seen| *seen != json!(2))).collect();
    assert!(seen.len() <= 1, "{seen:?}");
}

#[test]
#[ignore = "needs nats-server"]
fn a_cut_wire_is_mended_and_another_server_is_found_meanwhile() {
    // Two servers that do not know each other: whoever is at one hears nobody at the other.
    let (one, other) = (Nats::start(), Nats::start());
    let wire = Wire::to(one.port());
    let urls = format!("nats://127.0.0.1:{},{}", wire.port(), other.url());
    let nodes = nodes(2, &urls, &["--nats-dont-randomize-servers"]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&one, "room", 2);
    nodes.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
    wire.cut();
    is_heard(&other, "room", 2);
    nodes.0[0].broadcast("room", "2");
    each_gets(&mut clients, &numbers(2..3));
}

#[test]
#[ignore = "needs nats-server"]
fn nodes_find_the_other_servers_of_a_cluster_when_theirs_is_gone() {
    let mut servers = Nats::cluster();
    let nodes = nodes(2, &servers[0].url(), &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&servers[0], "room", 2);
    nodes.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
    servers[0].kill();
    // Wherever each of them is now.
    until("subscribed at others", || {
        let own = |nats: &Nats| nats.subscriptions_of_clients().iter().filter(|one| *one == "room").count();
        servers[1..].iter().map(own).sum::<usize>() == 2
    });
    // The servers tell each other of subscriptions, a little later.
    let hears = |nats: &Nats| [nats.subscriptions_of_clients(), nats.subscriptions_of_servers()].concat();
    until("heard by all", || servers[1..].iter().all(|nats| hears(nats).iter().any(|subject| subject == "room")));
    nodes.0[1].broadcast("room", "2");
    each_gets(&mut clients, &numbers(2..3));
}

#[test]
#[ignore = "needs nats-server"]
fn nats_with_tls_and_a_password_or_an_nkey() {
    let authority = Authority::new();
    let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|name| authority.file(name));
    let tls =
        ["--nats-tls-ca-cert-path", &ca, "--nats-tls-client-cert-path", &cert, "--nats-tls-client-key-path", &key];
    // From the documentation of NATS.
    let public = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    let secure =
        Nats::start_as(NatsStart { tls: Some(&authority), login: Some(("me", "wo:rd")), ..NatsStart::default() });
    let by_key = Nats::start_as(NatsStart { nkey: Some(public), ..NatsStart::default() });
    let secure_url = secure.url().replace("wo:rd", "wo%3Ard");
    let by_key_url = format!("nats://{seed}@127.0.0.1:{}", by_key.port());
    // A server that wants TLS gets it, whatever the URL says.
    let plain_url = secure_url.replace("tls://", "nats://");
    for (nats, url, options) in
        [(&secure, secure_url, &tls[..]), (&secure, plain_url, &tls[..]), (&by_key, by_key_url, &[][..])]
    {
        let nodes = nodes(2, &url, options);
        let mut clients = nodes.followers(2, "room");
        until("subscribed", || nats.subscriptions().iter().filter(|one| *one == "room").count() == 2);
        nodes.0[0].broadcast("room", "1");
        each_gets(&mut clients, &numbers(1..2));
        let log = nodes.0[0].log.text();
        assert!(!log.contains("wo%3Ard") && !log.contains(seed), "no secret in the log: {log}");
    }
}

#[test]
#[ignore = "needs nats-server"]
fn who_is_not_let_in_says_why_and_serves_its_clients() {
    let nats = Nats::start_as(NatsStart { login: Some(("me", "word")), ..NatsStart::default() });
    let url = nats.url().replace("word", "wrong");
    let usual = ["--nats-servers", &url, "--pubsub", "nats", "--broadcast-adapter", "http"];
    let node = Start::with(&usual).start();
    node.log.wait_for(|line| line.contains("a link is away")).expect("said");
    assert!(node.log.text().contains("Authorization Violation"), "{}", node.log.text());
    let mut client = Client::following(node.address(), "room");
    node.broadcast("room", "1");
    assert_eq!(message(&mut client), json!(1));
}

#[test]
#[ignore = "needs nats-server"]
fn two_clusters_share_a_nats_by_their_prefixes() {
    let nats = Nats::start();
    let (one, other) = (nodes(2, &nats.url(), &["--pubsub-prefix", "one."]), nodes(1, &nats.url(), &[]));
    let mut clients = one.followers(2, "room");
    let mut stranger = Client::following(other.0[0].address(), "room");
    is_heard(&nats, "one.room", 2);
    is_heard(&nats, "room", 1);
    one.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
    other.0[0].broadcast("room", "2");
    assert_eq!(message(&mut stranger), json!(2));
    one.0[0].broadcast("room", "3");
    each_gets(&mut clients, &numbers(3..4));
}

#[test]
#[ignore = "needs nats-server"]
fn a_message_that_nats_does_not_take_is_dropped_and_nothing_else() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats.url(), &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&nats, "room", 2);
    nodes.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
    // A NATS takes 1 MiB unless it is told otherwise.
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    publish(&nodes.0[0], "room", &long);
    publish(&nodes.0[0], "room", "2");
    assert_eq!(message(&mut clients[0]).as_str().map(str::len), Some(1 << 20), "its own clients have it");
    assert_eq!((message(&mut clients[0]), message(&mut clients[1])), (json!(2), json!(2)));
    let metrics = nodes.0[0].metrics();
    assert_eq!(
        (metrics.get("cluster_dropped_total"), metrics.get("link_reconnects_total{link=\"nats_pubsub\"}")),
        (1, 0)
    );
    nodes.0[1].metrics_until("the gap is noticed", |metrics| metrics.get("cluster_missing_total") == 1);
}

#[test]
#[ignore = "needs nats-server"]
fn many_streams_are_subscribed_to_again_after_a_crash() {
    const STREAMS: usize = 900;
    let mut nats = Nats::start();
    let nodes = nodes(1, &nats.url(), &["--ws-max-pending-size", "16MiB", "--max-session-size", "0"]);
    let mut client = Client::welcomed(nodes.0[0].address());
    let of_streams = |nats: &Nats| nats.subscriptions().iter().filter(|subject| subject.starts_with("s-")).count();
    for n in 0..STREAMS {
        let identifier = json_string(&crate::client::identifier(&format!("s-{n}")));
        client.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{identifier}}}"));
    }
    (0..STREAMS).for_each(|_| assert!(client.text().contains("confirm_subscription")));
    until("all are subscribed to", || of_streams(&nats) == STREAMS);
    nats.kill();
    is_up(&nodes.0[0], false);
    nats.restart();
    until("all are subscribed to again", || of_streams(&nats) == STREAMS);
    client.leave();
    until("nothing is subscribed to", || of_streams(&nats) == 0);
}
