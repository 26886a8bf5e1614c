//! What clients say.

use std::borrow::Cow;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::model;
use crate::proto::json::{Fields, Object, Text, UNKNOWN_NAME_CHARS, Unfit, passable, skip, text, text_of, text_only};

/// One client message that makes sense on its own. Whether the session knows the identifier is not asked here.
///
/// Texts are borrowed from the message unless they held escapes. `identifier` is never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Subscribe to a channel.
    Subscribe {
        /// The channel.
        identifier: Cow<'a, str>,
        /// History to send after the confirmation. Never empty.
        history: Option<HistoryRequest<'a>>,
        /// Join the channel's presence after the confirmation.
        presence: Option<PresenceRequest<'a>>,
    },
    /// Unsubscribe from a channel.
    Unsubscribe {
        /// The channel.
        identifier: Cow<'a, str>,
    },
    /// Hand `data` to the channel in the app.
    Message {
        /// The channel.
        identifier: Cow<'a, str>,
        /// The app's business; passed on unread.
        data: Cow<'a, str>,
    },
    /// Asks for a `pong` message.
    Ping,
    /// A sign of life.
    Pong,
    /// Asks for messages that were missed.
    History {
        /// The channel.
        identifier: Cow<'a, str>,
        /// Which ones. Never empty.
        request: HistoryRequest<'a>,
    },
    /// A message for the other subscribers, past the app.
    Whisper {
        /// The channel.
        identifier: Cow<'a, str>,
        /// JSON text of any value; `null` when the client gave none.
        data: &'a str,
    },
    /// Join the channel's presence.
    Join {
        /// The channel.
        identifier: Cow<'a, str>,
        /// Who.
        presence: PresenceRequest<'a>,
    },
    /// Leave the channel's presence. An id that was sent along is ignored: a session leaves as whom it joined.
    Leave {
        /// The channel.
        identifier: Cow<'a, str>,
    },
    /// Asks who is present.
    Presence {
        /// The channel.
        identifier: Cow<'a, str>,
        /// Whether the records are wanted, or only how many there are.
        return_records: bool,
    },
}

/// Which missed messages a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryRequest<'a> {
    /// For streams that are not in `streams`: messages from this Unix time on, in seconds. 0 means none.
    pub since: i64,
    /// For these streams, messages after the position. Of two entries for one stream the later one counts.
    pub streams: Vec<(Cow<'a, str>, Position<'a>)>,
}

/// A place in a stream. What the client left out is empty or 0 and matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position<'a> {
    /// The generation of the stream's storage.
    pub epoch: Cow<'a, str>,
    /// The last message that the client has; 1 is the first one of a stream.
    pub offset: u64,
}

/// Who joins a channel's presence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresenceRequest<'a> {
    /// Who, within the presence stream. Never empty.
    pub id: Cow<'a, str>,
    /// What others are told about them: JSON text of any value.
    pub info: Option<&'a str>,
}

