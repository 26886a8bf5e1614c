//! The second step: what cannot be, or cannot be together, is refused before anything is opened. Pure: it
//! looks at the values only.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster;
use super::error::Problem;
use super::options::{Config, Rpc};
use super::resolved::{ListenOn, is_http};
use super::secrets::Secrets;
use super::setting::{BroadcastAdapter, RpcImplementation, Secret};
use crate::model::PathPattern;

/// Most threads one process may be asked for; a slip of the finger is likelier than a machine this large.
pub const ACCEPTORS_MAX: u16 = 1024;
/// The kernel's limits for TCP_KEEPIDLE and TCP_KEEPINTVL in seconds (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`).
const KEEPALIVE_SECONDS_MAX: u64 = 32_767;
/// The kernel's limit for TCP_KEEPCNT (`MAX_TCP_KEEPCNT`).
const KEEPALIVE_PROBES_MAX: u32 = 127;
/// TCP_USER_TIMEOUT is a C int of milliseconds.
const USER_TIMEOUT_MAX: Duration = Duration::from_millis(i32::MAX as u64);
/// Sizes of a request head that can be meant.
const HEAD_SIZES: std::ops::RangeInclusive<usize> = 8 << 10..=1 << 20;

/// Puts values into the form the server wants, and says what was changed.
pub(super) fn normalize(config: &mut Config, warnings: &mut Vec<String>) {
    if config.rpc.concurrency == 0 {
        config.rpc.concurrency = Rpc::default().concurrency;
        warnings.push(format!("--rpc-concurrency 0 means the default, {}", config.rpc.concurrency));
    }
    if config.rpc.headers == ["none"] {
        config.rpc.headers.clear();
    }
    config.rpc.headers.iter_mut().for_each(|name| name.make_ascii_lowercase());
    config.server.allowed_origins.iter_mut().for_each(|origin| *origin = origin.to_lowercase());
}

/// Says everything that is wrong.
pub(super) fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Problems(Vec::new());
    check_server(config, &mut problems);
    check_tcp(config, &mut problems);
    check_ws(config, &mut problems);
    check_rpc(config, &mut problems);
    check_broadcasts(config, &mut problems);
    cluster::check(config, &mut problems);
    check_tokens(config, &mut problems);
    check_app(config, &mut problems);
    check_metrics(config, &mut problems);
    check_admin(config, &mut problems);
    check_paths(config, &mut problems);
    problems.0
}

/// What is wrong, as it is found.
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn refuse(&mut self, wrong: bool, message: impl Into<String>) {
        if wrong {
            self.0.push(Problem::Combination(message.into()));
        }
    }
}

fn check_server(config: &Config, problems: &mut Problems) {
    let server = &config.server;
    problems.refuse(server.host.is_empty(), "--host needs an address; 0.0.0.0 means all of IPv4, :: all of IPv6");
    if let Some(instead) = host_written_oddly(&server.host) {
        problems.refuse(true, format!("--host cannot be '{}': write {instead}", server.host));
    }
    for origin in &server.allowed_origins {
        if let Some(why) = origin_written_oddly(origin) {
            problems.refuse(true, format!("--allowed-origins cannot have '{origin}': {why}"));
        }
    }
    problems.refuse(
        server.acceptors > ACCEPTORS_MAX,
        format!("--acceptors can be at most {ACCEPTORS_MAX}; one per core is enough"),
    );
    problems.refuse(
        !HEAD_SIZES.contains(&server.max_head_size),
        "--max-head-size must be between 8KiB and 1MiB: less refuses ordinary browsers, more is no request",
    );
    problems.refuse(server.handshakes_max == 0, "--handshakes-max must be at least 1, or nobody could connect");
    problems.refuse(
        server.handshake_timeout.is_zero(),
        "--handshake-timeout must be longer than 0, or nobody could connect",
    );
}

/// What to write instead of a host with a scheme, a path or a port; `None` if it has none of them.
fn host_written_oddly(host: &str) -> Option<String> {
    let plain = host.split_once("://").map_or(host, |(_, rest)| rest);
    let plain = plain.split('/').next().unwrap_or_default();
    let is_address = plain.parse::<std::net::Ipv6Addr>().is_ok() || plain.starts_with('[') && plain.ends_with(']');
    match plain.rsplit_once(':').filter(|_| !is_address) {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(format!("--host {name} --port {port}"))
        }
        _ if plain != host => Some(format!("--host {plain}")),
        _ => host.contains(char::is_whitespace).then(|| "one name or address, without blanks".to_owned()),
    }
}

