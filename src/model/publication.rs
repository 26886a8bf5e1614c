//! What an app gives us to deliver.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Position, SharedText, Sid};

/// One message for the subscribers of one stream. Shards share it in one `Arc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The stream it is for. Never empty.
    pub stream: Box<str>,
    /// The value of `message` in what clients receive: valid JSON text, ready to be spliced in as it is.
    pub message: SharedText,
    /// The session that must not get it (`meta.exclude_socket`).
    pub exclude: Option<Sid>,
    /// The value of `type` in what clients receive (`meta.broadcast_type`), plain text.
    pub kind: Option<SharedText>,
    /// Not to be kept in the history (`meta.transient`; whispers and presence events).
    pub transient: bool,
    /// Its place in the stream; none where the stream has no history, or this is transient.
    pub position: Option<Position>,
}

impl Publication {
    /// A message for everybody who follows a stream.
    pub fn new(stream: impl Into<Box<str>>, message: impl Into<SharedText>) -> Publication {
        let (stream, message) = (stream.into(), message.into());
        Publication { stream, message, exclude: None, kind: None, transient: false, position: None }
    }
}

/// The app asks to disconnect every session with these connection identifiers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteDisconnect {
    /// Compared byte for byte with what Connect returned.
    pub identifiers: Arc<str>,
    /// Whether the clients are told to come back.
    pub reconnect: bool,
}
