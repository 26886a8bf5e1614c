//! What a publication is delivered by: a stream, and the channel identifier it is read under.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text_pair::TextPair;

/// A channel identifier and the name of one stream that is read under it.
///
/// All sessions that follow the same stream under the same identifier share one such text, and each holds one word.
/// Together in one allocation, because most sessions have one of each and nobody to share either with.
#[derive(Clone, PartialEq, Eq)]
pub struct Topic(TextPair);

impl Topic {
    /// Makes a topic of its own.
    pub fn new(identifier: &str, stream: &str) -> Topic {
        Topic(TextPair::new(identifier, stream))
    }

    /// The channel identifier, as the client wrote it.
    pub fn identifier(&self) -> &str {
        self.0.first()
    }

    /// Whether this is the channel identifier. Cheaper than comparing it as a text.
    pub fn has_identifier(&self, identifier: &str) -> bool {
        self.0.first_bytes() == identifier.as_bytes()
    }

    /// How its channel identifier and another sort. Cheaper than comparing texts.
    pub fn cmp_identifier(&self, identifier: &str) -> Ordering {
        self.0.first_bytes().cmp(identifier.as_bytes())
    }

    /// How much memory it takes where nobody shares it.
    pub fn bytes(&self) -> usize {
        2 * size_of::<usize>() + self.0.packed_len()
    }

    /// The stream.
    pub fn stream(&self) -> &str {
        self.0.second()
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.identifier(), self.stream()).fmt(f)
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.identifier(), self.stream()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Topic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (identifier, stream) = <(String, String)>::deserialize(deserializer)?;
        Ok(Topic::new(&identifier, &stream))
    }
}

const _: () = assert!(size_of::<Topic>() == 8);

/// A channel identifier on its own, for whoever needs no stream. A subscription's shares the text of its topic.
#[derive(Clone)]
pub struct ChannelIdentifier(Topic);

impl PartialEq for ChannelIdentifier {
    /// Whatever stream the shared text has beside it.
    fn eq(&self, other: &ChannelIdentifier) -> bool {
        self.0.has_identifier(other)
    }
}

impl Eq for ChannelIdentifier {}

impl ChannelIdentifier {
    /// The identifier of a topic.
    pub fn of(topic: &Topic) -> ChannelIdentifier {
        ChannelIdentifier(topic.clone())
    }
}

impl From<&str> for ChannelIdentifier {
    fn from(identifier: &str) -> ChannelIdentifier {
        ChannelIdentifier(Topic::new(identifier, ""))
    }
}

impl Deref for ChannelIdentifier {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.identifier()
    }
}

impl fmt::Debug for ChannelIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Serialize for ChannelIdentifier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for ChannelIdentifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_after_it_was_written_out_and_read_back() {
        for topic in [Topic::new("{\"channel\":\"Chat\"}", "chat:1"), Topic::new("", "s"), Topic::new("i", "")] {
            let written = serde_json::to_string(&topic).unwrap();
            assert_eq!(serde_json::from_str::<Topic>(&written).unwrap(), topic);
        }
    }
}
