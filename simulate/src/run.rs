//! One run: one to three shards, everything around them, and chance deciding what happens next.
//!
//! Here are the turns of the shards; `steps` decides what happens between them, `moves` lets connections change their
//! shard, `upgrade` hands all of them over to new shards, `posts` carries answers, publications and demands to the inboxes, `finish` ends a run and adds everything up.

mod finish;
mod looks;
mod moves;
mod posts;
mod steps;
mod upgrade;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cableway::broker::BrokerMetrics;
use cableway::model::CloseCause;
use cableway::shard::{Readiness, Shard, ShardMetrics};

use crate::seams::Seams;
use crate::world::Sim;
use looks::Asked;
use posts::Post;

/// What a run amounted to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub digest: u64,
    pub shards: usize,
    pub clients: usize,
    pub turns: u64,
    pub published: usize,
    pub frames: u64,
    /// Sessions that their clients came back to, and requests for history that were served and rejected.
    pub resumed: u64,
    pub served: u64,
    pub rejected: u64,
    /// Times that the whole node was handed over, and that it was not in the end.
    pub upgrades: usize,
    pub given_up: usize,
}

/// A shard and what it takes to drive it.
struct Driven {
    shard: Shard<Seams, Seams>,
    metrics: Arc<ShardMetrics>,
    inbox: VecDeque<Post>,
    asked: Vec<Asked>,
    /// Clients that it gave up because nothing got out to them.
    given_up: u64,
}

struct Run {
    sim: Rc<RefCell<Sim>>,
    shards: Vec<Driven>,
    /// Shards before this one have left their connections to later ones.
    live_from: usize,
    /// What those had counted.
    left: Vec<Arc<ShardMetrics>>,
    /// Not another one meanwhile.
    is_upgrading: bool,
    upgrades: usize,
    given_up: usize,
    turns: u64,
}

/// Runs one seed to its end.
///
/// # Errors
/// Says what was wrong.
pub fn run(seed: u64, trace: bool) -> Result<Summary, String> {
    let mut run = Run::new(seed, trace);
    run.play()?;
    let sim = run.sim.borrow();
    let of_broker = |count: fn(&BrokerMetrics) -> u64| sim.broker.as_ref().map_or(0, |broker| count(&broker.metrics));
    Ok(Summary {
        digest: sim.digest,
        shards: sim.scenario.shards,
        clients: sim.clients.len(),
        upgrades: run.upgrades,
        given_up: run.given_up,
        turns: run.turns,
        published: sim.published.len(),
        frames: run.sum(|metrics| metrics.counters.server_msg_total.get()),
        resumed: of_broker(|metrics| metrics.sessions_resumed_total.get()),
        served: of_broker(|metrics| metrics.history_served_total.get()),
        rejected: of_broker(|metrics| metrics.history_rejected_total.get()),
    })
}

impl Run {
    fn new(seed: u64, trace: bool) -> Run {
        let sim = Rc::new(RefCell::new(Sim::new(seed, trace)));
        let (settings, count) = {
            let sim = sim.borrow();
            (Arc::clone(&sim.scenario.settings), sim.sites.len())
        };
        let shards = (0..count).map(|s| Driven::new(&sim, s, Arc::clone(&settings))).collect();
        Run { sim, shards, live_from: 0, left: Vec::new(), is_upgrading: false, upgrades: 0, given_up: 0, turns: 0 }
    }

    fn play(&mut self) -> Result<(), String> {
        let drains = self.draw_drains();
        let (steps, clients) = {
            let sim = self.sim.borrow();
            (sim.scenario.steps, sim.scenario.clients)
        };
        for step in 0..steps {
            for &(at, s, over) in &drains {
                if at == step {
                    self.shards[s].inbox.push_back(Post::Drain(over));
                }
            }
            self.step(clients)?;
            self.flush();
            self.sweep(300);
            self.check()?;
        }
        self.settle()?;
        self.end()?;
        self.final_checks()
    }

