//! The broker in Redis: positions, history, sessions and presence that are the same on every node, through crashes of
//! Redis and of nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Client, http, identifier, json_string};
use crate::extended::{all_come, ask_history, behind, extended, history, json, message, publish_until};
use crate::nodes::Nodes;
use crate::server::Server;
use crate::servers::{Redis, RedisCluster, RedisStart, Sentinels, Wire};

/// Nodes with a broker in this Redis.
fn nodes(count: usize, redis: &Redis, more: &[&str]) -> Nodes {
    let url = redis.url();
    let options = ["--broker", "redis", "--redis-url", &url, "--broadcast-adapter", "http"];
    let nodes = Nodes::start(count, &[&options[..], more].concat());
    nodes.0.iter().for_each(links_are_up);
    nodes
}

fn links_are_up(node: &Server) {
    node.metrics_until("its links are up", |metrics| {
        ["redis_broker", "redis_pubsub"].iter().all(|link| metrics.get(&format!("link_up{{link=\"{link}\"}}")) == 1)
    });
}

#[test]
#[ignore = "needs redis-server"]
fn positions_are_the_same_on_every_node_and_history_is_found_on_another() {
    let redis = Redis::start();
    let nodes = nodes(3, &redis, &[]);
    let mut clients = nodes.followers(3, "room");
    for n in 0..30u64 {
        nodes.0[n as usize % 3].broadcast("room", &n.to_string());
    }
    let mut first = None;
    for client in &mut clients {
        let got: Vec<_> = (0..30).map(|_| message(client)).collect();
        let begin = *first.get_or_insert(got[0].0);
        for (n, (offset, _, said)) in got.iter().enumerate() {
            assert_eq!((*offset, said), (begin + n as u64, &Value::from(n)));
        }
    }
    let (begin, epoch) = (first.unwrap(), {
        nodes.0[0].broadcast("room", "30");
        message(&mut clients[2]).1
    });
    // A client that comes to a node where nobody has followed the stream.
    nodes.0[1].broadcast("quiet", "1");
    nodes.0[1].broadcast("quiet", "2");
    let mut late = Client::following(nodes.0[2].address(), "quiet");
    assert_eq!(history(&mut late, "quiet", "{\"since\":1}"), Some(vec![1, 2]));
    let mut late = Client::following(nodes.0[1].address(), "room");
    let after = history(&mut late, "room", &behind("room", &epoch, begin + 9));
    assert_eq!(after, Some((10..=30).collect()));
    assert_eq!(history(&mut late, "room", &behind("room", &epoch, begin + 30)), Some(vec![]), "it has everything");
    for wrong in [behind("room", &epoch, begin + 31), behind("room", "another", begin + 9), behind("room", &epoch, 1)] {
        assert_eq!(history(&mut late, "room", &wrong), None, "{wrong}");
    }
    let metrics = nodes.0[1].metrics();
    assert_eq!((metrics.get("cluster_lost_total"), metrics.get("broker_unstored_total")), (0, 0));
}

/// Ends publishers also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs redis-server"]
fn each_message_comes_once_and_in_order_while_redis_crashes_twice() {
    let mut redis = Redis::start_as(RedisStart { keeps: true, ..RedisStart::default() });
    let nodes = nodes(2, &redis, &["--history-limit", "1000"]);
    let mut clients = nodes.followers(4, "busy");
    let addresses = [nodes.0[0].address(), nodes.0[1].address()];
    let stop = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let publish = |at: usize| publish_until(addresses[at], "busy", at as u64, 2, &stop);
        let publishers = [scope.spawn(move || publish(0)), scope.spawn(move || publish(1))];
        let running = Stop(&stop);
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(1000));
            redis.kill();
            thread::sleep(Duration::from_millis(700));
            redis.restart();
            nodes.0.iter().for_each(links_are_up);
        }
        thread::sleep(Duration::from_millis(500));
        drop(running);
        publishers.map(|publisher| publisher.join().expect("published"))
    });
    for node in &nodes.0 {
        let metrics = node.metrics();
        eprintln!(
            "doubles {} filled {} lost {} unstored {}",
            metrics.get("broker_doubles_total"),
            metrics.get("cluster_filled_total"),
            metrics.get("cluster_lost_total"),
            metrics.get("broker_unstored_total")
        );
        assert_eq!((metrics.get("cluster_lost_total"), metrics.get("broker_unstored_total")), (0, 0));
        assert_eq!(metrics.get("broker_epochs_total"), 0);
    }
    clients.iter_mut().for_each(|client| all_come(client, counts));
}

