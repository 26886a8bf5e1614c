//! What a client says and how it reads what comes back: plain WebSocket, Action Cable, Pusher, Centrifugo.
//!
//! Bytes and texts only; no sockets and no state.

mod recognise;
mod resume;

use anyhow::{Context as _, bail};

pub use recognise::{Kind, activity_timeout_s, has_error, kind, wants_pong};
pub use resume::{Left, Position, position, welcome};

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
    /// Action Cable's extended form (`actioncable-v1-ext-json`): a client that comes back asks for its session by the
    /// session's id, and for what was published while it was away.
    #[value(name = "actioncable-ext")]
    ActionCableExt,
    /// Pusher, version 7: wait for the connection to be established, subscribe to a public channel, wait for the
    /// confirmation; answer pings, and ping after a silence as long as the server says.
    Pusher,
    /// Centrifugo's bidirectional protocol, version 2, JSON: connect, subscribe, answer pings if asked to.
    Centrifugo,
}

impl Protocol {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::ActionCable => "actioncable",
            Self::ActionCableExt => "actioncable-ext",
            Self::Pusher => "pusher",
            Self::Centrifugo => "centrifugo",
        }
    }

    /// The `Sec-WebSocket-Protocol` of Action Cable; the others have none.
    pub fn subprotocol(self) -> Option<&'static str> {
        match self {
            Self::ActionCable => Some("actioncable-v1-json"),
            Self::ActionCableExt => Some("actioncable-v1-ext-json"),
            Self::Raw | Self::Pusher | Self::Centrifugo => None,
        }
    }

    /// Whether a client that comes back asks for its session and for what it missed.
    pub fn resumes(self) -> bool {
        self == Self::ActionCableExt
    }
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
    /// The head's start, path and query.
    path: String,
    /// The head from behind the path up to the key.
    before_key: String,
    /// The head from behind the key.
    after_key: String,
    /// Each ping of an Action Cable server is answered with a pong, which it wants if it has a time-out for them.
    pub pongs: bool,
    /// What to subscribe to, an Action Cable identifier or the name of a channel; none means that the welcome is enough.
    pub identifier: Option<Template>,
}

impl Script {
    /// Prepares the request head. `cookie_bytes` is the length of the `Cookie` value, 0 for none.
    pub fn new(protocol: Protocol, target: &Target, cookie_bytes: usize, identifier: Option<&str>) -> Self {
        let before_key = format!(
            " HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ",
            target.authority
        );
        let mut after_key = String::from("\r\n");
        if let Some(subprotocol) = protocol.subprotocol() {
            after_key.push_str(&format!("Sec-WebSocket-Protocol: {subprotocol}\r\n"));
        }
        if cookie_bytes > 0 {
            let value = "x".repeat(cookie_bytes.saturating_sub("_session=".len()));
            after_key.push_str(&format!("Cookie: _session={value}\r\n"));
        }
        after_key.push_str("\r\n");
        let path = format!("GET {}", target.path);
        Self { protocol, path, before_key, after_key, pongs: false, identifier: identifier.map(Template::new) }
    }

    /// Appends the upgrade request of connection `number`. A client that comes back shows the id that its session
    /// had, which must need no escapes.
    pub fn push_request(&self, out: &mut Vec<u8>, number: u32, attempt: u32, sid: Option<&str>) {
        out.extend_from_slice(self.path.as_bytes());
        if let Some(sid) = sid {
            out.extend_from_slice(if self.path.contains('?') { b"&sid=" } else { b"?sid=" });
            out.extend_from_slice(sid.as_bytes());
        }
        out.extend_from_slice(self.before_key.as_bytes());
        out.extend_from_slice(&wire::key_value(number, attempt));
        out.extend_from_slice(self.after_key.as_bytes());
    }

    /// The text of the subscribe command, if this script has one.
    pub fn subscribe_text(&self, number: u32) -> Option<String> {
        let identifier = json_string(&self.identifier.as_ref()?.expand(number));
        Some(match self.protocol {
            Protocol::Raw => return None,
            Protocol::ActionCable | Protocol::ActionCableExt => {
                format!(r#"{{"command":"subscribe","identifier":{identifier}}}"#)
            }
            Protocol::Pusher => format!(r#"{{"event":"pusher:subscribe","data":{{"channel":{identifier}}}}}"#),
            Protocol::Centrifugo => format!(r#"{{"id":2,"subscribe":{{"channel":{identifier}}}}}"#),
        })
    }

    /// What is said as soon as the handshake is done, before any welcome.
    pub fn greeting(&self) -> Option<&'static str> {
        (self.protocol == Protocol::Centrifugo).then_some(r#"{"id":1,"connect":{}}"#)
    }

    /// The answer to a heartbeat; `wanted` is what the welcome said about that.
    pub fn heartbeat_answer(&self, wanted: bool) -> Option<&'static str> {
        match self.protocol {
            Protocol::ActionCable | Protocol::ActionCableExt if self.pongs => Some(r#"{"command":"pong"}"#),
            Protocol::Pusher => Some(r#"{"event":"pusher:pong","data":{}}"#),
            Protocol::Centrifugo if wanted => Some("{}"),
            _ => None,
        }
    }
}

/// The ping of a Pusher client.
pub const PUSHER_PING: &str = r#"{"event":"pusher:ping","data":{}}"#;

/// A Rust string as a JSON string, quotes included.
pub fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always valid JSON")
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
    fn every_protocol_subscribes_in_its_own_words() {
        let target = Target::parse("ws://127.0.0.1:1/").unwrap();
        let text = |protocol| Script::new(protocol, &target, 0, Some("room-{n%10}")).subscribe_text(13);
        assert_eq!(text(Protocol::Raw), None);
        assert_eq!(text(Protocol::ActionCable).unwrap(), r#"{"command":"subscribe","identifier":"room-0000003"}"#);
        assert_eq!(
            text(Protocol::Pusher).unwrap(),
            r#"{"event":"pusher:subscribe","data":{"channel":"room-0000003"}}"#
        );
        assert_eq!(text(Protocol::Centrifugo).unwrap(), r#"{"id":2,"subscribe":{"channel":"room-0000003"}}"#);
    }

    #[test]
    fn a_client_that_comes_back_shows_the_id_of_its_session_behind_whatever_query_there_is() {
        for (url, expected) in [("ws://h/cable", "GET /cable?sid=a-1 HTTP"), ("ws://h/?x=1", "GET /?x=1&sid=a-1 HTTP")]
        {
            let script = Script::new(Protocol::ActionCableExt, &Target::parse(url).unwrap(), 0, None);
            let mut head = Vec::new();
            script.push_request(&mut head, 0, 0, Some("a-1"));
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with(expected), "{head}");
            assert!(head.contains("\r\nSec-WebSocket-Protocol: actioncable-v1-ext-json\r\n"), "{head}");
        }
    }

    #[test]
    fn the_head_holds_a_cookie_of_the_size_asked_for() {
        let target = Target::parse("ws://127.0.0.1:1/cable").unwrap();
        let script = Script::new(Protocol::ActionCable, &target, 200, Some(r#"{"channel":"A","id":"{n}"}"#));
        let mut head = Vec::new();
        script.push_request(&mut head, 3, 0, None);
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
