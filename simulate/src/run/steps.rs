//! What happens between the turns of the shards: one thing at a time, drawn from the seed.

use std::io::ErrorKind;
use std::time::Duration;

use cableway::model::CloseCause;

use super::Run;

/// Rounds in a row that move neither the clock nor a client, after which the shards are said to spin.
const ROUNDS_MAX: usize = 1_000;

/// Shards that have left, beyond which a run has seen enough of it.
const UPGRADES_MAX: usize = 6;

impl Run {
    /// One thing happens.
    pub(super) fn step(&mut self, clients: usize) -> Result<(), String> {
        let mut sim = self.sim.borrow_mut();
        let known = sim.clients.len();
        match sim.rng.below(1000) {
            0..=39 if known < clients => sim.new_client(),
            0..=419 if known > 0 => {
                for _ in 0..sim.rng.between(1, 4) {
                    let c = sim.rng.below(known);
                    sim.client_step(c);
                }
            }
            420..=519 => {
                drop(sim);
                self.answer_some(2);
            }
            520..=599 => {
                drop(sim);
                self.publish();
            }
            600..=679 => {
                let ms = sim.rng.between(0, 50) as u64;
                sim.mono += Duration::from_millis(ms);
            }
            680..=689 => {
                drop(sim);
                self.demand_disconnect();
            }
            690..=692 => {
                let s = sim.rng.below(self.shards.len());
                sim.sites[s].exhausted = !sim.sites[s].exhausted;
            }
            693..=696 if known > 0 => {
                let c = sim.rng.below(known);
                if !sim.clients[c].prompt {
                    sim.clients[c].deaf = !sim.clients[c].deaf;
                }
            }
            697..=699 => {
                drop(sim);
                return self.leap();
            }
            700..=704 => {
                drop(sim);
                return self.settle();
            }
            710..=749 if known > 0 && sim.broker.is_some() => {
                let drops = sim.scenario.drops;
                if sim.rng.chance(drops) {
                    sim.drop_some(clients * 2);
                }
            }
            705..=709 => {
                let faults = sim.scenario.faults;
                if known > 0 && sim.rng.chance(faults * 20) {
                    let c = sim.rng.below(known);
                    sim.break_off(c, ErrorKind::TimedOut);
                }
            }
            _ => {
                drop(sim);
                return self.some_turns();
            }
        }
        Ok(())
    }

    /// One shard has a turn, and some of the others.
    fn some_turns(&mut self) -> Result<(), String> {
        let moves = {
            let sim = &mut *self.sim.borrow_mut();
            let moves = sim.scenario.moves;
            // What was copied ahead is found by its key.
            !self.is_upgrading && sim.rng.chance(moves)
        };
        if moves {
            self.move_some()?;
        }
        let upgrades = {
            let sim = &mut *self.sim.borrow_mut();
            let upgrades = sim.scenario.upgrades;
            upgrades > 0 && !self.is_upgrading && self.live_from < UPGRADES_MAX && sim.rng.chance(upgrades)
        };
        if upgrades {
            self.upgrade()?;
        }
        let first = self.sim.borrow_mut().rng.below(self.shards.len());
        for s in 0..self.shards.len() {
            if s != first && !self.sim.borrow_mut().rng.chance(400) {
                continue;
            }
            self.turn(s);
        }
        Ok(())
    }

    /// Those who read at once read and write everything, and the shards go on until they have nothing to do.
    pub(super) fn go_on(&mut self) -> Result<(), String> {
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let mut turned = false;
            for s in 0..self.shards.len() {
                turned |= self.turn(s);
            }
            let mut moved = false;
            let sim = &mut *self.sim.borrow_mut();
            for c in 0..sim.clients.len() {
                if sim.clients[c].prompt {
                    moved |= sim.client_reads(c, true);
                    moved |= sim.client_writes(c, true) > 0;
                }
            }
            if let Some(violation) = sim.violation.take() {
                return Err(violation);
            }
            if !turned && !moved {
                return Ok(());
            }
            rounds = if moved { 0 } else { rounds + 1 };
        }
        Err(format!("the shards spin: {ROUNDS_MAX} rounds at one moment, and nothing comes of them"))
    }

    /// Comes to rest and looks whether anything is missing.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.sim.borrow().trace(|| "settle".into());
        self.go_on()?;
        let wakes: Vec<_> = (0..self.shards.len()).map(|s| self.wake_of(s)).collect();
        let given_up = [CloseCause::TooSlow, CloseCause::NoPong, CloseCause::IdleTimeout];
        let any_too_slow = given_up.into_iter().any(|cause| self.closed_for(cause) > 0);
        let sim = &mut *self.sim.borrow_mut();
        for (site, wakes_at) in sim.sites.iter_mut().zip(wakes) {
            site.wakes_at = wakes_at;
        }
        sim.any_too_slow = any_too_slow;
        for c in 0..sim.clients.len() {
            sim.check_settled(c);
        }
        sim.violation.take().map_or(Ok(()), Err)
    }

    /// When the first of the shards wakes of itself.
    pub(super) fn first_wake(&self) -> Option<Duration> {
        (0..self.shards.len()).filter_map(|s| self.wake_of(s)).min()
    }

    /// Time passes in one piece.
    fn leap(&mut self) -> Result<(), String> {
        self.go_on()?;
        let wake = self.first_wake();
        {
            let sim = &mut *self.sim.borrow_mut();
            sim.mono = match (sim.rng.below(4), wake) {
                (0 | 1, Some(wake)) => sim.mono.max(wake),
                (2, _) => sim.mono + Duration::from_millis(sim.rng.between(1, 5_000) as u64),
                _ => sim.mono + Duration::from_secs(sim.rng.pick(&[1, 10, 60, 400, 20_000])),
            };
            sim.trace(|| "the clock leaps".into());
        }
        self.settle()
    }
}
