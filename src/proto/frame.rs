//! WebSocket frames (RFC 6455 section 5), as a server reads and writes them.
//!
//! Bytes in, events out. [`FrameReader`] knows the framing rules and nothing of what messages mean; it has no
//! buffer of its own. A frame that lies whole in the caller's bytes is handed out in place. Only bytes of an
//! unfinished frame or message are kept, on the heap, and they leave the reader with the event that finishes
//! them: between messages a reader is one null pointer. What a peer announces is never allocated, only what it
//! sent.
//!
//! Every rule is checked at the first byte that breaks it, so the events do not depend on how the network cut the
//! stream. No extension is ever negotiated, hence every reserved bit is refused.

mod encode;
mod header;
mod mask;
#[cfg(test)]
mod tests;
mod unfinished;
mod utf8;
mod violation;

use std::borrow::Cow;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

pub use encode::{header, write, write_close};
pub use header::{CLOSE_REASON_BYTES_MAX, CONTROL_BYTES_MAX, HeaderBytes, Opcode, close_code_is_legal};
pub use violation::Violation;

use header::Header;
use mask::unmask;
use unfinished::{Frame, Unfinished};

/// What a message may cost us before it is refused with close code 1009.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of one message, all its fragments together; `usize::MAX` means no limit.
    /// A message of exactly this size passes.
    pub message_bytes_max: usize,
    /// Frames of one message; `u32::MAX` means no limit, 0 refuses every message. Without it a client could keep a
    /// message open for ever with empty fragments.
    pub fragments_max: u32,
}

impl Limits {
    /// Neither size nor number of fragments is limited.
    pub const NONE: Limits = Limits { message_bytes_max: usize::MAX, fragments_max: u32::MAX };
}

/// What the frames said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message.
    Message(Message<'a>),
    /// A ping, to be answered by a pong with the same payload (at most [`CONTROL_BYTES_MAX`]).
    Ping(Payload<'a>),
    /// A pong.
    Pong(Payload<'a>),
    /// A close frame: its code, which is legal, and its reason, which is valid UTF-8. The caller reads no further
    /// (RFC 6455 section 5.5.1: nothing follows a close frame).
    Close(Option<(u16, Payload<'a>)>),
}

/// A whole message: all fragments joined, unmasked.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Known to be UTF-8: nobody has to check it again.
    Text(Cow<'a, str>),
    /// Any bytes.
    Binary(Payload<'a>),
}

impl Message<'_> {
    /// Text or binary.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Text(_) => Kind::Text,
            Message::Binary(_) => Kind::Binary,
        }
    }

    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(payload) => payload,
        }
    }
}

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Valid UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// Unmasked payload bytes.
#[derive(Debug)]
pub enum Payload<'a> {
    /// The frame lay whole in the caller's bytes and was unmasked there.
    Borrowed(&'a mut [u8]),
    /// The payload was put together from several reads or fragments. The reader no longer holds it.
    Owned(Vec<u8>),
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => bytes,
        }
    }
}

/// Payloads are equal when their bytes are; where the bytes live does not matter.
impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload<'_> {}

/// Reads the frames of one client.
///
/// Give every read to [`next`](Self::next) again and again until it says `None`; then all of it was used. After a
/// [`Violation`] the connection has to be failed with its close code, and the reader has let go of everything.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct FrameReader(Option<Box<Unfinished>>);

// A parked connection pays for this and nothing else: one pointer, null.
const _: () = assert!(size_of::<FrameReader>() == 8);

impl FrameReader {
    /// A reader before the first byte.
    pub const fn new() -> Self {
        FrameReader(None)
    }

