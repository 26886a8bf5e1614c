//! What every node hears by itself, on its way to the shards.
//!
//! Whoever reads a server's pub/sub must read on, or is cut off. What the shards cannot take waits here, with a bound; what
//! is over it is dropped and counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Broadcast, Source};

/// Bytes of payloads that wait for the shards.
const BYTES_MAX: usize = 8 << 20;

/// What a payload costs beside its text.
const PAYLOAD_BYTES: usize = 64;

/// A queue between a link and [`Broadcast`].
pub struct Fanout {
    source: Source,
    broadcast: Arc<Broadcast>,
    queue: Mutex<Queue>,
    came: Notify,
}

#[derive(Default)]
struct Queue {
    payloads: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Fanout {
    /// An empty queue for what comes from `source`.
    pub fn new(source: Source, broadcast: Arc<Broadcast>) -> Fanout {
        Fanout { source, broadcast, queue: Mutex::default(), came: Notify::new() }
    }

    /// Takes a payload, if there is room.
    pub fn push(&self, payload: &[u8]) {
        let bytes = payload.len() + PAYLOAD_BYTES;
        let mut queue = self.queue();
        // One that is larger than all of it passes alone.
        if queue.bytes + bytes > BYTES_MAX && queue.bytes > 0 {
            drop(queue);
            self.broadcast.metrics.fanout_overflow_total.inc();
            return;
        }
        queue.bytes += bytes;
        queue.payloads.push_back(payload.into());
        drop(queue);
        self.came.notify_one();
    }

    /// Hands over what comes, in its order, for as long as the node runs.
    pub async fn keep_delivering(&self) {
        loop {
            let next = self.queue().payloads.pop_front();
            let Some(payload) = next else {
                self.came.notified().await;
                continue;
            };
            self.broadcast.take_here(self.source, &payload).await;
            self.queue().bytes -= payload.len() + PAYLOAD_BYTES;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
