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

impl Now {
    /// The monotonic clock in whole milliseconds.
    pub fn ms(self) -> u64 {
        self.mono.as_millis() as u64
    }
}
