//! What every node hears by itself, on its way to the shards.
//!
//! Whoever reads a server's pub/sub must read on, or is cut off. What the shards cannot take waits here, with a bound; what
//! is over it is dropped and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::sync::Notify;

use super::{Broadcast, BroadcastMetrics, Source};
use crate::link::{BEFORE_MARK, Seam, SeamKey, TakenThere, Turns};

/// Bytes of payloads that wait for the shards.
const BYTES_MAX: usize = 8 << 20;

/// What a payload costs beside its text.
const PAYLOAD_BYTES: usize = 64;

/// The same for a process that does not run yet, and hears everything for as long as an upgrade takes.
const BYTES_MAX_BEFORE: usize = 64 << 20;

/// What stands in front of the text of a mark (see [`Seam`]). Whoever reads it otherwise takes it for a command that is not
/// known.
const MARK: &str = "{\"command\":\"cableway_seam\",\"payload\":\"";

/// A queue between a link and [`Broadcast`].
#[derive(Default)]
pub struct Fanout {
    queue: Mutex<Queue>,
    came: Notify,
    /// One for each payload that is handed on.
    pub turns: Turns,
    /// What has come, while somebody wants to know.
    pub seam: Seam,
    /// This process is about to go on from another one.
    follows: AtomicBool,
}

#[derive(Default)]
struct Queue {
    payloads: VecDeque<Waiting>,
    bytes: usize,
}

struct Waiting {
    payload: Box<[u8]>,
    /// Its number in the seam, while somebody wants to know.
    number: Option<u64>,
}

/// What a process has and has not handed on, for another one that goes on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GivenFanout {
    #[serde(default)]
    taken: TakenThere,
    /// What waits still, in its order.
    #[serde(default)]
    left: Vec<ByteBuf>,
}

impl Fanout {
    /// Takes a payload, if there is room.
    pub fn push(&self, payload: &[u8], metrics: &BroadcastMetrics) {
        if let Some(mark) = payload.strip_prefix(MARK.as_bytes()) {
            return self.seam.mark(&String::from_utf8_lossy(mark.strip_suffix(b"\"}").unwrap_or(mark)));
        }
        let number = self.seam.note(payload);
        let bytes_max = if number.is_some() { BYTES_MAX_BEFORE } else { BYTES_MAX };
        let bytes = payload.len() + PAYLOAD_BYTES;
        let mut queue = self.queue();
        // One that is larger than all of it passes alone.
        if queue.bytes + bytes > bytes_max && queue.bytes > 0 {
            drop(queue);
            metrics.fanout_overflow_total.inc();
            return;
        }
        queue.bytes += bytes;
        queue.payloads.push_back(Waiting { payload: payload.into(), number });
        drop(queue);
        self.came.notify_one();
    }

    /// This process is about to go on from another one, which notes by the same key what comes to it.
    pub fn follow(&self, key: SeamKey) {
        self.follows.store(true, Relaxed);
        self.seam.begin(key);
    }

    /// Waits until a mark is to be published, some time after what is published was listened to, and gives it; for ever where
    /// this process goes on from none.
    pub async fn wanted_mark(&self) -> String {
        match self.seam.key().filter(|_| self.follows.load(Relaxed)) {
            Some(key) => {
                tokio::time::sleep(BEFORE_MARK).await;
                format!("{MARK}{}\"}}", key.mark())
            }
            None => std::future::pending().await,
        }
    }

    /// What was handed on and what was not, while nothing is.
    pub fn given(&self) -> GivenFanout {
        let queue = self.queue();
        let numbers: Vec<u64> = queue.payloads.iter().filter_map(|waiting| waiting.number).collect();
        let left = queue.payloads.iter().map(|waiting| ByteBuf::from(&*waiting.payload)).collect();
        GivenFanout { taken: self.seam.taken(&numbers), left }
    }

    /// Goes on behind what another process has handed on, while nothing is handed on here. What comes is not noted any more.
    pub fn take_over(&self, given: GivenFanout) {
        let GivenFanout { taken, mut left } = given;
        // What came here as well stands in the queue of this process.
        self.seam.retain_unknown(&mut left);
        let mut queue = self.queue();
        let taken = self.seam.join(&taken);
        queue.payloads.retain(|waiting| waiting.number.is_none_or(|number| !taken.contains_key(&number)));
        for payload in left.into_iter().rev() {
            queue.payloads.push_front(Waiting { payload: payload.into_vec().into(), number: None });
        }
        queue.bytes = queue.payloads.iter().map(|waiting| waiting.payload.len() + PAYLOAD_BYTES).sum();
        self.follows.store(false, Relaxed);
        self.seam.end();
        drop(queue);
        self.came.notify_one();
    }

    /// Hands over what comes, in its order, for as long as the node runs.
    pub async fn keep_delivering(&self, source: Source, broadcast: &Broadcast) {
        loop {
            if self.queue().payloads.is_empty() {
                self.came.notified().await;
                continue;
            }
            let _turn = self.turns.next().await;
            let Some(Waiting { payload, .. }) = self.queue().payloads.pop_front() else { continue };
            broadcast.take_here(source, &payload).await;
            self.queue().bytes -= payload.len() + PAYLOAD_BYTES;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(fanout: &Fanout) -> String {
        let queue = fanout.queue();
        assert_eq!(
            queue.bytes,
            queue.payloads.iter().map(|waiting| waiting.payload.len() + PAYLOAD_BYTES).sum::<usize>()
        );
        queue.payloads.iter().map(|waiting| String::from_utf8_lossy(&waiting.payload).into_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_hands_on_exactly_what_was_not() {
        let (ours, theirs, metrics) = (Fanout::default(), Fanout::default(), BroadcastMetrics::default());
        let key = SeamKey::default();
        ours.seam.begin(key.clone());
        // One that waited before anybody wanted to know, and one that came before the other listens.
        ours.push(b"a", &metrics);
        theirs.follow(key.clone());
        ours.push(b"b", &metrics);
        let mark = theirs.wanted_mark().await;
        for payload in [b"c", b"d"] {
            for fanout in [&ours, &theirs] {
                fanout.push(payload, &metrics);
                fanout.push(mark.as_bytes(), &metrics);
            }
        }
        theirs.push(b"e", &metrics);
        assert!(theirs.seam.is_marked() && waiting(&theirs) == "cde", "{}", waiting(&theirs));
        // One is handed on.
        ours.queue().payloads.pop_front();
        let given = rmp_serde::to_vec_named(&ours.given()).unwrap();
        theirs.take_over(rmp_serde::from_slice(&given).unwrap());
        assert_eq!(waiting(&theirs), "bcde");
        theirs.push(b"f", &metrics);
        assert_eq!(waiting(&theirs), "bcdef");
        assert!(theirs.seam.key().is_none());
    }
}
