//! What a presence gives to another one that goes on with it: first everybody, then, as often as it is asked, only what has
//! changed since.

use std::collections::HashSet;
use std::hash::BuildHasher;

use serde::{Deserialize, Serialize};

use crate::model::{NameHasher, SharedText, Sid};

use super::{Ending, Person, Presence, is_record, record_hash};

/// Something that changed, and may have changed again since.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum Touched {
    Session(SharedText, Sid),
    Person(SharedText, SharedText),
}

/// Something that is known of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PresenceNote {
    /// A session is there.
    There {
        /// The stream.
        stream: SharedText,
        /// The session.
        sid: Sid,
        /// As whom.
        id: SharedText,
        /// What is told of the id, JSON text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        info: Option<SharedText>,
        /// When it ends, in monotonic seconds, if its connection is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end: Option<u32>,
    },
    /// A session is not there any more.
    Gone {
        /// The stream.
        stream: SharedText,
        /// The session.
        sid: Sid,
    },
    /// What is told of an id.
    Told {
        /// The stream.
        stream: SharedText,
        /// Of whom.
        id: SharedText,
        /// JSON text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        info: Option<SharedText>,
    },
}

impl PresenceNote {
    /// The stream.
    pub fn stream(&self) -> &str {
        match self {
            PresenceNote::There { stream, .. }
            | PresenceNote::Gone { stream, .. }
            | PresenceNote::Told { stream, .. } => stream,
        }
    }
}

impl Presence {
    /// Everybody. From now on it is noted what changes, until [`forget_changes`](Self::forget_changes).
    pub fn all(&mut self) -> Vec<PresenceNote> {
        self.touched = Some(Vec::new());
        let mut notes: Vec<_> = self.records.iter().map(|record| self.there(&record.stream, record.sid)).collect();
        sort(&mut notes);
        notes
    }

    /// What has changed since [`all`](Self::all) or this was called last.
    pub fn changed(&mut self) -> Vec<PresenceNote> {
        let Some(touched) = self.touched.replace(Vec::new()) else { return Vec::new() };
        let touched: HashSet<Touched, NameHasher> = touched.into_iter().collect();
        let note = |touched: &Touched| match touched {
            Touched::Session(stream, sid) => Some(self.there(stream, *sid)),
            Touched::Person(stream, id) => {
                let person = self.person(stream, id)?;
                Some(PresenceNote::Told { stream: stream.clone(), id: id.clone(), info: person.info.clone() })
            }
        };
        let mut notes: Vec<_> = touched.iter().filter_map(note).collect();
        sort(&mut notes);
        notes
    }

    /// Nobody wants to know what changes any more.
    pub fn forget_changes(&mut self) {
        self.touched = None;
    }

    /// Goes on with what is known elsewhere. Nobody is told.
    pub fn take_over(&mut self, note: PresenceNote) {
        match note {
            PresenceNote::There { stream, sid, id, info, end } => {
                let hash = record_hash(self.hasher, stream.as_bytes(), sid);
                let known = self.records.find(hash, is_record(&stream, sid));
                if known.is_some_and(|record| record.id != id) {
                    self.leave(&stream, sid);
                }
                self.join(&stream, sid, &id, info.as_deref());
                let Some(end) = end else { return };
                let Some(record) = self.records.find_mut(hash, is_record(&stream, sid)) else { return };
                record.end = Some(end);
                let ending = Ending { end, stream: record.stream.clone(), sid };
                // Nearly always the last place, because they are given in this order.
                let place = self.endings.partition_point(|known| known.end <= end);
                self.endings.insert(place, ending);
            }
            PresenceNote::Gone { stream, sid } => drop(self.leave(&stream, sid)),
            PresenceNote::Told { stream, id, info } => {
                let hasher = self.hasher;
                let hash = |name: &[u8]| hasher.hash_one(name);
                let Some(people) = self.streams.find_mut(stream.as_bytes(), hash) else { return };
                let Some(person) = people.people.find_mut(id.as_bytes(), hash) else { return };
                self.text_bytes -= person.text_bytes();
                person.info = info;
                self.text_bytes += person.text_bytes();
            }
        }
    }

