//! The broker in Redis or NATS: positions, history, sessions and presence that are the same on every node, through crashes of
//! the engine and of nodes.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, http, identifier, json_string};
use crate::engine::{Engine, Use, for_both};
use crate::extended::{
    Stop, all_come, are_zero, ask_history, behind, extended, history, join, json as read_json, message, presence,
    publish_until,
};
use crate::nodes::Nodes;
use crate::server::Server;
use crate::servers::until;

for_both! {
    positions_are_the_same_on_every_node_and_history_is_found_on_another,
    only_so_much_is_kept_and_whoever_has_missed_more_is_told,
    each_message_comes_once_and_in_order_while_the_engine_crashes_twice,
    nodes_that_publish_to_one_stream_at_once_get_their_turns,
    a_node_that_dies_costs_its_clients_nothing,
    a_history_that_is_gone_has_another_epoch,
    a_node_that_learns_late_of_another_epoch_misses_nothing_of_it,
    clients_are_served_without_positions_where_the_engine_is_gone_for_long,
    a_session_is_resumed_on_another_node_once_and_never_by_who_was_sent_away,
    presence_is_the_same_on_every_node_and_the_people_of_a_dead_node_leave,
}

fn nodes<E: Engine>(engine: &E, count: usize, more: &[&str]) -> Nodes {
    Use::Broker.nodes(engine, count, more)
}

fn links_are_up<E: Engine>(node: &Server) {
    Use::Broker.links_are::<E>(node, true);
}

fn positions_are_the_same_on_every_node_and_history_is_found_on_another<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 3, &[]);
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

fn only_so_much_is_kept_and_whoever_has_missed_more_is_told<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 1, &["--history-limit", "5", "--history-ttl", "5s"]);
    let mut client = Client::following(nodes.0[0].address(), "a b.c");
    let publish = |n: u64| {
        let body = json!({"stream": "a b.c", "data": n.to_string()}).to_string();
        assert_eq!(http(nodes.0[0].address(), "POST", "/_broadcast", &body).expect("an answer").status, 201);
    };
    (0..10).for_each(publish);
    let published = Instant::now();
    let got: Vec<_> = (0..10).map(|_| message(&mut client)).collect();
    let (first, epoch) = (got[0].0, &got[0].1);
    assert_eq!(history(&mut client, "a b.c", &behind("a b.c", epoch, first + 4)), Some((5..10).collect()));
    assert_eq!(history(&mut client, "a b.c", &behind("a b.c", epoch, first + 3)), None);
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

fn each_message_comes_once_and_in_order_while_the_engine_crashes_twice<E: Engine>() {
    let mut engine = E::begin();
    let nodes = nodes(&engine, 2, &["--history-limit", "1000"]);
    let mut clients = nodes.followers(4, "busy");
    let addresses = [nodes.0[0].address(), nodes.0[1].address()];
    let stop = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let publish = |at: usize| publish_until(addresses[at], "busy", at as u64, 2, &stop);
        let publishers = [scope.spawn(move || publish(0)), scope.spawn(move || publish(1))];
        let running = Stop(&stop);
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(1000));
            Use::Broker.crash(&mut engine, &nodes.0);
            // Several wait to be stored. Who publishes waits for 5 s, of which the link takes up to 3 when it is away for long.
            thread::sleep(Duration::from_millis(300));
            engine.rise();
            nodes.0.iter().for_each(links_are_up::<E>);
        }
        thread::sleep(Duration::from_millis(500));
        drop(running);
        publishers.map(|publisher| publisher.join().expect("published"))
    });
    for node in &nodes.0 {
        are_zero(node, &["cluster_lost_total", "broker_unstored_total", "broker_epochs_total"]);
    }
    clients.iter_mut().for_each(|client| all_come(client, counts));
}

