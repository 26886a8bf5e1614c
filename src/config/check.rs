//! The second step: what cannot be, or cannot be together, is refused before anything is opened. Pure: it
//! looks at the values only.

use std::time::Duration;

use super::error::Problem;
use super::options::Config;
use super::resolved::{ListenOn, is_http};
use super::secrets::Secrets;
use super::setting::{RpcImplementation, Secret};

/// Most threads one process may be asked for; a slip of the finger is likelier than a machine this large.
pub const ACCEPTORS_MAX: u16 = 1024;
/// The kernel's limits for TCP_KEEPIDLE and TCP_KEEPINTVL in seconds (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`).
const KEEPALIVE_SECONDS_MAX: u64 = 32_767;
/// The kernel's limit for TCP_KEEPCNT (`MAX_TCP_KEEPCNT`).
const KEEPALIVE_PROBES_MAX: u32 = 127;
/// TCP_USER_TIMEOUT is a C int of milliseconds.
const USER_TIMEOUT_MAX: Duration = Duration::from_millis(i32::MAX as u64);
/// The default of rpc-concurrency, which a zero stands for.
const RPC_CONCURRENCY: u32 = 28;

/// Puts values into the form the server wants, and says what was changed.
pub(super) fn normalize(config: &mut Config, warnings: &mut Vec<String>) {
    if config.rpc.concurrency == 0 {
        config.rpc.concurrency = RPC_CONCURRENCY;
        warnings.push(format!("--rpc-concurrency 0 means the default, {RPC_CONCURRENCY}"));
    }
    if config.rpc.headers == ["none"] {
        config.rpc.headers.clear();
    }
    config.rpc.headers.iter_mut().for_each(|name| name.make_ascii_lowercase());
    config.server.allowed_origins.iter_mut().for_each(|origin| *origin = origin.to_lowercase());
}

