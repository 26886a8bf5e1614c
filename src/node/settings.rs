//! Turns the configuration into the settings of each part.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::{self, GrpcTarget, Target, TlsSettings};
use crate::broadcast::{Broadcast, Source};
use crate::broker::{COUNTER_TTLS, MemorySettings, RemoteSettings, SessionsSettings};
use crate::config::{
    BroadcastAdapter, BrokerKind, Config, Disconnect, ListenOn, PubSub, Rpc, RpcImplementation, Secrets, Server, Ws,
    default_number,
};
use crate::http::{self, AdminRoutes, Cors, HealthRoute, MetricsRoute, PublishRoute, ReadyRoute, Routes};
use crate::hub::StreamHasher;
use crate::identity::{Jwt, ResumeTokens, Secret, StreamRouter, StreamSettings};
use crate::link::local::messages::Welcome;
use crate::model::{Scheme, Sid};
use crate::os::listener::{Keepalive, ListenerOptions};
use crate::proto::frame::Limits;
use crate::proto::handshake::{HEAD_BYTES_MAX, Origins, PathPattern, Rules};
use crate::session;
use crate::shard::{self, ListenerSettings, ProxyRules, SCRATCH_BYTES, Tokens, UserTimeouts};

use super::StartError;
use super::observe::Observer;
use super::{admin, links};

// Relations between limits of parts that do not know each other.
const _: () = {
    let message_max = default_number(Ws::DEFINITIONS, "max-message-size");
    assert!(
        message_max < SCRATCH_BYTES as u64,
        "a message of the default largest size is read and unmasked in one piece"
    );
    let fragments_max = default_number(Ws::DEFINITIONS, "max-fragments");
    assert!(
        fragments_max * 64 >= message_max,
        "the largest message may come in fragments of 64 bytes, as the help says"
    );
    let head_max = default_number(Server::DEFINITIONS, "max-head-size");
    assert!(head_max == HEAD_BYTES_MAX as u64, "the default of the option is that of the rules");
    assert!(HEAD_BYTES_MAX < SCRATCH_BYTES, "a request head and the first frames behind it are read in one piece");
    let concurrency = default_number(Rpc::DEFINITIONS, "rpc-concurrency");
    let queue = default_number(Rpc::DEFINITIONS, "rpc-queue-size");
    assert!(queue >= concurrency, "a queue shorter than the calls that run refuses clients while the app is idle");
    let (rate, backlog) = (
        default_number(Disconnect::DEFINITIONS, "disconnect-rate"),
        default_number(Disconnect::DEFINITIONS, "disconnect-backlog-size"),
    );
    assert!(backlog >= rate, "less than a second of Disconnect calls would be dropped in an ordinary second");
};

/// Closes that the process keeps, an equal part for each shard; none where nobody can ask for them.
pub(super) const CLOSES_MAX: usize = 1000;

/// Bytes of messages that a client missed and is sent at once. They wait for it like everything else, so they are few
/// beside what may wait (`--ws-max-pending-size`).
const REPLAY_BYTES: usize = 64 << 10;

/// Characters of an epoch, six bits each: it is sent with every message.
const EPOCH_CHARS: usize = 8;

/// Routes that the caller adds to the main port, such as those of the demo.
pub type ExtraRoutes = http::ExtraRoutes;

pub(super) fn listener(config: &Config) -> ListenerOptions {
    let tcp = &config.tcp;
    let keepalive =
        Keepalive { time: tcp.keepalive_time, interval: tcp.keepalive_interval, probes: tcp.keepalive_probes };
    ListenerOptions {
        backlog: tcp.backlog,
        keepalive: (!tcp.keepalive_time.is_zero()).then_some(keepalive),
        user_timeout: user_timeouts(config).inherited,
    }
}

/// Which time-out finds which dead peers as the user has set it, and none of the living.
pub(super) fn user_timeouts(config: &Config) -> UserTimeouts {
    let tcp = &config.tcp;
    // The kernel looks at every probe. Half an interval before the last may have gone unanswered, so that it is counted.
    let all_probes = tcp.keepalive_time + tcp.keepalive_interval * tcp.keepalive_probes;
    let probed = if tcp.user_timeout.is_zero() { Duration::ZERO } else { all_probes - tcp.keepalive_interval / 2 };
    let mut timeouts = UserTimeouts {
        pinged: tcp.user_timeout,
        probed,
        keepalive_time: tcp.keepalive_time,
        inherited: Duration::ZERO,
    };
    timeouts.inherited = timeouts.of(config.ws.ping_interval);
    timeouts
}

