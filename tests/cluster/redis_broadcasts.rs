//! Broadcasts that come by Redis: by its pub/sub (`redis`), which every node hears, and by a stream (`redisx`), of which each
//! entry is taken by one node.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cableway::broadcast::{Broadcast, Handover, PublicationSink, RedisXMetrics, RedisXSource};
use cableway::link::LinkState;
use cableway::link::redis::RedisSettings;
use cableway::model::{Publication, RemoteDisconnect, ServerUrl, UrlForm};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use crate::client::Client;
use crate::engine::is_heard;
use crate::extended::history;
use crate::nodes::{Nodes, each_gets};
use crate::server::{SOON, Server, Start};
use crate::servers::{Redis, RedisCluster, RedisStart, Sentinels, until};

const STREAM: &str = "__anycable__";
const GROUP: &str = "bx";

fn is_up(node: &Server, link: &str) {
    let name = format!("link_up{{link=\"{link}\"}}");
    node.metrics_until(&name, |metrics| metrics.get(&name) == 1);
}

fn nodes(count: usize, url: &str, adapter: &str) -> Nodes {
    let nodes = Nodes::start(count, &["--redis-url", url, "--broadcast-adapter", adapter]);
    for node in &nodes.0 {
        adapter.split(',').filter(|adapter| *adapter != "http").for_each(|adapter| is_up(node, adapter));
        is_up(node, "redis_pubsub");
    }
    nodes
}

fn publication(stream: &str, n: usize) -> String {
    json!({"stream": stream, "data": n.to_string()}).to_string()
}

fn add(redis: &Redis, payload: &str) -> String {
    redis.cli(&["XADD", STREAM, "*", "payload", payload])
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn is_empty(redis: &Redis) {
    until("everything is acknowledged and deleted", || {
        redis.cli(&["XLEN", STREAM]) == "0" && redis.cli(&["XPENDING", STREAM, GROUP]).starts_with('0')
    });
}

#[test]
#[ignore = "needs redis-server"]
fn every_node_hears_what_is_published_to_the_channel_and_no_client_twice() {
    let redis = Redis::start();
    // AnyCable's default, where a Redis is given.
    let nodes = Nodes::start(2, &["--redis-url", &redis.url()]);
    let mut clients = nodes.followers(2, "a b");
    is_heard(&redis, STREAM, 2);
    is_heard(&redis, "a b", 2);
    for n in 0..5 {
        redis.cli(&["PUBLISH", STREAM, &publication("a b", n)]);
    }
    let batch = format!("[{},{}]", publication("a b", 5), publication("a b", 6));
    redis.cli(&["PUBLISH", STREAM, &batch]);
    redis.cli(&["PUBLISH", STREAM, "no JSON"]);
    redis.cli(&["PUBLISH", STREAM, &publication("a b", 7)]);
    each_gets(&mut clients, &numbers(0..8));
    for node in &nodes.0 {
        let metrics = node.metrics_until("all are taken", |metrics| metrics.get("fanout_publications_total") == 7);
        let names = ["publications_total", "failed_broadcast_msg_total", "cluster_sent_total"];
        assert_eq!(names.map(|name| metrics.get(name)), [0, 1, 0]);
    }
}

#[test]
#[ignore = "needs redis-server"]
fn each_entry_of_the_stream_reaches_every_client_once_and_is_gone_then() {
    let redis = Redis::start();
    let mut nodes = nodes(3, &redis.url(), "redisx");
    let mut clients: Vec<Vec<Client>> = (0..3).map(|n| nodes.followers(3, &format!("s{n}"))).collect();
    (0..3).for_each(|n| is_heard(&redis, &format!("s{n}"), 3));
    for n in 0..200 {
        (0..3).for_each(|s| drop(add(&redis, &publication(&format!("s{s}"), n))));
    }
    for clients in &mut clients {
        for client in clients {
            let mut seen: Vec<u64> = (0..200).map(|_| number(client)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..200).collect::<Vec<_>>(), "each once");
        }
    }
    is_empty(&redis);
    let taken = |node: &Server| node.metrics().get("redisx_entries_total");
    assert_eq!(nodes.0.iter().map(taken).sum::<u64>(), 600);
    // A node that is shut down leaves the group; one that dies does not.
    assert_eq!(redis.cli(&["XINFO", "CONSUMERS", STREAM, GROUP]).matches("name").count(), 3);
    nodes.0[0].signal("TERM");
    nodes.0[0].wait(crate::server::SOON);
    assert_eq!(redis.cli(&["XINFO", "CONSUMERS", STREAM, GROUP]).matches("name").count(), 2);
}

