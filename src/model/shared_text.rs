//! A text that many hold and nobody changes.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use triomphe::ThinArc;

/// Immutable text behind one word. A clone is one more reference.
///
/// Its length lies in front of its bytes, so that a place that may hold one costs 8 bytes, where an `Arc<str>` takes 16.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedText(ThinArc<(), u8>);

const _: () = assert!(size_of::<SharedText>() == 8 && size_of::<Option<SharedText>>() == 8);

/// In front of the bytes: the count of references, and the length.
const HEADER: usize = 16;

/// What the allocator keeps for itself in front of each block.
const ALLOCATOR_HEADER: usize = 8;

/// The allocator's blocks are multiples of this, and no less than two of them.
const ALLOCATOR_STEP: usize = 16;

/// Bytes that the C library's allocator takes for a block of `len` bytes. From `os::allocator::MAPPED_FROM` on a block is
/// made of whole pages instead and may take one page more than this.
pub(crate) const fn block_bytes(len: usize) -> usize {
    let block = (len + ALLOCATOR_HEADER).next_multiple_of(ALLOCATOR_STEP);
    if block < 2 * ALLOCATOR_STEP { 2 * ALLOCATOR_STEP } else { block }
}

impl SharedText {
    /// More than a text's own bytes that [`SharedText::heap_bytes`] can be.
    pub const OVERHEAD_BYTES_MAX: usize = HEADER + ALLOCATOR_HEADER + ALLOCATOR_STEP - 1;

    /// The text as bytes. Use this where it is enough: it costs nothing.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// The text. Checked again each time because the thin pointer forgets the type, which costs some nanoseconds for
    /// 100 bytes; whoever copies or compares it wants [`SharedText::as_bytes`].
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("made from text")
    }

    /// What it takes of the heap, with the allocator's share; for all of its holders together.
    pub fn heap_bytes(&self) -> usize {
        block_bytes(HEADER + self.as_bytes().len())
    }
}

impl From<&str> for SharedText {
    fn from(text: &str) -> SharedText {
        SharedText(ThinArc::from_header_and_slice((), text.as_bytes()))
    }
}

impl From<String> for SharedText {
    fn from(text: String) -> SharedText {
        text.as_str().into()
    }
}

impl From<Box<str>> for SharedText {
    fn from(text: Box<str>) -> SharedText {
        (&*text).into()
    }
}

impl From<Cow<'_, str>> for SharedText {
    fn from(text: Cow<'_, str>) -> SharedText {
        (&*text).into()
    }
}

impl Hash for SharedText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

/// See [`SharedText::as_str`] for what it costs.
impl Deref for SharedText {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl Serialize for SharedText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for SharedText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Makes it of a text wherever that lies, without a copy between.
struct Text;

impl Visitor<'_> for Text {
    type Value = SharedText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<SharedText, E> {
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_reads_back_whatever_it_was_made_from() {
        for text in ["", "x", "{\"a\":\"ä\u{1F600}\"}", "with\0zero"] {
            let shared = SharedText::from(text);
            assert_eq!((shared.as_str(), shared.as_bytes()), (text, text.as_bytes()));
            assert_eq!(shared, SharedText::from(text.to_owned()));
            assert_eq!(shared, SharedText::from(Box::<str>::from(text)));
            assert_eq!(shared, SharedText::from(Cow::Borrowed(text)));
            assert_eq!((format!("{shared}"), format!("{shared:?}")), (text.to_owned(), format!("{text:?}")));
            let json = serde_json::to_string(&shared).unwrap();
            assert_eq!(json, serde_json::to_string(text).unwrap());
            assert_eq!(serde_json::from_str::<SharedText>(&json).unwrap(), shared);
        }
        assert_ne!(SharedText::from("a"), SharedText::from("b"));
    }

    #[test]
    fn a_clone_is_the_same_memory() {
        let text = SharedText::from("shared");
        assert!(std::ptr::eq(text.as_bytes(), text.clone().as_bytes()));
    }

    #[test]
    fn the_heap_is_counted_with_the_allocators_share() {
        for (len, heap) in [(0, 32), (8, 32), (9, 48), (24, 48), (25, 64), (1000, 1024), (1001, 1040)] {
            assert_eq!(SharedText::from("x".repeat(len)).heap_bytes(), heap, "{len}");
        }
        let most = (0..100).map(|len| SharedText::from("x".repeat(len)).heap_bytes() - len).max();
        assert_eq!(most, Some(SharedText::OVERHEAD_BYTES_MAX));
    }
}
