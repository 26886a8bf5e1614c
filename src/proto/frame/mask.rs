//! Unmasking (RFC 6455 section 5.3).

/// Unmasks `bytes`, the first of which is byte `offset` of its frame's payload.
///
/// Eight bytes a step with no regard to alignment; the compiler turns the loop into vector code.
pub(super) fn unmask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut key = mask;
    key.rotate_left(offset % 4);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    // Whole words came before, so the key starts anew.
    for (byte, key) in rest.iter_mut().zip(word.to_ne_bytes()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::unmask;

    #[test]
    fn every_length_offset_and_alignment_agrees_with_the_formula_of_the_rfc() {
        let mask = [0x37, 0xFA, 0x21, 0x3D];
        for len in 0..70 {
            for offset in 0..9 {
                for skip in 0..8 {
                    let mut bytes: Vec<u8> = (0..skip + len).map(|i| i as u8 ^ 0xA5).collect();
                    let plain = bytes.clone();
                    unmask(&mut bytes[skip..], mask, offset);
                    assert_eq!(bytes[..skip], plain[..skip]);
                    for i in 0..len {
                        assert_eq!(bytes[skip + i], plain[skip + i] ^ mask[(offset + i) % 4]);
                    }
                }
            }
        }
    }
}
