//! Sessions on their way into the storage, and who waits for them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::model::{NameHasher, SavedSession, Sid};

/// Sessions that are stored at once.
const BATCH_MAX: usize = 128;

/// Sessions that wait to be stored.
pub struct Saves {
    bytes_max: usize,
    queue: Mutex<Queue>,
    came: Notify,
}

#[derive(Default)]
struct Queue {
    sessions: VecDeque<SavedSession>,
    bytes: usize,
}

impl Saves {
    /// None, and never more than so many bytes.
    pub fn new(bytes_max: usize) -> Saves {
        Saves { bytes_max, queue: Mutex::default(), came: Notify::new() }
    }

    /// One more. Gives those that are dropped for it: the oldest.
    pub fn put(&self, session: SavedSession) -> Vec<Sid> {
        let mut dropped = Vec::new();
        let mut queue = self.lock();
        queue.bytes += session.bytes();
        queue.sessions.push_back(session);
        while queue.bytes > self.bytes_max
            && let Some(oldest) = queue.sessions.pop_front()
        {
            queue.bytes -= oldest.bytes();
            dropped.push(oldest.sid);
        }
        drop(queue);
        self.came.notify_one();
        dropped
    }

    /// Waits for some, in the order in which they came. They stay until they are [`taken`](Self::taken).
    pub async fn next(&self) -> Vec<SavedSession> {
        loop {
            let some: Vec<_> = self.lock().sessions.iter().take(BATCH_MAX).cloned().collect();
            if !some.is_empty() {
                return some;
            }
            self.came.notified().await;
        }
    }

    /// These are stored, or given up.
    pub fn taken(&self, sessions: &[SavedSession]) {
        let mut queue = self.lock();
        for session in sessions {
            // Unless it was dropped meanwhile.
            if queue.sessions.front().is_some_and(|first| first.sid == session.sid) {
                queue.sessions.pop_front();
                queue.bytes -= session.bytes();
            }
        }
    }

    /// Those that wait, while none is stored.
    pub fn given(&self) -> Vec<SavedSession> {
        self.lock().sessions.iter().cloned().collect()
    }

    /// How many there are, and their bytes.
    pub fn amounts(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.sessions.len(), queue.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who waits for a session to be stored.
#[derive(Default)]
pub struct Yields(Mutex<State>);

#[derive(Default)]
struct State {
    /// Sessions of this node that are on their way into the storage.
    leaving: HashMap<Sid, Leaving, NameHasher>,
    /// Sessions that other nodes were asked for.
    asked: HashMap<Sid, oneshot::Sender<()>, NameHasher>,
}

#[derive(Default)]
struct Leaving {
    /// Another node waits for it.
    elsewhere: bool,
    here: Vec<oneshot::Sender<()>>,
}

impl Yields {
    /// A session is on its way into the storage.
    pub fn leaves(&self, sid: Sid, wanted_elsewhere: bool) {
        self.lock().leaving.entry(sid).or_default().elsewhere |= wanted_elsewhere;
    }

    /// Another node asks for a session that does not live here.
    pub fn wanted_elsewhere(&self, sid: Sid) {
        if let Some(leaving) = self.lock().leaving.get_mut(&sid) {
            leaving.elsewhere = true;
        }
    }

    /// It is stored, or given up. Tells whether another node waits for it.
    pub fn left(&self, sid: Sid) -> bool {
        let Some(Leaving { elsewhere, here }) = self.lock().leaving.remove(&sid) else { return false };
        // Perhaps they have waited for long enough.
        here.into_iter().for_each(|waiter| _ = waiter.send(()));
        elsewhere
    }

    /// Done when a session that leaves this node is stored; none if none does.
    pub fn until_left(&self, sid: Sid) -> Option<oneshot::Receiver<()>> {
        let mut state = self.lock();
        let leaving = state.leaving.get_mut(&sid)?;
        let (sender, receiver) = oneshot::channel();
        leaving.here.push(sender);
        Some(receiver)
    }

    /// Another node is asked for a session. Done when it has given it up, or does not; none if it is being asked already.
    pub fn ask(&self, sid: Sid) -> Option<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        let std::collections::hash_map::Entry::Vacant(free) = state.asked.entry(sid) else { return None };
        free.insert(sender);
        Some(receiver)
    }

    /// Another node has stored a session, or does not give it up.
    pub fn yielded(&self, sid: Sid) {
        if let Some(waiter) = self.lock().asked.remove(&sid) {
            let _ = waiter.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