#[test]
#[ignore = "needs redis-server"]
fn a_node_that_dies_costs_its_clients_nothing() {
    let redis = Redis::start();
    let mut nodes = nodes(2, &redis, &["--history-limit", "1000"]);
    let address = nodes.0[0].address();
    let mut client = Client::following(nodes.0[1].address(), "room");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let publisher = scope.spawn(|| publish_until(address, "room", 0, 1, &stop));
        let running = Stop(&stop);
        let mut seen: Vec<_> = (0..10).map(|_| message(&mut client)).collect();
        // The node is killed, and its client comes back to the other one.
        drop(nodes.0.pop());
        let (last, epoch, _) = seen.last().cloned().expect("some");
        let mut client = Client::following(address, "room");
        ask_history(&mut client, "room", &behind("room", &epoch, last));
        let mut confirmed = false;
        while seen.len() < 40 {
            let text = client.text();
            if text.contains("confirm_history") {
                confirmed = true;
                continue;
            }
            let message = json(&text);
            // What came before it asked is what it asks for.
            let offset = message["offset"].as_u64().expect("a position");
            if confirmed || offset == seen.last().expect("some").0 + 1 {
                seen.push((offset, epoch.clone(), message["message"].clone()));
            }
        }
        drop(running);
        publisher.join().expect("published");
        let first = seen[0].0;
        for (n, (offset, _, said)) in seen.iter().enumerate() {
            assert_eq!((*offset, said.as_u64()), (first + n as u64, seen[0].2.as_u64().map(|first| first + n as u64)));
        }
    });
}

