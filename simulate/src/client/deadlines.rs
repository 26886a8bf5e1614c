//! Deadlines as clients see them, to the moment: none is early, and none is later than its tick.
//!
//! The kernel notes when the server wrote each byte, so what a client reads late is judged by when it was said. While a
//! connection is moved its deadlines stand still, and on the clock of its new shard they are rounded up to the next tick.

use std::time::Duration;

use cableway::model::TICK_MS;

use super::{Aim, Client, Reading};
use crate::model::Phase;
use crate::net::ConnId;
use crate::world::Sim;

/// How long a shard lets a peer that it has said its last word to have its half open.
const LINGER: Duration = Duration::from_secs(2);

/// How much later than asked for a deadline may be.
pub(super) const TICK: Duration = Duration::from_millis(TICK_MS);

/// Longer than any deadline is late.
pub(super) const SLACK: Duration = Duration::from_millis(TICK_MS + 100);

/// A time in which no shard held the connection.
#[derive(Clone, Copy)]
pub struct Move {
    pub apart: Duration,
    pub together: Duration,
}

/// What a client knows of its deadlines.
#[derive(Default)]
pub struct Clock {
    pub moves: Vec<Move>,
    /// Times in which its shard stood still: deadlines passed, and nobody looked.
    pub pauses: Vec<Move>,
    /// The move that it makes if the copy of its connection is the one that goes on.
    pub copied: Option<Move>,
    pub accepted_at: Option<Duration>,
    /// When the server wrote the end of what was read last.
    pub said_at: Duration,
    /// When the server let it in.
    pub opened_at: Option<Duration>,
    /// When the server sent it pings.
    pub pings: Vec<Duration>,
    /// When the server sent it ping frames.
    pub ping_frames: Vec<Duration>,
    /// The first ping that may have gone without a sign of life: those before it were surely answered.
    pub ping_waits: Option<Duration>,
    /// When its last question was answered: from then on what lies behind it is read.
    pub answered_at: Duration,
}

impl Clock {
    /// How long deadlines have stood still between two moments.
    fn stood_still(&self, since: Duration, until: Duration) -> Duration {
        let between = self.moves.iter().filter(|a| a.apart >= since && a.together <= until);
        between.map(|a| a.together - a.apart).sum()
    }

    /// How much later they may be because of moves.
    fn postponed(&self, since: Duration) -> Duration {
        let postpones = self.moves.iter().chain(&self.pauses).filter(|a| a.together >= since);
        postpones.map(|a| a.together - a.apart + TICK).sum()
    }

    /// Whether a deadline that was set at `since`, for this time later, has not passed at `now`.
    pub fn is_early(&self, since: Duration, time: Duration, now: Duration) -> bool {
        now < since + time + self.stood_still(since, now)
    }

    /// Whether it ought to have passed before.
    pub fn is_late(&self, since: Duration, time: Duration, now: Duration) -> bool {
        now > since + time + self.postponed(since) + SLACK
    }

    /// The same of one that was set at some moment between these two. A move or a pause makes a deadline that was set before it
    /// later by up to a tick than one that is set behind it.
    fn is_late_since_any(&self, from: Duration, to: Duration, time: Duration, now: Duration) -> bool {
        let before = self.moves.iter().chain(&self.pauses).map(|a| a.apart).filter(|at| (from..=to).contains(at));
        before.chain([to]).all(|since| self.is_late(since, time, now))
    }
}

impl Client {
    /// Whether the server expects it to say something after a ping.
    fn answers_are_due(&self, sim_native_pings: bool) -> bool {
        sim_native_pings || self.answers_ping_messages()
    }

    fn answers_ping_messages(&self) -> bool {
        self.offered == "actioncable-v1-ext-json"
    }
}

impl Sim {
    /// A ping of this client was sent; those who always have room are sent one in every interval.
    pub(super) fn ping_in_time(&mut self, c: usize) {
        let interval = Duration::from_millis(self.scenario.settings.session.ping_interval_ms);
        let blocked = self.net.conn(c).ever_blocked;
        let clock = &mut self.clients[c].clock;
        let sent_at = clock.said_at;
        // A third of an interval, behind one that was late, and in another slot, which has another phase; else a whole one. The
        // first may come at once.
        let since = clock.pings.last().copied().unwrap_or(sent_at);
        let early = clock.is_early(since, (interval / 3).saturating_sub(TICK), sent_at) && since != sent_at;
        clock.pings.push(sent_at);
        clock.ping_waits.get_or_insert(sent_at);
        if early && !blocked {
            self.fail(format!("client {c}: a ping at {sent_at:?}, {:?} after {since:?}", sent_at - since));
        }
    }

