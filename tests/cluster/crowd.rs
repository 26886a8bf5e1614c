//! Thousands of clients over three nodes, and publications by each way in: each client gets each message once and in order.

use std::io::{Read, Write};

use crate::client::{self, Client};
use crate::engine::is_heard;
use crate::nodes::{Nodes, each_gets};
use crate::servers::{Nats, Redis, until};

const NODES: usize = 3;
const CLIENTS: usize = 3000;
const MESSAGES: usize = 20;

/// Messages from `from` on, as clients get them.
fn numbers(from: usize) -> Vec<String> {
    (from..from + MESSAGES).map(|number| number.to_string()).collect()
}

fn publication(number: &str) -> String {
    format!("{{\"stream\":\"crowd\",\"data\":{}}}", client::json_string(number))
}

/// Publishes on the subject of broadcasts by the text protocol of NATS.
/// <https://docs.nats.io/reference/reference-protocols/nats-protocol>
fn publish(nats: &Nats, messages: &[String]) {
    let mut socket = client::connect(([127, 0, 0, 1], nats.port()).into());
    socket.write_all(b"CONNECT {\"verbose\":false}\r\n").expect("sent");
    for message in messages {
        let message = publication(message);
        write!(socket, "PUB __anycable__ {}\r\n{message}\r\n", message.len()).expect("sent");
    }
    socket.write_all(b"PING\r\n").expect("sent");
    let mut said = String::new();
    while !said.contains("PONG") {
        let mut piece = [0; 4096];
        let read = socket.read(&mut piece).expect("an answer");
        said.push_str(&String::from_utf8_lossy(&piece[..read]));
        assert!(read > 0 && !said.contains("-ERR"), "{said}");
    }
}

fn crowd(nodes: &Nodes) -> Vec<Client> {
    let files = rlimit::increase_nofile_limit(u64::MAX).expect("raised");
    assert!(files > 2 * CLIENTS as u64, "{files} open files are too few for {CLIENTS} clients");
    nodes.followers(CLIENTS, "crowd")
}

#[test]
#[ignore = "needs redis-server"]
fn thousands_of_clients_on_three_nodes_get_what_comes_over_http_and_redis_once_and_in_order() {
    let redis = Redis::start();
    let nodes = Nodes::start(NODES, &["--redis-url", &redis.url(), "--broadcast-adapter", "http,redis,redisx"]);
    let mut clients = crowd(&nodes);
    ["crowd", "__anycable__"].iter().for_each(|channel| is_heard(&redis, channel, NODES));
    for (at, number) in numbers(0).iter().enumerate() {
        // Each at another node: the next one is published when all have had this one.
        nodes.0[at % NODES].broadcast("crowd", number);
        each_gets(&mut clients, std::slice::from_ref(number));
    }
    for number in numbers(100) {
        nodes.0[0].broadcast("crowd", &number);
    }
    each_gets(&mut clients, &numbers(100));
    for number in numbers(200) {
        redis.cli(&["PUBLISH", "__anycable__", &publication(&number)]);
    }
    each_gets(&mut clients, &numbers(200));
    for number in numbers(300) {
        redis.cli(&["XADD", "__anycable__", "*", "payload", &publication(&number)]);
        each_gets(&mut clients, &[number]);
    }
    // A little after clients have it.
    until("every entry is acknowledged and deleted", || redis.cli(&["XLEN", "__anycable__"]) == "0");
}

#[test]
#[ignore = "needs nats-server"]
fn thousands_of_clients_on_three_nodes_get_what_comes_over_http_and_nats_once_and_in_order() {
    let nats = Nats::start();
    let options = ["--nats-servers", &nats.url(), "--pubsub", "nats", "--broadcast-adapter", "http,nats"];
    let nodes = Nodes::start(NODES, &options);
    let mut clients = crowd(&nodes);
    ["crowd", "__anycable__"].iter().for_each(|channel| is_heard(&nats, channel, NODES));
    for number in numbers(0) {
        nodes.0[1].broadcast("crowd", &number);
    }
    each_gets(&mut clients, &numbers(0));
    publish(&nats, &numbers(100));
    each_gets(&mut clients, &numbers(100));
}
