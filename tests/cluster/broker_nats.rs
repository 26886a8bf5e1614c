//! The broker in NATS: positions, history, sessions and presence that are the same on every node, through crashes of NATS
//! and of nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, http, identifier};
use crate::extended::{all_come, behind, extended, history, json as read_json, message, publish_until};
use crate::nats_pubsub::Plain;
use crate::nodes::Nodes;
use crate::server::Server;
use crate::servers::{Nats, until};

/// Nodes with a broker in this NATS.
fn nodes(count: usize, nats: &Nats, more: &[&str]) -> Nodes {
    let url = nats.url();
    let options = ["--broker", "nats", "--nats-servers", &url, "--broadcast-adapter", "http", "--noauth"];
    let nodes = Nodes::start(count, &[&options[..], more].concat());
    nodes.0.iter().for_each(links_are_up);
    nodes
}

fn links_are_up(node: &Server) {
    node.metrics_until("its links are up", |metrics| {
        ["nats_broker", "nats_pubsub"].iter().all(|link| metrics.get(&format!("link_up{{link=\"{link}\"}}")) == 1)
    });
}

fn are_zero(node: &Server, names: &[&str]) {
    let metrics = node.metrics();
    names.iter().for_each(|name| assert_eq!(metrics.get(name), 0, "{name}"));
}

#[test]
#[ignore = "needs nats-server"]
fn positions_are_the_same_on_every_node_and_history_is_found_on_another() {
    let nats = Nats::start();
    let nodes = nodes(3, &nats, &[]);
    let mut clients = nodes.followers(3, "room");
    for n in 0..60u64 {
        nodes.0[n as usize % 3].broadcast("room", &n.to_string());
    }
    let mut first = None;
    for client in &mut clients {
        let got: Vec<_> = (0..60).map(|_| message(client)).collect();
        let begin = *first.get_or_insert(got[0].0);
        for (n, (offset, _, said)) in got.iter().enumerate() {
            assert_eq!((*offset, said), (begin + n as u64, &Value::from(n)));
        }
    }
    nodes.0[0].broadcast("room", "60");
    let (begin, epoch) = (first.expect("some"), message(&mut clients[2]).1);
    // A client that comes to a node where nobody has followed the stream.
    nodes.0[1].broadcast("quiet", "1");
    nodes.0[1].broadcast("quiet", "2");
    let mut late = Client::following(nodes.0[2].address(), "quiet");
    assert_eq!(history(&mut late, "quiet", "{\"since\":1}"), Some(vec![1, 2]));
    let mut late = Client::following(nodes.0[1].address(), "room");
    // More than a message knows before it, so that it is read in several pieces.
    let after = history(&mut late, "room", &behind("room", &epoch, begin + 9));
    assert_eq!(after, Some((10..=60).collect()));
    assert_eq!(history(&mut late, "room", "{\"since\":1}"), Some((0..=60).collect()));
    assert_eq!(history(&mut late, "room", &behind("room", &epoch, begin + 60)), Some(vec![]), "it has everything");
    for wrong in [behind("room", &epoch, begin + 61), behind("room", "another", begin + 9), behind("room", &epoch, 1)] {
        assert_eq!(history(&mut late, "room", &wrong), None, "{wrong}");
    }
    are_zero(&nodes.0[1], &["cluster_lost_total", "broker_unstored_total", "broker_epochs_total"]);
}