/// Why no origin can match this entry, and what to write instead.
fn origin_written_oddly(entry: &str) -> Option<String> {
    let plain = entry.split_once("://").map_or(entry, |(_, rest)| rest);
    let plain = plain.split(['/', '?', '#']).next().unwrap_or_default();
    if plain != entry && !plain.is_empty() {
        return Some(format!("hosts have no scheme and no path here; write {plain}"));
    }
    if entry.contains(char::is_whitespace) {
        let hosts: Vec<&str> = entry.split_whitespace().collect();
        return Some(format!("separate hosts by commas; write {}", hosts.join(",")));
    }
    let host = entry.strip_prefix('*').unwrap_or(entry);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let port_is_sound = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let is_bracketed = name.starts_with('[') && name.ends_with(']');
    let name_is_sound =
        name.chars().all(|c| c.is_ascii_alphanumeric() || "-._~%".contains(c) || is_bracketed && "[:]".contains(c));
    (!name_is_sound || !port_is_sound)
        .then(|| "write hosts such as app.example, app.example:8443 or *.app.example".to_owned())
}

fn check_tcp(config: &Config, problems: &mut Problems) {
    let tcp = &config.tcp;
    problems.refuse(tcp.backlog == 0 || tcp.backlog > i32::MAX as u32, "--backlog must be between 1 and 2147483647");
    problems.refuse(tcp.user_timeout > USER_TIMEOUT_MAX, "--tcp-user-timeout can be at most 24 days");
    if tcp.keepalive_time.is_zero() {
        return;
    }
    for (name, value) in
        [("--tcp-keepalive-time", tcp.keepalive_time), ("--tcp-keepalive-interval", tcp.keepalive_interval)]
    {
        problems.refuse(
            value.subsec_nanos() != 0 || !(1..=KEEPALIVE_SECONDS_MAX).contains(&value.as_secs()),
            format!(
                "{name} must be whole seconds from 1 to {KEEPALIVE_SECONDS_MAX}; --tcp-keepalive-time 0 turns it off"
            ),
        );
    }
    problems.refuse(
        !(1..=KEEPALIVE_PROBES_MAX).contains(&tcp.keepalive_probes),
        format!("--tcp-keepalive-probes must be from 1 to {KEEPALIVE_PROBES_MAX}; --tcp-keepalive-time 0 turns it off"),
    );
}

fn check_ws(config: &Config, problems: &mut Problems) {
    let ws = &config.ws;
    problems.refuse(ws.write_timeout.is_zero(), "--ws-write-timeout must be longer than 0");
    problems.refuse(
        !ws.pong_timeout.is_zero() && ws.ping_interval.is_zero(),
        "--pong-timeout needs pings: set --ping-interval, or --pong-timeout 0",
    );
}

fn check_rpc(config: &Config, problems: &mut Problems) {
    let rpc = &config.rpc;
    let implementation = config.rpc_implementation();
    if implementation != RpcImplementation::None {
        problems.refuse(rpc.host.is_empty(), "--rpc-host needs an address; to run without an app, use --norpc");
        problems.refuse(
            implementation == RpcImplementation::Http && !is_http(&rpc.host),
            "--rpc-impl http needs an http:// or https:// URL in --rpc-host",
        );
        problems.refuse(
            implementation == RpcImplementation::Grpc && is_http(&rpc.host),
            "--rpc-impl grpc needs host:port in --rpc-host, not a URL",
        );
    }
    problems.refuse(rpc.command_timeout.is_zero(), "--rpc-command-timeout must be longer than 0");
    problems.refuse(
        !rpc.headers.iter().all(|name| is_token(name)),
        "--headers takes names of headers, separated by commas",
    );
    problems.refuse(
        !rpc.cookies.iter().all(|name| is_token(name)),
        "--proxy-cookies takes names of cookies, separated by commas",
    );
    problems.refuse(rpc.host.contains(char::is_whitespace), "--rpc-host takes one address, without blanks");
    problems.refuse(
        config.disconnect.rate == 0,
        "--disconnect-rate must be at least 1 per second; to make no such calls, use --disconnect-mode never",
    );
    problems.refuse(config.disconnect.backlog == 0, "--disconnect-backlog-size must be at least 1");
}

