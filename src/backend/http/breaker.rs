//! Stops calling an app that cannot be reached, for a while (`contracts/rpc-http.md`).
//!
//! ```text
//!            10 seen in this interval, 80 % failed
//!   Closed --------------------------------------> Open
//!     ^                                             | 5 s
//!     | 5 successes in a row     any failure        v
//!     +--------------------- HalfOpen -----------> Open
//! ```
//!
//! Only the transport counts: an app that answers 500 can be reached. No clock in here: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Counts start again this often while closed.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long it stays open.
const OPEN_TIME: Duration = Duration::from_secs(5);
/// Fewer requests than this say nothing.
const REQUESTS_MIN: u32 = 10;
/// Failures that open it, of a hundred requests.
const FAILED_PERCENT: u32 = 80;
/// Requests let through while half open, and successes that close it.
const TRIALS: u32 = 5;

/// See the module.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Changes with every state and interval, so that a request that began in another one does not count.
    era: u64,
}

#[derive(Debug)]
enum State {
    Closed { until: Instant, seen: u32, failed: u32 },
    Open { until: Instant },
    HalfOpen { admitted: u32, succeeded: u32 },
}

/// Permission for one request. It must be given back by [`Breaker::done`].
#[derive(Debug, PartialEq)]
pub(super) struct Permit {
    era: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ended {
    /// The app answered, whatever it said.
    Answered,
    /// The app could not be reached, or did not answer.
    Failed,
    /// Nobody knows: the call was given up.
    Unknown,
}

impl Breaker {
    pub fn new(now: Instant) -> Breaker {
        Breaker { state: State::Closed { until: now + INTERVAL, seen: 0, failed: 0 }, era: 0 }
    }

    /// Permission for a request, or `None`: it has to fail at once.
    pub fn admit(&mut self, now: Instant) -> Option<Permit> {
        match self.state {
            State::Open { until } if now >= until => self.enter(State::HalfOpen { admitted: 0, succeeded: 0 }),
            State::Closed { until, .. } if now >= until => {
                self.enter(State::Closed { until: now + INTERVAL, seen: 0, failed: 0 });
            }
            _ => {}
        }
        match &mut self.state {
            State::Open { .. } => return None,
            State::HalfOpen { admitted, .. } if *admitted >= TRIALS => return None,
            State::HalfOpen { admitted, .. } => *admitted += 1,
            State::Closed { .. } => {}
        }
        Some(Permit { era: self.era })
    }

    /// Takes a permission back.
    pub fn done(&mut self, permit: &Permit, ended: Ended, now: Instant) {
        if permit.era != self.era {
            return;
        }
        match (&mut self.state, ended) {
            (State::Closed { seen, failed, .. }, Ended::Answered | Ended::Failed) => {
                *seen += 1;
                *failed += u32::from(ended == Ended::Failed);
                if *seen >= REQUESTS_MIN && *failed * 100 >= *seen * FAILED_PERCENT {
                    self.enter(State::Open { until: now + OPEN_TIME });
                }
            }
            (State::HalfOpen { .. }, Ended::Failed) => self.enter(State::Open { until: now + OPEN_TIME }),
            (State::HalfOpen { succeeded, .. }, Ended::Answered) => {
                *succeeded += 1;
                if *succeeded >= TRIALS {
                    self.enter(State::Closed { until: now + INTERVAL, seen: 0, failed: 0 });
                }
            }
            // Its place is for another one, or the trial would never end.
            (State::HalfOpen { admitted, .. }, Ended::Unknown) => *admitted -= 1,
            (State::Closed { .. }, Ended::Unknown) | (State::Open { .. }, _) => {}
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.era += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(breaker: &mut Breaker, now: Instant, ended: &[Ended]) {
        for &ended in ended {
            let permit = breaker.admit(now).expect("admitted");
            breaker.done(&permit, ended, now);
        }
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(now);
        run(&mut breaker, now, &[Ended::Failed; 10]);
        breaker
    }

    #[test]
    fn it_opens_at_ten_requests_of_which_eight_failed_and_not_sooner() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        run(&mut breaker, now, &[Ended::Failed; 9]);
        assert!(breaker.admit(now).is_some());
        run(&mut breaker, now, &[Ended::Failed]);
        assert!(breaker.admit(now).is_none());

        let mut breaker = Breaker::new(now);
        run(&mut breaker, now, &[Ended::Answered; 3]);
        run(&mut breaker, now, &[Ended::Failed; 11]);
        assert!(breaker.admit(now).is_some(), "11 of 14 is less than 80 %");
        run(&mut breaker, now, &[Ended::Failed]);
        assert!(breaker.admit(now).is_none(), "12 of 15 is 80 %");
    }

    #[test]
    fn counts_start_again_every_ten_seconds() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        run(&mut breaker, now, &[Ended::Failed; 9]);
        run(&mut breaker, now + INTERVAL, &[Ended::Failed; 9]);
        assert!(breaker.admit(now + INTERVAL).is_some());
    }

    #[test]
    fn after_five_seconds_five_requests_try_and_their_success_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.admit(now + OPEN_TIME - Duration::from_millis(1)).is_none());
        let now = now + OPEN_TIME;
        let permits: Vec<_> = (0..5).map(|_| breaker.admit(now).expect("a trial")).collect();
        assert!(breaker.admit(now).is_none(), "a sixth");
        for permit in &permits {
            breaker.done(permit, Ended::Answered, now);
        }
        run(&mut breaker, now, &[Ended::Answered; 20]);
    }

    #[test]
    fn one_failed_trial_opens_it_again() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let now = now + OPEN_TIME;
        run(&mut breaker, now, &[Ended::Answered; 4]);
        run(&mut breaker, now, &[Ended::Failed]);
        assert!(breaker.admit(now + OPEN_TIME / 2).is_none());
        assert!(breaker.admit(now + OPEN_TIME).is_some());
    }

    #[test]
    fn a_trial_that_was_given_up_leaves_its_place_to_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let now = now + OPEN_TIME;
        run(&mut breaker, now, &[Ended::Unknown; 50]);
        run(&mut breaker, now, &[Ended::Answered; 5]);
        run(&mut breaker, now, &[Ended::Answered; 50]);
    }

    #[test]
    fn requests_of_an_earlier_state_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        let late = breaker.admit(now).expect("closed");
        run(&mut breaker, now, &[Ended::Failed; 10]);
        let now = now + OPEN_TIME;
        assert!(breaker.admit(now).is_some());
        breaker.done(&late, Ended::Failed, now);
        assert!(breaker.admit(now).is_some(), "still trying");
    }
}
