//! Frames to clients: unmasked, in one piece, with the shortest header.

use std::sync::Arc;

use super::header::{CLOSE_REASON_BYTES_MAX, HeaderBytes, Opcode, close_code_is_legal};

/// The header of a frame with a payload of `len` bytes, for callers that write the payload from elsewhere.
pub fn header(opcode: Opcode, len: usize) -> HeaderBytes {
    debug_assert!(!opcode.is_control() || len <= super::CONTROL_BYTES_MAX);
    HeaderBytes::new(opcode, len)
}

/// A whole frame, header and payload in one allocation that any number of receivers can share.
pub fn encode(opcode: Opcode, payload: &[u8]) -> Arc<[u8]> {
    encode_parts(opcode, &[payload])
}

/// A whole frame whose payload is `parts` one after the other, in one allocation.
pub fn encode_parts(opcode: Opcode, parts: &[&[u8]]) -> Arc<[u8]> {
    let len = parts.iter().map(|part| part.len()).sum();
    let header = header(opcode, len);
    // The one safe way to a slice in an `Arc` without a second buffer: fill it with zeros, then write.
    let mut frame: Arc<[u8]> = std::iter::repeat_n(0, header.len() + len).collect();
    // Nobody else has it yet, so this is always `Some`.
    if let Some(mut room) = Arc::get_mut(&mut frame) {
        for part in std::iter::once(&*header).chain(parts.iter().copied()) {
            let (here, rest) = room.split_at_mut(part.len());
            here.copy_from_slice(part);
            room = rest;
        }
    }
    frame
}

/// A close frame. Without a code there is no room for a reason, so it is left out; a reason over
/// [`CLOSE_REASON_BYTES_MAX`] is cut after the last whole character that fits.
pub fn close(code: Option<u16>, reason: &str) -> Arc<[u8]> {
    let Some(code) = code else { return encode(Opcode::Close, &[]) };
    debug_assert!(close_code_is_legal(code), "{code} may not be sent");
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    encode_parts(Opcode::Close, &[&code.to_be_bytes(), reason.as_bytes()])
}
