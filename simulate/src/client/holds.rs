//! Subscriptions that catch up, as their clients see it: what waits meanwhile and what does not come after all, and that
//! positions follow each other without a gap and without a double.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use cableway::model::{BrokerReply, Publication, Reply};

use crate::kept::EPOCH;
use crate::model::{Asks, Wanted, quoted};
use crate::world::Sim;

/// Publications that may wait for one subscription, and bytes of them, before its client is closed as too slow.
const HELD_MAX: usize = 1024;
const HELD_BYTES_MAX: usize = 1 << 20;

/// A subscription for which publications wait.
pub struct Hold {
    /// Publications that its shard got before this one may have been delivered before.
    since: usize,
    began_at: Duration,
    /// Since its session is back: so long as its client may be about to ask.
    by_resume: bool,
    count: usize,
    bytes: usize,
}

/// What a client knows of positions.
#[derive(Default)]
pub struct Positions {
    /// By identifier and stream: the last message that came.
    had: BTreeMap<(String, String), u64>,
    /// The next one must follow this.
    chain: BTreeMap<(String, String), u64>,
    /// By identifier, requests for history that the client has not read the answer to; which of them began in the middle.
    asked: BTreeMap<String, VecDeque<bool>>,
    /// Identifiers whose streams were or may have been stopped at some time: gaps are right.
    gappy: BTreeSet<String>,
}

impl Positions {
    /// What another connection of the same client takes over.
    pub fn handed_on(&self) -> Positions {
        Positions { had: self.had.clone(), ..Positions::default() }
    }

    /// The positions under an identifier.
    pub fn under(&self, identifier: &str) -> Vec<(String, String, u64)> {
        let had = self.had.iter().filter(|((known, _), _)| known == identifier);
        had.map(|((_, stream), offset)| (stream.clone(), EPOCH.into(), *offset)).collect()
    }

    pub fn identifiers(&self) -> BTreeSet<String> {
        self.had.keys().map(|(identifier, _)| identifier.clone()).collect()
    }

    /// A stream of a subscription is or may be stopped: later ones need not follow earlier ones.
    pub fn stopped(&mut self, identifier: &str) {
        self.gappy.insert(identifier.into());
        self.had.retain(|(known, _), _| known != identifier);
        self.chain.retain(|(known, _), _| known != identifier);
    }
}

impl Sim {
    /// Publication `p` as it is written under an identifier.
    pub fn published_as(&self, identifier: &str, p: usize) -> String {
        let published = &self.published[p];
        let kind = published.kind.as_ref().map_or(String::new(), |kind| format!("\"type\":{},", quoted(kind)));
        let position = published.offset.map_or(String::new(), |offset| {
            format!(",\"stream_id\":{},\"epoch\":\"{EPOCH}\",\"offset\":{offset}", quoted(&published.stream))
        });
        format!("{{{kind}\"identifier\":{},\"message\":{}{position}}}", quoted(identifier), published.text)
    }

    /// From now on publications under this identifier wait.
    pub fn holds(&mut self, c: usize, identifier: String, by_resume: bool) {
        let since = self.sites[self.clients[c].shard].got;
        let hold = Hold { since, began_at: self.mono, by_resume, count: 0, bytes: 0 };
        self.clients[c].holding.entry(identifier).or_insert(hold);
    }

    /// Whether a hold may have ended because its client did not ask within two pings.
    fn may_have_ended(&self, hold: &Hold) -> bool {
        let interval = Duration::from_millis(self.scenario.settings.session.ping_interval_ms);
        hold.by_resume && self.mono - hold.began_at >= (interval / 3).saturating_sub(super::deadlines::TICK * 2)
    }

    /// History is asked for.
    pub fn begins_to_hold(&mut self, c: usize, wanted: &Wanted) {
        let Asks::History(ask) = &wanted.asks else { return };
        let identifier = &wanted.identifier;
        let held = self.clients[c].holding.get(identifier);
        let is_sure = held.is_some_and(|hold| hold.by_resume && !self.may_have_ended(hold));
        if !is_sure {
            // It may be that it waits still, or again; what came before may have been delivered.
            self.clients[c].holding.remove(identifier);
        }
        self.holds(c, identifier.clone(), false);
        let client = &mut self.clients[c];
        if let Some(hold) = client.holding.get_mut(identifier) {
            hold.by_resume = false;
        }
        let Some(sub) = client.model.find(identifier).map(|at| &client.model.subs[at]) else { return };
        let positions = &mut client.positions;
        let in_the_middle = !is_sure && !wanted.riding;
        positions.asked.entry(identifier.clone()).or_default().push_back(in_the_middle);
        if in_the_middle {
            return;
        }
        for (stream, _, offset) in ask.positions.iter().filter(|(stream, ..)| sub.streams.contains(stream)) {
            positions.chain.insert((identifier.clone(), stream.clone()), *offset);
        }
    }

