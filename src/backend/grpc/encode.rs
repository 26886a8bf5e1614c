//! Writes calls as protobuf, straight from [`crate::model`]: no copy of a cookie or a state is made on the way. What
//! it writes is what prost would write for [`super::messages`]; a test compares the two.

use bytes::{BufMut, Bytes};
use prost::encoding::encode_varint;

use super::super::state_json;
use crate::model::{Env, Request, State};

/// The wire type of texts and messages: a length, then bytes.
const LENGTH_DELIMITED: u64 = 2;

/// The request message of a call.
pub(super) fn encode(request: &Request) -> Bytes {
    let mut message = Vec::with_capacity(512);
    match request {
        Request::Connect { env: upgrade } => {
            field(&mut message, 3, &env(upgrade, &State::default(), []));
        }
        Request::Command { command, identifier, data, env: upgrade, cstate, istate } => {
            text(&mut message, 1, command.as_str());
            text(&mut message, 2, identifier);
            text(&mut message, 3, upgrade.identifiers());
            text(&mut message, 4, data);
            field(&mut message, 5, &env(upgrade, cstate, istate.iter()));
        }
        Request::Disconnect { subscriptions, env: upgrade, cstate } => {
            text(&mut message, 1, upgrade.identifiers());
            for (identifier, _) in subscriptions {
                field(&mut message, 2, identifier.as_bytes());
            }
            let states: Vec<(&str, String)> = state_json::non_empty(subscriptions).collect();
            let istate = states.iter().map(|(identifier, state)| (*identifier, state.as_str()));
            field(&mut message, 5, &env(upgrade, cstate, istate));
        }
    }
    message.into()
}

fn env<'a>(env: &Env, cstate: &State, istate: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut message = Vec::with_capacity(384);
    text(&mut message, 1, &env.url());
    env.headers().for_each(|(name, value)| entry(&mut message, 2, name, value));
    cstate.iter().for_each(|(key, value)| entry(&mut message, 3, key, value));
    istate.into_iter().for_each(|(key, value)| entry(&mut message, 4, key, value));
    message
}

/// A field that is left out when empty, as proto3 has it.
fn text(message: &mut Vec<u8>, number: u64, text: &str) {
    if !text.is_empty() {
        field(message, number, text.as_bytes());
    }
}

fn field(message: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    encode_varint(number << 3 | LENGTH_DELIMITED, message);
    encode_varint(bytes.len() as u64, message);
    message.put_slice(bytes);
}

/// An entry of a map: a message of key (1) and value (2).
fn entry(message: &mut Vec<u8>, number: u64, key: &str, value: &str) {
    let size = |text: &str| match text.len() {
        0 => 0,
        n => 1 + prost::encoding::encoded_len_varint(n as u64) + n,
    };
    encode_varint(number << 3 | LENGTH_DELIMITED, message);
    encode_varint((size(key) + size(value)) as u64, message);
    text(message, 1, key);
    text(message, 2, value);
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::messages;
    use super::*;
    use crate::model::CommandKind;

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
    fn empty_texts_are_left_out() {
        let bytes = encode(&Request::Disconnect {
            subscriptions: vec![],
            env: Env::new("http://h/", []),
            cstate: State::default(),
        });
        assert_eq!(bytes.as_ref(), b"\x2a\x0b\x0a\x09http://h/");
    }
}
