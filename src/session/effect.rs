//! What a session wants done. The session decides, the shard carries out, in order.

use crate::model::{CallError, CloseCause, CommandKind, Request, Topic};

/// One thing to do for a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send this text to the client. Always UTF-8.
    Send(Vec<u8>),
    /// Send a heartbeat with the time in this precision.
    Ping(PingPrecision),
    /// Send a WebSocket ping frame.
    NativePing,
    /// Ask the app. Input waits until its answer is given to the session.
    Call(Box<Request>),
    /// Tell the app that the session is over. Nobody waits for an answer.
    Disconnect(Box<Request>),
    /// The running call's answer is not wanted any more.
    Cancel,
    /// The client is known and welcome from here on.
    Open,
    /// Deliver publications of a stream under an identifier.
    Attach(Topic),
    /// Stop that.
    Detach(Topic),
    /// Publish to a stream on behalf of this client, to everybody but it.
    Whisper {
        /// The stream.
        stream: Box<str>,
        /// JSON text.
        message: Box<str>,
    },
    /// Close the connection once everything before is sent.
    Close {
        /// RFC 6455 section 7.4.
        code: u16,
        /// For the close frame; short.
        reason: &'static str,
        /// Counted.
        cause: CloseCause,
    },
    /// Count something.
    Count(Tally),
    /// A line for the log, at debug: the peer's or the app's fault, never ours.
    Note(Note),
}

/// Things sessions count; names are those of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// `failed_auths_total`
    FailedAuth,
    /// `client_msg_total`
    ClientMessage,
    /// `failed_client_msg_total`
    FailedClientMessage,
}

/// Why something was not done, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// Could not be read.
    #[error("client message not understood: {0}")]
    BadCommand(String),
    /// Needs a subscription.
    #[error("{0} for an identifier that is not subscribed")]
    NotSubscribed(&'static str),
    /// Is there already.
    #[error("subscribe for an identifier that is subscribed already")]
    AlreadySubscribed,
    /// Over [`SUBSCRIPTIONS_MAX`](super::SUBSCRIPTIONS_MAX) or [`STREAMS_MAX`](super::STREAMS_MAX).
    #[error("{0} limit reached")]
    LimitReached(&'static str),
    /// A feature that needs a broker.
    #[error("{0} needs a broker, and none is on")]
    NoBroker(&'static str),
    /// Perform on a channel that this server answers itself, without an app to ask.
    #[error("no app server to perform on")]
    NothingToPerformOn,
    /// The app answered ERROR.
    #[error("app server answered ERROR to {0}: {1}")]
    AppError(&'static str, String),
    /// The call brought no answer.
    #[error("{0} failed: {1}")]
    CallFailed(&'static str, CallError),
    /// The answer is for another question.
    #[error("app server's answer does not fit the call")]
    WrongAnswer,
}

/// The word for a call in notes.
pub(super) fn word(command: Option<CommandKind>) -> &'static str {
    command.map_or("connect", CommandKind::as_str)
}

/// Precision of ping timestamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PingPrecision {
    /// Seconds.
    #[default]
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Nanoseconds.
    Nanoseconds,
}

impl PingPrecision {
    /// Reads `s`, `ms` or `ns`.
    pub fn parse(text: &str) -> Option<PingPrecision> {
        match text {
            "s" => Some(PingPrecision::Seconds),
            "ms" => Some(PingPrecision::Milliseconds),
            "ns" => Some(PingPrecision::Nanoseconds),
            _ => None,
        }
    }

    /// The timestamp of a ping sent now.
    pub fn timestamp(self, unix: std::time::Duration) -> u128 {
        match self {
            PingPrecision::Seconds => u128::from(unix.as_secs()),
            PingPrecision::Milliseconds => unix.as_millis(),
            PingPrecision::Nanoseconds => unix.as_nanos(),
        }
    }
}
