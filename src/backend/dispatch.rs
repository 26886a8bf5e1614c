//! Takes calls from the shards and runs a fixed number of them at a time; [`WaitingCalls`] says in which order.
//!
//! Shards have no async runtime and must never wait: they put a call into a bounded queue under a short lock
//! and wake the driver. The driver is one task that polls all running calls itself. A task per call would do
//! too; one task was chosen because everything that a shard submitted in one turn then reaches the HTTP/2
//! connection in one turn and leaves with one write, and because it makes the limit exact: it is the driver
//! that starts calls, and it counts them. The price: encoding and decoding happen on one thread.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::task::AtomicWaker;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::attempt::{self, Failure, Limits, Outcome, Transport};
use super::health::Health;
use super::waiting::{Done, Pushed, Waiting, WaitingCalls};
use super::{Answers, BackendMetrics};
use crate::model::{Answer, AppReply, Call, CallError, SlotKey};

/// Rounds of "finish, then start" in one turn of the driver, so that an app that answers at once, call after
/// call, does not keep the runtime's thread for itself.
const ROUNDS_MAX: usize = 64;

/// Longest wait for a place; then a call is answered with `Overloaded`. Action Cable clients give a silent connection up
/// after 6 s, so a later answer would reach nobody.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);

/// The queue's end that submits.
pub(super) struct Dispatch {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    driver: AtomicWaker,
    metrics: Arc<BackendMetrics>,
    health: Arc<Health>,
    bounds: Bounds,
}

/// The limits of the queue; see [`super::Settings`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub concurrency: usize,
    pub queue_max: usize,
    pub queue_bytes_max: usize,
}

/// What submitters and the driver share. Both hold the lock for a few queue operations, never across a wait.
#[derive(Default)]
struct Inbox {
    /// Calls that found a place, for the driver to start. With those that run, at most as many as may run.
    placed: Vec<Waiting>,
    /// Calls that found none.
    waiting: WaitingCalls,
    /// Sessions closed by this server while their call ran. At most as many as calls run.
    canceled: Vec<SlotKey>,
    /// Sessions whose call made room for smaller ones, and that are to be told.
    displaced: Vec<SlotKey>,
    /// Calls that run, as the driver left it.
    running: usize,
    /// None is started, and none has waited too long.
    held: bool,
    closed: bool,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_pending(&self, inbox: &Inbox) {
        self.metrics.rpc_pending_num.set(inbox.waiting.len() as i64);
        self.metrics.rpc_pending_bytes.set(inbox.waiting.bytes() as i64);
    }
}

impl Dispatch {
    /// Makes a queue and its driver, which the caller puts on a runtime.
    pub fn new<T: Transport>(
        transport: Arc<T>,
        bounds: Bounds,
        limits: Limits,
        metrics: Arc<BackendMetrics>,
        health: Arc<Health>,
        answers: Answers,
    ) -> (Dispatch, impl Future<Output = ()> + Send) {
        let shared = Arc::new(Shared { inbox: Mutex::default(), driver: AtomicWaker::new(), metrics, health, bounds });
        let driver = drive(shared.clone(), transport, limits, answers);
        (Dispatch { shared }, driver)
    }

    /// Queues a call whose answer goes to a session.
    pub fn submit(&self, call: Call) -> Result<(), CallError> {
        let now = Instant::now();
        self.push(Waiting { call, deadline: Some(now + QUEUE_WAIT_MAX), done: Done::Session }, now)
    }

    /// Makes a call that is not a session's when its turn has come. The caller bounds how many it has here.
    pub async fn ask(&self, call: Call) -> Result<Outcome, Failure> {
        let (done, result) = oneshot::channel();
        let pushed = self.push(Waiting { call, deadline: None, done: Done::Caller(done) }, Instant::now());
        pushed.map_err(Failure::for_good)?;
        result.await.unwrap_or(Err(Failure::for_good(CallError::Canceled)))
    }

