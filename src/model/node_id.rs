//! What tells the nodes of a cluster apart.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Characters of a node's id, base 62.
const LEN: usize = 8;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The id of one process that takes part in a cluster: 47 random bits, made anew at each start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId([u8; LEN]);

impl NodeId {
    /// Makes an id out of random bits.
    pub fn from_bits(mut bits: u64) -> NodeId {
        let mut text = [0; LEN];
        for byte in &mut text {
            *byte = ALPHABET[(bits % 62) as usize];
            bits /= 62;
        }
        NodeId(text)
    }

    /// Reads the text form. `None` for what no node of ours is called.
    pub fn parse(text: &str) -> Option<NodeId> {
        let bytes: [u8; LEN] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(NodeId(bytes))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        // Always ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        NodeId::parse(&text).ok_or_else(|| serde::de::Error::custom("not the id of a node"))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_id_is_read_back() {
        for bits in [0, 1, 61, 62, u64::MAX] {
            let id = NodeId::from_bits(bits);
            assert_eq!(NodeId::parse(&id.to_string()), Some(id));
        }
        for text in ["", "1234567", "123456789", "1234567é", "1234 678"] {
            assert_eq!(NodeId::parse(text), None, "{text}");
        }
    }
}
