//! The broker in Redis, with what only Redis has; what it has in common with others is in `broker`.

use std::thread;

use serde_json::Value;

use crate::client::{Client, http};
use crate::engine::Use;
use crate::extended::{all_come, behind, extended, history, join, message, presence};
use crate::nodes::Nodes;
use crate::server::Server;
use crate::servers::{Redis, RedisCluster, Sentinels, Wire, until};

fn links_are_up(node: &Server) {
    Use::Broker.links_are::<Redis>(node, true);
}

#[test]
#[ignore = "needs redis-server"]
fn a_store_whose_answer_is_lost_is_not_carried_out_twice() {
    // Aim: what is kept in the end is each message once, and a client has each once and in order. Redis is stopped while stores
    // are on their way to it, the link is cut, and Redis goes on: it carries out what it has got, and cannot answer.
    let redis = Redis::start();
    let wire = Wire::to(redis.port());
    let through = redis.url().replace(&redis.port().to_string(), &wire.port().to_string());
    let options =
        ["--broker", "redis", "--redis-url", &through, "--broadcast-adapter", "http", "--history-limit", "9999"];
    let nodes = Nodes::start(1, &options);
    let node = &nodes.0[0];
    links_are_up(node);
    let mut client = Client::following(node.address(), "busy");
    let address = node.address();
    let batch = |first: u64| {
        let one = |n| format!("{{\"stream\":\"busy\",\"data\":\"{n}\"}}");
        let body = format!("[{}]", (first..first + 100).map(one).collect::<Vec<_>>().join(","));
        let response = http(address, "POST", "/_broadcast", &body).expect("an answer");
        assert_eq!(response.status, 201, "{response:?}");
    };
    for round in 0..2 {
        redis.freeze();
        let before = wire.passed();
        thread::scope(|scope| {
            let publisher = scope.spawn(move || batch(round * 100));
            node.metrics_until("all are under way", |metrics| metrics.get("broker_queue_size") > 0);
            // They are in the kernel's hands when the wire has passed them on. One is longer than whatever else may be said.
            until("one is passed on", || wire.passed() > before + 200);
            wire.cut();
            redis.go_on();
            wire.mend();
            publisher.join().expect("published");
        });
        links_are_up(node);
    }
    all_come(&mut client, [100, 100]);
    let kept: u64 = redis.cli(&["XLEN", "cableway:s:{busy}"]).trim().parse().expect("a number");
    let metrics = node.metrics();
    assert_eq!((kept, metrics.get("broker_unstored_total"), metrics.get("cluster_lost_total")), (200, 0, 0));
    assert!(metrics.get("broker_doubles_total") > 0, "the answers were lost");
}

#[test]
#[ignore = "needs redis-server"]
fn a_failover_that_lost_nothing_keeps_the_positions() {
    let mut sentinels = Sentinels::start();
    let arguments = sentinels.arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let nodes = Nodes::start(2, &[&["--broker", "redis", "--broadcast-adapter", "http"], &arguments[..]].concat());
    nodes.0.iter().for_each(links_are_up);
    let mut client = Client::following(nodes.0[1].address(), "room");
    nodes.0[0].broadcast("room", "1");
    let (offset, epoch, _) = message(&mut client);
    sentinels.fail_over();
    nodes.0.iter().for_each(links_are_up);
    nodes.0[0].broadcast("room", "2");
    // The crash may have taken the message, or that it is the first of its stream, along: then the epoch is another one.
    let (next, then, said) = message(&mut client);
    assert_eq!(said, Value::from(2));
    assert!(then != epoch || next == offset + 1, "{epoch} {offset}, then {then} {next}");
}

#[test]
#[ignore = "needs redis-server"]
fn when_redis_has_lost_an_end_nothing_that_comes_then_is_lost() {
    // Aim: what is published after a loss has the offsets of what was lost, and reaches also the clients of a node that was
    // away longer, and has those offsets behind it. A stream that has lost nothing goes on.
    let redis = Redis::start();
    let nodes = Use::Broker.nodes(&redis, 2, &[]);
    let streams = ["short", "whole"];
    let mut clients = streams.map(|stream| nodes.followers(2, stream));
    let publish = |numbers: std::ops::Range<u64>| {
        numbers.for_each(|n| streams.iter().for_each(|stream| nodes.0[0].broadcast(stream, &n.to_string())));
    };
    let read = |client: &mut Client| (0..3).map(|_| message(client)).collect::<Vec<_>>();
    publish(1..4);
    let before = clients.each_mut().map(|both| {
        let got: Vec<_> = both.iter_mut().map(read).collect();
        assert_eq!(got[0], got[1]);
        got.into_iter().next().expect("two")
    });
    nodes.0[1].signal("STOP");
    let ids: Vec<String> = before[0].iter().map(|(offset, ..)| format!("{offset}-0")).collect();
    redis.cli(&["XDEL", "cableway:s:{short}", &ids[1], &ids[2]]);
    redis.cli(&["XSETID", "cableway:s:{short}", &ids[0]]);
    redis.cli(&["HINCRBY", "cableway:c:{short}", "o", "-2"]);
    ["normal", "pubsub"].iter().for_each(|kind| drop(redis.cli(&["CLIENT", "KILL", "TYPE", kind])));
    nodes.0[0].metrics_until("another epoch", |metrics| metrics.get("broker_epochs_total") == 1);
    links_are_up(&nodes.0[0]);
    publish(4..7);
    nodes.0[1].signal("CONT");
    for (clients, next) in clients.iter_mut().zip([before[0][1].0, before[1][2].0 + 1]) {
        for client in clients {
            let got = read(client);
            let said: Vec<_> =
                got.iter().map(|(offset, _, said)| (*offset, said.as_u64().expect("a number"))).collect();
            assert_eq!(said, [(next, 4), (next + 1, 5), (next + 2, 6)]);
            assert!(got.iter().all(|(_, epoch, _)| *epoch != before[0][0].1 && *epoch == got[0].1), "{got:?}");
        }
    }
}

