//! Nodes that tell each other by Redis: what is published on one reaches the clients of all, once and in order.

use serde_json::{Value, json};

use crate::client::{Client, http, json_string, upgrade};
use crate::nodes::{Nodes, each_gets};
use crate::server::{Server, Start};
use crate::servers::{Authority, Redis, RedisCluster, RedisStart, SentinelLogin, Sentinels, until};

const COMMANDS: &str = "__anycable_internal__";

/// Nodes with pub/sub at this Redis, and nothing else of it.
fn nodes(count: usize, url: &str, more: &[&str]) -> Nodes {
    let options = [&["--redis-url", url, "--pubsub", "redis", "--broadcast-adapter", "http"][..], more].concat();
    let nodes = Nodes::start(count, &options);
    nodes.0.iter().for_each(|node| is_up(node, true));
    nodes
}

fn is_up(node: &Server, up: bool) {
    let name = "link_up{link=\"redis_pubsub\"}";
    node.metrics_until(name, |metrics| metrics.get(name) == u64::from(up));
}

/// Waits until so many nodes are subscribed to a channel.
fn is_heard(redis: &Redis, channel: &str, nodes: usize) {
    let wanted = format!("{channel}\n{nodes}");
    until("subscribed", || redis.cli(&["PUBSUB", "NUMSUB", channel]) == wanted);
}

fn follow(client: &mut Client, stream: &str) {
    let identifier = json!({"channel": "$pubsub", "stream_name": stream}).to_string();
    client.send(&json!({"command": "subscribe", "identifier": identifier}).to_string());
    let answer = client.text();
    assert!(answer.contains("confirm_subscription"), "{stream:?}: {answer}");
}

/// A client that follows a stream, and its connection identifiers.
fn identified(node: &Server, stream: &str) -> (Client, String) {
    let mut client = upgrade(node.address(), "/cable");
    let welcome: Value = serde_json::from_str(&client.text()).expect("JSON");
    follow(&mut client, stream);
    (client, json!({"sid": welcome["sid"]}).to_string())
}

fn message(client: &mut Client) -> Value {
    let text = client.text();
    serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))["message"].clone()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[test]
#[ignore = "needs redis-server"]
fn what_one_node_takes_reaches_the_clients_of_all_once_and_in_order() {
    let redis = Redis::start();
    let nodes = nodes(3, &redis.url(), &[]);
    let streams = ["a", "b", "c"];
    let mut clients: Vec<Vec<Client>> = streams.iter().map(|stream| nodes.followers(6, stream)).collect();
    streams.iter().for_each(|stream| is_heard(&redis, stream, 3));
    for n in 0..200 {
        for (stream, node) in streams.iter().zip(&nodes.0) {
            node.broadcast(stream, &n.to_string());
        }
    }
    clients.iter_mut().for_each(|clients| each_gets(clients, &numbers(0..200)));
    for node in &nodes.0 {
        let metrics = node.metrics_until("all came back", |metrics| metrics.get("cluster_received_total") == 600);
        assert_eq!((metrics.get("cluster_sent_total"), metrics.get("cluster_own_total")), (200, 200));
        let troubles = ["dropped", "doubles", "gaps", "missing", "overflow"];
        assert_eq!(troubles.map(|name| metrics.get(&format!("cluster_{name}_total"))), [0; 5]);
        assert_eq!(metrics.get("cluster_queue_bytes"), 0);
    }
}

