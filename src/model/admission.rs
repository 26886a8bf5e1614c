//! What is decided about a client before the app is asked: who a token says it is, and who answers for a channel.

/// What a token says about its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenOutcome {
    /// The token holds. The connection identifiers, byte for byte; may be empty.
    Identified {
        /// The claim `ext`.
        identifiers: String,
        /// The claim `exp`: when the token is over, in seconds since the Unix epoch.
        expires: Option<u64>,
    },
    /// The token is ours but its time is over: a fresh one would do.
    Expired,
    /// The token is not ours, not yet valid, or not a token; or there is none although there must be.
    Unauthorized,
    /// The token holds but does not say who the client is: the app's fault.
    Error,
    /// There is no token: ask somebody else.
    NoToken,
}

/// Where a subscription to an identifier goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routed {
    /// To the app: not one of our channels.
    Backend,
    /// One of our channels, but this client may not: answer `reject_subscription`.
    Rejected,
    /// One of our channels: attach the stream and answer `confirm_subscription`.
    Stream {
        /// The stream.
        name: String,
        /// Whether subscribers may whisper to each other.
        whisper: bool,
        /// Whether the channel has presence.
        presence: bool,
    },
}
