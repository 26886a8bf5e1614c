//! Coming back to an Action Cable session (`actioncable-v1-ext-json`): what a welcome and a publication say that a client
//! keeps, and how it asks for what it missed.

use super::recognise::{Keys, text};
use super::{Script, json_string};

/// A place in a stream. The names are JSON as they came, without the quotes: they are only ever compared and sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position<'a> {
    /// Which stream.
    pub stream: &'a str,
    /// Which life of the storage.
    pub epoch: &'a str,
    /// The last message that came.
    pub offset: u64,
}

/// Up to where a client had heard everything when it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left<'a> {
    /// In Unix time, seconds.
    pub at_s: u64,
    /// In the stream, if anything came from it.
    pub position: Option<Position<'a>>,
}

/// The session's id in a welcome, empty without one; and whether it is the session that the client asked for.
pub fn welcome(message: &[u8]) -> (&str, bool) {
    let (mut sid, mut restored) = ("", false);
    for (key, value) in Keys::of(message) {
        match key {
            b"sid" => sid = std::str::from_utf8(text(value)).unwrap_or_default(),
            b"restored" => restored = value.starts_with(b"true"),
            _ => {}
        }
    }
    (sid, restored)
}

/// Where a publication stands in its stream, if it says.
pub fn position(message: &[u8]) -> Option<Position<'_>> {
    let (mut stream, mut epoch, mut offset) = (None, None, None);
    for (key, value) in Keys::of(message) {
        match key {
            b"stream_id" => stream = std::str::from_utf8(text(value)).ok(),
            b"epoch" => epoch = std::str::from_utf8(text(value)).ok(),
            b"offset" => {
                let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
                offset = std::str::from_utf8(&value[..digits]).ok()?.parse().ok();
            }
            _ => {}
        }
    }
    Some(Position { stream: stream?, epoch: epoch?, offset: offset? })
}

impl Left<'_> {
    /// The value of `history` in a command.
    fn json(&self) -> String {
        let streams = self.position.map_or_else(String::new, |Position { stream, epoch, offset }| {
            format!(r#""{stream}":{{"epoch":"{epoch}","offset":{offset}}}"#)
        });
        format!(r#"{{"since":{},"streams":{{{streams}}}}}"#, self.at_s)
    }
}

impl Script {
    /// What a client whose session goes on asks for, if it is subscribed to anything.
    pub fn history_text(&self, number: u32, left: Left<'_>) -> Option<String> {
        self.with_history("history", number, left)
    }

    /// What a client says whose session was not kept.
    pub fn resubscribe_text(&self, number: u32, left: Left<'_>) -> Option<String> {
        self.with_history("subscribe", number, left)
    }

    fn with_history(&self, command: &str, number: u32, left: Left<'_>) -> Option<String> {
        let identifier = json_string(&self.identifier.as_ref()?.expand(number));
        Some(format!(r#"{{"command":"{command}","identifier":{identifier},"history":{}}}"#, left.json()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Protocol, Target};

    #[test]
    fn a_welcome_names_the_session_and_says_whether_it_is_the_old_one() {
        assert_eq!(welcome(br#"{"type":"welcome","sid":"abc"}"#), ("abc", false));
        let restored = br#"{"type":"welcome","sid":"d-1","restored":true,"restored_ids":["{\"sid\":\"no\"}"]}"#;
        assert_eq!(welcome(restored), ("d-1", true));
        assert_eq!(welcome(br#"{"type":"welcome"}"#), ("", false));
    }

    #[test]
    fn what_a_client_asks_for_is_what_it_was_told() {
        let message =
            br#"{"identifier":"x","message":{"offset":1,"epoch":"no"},"stream_id":"a\"b","epoch":"Xk2p","offset":41}"#;
        let position = position(message).unwrap();
        assert_eq!(position, Position { stream: r#"a\"b"#, epoch: "Xk2p", offset: 41 });
        let target = Target::parse("ws://127.0.0.1:1/").unwrap();
        let script = Script::new(Protocol::ActionCableExt, &target, 0, Some("room"));
        let asked = script.history_text(0, Left { at_s: 7, position: Some(position) }).unwrap();
        assert_eq!(
            asked,
            r#"{"command":"history","identifier":"room","history":{"since":7,"streams":{"a\"b":{"epoch":"Xk2p","offset":41}}}}"#
        );
        let asked = script.resubscribe_text(0, Left { at_s: 7, position: None }).unwrap();
        assert_eq!(asked, r#"{"command":"subscribe","identifier":"room","history":{"since":7,"streams":{}}}"#);
    }

    #[test]
    fn a_message_without_a_place_has_none() {
        for message in [
            &br#"{"identifier":"x","message":1}"#[..],
            br#"{"identifier":"x","message":1,"stream_id":"s","offset":3}"#,
            br#"{"identifier":"x","message":1,"stream_id":"s","epoch":"e","offset":-3}"#,
            b"",
        ] {
            assert_eq!(position(message), None, "{}", String::from_utf8_lossy(message));
        }
    }
}
