//! Who is present in which stream.
//!
//! A session joins a stream under an id that it chooses, as one of perhaps several with that id; who follows the stream is
//! told when an id comes and when its last session has gone. A session that lost its connection stays present for a
//! while: if its client is back in time under the same id, nobody is told anything. Plain data: no clock, no lock.
//!
//! **Memory.** A present session costs up to 94 bytes, an id 40 beside the blocks of its texts, a stream with somebody in
//! it 150 beside the block of its name. Nothing is kept of a stream in which nobody is.

mod hand_over;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::BuildHasher;

use hashbrown::HashTable;

use crate::model::{IndexSet, Keyed, NameHasher, SharedText, Sid, shrink};
use crate::proto::json::push_string;

pub use hand_over::PresenceNote;
use hand_over::Touched;

/// What a join has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// The id was not there: tell the others.
    Came,
    /// Another session has the id, or this one joined again. The info is the new one now.
    Known,
    /// Nothing: this session is there under another id.
    OtherId,
}

/// Somebody in a stream.
struct Person {
    id: SharedText,
    /// JSON text.
    info: Option<SharedText>,
    sessions: u32,
}

impl Keyed for Person {
    type Key = [u8];

    fn key(&self) -> &[u8] {
        self.id.as_bytes()
    }
}

impl Person {
    fn text_bytes(&self) -> usize {
        self.id.heap_bytes() + self.info.as_ref().map_or(0, SharedText::heap_bytes)
    }
}

/// Everybody in one stream: one at least.
struct People {
    stream: SharedText,
    people: IndexSet<Person>,
}

impl Keyed for People {
    type Key = [u8];

    fn key(&self) -> &[u8] {
        self.stream.as_bytes()
    }
}

/// A session in a stream. Its texts are those of the stream and of the person.
struct Record {
    stream: SharedText,
    sid: Sid,
    id: SharedText,
    /// When it ends (monotonic seconds), if its connection is gone.
    end: Option<u32>,
}

/// A record that ends unless its session has joined again.
struct Ending {
    end: u32,
    stream: SharedText,
    sid: Sid,
}

/// Bytes of an entry of a hash table of at least 7/16, with its byte of control.
const fn in_table(size: usize) -> usize {
    (size + 1) * 16 / 7
}

/// In its table.
const RECORD_BYTES: usize = in_table(size_of::<Record>());

/// In its row, of which an eighth may be free, and in its index.
const PERSON_BYTES: usize = size_of::<Person>() * 9 / 8 + in_table(size_of::<u32>());

/// The same, and the allocator's share in the row and the index of its people.
const PEOPLE_BYTES: usize = size_of::<People>() * 9 / 8 + in_table(size_of::<u32>()) + 64;

const _: () = assert!(RECORD_BYTES <= 94 && PERSON_BYTES <= 40 && PEOPLE_BYTES <= 150);

/// One stripe: the presence of the streams that fall into it.
pub struct Presence {
    ttl: u32,
    hasher: NameHasher,
    streams: IndexSet<People>,
    /// By stream and session.
    records: HashTable<Record>,
    /// In order of their ends, because all live equally long.
    endings: VecDeque<Ending>,
    /// Ids over all streams.
    people: usize,
    /// What the blocks of all texts take.
    text_bytes: usize,
    /// What has changed, while somebody wants to know.
    touched: Option<Vec<Touched>>,
}

impl Presence {
    /// Nobody is present. `ttl`: seconds that a record outlives its connection.
    pub fn new(ttl: u32) -> Presence {
        Presence {
            ttl,
            hasher: NameHasher::default(),
            streams: IndexSet::new(),
            records: HashTable::new(),
            endings: VecDeque::new(),
            people: 0,
            text_bytes: 0,
            touched: None,
        }
    }

