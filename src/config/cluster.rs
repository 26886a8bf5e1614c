//! What belongs together where nodes are more than one: Redis, NATS, pub/sub and the broker. Pure, but for the files that
//! are named.

use std::io;
use std::path::Path;

use super::check::Problems;
use super::error::Problem;
use super::layers::{Effective, Origin};
use super::setting::{BroadcastAdapter, BrokerKind, PubSub};
use super::{Config, Redis, Secrets};
use crate::model::ServerUrl;

/// Added to the channel of pub/sub where the adapter `redis` has the same (`contracts/pubsub-cluster.md` section 3).
const INTERNAL_SUFFIX: &str = "-int";
/// Longest prefix of names in Redis and NATS.
const PREFIX_CHARS_MAX: usize = 64;
/// JetStream refuses longer names of subjects' streams and of buckets together with what is added.
const BROKER_PREFIX_CHARS_MAX: usize = 32;

/// Puts what belongs together into the form that is carried out, and says what was changed.
pub(super) fn normalize(effective: &mut Effective, warnings: &mut Vec<String>) {
    let config = &mut effective.config;
    let for_all = match config.pubsub() {
        PubSub::Redis => Some(BrokerKind::Redis),
        PubSub::Nats => Some(BrokerKind::Nats),
        PubSub::None | PubSub::Auto => None,
    };
    if let (BrokerKind::Memory, Some(kind)) = (config.broker.kind, for_all) {
        let word = kind.word();
        warnings.push(format!(
            "--broker memory keeps history for one node, and --pubsub is {word}: carried out as --broker {word}, which \
             keeps it for all; to run one node with memory, set --pubsub none"
        ));
        config.broker.kind = kind;
        effective.origins.insert("broker", Origin::Implied("pubsub"));
    }
    let cluster = &mut config.cluster;
    if config.broadcast.has(BroadcastAdapter::Redis) && cluster.redis_channel == config.broadcast.redis_channel {
        cluster.redis_channel.push_str(INTERNAL_SUFFIX);
        warnings.push(format!(
            "--redis-pubsub-channel is that of broadcasts, too: nodes use {} among themselves",
            cluster.redis_channel
        ));
    }
}

/// Refuses what cannot be.
pub(super) fn check(config: &Config, problems: &mut Problems) {
    check_redis(&config.redis, problems);
    check_nats(config, problems);
    check_names(config, problems);
    let (pubsub, broker) = (config.pubsub(), config.broker.kind);
    problems.refuse(
        broker == BrokerKind::Redis && pubsub == PubSub::Nats || broker == BrokerKind::Nats && pubsub == PubSub::Redis,
        format!(
            "--broker {} goes with --pubsub {}: what was lost on the way could not be told from what was never kept",
            broker.word(),
            broker.word()
        ),
    );
}

fn check_redis(redis: &Redis, problems: &mut Problems) {
    let urls = &redis.urls.0;
    let has_sentinels = !redis.sentinels.0.is_empty();
    problems.refuse(urls.is_empty(), "--redis-url needs an address, such as redis://localhost:6379");
    for url in urls {
        let is_number = url.path.is_empty() || url.path.parse::<u32>().is_ok();
        problems.refuse(!is_number, "--redis-url has nothing behind the port but the number of a database, such as /1");
    }
    if urls.len() > 1 {
        problems.refuse(
            has_sentinels,
            "--redis-url with several hosts is a Redis Cluster, which has no sentinels: give --redis-sentinels or several \
             hosts",
        );
        problems.refuse(
            urls.iter().any(|url| !matches!(url.path.as_str(), "" | "0")),
            "--redis-url with several hosts is a Redis Cluster, which has only database 0",
        );
        problems.refuse(mixed(urls), "--redis-url has hosts with TLS and without; write all as rediss:// or none");
    }
    let is_default = redis.urls == Redis::default().urls;
    problems.refuse(
        has_sentinels && is_default,
        "--redis-sentinels needs the name of the master set as the host of --redis-url, such as redis://mymaster",
    );
    problems.refuse(
        redis.sentinels.0.iter().any(|url| !url.path.is_empty()) || mixed(&redis.sentinels.0),
        "--redis-sentinels takes host:port or rediss://host:port, all with TLS or none",
    );
    problems.refuse(
        redis.sentinel_discovery_interval.is_zero(),
        "--redis-sentinel-discovery-interval must be longer than 0",
    );
    problems.refuse(
        redis.tls_client_cert.is_empty() != redis.tls_client_key.is_empty(),
        "--redis-tls-client-cert-path and --redis-tls-client-key-path belong together: set both or none",
    );
}

fn mixed(urls: &[ServerUrl]) -> bool {
    urls.iter().any(|url| url.tls != urls[0].tls)
}