fn check_broadcasts(config: &Config, problems: &mut Problems) {
    let broadcast = &config.broadcast;
    problems.refuse(broadcast.adapters.is_empty(), "--broadcast-adapter needs a value, such as http");
    let secrets = Secrets::resolve(config);
    problems.refuse(
        secrets.api_on && secrets.api.is_none() && secrets.broadcast.is_some(),
        "--api-port opens an API that publishes for everybody, while broadcasts need a key: set --api-secret or --secret",
    );
    problems.refuse(broadcast.max_size == 0, "--broadcast-max-size must be at least 1");
}

fn check_tokens(config: &Config, problems: &mut Problems) {
    problems.refuse(
        config.jwt.enforce && config.jwt.secret.or(&config.app.secret).key().is_none(),
        "--enforce-jwt needs a key to check tokens with: set --jwt-secret or --secret",
    );
    problems.refuse(
        !is_token(&config.jwt.param),
        "--jwt-param must be usable in the name of a header: letters, digits, - and _",
    );
}

fn check_app(config: &Config, problems: &mut Problems) {
    let app = &config.app;
    problems.refuse(
        !app.shutdown_delay.is_zero() && app.shutdown_delay >= app.shutdown_timeout,
        "--shutdown-delay is part of the shutdown and must be shorter than --shutdown-timeout",
    );
    problems.refuse(
        app.node_id.len() > 64 || !app.node_id.chars().all(|c| c.is_ascii_graphic()),
        "--node-id must be at most 64 printable ASCII characters without spaces",
    );
}

fn check_metrics(config: &Config, problems: &mut Problems) {
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    let mut prefix = config.metrics.prefix.chars().enumerate();
    problems.refuse(
        !prefix.all(|(at, c)| begins(c) || (at > 0 && c.is_ascii_digit())),
        "--metrics-prefix takes letters, digits, _ and :, and no digit first",
    );
}

