//! What a running node is asked for from outside: by signals, and at its control socket.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::os::process;

use super::child::Ordered;
use super::control::{Order, Reader, RunningControl, What};

/// Signals that come this soon after the first are the same one: terminals and process managers signal the process and
/// its group, and `timeout` does both.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// In this time a signal that has come is seen.
const NOTED_WITHIN: Duration = Duration::from_millis(1);

/// What is asked for.
pub(super) enum Asked {
    /// SIGINT or SIGTERM: the end.
    End,
    /// SIGHUP: that the configuration is read again.
    Reload,
    /// SIGUSR2, or somebody at the control socket: that another process goes on, or whether it could.
    Order(Order),
    /// What the parent wants of this process, which is one of several.
    ByParent(Ordered),
}

/// Listens until it is dropped.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    upgrade: Signal,
    control: Option<RunningControl>,
    /// Of the parent, if this process is one of several.
    orders: Option<mpsc::Receiver<Ordered>>,
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
            upgrade: signal(SignalKind::user_defined2())?,
            control: None,
            orders: None,
            end_when: None,
            ended_at: None,
        })
    }

    /// Listens at the control socket, too, if there is one.
    pub fn listen_at(&mut self, control: Option<RunningControl>) {
        self.control = control;
    }

    /// Listens to the parent, too. The end of `until_lost` stands for a signal to end.
    pub fn obey(
        &mut self,
        orders: Option<mpsc::Receiver<Ordered>>,
        until_lost: impl Future<Output = ()> + Send + 'static,
    ) {
        self.orders = orders;
        self.end_when = Some(Box::pin(until_lost));
    }

    /// Waits for the next one that asks for something.
    pub async fn next(&mut self) -> Asked {
        loop {
            if let Some(asked) = self.any().await {
                return asked;
            }
            tracing::info!("SIGUSR2 ignored: an upgrade runs already");
        }
    }

    async fn any(&mut self) -> Option<Asked> {
        let Signals { interrupt, terminate, hang_up, upgrade, control, orders, end_when, .. } = self;
        let order = async {
            match control {
                Some(control) => control.next().await,
                None => pending().await,
            }
        };
        let ordered = async {
            match orders {
                Some(orders) => match orders.recv().await {
                    Some(ordered) => ordered,
                    None => pending().await,
                },
                None => pending().await,
            }
        };
        let end = async {
            match end_when {
                Some(end_when) => end_when.await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = end => self.end_when = None,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => return Some(Asked::Reload),
            _ = upgrade.recv() => return self.by_signal().map(Asked::Order),
            order = order => return Some(Asked::Order(order)),
            ordered = ordered => return Some(Asked::ByParent(ordered)),
        }
        self.ended_at.get_or_insert_with(Instant::now);
        Some(Asked::End)
    }

    /// An order that a signal gave; `None`: another one is there already.
    fn by_signal(&self) -> Option<Order> {
        let claim = match &self.control {
            Some(control) => Some(control.claim()?),
            None => None,
        };
        Some(Order { what: What::Upgrade, reader: Reader::nobody(claim) })
    }

    /// Forgets signals that asked for an upgrade while one ran.
    pub fn forget_upgrades(&mut self) {
        while let Some(Some(())) = self.upgrade.recv().now_or_never() {
            tracing::info!("SIGUSR2 ignored: an upgrade was running");
        }
    }

    /// Nobody is answered at the control socket any more, by whom it is taken.
    pub fn take_control(&mut self) -> Option<RunningControl> {
        self.control.take()
    }

    /// Whether something was there that asks for the end.
    pub fn has_ended(&self) -> bool {
        self.ended_at.is_some()
    }

    /// Takes what came by now and was not asked for, and forgets what does not ask for the end. Tells whether nothing did.
    pub async fn none_has_ended(&mut self) -> bool {
        // What a signal handler has noted is passed on by the runtime in its next turn.
        tokio::time::sleep(NOTED_WITHIN).await;
        let Signals { interrupt, terminate, hang_up, upgrade, .. } = self;
        for ignored in [hang_up, upgrade] {
            while let Some(Some(())) = ignored.recv().now_or_never() {
                tracing::info!("SIGHUP or SIGUSR2 ignored: an upgrade is running");
            }
        }
        for end in [interrupt, terminate] {
            if let Some(Some(())) = end.recv().now_or_never() {
                self.ended_at = Some(Instant::now());
                return false;
            }
        }
        true
    }

    /// Waits for another end that is not a part of the first.
    pub async fn end_again(&mut self) {
        loop {
            match self.next().await {
                Asked::Reload => tracing::info!("SIGHUP ignored: the server is shutting down"),
                // The parent has heard by now, or soon will, that this process ends.
                Asked::ByParent(_) => {}
                Asked::Order(order) => {
                    tracing::info!("no upgrade: the server is shutting down");
                    order.reader.end(Err("the server is shutting down".to_owned())).await;
                }
                Asked::End if self.ended_at.is_some_and(|at| at.elapsed() >= SAME_SIGNAL) => return,
                Asked::End => tracing::debug!("the signal came twice"),
            }
        }
    }

    /// Passes on to the process that serves now whatever asks for something, for ever; without one, nothing is.
    pub async fn pass_on(&mut self, successor: Option<u32>) {
        let Some(successor) = successor else { return pending().await };
        loop {
            let signal = match self.next().await {
                Asked::End => process::Signal::TERM,
                Asked::Reload => process::Signal::HUP,
                Asked::ByParent(_) => continue,
                Asked::Order(order) => {
                    let text = format!("another process serves already (pid {successor}); ask again");
                    order.reader.end(Err(text)).await;
                    continue;
                }
            };
            tracing::info!(successor, ?signal, "the signal is for the process that serves now and is passed on");
            if let Err(error) = process::signal(successor, signal) {
                tracing::warn!(successor, %error, "it cannot be signalled");
            }
        }
    }
}
