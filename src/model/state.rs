//! The app's own state, kept for it between calls.

use serde::{Deserialize, Serialize};
use triomphe::Arc;

/// Connection state or channel state: a small map of texts that the app gives us in one answer and gets
/// back with the next call (`contracts/rpc-grpc.md` section 3).
///
/// Most sessions have none, so an empty state is one null pointer. A call to the app shares the session's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State(Option<Arc<Entries>>);

/// Keys and values, sorted by key.
type Entries = Vec<(Box<str>, Box<str>)>;

/// What an answer changes in a [`State`]. An empty value removes the key.
pub type StateChanges = Vec<(String, String)>;

impl State {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let entries = self.0.as_deref()?;
        let at = entries.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok()?;
        Some(&entries[at].1)
    }

    /// All entries, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|entries| entries.iter()).map(|(k, v)| (k.as_ref(), v.as_ref()))
    }

    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        self.iter().map(|(key, value)| key.len() + value.len() + size_of::<(Box<str>, Box<str>)>()).sum()
    }

    /// Applies changes: an empty value removes its key, any other value sets it, other keys stay.
    pub fn merge(&mut self, changes: StateChanges) {
        if changes.is_empty() {
            return;
        }
        let entries = Arc::make_mut(self.0.get_or_insert_default());
        for (key, value) in changes {
            match (entries.binary_search_by(|(k, _)| k.as_ref().cmp(&key)), value.is_empty()) {
                (Ok(at), true) => drop(entries.remove(at)),
                (Ok(at), false) => entries[at].1 = value.into(),
                (Err(_), true) => {}
                (Err(at), false) => entries.insert(at, (key.into(), value.into())),
            }
        }
        entries.shrink_to_fit();
        if entries.is_empty() {
            self.0 = None;
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for State {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> State {
        let mut state = State::default();
        state.merge(entries.into_iter().map(|(k, v)| (k.into(), v.into())).collect());
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_sets_removes_and_leaves_the_rest() {
        let mut state: State = [("a", "1"), ("b", "2")].into_iter().collect();
        state.merge(vec![("b".into(), "3".into()), ("a".into(), String::new()), ("c".into(), "4".into())]);
        assert_eq!(state.iter().collect::<Vec<_>>(), [("b", "3"), ("c", "4")]);
        assert_eq!(state.get("b"), Some("3"));
        assert_eq!(state.get("a"), None);
    }

    #[test]
    fn a_state_emptied_again_costs_one_pointer() {
        let mut state: State = [("a", "1")].into_iter().collect();
        state.merge(vec![("a".into(), String::new())]);
        assert!(state.is_empty());
        assert_eq!(size_of::<State>(), 8);
    }
}
