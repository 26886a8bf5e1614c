//! Connections that change their shard: taken apart in one and put together in another, with another clock and another
//! number, in whatever state they are; and connections that a shard adopts with bytes already read.

use std::time::Duration;

use cableway::model::{Answer, SlotKey};
use cableway::shard::{Message, TakenApart};

use super::Run;
use super::posts::Post;
use crate::broker::Outgoing;
use crate::client::{Aim, Move};
use crate::seams::Socket;
use crate::world::Sim;

/// Turns after which a shard has delivered whatever it was given.
const TURNS_MAX: usize = 10_000;

/// A connection that no shard holds, and the answers that are on their way to it.
struct Nowhere {
    taken: TakenApart<Socket>,
    posts: Vec<Post>,
    since: Duration,
}

impl Run {
    /// Some connections, or all, move to another shard or to other slots of their own.
    pub(super) fn move_some(&mut self) -> Result<(), String> {
        let from = self.sim.borrow_mut().rng.below(self.shards.len());
        let Some(to) = self.some_target() else { return Ok(()) };
        // What one of the shards was given and has not delivered would be missed or come twice. Who has no session
        // cannot miss anything.
        let calm = self.sim.borrow_mut().rng.chance(800);
        if calm {
            // One of them may make the other one busy again: somebody leaves and others are told.
            for round in 0.. {
                self.deliver_all(from)?;
                self.deliver_all(to)?;
                if !self.is_busy(from) {
                    break;
                }
                if round == TURNS_MAX {
                    return Err("two shards make each other busy for ever".into());
                }
            }
        }
        if self.sim.borrow_mut().rng.chance(500) {
            self.answer_some(3);
        }
        self.flush();
        self.open_turn(from, 0);
        let mut apart = self.take_some(from, to, calm)?;
        let in_one_turn = from == to && self.sim.borrow_mut().rng.chance(300);
        if !in_one_turn {
            self.close_turn(from);
            self.meanwhile()?;
            self.open_turn(to, 0);
        }
        self.sim.borrow_mut().rng.shuffle(&mut apart);
        for nowhere in apart {
            self.put_together(nowhere, to)?;
        }
        self.close_turn(to);
        Ok(())
    }

    /// A shard that connections may move to: one that is being emptied takes nobody.
    fn some_target(&self) -> Option<usize> {
        let sim = &mut *self.sim.borrow_mut();
        let emptied = |s: usize| {
            let told = self.shards[s].inbox.iter().any(|post| matches!(post, Post::Drain(_)));
            told || sim.sites[s].drained_by.is_some()
        };
        let targets: Vec<usize> = (self.live_from..self.shards.len()).filter(|&s| !emptied(s)).collect();
        (!targets.is_empty()).then(|| sim.rng.pick(&targets))
    }

    /// A shard takes publications and demands to disconnect out of its inbox, with what stands before them, and carries
    /// them out.
    fn deliver_all(&mut self, s: usize) -> Result<(), String> {
        for _ in 0..TURNS_MAX {
            self.flush();
            if !self.is_busy(s) {
                let site = &mut self.sim.borrow_mut().sites[s];
                site.delivered = site.got;
                return Ok(());
            }
            self.turn(s);
        }
        Err(format!("shard {s} does not deliver what it has"))
    }

    /// Whether a shard has or is about to get something that it has to deliver or carry out.
    fn is_busy(&self, s: usize) -> bool {
        let is_work = |post: &Post| matches!(post, Post::Publish(..) | Post::Disconnect(_) | Post::Yield(..));
        self.shards[s].shard.is_delivering() || self.shards[s].inbox.iter().any(is_work)
    }

    /// Takes some connections apart, in the middle of a turn.
    fn take_some(&mut self, from: usize, to: usize, calm: bool) -> Result<Vec<Nowhere>, String> {
        let keys: Vec<SlotKey> = self.shards[from].shard.keys().collect();
        let share = self.sim.borrow_mut().rng.pick(&[100, 500, 1_000]);
        let mut apart = Vec::new();
        for key in keys {
            let chosen = {
                let sim = &mut *self.sim.borrow_mut();
                sim.rng.chance(share) && (calm || sim.has_no_session(key))
            };
            if !chosen {
                continue;
            }
            let Some(taken) = self.shards[from].shard.take_apart(key) else {
                return Err(format!("{key:?} cannot be taken apart"));
            };
            let c = taken.socket.conn;
            let inbox = std::mem::take(&mut self.shards[from].inbox);
            let (posts, rest) = inbox.into_iter().partition::<Vec<_>, _>(|post| post.is_for(key));
            self.shards[from].inbox = rest.into();
            let sim = &mut *self.sim.borrow_mut();
            sim.clients[c].was_drained |= sim.sites[from].drained_by.is_some();
            sim.moved(c, to);
            sim.clients[c].is_nowhere = true;
            apart.push(Nowhere { taken, posts, since: sim.mono });
        }
        Ok(apart)
    }