/// A client message that nothing can be done with: the client's fault. The connection stays open
/// (`contracts/action-cable.md` section 3); the message is logged and counted as failed.
#[derive(Debug, thiserror::Error)]
pub enum BadCommand {
    /// Not one JSON object, or a field has the wrong type.
    #[error("a command is one JSON object such as {{\"command\":\"subscribe\",\"identifier\":\"…\"}}: {0}")]
    Unreadable(serde_json::Error),
    /// There is no `command`.
    #[error("the message has no command: add \"command\", one of {KNOWN}")]
    NoCommand,
    /// Nobody knows this command. Holds its first characters.
    #[error("unknown command {0:?}: use one of {KNOWN}")]
    UnknownCommand(String),
    /// The command needs a channel and has none.
    #[error("command {0} needs \"identifier\", the non-empty text that names the subscription")]
    NoIdentifier(&'static str),
    /// The data of `message` is no JSON string.
    #[error("the data of a message is a JSON string: encode the action's JSON text as a string")]
    DataNotText,
    /// A `history` command that asks for nothing.
    #[error("command history needs \"history\" with \"since\" (Unix seconds) or \"streams\"")]
    EmptyHistory,
    /// JSON for other clients that their parsers may not take.
    #[error("{0} cannot be passed on: {1}")]
    Unfit(&'static str, Unfit),
    /// A `join` that says not who.
    #[error("command join needs \"presence\" with \"id\", a non-empty text")]
    NoPresenceId,
}

const KNOWN: &str = "subscribe, unsubscribe, message, ping, pong, history, whisper, join, leave, presence";

/// Reads one client message. `Ok(None)` for JSON `null`, which is ignored.
///
/// One pass over the bytes, plus one over a `data` that came before the command's name; time and memory are in proportion
/// to the length.
pub fn parse(bytes: &[u8]) -> Result<Option<Command<'_>>, BadCommand> {
    let read: Option<Object<Message<'_>>> = serde_json::from_slice(bytes).map_err(BadCommand::Unreadable)?;
    read.map(|object| object.0.into_command()).transpose()
}

/// The same for a message that is known to be UTF-8 already.
pub(super) fn parse_text(text: &str) -> Result<Option<Command<'_>>, BadCommand> {
    let read: Option<Object<Message<'_>>> = serde_json::from_str(text).map_err(BadCommand::Unreadable)?;
    read.map(|object| object.0.into_command()).transpose()
}

/// The fields of a client message, in whatever order they came.
#[derive(Default)]
struct Message<'a> {
    command: Option<Cow<'a, str>>,
    identifier: Option<Cow<'a, str>>,
    data: Option<Data<'a>>,
    history: Option<HistoryRequest<'a>>,
    presence: Option<PresenceRequest<'a>>,
}

/// The value of `data`. What is to become of it depends on the command, whose name usually comes first.
enum Data<'a> {
    /// For the command `message`: read as a text at once; `None` if it was something else.
    Text(Option<Cow<'a, str>>),
    /// Not looked into yet.
    Raw(&'a RawValue),
}

impl<'a> Data<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Data::Text(text) => text,
            Data::Raw(raw) => text_of(raw),
        }
    }

    fn raw(self) -> Option<&'a RawValue> {
        match self {
            Data::Raw(raw) => Some(raw),
            Data::Text(_) => None,
        }
    }
}

impl<'de> Fields<'de> for Message<'de> {
    const WHAT: &'static str = "a command object";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "command" => self.command = text(map)?,
            "identifier" => self.identifier = text(map)?,
            "data" if self.command.as_deref() == Some("message") => self.data = Some(Data::Text(text_only(map)?)),
            "data" => self.data = Some(Data::Raw(map.next_value()?)),
            "history" => self.history = map.next_value::<Option<Object<_>>>()?.map(|object| object.0),
            "presence" => self.presence = map.next_value::<Option<Object<_>>>()?.map(|object| object.0),
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'a> Message<'a> {
    fn into_command(self) -> Result<Command<'a>, BadCommand> {
        let name = self.command.ok_or(BadCommand::NoCommand)?;
        let identifier = self.identifier.filter(|identifier| !identifier.is_empty());
        let identifier = |name| identifier.ok_or(BadCommand::NoIdentifier(name));
        let history = self.history.filter(|history| !history.is_empty());
        let presence = self.presence.filter(|presence| !presence.id.is_empty());
        if let Some(info) = presence.as_ref().and_then(|presence| presence.info) {
            passable(info).map_err(|why| BadCommand::Unfit("the info of a presence", why))?;
        }
        Ok(match name.as_ref() {
            "message" => Command::Message {
                identifier: identifier("message")?,
                data: self.data.and_then(Data::text).ok_or(BadCommand::DataNotText)?,
            },
            "subscribe" => Command::Subscribe { identifier: identifier("subscribe")?, history, presence },
            "unsubscribe" => Command::Unsubscribe { identifier: identifier("unsubscribe")? },
            "pong" => Command::Pong,
            "ping" => Command::Ping,
            "whisper" => Command::Whisper {
                identifier: identifier("whisper")?,
                data: passable(self.data.and_then(Data::raw).map_or("null", RawValue::get))
                    .map_err(|why| BadCommand::Unfit("the data of a whisper", why))?,
            },
            "history" => Command::History {
                identifier: identifier("history")?,
                request: history.ok_or(BadCommand::EmptyHistory)?,
            },
            "join" => {
                Command::Join { identifier: identifier("join")?, presence: presence.ok_or(BadCommand::NoPresenceId)? }
            }
            "leave" => Command::Leave { identifier: identifier("leave")? },
            "presence" => Command::Presence {
                identifier: identifier("presence")?,
                return_records: self.data.and_then(Data::raw).is_none_or(wants_records),
            },
            "" => return Err(BadCommand::NoCommand),
            other => return Err(BadCommand::UnknownCommand(other.chars().take(UNKNOWN_NAME_CHARS).collect())),
        })
    }
}

