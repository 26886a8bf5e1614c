//! Nodes that tell each other by Redis, with what only Redis has; what they have in common with others is in `pubsub`.

use crate::client::{Client, identifier, json_string};
use crate::engine::is_heard;
use crate::nodes::{Nodes, each_gets};
use crate::server::{Server, Start};
use crate::servers::{Authority, Redis, RedisCluster, RedisStart, SentinelLogin, Sentinels, until};

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

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
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
fn clients_cannot_touch_the_channels_of_servers() {
    let redis = Redis::start();
    let nodes = nodes(2, &redis.url(), &["--redis-pubsub-channel", "among-nodes"]);
    let mut client = Client::welcomed(nodes.0[0].address());
    for name in ["among-nodes", "__anycable__"] {
        let identifier = json_string(&identifier(name));
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
