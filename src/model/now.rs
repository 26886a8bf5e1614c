//! The time, as an argument.

use std::time::Duration;

/// What time it is, on both clocks. Read once a turn and passed down; nobody below reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Time since the node started, monotonic. Deadlines are on this clock.
    pub mono: Duration,
    /// Time since the Unix epoch. For what peers see: ping timestamps, token expiry.
    pub unix: Duration,
}

/// Length of a [`Tick`] in milliseconds. Deadlines here are seconds, so how late one may be is of no matter, but each
/// wake-up of a shard that is otherwise idle costs as much as two pings: five a second, for all deadlines together.
pub const TICK_MS: u64 = 200;

/// A moment on the monotonic clock, in steps of [`TICK_MS`] since the node started: half the size of anything finer,
/// and good for 27 years.
pub type Tick = u32;

/// The tick a moment falls into.
pub fn tick(mono: Duration) -> Tick {
    (mono.as_millis() as u64 / TICK_MS) as Tick
}

/// The first tick that is not before a moment: a deadline set there is never early.
pub fn tick_after(mono: Duration) -> Tick {
    tick(mono).saturating_add(1)
}
