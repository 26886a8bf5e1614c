//! The metrics of a node: what Prometheus reads, and the measurements that it shows.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use tokio::runtime::Handle;

use crate::metrics;
use crate::os::{limits, listener, process};
use crate::telemetry::{Collect, Families, Value};

use super::dead_peers;
use super::observe::Observer;
use super::processes::Counted;
use super::state::counted;

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
        /// Kernel memory of the whole machine, slab caches and TCP buffers, that came since boot, divided by the open
        /// WebSockets of this process: too much where the machine does something else, or where clients run on it.
        kernel_bytes_per_connection: Gauge,
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

/// What has to be asked of the kernel. Metrics tell the last measurement, so that a scrape waits for nothing.
#[derive(Clone, Copy, Default)]
pub(super) struct Measured {
    resident_bytes: u64,
    /// Since boot.
    grown_bytes: u64,
    /// Since then, of the kernel of the machine.
    kernel_grown_bytes: u64,
    websockets: u64,
    descriptors: u64,
    listen_overflows: u64,
    listen_drops: u64,
}

/// What the parent of several processes uses, measured now: it has few descriptors.
pub(super) fn of_the_parent(families: &mut Families) {
    let node = NodeMetrics::default();
    let gauge = |n: Option<u64>| i64::try_from(n.unwrap_or(0)).unwrap_or(i64::MAX);
    node.mem_sys_bytes.set(gauge(process::resident_bytes()));
    node.open_descriptors_num.set(gauge(process::open_descriptors()));
    node.open_descriptors_max.set(gauge(limits::open_files().ok()));
    node.collect(&[], families);
    counted::log(families);
}

impl Observer {
    /// What this process counts and measures, for the sum over all.
    pub(super) fn counted(&self) -> Counted {
        Counted { parts: self.families().into_parts(), ..self.counted_beside_parts() }
    }

    /// The same without the metrics themselves.
    pub(super) fn counted_beside_parts(&self) -> Counted {
        let measured = *self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let Measured { grown_bytes, kernel_grown_bytes, websockets, .. } = measured;
        Counted { websockets, grown_bytes, kernel_grown_bytes, ..Counted::default() }
    }

    /// All metrics of this process, but for those of one connection in the mean.
    pub(super) fn families(&self) -> Families {
        let config = self.config();
        let listeners = &self.parts.listeners;
        let mut families = Families::new(config.metrics.tags.0.clone());
        counted::collect(&self.parts, &mut families);
        self.node_metrics().collect(&[], &mut families);
        dead_peers::collect(&config, &mut families);
        for (at, listener) in listeners.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate() {
            let Ok(queue) = listener::accept_queue(listener) else { continue };
            let at = at.to_string();
            let labels = [("listener", at.as_str())];
            let gauge = |value: u32| Value::Gauge(f64::from(value));
            families.put("accept_queue_length", "Connections waiting to be accepted.", &labels, gauge(queue.length));
            families.put(
                "accept_queue_max",
                "Connections that may wait to be accepted.",
                &labels,
                gauge(queue.maximum),
            );
        }
        families
    }

    fn node_metrics(&self) -> NodeMetrics {
        let measured = *self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let node = NodeMetrics::default();
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        node.clients_uniq_num.set(self.parts.counts.identities() as i64);
        node.websockets_num.set(gauge(self.parts.counts.open()));
        node.websockets_max.set(gauge(self.parts.counts.open_max()));
        node.mem_sys_bytes.set(gauge(measured.resident_bytes));
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
        let kernel = process::kernel_bytes().unwrap_or(0);
        let kernel_grown = kernel.saturating_sub(self.kernel_booted_with.load(Relaxed));
        let (listen_overflows, listen_drops) = limits::listen_overflows().unwrap_or_default();
        let measured = Measured {
            resident_bytes: facts.resident_bytes,
            grown_bytes: grown,
            kernel_grown_bytes: kernel_grown,
            websockets: facts.websockets,
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
    pub(super) fn keep_measuring(self: &Arc<Self>, runtime: &Handle) {
        self.measure();
        let every = self.config().metrics.stats_refresh_interval;
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
}
