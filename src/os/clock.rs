//! The two clocks. Nobody else reads one; time is an argument everywhere below.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Now;

/// Reads the clocks, the monotonic one from a common start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Monotonic time counts from now.
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Monotonic time counts from a moment of the machine's clock ([`machine_usec`]): all processes for which that is the same
    /// moment have one time.
    pub fn since(origin_usec: u64) -> Clock {
        let Clock { start: now } = Clock::start();
        let passed = Duration::from_micros(machine_usec().saturating_sub(origin_usec));
        Clock { start: now.checked_sub(passed).unwrap_or(now) }
    }

    /// Where monotonic time counts from, on the machine's `CLOCK_MONOTONIC`, in nanoseconds: the same moment for another
    /// process on this machine.
    pub fn began_ns(&self) -> u64 {
        machine_ns().saturating_sub(self.start.elapsed().as_nanos() as u64)
    }

    /// The clock of another process of this machine, by its [`Clock::began_ns`].
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
    pub fn began_at(began_ns: u64) -> Clock {
        let since = Duration::from_nanos(machine_ns().saturating_sub(began_ns));
        let now = Instant::now();
        Clock { start: now.checked_sub(since).unwrap_or(now) }
    }

    /// The time.
    pub fn now(&self) -> Now {
        Now { mono: self.start.elapsed(), unix: unix() }
    }
}

/// The time of day, for comparing with a date that a peer has sent. It may jump.
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// The time of day since 1970, for comparing with what a server has written down.
pub fn unix() -> Duration {
    wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// `CLOCK_MONOTONIC` since the machine booted, in microseconds: what a supervisor compares with its own clock.
pub fn machine_usec() -> u64 {
    machine_ns() / 1000
}

fn machine_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
