//! Random client streams that are almost right, from a seed.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

/// Up to eight masked frames. With `faulty`, the last one breaks one rule.
pub fn stream(random: &mut StdRng, faulty: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut open = None;
    let count = random.random_range(1..=8);
    for i in 0..count {
        let last = i + 1 == count;
        if random.random_bool(0.3) {
            let opcode = *[0x9, 0xA].choose(random).unwrap();
            let payload = payload(random, 125, false);
            push_frame(random, &mut bytes, 0x80 | opcode, &payload);
        } else {
            let text = open.unwrap_or_else(|| random.random_bool(0.6));
            let opcode = match (open, text) {
                (Some(_), _) => 0,
                (None, true) => 1,
                (None, false) => 2,
            };
            let fin = random.random_bool(0.5);
            open = if fin { None } else { Some(text) };
            let payload = payload(random, 70_000, text);
            push_frame(random, &mut bytes, if fin { 0x80 } else { 0 } | opcode, &payload);
        }
        if last && faulty {
            push_fault(random, &mut bytes, open);
        } else if last && random.random_bool(0.3) {
            let code: u16 = *[1000, 1001, 1003, 1007, 1011, 1013, 3000, 4999].choose(random).unwrap();
            let close = [&code.to_be_bytes()[..], "tschüß".as_bytes()].concat();
            let len = *[0, 2, close.len()].choose(random).unwrap();
            push_frame(random, &mut bytes, 0x88, &close[..len]);
        }
    }
    bytes
}

fn payload(random: &mut StdRng, len_max: usize, text: bool) -> Vec<u8> {
    let len = match random.random_range(0..40) {
        0..4 => 0,
        4..8 => *[125, 126, 127].choose(random).unwrap(),
        8 => *[0xFFFF, 0x1_0000].choose(random).unwrap(),
        _ => random.random_range(0..60),
    };
    let len = len.min(len_max);
    if !text {
        return (0..len).map(|_| random.random()).collect();
    }
    let mut text = String::new();
    while text.len() < len {
        text.push(*['a', 'z', ' ', 'ä', '€', '𐍈', '\u{10FFFF}'].choose(random).unwrap());
    }
    text.into_bytes()
}

/// Appends a masked frame with the shortest length.
pub fn push_frame(random: &mut StdRng, bytes: &mut Vec<u8>, first: u8, payload: &[u8]) {
    let mask: [u8; 4] = random.random();
    bytes.push(first);
    match payload.len() {
        len @ ..126 => bytes.push(0x80 | len as u8),
        len @ ..0x1_0000 => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Appends a whole frame that breaks one rule, given the kind of the open message (text or not).
fn push_fault(random: &mut StdRng, bytes: &mut Vec<u8>, open: Option<bool>) {
    let data = if open.is_some() { 0x80 } else { 0x82 };
    let text = if open == Some(true) { 0x80 } else { 0x81 };
    match random.random_range(0..11) {
        0 => push_frame(random, bytes, data | 0x40, b"reserved bit"),
        1 => push_frame(random, bytes, 0x83, b"reserved opcode"),
        2 => push_frame(random, bytes, 0x8B, b"reserved control"),
        3 => bytes.extend([data, 3, b'a', b'b', b'c']),
        4 => push_frame(random, bytes, 0x09, b"fragmented ping"),
        5 => push_frame(random, bytes, 0x89, &[0; 126]),
        6 => push_frame(random, bytes, if open.is_some() { 0x81 } else { 0x80 }, b"wrong place"),
        7 => push_frame(random, bytes, 0x88, &[3]),
        8 => {
            let code: u16 = *[0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535].choose(random).unwrap();
            push_frame(random, bytes, 0x88, &code.to_be_bytes());
        }
        9 => push_frame(random, bytes, 0x88, b"\x03\xe8\xc3"),
        _ if open == Some(false) => push_frame(random, bytes, 0x81, b"wrong place"),
        _ => push_frame(random, bytes, text, b"bad \xed\xa0\x80 text"),
    }
}
