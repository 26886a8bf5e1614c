//! Answers that follow from several options together: where each service listens, how the app is called.
//!
//! Sources: `contracts/broadcast.md` section 2, `contracts/ops.md` sections 2 and 7, `contracts/rpc-http.md`.

use std::time::Duration;

use super::{BroadcastAdapter, BrokerKind, Config, PubSub, RpcImplementation, Secrets};

/// Port of HTTP broadcasts that nobody has to show a key for.
pub const OPEN_BROADCAST_PORT: u16 = 8090;

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOn {
    /// With the WebSockets.
    Main,
    /// On a listener of its own, which it may share with another service of the same address.
    Own {
        /// Address to bind.
        host: String,
        /// Port to bind.
        port: u16,
    },
}

impl Config {
    fn on_port(&self, host: &str, port: u16) -> ListenOn {
        // Two spellings of one address must not become two listeners that fight for it.
        fn plain(host: &str) -> &str {
            if host == "localhost" { "127.0.0.1" } else { host }
        }
        let host = if host.is_empty() { &self.server.host } else { host };
        let port = if port == 0 { self.server.port } else { port };
        if port == self.server.port && plain(host) == plain(&self.server.host) {
            ListenOn::Main
        } else {
            ListenOn::Own { host: host.to_owned(), port }
        }
    }

    /// Where HTTP broadcasts are taken: the configured port, else the main port if a key or secret was
    /// given, else [`OPEN_BROADCAST_PORT`], so that a broadcast without a key is never open on the public
    /// port unless public mode asks for it.
    pub fn broadcast_on(&self) -> ListenOn {
        let secured = self.broadcast.key.or(&self.app.secret).key().is_some();
        let port = match self.broadcast.http_port {
            0 if secured => 0,
            0 => OPEN_BROADCAST_PORT,
            port => port,
        };
        self.on_port("", port)
    }

    /// Where the API is, if [`Secrets::api_on`](super::Secrets::api_on).
    pub fn api_on(&self) -> ListenOn {
        self.on_port("", self.api.port)
    }

    /// Where the metrics are, if they have a path.
    pub fn metrics_on(&self) -> ListenOn {
        self.on_port(&self.metrics.host, self.metrics.port)
    }

    /// Where the admin pages are, if anywhere: never on the main port.
    pub fn admin_on(&self) -> Option<ListenOn> {
        let host = self.admin.host.clone();
        self.admin.port.map(|port| ListenOn::Own { host, port })
    }

    /// Paths of ordinary HTTP on the main port, as patterns: what a pattern of `--path` must leave to them.
    pub fn http_paths_beside_websockets(&self) -> Vec<String> {
        let mut paths = vec![self.server.health_path.clone()];
        paths.extend(self.server.ready_path.clone());
        paths.extend(self.metrics.http_path.clone().filter(|_| self.metrics_on() == ListenOn::Main));
        if self.broadcast.has(BroadcastAdapter::Http) && self.broadcast_on() == ListenOn::Main {
            paths.push(self.broadcast.http_path.clone());
        }
        if Secrets::resolve(self).api_on && self.api_on() == ListenOn::Main {
            paths.extend(["/publish", "/presence/*"].map(|rest| format!("{}{rest}", self.api.path)));
        }
        paths
    }

    /// How calls to the app travel: never [`RpcImplementation::Auto`].
    pub fn rpc_implementation(&self) -> RpcImplementation {
        match self.rpc.implementation {
            RpcImplementation::Auto if is_http(&self.rpc.host) => RpcImplementation::Http,
            RpcImplementation::Auto => RpcImplementation::Grpc,
            chosen => chosen,
        }
    }

    /// What carries publications from node to node: never [`PubSub::Auto`].
    pub fn pubsub(&self) -> PubSub {
        match (self.cluster.pubsub, self.broker.kind) {
            (PubSub::Auto, BrokerKind::Redis) => PubSub::Redis,
            (PubSub::Auto, BrokerKind::Nats) => PubSub::Nats,
            (PubSub::Auto, _) if self.redis.is_given() || self.broadcast.has(BroadcastAdapter::RedisX) => PubSub::Redis,
            (PubSub::Auto, _) => PubSub::None,
            (chosen, _) => chosen,
        }
    }

    /// Whether anything that is on needs Redis.
    pub fn uses_redis(&self) -> bool {
        self.pubsub() == PubSub::Redis
            || self.broker.kind == BrokerKind::Redis
            || self.broadcast.has(BroadcastAdapter::Redis)
            || self.broadcast.has(BroadcastAdapter::RedisX)
    }

    /// Whether anything that is on needs NATS.
    pub fn uses_nats(&self) -> bool {
        self.pubsub() == PubSub::Nats
            || self.broker.kind == BrokerKind::Nats
            || self.broadcast.has(BroadcastAdapter::Nats)
    }

    /// Time configured for one request to the app, without retries. `None`: that of the transport.
    pub fn rpc_request_timeout(&self) -> Option<Duration> {
        let set = |timeout: Duration| Some(timeout).filter(|timeout| !timeout.is_zero());
        let general = set(self.rpc.request_timeout);
        match self.rpc_implementation() {
            RpcImplementation::Http => set(self.rpc.http_request_timeout).or(general),
            _ => general,
        }
    }
}

/// Whether an RPC address is a URL of HTTP.
pub(super) fn is_http(host: &str) -> bool {
    host.starts_with("http://") || host.starts_with("https://")
}
