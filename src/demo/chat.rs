//! What may be said in the chat of the sample app, and how it is told.
//!
//! It decides and does nothing: no socket, no clock. Nothing is kept here: what was said before, who is there and who is
//! writing is Cableway's business (history, presence, whispers).

use serde::{Deserialize, Serialize};

/// Characters of a name.
pub const NAME_CHARS_MAX: usize = 24;

/// Characters of a line.
pub const TEXT_CHARS_MAX: usize = 500;

/// What the page is told: the value of `message` in what clients receive.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Told<'a> {
    /// To everybody: a new line.
    Line(Line<'a>),
    /// To one client only: why nothing came of what it asked.
    Refused {
        /// A sentence for a person.
        text: &'a str,
    },
}

/// What somebody said.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Line<'a> {
    /// Whose tab. Two tabs of one browser are two people.
    pub who: &'a str,
    /// Their name.
    pub name: &'a str,
    /// What they said.
    pub text: &'a str,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
}

impl Told<'_> {
    /// The JSON text.
    pub fn json(&self) -> String {
        // These types hold only what JSON can say, so this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What a client asks of the channel: the `data` of its `message` command.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Asked {
    /// Says something.
    Say {
        /// The line.
        text: String,
        /// Under which name.
        name: String,
    },
}

/// Why nothing came of what a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no text once blanks are taken off.
    #[error("There is nothing to send.")]
    Empty,
    /// See [`TEXT_CHARS_MAX`].
    #[error("That is too long: a message has at most {TEXT_CHARS_MAX} characters.")]
    TextTooLong,
    /// See [`NAME_CHARS_MAX`].
    #[error("A name has 1 to {NAME_CHARS_MAX} characters.")]
    Name,
    /// What was said before has not been published yet.
    #[error("Too much is being said at once. Try again.")]
    Busy,
}

/// What everybody is told when somebody says something.
///
/// # Errors
/// The text or the name is none.
pub fn say(who: &str, name: &str, text: &str, at: u64) -> Result<String, Refused> {
    if text.trim().chars().count() > TEXT_CHARS_MAX {
        return Err(Refused::TextTooLong);
    }
    let text = cleaned(text, TEXT_CHARS_MAX).ok_or(Refused::Empty)?;
    let name = cleaned(name, NAME_CHARS_MAX).ok_or(Refused::Name)?;
    Ok(Told::Line(Line { who, name: &name, text: &text, at }).json())
}

/// The text without blanks around it and with every run of white space and control characters made one blank.
/// `None` if nothing is left or it is longer than `chars_max`.
fn cleaned(text: &str, chars_max: usize) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let text = words.collect::<Vec<_>>().join(" ");
    (1..=chars_max).contains(&text.chars().count()).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_said_is_told_without_needless_blanks() {
        let told = say("ada", " Ada  Lovelace ", "  hello\n there ", 6).unwrap();
        let wanted = json!({"type": "line", "who": "ada", "name": "Ada Lovelace", "text": "hello there", "at": 6});
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), wanted);
    }

    #[test]
    fn what_is_too_long_or_empty_is_refused() {
        assert_eq!(say("a", " \u{7}\n", "hi", 0), Err(Refused::Name));
        assert_eq!(say("a", &"n".repeat(NAME_CHARS_MAX + 1), "hi", 0), Err(Refused::Name));
        assert_eq!(say("a", "Ada", "  ", 0), Err(Refused::Empty));
        assert_eq!(say("a", "Ada", &"t".repeat(TEXT_CHARS_MAX + 1), 0), Err(Refused::TextTooLong));
        assert!(say("a", &"ñ".repeat(NAME_CHARS_MAX), &"ü".repeat(TEXT_CHARS_MAX), 0).is_ok());
    }
}
