//! The connections to all app servers of a target: which one takes the next call, and what happens while none can.
//!
//! The words are gRPC's ("gRPC Connectivity Semantics and API"): a channel has one subchannel per address.
//!
//! ```text
//!                     a call comes                     up
//!            Idle ------------------> Connecting --------------> Ready
//!             ^                           |                        |
//!             |                           | no                     | broke twice before it ever answered
//!             |                           v                        v
//!             |   up (-> Ready)   TransientFailure <---------------+
//!             |   no (stays)      tries again by itself            |
//!             +----------------------------------------------------+ ended
//! ```
//!
//! Calls go round the `Ready` subchannels. With none ready, a call waits while one is `Connecting`, and fails at once,
//! without retries, when all are in `TransientFailure`. Such a server is tried again by a task of its own, so it is
//! used within about a second after it is back, whether or not anybody calls.
//!
//! A DNS target has one entry per address. It is resolved again before each connection attempt, never while connected.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;
use tracing::{info, warn};

use super::super::settings::ADDRESSES_MAX;
use super::super::{BackendMetrics, GrpcTarget, HostPort};
use super::connection::{Connection, Wire, connect};

/// Time before a failing server is tried again: the first time, and at most. The contract's "recovers by itself"
/// depends on the second; AnyCable's grows to 120 s and is reset by a call.
const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(1);

/// DNS is asked at most this often.
const RESOLVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Connections to the servers of one target.
pub(super) struct Channel {
    shared: Arc<Shared>,
}

struct Shared {
    subchannels: Mutex<Subchannels>,
    /// Rung whenever a subchannel's state or the list changes.
    changed: Notify,
    /// The name to resolve; `None` for a fixed list.
    dns: Option<HostPort>,
    tls: Option<TlsConnector>,
    runtime: Handle,
    metrics: Arc<BackendMetrics>,
}

#[derive(Default)]
struct Subchannels {
    list: Vec<Subchannel>,
    /// Whose turn it is.
    next: usize,
    ids: u64,
    resolver: Resolver,
    resolved_at: Option<Instant>,
}

/// What is known of a DNS name while its list of addresses is empty.
#[derive(Default)]
enum Resolver {
    #[default]
    Idle,
    Asking,
    Failing(Arc<str>),
}

/// Names a subchannel and the task that keeps it connected.
#[derive(Clone, Copy, PartialEq)]
struct Key {
    id: u64,
    /// Grows with every such task, so that the end of an old connection does not undo a new one.
    epoch: u64,
}

/// One address that calls can go to.
struct Subchannel {
    key: Key,
    address: Address,
    authority: http::uri::Authority,
    state: State,
}

#[derive(Clone, PartialEq)]
enum Address {
    /// Resolved at each connection attempt; the first address that takes the connection is used.
    Named(HostPort),
    /// One of the addresses behind a DNS target.
    Resolved(SocketAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Named(name) => name.fmt(f),
            Address::Resolved(address) => address.fmt(f),
        }
    }
}

enum State {
    Idle,
    Connecting,
    Ready(Connection),
    TransientFailure(Arc<str>),
}

/// A connection picked for one call.
pub(super) struct Lease {
    pub connection: Connection,
    pub authority: http::uri::Authority,
    subchannel: Key,
}

/// There is no connection for a call.
#[derive(Debug)]
pub(super) struct NotConnected {
    pub why: Arc<str>,
    /// False when every server was known to be failing before: then the call fails at once.
    pub waited: bool,
}

enum Pick {
    Ready(Box<Lease>),
    Wait,
    Failing(Arc<str>),
}

impl Shared {
    fn subchannels(&self) -> MutexGuard<'_, Subchannels> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.subchannels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state of a subchannel, unless another task has taken it over. False when so.
    fn set(&self, key: Key, state: State) -> bool {
        let mut subchannels = self.subchannels();
        let Some(subchannel) = subchannels.list.iter_mut().find(|subchannel| subchannel.key == key) else {
            return false;
        };
        // The old state may hold the last handle of a connection; it is dropped after the lock.
        let old = std::mem::replace(&mut subchannel.state, state);
        drop(subchannels);
        drop(old);
        self.changed.notify_waiters();
        true
    }
}

impl Channel {
    /// Makes a channel; nothing is connected or resolved before the first call.
    pub fn new(
        target: &GrpcTarget,
        tls: Option<TlsConnector>,
        runtime: Handle,
        metrics: Arc<BackendMetrics>,
    ) -> Channel {
        let mut subchannels = Subchannels::default();
        let dns = match target {
            GrpcTarget::Dns(name) => Some(name.clone()),
            GrpcTarget::List(hosts) => {
                for host in hosts {
                    subchannels.add(Address::Named(host.clone()), host);
                }
                None
            }
        };
        let (subchannels, changed) = (Mutex::new(subchannels), Notify::new());
        Channel { shared: Arc::new(Shared { subchannels, changed, dns, tls, runtime, metrics }) }
    }

