//! What apps send us to deliver, as JSON (`contracts/broadcast.md` section 1): a publication, a batch of them,
//! or a remote command. The same text comes over HTTP and every other adapter.
//!
//! Differences from AnyCable, on purpose. The app's `data` is validated once and becomes the clients' `message`
//! as it was written, so numbers, key order and `null` survive. What is no Unicode is delivered with the replacement
//! character. An element of a batch that is no publication does not take the others along. Positions (`offset`, `epoch`)
//! are not taken from apps.

pub mod between_nodes;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::{Publication, RemoteDisconnect, Sid};
use crate::proto::json::{self, Fields, Object, UNKNOWN_NAME_CHARS, skip, text, text_of};

/// What an app sent.
#[derive(Debug)]
pub enum Incoming {
    /// To be delivered in this order; one unless it was a batch.
    Publications(Vec<Publication>),
    /// A batch of which not all elements are publications.
    PartOfBatch {
        /// Those that are, to be delivered in this order. There may be none.
        publications: Vec<Publication>,
        /// How many are not.
        refused: usize,
        /// Why the first of them is not.
        first: BadPublication,
    },
    /// Disconnect somebody.
    Disconnect(RemoteDisconnect),
    /// A remote command that nobody knows; ignored but counted. Holds the first characters of its name.
    UnknownCommand(String),
}

/// Why a payload is no publication: the app's fault.
#[derive(Debug, thiserror::Error)]
pub enum BadPublication {
    /// Not one JSON value, or `stream` is no text.
    #[error("not a publication: it must be JSON such as {{\"stream\":\"room:7\",\"data\":\"…\"}}")]
    Unreadable(#[source] serde_json::Error),
    /// Neither a stream nor a command.
    #[error("not a publication: it needs \"stream\" or \"command\", a non-empty text")]
    NoStream,
    /// A batch without elements.
    #[error("the batch is empty")]
    EmptyBatch,
    /// `data` is there and is no JSON string.
    #[error("the data of a publication must be a JSON string: encode the message's JSON text as a string")]
    DataNotText,
    /// `meta` is no object, or one of its fields has the wrong type.
    #[error("the meta of a publication must be an object such as {{\"exclude_socket\":\"…\"}}")]
    BadMeta(#[source] serde_json::Error),
    /// A `disconnect` command that says not whom.
    #[error("the command disconnect needs a payload with \"identifier\", a text")]
    NoIdentifier,
    /// An element of a batch is no publication.
    #[error("element {index} of the batch: {reason}")]
    InBatch {
        /// Which one, from 0.
        index: usize,
        /// Why.
        reason: Box<BadPublication>,
    },
}

/// Reads what an app sent. Time and memory are in proportion to the length of `body`, which the caller bounds.
///
/// `data` is read in two passes: one takes the string out of the body, one checks whether its text is JSON. What cannot
/// be read like that is read again with more patience, one element of a batch after the other.
pub fn parse(body: &[u8]) -> Result<Incoming, BadPublication> {
    let read = match serde_json::from_slice::<Body<'_>>(body) {
        Ok(Body::One(payload)) => payload.incoming(),
        Ok(Body::Batch(batch)) => incoming_batch(batch.iter().map(Payload::element)),
        Err(error) => Err(BadPublication::Unreadable(error)),
    };
    match read {
        Err(_) | Ok(Incoming::PartOfBatch { .. }) => parse_patiently(body),
        whole => whole,
    }
}

/// Reads a body that holds something which is no text or no publication.
fn parse_patiently(body: &[u8]) -> Result<Incoming, BadPublication> {
    let body = String::from_utf8_lossy(body);
    let body = json::without_lone_surrogates(&body);
    if body.trim_ascii_start().starts_with('[') {
        let elements = serde_json::from_str::<Vec<&RawValue>>(&body).map_err(BadPublication::Unreadable)?;
        return incoming_batch(elements.iter().map(|element| patient_payload(element.get())?.element()));
    }
    patient_payload(&body)?.incoming()
}

fn patient_payload(json: &str) -> Result<Payload<'_, true>, BadPublication> {
    Ok(serde_json::from_str::<Object<Payload<'_, true>>>(json).map_err(BadPublication::Unreadable)?.0)
}

fn incoming_batch(
    elements: impl Iterator<Item = Result<Publication, BadPublication>>,
) -> Result<Incoming, BadPublication> {
    let (mut publications, mut refused, mut first) = (Vec::new(), 0, None);
    for (index, element) in elements.enumerate() {
        match element {
            Ok(publication) => publications.push(publication),
            Err(reason) => {
                refused += 1;
                first.get_or_insert_with(|| BadPublication::InBatch { index, reason: Box::new(reason) });
            }
        }
    }
    match first {
        Some(first) => Ok(Incoming::PartOfBatch { publications, refused, first }),
        None if publications.is_empty() => Err(BadPublication::EmptyBatch),
        None => Ok(Incoming::Publications(publications)),
    }
}

/// The value of `message` for this `data`: JSON stays as it is, without white space around it; any other text
/// becomes a JSON string. White space inside, also line breaks, stays too, which a text frame may hold.
pub fn message_json(data: &str) -> Cow<'_, str> {
    match serde_json::from_str::<&RawValue>(data) {
        Ok(json) => json::without_lone_surrogates(json.get()),
        Err(_) => Cow::Owned(json::string(data)),
    }
}

