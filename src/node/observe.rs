//! What the node knows of itself: the facts that metrics, readiness and warnings are made of.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use crate::backend::Backend;
use crate::broadcast::{Broadcast, RedisXMetrics};
use crate::broker::Broker;
use crate::config::Config;
use crate::http::HttpMetrics;
use crate::link::LinkState;
use crate::model::BrokerError;
use crate::os::process;
use crate::shard::{Inbox, ShardMetrics};

use super::child::Family;
use super::control::{ControlMetrics, talk};
use super::counts::Counts;
use super::links::HandedLinks;
use super::metrics::Measured;
use super::publish::Pipeline;
use super::state::Inherited;
use super::upgrade::UpgradeMetrics;

/// Where everything that is observed lives.
pub(super) struct Parts {
    /// Held to copy it; replaced by a reload.
    pub config: Mutex<Arc<Config>>,
    pub open_files: u64,
    pub shards: Arc<[Arc<ShardMetrics>]>,
    pub inboxes: Arc<[Arc<Inbox>]>,
    pub http: Arc<HttpMetrics>,
    pub backend: Arc<Backend>,
    pub counts: Arc<Counts>,
    pub broadcast: Arc<Broadcast>,
    pub pipeline: Arc<Pipeline>,
    pub listeners: Arc<Mutex<Vec<TcpListener>>>,
    pub draining: Arc<AtomicBool>,
    /// To Redis and NATS.
    pub links: Vec<Arc<LinkState>>,
    pub redisx: Option<Arc<RedisXMetrics>>,
    /// What another process goes on with of the links.
    pub handed: Arc<HandedLinks>,
    /// Of the processes before this one.
    pub inherited: Arc<Inherited>,
    pub control: Arc<ControlMetrics>,
    /// The other processes of this server, if it has several.
    pub family: Option<Family>,
    pub upgrades: Arc<UpgradeMetrics>,
}

impl Parts {
    /// From now on there is room for so many clients, but for no more than this process, which is one of several, can hold. Gives how
    /// many there are, at most, if none comes.
    pub fn set_room(&self, clients: u64) -> u64 {
        let most = self.family.as_ref().map_or(u64::MAX, |family| family.room_max);
        self.counts.set_open_max(clients.min(most))
    }
}

/// What a person would ask of a running server.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Sessions that were let in.
    pub clients: u64,
    /// Open WebSockets.
    pub websockets: u64,
    /// How many there may be.
    pub capacity: u64,
    /// Resident bytes of this process.
    pub resident_bytes: u64,
    /// Resident bytes when it had just booted.
    pub resident_bytes_at_boot: u64,
    /// Descriptors in use.
    pub descriptors: u64,
    /// Their limit.
    pub descriptors_max: u64,
    /// Shards.
    pub shards: usize,
    /// Messages sent to clients.
    pub messages_sent: u64,
}

/// Observes the node.
pub struct Observer {
    pub(super) parts: Parts,
    pub(super) booted_with: AtomicU64,
    /// What the kernel of this machine held then.
    pub(super) kernel_booted_with: AtomicU64,
    pub(super) measured: Mutex<Measured>,
    pub(super) backend_reachable: AtomicBool,
    pub(super) calls_turn: AtomicBool,
}

impl Observer {
    pub(super) fn new(parts: Parts) -> Observer {
        Observer {
            parts,
            booted_with: AtomicU64::new(0),
            kernel_booted_with: AtomicU64::new(0),
            measured: Mutex::default(),
            backend_reachable: AtomicBool::new(false),
            calls_turn: AtomicBool::new(false),
        }
    }

    /// The configuration in force.
    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.parts.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on another one is in force.
    pub(super) fn set_config(&self, config: Arc<Config>) {
        *self.parts.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The facts now.
    pub fn facts(&self) -> Facts {
        let sum = |read: fn(&ShardMetrics) -> u64| self.parts.shards.iter().map(|shard| read(shard)).sum::<u64>();
        Facts {
            clients: sum(|shard| shard.counters.clients_num.get().max(0) as u64),
            websockets: self.parts.counts.open(),
            capacity: self.parts.counts.open_max(),
            resident_bytes: process::resident_bytes().unwrap_or(0),
            resident_bytes_at_boot: self.booted_with.load(Relaxed),
            descriptors: process::open_descriptors().unwrap_or(0),
            descriptors_max: self.parts.open_files,
            shards: self.parts.shards.len(),
            messages_sent: sum(|shard| shard.counters.server_msg_total.get()),
        }
    }

    /// What is told at the control socket.
    pub(super) fn control_status(&self) -> talk::Status {
        let facts = self.facts();
        talk::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            clients: facts.clients,
            websockets: facts.websockets,
            websockets_max: facts.capacity,
            descriptors: facts.descriptors,
            resident_bytes: facts.resident_bytes,
            upgrading: false,
            draining: self.parts.draining.load(Relaxed),
        }
    }

    /// Who is present on a stream, as JSON text.
    pub(super) async fn who_is_present(self: Arc<Self>, stream: String) -> Result<Vec<u8>, BrokerError> {
        match &self.parts.pipeline.broker {
            Broker::Local(local) => local.present(&stream, true, usize::MAX),
            Broker::Remote(remote) => remote.present(&stream).await,
            Broker::Parent(parent) => parent.present(&stream).await,
        }
    }

    /// Starts to measure and to warn about trouble.
    pub(super) fn watch(self: &Arc<Self>, runtime: &Handle) {
        self.booted_with.store(process::resident_bytes().unwrap_or(0), Relaxed);
        self.kernel_booted_with.store(process::kernel_bytes().unwrap_or(0), Relaxed);
        self.keep_measuring(runtime);
        self.keep_warning(runtime);
    }
}
