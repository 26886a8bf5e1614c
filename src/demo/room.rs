//! The chat room of the sample app: who is here, what was said last, and what everybody is told about it.
//!
//! It decides and does nothing: no socket, no clock. What it returns goes to one client (transmissions) or to
//! everybody (messages for the stream). Everything it keeps has a maximum.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Lines kept for those who come later. Two screens of a phone; older ones are gone.
pub const LINES_MAX: usize = 50;

/// People in the room at once; one more is told that the room is full. A name takes at most 96 bytes, so this is
/// less than 2 MB.
pub const PEOPLE_MAX: usize = 10_000;

/// People that are listed by name when the list is sent; the rest are only counted.
pub const LISTED_MAX: usize = 12;

/// Characters of a name.
pub const NAME_CHARS_MAX: usize = 24;

/// Characters of a line.
pub const TEXT_CHARS_MAX: usize = 500;

/// Somebody's tab. Two tabs of one browser are two people.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Person {
    who: String,
    name: String,
}

/// What somebody said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Grows by one per line.
    id: u64,
    who: String,
    name: String,
    text: String,
    /// Milliseconds since the Unix epoch.
    at: u64,
}

/// Somebody as others see them.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Listed<'a> {
    who: &'a str,
    name: &'a str,
}

/// What the page is told: the value of `message` in what clients receive.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Told<'a> {
    /// To a newcomer only.
    Hello {
        /// Differs after a restart of the app; line numbers start again then.
        epoch: &'a str,
        /// Who the newcomer is.
        who: &'a str,
        /// How many people are here.
        here: usize,
        /// The first of them.
        people: Vec<Listed<'a>>,
        /// What was said last, oldest first.
        lines: Vec<&'a Line>,
    },
    /// To everybody: a new line.
    Line(&'a Line),
    /// To everybody: somebody came, left or took another name.
    People {
        /// What happened.
        what: Change,
        /// To whom.
        who: &'a str,
        /// Their name now, or when they left.
        name: &'a str,
        /// Their name before, if they took another.
        #[serde(skip_serializing_if = "Option::is_none")]
        was: Option<&'a str>,
        /// How many people are here now.
        here: usize,
        /// The first of them.
        people: Vec<Listed<'a>>,
        /// Milliseconds since the Unix epoch.
        at: u64,
    },
    /// To everybody: somebody is writing.
    Typing {
        /// Who.
        who: &'a str,
        /// Their name.
        name: &'a str,
    },
    /// To one client only: why nothing came of what it asked.
    Refused {
        /// A sentence for a person.
        text: &'a str,
    },
}

impl Told<'_> {
    /// The JSON text.
    pub fn json(&self) -> String {
        // These types hold only what JSON can say, so this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// How the list of people changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Somebody came.
    Joined,
    /// Somebody left.
    Left,
    /// Somebody took another name.
    Renamed,
}

/// What a client asks of the channel: the `data` of its `message` command.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Asked {
    /// Says who is there; again to take another name.
    Join {
        /// The name.
        name: String,
    },
    /// Says something.
    Say {
        /// The line.
        text: String,
        /// Under which name.
        name: String,
    },
    /// Is writing.
    Typing,
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
    /// See [`PEOPLE_MAX`].
    #[error("The room is full.")]
    Full,
    /// What was said before has not been published yet.
    #[error("Too much is being said at once. Try again.")]
    Busy,
    /// Only those who joined may speak.
    #[error("Join first.")]
    NotHere,
}

/// The room.
#[derive(Debug)]
pub struct Room {
    epoch: String,
    /// In the order in which they came.
    people: BTreeMap<u64, Person>,
    /// Keys of `people` by connection identifiers.
    seats: HashMap<String, u64>,
    lines: VecDeque<Line>,
    lines_said: u64,
    seats_given: u64,
}

