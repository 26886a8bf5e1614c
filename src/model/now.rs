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

/// Where a moment stands in its tick, in milliseconds. What is due on one clock some ticks after [`tick`] of a moment is
/// due on another that many ticks after [`moved_tick`] of the same moment there and this: never early, and late by less
/// than a tick.
pub fn tick_phase(mono: Duration) -> u16 {
    (mono.as_millis() as u64 % TICK_MS) as u16
}

/// See [`tick_phase`].
pub fn moved_tick(mono: Duration, phase: u16) -> Tick {
    (mono.as_millis() as u64).saturating_sub(u64::from(phase)).div_ceil(TICK_MS) as Tick
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_on_another_clock_is_never_early_and_less_than_a_tick_late() {
        let ms = Duration::from_millis;
        for here in [0, 1, 199, 200, 12_345] {
            for there in [0, 1, 150, 199, 999_999] {
                for left in [0, 1, 3, 500] {
                    let due = u64::from(tick(ms(here)) + left) * TICK_MS;
                    let moved = u64::from(moved_tick(ms(there), tick_phase(ms(here))) + left) * TICK_MS;
                    let (waits_here, waits_there) = (due as i64 - here as i64, moved as i64 - there as i64);
                    // Nothing is due before a clock began.
                    let late = waits_there - waits_here;
                    assert!(
                        (0..TICK_MS as i64).contains(&late) || there < TICK_MS && late >= 0,
                        "{here} {there} {left}"
                    );
                }
            }
        }
    }
}
