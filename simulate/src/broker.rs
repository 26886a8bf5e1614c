//! The broker: checks every question against the model, and answers at once or late, well or badly.

use cableway::model::{BrokerError, BrokerQuestion, BrokerReply, Missed, Publication, Reply, Sid, SlotKey};

use crate::model::{Step, Wanted};
use crate::world::{Open, Sim};

impl Sim {
    /// The shard asks on behalf of a session.
    pub fn on_broker_question(&mut self, key: SlotKey, sid: Sid, question: BrokerQuestion) -> Option<Reply> {
        let Some(c) = self.net.holder_of(key) else {
            self.fail("a question of nobody".into());
            return None;
        };
        self.trace(|| format!("question for client {c}: {question:?}"));
        self.digest_mix(c as u64 + 3_000);
        let sid = sid.to_string();
        if self.clients[c].sid.get_or_insert(sid.clone()) != &sid {
            self.fail(format!("client {c}: two session ids"));
        }
        if self.clients[c].running.is_some() {
            self.fail(format!("client {c}: two questions at once"));
        }
        let wanted = self.wanted_history(c, &question)?;
        self.clients[c].model.waiting = Some(Some(wanted));
        if self.rng.chance(400) {
            let reply = self.broker_answer(&question);
            self.apply(c, &reply);
            return Some(reply);
        }
        self.clients[c].running = Some(key);
        self.running.push((key, c, Open::Broker(question)));
        None
    }

    fn wanted_history(&mut self, c: usize, question: &BrokerQuestion) -> Option<Wanted> {
        let BrokerQuestion::History { streams, since } = question else {
            self.fail(format!("client {c}: {question:?} is not due"));
            return None;
        };
        self.upgraded(c);
        let wanted = loop {
            match self.advance(c) {
                Step::Done => {}
                Step::Blocked(wanted) if wanted.kind.is_none() => break wanted,
                Step::Blocked(_) | Step::Waiting | Step::Empty => {
                    self.fail(format!("client {c}: history is asked for and is not due"));
                    return None;
                }
            }
        };
        let model = &self.clients[c].model;
        let ours = model.find(&wanted.identifier).map(|at| &model.subs[at].streams);
        let same = ours.is_some_and(|ours| ours.iter().map(String::as_str).eq(streams.iter().map(|stream| &**stream)));
        if !same || since.since != 1 {
            self.fail(format!("client {c}: history of {streams:?} since {since:?} instead of {ours:?}"));
        }
        Some(wanted)
    }

    /// What the broker makes of a question.
    pub fn broker_answer(&mut self, question: &BrokerQuestion) -> Reply {
        let BrokerQuestion::History { streams, .. } = question else { return Reply::Broker(Err(BrokerError::NotKept)) };
        Reply::Broker(match self.rng.below(5) {
            0 => Err(BrokerError::NotKept),
            1 => Err(BrokerError::Gone),
            2 => Err(BrokerError::Unavailable),
            _ => {
                let count = self.rng.below(4);
                let missed = (0..count).map(|_| {
                    self.serial += 1;
                    let stream = streams[self.rng.below(streams.len())].clone();
                    let publications = vec![Publication::new(stream.clone(), format!("{{\"h\":{}}}", self.serial))];
                    Missed { stream, head: 0, publications }
                });
                Ok(BrokerReply::History(missed.collect()))
            }
        })
    }
}