#[test]
#[ignore = "needs redis-server"]
fn streams_of_any_name_are_kept_in_a_redis_cluster() {
    let cluster = RedisCluster::start();
    let url = cluster.url();
    let nodes = Nodes::start(2, &["--broker", "redis", "--broadcast-adapter", "http", "--redis-url", &url, "--noauth"]);
    nodes.0.iter().for_each(links_are_up);
    for stream in ["room:7", "a b/c.d", "*", ">", "}x", "{", "{}", "žluťoučký 🐎"] {
        let mut client = Client::following(nodes.0[1].address(), stream);
        nodes.0[0].broadcast(stream, "1");
        nodes.0[1].broadcast(stream, "2");
        let (offset, epoch, said) = message(&mut client);
        assert_eq!((said, message(&mut client).0), (Value::from(1), offset + 1), "{stream}");
        let mut late = Client::following(nodes.0[0].address(), stream);
        assert_eq!(history(&mut late, stream, &behind(stream, &epoch, offset)), Some(vec![2]), "{stream}");
        // Only now: the event crosses nodes too, and would come to whoever asks for the history.
        join(&mut client, stream, "ada");
        assert_eq!(presence(&mut client), ("join".into(), "ada".into()), "{stream}");
    }
    let (client, welcome) = extended(nodes.0[0].address(), None);
    client.leave();
    nodes.0[0].metrics_until("it is gone", |metrics| metrics.get("clients_num") == 0);
    let (_, restored) = extended(nodes.0[1].address(), welcome["sid"].as_str());
    assert_eq!(restored["restored"], true, "{restored}");
}

#[test]
#[ignore = "needs redis-server"]
fn the_script_stores_each_store_of_a_node_once() {
    let redis = Redis::start();
    let script =
        concat!(include_str!("../../src/broker/redis/stream.lua"), include_str!("../../src/broker/redis/store.lua"));
    let keys = ["2", "p:s:{x}", "p:c:{x}"];
    let store_in = |epoch: &str, node: &str, seq: &str| {
        let arguments = [epoch, node, seq, "1", "", "", "2", "60000", "", ""];
        let answer = redis.cli(&[&["EVAL", script], &keys[..], &arguments[..]].concat());
        answer.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let store = |node: &str, seq: &str| store_in("E", node, seq);
    let (first, second) = (store("a", "5"), store("a", "7"));
    let offset = |answer: &[String]| answer[1].parse::<u64>().expect("an offset");
    assert_eq!((offset(&second), &*second[3]), (offset(&first) + 1, "0"));
    assert_eq!(store("a", "7")[1..], [&*second[1], &second[1], "1"], "sent again");
    let other = store("b", "7");
    assert_eq!(offset(&other), offset(&second) + 1, "another node's is another one");
    assert_eq!(store("a", "5")[1..], ["", &other[1], "1"], "sent again before the last");
    assert_eq!(redis.cli(&["XLEN", "p:s:{x}"]).trim(), "2", "the limit");
    let counter =
        || redis.cli(&["HMGET", "p:c:{x}", "o", "b", "e", "f"]).lines().map(str::to_owned).collect::<Vec<_>>();
    let begun = (offset(&first) - 1).to_string();
    assert_eq!(counter(), [&other[1], &begun, "E"], "one epoch from the beginning");
    (8..10).for_each(|seq| _ = store_in("F", "a", &seq.to_string()));
    let last = (offset(&other) + 2).to_string();
    assert_eq!(counter(), [&last, &begun, "F", &other[1]], "another one began behind that");
    let lives = |key: &str| redis.cli(&["PTTL", key]).trim().parse::<u64>().expect("a time");
    assert!((50_000..=60_000).contains(&lives("p:s:{x}")) && (590_000..=600_000).contains(&lives("p:c:{x}")));
}
