//! Nodes that tell each other, by Redis or by NATS: what is published on one reaches the clients of all, once and in order.

use serde_json::{Value, json};

use crate::client::{Client, http, identifier, json_string, upgrade};
use crate::engine::{Engine, Use, for_both, is_heard};
use crate::nodes::{Nodes, each_gets};
use crate::server::Server;
use crate::servers::until;

for_both! {
    what_one_node_takes_reaches_the_clients_of_all_once_and_in_order,
    whispers_and_remote_disconnects_cross,
    names_of_any_kind_cross_and_none_is_another,
    what_a_node_of_anycable_says_is_done_and_what_nobody_can_read_is_counted,
    a_message_that_comes_twice_is_dropped_and_one_that_does_not_come_is_noticed,
    without_its_engine_a_node_serves_its_own_clients_and_afterwards_all_again,
    an_engine_that_says_nothing_any_more_is_left,
    two_clusters_share_an_engine_by_their_prefixes,
    many_streams_are_subscribed_to_by_few_commands_and_churn_costs_none,
}

const COMMANDS: &str = "__anycable_internal__";

fn nodes<E: Engine>(engine: &E, count: usize, more: &[&str]) -> Nodes {
    Use::PubSub.nodes(engine, count, more)
}

fn are_up<E: Engine>(nodes: &Nodes, up: bool) {
    nodes.0.iter().for_each(|node| Use::PubSub.links_are::<E>(node, up));
}

fn link<E: Engine>(metric: &str) -> String {
    format!("{metric}{{link=\"{}_pubsub\"}}", E::NAME)
}

/// A client that follows a stream, and its connection identifiers.
fn identified(node: &Server, stream: &str) -> (Client, String) {
    let mut client = upgrade(node.address(), "/cable");
    let welcome: Value = serde_json::from_str(&client.text()).expect("JSON");
    client.follow(stream);
    (client, json!({"sid": welcome["sid"].as_str().expect("a sid")}).to_string())
}

fn disconnect(identifiers: &str, reconnect: bool) -> String {
    json!({"command": "disconnect", "payload": {"identifier": identifiers, "reconnect": reconnect}}).to_string()
}

fn post(node: &Server, body: &str) {
    let response = http(node.address(), "POST", "/_broadcast", body).expect("an answer");
    assert_eq!(response.status, 201, "{response:?}");
}

fn message(client: &mut Client) -> Value {
    let text = client.text();
    serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))["message"].clone()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn what_one_node_takes_reaches_the_clients_of_all_once_and_in_order<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 3, &[]);
    let streams = ["a", "b", "c.d"];
    let mut clients: Vec<Vec<Client>> = streams.iter().map(|stream| nodes.followers(6, stream)).collect();
    streams.iter().for_each(|stream| is_heard(&engine, stream, 3));
    for n in 0..200 {
        for (stream, node) in streams.iter().zip(&nodes.0) {
            node.broadcast(stream, &n.to_string());
        }
    }
    clients.iter_mut().for_each(|clients| each_gets(clients, &numbers(0..200)));
    let own = if E::ECHOES { 200 } else { 0 };
    for node in &nodes.0 {
        let metrics = node.metrics_until("all came", |metrics| metrics.get("cluster_received_total") == 400 + own);
        assert_eq!((metrics.get("cluster_sent_total"), metrics.get("cluster_own_total")), (200, own));
        let troubles = ["dropped", "doubles", "gaps", "missing", "overflow"];
        assert_eq!(troubles.map(|name| metrics.get(&format!("cluster_{name}_total"))), [0; 5]);
        assert_eq!(metrics.get("cluster_queue_bytes"), 0);
    }
}