#[test]
#[ignore = "needs nats-server"]
fn only_so_much_is_kept_and_whoever_has_missed_more_is_told() {
    let nats = Nats::start();
    let nodes = nodes(1, &nats, &["--history-limit", "5", "--history-ttl", "5s"]);
    let mut client = Client::following(nodes.0[0].address(), "a b.c");
    let publish = |n: u64| {
        let body = json!({"stream": "a b.c", "data": n.to_string()}).to_string();
        assert_eq!(http(nodes.0[0].address(), "POST", "/_broadcast", &body).expect("an answer").status, 201);
    };
    (0..10).for_each(publish);
    let got: Vec<_> = (0..10).map(|_| message(&mut client)).collect();
    let (first, epoch) = (got[0].0, &got[0].1);
    assert_eq!(history(&mut client, "a b.c", &behind("a b.c", epoch, first + 4)), Some((5..10).collect()));
    assert_eq!(history(&mut client, "a b.c", &behind("a b.c", epoch, first + 3)), None);
    let published = Instant::now();
    until("it is too old", || history_is_over(nodes.0[0].address(), epoch, first + 4));
    assert!(published.elapsed() > Duration::from_secs(3), "{:?}", published.elapsed());
    // The counter lives longer: whoever has everything misses nothing.
    assert_eq!(history(&mut client, "a b.c", &behind("a b.c", epoch, first + 9)), Some(vec![]));
    publish(10);
    assert_eq!(message(&mut client).0, first + 10);
}

fn history_is_over(address: std::net::SocketAddr, epoch: &str, offset: u64) -> bool {
    let mut client = Client::following(address, "a b.c");
    history(&mut client, "a b.c", &behind("a b.c", epoch, offset)).is_none()
}

#[test]
#[ignore = "needs nats-server"]
fn each_message_comes_once_and_in_order_while_nats_crashes_twice() {
    let mut nats = Nats::start();
    let nodes = nodes(2, &nats, &["--history-limit", "1000"]);
    let mut clients = nodes.followers(4, "busy");
    let addresses = [nodes.0[0].address(), nodes.0[1].address()];
    let stop = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let publish = |at: usize| publish_until(addresses[at], "busy", at as u64, 2, &stop);
        let publishers = [scope.spawn(move || publish(0)), scope.spawn(move || publish(1))];
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(1000));
            nats.kill();
            thread::sleep(Duration::from_millis(700));
            nats.restart();
            nodes.0.iter().for_each(links_are_up);
        }
        thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        publishers.map(|publisher| publisher.join().expect("published"))
    });
    clients.iter_mut().for_each(|client| all_come(client, counts));
    for node in &nodes.0 {
        are_zero(node, &["cluster_lost_total", "broker_unstored_total", "broker_epochs_total"]);
    }
}

#[test]
#[ignore = "needs nats-server"]
fn nodes_that_publish_to_one_stream_at_once_get_their_turns() {
    const EACH: u64 = 150;
    let nats = Nats::start();
    let nodes = nodes(3, &nats, &["--history-limit", "1000"]);
    let mut clients = nodes.followers(3, "busy");
    let addresses: Vec<_> = nodes.0.iter().map(Server::address).collect();
    thread::scope(|scope| {
        for (at, address) in addresses.iter().enumerate() {
            scope.spawn(move || {
                // A batch is handed over at once, so that several wait to be stored.
                for piece in 0..EACH / 10 {
                    let numbers = (0..10).map(|n| at as u64 * 1000 + piece * 10 + n);
                    let batch: Vec<_> = numbers.map(|n| json!({"stream": "busy", "data": n.to_string()})).collect();
                    let body = Value::from(batch).to_string();
                    assert_eq!(http(*address, "POST", "/_broadcast", &body).expect("an answer").status, 201);
                }
            });
        }
    });
    let mut orders = Vec::new();
    for client in &mut clients {
        let got: Vec<_> = (0..3 * EACH).map(|_| message(client)).collect();
        assert!(got.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "without a gap");
        let order: Vec<u64> = got.iter().map(|(_, _, said)| said.as_u64().expect("a number")).collect();
        for at in 0..3 {
            let of_node: Vec<u64> = order.iter().copied().filter(|n| n / 1000 == at).collect();
            assert!(of_node.iter().copied().eq((0..EACH).map(|n| at * 1000 + n)), "each publisher's own order");
        }
        orders.push(order);
    }
    assert!(orders.windows(2).all(|pair| pair[0] == pair[1]), "one order for all");
}

