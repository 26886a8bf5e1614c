//! Pings to the client and its signs of life. All moments are ticks of the shard's clock.

use std::time::Duration;

use crate::model::{CloseCause, Now, Tick, tick_after};

use super::{Context, Effect, Session};

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
    pub fn ping_due(&mut self, stalled: bool, ctx: &mut Context<'_>) {
        self.ping_at = after(ctx.now, u64::from(self.ping_interval_ms));
        if stalled {
            return;
        }
        ctx.emit(Effect::Ping(self.ping_precision));
        if ctx.rules.native_pings {
            ctx.emit(Effect::NativePing);
        }
        let answers = || self.dialect.language().answers_pings() || ctx.rules.native_pings;
        if ctx.rules.pong_timeout_ms > 0 && self.pong_by == NEVER && answers() {
            self.pong_by = after(ctx.now, ctx.rules.pong_timeout_ms);
        }
    }

    /// The client gave a sign of life: a message, or a pong frame.
    pub fn alive(&mut self) {
        self.pong_by = NEVER;
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

/// The interval a client asked for, in milliseconds: bounded; 0 or less turns pings off; what is no integer is
/// ignored.
pub(super) fn asked_interval(text: Option<&str>) -> Option<u64> {
    let seconds: i64 = text?.parse().ok()?;
    let Ok(seconds) = u64::try_from(seconds) else { return Some(0) };
    let asked = seconds.saturating_mul(1_000);
    Some(if asked == 0 { 0 } else { asked.clamp(*PING_INTERVAL_MS.start(), *PING_INTERVAL_MS.end()) })
}

/// The first ping comes at a random point between half and one and a half intervals, so that clients that came
/// together are not pinged together.
pub(super) fn first_ping(now: Now, interval_ms: u64, random: u64) -> Tick {
    if interval_ms == 0 { NEVER } else { after(now, interval_ms / 2 + random % interval_ms) }
}

fn after(now: Now, ms: u64) -> Tick {
    tick_after(now.mono + Duration::from_millis(ms))
}
