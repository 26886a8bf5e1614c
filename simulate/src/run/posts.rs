//! What is on its way to the shards' inboxes, and what it means when it gets there.
//!
//! Publications (to the shards that follow their streams) and remote disconnects are posted at once, in one order; each
//! shard takes them at its own pace. What a client may or must get is decided when its own shard gets a publication.

use std::sync::Arc;
use std::time::Duration;

use cableway::model::{Answer, Publication, RemoteDisconnect, Reply, ResumeTicket, Sid, SlotKey};
use cableway::shard::{Delivery, Message};

use super::Run;
use crate::broker::Outgoing;
use crate::client::Aim;
use crate::model::Phase;
use crate::net::ConnId;
use crate::seams::{Socket, incoming};
use crate::world::{Open, Published, Sim};

/// Something on its way to a shard's inbox.
pub(super) enum Post {
    Answer(SlotKey),
    /// An answer that nobody waits for.
    Late(SlotKey, Open),
    /// What the broker has said, behind everything that it covers.
    Said(SlotKey, Reply),
    Yield(u32, ResumeTicket),
    /// With its number, and which time it was that the shard followed the stream when it was published: if it did not, it does
    /// not get it.
    Publish(usize, Arc<Publication>, Option<u64>),
    Disconnect(RemoteDisconnect),
    /// A connection that somebody else has accepted, and the bytes that were read of it.
    Adopt(ConnId, Vec<u8>),
    Drain(Duration),
    /// What had reached another shard, which has left its connections.
    Again(Message<Socket>),
}

impl Run {
    /// When which shard is told to drain, and over what time: none, all at once, or one after the other.
    pub(super) fn draw_drains(&mut self) -> Vec<(usize, usize, Duration)> {
        let sim = &mut *self.sim.borrow_mut();
        if !sim.rng.chance(200) {
            return Vec::new();
        }
        let steps = sim.scenario.steps;
        let over = Duration::from_millis(sim.rng.pick(&[0, 100, 5_000]));
        let apart = if sim.rng.chance(500) { sim.rng.between(1, steps / 20) } else { 0 };
        let mut order: Vec<usize> = (0..self.shards.len()).collect();
        sim.rng.shuffle(&mut order);
        order.into_iter().enumerate().map(|(n, s)| (steps * 4 / 5 + n * apart, s, over)).collect()
    }

    /// Some of the questions that are open are answered.
    pub(super) fn answer_some(&mut self, most: usize) {
        self.flush();
        self.decide_some(most);
        self.flush();
    }

    fn decide_some(&mut self, most: usize) {
        let sim = &mut *self.sim.borrow_mut();
        for _ in 0..most.min(sim.running.len()) {
            let at = sim.rng.below(sim.running.len());
            let key = sim.running[at].0;
            if sim.broker.is_some() && matches!(sim.running[at].2, Open::Broker(_)) {
                let (key, c, question) = sim.running.remove(at);
                if let Open::Broker(question) = question {
                    sim.in_flight.push((key, c));
                    sim.broker_decides(key, c, question);
                }
                continue;
            }
            let inbox = &mut self.shards[usize::from(key.shard)].inbox;
            let known = inbox.iter().any(|post| matches!(post, Post::Answer(other) if *other == key));
            if !known {
                inbox.push_back(Post::Answer(key));
            }
        }
        for (key, c, call) in std::mem::take(&mut sim.canceled) {
            // Late ones stay away long enough for their slots to be used again.
            match (sim.rng.below(20), &call) {
                (0..=1, Open::Broker(question)) if sim.broker.is_some() => sim.broker_decides(key, c, question.clone()),
                (0..=1, _) => self.shards[usize::from(key.shard)].inbox.push_back(Post::Late(key, call)),
                (2, _) => {}
                _ => sim.canceled.push((key, c, call)),
            }
        }
    }

    /// What the broker has for the shards is on its way to them.
    pub(super) fn flush(&mut self) {
        if self.sim.borrow().clients.iter().any(|client| client.is_nowhere) {
            return;
        }
        loop {
            let next = self.sim.borrow_mut().outgoing.pop_front();
            match next {
                Some(Outgoing::Answer(key, reply)) => {
                    self.shards[usize::from(key.shard)].inbox.push_back(Post::Said(key, reply));
                }
                // Whoever is asked in the place of a shard that has left finds nothing, and asks who has it.
                Some(Outgoing::Yield(place, ticket)) if usize::from(place.shard) < self.live_from => {
                    self.shards[self.live_from].inbox.push_back(Post::Yield(u32::MAX, ticket));
                }
                Some(Outgoing::Yield(place, ticket)) => {
                    self.shards[usize::from(place.shard)].inbox.push_back(Post::Yield(place.index, ticket));
                }
                Some(Outgoing::Event(event)) => self.post_publication(Arc::new(event)),
                None => return,
            }
        }
    }

