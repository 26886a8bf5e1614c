//! temporary
#![allow(missing_docs)]
use crate::model::Sid;
use crate::proto::json::push_string;
pub struct Presence {
    ttl: u32,
    records: Vec<(String, Sid, String, Option<String>, Option<u32>)>,
}
pub enum Join {
    Came,
    Known,
    OtherId,
}
impl Presence {
    pub fn new(ttl: u32) -> Presence {
        Presence { ttl, records: vec![] }
    }
    pub fn join(&mut self, stream: &str, sid: Sid, id: &str, info: Option<&str>) -> Join {
        let known = self.records.iter().any(|r| r.0 == stream && r.2 == id);
        for r in self.records.iter_mut().filter(|r| r.0 == stream && r.2 == id) {
            r.3 = info.map(Into::into);
        }
        if let Some(r) = self.records.iter_mut().find(|r| r.0 == stream && r.1 == sid) {
            if r.2 != id {
                return Join::OtherId;
            }
            r.4 = None;
            return Join::Known;
        }
        self.records.push((stream.into(), sid, id.into(), info.map(Into::into), None));
        if known { Join::Known } else { Join::Came }
    }
    pub fn leave(&mut self, stream: &str, sid: Sid) -> Option<Box<str>> {
        let at = self.records.iter().position(|r| r.0 == stream && r.1 == sid)?;
        let gone = self.records.remove(at);
        (!self.records.iter().any(|r| r.0 == stream && r.2 == gone.2)).then(|| gone.2.into())
    }
    pub fn disconnected(&mut self, stream: &str, sid: Sid, now: u32) -> bool {
        let ttl = self.ttl;
        let r = self.records.iter_mut().find(|r| r.0 == stream && r.1 == sid);
        r.map(|r| r.4 = Some(now + ttl)).is_some()
    }
    pub fn expire(&mut self, now: u32) -> Vec<(Box<str>, Box<str>)> {
        let over: Vec<_> =
            self.records.iter().filter(|r| r.4.is_some_and(|at| at <= now)).map(|r| (r.0.clone(), r.1)).collect();
        over.into_iter().filter_map(|(s, sid)| Some((s.as_str().into(), self.leave(&s, sid)?))).collect()
    }
    pub fn write_info(&self, stream: &str, records: bool, out: &mut Vec<u8>) {
        let mut seen: Vec<(&str, Option<&str>)> = vec![];
        for r in self.records.iter().filter(|r| r.0 == stream) {
            if !seen.iter().any(|s| s.0 == r.2) {
                seen.push((&r.2, r.3.as_deref()));
            }
        }
        out.extend_from_slice(format!("{{\"type\":\"info\",\"total\":{}", seen.len()).as_bytes());
        if records && !seen.is_empty() {
            out.extend_from_slice(b",\"records\":[");
            for (at, (id, info)) in seen.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(format!("{{\"info\":{},\"id\":", info.unwrap_or("null")).as_bytes());
                push_string(out, id);
                out.push(b'}');
            }
            out.push(b']');
        }
        out.push(b'}');
    }
    pub fn bytes(&self) -> usize {
        0
    }
    pub fn records(&self) -> usize {
        self.records.len()
    }
    pub fn streams(&self) -> usize {
        0
    }
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}
pub fn write_join(out: &mut Vec<u8>, id: &str, info: Option<&str>) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, id);
    if let Some(info) = info {
        out.extend_from_slice(b",\"info\":");
        out.extend_from_slice(info.as_bytes());
    }
    out.extend_from_slice(b",\"type\":\"join\"}");
}
pub fn write_leave(out: &mut Vec<u8>, id: &str) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, id);
    out.extend_from_slice(b",\"type\":\"leave\"}");
}
