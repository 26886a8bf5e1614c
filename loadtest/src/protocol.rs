//! What a client says and how it reads what comes back: plain WebSocket, or Action Cable.
//!
//! Bytes and texts only. A waiting client must cost next to nothing, so messages are recognised by looking for a few
//! words in place instead of parsing JSON; a server whose wording is unusual is still understood as long as it
//! writes valid JSON with a top-level `type`.

use anyhow::{Context as _, bail};
use memchr::memmem;

use crate::template::Template;
use crate::wire;

/// Which dialect the clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Plain WebSocket: ready as soon as the handshake is done.
    Raw,
    /// Action Cable: wait for the welcome, subscribe, wait for the confirmation.
    #[value(name = "actioncable")]
    ActionCable,
}

/// Where to connect, taken apart from a `ws://host:port/path` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port` as it goes into the `Host` header.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Takes a `ws://` URL apart. `wss://` is refused: TLS would measure the TLS library, and costs 20 KB a connection.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: http::Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        match uri.scheme_str() {
            Some("ws" | "http") => {}
            Some("wss" | "https") => bail!("{url}: TLS is not spoken here; point the load test at the plain port"),
            _ => bail!("{url}: expected ws://HOST:PORT/PATH"),
        }
        let authority = uri.authority().context("the URL names no host")?;
        let authority = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { authority, path: path.to_owned() })
    }
}

/// Everything a connection says until it is ready.
#[derive(Debug, Clone)]
pub struct Script {
    /// The dialect.
    pub protocol: Protocol,
    /// The head up to the key.
    before_key: String,
    /// The head from behind the key.
    after_key: String,
    /// The Action Cable identifier to subscribe to; none means that the welcome is enough.
    pub identifier: Option<Template>,
}

impl Script {
    /// Prepares the request head. `cookie_bytes` is the length of the `Cookie` value, 0 for none.
    pub fn new(protocol: Protocol, target: &Target, cookie_bytes: usize, identifier: Option<&str>) -> Self {
        let before_key = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ",
            target.path, target.authority
        );
        let mut after_key = String::from("\r\n");
        if protocol == Protocol::ActionCable {
            after_key.push_str("Sec-WebSocket-Protocol: actioncable-v1-json\r\n");
        }
        if cookie_bytes > 0 {
            let value = "x".repeat(cookie_bytes.saturating_sub("_session=".len()));
            after_key.push_str(&format!("Cookie: _session={value}\r\n"));
        }
        after_key.push_str("\r\n");
        Self { protocol, before_key, after_key, identifier: identifier.map(Template::new) }
    }

    /// Appends the upgrade request of connection `number`.
    pub fn push_request(&self, out: &mut Vec<u8>, number: u32, attempt: u32) {
        out.extend_from_slice(self.before_key.as_bytes());
        out.extend_from_slice(&wire::key_value(number, attempt));
        out.extend_from_slice(self.after_key.as_bytes());
    }

    /// The text of the subscribe command, if this script has one.
    pub fn subscribe_text(&self, number: u32) -> Option<String> {
        let identifier = self.identifier.as_ref()?.expand(number);
        Some(format!(r#"{{"command":"subscribe","identifier":{}}}"#, json_string(&identifier)))
    }
}

/// A Rust string as a JSON string, quotes included.
pub fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always valid JSON")
}

/// What a server's message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The session may begin.
    Welcome,
    /// The protocol's heartbeat.
    Ping,
    /// Answer to a client's ping command.
    Pong,
    /// The subscription stands.
    Confirm,
    /// The subscription was refused.
    Reject,
    /// The server says goodbye.
    Disconnect,
    /// Something for the application.
    Data,
}

/// Sorts an Action Cable message.
pub fn kind(message: &[u8]) -> Kind {
    // By far the most common one, and the only one an idle client ever sees.
    if message.starts_with(br#"{"type":"ping""#) {
        return Kind::Ping;
    }
    let Some(word) = type_word(message) else { return Kind::Data };
    match word {
        b"welcome" => Kind::Welcome,
        b"ping" => Kind::Ping,
        b"pong" => Kind::Pong,
        b"confirm_subscription" => Kind::Confirm,
        b"reject_subscription" => Kind::Reject,
        b"disconnect" => Kind::Disconnect,
        _ => Kind::Data,
    }
}

