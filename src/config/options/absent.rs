//! Options of AnyCable that have no field here: not there yet, renamed, or without meaning in this server.
//!
//! They are known so that a deployment that sets one learns what becomes of it. What switches something on that is not
//! there yet is accepted at its default or "off", so that a file with every option written out still works, and
//! refused otherwise. What only tunes such a thing is passed over with a warning. The last group are options of AnyCable
//! Pro.

use crate::config::definition::{Definition, Kind, Status, Unit};

const fn not_yet(
    name: &'static str,
    toml: &'static str,
    default: &'static str,
    kind: Kind,
    instead: &'static str,
) -> Definition {
    Definition::without_field(name, toml, default, kind, Status::NotThereYet { instead }).group("Not there yet")
}

/// Tunes something that is not there yet.
const fn tunes(
    name: &'static str,
    toml: &'static str,
    default: &'static str,
    kind: Kind,
    instead: &'static str,
) -> Definition {
    Definition::without_field(name, toml, default, kind, Status::Dormant { instead }).group("Not there yet")
}

const fn ignored(name: &'static str, toml: &'static str, kind: Kind, because: &'static str) -> Definition {
    Definition::without_field(name, toml, "", kind, Status::Ignored { because }).group("Accepted and ignored")
}

const fn renamed(name: &'static str, toml: &'static str, kind: Kind, to: &'static str) -> Definition {
    Definition::without_field(name, toml, "", kind, Status::Renamed { to }).group("Old names")
}

const EMBEDDED_NATS: &str = "a NATS server is a program in Go and cannot be inside of this one; run nats-server beside it, and set \
                             --pubsub nats and --nats-servers (docs/cluster.md says how)";
const TLS: &str = "this release speaks no TLS to clients; let a proxy in front do it";
const SSE: &str = "this release has no server-sent events; use WebSockets";
const DURABLE: &str = "this release has no durable streams; use WebSockets";
const PUSHER: &str = "this release does not speak the Pusher protocol; use Action Cable";
const METRICS_LOG: &str = "this release does not log metrics; scrape the path of --metrics-http";
const STATSD: &str = "this release sends nothing to StatsD; scrape the path of --metrics-http";
const PRO: &str = "it belongs to AnyCable Pro and is not in this release";

const NO_BUFFERS: &str = "connections have no buffers of their own here";
const NO_POOL: &str = "there is no such pool here";
const NO_EFFECT: &str = "it has no effect in AnyCable either";
const FOR_EVER: &str = "a lost connection is tried again for ever";
const NO_MRUBY: &str = "there is no mruby here";

