//! Calls to the app and its answers, independent of how they travel (`contracts/rpc-grpc.md`).

use serde::{Deserialize, Serialize};

use super::state::StateChanges;
use super::{ChannelIdentifier, Env, Sid, SlotKey, State};

/// One call to the app on behalf of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Where the answer goes.
    pub key: SlotKey,
    /// Sent as metadata with the call.
    pub sid: Sid,
    /// What is asked.
    pub request: Request,
}

/// What is asked of the app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// May this client connect, and who is it?
    Connect {
        /// The upgrade request.
        env: Env,
    },
    /// A client's command.
    Command {
        /// Which command.
        command: CommandKind,
        /// The channel identifier, as the client wrote it.
        identifier: ChannelIdentifier,
        /// Only for [`CommandKind::Message`], else empty.
        data: String,
        /// The upgrade request, and who the client is.
        env: Env,
        /// Connection state.
        cstate: State,
        /// State of this channel.
        istate: State,
    },
    /// The session is over. Nobody waits for the answer.
    Disconnect {
        /// Channels still subscribed, each with its state (empty ones are not sent).
        subscriptions: Vec<(ChannelIdentifier, State)>,
        /// The upgrade request, and who the client was.
        env: Env,
        /// Connection state.
        cstate: State,
    },
}

impl Request {
    /// Bytes of all texts that it carries.
    pub fn texts_len(&self) -> usize {
        let of_state = |state: &State| state.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        match self {
            Request::Connect { env } => env.packed_len(),
            Request::Command { identifier, data, env, cstate, istate, .. } => {
                identifier.len() + data.len() + env.packed_len() + of_state(cstate) + of_state(istate)
            }
            Request::Disconnect { subscriptions, env, cstate } => {
                let of_channel = |(identifier, state): &(ChannelIdentifier, State)| identifier.len() + of_state(state);
                subscriptions.iter().map(of_channel).sum::<usize>() + env.packed_len() + of_state(cstate)
            }
        }
    }
}

/// The commands that go to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandKind {
    /// `subscribe`
    Subscribe,
    /// `unsubscribe`
    Unsubscribe,
    /// `message`
    Message,
}

impl CommandKind {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            CommandKind::Subscribe => "subscribe",
            CommandKind::Unsubscribe => "unsubscribe",
            CommandKind::Message => "message",
        }
    }
}

/// The app's reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppReply {
    /// To [`Request::Connect`].
    Connect(ConnectReply),
    /// To [`Request::Command`].
    Command(CommandReply),
}

/// The app's verdict. An absent status means `Error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// The app failed.
    #[default]
    Error,
    /// Yes.
    Success,
    /// No.
    Failure,
}

/// The reply to Connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReply {
    /// Whether the client may connect.
    pub status: Status,
    /// Who the client is; opaque, may be empty.
    pub identifiers: String,
    /// Texts for the client, to be sent as they are.
    pub transmissions: Vec<String>,
    /// For the log.
    pub error_msg: String,
    /// Changes of the connection state.
    pub cstate: StateChanges,
}

/// The reply to Command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandReply {
    /// Whether the command was carried out.
    pub status: Status,
    /// Close the connection after the effects.
    pub disconnect: bool,
    /// Stop all streams of this channel first.
    pub stop_streams: bool,
    /// Streams to add.
    pub streams: Vec<String>,
    /// Streams to stop first.
    pub stopped_streams: Vec<String>,
    /// Texts for the client, to be sent as they are.
    pub transmissions: Vec<String>,
    /// For the log.
    pub error_msg: String,
    /// Changes of the connection state.
    pub cstate: StateChanges,
    /// Changes of the state of this channel.
    pub istate: StateChanges,
    /// A presence event asked for by the app.
    pub presence: Option<PresenceReply>,
}

/// A presence event asked for by the app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceReply {
    /// `join` or `leave`.
    pub kind: String,
    /// Who.
    pub id: String,
    /// JSON text.
    pub info: String,
}

/// Why a call brought no reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CallError {
    /// The app cannot be reached, retries included.
    #[error("app server unavailable: {0}")]
    Unavailable(String),
    /// The deadline passed.
    #[error("app server did not answer in time")]
    Timeout,
    /// The app refused our credentials, or TLS failed.
    #[error("app server refused the call: {0}")]
    Unauthenticated(String),
    /// The app could not read the call.
    #[error("app server could not read the call: {0}")]
    InvalidArgument(String),
    /// Too many calls are waiting already.
    #[error("too many calls are waiting for the app server")]
    Overloaded,
    /// The session was closed by this server while the call ran.
    #[error("call canceled")]
    Canceled,
    /// There is no app server (`--norpc`).
    #[error("no app server is configured")]
    NoBackend,
    /// Any other failure.
    #[error("app server failed: {0}")]
    Failed(String),
}
