//! The boot log: what this server is, what it can hold, and where to find it. One fact a line.

use std::net::SocketAddr;
use std::path::Path;

use crate::backend::{Backend, TransportKind};
use crate::config::{BroadcastAdapter, BrokerKind, Config, ListenOn, PubSub, Secrets};
use crate::identity::StreamRouter;
use crate::model::{Scheme, ServerUrl};

use super::capacity::{Capacity, Outlook};
use super::dead_peers;

/// Where the ports really are, for URLs.
#[derive(Clone, Copy)]
pub(super) struct Main {
    pub address: SocketAddr,
    pub scheme: Scheme,
    /// Where the admin port is, if there is one.
    pub admin: Option<SocketAddr>,
}

impl Main {
    /// The URL of an HTTP path on this port, or on a port of its own, which never has TLS.
    fn at(self, place: &ListenOn, path: &str) -> String {
        match place {
            ListenOn::Main => format!("{}://{}{path}", self.scheme.http(), self.address),
            ListenOn::Own { host, port } => format!("{}://{host}:{port}{path}", Scheme::Plain.http()),
        }
    }
}

/// Name, version, pid, open-file limit and shards. Tools parse it for the limit.
pub fn first_line(open_files: u64, shards: usize) -> String {
    let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
    format!("Starting Cableway {version} (pid: {pid}, open file limit: {open_files}, shards: {shards})")
}

/// Logs [`first_line`], then the configuration file, if there is one.
pub(super) fn first_lines(open_files: u64, shards: usize, file: Option<&Path>) {
    tracing::info!("{}", first_line(open_files, shards));
    if let Some(file) = file {
        tracing::info!("configuration file: {}", file.display());
    }
}

/// What was found out at the start.
pub(super) struct ToTell {
    pub secrets: Secrets,
    pub capacity: Capacity,
    pub outlook: Outlook,
    pub main: Main,
}

/// Logs everything else, in the order of `contracts/ops.md` section 1, behind [`machine`].
pub(super) fn facts(config: &Config, to_tell: &ToTell, backend: &Backend, router: &StreamRouter) {
    let ToTell { secrets, main, .. } = to_tell;
    access(config, secrets, router);
    broker(config);
    cluster(config);
    if secrets.broadcast_derived {
        tracing::info!("broadcast key: derived from the secret");
    }
    if secrets.http_rpc_derived && backend.transport() == Some(TransportKind::Http) {
        tracing::info!("HTTP RPC key: derived from the secret");
    }
    broadcasts(config, secrets, *main);
    tracing::info!("app: {}", backend.describe());
    endpoints(config, secrets, *main);
}

fn broker(config: &Config) {
    let broker = &config.broker;
    match broker.kind {
        BrokerKind::None => tracing::info!("broker: none (no history, no session restore, no presence)"),
        kind => tracing::info!(
            "broker: {} (history: {} messages a stream for {} s; sessions for {} s; presence for {} s)",
            kind.word(),
            broker.history_limit,
            broker.history_ttl.as_secs(),
            broker.sessions_ttl.as_secs(),
            broker.presence_ttl.as_secs(),
        ),
    }
}

/// What crosses to other nodes, and where. URLs are shown without users and passwords.
fn cluster(config: &Config) {
    match config.pubsub() {
        PubSub::Redis => tracing::info!("pub/sub: redis (among nodes: channel {})", config.cluster.redis_channel),
        PubSub::Nats => tracing::info!("pub/sub: nats (among nodes: subject {})", config.cluster.nats_channel),
        PubSub::None | PubSub::Auto => tracing::info!("pub/sub: none (a node alone)"),
    }
    let listed = |urls: &[ServerUrl]| urls.iter().map(ServerUrl::to_string).collect::<Vec<_>>().join(", ");
    if config.uses_redis() {
        let (urls, sentinels) = (listed(&config.redis.urls.0), listed(&config.redis.sentinels.0));
        let by = if sentinels.is_empty() { String::new() } else { format!(", found by sentinels {sentinels}") };
        let kind = if config.redis.urls.0.len() > 1 { " (cluster)" } else { "" };
        tracing::info!("redis: {urls}{kind}{by}");
    }
    if config.uses_nats() {
        tracing::info!("nats: {}", listed(&config.nats.servers.0));
    }
}

