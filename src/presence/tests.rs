use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const TTL: u32 = 15;

fn sid(n: u32) -> Sid {
    Sid::from_bits(u128::from(n) << 64 | u128::from(n))
}

fn info(presence: &Presence, stream: &str, records: bool) -> String {
    let mut out = Vec::new();
    presence.write_info(stream, records, &mut out);
    String::from_utf8(out).unwrap()
}

fn total(presence: &Presence, stream: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(&info(presence, stream, false)).unwrap()["total"].as_u64().unwrap()
}

fn reported(list: &[(&str, &str)]) -> Vec<(Box<str>, Box<str>)> {
    list.iter().map(|&(stream, id)| (stream.into(), id.into())).collect()
}

/// Nothing is left: not an entry, not a byte, not a table.
fn assert_nothing_left(presence: &Presence) {
    assert!(presence.is_empty());
    assert_eq!((presence.bytes(), presence.records(), presence.streams()), (0, 0, 0));
    assert_eq!((presence.records.capacity(), presence.endings.capacity()), (0, 0));
}

#[test]
fn an_id_comes_with_its_first_session_and_leaves_with_its_last() {
    let mut presence = Presence::new(TTL);
    assert_eq!(presence.join("room", sid(1), "ada", None), Join::Came);
    assert_eq!(presence.join("room", sid(2), "ada", None), Join::Known);
    assert_eq!(presence.join("room", sid(1), "ada", None), Join::Known, "again");
    assert_eq!(presence.join("room", sid(3), "bob", None), Join::Came);
    assert_eq!(presence.join("hall", sid(1), "ada", None), Join::Came, "another stream");
    assert_eq!((total(&presence, "room"), presence.records(), presence.streams()), (2, 4, 2));
    assert_eq!(presence.leave("room", sid(1)), None);
    assert_eq!(presence.leave("room", sid(1)), None, "it was not there any more");
    assert_eq!(presence.leave("room", sid(2)).as_deref(), Some("ada"));
    assert_eq!(presence.leave("nowhere", sid(3)), None);
    assert_eq!(presence.leave("room", sid(3)).as_deref(), Some("bob"));
    assert_eq!(presence.leave("hall", sid(1)).as_deref(), Some("ada"));
    assert_nothing_left(&presence);
}