    /// The app publishes one thing or many; whispers that have left their shards go first.
    pub(super) fn publish(&mut self) {
        self.flush();
        let whispered = std::mem::take(&mut self.sim.borrow_mut().whispered);
        whispered.into_iter().for_each(|publication| self.post_publication(publication));
        let (count, long) = {
            let sim = &mut *self.sim.borrow_mut();
            let count = match sim.rng.below(100) {
                0 if sim.scenario.clients < 10 => 2_500,
                1..=5 => sim.rng.between(20, 100),
                _ => sim.rng.between(1, 3),
            };
            (count, sim.scenario.long_publications && count < 10)
        };
        for _ in 0..count {
            let publication = self.sim.borrow_mut().draw_publication(long);
            self.post_publication(Arc::new(publication));
        }
    }

    /// A publication gets its place in the one order, and is on its way to every shard that follows its stream now.
    fn post_publication(&mut self, publication: Arc<Publication>) {
        let sim = &mut *self.sim.borrow_mut();
        let p = sim.published.len();
        let publication = match sim.broker {
            Some(_) => Arc::new(sim.stored(Publication::clone(&publication), p)),
            None => publication,
        };
        sim.trace(|| format!("publication {p} is posted: {publication:?}"));
        let excluded = publication.exclude.map(|sid| sid.to_string());
        let whisperer = serde_json::from_str::<serde_json::Value>(&publication.message)
            .ok()
            .and_then(|value| value["w"][0].as_u64())
            .map(|c| c as usize);
        let by_sid = sim.clients.iter().position(|client| excluded.is_some() && client.sid == excluded);
        sim.by_text.entry(publication.message.to_string()).or_default().push(p);
        sim.published.push(Published {
            stream: publication.stream.to_string(),
            text: publication.message.to_string(),
            kind: publication.kind.as_ref().map(|kind| kind.to_string()),
            exclude: whisperer.or(by_sid),
            offset: publication.position.as_ref().map(|position| position.offset),
        });
        let key = sim.scenario.settings.stream_hasher.key(&publication.stream);
        for (s, driven) in self.shards.iter_mut().enumerate() {
            let follows = sim.sites[s].followed.get(&key).copied();
            match follows {
                Some(_) => sim.sites[s].given += 1,
                // Nobody there may have a subscription to it; whoever has misses it.
                None => sim.note_publication_at(s, p),
            }
            driven.inbox.push_back(Post::Publish(p, Arc::clone(&publication), follows));
        }
    }

    /// The app wants somebody sent away, wherever they are.
    pub(super) fn demand_disconnect(&mut self) {
        let sim = &mut *self.sim.borrow_mut();
        let reconnect = sim.rng.chance(500);
        let present: Vec<&String> = sim.sites.iter().flat_map(|site| &site.present).collect();
        let identifiers: Arc<str> = match sim.rng.below(present.len() + 1) {
            at if at < present.len() && sim.rng.chance(400) => present[at].as_str().into(),
            _ => "nobody".into(),
        };
        if let Some(sessions) = sim.broker.as_ref().and_then(|broker| broker.sessions()) {
            sessions.send_away(&identifiers, sim.broker_now());
            sim.memory.send_away(&identifiers, sim.mono.as_secs());
        }
        let disconnect = RemoteDisconnect { identifiers, reconnect };
        for driven in &mut self.shards {
            driven.inbox.push_back(Post::Disconnect(disconnect.clone()));
        }
    }

    /// The first thing in a shard's inbox reaches the shard.
    pub(super) fn deliver_next(&mut self, s: usize) {
        let Some(post) = self.shards[s].inbox.pop_front() else { return };
        let message = match post {
            Post::Adopt(conn, read) => {
                self.sim.borrow_mut().adopts(s, conn, &read);
                Some(Message::Adopt { incoming: incoming(&self.sim, conn), read })
            }
            post => self.sim.borrow_mut().arrives(s, post),
        };
        if let Some(message) = message {
            self.shards[s].shard.receive(message);
        }
    }
}