/// The value of the first `"type"` key. A key inside the identifier has backslashes before its quotes and is not found;
/// one inside `message` comes after the identifier of a data message, which is looked for first.
fn type_word(message: &[u8]) -> Option<&[u8]> {
    let at = memmem::find(message, br#""type""#)?;
    if memmem::find(&message[..at], br#""message""#).is_some() {
        return None;
    }
    let rest = message[at + 6..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    Some(&rest[..memchr::memchr(b'"', rest)?])
}

/// The mark that `broadcast` puts into what it publishes: `~SEQUENCE@NANOSECONDS~`, the time being when the message
/// *should* have been sent. It survives JSON, any envelope and any re-encoding, and is found without parsing.
pub fn mark(sequence: u32, at_ns: u64) -> String {
    format!("~{sequence}@{at_ns}~")
}

/// Finds a mark: its sequence number and time.
pub fn find_mark(message: &[u8]) -> Option<(u32, u64)> {
    let start = memchr::memchr(b'~', message)? + 1;
    let end = start + memchr::memchr(b'~', &message[start..])?;
    let (sequence, at) = std::str::from_utf8(&message[start..end]).ok()?.split_once('@')?;
    Some((sequence.parse().ok()?, at.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sorted_by_their_type() {
        for (text, expected) in [
            (r#"{"type":"ping","message":1790000000}"#, Kind::Ping),
            (r#"{"message":1790000000, "type" : "ping"}"#, Kind::Data),
            (r#"{"type": "welcome","sid":"x"}"#, Kind::Welcome),
            (r#"{"type":"pong"}"#, Kind::Pong),
            (r#"{"identifier":"{\"type\":\"ping\"}","type":"confirm_subscription"}"#, Kind::Confirm),
            (r#"{"type":"reject_subscription","identifier":"x"}"#, Kind::Reject),
            (r#"{"type":"disconnect","reason":"remote","reconnect":false}"#, Kind::Disconnect),
            (r#"{"identifier":"x","message":{"type":"welcome"}}"#, Kind::Data),
            ("hello", Kind::Data),
        ] {
            assert_eq!(kind(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_mark_is_found_in_any_envelope() {
        let text = format!(r#"{{"identifier":"x","message":"{}pad"}}"#, mark(17, 123_456_789_012));
        assert_eq!(find_mark(text.as_bytes()), Some((17, 123_456_789_012)));
        for none in ["", "~", "~~", "~1~", "~a@b~", "~1@~", "plain"] {
            assert_eq!(find_mark(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn a_url_is_taken_apart_and_tls_is_refused_by_name() {
        let target = Target::parse("ws://127.0.0.1:8080/cable?x=1").unwrap();
        assert_eq!(target, Target { authority: "127.0.0.1:8080".into(), path: "/cable?x=1".into() });
        assert_eq!(Target::parse("ws://localhost").unwrap().authority, "localhost:80");
        assert!(Target::parse("wss://localhost/cable").unwrap_err().to_string().contains("TLS"));
        assert!(Target::parse("localhost:80").is_err());
    }

    #[test]
    fn the_head_holds_a_cookie_of_the_size_asked_for() {
        let target = Target::parse("ws://127.0.0.1:1/cable").unwrap();
        let script = Script::new(Protocol::ActionCable, &target, 200, Some(r#"{"channel":"A","id":"{n}"}"#));
        let mut head = Vec::new();
        script.push_request(&mut head, 3, 0);
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut headers);
        assert!(request.parse(&head).unwrap().is_complete());
        let cookie = request.headers.iter().find(|header| header.name == "Cookie").unwrap();
        assert_eq!(cookie.value.len(), 200);
        assert_eq!(
            script.subscribe_text(3).unwrap(),
            r#"{"command":"subscribe","identifier":"{\"channel\":\"A\",\"id\":\"0000003\"}"}"#
        );
    }
}
