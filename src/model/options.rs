//! Choices that an operator or a client makes and that sessions act on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When the app is told that a session is over (`contracts/rpc-grpc.md` section 7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DisconnectMode {
    /// When the app has been asked about this session: Connect, or a Subscribe that it answered.
    #[default]
    Auto,
    /// For every session that was let in.
    Always,
    /// Never.
    Never,
}

/// Unit of the number in a ping message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Every one.
    pub const ALL: [PingPrecision; 3] =
        [PingPrecision::Seconds, PingPrecision::Milliseconds, PingPrecision::Nanoseconds];

    /// The word in options and in the query parameter `ptp`.
    pub fn as_str(self) -> &'static str {
        match self {
            PingPrecision::Seconds => "s",
            PingPrecision::Milliseconds => "ms",
            PingPrecision::Nanoseconds => "ns",
        }
    }

    /// Reads what [`as_str`](PingPrecision::as_str) gives.
    pub fn parse(text: &str) -> Option<PingPrecision> {
        PingPrecision::ALL.into_iter().find(|precision| precision.as_str() == text)
    }

    /// The timestamp of a ping sent at this Unix time. The years of 64 bits of nanoseconds last until 2554.
    pub fn timestamp(self, unix: Duration) -> u64 {
        match self {
            PingPrecision::Seconds => unix.as_secs(),
            PingPrecision::Milliseconds => unix.as_millis() as u64,
            PingPrecision::Nanoseconds => unix.as_nanos() as u64,
        }
    }
}

/// Whether a listener's bytes are encrypted: decides the schemes of URLs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// `http://` and `ws://`.
    #[default]
    Plain,
    /// `https://` and `wss://`.
    Tls,
}

impl Scheme {
    /// For ordinary HTTP, and for the URL that the app is told.
    pub fn http(self) -> &'static str {
        match self {
            Scheme::Plain => "http",
            Scheme::Tls => "https",
        }
    }

    /// For WebSockets.
    pub fn ws(self) -> &'static str {
        match self {
            Scheme::Plain => "ws",
            Scheme::Tls => "wss",
        }
    }
}