/// Says everything that is wrong.
pub(super) fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |wrong: bool, message: &str| {
        if wrong {
            problems.push(Problem::Combination(message.to_owned()));
        }
    };

    let server = &config.server;
    refuse(server.host.is_empty(), "--host needs an address; 0.0.0.0 means all of IPv4, :: all of IPv6");
    refuse(
        server.allowed_origins.iter().any(|origin| origin.contains("://")),
        "--allowed-origins takes hosts without a scheme, such as example.com or *.example.com",
    );
    refuse(
        server.acceptors > ACCEPTORS_MAX,
        &format!("--acceptors can be at most {ACCEPTORS_MAX}; one per core is enough"),
    );
    refuse(server.handshakes_max == 0, "--handshakes-max must be at least 1, or nobody could connect");
    refuse(server.handshake_timeout.is_zero(), "--handshake-timeout must be longer than 0, or nobody could connect");

    let tcp = &config.tcp;
    refuse(tcp.backlog == 0 || tcp.backlog > i32::MAX as u32, "--backlog must be between 1 and 2147483647");
    if !tcp.keepalive_time.is_zero() {
        for (name, value) in
            [("--tcp-keepalive-time", tcp.keepalive_time), ("--tcp-keepalive-interval", tcp.keepalive_interval)]
        {
            refuse(
                value.subsec_nanos() != 0 || !(1..=KEEPALIVE_SECONDS_MAX).contains(&value.as_secs()),
                &format!(
                    "{name} must be whole seconds from 1 to {KEEPALIVE_SECONDS_MAX}; --tcp-keepalive-time 0 turns it off"
                ),
            );
        }
        refuse(
            !(1..=KEEPALIVE_PROBES_MAX).contains(&tcp.keepalive_probes),
            &format!(
                "--tcp-keepalive-probes must be from 1 to {KEEPALIVE_PROBES_MAX}; --tcp-keepalive-time 0 turns it off"
            ),
        );
    }
    refuse(tcp.user_timeout > USER_TIMEOUT_MAX, "--tcp-user-timeout can be at most 24 days");

    let ws = &config.ws;
    refuse(ws.write_timeout.is_zero(), "--ws-write-timeout must be longer than 0");
    refuse(
        !ws.pong_timeout.is_zero() && ws.ping_interval.is_zero(),
        "--pong-timeout needs pings: set --ping-interval, or --pong-timeout 0",
    );

    let rpc = &config.rpc;
    let implementation = config.rpc_implementation();
    if implementation != RpcImplementation::None {
        refuse(rpc.host.is_empty(), "--rpc-host needs an address; to run without an app, use --norpc");
        refuse(
            implementation == RpcImplementation::Http && !is_http(&rpc.host),
            "--rpc-impl http needs an http:// or https:// URL in --rpc-host",
        );
        refuse(
            implementation == RpcImplementation::Grpc && is_http(&rpc.host),
            "--rpc-impl grpc needs host:port in --rpc-host, not a URL",
        );
    }
    refuse(rpc.command_timeout.is_zero(), "--rpc-command-timeout must be longer than 0");
    refuse(!rpc.headers.iter().all(|name| is_token(name)), "--headers takes names of headers, separated by commas");
    refuse(
        config.disconnect.rate == 0,
        "--disconnect-rate must be at least 1 per second; to make no such calls, use --disconnect-mode never",
    );
    refuse(config.disconnect.backlog == 0, "--disconnect-backlog-size must be at least 1");

    refuse(config.broadcast.adapters.is_empty(), "--broadcast-adapter needs a value; only http is there yet");
    for adapter in &config.broadcast.adapters {
        match adapter.as_str() {
            "http" => {}
            "redis" | "redisx" | "nats" => refuse(
                true,
                &format!(
                    "--broadcast-adapter {adapter} is known but not there yet; use --broadcast-adapter http and \
                     broadcast over HTTP"
                ),
            ),
            other => refuse(true, &format!("--broadcast-adapter '{other}' is unknown; only http is there yet")),
        }
    }
    refuse(config.broadcast.max_size == 0, "--broadcast-max-size must be at least 1");

    refuse(
        config.jwt.enforce && config.jwt.secret.or(&config.app.secret).key().is_none(),
        "--enforce-jwt needs a key to check tokens with: set --jwt-secret or --secret",
    );
    refuse(
        !is_token(&config.jwt.param),
        "--jwt-param must be usable in the name of a header: letters, digits, - and _",
    );

    let app = &config.app;
    refuse(
        !app.shutdown_delay.is_zero() && app.shutdown_delay >= app.shutdown_timeout,
        "--shutdown-delay is part of the shutdown and must be shorter than --shutdown-timeout",
    );
    refuse(
        app.node_id.len() > 64 || !app.node_id.chars().all(|c| c.is_ascii_graphic()),
        "--node-id must be at most 64 printable ASCII characters without spaces",
    );
    refuse(
        !config
            .metrics
            .prefix
            .chars()
            .enumerate()
            .all(|(i, c)| c.is_ascii_alphabetic() || c == '_' || c == ':' || (i > 0 && c.is_ascii_digit())),
        "--metrics-prefix takes letters, digits, _ and :, and no digit first",
    );
    problems.extend(check_paths(config));
    problems
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Paths must be paths, and no two services may share one on the same listener.
fn check_paths(config: &Config) -> Vec<Problem> {
    let secrets = Secrets::resolve(config);
    let main = || ListenOn::Main;
    let mut services: Vec<(&str, ListenOn, &str)> = Vec::new();
    services.extend(config.ws.paths.iter().map(|path| ("--path", main(), path.as_str())));
    services.extend(config.ws.echo_path.iter().map(|path| ("--echo-path", main(), path.as_str())));
    services.push(("--health-path", main(), &config.server.health_path));
    services.extend(config.server.ready_path.iter().map(|path| ("--ready-path", main(), path.as_str())));
    services.extend(config.metrics.http_path.iter().map(|path| ("--metrics-http", config.metrics_on(), path.as_str())));
    services.push(("--http-broadcast-path", config.broadcast_on(), &config.broadcast.http_path));
    if secrets.api_on {
        services.push(("--api-path", config.api_on(), &config.api.path));
    }
    let mut problems = Vec::new();
    if config.ws.paths.is_empty() {
        problems.push(Problem::Combination("--path needs at least one path, such as /cable".to_owned()));
    }
    for (i, (option, listener, path)) in services.iter().enumerate() {
        let is_path = path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic() && c != '?' && c != '#');
        if !is_path {
            problems.push(Problem::Combination(format!(
                "{option} '{path}' is no path: it must begin with / and have no spaces, ? or #"
            )));
        }
        let pattern = path.contains(['{', '}', '*']);
        if pattern && *option != "--path" {
            problems.push(Problem::Combination(format!("{option} '{path}' must be a plain path, without {{}} and *")));
        } else if pattern && !is_pattern(path) {
            problems.push(Problem::Combination(format!(
                "--path '{path}' is no pattern: a whole segment can be {{name}}, and the last one *"
            )));
        }
        let same = services[..i].iter().find(|(_, other, known)| other == listener && known == path);
        if let Some((other, _, _)) = same {
            problems.push(Problem::Combination(format!(
                "{other} and {option} are both '{path}' on the same port; change one of them"
            )));
        }
    }
    problems
}

fn is_pattern(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    segments.iter().enumerate().all(|(i, segment)| {
        let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let last = i + 1 == segments.len();
        (last && *segment == "*")
            || name.is_some_and(|name| !name.is_empty() && !name.contains(['{', '}', '*']))
            || !segment.contains(['{', '}', '*'])
    })
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
    for (on, key, option, secret) in [
        (config.streams.turbo, &secrets.turbo, "--turbo-streams", "--turbo-streams-secret"),
        (config.streams.cable_ready, &secrets.cable_ready, "--cable-ready", "--cable-ready-secret"),
    ] {
        if on && key.is_none() {
            warnings.push(format!("{option} has no key, so its channel goes to the app: set {secret} or --secret"));
        }
    }
    let open = secrets.broadcast.is_none() && !config.app.public && config.broadcast.key != Secret::Off;
    if open && !is_loopback(&config.server.host) {
        warnings.push(format!(
            "anybody who reaches {} can broadcast: set --secret or --broadcast-key",
            match config.broadcast_on() {
                ListenOn::Main => format!("port {}", config.server.port),
                ListenOn::Own { port, .. } => format!("port {port}"),
            }
        ));
    }
    warnings
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
