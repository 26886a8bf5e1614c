//! What other threads have for a shard.
//!
//! The one place of a shard that is shared: a short lock around a list, and a waker. Everything fits: publications are
//! bounded by the node before they are put in, and there is at most one running call for each session.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::{Answer, BrokerReply, Publication, RemoteDisconnect, Reply, ResumeTicket, SavedSession};
use crate::os::poll::Waker;

use super::epoll::Socket;
use super::lanes::{Divert, HandOver};
use super::{Incoming, Look, Settings};

/// Something for a shard.
#[derive(Debug)]
pub enum Message<S> {
    /// A session's question is answered.
    Answer(Answer),
    /// To be delivered.
    Publication(Arc<Delivery>),
    /// Sessions to be sent away.
    Disconnect(RemoteDisconnect),
    /// The client of a session has come back on another connection: the session in this slot is to be given up.
    Yield {
        /// The slot where it was last.
        index: u32,
        /// The session, and by what right it is asked for.
        ticket: ResumeTicket,
    },
    /// A connection that somebody else has begun to read from.
    Adopt {
        /// The connection.
        incoming: Incoming<S>,
        /// What was read.
        read: Vec<u8>,
    },
    /// An operator asks something.
    Look(Look),
    /// How connections are treated from now on.
    Settings(Arc<Settings>),
    /// Somebody wants to know whether the shard turns.
    Turn(oneshot::Sender<()>),
    /// Its connections are handed over to another process.
    HandOver(HandOver),
    /// Send everybody away within this time and stop accepting.
    Drain {
        /// How long it may take.
        over: Duration,
    },
}

/// A publication on its way to all shards, and its share of the node's bound: given back when the last shard has
/// delivered it and lets go of it.
#[derive(Debug)]
pub struct Delivery {
    /// What to deliver.
    pub publication: Publication,
    /// `None` where nothing is bounded: in tests and simulations.
    pub permit: Option<Permit>,
}

/// A share of a bound. Whatever it is, the share is given back when it is dropped.
pub type Permit = Box<dyn Any + Send + Sync>;

/// The shared end of a shard's inbox.
pub struct Inbox {
    state: Mutex<State>,
    pub(super) waker: Waker,
}

#[derive(Default)]
struct State {
    messages: Vec<Message<Socket>>,
    /// Publications that were put in so far.
    publications: u64,
    /// The shard waits for events, or is about to: the next message has to wake it.
    asleep: bool,
    /// The shard has ended: everything is dropped.
    closed: bool,
    /// The shard has left: what comes is given to this.
    divert: Option<Divert>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Inbox {
    /// An empty inbox.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Inbox> {
        Ok(Inbox { state: Mutex::default(), waker: Waker::new()? })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message in. Never waits. A shard that is at work is not woken: it looks here before it sleeps.
    pub fn put(&self, message: Message<Socket>) {
        let mut state = self.state();
        if let Some(divert) = &state.divert {
            let divert = Arc::clone(divert);
            drop(state);
            return divert(message);
        }
        if state.closed && session_in(&message).is_none() {
            return;
        }
        state.publications += u64::from(matches!(message, Message::Publication(_)));
        state.messages.push(message);
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.waker.wake();
        }
    }

    /// How many publications were put in so far.
    pub fn publications(&self) -> u64 {
        self.state().publications
    }

    /// Moves everything into `into`, which is empty.
    pub(crate) fn take(&self, into: &mut Vec<Message<Socket>>) {
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

    /// The shard has ended: what is here and what comes is dropped, and with it its share of the bound; but for
    /// [`sessions`](Self::take_sessions). What is diverted stays so.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.messages.retain(|message| session_in(message).is_some());
    }

    /// The sessions that came for clients of a shard that has ended, and that nobody else has now.
    pub fn take_sessions(&self) -> Vec<SavedSession> {
        let mut state = self.state();
        if !state.closed {
            return Vec::new();
        }
        let messages = std::mem::take(&mut state.messages);
        messages.iter().filter_map(session_in).cloned().collect()
    }

    /// The shard has left its connections to somebody else: what it has taken and not carried out, what is here, and what
    /// comes is given to `divert`, in this order. That is called by whoever puts something in, so it must not wait.
    pub(super) fn divert(&self, taken: Vec<Message<Socket>>, divert: Divert) {
        taken.into_iter().for_each(|message| divert(message));
        let mut state = self.state();
        // Under the lock: what comes now comes behind it.
        std::mem::take(&mut state.messages).into_iter().for_each(|message| divert(message));
        state.divert = Some(divert);
    }
}

fn session_in(message: &Message<Socket>) -> Option<&SavedSession> {
    match message {
        Message::Answer(Answer { reply: Reply::Broker(Ok(BrokerReply::Resumed(saved))), .. }) => saved.as_deref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication() -> Arc<Delivery> {
        let publication = Publication::new("s", "1");
        Arc::new(Delivery { publication, permit: None })
    }

    #[test]
    fn messages_are_taken_out_in_the_order_they_came() {
        let inbox = Inbox::new().unwrap();
        inbox.put(Message::Publication(publication()));
        inbox.put(Message::Drain { over: Duration::ZERO });
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        assert!(matches!(messages[..], [Message::Publication(_), Message::Drain { .. }]), "{messages:?}");
        assert!(inbox.may_sleep());
    }

    #[test]
    fn publications_are_counted_also_when_they_were_taken_out() {
        let inbox = Inbox::new().unwrap();
        inbox.put(Message::Publication(publication()));
        inbox.put(Message::Drain { over: Duration::ZERO });
        inbox.take(&mut Vec::new());
        inbox.put(Message::Publication(publication()));
        assert_eq!(inbox.publications(), 2);
    }

    #[test]
    fn what_a_shard_left_and_what_comes_is_diverted_in_order() {
        let inbox = Inbox::new().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let over = |ms| Message::Drain { over: Duration::from_millis(ms) };
        inbox.put(over(2));
        inbox.put(over(3));
        let into = Arc::clone(&seen);
        inbox.divert(
            vec![over(1)],
            Arc::new(move |message| match message {
                Message::Drain { over } => into.lock().unwrap().push(over.as_millis()),
                other => panic!("{other:?}"),
            }),
        );
        inbox.put(over(4));
        inbox.close();
        inbox.put(over(5));
        assert_eq!(*seen.lock().unwrap(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_shard_that_has_ended_holds_nothing() {
        let inbox = Inbox::new().unwrap();
        let (before, after) = (publication(), publication());
        inbox.put(Message::Publication(Arc::clone(&before)));
        inbox.close();
        inbox.put(Message::Publication(Arc::clone(&after)));
        assert_eq!((Arc::strong_count(&before), Arc::strong_count(&after)), (1, 1));
    }
}