/// Everything but a plain `{"return_records":false}` asks for the records.
fn wants_records(data: &RawValue) -> bool {
    struct Options {
        return_records: bool,
    }
    impl Default for Options {
        fn default() -> Options {
            Options { return_records: true }
        }
    }
    impl<'de> Fields<'de> for Options {
        const WHAT: &'static str = "presence options";

        fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
            match key {
                "return_records" => self.return_records = map.next_value::<Option<bool>>()?.unwrap_or(true),
                _ => skip(map)?,
            }
            Ok(())
        }
    }
    serde_json::from_str::<Object<Options>>(data.get()).map_or(true, |options| options.0.return_records)
}

impl HistoryRequest<'_> {
    /// A copy that outlives the message.
    pub fn to_owned(&self) -> model::HistoryRequest {
        let position = |position: &Position<'_>| model::Position {
            epoch: position.epoch.as_ref().into(),
            offset: position.offset,
        };
        let positions = self.streams.iter().map(|(stream, at)| (stream.as_ref().into(), position(at))).collect();
        model::HistoryRequest { since: self.since, positions }
    }

    fn is_empty(&self) -> bool {
        self.since == 0 && self.streams.is_empty()
    }
}

impl<'de> Fields<'de> for HistoryRequest<'de> {
    const WHAT: &'static str = "a history request";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "since" => self.since = map.next_value::<Option<i64>>()?.unwrap_or(0),
            "streams" => self.streams = map.next_value::<Option<Streams<'de>>>()?.map_or_else(Vec::new, |s| s.0),
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> for Position<'de> {
    const WHAT: &'static str = "a stream position";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "epoch" => self.epoch = text(map)?.unwrap_or_default(),
            "offset" => self.offset = map.next_value::<Option<u64>>()?.unwrap_or(0),
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> for PresenceRequest<'de> {
    const WHAT: &'static str = "a presence request";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.id = text(map)?.unwrap_or_default(),
            "info" => self.info = Some(map.next_value::<&RawValue>()?.get()),
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// Stream names and positions. The keys are data here, so this is no [`Fields`].
struct Streams<'a>(Vec<(Cow<'a, str>, Position<'a>)>);

impl<'de> serde::Deserialize<'de> for Streams<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StreamsVisitor;
        impl<'de> Visitor<'de> for StreamsVisitor {
            type Value = Streams<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of stream positions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Streams<'de>, A::Error> {
                let mut streams = Vec::new();
                while let Some(stream) = map.next_key::<Text<'de>>()? {
                    let position = map.next_value::<Option<Object<Position<'de>>>>()?;
                    streams.push((stream.0, position.map_or_else(Position::default, |object| object.0)));
                }
                Ok(Streams(streams))
            }
        }
        deserializer.deserialize_map(StreamsVisitor)
    }
}

#[cfg(test)]
mod tests;