impl Room {
    /// An empty room; `epoch` is different every time.
    pub fn new(epoch: String) -> Room {
        Room {
            epoch,
            people: BTreeMap::new(),
            seats: HashMap::new(),
            lines: VecDeque::new(),
            lines_said: 0,
            seats_given: 0,
        }
    }

    /// What a newcomer is told, as JSON text.
    pub fn hello(&self, who: &str) -> String {
        let people = self.listed();
        let lines = self.lines.iter().collect();
        Told::Hello { epoch: &self.epoch, who, here: self.people.len(), people, lines }.json()
    }

    /// Somebody gives their name, for the first time or again. Returns what everybody is told, if anything changed.
    ///
    /// # Errors
    /// The name is not one, or the room is full.
    pub fn join(&mut self, identifiers: &str, who: &str, name: &str, at: u64) -> Result<Option<String>, Refused> {
        let name = cleaned(name, NAME_CHARS_MAX).ok_or(Refused::Name)?;
        let full = self.people.len() >= PEOPLE_MAX;
        let (what, was) = match self.seats.get(identifiers).and_then(|seat| self.people.get_mut(seat)) {
            Some(person) if person.name == name => return Ok(None),
            Some(person) => {
                let was = std::mem::replace(&mut person.name, name.clone());
                (Change::Renamed, Some(was))
            }
            None if full => return Err(Refused::Full),
            None => {
                self.seats_given += 1;
                self.seats.insert(identifiers.to_owned(), self.seats_given);
                self.people.insert(self.seats_given, Person { who: who.to_owned(), name: name.clone() });
                (Change::Joined, None)
            }
        };
        Ok(Some(self.changed(what, who, &name, was.as_deref(), at)))
    }

    /// Somebody is gone. Returns what the others are told, if they had joined.
    pub fn leave(&mut self, identifiers: &str, at: u64) -> Option<String> {
        let Person { who, name } = self.people.remove(&self.seats.remove(identifiers)?)?;
        Some(self.changed(Change::Left, &who, &name, None, at))
    }

    /// Somebody says something, under a name that may be new. Returns what everybody is told, in this order.
    ///
    /// # Errors
    /// The text or the name is none, or they did not join.
    pub fn say(&mut self, identifiers: &str, name: &str, text: &str, at: u64) -> Result<Vec<String>, Refused> {
        if text.trim().chars().count() > TEXT_CHARS_MAX {
            return Err(Refused::TextTooLong);
        }
        let text = cleaned(text, TEXT_CHARS_MAX).ok_or(Refused::Empty)?;
        let who = self.person(identifiers)?.who.clone();
        let mut told: Vec<_> = self.join(identifiers, &who, name, at)?.into_iter().collect();
        let name = self.person(identifiers)?.name.clone();
        self.lines_said += 1;
        let line = Line { id: self.lines_said, who, name, text, at };
        told.push(Told::Line(&line).json());
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        Ok(told)
    }

    /// Somebody is writing. Returns what everybody is told.
    ///
    /// # Errors
    /// They did not join.
    pub fn typing(&self, identifiers: &str) -> Result<String, Refused> {
        let Person { who, name } = self.person(identifiers)?;
        Ok(Told::Typing { who, name }.json())
    }

    fn changed(&self, what: Change, who: &str, name: &str, was: Option<&str>, at: u64) -> String {
        Told::People { what, who, name, was, here: self.people.len(), people: self.listed(), at }.json()
    }

    fn person(&self, identifiers: &str) -> Result<&Person, Refused> {
        self.seats.get(identifiers).and_then(|seat| self.people.get(seat)).ok_or(Refused::NotHere)
    }

