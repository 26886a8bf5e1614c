//! The connections to all app servers of a target: which one takes the next call, and what happens while none can.
//!
//! ```text
//!                     a call comes                    up
//!            Idle ------------------> Connecting -----------> Ready
//!             ^                           |                     |
//!             |                           | no                  | broke before it ever answered
//!             |                           v                     v
//!             |      up (-> Ready)     Failing <----------------+
//!             |      no (stays)        tries again by itself    |
//!             +-------------------------------------------------+ ended
//! ```
//!
//! Calls go round the `Ready` servers. With none ready, a call waits while one is `Connecting`, and fails at once,
//! without retries, when all are `Failing`. A failing server is tried again by a task of its own, so it is used within
//! about a second after it is back, whether or not anybody calls.
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
use super::connection::{Connection, connect};

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
    peers: Mutex<Peers>,
    /// Rung whenever a peer's state or the list changes.
    changed: Notify,
    /// The name to resolve; `None` for a fixed list.
    dns: Option<HostPort>,
    tls: Option<TlsConnector>,
    runtime: Handle,
    metrics: Arc<BackendMetrics>,
}

#[derive(Default)]
struct Peers {
    list: Vec<Peer>,
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

struct Peer {
    id: u64,
    /// Names one task that cares for this peer, so that the end of an old connection does not undo a new one.
    epoch: u64,
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
    Failing(Arc<str>),
}

/// A connection picked for one call.
pub(super) struct Lease {
    pub connection: Connection,
    pub authority: http::uri::Authority,
    peer: u64,
    epoch: u64,
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
    fn peers(&self) -> MutexGuard<'_, Peers> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state of a peer, unless somebody else has taken over its care. False when so.
    fn set(&self, id: u64, epoch: u64, state: State) -> bool {
        let mut peers = self.peers();
        let Some(peer) = peers.list.iter_mut().find(|peer| peer.id == id && peer.epoch == epoch) else { return false };
        // The old state may hold the last handle of a connection; it is dropped after the lock.
        let old = std::mem::replace(&mut peer.state, state);
        drop(peers);
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
        let mut peers = Peers::default();
        let dns = match target {
            GrpcTarget::Dns(name) => Some(name.clone()),
            GrpcTarget::List(hosts) => {
                for host in hosts {
                    peers.add(Address::Named(host.clone()), host);
                }
                None
            }
        };
        let (peers, changed) = (Mutex::new(peers), Notify::new());
        Channel { shared: Arc::new(Shared { peers, changed, dns, tls, runtime, metrics }) }
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
        let mut guard = self.shared.peers();
        let peers = &mut *guard;
        if peers.list.is_empty() {
            return match &peers.resolver {
                Resolver::Failing(why) => Pick::Failing(why.clone()),
                Resolver::Asking => Pick::Wait,
                Resolver::Idle => {
                    peers.resolver = Resolver::Asking;
                    self.shared.runtime.spawn(resolve_first(Arc::downgrade(&self.shared)));
                    Pick::Wait
                }
            };
        }
        let count = peers.list.len();
        let (mut picked, mut connecting, mut failing) = (None, false, None);
        for step in 0..count {
            let at = (peers.next + step) % count;
            let peer = &mut peers.list[at];
            match &peer.state {
                State::Ready(connection) if picked.is_none() => {
                    let (connection, authority) = (connection.clone(), peer.authority.clone());
                    picked = Some((at, Lease { connection, authority, peer: peer.id, epoch: peer.epoch }));
                }
                State::Ready(_) => {}
                State::Connecting => connecting = true,
                State::Failing(why) => failing = Some(why.clone()),
                State::Idle => {
                    peer.state = State::Connecting;
                    peer.epoch += 1;
                    connecting = true;
                    self.shared.runtime.spawn(care(Arc::downgrade(&self.shared), peer.id, peer.epoch));
                }
            }
        }
        match (picked, failing) {
            (Some((at, lease)), _) => {
                peers.next = (at + 1) % count;
                Pick::Ready(Box::new(lease))
            }
            (None, Some(why)) if !connecting => Pick::Failing(why),
            _ => Pick::Wait,
        }
    }

