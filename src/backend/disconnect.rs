//! Tells the app, in the background, about sessions that are over (`contracts/rpc-grpc.md` section 7).
//!
//! A bounded queue, emptied in order by a few workers and at a limited rate, so that many clients leaving at once do not keep
//! the app from those that stay, and one call that takes long does not keep the others. At shutdown the rate no longer holds
//! and 16 calls run at a time.
//!
//! A call that could not be delivered is put back and tried again, at growing intervals, until the app is told. What can
//! never pass is not ([`Retry`] says which that is), and neither is one that fails again and again while others pass. When the queue is full, a call is dropped and counted rather than making
//! anybody wait: the newest when there are too many, the largest when they take too much memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{Failure, Outcome, Retry};
use super::dispatch::Dispatch;
use super::{BackendMetrics, DrainReport, waiting};
use crate::model::{Call, Status};

/// Calls at a time before draining. Each may stand for seconds while the app is in trouble, and takes one of the places that
/// all calls share.
pub(super) const WORKERS: usize = 4;

/// Calls at a time while draining, as many as the contract has drain workers.
pub(super) const DRAIN_WORKERS: usize = 16;

/// How late tokio's timers may be: they count milliseconds.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// Time before calls are tried again that could not be delivered: the first time, and at most.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(250);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

/// How often a call may fail while others pass. The reason is in the call then, and not in the app.
const FAILURES_MAX: u8 = 5;

/// While draining, how long no call may get through before all are given up. An app that is gone must not hold the end
/// up.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);

/// The limits of the queue; see [`super::Settings`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Calls started per second; 0 when there is no limit.
    pub rate: u32,
    pub backlog: usize,
    pub backlog_bytes_max: usize,
    /// Calls of all kinds that may run at a time.
    pub concurrency: usize,
}

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
    bounds: Bounds,
    /// Least time between the starts of two calls; zero when there is no limit.
    interval: Duration,
    dispatch: Arc<Dispatch>,
    metrics: Arc<BackendMetrics>,
}

#[derive(Default)]
struct Queue {
    /// By number, which tells their order.
    waiting: BTreeMap<u64, Entry>,
    last_number: u64,
    /// Bytes and numbers of the same.
    by_size: BTreeSet<(usize, u64)>,
    bytes: usize,
    running: usize,
    mode: Mode,
    /// None is started.
    held: bool,
    /// Gets what comes, and what comes back, in the place of this queue.
    successor: Option<Successor>,
    /// When the rate permits the next start.
    next_start: Option<Instant>,
    trouble: Option<Trouble>,
    sent: u64,
    failed: u64,
}

/// Tells the app of a session in the place of a [`Disconnector`].
pub(super) type Successor = Box<dyn Fn(Call) + Send>;

/// A call on its way.
struct Entry {
    call: Call,
    /// Calls that had been delivered when this one was last put in.
    sent_before: u64,
    /// How often it failed while others passed.
    failures: u8,
}

/// Calls cannot be delivered.
struct Trouble {
    since: Instant,
    /// Nothing is tried before.
    until: Instant,
    wait: Duration,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mode {
    #[default]
    Throttled,
    Draining,
    Closed,
}

/// What a worker is to do.
enum Next {
    Make(Entry),
    WaitUntil(Instant),
    WaitForWork,
    End,
}

impl Queue {
    /// Adds a call, or one that comes back. Tells how many had to go for it.
    fn insert(&mut self, call: Call, failures: u8, bounds: &Bounds) -> Result<usize, Call> {
        let bytes = waiting::bytes(&call);
        if self.waiting.len() >= bounds.backlog {
            return Err(call);
        }
        let mut dropped = 0;
        while self.bytes + bytes > bounds.backlog_bytes_max {
            match self.by_size.last() {
                Some(&(size, larger)) if size > bytes => drop(self.remove(larger)),
                Some(_) | None => return Err(call),
            }
            dropped += 1;
        }
        self.last_number += 1;
        self.bytes += bytes;
        self.by_size.insert((bytes, self.last_number));
        self.waiting.insert(self.last_number, Entry { call, sent_before: self.sent, failures });
        Ok(dropped)
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.waiting.remove(&number)?;
        let bytes = waiting::bytes(&entry.call);
        self.bytes -= bytes;
        self.by_size.remove(&(bytes, number));
        Some(entry)
    }