#[test]
#[ignore = "needs nats-server"]
fn a_history_that_is_gone_has_another_epoch() {
    let mut nats = Nats::start();
    let nodes = nodes(2, &nats, &[]);
    let mut clients = nodes.followers(2, "room");
    nodes.0[0].broadcast("room", "1");
    let (offset, old, _) = message(&mut clients[1]);
    message(&mut clients[0]);
    nats.kill();
    nats.forget();
    nats.restart();
    nodes.0.iter().for_each(links_are_up);
    for n in 2..5 {
        nodes.0[n % 2].broadcast("room", &n.to_string());
    }
    for client in &mut clients {
        let got: Vec<_> = (0..3).map(|_| message(client)).collect();
        assert_eq!(got.iter().map(|(.., said)| said.as_u64()).collect::<Vec<_>>(), [Some(2), Some(3), Some(4)]);
        assert!(got.iter().all(|(_, epoch, _)| *epoch != old && *epoch == got[0].1), "{old}, then {got:?}");
        assert_eq!(history(client, "room", &behind("room", &old, offset)), None);
        assert_eq!(history(client, "room", &behind("room", &got[0].1, got[0].0)), Some(vec![3, 4]));
    }
}

#[test]
#[ignore = "needs nats-server"]
fn what_is_sent_again_because_no_answer_came_is_kept_once() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats, &[]);
    let mut clients = nodes.followers(2, "room");
    nodes.0[0].broadcast("room", "1");
    let (first, epoch, _) = message(&mut clients[0]);
    nats.freeze();
    thread::scope(|scope| {
        scope.spawn(|| nodes.0[0].broadcast("room", "2"));
        // Longer than an answer is waited for, and less than the publisher waits. What was sent waits in the server's socket.
        thread::sleep(Duration::from_millis(3500));
        nats.go_on();
    });
    nodes.0[1].broadcast("room", "3");
    assert_eq!(message(&mut clients[1]).2, Value::from(1));
    for client in &mut clients {
        let got: Vec<_> = (1..3).map(|n| (first + n, epoch.clone(), Value::from(n + 1))).collect();
        assert_eq!((0..2).map(|_| message(client)).collect::<Vec<_>>(), got);
    }
    assert_eq!(nats.store("cableway_history").0, 3);
    are_zero(&nodes.0[0], &["broker_unstored_total"]);
}

#[test]
#[ignore = "needs nats-server"]
fn a_store_that_somebody_deletes_is_made_anew() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats, &[]);
    let mut clients = nodes.followers(2, "room");
    nodes.0[0].broadcast("room", "1");
    let before: Vec<_> = clients.iter_mut().map(message).collect();
    let mut operator = Plain::at(&nats);
    operator.publish("$JS.API.STREAM.DELETE.cableway_history", "");
    operator.flush();
    until("it is there again", || nats.store("cableway_history").1 == 0 && !nats.is_without("cableway_history"));
    nodes.0.iter().for_each(links_are_up);
    nodes.0[1].broadcast("room", "2");
    for client in &mut clients {
        let (_, epoch, said) = message(client);
        assert_eq!((epoch == before[0].1, said), (false, Value::from(2)));
    }
}

#[test]
#[ignore = "needs nats-server"]
fn of_three_servers_one_may_be_gone() {
    let mut servers = Nats::cluster();
    let nodes = nodes(2, &servers[0], &[]);
    let mut clients = nodes.followers(2, "room");
    (0..10).for_each(|n: u64| nodes.0[n as usize % 2].broadcast("room", &n.to_string()));
    let got: Vec<_> = clients.iter_mut().map(|client| (0..10).map(|_| message(client)).collect::<Vec<_>>()).collect();
    assert_eq!(got[0], got[1]);
    let (first, epoch) = (got[0][0].0, &got[0][0].1);
    servers[0].kill();
    nodes.0.iter().for_each(|node| {
        node.metrics_until("it is at another server", |metrics| {
            ["nats_broker", "nats_pubsub"].iter().all(|link| {
                metrics.get(&format!("link_reconnects_total{{link=\"{link}\"}}")) > 0
                    && metrics.get(&format!("link_up{{link=\"{link}\"}}")) == 1
            })
        });
    });
    // What is published while the servers elect may have no position.
    let has_position = || {
        nodes.0[0].broadcast("other", "1");
        let mut client = Client::following(nodes.0[1].address(), "other");
        nodes.0[0].broadcast("other", "2");
        client.text().contains("offset")
    };
    until("positions are given again", has_position);
    nodes.0[0].broadcast("room", "10");
    for client in &mut clients {
        assert_eq!(message(client), (first + 10, epoch.clone(), Value::from(10)));
    }
    assert_eq!(history(&mut clients[1], "room", &behind("room", epoch, first)), Some((1..=10).collect()));
    are_zero(&nodes.0[1], &["cluster_lost_total", "broker_epochs_total"]);
}

