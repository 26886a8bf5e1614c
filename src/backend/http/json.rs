//! The JSON of HTTP RPC: the protobuf messages with their field names, empty fields left out, status as a number.
//!
//! Answers are read as tolerantly as the contract asks: any field may be missing or `null`, unknown ones are skipped,
//! names match in any case.

use std::fmt;
use std::io;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use smallvec::SmallVec;

use super::super::attempt::{Method, Outcome};
use super::super::state_json;
use crate::model::rpc::PresenceReply;
use crate::model::state::StateChanges;
use crate::model::{CommandReply, ConnectReply, Env, Request, State, Status};
use crate::proto::json::{Fields, Object, skip, without_lone_surrogates};

/// The body of a call.
pub(super) fn encode(request: &Request) -> Bytes {
    let mut json = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, HtmlSafe);
    let written = match request {
        Request::Connect { env } => {
            let none = State::default();
            body(&mut serializer, &[], &[], &EnvBody { env, cstate: &none, istate: ChannelStates::One(&none) })
        }
        Request::Command { command, identifier, data, env, cstate, istate } => {
            let fields = [
                ("command", command.as_str()),
                ("identifier", identifier),
                ("connection_identifiers", env.identifiers()),
                ("data", data),
            ];
            body(&mut serializer, &fields, &[], &EnvBody { env, cstate, istate: ChannelStates::One(istate) })
        }
        Request::Disconnect { subscriptions, env, cstate } => {
            let channels: Vec<&str> = subscriptions.iter().map(|(identifier, _)| &**identifier).collect();
            let mut states: Vec<_> = state_json::non_empty(subscriptions).collect();
            states.sort_unstable_by_key(|(identifier, _)| *identifier);
            let fields = [("identifiers", env.identifiers())];
            body(&mut serializer, &fields, &channels, &EnvBody { env, cstate, istate: ChannelStates::All(states) })
        }
    };
    // Neither memory nor maps of texts fail to take what is written.
    debug_assert!(written.is_ok());
    json.into()
}

fn body<S: Serializer>(
    serializer: S,
    fields: &[(&str, &str)],
    subscriptions: &[&str],
    env: &EnvBody<'_>,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (name, text) in fields.iter().filter(|(_, text)| !text.is_empty()) {
        map.serialize_entry(name, text)?;
    }
    if !subscriptions.is_empty() {
        map.serialize_entry("subscriptions", subscriptions)?;
    }
    map.serialize_entry("env", env)?;
    map.end()
}

/// The field `env`. Its maps are sorted by key, and left out when empty.
struct EnvBody<'a> {
    env: &'a Env,
    cstate: &'a State,
    istate: ChannelStates<'a>,
}

enum ChannelStates<'a> {
    /// Of the one channel that the call is about.
    One(&'a State),
    /// JSON text by channel identifier.
    All(Vec<(&'a str, String)>),
}

impl Serialize for EnvBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut headers: SmallVec<[(&str, &str); 8]> = self.env.headers().collect();
        headers.sort_by_key(|(name, _)| *name);
        // A name given twice in `--headers`: both have the same value.
        headers.dedup_by_key(|(name, _)| *name);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("url", &Url(self.env.url_parts()))?;
        if !headers.is_empty() {
            map.serialize_entry("headers", &Pairs(&headers))?;
        }
        if !self.cstate.is_empty() {
            map.serialize_entry("cstate", &Entries(self.cstate))?;
        }
        match &self.istate {
            ChannelStates::One(state) if !state.is_empty() => map.serialize_entry("istate", &Entries(state))?,
            ChannelStates::All(states) if !states.is_empty() => map.serialize_entry("istate", &Pairs(states))?,
            ChannelStates::One(_) | ChannelStates::All(_) => {}
        }
        map.end()
    }
}

struct Url<'a>([&'a str; 2]);

impl Serialize for Url<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [scheme, rest] = self.0;
        serializer.collect_str(&format_args!("{scheme}{rest}"))
    }
}

/// An object of a state, whose entries are sorted already.
struct Entries<'a>(&'a State);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

