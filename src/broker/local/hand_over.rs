//! What a broker of this process gives to that of another process that goes on with it: the same epoch, offsets that go on,
//! the same sessions and people.
//!
//! What may be large is given while everything goes on ([`LocalBroker::snapshot`], a piece for each lock), and when nothing is
//! published any more only what has changed since ([`LocalBroker::changes`]). Sessions that live are listed anew by whoever
//! has their connections.

use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Kept, LocalBroker, Memory, Stripe, changed};
use crate::broker::{GivenAway, STRIPES, SessionNote};
use crate::history::KeptStream;
use crate::model::Now;
use crate::presence::PresenceNote;

/// Some of it. Pieces are taken over in the order in which they were made; a later one holds where two speak of the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BrokerPart {
    /// The generation of the storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<Arc<str>>,
    /// The highest offset of all streams whose counter was forgotten.
    #[serde(default)]
    forgotten: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    streams: Vec<KeptStream>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    presence: Vec<PresenceNote>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sessions: Vec<SessionNote>,
    #[serde(default, skip_serializing_if = "GivenAway::is_empty")]
    sent_away: GivenAway,
}

impl BrokerPart {
    fn append(&mut self, other: BrokerPart) {
        let BrokerPart { epoch, forgotten, mut streams, mut presence, mut sessions, sent_away } = other;
        self.epoch = epoch.or(self.epoch.take());
        self.forgotten = self.forgotten.max(forgotten);
        self.streams.append(&mut streams);
        self.presence.append(&mut presence);
        self.sessions.append(&mut sessions);
        if !sent_away.is_empty() {
            self.sent_away = sent_away;
        }
    }
}

/// Everything that a broker keeps, piece after piece. Each piece is as it is when it is taken.
pub struct LocalSnapshot<'a> {
    broker: &'a LocalBroker,
    stripe: usize,
}

impl Iterator for LocalSnapshot<'_> {
    type Item = BrokerPart;

    fn next(&mut self) -> Option<BrokerPart> {
        let memory = self.broker.memory.as_ref()?;
        let at = self.stripe;
        let mut stripe = self.broker.stripes.get(at)?.lock().unwrap_or_else(PoisonError::into_inner);
        self.stripe += 1;
        let mut part = stripe.kept.as_mut().map(Kept::all).unwrap_or_default();
        drop(stripe);
        part.sessions = memory.sessions.all(at);
        if at == 0 {
            part.sent_away = memory.sessions.sent_away(0);
        }
        Some(part)
    }
}

impl Kept {
    fn part(&self, streams: Vec<KeptStream>, presence: Vec<PresenceNote>) -> BrokerPart {
        let (epoch, forgotten) = (Some(Arc::clone(&self.epoch)), self.history.forgotten());
        BrokerPart { epoch, forgotten, streams, presence, ..BrokerPart::default() }
    }

    fn all(&mut self) -> BrokerPart {
        let (streams, presence) = (self.history.all(), self.presence.all());
        self.part(streams, presence)
    }

    fn changes(&mut self) -> BrokerPart {
        let (streams, presence) = (self.history.changed(), self.presence.changed());
        self.part(streams, presence)
    }
}

