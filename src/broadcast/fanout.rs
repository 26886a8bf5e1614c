//! What every node hears by itself, on its way to the shards.
//!
//! What the shards cannot take waits, with a bound; what is over it is dropped and counted.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Broadcast, BroadcastMetrics, Source};
use crate::link::{Arrivals, GivenArrivals, MARKS_APART, Mark, NotPut, SeamKey};

/// What a payload costs beside its text.
const PAYLOAD_BYTES: usize = 64;

/// What stands in front of the text of a mark (see [`Seam`](crate::link::Seam)). Whoever reads it otherwise takes it for a
/// command that is not known.
const MARK: &str = "{\"command\":\"cableway_seam\",\"payload\":\"";

/// A queue between a link and [`Broadcast`].
pub struct Fanout {
    /// What waits.
    pub arrivals: Arrivals<Box<[u8]>>,
    /// This process is about to go on from another one.
    follows: AtomicBool,
}

impl Default for Fanout {
    fn default() -> Fanout {
        Fanout { arrivals: Arrivals::new(PAYLOAD_BYTES), follows: AtomicBool::new(false) }
    }
}

impl Fanout {
    /// Takes a payload, if there is room.
    pub fn push(&self, payload: &[u8], metrics: &BroadcastMetrics) {
        let put = self.arrivals.with(|queue| match payload.strip_prefix(MARK.as_bytes()) {
            Some(mark) => {
                queue.seam.mark(&String::from_utf8_lossy(mark.strip_suffix(b"\"}").unwrap_or(mark)));
                Ok(())
            }
            None => queue.put(payload, || Some(payload.into())),
        });
        if put == Err(NotPut::Full) {
            metrics.fanout_overflow_total.inc();
        }
    }

    /// This process is about to go on from another one, which notes by the same key what comes to it.
    pub fn follow(&self, key: SeamKey) {
        self.follows.store(true, Relaxed);
        self.arrivals.with(|queue| queue.seam.begin(key));
    }

    /// Waits until a mark is to be published, some time after what is published was listened to or the one before was published,
    /// and gives it; for ever where this process goes on from none.
    pub async fn wanted_mark(&self, mark: Mark) -> String {
        match self.arrivals.with(|queue| queue.seam.key()).filter(|_| self.follows.load(Relaxed)) {
            Some(key) => {
                tokio::time::sleep(MARKS_APART).await;
                format!("{MARK}{}\"}}", key.text(mark))
            }
            None => std::future::pending().await,
        }
    }

    /// What was handed on and what was not, while nothing is.
    pub fn given(&self) -> GivenArrivals {
        self.arrivals.with(|queue| queue.given(|payload| payload.to_vec()))
    }

    /// Goes on behind what another process has handed on, while nothing is handed on here.
    pub fn take_over(&self, given: GivenArrivals) {
        self.follows.store(false, Relaxed);
        self.arrivals.with(|queue| queue.take_over(given, |payload| Some(payload.into())));
    }

    /// Hands over what comes, in its order, for as long as the node runs.
    pub async fn keep_delivering(&self, source: Source, broadcast: &Broadcast) {
        loop {
            let next = self.arrivals.next().await;
            broadcast.take_here(source, &next.item).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(fanout: &Fanout) -> String {
        fanout.arrivals.with(|queue| queue.items().map(|payload| String::from_utf8_lossy(payload)).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_hands_on_exactly_what_was_not() {
        let (ours, theirs, metrics) = (Fanout::default(), Fanout::default(), BroadcastMetrics::default());
        let key = SeamKey::default();
        // One that waited before anybody wanted to know, and one that came before the other listens.
        ours.push(b"a", &metrics);
        ours.arrivals.with(|queue| queue.seam.begin(key.clone()));
        theirs.follow(key.clone());
        ours.push(b"b", &metrics);
        for (mark, payload) in Mark::BOTH.into_iter().zip([b"c", b"a"]) {
            assert!(!theirs.arrivals.with(|queue| queue.seam.is_marked()));
            let mark = theirs.wanted_mark(mark).await;
            for fanout in [&ours, &theirs] {
                fanout.push(mark.as_bytes(), &metrics);
                fanout.push(payload, &metrics);
            }
        }
        assert!(theirs.arrivals.with(|queue| queue.seam.is_marked()));
        theirs.push(b"e", &metrics);
        assert_eq!((waiting(&ours), waiting(&theirs)), ("abca".to_owned(), "cae".to_owned()));
        // One is handed on.
        assert_eq!(*ours.arrivals.next().await.item, *b"a");
        let given = rmp_serde::to_vec_named(&ours.given()).unwrap();
        theirs.take_over(rmp_serde::from_slice(&given).unwrap());
        assert_eq!(waiting(&theirs), "bcae");
        theirs.push(b"f", &metrics);
        assert_eq!(waiting(&theirs), "bcaef");
        assert!(theirs.arrivals.with(|queue| queue.seam.key().is_none()));
    }
}
