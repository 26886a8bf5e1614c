//! The whole node is handed over to a new one in mid-run. Or it is not: the new shards, more or fewer or as many, are dropped, and
//! the old ones go on as if nothing had been.
//!
//! Some connections are copied ahead, and the run goes on with the old shards: clocks leap, clients come and go. Then all shards
//! stand still, and what has changed is copied. From there on nobody touches a connection until it is decided;
//! `Sim::is_copied` sees to it.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cableway::model::SlotKey;
use cableway::shard::{Message, Shard, ShardMetrics};

use super::posts::Post;
use super::{Driven, Run};
use crate::client::Move;
use crate::net::ConnId;
use crate::seams::{Seams, Socket};
use crate::world::Site;

/// Rounds after which shards that stand still have carried out what they were given.
const ROUNDS_MAX: usize = 10_000;

/// Old key, new key, client.
type Renamed = (SlotKey, SlotKey, usize);

/// Rounds in which connections are copied ahead, and steps of the run behind each.
const AHEAD_ROUNDS_MAX: usize = 3;
const AHEAD_STEPS_MAX: usize = 12;

/// The new node, while the old one serves.
#[derive(Default)]
struct Next {
    shards: Vec<Driven>,
    /// By the keys where they are served.
    laid_out: HashMap<SlotKey, LaidOut>,
}

/// A connection that the new node has a copy of.
struct LaidOut {
    /// The shard, as the number it will have.
    shard: usize,
    key: SlotKey,
    conn: ConnId,
    copied: Move,
}

/// A key that no connection has.
fn nobody(shard: usize) -> SlotKey {
    SlotKey { shard: shard as u16, index: u32::MAX, generation: 0 }
}

impl Run {
    /// Hands everything over, or tries to. Not while anybody is sent away to end the node.
    pub(super) fn upgrade(&mut self) -> Result<(), String> {
        if self.is_draining() {
            return Ok(());
        }
        self.sim.borrow().trace(|| "an upgrade begins".into());
        self.is_upgrading = true;
        let rounds = self.sim.borrow_mut().rng.between(0, AHEAD_ROUNDS_MAX);
        let mut next = Next::default();
        if rounds > 0 {
            next.shards = self.new_shards();
        }
        for _ in 0..rounds {
            self.copy_ahead(&mut next)?;
            self.go_on_for_a_while()?;
        }
        self.is_upgrading = false;
        if self.is_draining() {
            self.sim.borrow_mut().is_copied = true;
            self.drop_next(next.shards);
            return Ok(());
        }
        let stopped_at = self.sim.borrow().mono;
        for s in self.live() {
            self.open_turn(s, 0);
            self.shards[s].shard.stop();
            self.close_turn(s);
        }
        self.come_to_rest()?;
        self.let_some_wait();
        self.world_goes_on(true);
        let (base, is_done) = (self.shards.len(), self.sim.borrow_mut().rng.chance(600));
        if rounds == 0 {
            next.shards = self.new_shards();
        }
        self.add_shards(next.shards);
        let renamed = self.copy_all(base, next.laid_out)?;
        let arrived_at = self.sim.borrow().mono;
        self.world_goes_on(false);
        if is_done {
            self.upgrades += 1;
            self.leave(base, &renamed);
        } else {
            self.given_up += 1;
            self.forget(base);
        }
        let sim = &mut *self.sim.borrow_mut();
        let now = sim.mono;
        // The old shards stand still, and then the new ones do: each pause is made up for by itself, and rounded.
        let pauses = if is_done { vec![(stopped_at, arrived_at), (arrived_at, now)] } else { vec![(stopped_at, now)] };
        for client in &mut sim.clients {
            client.clock.pauses.extend(pauses.iter().map(|&(apart, together)| Move { apart, together }));
        }
        sim.trace(|| format!("the upgrade is {}", if is_done { "done" } else { "given up" }));
        sim.violation.take().map_or(Ok(()), Err)
    }

