//! Whether calls to the app pass, for `/ready`: a port that takes connections is not yet an app that answers.
//!
//! Connects decide, since readiness says whether new clients should come: one that failed in a way in which every other has
//! to fail too (a wrong secret, a wrong path, a page where an answer should be), or several in a row that failed in any way.
//! A call that passes ends it, and so does time: without clients there are no calls that could pass.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::{Failure, Method, Outcome};

/// Connects that fail in a row before readiness knows, when each may have failed for itself.
const FAILURES: u32 = 3;

/// How long failures count when nothing comes after them.
const MEMORY: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Default)]
pub(super) struct Health {
    /// Held for a few assignments.
    failing: Mutex<Failing>,
}

#[derive(Default)]
struct Failing {
    in_a_row: u32,
    last: Option<(Instant, String)>,
}

impl Health {
    /// A call has ended.
    pub fn note(&self, method: Method, result: &Result<Outcome, Failure>, now: Instant) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) if failing.last.is_some() => *failing = Failing::default(),
            Err(failure) if method == Method::Connect => {
                failing.in_a_row += if failure.all_fail { FAILURES } else { 1 };
                failing.last = Some((now, failure.error.to_string()));
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Whether clients should come.
    ///
    /// The error is the last failure.
    pub fn check(&self, now: Instant) -> Result<(), String> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match &failing.last {
            Some((at, why)) if failing.in_a_row >= FAILURES && now.duration_since(*at) < MEMORY => Err(why.clone()),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CallError, ConnectReply};

    fn failed(all_fail: bool) -> Result<Outcome, Failure> {
        Err(Failure { all_fail, ..Failure::for_good(CallError::Failed("no".into())) })
    }

    #[test]
    fn three_connects_that_fail_in_a_row_count_until_one_passes_or_time_has_gone_by() {
        let (health, now) = (Health::default(), Instant::now());
        let fail = |times| (0..times).for_each(|_| health.note(Method::Connect, &failed(false), now));
        fail(2);
        (0..9).for_each(|_| health.note(Method::Command, &failed(false), now));
        assert_eq!(health.check(now), Ok(()));
        fail(1);
        assert!(health.check(now).is_err());
        assert_eq!(health.check(now + MEMORY), Ok(()));
        health.note(Method::Command, &Ok(Outcome::Connect(ConnectReply::default())), now);
        assert_eq!(health.check(now), Ok(()));
        fail(2);
        assert_eq!(health.check(now), Ok(()));
    }

    #[test]
    fn one_connect_is_enough_when_all_must_fail() {
        let (health, now) = (Health::default(), Instant::now());
        health.note(Method::Connect, &failed(true), now);
        assert!(health.check(now).is_err());
    }
}
