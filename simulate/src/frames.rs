//! WebSocket frames as a client has them (RFC 6455 section 5.2): an encoder that can also break the rules, and a
//! strict reader of what the server sends. Shares nothing with the server's codec.

/// Opcodes.
pub mod op {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// A masked frame.
pub fn frame(opcode: u8, fin: bool, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut out = vec![opcode | if fin { 0x80 } else { 0 }];
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=65_535 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().enumerate().map(|(n, byte)| byte ^ key[n % 4]));
    out
}

/// A frame of the server.
#[derive(Debug)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// Cuts one frame off the front of `bytes`; `Ok(None)` when it is not complete.
///
/// # Errors
/// Says which rule the server broke.
pub fn read(bytes: &[u8]) -> Result<Option<(Frame, usize)>, String> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0xf0 != 0x80 {
        return Err(format!("a frame begins with {first:#04x}: fragment or reserved bits"));
    }
    if second & 0x80 != 0 {
        return Err("a frame of the server is masked".into());
    }
    let (len, header) = match second & 0x7f {
        126 => {
            let Some(len) = rest.first_chunk::<2>() else { return Ok(None) };
            (usize::from(u16::from_be_bytes(*len)), 4)
        }
        127 => {
            let Some(len) = rest.first_chunk::<8>() else { return Ok(None) };
            (u64::from_be_bytes(*len) as usize, 10)
        }
        n => (usize::from(n), 2),
    };
    let least = [(4, 126), (10, 65_536)].iter().find(|(size, _)| *size == header).map_or(0, |(_, least)| *least);
    if len < least || len > 1 << 30 {
        return Err(format!("a frame says its length of {len} in {header} bytes"));
    }
    let opcode = first & 0x0f;
    if !matches!(opcode, op::TEXT | op::BINARY | op::CLOSE | op::PING | op::PONG) || (opcode >= 8 && len > 125) {
        return Err(format!("a frame with opcode {opcode} and {len} bytes"));
    }
    let Some(payload) = bytes.get(header..header + len) else { return Ok(None) };
    Ok(Some((Frame { opcode, payload: payload.to_vec() }, header + len)))
}
