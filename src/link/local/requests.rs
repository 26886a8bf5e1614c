//! Who waits for an answer of the other end, by number.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Lost;
use super::messages::Reply;

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
