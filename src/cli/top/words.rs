//! Numbers as people read them, and small pictures made of characters. Pure.

/// How the terminal can show things.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glyphs {
    /// Characters beyond ASCII.
    pub unicode: bool,
}

impl Glyphs {
    /// A bar of `width` characters, filled from the left.
    pub fn bar(self, share: f64, width: usize) -> String {
        let (full, empty) = if self.unicode { ("█", "░") } else { ("#", ".") };
        let filled = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
        full.repeat(filled) + &empty.repeat(width - filled)
    }

    /// The last `width` values as columns of different height, the latest at the right.
    pub fn columns(self, values: &[f64], width: usize) -> String {
        let levels: &[char] = if self.unicode {
            &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            &['_', '.', ':', '-', '=', '+', '*', '#']
        };
        let shown = &values[values.len().saturating_sub(width)..];
        let most = shown.iter().copied().fold(0.0, f64::max);
        let level = |value: f64| if most > 0.0 { (value / most * 7.0).round() as usize } else { 0 };
        " ".repeat(width - shown.len()) + &shown.iter().map(|value| levels[level(*value).min(7)]).collect::<String>()
    }
}

/// A number of things: `14,998`.
pub(super) fn count(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The same where there is little room: `524k`, `1.05M`.
pub(super) fn short(value: f64) -> String {
    match value {
        _ if value >= 999_500.0 => format!("{:.2}M", value / 1e6),
        _ if value >= 100_000.0 => format!("{:.0}k", value / 1e3),
        _ => count(value),
    }
}

/// So many each second; a dash while it is not known.
pub(super) fn rate(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value > 0.0 && value < 99.95 => format!("{value:.1}"),
        Some(value) => count(value),
    }
}

/// A size.
pub(super) fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (1..units.len()).take_while(|step| value >= 1024f64.powi(*step as i32) * 0.9995).count();
    let scaled = value / 1024f64.powi(step as i32);
    if step == 0 || scaled >= 99.95 {
        format!("{scaled:.0} {}", units[step])
    } else {
        format!("{scaled:.1} {}", units[step])
    }
}

/// A time in seconds.
pub(super) fn seconds(value: f64) -> String {
    match value {
        _ if value.is_infinite() => "never".to_owned(),
        _ if value <= 0.0 => "0 s".to_owned(),
        _ if value < 1e-3 => format!("{:.0} us", value * 1e6),
        _ if value < 1.0 => format!("{} ms", two_digits(value * 1e3)),
        _ if value < 99.95 => format!("{} s", format!("{value:.1}").trim_end_matches(".0")),
        _ if value < 600.0 => format!("{value:.0} s"),
        _ => format!("{:.0} min", value / 60.0),
    }
}

fn two_digits(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// A share.
pub(super) fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value > 0.0 && value < 9.95 { format!("{value:.1} %") } else { format!("{value:.0} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_readable() {
        assert_eq!([0.0, 999.0, 1000.0, 1234567.0].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([99_999.0, 524_288.0, 1_048_576.0].map(short), ["99,999", "524k", "1.05M"]);
        assert_eq!([None, Some(0.0), Some(0.25), Some(1234.0)].map(rate), ["-", "0", "0.2", "1,234"]);
        assert_eq!([71.0, 1023.9, 3379.2, 241_172_480.0].map(bytes), ["71 B", "1.0 KiB", "3.3 KiB", "230 MiB"]);
        assert_eq!(
            [0.00012, 0.0012, 0.25, 34.5, 1045.0].map(seconds),
            ["120 us", "1.2 ms", "250 ms", "34.5 s", "17 min"]
        );
        assert_eq!(seconds(f64::INFINITY), "never");
        assert_eq!([0.0, 0.075, 0.5, 1.0].map(percent), ["0 %", "7.5 %", "50 %", "100 %"]);
    }

    #[test]
    fn pictures_have_the_width_that_was_asked_for() {
        for glyphs in [Glyphs { unicode: true }, Glyphs { unicode: false }] {
            for share in [-1.0, 0.0, 0.5, 1.0, 7.0, f64::NAN] {
                assert_eq!(glyphs.bar(share, 10).chars().count(), 10);
            }
            for values in [&[][..], &[0.0; 3], &[1.0, 2.0, 4.0], &[3.0; 50]] {
                assert_eq!(glyphs.columns(values, 10).chars().count(), 10);
            }
        }
        assert_eq!(Glyphs { unicode: false }.bar(0.5, 4), "##..");
        assert_eq!(Glyphs { unicode: true }.columns(&[0.0, 1.0], 3), " ▁█");
    }
}
