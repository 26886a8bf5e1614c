//! How bytes travel: WebSocket frames today.
//!
//! A carrier turns a dialect's message into the bytes that are written, and knows what it says itself: heartbeats and
//! closing. A new one adds a variant, its arms here, and a way to read in the shard.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::frame::{self, Kind, Opcode};

/// How a connection's messages are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Carrier {
    /// RFC 6455 frames.
    #[default]
    WebSocket,
}

impl Carrier {
    /// A message as it is written. Any number of receivers share the bytes.
    pub fn message(self, kind: Kind, payload: &[u8]) -> Arc<[u8]> {
        match self {
            Carrier::WebSocket => {
                frame::encode(if kind == Kind::Text { Opcode::Text } else { Opcode::Binary }, payload)
            }
        }
    }

    /// The carrier's own ping; `None` where it has none.
    pub fn ping(self) -> Option<Arc<[u8]>> {
        match self {
            Carrier::WebSocket => Some(frame::encode(Opcode::Ping, &[])),
        }
    }

    /// The carrier's own last word. Without a code nothing but the end is said.
    pub fn close(self, code: Option<u16>, reason: &str) -> Option<Arc<[u8]>> {
        match self {
            Carrier::WebSocket => Some(frame::close(code, reason)),
        }
    }
}
