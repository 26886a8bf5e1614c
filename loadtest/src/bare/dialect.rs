//! What the yardstick says: each protocol reduced to what a load test needs of it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::protocol::{Protocol, json_string};
use crate::wire::{self, opcode};

/// Seconds of silence after which a Pusher client pings, and Centrifugo's clients miss a heartbeat.
const SILENCE_S: u32 = 120;

const ANSWER_BEFORE: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ";

/// Appends the answer to an upgrade request and what is said right behind it. `None`: the request has no key.
pub(crate) fn push_answer(protocol: Protocol, out: &mut Vec<u8>, request: &[u8], index: usize) -> Option<()> {
    out.extend_from_slice(ANSWER_BEFORE);
    out.extend_from_slice(&wire::accept_value(key_of(request)?));
    push_welcome(protocol, out, index);
    Some(())
}

/// The value of `Sec-WebSocket-Key`.
fn key_of(head: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"sec-websocket-key:";
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then(|| value.trim_ascii())
    })
}

/// Appends the end of the 101, and what is said right behind it.
fn push_welcome(protocol: Protocol, out: &mut Vec<u8>, index: usize) {
    match protocol {
        Protocol::Raw | Protocol::Centrifugo => out.extend_from_slice(b"\r\n\r\n"),
        Protocol::ActionCable | Protocol::ActionCableExt => {
            let subprotocol = protocol.subprotocol().unwrap_or_default();
            out.extend_from_slice(format!("\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n").as_bytes());
            wire::push_server_frame(out, opcode::TEXT, br#"{"type":"welcome"}"#);
        }
        Protocol::Pusher => {
            out.extend_from_slice(b"\r\n\r\n");
            let data = json_string(&format!(r#"{{"socket_id":"1.{index}","activity_timeout":{SILENCE_S}}}"#));
            let text = format!(r#"{{"event":"pusher:connection_established","data":{data}}}"#);
            wire::push_server_frame(out, opcode::TEXT, text.as_bytes());
        }
    }
}

/// Appends a heartbeat.
pub(crate) fn push_heartbeat(protocol: Protocol, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Raw => wire::push_server_frame(out, opcode::PING, b""),
        Protocol::ActionCable | Protocol::ActionCableExt => {
            let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let text = format!(r#"{{"type":"ping","message":{now_s}}}"#);
            wire::push_server_frame(out, opcode::TEXT, text.as_bytes());
        }
        Protocol::Pusher => wire::push_server_frame(out, opcode::TEXT, br#"{"event":"pusher:ping","data":{}}"#),
        Protocol::Centrifugo => wire::push_server_frame(out, opcode::TEXT, b"{}"),
    }
}

/// Appends the answer to a client's message, if it gets one; plain WebSocket has none.
pub(crate) fn push_reply(protocol: Protocol, out: &mut Vec<u8>, message: &[u8]) {
    let reply = match protocol {
        Protocol::Raw => None,
        Protocol::ActionCable | Protocol::ActionCableExt => cable_reply(message),
        Protocol::Pusher => pusher_reply(message),
        Protocol::Centrifugo => centrifugo_reply(message),
    };
    if let Some(reply) = reply {
        wire::push_server_frame(out, opcode::TEXT, reply.as_bytes());
    }
}

/// What an Action Cable client says.
#[derive(Deserialize)]
struct Command {
    command: String,
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    data: String,
}

/// The room that a message subscribes to: the identifier.
pub(super) fn joined_room(message: &[u8]) -> Option<String> {
    let command: Command = serde_json::from_slice(message).ok()?;
    (command.command == "subscribe").then_some(command.identifier)
}

/// The room that a publication is for; nobody is in the one without a name.
pub(super) fn room(publication: &[u8]) -> Arc<str> {
    #[derive(Deserialize)]
    struct Message {
        identifier: String,
    }
    serde_json::from_slice(publication).map_or_else(|_| "".into(), |message: Message| message.identifier.into())
}

/// A subscription is confirmed, a ping answered, a message sent back.
fn cable_reply(message: &[u8]) -> Option<String> {
    let command: Command = serde_json::from_slice(message).ok()?;
    let identifier = json_string(&command.identifier);
    match command.command.as_str() {
        "subscribe" => Some(format!(r#"{{"type":"confirm_subscription","identifier":{identifier}}}"#)),
        "message" => Some(format!(r#"{{"identifier":{identifier},"message":{}}}"#, json_string(&command.data))),
        "ping" => Some(r#"{"type":"pong"}"#.to_owned()),
        _ => None,
    }
}

/// A subscription is confirmed, a ping answered.
fn pusher_reply(message: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Event {
        event: String,
        #[serde(default)]
        data: serde_json::Value,
    }
    let event: Event = serde_json::from_slice(message).ok()?;
    match event.event.as_str() {
        "pusher:subscribe" => {
            let channel = event.data.get("channel")?;
            Some(format!(r#"{{"event":"pusher_internal:subscription_succeeded","data":"{{}}","channel":{channel}}}"#))
        }
        "pusher:ping" => Some(r#"{"event":"pusher:pong","data":"{}"}"#.to_owned()),
        _ => None,
    }
}

/// Connecting and subscribing succeed; the empty command is a pong.
fn centrifugo_reply(message: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Command {
        id: u32,
        connect: Option<serde::de::IgnoredAny>,
        subscribe: Option<serde::de::IgnoredAny>,
    }
    let command: Command = serde_json::from_slice(message).ok()?;
    let id = command.id;
    match (command.connect, command.subscribe) {
        (Some(_), _) => Some(format!(r#"{{"id":{id},"connect":{{"client":"c","ping":{SILENCE_S},"pong":true}}}}"#)),
        (_, Some(_)) => Some(format!(r#"{{"id":{id},"subscribe":{{}}}}"#)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{self, Kind, Script, Target};

    #[test]
    fn the_key_is_found_whatever_its_spelling() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nSEC-WebSocket-key:  abc== \r\nX: y";
        assert_eq!(key_of(head), Some(&b"abc=="[..]));
        assert_eq!(key_of(b"GET / HTTP/1.1\r\nHost: x"), None);
    }

    #[test]
    fn what_is_said_is_what_the_clients_understand() {
        let target = Target::parse("ws://127.0.0.1:1/").unwrap();
        let told = |protocol, message: &str| {
            let mut out = Vec::new();
            push_reply(protocol, &mut out, message.as_bytes());
            (!out.is_empty()).then(|| protocol::kind(protocol, &out[2..]))
        };
        for protocol in [Protocol::ActionCable, Protocol::Pusher, Protocol::Centrifugo] {
            let script = Script::new(protocol, &target, 0, Some("load"));
            assert_eq!(told(protocol, &script.subscribe_text(0).unwrap()), Some(Kind::Confirm), "{protocol:?}");
            let mut heartbeat = Vec::new();
            push_heartbeat(protocol, &mut heartbeat);
            assert_eq!(protocol::kind(protocol, &heartbeat[2..]), Kind::Ping, "{protocol:?}");
            assert_eq!(told(protocol, script.heartbeat_answer(true).unwrap_or("{}")), None, "{protocol:?}");
            if let Some(greeting) = script.greeting() {
                assert_eq!(told(protocol, greeting), Some(Kind::Welcome));
            }
        }
        assert_eq!(told(Protocol::Pusher, protocol::PUSHER_PING), Some(Kind::Pong));
        assert_eq!(told(Protocol::ActionCable, r#"{"command":"ping"}"#), Some(Kind::Pong));
    }
}