    /// Whether nothing is kept: the last byte given ended a message or a control frame outside of one.
    pub fn is_parked(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of heap held for what is unfinished; 0 when parked. Payload is kept with a slack of at most an eighth
    /// of what arrived, or 64 bytes.
    pub fn heap_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |unfinished| unfinished.heap_bytes())
    }

    /// Takes the next event out of `input`, unmasking in place, and moves the start of `input` behind it.
    ///
    /// `Ok(None)` means that all of `input` was used; what is unfinished is kept.
    ///
    /// # Errors
    /// The peer broke a rule or passed a limit. What `input` still holds is then of no use.
    pub fn next<'a>(&mut self, input: &mut &'a mut [u8], limits: &Limits) -> Result<Option<Event<'a>>, Violation> {
        let event = self.step(input, limits);
        if event.is_err() {
            self.0 = None;
        }
        event
    }

    fn step<'a>(&mut self, input: &mut &'a mut [u8], limits: &Limits) -> Result<Option<Event<'a>>, Violation> {
        loop {
            let begun = self.0.as_mut().and_then(|unfinished| unfinished.frame.take());
            let mut frame = match begun {
                Some(frame) => frame,
                None => match self.header(input, limits)? {
                    Some(header) => Frame { header, arrived: 0 },
                    None => return Ok(None),
                },
            };
            let Header { opcode, mask, len, .. } = frame.header;
            let bytes = take_front(input, len - frame.arrived);
            unmask(bytes, mask, frame.arrived);
            frame.arrived += bytes.len();
            if bytes.is_empty() && frame.arrived < len {
                // Only the header so far: the payload may still come in one piece, so nothing is opened for it.
                self.unfinished().frame = Some(frame);
                return Ok(None);
            }
            let event = match opcode.is_control() {
                true => self.control(frame, bytes)?,
                false => self.data(frame, bytes, limits)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Takes the next bytes of a control frame. `None`: the frame is not complete.
    fn control<'a>(&mut self, frame: Frame, bytes: &'a mut [u8]) -> Result<Option<Event<'a>>, Violation> {
        let Header { opcode, len, .. } = frame.header;
        let payload = if bytes.len() == len {
            Payload::Borrowed(bytes)
        } else {
            let unfinished = self.unfinished();
            unfinished.push_control(bytes, len);
            if frame.arrived < len {
                unfinished.frame = Some(frame);
                return Ok(None);
            }
            Payload::Owned(std::mem::take(&mut unfinished.control))
        };
        self.park_if_idle();
        control_event(opcode, payload).map(Some)
    }

    /// Takes the next bytes of a frame of a message. `None`: the message is not complete.
    fn data<'a>(&mut self, frame: Frame, bytes: &'a mut [u8], limits: &Limits) -> Result<Option<Event<'a>>, Violation> {
        let Header { opcode, fin, len, .. } = frame.header;
        // The header was checked against what is open, so a continuation always finds its message and only a first
        // frame needs the kind.
        let kind = if opcode == Opcode::Binary { Kind::Binary } else { Kind::Text };
        if bytes.len() == len && fin && opcode != Opcode::Continuation {
            self.park_if_idle();
            return Ok(Some(Event::Message(match kind {
                Kind::Text => {
                    let text = std::str::from_utf8(bytes).map_err(|_| Violation::TextNotUtf8)?;
                    Message::Text(Cow::Borrowed(text))
                }
                Kind::Binary => Message::Binary(Payload::Borrowed(bytes)),
            })));
        }
        let unfinished = self.unfinished();
        let message = unfinished.message.get_or_insert_with(|| unfinished::OpenMessage::new(kind));
        // How long the message will be is known only in its last frame.
        let bytes_max = if fin { message.len() + bytes.len() + len - frame.arrived } else { limits.message_bytes_max };
        message.push(bytes, bytes_max)?;
        if frame.arrived < len {
            unfinished.frame = Some(frame);
            return Ok(None);
        }
        message.end_fragment();
        let Some(message) = unfinished.message.take_if(|_| fin) else { return Ok(None) };
        self.park_if_idle();
        Ok(Some(Event::Message(message.finish()?)))
    }

    /// Reads a header, which may have begun in an earlier input. `None`: it goes on in a later one.
    fn header(&mut self, input: &mut &mut [u8], limits: &Limits) -> Result<Option<Header>, Violation> {
        if input.is_empty() {
            return Ok(None);
        }
        let open =
            self.0.as_ref().and_then(|unfinished| unfinished.message.as_ref()).map(unfinished::OpenMessage::open);
        if let Some(begun) = self.0.as_deref_mut().filter(|unfinished| unfinished.header_len > 0) {
            let kept = usize::from(begun.header_len);
            let more = input.len().min(begun.header.len() - kept);
            begun.header[kept..kept + more].copy_from_slice(&input[..more]);
            return match Header::parse(&begun.header[..kept + more], open, limits)? {
                Some((header, used)) => {
                    begun.header_len = 0;
                    take_front(input, used - kept);
                    Ok(Some(header))
                }
                None => {
                    begun.header_len += more as u8;
                    take_front(input, more);
                    Ok(None)
                }
            };
        }
        if let Some((header, used)) = Header::parse(input, open, limits)? {
            take_front(input, used);
            return Ok(Some(header));
        }
        // Shorter than the longest header, else it would have been read.
        let part = take_front(input, header::BYTES_MAX);
        let unfinished = self.unfinished();
        unfinished.header[..part.len()].copy_from_slice(part);
        unfinished.header_len = part.len() as u8;
        Ok(None)
    }

    fn unfinished(&mut self) -> &mut Unfinished {
        self.0.get_or_insert_default()
    }

    /// Frees the heap unless a message is still open.
    fn park_if_idle(&mut self) {
        if self.0.as_ref().is_some_and(|unfinished| unfinished.message.is_none()) {
            self.0 = None;
        }
    }
}

/// Cuts up to `n` bytes off the front of `input`.
fn take_front<'a>(input: &mut &'a mut [u8], n: usize) -> &'a mut [u8] {
    let n = n.min(input.len());
    let (front, rest) = std::mem::take(input).split_at_mut(n);
    *input = rest;
    front
}

/// What a complete control frame says (RFC 6455 sections 5.5 and 7.4).
fn control_event(opcode: Opcode, mut payload: Payload<'_>) -> Result<Event<'_>, Violation> {
    match opcode {
        Opcode::Ping => return Ok(Event::Ping(payload)),
        Opcode::Pong => return Ok(Event::Pong(payload)),
        _ => {}
    }
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        // The header check refused a payload of one byte.
        return Ok(Event::Close(None));
    };
    let code = u16::from_be_bytes(*code);
    if !close_code_is_legal(code) {
        return Err(Violation::CloseCodeIllegal);
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation::CloseReasonNotUtf8);
    }
    let reason = match payload {
        Payload::Borrowed(bytes) => Payload::Borrowed(bytes.get_mut(2..).unwrap_or_default()),
        Payload::Owned(ref mut bytes) => Payload::Owned(bytes.split_off(2)),
    };
    Ok(Event::Close(Some((code, reason))))
}