    fn listed(&self) -> Vec<Listed<'_>> {
        self.people.values().take(LISTED_MAX).map(|Person { who, name }| Listed { who, name }).collect()
    }
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

    fn room() -> Room {
        Room::new("e".to_owned())
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn everybody_hears_who_came_and_a_newcomer_hears_what_was_said() {
        let mut room = room();
        let told = room.join("1", "ada", " Ada  Lovelace ", 5).unwrap().unwrap();
        let people = json!([{"who": "ada", "name": "Ada Lovelace"}]);
        let wanted = json!({"type": "people", "what": "joined", "who": "ada", "name": "Ada Lovelace", "here": 1,
            "people": people, "at": 5});
        assert_eq!(value(&told), wanted);
        let told = room.say("1", "Ada Lovelace", "  hello\n there ", 6).unwrap();
        let line = json!({"type": "line", "id": 1, "who": "ada", "name": "Ada Lovelace", "text": "hello there",
            "at": 6});
        assert_eq!(told.iter().map(|told| value(told)).collect::<Vec<_>>(), [line]);
        let line = json!({"id": 1, "who": "ada", "name": "Ada Lovelace", "text": "hello there", "at": 6});
        let hello = json!({"type": "hello", "epoch": "e", "who": "bob", "here": 1, "people": people, "lines": [line]});
        assert_eq!(value(&room.hello("bob")), hello);
    }

    #[test]
    fn the_same_name_again_is_no_news_and_another_one_is() {
        let mut room = room();
        room.join("1", "ada", "Ada", 0).unwrap();
        assert_eq!(room.join("1", "ada", "Ada", 0), Ok(None));
        let told = room.say("1", "Bob", "hi", 0).unwrap();
        assert_eq!((&value(&told[0])["what"], &value(&told[0])["was"]), (&"renamed".into(), &"Ada".into()));
        assert_eq!(value(&told[1])["name"], "Bob");
    }

    #[test]
    fn who_leaves_is_gone_once() {
        let mut room = room();
        room.join("1", "ada", "Ada", 0).unwrap();
        assert_eq!(value(&room.leave("1", 0).unwrap())["here"], 0);
        assert_eq!(room.leave("1", 0), None);
        assert_eq!(room.typing("1"), Err(Refused::NotHere));
    }

    #[test]
    fn what_is_too_long_or_empty_is_refused() {
        let mut room = room();
        assert_eq!(room.join("1", "ada", " \u{7}\n", 0), Err(Refused::Name));
        assert_eq!(room.join("1", "ada", &"n".repeat(NAME_CHARS_MAX + 1), 0), Err(Refused::Name));
        assert_eq!(room.say("1", "Ada", "hi", 0), Err(Refused::NotHere));
        room.join("1", "ada", &"ñ".repeat(NAME_CHARS_MAX), 0).unwrap();
        assert_eq!(room.say("1", "Ada", "  ", 0), Err(Refused::Empty));
        assert_eq!(room.say("1", "Ada", &"t".repeat(TEXT_CHARS_MAX + 1), 0), Err(Refused::TextTooLong));
        assert!(room.say("1", "Ada", &"ü".repeat(TEXT_CHARS_MAX), 0).is_ok());
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut room = room();
        room.join("1", "ada", "Ada", 0).unwrap();
        for line in 0..LINES_MAX + 3 {
            room.say("1", "Ada", &line.to_string(), 0).unwrap();
        }
        let hello = value(&room.hello("x"));
        assert_eq!(hello["lines"].as_array().unwrap().len(), LINES_MAX);
        assert_eq!(hello["lines"][0]["id"], 4);
    }

    #[test]
    fn a_full_room_takes_nobody_and_lists_the_first() {
        let mut room = room();
        for person in 0..PEOPLE_MAX {
            room.join(&person.to_string(), &format!("w{person}"), "Ada", 0).unwrap();
        }
        assert_eq!(room.join("late", "late", "Ada", 0), Err(Refused::Full));
        let hello = value(&room.hello("x"));
        assert_eq!(hello["here"], PEOPLE_MAX);
        let listed: Vec<_> = hello["people"].as_array().unwrap().iter().map(|person| person["who"].clone()).collect();
        assert_eq!(listed, (0..LISTED_MAX).map(|person| format!("w{person}")).collect::<Vec<_>>());
    }
}
