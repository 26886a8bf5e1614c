//! What a server's message is for, told from a few words of it.
//!
//! A waiting client must cost next to nothing, so nothing is parsed: the outermost keys are walked until the one that
//! tells, and what lies deeper is stepped over. A server whose order of keys or spacing is unusual is understood all
//! the same.

use memchr::memmem;

use super::Protocol;

/// What a server's message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The session may begin.
    Welcome,
    /// The protocol's heartbeat.
    Ping,
    /// Answer to a client's ping.
    Pong,
    /// The subscription stands.
    Confirm,
    /// The subscription was refused.
    Reject,
    /// All that was missed has been sent.
    ConfirmHistory,
    /// What was missed cannot be sent.
    RejectHistory,
    /// The server says goodbye, or ends the subscription.
    Disconnect,
    /// The server says that something went wrong.
    Error,
    /// Something for the application.
    Data,
}

/// Sorts a message.
pub fn kind(protocol: Protocol, message: &[u8]) -> Kind {
    match protocol {
        Protocol::Raw => Kind::Data,
        Protocol::ActionCable | Protocol::ActionCableExt => action_cable(message),
        Protocol::Pusher => pusher(message),
        Protocol::Centrifugo => centrifugo(message),
    }
}

fn action_cable(message: &[u8]) -> Kind {
    // By far the most common one, and the only one an idle client ever sees.
    if message.starts_with(br#"{"type":"ping""#) {
        return Kind::Ping;
    }
    for (key, value) in Keys::of(message) {
        match key {
            b"type" => {
                return match text(value) {
                    b"welcome" => Kind::Welcome,
                    b"ping" => Kind::Ping,
                    b"pong" => Kind::Pong,
                    b"confirm_subscription" => Kind::Confirm,
                    b"reject_subscription" => Kind::Reject,
                    b"confirm_history" => Kind::ConfirmHistory,
                    b"reject_history" => Kind::RejectHistory,
                    b"disconnect" => Kind::Disconnect,
                    _ => Kind::Data,
                };
            }
            // May be long, and a message that has one before its type is the application's.
            b"message" => break,
            _ => {}
        }
    }
    Kind::Data
}

fn pusher(message: &[u8]) -> Kind {
    let event = Keys::of(message).find(|(key, _)| *key == b"event");
    match event.map(|(_, value)| text(value)) {
        Some(b"pusher:ping") => Kind::Ping,
        Some(b"pusher:pong") => Kind::Pong,
        Some(b"pusher:connection_established") => Kind::Welcome,
        Some(b"pusher_internal:subscription_succeeded") => Kind::Confirm,
        Some(b"pusher_internal:subscription_error" | b"pusher:subscription_error") => Kind::Reject,
        Some(b"pusher:error") => Kind::Error,
        _ => Kind::Data,
    }
}

fn centrifugo(message: &[u8]) -> Kind {
    if message == b"{}" {
        return Kind::Ping;
    }
    for (key, value) in Keys::of(message) {
        match key {
            b"push" => {
                let ends = |key: &[u8]| matches!(key, b"disconnect" | b"unsubscribe");
                let first = Keys::of(value).find(|(key, _)| *key == b"pub" || ends(key));
                return if first.is_some_and(|(key, _)| ends(key)) { Kind::Disconnect } else { Kind::Data };
            }
            b"connect" => return Kind::Welcome,
            b"subscribe" => return Kind::Confirm,
            b"error" => return Kind::Error,
            _ => {}
        }
    }
    Kind::Data
}

/// Whether a Centrifugo server wants its heartbeats answered, from its reply to `connect`.
pub fn wants_pong(welcome: &[u8]) -> bool {
    let connect = Keys::of(welcome).find(|(key, _)| *key == b"connect");
    connect
        .is_some_and(|(_, connect)| Keys::of(connect).any(|(key, value)| key == b"pong" && value.starts_with(b"true")))
}

/// After how many seconds of silence a Pusher server wants a ping, from its `connection_established`. The number lies
/// in a string that holds JSON, so it is looked for by its name; 0 without it.
pub fn activity_timeout_s(welcome: &[u8]) -> u32 {
    const NAME: &[u8] = b"activity_timeout";
    let Some(at) = memmem::find(welcome, NAME) else { return 0 };
    let number = welcome[at + NAME.len()..].trim_ascii_start();
    let digits = number.iter().skip_while(|byte| matches!(byte, b'\\' | b'"' | b':' | b' '));
    digits
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0_u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
}

/// Whether the message is a refusal although its status was good, as Centrifugo's HTTP API answers.
pub fn has_error(answer: &[u8]) -> bool {
    Keys::of(answer).any(|(key, _)| key == b"error")
}

/// The characters of a JSON string, escapes as they are; empty for anything else.
pub(super) fn text(value: &[u8]) -> &[u8] {
    let inside = value.strip_prefix(b"\"").unwrap_or_default();
    &inside[..string_end(inside).unwrap_or(0)]
}

/// Where the string ends whose opening quote lies just before.
fn string_end(inside: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + memchr::memchr2(b'"', b'\\', inside.get(from..)?)?;
        if inside[at] == b'"' {
            return Some(at);
        }
        from = at + 2;
    }
}

