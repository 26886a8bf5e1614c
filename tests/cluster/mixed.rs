//! A cluster that also has nodes of AnyCable, which keep and count for themselves.

use crate::extended::{extended, json, message};
use crate::nodes::Nodes;
use crate::servers::Redis;

#[test]
#[ignore = "needs redis-server"]
fn what_a_node_of_anycable_has_numbered_comes_without_its_position_and_between_ours() {
    let redis = Redis::start();
    let nodes = Nodes::start(2, &["--redis-url", &redis.url(), "--broker", "redis"]);
    for node in &nodes.0 {
        node.metrics_until("both links are up", |metrics| {
            ["redis_broker", "redis_pubsub"].iter().all(|link| metrics.get(&format!("link_up{{link=\"{link}\"}}")) == 1)
        });
    }
    let mut clients: Vec<_> = nodes.0.iter().map(|node| extended(node.address(), None).0).collect();
    clients.iter_mut().for_each(|client| client.follow("room"));
    nodes.0[0].broadcast("room", "1");
    let firsts: Vec<_> = clients.iter_mut().map(message).collect();
    for (offset, epoch) in [(1, "Xk2p"), (firsts[0].0 + 7, firsts[0].1.as_str())] {
        let text =
            format!("{{\"stream\":\"room\",\"data\":\"\\\"theirs\\\"\",\"offset\":{offset},\"epoch\":\"{epoch}\"}}");
        redis.cli(&["PUBLISH", "room", &text]);
        for client in &mut clients {
            let theirs = json(&client.text());
            assert_eq!((&theirs["message"], theirs.get("offset")), (&"theirs".into(), None), "{theirs}");
        }
    }
    nodes.0[1].broadcast("room", "2");
    for (client, first) in clients.iter_mut().zip(firsts) {
        let (offset, epoch, number) = message(client);
        assert_eq!((offset, epoch, number), (first.0 + 1, first.1, 2.into()), "behind our own");
    }
}
