//! Ctrl-C and SIGTERM: a run ends at its next wait, with an error, so that everything it made is dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Between two looks while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// From now on a signal interrupts and does not end the process.
pub fn watch() -> anyhow::Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("cannot handle Ctrl-C")
}

/// Sleeps for so long, or fails because of an interrupt.
pub fn sleep(time: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + time;
    loop {
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(LOOK_EVERY));
    }
}
