//! What a broker with memory must remember, told a second time: history, presence, and sessions of clients that may come
//! back. Written from the contract (`action-cable-extended.md` sections 2 to 4 and 7), not from the broker.

use std::collections::{BTreeMap, VecDeque};

use cableway::model::{BrokerError, Publication};

use crate::model::{Model, quoted};

/// The generation of the history in every run.
pub const EPOCH: &str = "sim1";

/// A session that was sent away within so many seconds before it was saved may not have known it.
const ON_THE_WAY: u64 = 5;

/// From where on a client asks for history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    pub since: i64,
    /// Stream, epoch, offset.
    pub positions: Vec<(String, String, u64)>,
}

impl Ask {
    /// Everything that there is.
    pub fn all() -> Ask {
        Ask { since: 1, positions: Vec::new() }
    }

    /// As a part of a command.
    pub fn json(&self) -> String {
        let streams = self.positions.iter().map(|(stream, epoch, offset)| {
            format!("{}:{{\"epoch\":{},\"offset\":{offset}}}", quoted(stream), quoted(epoch))
        });
        let streams = streams.collect::<Vec<_>>().join(",");
        format!(",\"history\":{{\"since\":{},\"streams\":{{{streams}}}}}", self.since)
    }
}

/// A publication as a subscriber gets it.
pub fn replayed(identifier: &str, publication: &Publication) -> String {
    let kind = publication.kind.as_ref().map_or(String::new(), |kind| format!("\"type\":{},", quoted(kind)));
    let position = publication.position.as_ref().map_or(String::new(), |position| {
        let (stream, epoch) = (quoted(&publication.stream), quoted(&position.epoch));
        format!(",\"stream_id\":{stream},\"epoch\":{epoch},\"offset\":{}", position.offset)
    });
    format!("{{{kind}\"identifier\":{},\"message\":{}{position}}}", quoted(identifier), publication.message)
}

/// What a session is left with.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It lives; who wants to take it over.
    Lives(Option<usize>),
    /// It waits for its client since this second.
    Saved(u64),
    /// It was given to this client.
    Given(usize),
    Over,
}

/// A session that its client may come back to.
pub struct Kept {
    /// Whose it was.
    pub owner: usize,
    pub fate: Fate,
    /// What it was when it ended.
    pub model: Option<Model>,
    pub identifiers: String,
}

#[derive(Default)]
pub struct Stream {
    head: u64,
    last: u64,
    /// Number of the publication, its offset, second on the monotonic clock, second of Unix time.
    messages: VecDeque<(usize, u64, u64, u64)>,
}

/// Somebody in a stream: what others are told, and their sessions, with when each is over.
pub type Person = (String, BTreeMap<String, Option<u64>>);

/// The second opinion.
#[derive(Default)]
pub struct Memory {
    pub history_limit: usize,
    pub history_ttl: u64,
    pub presence_ttl: u64,
    pub sessions_ttl: u64,
    pub streams: BTreeMap<String, Stream>,
    /// By stream and id.
    pub present: BTreeMap<String, BTreeMap<String, Person>>,
    pub sessions: BTreeMap<String, Kept>,
    pub sent_away: BTreeMap<String, u64>,
}

/// The event that tells of somebody who came.
fn join_event(id: &str, info: &str) -> String {
    format!("{{\"id\":{},\"info\":{info},\"type\":\"join\"}}", quoted(id))
}

fn leave_event(id: &str) -> String {
    format!("{{\"id\":{},\"type\":\"leave\"}}", quoted(id))
}

impl Memory {
    /// Publication `p` was stored. Says what is wrong with its offset.
    pub fn store(&mut self, stream: &str, p: usize, offset: u64, mono: u64, unix: u64) -> Result<(), String> {
        let limit = self.history_limit;
        let dead = self.history_ttl * 10;
        let stream = self.streams.entry(stream.into()).or_default();
        let next = stream.head + 1;
        // A counter that was forgotten begins anywhere behind what it was.
        let may_be_forgotten = stream.head == 0 || mono > stream.last + dead;
        if offset != next && !(may_be_forgotten && offset > next) {
            return Err(format!("offset {offset} instead of {next}"));
        }
        (stream.head, stream.last) = (offset, mono);
        stream.messages.push_back((p, offset, mono, unix));
        while stream.messages.len() > limit {
            stream.messages.pop_front();
        }
        Ok(())
    }

    /// What a client missed of some streams: of each how far it had it, and the publications.
    pub fn missed(
        &self,
        streams: &[Box<str>],
        ask: &Ask,
        mono: u64,
        unix: u64,
    ) -> Result<Vec<(u64, Vec<usize>)>, BrokerError> {
        streams.iter().map(|stream| self.missed_of(stream, ask, mono, unix)).collect()
    }

