//! Whether the app lets clients in, for `/ready`: a port that takes connections is not yet an app that answers.
//!
//! A client's Connect that fails proves nothing, for clients choose what the app is asked. But it gives rise to doubt, and
//! in doubt the app is asked here: a Connect without cookies or other headers, which an app that works refuses or takes. If that
//! fails too, no client should come. It is asked again and again until it passes, or a client's call does.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::attempt::{Failure, Method, Outcome};
use crate::model::{Call, Env, Request, Sid, SlotKey, State, Status};

/// See the module.
#[derive(Default)]
pub(super) struct Health {
    /// Held for a few assignments.
    state: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    doubt: bool,
    asking: bool,
    /// What the last question of ours met.
    failing: Option<String>,
}

impl Health {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call has ended.
    pub fn note(&self, method: Method, result: &Result<Outcome, Failure>) {
        let mut known = self.known();
        match result {
            Ok(_) if known.doubt => (known.doubt, known.failing) = (false, None),
            Err(_) if method == Method::Connect => known.doubt = true,
            Ok(_) | Err(_) => {}
        }
    }

    /// Whether clients should come.
    ///
    /// The error is why not.
    pub fn check(&self) -> Result<(), String> {
        self.known().failing.clone().map_or(Ok(()), Err)
    }

    /// The question to ask now, if there is doubt and no question is out. Whoever takes it tells what became of it.
    pub fn question(&self) -> Option<Call> {
        let mut known = self.known();
        let asks = known.doubt && !known.asking;
        known.asking |= asks;
        let request = Request::Connect { env: Env::new("http://localhost/cable", []) };
        asks.then(|| call(request))
    }

    /// What became of a question. An app that has taken it is told that nobody is there: gives that call.
    pub fn answered(&self, result: Result<Outcome, Failure>) -> Option<Call> {
        let mut known = self.known();
        known.asking = false;
        match result {
            Err(failure) => {
                known.failing = Some(failure.error.to_string());
                None
            }
            Ok(Outcome::Connect(reply)) if reply.status == Status::Success => {
                let env = Env::new("http://localhost/cable", []).with_identifiers(&reply.identifiers);
                let mut cstate = State::default();
                cstate.merge(reply.cstate);
                Some(call(Request::Disconnect { subscriptions: vec![], env, cstate }))
            }
            Ok(_) => None,
        }
    }
}

/// A call of nobody's. Its key is that of no slot, since nobody takes its answer from a shard.
fn call(request: Request) -> Call {
    let key = SlotKey { shard: u16::MAX, index: u32::MAX, generation: u32::MAX };
    Call { key, sid: Sid::from_bits(rand::random::<u128>() >> 2), request }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CallError, ConnectReply};

    fn failed() -> Result<Outcome, Failure> {
        Err(Failure::for_good(CallError::Failed("no".into())))
    }

    fn passed(status: Status) -> Result<Outcome, Failure> {
        Ok(Outcome::Connect(ConnectReply { status, identifiers: "me".into(), ..ConnectReply::default() }))
    }

    #[test]
    fn a_client_raises_doubt_and_only_our_own_question_decides() {
        let health = Health::default();
        health.note(Method::Command, &failed());
        assert!(health.question().is_none(), "a command is about one channel");
        health.note(Method::Connect, &failed());
        assert_eq!(health.check(), Ok(()));
        assert!(health.question().is_some());
        assert!(health.question().is_none(), "one at a time");
        health.note(Method::Connect, &failed());
        assert!(health.answered(failed()).is_none());
        assert!(health.check().is_err());
        assert!(health.question().is_some(), "again and again");
        health.note(Method::Connect, &passed(Status::Failure));
        assert!(health.answered(passed(Status::Failure)).is_none());
        assert_eq!(health.check(), Ok(()));
        assert!(health.question().is_none());
    }

    #[test]
    fn a_call_of_a_client_that_passes_ends_the_doubt() {
        let health = Health::default();
        health.note(Method::Connect, &failed());
        health.question();
        health.answered(failed());
        health.note(Method::Command, &passed(Status::Error));
        assert_eq!((health.check(), health.question()), (Ok(()), None));
    }

    #[test]
    fn an_app_that_takes_the_question_for_a_client_is_told_that_it_left() {
        let told = Health::default().answered(passed(Status::Success)).map(|call| call.request);
        assert!(matches!(told, Some(Request::Disconnect { env, .. }) if env.identifiers() == "me"));
    }
}
