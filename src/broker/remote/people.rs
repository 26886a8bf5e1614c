//! Who of this node's clients is present where, and what of that the storage has not heard yet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::RemoteSettings;
use super::store::{Person, Presence};
use crate::broker::BrokerMetrics;
use crate::model::{NameHasher, Now, PresenceChange, Sid};

/// Changes that the storage is told at once.
const BATCH_MAX: usize = 128;

/// Changes that wait to be told, beside those of people who leave. With more than that nobody can join.
const QUEUE_MAX: usize = 1 << 17;

/// What somebody takes beside their texts: here, in the list of those who go, and in the queue.
const PERSON_BYTES: usize = 256;

/// The clients of this node that are present.
pub struct People {
    ttl: Duration,
    bytes_max: usize,
    state: Mutex<State>,
    came: Notify,
}

type Key = (Box<str>, Sid);

#[derive(Default)]
struct State {
    known: HashMap<Key, Known, NameHasher>,
    bytes: usize,
    /// How many there are in each stream.
    streams: HashMap<Box<str>, u32, NameHasher>,
    /// Whose connection is over, in the order in which they are reported.
    endings: VecDeque<(Duration, Key)>,
    /// What the storage has not heard.
    queue: VecDeque<Presence>,
}

struct Known {
    person: Person,
    /// When others are told, if the connection is over.
    end: Option<Duration>,
}

/// People of this node, for another process of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GivenPeople {
    #[serde(default)]
    known: Vec<GivenPerson>,
    /// What the storage has not heard.
    #[serde(default)]
    untold: Vec<Presence>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GivenPerson {
    stream: Box<str>,
    sid: Sid,
    person: Person,
    #[serde(default)]
    end: Option<Duration>,
}

fn bytes(key: &Key, person: &Person) -> usize {
    PERSON_BYTES + key.0.len() + person.id.len() + person.info.as_ref().map_or(0, |info| info.len())
}

impl People {
    /// Nobody.
    pub fn new(settings: &RemoteSettings) -> People {
        People {
            ttl: settings.presence_ttl,
            bytes_max: settings.presence_bytes_max,
            state: Mutex::default(),
            came: Notify::new(),
        }
    }

    /// Somebody comes or goes.
    pub fn change(&self, sid: Sid, stream: &str, change: PresenceChange, now: Now, metrics: &BrokerMetrics) {
        let key: Key = (stream.into(), sid);
        let mut state = self.lock();
        match change {
            PresenceChange::Join { id, info } => {
                let person = Person { id, info };
                if state.known.get(&key).is_some_and(|known| known.person.id != person.id) {
                    tracing::debug!(%sid, stream, "a session joined under a second id, which is ignored");
                    return metrics.presence_refused_total.inc();
                }
                let is_full = state.bytes + bytes(&key, &person) > self.bytes_max || state.queue.len() >= QUEUE_MAX;
                if is_full {
                    return metrics.presence_refused_total.inc();
                }
                state.bytes += bytes(&key, &person);
                match state.known.insert(key.clone(), Known { person: person.clone(), end: None }) {
                    Some(before) => state.bytes -= bytes(&key, &before.person),
                    None => *state.streams.entry(key.0.clone()).or_default() += 1,
                }
                let join = Presence { stream: key.0, sid, person, is_there: true, node_is_there: true };
                state.queue.push_back(join);
            }
            PresenceChange::Leave => state.leave(key),
            PresenceChange::Gone => {
                let end = now.mono + self.ttl;
                let Some(known) = state.known.get_mut(&key).filter(|known| known.end.is_none()) else { return };
                known.end = Some(end);
                state.endings.push_back((end, key));
            }
        }
        drop(state);
        self.came.notify_one();
    }

    /// Those whose connection has been over for long enough leave.
    pub fn sweep(&self, now: Now) {
        let mut state = self.lock();
        while state.endings.front().is_some_and(|(end, _)| *end <= now.mono)
            && let Some((end, key)) = state.endings.pop_front()
        {
            // Otherwise it has left, or has joined again since.
            if state.known.get(&key).is_some_and(|known| known.end == Some(end)) {
                state.leave(key);
            }
        }
        let is_due = !state.queue.is_empty();
        drop(state);
        if is_due {
            self.came.notify_one();
        }
    }

    /// The storage has forgotten this node: it is told of everybody again.
    pub fn tell_again(&self) {
        let mut state = self.lock();
        let State { known, queue, .. } = &mut *state;
        queue.retain(|change| !change.is_there);
        let joins = known.iter().map(|((stream, sid), known)| Presence {
            stream: stream.clone(),
            sid: *sid,
            person: known.person.clone(),
            is_there: true,
            node_is_there: true,
        });
        queue.extend(joins);
        drop(state);
        self.came.notify_one();
    }

    /// Waits for changes, in their order. They stay until they are [`told`](Self::told).
    pub async fn next(&self) -> Vec<Presence> {
        loop {
            let some: Vec<_> = self.lock().queue.iter().take(BATCH_MAX).cloned().collect();
            if !some.is_empty() {
                return some;
            }
            self.came.notified().await;
        }
    }

    /// The storage has heard these.
    pub fn told(&self, changes: &[Presence]) {
        let mut state = self.lock();
        for change in changes {
            if state.queue.front() == Some(change) {
                state.queue.pop_front();
            }
        }
    }

    /// Everybody, while nobody comes or goes.
    pub fn given(&self) -> GivenPeople {
        let state = self.lock();
        let known = state.known.iter().map(|((stream, sid), known)| GivenPerson {
            stream: stream.clone(),
            sid: *sid,
            person: known.person.clone(),
            end: known.end,
        });
        GivenPeople { known: known.collect(), untold: state.queue.iter().cloned().collect() }
    }

    /// Goes on with those of another process of this node, before anybody comes or goes.
    pub fn take_over(&self, given: GivenPeople) {
        let mut state = self.lock();
        for GivenPerson { stream, sid, person, end } in given.known {
            let key: Key = (stream, sid);
            state.bytes += bytes(&key, &person);
            if let Some(end) = end {
                state.endings.push_back((end, key.clone()));
            }
            if let Some(before) = state.known.insert(key.clone(), Known { person, end }) {
                state.bytes -= bytes(&key, &before.person);
            } else {
                *state.streams.entry(key.0).or_default() += 1;
            }
        }
        state.endings.make_contiguous().sort_by_key(|(end, _)| *end);
        state.queue.extend(given.untold);
        drop(state);
        self.came.notify_one();
    }

    /// How many there are, and their bytes.
    pub fn amounts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.known.len(), state.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn leave(&mut self, key: Key) {
        let Some(known) = self.known.remove(&key) else { return };
        self.bytes -= bytes(&key, &known.person);
        let left = self.streams.get_mut(&key.0).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            self.streams.remove(&key.0);
        }
        let (stream, sid) = key;
        self.queue.push_back(Presence { stream, sid, person: known.person, is_there: false, node_is_there: left > 0 });
    }
}
