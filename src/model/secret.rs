//! A secret shared with the app.

use std::fmt;

use hmac::digest::KeyInit;
use hmac::{EagerHash, Hmac, Mac};

/// The text that switches the feature off whose secret it is.
const OFF: &str = "none";

/// A secret shared with the app. Never empty, never printed, and not comparable with `==`, which would tell by
/// its time how much of a guess is right.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// The secret in force out of `candidates`, the most special one first: the first that is not empty. `None`
    /// if all are empty or that one is `none`, which switches the feature off.
    pub fn resolve<'a>(candidates: impl IntoIterator<Item = &'a str>) -> Option<Secret> {
        let chosen = candidates.into_iter().find(|candidate| !candidate.is_empty())?;
        (chosen != OFF).then(|| Secret(chosen.into()))
    }

    /// The secret itself, for whoever has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A MAC over `message` with this secret, to be compared with [`Mac::verify_slice`] only.
    pub(super) fn mac<D: EagerHash>(&self, message: &[u8]) -> Hmac<D>
    where
        Hmac<D>: Mac + KeyInit,
    {
        let mut mac = <Hmac<D> as KeyInit>::new_from_slice(self.0.as_bytes()).expect("HMAC takes a key of any length");
        mac.update(message);
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[digit as usize]))
        .collect()
}

/// Reads lower-case hex of exactly 32 bytes, the form of a signature.
pub(super) fn signature_from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_secret_given_counts_and_none_switches_off() {
        let resolved = |candidates: [&str; 2]| Secret::resolve(candidates).map(|secret| secret.expose().to_owned());
        assert_eq!(resolved(["own", "app"]).as_deref(), Some("own"));
        assert_eq!(resolved(["", "app"]).as_deref(), Some("app"));
        assert_eq!(resolved(["own", "none"]).as_deref(), Some("own"));
        assert_eq!(resolved(["none", "app"]), None);
        assert_eq!(resolved(["", "none"]), None);
        assert_eq!(resolved(["", ""]), None);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::resolve(["s3cr3t"])), "Some(Secret(…))");
    }
}
