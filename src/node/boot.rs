//! The boot log: what this server is, what it can hold, and where to find it. One fact a line.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use crate::backend::{Backend, TransportKind};
use crate::config::{Config, ListenOn, Secrets};
use crate::identity::StreamRouter;
use crate::os::limits;

use super::capacity::Capacity;

/// Below this many open files the log warns: the system's default of 1024 is a mistake for this kind of server.
const OPEN_FILES_WANTED: u64 = 65_536;

/// The addresses behind a host name. `localhost` is 127.0.0.1, as AnyCable has it; empty is every address of the
/// machine.
pub(super) fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(vec![(ip, 0).into()]);
    }
    match host {
        "" => Ok(vec![(Ipv6Addr::UNSPECIFIED, 0).into()]),
        "localhost" => Ok(vec![(Ipv4Addr::LOCALHOST, 0).into()]),
        name => {
            let mut addresses: Vec<_> = (name, 0).to_socket_addrs()?.collect();
            addresses.sort_unstable();
            addresses.dedup();
            match addresses.is_empty() {
                true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
                false => Ok(addresses),
            }
        }
    }
}

/// Name, version, pid, open-file limit, shards; tools read the limit out of it. Then the configuration file, if any.
pub(super) fn first_lines(open_files: u64, shards: usize, file: Option<&Path>) {
    let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
    tracing::info!("Starting Cableway {version} (pid: {pid}, open file limit: {open_files}, shards: {shards})");
    if let Some(file) = file {
        tracing::info!("configuration file: {}", file.display());
    }
}

/// Everything else, in the order of `contracts/ops.md` section 1.
pub(super) fn facts(
    config: &Config,
    secrets: &Secrets,
    capacity: &Capacity,
    backend: &Backend,
    address: SocketAddr,
    router: &StreamRouter,
) {
    machine(config, capacity);
    doors(config, secrets, router);
    tracing::info!("broker: none (no history, no session restore, no presence)");
    if secrets.broadcast_derived {
        tracing::info!("broadcast key: derived from the secret");
    }
    if secrets.http_rpc_derived && backend.transport() == Some(TransportKind::Http) {
        tracing::info!("HTTP RPC key: derived from the secret");
    }
    let key = if secrets.broadcast.is_some() { "key needed" } else { "NO key needed" };
    tracing::info!("broadcasts: {} (HTTP, {key})", at(&config.broadcast_on(), address, &config.broadcast.http_path));
    tracing::info!("app: {}", backend.describe());
    endpoints(config, secrets, address);
}

fn machine(config: &Config, capacity: &Capacity) {
    let Capacity { clients, reserve, bound_by, .. } = capacity;
    tracing::info!(
        "capacity: {clients} clients, bound by {bound_by}; one descriptor each ({} if each were passed through to a \
         backend socket), {reserve} kept for everything else",
        clients / 2,
    );
    if clients + reserve < OPEN_FILES_WANTED && config.server.max_conn == 0 {
        tracing::warn!(
            "this process holds {clients} clients at most: raise the open-file limit (LimitNOFILE= in the systemd \
             unit, nofile in limits.d, --ulimit nofile= of a container)"
        );
    }
    let backlog = config.tcp.backlog;
    match limits::somaxconn() {
        Some(max) if max < backlog => tracing::warn!(
            "accept queue: {max} a shard, not {backlog}: the kernel clamps it to net.core.somaxconn; raise that \
             (deploy/sysctl.d/90-cableway.conf) or lower --backlog"
        ),
        _ => tracing::info!("accept queue: {backlog} connections a shard"),
    }
    let tcp = &config.tcp;
    let keepalive = if tcp.keepalive_time.is_zero() {
        "keepalive off".to_owned()
    } else {
        let (time, interval, probes) = (tcp.keepalive_time, tcp.keepalive_interval, tcp.keepalive_probes);
        format!("a silent peer that vanished is found in {:?}", time + interval * probes)
    };
    let user_timeout = if tcp.user_timeout.is_zero() {
        "one that owes acknowledgements when the kernel gives up (about 15 min)".to_owned()
    } else {
        format!("one that owes acknowledgements in {:?}", tcp.user_timeout)
    };
    tracing::info!("dead peers: {keepalive}, {user_timeout}");
    let until_given_up = tcp.keepalive_time + tcp.keepalive_interval * tcp.keepalive_probes;
    if one_lost_probe_ends_it(config.ws.ping_interval, tcp.keepalive_time, tcp.user_timeout, until_given_up) {
        tracing::warn!(
            "a connection ends at the first keepalive probe that is lost: pings are rarer than --tcp-keepalive-time \
             ({:?}) and --tcp-user-timeout ({:?}) counts from the last thing heard; ping more often, or raise it to \
             {until_given_up:?}",
            tcp.keepalive_time,
            tcp.user_timeout
        );
    }
}

/// Whether keepalive is what notices a dead peer, because pings are off or too rare, and the user time-out, which Linux
/// then measures from the last segment heard (tcp(7), `tcp_keepalive_timer`), leaves no room for a second probe.
fn one_lost_probe_ends_it(
    ping: Duration,
    keepalive: Duration,
    user_timeout: Duration,
    until_given_up: Duration,
) -> bool {
    let probing = !keepalive.is_zero() && (ping.is_zero() || ping >= keepalive);
    probing && !user_timeout.is_zero() && user_timeout < until_given_up
}

fn doors(config: &Config, secrets: &Secrets, router: &StreamRouter) {
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
    if !config.server.allowed_origins.is_empty() {
        tracing::info!("origins allowed: {}", config.server.allowed_origins.join(", "));
    }
}

fn endpoints(config: &Config, secrets: &Secrets, address: SocketAddr) {
    for path in &config.ws.paths {
        tracing::info!("WebSockets: ws://{address}{path}");
    }
    if let Some(path) = &config.ws.echo_path {
        tracing::info!("echo: ws://{address}{path}");
    }
    tracing::info!("health: http://{address}{}", config.server.health_path);
    if let Some(path) = &config.server.ready_path {
        tracing::info!("readiness: http://{address}{path}");
    }
    if secrets.api_on {
        let key = if secrets.api.is_some() { "key needed" } else { "NO key needed" };
        tracing::info!("API: {} ({key})", at(&config.api_on(), address, &config.api.path));
    }
    match &config.metrics.http_path {
        Some(path) => tracing::info!("metrics: {}", at(&config.metrics_on(), address, path)),
        None => tracing::info!("metrics: off"),
    }
}

fn at(place: &ListenOn, main: SocketAddr, path: &str) -> String {
    match place {
        ListenOn::Main => format!("http://{main}{path}"),
        ListenOn::Own { host, port } => format!("http://{host}:{port}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_probe_is_fatal_only_where_keepalive_probes_and_the_user_timeout_is_shorter() {
        let s = Duration::from_secs;
        let fatal = |ping, user_timeout| one_lost_probe_ends_it(s(ping), s(300), s(user_timeout), s(350));
        assert!(!fatal(3, 30), "as by default: acknowledged pings keep the probes away");
        assert!(fatal(600, 30) && fatal(0, 30));
        assert!(!fatal(600, 350) && !fatal(600, 0));
        assert!(!one_lost_probe_ends_it(s(0), s(0), s(30), s(0)), "no keepalive, no probe");
    }
}