    fn is_draining(&self) -> bool {
        let mut live = self.live();
        live.any(|s| {
            let told = self.shards[s].inbox.iter().any(|post| matches!(post, Post::Drain(_)));
            told || self.sim.borrow().sites[s].drained_by.is_some()
        })
    }

    /// The old node serves.
    fn go_on_for_a_while(&mut self) -> Result<(), String> {
        let (steps, clients) = {
            let sim = &mut *self.sim.borrow_mut();
            (sim.rng.between(0, AHEAD_STEPS_MAX), sim.scenario.clients)
        };
        for _ in 0..steps {
            self.step(clients)?;
            self.flush();
            self.sweep(300);
            self.check()?;
        }
        Ok(())
    }

    /// Copies into the new shards what is at rest, or some of it.
    fn copy_ahead(&mut self, next: &mut Next) -> Result<(), String> {
        let mut copies = Vec::new();
        let base = self.shards.len();
        for s in self.live() {
            let shard = &mut self.shards[s].shard;
            self.sim.borrow_mut().is_copied = true;
            for key in shard.take_outdated() {
                let known = next.laid_out.remove(&key).ok_or_else(|| format!("{key:?} was never copied"))?;
                next.shards[known.shard - base].shard.take_away(key);
            }
            self.sim.borrow_mut().is_copied = false;
            shard.look_at_the_clock();
            let mut from = 0;
            while let Some(key) = shard.next_to_copy(from..u32::MAX) {
                from = key.index + 1;
                if self.sim.borrow_mut().rng.chance(200) {
                    continue;
                }
                let (socket, state) = shard.copy(key).ok_or_else(|| format!("{key:?} cannot be copied"))?;
                let socket = socket.ok_or_else(|| format!("{key:?} is at rest and has no socket"))?;
                copies.push((key, socket.again(), state));
                shard.note_copied(key);
            }
        }
        let apart = self.sim.borrow().mono;
        {
            let sim = &mut *self.sim.borrow_mut();
            sim.mono += Duration::from_millis(sim.rng.between(0, 100) as u64);
            sim.rng.shuffle(&mut copies);
            sim.is_copied = true;
        }
        let together = self.sim.borrow().mono;
        for (old, socket, state) in copies {
            let to = self.sim.borrow_mut().rng.between(base, base + next.shards.len() - 1);
            let (shard, conn) = (&mut next.shards[to - base].shard, socket.conn);
            shard.look_at_the_clock();
            let laid_out = shard.lay_out(old, socket, &state);
            let key = laid_out.map_err(|error| format!("client {conn} cannot be laid out: {error}"))?;
            self.sim.borrow_mut().net.conn(conn).has_copy = true;
            next.laid_out.insert(old, LaidOut { shard: to, key, conn, copied: Move { apart, together } });
        }
        self.sim.borrow_mut().is_copied = false;
        self.check()
    }

    fn live(&self) -> std::ops::Range<usize> {
        self.live_from..self.shards.len()
    }

    /// What was published is delivered, and what follows from it, while nobody is read from.
    fn come_to_rest(&mut self) -> Result<(), String> {
        self.flush();
        let mut kept: Vec<VecDeque<Post>> = Vec::new();
        for driven in &mut self.shards {
            let waits =
                |post: &Post| matches!(post, Post::Answer(_) | Post::Late(..) | Post::Adopt(..) | Post::Again(_));
            let (waiting, rest) = std::mem::take(&mut driven.inbox).into_iter().partition(waits);
            driven.inbox = rest;
            kept.push(waiting);
        }
        for round in 0.. {
            if round == ROUNDS_MAX {
                return Err("shards that stand still do not come to rest".into());
            }
            let is_busy = |s: &usize| {
                let Driven { shard, inbox, .. } = &self.shards[*s];
                !inbox.is_empty() || *s >= self.live_from && !shard.is_settled()
            };
            let Some(s) = (0..self.shards.len()).find(is_busy) else { break };
            self.open_turn(s, self.shards[s].inbox.len());
            self.close_turn(s);
            self.flush();
        }
        for (driven, kept) in self.shards.iter_mut().zip(kept) {
            driven.inbox = kept;
        }
        Ok(())
    }

