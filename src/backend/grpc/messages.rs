//! The messages of `proto/anycable.proto` as Rust types, written by hand.
//!
//! Generating them (protox and prost-build in a build script) would add some twenty crates to every first build: regex,
//! logos, miette, prost-reflect and others.
//! A test compares them with the `.proto` file, field by field. The server encodes its own calls straight from
//! [`crate::model`] (`encode.rs`); these types decode answers, and serve app servers written in Rust.

use std::collections::BTreeMap;

/// The app's verdict. An absent status is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// The app failed.
    Error = 0,
    /// Yes.
    Success = 1,
    /// No.
    Failure = 2,
}

/// What the app may know about the client's upgrade request, and the state that it asked us to keep.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Env {
    /// Absolute, `http://` or `https://`.
    #[prost(string, tag = "1")]
    pub url: String,
    /// Proxied headers under lower-case names, and `REMOTE_ADDR`.
    #[prost(btree_map = "string, string", tag = "2")]
    pub headers: BTreeMap<String, String>,
    /// Connection state.
    #[prost(btree_map = "string, string", tag = "3")]
    pub cstate: BTreeMap<String, String>,
    /// Channel state. In Disconnect: by channel identifier, each value a JSON object as text.
    #[prost(btree_map = "string, string", tag = "4")]
    pub istate: BTreeMap<String, String>,
}

/// Changes of state: an empty value removes its key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EnvResponse {
    /// Of the connection.
    #[prost(btree_map = "string, string", tag = "1")]
    pub cstate: BTreeMap<String, String>,
    /// Of the channel.
    #[prost(btree_map = "string, string", tag = "2")]
    pub istate: BTreeMap<String, String>,
}

/// A presence event that the app asks for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PresenceResponse {
    /// `join` or `leave`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Who.
    #[prost(string, tag = "2")]
    pub id: String,
    /// JSON text.
    #[prost(string, tag = "3")]
    pub info: String,
    /// Not used by the server.
    #[prost(uint32, tag = "4")]
    pub ttl: u32,
}

/// Asks whether a client may connect.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectionRequest {
    /// The upgrade request.
    #[prost(message, optional, tag = "3")]
    pub env: Option<Env>,
}

/// Answers [`ConnectionRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectionResponse {
    /// Whether the client may connect.
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
    /// Who the client is.
    #[prost(string, tag = "2")]
    pub identifiers: String,
    /// Texts for the client.
    #[prost(string, repeated, tag = "3")]
    pub transmissions: Vec<String>,
    /// For the log.
    #[prost(string, tag = "4")]
    pub error_msg: String,
    /// Changes of state.
    #[prost(message, optional, tag = "5")]
    pub env: Option<EnvResponse>,
}

/// A client's command.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommandMessage {
    /// `subscribe`, `unsubscribe` or `message`.
    #[prost(string, tag = "1")]
    pub command: String,
    /// The channel.
    #[prost(string, tag = "2")]
    pub identifier: String,
    /// What Connect returned.
    #[prost(string, tag = "3")]
    pub connection_identifiers: String,
    /// Only for `message`.
    #[prost(string, tag = "4")]
    pub data: String,
    /// The upgrade request and the state.
    #[prost(message, optional, tag = "5")]
    pub env: Option<Env>,
}

/// Answers [`CommandMessage`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommandResponse {
    /// Whether the command was carried out.
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
    /// Close the connection after the effects.
    #[prost(bool, tag = "2")]
    pub disconnect: bool,
    /// Stop all streams of this channel.
    #[prost(bool, tag = "3")]
    pub stop_streams: bool,
    /// Streams to add.
    #[prost(string, repeated, tag = "4")]
    pub streams: Vec<String>,
    /// Texts for the client.
    #[prost(string, repeated, tag = "5")]
    pub transmissions: Vec<String>,
    /// For the log.
    #[prost(string, tag = "6")]
    pub error_msg: String,
    /// Changes of state.
    #[prost(message, optional, tag = "7")]
    pub env: Option<EnvResponse>,
    /// Streams to stop.
    #[prost(string, repeated, tag = "8")]
    pub stopped_streams: Vec<String>,
    /// A presence event.
    #[prost(message, optional, tag = "9")]
    pub presence: Option<PresenceResponse>,
}

/// Says that a client is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DisconnectRequest {
    /// What Connect returned.
    #[prost(string, tag = "1")]
    pub identifiers: String,
    /// Identifiers of the channels still subscribed.
    #[prost(string, repeated, tag = "2")]
    pub subscriptions: Vec<String>,
    /// The upgrade request and the state.
    #[prost(message, optional, tag = "5")]
    pub env: Option<Env>,
}

/// Answers [`DisconnectRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct DisconnectResponse {
    /// Whether the app dealt with it.
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
    /// For the log.
    #[prost(string, tag = "2")]
    pub error_msg: String,
}
