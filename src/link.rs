//! Links: connections from this node to servers beside it (Redis, NATS), kept for ever.
//!
//! A link that is lost is no error of ours and ends nothing: it is tried again and again, with waits that grow to
//! [`WAIT_MAX`] and are jittered, so that the nodes of a cluster do not all come back at the same moment. One line of the
//! log says that it is lost, one a minute that it still is and why, and one that it is back.
//!
//! What travels over a link is none of its business: it knows no publications. Everything here runs on the thread "links",
//! where tokio's timers are the clock.

mod arrivals;
pub mod local;
pub mod nats;
pub mod redis;
mod seam;
pub mod tls;
mod turns;

use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use arrivals::{Arrivals, BYTES_MAX as ARRIVED_BYTES_MAX, GivenArrivals, NotPut};
pub use seam::{MARKS_APART, Mark, Seam, SeamKey};
pub use turns::{Held, Turns};

/// The wait before the first try to get a lost link back.
const WAIT_FIRST: Duration = Duration::from_millis(250);

/// No wait is longer than this, give or take the jitter. Short enough that a server that is back is used again soon, long
/// enough that a hundred nodes that try are nothing to it.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// While a link is away, the log says so this often.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// The waits between tries. `tries` counts those in a row that failed.
fn wait(tries: u32, jitter: f64) -> Duration {
    let doubled = WAIT_FIRST.saturating_mul(1 << tries.min(16));
    doubled.min(WAIT_MAX).mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}

/// How a link is doing, for metrics, readiness and the log.
#[derive(Debug)]
pub struct LinkState {
    /// The name in metrics and in the log: `redis`, `redisx`, `redis_pubsub`, `nats`.
    name: &'static str,
    /// Where it leads to, without secrets, and what to look at when it is away.
    advice: String,
    up: AtomicBool,
    reconnects: AtomicU64,
    /// Held to copy it or to replace it.
    away: Mutex<Away>,
}

/// Why a link is away, and since when.
#[derive(Clone, Debug, Default)]
struct Away {
    why: String,
    /// None before the first try has ended.
    since: Option<Instant>,
    said_at: Option<Instant>,
}

impl LinkState {
    /// A link that has not been tried yet. `advice` says where it leads to and what to check when it is away.
    pub fn new(name: &'static str, advice: impl Into<String>) -> LinkState {
        LinkState {
            name,
            advice: advice.into(),
            up: AtomicBool::new(false),
            reconnects: AtomicU64::new(0),
            away: Mutex::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it can be used.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// How often it came back after it was away.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Relaxed)
    }

    /// Why it is away; empty if it is up or has not been tried.
    pub fn why(&self) -> String {
        if self.is_up() { String::new() } else { self.away().why.clone() }
    }

    /// Whoever runs the link says that it can be used from now on.
    pub fn came_up(&self) {
        if self.up.swap(true, Relaxed) {
            return;
        }
        let away = std::mem::take(&mut *self.away());
        match away.since {
            Some(since) => {
                self.reconnects.fetch_add(1, Relaxed);
                tracing::info!(link = self.name, away_for = ?since.elapsed(), "the link is back");
            }
            None => tracing::info!(link = self.name, to = self.advice, "the link is up"),
        }
    }

    /// It cannot be used any more, or could not be made. Tells whether it was up.
    pub fn went_down(&self, why: &dyn Display) -> bool {
        let was_up = self.up.swap(false, Relaxed);
        let mut away = self.away();
        away.why = why.to_string();
        let now = Instant::now();
        let since = *away.since.get_or_insert(now);
        let due = away.said_at.is_none_or(|said| now.duration_since(said) >= SAID_EVERY);
        if was_up || due {
            away.said_at = Some(now);
            tracing::warn!(
                link = self.name,
                away_for = ?now.duration_since(since),
                why = away.why,
                "a link is away; it is tried again and again, and clients are served meanwhile: check {}",
                self.advice
            );
        }
        was_up
    }

    fn away(&self) -> std::sync::MutexGuard<'_, Away> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a link for ever. `run` connects, tells `state` when it is up, works, and ends with the reason why it cannot go on;
/// then it is called again after a while.
pub async fn keep<E: Display, F: Future<Output = E>>(state: &LinkState, mut run: impl FnMut() -> F) {
    let mut tries = 0;
    loop {
        let begun = Instant::now();
        let why = run().await;
        // One that was up for as long as it was waited for is a new loss and no further failure.
        if state.went_down(&why) && begun.elapsed() >= wait(tries, 0.5) {
            tries = 0;
        }
        tokio::time::sleep(wait(tries, rand::random())).await;
        tries = tries.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_are_jittered_by_half() {
        let millis = |tries, jitter| wait(tries, jitter).as_millis();
        assert_eq!([0, 1, 2, 5].map(|tries| millis(tries, 0.5)), [250, 500, 1000, 8000]);
        assert_eq!([6, 7, 100, u32::MAX].map(|tries| millis(tries, 0.5)), [15_000; 4]);
        assert_eq!((millis(0, 0.0), millis(0, 1.0), millis(9, 1.0)), (125, 375, 22_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_is_tried_for_ever_and_its_state_is_told() {
        let state = Arc::new(LinkState::new("redis", "redis://localhost"));
        let tries = Arc::new(AtomicU64::new(0));
        let kept = {
            let (state, tries) = (Arc::clone(&state), Arc::clone(&tries));
            tokio::spawn(async move {
                let run = || async {
                    // Every tenth try gets through, and is lost after a minute.
                    if tries.fetch_add(1, Relaxed) % 10 == 9 {
                        state.came_up();
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        return "closed";
                    }
                    "refused"
                };
                keep(&state, run).await;
            })
        };
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let tries = tries.load(Relaxed);
        assert!(tries > 100 && state.reconnects() > 10, "{tries} {}", state.reconnects());
        let why = state.why();
        assert!(state.is_up() || why == "refused" || why == "closed", "{why}");
        kept.abort();
    }
}
