//! Two texts that live and are shared together.

use triomphe::ThinArc;

/// Two texts in one shared allocation behind one word, each of any bytes.
///
/// Four bytes come first, which say how long the first text is: a length in the allocation's header would be aligned to
/// eight.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TextPair(ThinArc<(), u8>);

const _: () = assert!(size_of::<TextPair>() == 8);

impl TextPair {
    /// # Panics
    /// On a first text of 4 GiB; whoever makes one has bounded it far below.
    pub fn new(first: &str, second: &str) -> TextPair {
        TextPair::pack(first.as_bytes(), second)
    }

    /// A pair with the same first text.
    pub fn with_second(&self, second: &str) -> TextPair {
        TextPair::pack(self.halves().0, second)
    }

    pub fn first(&self) -> &str {
        text(self.halves().0)
    }

    pub fn second(&self) -> &str {
        text(self.halves().1)
    }

    /// The first text as bytes, which is cheaper to compare.
    pub fn first_bytes(&self) -> &[u8] {
        self.halves().0
    }

    /// Bytes that are packed.
    pub fn packed_len(&self) -> usize {
        self.0.slice.len()
    }

    fn pack(first: &[u8], second: &str) -> TextPair {
        let len = u32::try_from(first.len()).expect("a first text is bounded");
        TextPair(ThinArc::from_header_and_slice((), &[&len.to_le_bytes(), first, second.as_bytes()].concat()))
    }

    fn halves(&self) -> (&[u8], &[u8]) {
        let (len, texts) = self.0.slice.split_first_chunk().expect("made with a length");
        texts.split_at(u32::from_le_bytes(*len) as usize)
    }
}

/// Checked again each time because the thin pointer forgets the type; 100 bytes take a few nanoseconds.
fn text(half: &[u8]) -> &str {
    std::str::from_utf8(half).expect("made from text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_texts_read_back_whatever_is_in_them() {
        for (first, second) in [("{\"channel\":\"Chat\"}", "chat:1"), ("ä\0b", "\u{ff}"), ("", "s"), ("i", "")] {
            let pair = TextPair::new(first, second);
            assert_eq!((pair.first(), pair.second()), (first, second));
            assert_eq!(pair.first_bytes(), first.as_bytes());
            let other = pair.with_second("odd\0text\0\0");
            assert_eq!((other.first(), other.second()), (first, "odd\0text\0\0"));
        }
        assert!(TextPair::new("ab", "c") != TextPair::new("a", "bc"));
    }
}