    /// A session joins a stream under an id. `info` is JSON text that is shown beside the id; that of the last join of an
    /// id holds. A session whose connection was gone is there again.
    pub fn join(&mut self, stream: &str, sid: Sid, id: &str, info: Option<&str>) -> Join {
        let hasher = self.hasher;
        let hash = |name: &[u8]| hasher.hash_one(name);
        let known = self.records.find_mut(record_hash(hasher, stream.as_bytes(), sid), is_record(stream, sid));
        if known.as_ref().is_some_and(|record| record.id.as_bytes() != id.as_bytes()) {
            return Join::OtherId;
        }
        let fresh = || People { stream: stream.into(), people: IndexSet::new() };
        let (place, is_new) = self.streams.place_or_add(stream.as_bytes(), hash, fresh);
        let People { stream, people } = &mut self.streams.as_mut_slice()[place as usize];
        if is_new {
            self.text_bytes += stream.heap_bytes();
        }
        let fresh = || Person { id: id.into(), info: None, sessions: 0 };
        let (place, came) = people.place_or_add(id.as_bytes(), hash, fresh);
        let person = &mut people.as_mut_slice()[place as usize];
        if came {
            self.people += 1;
        } else {
            self.text_bytes -= person.text_bytes();
        }
        person.info = info.map(SharedText::from);
        self.text_bytes += person.text_bytes();
        if let Some(touched) = &mut self.touched {
            touched.push(Touched::Session(stream.clone(), sid));
            touched.push(Touched::Person(stream.clone(), person.id.clone()));
        }
        match known {
            Some(record) => record.end = None,
            None => {
                person.sessions += 1;
                let record = Record { stream: stream.clone(), sid, id: person.id.clone(), end: None };
                let rehash = |record: &Record| record_hash(hasher, record.stream.as_bytes(), record.sid);
                self.records.insert_unique(rehash(&record), record, rehash);
            }
        }
        if came { Join::Came } else { Join::Known }
    }

    /// A session leaves a stream. Gives its id if it was the last session of it: the others are to be told.
    pub fn leave(&mut self, stream: &str, sid: Sid) -> Option<Box<str>> {
        let hasher = self.hasher;
        let hash = |name: &[u8]| hasher.hash_one(name);
        let record_hash_of = record_hash(hasher, stream.as_bytes(), sid);
        let (record, _) = self.records.find_entry(record_hash_of, is_record(stream, sid)).ok()?.remove();
        if let Some(touched) = &mut self.touched {
            touched.push(Touched::Session(record.stream.clone(), sid));
        }
        if self.records.is_empty() {
            (self.records, self.endings) = (HashTable::new(), VecDeque::new());
        }
        shrink(&mut self.records, |record| record_hash(hasher, record.stream.as_bytes(), record.sid));

        let People { people, .. } = self.streams.find_mut(stream.as_bytes(), hash)?;
        let person = people.find_mut(record.id.as_bytes(), hash)?;
        person.sessions -= 1;
        if person.sessions > 0 {
            return None;
        }
        self.people -= 1;
        self.text_bytes -= person.text_bytes();
        people.remove(record.id.as_bytes(), hash);
        if people.as_slice().is_empty() {
            self.text_bytes -= record.stream.heap_bytes();
            self.streams.remove(stream.as_bytes(), hash);
        }
        Some(record.id.as_str().into())
    }

    /// A session has lost its connection: it is present until `now` (monotonic seconds) and the time to live, unless it
    /// joins again. Tells whether it was present at all. A second time changes nothing.
    pub fn disconnected(&mut self, stream: &str, sid: Sid, now: u32) -> bool {
        let hash = record_hash(self.hasher, stream.as_bytes(), sid);
        let Some(record) = self.records.find_mut(hash, is_record(stream, sid)) else { return false };
        if record.end.is_none() {
            let end = now.saturating_add(self.ttl);
            record.end = Some(end);
            self.endings.push_back(Ending { end, stream: record.stream.clone(), sid });
            if let Some(touched) = &mut self.touched {
                touched.push(Touched::Session(record.stream.clone(), sid));
            }
        }
        true
    }

    /// Whoever had these sessions is lost: they are as [`disconnected`](Self::disconnected).
    pub fn lost(&mut self, now: u32, mut is_lost: impl FnMut(&str, Sid) -> bool) {
        let end = now.saturating_add(self.ttl);
        for record in self.records.iter_mut().filter(|record| record.end.is_none()) {
            if is_lost(&record.stream, record.sid) {
                record.end = Some(end);
                self.endings.push_back(Ending { end, stream: record.stream.clone(), sid: record.sid });
            }
        }
    }

