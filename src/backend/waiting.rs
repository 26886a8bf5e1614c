//! Calls that wait for a place: whose turn it is, who has waited too long, and who goes when they take too much memory.
//!
//! The order is fair between sessions. A session has one call at a time, so first come, first served would be fair among
//! those that never stop; but it would let everybody else stand behind all of them. So the session that asked least
//! lately is first, and of equals the one that waits longest. And those who arrive, with a Connect or to subscribe, take
//! turns with everybody else: nobody waits at the door because those inside are busy, nor the other way round.
//!
//! Every operation takes logarithmic time, for shards stand at the lock meanwhile. No clock in here: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::attempt::{Failure, Outcome};
use crate::model::{Call, CommandKind, Request, SlotKey};

/// What "lately" is: calls that a session made this long ago count no more, at the latest after twice the time.
const LATELY: Duration = Duration::from_secs(10);

/// Calls taken out at a time because they waited too long. Many may do so at one moment.
const EXPIRED_AT_ONCE: usize = 256;

/// What a waiting call takes beside its texts.
const CALL_BYTES: usize = 512;

/// A call, and who wants to know its end.
pub(super) struct Waiting {
    pub call: Call,
    /// When it stops being worth starting. Only calls of sessions have one; of others at most a few are here at a time,
    /// Disconnects wait in a queue of their own.
    pub deadline: Option<Instant>,
    pub done: Done,
}

/// Who is told about the end of a call.
pub(super) enum Done {
    Session,
    /// Somebody here: the queue of Disconnects, or readiness.
    Caller(oneshot::Sender<Result<Outcome, Failure>>),
}

/// What became of a call that was added.
pub(super) enum Pushed {
    Fits,
    /// This larger one had to go for it.
    Displaced(Waiting),
    /// There is no room, and none that is larger.
    Refused(Waiting),
}

/// Bytes that a call takes while it waits.
pub(super) fn bytes(call: &Call) -> usize {
    CALL_BYTES + call.request.texts_len()
}

/// See the module.
#[derive(Default)]
pub(super) struct WaitingCalls {
    /// By number. Numbers grow with every call, and so do deadlines.
    calls: BTreeMap<u64, Entry>,
    last_number: u64,
    /// Those of each class by their turn.
    turns: [BTreeSet<Turn>; 2],
    /// Which class is next.
    next_class: Class,
    /// The numbers of calls that sessions wait for. A session has one at most.
    by_session: FxHashMap<SlotKey, u64>,
    /// Bytes and numbers of the same.
    by_size: BTreeSet<(usize, u64)>,
    bytes: usize,
    lately: Lately,
}

struct Entry {
    waiting: Waiting,
    class: Class,
    turn: Turn,
    bytes: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Class {
    /// Connect and subscribe.
    #[default]
    Arriving,
    Other,
}

/// Least first: calls of the class that the session made lately, and the call's number.
type Turn = (u32, u64);

impl WaitingCalls {
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Bytes of the calls that sessions wait for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a call. If that makes more than so many bytes, the largest has to go.
    pub fn push(&mut self, waiting: Waiting, now: Instant, bytes_max: usize) -> Pushed {
        let of_session = matches!(waiting.done, Done::Session);
        let key = waiting.call.key;
        // Bounded where they wait before they come here.
        let bytes = if of_session { bytes(&waiting.call) } else { 0 };
        let largest = (self.bytes + bytes > bytes_max).then(|| self.by_size.last().copied().unwrap_or_default());
        let displaced = match largest {
            Some((size, _)) if size <= bytes => return Pushed::Refused(waiting),
            Some((_, number)) => self.remove(number),
            None => None,
        };
        self.last_number += 1;
        let number = self.last_number;
        let class = match waiting.call.request {
            Request::Connect { .. } | Request::Command { command: CommandKind::Subscribe, .. } => Class::Arriving,
            Request::Command { .. } | Request::Disconnect { .. } => Class::Other,
        };
        let counts = of_session && matches!(waiting.call.request, Request::Command { .. });
        let turn = (if counts { self.lately.count((key, class), now) } else { 0 }, number);
        self.turns[class as usize].insert(turn);
        if of_session {
            self.bytes += bytes;
            self.by_size.insert((bytes, number));
            let before = self.by_session.insert(key, number);
            debug_assert!(before.is_none(), "a session has one call at a time");
        }
        self.calls.insert(number, Entry { waiting, class, turn, bytes });
        displaced.map_or(Pushed::Fits, Pushed::Displaced)
    }

    /// Takes out the call whose turn it is.
    pub fn pop(&mut self) -> Option<Waiting> {
        let [arriving, others] = &self.turns;
        let class = match (arriving.is_empty(), others.is_empty()) {
            (false, false) => self.next_class,
            (false, true) => Class::Arriving,
            (true, _) => Class::Other,
        };
        let &(_, number) = self.turns[class as usize].first()?;
        let waiting = self.remove(number)?;
        self.next_class = if class == Class::Arriving { Class::Other } else { Class::Arriving };
        if self.calls.is_empty() {
            // The app has caught up.
            self.lately = Lately::default();
        }
        Some(waiting)
    }

