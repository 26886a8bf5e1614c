//! Pings to the client and its signs of life. All moments are ticks of the shard's clock.

use std::time::Duration;

use crate::model::{CloseCause, Now, TICK_MS, Tick, tick, tick_after};
use crate::proto::Dialect;

use super::{Context, Effect, Marks, Rules, Session};

/// No deadline.
pub(super) const NEVER: Tick = Tick::MAX;

/// Bounds of a ping interval asked for by a client (`pi`), in milliseconds: more often would let a client choose
/// how much work it makes, less often is as good as never.
const PING_INTERVAL_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;

impl Session {
    /// When [`Session::ping_due`] wants to be called; `None`: never.
    pub fn ping_at(&self) -> Option<Tick> {
        Some(self.ping_at).filter(|&tick| tick != NEVER && !self.is_over())
    }

    /// When [`Session::pong_overdue`] wants to be called; `None`: never.
    pub fn pong_by(&self) -> Option<Tick> {
        Some(self.pong_by).filter(|&tick| tick != NEVER && !self.is_over())
    }

    /// A client that has not answered is given up. Not while a question is open: its pong may lie unread behind the
    /// command that runs.
    pub fn pong_overdue(&mut self, ctx: &mut Context<'_>) {
        if self.is_waiting() {
            self.pong_by = after(ctx.now, ctx.rules.pong_timeout_ms);
        } else {
            self.disconnect(CloseCause::NoPong, ctx);
        }
    }

    /// Sends the ping that is due. A client that is `stalled`, with bytes waiting for it, is sent none: they tell it as
    /// much, and it must not collect pings.
    ///
    /// A ping message is for the client, which gives up without one. A ping frame only asks for a sign of life, and one
    /// that came since the last ping will do: so whoever only answers is asked at every second ping, and whoever falls
    /// silent is asked two intervals later at the latest.
    pub fn ping_due(&mut self, stalled: bool, ctx: &mut Context<'_>) {
        self.ping_at = next_ping(ctx.now, u64::from(self.ping_interval_ms), ctx.heartbeat_phase);
        let was_heard = self.marks.has(Marks::HEARD);
        self.marks.set(Marks::HEARD, false);
        if stalled {
            return;
        }
        let has_to_answer = self.stop_waiting_for_requests(ctx);
        ctx.emit(Effect::Ping(self.ping_precision));
        let asks = ctx.rules.native_pings && !was_heard;
        // Which every client answers by itself.
        if asks || has_to_answer {
            ctx.emit(Effect::NativePing);
        }
        let answers = || self.dialect.language().answers_pings() || asks;
        if ctx.rules.pong_timeout_ms > 0 && self.pong_by == NEVER && answers() {
            self.pong_by = after(ctx.now, ctx.rules.pong_timeout_ms);
        }
    }

    /// Bytes of the client have come: a sign of life, whatever they are.
    pub fn alive(&mut self) {
        self.pong_by = NEVER;
        self.marks.set(Marks::HEARD, true);
        self.heard();
    }

    /// A ping may have waited for room while nobody wrote for this long: the client has so much longer to answer it.
    pub fn has_longer(&mut self, ticks: Tick) {
        if self.pong_by != NEVER {
            self.pong_by = self.pong_by.saturating_add(ticks).min(NEVER - 1);
        }
    }

    /// Moves every deadline from one clock to another: what was due some ticks after `from` is due as long after `to`.
    /// One that has passed is due at once.
    pub fn move_clock(&mut self, from: Tick, to: Tick) {
        for deadline in [&mut self.ping_at, &mut self.pong_by] {
            if *deadline != NEVER {
                *deadline = deadline.saturating_sub(from).saturating_add(to).min(NEVER - 1);
            }
        }
    }
}

/// The interval of a client's pings, in milliseconds: its own if it asked for one. Where pongs are watched it cannot ask
/// for fewer pings than others get, or a vanished client would be noticed when it likes.
pub(super) fn interval(asked: Option<&str>, dialect: Dialect, rules: &Rules) -> u64 {
    let Some(asked) = asked_interval(asked) else { return rules.ping_interval_ms };
    let is_watched = rules.pong_timeout_ms > 0 && (dialect.language().answers_pings() || rules.native_pings);
    if is_watched && (asked == 0 || asked > rules.ping_interval_ms) { rules.ping_interval_ms } else { asked }
}

