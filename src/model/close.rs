//! Why connections end: the closed list of causes, and the words clients are told.

macro_rules! endings {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $ending:expr;)+) => {
        /// Why a connection ended. Every connection a shard accepted ends with exactly one of these and is
        /// counted under it, in `connections_closed_total{cause="…"}`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[repr(u8)]
        pub enum CloseCause {
            $($(#[doc = $doc])+ $name,)+
        }

        impl CloseCause {
            /// Every cause, in the order of the enum.
            pub const ALL: &[CloseCause] = &[$(CloseCause::$name,)+];

            /// The label in metrics and logs.
            pub fn label(self) -> &'static str {
                match self {
                    $(CloseCause::$name => $label,)+
                }
            }

            /// What the client is told.
            pub fn ending(self) -> Ending {
                match self {
                    $(CloseCause::$name => $ending,)+
                }
            }
        }
    };
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client did: it closed, left or reset.
    Client,
    /// This server did, for whatever reason.
    Server,
    /// Nobody did: the network or the kernel gave it up.
    Network,
}

impl Side {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
            Side::Network => "network",
        }
    }
}

impl CloseCause {
    /// Whether it is what a peer is found by that is gone or does nothing any more.
    pub fn finds_dead_peers(self) -> bool {
        use CloseCause as C;
        matches!(
            self,
            C::PeerTimeout | C::NoPong | C::WriteTimeout | C::MessageTimeout | C::HandshakeTimeout | C::TooSlow
        )
    }

    /// Whether a client whose connection ended like this may come back to its session: nobody sent it away for good, and
    /// it broke no rule.
    pub fn leaves_session(self) -> bool {
        use CloseCause as C;
        matches!(
            self,
            C::ClientClosed
                | C::ClientGone
                | C::PeerReset
                | C::PeerTimeout
                | C::IoError
                | C::WriteTimeout
                | C::MessageTimeout
                | C::NoPong
                | C::TooSlow
                | C::BuffersFull
                | C::TokenRanOut
                | C::Resumed
                | C::ServerRestart
        )
    }

    /// Who ended the connection.
    pub fn side(self) -> Side {
        use CloseCause as C;
        match self {
            C::ClientClosed | C::ClientGone | C::PeerReset | C::HandshakeGone | C::Http => Side::Client,
            C::PeerTimeout | C::IoError => Side::Network,
            _ => Side::Server,
        }
    }
}

/// The last that a client hears of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: the peer is gone, or somebody else has the socket.
    Silent,
    /// An HTTP response instead of the upgrade. Which status is said by the rule that was broken.
    Response,
    /// A close frame, and before it a disconnect message where the dialect has one and this cause has a word.
    Close {
        /// RFC 6455 section 7.4. A client that closes gets its own code back.
        code: u16,
        /// For the close frame; short.
        reason: &'static str,
        /// The disconnect message.
        disconnect: Option<Disconnect>,
    },
}

/// A disconnect message (`contracts/action-cable.md` section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// Why.
    pub reason: DisconnectReason,
    /// Whether the client is told to come back. An app that disconnects somebody says so itself.
    pub reconnect: bool,
}

const fn close(code: u16, reason: &'static str) -> Ending {
    Ending::Close { code, reason, disconnect: None }
}

const fn disconnect(code: u16, close: &'static str, reason: DisconnectReason, reconnect: bool) -> Ending {
    Ending::Close { code, reason: close, disconnect: Some(Disconnect { reason, reconnect }) }
}

use DisconnectReason as Word;
use Ending::{Response, Silent};