    /// Takes out the call that this session waits for. Others are not canceled.
    pub fn cancel(&mut self, key: SlotKey) -> Option<Waiting> {
        let &number = self.by_session.get(&key)?;
        self.remove(number)
    }

    /// Takes out calls that have waited too long, some at a time; tells when to look again.
    pub fn expire(&mut self, now: Instant, expired: &mut Vec<SlotKey>) -> Option<Instant> {
        let most = expired.len() + EXPIRED_AT_ONCE;
        loop {
            // Those that no session waits for have no deadline and are stepped over; there are few.
            let (&number, deadline) =
                self.calls.iter().find_map(|(number, entry)| Some((number, entry.waiting.deadline?)))?;
            if deadline > now || expired.len() == most {
                return Some(deadline);
            }
            expired.extend(self.remove(number).map(|waiting| waiting.call.key));
        }
    }

    /// The calls that sessions wait for, in the order in which they came.
    pub fn of_sessions(&self) -> impl Iterator<Item = &Call> {
        let entries = self.calls.values().map(|entry| &entry.waiting);
        entries.filter(|waiting| matches!(waiting.done, Done::Session)).map(|waiting| &waiting.call)
    }

    /// Takes all of those out.
    pub fn take_of_sessions(&mut self) -> Vec<Waiting> {
        let numbers: Vec<u64> = self.by_session.values().copied().collect();
        numbers.into_iter().filter_map(|number| self.remove(number)).collect()
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let Entry { waiting, class, turn, bytes } = self.calls.remove(&number)?;
        self.turns[class as usize].remove(&turn);
        if let Done::Session = waiting.done {
            self.bytes -= bytes;
            self.by_size.remove(&(bytes, number));
            self.by_session.remove(&waiting.call.key);
        }
        Some(waiting)
    }
}

/// How many calls of each class sessions made lately, also those that were refused or given up. Only calls that had to wait count, so while
/// the app keeps up there is nothing in here.
#[derive(Default)]
struct Lately {
    now: FxHashMap<(SlotKey, Class), u32>,
    before: FxHashMap<(SlotKey, Class), u32>,
    since: Option<Instant>,
}

impl Lately {
    /// Counts a call; tells how many there were before it.
    fn count(&mut self, who: (SlotKey, Class), now: Instant) -> u32 {
        if now.duration_since(*self.since.get_or_insert(now)) >= LATELY {
            self.before = std::mem::take(&mut self.now);
            self.since = Some(now);
        }
        let before = self.before.get(&who).copied().unwrap_or(0);
        let calls = self.now.entry(who).or_default();
        *calls += 1;
        before + *calls - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Env, Sid, State};

    fn key(index: u32) -> SlotKey {
        SlotKey { shard: 0, index, generation: 0 }
    }

    fn waiting(index: u32, request: Request) -> Waiting {
        Waiting { call: Call { key: key(index), sid: Sid::from_bits(0), request }, deadline: None, done: Done::Session }
    }

    fn connect(index: u32) -> Waiting {
        waiting(index, Request::Connect { env: Env::new("", []) })
    }

    fn command_of(index: u32, data: String) -> Waiting {
        let request = Request::Command {
            command: CommandKind::Message,
            identifier: "".into(),
            data,
            env: Env::new("", []),
            cstate: State::default(),
            istate: State::default(),
        };
        waiting(index, request)
    }

    fn command(index: u32) -> Waiting {
        command_of(index, String::new())
    }

    fn disconnect(index: u32) -> Waiting {
        let request = Request::Disconnect { subscriptions: vec![], env: Env::new("", []), cstate: State::default() };
        let (done, _) = oneshot::channel();
        Waiting { done: Done::Caller(done), ..waiting(index, request) }
    }

    fn add(calls: &mut WaitingCalls, waiting: Waiting) {
        add_at(calls, waiting, Instant::now());
    }

    fn add_at(calls: &mut WaitingCalls, waiting: Waiting, now: Instant) {
        assert!(matches!(calls.push(waiting, now, usize::MAX), Pushed::Fits));
    }

    fn popped(calls: &mut WaitingCalls, times: usize) -> Vec<u32> {
        (0..times).map_while(|_| Some(calls.pop()?.call.key.index)).collect()
    }

    fn is_empty(calls: &WaitingCalls) -> bool {
        calls.calls.is_empty()
            && calls.turns.iter().all(BTreeSet::is_empty)
            && calls.by_session.is_empty()
            && calls.by_size.is_empty()
            && calls.bytes == 0
            && calls.lately.now.is_empty()
    }

    #[test]
    fn those_who_had_little_go_before_those_who_never_stop() {
        let mut calls = WaitingCalls::default();
        (0..3).for_each(|index| add(&mut calls, command(index)));
        // Each of the three calls again as soon as it is answered.
        let mut order = Vec::new();
        for _ in 0..6 {
            let index = calls.pop().unwrap().call.key.index;
            order.push(index);
            add(&mut calls, command(index));
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2], "they share");
        add(&mut calls, command(7));
        add(&mut calls, command(8));
        assert_eq!(popped(&mut calls, 5), [7, 8, 0, 1, 2]);
        assert!(is_empty(&calls));
    }

