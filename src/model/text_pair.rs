//! Two texts that live and are shared together.

use triomphe::ThinArc;

/// Two texts in one shared allocation behind one word, each of any bytes.
///
/// How long the second text is comes first, in seven bits a byte: one byte nearly always, as it is the shorter one, where a
/// length in the allocation's header would take eight.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TextPair(ThinArc<(), u8>);

const _: () = assert!(size_of::<TextPair>() == 8);

/// Bytes of the largest length.
const LEN_BYTES_MAX: usize = (usize::BITS as usize).div_ceil(7);

/// In a byte of a length: there is one more.
const GOES_ON: u8 = 1 << 7;

impl TextPair {
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
        let mut len = second.len();
        let mut packed = Vec::with_capacity(LEN_BYTES_MAX + first.len() + second.len());
        while len >= 1 << 7 {
            packed.push(len as u8 | GOES_ON);
            len >>= 7;
        }
        packed.push(len as u8);
        packed.extend_from_slice(first);
        packed.extend_from_slice(second.as_bytes());
        TextPair(ThinArc::from_header_and_slice((), &packed))
    }

    fn halves(&self) -> (&[u8], &[u8]) {
        let packed = &self.0.slice;
        let (mut len, mut at) = (0, 0);
        while packed[at] & GOES_ON != 0 {
            len |= usize::from(packed[at] & !GOES_ON) << (7 * at);
            at += 1;
        }
        len |= usize::from(packed[at]) << (7 * at);
        let both = &packed[at + 1..];
        both.split_at(both.len() - len)
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
        for len in [0, 1, 127, 128, 129, 255, 256, 16_383, 16_384, 100_000] {
            let pair = TextPair::new("first", &"x".repeat(len));
            assert_eq!((pair.first(), pair.second().len()), ("first", len));
            assert_eq!(pair.with_second("second").second(), "second");
        }
    }
}
