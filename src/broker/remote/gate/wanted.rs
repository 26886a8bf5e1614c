//! Streams of the gate that are to be read.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::NameHasher;

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// To be opened, by [`Gate::opened`](super::Gate::opened).
    Open,
    /// Something of it is missing; by [`Gate::filled`](super::Gate::filled).
    Fill,
    /// The storage has less of it than it had.
    Doubt,
}

impl Want {
    pub const COUNT: usize = Want::Doubt as usize + 1;
}

/// Those of one bucket. Only streams that are followed stand here, each once for each reason, so it needs no bound.
pub struct Wanted([HashSet<Arc<str>, NameHasher>; Want::COUNT]);

impl Wanted {
    pub fn with_hasher(hasher: NameHasher) -> Wanted {
        Wanted([(); Want::COUNT].map(|()| HashSet::with_hasher(hasher)))
    }

    pub fn add(&mut self, want: Want, name: Arc<str>) {
        self.0[want as usize].insert(name);
    }

    /// Nobody follows a stream any more.
    pub fn forget(&mut self, stream: &str) {
        self.0.iter_mut().filter(|names| !names.is_empty()).for_each(|names| _ = names.remove(stream));
    }

    /// Moves up to `max` of them to `names`.
    pub fn take(&mut self, want: Want, max: usize, names: &mut Vec<Arc<str>>) {
        let wanted = &mut self.0[want as usize];
        if wanted.len() > max {
            names.extend(wanted.iter().take(max).cloned());
            names[names.len() - max..].iter().for_each(|name| _ = wanted.remove(name));
        } else if !wanted.is_empty() {
            let hasher = *wanted.hasher();
            // Its room goes, too: after a storm of clients it would stay empty.
            names.extend(std::mem::replace(wanted, HashSet::with_hasher(hasher)));
        }
    }
}
