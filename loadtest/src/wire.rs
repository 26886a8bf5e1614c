//! RFC 6455 as bytes, as far as a load test needs it: the opening handshake of both sides, frame headers in and out.
//!
//! No sockets and no state. Written for connections that mostly wait: a header is parsed from the read buffer in
//! place and a payload is never copied unless it is cut in two. The tests check it against tungstenite.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest, Sha1};

/// RFC 6455 section 1.3: appended to the key before hashing.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Length of a `Sec-WebSocket-Accept` value: base64 of 20 bytes.
pub const ACCEPT_LENGTH: usize = 28;

/// Longest answer head a client of ours reads, in bytes; node.js allows 16 KiB for all headers too.
pub const HEAD_LENGTH_MAX: usize = 16 * 1024;

/// Opcodes of RFC 6455 section 5.2.
pub mod opcode {
    /// Continues a fragmented message.
    pub const CONTINUATION: u8 = 0;
    /// UTF-8 text.
    pub const TEXT: u8 = 1;
    /// Bytes.
    pub const BINARY: u8 = 2;
    /// Start or end of the closing handshake.
    pub const CLOSE: u8 = 8;
    /// Must be answered with a pong of the same payload.
    pub const PING: u8 = 9;
    /// Answer to a ping.
    pub const PONG: u8 = 10;
}

/// The `Sec-WebSocket-Accept` value for a key (RFC 6455 section 4.2.2).
pub fn accept_value(key: &[u8]) -> [u8; ACCEPT_LENGTH] {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(ACCEPT_GUID);
    let mut value = [0; ACCEPT_LENGTH];
    BASE64.encode_slice(hash.finalize(), &mut value).expect("20 bytes are 28 characters of base64");
    value
}

/// The `Sec-WebSocket-Key` of connection `number` on its `attempt`: different for each, so that no server can answer
/// out of a cache, and computable again when the answer comes, so that nothing has to be kept.
pub fn key_value(number: u32, attempt: u32) -> [u8; 24] {
    let mut nonce = [0x5a_u8; 16];
    nonce[..4].copy_from_slice(&number.to_le_bytes());
    nonce[4..8].copy_from_slice(&attempt.to_le_bytes());
    let mut value = [0; 24];
    BASE64.encode_slice(nonce, &mut value).expect("16 bytes are 24 characters of base64");
    value
}

/// A frame header as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Last fragment of its message.
    pub fin: bool,
    /// One of [`opcode`].
    pub opcode: u8,
    /// Masking key; servers must not use one, clients must.
    pub mask: Option<[u8; 4]>,
    /// Bytes of the header itself: 2 to 14.
    pub header_length: usize,
    /// Bytes of payload that follow.
    pub payload_length: u64,
}

/// What is wrong with a frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHeader;