pub(super) const DEFINITIONS: &[Definition] = &[
    // Old names of options that work.
    renamed("jwt-id-key", "", Kind::Secret, "jwt-secret"),
    renamed("jwt-id-enforce", "", Kind::Bool, "enforce-jwt"),
    renamed("turbo-rails-key", "", Kind::Secret, "turbo-streams-secret").implies(&[("turbo-streams", "true")]),
    renamed("cable-ready-key", "", Kind::Secret, "cable-ready-secret").implies(&[("cable-ready", "true")]),
    renamed("http-broadcast-secret", "http_broadcast.secret", Kind::Secret, "broadcast-key"),
    renamed("admin-secret", "", Kind::Secret, "admin-key"),
    renamed("metrics-log-interval", "", Kind::Number, "metrics-rotate-interval").unit(Unit::Seconds),
    // No meaning here.
    ignored("shutdown-pool-size", "app.shutdown_disconnect_gopool_size", Kind::Number, NO_POOL),
    ignored("hub-gopool-size", "app.broadcast_gopool_size", Kind::Number, NO_POOL),
    ignored("read-buffer-size", "ws.read_buffer_size", Kind::Number, NO_BUFFERS),
    ignored("write-buffer-size", "ws.write_buffer_size", Kind::Number, NO_BUFFERS),
    ignored("disconnect-timeout", "", Kind::Number, NO_EFFECT),
    ignored("jwt-id-param", "", Kind::Text, "it has no effect in AnyCable either; use jwt-param"),
    ignored("turbo-rails-cleartext", "", Kind::Bool, NO_EFFECT),
    ignored("cable-ready-cleartext", "", Kind::Bool, NO_EFFECT),
    ignored("metrics-log-formatter", "", Kind::Text, NO_MRUBY),
    ignored("netpoll-enabled", "", Kind::Bool, "connections never have a task of their own here"),
    ignored("shutdown-slowdrain", "", Kind::Bool, "every shutdown is spread over the shutdown time-out here"),
    ignored("disable-telemetry", "", Kind::Text, "Cableway sends no usage data to anybody"),
    ignored("telemetry-url", "", Kind::Text, "Cableway sends no usage data to anybody"),
    ignored("telemetry-debug", "", Kind::Text, "Cableway sends no usage data to anybody"),
    ignored(
        "redis-disable-cache",
        "redis.disable_cache",
        Kind::Bool,
        "this server never asks Redis to track what it caches",
    ),
    ignored("", "redis.max_reconnect_attempts", Kind::Number, FOR_EVER),
    ignored("", "nats.max_reconnect_attempts", Kind::Number, FOR_EVER),
    ignored("memory-metrics", "", Kind::Text, "the metrics of Go's heap do not exist here"),
    // Not there yet.
    not_yet("ssl-cert", "server.ssl.cert_path", "", Kind::Text, TLS).needs("ssl-key"),
    tunes("ssl-key", "server.ssl.key_path", "", Kind::Text, TLS),
    not_yet(
        "enable-ws-compression",
        "ws.enable_compression",
        "false",
        Kind::Bool,
        "this release does not compress; leave it off",
    ),
    not_yet("", "streams.pubsub_channel", "$pubsub", Kind::Text, "the name of the channel is fixed in this release"),
    not_yet("embed-nats", "embedded_nats.enabled", "false", Kind::Bool, EMBEDDED_NATS),
    tunes("enats-addr", "embedded_nats.service_addr", "nats://127.0.0.1:4222", Kind::Text, EMBEDDED_NATS),
    tunes("enats-cluster", "embedded_nats.cluster_addr", "", Kind::Text, EMBEDDED_NATS),
    tunes("enats-cluster-name", "embedded_nats.cluster_name", "anycable-cluster", Kind::Text, EMBEDDED_NATS),
    tunes("enats-cluster-routes", "embedded_nats.routes", "", Kind::List, EMBEDDED_NATS),
    tunes("enats-gateway", "embedded_nats.gateway_addr", "", Kind::Text, EMBEDDED_NATS),
    tunes("enats-gateways", "embedded_nats.gateways", "", Kind::List, EMBEDDED_NATS),
    tunes("enats-gateway-advertise", "embedded_nats.gateway_advertise", "", Kind::Text, EMBEDDED_NATS),
    tunes("enats-store-dir", "embedded_nats.jetstream_store_dir", "", Kind::Text, EMBEDDED_NATS),
    tunes("enats-server-name", "embedded_nats.name", "", Kind::Text, EMBEDDED_NATS),
    tunes("enats-debug", "embedded_nats.debug", "false", Kind::Bool, EMBEDDED_NATS),
    tunes("enats-trace", "embedded_nats.trace", "false", Kind::Bool, EMBEDDED_NATS),
    tunes("enats-max-payload", "embedded_nats.max_payload", "0", Kind::Number, EMBEDDED_NATS).unit(Unit::Bytes),
    tunes("", "embedded_nats.jetstream_ready_timeout", "30s", Kind::Number, EMBEDDED_NATS).unit(Unit::Seconds),
    not_yet("pusher-app-id", "pusher.app_id", "", Kind::Text, PUSHER).needs("pusher-app-key"),
    tunes("pusher-app-key", "pusher.app_key", "", Kind::Text, PUSHER),
    tunes("pusher-secret", "pusher.secret", "", Kind::Secret, PUSHER),
    tunes("pusher-api-port", "pusher.api_port", "0", Kind::Number, PUSHER),
    not_yet("sse", "sse.enabled", "false", Kind::Bool, SSE),
    tunes("sse-path", "sse.path", "/events", Kind::Text, SSE),
    not_yet("ds", "ds.enabled", "false", Kind::Bool, DURABLE),
    tunes("ds-path", "ds.path", "/ds", Kind::Text, DURABLE),
    tunes("ds-skip-auth", "ds.skip_auth", "false", Kind::Bool, DURABLE),
    tunes("ds-poll-interval", "ds.poll_interval", "10s", Kind::Number, DURABLE).unit(Unit::Seconds),
    tunes("ds-sse-ttl", "ds.sse_ttl", "60s", Kind::Number, DURABLE).unit(Unit::Seconds),
    not_yet("", "api.host", "", Kind::Text, "every listener but the metrics binds --host in this release"),
    not_yet("", "api.cors_headers", "false", Kind::Bool, "the API sends no CORS headers in this release"),
    tunes("", "api.cors_hosts", "", Kind::List, "the API sends no CORS headers in this release"),
    not_yet(
        "",
        "http_broadcast.cors_hosts",
        "",
        Kind::List,
        "the hosts are those of --allowed-origins in this release",
    )
    .needs("http-broadcast-cors"),
    not_yet("metrics-log", "metrics.log", "false", Kind::Bool, METRICS_LOG),
    tunes("metrics-log-filter", "metrics.log_filter", "", Kind::List, METRICS_LOG),
    tunes("metrics-rotate-interval", "metrics.rotate_interval", "15s", Kind::Number, METRICS_LOG).unit(Unit::Seconds),
    not_yet("statsd-host", "metrics.statsd.host", "", Kind::Text, STATSD),
    tunes("statsd-prefix", "metrics.statsd.prefix", "anycable_go.", Kind::Text, STATSD),
    tunes("statsd-max-packet-size", "metrics.statsd.max_packet_size", "1400", Kind::Number, STATSD).unit(Unit::Bytes),
    tunes("statsd-tags-format", "metrics.statsd.tags_format", "datadog", Kind::Text, STATSD),
    // AnyCable Pro.
    not_yet("admin", "", "false", Kind::Bool, PRO),
    tunes("admin-path", "", "/_high_voltage_", Kind::Text, PRO),
    not_yet("graphql-path", "", "", Kind::Text, PRO),
    tunes("graphql-channel", "", "GraphqlChannel", Kind::Text, PRO),
    tunes("graphql-action", "", "execute", Kind::Text, PRO),
    tunes("graphql-idle-timeout", "", "2s", Kind::Number, PRO).unit(Unit::Seconds),
    not_yet("poll", "", "false", Kind::Bool, PRO),
    tunes("poll-path", "", "/lp", Kind::Text, PRO),
    tunes("poll-interval", "", "15s", Kind::Number, PRO).unit(Unit::Seconds),
    tunes("poll-flush-interval", "", "500ms", Kind::Number, PRO).unit(Unit::Milliseconds),
    tunes("poll-keepalive-timeout", "", "5s", Kind::Number, PRO).unit(Unit::Seconds),
    tunes("poll-max-request-size", "", "65536", Kind::Number, PRO).unit(Unit::Bytes),
    not_yet("ocpp-path", "", "", Kind::Text, PRO),
    tunes("ocpp-channel", "", "OCPPChannel", Kind::Text, PRO),
    tunes("ocpp-granular-actions", "", "true", Kind::Bool, PRO),
    tunes("ocpp-heartbeat-interval", "", "30s", Kind::Number, PRO).unit(Unit::Seconds),
    tunes("rpc-concurrency-initial", "", "25", Kind::Number, PRO),
    tunes("rpc-concurrency-min", "", "5", Kind::Number, PRO),
    tunes("rpc-concurrency-max", "", "100", Kind::Number, PRO),
];
