//! Nodes that tell each other by NATS, and apps that publish there, with what only NATS has; what they have in common with
//! others is in `pubsub`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::client::{Client, connect, http};
use crate::engine::is_heard;
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
        let mut line = self.line();
        while line == "PING" {
            // The server wants to know, too.
            self.say("PONG\r\n");
            line = self.line();
        }
        assert_eq!(line, "PONG");
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
fn a_node_of_anycable_understands_ours() {
    let nats = Nats::start();
    let nodes = nodes(1, &nats.url(), &[]);
    let mut other = Plain::at(&nats);
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