/// An object of these pairs, in their order.
struct Pairs<'a, V>(&'a [(&'a str, V)]);

impl<V: Serialize> Serialize for Pairs<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// Writes `&`, `<` and `>` as `\uXXXX`, as AnyCable does: app servers that sign or compare bodies see the same bytes.
struct HtmlSafe;

impl serde_json::ser::Formatter for HtmlSafe {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let is_unsafe = |byte: &u8| matches!(byte, b'&' | b'<' | b'>');
        let mut rest = fragment.as_bytes();
        // Whether there is any at all is found many bytes at a time, and nearly always there is none.
        if rest.iter().fold(false, |any, byte| any | is_unsafe(byte)) {
            while let Some(at) = rest.iter().position(is_unsafe) {
                writer.write_all(&rest[..at])?;
                write!(writer, "\\u{:04x}", rest[at])?;
                rest = &rest[at + 1..];
            }
        }
        writer.write_all(rest)
    }
}

/// Reads the answer to a call. What is no text in it becomes U+FFFD: for half an emoji that the app has cut off somewhere, the
/// rest of its answer is not thrown away.
///
/// The error says what is wrong with it, for the log.
pub(super) fn decode(method: Method, body: &[u8]) -> Result<Outcome, String> {
    fn read<T: Part>(body: &str) -> Result<Answer<T>, String> {
        Ok(serde_json::from_str::<Object<Answer<T>>>(body).map_err(|error| error.to_string())?.0)
    }
    let body = String::from_utf8_lossy(body);
    let body = &without_lone_surrogates(&body);
    Ok(match method {
        Method::Connect => {
            let Answer { status, error_msg, rest } = read::<ConnectReply>(body)?;
            Outcome::Connect(ConnectReply { status, error_msg, ..rest })
        }
        Method::Command => {
            let Answer { status, error_msg, rest } = read::<CommandReply>(body)?;
            Outcome::Command(Box::new(CommandReply { status, error_msg, ..rest }))
        }
        Method::Disconnect => {
            let Answer { status, error_msg, rest: Nothing } = read(body)?;
            Outcome::Disconnect(status, error_msg)
        }
    })
}

/// What every answer has, and what only an answer to this method has.
#[derive(Default)]
struct Answer<T> {
    status: Status,
    error_msg: String,
    rest: T,
}

/// Fields that only the answer to one method has.
trait Part: Default {
    /// As [`Fields::field`], with the name in lower case.
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

impl<'de, T: Part> Fields<'de> for Answer<T> {
    const WHAT: &'static str = "an object";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        with_lower_case(key, |name| {
            match name {
                "status" => {
                    self.status = match map.next_value::<Option<i64>>()? {
                        Some(1) => Status::Success,
                        Some(2) => Status::Failure,
                        Some(_) | None => Status::Error,
                    };
                }
                "error_msg" => self.error_msg = text(map)?,
                _ => self.rest.field(name, map)?,
            }
            Ok(())
        })
    }
}

#[derive(Default)]
struct Nothing;

impl Part for Nothing {
    fn field<'de, A: MapAccess<'de>>(&mut self, _: &str, map: &mut A) -> Result<(), A::Error> {
        skip(map)
    }
}

impl Part for ConnectReply {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "identifiers" => self.identifiers = text(map)?,
            "transmissions" => self.transmissions = texts(map)?,
            "env" => self.cstate = object::<EnvAnswer, A>(map)?.unwrap_or_default().cstate,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Part for CommandReply {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "disconnect" => self.disconnect = flag(map)?,
            "stop_streams" => self.stop_streams = flag(map)?,
            "streams" => self.streams = texts(map)?,
            "stopped_streams" => self.stopped_streams = texts(map)?,
            "transmissions" => self.transmissions = texts(map)?,
            "env" => {
                let env = object::<EnvAnswer, A>(map)?.unwrap_or_default();
                (self.cstate, self.istate) = (env.cstate, env.istate);
            }
            "presence" => self.presence = object(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct EnvAnswer {
    cstate: StateChanges,
    istate: StateChanges,
}

impl<'de> Fields<'de> for EnvAnswer {
    const WHAT: &'static str = "an object";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        with_lower_case(key, |name| {
            match name {
                "cstate" => self.cstate = changes(map)?,
                "istate" => self.istate = changes(map)?,
                _ => skip(map)?,
            }
            Ok(())
        })
    }
}

impl<'de> Fields<'de> for PresenceReply {
    const WHAT: &'static str = "an object";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        with_lower_case(key, |name| {
            match name {
                "type" => self.kind = text(map)?,
                "id" => self.id = text(map)?,
                "info" => self.info = text(map)?,
                _ => skip(map)?,
            }
            Ok(())
        })
    }
}

