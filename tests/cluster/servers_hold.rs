//! The servers that the other tests meet at do what those tests lean on.

use crate::servers::{Authority, Nats, NatsStart, Redis, RedisCluster, RedisStart, Sentinels, Wire};

#[test]
#[ignore = "needs redis-server"]
fn a_redis_keeps_over_a_crash_what_it_shall_keep_and_asks_for_its_password() {
    let mut forgets = Redis::start();
    let mut keeps = Redis::start_as(RedisStart { password: Some("word"), keeps: true, ..RedisStart::default() });
    for redis in [&mut forgets, &mut keeps] {
        redis.cli(&["SET", "a", "1"]);
        redis.kill();
        redis.restart();
    }
    assert_eq!((forgets.cli(&["GET", "a"]).as_str(), keeps.cli(&["GET", "a"]).as_str()), ("", "1"));
    assert!(keeps.url().contains("//:word@") && keeps.commands()["get"] == 1, "{:?}", keeps.commands());
}

#[test]
#[ignore = "needs redis-server and nats-server"]
fn redis_and_nats_speak_tls_to_who_has_a_certificate() {
    let authority = Authority::new();
    let redis = Redis::start_as(RedisStart { tls: Some(&authority), ..RedisStart::default() });
    assert_eq!(redis.cli(&["ECHO", "a"]), "a");
    assert!(redis.url().starts_with("rediss://"));
    let nats = Nats::start_as(NatsStart { tls: Some(&authority), login: Some(("me", "word")), ..NatsStart::default() });
    assert!(nats.url().starts_with("tls://me:word@") && nats.log().contains("TLS required"), "{}", nats.log());
}

#[test]
#[ignore = "needs redis-sentinel"]
fn the_sentinels_put_the_replica_in_the_place_of_a_dead_master() {
    let mut sentinels = Sentinels::start();
    sentinels.redis[0].cli(&["SET", "a", "1"]);
    assert_eq!(sentinels.master(), 0);
    assert_eq!(sentinels.fail_over(), 1);
    assert_eq!(sentinels.redis[1].cli(&["GET", "a"]), "1");
}

#[test]
#[ignore = "needs redis-server"]
fn a_slot_of_the_cluster_moves_with_what_is_in_it() {
    let cluster = RedisCluster::start();
    let from = cluster.master_of("a");
    cluster.nodes[from].cli(&["SET", "a", "1"]);
    let to = cluster.move_slot_of("a");
    assert_ne!(from, to);
    assert_eq!(cluster.nodes[to].cli(&["GET", "a"]), "1");
    cluster.is_whole();
}

#[test]
#[ignore = "needs nats-server"]
fn a_nats_has_jetstream_again_after_a_crash_and_a_wire_to_it_can_be_cut() {
    let mut nats = Nats::start();
    nats.kill();
    nats.restart();
    assert!(nats.log().contains("Starting JetStream"), "{}", nats.log());
    let wire = Wire::to(nats.port());
    let greeting = |wire: &Wire| {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", wire.port())).expect("it listens");
        std::io::Read::read(&mut socket, &mut [0; 4]).unwrap_or(0)
    };
    assert_eq!(greeting(&wire), 4, "INFO");
    wire.cut();
    assert_eq!(greeting(&wire), 0);
    wire.mend();
    assert_eq!(greeting(&wire), 4);
}