    /// A connection for the next call. Waits while one is being made; the caller sets the limit.
    pub async fn ready(&self) -> Result<Lease, NotConnected> {
        let mut waited = false;
        loop {
            // Made before looking, so that a change after the look is not missed.
            let changed = self.shared.changed.notified();
            match self.pick() {
                Pick::Ready(lease) => return Ok(*lease),
                Pick::Failing(why) => return Err(NotConnected { why, waited }),
                Pick::Wait => changed.await,
            }
            waited = true;
        }
    }

    fn pick(&self) -> Pick {
        let mut guard = self.shared.subchannels();
        let subchannels = &mut *guard;
        if subchannels.list.is_empty() {
            return match &subchannels.resolver {
                Resolver::Failing(why) => Pick::Failing(why.clone()),
                Resolver::Asking => Pick::Wait,
                Resolver::Idle => {
                    subchannels.resolver = Resolver::Asking;
                    self.shared.runtime.spawn(resolve_first(Arc::downgrade(&self.shared)));
                    Pick::Wait
                }
            };
        }
        let count = subchannels.list.len();
        let (mut picked, mut connecting, mut failing) = (None, false, None);
        for step in 0..count {
            let at = (subchannels.next + step) % count;
            let subchannel = &mut subchannels.list[at];
            match &subchannel.state {
                State::Ready(connection) if picked.is_none() => {
                    let (connection, authority) = (connection.clone(), subchannel.authority.clone());
                    picked = Some((at, Lease { connection, authority, subchannel: subchannel.key }));
                }
                State::Ready(_) => {}
                State::Connecting => connecting = true,
                State::TransientFailure(why) => failing = Some(why.clone()),
                State::Idle => {
                    subchannel.state = State::Connecting;
                    subchannel.key.epoch += 1;
                    connecting = true;
                    self.shared.runtime.spawn(keep_connected(Arc::downgrade(&self.shared), subchannel.key));
                }
            }
        }
        match (picked, failing) {
            (Some((at, lease)), _) => {
                subchannels.next = (at + 1) % count;
                Pick::Ready(Box::new(lease))
            }
            (None, Some(why)) if !connecting => Pick::Failing(why),
            _ => Pick::Wait,
        }
    }

    /// The connection takes no more calls (the server said goodbye, or it broke). Calls on it may still be answered.
    pub fn ended(&self, lease: &Lease) {
        self.shared.set(lease.subchannel, State::Idle);
    }
}

impl Subchannels {
    fn add(&mut self, address: Address, host: &HostPort) {
        // A target's name was checked to be an authority when it was parsed.
        let Ok(authority) = host.to_string().parse() else { return };
        self.ids += 1;
        self.list.push(Subchannel { key: Key { id: self.ids, epoch: 0 }, address, authority, state: State::Idle });
    }

    /// Makes the list hold exactly these addresses; subchannels that stay keep their connections.
    fn update(&mut self, addresses: Vec<SocketAddr>, name: &HostPort) {
        self.list
            .retain(|subchannel| matches!(&subchannel.address, Address::Resolved(known) if addresses.contains(known)));
        for address in addresses {
            let address = Address::Resolved(address);
            if !self.list.iter().any(|subchannel| subchannel.address == address) {
                self.add(address, name);
            }
        }
    }
}

/// Keeps one subchannel connected: connects, runs the connection, and tries again while it cannot. Ends when a
/// connection that worked has ended, because the next call will start this again.
async fn keep_connected(shared: Weak<Shared>, key: Key) {
    let mut wait = RECONNECT_WAIT_MIN;
    let mut second_chance = true;
    loop {
        resolve_again(&shared).await;
        let Some(endpoint) = Endpoint::of(&shared, key) else { return };
        let why = match endpoint.connect().await {
            Ok((connection, wire)) => match run_connection(&shared, key, &endpoint.address, connection, wire).await {
                // The server may have been going down just then. Once is chance, twice is a server that takes
                // connections and drops them (a proxy before a dead app).
                Some(_) if std::mem::take(&mut second_chance) => {
                    let Some(strong) = shared.upgrade() else { return };
                    if !strong.set(key, State::Connecting) {
                        return;
                    }
                    continue;
                }
                Some(why) => why,
                None => return,
            },
            Err(why) => why,
        };
        if !fail(&shared, key, &endpoint.address, &why, wait == RECONNECT_WAIT_MIN) {
            return;
        }
        // A fifth of chance keeps servers of one cluster from knocking all at once.
        sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
        wait = (wait * 2).min(RECONNECT_WAIT_MAX);
    }
}