fn whispers_and_remote_disconnects_cross<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 2, &[]);
    let [first, second] = &nodes.0[..] else { panic!("two") };
    let ((mut near, near_id), (mut far, far_id)) = (identified(first, "room"), identified(second, "room"));
    is_heard(&engine, "room", 2);
    let identifier = json_string(&identifier("room"));
    near.send(&format!("{{\"command\":\"whisper\",\"identifier\":{identifier},\"data\":{{\"n\":1}}}}"));
    assert_eq!(message(&mut far), json!({"n": 1}));
    for (client, id) in [(&mut far, far_id), (&mut near, near_id)] {
        post(first, &disconnect(&id, true));
        let text = client.text();
        assert!(text.contains(r#""reason":"remote","reconnect":true"#), "{text}");
    }
    let own = if E::ECHOES { 3 } else { 0 };
    let metrics = first.metrics_until("all came back", |metrics| metrics.get("cluster_own_total") == own);
    assert_eq!(metrics.get("broadcast_msg_total"), 3, "none is carried out a second time");
}

fn names_of_any_kind_cross_and_none_is_another<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 2, &[]);
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
    for name in &names {
        let identifier = json!({"channel": "$pubsub", "stream_name": name}).to_string();
        client.send(&json!({"command": "subscribe", "identifier": identifier}).to_string());
        let answer = client.text();
        assert!(answer.contains("confirm_subscription"), "{name:?}: {answer}");
    }
    for (n, name) in names.iter().enumerate() {
        post(&nodes.0[0], &json!({"stream": name, "data": n.to_string()}).to_string());
        assert_eq!(message(&mut client), json!(n), "{name}");
    }
    for node in &nodes.0 {
        let reconnects = node.metrics().get(&link::<E>("link_reconnects_total"));
        assert_eq!(reconnects, 0, "the server minds none of these names");
    }
}

fn what_a_node_of_anycable_says_is_done_and_what_nobody_can_read_is_counted<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 1, &[]);
    let (mut client, id) = identified(&nodes.0[0], "room/7");
    is_heard(&engine, "room/7", 1);
    let publication =
        r#"{"stream":"room/7","data":"{\"a\":1}","meta":{"broadcast_type":"presence"},"offset":4,"epoch":"x"}"#;
    engine.publish("room/7", &[publication]);
    let text: Value = serde_json::from_str(&client.text()).expect("JSON");
    assert_eq!((&text["message"], &text["type"]), (&json!({"a": 1}), &json!("presence")));
    // The stream in the payload decides, whatever channel it came by.
    engine.publish(COMMANDS, &[r#"{"stream":"room/7","data":"text"}"#]);
    assert_eq!(message(&mut client), json!("text"));
    engine.publish("room/7", &["no JSON"]);
    engine.publish(COMMANDS, &[r#"{"command":"dance"}"#, &disconnect(&id, false)]);
    let text = client.text();
    assert!(text.contains(r#""reason":"remote","reconnect":false"#), "{text}");
    nodes.0[0].metrics_until("counted", |metrics| metrics.get("failed_broadcast_msg_total") == 1);
}

fn a_message_that_comes_twice_is_dropped_and_one_that_does_not_come_is_noticed<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 1, &[]);
    let mut client = Client::following(nodes.0[0].address(), "room");
    is_heard(&engine, "room", 1);
    // Another run of numbers, as after a restart, is no gap.
    let said = [
        ("aaaaaaaa", 10_u64),
        ("aaaaaaaa", 11),
        ("bbbbbbbb", 5),
        ("aaaaaaaa", 11),
        ("aaaaaaaa", 14),
        ("aaaaaaaa", 1_u64 << 40),
        ("bbbbbbbb", 6),
    ];
    let publication = |(node, seq): &(&str, u64)| {
        json!({"stream": "room", "data": seq.to_string(), "node": node, "seq": seq}).to_string()
    };
    let said: Vec<String> = said.iter().map(publication).collect();
    engine.publish("room", &said.iter().map(String::as_str).collect::<Vec<_>>());
    let got: Vec<_> = (0..6).map(|_| message(&mut client)).collect();
    assert_eq!(got, [10_u64, 11, 5, 14, 1 << 40, 6].map(|n| json!(n)));
    let metrics = nodes.0[0].metrics();
    let counted = ["doubles", "gaps", "missing"].map(|name| metrics.get(&format!("cluster_{name}_total")));
    assert_eq!(counted, [1, 1, 2]);
}

fn without_its_engine_a_node_serves_its_own_clients_and_afterwards_all_again<E: Engine>() {
    let mut engine = E::begin();
    let nodes = nodes(&engine, 2, &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&engine, "room", 2);
    let [first, second] = &nodes.0[..] else { panic!("two") };
    first.broadcast("room", "0");
    each_gets(&mut clients, &numbers(0..1));
    engine.crash();
    are_up::<E>(&nodes, false);
    for n in 1..20 {
        first.broadcast("room", &n.to_string());
    }
    each_gets(&mut clients[..1], &numbers(1..20));
    let ready = second.get("/ready");
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains(&format!("\"{}_pubsub\":false", E::NAME)), "{}", ready.body);
    // A client that comes meanwhile is confirmed without waiting, and hears of all when the engine is back.
    clients.push(Client::following(second.address(), "room"));
    engine.rise();
    are_up::<E>(&nodes, true);
    is_heard(&engine, "room", 2);
    first.metrics_until("what waited is out", |metrics| metrics.get("cluster_queue_size") == 0);
    second.broadcast("room", "\"from the second\"");
    assert_eq!(message(&mut clients[0]), json!("from the second"));
    // What was published meanwhile waited there, if both nodes were back by then, and is else noticed as missing.
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
    assert_eq!(metrics.get(&link::<E>("link_reconnects_total")), 1);
    let (log, name) = (second.log.text(), format!("{}_pubsub", E::NAME));
    let lost = log.lines().filter(|line| line.contains("a link is away") && line.contains(&name)).count();
    assert_eq!(lost, 1, "one line says so: {log}");
}

fn an_engine_that_says_nothing_any_more_is_left<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 2, &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&engine, "room", 2);
    engine.freeze();
    nodes.0[0].broadcast("room", "1");
    assert_eq!(message(&mut clients[0]), json!(1));
    are_up::<E>(&nodes, false);
    engine.thaw();
    are_up::<E>(&nodes, true);
    is_heard(&engine, "room", 2);
    nodes.0[0].broadcast("room", "2");
    let seen: Vec<_> = std::iter::from_fn(|| Some(message(&mut clients[1])).filter(|seen| *seen != json!(2))).collect();
    assert!(seen.len() <= 1, "{seen:?}");
}

