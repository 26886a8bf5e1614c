//! The streams of one subscription.

use serde::{Deserialize, Serialize};

use crate::model::Name;

/// Streams, in the order they were added. Nearly every subscription follows one, which costs two words and no
/// allocation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Streams {
    first: Option<Name>,
    /// The rest; boxed twice so that its absence is one word.
    #[expect(clippy::box_collection, reason = "one word while there is nothing in it")]
    more: Option<Box<Vec<Name>>>,
}

impl Streams {
    pub fn iter(&self) -> impl Iterator<Item = &Name> {
        self.first.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Name> {
        self.first.iter_mut().chain(self.more.iter_mut().flat_map(|more| more.iter_mut()))
    }

    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.len())
    }

    pub fn first(&self) -> Option<&Name> {
        self.first.as_ref()
    }

    pub fn push(&mut self, stream: Name) {
        match self.first {
            None => self.first = Some(stream),
            Some(_) => self.more.get_or_insert_default().push(stream),
        }
    }

    pub fn into_iter(self) -> impl Iterator<Item = Name> {
        self.first.into_iter().chain(self.more.into_iter().flat_map(|more| *more))
    }

    /// Takes out those for which `out` is true.
    pub fn take_out(&mut self, out: impl Fn(&str) -> bool) -> Vec<Name> {
        let mut taken = Vec::new();
        for stream in std::mem::take(self).into_iter() {
            if out(stream.as_str()) { taken.push(stream) } else { self.push(stream) }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_keep_their_order_through_pushes_and_removals() {
        let mut streams = Streams::default();
        for name in ["a", "b", "c", "d"] {
            streams.push(Name::new(name));
        }
        let taken: Vec<_> = streams.take_out(|name| name == "a" || name == "c");
        assert_eq!(taken, [Name::new("a"), Name::new("c")]);
        assert_eq!(streams.len(), 2);
        streams.push(Name::new("e"));
        let left: Vec<_> = streams.into_iter().collect();
        assert_eq!(left, [Name::new("b"), Name::new("d"), Name::new("e")]);
    }
}