#[test]
#[ignore = "needs nats-server"]
fn clients_are_served_without_positions_where_nats_is_gone_for_long() {
    let mut nats = Nats::start();
    let nodes = nodes(1, &nats, &[]);
    let mut client = Client::following(nodes.0[0].address(), "room");
    nodes.0[0].broadcast("room", "1");
    let (before, epoch, _) = message(&mut client);
    nats.kill();
    let begun = Instant::now();
    nodes.0[0].broadcast("room", "2");
    assert!(begun.elapsed() > Duration::from_secs(4), "the publisher has waited: {:?}", begun.elapsed());
    let text = client.text();
    assert!(text.contains("\"message\":2") && !text.contains("offset"), "{text}");
    nodes.0[0].broadcast("room", "3");
    assert!(client.text().contains("\"message\":3"));
    assert_eq!(history(&mut client, "room", &behind("room", &epoch, before)), None, "it cannot be found out");
    nats.restart();
    links_are_up(&nodes.0[0]);
    nodes.0[0].broadcast("room", "4");
    let (offset, _, said) = message(&mut client);
    assert_eq!((offset, said), (before + 1, Value::from(4)));
    assert_eq!(nodes.0[0].metrics().get("broker_unstored_total"), 2);
}

#[test]
#[ignore = "needs nats-server"]
fn a_message_that_nats_will_never_take_is_delivered_here_and_holds_nothing_up() {
    let nats = Nats::start();
    let nodes = nodes(1, &nats, &[]);
    let node = &nodes.0[0];
    let mut client = Client::following(node.address(), "room");
    // NATS takes 1 MiB.
    node.broadcast("room", &format!("\"{}\"", "x".repeat(1_200_000)));
    node.broadcast("room", "2");
    let long = client.text();
    assert!(long.len() > 1_200_000 && !long.contains("\"offset\""), "{}", &long[long.len() - 100..]);
    assert_eq!(message(&mut client).2, 2);
    let metrics = node.metrics();
    let counted = ["broker_refused_total", "broker_unstored_total"].map(|name| metrics.get(name));
    assert_eq!(counted, [1, 1], "it is tried once");
}

#[test]
#[ignore = "needs nats-server"]
fn a_session_is_resumed_on_another_node_once_and_never_by_who_was_sent_away() {
    let nats = Nats::start();
    let nodes = nodes(2, &nats, &[]);
    know_each_other(&nats, 2);
    let sid = |welcome: &Value| welcome["sid"].as_str().expect("a sid").to_owned();
    let (mut client, welcome) = extended(nodes.0[0].address(), None);
    client.follow("room");
    nodes.0[1].broadcast("room", "1");
    let (offset, epoch, _) = message(&mut client);
    client.leave();
    is_kept(&nats);
    nodes.0[1].broadcast("room", "2");
    let (mut back, restored) = extended(nodes.0[1].address(), Some(&sid(&welcome)));
    assert_eq!(restored["restored"], true, "{restored}");
    assert_eq!(history(&mut back, "room", &behind("room", &epoch, offset)), Some(vec![2]));
    nodes.0[0].broadcast("room", "3");
    assert_eq!(message(&mut back).0, offset + 2);
    // A second time.
    let (_, again) = extended(nodes.0[0].address(), Some(&sid(&welcome)));
    assert_eq!(again["restored"], Value::Null, "{again}");
    // While the old connection stands on another node, that one gives it up.
    let (mut third, restored) = extended(nodes.0[0].address(), Some(&sid(&restored)));
    assert_eq!(restored["restored"], true, "{restored}");
    assert!(back.text().contains("session_resumed"));
    assert_eq!(history(&mut third, "room", &behind("room", &epoch, offset)), Some(vec![2, 3]));
    // Sent away by one node while its session waits, it does not come back on the other.
    third.leave();
    is_kept(&nats);
    let identifiers = json!({"sid": sid(&welcome)}).to_string();
    let command = json!({"command": "disconnect", "payload": {"identifier": identifiers}}).to_string();
    assert_eq!(http(nodes.0[0].address(), "POST", "/_broadcast", &command).expect("an answer").status, 201);
    let (_, refused) = extended(nodes.0[1].address(), Some(&sid(&restored)));
    assert_eq!(refused["restored"], Value::Null, "{refused}");
}

