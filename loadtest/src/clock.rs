//! The clock of the load test: `CLOCK_MONOTONIC` in nanoseconds, which all processes of one machine share, so a
//! time that one process wrote into a message can be subtracted in another.

use rustix::time::{ClockId, clock_gettime};

/// Seconds of Unix time.
pub fn unix_s() -> u64 {
    clock_gettime(ClockId::Realtime).tv_sec as u64
}

/// Nanoseconds since boot.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