// Cause, label, and what the client is told: close code, close reason, disconnect word, whether to come back. The close
// reason of a broken rule is the rule's.
endings! {
    /// The client sent a close frame.
    ClientClosed = "client_closed", close(1000, "");
    /// The client ended the byte stream without a close frame.
    ClientGone = "client_gone", Silent;
    /// The peer reset the connection.
    PeerReset = "peer_reset", Silent;
    /// The kernel gave the peer up: keepalive probes or sent data stayed unacknowledged.
    PeerTimeout = "peer_timeout", Silent;
    /// Reading or writing failed in another way.
    IoError = "io_error", Silent;
    /// The client broke the framing rules.
    ProtocolError = "protocol_error", close(1002, "");
    /// A text message was not UTF-8.
    InvalidUtf8 = "invalid_utf8", close(1007, "");
    /// A message was over the size or fragment limit.
    MessageTooBig = "message_too_big", close(1009, "");
    /// A message was begun and not finished within the message time-out.
    MessageTimeout = "message_timeout", close(1008, "Message Timeout");
    /// Too many bytes were kept for all clients together, and this one held the most.
    BuffersFull = "buffers_full", close(1013, "Try again later");
    /// The outbox was full.
    TooSlow = "too_slow", disconnect(1000, "", Word::TooSlow, true);
    /// Bytes could not be written within the write time-out.
    WriteTimeout = "write_timeout", Silent;
    /// No sign of life after a ping within the pong time-out.
    NoPong = "no_pong", disconnect(1000, "No Pong", Word::NoPong, true);
    /// The client said nothing of its own for as long as the idle time-out (`--idle-timeout`).
    IdleTimeout = "idle_timeout", disconnect(1000, "Idle Timeout", Word::IdleTimeout, false);
    /// The app or the token refused the client.
    Unauthorized = "unauthorized", disconnect(1000, "Auth Failed", Word::Unauthorized, false);
    /// The client's token was over before it came.
    TokenExpired = "token_expired", disconnect(1000, "Auth Failed", Word::TokenExpired, false);
    /// The client's token ran out while it was connected (`--jwt-close-expired`).
    TokenRanOut = "token_ran_out", disconnect(1000, "Token expired", Word::TokenExpired, true);
    /// Asking whether the client may connect failed.
    AuthError = "auth_error", close(1011, "Auth Error");
    /// The app's answer to a command asked to disconnect.
    CommandDisconnect = "command_disconnect", close(1000, "Closed by the app");
    /// The app asked to disconnect these identifiers.
    Remote = "remote", disconnect(1000, "Closed remotely", Word::Remote, false);
    /// The client went on with its session on another connection.
    Resumed = "resumed", disconnect(1000, "Session resumed elsewhere", Word::Resumed, false);
    /// This server is shutting down.
    ServerRestart = "server_restart", disconnect(1001, "Server restart", Word::ServerRestart, true);
    /// The upgrade request did not arrive within the handshake time-out.
    HandshakeTimeout = "handshake_timeout", Response;
    /// The upgrade request was refused (4xx).
    HandshakeRefused = "handshake_refused", Response;
    /// The peer left before its request was complete.
    HandshakeGone = "handshake_gone", Silent;
    /// Answered 503: `--max-conn` is reached.
    MaxConnections = "max_connections", Response;
    /// Answered 503: too many connections have not finished their request.
    TooManyHandshakes = "too_many_handshakes", Response;
    /// Answered 503: this server is shutting down.
    Draining = "draining", Response;
    /// Answered 503: no descriptors are left.
    NoDescriptors = "no_descriptors", Response;
    /// An ordinary HTTP request: handed to the HTTP server, which owns the socket from here on.
    Http = "http", Silent;
}

/// The `reason` of a `disconnect` message (`contracts/action-cable.md` section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisconnectReason {
    /// The client may not connect.
    Unauthorized,
    /// The client's token has expired; a fresh one would do.
    TokenExpired,
    /// This server is going away; come back.
    ServerRestart,
    /// The app asked for it.
    Remote,
    /// The client reads too slowly.
    TooSlow,
    /// The client did not answer pings.
    NoPong,
    /// The client said nothing.
    IdleTimeout,
    /// The client goes on with its session on another connection.
    Resumed,
}

impl DisconnectReason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            DisconnectReason::Unauthorized => "unauthorized",
            DisconnectReason::TokenExpired => "token_expired",
            DisconnectReason::ServerRestart => "server_restart",
            DisconnectReason::Remote => "remote",
            DisconnectReason::TooSlow => "too_slow",
            DisconnectReason::NoPong => "no_pong",
            DisconnectReason::IdleTimeout => "idle_timeout",
            DisconnectReason::Resumed => "session_resumed",
        }
    }
}