    #[test]
    fn who_was_refused_has_asked_as_well() {
        let mut calls = WaitingCalls::default();
        (0..3).for_each(|index| add(&mut calls, command(index)));
        calls.cancel(key(0));
        add(&mut calls, command(0));
        add(&mut calls, command(3));
        assert_eq!(popped(&mut calls, 4), [1, 2, 3, 0]);
    }

    #[test]
    fn what_a_session_asked_long_ago_counts_no_more() {
        let (mut calls, start) = (WaitingCalls::default(), Instant::now());
        let mut ask = |index, now| {
            add_at(&mut calls, command(index), now);
            calls.calls.last_key_value().map(|(_, entry)| entry.turn.0)
        };
        assert_eq!(ask(0, start), Some(0));
        // Others, for a session has one call at a time.
        assert_eq!(ask(1, start + LATELY), Some(0));
        calls.cancel(key(0));
        add_at(&mut calls, command(0), start + LATELY);
        assert_eq!(calls.calls.last_key_value().map(|(_, entry)| entry.turn.0), Some(1));
        calls.cancel(key(0));
        add_at(&mut calls, command(0), start + 2 * LATELY);
        assert_eq!(calls.calls.last_key_value().map(|(_, entry)| entry.turn.0), Some(1));
        calls.cancel(key(0));
        add_at(&mut calls, command(2), start + 3 * LATELY);
        add_at(&mut calls, command(0), start + 4 * LATELY);
        assert_eq!(calls.calls.last_key_value().map(|(_, entry)| entry.turn.0), Some(0));
    }

    #[test]
    fn those_who_arrive_take_turns_with_everybody_else() {
        let mut calls = WaitingCalls::default();
        (0..100).for_each(|index| add(&mut calls, command(index)));
        (200..202).for_each(|index| add(&mut calls, connect(index)));
        let mut subscribe = command(202);
        let Request::Command { command, .. } = &mut subscribe.call.request else { unreachable!() };
        *command = CommandKind::Subscribe;
        add(&mut calls, subscribe);
        add(&mut calls, disconnect(300));
        assert_eq!(popped(&mut calls, 7), [200, 0, 201, 1, 202, 2, 3]);
        assert_eq!(popped(&mut calls, usize::MAX).last(), Some(&300));
        assert!(is_empty(&calls));
    }

    #[test]
    fn a_canceled_call_is_gone_and_no_other() {
        let mut calls = WaitingCalls::default();
        (0..3).for_each(|index| add(&mut calls, command(index)));
        add(&mut calls, disconnect(1));
        assert_eq!(calls.cancel(key(1)).unwrap().call.key, key(1));
        assert!(calls.cancel(key(1)).is_none(), "the Disconnect is nobody's to cancel");
        assert_eq!(popped(&mut calls, 9), [0, 2, 1]);
        assert!(is_empty(&calls));
    }

    #[test]
    fn the_largest_goes_when_there_are_too_many_bytes() {
        let (mut calls, now) = (WaitingCalls::default(), Instant::now());
        let of = |index, len| command_of(index, "x".repeat(len));
        let max = 3 * CALL_BYTES + 1000;
        let gone = |pushed| match pushed {
            Pushed::Fits => None,
            Pushed::Displaced(waiting) | Pushed::Refused(waiting) => Some(waiting.call.key.index),
        };
        assert_eq!(gone(calls.push(of(1, 100), now, max)), None);
        assert_eq!(gone(calls.push(of(2, 800), now, max)), None);
        assert_eq!(gone(calls.push(of(3, 801), now, max)), Some(3), "as large as the largest, and later");
        assert_eq!(gone(calls.push(of(4, 500), now, max)), Some(2));
        assert_eq!(gone(calls.push(disconnect(5), now, max)), None, "bounded elsewhere");
        assert_eq!((calls.len(), calls.bytes() < max), (3, true));
    }

    #[test]
    fn those_who_waited_too_long_are_taken_out_some_at_a_time() {
        let (mut calls, now) = (WaitingCalls::default(), Instant::now());
        let late = now + Duration::from_secs(1);
        add(&mut calls, disconnect(0));
        (0..300).for_each(|index| add(&mut calls, Waiting { deadline: Some(now), ..command(index) }));
        add(&mut calls, Waiting { deadline: Some(late), ..command(300) });
        let mut expired = Vec::new();
        assert_eq!(calls.expire(now, &mut expired), Some(now), "look again at once");
        assert_eq!(expired.len(), EXPIRED_AT_ONCE);
        assert_eq!(calls.expire(now, &mut expired), Some(late));
        assert!(expired.iter().copied().eq((0..300).map(key)));
        assert_eq!(calls.len(), 2);
    }
}
