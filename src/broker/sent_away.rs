//! Whom the app has sent away lately: their sessions are not given out any more.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{NameHasher, Now, SavedSession};

/// What the app said about a client before its session was saved has reached us, and perhaps not yet the shard that had
/// the session. In seconds; it takes milliseconds.
pub const ON_THE_WAY: u32 = 5;

/// Identities that are remembered. With more than that, no saved session can be trusted.
const IDENTITIES_MAX: usize = 1 << 20;

/// The identities, for as long as a session of theirs could be kept.
pub struct SentAway {
    hasher: NameHasher,
    /// In seconds; 0: sessions are not kept.
    ttl: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When sessions with connection identifiers of this hash were sent away last.
    at: HashMap<u64, u32>,
    /// All that was saved up to then is not given out.
    all_up_to: Option<u32>,
}

fn seconds(now: Now) -> u32 {
    now.mono.as_secs() as u32
}

impl SentAway {
    /// Nobody. Sessions are kept for `ttl`.
    pub fn new(ttl: Duration) -> SentAway {
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        SentAway { hasher: NameHasher::default(), ttl, state: Mutex::default() }
    }

    /// The app sends everybody with these identifiers away. True if there were too many such: everything that is saved can
    /// be dropped.
    pub fn note(&self, identifiers: &str, now: Now) -> bool {
        if self.ttl == 0 {
            return false;
        }
        let mut state = self.lock();
        let is_full = state.at.len() >= IDENTITIES_MAX;
        if is_full {
            state.at.clear();
            state.all_up_to = Some(seconds(now));
        }
        state.at.insert(self.hasher.hash_one(identifiers), seconds(now));
        is_full
    }

    /// Whether the app has not sent its client away since it was saved.
    pub fn may_go_on(&self, saved: &SavedSession) -> bool {
        let state = self.lock();
        let at = state.at.get(&self.hasher.hash_one(&*saved.identifiers)).copied();
        at.max(state.all_up_to).is_none_or(|at| at.saturating_add(ON_THE_WAY) < saved.saved_at)
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.lock().at.len()
    }

    /// Forgets those of whom nothing can be saved any more.
    pub fn sweep(&self, now: Now) {
        let now = seconds(now);
        self.lock().at.retain(|_, at| at.saturating_add(self.ttl).saturating_add(2 * ON_THE_WAY) >= now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
