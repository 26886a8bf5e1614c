//! The signals that a running node listens for.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Signals that come this soon after the first are the same one: terminals and process managers signal the process and
/// its group, and `timeout` does both.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGINT or SIGTERM: the end.
    End,
    /// SIGHUP: that the configuration is read again.
    Reload,
}

/// Listens until it is dropped.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// What stands for a signal to end.
    end_when: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ended_at: Option<Instant>,
}

impl Signals {
    /// Listens from now on. Needs a runtime.
    pub fn listen() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            end_when: None,
            ended_at: None,
        })
    }

    /// What comes first, this or a signal, is the end.
    pub fn end_when(&mut self, when: impl Future<Output = ()> + Send + 'static) {
        self.end_when = Some(Box::pin(when));
    }

    /// Waits for the next one that asks for something.
    pub async fn next(&mut self) -> Asked {
        let end_when = async {
            match &mut self.end_when {
                Some(when) => when.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end_when => self.end_when = None,
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => return Asked::Reload,
        }
        self.ended_at.get_or_insert_with(Instant::now);
        Asked::End
    }

    /// Waits for another end that is not a part of the first.
    pub async fn end_again(&mut self) {
        loop {
            match self.next().await {
                Asked::Reload => tracing::info!("SIGHUP ignored: the server is shutting down"),
                Asked::End if self.ended_at.is_some_and(|at| at.elapsed() >= SAME_SIGNAL) => return,
                Asked::End => tracing::debug!("the signal came twice"),
            }
        }
    }
}
