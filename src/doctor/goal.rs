//! What a machine is asked to hold, and how.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::config::{Config, ListenOn};
use crate::os::facts::{Facts, Process};

/// How the app is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Calls over a few connections.
    #[default]
    Grpc,
    /// Calls, each on a connection while it lasts.
    Http,
    /// Frames of every client are passed to a socket of its own.
    Pass,
}

/// A number of connections, with the options of the server that bear on them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// Clients.
    pub connections: u64,
    /// How the app is reached.
    pub backend: Backend,
    /// Addresses (IP and port) of the app, when frames are passed.
    pub backend_addresses: u64,
    /// The port of WebSockets.
    pub port: u16,
    /// Every port that we or the app listen on.
    pub own_ports: Vec<u16>,
    /// `--backlog`.
    pub backlog: u64,
    /// `--acceptors`; 0: one for each core.
    pub acceptors: usize,
    /// `--max-conn`; 0: as many as fit.
    pub max_conn: u64,
    /// `--rpc-concurrency`.
    pub calls: u64,
    /// `--ping-interval`; zero: none.
    #[serde(rename = "ping_interval_s", serialize_with = "seconds")]
    pub ping_interval: Duration,
    /// `--tcp-keepalive-time`, `-interval`, in seconds, and `-probes`; a time of zero: off.
    pub keepalive: [u64; 3],
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

impl Goal {
    /// So many connections with these options.
    pub fn new(connections: u64, backend: Backend, config: &Config) -> Goal {
        let mut own_ports = vec![config.server.port];
        for place in [config.broadcast_on(), config.metrics_on(), config.api_on()] {
            if let ListenOn::Own { port, .. } = place {
                own_ports.push(port);
            }
        }
        own_ports.extend(config.rpc.host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()));
        own_ports.retain(|port| *port > 0);
        own_ports.sort_unstable();
        own_ports.dedup();
        let tcp = &config.tcp;
        Goal {
            connections,
            backend,
            backend_addresses: 1,
            port: config.server.port,
            own_ports,
            backlog: tcp.backlog.into(),
            acceptors: config.server.acceptors.into(),
            max_conn: config.server.max_conn as u64,
            calls: config.rpc.concurrency.into(),
            ping_interval: config.ws.ping_interval,
            keepalive: [
                tcp.keepalive_time.as_secs(),
                tcp.keepalive_interval.as_secs(),
                u64::from(tcp.keepalive_probes),
            ],
        }
    }

    /// Shards of a server with these options on this machine.
    pub(super) fn shards(&self, facts: &Facts) -> usize {
        if self.acceptors > 0 { self.acceptors } else { facts.cpu.usable_cores() }
    }

    /// The server that runs already, if this port is where it listens.
    pub(super) fn server<'a>(&self, facts: &'a Facts) -> Option<&'a Process> {
        facts.server.as_ref().filter(|_| facts.listeners.iter().any(|listener| listener.port == self.port))
    }

    /// Descriptors that it has open.
    pub(super) fn server_open(&self, facts: &Facts) -> u64 {
        self.server(facts).and_then(|server| server.open).unwrap_or(0)
    }

    /// Sockets for each client.
    pub(super) fn sockets_each(&self) -> u64 {
        match self.backend {
            Backend::Grpc | Backend::Http => 1,
            Backend::Pass => 2,
        }
    }

    /// Sockets for all clients.
    pub(super) fn sockets(&self) -> u64 {
        self.connections.saturating_mul(self.sockets_each())
    }
}
