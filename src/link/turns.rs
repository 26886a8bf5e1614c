//! Work that is done piece after piece, and that somebody may hold up between two of them.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};

/// Whoever works takes a turn for each piece; whoever wants it to stand still holds it. Both are served in the order in which
/// they come.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<()>>);

/// Nothing is worked at while it is kept.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "it is kept, not read")] OwnedMutexGuard<()>);

impl Turns {
    /// Waits until it is not held. A piece is worked at until the turn is dropped.
    pub async fn next(&self) -> MutexGuard<'_, ()> {
        self.0.lock().await
    }

    /// Waits for the end of the piece that is worked at.
    pub async fn hold(&self) -> Held {
        Held(Arc::clone(&self.0).lock_owned().await)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[tokio::test]
    async fn what_is_held_goes_on_when_it_is_let_go_and_no_piece_is_cut() {
        let (turns, done) = (Turns::default(), Arc::new(AtomicUsize::new(0)));
        let (working, count) = (turns.clone(), Arc::clone(&done));
        let worker = tokio::spawn(async move {
            loop {
                let _turn = working.next().await;
                count.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
                count.fetch_add(1, Relaxed);
            }
        });
        for _ in 0..10 {
            let held = turns.hold().await;
            let before = done.load(Relaxed);
            assert_eq!(before % 2, 0);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(done.load(Relaxed), before);
            drop(held);
            while done.load(Relaxed) == before {
                tokio::task::yield_now().await;
            }
        }
        worker.abort();
    }
}