fn two_clusters_share_an_engine_by_their_prefixes<E: Engine>() {
    let engine = E::begin();
    let (one, other) = (nodes(&engine, 2, &["--pubsub-prefix", "one."]), nodes(&engine, 1, &[]));
    let mut clients = one.followers(2, "room");
    let mut stranger = Client::following(other.0[0].address(), "room");
    is_heard(&engine, "one.room", 2);
    is_heard(&engine, "room", 1);
    one.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
    other.0[0].broadcast("room", "2");
    assert_eq!(message(&mut stranger), json!(2));
    one.0[0].broadcast("room", "3");
    each_gets(&mut clients, &numbers(3..4));
}

fn many_streams_are_subscribed_to_by_few_commands_and_churn_costs_none<E: Engine>() {
    const STREAMS: usize = 900;
    let mut engine = E::begin();
    let nodes = nodes(&engine, 1, &["--ws-max-pending-size", "16MiB", "--max-session-size", "0"]);
    let node = &nodes.0[0];
    let are_heard = |engine: &E, count: usize| {
        until("so many are subscribed to", || engine.heard_of("s-") == count);
    };
    let commands = || node.metrics().get("cluster_subscribe_commands_total");
    // All at once: one after the other may take longer than a stream that nobody follows stays subscribed to.
    let follow_all = |client: &mut Client| {
        for n in 0..STREAMS {
            let identifier = json_string(&identifier(&format!("s-{n}")));
            client.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{identifier}}}"));
        }
        (0..STREAMS).for_each(|_| assert!(client.text().contains("confirm_subscription")));
    };
    let mut client = Client::welcomed(node.address());
    follow_all(&mut client);
    are_heard(&engine, STREAMS);
    let before = commands();
    engine.crash();
    are_up::<E>(&nodes, false);
    engine.rise();
    are_heard(&engine, STREAMS);
    // Counted when they are acknowledged.
    let expected = before + STREAMS.div_ceil(256) as u64;
    node.metrics_until("all are acknowledged", |metrics| metrics.get("cluster_subscribe_commands_total") >= expected);
    assert_eq!(commands(), expected);
    // The client leaves, and another one takes its place at once.
    client.leave();
    let mut client = Client::welcomed(node.address());
    let before = commands();
    follow_all(&mut client);
    node.metrics_until("the first has left", |metrics| metrics.get("clients_num") == 1);
    assert_eq!(commands(), before);
    client.leave();
    are_heard(&engine, 0);
    let more = node.metrics_until("it is acknowledged", |metrics| {
        metrics.get("cluster_streams_num") == 0 && metrics.get("cluster_subscribe_commands_total") > before
    });
    // As many pieces as they were left in, for each of which five seconds were over by itself.
    assert!(more.get("cluster_subscribe_commands_total") - before < STREAMS as u64 / 10);
}