    fn missed_of(&self, name: &str, ask: &Ask, mono: u64, unix: u64) -> Result<(u64, Vec<usize>), BrokerError> {
        let none = Stream::default();
        let stream = self.streams.get(name).unwrap_or(&none);
        let alive = |at: &u64| mono.saturating_sub(*at) <= self.history_ttl;
        let alive: Vec<_> = stream.messages.iter().filter(|(_, _, at, _)| alive(at)).collect();
        let numbers = |from: usize| alive[from..].iter().map(|(p, ..)| *p).collect::<Vec<_>>();
        let is_forgotten = mono.saturating_sub(stream.last) > self.history_ttl * 10;
        let head = if is_forgotten { 0 } else { stream.head };
        if let Some((_, epoch, had)) = ask.positions.iter().rev().find(|(stream, ..)| stream == name) {
            let had = *had;
            if epoch != EPOCH || had == 0 || had > head {
                return Err(BrokerError::Gone);
            }
            let missed = (head - had) as usize;
            let from = alive.len().checked_sub(missed).ok_or(BrokerError::Gone)?;
            return Ok((had, numbers(from)));
        }
        if ask.since <= 0 || ask.since as u64 > unix {
            return Ok((0, Vec::new()));
        }
        let from = alive.iter().position(|(.., wall)| *wall >= ask.since as u64).unwrap_or(alive.len());
        Ok((0, numbers(from)))
    }

    /// A session joins a stream. Gives the event that this makes.
    pub fn join(&mut self, stream: &str, sid: &str, id: &str, info: &str) -> Option<String> {
        let people = self.present.entry(stream.into()).or_default();
        if people.iter().any(|(other, (_, sids))| other != id && sids.contains_key(sid)) {
            return None;
        }
        let came = !people.contains_key(id);
        let person = people.entry(id.into()).or_default();
        person.0 = info.into();
        person.1.insert(sid.into(), None);
        came.then(|| join_event(id, info))
    }

    /// A session leaves a stream.
    pub fn leave(&mut self, stream: &str, sid: &str) -> Option<String> {
        let people = self.present.get_mut(stream)?;
        let (id, (_, sids)) = people.iter_mut().find(|(_, (_, sids))| sids.contains_key(sid))?;
        let id = id.clone();
        sids.remove(sid);
        sids.is_empty().then(|| {
            people.remove(&id);
            leave_event(&id)
        })
    }

    /// The connection of a session is over.
    pub fn gone(&mut self, stream: &str, sid: &str, mono: u64) {
        let end = mono + self.presence_ttl;
        let people = self.present.get_mut(stream).into_iter().flatten();
        people.filter_map(|(_, (_, sids))| sids.get_mut(sid)).for_each(|at| _ = at.get_or_insert(end));
    }

    /// Events of those whose time is over, with their streams, in any order.
    pub fn sweep(&mut self, mono: u64) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for (stream, people) in &mut self.present {
            people.retain(|id, (_, sids)| {
                sids.retain(|_, end| end.is_none_or(|end| end > mono));
                if sids.is_empty() {
                    events.push((stream.clone(), leave_event(id)));
                }
                !sids.is_empty()
            });
        }
        let ttl = self.sessions_ttl;
        for kept in self.sessions.values_mut() {
            if matches!(kept.fate, Fate::Saved(at) if at + ttl < mono) {
                kept.fate = Fate::Over;
            }
        }
        events
    }

    /// Whether this is what a client must be told that asks who is present.
    pub fn is_present(&self, stream: &str, records: bool, told: &[u8]) -> bool {
        let none = BTreeMap::new();
        let people = self.present.get(stream).unwrap_or(&none);
        let Ok(mut told) = serde_json::from_slice::<serde_json::Value>(told) else { return false };
        if let Some(told) = told.get_mut("records").and_then(|records| records.as_array_mut()) {
            told.sort_by_key(|record| record["id"].to_string());
        }
        let info = |info: &str| serde_json::from_str::<serde_json::Value>(info).unwrap_or_default();
        let ours: Vec<_> =
            people.iter().map(|(id, (text, _))| serde_json::json!({"id": id, "info": info(text)})).collect();
        let mut wanted = serde_json::json!({"type": "info", "total": people.len()});
        if records && !people.is_empty() {
            wanted["records"] = ours.into();
        }
        told == wanted
    }

    /// The app sends somebody away.
    pub fn send_away(&mut self, identifiers: &str, mono: u64) {
        self.sent_away.insert(identifiers.into(), mono);
    }

    /// Whether somebody with these identifiers who was saved at this second was sent away since.
    pub fn is_sent_away(&self, identifiers: &str, saved_at: u64) -> bool {
        self.sent_away.get(identifiers).is_some_and(|at| at + ON_THE_WAY >= saved_at)
    }
}
