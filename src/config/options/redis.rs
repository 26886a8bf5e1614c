//! Options of the connection to Redis.

use std::time::Duration;

use crate::config::definition::{Unit, options};
use crate::config::setting::{RedisServers, SentinelServers};

options! {
    /// The connection to Redis, or to Valkey.
    Redis in redis, "Redis";

    /// Where Redis is: `redis://user:password@host:port/database`, `rediss://` with TLS. Several URLs separated by commas
    /// are nodes of one Redis Cluster.
    ///
    /// When it is given, `--broadcast-adapter` is `http,redis` if nothing is said of it. When it is not the default, `--pubsub`
    /// is `redis` if nothing is said of that. A Redis that is away is tried again for ever and stops nothing else.
    urls: RedisServers = "redis://localhost:6379", "redis-url", "redis.url" [.env(&["REDIS_URL"])];

    /// Sentinels, as `host:port` separated by commas. The host of `--redis-url` then is the name of the master set. User and
    /// password in this list are for the sentinels, those of the URL for Redis.
    sentinels: SentinelServers = "", "redis-sentinels", "redis.sentinels";

    /// How often the sentinels are asked which Redis is the master.
    sentinel_discovery_interval: Duration = "30s", "redis-sentinel-discovery-interval",
        "redis.sentinel_discovery_interval" [.unit(Unit::Seconds)];

    /// TCP keep-alive of the connections to Redis. 0: none.
    keepalive_interval: Duration = "30s", "redis-keepalive-interval", "redis.keepalive_ping_interval"
        [.unit(Unit::Seconds).hidden()];

    /// Check the certificate of a Redis with TLS. (As in AnyCable this is off unless it is asked for; some services have
    /// certificates that nobody can check.)
    tls_verify: bool = "false", "redis-tls-verify", "redis.tls_verify";

    /// File with the certificates (PEM) that a Redis with TLS is checked against. Empty: those of the system.
    tls_ca: String = "", "redis-tls-ca-cert-path", "redis.tls_ca_cert_path" [.hidden()];

    /// File with the certificate (PEM) that this server shows to Redis.
    tls_client_cert: String = "", "redis-tls-client-cert-path", "redis.tls_client_cert_path" [.hidden()];

    /// File with the key (PEM) of that certificate.
    tls_client_key: String = "", "redis-tls-client-key-path", "redis.tls_client_key_path" [.hidden()];
}

impl Redis {
    /// Whether the configuration says where Redis is, other than at the default.
    pub fn is_given(&self) -> bool {
        self.urls != Redis::default().urls || !self.sentinels.0.is_empty()
    }

    /// Number of the database: the path of the URL. [`super::super::check`] has seen that it is a number.
    pub fn database(&self) -> u32 {
        self.urls.0.first().and_then(|url| url.path.parse().ok()).unwrap_or(0)
    }
}