fn nodes_that_publish_to_one_stream_at_once_get_their_turns<E: Engine>() {
    const EACH: u64 = 150;
    let engine = E::begin();
    let nodes = nodes(&engine, 3, &["--history-limit", "1000"]);
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

fn a_node_that_dies_costs_its_clients_nothing<E: Engine>() {
    let engine = E::begin();
    let mut nodes = nodes(&engine, 2, &["--history-limit", "1000"]);
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
            let message = read_json(&text);
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

fn a_history_that_is_gone_has_another_epoch<E: Engine>() {
    let mut engine = E::begin();
    let nodes = nodes(&engine, 2, &[]);
    let mut clients = nodes.followers(2, "room");
    nodes.0[0].broadcast("room", "1");
    let (offset, old, _) = message(&mut clients[1]);
    message(&mut clients[0]);
    Use::Broker.crash(&mut engine, &nodes.0);
    engine.forget();
    engine.rise();
    nodes.0.iter().for_each(links_are_up::<E>);
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

fn a_node_that_learns_late_of_another_epoch_misses_nothing_of_it<E: Engine>() {
    let mut engine = E::begin();
    let nodes = nodes(&engine, 2, &[]);
    let mut clients = nodes.followers(2, "room");
    nodes.0[0].broadcast("room", "1");
    let got: Vec<_> = clients.iter_mut().map(message).collect();
    let old = &got[0].1;
    // It does nothing until the other one has stored for a while in the new epoch.
    nodes.0[1].signal("STOP");
    Use::Broker.crash(&mut engine, &nodes.0[..1]);
    engine.forget();
    engine.rise();
    links_are_up::<E>(&nodes.0[0]);
    for n in 2..5 {
        nodes.0[0].broadcast("room", &n.to_string());
    }
    let first: Vec<_> = (0..3).map(|_| message(&mut clients[0])).collect();
    nodes.0[1].signal("CONT");
    let second: Vec<_> = (0..3).map(|_| message(&mut clients[1])).collect();
    assert_eq!(first, second);
    assert_eq!(first.iter().map(|(.., said)| said.as_u64()).collect::<Vec<_>>(), [Some(2), Some(3), Some(4)]);
    assert!(first.iter().all(|(_, epoch, _)| epoch != old), "{old}, then {first:?}");
    are_zero(&nodes.0[1], &["cluster_lost_total"]);
}

fn clients_are_served_without_positions_where_the_engine_is_gone_for_long<E: Engine>() {
    let mut engine = E::begin();
    let nodes = nodes(&engine, 1, &[]);
    let mut client = Client::following(nodes.0[0].address(), "room");
    nodes.0[0].broadcast("room", "1");
    let (before, epoch, _) = message(&mut client);
    let begun = Instant::now();
    engine.crash();
    nodes.0[0].broadcast("room", "2");
    assert!(begun.elapsed() > Duration::from_secs(4), "the publisher has waited: {:?}", begun.elapsed());
    let text = client.text();
    assert!(text.contains("\"message\":2") && !text.contains("offset"), "{text}");
    let begun = Instant::now();
    nodes.0[0].broadcast("room", "3");
    assert!(begun.elapsed() < Duration::from_secs(2), "nobody waits any more: {:?}", begun.elapsed());
    assert!(client.text().contains("\"message\":3"));
    assert_eq!(history(&mut client, "room", &behind("room", &epoch, before)), None, "it cannot be found out");
    // Who comes meanwhile is confirmed, also on a stream that somebody else has asked for.
    let mut late = nodes.followers(3, "other");
    nodes.0[0].broadcast("other", "3");
    late.iter_mut().for_each(|client| assert!(client.text().contains("\"message\":3")));
    engine.rise();
    links_are_up::<E>(&nodes.0[0]);
    nodes.0[0].broadcast("room", "4");
    let (offset, _, said) = message(&mut client);
    assert_eq!((offset, said), (before + 1, Value::from(4)));
    nodes.0[0].broadcast("other", "4");
    late.iter_mut().for_each(|client| assert_eq!(message(client).2, Value::from(4)));
    assert_eq!(nodes.0[0].metrics().get("broker_unstored_total"), 3);
}

fn a_session_is_resumed_on_another_node_once_and_never_by_who_was_sent_away<E: Engine>() {
    let engine = E::begin();
    let nodes = nodes(&engine, 2, &[]);
    engine.knows_nodes(2);
    let sid = |welcome: &Value| welcome["sid"].as_str().expect("a sid").to_owned();
    let (mut client, welcome) = extended(nodes.0[0].address(), None);
    client.follow("room");
    nodes.0[1].broadcast("room", "1");
    let (offset, epoch, _) = message(&mut client);
    client.leave();
    engine.keeps_sessions();
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
    engine.keeps_sessions();
    let identifiers = json!({"sid": sid(&welcome)}).to_string();
    let command = json!({"command": "disconnect", "payload": {"identifier": identifiers}}).to_string();
    assert_eq!(http(nodes.0[0].address(), "POST", "/_broadcast", &command).expect("an answer").status, 201);
    let (_, refused) = extended(nodes.0[1].address(), Some(&sid(&restored)));
    assert_eq!(refused["restored"], Value::Null, "{refused}");
}

fn presence_is_the_same_on_every_node_and_the_people_of_a_dead_node_leave<E: Engine>() {
    let engine = E::begin();
    let mut nodes = nodes(&engine, 2, &["--presence-ttl", "1", "--api-port", "0"]);
    engine.knows_nodes(2);
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
    let info = read_json(&watcher.text());
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
    assert_eq!(read_json(&watcher.text())["message"], read_json("{\"type\":\"info\",\"total\":0}"));
}
