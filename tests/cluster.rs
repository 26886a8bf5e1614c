//! Several nodes as one, with the servers they meet at: real Redis (alone, with a password, with TLS, found by Sentinels, as
//! a Redis Cluster) and real NATS with JetStream, which are killed, restarted and cut off.
//!
//! The Debian packages `redis-server`, `redis-sentinel`, `redis-tools` and `nats-server` hold them; `cargo xtask test cluster`
//! installs them and runs this.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests wait for processes of their own, which have their own clock"
)]
#![allow(dead_code, reason = "not every test uses all of the harness, part of which is that of `limits`")]

#[path = "cluster/broker.rs"]
mod broker;
#[path = "cluster/broker_nats.rs"]
mod broker_nats;
#[path = "cluster/broker_redis.rs"]
mod broker_redis;
#[path = "limits/client.rs"]
mod client;
#[path = "cluster/crowd.rs"]
mod crowd;
#[path = "cluster/engine.rs"]
mod engine;
#[path = "cluster/extended.rs"]
mod extended;
#[path = "cluster/mixed.rs"]
mod mixed;
#[path = "cluster/nats_pubsub.rs"]
mod nats_pubsub;
#[path = "cluster/nodes.rs"]
mod nodes;
#[path = "cluster/pubsub.rs"]
mod pubsub;
#[path = "cluster/redis_broadcasts.rs"]
mod redis_broadcasts;
#[path = "cluster/redis_pubsub.rs"]
mod redis_pubsub;
#[path = "cluster/restart.rs"]
mod restart;
#[path = "limits/server.rs"]
mod server;
#[path = "cluster/servers.rs"]
mod servers;
#[path = "cluster/servers_hold.rs"]
mod servers_hold;
#[path = "cluster/upgrade.rs"]
mod upgrade;
