//! Texts cut to a length.

/// The end of the longest start of `text` that has at most so many bytes and is whole characters.
///
/// The standard library has it since Rust 1.91. The crates that we use build from 1.88 on, and so do we.
pub fn floor_char_boundary(text: &str, bytes_max: usize) -> usize {
    let last = bytes_max.min(text.len());
    (0..=last).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_two_characters() {
        for (bytes_max, end) in [(0, 0), (1, 1), (2, 1), (4, 1), (5, 5), (6, 6), (9, 6)] {
            assert_eq!(floor_char_boundary("a\u{1f600}b", bytes_max), end);
        }
    }
}