fn number(client: &mut Client) -> u64 {
    let text = client.text();
    let text: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    text["message"].as_u64().unwrap_or_else(|| panic!("no number: {text}"))
}

#[test]
#[ignore = "needs redis-server"]
fn one_node_keeps_the_order_of_the_stream() {
    let redis = Redis::start();
    let nodes = nodes(1, &redis.url(), "redisx");
    let mut clients = nodes.followers(1, "s");
    for n in 0..500 {
        add(&redis, &publication("s", n));
    }
    each_gets(&mut clients, &numbers(0..500));
    is_empty(&redis);
}

#[test]
#[ignore = "needs redis-server"]
fn what_a_dead_node_held_is_taken_over_and_what_nobody_can_take_is_dropped() {
    let redis = Redis::start();
    redis.cli(&["XGROUP", "CREATE", STREAM, GROUP, "$", "MKSTREAM"]);
    let held = add(&redis, &publication("s", 1));
    let deadly = add(&redis, &publication("s", 99));
    redis.cli(&["XREADGROUP", "GROUP", GROUP, "dead", "STREAMS", STREAM, ">"]);
    // This one has ended five nodes.
    redis.cli(&["XCLAIM", STREAM, GROUP, "dead", "0", &deadly, "RETRYCOUNT", "5"]);
    redis.cli(&["XADD", STREAM, "*", "other", "field"]);
    add(&redis, "no JSON");
    let nodes = nodes(1, &redis.url(), "redisx");
    let mut client = Client::following(nodes.0[0].address(), "s");
    // It was held for less than two seconds when the node came.
    assert_eq!(number(&mut client), 1, "{held}");
    add(&redis, &publication("s", 2));
    assert_eq!(number(&mut client), 2);
    is_empty(&redis);
    let metrics = nodes.0[0].metrics();
    let names = ["redisx_claimed_total", "redisx_poison_total", "redisx_entries_total", "failed_broadcast_msg_total"];
    assert_eq!(names.map(|name| metrics.get(name)), [1, 2, 3, 1]);
}

#[test]
#[ignore = "needs redis-server"]
fn nothing_of_the_stream_is_lost_or_doubled_when_redis_crashes() {
    let mut redis = Redis::start_as(RedisStart { keeps: true, ..RedisStart::default() });
    let nodes = nodes(2, &redis.url(), "http,redisx");
    let mut client = Client::following(nodes.0[0].address(), "s");
    is_heard(&redis, "s", 1);
    let mut next = 0;
    let mut published = |redis: &Redis, count: usize| {
        (0..count).for_each(|_| {
            add(redis, &publication("s", next));
            next += 1;
        });
    };
    for _ in 0..3 {
        published(&redis, 50);
        redis.kill();
        redis.restart();
        published(&redis, 50);
        is_heard(&redis, "s", 1);
    }
    is_empty(&redis);
    // Every entry was taken by one node, once. What the second took while the first was not subscribed did not cross.
    let sum = |name: &str| nodes.0.iter().map(|node| node.metrics().get(name)).sum::<u64>();
    assert_eq!(sum("redisx_entries_total"), 300);
    nodes.0[1].broadcast("s", "300");
    let mut seen: Vec<u64> = std::iter::from_fn(|| Some(number(&mut client)).filter(|n| *n != 300)).collect();
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count, "none twice");
    assert_eq!(seen.len() as u64 + nodes.0[0].metrics().get("cluster_missing_total"), 300);
}