/// What one connection attempt needs to know.
struct Endpoint {
    address: Address,
    /// The name in the server's certificate.
    host: String,
    tls: Option<TlsConnector>,
}

impl Endpoint {
    /// `None` when the channel or the subchannel is gone.
    fn of(shared: &Weak<Shared>, key: Key) -> Option<Endpoint> {
        let shared = shared.upgrade()?;
        let address = shared.subchannels().list.iter().find(|subchannel| subchannel.key.id == key.id)?.address.clone();
        let host = match (&shared.dns, &address) {
            (Some(name), _) | (None, Address::Named(name)) => name.host.clone(),
            (None, Address::Resolved(address)) => address.ip().to_string(),
        };
        Some(Endpoint { address, host, tls: shared.tls.clone() })
    }

    async fn connect(&self) -> Result<(Connection, Wire), String> {
        match &self.address {
            Address::Named(name) => connect((name.host.as_str(), name.port), &self.host, self.tls.as_ref()).await,
            Address::Resolved(address) => connect(address, &self.host, self.tls.as_ref()).await,
        }
    }
}

/// Lets calls use a connection until it ends. Why it ended, if the server never answered on it; `None` when there is
/// nothing more to do here.
async fn run_connection(
    shared: &Weak<Shared>,
    key: Key,
    address: &Address,
    connection: Connection,
    wire: Wire,
) -> Option<String> {
    let proven = connection.proven.clone();
    let strong = shared.upgrade()?;
    if !strong.set(key, State::Ready(connection)) {
        return None;
    }
    let metrics = strong.metrics.clone();
    drop(strong);
    info!(%address, "connected to the app server");
    metrics.grpc_active_conn_num.add(1);
    let why = wire.run(proven.clone()).await;
    metrics.grpc_active_conn_num.add(-1);
    let strong = shared.upgrade()?;
    if proven.load(Relaxed) {
        info!(%address, why, "connection to the app server ended");
        strong.set(key, State::Idle);
        return None;
    }
    Some(why)
}

/// Notes that a subchannel cannot be connected. False when there is nothing more to do.
fn fail(shared: &Weak<Shared>, key: Key, address: &Address, why: &str, first: bool) -> bool {
    let Some(shared) = shared.upgrade() else { return false };
    if first {
        warn!(%address, why, "cannot reach the app server; trying again");
    }
    shared.set(key, State::TransientFailure(format!("{address}: {why}").into()))
}

/// Asks DNS until there is a first answer.
async fn resolve_first(shared: Weak<Shared>) {
    let mut wait = RECONNECT_WAIT_MIN;
    loop {
        let Some(name) = shared.upgrade().and_then(|shared| shared.dns.clone()) else { return };
        let result = lookup(&name).await;
        let Some(strong) = shared.upgrade() else { return };
        let done = match result {
            Ok(addresses) => {
                let mut subchannels = strong.subchannels();
                subchannels.update(addresses, &name);
                subchannels.resolved_at = Some(Instant::now());
                subchannels.resolver = Resolver::Idle;
                true
            }
            Err(why) => {
                if wait == RECONNECT_WAIT_MIN {
                    warn!(%name, why, "cannot resolve the app server's name; trying again");
                }
                strong.subchannels().resolver = Resolver::Failing(format!("{name}: {why}").into());
                false
            }
        };
        strong.changed.notify_waiters();
        drop(strong);
        if done {
            return;
        }
        sleep(wait).await;
        wait = (wait * 2).min(RECONNECT_WAIT_MAX);
    }
}

/// Asks DNS again, unless it was asked a moment ago. The old list stays when there is no answer.
async fn resolve_again(shared: &Weak<Shared>) {
    let Some(name) = shared.upgrade().and_then(|shared| {
        let name = shared.dns.clone()?;
        let mut subchannels = shared.subchannels();
        let now = Instant::now();
        if subchannels.resolved_at.is_some_and(|at| now - at < RESOLVE_INTERVAL_MIN) {
            return None;
        }
        subchannels.resolved_at = Some(now);
        Some(name)
    }) else {
        return;
    };
    let Ok(addresses) = lookup(&name).await else { return };
    if let Some(shared) = shared.upgrade() {
        shared.subchannels().update(addresses, &name);
        shared.changed.notify_waiters();
    }
}

async fn lookup(name: &HostPort) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((name.host.as_str(), name.port)).await.map_err(|error| error.to_string())?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found.take(ADDRESSES_MAX) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err("no address".to_owned()) } else { Ok(addresses) }
}
