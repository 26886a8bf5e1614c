//! What operators ask the shards in the middle of everything, and what they are told.

use cableway::model::Sid;
use cableway::shard::{Answered, Look, LookAt, Message, Seen};

use super::Run;

/// A question that was asked.
pub(super) struct Asked {
    at: LookAt,
    answered: Answered,
}

impl Run {
    /// Now and then somebody asks shard `s` something, and sometimes does not wait for the answer.
    pub(super) fn look_at(&mut self, s: usize) {
        let sim = &mut *self.sim.borrow_mut();
        for _ in 0..if sim.rng.chance(10) { sim.rng.between(1, 7) } else { 0 } {
            let most = sim.rng.between(1, 5);
            let sids = sim.clients.iter().filter_map(|client| Sid::parse(client.sid.as_deref()?));
            let sids: Vec<_> = sids.collect();
            let present: Vec<_> = sim.sites[s].present.iter().cloned().collect();
            let at = match sim.rng.below(5) {
                0 => LookAt::Closes,
                1 if !sids.is_empty() => LookAt::Sid(sim.rng.pick(&sids)),
                2 if !present.is_empty() => LookAt::Identifiers(present[sim.rng.below(present.len())].clone(), most),
                3 => LookAt::Slowest(most),
                _ => LookAt::Oldest(most),
            };
            let (look, answered) = Look::new(at.clone());
            if sim.rng.chance(800) {
                self.shards[s].asked.push(Asked { at, answered });
            } else {
                drop(answered);
            }
            self.shards[s].shard.receive(Message::Look(look));
        }
    }

    /// Whoever waited was answered, with no more than was asked for.
    pub(super) fn check_looks(&mut self) -> Result<(), String> {
        let closes_max = self.sim.borrow().scenario.settings.closes_max;
        for (s, driven) in self.shards.iter_mut().enumerate() {
            for Asked { at, mut answered } in std::mem::take(&mut driven.asked) {
                let Ok(seen) = answered.try_recv() else {
                    return Err(format!("shard {s} has not answered {at:?}"));
                };
                let is_sound = match (&at, &seen) {
                    (LookAt::Closes, Seen::Closes(closes)) => {
                        closes.len() <= closes_max && closes.is_sorted_by_key(|closed| closed.at_ms)
                    }
                    (LookAt::Closes, _) => false,
                    (_, Seen::Busy) => true,
                    (LookAt::Sid(sid), Seen::Connections(live)) => {
                        let is_it = |who: &cableway::shard::Who| who.sid == sid.to_string();
                        live.len() <= 1 && live.iter().all(|live| live.who.as_ref().is_some_and(is_it))
                    }
                    (LookAt::Identifiers(identifiers, most), Seen::Connections(live)) => {
                        let is_it = |who: &cableway::shard::Who| who.identifiers == *identifiers;
                        live.len() <= *most && live.iter().all(|live| live.who.as_ref().is_some_and(is_it))
                    }
                    (LookAt::Oldest(most), Seen::Connections(live)) => {
                        live.len() <= *most && live.is_sorted_by(|a, b| a.age_ms >= b.age_ms)
                    }
                    (LookAt::Slowest(most), Seen::Connections(live)) => {
                        live.len() <= *most && live.is_sorted_by(|a, b| a.waiting_bytes >= b.waiting_bytes)
                    }
                    (_, Seen::Closes(_)) => false,
                };
                if !is_sound {
                    return Err(format!("shard {s} was asked for {at:?} and answered {seen:?}"));
                }
            }
        }
        Ok(())
    }
}