/// The interval a client asked for, in milliseconds: bounded; 0 or less turns pings off; what is no integer is
/// ignored.
fn asked_interval(text: Option<&str>) -> Option<u64> {
    let seconds: i64 = text?.parse().ok()?;
    let Ok(seconds) = u64::try_from(seconds) else { return Some(0) };
    let asked = seconds.saturating_mul(1_000);
    Some(if asked == 0 { 0 } else { asked.clamp(*PING_INTERVAL_MS.start(), *PING_INTERVAL_MS.end()) })
}

/// When the first ping is due: at the next moment of this phase, so within one interval. A client that counts pings and
/// nothing else gives up soon after the interval it expects.
pub(super) fn first_ping(now: Now, interval_ms: u64, phase: u32) -> Tick {
    ping_after(now, 0, interval_ms, phase)
}

/// When the next ping is due: at the next moment of this phase that is further away than a third of an interval. That is
/// an interval after the one before, however late that was; only one that was late by more than two thirds of an interval
/// is not followed at once. Where the phase has changed, in another slot, it is at most a third later than that.
fn next_ping(now: Now, interval_ms: u64, phase: u32) -> Tick {
    ping_after(now, interval_ms.div_ceil(TICK_MS).div_ceil(3), interval_ms, phase)
}

fn ping_after(now: Now, ticks: u64, interval_ms: u64, phase: u32) -> Tick {
    if interval_ms == 0 {
        return NEVER;
    }
    let interval = interval_ms.div_ceil(TICK_MS);
    let phase = (u64::from(phase) * interval) >> 32;
    let earliest = u64::from(tick(now.mono)) + ticks + 1;
    let at = earliest + (phase + interval - earliest % interval) % interval;
    Tick::try_from(at).unwrap_or(NEVER).min(NEVER - 1)
}

fn after(now: Now, ms: u64) -> Tick {
    tick_after(now.mono + Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::super::tests::rules;
    use super::*;

    fn at(ms: u64) -> Now {
        let mono = Duration::from_millis(ms);
        Now { mono, unix: mono }
    }

    #[test]
    fn pings_come_an_interval_apart_and_do_not_drift() {
        for interval_ms in [300_u64, 1_000, 3_000, 60_000, 3_600_000] {
            let interval = interval_ms.div_ceil(TICK_MS);
            for phase in [0, 1, u32::MAX / 3, u32::MAX] {
                let opened = 12_345_678;
                let first = first_ping(at(opened), interval_ms, phase);
                let wait = u64::from(first) * TICK_MS - opened;
                assert!(wait <= interval * TICK_MS, "{interval_ms}: {wait}");
                let mut due = first;
                for late_ms in [0, 1, 150, interval_ms / 3, 0] {
                    let next = next_ping(at(u64::from(due) * TICK_MS + late_ms), interval_ms, phase);
                    assert_eq!(u64::from(next - due), interval, "{interval_ms} ms, {late_ms} ms late");
                    due = next;
                }
                // One that is an interval late is not followed at once.
                let now = u64::from(due) * TICK_MS + interval_ms * 9 / 10;
                let wait = u64::from(next_ping(at(now), interval_ms, phase)) * TICK_MS - now;
                assert!(wait > interval_ms / 2, "{interval_ms}: {wait}");
                // In another slot.
                for other in [0, 1, u32::MAX / 7, u32::MAX / 2, u32::MAX] {
                    let wait = u64::from(next_ping(at(u64::from(due) * TICK_MS), interval_ms, other)) - u64::from(due);
                    assert!(
                        wait > interval.div_ceil(3) && wait <= interval + interval.div_ceil(3),
                        "{interval_ms}: {wait}"
                    );
                }
            }
        }
        assert_eq!(next_ping(at(5), 0, 7), NEVER);
    }

    #[test]
    fn where_pongs_are_watched_nobody_can_ask_for_fewer_pings() {
        let rules = |pong_timeout_ms, native_pings| Rules { pong_timeout_ms, native_pings, ..rules() };
        let [base, extended] = [Dialect::Cable, Dialect::CableExtended];
        for (asked, dialect, rules, wanted) in [
            ("0", extended, rules(0, false), 0),
            ("0", extended, rules(6_000, false), 3_000),
            ("-1", extended, rules(6_000, false), 3_000),
            ("60", extended, rules(6_000, false), 3_000),
            ("2", extended, rules(6_000, false), 2_000),
            // This dialect has no pongs, so nobody waits for one.
            ("0", base, rules(6_000, false), 0),
            ("0", base, rules(6_000, true), 3_000),
        ] {
            assert_eq!(interval(Some(asked), dialect, &rules), wanted, "{asked} {dialect:?}");
        }
        assert_eq!(interval(None, extended, &rules(0, false)), 3_000);
    }
}
