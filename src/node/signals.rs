//! The signals that a running node listens for.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Signals that come this soon after the first are the same one: terminals and process managers signal the process and
/// its group, and `timeout` does both.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// Listens until it is dropped.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    ended_at: Option<Instant>,
}

impl Signals {
    /// Listens from now on. Needs a runtime.
    pub fn listen() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            ended_at: None,
        })
    }

    /// Waits for SIGINT or SIGTERM.
    pub async fn end(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => break,
                _ = self.terminate.recv() => break,
                _ = self.hang_up.recv() => tracing::info!("SIGHUP ignored: nothing is read again while running"),
            }
        }
        self.ended_at.get_or_insert_with(Instant::now);
    }

    /// Waits for another one that is not a part of the first.
    pub async fn end_again(&mut self) {
        loop {
            self.end().await;
            if self.ended_at.is_some_and(|at| at.elapsed() >= SAME_SIGNAL) {
                return;
            }
            tracing::debug!("the signal came twice");
        }
    }
}
