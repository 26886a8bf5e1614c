//! What an app gives us to deliver.

use std::sync::Arc;

use super::Sid;

/// One message for the subscribers of one stream. Shards share it in one `Arc`, so its texts need none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The stream it is for. Never empty.
    pub stream: Box<str>,
    /// The value of `message` in what clients receive: valid JSON text, ready to be spliced in as it is.
    pub message: Box<str>,
    /// The session that must not get it (`meta.exclude_socket`).
    pub exclude: Option<Sid>,
    /// The value of `type` in what clients receive (`meta.broadcast_type`), plain text.
    pub kind: Option<Box<str>>,
}

/// The app asks to disconnect every session with these connection identifiers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDisconnect {
    /// Compared byte for byte with what Connect returned.
    pub identifiers: Arc<str>,
    /// Whether the clients are told to come back.
    pub reconnect: bool,
}
