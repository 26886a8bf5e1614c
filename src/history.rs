//! temporary
#![allow(missing_docs)]
use crate::model::SharedText;
use std::collections::HashMap;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Moment {
    pub mono: u32,
    pub wall: u32,
}
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    pub messages_max: u32,
    pub ttl: u32,
    pub stream_bytes_max: usize,
}
pub struct StoredMessage {
    pub offset: u64,
    pub message: SharedText,
    pub kind: Option<SharedText>,
}
#[derive(Debug)]
pub struct Gone;
pub struct History {
    limits: HistoryLimits,
    streams: HashMap<String, Vec<(u64, SharedText, Option<SharedText>, Moment)>>,
}
impl History {
    pub fn new(limits: HistoryLimits) -> History {
        History { limits, streams: HashMap::new() }
    }
    pub fn store(&mut self, stream: &str, message: &SharedText, kind: Option<&SharedText>, at: Moment) -> u64 {
        let list = self.streams.entry(stream.into()).or_default();
        let offset = list.last().map_or(0, |m| m.0) + 1;
        list.push((offset, message.clone(), kind.cloned(), at));
        if list.len() > self.limits.messages_max.max(1) as usize {
            list.remove(0);
        }
        offset
    }
    pub fn head(&self, stream: &str) -> u64 {
        self.streams.get(stream).and_then(|l| l.last()).map_or(0, |m| m.0)
    }
    pub fn after(&self, stream: &str, offset: u64, now: Moment) -> Result<Vec<StoredMessage>, Gone> {
        let head = self.head(stream);
        if offset == 0 || offset > head {
            return Err(Gone);
        }
        if offset == head {
            return Ok(vec![]);
        }
        let list = &self.streams[stream];
        let first = list.iter().find(|m| m.3.mono + self.limits.ttl >= now.mono).map_or(head + 1, |m| m.0);
        if offset + 1 < first {
            return Err(Gone);
        }
        Ok(list
            .iter()
            .filter(|m| m.0 > offset)
            .map(|m| StoredMessage { offset: m.0, message: m.1.clone(), kind: m.2.clone() })
            .collect())
    }
    pub fn since(&self, stream: &str, wall: i64, now: Moment) -> Vec<StoredMessage> {
        let Some(list) = self.streams.get(stream) else { return vec![] };
        list.iter()
            .filter(|m| i64::from(m.3.wall) >= wall && m.3.mono + self.limits.ttl >= now.mono)
            .map(|m| StoredMessage { offset: m.0, message: m.1.clone(), kind: m.2.clone() })
            .collect()
    }
    pub fn expire(&mut self, _now: Moment) {}
    pub fn evict(&mut self, _bytes: usize) -> usize {
        0
    }
    pub fn bytes(&self) -> usize {
        0
    }
    pub fn messages(&self) -> usize {
        self.streams.values().map(Vec::len).sum()
    }
    pub fn streams(&self) -> usize {
        self.streams.len()
    }
}
