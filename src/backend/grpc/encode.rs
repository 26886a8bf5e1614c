//! Writes calls as protobuf, straight from [`crate::model`] and into one buffer: no copy of a cookie or a state is made
//! on the way, and the gRPC frame stands in front of the message already. What it writes is what prost would write for
//! [`super::messages`]; a test compares the two.

use bytes::{BufMut, Bytes};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::super::state_json;
use crate::model::{Env, Request, State};

/// In front of a message (gRPC over HTTP/2, "Length-Prefixed-Message"): one byte for "not compressed", four of length.
pub(super) const PREFIX_BYTES: usize = 5;

/// The wire type of texts and messages: a length, then bytes.
const LENGTH_DELIMITED: u64 = 2;

/// Bytes first kept for the length of an embedded message: enough below 16 KiB, which nearly every `Env` is.
const LENGTH_BYTES: usize = 2;

/// What tags and lengths may add to the texts of a usual call; with more the buffer grows once.
const TAGS_BYTES: usize = 192;

/// The request message of a call, in its gRPC frame.
pub(super) fn encode(request: &Request) -> Bytes {
    let mut out = Vec::with_capacity(PREFIX_BYTES + TAGS_BYTES + request.texts_len());
    out.put_bytes(0, PREFIX_BYTES);
    match request {
        Request::Connect { env: upgrade } => {
            env(&mut out, 3, upgrade, &State::default(), State::default().iter());
        }
        Request::Command { command, identifier, data, env: upgrade, cstate, istate } => {
            text(&mut out, 1, command.as_str());
            text(&mut out, 2, identifier);
            text(&mut out, 3, upgrade.identifiers());
            text(&mut out, 4, data);
            env(&mut out, 5, upgrade, cstate, istate.iter());
        }
        Request::Disconnect { subscriptions, env: upgrade, cstate } => {
            text(&mut out, 1, upgrade.identifiers());
            for (identifier, _) in subscriptions {
                field(&mut out, 2, identifier.as_bytes());
            }
            env(&mut out, 5, upgrade, cstate, state_json::non_empty(subscriptions));
        }
    }
    // A call of 4 GiB is refused for its size before it is sent.
    let len = u32::try_from(out.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    out[1..PREFIX_BYTES].copy_from_slice(&len.to_be_bytes());
    out.into()
}

/// The field with the embedded message `Env`. Its length is known once it is written.
fn env<'a, V: AsRef<str>>(
    out: &mut Vec<u8>,
    number: u64,
    env: &Env,
    cstate: &State,
    istate: impl IntoIterator<Item = (&'a str, V)>,
) {
    encode_varint(number << 3 | LENGTH_DELIMITED, out);
    let length_at = out.len();
    out.put_bytes(0, LENGTH_BYTES);
    let [scheme, rest] = env.url_parts();
    tag(out, 1, scheme.len() + rest.len());
    out.put_slice(scheme.as_bytes());
    out.put_slice(rest.as_bytes());
    env.headers().for_each(|(name, value)| entry(out, 2, name, value));
    cstate.iter().for_each(|(key, value)| entry(out, 3, key, value));
    istate.into_iter().for_each(|(key, value)| entry(out, 4, key, value.as_ref()));
    put_length(out, length_at);
}

/// Puts the length of what was written behind the [`LENGTH_BYTES`] at `at` there, and moves that if the length takes
/// another number of bytes.
fn put_length(out: &mut Vec<u8>, at: usize) {
    let behind = at + LENGTH_BYTES;
    let len = (out.len() - behind) as u64;
    let mut length = [0; 10];
    let mut rest = &mut length[..];
    encode_varint(len, &mut rest);
    out.splice(at..behind, length[..encoded_len_varint(len)].iter().copied());
}

/// A field that is left out when empty, as proto3 has it.
fn text(out: &mut Vec<u8>, number: u64, text: &str) {
    if !text.is_empty() {
        field(out, number, text.as_bytes());
    }
}

fn field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    tag(out, number, bytes.len());
    out.put_slice(bytes);
}

/// What stands in front of a text or message.
fn tag(out: &mut Vec<u8>, number: u64, len: usize) {
    encode_varint(number << 3 | LENGTH_DELIMITED, out);
    encode_varint(len as u64, out);
}