impl LocalBroker {
    /// Everything. From then on it is noted what changes, which costs memory: until
    /// [`forget_changes`](Self::forget_changes). Without memory there is nothing.
    pub fn snapshot(&self) -> LocalSnapshot<'_> {
        LocalSnapshot { broker: self, stripe: 0 }
    }

    /// What has changed since [`snapshot`](Self::snapshot), which began at `since`, or this was called last.
    pub fn changes(&self, since: Now) -> BrokerPart {
        let mut all = BrokerPart::default();
        let Some(memory) = &self.memory else { return all };
        for (at, stripe) in self.stripes.iter().enumerate() {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let mut part = stripe.kept.as_mut().map(Kept::changes).unwrap_or_default();
            drop(stripe);
            part.sessions = memory.sessions.changed(at);
            all.append(part);
        }
        all.sent_away = memory.sessions.sent_away(since.mono.as_secs() as u32);
        all
    }

    /// Nobody wants to know what changes any more.
    pub fn forget_changes(&self) {
        let Some(memory) = &self.memory else { return };
        memory.sessions.forget_changes();
        for stripe in &self.stripes {
            if let Some(kept) = &mut stripe.lock().unwrap_or_else(PoisonError::into_inner).kept {
                kept.presence.forget_changes();
            }
        }
    }

    /// Goes on with what another broker gave. What is over the bounds of this one is dropped and counted. Nobody is told
    /// anything. To be called before anybody publishes here.
    pub fn take_over(&self, part: BrokerPart) {
        let Some(memory) = &self.memory else { return };
        let BrokerPart { epoch, forgotten, streams, presence, sessions, sent_away } = part;
        for at in 0..STRIPES {
            let mut stripe = self.stripes[at].lock().unwrap_or_else(PoisonError::into_inner);
            let Some(kept) = &mut stripe.kept else { continue };
            // A stream may stand in another stripe here.
            kept.history.begin_behind(forgotten);
            if let Some(epoch) = &epoch {
                kept.epoch = Arc::clone(epoch);
            }
        }
        for stream in streams {
            self.take_over_stream(memory, stream);
        }
        for note in presence {
            let mut stripe = self.lock(note.stream());
            let Stripe { kept: Some(kept) } = &mut *stripe else { continue };
            let before = kept.presence.bytes();
            kept.presence.take_over(note);
            changed(&memory.presence_bytes, before, kept.presence.bytes());
        }
        sessions.into_iter().for_each(|note| memory.sessions.take_over(note, &self.metrics));
        memory.sessions.take_over_sent_away(sent_away);
    }

    fn take_over_stream(&self, memory: &Memory, stream: KeptStream) {
        let mut stripe = self.lock(stream.name());
        let Some(kept) = &mut stripe.kept else { return };
        let before = kept.history.bytes();
        kept.history.take_over(stream);
        self.make_room(memory, &mut kept.history, before);
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemorySettings;
    use super::super::tests::{at, settings};
    use super::*;
    use crate::model::{BrokerReply, HistoryRequest, Position, PresenceChange, Publication, Sid};

    /// One that has begun by itself.
    fn other() -> LocalBroker {
        LocalBroker::new(Some(MemorySettings { epoch: "other".into(), ..settings() }))
    }

    fn published(broker: &LocalBroker, stream: &str, seconds: u64) -> Position {
        let publication = Publication::new(stream, seconds.to_string());
        broker.in_order(publication, at(seconds), |publication| publication.position.unwrap())
    }

    fn sent(part: BrokerPart) -> BrokerPart {
        rmp_serde::from_slice(&rmp_serde::to_vec_named(&part).unwrap()).unwrap()
    }

    fn missed(broker: &LocalBroker, stream: &str, since: Position, seconds: u64) -> String {
        let since = HistoryRequest { since: 0, positions: vec![(stream.into(), since)] };
        match broker.history(&[stream.into()], &since, at(seconds)) {
            Ok(BrokerReply::History(missed)) => {
                let publications = missed[0].publications.iter();
                let text = publications.map(|publication| {
                    let Position { epoch, offset } = publication.position.as_ref().unwrap();
                    format!("{epoch} {offset} {}", &*publication.message)
                });
                text.collect::<Vec<_>>().join(", ")
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_client_finds_in_the_other_process_what_it_missed_and_offsets_go_on() {
        let (ours, theirs) = (LocalBroker::new(Some(settings())), other());
        let first: Vec<Position> = (0..200).map(|n| published(&ours, &format!("s{n}"), 1)).collect();
        ours.snapshot().for_each(|part| theirs.take_over(sent(part)));
        let join = PresenceChange::Join { id: "a".into(), info: Some("7".into()) };
        ours.change_presence("s1", Sid::from_bits(1), join, at(2), |_| {});
        for n in (0..200).step_by(3) {
            published(&ours, &format!("s{n}"), 2);
        }
        theirs.take_over(sent(ours.changes(at(1))));
        for (n, position) in first.into_iter().enumerate() {
            let stream = format!("s{n}");
            assert_eq!(published(&ours, &stream, 3), published(&theirs, &stream, 3), "{n}");
            assert_eq!(missed(&theirs, &stream, position.clone(), 4), missed(&ours, &stream, position, 4), "{n}");
        }
        let who = |broker: &LocalBroker| String::from_utf8(broker.present("s1", true, 1000).unwrap()).unwrap();
        assert_eq!(who(&theirs), who(&ours));
        theirs.measure();
        ours.measure();
        let counts = |broker: &LocalBroker| {
            let metrics = &broker.metrics;
            [&metrics.history_messages_num, &metrics.history_streams_num, &metrics.presence_records_num]
                .map(|gauge| gauge.get())
        };
        assert_eq!(counts(&theirs), counts(&ours));
    }

    #[test]
    fn what_is_over_the_bound_of_the_other_is_dropped_and_counted() {
        let ours = LocalBroker::new(Some(settings()));
        for n in 0..1000 {
            published(&ours, &format!("s{n}"), 1);
        }
        let mut small = settings();
        small.history_bytes_max = 20_000;
        let theirs = LocalBroker::new(Some(small));
        ours.snapshot().for_each(|part| theirs.take_over(part));
        theirs.measure();
        assert!(theirs.metrics.history_bytes.get() <= 20_000 && theirs.metrics.history_evicted_total.get() > 0);
    }

    #[test]
    fn without_memory_there_is_nothing_to_give_and_nothing_is_taken() {
        let (none, ours) = (LocalBroker::default(), LocalBroker::new(Some(settings())));
        published(&ours, "s", 1);
        assert_eq!(none.snapshot().count(), 0);
        ours.snapshot().for_each(|part| none.take_over(part));
        none.forget_changes();
        assert!(none.present("s", true, 10).is_err());
    }
}