    /// The broker looks for what is over, once a second or later.
    fn sweep(&mut self, chance: usize) {
        let sim = &mut *self.sim.borrow_mut();
        if sim.broker.is_some() && sim.mono.as_secs() > sim.swept_at && sim.rng.chance(chance) {
            sim.swept_at = sim.mono.as_secs();
            sim.sweep();
        }
    }

    fn check(&self) -> Result<(), String> {
        self.sim.borrow_mut().violation.take().map_or(Ok(()), Err)
    }

    /// Something counted, added up over the shards.
    fn sum<T: std::iter::Sum>(&self, counted: impl Fn(&ShardMetrics) -> T) -> T {
        self.shards.iter().map(|driven| &driven.metrics).chain(&self.left).map(|metrics| counted(metrics)).sum()
    }

    fn closed_for(&self, cause: CloseCause) -> u64 {
        self.sum(|metrics| metrics.closed_for(cause))
    }

    /// When a shard wakes of itself, on the clock of the run.
    fn wake_of(&self, s: usize) -> Option<Duration> {
        self.shards[s].shard.next_wake().map(|wake| self.sim.borrow().run_time(s, wake))
    }

    /// The loop of shard `s`, once round, if there is anything to wake it.
    fn turn(&mut self, s: usize) -> bool {
        let wake = self.wake_of(s);
        let inbox_len = self.shards[s].inbox.len();
        let taken = {
            let sim = &mut *self.sim.borrow_mut();
            let listener = sim.has_waiting(s);
            let woken = listener || wake.is_some_and(|wake| wake <= sim.mono) || sim.net.has_ready(s);
            if !woken && inbox_len == 0 {
                return false;
            }
            // What has not arrived in the inbox yet comes in a later turn.
            let all = sim.rng.chance(600);
            let taken = if all { inbox_len } else { sim.rng.between(usize::from(!woken), inbox_len.max(1)) };
            taken.min(inbox_len)
        };
        self.open_turn(s, taken);
        self.close_turn(s);
        self.flush();
        true
    }

    /// A turn of shard `s` without its end: whatever events there are, and so many posts out of its inbox.
    fn open_turn(&mut self, s: usize, mut taken: usize) {
        self.turns += 1;
        let (events, listener) = {
            let sim = &mut *self.sim.borrow_mut();
            (sim.net.take_ready(s, &mut sim.rng), sim.has_waiting(s))
        };
        self.shards[s].shard.begin_turn();
        self.look_at(s);
        let listener_at = self.sim.borrow_mut().rng.below(events.len() + 1);
        let inbox_at = self.sim.borrow_mut().rng.below(events.len() + 1);
        for n in 0..=events.len() {
            if listener && n == listener_at && !self.accepted_elsewhere(s) {
                self.shards[s].shard.accept();
            }
            while n == inbox_at && taken > 0 {
                taken -= 1;
                self.deliver_next(s);
            }
            if let Some(event) = events.get(n) {
                let (readable, writable, hangup) = (event.readable, event.writable, event.hangup);
                self.shards[s].shard.ready(event.token, Readiness { readable, writable, hangup });
            }
            // The world does not wait for the shard.
            let sim = &mut *self.sim.borrow_mut();
            if !sim.clients.is_empty() && sim.rng.chance(150) {
                let c = sim.rng.below(sim.clients.len());
                sim.client_step(c);
            }
        }
    }

    /// The end of a turn of shard `s`.
    fn close_turn(&mut self, s: usize) {
        let Driven { shard, metrics, given_up, .. } = &mut self.shards[s];
        shard.end_turn();
        let sim = &mut *self.sim.borrow_mut();
        if !shard.is_delivering() {
            sim.sites[s].delivered = sim.sites[s].got;
        }
        let before = std::mem::replace(given_up, metrics.closed_for(CloseCause::WriteTimeout));
        sim.check_given_up(*given_up - before);
    }
}