    /// What a worker is to do now. A call is taken when it may start, so that it counts as waiting until then.
    fn next(&mut self, now: Instant, interval: Duration) -> Next {
        if self.mode == Mode::Closed {
            return Next::End;
        }
        let Some((&number, _)) = self.waiting.first_key_value().filter(|_| !self.held) else {
            return Next::WaitForWork;
        };
        let throttled = self.mode == Mode::Throttled;
        let not_before = [self.next_start.filter(|_| throttled), self.trouble.as_ref().map(|trouble| trouble.until)];
        if let Some(at) = not_before.into_iter().flatten().max().filter(|at| *at > now) {
            return Next::WaitUntil(at);
        }
        let Some(entry) = self.remove(number) else { return Next::WaitForWork };
        // A start that a coarse timer made late does not move the next one; time in which there was nothing to do is
        // not made up for.
        let due = self.next_start.map_or(now, |at| at.max(now - TIMER_SLACK));
        self.next_start = throttled.then_some(due + interval);
        self.running += 1;
        Next::Make(entry)
    }

    /// A call could not be delivered; tells whether more tries may help at all.
    fn is_in_trouble(&mut self, now: Instant) -> bool {
        let trouble = self.trouble.get_or_insert(Trouble { since: now, until: now, wait: RETRY_WAIT_MIN });
        // Those that were under way together are one failure.
        if trouble.until <= now {
            trouble.until = now + trouble.wait;
            trouble.wait = (trouble.wait * 2).min(RETRY_WAIT_MAX);
        }
        self.mode != Mode::Draining || now - trouble.since < DRAIN_PATIENCE
    }

    /// Counts all that wait as failed.
    fn give_up(&mut self) {
        self.failed += self.waiting.len() as u64;
        self.waiting.clear();
        self.by_size.clear();
        self.bytes = 0;
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a call into the queue, and counts what is dropped. Gives it back when the queue is full.
    fn insert(&self, queue: &mut Queue, call: Call, failures: u8) -> Result<(), Call> {
        if let Some(successor) = &queue.successor {
            successor(call);
            return Ok(());
        }
        let inserted = queue.insert(call, failures, &self.bounds);
        self.show(queue);
        self.metrics.disconnect_dropped_total.add(inserted.as_ref().map_or(1, |&dropped| dropped as u64));
        self.work.notify_one();
        inserted.map(drop)
    }

    fn show(&self, queue: &Queue) {
        self.metrics.disconnect_queue_size.set(queue.waiting.len() as i64);
        self.metrics.disconnect_queue_bytes.set(queue.bytes as i64);
    }

    /// A call has ended, or comes back.
    fn ended(&self, entry: Entry, result: Result<Outcome, Failure>, now: Instant) {
        let mut queue = self.queue();
        queue.running -= 1;
        match result {
            Ok(Outcome::Disconnect(Status::Success | Status::Failure, _)) => {
                queue.trouble = None;
                queue.sent += 1;
            }
            Ok(_) | Err(Failure { retry: Retry::Never, .. }) => {
                queue.trouble = None;
                queue.failed += 1;
            }
            Err(_) => self.undelivered(&mut queue, entry, now),
        }
        drop(queue);
        self.ended.notify_waiters();
    }

    /// Puts a call back, unless that is of no use any more.
    fn undelivered(&self, queue: &mut Queue, entry: Entry, now: Instant) {
        let failures = entry.failures + u8::from(queue.sent > entry.sent_before);
        if failures >= FAILURES_MAX {
            queue.failed += 1;
        } else if queue.is_in_trouble(now) {
            self.metrics.disconnect_retries_total.inc();
            // A full queue has counted it as dropped.
            let _ = self.insert(queue, entry.call, failures);
        } else {
            queue.failed += 1;
            queue.give_up();
            self.show(queue);
        }
    }
}

impl Disconnector {
    /// Makes the queue. Its workers start with [`Disconnector::start`].
    pub fn new(dispatch: Arc<Dispatch>, bounds: Bounds, metrics: Arc<BackendMetrics>) -> Disconnector {
        let interval = if bounds.rate == 0 { Duration::ZERO } else { Duration::from_secs(1) / bounds.rate };
        let (queue, work, ended) = (Mutex::default(), Notify::new(), Notify::new());
        Disconnector { shared: Arc::new(Shared { queue, work, ended, bounds, interval, dispatch, metrics }) }
    }