    /// Time passes and the others go on while nobody holds the connections that are on their way. Nothing is published:
    /// nobody would follow for them.
    fn meanwhile(&mut self) -> Result<(), String> {
        let times = self.sim.borrow_mut().rng.below(4);
        for _ in 0..times {
            let sim = &mut *self.sim.borrow_mut();
            sim.mono += Duration::from_millis(sim.rng.between(0, 50) as u64);
            if !sim.clients.is_empty() {
                let c = sim.rng.below(sim.clients.len());
                sim.client_step(c);
            }
        }
        let leap = self.sim.borrow_mut().rng.pick(&[0, 0, 0, 1_000, 100_000]);
        if leap > 0 {
            self.go_on()?;
            let sim = &mut *self.sim.borrow_mut();
            sim.mono += Duration::from_millis(sim.rng.between(1, leap) as u64);
            sim.trace(|| "the clock leaps while some are nowhere".into());
        }
        self.go_on()
    }

    /// Puts a connection together, in the middle of a turn, and sends on what is on its way to it.
    fn put_together(&mut self, nowhere: Nowhere, to: usize) -> Result<(), String> {
        let Nowhere { taken: TakenApart { key, socket, state }, posts, since } = nowhere;
        let c = socket.conn;
        {
            let sim = &mut *self.sim.borrow_mut();
            let together = sim.mono;
            sim.clients[c].clock.moves.push(Move { apart: since, together });
            sim.arriving = Some((c, key));
        }
        let together = self.shards[to].shard.put_together(socket, &state);
        let new = together.map_err(|(_, error)| format!("client {c} cannot be put together: {error}"))?;
        {
            let sim = &mut *self.sim.borrow_mut();
            if sim.arriving.take().is_some() {
                sim.rename(c, key, new);
            }
            sim.clients[c].is_nowhere = false;
        }
        self.shards[to].inbox.extend(posts.into_iter().map(|post| post.readdressed(new)));
        Ok(())
    }

    /// Somebody else has accepted the next connection of a shard's listener and read something from it, or nothing, and
    /// gives it to any shard. Tells whether it was so.
    pub(super) fn accepted_elsewhere(&mut self, s: usize) -> bool {
        let sim = &mut *self.sim.borrow_mut();
        if !sim.rng.chance(100) {
            return false;
        }
        let Some(conn) = sim.net.backlogs[s].pop_front() else { return false };
        let to = sim.rng.between(self.live_from, self.shards.len() - 1);
        if to != s {
            sim.moved(conn, to);
        }
        let most = sim.rng.pick(&[0, 1, 40, 1_000, 50_000]);
        let mut read = vec![0; sim.rng.between(0, most)];
        let got = sim.net.server_read(conn, &mut read, sim.mono).unwrap_or(0);
        read.truncate(got);
        self.shards[to].inbox.push_back(Post::Adopt(conn, read));
        true
    }
}

impl Sim {
    /// Whether a connection surely has no session: it is no client of the cable, its request has not come whole, or it
    /// has been told that all is over.
    fn has_no_session(&mut self, key: SlotKey) -> bool {
        let Some(c) = self.net.holder_of(key) else { return false };
        let client = &self.clients[c];
        let asks = self.net.conn(c).sent.windows(4).any(|four| four == b"\r\n\r\n");
        client.aim != Aim::Cable || client.saw_close || !asks
    }

    /// A connection has another key; whoever is to answer its question has to know.
    pub fn rename(&mut self, c: usize, from: SlotKey, to: SlotKey) {
        self.net.rename(c, to);
        for (key, c, _) in &mut self.running {
            if *key == from {
                *key = to;
                self.clients[*c].running = Some(to);
            }
        }
        self.canceled.iter_mut().filter(|(key, ..)| *key == from).for_each(|(key, ..)| *key = to);
        for (key, c) in &mut self.in_flight {
            if *key == from {
                *key = to;
                self.clients[*c].running = Some(to);
            }
        }
        for outgoing in &mut self.outgoing {
            if let Outgoing::Answer(key, _) = outgoing
                && *key == from
            {
                *key = to;
            }
        }
        let client = &mut self.clients[c];
        client.answered = client.answered.map(|key| if key == from { to } else { key });
        self.renamed.push((from, to));
    }
}

impl Post {
    fn is_for(&self, wanted: SlotKey) -> bool {
        let key = match self {
            Post::Answer(key) | Post::Late(key, _) | Post::Said(key, _) => Some(*key),
            Post::Again(Message::Answer(answer)) => Some(answer.key),
            _ => None,
        };
        key == Some(wanted)
    }

    pub(super) fn readdressed(self, to: SlotKey) -> Post {
        match self {
            Post::Answer(_) => Post::Answer(to),
            Post::Late(_, question) => Post::Late(to, question),
            Post::Said(_, reply) => Post::Said(to, reply),
            Post::Again(Message::Answer(answer)) => Post::Again(Message::Answer(Answer { key: to, ..answer })),
            other => other,
        }
    }
}