fn secret(key: &Option<String>) -> Option<Secret> {
    key.as_deref().and_then(Secret::new)
}

/// Settings of the shards, of which there are `shards`, each with `listeners` listeners.
pub(super) fn shard(
    config: &Config,
    secrets: &Secrets,
    shards: usize,
    sockets_max: usize,
    listeners: usize,
) -> Result<shard::Settings, StartError> {
    let path =
        |text: &String| PathPattern::parse(text).map_err(|error| StartError::Setting(format!("{text}: {error}")));
    let jwt = secret(&secrets.jwt).map(|secret| Jwt { secret, enforce: config.jwt.enforce });
    let limits = Limits {
        message_bytes_max: unlimited(config.ws.max_message_size),
        fragments_max: if config.ws.max_fragments == 0 { u32::MAX } else { config.ws.max_fragments },
    };
    let token_param = jwt.is_some().then(|| config.jwt.param.clone());
    Ok(shard::Settings {
        // All alike: `bind_shards` makes one for each address of the host.
        listeners: vec![ListenerSettings { scheme: Scheme::Plain }; listeners],
        stream_hasher: StreamHasher::new(rand::random()),
        handshake: Rules {
            cable_paths: config.ws.paths.iter().map(path).collect::<Result<_, _>>()?,
            http_paths: config.http_paths_beside_websockets().iter().map(path).collect::<Result<_, _>>()?,
            echo_path: config.ws.echo_path.as_ref().map(path).transpose()?,
            allowed_origins: Origins::parse(&config.server.allowed_origins.join(",")),
            version_header: env!("CARGO_PKG_VERSION").into(),
            head_bytes_max: config.server.max_head_size,
        },
        handshake_timeout: config.server.handshake_timeout,
        // Those who say nothing may have half of the descriptors.
        handshakes_max: config.server.handshakes_max.min(sockets_max / (2 * shards)).max(1),
        message_timeout: config.ws.message_timeout,
        limits,
        echo_limits: limits,
        outbox_bytes_max: config.ws.max_pending_size,
        buffers_bytes_max: unlimited(config.ws.max_buffers_size.div_ceil(shards)),
        write_timeout: config.ws.write_timeout,
        user_timeouts: user_timeouts(config),
        session: session(config),
        resume_tokens: resume_tokens(config),
        tokens: Tokens { param: config.jwt.param.clone(), jwt, close_expired: config.jwt.close_expired },
        router: StreamRouter::new(StreamSettings {
            secret: secret(&secrets.streams),
            public: config.streams.public,
            whisper: config.streams.whisper,
            presence: config.streams.presence,
            turbo: secret(&secrets.turbo),
            cable_ready: secret(&secrets.cable_ready),
            reserved: links::reserved(config),
        }),
        proxy: ProxyRules { headers: config.rpc.headers.clone(), cookies: config.rpc.cookies.clone(), token_param },
        closes_max: if config.admin.port.is_some() { CLOSES_MAX.div_ceil(shards) } else { 0 },
        debug_identifiers: config.admin.debug_identifiers,
    })
}

/// An option whose 0 means that there is no limit.
fn unlimited(n: usize) -> usize {
    if n == 0 { usize::MAX } else { n }
}

/// What clients show to come back to their sessions, if sessions are kept.
fn resume_tokens(config: &Config) -> Option<ResumeTokens> {
    let of_app = config.app.secret.key().and_then(Secret::new).map(|app| app.hex_mac("resume-cable"));
    let drawn: [u64; 4] = rand::random();
    // What all nodes know, where a client may come back to another one.
    let is_for_all = matches!(config.broker.kind, BrokerKind::Redis | BrokerKind::Nats);
    let secret = Secret::new(&of_app.filter(|_| is_for_all).unwrap_or_else(|| format!("{drawn:x?}")))?;
    keeps_sessions(config).then_some(ResumeTokens { secret, by_sid: config.broker.restore_by_sid })
}

