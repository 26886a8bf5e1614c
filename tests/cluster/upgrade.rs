//! A node is upgraded, again and again, while messages come by every link without a pause. Its clients stay where they are, and
//! each gets each message once and in order.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Client, http};
use crate::engine::{Engine, Use, for_both};
use crate::extended::json;
use crate::nats_pubsub::Plain;
use crate::server::{Server, Start};
use crate::servers::{Nats, Redis, until};

for_both! {
    what_other_nodes_publish_comes_once_and_in_order,
    with_a_broker_what_any_node_publishes_comes_once_and_in_order,
    what_has_no_number_comes_once_and_in_order,
    what_is_followed_meanwhile_misses_nothing,
    with_a_broker_what_is_followed_meanwhile_misses_nothing,
}

/// Upgrades of one node, one after the other.
const UPGRADES: usize = 3;

/// The sleep between two messages.
const PAUSE: Duration = Duration::from_millis(2);

/// The last message of each stream.
const END: &str = "end";

/// Processes that are not ours to wait for. Killed when dropped.
struct Successors(Vec<u64>);

impl Drop for Successors {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = Command::new("kill").arg("-9").arg(pid.to_string()).status();
        }
    }
}

/// Upgrades a node so often while `meanwhile` goes on, which is told to stop then.
fn upgraded<T: Send>(node: &Server, meanwhile: impl FnOnce(&AtomicBool) -> T + Send) -> (T, Successors) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| meanwhile(&stop));
        let mut successors = Successors(Vec::new());
        for n in 1..=UPGRADES {
            let pid = successors.0.last().copied().unwrap_or(node.pid().into());
            thread::sleep(100 * PAUSE);
            let sent = Command::new("kill").arg("-USR2").arg(pid.to_string()).status().expect("kill runs");
            assert!(sent.success());
            let begin = "upgrade: process ";
            until("upgraded", || {
                let failed = node.log.messages().into_iter().find(|(level, _)| level == "ERROR");
                assert!(failed.is_none(), "{failed:?}\n{}", node.log.text());
                node.log.numbers_of(begin, "pid").len() == n
            });
            successors.0 = node.log.numbers_of(begin, "pid");
        }
        thread::sleep(100 * PAUSE);
        stop.store(true, Ordering::Relaxed);
        (work.join().expect("no failure"), successors)
    })
}

/// Publishes numbers by `publish` until it is told to stop, and then the end. Gives how many.
fn numbers(stop: &AtomicBool, mut publish: impl FnMut(&str)) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        publish(&count.to_string());
        count += 1;
        thread::sleep(PAUSE);
    }
    publish(END);
    count
}

fn publication(stream: &str, data: &str) -> String {
    json!({"stream": stream, "data": json!(data).to_string()}).to_string()
}

/// What a client gets up to the end.
fn got(client: &mut Client) -> Vec<String> {
    let mut got = Vec::new();
    loop {
        match &json(&client.text())["message"] {
            Value::String(end) if end == END => return got,
            Value::String(text) => got.push(text.clone()),
            other => panic!("{other}"),
        }
    }
}

fn is_all(got: &[String], count: usize, what: &str) {
    let wrong = got.iter().enumerate().find(|(n, text)| n.to_string() != **text);
    assert_eq!(wrong, None, "{what}: {got:?}");
    assert_eq!(got.len(), count, "{what}");
}

/// Clients of both nodes, while both of them publish and the first is upgraded.
fn two_nodes<E: Engine>(uses: Use) {
    let engine = E::begin();
    let nodes = uses.nodes(&engine, 2, &[]);
    let streams = ["one", "other"];
    let mut clients: Vec<(usize, &str, Client)> = Vec::new();
    for (at, node) in nodes.0.iter().enumerate() {
        clients.extend(streams.map(|stream| (at, stream, Client::following(node.address(), stream))));
    }
    let publish = |at: usize, stop: &AtomicBool| {
        numbers(stop, |data| nodes.0[at].broadcast(streams[at], &json!(data).to_string()))
    };
    let (counts, _successors) = upgraded(&nodes.0[0], |stop| {
        thread::scope(|scope| {
            let both = [0, 1].map(|at| scope.spawn(move || publish(at, stop)));
            both.map(|one| one.join().expect("no failure"))
        })
    });
    for (at, stream, mut client) in clients {
        let count = counts[usize::from(stream == streams[1])];
        assert!(count > 20, "{count}");
        is_all(&got(&mut client), count, &format!("client of node {at} on stream {stream}"));
    }
}

fn what_other_nodes_publish_comes_once_and_in_order<E: Engine>() {
    two_nodes::<E>(Use::PubSub);
}

fn with_a_broker_what_any_node_publishes_comes_once_and_in_order<E: Engine>() {
    two_nodes::<E>(Use::Broker);
}

/// Publications to each stream that somebody begins to follow.
const OF_NEW_STREAM: usize = 60;

