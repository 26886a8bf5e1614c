//! What the node knows of itself: metrics, readiness, and a warning now and then.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::backend::Backend;
use crate::broadcast::Broadcast;
use crate::config::Config;
use crate::http::{Check, HttpMetrics};
use crate::metrics;
use crate::model::CloseCause;
use crate::os::{limits, listener, process};
use crate::shard::ShardMetrics;
use crate::telemetry::{Collect, Families};

use super::capacity::Capacity;
use super::publish::Pipeline;
use super::services::Shared;

/// How often the log may warn about one kind of trouble.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// How often the app is tried for `/ready`.
const PROBE_EVERY: Duration = Duration::from_secs(2);

metrics! {
    /// What is measured of the process as a whole.
    pub struct NodeMetrics {
        /// Distinct connection identifiers among the clients.
        clients_uniq_num: Gauge,
        /// Open WebSockets, clients that are being let in and echo connections included.
        websockets_num: Gauge,
        /// Open WebSockets this process can hold.
        websockets_max: Gauge,
        /// Memory of this process in RAM, in bytes.
        mem_sys_bytes: Gauge,
        /// Memory of this process in RAM that came since boot, divided by its open WebSockets.
        user_bytes_per_connection: Gauge,
        /// Descriptors in use.
        open_descriptors_num: Gauge,
        /// Limit of descriptors.
        open_descriptors_max: Gauge,
        /// Connections that found an accept queue full, on the whole machine since it booted.
        listen_overflows_total: Counter,
        /// SYNs dropped for want of room, on the whole machine since it booted.
        listen_drops_total: Counter,
    }
}

/// Where everything that is observed lives.
pub(super) struct Parts {
    pub config: Arc<Config>,
    pub capacity: Capacity,
    pub open_files: u64,
    pub shards: Arc<[Arc<ShardMetrics>]>,
    pub http: Arc<HttpMetrics>,
    pub backend: Arc<Backend>,
    pub shared: Arc<Shared>,
    pub broadcast: Arc<Broadcast>,
    pub pipeline: Arc<Pipeline>,
    pub listeners: Arc<Mutex<Vec<TcpListener>>>,
    pub draining: Arc<AtomicBool>,
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

/// What has to be asked of the kernel. Metrics tell the last measurement, so that a scrape waits for nothing.
#[derive(Clone, Copy, Default)]
struct Measured {
    resident_bytes: u64,
    bytes_per_websocket: u64,
    descriptors: u64,
    listen_overflows: u64,
    listen_drops: u64,
}

/// Observes the node.
pub struct Observer {
    parts: Parts,
    booted_with: AtomicU64,
    measured: Mutex<Measured>,
    backend_reachable: AtomicBool,
}

impl Observer {
    pub(super) fn new(parts: Parts) -> Observer {
        Observer {
            parts,
            booted_with: AtomicU64::new(0),
            measured: Mutex::default(),
            backend_reachable: AtomicBool::new(false),
        }
    }

    /// The facts now.
    pub fn facts(&self) -> Facts {
        let sum = |read: fn(&ShardMetrics) -> u64| self.parts.shards.iter().map(|shard| read(shard)).sum::<u64>();
        Facts {
            clients: sum(|shard| shard.counters.clients_num.get().max(0) as u64),
            websockets: self.parts.shared.open(),
            capacity: self.parts.capacity.clients,
            resident_bytes: process::resident_bytes().unwrap_or(0),
            resident_bytes_at_boot: self.booted_with.load(Relaxed),
            descriptors: process::open_descriptors().unwrap_or(0),
            descriptors_max: self.parts.open_files,
            shards: self.parts.shards.len(),
            messages_sent: sum(|shard| shard.counters.server_msg_total.get()),
        }
    }

    /// What must be true for this server to get new clients.
    pub(super) fn checks(&self) -> Vec<Check> {
        let open = self.parts.shared.open();
        vec![
            Check { name: "not_draining", ok: !self.parts.draining.load(Relaxed) },
            Check { name: "backend_reachable", ok: self.backend_reachable.load(Relaxed) },
            Check { name: "room_for_clients", ok: open < self.parts.capacity.clients },
        ]
    }

    /// All metrics, as Prometheus reads them.
    pub(super) fn metrics_text(&self) -> String {
        let Parts { config, shards, http, backend, broadcast, pipeline, listeners, .. } = &self.parts;
        let mut families = Families::new(config.metrics.tags.0.clone());
        for shard in shards.iter() {
            shard.collect(&[], &mut families);
        }
        http.collect(&[], &mut families);
        backend.metrics().collect(&[], &mut families);
        broadcast.metrics().collect(&[], &mut families);
        pipeline.metrics.collect(&[], &mut families);
        self.node_metrics().collect(&[], &mut families);
        for (at, listener) in listeners.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate() {
            let Ok(queue) = listener::accept_queue(listener) else { continue };
            let at = at.to_string();
            let labels = [("listener", at.as_str())];
            let gauge = |value: u32| crate::telemetry::Value::Gauge(f64::from(value));
            families.put("accept_queue_length", "Connections waiting to be accepted.", &labels, gauge(queue.length));
            families.put(
                "accept_queue_max",
                "Connections that may wait to be accepted.",
                &labels,
                gauge(queue.maximum),
            );
        }
        families.to_text(&config.metrics.prefix)
    }

