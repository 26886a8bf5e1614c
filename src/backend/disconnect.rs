//! Tells the app, in the background, about sessions that are over (`contracts/rpc-grpc.md` section 7).
//!
//! A queue of bounded length, emptied in order, one call at a time and at a limited rate, so that many clients
//! leaving at once do not keep the app from those that stay. When it is full, a call is dropped and counted rather
//! than making anybody wait. At shutdown the rate no longer holds and 16 calls run at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::warn;

use super::attempt::Outcome;
use super::dispatch::Dispatch;
use super::{BackendMetrics, DrainReport};
use crate::model::{Call, CallError, Sid, Status};

/// Calls at a time while draining, as many as the contract has drain workers.
pub(super) const DRAIN_WORKERS: usize = 16;

/// How late tokio's timers may be: they count milliseconds.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// The queue of Disconnect calls.
pub(super) struct Disconnector {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Wakes workers: there is work, or the mode has changed.
    work: Notify,
    /// Wakes whoever drains: a call has ended.
    ended: Notify,
    backlog: usize,
    /// Least time between the starts of two calls; zero when there is no limit.
    interval: Duration,
    dispatch: Arc<Dispatch>,
    metrics: Arc<BackendMetrics>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Call>,
    running: usize,
    mode: Mode,
    sent: u64,
    failed: u64,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mode {
    #[default]
    Throttled,
    Draining,
    Closed,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disconnector {
    /// Makes the queue and its first worker, which the caller puts on a runtime.
    pub fn new(
        dispatch: Arc<Dispatch>,
        rate: u32,
        backlog: usize,
        metrics: Arc<BackendMetrics>,
    ) -> (Disconnector, impl Future<Output = ()> + Send) {
        let interval = if rate == 0 { Duration::ZERO } else { Duration::from_secs(1) / rate };
        let (queue, work, ended) = (Mutex::default(), Notify::new(), Notify::new());
        let shared = Arc::new(Shared { queue, work, ended, backlog, interval, dispatch, metrics });
        (Disconnector { shared: shared.clone() }, run_worker(shared, true))
    }

    /// Queues a call. Gives it back when the queue is full.
    pub fn push(&self, call: Call) -> Result<(), Call> {
        let mut queue = self.shared.queue();
        if queue.waiting.len() >= self.shared.backlog {
            drop(queue);
            self.shared.metrics.disconnect_dropped_total.inc();
            return Err(call);
        }
        queue.waiting.push_back(call);
        self.shared.metrics.disconnect_queue_size.set(queue.waiting.len() as i64);
        drop(queue);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Lifts the rate limit and starts the other workers; once.
    pub fn begin_drain(&self, runtime: &tokio::runtime::Handle) {
        let mut queue = self.shared.queue();
        if queue.mode != Mode::Throttled {
            return;
        }
        queue.mode = Mode::Draining;
        drop(queue);
        for _ in 1..DRAIN_WORKERS {
            runtime.spawn(run_worker(self.shared.clone(), false));
        }
        self.shared.work.notify_waiters();
    }

    /// Waits until nothing waits and nothing runs, or the deadline has passed. The numbers count from the start.
    pub async fn drained(&self, deadline: Instant) -> DrainReport {
        loop {
            let ended = self.shared.ended.notified();
            let report = {
                let queue = self.shared.queue();
                let left = queue.waiting.len() + queue.running;
                DrainReport { sent: queue.sent, failed: queue.failed, left }
            };
            if report.left == 0 || timeout_at(deadline, ended).await.is_err() {
                return report;
            }
        }
    }
}

impl Drop for Disconnector {
    fn drop(&mut self) {
        self.shared.queue().mode = Mode::Closed;
        self.shared.work.notify_waiters();
    }
}

/// A worker: takes calls one after the other until the queue is closed.
async fn run_worker(shared: Arc<Shared>, first: bool) {
    let mut next_start = Instant::now();
    loop {
        let woken = shared.work.notified();
        let (call, mode) = {
            let mut queue = shared.queue();
            // The rate holds back the first worker only, and there is no other before draining begins. A call is taken
            // when it may start, so that it counts as waiting until then.
            let due = queue.mode != Mode::Throttled || next_start <= Instant::now();
            let call = if due { queue.waiting.pop_front() } else { None };
            queue.running += usize::from(call.is_some());
            shared.metrics.disconnect_queue_size.set(queue.waiting.len() as i64);
            (call, queue.mode)
        };
        if mode == Mode::Closed {
            return;
        }
        let Some(call) = call else {
            if mode == Mode::Throttled && next_start > Instant::now() {
                // Woken by new work as well, which changes nothing, and by the start of draining, which does.
                tokio::select! {
                    () = sleep_until(next_start) => {}
                    () = woken => {}
                }
            } else {
                woken.await;
            }
            continue;
        };
        if first {
            // A start that a coarse timer made late does not move the next one; time in which there was nothing to do is
            // not made up for.
            next_start = next_start.max(Instant::now() - TIMER_SLACK) + shared.interval;
        }
        let sid = call.sid;
        let handled = was_handled(sid, shared.dispatch.disconnect(call).await);
        let mut queue = shared.queue();
        queue.running -= 1;
        if handled {
            queue.sent += 1
        } else {
            queue.failed += 1
        }
        drop(queue);
        shared.ended.notify_waiters();
    }
}

/// Whether the app dealt with a call; says in the log why it did not.
fn was_handled(sid: Sid, result: Result<Outcome, CallError>) -> bool {
    match result {
        Ok(Outcome::Disconnect(Status::Success | Status::Failure, _)) => true,
        Ok(Outcome::Disconnect(Status::Error, error)) => {
            warn!(%sid, error, "the app failed to handle a disconnect");
            false
        }
        Ok(Outcome::Connect(_) | Outcome::Command(_)) => false,
        Err(error) => {
            warn!(%sid, %error, "disconnect call failed");
            false
        }
    }
}