impl Sim {
    fn draw_publication(&mut self, long: bool) -> Publication {
        self.serial += 1;
        let pad = if long { self.rng.pick(&[0, 100, 5_000, 30_000]) } else { self.rng.pick(&[0, 0, 20]) };
        let serial = self.serial;
        let message = match pad {
            0 => format!("{{\"p\":{serial}}}"),
            n => format!("{{\"p\":{serial},\"pad\":\"{}\"}}", "p".repeat(n)),
        };
        let exclude = match self.rng.chance(200) && !self.clients.is_empty() {
            true => self.clients[self.rng.below(self.clients.len())].sid.as_deref().and_then(Sid::parse),
            false => None,
        };
        let stream = self.scenario.streams[self.rng.below(self.scenario.streams.len())].as_str();
        let kind = self.rng.chance(50).then(|| "announce".into());
        let transient = self.broker.is_some() && self.rng.chance(100);
        Publication { exclude, kind, transient, ..Publication::new(stream, message) }
    }

    /// A publication as far as the clients of one shard are concerned.
    fn note_publication_at(&mut self, s: usize, p: usize) {
        for c in 0..self.clients.len() {
            if self.clients[c].shard == s {
                self.note_publication(c, p, false);
            }
        }
    }

    /// A shard takes a connection that somebody else has accepted.
    fn adopts(&mut self, s: usize, conn: ConnId, read: &[u8]) {
        self.trace(|| format!("shard {s} adopts {conn} with {} bytes", read.len()));
        self.accepted += 1;
        self.clients[conn].clock.accepted_at = Some(self.mono);
    }

    /// Notes what must come of a post that reaches a shard; gives the message for it.
    fn arrives(&mut self, s: usize, post: Post) -> Option<Message<Socket>> {
        Some(match post {
            Post::Answer(key) => {
                // Canceled in the meantime: it comes as a late answer, or not at all.
                let at = self.running.iter().position(|(running, ..)| *running == key)?;
                let (key, c, question) = self.running.remove(at);
                self.clients[c].running = None;
                self.clients[c].answered = matches!(question, Open::Broker(_)).then_some(key);
                let reply = self.make_answer(&question);
                self.trace(|| format!("answer for client {c}: {reply:?}"));
                self.apply(c, &reply);
                Message::Answer(Answer { key, reply })
            }
            Post::Said(key, reply) => {
                if let Some(at) = self.in_flight.iter().position(|(waiting, _)| *waiting == key) {
                    let (_, c) = self.in_flight.remove(at);
                    (self.clients[c].running, self.clients[c].answered) = (None, Some(key));
                    self.trace(|| format!("answer for client {c}: {reply:?}"));
                    self.apply(c, &reply);
                }
                Message::Answer(Answer { key, reply })
            }
            Post::Yield(index, ticket) => Message::Yield { index, ticket },
            Post::Late(key, question) => {
                self.trace(|| "a late answer".into());
                let reply = self.make_answer(&question);
                Message::Answer(Answer { key, reply })
            }
            Post::Publish(p, publication, follows) => {
                if self.sites[s].got != p {
                    self.fail(format!("the run itself is wrong: shard {s} gets publication {p} out of order"));
                }
                self.sites[s].got = p + 1;
                let follows = follows?;
                let key = self.scenario.settings.stream_hasher.key(&publication.stream);
                // If those who followed the stream have gone since, it is for nobody: who has come after them and got it would
                // miss what was published between.
                let is_for_some = self.sites[s].followed.get(&key) == Some(&follows);
                self.trace(|| format!("publication {p} reaches shard {s}, and is for somebody: {is_for_some}"));
                if is_for_some {
                    self.note_publication_at(s, p);
                }
                let publication = Publication::clone(&publication);
                Message::Publication(Arc::new(Delivery { publication, permit: None }))
            }
            Post::Disconnect(disconnect) => {
                self.trace(|| format!("shard {s}: {disconnect:?}"));
                self.evicted.insert((disconnect.identifiers.to_string(), disconnect.reconnect));
                for c in 0..self.clients.len() {
                    let client = &self.clients[c];
                    let open = client.upgraded_at.is_some() && client.model.phase == Phase::Open;
                    let here = client.shard == s && client.aim == Aim::Cable;
                    if open && here && self.identifiers(c) == *disconnect.identifiers {
                        self.clients[c].must_go = true;
                    }
                }
                Message::Disconnect(disconnect)
            }
            Post::Again(message) => {
                if let Message::Answer(answer) = &message
                    && let Some(c) = self.net.holder_of(answer.key)
                {
                    self.clients[c].is_followed_by_answer = false;
                }
                message
            }
            Post::Adopt(..) => return None,
            Post::Drain(over) => {
                self.trace(|| format!("shard {s} drains over {over:?}"));
                self.sites[s].drained_by.get_or_insert(self.mono + over);
                Message::Drain { over }
            }
        })
    }
}