    fn there(&self, stream: &SharedText, sid: Sid) -> PresenceNote {
        let hash = record_hash(self.hasher, stream.as_bytes(), sid);
        match self.records.find(hash, is_record(stream, sid)) {
            Some(record) => PresenceNote::There {
                stream: stream.clone(),
                sid,
                id: record.id.clone(),
                info: self.person(stream, &record.id).and_then(|person| person.info.clone()),
                end: record.end,
            },
            None => PresenceNote::Gone { stream: stream.clone(), sid },
        }
    }

    fn person(&self, stream: &SharedText, id: &SharedText) -> Option<&Person> {
        let hash = |name: &[u8]| self.hasher.hash_one(name);
        self.streams.find(stream.as_bytes(), hash)?.people.find(id.as_bytes(), hash)
    }
}

/// Sessions in the order of their ends, and behind them what is told of people.
fn sort(notes: &mut [PresenceNote]) {
    notes.sort_by_key(|note| match note {
        PresenceNote::Gone { .. } => (0, 0),
        PresenceNote::There { end, .. } => (1, end.unwrap_or(0)),
        PresenceNote::Told { .. } => (2, 0),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::seeded::{self, sent};

    const TTL: u32 = 10;

    /// Who is there, by stream, and who is reported as gone when.
    fn story(presence: &mut Presence) -> String {
        let mut lines = Vec::new();
        for stream in 0..3 {
            let mut text = Vec::new();
            presence.write_info(&stream.to_string(), true, &mut text);
            let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let mut records: Vec<_> =
                value["records"].as_array().into_iter().flatten().map(|record| record.to_string()).collect();
            records.sort_unstable();
            lines.push(records.join(" "));
        }
        for now in 0..500 {
            let mut gone = presence.expire(now);
            gone.sort_unstable();
            lines.extend(gone.iter().map(|(stream, id)| format!("{now} {stream} {id}")));
        }
        lines.push(format!("{} {}", presence.records(), presence.text_bytes));
        lines.join("\n")
    }

    #[test]
    fn another_presence_is_the_same_after_all_and_any_number_of_changes() {
        for seed in 0..300u64 {
            let mut next = seeded::numbers(seed);
            let (mut ours, mut theirs) = (Presence::new(TTL), Presence::new(TTL));
            for step in 0..300 {
                let (stream, sid) = (next(3).to_string(), Sid::from_bits(next(6).into()));
                match next(4) {
                    0 | 1 => {
                        let info = (next(2) == 0).then(|| step.to_string());
                        ours.join(&stream, sid, &next(4).to_string(), info.as_deref());
                    }
                    2 => drop(ours.leave(&stream, sid)),
                    _ => _ = ours.disconnected(&stream, sid, step / 2),
                }
                if step % 7 == 0 {
                    ours.expire(step / 2);
                }
                if step == 100 {
                    sent(ours.all()).into_iter().for_each(|note| theirs.take_over(note));
                } else if step > 100 && next(30) == 0 {
                    sent(ours.changed()).into_iter().for_each(|note| theirs.take_over(note));
                }
            }
            sent(ours.changed()).into_iter().for_each(|note| theirs.take_over(note));
            assert!(ours.changed().is_empty());
            assert_eq!(story(&mut theirs), story(&mut ours), "seed {seed}");
            assert!(theirs.is_empty() == ours.is_empty());
        }
    }

    #[test]
    fn nothing_is_noted_that_nobody_wants_to_know() {
        let mut presence = Presence::new(TTL);
        presence.join("s", Sid::from_bits(1), "a", None);
        assert!(presence.changed().is_empty());
        assert_eq!(presence.all().len(), 1);
        presence.join("s", Sid::from_bits(2), "a", None);
        presence.forget_changes();
        presence.leave("s", Sid::from_bits(1));
        assert!(presence.touched.is_none());
    }
}
