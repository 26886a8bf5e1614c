//! Publications on their way into the storage.
//!
//! They are stored in the order in which they came, a batch at a time, and each passes the gate when its answer is there.
//! Where the link is lost meanwhile nobody knows what was stored, so the same is sent again, and the storage finds out. A
//! publisher waits for [`WAIT_MAX`] at most, and not at all where the link has been away for that long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::gate::Passed;
use super::store::{Reach, Store, StoreId, Stored, Trouble, Unstored};
use super::{Shared, WAIT_MAX};
use crate::model::{Position, Publication};

/// Publications that are stored at once.
const BATCH_MAX: usize = 128;

/// Bytes of messages that are stored at once, and one message more.
const BATCH_BYTES: usize = 1 << 20;

/// How long the storage is left alone that refuses something.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// A publication that waits to be stored.
pub struct Waiting {
    publication: Publication,
    permit: OwnedSemaphorePermit,
    done: oneshot::Sender<()>,
    since: Instant,
    /// It was sent under this number, and perhaps stored.
    sent_as: Option<u64>,
}

impl Waiting {
    /// One that has come now.
    pub fn new(publication: Publication, permit: OwnedSemaphorePermit, done: oneshot::Sender<()>) -> Waiting {
        Waiting { publication, permit, done, since: Instant::now(), sent_as: None }
    }
}

/// Stores what comes.
pub struct Writer<S> {
    store: Arc<S>,
    shared: Arc<Shared>,
    reach: watch::Receiver<Reach>,
    queue: VecDeque<Waiting>,
}

impl<S: Store> Writer<S> {
    pub fn new(store: Arc<S>, shared: Arc<Shared>) -> Writer<S> {
        let reach = store.reach();
        Writer { store, shared, reach, queue: VecDeque::new() }
    }

    /// Runs until nobody publishes any more.
    pub async fn run(mut self, mut publications: mpsc::UnboundedReceiver<Waiting>) {
        loop {
            while let Ok(waiting) = publications.try_recv() {
                self.queue.push_back(waiting);
            }
            self.shared.remote_metrics.broker_queue_size.set(self.queue.len() as i64);
            let down_since = match &*self.reach.borrow_and_update() {
                Reach::Up(_) => None,
                Reach::Down(since) => Some(*since),
            };
            self.give_up(down_since);
            if down_since.is_none() && !self.queue.is_empty() {
                self.store_some().await;
                continue;
            }
            let first = self.queue.front().map(|first| first.since);
            let patience = first.map(|since| down_since.unwrap_or(since).min(since) + WAIT_MAX);
            tokio::select! {
                came = publications.recv() => match came {
                    Some(waiting) => self.queue.push_back(waiting),
                    None => return,
                },
                changed = self.reach.changed() => if changed.is_err() { return },
                () = at(patience) => {}
            }
        }
    }

    /// Delivers without a position what has waited too long.
    fn give_up(&mut self, down_since: Option<Instant>) {
        let now = Instant::now();
        let is_long_gone = down_since.is_some_and(|since| now.duration_since(since) >= WAIT_MAX);
        while let Some(first) = self.queue.front()
            && (is_long_gone || now.duration_since(first.since) >= WAIT_MAX)
        {
            let Some(first) = self.queue.pop_front() else { return };
            self.deliver_unstored(first);
        }
    }

    fn deliver_unstored(&self, waiting: Waiting) {
        let Waiting { publication, permit, done, sent_as, .. } = waiting;
        self.shared.remote_metrics.broker_unstored_total.inc();
        let unsure = sent_as.map(|seq| StoreId { node: self.shared.node, seq });
        self.shared.outlet.announce(&publication);
        self.shared.gate.pass_unstored(publication, Some(permit), unsure);
        // Whoever published may have given up.
        let _ = done.send(());
    }

    async fn store_some(&mut self) {
        let mut bytes = 0;
        let mut batch = Vec::new();
        for waiting in self.queue.iter_mut().take(BATCH_MAX) {
            if bytes > BATCH_BYTES {
                break;
            }
            bytes += waiting.publication.message.len();
            let next = || self.shared.last_store.fetch_add(1, Relaxed) + 1;
            let seq = *waiting.sent_as.get_or_insert_with(next);
            batch.push(Unstored { seq, publication: waiting.publication.clone() });
        }
        let results = self.store.store(&batch).await;
        let mut left = VecDeque::new();
        let mut is_refused = false;
        for result in results {
            let Some(mut waiting) = self.queue.pop_front() else { break };
            match result {
                Ok(stored) => self.stored(waiting, stored),
                Err(Trouble::Away(_)) => left.push_back(waiting),
                Err(Trouble::Refused(why)) => {
                    self.shared.remote_metrics.broker_refused_total.inc();
                    let stream = &*waiting.publication.stream;
                    tracing::warn!(
                        stream,
                        why,
                        "the broker's server refuses to store a publication, which is tried again for 5 s"
                    );
                    // It has no effect, so the next try is another store.
                    waiting.sent_as = None;
                    is_refused = true;
                    left.push_back(waiting);
                }
                Err(Trouble::Never(why)) => {
                    self.shared.remote_metrics.broker_refused_total.inc();
                    let stream = &*waiting.publication.stream;
                    tracing::warn!(stream, why, "a publication is delivered on this node without being stored");
                    waiting.sent_as = None;
                    self.deliver_unstored(waiting);
                }
            }
        }
        let none_stored = left.len() == batch.len();
        left.append(&mut self.queue);
        self.queue = left;
        if is_refused || none_stored {
            sleep(AFTER_REFUSAL).await;
        }
    }

    fn stored(&self, waiting: Waiting, stored: Stored) {
        let Waiting { mut publication, permit, done, .. } = waiting;
        match stored {
            Stored::At { epoch, offset, is_again } => {
                self.shared.remote_metrics.broker_doubles_total.add(is_again.into());
                self.shared.recent.note(&publication.stream, offset);
                publication.position = Some(Position { epoch, offset });
                if !self.shared.settings.store_announces {
                    self.shared.outlet.announce(&publication);
                }
                if self.shared.gate.pass(publication, Some(permit)) == Passed::NotFollowed {
                    self.shared.outlet.nobody_follows();
                }
            }
            Stored::Before(head) => {
                self.shared.remote_metrics.broker_doubles_total.inc();
                self.shared.gate.reaches(&publication.stream, head);
            }
        }
        let _ = done.send(());
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
