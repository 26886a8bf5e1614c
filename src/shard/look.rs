//! What an operator may ask a running shard: its last closes, and some of its live connections.
//!
//! A question comes as a message, and its answer goes back through a channel of its own. A walk over all slots takes
//! [`SLOTS_PER_TURN`] of them in a turn. One question is answered at a time, and few may wait.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use serde::Serialize;
use tokio::sync::oneshot;

use crate::model::Sid;

use super::closes::{ClosedConnection, Origin, Served, Who, millis};
use super::slots::{NONE, Stage};
use super::{Machine, Services, Shard};

/// Slots looked at in one turn; at about 50 ns for one that is in no cache this is how long it takes.
const SLOTS_PER_TURN: u32 = 4096;

/// Connections that one answer holds at most; each costs two system calls.
pub const CONNECTIONS_MAX: usize = 100;

/// Questions that wait; one more is answered at once, with [`Seen::Busy`].
const WAITING_MAX: usize = 4;

/// A question.
#[derive(Debug)]
pub struct Look {
    /// For what.
    pub at: LookAt,
    /// Where the answer goes. Nobody has to wait for it.
    pub answer: oneshot::Sender<Seen>,
}

/// Where the answer to a [`Look`] comes.
pub type Answered = oneshot::Receiver<Seen>;

