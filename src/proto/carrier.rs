//! How bytes travel: WebSocket frames today.
//!
//! A carrier turns a dialect's message into the bytes that are written, and knows what it says itself: heartbeats and
//! closing. A new one adds a variant, its arms here, and a way to read in the shard.

use serde::{Deserialize, Serialize};

use super::frame::{self, Kind, Opcode};

/// How a connection's messages are carried. Each `write` function appends to `out` what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Carrier {
    /// RFC 6455 frames.
    #[default]
    WebSocket,
}

impl Carrier {
    /// A message.
    pub fn write_message(self, out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
        match self {
            Carrier::WebSocket => frame::write(out, opcode(kind), payload),
        }
    }

    /// A message without its last `rest_len` bytes, which follow as they are from where many receivers share them.
    pub fn write_message_head(self, out: &mut Vec<u8>, kind: Kind, head: &[u8], rest_len: usize) {
        match self {
            Carrier::WebSocket => {
                out.extend_from_slice(&frame::header(opcode(kind), head.len() + rest_len));
                out.extend_from_slice(head);
            }
        }
    }

    /// The carrier's own ping; nothing where it has none.
    pub fn write_ping(self, out: &mut Vec<u8>) {
        match self {
            Carrier::WebSocket => frame::write(out, Opcode::Ping, &[]),
        }
    }

    /// The answer to the peer's own ping.
    pub fn write_pong(self, out: &mut Vec<u8>, payload: &[u8]) {
        match self {
            Carrier::WebSocket => frame::write(out, Opcode::Pong, payload),
        }
    }

    /// The carrier's own last word. Without a code nothing but the end is said.
    pub fn write_close(self, out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
        match self {
            Carrier::WebSocket => frame::write_close(out, code, reason),
        }
    }
}

fn opcode(kind: Kind) -> Opcode {
    match kind {
        Kind::Text => Opcode::Text,
        Kind::Binary => Opcode::Binary,
    }
}
