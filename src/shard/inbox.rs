//! What other threads have for a shard.
//!
//! The one place of a shard that is shared: a short lock around a list, and a waker. Publications wait for room
//! (back-pressure up to the app's HTTP request); answers always fit, because there is at most one running call for
//! each session.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::{Answer, Publication, RemoteDisconnect};
use crate::os::poll::Waker;

use super::Incoming;
use super::epoll::Socket;

/// Publications that one shard holds and has not delivered. More wait at the door they came through.
pub const PUBLICATIONS_MAX: usize = 1024;

/// Something for a shard.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "answers are most of what comes; a box would be one allocation for each")]
pub enum Message<S> {
    /// A session's question is answered.
    Answer(Answer),
    /// To be delivered.
    Publication(Delivery),
    /// Sessions to be sent away.
    Disconnect(RemoteDisconnect),
    /// A connection that somebody else has begun to read from.
    Adopt {
        /// The connection.
        incoming: Incoming<S>,
        /// What was read.
        read: Vec<u8>,
    },
    /// Send everybody away within this time and stop accepting.
    Drain {
        /// How long it may take.
        over: Duration,
    },
}

/// A publication and its place in the inbox's bound, given back when it is delivered.
#[derive(Debug)]
pub struct Delivery {
    /// What to deliver.
    pub publication: Arc<Publication>,
    /// `None` where nothing is bounded: in tests and simulations.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// The shared end of a shard's inbox.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    room: Arc<Semaphore>,
    pub(super) waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    messages: Vec<Message<Socket>>,
    /// The shard waits for events, or is about to: the next message has to wake it.
    asleep: bool,
    /// The shard has ended: everything is dropped.
    closed: bool,
}

impl Inbox {
    /// An empty inbox.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Inbox> {
        let room = Arc::new(Semaphore::new(PUBLICATIONS_MAX));
        Ok(Inbox { state: Mutex::default(), room, waker: Waker::new()? })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message in. Never waits. A shard that is at work is not woken: it looks here before it sleeps.
    pub fn put(&self, message: Message<Socket>) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.messages.push(message);
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.waker.wake();
        }
    }

    /// Puts a publication in, when there is room.
    pub async fn publish(&self, publication: Arc<Publication>) {
        // It is closed once the shard has ended; then there is nobody left to deliver to.
        let permit = Arc::clone(&self.room).acquire_owned().await.ok();
        self.put(Message::Publication(Delivery { publication, permit }));
    }

    /// Puts a publication in if there is room now; tells whether there was.
    pub fn try_publish(&self, publication: Arc<Publication>) -> bool {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else { return false };
        self.put(Message::Publication(Delivery { publication, permit: Some(permit) }));
        true
    }

    /// Moves everything into `into`, which is empty.
    pub(super) fn take(&self, into: &mut Vec<Message<Socket>>) {
        let mut state = self.state();
        state.asleep = false;
        std::mem::swap(&mut state.messages, into);
    }

    /// The shard is about to wait. Tells whether it may: not when something came meanwhile.
    pub(super) fn may_sleep(&self) -> bool {
        let mut state = self.state();
        state.asleep = state.messages.is_empty();
        state.asleep
    }

    /// The shard has ended: nobody waits for room any more, and what comes is dropped.
    pub(super) fn close(&self) {
        self.room.close();
        *self.state() = State { closed: true, ..State::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication() -> Arc<Publication> {
        Arc::new(Publication { stream: "s".into(), message: "1".into(), exclude: None, kind: None })
    }

    #[test]
    fn publications_wait_when_the_inbox_is_full_and_go_on_when_one_is_delivered() {
        let inbox = Inbox::new().unwrap();
        for _ in 0..PUBLICATIONS_MAX {
            assert!(inbox.try_publish(publication()));
        }
        assert!(!inbox.try_publish(publication()));
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        assert_eq!(messages.len(), PUBLICATIONS_MAX);
        assert!(!inbox.try_publish(publication()), "taken out is not delivered yet");
        messages.pop();
        assert!(inbox.try_publish(publication()));
    }

    #[test]
    fn nobody_waits_for_a_shard_that_has_ended() {
        let inbox = Inbox::new().unwrap();
        inbox.close();
        for _ in 0..2 * PUBLICATIONS_MAX {
            assert!(!inbox.try_publish(publication()));
            inbox.put(Message::Drain { over: Duration::ZERO });
        }
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        assert!(messages.is_empty());
    }

    #[test]
    fn answers_fit_even_when_publications_do_not() {
        let inbox = Inbox::new().unwrap();
        while inbox.try_publish(publication()) {}
        inbox.put(Message::Drain { over: Duration::ZERO });
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        assert!(matches!(messages.last(), Some(Message::Drain { .. })));
    }
}