impl Look {
    /// A question, and where its answer comes.
    pub fn new(at: LookAt) -> (Look, Answered) {
        let (answer, answered) = oneshot::channel();
        (Look { at, answer }, answered)
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookAt {
    /// The last connections that ended.
    Closes,
    /// The session with this id.
    Sid(Sid),
    /// Up to so many sessions with these connection identifiers.
    Identifiers(String, usize),
    /// So many that have been there longest.
    Oldest(usize),
    /// So many that have most bytes waiting for them; none that has nothing waiting.
    Slowest(usize),
}

/// An answer.
#[derive(Debug)]
pub enum Seen {
    /// To [`LookAt::Closes`], oldest first.
    Closes(Vec<ClosedConnection>),
    /// To everything else.
    Connections(Vec<LiveConnection>),
    /// Too many ask at once.
    Busy,
}

/// A live connection. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct LiveConnection {
    /// What it serves.
    pub route: Served,
    /// Whether a command of it waits for an answer.
    pub is_waiting: bool,
    /// Since it was accepted, in steps of 200.
    pub age_ms: u64,
    /// Since the peer's last sign of life, bytes or an acknowledgement.
    pub silent_ms: Option<u64>,
    /// Since bytes came last.
    pub since_data_ms: Option<u64>,
    /// Round-trip time, in microseconds.
    pub rtt_us: Option<u64>,
    /// Segments sent and not acknowledged.
    pub unacked: Option<u32>,
    /// Segments sent again in its whole life.
    pub retransmits: Option<u32>,
    /// Bytes that came, the handshake's included.
    pub received_bytes: Option<u64>,
    /// Bytes that the peer has acknowledged, the handshake's included.
    pub sent_bytes: Option<u64>,
    /// Bytes that wait for it in this server, with what each frame costs beside them.
    pub waiting_bytes: usize,
    /// Streams that it follows.
    pub streams: usize,
    /// Where it comes from.
    pub peer: Option<Origin>,
    /// The shard that holds it.
    pub shard: u16,
    /// Who it is; only with `--debug-identifiers`.
    #[serde(flatten)]
    pub who: Option<Who>,
}

/// Questions under way.
#[derive(Default)]
pub(super) struct Looks {
    waiting: VecDeque<Look>,
    /// How far the walk of the first has come.
    at: u32,
    /// The best of it so far: by how much each is asked for, the least first, with its token.
    found: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Looks {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Somebody asks.
    pub(super) fn look(&mut self, look: Look) {
        match look.at {
            // Whoever asked may have gone, here and below.
            LookAt::Closes => drop(look.answer.send(Seen::Closes(self.closes.list()))),
            _ if self.looks.waiting.len() >= WAITING_MAX => drop(look.answer.send(Seen::Busy)),
            _ => self.looks.waiting.push_back(look),
        }
    }

    /// Goes on with the first question.
    pub(super) fn go_on_looking(&mut self) {
        let Some(look) = self.looks.waiting.front() else { return };
        let from = self.looks.at;
        let end = self.slots.end();
        let to = from.saturating_add(SLOTS_PER_TURN).min(end);
        let mut found = std::mem::take(&mut self.looks.found);
        let is_complete = match &look.at {
            _ if look.answer.is_closed() => true,
            LookAt::Closes => true,
            LookAt::Sid(sid) => {
                let is_it = |index: &u32| match &self.slots[*index].stage {
                    Stage::Session(session, _) => session.sid() == *sid,
                    _ => false,
                };
                found.extend((from..to).find(is_it).map(|index| Reverse((0, self.slots.token(index)))));
                !found.is_empty()
            }
            LookAt::Identifiers(identifiers, most) => {
                let first = self.identities.find(&self.slots, identifiers);
                let next = |index: &u32| Some(self.slots[*index].same_identity.next).filter(|next| *next != NONE);
                let same = std::iter::successors(first, next).take((*most).min(CONNECTIONS_MAX));
                found.extend(same.map(|index| Reverse((0, self.slots.token(index)))));
                true
            }
            LookAt::Oldest(most) | LookAt::Slowest(most) => {
                let most = (*most).min(CONNECTIONS_MAX);
                for index in (from..to).filter(|&index| self.is_live(index)) {
                    let slot = &self.slots[index];
                    let rank = match look.at {
                        LookAt::Slowest(_) => slot.outbox.as_ref().map_or(0, |outbox| outbox.cost() as u64),
                        // One that was accepted just now is one of the oldest, too, where there are few.
                        _ => slot.stage.age(self.now).map_or(0, millis) + 1,
                    };
                    if rank > 0 {
                        found.push(Reverse((rank, self.slots.token(index))));
                    }
                    if found.len() > most {
                        found.pop();
                    }
                }
                false
            }
        };
        if !is_complete && to < end {
            (self.looks.at, self.looks.found) = (to, found);
            return;
        }
        self.looks.at = 0;
        // Most asked for first; those that have gone since are left out.
        let tokens = found.into_sorted_vec().into_iter().map(|Reverse((_, token))| token);
        let live = tokens.filter_map(|token| self.live(self.slots.find_token(token)?)).collect();
        if let Some(look) = self.looks.waiting.pop_front() {
            drop(look.answer.send(Seen::Connections(live)));
        }
    }

    fn live(&self, index: u32) -> Option<LiveConnection> {
        let slot = &self.slots[index];
        let tcp_info = slot.socket.as_ref().and_then(|socket| self.machine.tcp_info(socket));
        let session = match &slot.stage {
            Stage::Session(session, _) => Some(session),
            _ => None,
        };
        Some(LiveConnection {
            route: Served::of(&slot.stage)?,
            is_waiting: session.is_some_and(|session| session.is_waiting()),
            age_ms: slot.stage.age(self.now).map(millis)?,
            silent_ms: tcp_info.map(|tcp_info| millis(tcp_info.silent())),
            since_data_ms: tcp_info.map(|tcp_info| millis(tcp_info.since_data)),
            rtt_us: tcp_info.map(|tcp_info| tcp_info.rtt.as_micros() as u64),
            unacked: tcp_info.map(|tcp_info| tcp_info.unacked),
            retransmits: tcp_info.map(|tcp_info| tcp_info.retransmits),
            received_bytes: tcp_info.map(|tcp_info| tcp_info.received),
            sent_bytes: tcp_info.map(|tcp_info| tcp_info.sent),
            waiting_bytes: slot.outbox.as_ref().map_or(0, |outbox| outbox.cost()),
            streams: session.map_or(0, |session| session.topics().count()),
            peer: self.origin(index),
            shard: self.slots.key(index).shard,
            who: self.who(index),
        })
    }
}