    /// The connection takes no more calls (the server said goodbye, or it broke). Calls on it may still be answered.
    pub fn ended(&self, lease: &Lease) {
        self.shared.set(lease.peer, lease.epoch, State::Idle);
    }
}

impl Peers {
    fn add(&mut self, address: Address, host: &HostPort) {
        // A target's name was checked to be an authority when it was parsed.
        let Ok(authority) = host.to_string().parse() else { return };
        self.ids += 1;
        self.list.push(Peer { id: self.ids, epoch: 0, address, authority, state: State::Idle });
    }

    /// Makes the list hold exactly these addresses; peers that stay keep their connections.
    fn update(&mut self, addresses: Vec<SocketAddr>, name: &HostPort) {
        self.list.retain(|peer| matches!(&peer.address, Address::Resolved(known) if addresses.contains(known)));
        for address in addresses {
            let address = Address::Resolved(address);
            if !self.list.iter().any(|peer| peer.address == address) {
                self.add(address, name);
            }
        }
    }
}

/// Cares for one peer: connects, runs the connection, and tries again while it cannot. Ends when a connection that
/// worked has ended, because the next call will start this again.
async fn care(shared: Weak<Shared>, id: u64, epoch: u64) {
    let mut wait = RECONNECT_WAIT_MIN;
    loop {
        resolve_again(&shared).await;
        let Some(strong) = shared.upgrade() else { return };
        let Some(address) = strong.peers().list.iter().find(|peer| peer.id == id).map(|peer| peer.address.clone())
        else {
            return;
        };
        let tls = strong.tls.clone();
        let host = match (&strong.dns, &address) {
            (Some(name), _) | (None, Address::Named(name)) => name.host.clone(),
            (None, Address::Resolved(address)) => address.ip().to_string(),
        };
        drop(strong);
        let result = match &address {
            Address::Named(name) => connect((name.host.as_str(), name.port), &host, tls.as_ref()).await,
            Address::Resolved(address) => connect(address, &host, tls.as_ref()).await,
        };
        let why = match result {
            Ok((connection, wire)) => {
                let proven = connection.proven.clone();
                let Some(strong) = shared.upgrade() else { return };
                if !strong.set(id, epoch, State::Ready(connection)) {
                    return;
                }
                let metrics = strong.metrics.clone();
                drop(strong);
                info!(%address, "connected to the app server");
                metrics.grpc_active_conn_num.add(1);
                let why = wire.run(proven.clone()).await;
                metrics.grpc_active_conn_num.add(-1);
                let Some(strong) = shared.upgrade() else { return };
                if proven.load(Relaxed) {
                    info!(%address, why, "connection to the app server ended");
                    strong.set(id, epoch, State::Idle);
                    return;
                }
                why
            }
            Err(why) => why,
        };
        let Some(strong) = shared.upgrade() else { return };
        if wait == RECONNECT_WAIT_MIN {
            warn!(%address, why, "cannot reach the app server; trying again");
        }
        if !strong.set(id, epoch, State::Failing(format!("{address}: {why}").into())) {
            return;
        }
        drop(strong);
        // A fifth of chance keeps servers of one cluster from knocking all at once.
        sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
        wait = (wait * 2).min(RECONNECT_WAIT_MAX);
    }
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
                let mut peers = strong.peers();
                peers.update(addresses, &name);
                peers.resolved_at = Some(Instant::now());
                peers.resolver = Resolver::Idle;
                true
            }
            Err(why) => {
                if wait == RECONNECT_WAIT_MIN {
                    warn!(%name, why, "cannot resolve the app server's name; trying again");
                }
                strong.peers().resolver = Resolver::Failing(format!("{name}: {why}").into());
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
        let mut peers = shared.peers();
        let now = Instant::now();
        if peers.resolved_at.is_some_and(|at| now - at < RESOLVE_INTERVAL_MIN) {
            return None;
        }
        peers.resolved_at = Some(now);
        Some(name)
    }) else {
        return;
    };
    let Ok(addresses) = lookup(&name).await else { return };
    if let Some(shared) = shared.upgrade() {
        shared.peers().update(addresses, &name);
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
