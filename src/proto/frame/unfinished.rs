//! What a reader keeps while a frame or a message is incomplete. All of it is freed when it is finished.

use serde::{Deserialize, Serialize};

use super::header::{self, Header, Open};
use super::utf8::Utf8;
use super::{Kind, Message, Payload, Violation};

/// Spare room that a growing payload gets at least, in bytes, so that a peer that sends byte by byte does not make
/// us move its bytes each time.
const SLACK_BYTES_MIN: usize = 64;

/// And at most: this part of what arrived. Doubling would hold up to twice the message; an eighth still copies each
/// byte only some nine times on its way to any size.
const SLACK_DIVISOR: usize = 8;

/// At least one of these holds something: a begun header, a begun frame, an open message.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Unfinished {
    /// The first `header_len` bytes of a header that is not complete.
    pub header: [u8; header::BYTES_MAX],
    pub header_len: u8,
    /// The frame whose payload is arriving.
    pub frame: Option<Frame>,
    /// Payload so far, if that is a control frame: it may lie between the fragments of a message.
    #[serde(with = "serde_bytes")]
    pub control: Vec<u8>,
    /// The message whose last frame is not complete.
    pub message: Option<OpenMessage>,
}

/// A frame whose header is complete.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Frame {
    pub header: Header,
    /// Payload bytes already taken.
    pub arrived: usize,
}

impl Unfinished {
    pub fn push_control(&mut self, bytes: &[u8], len: usize) {
        append(&mut self.control, bytes, len);
    }

    pub fn heap_bytes(&self) -> usize {
        let message = self.message.as_ref().map_or(0, |message| message.payload.capacity());
        size_of::<Self>() + self.control.capacity() + message
    }
}

/// An open message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OpenMessage {
    kind: Kind,
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
    /// Frames complete so far.
    fragments: u32,
    utf8: Utf8,
}

impl OpenMessage {
    pub fn new(kind: Kind) -> OpenMessage {
        OpenMessage { kind, payload: Vec::new(), fragments: 0, utf8: Utf8::default() }
    }

    pub fn len(&self) -> usize {
        self.payload.len()
    }

    /// What the next header is checked against.
    pub fn open(&self) -> Open {
        Open { bytes: self.payload.len(), fragments: self.fragments }
    }

    /// Adds unmasked bytes. The message will not pass `bytes_max`, so no more room than that is made.
    pub fn push(&mut self, bytes: &[u8], bytes_max: usize) -> Result<(), Violation> {
        if self.kind == Kind::Text {
            self.utf8.push(bytes).map_err(|_| Violation::TextNotUtf8)?;
        }
        append(&mut self.payload, bytes, bytes_max);
        Ok(())
    }

    pub fn end_fragment(&mut self) {
        self.fragments = self.fragments.saturating_add(1);
    }

    /// The message after its last byte.
    pub fn finish(self) -> Result<Message<'static>, Violation> {
        Ok(match self.kind {
            // The second look at a text that came in pieces: it is rare, and the safe way to a `String`.
            Kind::Text => Message::Text(String::from_utf8(self.payload).map_err(|_| Violation::TextNotUtf8)?.into()),
            Kind::Binary => Message::Binary(Payload::Owned(self.payload)),
        })
    }
}

/// Appends with little slack, and none beyond `bytes_max`.
fn append(payload: &mut Vec<u8>, bytes: &[u8], bytes_max: usize) {
    let len = payload.len() + bytes.len();
    if len > payload.capacity() {
        let slack = (len / SLACK_DIVISOR).max(SLACK_BYTES_MIN);
        let capacity = len.saturating_add(slack).min(bytes_max.max(len));
        payload.reserve_exact(capacity - payload.len());
    }
    payload.extend_from_slice(bytes);
}
