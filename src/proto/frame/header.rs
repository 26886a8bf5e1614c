//! The two to fourteen bytes in front of a payload (RFC 6455 section 5.2), read strictly and written minimally.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::{Limits, Violation};

/// The longest header a client can send: two bytes, a 64-bit length, the masking key.
pub(super) const BYTES_MAX: usize = 2 + 8 + 4;

/// The largest payload of a control frame, in bytes (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// The longest reason in a close frame, in bytes: a control payload less the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASKED: u8 = 0x80;
const LEN_16: u8 = 126;
const LEN_64: u8 = 127;

/// What a frame is (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Opcode {
    /// Goes on with the open message.
    Continuation = 0x0,
    /// Starts a text message.
    Text = 0x1,
    /// Starts a binary message.
    Binary = 0x2,
    /// Ends the connection.
    Close = 0x8,
    /// Asks for a pong.
    Ping = 0x9,
    /// Answers a ping.
    Pong = 0xA,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Opcode> {
        Some(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return None,
        })
    }

    /// Close, ping and pong: never fragmented, at most [`CONTROL_BYTES_MAX`] long, allowed inside a message.
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// A client frame's header after every check.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub opcode: Opcode,
    pub fin: bool,
    pub mask: [u8; 4],
    /// Payload bytes announced. Nothing is ever allocated by it.
    pub len: usize,
}

/// The message that is open when a header arrives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub bytes: usize,
    pub fragments: u32,
}

impl Header {
    /// Reads a header from the start of `bytes`, and how many bytes it took. `None`: no rule is broken so far, but
    /// bytes are missing.
    ///
    /// The checks stand in the order of the bytes, so that a stream breaks the same rule however it was cut.
    pub fn parse(bytes: &[u8], open: Option<Open>, limits: &Limits) -> Result<Option<(Header, usize)>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let opcode = read_first_byte(first, open, limits)?;
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let short = read_second_byte(second, opcode)?;
        let Some((len, rest)) = read_length(short, &bytes[2..])? else { return Ok(None) };
        if !opcode.is_control() {
            let message = open.map_or(0, |message| message.bytes).checked_add(len);
            if message.is_none_or(|bytes| bytes > limits.message_bytes_max) {
                return Err(Violation::MessageTooBig);
            }
        }
        let Some((mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let fin = first & FIN != 0;
        Ok(Some((Header { opcode, fin, mask: *mask, len }, bytes.len() - rest.len())))
    }
}

fn read_first_byte(first: u8, open: Option<Open>, limits: &Limits) -> Result<Opcode, Violation> {
    if first & RESERVED_BITS != 0 {
        return Err(Violation::ReservedBits);
    }
    let opcode = Opcode::from_bits(first & 0x0F).ok_or(Violation::ReservedOpcode)?;
    match (opcode, open) {
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) if first & FIN == 0 => Err(Violation::ControlFragmented),
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => Ok(opcode),
        (Opcode::Continuation, None) => Err(Violation::ContinuationStray),
        (Opcode::Text | Opcode::Binary, Some(_)) => Err(Violation::MessageInsideMessage),
        _ if open.map_or(0, |message| message.fragments) >= limits.fragments_max => Err(Violation::TooManyFragments),
        _ => Ok(opcode),
    }
}

/// The seven bits that are the length, or say how many bytes behind them are.
fn read_second_byte(second: u8, opcode: Opcode) -> Result<u8, Violation> {
    if second & MASKED == 0 {
        return Err(Violation::Unmasked);
    }
    let short = second & !MASKED;
    if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
        return Err(Violation::ControlTooLong);
    }
    if opcode == Opcode::Close && short == 1 {
        return Err(Violation::CloseCodeCut);
    }
    Ok(short)
}

/// The length of the payload, and what follows it. `None`: bytes are missing.
fn read_length(short: u8, rest: &[u8]) -> Result<Option<(usize, &[u8])>, Violation> {
    let (len, least, rest) = match short {
        LEN_16 => {
            let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*len)), u64::from(LEN_16), rest)
        }
        LEN_64 => {
            let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*len), 1 << 16, rest)
        }
        short => (u64::from(short), 0, rest),
    };
    if len >> 63 != 0 {
        return Err(Violation::LengthTopBit);
    }
    if len < least {
        return Err(Violation::LengthNotMinimal);
    }
    let len = usize::try_from(len).map_err(|_| Violation::MessageTooBig)?;
    Ok(Some((len, rest)))
}

/// The header of an unmasked, unfragmented frame: two, four or ten bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderBytes {
    bytes: [u8; 10],
    len: u8,
}

impl HeaderBytes {
    /// For a payload of `len` bytes, in the shortest form.
    pub(super) fn new(opcode: Opcode, len: usize) -> HeaderBytes {
        let mut bytes = [0; 10];
        bytes[0] = FIN | opcode as u8;
        let header_len = if len < usize::from(LEN_16) {
            bytes[1] = len as u8;
            2
        } else if let Ok(len) = u16::try_from(len) {
            bytes[1] = LEN_16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            4
        } else {
            bytes[1] = LEN_64;
            bytes[2..10].copy_from_slice(&(len as u64).to_be_bytes());
            10
        };
        HeaderBytes { bytes, len: header_len }
    }
}

impl Deref for HeaderBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Whether a close code may stand in a frame: those RFC 6455 section 7.4.1 and the IANA registry define for use on
/// the wire, and the ranges of section 7.4.2 for libraries (3000) and applications (4000). 1004 is reserved; 1005,
/// 1006 and 1015 name what no frame can say.
pub fn close_code_is_legal(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