    /// Ends the records whose time has come: `now` is their end or later. Gives stream and id of those who have no other
    /// session there: the others are to be told.
    pub fn expire(&mut self, now: u32) -> Vec<(Box<str>, Box<str>)> {
        let mut gone = Vec::new();
        while self.endings.front().is_some_and(|ending| ending.end <= now)
            && let Some(Ending { end, stream, sid }) = self.endings.pop_front()
        {
            let hash = record_hash(self.hasher, stream.as_bytes(), sid);
            let record = self.records.find(hash, is_record(&stream, sid));
            // Otherwise it has left, or has joined again since.
            if record.is_some_and(|record| record.end == Some(end)) {
                gone.extend(self.leave(&stream, sid).map(|id| (stream.as_str().into(), id)));
            }
        }
        if self.endings.capacity() > 64 && self.endings.len() < self.endings.capacity() / 8 {
            self.endings.shrink_to(self.endings.len() * 2);
        }
        gone
    }

    /// Appends who is present in a stream: the `message` of the answer to a client, as JSON. Without `records`, or when
    /// nobody is there, only how many.
    pub fn write_info(&self, stream: &str, records: bool, out: &mut Vec<u8>) {
        let people = self.streams.find(stream.as_bytes(), |name| self.hasher.hash_one(name));
        let people = people.map_or(&[][..], |people| people.people.as_slice());
        let records = people.iter().filter(|_| records);
        let records = records.map(|person| (person.id.as_str(), person.info.as_ref().map(SharedText::as_bytes)));
        write_info(people.len(), records, out);
    }

    /// About what all of it takes, in bytes, with the allocator's share.
    pub fn bytes(&self) -> usize {
        let rows = self.records.len() * RECORD_BYTES + self.people * PERSON_BYTES + self.streams() * PEOPLE_BYTES;
        rows + self.endings.capacity() * size_of::<Ending>() + self.text_bytes
    }

    /// Sessions that are present, one for each stream that they are in.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Streams with somebody in them.
    pub fn streams(&self) -> usize {
        self.streams.as_slice().len()
    }

    /// Whether nobody is present. Then nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

fn record_hash(hasher: NameHasher, stream: &[u8], sid: Sid) -> u64 {
    hasher.hash_one((stream, sid))
}

fn is_record(stream: &str, sid: Sid) -> impl Fn(&Record) -> bool {
    move |record| record.sid == sid && record.stream.as_bytes() == stream.as_bytes()
}

/// Appends who is present in a stream, of whom there are `total`: the `message` of the answer to a client, as JSON. Each
/// record is an id and what is told about it, as JSON text.
pub fn write_info<'a>(total: usize, records: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"info\",\"total\":");
    out.extend_from_slice(total.to_string().as_bytes());
    let begun = out.len();
    for (id, info) in records {
        out.extend_from_slice(if out.len() == begun { b",\"records\":[{\"info\":" } else { b",{\"info\":" });
        push_info(out, info);
        out.extend_from_slice(b",\"id\":");
        push_string(out, id);
        out.push(b'}');
    }
    out.extend_from_slice(if out.len() > begun { b"]}" } else { b"}" });
}

/// Appends what the others are told when somebody came, as JSON. Without info it is `null`, here as in
/// [`Presence::write_info`], so that a client sees the same whichever way it learns of somebody.
pub fn write_join(out: &mut Vec<u8>, id: &str, info: Option<&str>) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, id);
    out.extend_from_slice(b",\"info\":");
    push_info(out, info.map(str::as_bytes));
    out.extend_from_slice(b",\"type\":\"join\"}");
}

/// Appends what the others are told when somebody has gone, as JSON.
pub fn write_leave(out: &mut Vec<u8>, id: &str) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, id);
    out.extend_from_slice(b",\"type\":\"leave\"}");
}

fn push_info(out: &mut Vec<u8>, info: Option<&[u8]>) {
    out.extend_from_slice(info.unwrap_or(b"null"));
}
