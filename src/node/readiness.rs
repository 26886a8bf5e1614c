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
    /// What must be true for this process to get new clients.
    pub(super) fn own_checks(&self) -> Vec<Check> {
        let open = self.parts.counts.open();
        let needed = [
            ("not_draining", !self.parts.draining.load(Relaxed)),
            ("backend_reachable", self.backend_reachable.load(Relaxed)),
            ("calls_thread_turns", self.calls_turn.load(Relaxed)),
            ("room_for_clients", open < self.parts.counts.open_max()),
        ];
        let needed = needed.map(|(name, ok)| Check { name, ok, needed: true });
        // Clients are served without them, too.
        let links = self.parts.links.iter().map(|link| Check { name: link.name(), ok: link.is_up(), needed: false });
        needed.into_iter().chain(links).collect()
    }

    /// Tries the app, and the thread that calls it, again and again; what changes is logged.
    pub(super) fn keep_probing(self: &Arc<Self>, runtime: &Handle) {
        let observer = Arc::clone(self);
        runtime.spawn(async move {
            let mut before = Ok(());
            loop {
                let backend = &observer.parts.backend;
                let (turns, reachable) = tokio::join!(backend.turns(), backend.ready());
                if turns != observer.calls_turn.swap(turns, Relaxed) && !turns {
                    tracing::error!("not ready: the thread that calls the app does not turn");
                }
                observer.backend_reachable.store(reachable.is_ok(), Relaxed);
                match &reachable {
                    Err(why) if before.is_ok() => tracing::warn!(why, "not ready: the app cannot be called"),
                    Ok(()) if before.is_err() => tracing::info!("the app can be called again"),
                    Err(_) | Ok(()) => {}
                }
                before = reachable;
                tokio::time::sleep(PROBE_EVERY).await;
            }
        });
    }
}