/// An object's fields, read no further than needed to see what it is: a publication's `data` must not be judged by the
/// rules of a command's. Without `DATA_LAST`, `data` is read as a text where it stands, and the body is unreadable if
/// it is none. With it, `data` is skipped first and read afterwards, which is one pass more.
#[derive(Default)]
struct Payload<'a, const DATA_LAST: bool> {
    stream: Option<Cow<'a, str>>,
    data: Option<Data<'a>>,
    meta: Option<&'a RawValue>,
    command: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    /// What nodes add. Not judged by its kind where it comes from an app.
    node: Option<&'a RawValue>,
    seq: Option<&'a RawValue>,
    offset: Option<&'a RawValue>,
    epoch: Option<&'a RawValue>,
}

impl<'de, const DATA_LAST: bool> Fields<'de> for Payload<'de, DATA_LAST> {
    const WHAT: &'static str = "a publication object";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "stream" => self.stream = text(map)?,
            "data" if DATA_LAST => {
                let raw: Option<&RawValue> = map.next_value()?;
                self.data = raw.map(|raw| text_of(raw).map_or(Data::NotText, Data::Text));
            }
            "data" => self.data = text(map)?.map(Data::Text),
            "meta" => self.meta = map.next_value()?,
            "command" => self.command = map.next_value()?,
            "payload" => self.payload = map.next_value()?,
            "node" => self.node = map.next_value()?,
            "seq" => self.seq = map.next_value()?,
            "offset" => self.offset = map.next_value()?,
            "epoch" => self.epoch = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<const DATA_LAST: bool> Payload<'_, DATA_LAST> {
    /// A payload that stands alone.
    fn incoming(&self) -> Result<Incoming, BadPublication> {
        match self.stream() {
            Some(stream) => Ok(Incoming::Publications(vec![self.publication(stream)?])),
            None => self.remote_command(),
        }
    }

    /// One of a batch, which holds no commands.
    fn element(&self) -> Result<Publication, BadPublication> {
        self.publication(self.stream().ok_or(BadPublication::NoStream)?)
    }

    fn stream(&self) -> Option<&str> {
        self.stream.as_deref().filter(|stream| !stream.is_empty())
    }

    fn publication(&self, stream: &str) -> Result<Publication, BadPublication> {
        let data = match &self.data {
            Some(Data::Text(text)) => text,
            Some(Data::NotText) => return Err(BadPublication::DataNotText),
            None => "",
        };
        let meta = match self.meta {
            Some(meta) => serde_json::from_str::<Object<Meta<'_>>>(meta.get()).map_err(BadPublication::BadMeta)?.0,
            None => Meta::default(),
        };
        Ok(Publication {
            stream: stream.into(),
            message: message_json(data).into(),
            // Anything that we did not hand out belongs to nobody here, so it excludes nobody.
            exclude: meta.exclude_socket.as_deref().and_then(Sid::parse),
            kind: meta.broadcast_type.filter(|kind| !kind.is_empty()).map(Into::into),
            transient: meta.transient,
            position: None,
        })
    }

    fn remote_command(&self) -> Result<Incoming, BadPublication> {
        let name = self.command.and_then(text_of).filter(|name| !name.is_empty()).ok_or(BadPublication::NoStream)?;
        if name != "disconnect" {
            return Ok(Incoming::UnknownCommand(name.chars().take(UNKNOWN_NAME_CHARS).collect()));
        }
        let whom = self.payload.and_then(|payload| serde_json::from_str::<Object<Whom<'_>>>(payload.get()).ok());
        match whom.map(|object| object.0) {
            Some(Whom { identifier: Some(identifier), reconnect }) => {
                Ok(Incoming::Disconnect(RemoteDisconnect { identifiers: Arc::from(identifier), reconnect }))
            }
            _ => Err(BadPublication::NoIdentifier),
        }
    }
}

#[derive(Default)]
struct Meta<'a> {
    exclude_socket: Option<Cow<'a, str>>,
    broadcast_type: Option<Cow<'a, str>>,
    transient: bool,
}

impl<'de> Fields<'de> for Meta<'de> {
    const WHAT: &'static str = "a meta object";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "exclude_socket" => self.exclude_socket = text(map)?,
            "broadcast_type" => self.broadcast_type = text(map)?,
            "transient" => self.transient = map.next_value::<Option<bool>>()?.unwrap_or(false),
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// The payload of the `disconnect` command.
#[derive(Default)]
struct Whom<'a> {
    identifier: Option<Cow<'a, str>>,
    reconnect: bool,
}

impl<'de> Fields<'de> for Whom<'de> {
    const WHAT: &'static str = "the payload of a command";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "identifier" => self.identifier = text(map)?,
            "reconnect" => self.reconnect = map.next_value::<Option<bool>>()?.unwrap_or(false),
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// What is under `data`, unless it is nothing or `null`.
enum Data<'a> {
    Text(Cow<'a, str>),
    NotText,
}

/// The whole body: an object or an array of objects.
enum Body<'a> {
    One(Box<Payload<'a, false>>),
    Batch(Vec<Payload<'a, false>>),
}

impl<'de> Deserialize<'de> for Body<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BodyVisitor;
        impl<'de> Visitor<'de> for BodyVisitor {
            type Value = Body<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a publication, an array of publications or a command")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Body<'de>, A::Error> {
                let object = Object::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Body::One(Box::new(object.0)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Body<'de>, A::Error> {
                let mut batch = Vec::new();
                while let Some(object) = seq.next_element::<Object<Payload<'de, false>>>()? {
                    batch.push(object.0);
                }
                Ok(Body::Batch(batch))
            }

            fn visit_unit<E: Error>(self) -> Result<Body<'de>, E> {
                Err(E::invalid_type(serde::de::Unexpected::Unit, &self))
            }
        }
        deserializer.deserialize_any(BodyVisitor)
    }
}

#[cfg(test)]
mod tests;
