//! Whom the app has sent away lately: their sessions are not given out any more.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{NameHasher, Now, SavedSession};

/// What the app said about a client before its session was saved has reached us, and perhaps not yet the shard that had
/// the session. In seconds; it takes milliseconds.
pub const ON_THE_WAY: u32 = 5;

/// Identities that are remembered. With more than that, no saved session can be trusted.
const IDENTITIES_MAX: usize = 1 << 20;

/// The identities, for as long as a session of theirs could be kept.
pub struct SentAway {
    /// In seconds; 0: sessions are not kept.
    ttl: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    hasher: NameHasher,
    /// When sessions with connection identifiers of this hash were sent away last.
    at: HashMap<u64, u32>,
    /// All that was saved up to then is not given out.
    all_up_to: Option<u32>,
}

/// What is given of it to another process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GivenAway {
    /// Makes the hashes. None: nobody was sent away.
    hasher: Option<NameHasher>,
    /// Hashes, each with when.
    at: Vec<(u64, u32)>,
    all_up_to: Option<u32>,
}

impl GivenAway {
    /// Whether it names nobody.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty() && self.all_up_to.is_none()
    }
}

fn seconds(now: Now) -> u32 {
    now.mono.as_secs() as u32
}

impl SentAway {
    /// Nobody. Sessions are kept for `ttl`.
    pub fn new(ttl: Duration) -> SentAway {
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        SentAway { ttl, state: Mutex::default() }
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
        let hash = state.hasher.hash_one(identifiers);
        state.at.insert(hash, seconds(now));
        is_full
    }

    /// Whether the app has not sent its client away since it was saved.
    pub fn may_go_on(&self, saved: &SavedSession) -> bool {
        let state = self.lock();
        let at = state.at.get(&state.hasher.hash_one(&*saved.identifiers)).copied();
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

    /// Who was sent away since that moment (monotonic seconds), and what was on its way then.
    pub fn given(&self, since: u32) -> GivenAway {
        let state = self.lock();
        let is_new = |at: &u32| at.saturating_add(ON_THE_WAY) >= since;
        let at = state.at.iter().filter(|(_, at)| is_new(at)).map(|(hash, at)| (*hash, *at)).collect();
        GivenAway { hasher: Some(state.hasher), at, all_up_to: state.all_up_to }
    }

    /// Goes on with what another process knows. Nobody has been sent away here before the first of it.
    pub fn take_over(&self, given: GivenAway) {
        let Some(hasher) = given.hasher.filter(|_| self.ttl > 0) else { return };
        let mut state = self.lock();
        state.hasher = hasher;
        state.at.extend(given.at.into_iter().take(IDENTITIES_MAX));
        state.all_up_to = state.all_up_to.max(given.all_up_to);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