/// What all processes have alike, of which this is one.
pub(super) fn with_parent(settings: &mut shard::Settings, of_all: &Welcome, config: &Config) {
    settings.stream_hasher = StreamHasher::new(of_all.stream_seed);
    // What is known to all nodes is known to all processes of one.
    let is_for_all =
        matches!(config.broker.kind, BrokerKind::Redis | BrokerKind::Nats) && config.app.secret.key().is_some();
    if let (false, Some(tokens), Some(secret)) =
        (is_for_all, &mut settings.resume_tokens, Secret::new(&of_all.resume_key))
    {
        tokens.secret = secret;
    }
    // The parent is asked whether it knows of a stream, as a cluster is.
    settings.session.cluster |= of_all.relays;
}

fn keeps_sessions(config: &Config) -> bool {
    config.broker.kind != BrokerKind::None && !config.broker.sessions_ttl.is_zero()
}

/// Settings of the broker; none for the broker "none".
pub(super) fn broker(config: &Config) -> Option<MemorySettings> {
    let broker = &config.broker;
    // A position of another process, or of this one before it was started anew, means nothing here.
    let epoch: String = Sid::from_bits(rand::random()).to_string().chars().take(EPOCH_CHARS).collect();
    (broker.kind == BrokerKind::Memory).then(|| MemorySettings {
        epoch: epoch.into(),
        history_limit: broker.history_limit,
        history_ttl: broker.history_ttl,
        history_bytes_max: unlimited(broker.history_max_size),
        presence_ttl: broker.presence_ttl,
        presence_bytes_max: unlimited(broker.presence_max_size),
        sessions: SessionsSettings { ttl: broker.sessions_ttl, bytes_max: unlimited(broker.sessions_max_size) },
    })
}

/// Settings of a broker on other machines.
pub(super) fn remote_broker(config: &Config) -> RemoteSettings {
    let broker = &config.broker;
    RemoteSettings {
        sessions_ttl: broker.sessions_ttl,
        sessions_bytes_max: unlimited(broker.sessions_max_size),
        presence_ttl: broker.presence_ttl,
        presence_bytes_max: unlimited(broker.presence_max_size),
        counters_ttl: broker.history_ttl * COUNTER_TTLS,
        store_announces: broker.kind == BrokerKind::Redis && config.pubsub() == PubSub::Redis,
    }
}

fn session(config: &Config) -> session::Rules {
    session::Rules {
        ping_interval_ms: config.ws.ping_interval.as_millis() as u64,
        ping_precision: config.ws.ping_timestamp_precision,
        pong_timeout_ms: config.ws.pong_timeout.as_millis() as u64,
        idle_timeout_ms: config.ws.idle_timeout.as_millis() as u64,
        native_pings: config.ws.native_pings,
        identifier_bytes_max: unlimited(config.ws.max_identifier_size),
        session_bytes_max: unlimited(config.ws.max_session_size),
        has_backend: config.rpc_implementation() != RpcImplementation::None,
        no_auth: config.app.noauth,
        disconnect_mode: config.disconnect.mode,
        broker: config.broker.kind != BrokerKind::None,
        cluster: config.pubsub() != PubSub::None,
        sessions: keeps_sessions(config),
        replay_bytes: REPLAY_BYTES,
    }
}

pub(super) fn backend(config: &Config, secrets: &Secrets) -> Result<backend::Settings, StartError> {
    let rpc = &config.rpc;
    let target = match config.rpc_implementation() {
        RpcImplementation::None => Target::None,
        wanted => {
            let target = Target::parse(&rpc.host)?;
            let fits = matches!(
                (wanted, &target),
                (RpcImplementation::Http, Target::Http(_))
                    | (RpcImplementation::Grpc, Target::Grpc(GrpcTarget::List(_) | GrpcTarget::Dns(_)))
            );
            if !fits {
                let message =
                    format!("rpc-impl is {} but rpc-host is {}: give an address of that kind", wanted.word(), rpc.host);
                return Err(StartError::Setting(message));
            }
            target
        }
    };
    let defaults = backend::Settings::default();
    let or = |n: usize, default: usize| if n == 0 { default } else { n };
    Ok(backend::Settings {
        target,
        concurrency: rpc.concurrency as usize,
        queue_max: rpc.queue_size,
        queue_bytes_max: or(rpc.queue_bytes, usize::MAX),
        request_timeout: config.rpc_request_timeout(),
        command_timeout: rpc.command_timeout,
        receive_bytes_max: or(rpc.max_recv_size, defaults.receive_bytes_max),
        send_bytes_max: or(rpc.max_send_size, defaults.send_bytes_max),
        tls: TlsSettings {
            enabled: rpc.enable_tls,
            verify: rpc.tls_verify,
            root_ca: (!rpc.tls_root_ca.is_empty()).then(|| rpc.tls_root_ca.clone()),
        },
        http_secret: secrets.http_rpc.clone(),
        disconnect_rate: config.disconnect.rate,
        disconnect_backlog: config.disconnect.backlog,
        disconnect_backlog_bytes: or(config.disconnect.backlog_bytes, usize::MAX),
    })
}

