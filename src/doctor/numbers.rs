//! Numbers for people.

/// With commas between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves at least one, with one decimal below ten.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    let (unit, size) = UNITS.into_iter().find(|(_, size)| number >= *size).unwrap_or(("B", 1));
    let amount = number as f64 / size as f64;
    if amount < 10.0 && size > 1 { format!("{amount:.1} {unit}") } else { format!("{amount:.0} {unit}") }
}

/// Up to the next multiple.
pub(super) fn round_up(number: u64, multiple: u64) -> u64 {
    number.div_ceil(multiple).saturating_mul(multiple)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 5_002_048].map(grouped), ["0", "999", "1,000", "5,002,048"]);
        assert_eq!([0, 1_536, 3 << 20, 24 << 30].map(bytes), ["0 B", "1.5 KiB", "3.0 MiB", "24 GiB"]);
        assert_eq!((round_up(5_002_048, 1_000_000), round_up(6, 3)), (6_000_000, 6));
    }
}