    /// Some of what has to wait reaches its shard, and waits there.
    fn let_some_wait(&mut self) {
        for s in self.live() {
            let most = self.shards[s].inbox.len();
            let taken = self.sim.borrow_mut().rng.between(0, most);
            self.open_turn(s, taken);
            self.close_turn(s);
        }
        // An answer of the broker is carried out, and somebody may be told of it.
        let is_at_rest =
            self.sim.borrow().outgoing.is_empty() && self.live().all(|s| self.shards[s].shard.is_settled());
        if !is_at_rest {
            self.sim.borrow_mut().fail("what waits is no more than that".into());
        }
    }

    /// Time passes and clients do something; shards may notice.
    fn world_goes_on(&mut self, shards_may_turn: bool) {
        let times = self.sim.borrow_mut().rng.below(6);
        for _ in 0..times {
            {
                let sim = &mut *self.sim.borrow_mut();
                for c in 0..sim.clients.len() {
                    if sim.clients[c].prompt {
                        sim.client_reads(c, true);
                        sim.client_writes(c, true);
                    }
                }
                let most = sim.rng.pick(&[0, 20, 20, 2_000]);
                sim.mono += Duration::from_millis(sim.rng.between(0, most) as u64);
                if !sim.clients.is_empty() {
                    let c = sim.rng.below(sim.clients.len());
                    sim.client_step(c);
                }
            }
            if shards_may_turn {
                let s = self.sim.borrow_mut().rng.between(self.live_from, self.shards.len() - 1);
                self.open_turn(s, 0);
                self.close_turn(s);
            }
        }
        for s in self.live() {
            while shards_may_turn && !self.shards[s].shard.is_settled() {
                self.open_turn(s, 0);
                self.close_turn(s);
            }
        }
    }

    /// The new node's shards, which stand still.
    fn new_shards(&mut self) -> Vec<Driven> {
        let (base, count) = (self.shards.len(), self.sim.borrow_mut().rng.between(1, 3));
        let new_shard = |s: usize| {
            let settings = {
                let sim = &mut *self.sim.borrow_mut();
                let most = sim.rng.pick(&[0, 150, 30_000, 40_000_000]);
                let origin = Duration::from_millis(sim.rng.between(0, most) as u64);
                // Listeners come when the old node leaves.
                sim.sites.push(Site { listening: false, ..Site::new(origin) });
                sim.net.backlogs.push(VecDeque::new());
                Arc::clone(&sim.scenario.settings)
            };
            let mut driven = Driven::new(&self.sim, s, settings);
            driven.shard.stop();
            driven
        };
        (base..base + count).map(new_shard).collect()
    }

    /// They have got what the old ones have.
    fn add_shards(&mut self, new: Vec<Driven>) {
        let base = self.shards.len();
        self.shards.extend(new);
        let sim = &mut *self.sim.borrow_mut();
        let published = sim.published.len();
        for site in &mut sim.sites[base..] {
            (site.got, site.delivered) = (published, published);
        }
    }