fn check_admin(config: &Config, problems: &mut Problems) {
    let admin = &config.admin;
    let Some(port) = admin.port else { return };
    problems.refuse(admin.host.is_empty(), "--admin-host needs an address; 127.0.0.1 is for this machine only");
    problems.refuse(
        !is_loopback(&admin.host) && admin.key.key().is_none(),
        format!("--admin-host {} can be reached by others: set --admin-key", admin.host),
    );
    let port_of = |place: ListenOn| match place {
        ListenOn::Main => config.server.port,
        ListenOn::Own { port, .. } => port,
    };
    let others = services(config).into_iter().map(|(option, place, _)| (option, port_of(place)));
    if let Some((option, _)) = others.into_iter().find(|(_, other)| port != 0 && *other == port) {
        problems.refuse(true, format!("--admin-port {port} is that of {option}, too; it needs a port of its own"));
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Paths must be paths, and no two services may share one on the same listener.
fn check_paths(config: &Config, problems: &mut Problems) {
    problems.refuse(config.ws.paths.is_empty(), "--path needs at least one path, such as /cable");
    let services = services(config);
    for (at, (option, listener, path)) in services.iter().enumerate() {
        match PathPattern::parse(path) {
            Err(error) => problems.refuse(true, format!("{option}: {error}")),
            Ok(pattern) => problems.refuse(
                *option != "--path" && !pattern.is_plain(),
                format!("{option} '{path}' must be a plain path, without {{}} and *"),
            ),
        }
        if let Some((other, ..)) = services[..at].iter().find(|(_, other, known)| other == listener && known == path) {
            problems
                .refuse(true, format!("{other} and {option} are both '{path}' on the same port; change one of them"));
        }
    }
}

/// Everything that has a path: its option, where it listens, and the path.
fn services(config: &Config) -> Vec<(&'static str, ListenOn, &str)> {
    let main = || ListenOn::Main;
    let mut services: Vec<(&str, ListenOn, &str)> = Vec::new();
    services.extend(config.ws.paths.iter().map(|path| ("--path", main(), path.as_str())));
    services.extend(config.ws.echo_path.iter().map(|path| ("--echo-path", main(), path.as_str())));
    services.push(("--health-path", main(), &config.server.health_path));
    services.extend(config.server.ready_path.iter().map(|path| ("--ready-path", main(), path.as_str())));
    services.extend(config.metrics.http_path.iter().map(|path| ("--metrics-http", config.metrics_on(), path.as_str())));
    if config.broadcast.has(BroadcastAdapter::Http) {
        services.push(("--http-broadcast-path", config.broadcast_on(), &config.broadcast.http_path));
    }
    if Secrets::resolve(config).api_on {
        services.push(("--api-path", config.api_on(), &config.api.path));
    }
    services
}

/// Things that work and are probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let secrets = Secrets::resolve(config);
    let mut warnings = Vec::new();
    let nobody_asks = config.rpc_implementation() == RpcImplementation::None && !config.app.noauth;
    if nobody_asks && secrets.jwt.is_none() {
        warnings
            .push("nobody will be able to connect: there is no RPC, no key for tokens, and --noauth is off".to_owned());
    }
    for (option, secret) in secrets_by_option(config) {
        let quotes = |quote: char| secret.key().is_some_and(|key| key.starts_with(quote) && key.ends_with(quote));
        if quotes('"') || quotes('\'') {
            warnings.push(format!("{option} begins and ends with quotes, which are part of the key: is that meant?"));
        }
    }
    for (on, key, option, secret) in [
        (config.streams.turbo, &secrets.turbo, "--turbo-streams", "--turbo-streams-secret"),
        (config.streams.cable_ready, &secrets.cable_ready, "--cable-ready", "--cable-ready-secret"),
    ] {
        if on && key.is_none() {
            warnings.push(format!("{option} has no key, so its channel goes to the app: set {secret} or --secret"));
        }
    }
    let port_of = |place: ListenOn| match place {
        ListenOn::Main => config.server.port,
        ListenOn::Own { port, .. } => port,
    };
    let is_reached = !config.app.public && !is_loopback(&config.server.host);
    let takes_http = config.broadcast.has(BroadcastAdapter::Http);
    if takes_http && is_reached && secrets.broadcast.is_none() && config.broadcast.key != Secret::Off {
        let port = port_of(config.broadcast_on());
        warnings.push(format!("anybody who reaches port {port} can broadcast: set --secret or --broadcast-key"));
    }
    if is_reached && secrets.api_on && secrets.api.is_none() {
        let port = port_of(config.api_on());
        warnings
            .push(format!("anybody who reaches port {port} can publish over the API: set --secret or --api-secret"));
    }
    warnings.extend(cluster::warnings(config));
    warnings
}

fn secrets_by_option(config: &Config) -> [(&'static str, &Secret); 9] {
    [
        ("--secret", &config.app.secret),
        ("--jwt-secret", &config.jwt.secret),
        ("--streams-secret", &config.streams.secret),
        ("--turbo-streams-secret", &config.streams.turbo_secret),
        ("--cable-ready-secret", &config.streams.cable_ready_secret),
        ("--broadcast-key", &config.broadcast.key),
        ("--api-secret", &config.api.secret),
        ("--http-rpc-secret", &config.rpc.secret),
        ("--admin-key", &config.admin.key),
    ]
}

/// An app beside this server reads the same variable. One that publishes where nobody listens is not heard, and nothing
/// fails.
pub(super) fn app_elsewhere(config: &Config, env: &BTreeMap<String, String>) -> Option<String> {
    let name = "ANYCABLE_BROADCAST_ADAPTER";
    let of_app = env.get(name).filter(|value| !value.trim().is_empty())?;
    let adapters: Vec<&str> = config.broadcast.adapters.iter().map(|adapter| adapter.word()).collect();
    let is_heard = of_app.split(',').map(str::trim).any(|adapter| adapters.contains(&adapter));
    (!is_heard).then(|| {
        format!(
            "{name}={of_app} is for the app, too, and this server takes broadcasts by {} only: an app with this setting is \
             not heard; name it in --broadcast-adapter, or set one of these there",
            adapters.join(", ")
        )
    })
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
