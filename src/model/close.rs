//! Why connections end: the closed list of causes, and the words clients are told.

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident => $label:literal,)+) => {
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
        }
    };
}

causes! {
    /// The client sent a close frame.
    ClientClosed => "client_closed",
    /// The client ended the byte stream without a close frame.
    ClientGone => "client_gone",
    /// The peer reset the connection.
    PeerReset => "peer_reset",
    /// The kernel gave the peer up: keepalive probes or sent data stayed unacknowledged.
    PeerTimeout => "peer_timeout",
    /// Reading or writing failed in another way.
    IoError => "io_error",
    /// The client broke the framing rules (1002).
    ProtocolError => "protocol_error",
    /// A text message was not UTF-8 (1007).
    InvalidUtf8 => "invalid_utf8",
    /// A message was over the size or fragment limit (1009).
    MessageTooBig => "message_too_big",
    /// The outbox was full.
    TooSlow => "too_slow",
    /// Bytes could not be written within the write time-out.
    WriteTimeout => "write_timeout",
    /// No sign of life after a ping within the pong time-out.
    NoPong => "no_pong",
    /// The app or the token refused the client.
    Unauthorized => "unauthorized",
    /// Asking whether the client may connect failed.
    AuthError => "auth_error",
    /// The app's answer to a command asked to disconnect.
    CommandDisconnect => "command_disconnect",
    /// The app asked to disconnect these identifiers.
    Remote => "remote",
    /// This server is shutting down.
    ServerRestart => "server_restart",
    /// The upgrade request did not arrive within the handshake time-out.
    HandshakeTimeout => "handshake_timeout",
    /// The upgrade request was refused (4xx).
    HandshakeRefused => "handshake_refused",
    /// The peer left before its request was complete.
    HandshakeGone => "handshake_gone",
    /// Answered 503: `--max-conn` is reached.
    MaxConnections => "max_connections",
    /// Answered 503: too many connections have not finished their request.
    TooManyHandshakes => "too_many_handshakes",
    /// Answered 503: this server is shutting down.
    Draining => "draining",
    /// Answered 503: no descriptors are left.
    NoDescriptors => "no_descriptors",
    /// An ordinary HTTP request: handed to the HTTP server, which owns the socket from here on.
    Http => "http",
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
        }
    }
}