/// Where a value ends: the comma or the closing bracket behind it.
fn value_end(value: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_u32);
    loop {
        match value.get(at)? {
            b'"' => at += 1 + string_end(&value[at + 1..])?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' if depth == 0 => return Some(at),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}

/// The keys of an object in their order, each with everything from its value on.
pub(super) struct Keys<'a> {
    /// The last value that was handed out, or the object at the beginning.
    rest: &'a [u8],
    begun: bool,
}

impl<'a> Keys<'a> {
    pub(super) fn of(object: &'a [u8]) -> Self {
        Self { rest: object.trim_ascii_start(), begun: false }
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = match std::mem::replace(&mut self.begun, true) {
            true => self.rest[value_end(self.rest)?..].strip_prefix(b",")?,
            false => self.rest.strip_prefix(b"{")?,
        };
        let inside = entry.trim_ascii_start().strip_prefix(b"\"")?;
        let (key, behind) = inside.split_at(string_end(inside)?);
        self.rest = behind[1..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        Some((key, self.rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(protocol: Protocol, cases: &[(&str, Kind)]) {
        for (text, expected) in cases {
            assert_eq!(kind(protocol, text.as_bytes()), *expected, "{text}");
        }
    }

    #[test]
    fn action_cable_messages_are_sorted_by_their_type() {
        sorted(
            Protocol::ActionCable,
            &[
                (r#"{"type":"ping","message":1790000000}"#, Kind::Ping),
                (r#"{"message":1790000000, "type" : "ping"}"#, Kind::Data),
                (r#"{"type": "welcome","sid":"x"}"#, Kind::Welcome),
                (r#"{"type":"pong"}"#, Kind::Pong),
                (r#"{"identifier":"{\"type\":\"ping\"}","type":"confirm_subscription"}"#, Kind::Confirm),
                (r#"{"type":"reject_subscription","identifier":"x"}"#, Kind::Reject),
                (r#"{"type":"confirm_history","identifier":"x"}"#, Kind::ConfirmHistory),
                (r#"{"type":"reject_history","identifier":"x"}"#, Kind::RejectHistory),
                (r#"{"type":"disconnect","reason":"remote","reconnect":false}"#, Kind::Disconnect),
                (r#"{"identifier":"x","message":{"type":"welcome"}}"#, Kind::Data),
                (r#"{"identifier":"x","other":{"type":"welcome"},"type":"pong"}"#, Kind::Pong),
                ("hello", Kind::Data),
            ],
        );
    }

    #[test]
    fn pusher_messages_are_sorted_by_their_event() {
        sorted(
            Protocol::Pusher,
            &[
                (r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\"}"}"#, Kind::Welcome),
                (r#"{"event":"pusher_internal:subscription_succeeded","data":"{}","channel":"a"}"#, Kind::Confirm),
                (r#"{"channel":"a", "data":{"event":"x"}, "event" : "pusher:ping"}"#, Kind::Ping),
                (r#"{"event":"pusher:pong"}"#, Kind::Pong),
                (r#"{"event":"pusher:error","data":{"code":4009,"message":"no"}}"#, Kind::Error),
                (r#"{"event":"pusher:subscription_error","data":{"status":401}}"#, Kind::Reject),
                (r#"{"data":"{\"event\":\"pusher:error\"}","event":"news","channel":"a"}"#, Kind::Data),
                (r#"{"event":17}"#, Kind::Data),
                ("[1]", Kind::Data),
            ],
        );
    }

    #[test]
    fn centrifugo_replies_and_pushes_are_told_apart() {
        sorted(
            Protocol::Centrifugo,
            &[
                ("{}", Kind::Ping),
                (r#"{"id":1,"connect":{"client":"x","ping":25,"pong":true}}"#, Kind::Welcome),
                (r#"{"id":2,"subscribe":{}}"#, Kind::Confirm),
                (r#"{"subscribe":{"error":1},"id":2}"#, Kind::Confirm),
                (r#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#, Kind::Error),
                (r#"{"push":{"channel":"a","pub":{"data":{"disconnect":1}}}}"#, Kind::Data),
                (r#"{"push":{"channel":"disconnect","join":{}}}"#, Kind::Data),
                (r#"{"push":{"disconnect":{"code":3000,"reason":"x"}}}"#, Kind::Disconnect),
                (r#"{"push":{"channel":"a","unsubscribe":{"code":2500}}}"#, Kind::Disconnect),
                (r#"{"id":9,"rpc":{}}"#, Kind::Data),
            ],
        );
    }

    #[test]
    fn a_welcome_says_which_heartbeats_are_wanted() {
        assert!(wants_pong(br#"{"id":1,"connect":{"client":"x","data":{"pong":false},"ping":25,"pong":true}}"#));
        assert!(!wants_pong(br#"{"id":1,"connect":{"client":"x","data":{"pong":true},"ping":25}}"#));
        let established =
            br#"{"event":"pusher:connection_established","data":"{\"activity_timeout\":30,\"socket_id\":\"1.7\"}"}"#;
        assert_eq!(activity_timeout_s(established), 30);
        assert_eq!(activity_timeout_s(br#"{"data":{"activity_timeout": 120}}"#), 120);
        assert_eq!(activity_timeout_s(br#"{"data":"{}"}"#), 0);
    }

    #[test]
    fn whatever_comes_is_sorted_without_a_panic() {
        let whole =
            br#" { "id" : 1 , "push" : {"channel":"a\\\"b","pub":{"data":[1,{"x":"y"}]}}, "event":"e", "type":"t"}"#;
        for protocol in [Protocol::ActionCable, Protocol::Pusher, Protocol::Centrifugo] {
            for end in 0..=whole.len() {
                for start in 0..end {
                    kind(protocol, &whole[start..end]);
                }
            }
        }
        assert!(has_error(br#"{"error":{"code":100}}"#) && !has_error(br#"{"result":{"error":1}}"#) && !has_error(b""));
    }
}