    /// Copies into the new shards everything that they have no good copy of. `laid_out`: what they have copies of.
    fn copy_all(&mut self, base: usize, mut laid_out: HashMap<SlotKey, LaidOut>) -> Result<Vec<Renamed>, String> {
        let mut copies = Vec::new();
        let mut outdated = Vec::new();
        for s in self.live_from..base {
            // As the driver of a real shard does it.
            self.shards[s].shard.look_at_the_clock();
            self.sim.borrow_mut().is_copied = true;
            outdated.extend(self.shards[s].shard.take_outdated());
            let keys: Vec<SlotKey> = self.shards[s].shard.all_keys().collect();
            for key in keys {
                if self.shards[s].shard.is_copied(key) {
                    continue;
                }
                let copied = self.shards[s].shard.copy(key);
                let (socket, state) = copied.ok_or_else(|| format!("{key:?} cannot be copied"))?;
                copies.push((key, socket.map(Socket::again), state));
            }
            self.sim.borrow_mut().is_copied = false;
        }
        let copied_at = self.sim.borrow().mono;
        {
            let sim = &mut *self.sim.borrow_mut();
            sim.is_copied = true;
            sim.mono += Duration::from_millis(sim.rng.between(0, 100) as u64);
            sim.rng.shuffle(&mut copies);
        }
        for driven in &mut self.shards[base..] {
            driven.shard.look_at_the_clock();
            driven.shard.note_arrival();
        }
        for key in outdated {
            let known = laid_out.remove(&key).ok_or_else(|| format!("{key:?} was never copied"))?;
            self.shards[known.shard].shard.take_away(key);
        }
        let open = self.sim.borrow().open;
        let mut renamed = Vec::new();
        for (key, socket, state) in copies {
            let to = self.sim.borrow_mut().rng.between(base, self.shards.len() - 1);
            let c = match &socket {
                Some(socket) => socket.conn,
                None => self.sim.borrow().net.holder_of(key).ok_or_else(|| format!("{key:?} is nobody's"))?,
            };
            self.shards[to].shard.look_at_the_clock();
            let new = self.shards[to].shard.put_together(socket, &state);
            let new = new.map_err(|(_, error)| format!("client {c} cannot be put together: {error}"))?;
            renamed.push((key, new, c));
        }
        let mut entered = 0;
        for driven in &mut self.shards[base..] {
            driven.shard.look_at_the_clock();
            entered += driven.shard.enter_all().0;
        }
        let sim = &mut *self.sim.borrow_mut();
        if entered != laid_out.len() {
            sim.fail(format!("{} are laid out, and {entered} have entered", laid_out.len()));
        }
        // Each process counts for itself.
        if sim.open != 2 * open {
            sim.fail(format!("{open} WebSockets are open, and {} were copied", sim.open - open));
        }
        sim.open = open;
        let together = sim.mono;
        for &(_, _, c) in &renamed {
            sim.clients[c].clock.copied = Some(Move { apart: copied_at, together });
        }
        for (old, LaidOut { key, conn, copied, .. }) in laid_out {
            sim.net.conn(conn).has_copy = false;
            sim.clients[conn].clock.copied = Some(copied);
            renamed.push((old, key, conn));
        }
        // Whatever order tables have.
        renamed.sort_unstable_by_key(|&(_, _, conn)| conn);
        Ok(renamed)
    }

    /// The old shards go on, and what was copied is nobody's.
    fn forget(&mut self, base: usize) {
        let new = self.shards.split_off(base);
        self.drop_next(new);
        for s in self.live() {
            self.open_turn(s, 0);
            self.shards[s].shard.go_on();
            self.close_turn(s);
        }
        self.flush();
    }

    /// The new shards are nobody's.
    fn drop_next(&mut self, new: Vec<Driven>) {
        let base = self.shards.len();
        self.sim.borrow_mut().net.forget_copies();
        drop(new);
        let sim = &mut *self.sim.borrow_mut();
        sim.sites.truncate(base);
        sim.net.backlogs.truncate(base);
        sim.residents.clear();
        sim.is_copied = false;
        for s in self.live_from..base {
            self.shards[s].shard.forget_copies();
        }
    }

