//! Which channels this server answers itself: signed and public streams, no call to the app.

use std::borrow::Cow;

use serde::de::MapAccess;
use serde_json::value::RawValue;

use super::Secret;
use super::signed_stream::verify_stream;
use crate::model::Routed;
use crate::proto::json::{Fields, Object, skip, text_of};

/// What a [`StreamRouter`] is made of. The default knows no secret, so it refuses every name.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// Verifies signed names of `$pubsub`; without it they are all refused.
    pub secret: Option<Secret>,
    /// Whether unsigned names are allowed (`--public_streams`).
    pub public: bool,
    /// Whether signed streams may whisper. Public ones always may.
    pub whisper: bool,
    /// Whether signed streams have presence. Public ones always have.
    pub presence: bool,
    /// `Turbo::StreamsChannel` is answered here, with this secret.
    pub turbo: Option<Secret>,
    /// `CableReady::Stream` is answered here, with this secret.
    pub cable_ready: Option<Secret>,
    /// Names that no client may follow beside [`RESERVED`]: what channels of servers are called by the configuration.
    pub reserved: Vec<String>,
}

impl Default for StreamSettings {
    fn default() -> StreamSettings {
        StreamSettings {
            secret: None,
            public: false,
            whisper: false,
            presence: true,
            turbo: None,
            cable_ready: None,
            reserved: Vec::new(),
        }
    }
}

/// Decides for each subscription whether this server answers it itself.
#[derive(Clone, Debug, Default)]
pub struct StreamRouter {
    settings: StreamSettings,
}

impl StreamRouter {
    /// A router with these settings.
    pub fn new(settings: StreamSettings) -> StreamRouter {
        StreamRouter { settings }
    }

    /// The channels that are answered here, for the boot log.
    pub fn channels(&self) -> Vec<&str> {
        let StreamSettings { turbo, cable_ready, .. } = &self.settings;
        let turbo = turbo.as_ref().map(|_| TURBO_CHANNEL);
        let cable_ready = cable_ready.as_ref().map(|_| CABLE_READY_CHANNEL);
        [Some(PUBSUB_CHANNEL), turbo, cable_ready].into_iter().flatten().collect()
    }

    /// Where a subscription to `identifier` goes. An identifier that is no JSON object, or whose channel nobody
    /// here knows, is the app's.
    pub fn route(&self, identifier: &str) -> Routed {
        // Most identifiers are the app's and have no stream name: they cost one pass over their few bytes.
        let Ok(Object(params)) = serde_json::from_str::<Object<Params<'_>>>(identifier) else {
            return Routed::Backend;
        };
        let Some(channel) = params.channel.and_then(text_of) else {
            return Routed::Backend;
        };
        let StreamSettings { secret, turbo, cable_ready, .. } = &self.settings;
        if channel == PUBSUB_CHANNEL {
            return self.pubsub(&params, secret.as_ref());
        }
        match (channel.as_ref(), turbo, cable_ready) {
            (TURBO_CHANNEL, Some(secret), _) => self.signed(params.signed_stream_name, secret),
            (CABLE_READY_CHANNEL, _, Some(secret)) => self.signed(params.identifier, secret),
            _ => Routed::Backend,
        }
    }

    fn pubsub(&self, params: &Params<'_>, secret: Option<&Secret>) -> Routed {
        let StreamSettings { public, whisper, presence, .. } = self.settings;
        match (TextParam::from(params.signed_stream_name), secret, TextParam::from(params.stream_name)) {
            // The signed name wins, also when it is bad.
            (TextParam::Text(token), Some(secret), _) => self.stream(verify_stream(secret, &token), whisper, presence),
            (TextParam::Missing, _, TextParam::Text(name)) if public => {
                self.stream(Some(name.into_owned()), true, true)
            }
            _ => Routed::Rejected,
        }
    }

    /// Turbo and CableReady: no whisper, no presence.
    fn signed(&self, token: Option<&RawValue>, secret: &Secret) -> Routed {
        match TextParam::from(token) {
            TextParam::Text(token) => self.stream(verify_stream(secret, &token), false, false),
            _ => Routed::Rejected,
        }
    }

    fn stream(&self, name: Option<String>, whisper: bool, presence: bool) -> Routed {
        match name {
            Some(name) if !RESERVED.contains(&name.as_str()) && !self.settings.reserved.contains(&name) => {
                Routed::Stream { name, whisper, presence }
            }
            _ => Routed::Rejected,
        }
    }
}

/// The channel for signed and public streams.
const PUBSUB_CHANNEL: &str = "$pubsub";
const TURBO_CHANNEL: &str = "Turbo::StreamsChannel";
const CABLE_READY_CHANNEL: &str = "CableReady::Stream";

/// Names that no client may follow, however they are signed: what servers tell each other.
const RESERVED: [&str; 2] = ["__anycable__", "__anycable_internal__"];

/// The parts of an identifier that matter here, unread: an app's channel may use the same keys for anything.
#[derive(Default)]
struct Params<'a> {
    channel: Option<&'a RawValue>,
    stream_name: Option<&'a RawValue>,
    signed_stream_name: Option<&'a RawValue>,
    identifier: Option<&'a RawValue>,
}

impl<'de> Fields<'de> for Params<'de> {
    const WHAT: &'static str = "a channel identifier";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "channel" => self.channel = map.next_value()?,
            "stream_name" => self.stream_name = map.next_value()?,
            "signed_stream_name" => self.signed_stream_name = map.next_value()?,
            "identifier" => self.identifier = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// A name or token in an identifier.
enum TextParam<'a> {
    /// Left out, `null` or empty.
    Missing,
    Text(Cow<'a, str>),
    /// Of another type.
    WrongType,
}

impl<'a> From<Option<&'a RawValue>> for TextParam<'a> {
    fn from(raw: Option<&'a RawValue>) -> TextParam<'a> {
        match raw.map(text_of) {
            None => TextParam::Missing,
            Some(Some(text)) if text.is_empty() => TextParam::Missing,
            Some(Some(text)) => TextParam::Text(text),
            Some(None) => TextParam::WrongType,
        }
    }
}

#[cfg(test)]
mod tests;