/// Again and again a client of the node that is upgraded follows a stream that nobody followed there before, and another node
/// publishes to it from when the subscription is confirmed.
fn followed_meanwhile<E: Engine>(uses: Use) {
    let engine = E::begin();
    let nodes = uses.nodes(&engine, 2, &[]);
    let [node, other] = &nodes.0[..] else { panic!("two nodes") };
    let published: Mutex<Vec<usize>> = Mutex::default();
    let publish = |stop: &AtomicBool| loop {
        let is_over = stop.load(Ordering::Relaxed);
        let mut batch = Vec::new();
        for (stream, count) in published.lock().expect("no failure").iter_mut().enumerate() {
            if *count <= OF_NEW_STREAM {
                let is_end = is_over || *count == OF_NEW_STREAM;
                let data = if is_end { END.to_owned() } else { count.to_string() };
                batch.push(publication(&format!("new{stream}"), &data));
                *count += 1;
            }
        }
        let answer = http(other.address(), "POST", "/_broadcast", &format!("[{}]", batch.join(",")));
        assert_eq!(answer.expect("an answer").status, 201);
        if is_over {
            return;
        }
        thread::sleep(PAUSE);
    };
    let (clients, _successors) = upgraded(node, |stop| {
        let followed = AtomicBool::new(false);
        thread::scope(|scope| {
            let mut clients = Vec::new();
            let publisher = scope.spawn(|| publish(&followed));
            while !stop.load(Ordering::Relaxed) {
                clients.push(Client::following(node.address(), &format!("new{}", clients.len())));
                published.lock().expect("no failure").push(0);
                thread::sleep(PAUSE);
            }
            followed.store(true, Ordering::Relaxed);
            publisher.join().expect("no failure");
            clients
        })
    });
    assert!(clients.len() > 20, "{}", clients.len());
    let published = published.into_inner().expect("no failure");
    for (stream, (mut client, published)) in clients.into_iter().zip(published).enumerate() {
        is_all(&got(&mut client), published - 1, &format!("stream new{stream}"));
    }
}

fn what_is_followed_meanwhile_misses_nothing<E: Engine>() {
    followed_meanwhile::<E>(Use::PubSub);
}

fn with_a_broker_what_is_followed_meanwhile_misses_nothing<E: Engine>() {
    followed_meanwhile::<E>(Use::Broker);
}

/// Publishes a payload to a channel.
type Publish<'a> = Box<dyn FnMut(&str, &str) + Send + 'a>;

/// Publishes on one connection.
trait Publisher: Engine + Sync {
    fn publisher(&self) -> Publish<'_>;
}

impl Publisher for Redis {
    fn publisher(&self) -> Publish<'_> {
        Box::new(|channel, payload| _ = self.cli(&["PUBLISH", channel, payload]))
    }
}

impl Publisher for Nats {
    fn publisher(&self) -> Publish<'_> {
        let mut app = Plain::at(self);
        Box::new(move |channel, payload| {
            app.publish(channel, payload);
            app.flush();
        })
    }
}

/// Broadcasts that every node hears, and what nodes of AnyCable say to each other, have no numbers. Each payload of one kind
/// is the same as all others, so nothing but their count tells them apart.
fn what_has_no_number_comes_once_and_in_order<E: Publisher>() {
    let engine = E::begin();
    let options = [E::WHERE, &engine.place(), "--pubsub", E::NAME, "--broadcast-adapter", E::NAME, "--noauth"];
    let node = Start::with(&options).start();
    node.is_ready();
    Use::PubSub.links_are::<E>(&node, true);
    let streams = ["counted", "same", "foreign"];
    let mut clients = streams.map(|stream| Client::following(node.address(), stream));
    // The defaults: a stream has a channel of its name.
    let (foreign, broadcasts) = ("foreign", "__anycable__");
    until("subscribed", || engine.heard(foreign) == 1 && engine.heard(broadcasts) == 1);
    let (count, _successors) = upgraded(&node, |stop| {
        let mut publish = engine.publisher();
        numbers(stop, |data| {
            publish(broadcasts, &publication("counted", data));
            let same = if data == END { END } else { "same" };
            publish(broadcasts, &publication("same", same));
            publish(foreign, &publication("foreign", same));
        })
    });
    assert!(count > 5, "{count}");
    is_all(&got(&mut clients[0]), count, "numbers");
    for (client, stream) in clients[1..].iter_mut().zip(&streams[1..]) {
        assert_eq!(got(client).len(), count, "{stream}");
    }
}

#[test]
#[ignore = "needs redis-server"]
fn what_comes_by_the_stream_of_redis_is_handed_over_once_and_in_order() {
    let redis = Redis::start();
    let options = ["--redis-url", &redis.url(), "--broadcast-adapter", "redisx"];
    let node = Start::with(&options).start();
    node.is_ready();
    node.metrics_until("the link", |metrics| metrics.get("link_up{link=\"redisx\"}") == 1);
    let mut client = Client::following(node.address(), "s");
    let (count, _successors) = upgraded(&node, |stop| {
        numbers(stop, |data| {
            redis.cli(&["XADD", "__anycable__", "*", "payload", &publication("s", data)]);
        })
    });
    assert!(count > 5, "{count}");
    is_all(&got(&mut client), count, "entries");
    until("everything is acknowledged", || redis.cli(&["XPENDING", "__anycable__", "bx"]).starts_with('0'));
    let consumers = redis.cli(&["XINFO", "CONSUMERS", "__anycable__", "bx"]);
    assert_eq!(consumers.matches("name").count(), 1, "{consumers}");
}
