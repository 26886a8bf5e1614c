//! Texts that differ from connection to connection: `room:{n}`, `user-{n%500}`.
//!
//! `{n}` is the connection's number with seven digits, so that every connection's text has the same length and a
//! figure per connection means the same for all of them; `{n%K}` spreads the connections over K values.

use std::fmt::Write as _;

/// A text with places for the connection's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// The number, or what is left of it after division.
    Number(Option<u32>),
}

impl Template {
    /// Reads a template. Braces that hold anything but `n` or `n%K` are ordinary text, because JSON is full of them.
    pub fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("{n") {
            plain.push_str(&rest[..at]);
            let inside = &rest[at + 2..];
            let place = inside.find('}').and_then(|end| match &inside[..end] {
                "" => Some((end, None)),
                modulus => modulus.strip_prefix('%')?.parse().ok().filter(|k| *k > 0).map(|k| (end, Some(k))),
            });
            match place {
                Some((end, modulus)) => {
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(Piece::Number(modulus));
                    rest = &inside[end + 1..];
                }
                None => {
                    plain.push_str("{n");
                    rest = inside;
                }
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Self { pieces }
    }

    /// Appends the text of connection `number`.
    pub fn expand_into(&self, out: &mut String, number: u32) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Number(modulus) => {
                    let value = modulus.map_or(number, |k| number % k);
                    write!(out, "{value:07}").expect("a String takes everything");
                }
            }
        }
    }

    /// The text of connection `number`.
    pub fn expand(&self, number: u32) -> String {
        let mut out = String::new();
        self.expand_into(&mut out, number);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_goes_where_the_braces_say() {
        assert_eq!(Template::new("room:{n}").expand(42), "room:0000042");
        assert_eq!(Template::new("{n%10}-{n}!").expand(42), "0000002-0000042!");
    }

    #[test]
    fn json_stays_as_it_is() {
        for text in [r#"{"channel":"A"}"#, r#"{name}"#, "{n", "{n%0}", "{n%x}", ""] {
            assert_eq!(Template::new(text).expand(1), text);
        }
        assert_eq!(Template::new(r#"{"id":"{n}"}"#).expand(3), r#"{"id":"0000003"}"#);
    }
}