/// Longest name of a field, with room to spare; no longer one means anything.
const NAME_BYTES_MAX: usize = 32;

/// Calls `read` with a key in lower case.
fn with_lower_case<R>(key: &str, read: impl FnOnce(&str) -> R) -> R {
    let mut room = [0; NAME_BYTES_MAX];
    let name = match room.get_mut(..key.len()) {
        Some(room) => {
            room.copy_from_slice(key.as_bytes());
            room.make_ascii_lowercase();
            std::str::from_utf8(room).unwrap_or_default()
        }
        None => "",
    };
    read(name)
}

fn object<'de, T: Fields<'de>, A: MapAccess<'de>>(map: &mut A) -> Result<Option<T>, A::Error> {
    Ok(map.next_value::<Option<Object<T>>>()?.map(|object| object.0))
}

fn flag<'de, A: MapAccess<'de>>(map: &mut A) -> Result<bool, A::Error> {
    Ok(map.next_value::<Option<bool>>()?.unwrap_or_default())
}

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<String, A::Error> {
    Ok(map.next_value::<Text>()?.0)
}

fn texts<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Vec<String>, A::Error> {
    let texts = map.next_value::<Option<Vec<Text>>>()?.unwrap_or_default();
    Ok(texts.into_iter().map(|text| text.0).collect())
}

fn changes<'de, A: MapAccess<'de>>(map: &mut A) -> Result<StateChanges, A::Error> {
    Ok(map.next_value::<Option<Changes>>()?.map(|changes| changes.0).unwrap_or_default())
}

/// A text; `null` is an empty one.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        Option::deserialize(deserializer).map(|text| Text(text.unwrap_or_default()))
    }
}

/// An object of texts. Keys of a state are the app's own: they keep their case.
struct Changes(StateChanges);

