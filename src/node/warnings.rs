//! Warnings about trouble while the server runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::model::CloseCause;
use crate::os::limits;
use crate::telemetry::LOG_LINES_DROPPED;

use super::observe::Observer;

/// How often the log may warn about one kind of trouble.
const WARN_EVERY: Duration = Duration::from_secs(10);

impl Observer {
    /// Looks for trouble again and again, and warns about what is new.
    pub(super) fn keep_warning(self: &Arc<Self>, runtime: &Handle) {
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
        let cluster = self.parts.pipeline.cluster.exchange().map(|exchange| &exchange.metrics);
        let dropped = cluster
            .map_or(0, |metrics| metrics.cluster_dropped_total.get() + metrics.cluster_overflow_total.get())
            + self.parts.broadcast.metrics().fanout_overflow_total.get();
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
                "Disconnect calls dropped: the app is away, or slower than clients leave (--disconnect-rate, \
                 --disconnect-backlog-size, --disconnect-backlog-bytes)",
            ),
            (
                self.parts.backend.metrics().rpc_overloaded_total.get(),
                "calls to the app refused: clients ask more than it answers (--rpc-concurrency, --rpc-queue-size, \
                 --rpc-queue-bytes)",
            ),
            (
                LOG_LINES_DROPPED.get(),
                "lines of this log dropped: whoever reads it was too slow, or writing failed for a while",
            ),
            (
                self.parts.broadcast.metrics().whispers_dropped_total.get(),
                "whispers dropped: more publications wait than are delivered",
            ),
            (
                dropped,
                "messages to or from other nodes, or broadcasts that every node hears, dropped: the link was away or too \
                 slow, or clients are served too slowly (cluster_dropped_total, cluster_overflow_total, \
                 fanout_overflow_total)",
            ),
            (
                overflows,
                "accept queues overflowed on this machine and clients wait seconds for their next try: raise \
                 net.core.somaxconn and --backlog",
            ),
        ]
    }
}
