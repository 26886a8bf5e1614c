//! Connections that change their shard: taken apart in one and put together in another, with another clock and another
//! number, in whatever state they are; and connections that a shard adopts with bytes already read.

use cableway::shard::{Message, TakenApart};

use super::Run;
use super::posts::Post;
use crate::seams::{Socket, incoming};

impl Run {
    /// Some connections move, to another shard or to another slot of their own.
    pub(super) fn move_some(&mut self) -> Result<(), String> {
        // A publication that one of the shards was given and has not delivered would be missed or come twice, and a shard
        // that is being emptied takes nobody.
        self.deliver_all()?;
        let shards = self.shards.len();
        let drains = |post: &Post| matches!(post, Post::Drain(_));
        let emptied = |run: &Run, s: usize| {
            run.sim.borrow().sites[s].drained_by.is_some() || run.shards[s].inbox.iter().any(drains)
        };
        let mut apart: Vec<(usize, TakenApart<Socket>)> = Vec::new();
        for s in (0..shards).filter(|&s| !emptied(self, s)).collect::<Vec<_>>() {
            self.shards[s].shard.begin_turn();
            let keys: Vec<_> = self.shards[s].shard.keys().collect();
            for key in keys {
                if self.sim.borrow_mut().rng.chance(500) {
                    apart.extend(self.shards[s].shard.take_apart(key).map(|taken| (s, taken)));
                }
            }
        }
        // Nobody holds them for a while.
        let ms = self.sim.borrow_mut().rng.pick(&[0, 0, 1, 30]);
        self.sim.borrow_mut().mono += std::time::Duration::from_millis(ms);
        for s in 0..shards {
            self.shards[s].shard.begin_turn();
        }
        for (from, TakenApart { key, socket, state }) in apart {
            let targets: Vec<usize> = (0..shards).filter(|&s| !emptied(self, s)).collect();
            let to = self.sim.borrow_mut().rng.pick(&targets);
            let c = socket.conn;
            // Deadlines stand still in between, and are rounded up to the ticks of the other clock.
            let late = std::time::Duration::from_millis(ms + cableway::model::TICK_MS);
            self.sim.borrow_mut().clients[c].late += late;
            if to != from {
                self.sim.borrow_mut().moved(c, to);
            }
            let together = self.shards[to].shard.put_together(socket, &state);
            let new = together.map_err(|(_, error)| format!("client {c} cannot be put together: {error}"))?;
            self.sim.borrow_mut().rekey(key, new);
            self.readdress(key, new);
        }
        for s in 0..shards {
            self.shards[s].shard.end_turn();
        }
        Ok(())
    }

    /// All shards take what is in their inboxes and deliver it.
    fn deliver_all(&mut self) -> Result<(), String> {
        let mut turns = 0;
        while self.shards.iter().any(|driven| driven.shard.is_delivering() || !driven.inbox.is_empty()) {
            turns += 1;
            if turns > 10_000 {
                return Err("the shards do not deliver what they have".into());
            }
            for s in 0..self.shards.len() {
                self.turn(s);
            }
        }
        let sim = &mut *self.sim.borrow_mut();
        for site in &mut sim.sites {
            site.delivered = site.got;
        }
        Ok(())
    }

    /// Answers that are on their way to a connection go where it is now.
    fn readdress(&mut self, from: cableway::model::SlotKey, to: cableway::model::SlotKey) {
        let old = &mut self.shards[usize::from(from.shard)].inbox;
        let (theirs, rest) =
            std::mem::take(old).into_iter().partition(|post| matches!(post, Post::Answer(key) if *key == from));
        *old = rest;
        let theirs: std::collections::VecDeque<Post> = theirs;
        self.shards[usize::from(to.shard)].inbox.extend(theirs.into_iter().map(|_| Post::Answer(to)));
    }

    /// Somebody else has accepted the next connection and read something from it; gives whether it was so.
    pub(super) fn adopt(&mut self, s: usize) -> bool {
        let (incoming, read) = {
            let mut guard = self.sim.borrow_mut();
            let sim = &mut *guard;
            if sim.sites[s].exhausted || sim.sites[s].drained_by.is_some() || !sim.rng.chance(100) {
                return false;
            }
            let Some(conn) = sim.net.backlogs[s].pop_front() else { return false };
            sim.accepted += 1;
            sim.clients[conn].accepted_at = Some(sim.mono);
            let most = sim.rng.pick(&[1, 40, 1_000]);
            let mut read = vec![0; sim.rng.between(1, most)];
            let got = sim.net.server_read(conn, &mut read).unwrap_or(0);
            read.truncate(got);
            sim.trace(|| format!("shard {s} adopts {conn} with {got} bytes"));
            drop(guard);
            (incoming(&self.sim, conn), read)
        };
        self.shards[s].shard.receive(Message::Adopt { incoming, read });
        true
    }
}
