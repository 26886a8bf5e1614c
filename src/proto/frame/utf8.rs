//! UTF-8 checked piece by piece, refusing at the first byte that no continuation could save.

use serde::{Deserialize, Serialize};

/// Bytes are not, and cannot become, valid UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotUtf8;

/// Where a text stands between two pieces: the begun character, at most three bytes of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Utf8 {
    begun: [u8; 4],
    len: u8,
}

impl Utf8 {
    /// Goes on with `bytes`.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NotUtf8> {
        let mut bytes = bytes;
        while self.len > 0 {
            let Some((&next, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            let len = usize::from(self.len);
            self.begun[len] = next;
            self.len = match std::str::from_utf8(&self.begun[..=len]) {
                Ok(_) => 0,
                // No character has a fourth byte that leaves it open, so `begun` never overflows.
                Err(error) if error.error_len().is_none() => self.len + 1,
                Err(_) => return Err(NotUtf8),
            };
        }
        if let Err(error) = std::str::from_utf8(bytes) {
            if error.error_len().is_some() {
                return Err(NotUtf8);
            }
            let open = &bytes[error.valid_up_to()..];
            self.begun[..open.len()].copy_from_slice(open);
            self.len = open.len() as u8;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The position of the byte at which `bytes`, given one by one, are refused.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let mut utf8 = Utf8::default();
        bytes.iter().position(|byte| utf8.push(&[*byte]).is_err())
    }

    #[test]
    fn any_cut_of_a_text_passes() {
        let text = "aä€𐍈\u{10FFFF}\u{D7FF}\u{E000}z";
        for a in 0..=text.len() {
            for b in a..=text.len() {
                let mut utf8 = Utf8::default();
                for piece in [&text.as_bytes()[..a], &text.as_bytes()[a..b], &text.as_bytes()[b..]] {
                    utf8.push(piece).unwrap();
                }
                assert!(utf8.len == 0);
            }
        }
    }

    #[test]
    fn the_first_impossible_byte_is_refused() {
        for (bytes, at) in [
            (&b"ab\x80"[..], 2),
            (b"\xC0", 0),
            (b"\xC1", 0),
            (b"\xF5", 0),
            (b"\xFF", 0),
            (b"\xC3a", 1),
            (b"\xE0\x9F", 1),
            (b"\xED\xA0", 1),
            (b"\xF0\x8F", 1),
            (b"\xF4\x90", 1),
            (b"\xE2\x82a", 2),
            (b"\xF0\x9F\x98a", 3),
        ] {
            assert_eq!(refused_at(bytes), Some(at), "{bytes:x?}");
            assert_eq!(Utf8::default().push(bytes), Err(NotUtf8));
        }
    }

    #[test]
    fn an_open_character_is_neither_refused_nor_complete() {
        for bytes in [&b"\xC3"[..], b"\xE2\x82", b"\xF0\x9F\x98"] {
            let mut utf8 = Utf8::default();
            utf8.push(bytes).unwrap();
            assert!(utf8.len > 0);
        }
    }
}
