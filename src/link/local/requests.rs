//! Who waits for an answer of the other end, and whom this end still owes one, by number.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Lost;
use super::messages::{Reply, Request};

/// Those who wait.
#[derive(Default)]
pub struct Waiters(Mutex<State>);

#[derive(Default)]
struct State {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    closed: bool,
}

/// One of them. Forgotten when it is dropped.
pub struct Answer<'a> {
    number: u64,
    waiters: &'a Waiters,
    is_answered: oneshot::Receiver<Vec<u8>>,
}

impl Waiters {
    /// One more, with a number of its own.
    pub fn add(&self) -> Result<(u64, Answer<'_>), Lost> {
        let (answer, is_answered) = oneshot::channel();
        let mut state = self.state();
        if state.closed {
            return Err(Lost);
        }
        state.last += 1;
        let number = state.last;
        state.waiting.insert(number, answer);
        Ok((number, Answer { number, waiters: self, is_answered }))
    }

    /// An answer. One that comes too late goes nowhere.
    pub fn answered(&self, Reply { number, body }: Reply) {
        let waiting = self.state().waiting.remove(&number);
        if let Some(waiting) = waiting {
            let _ = waiting.send(body);
        }
    }

    /// The number of the last one.
    pub fn last(&self) -> u64 {
        self.state().last
    }

    /// Those whose number is up to this one have waited in vain.
    pub fn go_on_from(&self, last: u64) {
        self.state().last = last;
    }

    /// How many wait.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// Nobody gets an answer any more.
    pub fn close(&self) {
        *self.state() = State { closed: true, ..State::default() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer<'_> {
    /// Waits for it.
    pub async fn wait(mut self) -> Result<Vec<u8>, Lost> {
        (&mut self.is_answered).await.map_err(|_| Lost)
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.waiters.state().waiting.remove(&self.number);
    }
}

/// Requests of the other end that are being answered.
#[derive(Default)]
pub struct Answers(Mutex<BTreeMap<u64, Request>>);

impl Answers {
    /// One came.
    pub fn begin(&self, request: Request) {
        self.requests().insert(request.number, request);
    }

    /// Has an answer put in, unless the link has stopped without it.
    pub fn end(&self, number: u64, put: impl FnOnce() -> bool) {
        // Held meanwhile: it is put in and done, or neither.
        let mut requests = self.requests();
        if requests.remove(&number).is_some() {
            put();
        }
    }

    /// Takes those that are not answered, oldest first. They will not be.
    pub fn give_up(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests()).into_values().collect()
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<u64, Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