#[test]
#[ignore = "needs redis-server"]
fn what_comes_while_no_node_runs_waits_in_the_stream() {
    let redis = Redis::start();
    let url = redis.url();
    let options = ["--redis-url", &url, "--broker", "redis", "--broadcast-adapter", "http,redisx"];
    let mut node = Start::with(&options).start();
    is_up(&node, "redisx");
    node.signal("TERM");
    assert!(node.wait(SOON).success());
    (0..50).for_each(|n| _ = add(&redis, &publication("s", n)));
    let node = Start::with(&options).start();
    is_empty(&redis);
    let mut client = Client::following(node.address(), "s");
    assert_eq!(history(&mut client, "s", "{\"since\":1}"), Some((0..50).collect()));
}

#[test]
#[ignore = "needs redis-server"]
fn the_stream_is_read_on_when_its_slot_moves() {
    let cluster = RedisCluster::start();
    let nodes = nodes(2, &cluster.url(), "redisx");
    let mut clients = nodes.followers(2, "s");
    let add = |at: usize, n| drop(add(&cluster.nodes[at], &publication("s", n)));
    let heard = || {
        let counts = cluster.nodes.iter().map(|redis| redis.cli(&["PUBSUB", "NUMSUB", "s"]));
        counts.map(|text| text.lines().nth(1).and_then(|count| count.parse::<usize>().ok()).unwrap_or(0)).sum::<usize>()
    };
    until("subscribed", || heard() == 2);
    add(cluster.master_of(STREAM), 1);
    each_gets(&mut clients, &numbers(1..2));
    let to = cluster.move_slot_of(STREAM);
    for n in 2..20 {
        add(to, n);
        each_gets(&mut clients, &numbers(n..n + 1));
    }
    is_empty(&cluster.nodes[to]);
}

#[test]
#[ignore = "needs redis-sentinel"]
fn after_a_failover_the_stream_is_read_from_the_new_master() {
    let mut sentinels = Sentinels::start();
    let mut options = sentinels.arguments();
    options.extend(["--broadcast-adapter", "redisx,redis"].map(str::to_owned));
    let nodes = Nodes::start(1, &options.iter().map(String::as_str).collect::<Vec<_>>());
    ["redis", "redisx", "redis_pubsub"].iter().for_each(|link| is_up(&nodes.0[0], link));
    let mut clients = nodes.followers(1, "s");
    // A group that the crash takes along is made anew behind what comes then.
    until("the replica has the group", || sentinels.redis[1].cli(&["EXISTS", STREAM]) == "1");
    let master = sentinels.fail_over();
    add(&sentinels.redis[master], &publication("s", 1));
    each_gets(&mut clients, &numbers(1..2));
    is_heard(&sentinels.redis[master], STREAM, 1);
    sentinels.redis[master].cli(&["PUBLISH", STREAM, &publication("s", 2)]);
    each_gets(&mut clients, &numbers(2..3));
}

/// Takes nothing before it is let to.
struct Gate {
    open: Semaphore,
    taken: Mutex<Vec<String>>,
    begun: AtomicUsize,
}

impl PublicationSink for Gate {
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
        Box::pin(async move {
            self.begun.fetch_add(1, SeqCst);
            self.open.acquire().await.expect("never closed").forget();
            self.taken.lock().expect("sound").extend(publications.iter().map(|p| p.message.to_string()));
            Ok(())
        })
    }

    fn try_publish(&self, publication: Publication) -> bool {
        panic!("no whispers here: {publication:?}")
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        panic!("no disconnects here: {disconnect:?}")
    }

    fn publish_here(&self, publications: Vec<Publication>) -> Handover<'_> {
        panic!("an entry is for all nodes: {publications:?}")
    }

    fn disconnect_here(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        panic!("an entry is for all nodes: {disconnect:?}")
    }
}