    fn push(&self, waiting: Waiting, now: Instant) -> Result<(), CallError> {
        let mut inbox = self.shared.inbox();
        if inbox.closed {
            return Err(CallError::Canceled);
        }
        if inbox.waiting.len() == 0 && inbox.running + inbox.placed.len() < self.shared.bounds.concurrency {
            inbox.placed.push(waiting);
            drop(inbox);
            self.shared.driver.wake();
            return Ok(());
        }
        if waiting.deadline.is_some() && inbox.waiting.len() >= self.shared.bounds.queue_max {
            drop(inbox);
            self.shared.metrics.rpc_overloaded_total.inc();
            return Err(CallError::Overloaded);
        }
        let pushed = inbox.waiting.push(waiting, now, self.shared.bounds.queue_bytes_max);
        if let Pushed::Displaced(larger) = &pushed {
            inbox.displaced.push(larger.call.key);
        }
        self.shared.show_pending(&inbox);
        drop(inbox);
        if let Pushed::Refused(waiting) = pushed {
            drop(waiting);
            self.shared.metrics.rpc_overloaded_total.inc();
            return Err(CallError::Overloaded);
        }
        self.shared.driver.wake();
        Ok(())
    }

    /// Gives up the session's call, waiting or running.
    pub fn cancel(&self, key: SlotKey) {
        let mut inbox = self.shared.inbox();
        let is_it = |placed: &Waiting| placed.call.key == key && matches!(placed.done, Done::Session);
        // Few: no more than may run, and only those that the driver has not seen yet.
        let placed = inbox.placed.iter().position(is_it).map(|at| inbox.placed.remove(at));
        if let Some(waiting) = placed.or_else(|| inbox.waiting.cancel(key)) {
            self.shared.show_pending(&inbox);
            drop(inbox);
            drop(waiting);
            self.shared.metrics.rpc_canceled_total.inc();
        } else if inbox.canceled.len() < inbox.running {
            // More keys than calls that run name sessions without a call. Ignoring one is harmless anyway: its answer
            // comes later and finds a slot of another generation.
            inbox.canceled.push(key);
            drop(inbox);
            self.shared.driver.wake();
        }
    }

    /// From now on no call is started. Those that run go on.
    pub fn hold(&self) {
        self.shared.inbox().held = true;
    }

    /// Calls that sessions wait for and that were not started, while none is.
    pub fn held(&self) -> Vec<Call> {
        let inbox = self.shared.inbox();
        let placed = inbox.placed.iter().filter(|placed| matches!(placed.done, Done::Session));
        placed.map(|placed| &placed.call).chain(inbox.waiting.of_sessions()).cloned().collect()
    }

    /// Calls that run, as the driver left it.
    pub fn running(&self) -> usize {
        self.shared.inbox().running
    }

    /// Calls are started again.
    pub fn go_on(&self) {
        self.shared.inbox().held = false;
        self.shared.driver.wake();
    }

    /// Forgets the calls that were [`held`](Self::held): somebody else makes them. What nobody but this process can make goes
    /// on.
    pub fn give_up_held(&self) {
        let mut inbox = self.shared.inbox();
        let (given, kept) =
            std::mem::take(&mut inbox.placed).into_iter().partition(|placed| matches!(placed.done, Done::Session));
        inbox.placed = kept;
        let left: (Vec<Waiting>, Vec<Waiting>) = (given, inbox.waiting.take_of_sessions());
        inbox.held = false;
        self.shared.show_pending(&inbox);
        drop(inbox);
        drop(left);
        self.shared.driver.wake();
    }

    /// Ends the driver. All calls are given up, waiting or running; nobody gets an answer any more.
    pub fn close(&self) {
        let mut inbox = self.shared.inbox();
        inbox.closed = true;
        let left = (std::mem::take(&mut inbox.placed), std::mem::take(&mut inbox.waiting));
        drop(inbox);
        drop(left);
        self.shared.driver.wake();
    }
}