/// HTTP connections take descriptors that clients could have, so a small limit of open files allows few of them.
pub(super) fn http_limits(config: &Config, open_files: u64) -> http::Limits {
    let mut limits = http::Limits::new(config.broadcast.max_size);
    limits.head_bytes_max = config.server.max_head_size;
    // Each may hold the head of a request, too.
    let most = (open_files as usize / 32).min(HTTP_HEADS_BYTES_MAX / limits.head_bytes_max);
    limits.connections_max = limits.connections_max.min(most).max(8);
    limits
}

/// Bytes that the heads of requests of ordinary HTTP may take together; the default size leaves them all their connections.
const HTTP_HEADS_BYTES_MAX: usize = 256 << 20;

/// Which routes are served on which port.
pub(super) struct Ports {
    pub main: Routes,
    pub others: Vec<(ListenOn, Routes)>,
}

impl Ports {
    fn on(&mut self, place: ListenOn) -> &mut Routes {
        if place == ListenOn::Main {
            return &mut self.main;
        }
        let at = self.others.iter().position(|(known, _)| *known == place).unwrap_or_else(|| {
            self.others.push((place, Routes::default()));
            self.others.len() - 1
        });
        &mut self.others[at].1
    }
}

pub(super) fn ports(
    config: &Config,
    secrets: &Secrets,
    broadcast: &Arc<Broadcast>,
    observer: &Arc<Observer>,
    extra: Option<ExtraRoutes>,
) -> Ports {
    let mut ports = Ports { main: Routes { extra, ..Routes::default() }, others: Vec::new() };
    if config.broadcast.has(BroadcastAdapter::Http) {
        let origins = Origins::parse(&config.server.allowed_origins.join(","));
        let cors = config.broadcast.http_cors.then(|| match origins.allow_all() {
            true => Cors::Any,
            false => Cors::Matching(Box::new(move |origin| origins.allow(Some(origin.as_bytes())))),
        });
        ports.on(config.broadcast_on()).broadcast = Some(PublishRoute {
            path: config.broadcast.http_path.clone(),
            key: secret(&secrets.broadcast),
            cors,
            broadcast: Arc::clone(broadcast),
            source: Source::Http,
            presence: None,
        });
    }
    if secrets.api_on {
        ports.on(config.api_on()).api = Some(PublishRoute {
            path: config.api.path.clone(),
            key: secret(&secrets.api),
            cors: None,
            broadcast: Arc::clone(broadcast),
            source: Source::Api,
            presence: Some(Box::new({
                let observer = Arc::clone(observer);
                move |stream| Box::pin(Arc::clone(&observer).who_is_present(stream.to_owned()))
            })),
        });
    }
    if let Some(path) = &config.metrics.http_path {
        let observer = Arc::clone(observer);
        let text = Box::new(move |form| -> http::Later<String> { Box::pin(Arc::clone(&observer).metrics_text(form)) });
        ports.on(config.metrics_on()).metrics = Some(MetricsRoute { path: path.clone(), text });
    }
    if let Some(place) = config.admin_on() {
        let admin = AdminRoutes { key: secret(&secrets.admin), routes: admin::routes(observer) };
        ports.others.push((place, Routes { admin: Some(admin), ..Routes::default() }));
    }
    let well = Arc::clone(observer);
    ports.main.health = Some(HealthRoute {
        path: config.server.health_path.clone(),
        sickness: Box::new(move || Box::pin(Arc::clone(&well).sickness())),
    });
    ports.main.ready = config.server.ready_path.as_ref().map(|path| {
        let observer = Arc::clone(observer);
        ReadyRoute { path: path.clone(), checks: Box::new(move || Box::pin(Arc::clone(&observer).checks())) }
    });
    ports
}
