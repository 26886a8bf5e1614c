//! Emptying a shard before it stops: everybody is sent away, spread over the time there is.

use std::time::Duration;

use crate::model::CloseCause;
use crate::proto::handshake;

use super::slots::Stage;
use super::{Accepting, Machine, Services, Shard};

/// Clients a shard sends away in a second of draining, at least: a node with few of them goes quickly, one with
/// many spreads them over the time it was given, so that the other nodes are not stormed.
const DRAIN_RATE_MIN: f64 = 2_000.0;

/// How often a draining shard sends the next few away.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// A drain under way.
pub(super) struct Drain {
    started: Duration,
    over: Duration,
    /// Connections there were at the start.
    total: usize,
    /// Slots below this one have been told.
    told: u32,
    /// Connections told so far.
    sent_away: usize,
    step_at: Duration,
    end: u32,
}

impl Drain {
    pub fn next_wake(&self, now: Duration) -> Option<Duration> {
        (self.told < self.end).then_some(self.step_at.max(now))
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Starts to send everybody away, within the time given.
    pub(super) fn start_drain(&mut self, over: Duration) {
        if self.drain.is_some() {
            return;
        }
        self.machine.stop_listening();
        self.accepting = Accepting::No;
        let total = self.slots.used();
        let over = over.min(Duration::from_secs_f64(total as f64 / DRAIN_RATE_MIN));
        let now = self.now.mono;
        let end = self.slots.end();
        self.drain = Some(Drain { started: now, over, total, told: 0, sent_away: 0, step_at: now, end });
    }

    /// Sends the next few away: as many as bring the number told in line with the time that has passed.
    pub(super) fn go_on_draining(&mut self) {
        let now = self.now.mono;
        let Some(drain) = &mut self.drain else { return };
        if now < drain.step_at {
            return;
        }
        let passed = now.saturating_sub(drain.started) + DRAIN_STEP;
        let share = passed.as_secs_f64() / drain.over.as_secs_f64();
        // Who came later, adopted, is sent away too and must not take the place of somebody else when time is up.
        let target = if passed >= drain.over { usize::MAX } else { (drain.total as f64 * share).ceil() as usize };
        drain.step_at = now + DRAIN_STEP;
        let (mut told, mut sent_away, end) = (drain.told, drain.sent_away, drain.end);
        while told < end && sent_away < target {
            let index = told;
            told += 1;
            match self.slots[index].stage {
                Stage::Free | Stage::Closing { .. } | Stage::Orphan(_) => continue,
                Stage::Handshake(_) => self.refuse(index, &handshake::unavailable(1).response, CloseCause::Draining),
                Stage::Echo(_) => self.close(index, CloseCause::ServerRestart),
                Stage::Session(..) => {
                    self.session_input(index, |session, ctx| session.disconnect(CloseCause::ServerRestart, ctx));
                }
            }
            sent_away += 1;
        }
        if let Some(drain) = &mut self.drain {
            (drain.told, drain.sent_away) = (told, sent_away);
        }
    }
}
