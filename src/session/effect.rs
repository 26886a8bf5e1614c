//! What a session wants done. The session decides, the shard carries out, in order.

use crate::model::{
    BrokerError, CallError, CloseCause, CommandKind, PingPrecision, PresenceChange, Question, Request, SavedSession,
    Topic,
};

/// One thing to do for a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send this message to the client, written in its dialect. Always UTF-8.
    Send(Vec<u8>),
    /// Send a heartbeat with the time in this precision.
    Ping(PingPrecision),
    /// Send the carrier's own ping.
    NativePing,
    /// Ask. Input waits until the answer is given to the session.
    Ask(Box<Question>),
    /// Tell the app that the session is over. Nobody waits for an answer.
    Tell(Box<Request>),
    /// The answer to the open question is not wanted any more.
    Cancel,
    /// The client is known and welcome from here on.
    LetIn,
    /// The client has said something of its own, or has just been let in.
    Spoken,
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
    /// Change who is present on a stream.
    Presence {
        /// The presence stream.
        stream: Box<str>,
        /// What happened.
        change: PresenceChange,
    },
    /// A session that could have been resumed is over; what is left of it, if its client may still come back to it.
    Depart(Option<Box<SavedSession>>),
    /// Close the connection once everything before is sent. What the close frame says is the cause's.
    Close(CloseCause),
    /// Count something.
    Count(SessionCounter),
    /// A line for the log, at debug: the peer's or the app's fault, never ours.
    Log(LogEvent),
}

/// Things sessions count; names are those of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionCounter {
    /// `failed_auths_total`
    FailedAuth,
    /// `client_msg_total`
    ClientMessage,
    /// `failed_client_msg_total`
    FailedClientMessage,
}

/// Why something was not done, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogEvent {
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
    /// The channel has no presence.
    #[error("presence on a channel that has none: the app sets its stream")]
    NoPresenceStream,
    /// The app wants something that is neither join nor leave, or does not say who joins.
    #[error("app server answered with a presence that is not understood: {0:?}")]
    BadPresence(String),
    /// Perform on a channel that this server answers itself, without an app to ask.
    #[error("no app server to perform on")]
    NothingToPerformOn,
    /// The app answered ERROR.
    #[error("app server answered ERROR to {0}: {1}")]
    AppError(&'static str, String),
    /// The call brought no answer.
    #[error("{0} failed: {1}")]
    CallFailed(&'static str, CallError),
    /// The broker had no answer.
    #[error("{0} failed: {1}")]
    BrokerFailed(&'static str, BrokerError),
    /// The answer is for another question.
    #[error("the answer does not fit the question")]
    WrongAnswer,
}

/// The word for a call in the log.
pub(super) fn word(command: Option<CommandKind>) -> &'static str {
    command.map_or("connect", CommandKind::as_str)
}