#[test]
#[ignore = "needs redis-server"]
fn whispers_and_remote_disconnects_cross() {
    let redis = Redis::start();
    let nodes = nodes(2, &redis.url(), &["--noauth"]);
    let [first, second] = &nodes.0[..] else { panic!("two") };
    let ((mut near, near_id), (mut far, far_id)) = (identified(first, "room"), identified(second, "room"));
    is_heard(&redis, "room", 2);
    let identifier = json_string(&crate::client::identifier("room"));
    near.send(&format!("{{\"command\":\"whisper\",\"identifier\":{identifier},\"data\":{{\"n\":1}}}}"));
    assert_eq!(message(&mut far), json!({"n": 1}));
    for (client, id) in [(&mut far, far_id), (&mut near, near_id)] {
        let body = json!({"command": "disconnect", "payload": {"identifier": id, "reconnect": true}}).to_string();
        assert_eq!(http(first.address(), "POST", "/_broadcast", &body).expect("an answer").status, 201);
        let text = client.text();
        assert!(text.contains(r#""reason":"remote","reconnect":true"#), "{text}");
    }
    let own = first.metrics_until("all came back", |metrics| metrics.get("cluster_own_total") == 3);
    assert_eq!(own.get("broadcast_msg_total"), 3, "none is carried out a second time");
}

#[test]
#[ignore = "needs redis-server"]
fn names_of_any_kind_cross() {
    let redis = Redis::start();
    let nodes = nodes(2, &redis.url(), &[]);
    let names =
        ["a b", "a.b", "a*", "*", ">", "a/b", "über", "\u{1F600}", "\"quoted\"", "a\\b", "$x", "_cw_.x", "a\tb"];
    let mut client = Client::welcomed(nodes.0[1].address());
    for name in names {
        follow(&mut client, name);
        is_heard(&redis, name, 1);
    }
    for (n, name) in names.iter().enumerate() {
        let body = json!({"stream": name, "data": n.to_string()}).to_string();
        let response = http(nodes.0[0].address(), "POST", "/_broadcast", &body).expect("an answer");
        assert_eq!(response.status, 201);
        assert_eq!(message(&mut client), json!(n), "{name}");
    }
}

#[test]
#[ignore = "needs redis-server"]
fn what_a_node_of_anycable_says_is_done_and_what_nobody_can_read_is_counted() {
    let redis = Redis::start();
    let nodes = nodes(1, &redis.url(), &["--noauth"]);
    let (mut client, id) = identified(&nodes.0[0], "room");
    is_heard(&redis, "room", 1);
    let publication =
        r#"{"stream":"room","data":"{\"a\":1}","meta":{"broadcast_type":"presence"},"offset":4,"epoch":"x"}"#;
    redis.cli(&["PUBLISH", "room", publication]);
    let text: Value = serde_json::from_str(&client.text()).expect("JSON");
    assert_eq!((&text["message"], &text["type"]), (&json!({"a": 1}), &json!("presence")));
    // The stream in the payload decides, whatever channel it came by.
    redis.cli(&["PUBLISH", COMMANDS, r#"{"stream":"room","data":"text"}"#]);
    assert_eq!(message(&mut client), json!("text"));
    redis.cli(&["PUBLISH", "room", "no JSON"]);
    redis.cli(&["PUBLISH", COMMANDS, r#"{"command":"dance"}"#]);
    let disconnect = json!({"command": "disconnect", "payload": {"identifier": id}}).to_string();
    redis.cli(&["PUBLISH", COMMANDS, &disconnect]);
    let text = client.text();
    assert!(text.contains(r#""reason":"remote","reconnect":false"#), "{text}");
    assert_eq!(nodes.0[0].metrics().get("failed_broadcast_msg_total"), 1);
}

#[test]
#[ignore = "needs redis-server"]
fn a_message_that_comes_twice_is_dropped_and_one_that_does_not_come_is_noticed() {
    let redis = Redis::start();
    let nodes = nodes(1, &redis.url(), &[]);
    let mut client = Client::following(nodes.0[0].address(), "room");
    is_heard(&redis, "room", 1);
    // Another run of numbers, as after a restart, is no gap.
    for (node, seq) in [
        ("aaaaaaaa", 10_u64),
        ("aaaaaaaa", 11),
        ("bbbbbbbb", 5),
        ("aaaaaaaa", 11),
        ("aaaaaaaa", 14),
        ("aaaaaaaa", 1_u64 << 40),
        ("bbbbbbbb", 6),
    ] {
        let publication = json!({"stream": "room", "data": seq.to_string(), "node": node, "seq": seq});
        redis.cli(&["PUBLISH", "room", &publication.to_string()]);
    }
    let got: Vec<_> = (0..6).map(|_| message(&mut client)).collect();
    assert_eq!(got, [10_u64, 11, 5, 14, 1 << 40, 6].map(|n| json!(n)));
    let metrics = nodes.0[0].metrics();
    let counted = ["doubles", "gaps", "missing"].map(|name| metrics.get(&format!("cluster_{name}_total")));
    assert_eq!(counted, [1, 1, 2]);
}

#[test]
#[ignore = "needs redis-server"]
fn without_redis_a_node_serves_its_own_clients_and_afterwards_all_again() {
    let mut redis = Redis::start();
    let nodes = nodes(2, &redis.url(), &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&redis, "room", 2);
    let [first, second] = &nodes.0[..] else { panic!("two") };
    first.broadcast("room", "0");
    each_gets(&mut clients, &numbers(0..1));
    redis.kill();
    nodes.0.iter().for_each(|node| is_up(node, false));
    for n in 1..20 {
        first.broadcast("room", &n.to_string());
    }
    each_gets(&mut clients[..1], &numbers(1..20));
    let ready = second.get("/ready");
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("\"redis_pubsub\":false"), "{}", ready.body);
    // A client that comes meanwhile is confirmed without waiting, and hears of all when Redis is back.
    clients.push(Client::following(second.address(), "room"));
    redis.restart();
    nodes.0.iter().for_each(|node| is_up(node, true));
    is_heard(&redis, "room", 2);
    first.metrics_until("what waited is out", |metrics| metrics.get("cluster_queue_size") == 0);
    second.broadcast("room", "\"from the second\"");
    assert_eq!(message(&mut clients[0]), json!("from the second"));
    // What was published while Redis was away waited there, if both nodes were back by then, and is else noticed as missing.
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
    assert_eq!(seen.len() as u64 + metrics.get("cluster_missing_total"), 19);
    assert_eq!(metrics.get("link_reconnects_total{link=\"redis_pubsub\"}"), 1);
}

#[test]
#[ignore = "needs redis-server"]
fn a_redis_that_says_nothing_any_more_is_left() {
    let redis = Redis::start();
    let nodes = nodes(2, &redis.url(), &[]);
    let mut clients = nodes.followers(2, "room");
    is_heard(&redis, "room", 2);
    redis.freeze();
    nodes.0[0].broadcast("room", "1");
    assert_eq!(message(&mut clients[0]), json!(1));
    nodes.0.iter().for_each(|node| is_up(node, false));
    redis.go_on();
    nodes.0.iter().for_each(|node| is_up(node, true));
    is_heard(&redis, "room", 2);
    nodes.0[0].broadcast("room", "2");
    let seen: Vec<_> = std::iter::from_fn(|| Some(message(&mut clients[1])).filter(|seen| *seen != json!(2))).collect();
    assert!(seen.len() <= 1, "{seen:?}");
}

#[test]
#[ignore = "needs redis-server"]
fn redis_with_tls_a_password_and_a_database() {
    let authority = Authority::new();
    let redis = Redis::start_as(RedisStart { tls: Some(&authority), password: Some("word"), ..RedisStart::default() });
    let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|name| authority.file(name));
    let url = format!("{}/3", redis.url());
    let files = ["--redis-tls-client-cert-path", &cert, "--redis-tls-client-key-path", &key];
    let verified = [&files[..], &["--redis-tls-verify", "--redis-tls-ca-cert-path", &ca]].concat();
    for options in [&files[..], &verified] {
        let nodes = nodes(2, &url, options);
        let mut clients = nodes.followers(2, "room");
        is_heard(&redis, "room", 2);
        nodes.0[0].broadcast("room", "1");
        each_gets(&mut clients, &numbers(1..2));
    }
}

#[test]
#[ignore = "needs redis-sentinel"]
fn after_a_failover_the_nodes_meet_at_the_new_master() {
    let mut sentinels = Sentinels::start();
    let options = sentinels.arguments();
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    options.extend(["--pubsub", "redis", "--broadcast-adapter", "http"]);
    let nodes = Nodes::start(2, &options);
    nodes.0.iter().for_each(|node| is_up(node, true));
    let mut clients = nodes.followers(2, "room");
    is_heard(&sentinels.redis[0], "room", 2);
    let master = sentinels.fail_over();
    is_heard(&sentinels.redis[master], "room", 2);
    nodes.0.iter().for_each(|node| is_up(node, true));
    nodes.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
}

#[test]
#[ignore = "needs redis-sentinel"]
fn sentinels_may_have_a_login_of_their_own() {
    for user in ["", "watcher"] {
        let login = SentinelLogin { user, password: "of-sentinels", of_servers: "of-servers" };
        let mut sentinels = Sentinels::start_as(Some(login));
        let options = sentinels.arguments();
        let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
        options.extend(["--broker", "redis", "--broadcast-adapter", "http"]);
        let nodes = Nodes::start(2, &options);
        nodes.0.iter().for_each(|node| is_up(node, true));
        let mut clients = nodes.followers(2, "room");
        nodes.0[0].broadcast("room", "1");
        each_gets(&mut clients, &numbers(1..2));
        let master = sentinels.fail_over();
        is_heard(&sentinels.redis[master], "room", 2);
        nodes.0[1].broadcast("room", "2");
        each_gets(&mut clients, &numbers(2..3));
        // Who is not let in is told why, and no password is in the log.
        let wrong: Vec<String> = options.iter().map(|option| option.replace("of-sentinels", "wrong-one")).collect();
        let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
        let node = Start::with(&wrong).start();
        node.log.wait_for(|line| line.contains("a link is away")).expect("said");
        for log in [node.log.text(), nodes.0[0].log.text()] {
            assert!(!["of-sentinels", "wrong-one", "of-servers"].iter().any(|word| log.contains(word)), "{log}");
        }
        assert!(node.log.text().contains("assword") || node.log.text().contains("WRONGPASS"), "{}", node.log.text());
    }
}

#[test]
#[ignore = "needs redis-server"]
fn nodes_meet_in_a_redis_cluster_whichever_of_its_nodes_they_are_at() {
    let mut cluster = RedisCluster::start();
    let nodes = nodes(3, &cluster.url(), &[]);
    let mut clients = nodes.followers(3, "room");
    // Each is at a node of its own choice.
    let heard = |nodes: &[Redis]| {
        let counts = nodes.iter().map(|redis| redis.cli(&["PUBSUB", "NUMSUB", "room"]));
        counts
            .map(|text| text.lines().nth(1).and_then(|count| count.parse::<usize>().ok()).unwrap_or(0))
            .collect::<Vec<_>>()
    };
    until("subscribed", || heard(&cluster.nodes).iter().sum::<usize>() == 3);
    nodes.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
    let busiest = heard(&cluster.nodes).iter().enumerate().max_by_key(|(_, count)| **count).expect("some").0;
    cluster.nodes[busiest].kill();
    cluster.nodes.remove(busiest);
    until("subscribed again", || heard(&cluster.nodes).iter().sum::<usize>() == 3);
    nodes.0.iter().for_each(|node| is_up(node, true));
    nodes.0[1].broadcast("room", "2");
    each_gets(&mut clients, &numbers(2..3));
}

#[test]
#[ignore = "needs redis-server"]
fn two_clusters_share_a_redis_by_their_prefixes() {
    let redis = Redis::start();
    let (one, other) = (nodes(2, &redis.url(), &["--pubsub-prefix", "one:"]), nodes(1, &redis.url(), &[]));
    let mut clients = one.followers(2, "room");
    let mut stranger = Client::following(other.0[0].address(), "room");
    is_heard(&redis, "one:room", 2);
    is_heard(&redis, "room", 1);
    one.0[0].broadcast("room", "1");
    each_gets(&mut clients, &numbers(1..2));
    other.0[0].broadcast("room", "2");
    assert_eq!(message(&mut stranger), json!(2));
    one.0[0].broadcast("room", "3");
    each_gets(&mut clients, &numbers(3..4));
}

#[test]
#[ignore = "needs redis-server"]
fn many_streams_are_subscribed_to_by_few_commands_and_churn_costs_none() {
    const STREAMS: usize = 900;
    let mut redis = Redis::start();
    let nodes = nodes(1, &redis.url(), &["--ws-max-pending-size", "16MiB", "--max-session-size", "0"]);
    let mut client = Client::welcomed(nodes.0[0].address());
    for n in 0..STREAMS {
        let identifier = json_string(&crate::client::identifier(&format!("s{n}")));
        client.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{identifier}}}"));
    }
    (0..STREAMS).for_each(|_| assert!(client.text().contains("confirm_subscription")));
    until("all are subscribed to", || redis.cli(&["PUBSUB", "CHANNELS"]).lines().count() == STREAMS + 1);
    redis.kill();
    is_up(&nodes.0[0], false);
    redis.restart();
    until("all are subscribed to again", || redis.cli(&["PUBSUB", "CHANNELS"]).lines().count() == STREAMS + 1);
    let commands = redis.commands()["subscribe"];
    assert!(commands <= 1 + STREAMS.div_ceil(256) as u64, "{commands}");
    // The client leaves, and another one takes its place at once.
    client.leave();
    let mut client = Client::welcomed(nodes.0[0].address());
    for n in 0..STREAMS {
        client.follow(&format!("s{n}"));
    }
    nodes.0[0].metrics_until("the first has left", |metrics| metrics.get("clients_num") == 1);
    assert_eq!(redis.commands()["subscribe"], commands);
    client.leave();
    until("nothing is subscribed to", || redis.cli(&["PUBSUB", "CHANNELS"]).lines().count() == 1);
    let commands = redis.commands()["unsubscribe"];
    assert!((1..=8).contains(&commands), "{commands}");
}

#[test]
#[ignore = "needs redis-server"]
fn clients_cannot_touch_the_channels_of_servers() {
    let redis = Redis::start();
    let nodes = nodes(2, &redis.url(), &["--redis-pubsub-channel", "among-nodes"]);
    let mut client = Client::welcomed(nodes.0[0].address());
    for name in ["among-nodes", "__anycable__"] {
        let identifier = json_string(&crate::client::identifier(name));
        client.send(&format!("{{\"command\":\"subscribe\",\"identifier\":{identifier}}}"));
        let answer = client.text();
        assert!(answer.contains("reject_subscription"), "{answer}");
    }
    nodes.0[0].broadcast("among-nodes", "1");
    nodes.0[0].broadcast("other", "1");
    let metrics = nodes.0[0].metrics_until("it came back", |metrics| metrics.get("cluster_sent_total") > 0);
    assert_eq!(metrics.get("cluster_sent_total"), 1);
    is_heard(&redis, "among-nodes", 2);
}