#[test]
fn a_session_has_one_id_in_a_stream() {
    let mut presence = Presence::new(TTL);
    presence.join("room", sid(1), "ada", Some("1"));
    assert_eq!(presence.join("room", sid(1), "bob", Some("2")), Join::OtherId);
    assert_eq!(info(&presence, "room", true), r#"{"type":"info","total":1,"records":[{"info":1,"id":"ada"}]}"#);
    assert_eq!(presence.join("hall", sid(1), "bob", None), Join::Came);
}

#[test]
fn who_is_back_in_time_was_never_away() {
    let mut presence = Presence::new(TTL);
    presence.join("room", sid(1), "ada", None);
    assert!(presence.disconnected("room", sid(1), 100));
    assert!(!presence.disconnected("room", sid(2), 100), "never joined");
    assert!(!presence.disconnected("hall", sid(1), 100));
    assert_eq!((presence.expire(114), total(&presence, "room")), (vec![], 1));
    assert_eq!(presence.join("room", sid(2), "ada", None), Join::Known);
    assert_eq!(presence.expire(115), [], "the old record ends silently");
    assert_eq!((presence.records(), total(&presence, "room")), (1, 1));
    assert!(presence.disconnected("room", sid(2), 120));
    assert_eq!(presence.expire(134), []);
    assert_eq!(presence.expire(135), reported(&[("room", "ada")]));
    assert_nothing_left(&presence);
}

#[test]
fn a_session_that_joins_again_is_alive_again() {
    let mut presence = Presence::new(TTL);
    presence.join("room", sid(1), "ada", None);
    assert!(presence.disconnected("room", sid(1), 0));
    assert_eq!(presence.join("room", sid(1), "ada", None), Join::Known);
    assert_eq!(presence.expire(100), []);
    assert!(presence.disconnected("room", sid(1), 100));
    assert!(presence.disconnected("room", sid(1), 110), "the first time counts");
    assert_eq!(presence.expire(115), reported(&[("room", "ada")]));
    assert_nothing_left(&presence);
}

#[test]
fn who_lost_the_connection_and_leaves_is_reported_once() {
    let mut presence = Presence::new(TTL);
    presence.join("room", sid(1), "ada", None);
    presence.join("room", sid(2), "bob", None);
    presence.disconnected("room", sid(1), 0);
    assert_eq!(presence.leave("room", sid(1)).as_deref(), Some("ada"));
    assert_eq!(presence.expire(100), []);
    presence.leave("room", sid(2));
    assert_nothing_left(&presence);
}

#[test]
fn the_records_end_in_order_and_only_the_due_ones() {
    let mut presence = Presence::new(TTL);
    for n in 0..100 {
        presence.join("room", sid(n), &n.to_string(), None);
    }
    for n in 0..100 {
        presence.disconnected("room", sid(n), n);
    }
    assert_eq!(presence.expire(TTL + 1), reported(&[("room", "0"), ("room", "1")]));
    assert_eq!(presence.expire(TTL + 98).len(), 97);
    assert_eq!(presence.expire(u32::MAX), reported(&[("room", "99")]));
    assert_nothing_left(&presence);
}

#[test]
fn the_messages_are_those_of_the_contract() {
    let mut presence = Presence::new(TTL);
    assert_eq!(info(&presence, "room", true), r#"{"type":"info","total":0}"#);
    presence.join("room", sid(1), "1", Some(r#"{"name":"Ada"}"#));
    let one = r#"{"type":"info","total":1,"records":[{"info":{"name":"Ada"},"id":"1"}]}"#;
    assert_eq!(info(&presence, "room", true), one);
    assert_eq!(info(&presence, "room", false), r#"{"type":"info","total":1}"#);
    presence.join("room", sid(2), "a\"b\n", None);
    let two = r#"{"type":"info","total":2,"records":[{"info":{"name":"Ada"},"id":"1"},{"info":null,"id":"a\"b\n"}]}"#;
    assert_eq!(info(&presence, "room", true), two);
    presence.join("room", sid(3), "1", Some("[2]"));
    assert!(info(&presence, "room", true).contains(r#"{"info":[2],"id":"1"}"#), "the last one holds");

    let written = |write: fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    };
    let join = written(|out| write_join(out, "42", Some(r#"{"name":"Ada"}"#)));
    assert_eq!(join, r#"{"id":"42","info":{"name":"Ada"},"type":"join"}"#);
    assert_eq!(written(|out| write_join(out, "4\"2", None)), r#"{"id":"4\"2","info":null,"type":"join"}"#);
    assert_eq!(written(|out| write_leave(out, "4\"2")), r#"{"id":"4\"2","type":"leave"}"#);
}

#[test]
fn memory_follows_who_is_present() {
    let mut presence = Presence::new(TTL);
    let mut fill = |n: u32, range: std::ops::Range<u32>| {
        for session in range.clone() {
            presence.join(&format!("room:{}", session % n), sid(session), &session.to_string(), Some("{}"));
        }
        let full = presence.bytes();
        for session in range.skip(10) {
            presence.disconnected(&format!("room:{}", session % n), sid(session), 0);
        }
        assert_eq!(presence.expire(TTL).len(), 10_000 - 10);
        let table = presence.records.allocation_size() + presence.endings.capacity() * size_of::<Ending>();
        assert!(presence.bytes() < full / 100 && table < 20_000, "{full}, {}, {table}", presence.bytes());
        for session in 0..10 {
            presence.leave(&format!("room:{}", session % n), sid(session));
        }
        assert_nothing_left(&presence);
    };
    fill(1, 0..10_000);
    fill(10_000, 0..10_000);
}

/// What [`Presence`] says it does, as simply as possible: stream and session give id and end.
#[derive(Default)]
struct Model {
    records: HashMap<(String, u32), (String, Option<u32>)>,
    infos: HashMap<(String, String), Option<String>>,
}

impl Model {
    fn has(&self, stream: &str, id: &str) -> bool {
        self.records.iter().any(|((s, _), (i, _))| s == stream && i == id)
    }

    fn join(&mut self, stream: &str, session: u32, id: &str, info: Option<&str>) -> Join {
        let (key, came) = ((stream.to_owned(), session), !self.has(stream, id));
        if self.records.get(&key).is_some_and(|(other, _)| other != id) {
            return Join::OtherId;
        }
        self.infos.insert((stream.to_owned(), id.to_owned()), info.map(str::to_owned));
        self.records.insert(key, (id.to_owned(), None));
        if came { Join::Came } else { Join::Known }
    }

    fn leave(&mut self, stream: &str, session: u32) -> Option<String> {
        let (id, _) = self.records.remove(&(stream.to_owned(), session))?;
        (!self.has(stream, &id)).then_some(id)
    }

    fn disconnected(&mut self, stream: &str, session: u32, now: u32) -> bool {
        let Some((_, end)) = self.records.get_mut(&(stream.to_owned(), session)) else { return false };
        end.get_or_insert(now + TTL);
        true
    }

    fn expire(&mut self, now: u32) -> Vec<(String, String)> {
        let due = self.records.iter().filter(|(_, (_, end))| end.is_some_and(|end| end <= now));
        let due: Vec<_> = due.map(|(key, _)| key.clone()).collect();
        let gone = due.into_iter().filter_map(|(stream, session)| Some((self.leave(&stream, session)?, stream)));
        gone.map(|(id, stream)| (stream, id)).collect()
    }

    fn info(&self, stream: &str) -> Vec<(String, Option<String>)> {
        let ids = self.records.iter().filter(|((s, _), _)| s == stream).map(|(_, (id, _))| id);
        let mut all: Vec<_> =
            ids.map(|id| (id.clone(), self.infos[&(stream.to_owned(), id.clone())].clone())).collect();
        all.sort();
        all.dedup();
        all
    }
}

#[test]
fn random_use_gives_what_a_simple_model_gives() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut presence, mut model, mut now) = (Presence::new(TTL), Model::default(), 0);
        for step in 0..2000 {
            let (stream, session) = (format!("room:{}", random.random_range(0..5)), random.random_range(0..20));
            let seen = format!("seed {seed} step {step}");
            match random.random_range(0..10) {
                0..5 => {
                    // Mostly the same id for a session.
                    let id = (session / 2 + u32::from(random.random_bool(0.1))).to_string();
                    let text = random.random_bool(0.5).then(|| step.to_string());
                    let joined = presence.join(&stream, sid(session), &id, text.as_deref());
                    assert_eq!(joined, model.join(&stream, session, &id, text.as_deref()), "{seen}");
                }
                5 => {
                    let left = presence.leave(&stream, sid(session)).map(String::from);
                    assert_eq!(left, model.leave(&stream, session), "{seen}");
                }
                6..9 => {
                    let known = presence.disconnected(&stream, sid(session), now);
                    assert_eq!(known, model.disconnected(&stream, session, now), "{seen}");
                }
                _ => {
                    now += random.random_range(0..8);
                    let gone = presence.expire(now);
                    let mut gone: Vec<_> =
                        gone.into_iter().map(|(s, id)| (String::from(s), String::from(id))).collect();
                    let mut wanted = model.expire(now);
                    gone.sort();
                    wanted.sort();
                    assert_eq!(gone, wanted, "{seen}");
                }
            }
            let shown: serde_json::Value = serde_json::from_str(&info(&presence, &stream, true)).unwrap();
            let records = shown["records"].as_array().cloned().unwrap_or_default();
            let text = |info: &serde_json::Value| (!info.is_null()).then(|| info.to_string());
            let mut people: Vec<_> =
                records.iter().map(|r| (r["id"].as_str().unwrap().to_owned(), text(&r["info"]))).collect();
            people.sort();
            assert_eq!(people, model.info(&stream), "{seen}");
            assert_eq!(shown["total"], people.len(), "{seen}");
            assert_eq!(presence.records(), model.records.len(), "{seen}");
        }
        for (stream, session) in model.records.keys() {
            presence.disconnected(stream, sid(*session), now);
        }
        presence.expire(now + TTL);
        assert_nothing_left(&presence);
    }
}