    /// The new shards have everything, and go on.
    fn leave(&mut self, base: usize, renamed: &[Renamed]) {
        let new_keys: HashMap<SlotKey, SlotKey> = renamed.iter().map(|&(old, new, _)| (old, new)).collect();
        let mut posts = Vec::new();
        for s in self.live_from..base {
            let settings = Arc::clone(&self.sim.borrow().scenario.settings);
            let driven = &mut self.shards[s];
            let held = driven.shard.take_messages().into_iter().map(Post::Again);
            posts.extend(held.chain(std::mem::take(&mut driven.inbox)));
            // Nobody comes to the one in its place.
            let left = std::mem::replace(driven, Driven::new(&self.sim, s, settings));
            self.left.push(left.metrics);
            drop(left.shard);
        }
        self.live_from = base;
        {
            let sim = &mut *self.sim.borrow_mut();
            let moved: Vec<_> = renamed.iter().filter(|(old, ..)| usize::from(old.shard) < base).collect();
            for &&(old, new, c) in &moved {
                sim.moved(c, usize::from(new.shard));
                sim.rename(c, old, new);
                let copied = sim.clients[c].clock.copied.take();
                sim.clients[c].clock.moves.extend(copied);
            }
            sim.net.take_next_watches();
            for s in 0..base {
                let site = &mut sim.sites[s];
                (site.listening, site.watching) = (false, true);
                site.present.clear();
                site.followed.clear();
                site.followed_by_name.clear();
                for conn in std::mem::take(&mut sim.net.backlogs[s]) {
                    let to = sim.rng.between(base, self.shards.len() - 1);
                    sim.moved(conn, to);
                    sim.net.backlogs[to].push_back(conn);
                }
            }
            sim.sites[base..].iter_mut().for_each(|site| site.listening = true);
            sim.is_copied = false;
            for (sid, shard, index) in std::mem::take(&mut sim.residents) {
                sim.on_resident(sid, shard, index);
            }
        }
        for s in self.live() {
            self.turns += 1;
            self.shards[s].shard.begin_turn();
            self.shards[s].shard.go_on();
            self.close_turn(s);
        }
        posts.into_iter().for_each(|post| self.send_on(post, base, &new_keys));
        self.flush();
    }

    /// What was for an old shard reaches the new one that has it now.
    fn send_on(&mut self, post: Post, base: usize, new_keys: &HashMap<SlotKey, SlotKey>) {
        let some = self.sim.borrow_mut().rng.between(base, self.shards.len() - 1);
        let new = |key: SlotKey| new_keys.get(&key).copied().unwrap_or(nobody(some));
        let (to, post) = match post {
            Post::Again(Message::Answer(mut answer)) => {
                answer.key = new(answer.key);
                let sim = &mut *self.sim.borrow_mut();
                if let Some(c) = sim.net.holder_of(answer.key) {
                    sim.clients[c].is_followed_by_answer = true;
                }
                (usize::from(answer.key.shard), Post::Again(Message::Answer(answer)))
            }
            Post::Again(message) => {
                if let Message::Adopt { incoming, .. } = &message {
                    self.sim.borrow_mut().moved(incoming.socket.conn, some);
                }
                (some, Post::Again(message))
            }
            Post::Answer(key) | Post::Late(key, _) | Post::Said(key, _) => {
                let key = new(key);
                (usize::from(key.shard), post.readdressed(key))
            }
            Post::Adopt(conn, read) => {
                self.sim.borrow_mut().moved(conn, some);
                (some, Post::Adopt(conn, read))
            }
            other => (some, other),
        };
        self.shards[to].inbox.push_back(post);
    }
}

impl Driven {
    /// A shard without connections.
    pub(super) fn new(
        sim: &Rc<std::cell::RefCell<crate::world::Sim>>,
        s: usize,
        settings: Arc<cableway::shard::Settings>,
    ) -> Driven {
        let metrics = Arc::new(ShardMetrics::new(s as u16));
        let seams = || Seams { sim: Rc::clone(sim), shard: s };
        let shard = Shard::new(s as u16, seams(), seams(), settings, Arc::clone(&metrics));
        Driven { shard, metrics, inbox: VecDeque::new(), asked: Vec::new(), given_up: 0 }
    }
}