/// Logs how many clients there may be, and what of the machine stands in the way of more.
pub(super) fn machine(config: &Config, capacity: &Capacity, outlook: &Outlook) {
    let Capacity { clients, reserve, bound_by, .. } = capacity;
    tracing::info!(
        "capacity: {clients} clients, bound by {bound_by}; one descriptor each ({} if each were passed through to a \
         backend socket), {reserve} kept for everything else",
        clients / 2,
    );
    outlook.failing.iter().for_each(|line| tracing::warn!("{line}"));
    tracing::info!("accept queue: {} connections a shard", outlook.accept_queue);
    dead_peers::log(config);
}

/// One line for each way in.
fn broadcasts(config: &Config, secrets: &Secrets, main: Main) {
    let broadcast = &config.broadcast;
    for adapter in &broadcast.adapters {
        match adapter {
            BroadcastAdapter::Http => {
                let key = if secrets.broadcast.is_some() { "key needed" } else { "NO key needed" };
                tracing::info!("broadcasts: {} (HTTP, {key})", main.at(&config.broadcast_on(), &broadcast.http_path));
            }
            BroadcastAdapter::Redis => tracing::info!("broadcasts: channel {} of Redis", broadcast.redis_channel),
            BroadcastAdapter::RedisX => {
                tracing::info!(
                    "broadcasts: stream {} of Redis, group {}",
                    broadcast.redisx_stream,
                    broadcast.redisx_group
                );
            }
            BroadcastAdapter::Nats => tracing::info!("broadcasts: subject {} of NATS", broadcast.nats_channel),
        }
    }
}

/// Who is let in, and what needs no app.
fn access(config: &Config, secrets: &Secrets, router: &StreamRouter) {
    if config.app.public {
        tracing::warn!("public mode: no authentication, public streams, and anybody may broadcast");
    }
    if secrets.jwt.is_some() {
        let enforced =
            if config.jwt.enforce { "every client needs one" } else { "clients without one are asked about" };
        tracing::info!("tokens: parameter {:?}, {enforced}", config.jwt.param);
    }
    if config.app.noauth {
        tracing::warn!("authentication is off: every client without a token is let in");
    }
    let signed = if secrets.streams.is_some() { "signed" } else { "no signed (there is no secret)" };
    let public = if config.streams.public { "public" } else { "no public" };
    tracing::info!("channels answered here: {} ({signed}, {public} streams)", router.channels().join(", "));
    if config.server.reuse_port {
        tracing::info!("port: shared with other processes that have --reuse-port; each gets some of the clients");
    }
    if !config.server.allowed_origins.is_empty() {
        tracing::info!("origins allowed: {}", config.server.allowed_origins.join(", "));
    }
}

fn endpoints(config: &Config, secrets: &Secrets, main: Main) {
    let Main { address, scheme, admin } = main;
    let (http, ws) = (scheme.http(), scheme.ws());
    for path in &config.ws.paths {
        tracing::info!("WebSockets: {ws}://{address}{path}");
    }
    if let Some(path) = &config.ws.echo_path {
        tracing::info!("echo: {ws}://{address}{path}");
    }
    tracing::info!("health: {http}://{address}{}", config.server.health_path);
    if let Some(path) = &config.server.ready_path {
        tracing::info!("readiness: {http}://{address}{path}");
    }
    if secrets.api_on {
        let key = if secrets.api.is_some() { "key needed" } else { "NO key needed" };
        tracing::info!("API: {} ({key})", main.at(&config.api_on(), &config.api.path));
    }
    match admin {
        Some(admin) => {
            let key = if secrets.admin.is_some() { "key needed" } else { "no key needed on this machine" };
            tracing::info!("admin: http://{admin}/admin ({key})");
        }
        None => tracing::info!("admin: off"),
    }
    match &config.metrics.http_path {
        Some(path) => tracing::info!("metrics: {}", main.at(&config.metrics_on(), path)),
        None => tracing::info!("metrics: off"),
    }
}