#[test]
#[ignore = "needs redis-server"]
fn a_redis_that_comes_back_empty_has_another_epoch() {
    let mut redis = Redis::start();
    let nodes = nodes(2, &redis, &[]);
    let mut clients = nodes.followers(2, "room");
    nodes.0[0].broadcast("room", "1");
    let (offset, old, _) = message(&mut clients[1]);
    message(&mut clients[0]);
    redis.kill();
    redis.restart();
    nodes.0.iter().for_each(links_are_up);
    for n in 2..5 {
        nodes.0[n % 2].broadcast("room", &n.to_string());
    }
    for client in &mut clients {
        let got: Vec<_> = (0..3).map(|_| message(client)).collect();
        assert_eq!(got.iter().map(|(.., said)| said.as_u64().unwrap()).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(got.iter().all(|(_, epoch, _)| *epoch != old && *epoch == got[0].1), "{old}, then {got:?}");
        assert!(got.is_sorted_by_key(|(offset, ..)| *offset));
        assert_eq!(history(client, "room", &behind("room", &old, offset)), None);
        assert_eq!(history(client, "room", &behind("room", &got[0].1, got[0].0)), Some(vec![3, 4]));
    }
}

#[test]
#[ignore = "needs redis-server"]
fn clients_are_served_without_positions_where_redis_is_gone_for_long() {
    let mut redis = Redis::start_as(RedisStart { keeps: true, ..RedisStart::default() });
    let nodes = nodes(1, &redis, &[]);
    let mut client = Client::following(nodes.0[0].address(), "room");
    nodes.0[0].broadcast("room", "1");
    let (before, epoch, _) = message(&mut client);
    redis.kill();
    let begun = Instant::now();
    nodes.0[0].broadcast("room", "2");
    assert!(begun.elapsed() > Duration::from_secs(4), "the publisher has waited: {:?}", begun.elapsed());
    let text = client.text();
    assert!(text.contains("\"message\":2") && !text.contains("offset"), "{text}");
    let begun = Instant::now();
    nodes.0[0].broadcast("room", "3");
    assert!(begun.elapsed() < Duration::from_secs(2), "nobody waits any more: {:?}", begun.elapsed());
    assert!(client.text().contains("\"message\":3"));
    assert_eq!(history(&mut client, "room", &behind("room", &epoch, before)), None, "it cannot be found out");
    redis.restart();
    links_are_up(&nodes.0[0]);
    nodes.0[0].broadcast("room", "4");
    let (offset, _, said) = message(&mut client);
    assert_eq!((offset, said), (before + 1, Value::from(4)));
    assert_eq!(nodes.0[0].metrics().get("broker_unstored_total"), 2);
}

#[test]
#[ignore = "needs redis-server"]
fn a_session_is_resumed_on_another_node_once() {
    let redis = Redis::start();
    let nodes = nodes(2, &redis, &["--noauth"]);
    let sid = |welcome: &Value| welcome["sid"].as_str().expect("a sid").to_owned();
    let (mut client, welcome) = extended(nodes.0[0].address(), None);
    client.follow("room");
    nodes.0[1].broadcast("room", "1");
    let (offset, epoch, _) = message(&mut client);
    client.leave();
    nodes.0[0].closed_for("client_gone", 1);
    nodes.0[1].broadcast("room", "2");
    let (mut back, restored) = extended(nodes.0[1].address(), Some(&sid(&welcome)));
    assert_eq!(restored["restored"], true, "{restored}");
    assert_eq!(history(&mut back, "room", &behind("room", &epoch, offset)), Some(vec![2]));
    nodes.0[0].broadcast("room", "3");
    assert_eq!(message(&mut back).0, offset + 2);
    // A second time, and one that nobody had.
    let (_, again) = extended(nodes.0[0].address(), Some(&sid(&welcome)));
    assert_eq!(again["restored"], Value::Null, "{again}");
    // While the old connection stands on another node, that one gives it up.
    let (mut third, restored) = extended(nodes.0[0].address(), Some(&sid(&restored)));
    assert_eq!(restored["restored"], true, "{restored}");
    assert!(back.text().contains("session_resumed"));
    assert_eq!(history(&mut third, "room", &behind("room", &epoch, offset)), Some(vec![2, 3]));
}

#[test]
#[ignore = "needs redis-server"]
fn nobody_comes_back_to_a_session_after_a_remote_disconnect() {
    let redis = Redis::start();
    let nodes = nodes(2, &redis, &["--noauth"]);
    let (client, welcome) = extended(nodes.0[0].address(), None);
    let sid = welcome["sid"].as_str().expect("a sid");
    client.leave();
    nodes.0[0].closed_for("client_gone", 1);
    let identifiers = json_string(&format!("{{\"sid\":\"{sid}\"}}"));
    let body = format!("{{\"command\":\"disconnect\",\"payload\":{{\"identifier\":{identifiers}}}}}");
    let response = http(nodes.0[1].address(), "POST", "/_broadcast", &body).expect("an answer");
    assert_eq!(response.status, 201);
    let (_, again) = extended(nodes.0[0].address(), Some(sid));
    assert_eq!(again["restored"], Value::Null, "{again}");
}

/// What is said of who is present: the kind and the id.
fn presence(client: &mut Client) -> (String, String) {
    let text = client.text();
    let event = json(&text);
    assert_eq!(event["type"], "presence", "{text}");
    let said = |name: &str| event["message"][name].as_str().unwrap_or_default().to_owned();
    (said("type"), said("id"))
}

fn join(client: &mut Client, stream: &str, id: &str) {
    let identifier = json_string(&identifier(stream));
    client.send(&format!(
        "{{\"command\":\"join\",\"identifier\":{identifier},\"presence\":{{\"id\":\"{id}\",\"info\":{{\"n\":1}}}}}}"
    ));
}

#[test]
#[ignore = "needs redis-server"]
fn presence_is_the_same_on_every_node_and_the_people_of_a_dead_node_leave() {
    let redis = Redis::start();
    let mut nodes = nodes(2, &redis, &["--presence-ttl", "1", "--api-port", "0"]);
    let (here, there) = (nodes.0[0].address(), nodes.0[1].address());
    let mut watcher = Client::following(here, "room");
    let mut ada = Client::following(there, "room");
    join(&mut ada, "room", "ada");
    for client in [&mut watcher, &mut ada] {
        assert_eq!(presence(client), ("join".into(), "ada".into()));
    }
    // The same person once more is told to nobody, and goes without a word.
    let mut again = Client::following(here, "room");
    join(&mut again, "room", "ada");
    let mut bob = Client::following(here, "room");
    join(&mut bob, "room", "bob");
    assert_eq!(presence(&mut watcher), ("join".into(), "bob".into()));
    let list = format!("{{\"command\":\"presence\",\"identifier\":{}}}", json_string(&identifier("room")));
    watcher.send(&list);
    let info = json(&watcher.text());
    assert_eq!(info["message"]["total"], 2, "{info}");
    let mut ids: Vec<_> = info["message"]["records"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
    ids.sort_by_key(Value::to_string);
    assert_eq!(ids, ["ada", "bob"]);
    assert_eq!(info["message"]["records"][0]["info"]["n"], 1);
    bob.leave();
    assert_eq!(presence(&mut watcher), ("leave".into(), "bob".into()));
    again.leave();
    let mut carl = Client::following(there, "room");
    join(&mut carl, "room", "carl");
    assert_eq!(presence(&mut watcher), ("join".into(), "carl".into()));
    // The node of both dies. Its lease ends after 20 seconds.
    drop(nodes.0.pop());
    watcher.0.get_mut().set_read_timeout(Some(Duration::from_secs(40))).expect("set");
    let mut gone = [presence(&mut watcher), presence(&mut watcher)];
    gone.sort();
    assert_eq!(gone, [("leave".into(), "ada".into()), ("leave".into(), "carl".into())]);
    watcher.send(&list);
    assert_eq!(json(&watcher.text())["message"], json("{\"type\":\"info\",\"total\":0}"));
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
        thread::scope(|scope| {
            let publisher = scope.spawn(move || batch(round * 100));
            node.metrics_until("all are under way", |metrics| metrics.get("broker_queue_size") > 0);
            // They are in the kernel's hands when the wire has passed them on.
            thread::sleep(Duration::from_millis(200));
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
    let script = include_str!("../../src/broker/redis/store.lua");
    let keys = ["2", "p:s:{x}", "p:c:{x}"];
    let store = |node: &str, seq: &str| {
        let arguments = [node, seq, "1", "", "", "2", "60000", "E", "", ""];
        let answer = redis.cli(&[&["EVAL", script], &keys[..], &arguments[..]].concat());
        answer.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (first, second) = (store("a", "5"), store("a", "7"));
    let offset = |answer: &[String]| answer[1].parse::<u64>().expect("an offset");
    assert_eq!((offset(&second), &*second[3]), (offset(&first) + 1, "0"));
    assert_eq!(store("a", "7")[1..], [&*second[1], &second[1], "1"], "sent again");
    let other = store("b", "7");
    assert_eq!(offset(&other), offset(&second) + 1, "another node's is another one");
    assert_eq!(store("a", "5")[1..], ["", &other[1], "1"], "sent again before the last");
    assert_eq!(redis.cli(&["XLEN", "p:s:{x}"]).trim(), "2", "the limit");
    let lives = |key: &str| redis.cli(&["PTTL", key]).trim().parse::<u64>().expect("a time");
    assert!((50_000..=60_000).contains(&lives("p:s:{x}")) && (590_000..=600_000).contains(&lives("p:c:{x}")));
}