/// An entry of a map: a message of key (1) and value (2).
fn entry(out: &mut Vec<u8>, number: u64, key: &str, value: &str) {
    let size = |len: usize| match len {
        0 => 0,
        n => 1 + encoded_len_varint(n as u64) + n,
    };
    tag(out, number, size(key.len()) + size(value.len()));
    text(out, 1, key);
    text(out, 2, value);
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::messages;
    use super::*;
    use crate::model::CommandKind;

    /// The message of a call, out of its frame.
    fn encode(request: &Request) -> Bytes {
        let mut framed = super::encode(request);
        let prefix = framed.split_to(PREFIX_BYTES);
        assert_eq!(prefix[0], 0, "not compressed");
        assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, framed.len());
        framed
    }

    fn upgrade() -> Env {
        Env::new("http://h/cable?a=1", [("cookie", "a=ä; b=2"), ("x-empty", ""), ("REMOTE_ADDR", "::1")])
    }

    fn upgrade_message() -> messages::Env {
        let headers = [("cookie", "a=ä; b=2"), ("x-empty", ""), ("REMOTE_ADDR", "::1")];
        messages::Env {
            url: "http://h/cable?a=1".into(),
            headers: headers.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..Default::default()
        }
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> std::collections::BTreeMap<String, String> {
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn connect_carries_the_upgrade_request_and_no_state() {
        let bytes = encode(&Request::Connect { env: upgrade() });
        let read = messages::ConnectionRequest::decode(bytes).unwrap();
        assert_eq!(read, messages::ConnectionRequest { env: Some(upgrade_message()) });
    }

    #[test]
    fn command_carries_the_state_of_the_connection_and_of_its_channel() {
        let long = "x".repeat(300);
        let bytes = encode(&Request::Command {
            command: CommandKind::Message,
            identifier: "chan".into(),
            data: long.clone(),
            env: upgrade().with_identifiers("who"),
            cstate: [("_s_", "1"), ("k", long.as_str())].into_iter().collect(),
            istate: [("room", "7")].into_iter().collect(),
        });
        let expected = messages::CommandMessage {
            command: "message".into(),
            identifier: "chan".into(),
            connection_identifiers: "who".into(),
            data: long.clone(),
            env: Some(messages::Env {
                cstate: pairs([("_s_", "1"), ("k", &long)]),
                istate: pairs([("room", "7")]),
                ..upgrade_message()
            }),
        };
        assert_eq!(messages::CommandMessage::decode(bytes.clone()).unwrap(), expected);
        // Not only readable: exactly as long as what prost writes, so nothing is written twice or for nothing.
        assert_eq!(bytes.len(), expected.encoded_len());
    }

    #[test]
    fn disconnect_carries_channel_states_as_json_text_and_leaves_empty_ones_out() {
        let bytes = encode(&Request::Disconnect {
            subscriptions: vec![
                ("a".into(), [("room", "7"), ("q\"", "<é>")].into_iter().collect()),
                ("b".into(), State::default()),
            ],
            env: upgrade().with_identifiers("who"),
            cstate: [("k", "v")].into_iter().collect(),
        });
        let expected = messages::DisconnectRequest {
            identifiers: "who".into(),
            subscriptions: vec!["a".into(), "b".into()],
            env: Some(messages::Env {
                cstate: pairs([("k", "v")]),
                istate: pairs([("a", r#"{"q\"":"<é>","room":"7"}"#)]),
                ..upgrade_message()
            }),
        };
        assert_eq!(messages::DisconnectRequest::decode(bytes).unwrap(), expected);
    }

    #[test]
    fn the_length_of_the_environment_takes_as_many_bytes_as_it_needs() {
        for (url_bytes, length_bytes) in [(100, 1), (125, 1), (126, 2), (16_380, 2), (16_381, 3), (70_000, 3)] {
            let url = format!("http://{}", "h".repeat(url_bytes - 7));
            let bytes = encode(&Request::Connect { env: Env::new(&url, []) });
            let read = messages::ConnectionRequest::decode(bytes.clone()).unwrap();
            let env = read.env.unwrap();
            assert_eq!(bytes.len(), 1 + length_bytes + env.encoded_len(), "{url_bytes}");
            assert_eq!(env.url, url);
        }
    }

    #[test]
    fn empty_texts_are_left_out() {
        let bytes = encode(&Request::Disconnect {
            subscriptions: vec![],
            env: Env::new("http://h/", []),
            cstate: State::default(),
        });
        assert_eq!(bytes.as_ref(), b"\x2a\x0b\x0a\x09http://h/");
    }
}
