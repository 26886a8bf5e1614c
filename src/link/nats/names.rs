//! Names of streams as NATS subjects.
//!
//! A stream may be called anything; a subject is made of tokens with dots between them, has no blanks, and some of its
//! tokens mean something. A name that is a subject is used as it is, so that we meet AnyCable's nodes there. Any other is
//! encoded under [`ENCODED`], where no name is used as it is: two names never share a subject, and none reaches a subject
//! that we or the server use for something else.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What all our own subjects begin with.
pub const OURS: &str = "_cw_";

/// Encoded names: base64url behind this.
const ENCODED: &str = "_cw_.";

/// Names that are too long for a line of the protocol: base64url of their SHA-256 behind this. The name stands in the
/// message; that two names have one hash is not going to happen.
const HASHED: &str = "_cw_h.";

/// Bytes of a name that is not hashed. A line has room for 4096 bytes (`max_control_line`), with two subjects of a request
/// and their numbers, and what is encoded grows by a third.
const NAME_BYTES_MAX: usize = 1024;

/// What names are used as they are, if they are subjects.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Stands before every name.
    prefix: String,
    /// Subjects that mean something else.
    reserved: Vec<String>,
}

impl Names {
    /// Names of which none is one of `reserved`.
    pub fn new(prefix: &str, reserved: &[&str]) -> Names {
        Names { prefix: prefix.to_owned(), reserved: reserved.iter().map(|&name| name.to_owned()).collect() }
    }

    /// The subject for a stream: always the same, and of this stream alone.
    pub fn subject(&self, stream: &str) -> String {
        let name = format!("{}{stream}", self.prefix);
        if is_subject(&name) && !self.reserved.contains(&name) { name } else { encoded(&name) }
    }
}

/// A name as one subject that holds nothing but letters, digits, `-`, `_` and one dot.
fn encoded(name: &str) -> String {
    if name.len() > NAME_BYTES_MAX {
        return format!("{HASHED}{}", BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(name)));
    }
    format!("{ENCODED}{}", token(name))
}

/// A name as one token. The name of length 0 is `-`, which base64 never gives alone.
pub fn token(name: &str) -> String {
    match name {
        "" => "-".to_owned(),
        _ if name.len() > NAME_BYTES_MAX => format!("--{}", BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(name))),
        _ => BASE64_URL_SAFE_NO_PAD.encode(name),
    }
}

/// Whether a name can stand as a subject and is nobody else's.
fn is_subject(name: &str) -> bool {
    let tokens_are_plain = || name.split('.').all(|token| !matches!(token, "" | "*" | ">"));
    let is_ours = name.starts_with(OURS) || name.starts_with("_INBOX") || name.starts_with('$');
    name.len() <= NAME_BYTES_MAX
        && !is_ours
        && !name.contains(|c: char| c.is_whitespace() || c.is_control())
        && tokens_are_plain()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Reads an encoded subject back.
    fn decoded(subject: &str) -> Option<String> {
        let name = BASE64_URL_SAFE_NO_PAD.decode(subject.strip_prefix(ENCODED)?).ok()?;
        String::from_utf8(name).ok()
    }

    #[test]
    fn names_that_are_subjects_stay_as_they_are() {
        let names = Names::new("", &["__anycable__"]);
        for name in ["room", "room:7", "a.b.c", "Z2lkOi8vYXBwL1Jvb20vNw", "raum/7", "ä.ö", "日本", "a*b", "x>", "😀"]
        {
            assert_eq!(names.subject(name), name);
        }
        assert_eq!(Names::new("p.", &[]).subject("room"), "p.room");
    }

    #[test]
    fn all_others_are_encoded_one_by_one_and_can_be_read_back() {
        let names = Names::new("", &["__anycable__", "__anycable_internal__"]);
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let others = [
            "a b",
            " a",
            "a\tb",
            "a\r\nPUB b 0",
            "a\0",
            ".",
            "..",
            "a.",
            ".a",
            "a..b",
            "*",
            ">",
            "a.*",
            "a.*.b",
            "a.>",
            "$SYS.x",
            "$JS.API.STREAM.PURGE.x",
            "$",
            "_INBOX.x.1",
            "_cw_",
            "_cw_.YQ",
            "_cw_h.x",
            "__anycable__",
            "__anycable_internal__",
            "a\u{a0}b",
            "a\u{3000}",
            "a\u{85}b",
            "\u{7f}",
        ];
        let mut subjects = HashSet::new();
        for name in others {
            let subject = names.subject(name);
            assert!(subject.starts_with(OURS) && subject.is_ascii(), "{name:?}: {subject}");
            assert_eq!(decoded(&subject).as_deref(), Some(name));
            assert!(subjects.insert(subject));
        }
        let subject = names.subject(&long);
        assert!(subject.len() < 64 && subject.starts_with(HASHED), "{subject}");
        assert_ne!(names.subject(&format!("{long}x")), subject);
        // One below stays what it is.
        assert_eq!(names.subject(&long[1..]), long[1..]);
        assert!(names.subject(&" ".repeat(NAME_BYTES_MAX)).len() < 1500);
    }

    #[test]
    fn a_prefix_keeps_names_apart_that_are_encoded() {
        let (a, b) = (Names::new("a", &[]), Names::new("b", &[]));
        assert_ne!(a.subject("x y"), b.subject("x y"));
        assert_eq!(Names::new("__any", &["__anycable__"]).subject("cable__"), encoded("__anycable__"));
    }

    #[test]
    fn a_token_has_no_dot_and_is_of_one_name() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let names = ["", "-", "a", "a.b", "*", ">", "ä b", "--", &long];
        let tokens: HashSet<String> = names.iter().map(|name| token(name)).collect();
        assert_eq!(tokens.len(), names.len());
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(tokens.iter().all(|token| !token.is_empty() && token.chars().all(plain)), "{tokens:?}");
    }
}