    /// History was answered: what it covers does not come any more, and what waited comes behind it.
    pub fn caught_up(&mut self, c: usize, identifier: &str, reply: &Reply) {
        let Some(hold) = self.clients[c].holding.remove(identifier) else { return };
        let floor = self.clients[c].model.expected_total;
        let empty = Vec::new();
        let missed = match reply {
            Reply::Broker(Ok(BrokerReply::History(missed))) => missed,
            _ => &empty,
        };
        let (from, to) = ((identifier.to_owned(), 0), (identifier.to_owned(), usize::MAX));
        let keys: Vec<_> = self.clients[c].ledger.range(from..=to).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let published = &self.published[key.1];
            let Some(offset) = published.offset else { continue };
            let missed = missed.iter().find(|missed| *missed.stream == *published.stream);
            let ends = missed.and_then(|missed| {
                let at = |publication: Option<&Publication>| Some(publication?.position.as_ref()?.offset);
                Some((at(missed.publications.first())?, at(missed.publications.last())?))
            });
            let is_in = ends.is_some_and(|(first, last)| (first..=last).contains(&offset));
            let is_covered = is_in || missed.is_some_and(|missed| offset <= missed.had);
            let waited = key.1 >= hold.since;
            let comes_first = ends.is_some_and(|(first, _)| offset < first);
            let ledger = &mut self.clients[c].ledger;
            if is_covered && waited {
                ledger.remove(&key);
            } else if let Some(due) = ledger.get_mut(&key) {
                due.must &= !is_covered;
                due.floor = if waited && !comes_first { floor } else { due.floor };
            }
        }
    }

    /// A publication that a shard has got waits for a subscription.
    pub(super) fn note_held(&mut self, c: usize, identifier: &str, bytes: usize) {
        let Some(hold) = self.clients[c].holding.get_mut(identifier) else { return };
        hold.count += 1;
        hold.bytes += bytes;
        if hold.count > HELD_MAX || hold.bytes > HELD_BYTES_MAX {
            self.clients[c].may_overflow = true;
        }
    }

    /// The client has read an answer to a request for history.
    pub(super) fn history_read(&mut self, c: usize, identifier: &str, is_confirmed: bool) {
        let positions = &mut self.clients[c].positions;
        if let Some(asked) = positions.asked.get_mut(identifier) {
            asked.pop_front();
        }
        if !is_confirmed {
            positions.chain.retain(|(known, _), _| known != identifier);
        }
    }

    /// The client has read publication `p`, live or out of the history: it must be the next one.
    pub(super) fn follows(&mut self, c: usize, identifier: &str, p: usize) {
        let published = &self.published[p];
        let Some(offset) = published.offset else { return };
        let stream = published.stream.clone();
        let key = (identifier.to_owned(), stream.clone());
        let positions = &self.clients[c].positions;
        let is_loose = positions.asked.get(identifier).is_some_and(|asked| asked.contains(&true));
        let is_strict = !is_loose && !positions.gappy.contains(identifier);
        if let Some(&before) = positions.chain.get(&key).filter(|_| is_strict) {
            let between = before + 1..offset;
            let left_out = |offset| {
                let between =
                    self.published.iter().find(|other| other.stream == stream && other.offset == Some(offset));
                between.is_none_or(|other| other.exclude == Some(c))
            };
            if offset <= before || !between.clone().all(left_out) {
                return self.fail(format!("client {c}: offset {offset} of {stream} under {identifier} after {before}"));
            }
        }
        let positions = &mut self.clients[c].positions;
        positions.chain.insert(key.clone(), offset);
        if !positions.gappy.contains(identifier) {
            positions.had.insert(key, offset);
        }
    }
}
