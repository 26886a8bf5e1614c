//! A secret shared with the app, and what is made with it.
//!
//! What the words of the configuration (`none`, nothing at all) mean is worked out there.

use std::fmt;

use hmac::digest::KeyInit;
use hmac::{EagerHash, Hmac, Mac};
use sha2::Sha256;

/// A secret shared with the app. Never empty, never printed, and not comparable with `==`, which would tell by
/// its time how much of a guess is right.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// This text; `None` if it is empty, because nothing is ever checked against an empty secret.
    pub fn new(text: &str) -> Option<Secret> {
        (!text.is_empty()).then(|| Secret(text.into()))
    }

    /// The secret itself, for whoever has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A MAC over `message` with this secret, to be compared with [`Mac::verify_slice`] only.
    pub(crate) fn mac<D: EagerHash>(&self, message: &[u8]) -> Hmac<D>
    where
        Hmac<D>: Mac + KeyInit,
    {
        let mut mac = <Hmac<D> as KeyInit>::new_from_slice(self.0.as_bytes()).expect("HMAC takes a key of any length");
        mac.update(message);
        mac
    }

    /// Lower-case hex of HMAC-SHA256 over `message`: a signature for others, or a key made out of this one.
    pub fn hex_mac(&self, message: &str) -> String {
        hex(&self.mac::<Sha256>(message.as_bytes()).finalize().into_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[digit as usize]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_text_is_no_secret() {
        assert!(Secret::new("").is_none());
        assert_eq!(Secret::new("own").unwrap().expose(), "own");
    }

    #[test]
    fn the_mac_is_the_one_of_rfc_4231() {
        let mac = Secret::new("Jefe").unwrap().hex_mac("what do ya want for nothing?");
        assert_eq!(mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::new("s3cr3t")), "Some(Secret(…))");
    }
}
