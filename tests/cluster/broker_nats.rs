//! The broker in NATS, with what only NATS has; what it has in common with others is in `broker`.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;
use crate::engine::Use;
use crate::extended::{are_zero, behind, history, message};
use crate::nats_pubsub::Plain;
use crate::nodes::Nodes;
use crate::server::Server;
use crate::servers::{Nats, until};

/// Nodes with a broker in this NATS.
fn nodes(count: usize, nats: &Nats, more: &[&str]) -> Nodes {
    Use::Broker.nodes(nats, count, more)
}

fn links_are_up(node: &Server) {
    Use::Broker.links_are::<Nats>(node, true);
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
