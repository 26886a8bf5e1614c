//! Session ids.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The characters of a session id, URL-safe, six bits each.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Characters in the text form of a session id (`contracts/action-cable.md` section 1).
pub const SID_LEN: usize = 21;

/// The id of one session: 126 random bits, shown to clients and apps as 21 URL-safe characters.
///
/// It is always made by this server. A client's `X-Request-ID` never becomes a session id: two sockets
/// with one id would be taken for one session, and a client could choose somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sid {
    // In halves: a `u128` would ask for alignment to 16 bytes and cost every session 8.
    high: u64,
    low: u64,
}

impl Sid {
    /// Makes an id out of random bits; the two highest are not used.
    pub const fn from_bits(bits: u128) -> Sid {
        let bits = bits & ((1 << (6 * SID_LEN)) - 1);
        Sid { high: (bits >> 64) as u64, low: bits as u64 }
    }

    /// Reads the text form. `None` for anything that this server cannot have handed out.
    pub fn parse(text: &str) -> Option<Sid> {
        if text.len() != SID_LEN {
            return None;
        }
        let mut bits = 0u128;
        for byte in text.bytes() {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u128::from(digit);
        }
        Some(Sid::from_bits(bits))
    }

    /// The text form, as ASCII bytes.
    pub fn ascii(self) -> [u8; SID_LEN] {
        let mut text = [0; SID_LEN];
        let mut bits = u128::from(self.high) << 64 | u128::from(self.low);
        for byte in text.iter_mut().rev() {
            *byte = ALPHABET[(bits & 63) as usize];
            bits >>= 6;
        }
        text
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.ascii() {
            fmt::Write::write_char(f, byte as char)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sid({self})")
    }
}

impl Serialize for Sid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Sid::parse(&text).ok_or_else(|| serde::de::Error::custom("not a session id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_21_url_safe_characters_and_reads_back() {
        for bits in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let sid = Sid::from_bits(bits);
            let text = sid.to_string();
            assert_eq!(text.len(), SID_LEN);
            assert_eq!(Sid::parse(&text), Some(sid));
        }
    }

    #[test]
    fn foreign_text_is_no_sid() {
        for text in ["", "short", "AAAAAAAAAAAAAAAAAAAA!", "AAAAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(Sid::parse(text), None, "{text}");
        }
    }
}