/// The driver: starts calls while there is room, delivers what has finished, forgets what has waited too long.
async fn drive<T: Transport>(shared: Arc<Shared>, transport: Arc<T>, limits: Limits, answers: Answers) {
    let mut running = FuturesUnordered::new();
    let mut starting: Vec<Waiting> = Vec::with_capacity(shared.bounds.concurrency);
    let mut expiry = pin!(tokio::time::sleep(Duration::ZERO));
    let mut driver = Driver { shared, transport, limits, answers, handles: FxHashMap::default(), refused: Vec::new() };

    std::future::poll_fn(move |cx| {
        driver.shared.driver.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            while let Poll::Ready(Some((key, done, result))) = running.poll_next_unpin(cx) {
                driver.finish(key, done, result);
            }
            let Ok(next_expiry) = driver.take_from_queue(running.len(), &mut starting) else {
                return Poll::Ready(());
            };
            driver.answer_refused();
            if starting.is_empty() {
                match next_expiry {
                    Some(deadline) if expires(expiry.as_mut(), deadline, cx) => continue,
                    _ => return Poll::Pending,
                }
            }
            for waiting in starting.drain(..) {
                running.push(driver.start(waiting));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What the driver knows beside the calls that run.
struct Driver<T> {
    shared: Arc<Shared>,
    transport: Arc<T>,
    limits: Limits,
    answers: Answers,
    /// Ends the running call of a session.
    handles: FxHashMap<SlotKey, AbortHandle>,
    /// Calls that waited too long or were displaced, to be answered once the lock is released.
    refused: Vec<SlotKey>,
}

/// The queue takes no more calls.
struct Closed;

impl<T: Transport> Driver<T> {
    /// Looks into the queue, under its lock: cancels, takes out what has waited too long, and moves calls to `starting`
    /// while there is room. Returns when the next call will have waited too long.
    fn take_from_queue(&mut self, running: usize, starting: &mut Vec<Waiting>) -> Result<Option<Instant>, Closed> {
        let mut guard = self.shared.inbox();
        let inbox = &mut *guard;
        if inbox.closed {
            return Err(Closed);
        }
        // Those that are not found have ended meanwhile.
        inbox.canceled.drain(..).filter_map(|key| self.handles.get(&key)).for_each(AbortHandle::abort);
        self.refused.append(&mut inbox.displaced);
        if inbox.held {
            inbox.running = running;
            return Ok(None);
        }
        starting.append(&mut inbox.placed);
        let mut next_expiry = None;
        if inbox.waiting.len() > 0 {
            next_expiry = inbox.waiting.expire(Instant::now(), &mut self.refused);
            while running + starting.len() < self.shared.bounds.concurrency {
                let Some(waiting) = inbox.waiting.pop() else { break };
                starting.push(waiting);
            }
        }
        inbox.running = running + starting.len();
        self.shared.show_pending(inbox);
        Ok(next_expiry)
    }

    fn answer_refused(&mut self) {
        for key in self.refused.drain(..) {
            self.shared.metrics.rpc_overloaded_total.inc();
            (self.answers)(Answer::of_app(key, Err(CallError::Overloaded)));
        }
    }

    /// The future that makes a call, to be polled with those that run.
    fn start(
        &mut self,
        Waiting { call, done, .. }: Waiting,
    ) -> impl Future<Output = (SlotKey, Done, Result<Outcome, Failure>)> + use<T> {
        let (handle, registration) = AbortHandle::new_pair();
        let key = call.key;
        if let Done::Session = done {
            self.handles.insert(key, handle);
        }
        let (transport, shared, limits) = (self.transport.clone(), self.shared.clone(), self.limits);
        async move {
            let work = attempt::run(&*transport, &call, limits, &shared.metrics, &shared.health);
            let result = Abortable::new(work, registration).await;
            (key, done, result.unwrap_or_else(|_| Err(Failure::for_good(CallError::Canceled))))
        }
    }

    /// Tells whoever waits for it that a call has ended.
    fn finish(&mut self, key: SlotKey, done: Done, result: Result<Outcome, Failure>) {
        match done {
            Done::Session => {
                self.handles.remove(&key);
                let result = match result {
                    Ok(Outcome::Connect(reply)) => Ok(AppReply::Connect(reply)),
                    Ok(Outcome::Command(reply)) => Ok(AppReply::Command(*reply)),
                    Ok(Outcome::Disconnect(..)) => return,
                    // The session is closed: nobody waits.
                    Err(Failure { error: CallError::Canceled, .. }) => {
                        return self.shared.metrics.rpc_canceled_total.inc();
                    }
                    Err(failure) => Err(failure.error),
                };
                (self.answers)(Answer::of_app(key, result));
            }
            // A caller that has stopped waiting (shutdown deadline) needs no answer.
            Done::Caller(done) => drop(done.send(result)),
        }
    }
}

/// Whether a deadline has passed; if not, the task is woken when it has.
fn expires(mut alarm: Pin<&mut tokio::time::Sleep>, deadline: Instant, cx: &mut Context<'_>) -> bool {
    // Deadlines only grow, so an alarm set for a call that has left the queue since is early, never late: it is moved
    // once per alarm and not once per call.
    if alarm.is_elapsed() {
        alarm.as_mut().reset(deadline);
    }
    alarm.poll(cx).is_ready()
}
