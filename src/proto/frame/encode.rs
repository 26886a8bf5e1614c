//! Frames to clients: unmasked, in one piece, with the shortest header. Each `write` function appends one to `out`.

use super::header::{CLOSE_REASON_BYTES_MAX, HeaderBytes, Opcode, close_code_is_legal};
use crate::model::floor_char_boundary;

/// The header of a frame with a payload of `len` bytes, for callers that write the payload from elsewhere.
pub fn header(opcode: Opcode, len: usize) -> HeaderBytes {
    debug_assert!(!opcode.is_control() || len <= super::CONTROL_BYTES_MAX);
    HeaderBytes::new(opcode, len)
}

/// A whole frame.
pub fn write(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let header = header(opcode, payload.len());
    out.reserve(header.len() + payload.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
}

/// A close frame. Without a code there is no room for a reason, so it is left out; a reason over
/// [`CLOSE_REASON_BYTES_MAX`] is cut after the last whole character that fits.
pub fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else { return write(out, Opcode::Close, &[]) };
    debug_assert!(close_code_is_legal(code), "{code} may not be sent");
    let reason = &reason[..floor_char_boundary(reason, CLOSE_REASON_BYTES_MAX)];
    write(out, Opcode::Close, &[&code.to_be_bytes(), reason.as_bytes()].concat());
}