/// A reader of the stream, with a gate behind it.
fn reader(redis: &Redis, consumer: &str) -> (Arc<Gate>, RedisXSource, Arc<Broadcast>) {
    let gate = Arc::new(Gate { open: Semaphore::new(0), taken: Mutex::default(), begun: AtomicUsize::new(0) });
    let servers = vec![ServerUrl::parse(&redis.url(), UrlForm::REDIS).expect("a URL")];
    let settings = RedisSettings { servers, ..RedisSettings::default() };
    let source = RedisXSource {
        redis: Arc::new(cableway::link::redis::Redis::new(&settings).expect("sound")),
        state: Arc::new(LinkState::new("redisx", "redis")),
        stream: STREAM.into(),
        group: GROUP.into(),
        consumer: consumer.into(),
        read_block: Duration::from_millis(100),
        metrics: Arc::new(RedisXMetrics::default()),
        in_hand: Arc::default(),
    };
    let broadcast = Arc::new(Broadcast::new(Arc::clone(&gate) as Arc<_>));
    (gate, source, broadcast)
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn what_a_slow_node_holds_no_other_takes_and_it_is_finished_at_shutdown() {
    // Aim: an entry that is handed over for five seconds is no other node's; one that stops meanwhile loses nothing.
    let redis = Redis::start();
    redis.cli(&["XGROUP", "CREATE", STREAM, GROUP, "$", "MKSTREAM"]);
    (0..10).for_each(|n| drop(add(&redis, &publication("s", n))));
    let (stop, stopped) = watch::channel(false);
    let (slow, source, broadcast) = reader(&redis, "slow");
    let slow_one = tokio::spawn(source.run(broadcast, stopped.clone()));
    while slow.begun.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (quick, source, broadcast) = reader(&redis, "quick");
    quick.open.add_permits(1000);
    let quick_one = tokio::spawn(source.run(broadcast, stopped));
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop.send_replace(true);
    slow.open.add_permits(1000);
    slow_one.await.expect("ended");
    quick_one.await.expect("ended");
    let taken = |gate: &Gate| gate.taken.lock().expect("sound").clone();
    assert_eq!((taken(&slow), taken(&quick)), (numbers(0..10), Vec::new()));
    assert_eq!(redis.cli(&["XLEN", STREAM]), "0");
    assert_eq!(redis.cli(&["XINFO", "CONSUMERS", STREAM, GROUP]), "");
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn an_entry_is_handed_over_once_when_its_acknowledgement_is_lost_with_redis() {
    // Aim: Redis goes while an entry is handed over, and is back with the entry held by us. It is acknowledged and not
    // handed over again.
    let mut redis = Redis::start_as(RedisStart { keeps: true, ..RedisStart::default() });
    redis.cli(&["XGROUP", "CREATE", STREAM, GROUP, "$", "MKSTREAM"]);
    (0..3).for_each(|n| drop(add(&redis, &publication("s", n))));
    let (stop, stopped) = watch::channel(false);
    let (gate, source, broadcast) = reader(&redis, "one");
    let one = tokio::spawn(source.run(broadcast, stopped));
    while gate.begun.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    redis.kill();
    gate.open.add_permits(1000);
    while gate.taken.lock().expect("sound").len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let redis = tokio::task::spawn_blocking(move || {
        redis.restart();
        is_empty(&redis);
        add(&redis, &publication("s", 3));
        is_empty(&redis);
        redis
    });
    let redis = redis.await.expect("it is back");
    stop.send_replace(true);
    one.await.expect("ended");
    assert_eq!(*gate.taken.lock().expect("sound"), numbers(0..4));
    assert_eq!(redis.cli(&["XLEN", STREAM]), "0");
}