impl<'de> Deserialize<'de> for Changes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Changes, D::Error> {
        struct ChangesVisitor;
        impl<'de> Visitor<'de> for ChangesVisitor {
            type Value = Changes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Changes, A::Error> {
                let mut changes = StateChanges::new();
                while let Some((key, Text(value))) = map.next_entry()? {
                    changes.push((key, value));
                }
                Ok(Changes(changes))
            }
        }
        deserializer.deserialize_map(ChangesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::CommandKind;

    fn written(request: &Request) -> String {
        String::from_utf8(encode(request).to_vec()).unwrap()
    }

    #[test]
    fn calls_are_the_bytes_of_the_contract() {
        let env = Env::new("https://ws.app.test/cable?t=1", [("cookie", "_s=abc"), ("REMOTE_ADDR", "10.0.0.9")]);
        assert_eq!(
            written(&Request::Connect { env }),
            r#"{"env":{"url":"https://ws.app.test/cable?t=1","headers":{"REMOTE_ADDR":"10.0.0.9","cookie":"_s=abc"}}}"#
        );
        let env = Env::new("https://ws.app.test/cable", [("cookie", "_s=abc")]);
        let request = Request::Command {
            command: CommandKind::Message,
            identifier: r#"{"channel":"RoomChannel"}"#.into(),
            data: r#"{"action":"say"}"#.into(),
            env: env.with_identifiers(r#"{"user":"7"}"#),
            cstate: [("_s_", "x")].into_iter().collect(),
            istate: [("room", "7")].into_iter().collect(),
        };
        assert_eq!(
            written(&request),
            r#"{"command":"message","identifier":"{\"channel\":\"RoomChannel\"}","connection_identifiers":"{\"user\":\"7\"}","data":"{\"action\":\"say\"}","env":{"url":"https://ws.app.test/cable","headers":{"cookie":"_s=abc"},"cstate":{"_s_":"x"},"istate":{"room":"7"}}}"#
        );
        let request = Request::Disconnect {
            subscriptions: vec![
                (r#"{"channel":"RoomChannel"}"#.into(), [("room", "7")].into_iter().collect()),
                ("empty".into(), State::default()),
            ],
            env: Env::new("https://ws.app.test/cable", []).with_identifiers(r#"{"user":"7"}"#),
            cstate: State::default(),
        };
        assert_eq!(
            written(&request),
            r#"{"identifiers":"{\"user\":\"7\"}","subscriptions":["{\"channel\":\"RoomChannel\"}","empty"],"env":{"url":"https://ws.app.test/cable","istate":{"{\"channel\":\"RoomChannel\"}":"{\"room\":\"7\"}"}}}"#
        );
    }

    #[test]
    fn html_characters_are_escaped_and_read_back() {
        let text = written(&Request::Connect { env: Env::new("http://h/?a=1&b=<ä>", []) });
        assert_eq!(text, r#"{"env":{"url":"http://h/?a=1\u0026b=\u003cä\u003e"}}"#);
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["env"]["url"], "http://h/?a=1&b=<ä>");
    }

    #[test]
    fn null_missing_and_unknown_fields_and_other_cases_of_names_are_accepted() {
        let body = br#"{"STATUS":1,"Identifiers":null,"transmissions":["w"],"env":{"CState":{"Key":"v","gone":null},"istate":null},"new":[1]}"#;
        let expected = ConnectReply {
            status: Status::Success,
            transmissions: vec!["w".into()],
            cstate: vec![("Key".into(), "v".into()), ("gone".into(), String::new())],
            ..Default::default()
        };
        assert_eq!(decode(Method::Connect, body), Ok(Outcome::Connect(expected)));
        let all_null = br#"{"status":2,"disconnect":null,"stop_streams":null,"streams":null,"stopped_streams":null,"transmissions":null,"error_msg":null,"env":null,"presence":null}"#;
        let expected = CommandReply { status: Status::Failure, ..Default::default() };
        assert_eq!(decode(Method::Command, all_null), Ok(Outcome::Command(Box::new(expected))));
    }

    #[test]
    fn every_field_of_a_command_reply_is_read() {
        let body = br#"{"status":1,"disconnect":true,"stop_streams":true,"streams":["s"],"stopped_streams":["x"],"transmissions":["t"],"error_msg":"e","env":{"cstate":{"c":"1"},"istate":{"i":""}},"presence":{"type":"leave","id":"7","info":"{}"}}"#;
        let expected = CommandReply {
            status: Status::Success,
            disconnect: true,
            stop_streams: true,
            streams: vec!["s".into()],
            stopped_streams: vec!["x".into()],
            transmissions: vec!["t".into()],
            error_msg: "e".into(),
            cstate: vec![("c".into(), "1".into())],
            istate: vec![("i".into(), String::new())],
            presence: Some(PresenceReply { kind: "leave".into(), id: "7".into(), info: "{}".into() }),
        };
        assert_eq!(decode(Method::Command, body), Ok(Outcome::Command(Box::new(expected))));
    }

    #[test]
    fn half_an_emoji_costs_itself_and_not_the_answer() {
        let body =
            br#"{"status":1,"identifiers":"a\ud83db","transmissions":["\ude00","\ud83d\ude00"],"error_msg":"\xff"}"#;
        let body = [&body[..body.len() - 6], b"\xff\"}"].concat();
        let expected = ConnectReply {
            status: Status::Success,
            identifiers: "a\u{fffd}b".into(),
            transmissions: vec!["\u{fffd}".into(), "😀".into()],
            error_msg: "\u{fffd}".into(),
            ..Default::default()
        };
        assert_eq!(decode(Method::Connect, &body), Ok(Outcome::Connect(expected)));
    }

    #[test]
    fn no_status_is_an_error_of_the_app() {
        for body in [&b"{}"[..], br#"{"status":null}"#, br#"{"status":0}"#, br#"{"status":9}"#] {
            assert_eq!(decode(Method::Disconnect, body), Ok(Outcome::Disconnect(Status::Error, String::new())));
        }
    }

    #[test]
    fn what_is_not_an_answer_is_refused() {
        for body in [
            &b""[..],
            b"[]",
            b"null",
            b"not json",
            br#"{"status":"SUCCESS"}"#,
            br#"{"status":1.5}"#,
            br#"{"status":1,"streams":"s"}"#,
            br#"{"status":1,"streams":[1]}"#,
            br#"{"status":1,"disconnect":"yes"}"#,
            br#"{"status":1,"env":[]}"#,
            br#"{"status":1,"env":{"cstate":{"k":1}}}"#,
            br#"{"status":1} trailing"#,
        ] {
            assert!(decode(Method::Command, body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }
}
