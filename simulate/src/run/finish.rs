//! The end of a run: everybody leaves, and everything has to add up.

use std::time::Duration;

use cableway::model::CloseCause;
use cableway::model::DisconnectMode;

use super::Run;
use crate::client::Aim;

impl Run {
    /// Everybody leaves, the app answers everything, time passes.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.sim.borrow_mut().sites.iter_mut().for_each(|site| site.exhausted = false);
        for round in 0..2_000 {
            {
                let sim = &mut *self.sim.borrow_mut();
                sim.trace(|| format!("end, round {round}"));
                for c in 0..sim.clients.len() {
                    if round > 20 && !sim.clients[c].left && !sim.clients[c].ended {
                        sim.leave(c, true);
                    } else if round < 20 && sim.rng.chance(300) {
                        sim.farewell(c);
                    }
                    sim.client_step(c);
                }
                sim.whispered.clear();
            }
            self.answer_some(usize::MAX);
            self.go_on()?;
            if self.holds_nothing() {
                return Ok(());
            }
            let wake = self.first_wake();
            let sim = &mut *self.sim.borrow_mut();
            match wake {
                Some(wake) if round > 5 => sim.mono = sim.mono.max(wake),
                _ => sim.mono += Duration::from_millis(30),
            }
        }
        let held: Vec<usize> = self.shards.iter().map(|driven| driven.shard.connections()).collect();
        Err(format!(
            "the shards still hold something (connections: {held:?}) when all have left; {} calls run",
            self.sim.borrow().running.len()
        ))
    }

    fn holds_nothing(&self) -> bool {
        self.shards.iter().all(|driven| driven.shard.holds_nothing() && driven.inbox.is_empty())
            && self.sim.borrow().outgoing.is_empty()
            && self.sim.borrow().net.backlogs.iter().all(|backlog| backlog.is_empty())
    }

    /// What must hold when all is over.
    pub(super) fn final_checks(&mut self) -> Result<(), String> {
        self.check_zero()?;
        self.check_causes()?;
        self.check_looks()?;
        self.check_disconnects()?;
        self.sim.borrow_mut().check_nothing_is_kept()
    }

    fn check_zero(&self) -> Result<(), String> {
        let sim = self.sim.borrow();
        for (s, driven) in self.shards.iter().enumerate() {
            let counters = &driven.metrics.counters;
            let zero = [
                ("clients_num", counters.clients_num.get()),
                ("broadcast_streams_num", counters.broadcast_streams_num.get()),
                ("subscriptions_num", counters.subscriptions_num.get()),
                ("connections_num", counters.connections_num.get()),
                ("handshakes_num", counters.handshakes_num.get()),
                ("identifiers present", sim.sites[s].present.len() as i64),
            ];
            if let Some((name, value)) = zero.into_iter().find(|(_, value)| *value != 0) {
                return Err(format!("shard {s}: {name} is {value} at the end"));
            }
        }
        if sim.open > 0 || !sim.running.is_empty() {
            return Err(format!("at the end {} WebSockets are open and {} calls run", sim.open, sim.running.len()));
        }
        Ok(())
    }

    fn check_causes(&self) -> Result<(), String> {
        let sim = self.sim.borrow();
        let closed: u64 = CloseCause::ALL.iter().map(|&cause| self.closed_for(cause)).sum();
        let counted = self.sum(|metrics| metrics.counters.connections_accepted_total.get());
        let same = [
            ("closed and accepted connections", closed, sim.accepted),
            ("counted and accepted connections", counted, sim.accepted),
            ("connections handed over", self.closed_for(CloseCause::Http), sim.handed_over),
            ("connections turned away", self.closed_for(CloseCause::NoDescriptors), sim.turned_away),
            ("connections over the limit", self.closed_for(CloseCause::MaxConnections), sim.refused_open),
        ];
        if let Some((what, ours, theirs)) = same.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            return Err(format!("{what}: {ours} and {theirs}"));
        }
        for &cause in CloseCause::ALL {
            // Who was turned away has never been a connection, and who was handed over has not ended.
            let elsewhere = matches!(cause, CloseCause::Http | CloseCause::NoDescriptors);
            let (ended, aged) = (self.closed_for(cause), self.sum(|metrics| metrics.noted_for(cause).0));
            let delayed = self.sum(|metrics| metrics.noted_for(cause).1);
            if !elsewhere && (ended, ended) != (aged, delayed) {
                return Err(format!("{ended} closed for {cause:?}, noted: {aged} ages and {delayed} delays"));
            }
        }
        let told = [CloseCause::ServerRestart, CloseCause::Remote, CloseCause::TooSlow];
        for seen in told.into_iter().chain([CloseCause::NoPong, CloseCause::IdleTimeout]) {
            let by_clients = sim.clients.iter().filter(|client| client.seen_cause == Some(seen)).count() as u64;
            let counted = self.closed_for(seen);
            if counted < by_clients {
                return Err(format!("{by_clients} clients were closed for {seen:?}, {counted} counted"));
            }
        }
        Ok(())
    }

    fn check_disconnects(&self) -> Result<(), String> {
        let sim = self.sim.borrow();
        let rules = &sim.scenario.settings.session;
        for (c, client) in sim.clients.iter().enumerate() {
            let due = rules.has_backend
                && match rules.disconnect_mode {
                    DisconnectMode::Auto => client.model.disconnectable,
                    DisconnectMode::Always => {
                        client.model.disconnectable
                            || (rules.no_auth && client.upgraded_at.is_some() && client.aim == Aim::Cable)
                    }
                    DisconnectMode::Never => false,
                };
            let was_in = !client.model.resuming && !client.never_in;
            if due && was_in && !client.disconnect_seen {
                return Err(format!("client {c}: the app was not told that its session is over"));
            }
        }
        Ok(())
    }
}