    fn node_metrics(&self) -> NodeMetrics {
        let measured = *self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let node = NodeMetrics::default();
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        node.clients_uniq_num.set(self.parts.shared.identities() as i64);
        node.websockets_num.set(gauge(self.parts.shared.open()));
        node.websockets_max.set(gauge(self.parts.capacity.clients));
        node.mem_sys_bytes.set(gauge(measured.resident_bytes));
        node.user_bytes_per_connection.set(gauge(measured.bytes_per_websocket));
        node.open_descriptors_num.set(gauge(measured.descriptors));
        node.open_descriptors_max.set(gauge(self.parts.open_files));
        node.listen_overflows_total.add(measured.listen_overflows);
        node.listen_drops_total.add(measured.listen_drops);
        node
    }

    /// Measures what metrics will tell until the next time.
    fn measure(&self) {
        let facts = self.facts();
        let grown = facts.resident_bytes.saturating_sub(facts.resident_bytes_at_boot);
        let (listen_overflows, listen_drops) = limits::listen_overflows().unwrap_or_default();
        let measured = Measured {
            resident_bytes: facts.resident_bytes,
            bytes_per_websocket: grown.checked_div(facts.websockets).unwrap_or(0),
            descriptors: facts.descriptors,
            listen_overflows,
            listen_drops,
        };
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = measured;
        tracing::debug!(
            clients = facts.clients,
            websockets = facts.websockets,
            resident_bytes = facts.resident_bytes,
            descriptors = facts.descriptors,
            "statistics"
        );
    }

    /// Measures again and again, on a thread that may wait for the kernel.
    fn keep_measuring(self: &Arc<Self>, runtime: &Handle) {
        self.measure();
        let every = self.parts.config.metrics.stats_refresh_interval;
        if every.is_zero() {
            return;
        }
        let observer = Arc::clone(self);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let observer = Arc::clone(&observer);
                // It cannot panic; a runtime that shuts down gives it up.
                let _ = tokio::task::spawn_blocking(move || observer.measure()).await;
            }
        });
    }

    /// Starts to try the app for readiness and to warn about trouble.
    pub(super) fn watch(self: &Arc<Self>, runtime: &Handle) {
        self.booted_with.store(process::resident_bytes().unwrap_or(0), Relaxed);
        self.keep_measuring(runtime);
        let observer = Arc::clone(self);
        runtime.spawn(async move {
            loop {
                observer.backend_reachable.store(observer.parts.backend.ready().await.is_ok(), Relaxed);
                tokio::time::sleep(PROBE_EVERY).await;
            }
        });
        let observer = Arc::clone(self);
        runtime.spawn(async move {
            let mut before = observer.troubles();
            loop {
                tokio::time::sleep(WARN_EVERY).await;
                let now = observer.troubles();
                for ((count, advice), (count_before, _)) in now.iter().zip(&before) {
                    if count > count_before {
                        tracing::warn!(count = count - count_before, "{advice}");
                    }
                }
                before = now;
            }
        });
    }

    /// Things that should not happen and what to do about each.
    fn troubles(&self) -> Vec<(u64, &'static str)> {
        let closed = |cause| self.parts.shards.iter().map(|shard| shard.closed_for(cause)).sum();
        let (overflows, _) = limits::listen_overflows().unwrap_or_default();
        vec![
            (
                closed(CloseCause::NoDescriptors),
                "clients answered 503 for want of descriptors: raise the open-file limit (LimitNOFILE=)",
            ),
            (
                closed(CloseCause::MaxConnections),
                "clients answered 503: this process holds as many as it may (--max-conn or the open-file limit)",
            ),
            (
                closed(CloseCause::TooManyHandshakes),
                "connections answered 503: too many unfinished handshakes (--handshakes-max); somebody connects and \
                 says nothing",
            ),
            (closed(CloseCause::TooSlow), "clients closed because they read too slowly (--ws-max-pending-size)"),
            (
                self.parts.backend.metrics().disconnect_dropped_total.get(),
                "Disconnect calls dropped: the app is slower than clients leave (--disconnect-rate, \
                 --disconnect-backlog-size)",
            ),
            (
                self.parts.broadcast.metrics().whispers_dropped_total.get(),
                "whispers dropped: more publications wait than are delivered",
            ),
            (
                overflows,
                "accept queues overflowed on this machine and clients wait seconds for their next try: raise \
                 net.core.somaxconn and --backlog",
            ),
        ]
    }
}