    /// A ping frame of this client was sent, behind a ping: it was not needed if bytes came between that ping and the one
    /// before.
    pub(super) fn ping_frame_is_needed(&mut self, c: usize) {
        let (blocked, read_at) = (self.net.conn(c).ever_blocked, self.net.conn(c).read_at);
        let clock = &mut self.clients[c].clock;
        clock.ping_frames.push(clock.said_at);
        let [.., before, now] = clock.pings[..] else { return };
        if before < read_at && read_at < now && !blocked {
            self.fail(format!("client {c}: a ping frame at {now:?}, and it was heard at {read_at:?}"));
        }
    }

    /// Whether the client has been silent for long enough after a ping that it may be told so.
    pub(super) fn may_have_no_pong(&self, c: usize) -> bool {
        let rules = &self.scenario.settings.session;
        let client = &self.clients[c];
        let time = Duration::from_millis(rules.pong_timeout_ms);
        let passed = client.clock.ping_waits.is_some_and(|at| !client.clock.is_early(at, time, client.clock.said_at));
        !time.is_zero() && client.answers_are_due(rules.native_pings) && (!client.prompt || passed)
    }

    /// Whether the client is connected for long enough that it may be closed for having said nothing since.
    pub(super) fn may_be_idle(&self, c: usize) -> bool {
        let time = Duration::from_millis(self.scenario.settings.session.idle_timeout_ms);
        let clock = &self.clients[c].clock;
        // It may have been let in long before the end of the response found room.
        !time.is_zero() && clock.accepted_at.is_some_and(|at| !clock.is_early(at, time, clock.said_at))
    }

    /// With nothing to do for the shards: has a deadline of this connection passed and nothing come of it, or will its
    /// shard sleep until it has?
    pub(super) fn check_deadlines(&mut self, c: usize) {
        if let Some(what) = self.overdue(c) {
            self.fail(format!("client {c}: {what}"));
        }
    }

    fn overdue(&mut self, c: usize) -> Option<String> {
        let until = self.sites[self.clients[c].shard].wakes_at.map_or(Duration::MAX, |at| at.max(self.mono));
        let (write_timeout, handshake_timeout, session) = {
            let settings = &self.scenario.settings;
            (settings.write_timeout, settings.handshake_timeout, settings.session.clone())
        };
        let closes = self.may_be_closing(c);
        let (read_at, faulty) = (self.net.conn(c).read_at, self.net.conn(c).faulty);
        let conn = self.net.conn(c);
        let stuck_since = conn.blocked_at.filter(|_| conn.is_stuck());
        let shut_at = conn.shut_at.filter(|_| !conn.server_gone);
        let blocked = conn.ever_blocked;
        let client = &self.clients[c];
        let clock = &client.clock;
        if shut_at.is_some_and(|at| clock.is_late(at, LINGER, until)) {
            return Some(format!("its half is shut since {shut_at:?} and it is not let go"));
        }
        if let Some(at) = stuck_since.filter(|_| client.upgraded_at.is_some()) {
            // One that is being closed has as long again, and the time it may take to go.
            let time = if closes { write_timeout * 2 + LINGER } else { write_timeout };
            if clock.is_late(at, time, until) {
                return Some(format!("takes nothing since {at:?} and is not given up"));
            }
        }
        if !client.is_healthy(faulty) || !client.prompt || client.turned_away || client.handed_over {
            return None;
        }
        if client.reading == Reading::Head
            && clock.accepted_at.is_some_and(|at| clock.is_late(at, handshake_timeout, until))
        {
            return Some(format!("accepted at {:?}, and not told that its request is too slow", clock.accepted_at));
        }
        if client.reading != Reading::Frames || client.aim != Aim::Cable || blocked {
            return None;
        }
        let interval = Duration::from_millis(session.ping_interval_ms);
        let last = clock.pings.last().map(|&at| (at, interval * 4 / 3)).or(clock.opened_at.map(|at| (at, interval)));
        if let Some((since, time)) = last.filter(|_| !interval.is_zero())
            && clock.is_late(since, time, until)
        {
            return Some(format!("no ping since {since:?}"));
        }
        let pong_timeout = Duration::from_millis(session.pong_timeout_ms);
        let heard_at = read_at.max(clock.answered_at);
        let idle_timeout = Duration::from_millis(session.idle_timeout_ms);
        if !idle_timeout.is_zero()
            && client.model.phase == Phase::Open
            && client.model.waiting.is_none()
            // What it said last was taken up when it was read, or behind a question, when that was answered at the latest.
            && clock.opened_at.is_some_and(|at| clock.is_late_since_any(read_at, at.max(heard_at), idle_timeout, until))
        {
            return Some(format!("has said nothing since {heard_at:?} and is not closed"));
        }
        let asked = if client.answers_ping_messages() { &clock.pings } else { &clock.ping_frames };
        let unanswered = asked.iter().find(|&&at| at > heard_at);
        if let Some(&at) = unanswered.filter(|_| !pong_timeout.is_zero())
            && client.model.waiting.is_none()
            && clock.is_late(at, pong_timeout, until)
        {
            return Some(format!("silent since the ping at {at:?} and not given up"));
        }
        None
    }