fn check_nats(config: &Config, problems: &mut Problems) {
    let nats = &config.nats;
    problems.refuse(nats.servers.0.is_empty(), "--nats-servers needs an address, such as nats://127.0.0.1:4222");
    problems
        .refuse(nats.servers.0.iter().any(|url| !url.path.is_empty()), "--nats-servers has nothing behind the port");
    problems
        .refuse(mixed(&nats.servers.0), "--nats-servers has servers with TLS and without; write all as tls:// or none");
    problems.refuse(
        nats.tls_client_cert.is_empty() != nats.tls_client_key.is_empty(),
        "--nats-tls-client-cert-path and --nats-tls-client-key-path belong together: set both or none",
    );
    let clash = config.broadcast.has(BroadcastAdapter::Nats) && config.pubsub() == PubSub::Nats;
    problems.refuse(
        clash && config.broadcast.nats_channel == config.cluster.nats_channel,
        "--nats-channel and --nats-pubsub-channel are the same; change one of them",
    );
}

fn check_names(config: &Config, problems: &mut Problems) {
    let (broadcast, cluster) = (&config.broadcast, &config.cluster);
    for (option, name) in [
        ("--redis-channel", &broadcast.redis_channel),
        ("--redisx-stream", &broadcast.redisx_stream),
        ("--redisx-group", &broadcast.redisx_group),
        ("--redis-pubsub-channel", &cluster.redis_channel),
    ] {
        problems.refuse(name.is_empty() || name.contains(char::is_control), format!("{option} needs a name"));
    }
    for (option, name) in
        [("--nats-channel", &broadcast.nats_channel), ("--nats-pubsub-channel", &cluster.nats_channel)]
    {
        problems.refuse(
            !is_subject(name),
            format!("{option} must be a subject of NATS: words joined by dots, without blanks, * and >"),
        );
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let prefix = &cluster.prefix;
    problems.refuse(
        !prefix.chars().all(plain)
            || prefix.starts_with('.')
            || prefix.contains("..")
            || prefix.len() > PREFIX_CHARS_MAX,
        format!("--pubsub-prefix takes at most {PREFIX_CHARS_MAX} letters, digits, - _ : and dots between them"),
    );
    let prefix = &config.broker.prefix;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    problems.refuse(
        prefix.is_empty() || !prefix.chars().all(plain) || prefix.len() > BROKER_PREFIX_CHARS_MAX,
        format!("--broker-prefix needs 1 to {BROKER_PREFIX_CHARS_MAX} letters, digits, - and _"),
    );
    problems.refuse(
        broadcast.redisx_read_block.is_zero(),
        "--redisx-read-block-milliseconds must be longer than 0, which means for ever in Redis",
    );
}

/// Whether NATS takes a text as a subject to publish to.
/// <https://docs.nats.io/nats-concepts/subjects>
fn is_subject(text: &str) -> bool {
    text.split('.').all(|token| {
        !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>')
    }) && !text.starts_with('$')
}

/// Files that are named and cannot be read, of what is on.
pub(super) fn unreadable_files(config: &Config, read: &dyn Fn(&Path) -> io::Result<String>) -> Vec<Problem> {
    let (redis, nats) = (&config.redis, &config.nats);
    let files = [
        (config.uses_redis(), "--redis-tls-ca-cert-path", &redis.tls_ca),
        (config.uses_redis(), "--redis-tls-client-cert-path", &redis.tls_client_cert),
        (config.uses_redis(), "--redis-tls-client-key-path", &redis.tls_client_key),
        (config.uses_nats(), "--nats-tls-ca-cert-path", &nats.tls_ca),
        (config.uses_nats(), "--nats-tls-client-cert-path", &nats.tls_client_cert),
        (config.uses_nats(), "--nats-tls-client-key-path", &nats.tls_client_key),
    ];
    let named = files.into_iter().filter(|(on, _, path)| *on && !path.is_empty());
    named
        .filter_map(|(_, option, path)| {
            let why = read(Path::new(path)).err()?;
            Some(Problem::Combination(format!("{option}: cannot read {path}: {why}")))
        })
        .collect()
}

/// What works and is probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let (broker, pubsub) = (config.broker.kind, config.pubsub());
    let is_for_all = matches!(broker, BrokerKind::Redis | BrokerKind::Nats);
    if is_for_all && pubsub == PubSub::None {
        warnings.push(format!(
            "--broker {0} with --pubsub none: what is published to one node reaches clients of another only when they \
             come back; set --pubsub {0}",
            broker.word()
        ));
    }
    let is_kept = |adapter| matches!(adapter, BroadcastAdapter::Http | BroadcastAdapter::RedisX);
    let all_fan_out = !config.broadcast.adapters.iter().any(|adapter| is_kept(*adapter));
    if broker != BrokerKind::None && all_fan_out && !Secrets::resolve(config).api_on {
        warnings.push(
            "no history is kept of what is published by redis and nats, and --broadcast-adapter has nothing else: publish \
             by http or redisx"
                .to_owned(),
        );
    }
    let redis = &config.redis;
    let has_tls_files = !redis.tls_ca.is_empty() || !redis.tls_client_cert.is_empty();
    let has_tls = redis.urls.0.iter().chain(&redis.sentinels.0).any(|url| url.tls);
    if config.uses_redis() && (has_tls_files || redis.tls_verify) && !has_tls {
        warnings.push("--redis-tls-* is without effect: --redis-url has no TLS; write rediss://".to_owned());
    }
    warnings
}
