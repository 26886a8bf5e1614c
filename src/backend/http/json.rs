//! The JSON of HTTP RPC: the protobuf messages with their field names, empty fields left out, status as a number.
//!
//! Answers are read as tolerantly as the contract asks: any field may be missing or `null`, unknown ones are skipped,
//! names match in any case.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::super::attempt::{Method, Outcome};
use super::super::state_json;
use crate::model::rpc::PresenceReply;
use crate::model::state::StateChanges;
use crate::model::{CommandReply, ConnectReply, Env, Request, State, Status};

/// The body of a call.
pub(super) fn encode(request: &Request) -> Bytes {
    let mut json = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, HtmlSafe);
    let none = || Texts(BTreeMap::new());
    let written = match request {
        Request::Connect { env } => body(&mut serializer, &[], &[], env, &State::default(), none()),
        Request::Command { command, identifier, data, env, cstate, istate } => {
            let fields = [
                ("command", command.as_str()),
                ("identifier", identifier),
                ("connection_identifiers", env.identifiers()),
                ("data", data),
            ];
            body(&mut serializer, &fields, &[], env, cstate, Texts::of(istate))
        }
        Request::Disconnect { subscriptions, env, cstate } => {
            let channels: Vec<&str> = subscriptions.iter().map(|(identifier, _)| &**identifier).collect();
            let states = state_json::non_empty(subscriptions).map(|(identifier, state)| (identifier, state.into()));
            body(
                &mut serializer,
                &[("identifiers", env.identifiers())],
                &channels,
                env,
                cstate,
                Texts(states.collect()),
            )
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
    env: &Env,
    cstate: &State,
    istate: Texts<'_>,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (name, text) in fields.iter().filter(|(_, text)| !text.is_empty()) {
        map.serialize_entry(name, text)?;
    }
    if !subscriptions.is_empty() {
        map.serialize_entry("subscriptions", subscriptions)?;
    }
    let headers = Texts(env.headers().map(|(name, value)| (name, value.into())).collect());
    map.serialize_entry("env", &EnvBody { url: &env.url(), headers, cstate: Texts::of(cstate), istate })?;
    map.end()
}

/// Texts by name, in the order of the names.
#[derive(Serialize)]
#[serde(transparent)]
struct Texts<'a>(BTreeMap<&'a str, std::borrow::Cow<'a, str>>);

impl<'a> Texts<'a> {
    fn of(state: &'a State) -> Texts<'a> {
        Texts(state.iter().map(|(key, value)| (key, value.into())).collect())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Serialize)]
struct EnvBody<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    #[serde(skip_serializing_if = "Texts::is_empty")]
    headers: Texts<'a>,
    #[serde(skip_serializing_if = "Texts::is_empty")]
    cstate: Texts<'a>,
    #[serde(skip_serializing_if = "Texts::is_empty")]
    istate: Texts<'a>,
}

/// Writes `&`, `<` and `>` as `\uXXXX`, as AnyCable does: app servers that sign or compare bodies see the same bytes.
struct HtmlSafe;

impl serde_json::ser::Formatter for HtmlSafe {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['&', '<', '>']) {
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", rest.as_bytes()[at])?;
            rest = &rest[at + 1..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Reads the answer to a call.
///
/// The error says what is wrong with it, for the log.
pub(super) fn decode(method: Method, body: &[u8]) -> Result<Outcome, String> {
    let mut answer = Fields::of(serde_json::from_slice(body).map_err(|error| error.to_string())?)?;
    let status = match answer.take("status") {
        None => Status::Error,
        Some(Value::Number(number)) => match number.as_i64() {
            Some(1) => Status::Success,
            Some(2) => Status::Failure,
            Some(_) => Status::Error,
            None => return Err("status is not an integer".to_owned()),
        },
        Some(_) => return Err("status is not an integer".to_owned()),
    };
    let error_msg = answer.text("error_msg")?;
    Ok(match method {
        Method::Disconnect => Outcome::Disconnect(status, error_msg),
        Method::Connect => {
            let mut env = answer.fields("env")?;
            Outcome::Connect(ConnectReply {
                status,
                identifiers: answer.text("identifiers")?,
                transmissions: answer.texts("transmissions")?,
                error_msg,
                cstate: env.changes("cstate")?,
            })
        }
        Method::Command => {
            let mut env = answer.fields("env")?;
            let presence = match answer.take("presence") {
                None => None,
                Some(presence) => {
                    let mut presence = Fields::of(presence)?;
                    let (kind, id) = (presence.text("type")?, presence.text("id")?);
                    Some(PresenceReply { kind, id, info: presence.text("info")? })
                }
            };
            Outcome::Command(Box::new(CommandReply {
                status,
                disconnect: answer.flag("disconnect")?,
                stop_streams: answer.flag("stop_streams")?,
                streams: answer.texts("streams")?,
                stopped_streams: answer.texts("stopped_streams")?,
                transmissions: answer.texts("transmissions")?,
                error_msg,
                cstate: env.changes("cstate")?,
                istate: env.changes("istate")?,
                presence,
            }))
        }
    })
}

/// The fields of an object by their lower-case names, without those that are `null`.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn of(value: Value) -> Result<Fields, String> {
        let Value::Object(object) = value else { return Err("not an object".to_owned()) };
        let filled = object.into_iter().filter(|(_, value)| !value.is_null());
        Ok(Fields(filled.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()))
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        self.take(name).map_or(Ok(String::new()), |value| text(name, value))
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        self.take(name).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| format!("{name} is not a boolean")))
    }

    fn texts(&mut self, name: &str) -> Result<Vec<String>, String> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values.into_iter().map(|value| text(name, value)).collect(),
            Some(_) => Err(format!("{name} is not an array")),
        }
    }

    fn fields(&mut self, name: &str) -> Result<Fields, String> {
        let Some(value) = self.take(name) else { return Ok(Fields::default()) };
        Fields::of(value).map_err(|error| format!("{name} is {error}"))
    }

    /// Keys of a state are the app's own: they keep their case.
    fn changes(&mut self, name: &str) -> Result<StateChanges, String> {
        match self.take(name) {
            None => Ok(StateChanges::new()),
            Some(Value::Object(object)) => {
                object.into_iter().map(|(key, value)| Ok((key, text(name, value)?))).collect()
            }
            Some(_) => Err(format!("{name} is not an object")),
        }
    }
}

fn text(name: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        _ => Err(format!("{name} is not a text")),
    }
}

#[cfg(test)]
mod tests {
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