    /// Whether it has said something and seen nothing come of it.
    fn has_unhandled(&self, c: usize) -> bool {
        !self.clients[c].model.items.is_empty()
    }

    /// Whether something that it said had not come to its end when the server said what it read last, or whatever was said at
    /// this moment, although it began as long before as a message may take.
    pub(super) fn may_have_no_end(&mut self, c: usize, closed_at: Duration) -> bool {
        let timeout = self.scenario.settings.message_timeout;
        // Whoever is closed while it has no room is told later. What comes meanwhile is read and of no use.
        let is_told_later = self.net.conn(c).ever_blocked;
        let (net, client) = (&self.net, &self.clients[c]);
        client.said.iter().any(|said| {
            let has_end = !is_told_later && net.read_at(c, said.end - 1).is_some_and(|at| at < closed_at);
            let begun_at = net.read_at(c, said.start);
            !has_end && begun_at.is_some_and(|at| !client.clock.is_early(at, timeout, closed_at))
        })
    }

    /// Whether the server may have begun to close this connection, as far as it can be told from outside.
    fn may_be_closing(&mut self, c: usize) -> bool {
        if self.may_have_no_pong(c)
            || self.may_be_idle(c)
            || self.has_unhandled(c)
            || self.may_have_no_end(c, self.mono)
        {
            return true;
        }
        let identifiers = self.identifiers(c);
        let client = &self.clients[c];
        // One that has not read its welcome does not know yet who it is.
        let is_anybody = self.scenario.settings.session.no_auth && client.sid.is_none() && !self.evicted.is_empty();
        client.was_drained
            || is_anybody
            || self.sites[client.shard].drained_by.is_some()
            || self.evicted.iter().any(|(evicted, _)| *evicted == identifiers)
            || self.any_too_slow
            || client.taken_over
            || client.silent
            || client.left
            || client.saw_close
            || client.model.phase != Phase::Open
            || client.model.waiting.is_some()
    }

    /// Everything the client has said is with the server, which waits for nobody: the last of it was a sign of life.
    pub(super) fn note_alive(&mut self, c: usize) {
        let heard = self.net.is_read(c);
        let client = &mut self.clients[c];
        if heard && client.out.is_empty() && client.model.waiting.is_none() {
            let spoke_at = client.spoke_at;
            let clock = &mut client.clock;
            let later = clock.pings.iter().copied().find(|&at| spoke_at.is_none_or(|spoke_at| at >= spoke_at));
            clock.ping_waits = later;
        }
    }

    /// A shard lets go of a connection: not before its peer had the time to close its half.
    pub fn check_let_go(&mut self, conn: ConnId) {
        let now = self.mono;
        let Some(shut_at) = self.net.conn(conn).shut_at.filter(|_| self.net.conn(conn).is_whole()) else { return };
        // How long this takes is of no matter, so it is rounded down.
        if self.clients[conn].clock.is_early(shut_at, LINGER - TICK, now) {
            self.fail(format!("client {conn}: let go at {now:?}, and shut at {shut_at:?} only"));
        }
    }

    /// A shard gave up so many connections in this turn because nothing got out to them. Of those that it let go of, so
    /// many must have been stuck for as long as they may.
    pub fn check_given_up(&mut self, count: u64) {
        let (now, write_timeout) = (self.mono, self.scenario.settings.write_timeout);
        let let_go = std::mem::take(&mut self.net.let_go);
        let stuck = let_go.iter().filter(|&&c| {
            let since = self.net.conn(c).blocked_at;
            since.is_some_and(|at| !self.clients[c].clock.is_early(at, write_timeout, now))
        });
        if (stuck.count() as u64) < count {
            self.fail(format!("{count} of {let_go:?} were given up, and not all took nothing for long enough"));
        }
    }
}
