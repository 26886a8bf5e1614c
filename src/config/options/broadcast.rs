//! Options of the ways in for the app: broadcasts and the HTTP API.

use std::time::Duration;

use crate::config::definition::{Unit, options};
use crate::config::setting::{BroadcastAdapter, Secret};

options! {
    /// Broadcasts from the app.
    Broadcast in broadcast, "Broadcasts";

    /// How broadcasts arrive: `http`, `redisx` (a stream in Redis), `redis` (its pub/sub), `nats`; several separated by
    /// commas.
    ///
    /// AnyCable's default is `http,redis`. Here it is that where `--redis-url` or `--redis-sentinels` says that there is a
    /// Redis, and `http` otherwise. Every node gets what is published by `redis` and `nats`, and keeps no history of it; by
    /// `http` and `redisx` one node gets it and tells the others by `--pubsub`.
    adapters: Vec<BroadcastAdapter> = "http", "broadcast-adapter", "broadcast_adapters";

    /// Bearer key for HTTP broadcasts. Unset: derived from the secret; `none`: no key.
    key: Secret = "", "broadcast-key", "broadcast_key" [.live()];

    /// Port of HTTP broadcasts. 0: the main port when there is a secret or a key, else 8090.
    http_port: u16 = "0", "http-broadcast-port", "http_broadcast.port";

    /// Path of HTTP broadcasts.
    http_path: String = "/_broadcast", "http-broadcast-path", "http_broadcast.path";

    /// Let browsers broadcast: answer OPTIONS, add CORS headers for the allowed origins.
    http_cors: bool = "false", "http-broadcast-cors", "http_broadcast.cors_headers" [.hidden()];

    /// Largest body of a broadcast or API request; a larger one is answered 413. (AnyCable takes 20 MB.)
    ///
    /// All bodies that are held at once have 256 MiB together; more is answered 503.
    max_size: usize = "8MiB", "broadcast-max-size", "http_broadcast.max_size" [.unit(Unit::Bytes)];

    /// Channel of Redis that the adapter `redis` listens to.
    redis_channel: String = "__anycable__", "redis-channel", "redis_pubsub_broadcast.channel";

    /// Stream of Redis that the adapter `redisx` reads. An app adds entries with the field `payload`.
    redisx_stream: String = "__anycable__", "redisx-stream", "redis_stream_broadcast.stream";

    /// Group in which the nodes read it, each entry on one node.
    redisx_group: String = "bx", "redisx-group", "redis_stream_broadcast.group";

    /// How long one reading of it waits for an entry.
    redisx_read_block: Duration = "2s", "redisx-read-block-milliseconds",
        "redis_stream_broadcast.stream_read_block_milliseconds" [.unit(Unit::Milliseconds).hidden()];

    /// Subject of NATS that the adapter `nats` listens to.
    nats_channel: String = "__anycable__", "nats-channel", "nats_broadcast.channel";
}

impl Broadcast {
    /// Whether broadcasts arrive this way.
    pub fn has(&self, adapter: BroadcastAdapter) -> bool {
        self.adapters.contains(&adapter)
    }
}

options! {
    /// The HTTP API. It is on when there is a secret, an API secret, an API port, or in public mode.
    Api in api, "HTTP API";

    /// Port of the API. 0: the main port.
    port: u16 = "0", "api-port", "api.port";

    /// Path below which the API is.
    path: String = "/api", "api-path", "api.path";

    /// Bearer key of the API. Unset: derived from the secret; `none`: the API is off.
    secret: Secret = "", "api-secret", "api.secret" [.live()];
}