/// Waits until a session waits for its client.
fn is_kept(nats: &Nats) {
    until("the session is kept", || nats.store("cableway_sessions").0 > 0);
}

/// Waits until each of so many nodes has said twice that it lives: all know of each other then.
fn know_each_other(nats: &Nats, nodes: u64) {
    until("the nodes know each other", || nats.store("cableway_nodes").1 >= 2 * nodes);
}

fn presence(client: &mut Client, command: &str, more: Value) {
    let mut message = json!({"command": command, "identifier": identifier("room")});
    if !more.is_null() {
        message["presence"] = more;
    }
    client.send(&message.to_string());
}

/// Who is present on `room`, as a node tells a client that asks.
fn present(node: &Server) -> Vec<String> {
    let mut client = extended(node.address(), None).0;
    client.follow("room");
    presence(&mut client, "presence", json!({"return_records": true}));
    loop {
        let answer = read_json(&client.text());
        if answer["type"] == "presence" && answer["message"]["type"] == "info" {
            let records = answer["message"]["records"].as_array().cloned().unwrap_or_default();
            let mut ids: Vec<_> =
                records.iter().filter_map(|record| record["id"].as_str().map(str::to_owned)).collect();
            ids.sort_unstable();
            return ids;
        }
    }
}

#[test]
#[ignore = "needs nats-server"]
fn who_is_present_is_known_on_every_node_and_a_node_that_dies_takes_its_people_with_it() {
    let nats = Nats::start();
    let mut nodes = nodes(3, &nats, &["--presence-ttl", "1s"]);
    know_each_other(&nats, 3);
    let mut watcher = extended(nodes.0[0].address(), None).0;
    watcher.follow("room");
    let mut event = |kind: &str, id: &str| {
        let event = read_json(&watcher.text());
        assert_eq!(
            (&event["type"], &event["message"]["type"], &event["message"]["id"]),
            (&json!("presence"), &json!(kind), &json!(id))
        );
    };
    let join = |node: usize, id: &str| {
        let mut client = extended(nodes.0[node].address(), None).0;
        client.follow("room");
        presence(&mut client, "join", json!({"id": id, "info": {"name": id}}));
        client
    };
    let _ann = join(1, "ann");
    event("join", "ann");
    let bob = join(2, "bob");
    event("join", "bob");
    // The same person once more, elsewhere: nobody is told.
    let twice = join(1, "bob");
    until("all are there", || present(&nodes.0[0]) == ["ann", "bob"]);
    assert_eq!(present(&nodes.0[2]), ["ann", "bob"]);
    bob.leave();
    nodes.0[2].metrics_until("bob's connection is over", |metrics| metrics.get("clients_num") == 0);
    let _eve = {
        let mut client = extended(nodes.0[2].address(), None).0;
        client.follow("room");
        presence(&mut client, "join", json!({"id": "eve", "info": {}}));
        client
    };
    event("join", "eve");
    twice.leave();
    event("leave", "bob");
    // A node that is killed says nothing of its people: its lease ends.
    drop(nodes.0.pop());
    until("eve is there no more", || present(&nodes.0[1]) == ["ann"]);
    event("leave", "eve");
}
