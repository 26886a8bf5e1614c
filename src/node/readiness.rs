//! Whether this server is to get new clients.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::http::Check;

use super::observe::Observer;

/// How often the app is tried for `/ready`.
const PROBE_EVERY: Duration = Duration::from_secs(2);

impl Observer {
    /// What must be true for this server to get new clients.
    pub(super) fn checks(&self) -> Vec<Check> {
        let open = self.parts.counts.open();
        vec![
            Check { name: "not_draining", ok: !self.parts.draining.load(Relaxed) },
            Check { name: "backend_reachable", ok: self.backend_reachable.load(Relaxed) },
            Check { name: "room_for_clients", ok: open < self.parts.capacity.clients },
        ]
    }

    /// Tries the app again and again.
    pub(super) fn keep_probing(self: &Arc<Self>, runtime: &Handle) {
        let observer = Arc::clone(self);
        runtime.spawn(async move {
            loop {
                observer.backend_reachable.store(observer.parts.backend.ready().await.is_ok(), Relaxed);
                tokio::time::sleep(PROBE_EVERY).await;
            }
        });
    }
}