    /// Starts the workers.
    pub fn start(&self, runtime: &Handle) {
        for _ in 0..self.workers() {
            runtime.spawn(run_worker(self.shared.clone()));
        }
    }

    /// Workers before draining: at most half of all places are theirs.
    fn workers(&self) -> usize {
        WORKERS.min(self.shared.bounds.concurrency / 2).max(1)
    }

    /// Queues a call. Gives it back when the queue is full.
    pub fn push(&self, call: Call) -> Result<(), Call> {
        self.shared.insert(&mut self.shared.queue(), call, 0)
    }

    /// From now on no call is started. Those that run go on.
    pub fn hold(&self) {
        self.shared.queue().held = true;
    }

    /// Calls that wait, in their order, while none is started.
    pub fn held(&self) -> Vec<Call> {
        self.shared.queue().waiting.values().map(|entry| entry.call.clone()).collect()
    }

    /// Calls are started again.
    pub fn go_on(&self) {
        self.shared.queue().held = false;
        self.shared.work.notify_waiters();
    }

    /// Forgets the calls that were [`held`](Self::held): somebody else makes them, and what comes from now on, and those that
    /// run and cannot be delivered.
    pub fn succeed(&self, successor: Successor) {
        let mut queue = self.shared.queue();
        let left = std::mem::take(&mut queue.waiting);
        queue.by_size.clear();
        queue.bytes = 0;
        queue.successor = Some(successor);
        self.shared.show(&queue);
        drop(queue);
        drop(left);
        self.shared.ended.notify_waiters();
    }

    /// Lifts the rate limit and starts the other workers; once.
    pub fn begin_drain(&self, runtime: &Handle) {
        let mut queue = self.shared.queue();
        if queue.mode != Mode::Throttled {
            return;
        }
        queue.mode = Mode::Draining;
        if let Some(trouble) = &mut queue.trouble {
            // One look whether the app is back, now.
            trouble.until = Instant::now();
        }
        drop(queue);
        for _ in self.workers()..DRAIN_WORKERS {
            runtime.spawn(run_worker(self.shared.clone()));
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
async fn run_worker(shared: Arc<Shared>) {
    loop {
        let woken = shared.work.notified();
        let next = {
            let mut queue = shared.queue();
            let next = queue.next(Instant::now(), shared.interval);
            shared.show(&queue);
            if !queue.waiting.is_empty() && matches!(next, Next::Make(..)) {
                // Another worker may have been woken for nothing while this one waited for its time.
                shared.work.notify_one();
            }
            next
        };
        match next {
            Next::End => return,
            Next::WaitForWork => woken.await,
            // Woken by new work as well, which changes nothing, and by the start of draining, which does.
            Next::WaitUntil(at) => tokio::select! {
                () = sleep_until(at) => {}
                () = woken => {}
            },
            Next::Make(entry) => {
                // It is sent from a copy, which shares nearly everything with this one.
                let result = shared.dispatch.ask(entry.call.clone()).await;
                shared.ended(entry, result, Instant::now());
            }
        }
    }
}