/// Reads a frame header from the start of `bytes`; `None` when more bytes are needed.
pub fn parse_header(bytes: &[u8]) -> Result<Option<Header>, BadHeader> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    let opcode = first & 0x0f;
    let fin = first & 0x80 != 0;
    let control = opcode & 0x08 != 0;
    // Section 5.2: reserved bits and opcodes; 5.5: control frames are short and whole.
    if first & 0x70 != 0 || matches!(opcode, 3..=7 | 11..=15) || (control && (!fin || second & 0x7f > 125)) {
        return Err(BadHeader);
    }
    let (payload_length, mut header_length) = match second & 0x7f {
        126 => match bytes.get(2..4) {
            Some(length) => (u64::from(u16::from_be_bytes(length.try_into().expect("two bytes"))), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10) {
            Some(length) => (u64::from_be_bytes(length.try_into().expect("eight bytes")), 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    let mask = if second & 0x80 == 0 {
        None
    } else {
        let Some(mask) = bytes.get(header_length..header_length + 4) else { return Ok(None) };
        header_length += 4;
        Some(mask.try_into().expect("four bytes"))
    };
    Ok(Some(Header { fin, opcode, mask, header_length, payload_length }))
}

/// XORs `payload` with `mask`, starting `offset` bytes into the payload (RFC 6455 section 5.3).
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut mask = mask;
    mask.rotate_left(offset % 4);
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Takes a whole client frame off the front of `bytes`: its opcode and its unmasked payload. `None` when more bytes are
/// needed; one without a mask or with more payload than `payload_max` is refused.
pub fn take_client_frame<'a>(
    bytes: &mut &'a mut [u8],
    payload_max: usize,
) -> Result<Option<(u8, &'a mut [u8])>, BadHeader> {
    let Some(header) = parse_header(bytes)? else { return Ok(None) };
    let mask = header.mask.ok_or(BadHeader)?;
    let length = usize::try_from(header.payload_length).map_err(|_| BadHeader)?;
    if length > payload_max {
        return Err(BadHeader);
    }
    if header.header_length + length > bytes.len() {
        return Ok(None);
    }
    let (frame, rest) = std::mem::take(bytes).split_at_mut(header.header_length + length);
    *bytes = rest;
    let payload = &mut frame[header.header_length..];
    apply_mask(payload, mask, 0);
    Ok(Some((header.opcode, payload)))
}

fn push_header(out: &mut Vec<u8>, opcode: u8, length: usize, mask_bit: u8) {
    out.push(0x80 | opcode);
    match length {
        0..=125 => out.push(mask_bit | length as u8),
        126..=0xffff => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends one whole client frame, masked. The key comes from the length: it need only be there, not be secret, since
/// no proxy lies between a load test and its server.
pub fn push_client_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    push_header(out, opcode, payload.len(), 0x80);
    let mask = (payload.len() as u32).wrapping_mul(0x9e37_79b1).to_be_bytes();
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask, 0);
}

/// Appends one whole server frame, not masked.
pub fn push_server_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    push_header(out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
    use tungstenite::protocol::frame::{Frame, FrameHeader};

    #[test]
    fn the_accept_value_is_the_one_of_the_rfc() {
        assert_eq!(&accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn keys_differ_by_number_and_attempt() {
        assert_ne!(key_value(1, 0), key_value(2, 0));
        assert_ne!(key_value(1, 0), key_value(1, 1));
        let decoded = BASE64.decode(key_value(7, 7)).unwrap();
        assert_eq!(decoded.len(), 16);
    }

    #[test]
    fn client_frames_of_every_length_form_are_read_by_tungstenite() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 70_001] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut bytes = Vec::new();
            push_client_frame(&mut bytes, opcode::BINARY, &payload);
            let mut cursor = std::io::Cursor::new(&bytes);
            let (header, announced) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert_eq!(header.opcode, OpCode::Data(Data::Binary));
            assert_eq!(announced as usize, length);
            let mut read = bytes[cursor.position() as usize..].to_vec();
            apply_mask(&mut read, header.mask.unwrap(), 0);
            assert_eq!(read, payload);
        }
    }

    #[test]
    fn a_client_frame_is_taken_whole_or_not_at_all() {
        let mut bytes = Vec::new();
        push_client_frame(&mut bytes, opcode::TEXT, b"hello");
        push_client_frame(&mut bytes, opcode::PING, b"x");
        for end in 0..11 {
            let mut cut = &mut bytes.clone()[..end];
            assert_eq!(take_client_frame(&mut cut, 5), Ok(None));
            assert_eq!(cut.len(), end);
        }
        assert_eq!(take_client_frame(&mut &mut bytes.clone()[..], 4), Err(BadHeader), "too long");
        let mut rest = &mut bytes[..];
        assert_eq!(take_client_frame(&mut rest, 5), Ok(Some((opcode::TEXT, &mut { *b"hello" }[..]))));
        assert_eq!(take_client_frame(&mut rest, 5), Ok(Some((opcode::PING, &mut { *b"x" }[..]))));
        assert_eq!(take_client_frame(&mut rest, 5), Ok(None));
        let mut unmasked = Vec::new();
        push_server_frame(&mut unmasked, opcode::TEXT, b"hello");
        assert_eq!(take_client_frame(&mut &mut unmasked[..], 5), Err(BadHeader));
    }

    #[test]
    fn frames_written_by_tungstenite_are_read_back() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let frame = Frame::message(vec![9_u8; length], OpCode::Data(Data::Text), true);
            let mut bytes = Vec::new();
            frame.format(&mut bytes).unwrap();
            let header = parse_header(&bytes).unwrap().unwrap();
            assert_eq!((header.opcode, header.payload_length), (opcode::TEXT, length as u64));
            assert_eq!(header.header_length + length, bytes.len());
            for cut in 0..header.header_length {
                assert_eq!(parse_header(&bytes[..cut]), Ok(None));
            }
        }
        let mut ping = Vec::new();
        Frame::ping(vec![1, 2]).format(&mut ping).unwrap();
        assert_eq!(parse_header(&ping).unwrap().unwrap().opcode, u8::from(OpCode::Control(Control::Ping)));
    }

    #[test]
    fn headers_that_break_the_framing_are_refused() {
        for bad in [[0xc1, 0], [0x83, 0], [0x8b, 0], [0x09, 0], [0x89, 126]] {
            assert_eq!(parse_header(&bad), Err(BadHeader));
        }
    }

    #[test]
    fn masking_in_pieces_equals_masking_at_once() {
        let mask = [1, 2, 3, 4];
        let mut whole: Vec<u8> = (0..99).collect();
        let mut pieces = whole.clone();
        apply_mask(&mut whole, mask, 0);
        let (left, right) = pieces.split_at_mut(37);
        apply_mask(left, mask, 0);
        apply_mask(right, mask, 37);
        assert_eq!(whole, pieces);
    }
}
