//! The connection engine: one thread, its sockets, and everything that happens to them.
//!
//! A shard owns its connections. It is driven in turns: the caller reports what happened (a socket is ready,
//! somebody waits to be accepted, a message came from another thread) and ends the turn; the shard applies each
//! thing at once, without ever waiting, and writes out at the end of the turn what the turn produced.
//!
//! ```text
//! loop {
//!     wait for events, at most until shard.next_wake()
//!     shard.begin_turn();
//!     shard.accept() / shard.ready(token, ..) / shard.receive(message)     for each event
//!     shard.end_turn();
//! }
//! ```
//!
//! What it touches is behind two traits: [`Machine`] gives sockets, readiness and the clock, [`Services`] what the rest
//! of the node does for it. A simulation has others and runs the same code. There is no lock in here and no other
//! thread.
//!
//! Every list has a bound: connections by descriptors and `--max-conn`, handshakes by
//! [`Settings::handshakes_max`], an outbox by [`Settings::outbox_bytes_max`], a turn by [`ACCEPTS_PER_TURN`],
//! [`READS_PER_TURN`], [`DELIVERIES_PER_TURN`], [`DISCONNECTS_PER_TURN`] and [`DEADLINES_PER_TURN`], and all that is kept
//! for clients together by [`Settings::buffers_bytes_max`]. Not bounded is how long the list of a publication's receivers
//! is, which is made in one turn.

mod accept;
mod ahead;
mod buffers;
mod close;
mod closes;
mod connection;
mod deadline;
mod drain;
mod effects;
mod epoll;
mod fanout;
mod frame;
mod fresh;
mod handshake;
mod identities;
mod inbox;
mod lanes;
mod look;
mod machine;
mod metrics;
mod outbox;
mod ping;
mod read;
mod run;
mod samples;
mod services;
mod slots;
mod still;
mod wheel;
mod write;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::hub::{Hub, StreamHasher};
use crate::identity::{ResumeTokens, StreamRouter};
use crate::model::{Answer, Now, Reply, Scheme, TICK_MS, tick};
use crate::proto::frame::Limits;
use crate::session::{self, Effect};

use ahead::LaidOut;
use buffers::Buffers;
use closes::Closes;
use deadline::RareDeadlines;
use drain::Drain;
use fanout::{Fanout, Work};
use fresh::FreshStreams;
use identities::Identities;
use look::Looks;
use outbox::Outbox;
use ping::PingFrames;
use read::Stashes;
use samples::Sampler;
use slots::{Slots, flag};
use still::Still;
use wheel::Wheel;
use write::SPARE_OUTBOXES;

pub use crate::os::tcp::TcpInfo;
pub use crate::session::Asks;
pub use closes::{ClosedConnection, Origin, Served, Who};
pub use connection::{BadState, FORMAT, TakenApart};
pub use epoll::{Deal, Epoll, EpollSettings, Socket};
use handshake::{Begun, Heads};
pub use handshake::{ProxyRules, Tokens};
pub use inbox::{Delivery, Inbox, Message, Permit};
pub use lanes::{Arrived, Copying, CopyingAhead, Divert, HandOver, LaneError, Lanes, Settled, Verdict};
pub use look::{Answered, CONNECTIONS_MAX, LiveConnection, Look, LookAt, Seen};
pub use machine::{Accepted, Incoming, Interest, Machine, Readiness, Received, UNKNOWN_PEER};
pub use metrics::ShardMetrics;
pub use run::run;
pub use services::Services;

/// Connections accepted in one turn. Enough to empty a deep queue in a few turns, few enough that open
/// connections wait for a millisecond at most.
pub const ACCEPTS_PER_TURN: usize = 256;

/// Reads from one connection in one turn, each up to [`SCRATCH_BYTES`]; a client that sends without end gets its
/// next reads in the next turn, after everybody else.
pub const READS_PER_TURN: usize = 4;

/// Receivers served with publications in one turn. At about 10 us for a send this is how long a turn may take.
pub const DELIVERIES_PER_TURN: usize = 2048;

/// Sessions sent away in one turn on the app's demand.
pub const DISCONNECTS_PER_TURN: usize = 512;

/// Deadlines handled in one turn. At a few microseconds for a heartbeat this is how long a turn may take.
pub const DEADLINES_PER_TURN: usize = 2048;

/// The one read buffer of a shard. A whole message of the default maximum size fits with room for the next.
pub const SCRATCH_BYTES: usize = 128 * 1024;

/// How long a connection that was closed by us may take to go: our last bytes have to arrive, and a socket closed
/// with unread bytes resets the peer and may take them back.
pub const LINGER: Duration = Duration::from_secs(2);

/// Bytes that a peer may still send after we have closed. More, and it is reset.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// What a client that finds no room is told to wait before it tries again, in seconds.
const RETRY_AFTER_S: u32 = 5;

/// How long accepting pauses when there is neither descriptor nor reserve.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a shard knows of a listener.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenerSettings {
    /// What its URLs begin with.
    pub scheme: Scheme,
}

/// `TCP_USER_TIMEOUT`, by what finds a dead peer.
///
/// Linux measures it from the last thing heard, whether data or keepalive probes stay without acknowledgement, and does
/// not count probes once it is set (`tcp_keepalive_timer`): a time-out that is right for pings would end a silent
/// connection at the first probe that is lost, or let it live far beyond its last probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserTimeouts {
    /// For clients that are pinged so often that keepalive never probes them; zero: the system's.
    pub pinged: Duration,
    /// For all others: as long as keepalive takes with all its probes; zero: the system's.
    pub probed: Duration,
    /// Silence after which keepalive probes; zero: it does not.
    pub keepalive_time: Duration,
    /// What accepted sockets have from their listener.
    pub inherited: Duration,
}

impl UserTimeouts {
    /// The one for a client with this time between pings; zero: none.
    pub fn of(&self, ping_interval: Duration) -> Duration {
        // Half an interval more than lies between two pings: the server may be late.
        let is_probed = ping_interval.is_zero() || ping_interval * 3 / 2 >= self.keepalive_time;
        if is_probed && !self.keepalive_time.is_zero() { self.probed } else { self.pinged }
    }
}

/// How a shard treats its connections.
pub struct Settings {
    /// The listeners, by number. One that is not listed is as the default.
    pub listeners: Vec<ListenerSettings>,
    /// Names streams for all shards of the node alike.
    pub stream_hasher: StreamHasher,
    /// Which paths and origins may upgrade.
    pub handshake: crate::proto::handshake::Rules,
    /// How long a request may take to arrive.
    pub handshake_timeout: Duration,
    /// Connections that have not finished their request; for one more, the one that began first is answered 503.
    pub handshakes_max: usize,
    /// How long a message may take from its first byte to its last.
    pub message_timeout: Duration,
    /// Size of client messages.
    pub limits: Limits,
    /// Size of client messages on the echo path.
    pub echo_limits: Limits,
    /// Bytes that may wait for one client, with what each frame costs beside them; one more frame closes it. 0: no limit.
    pub outbox_bytes_max: usize,
    /// Bytes that the shard may keep for all its clients together: requests and messages that are not complete, what
    /// waits behind commands, what clients have not taken. `usize::MAX`: no limit.
    pub buffers_bytes_max: usize,
    /// How long nothing at all may get out to a client that has bytes waiting.
    pub write_timeout: Duration,
    /// How long sent bytes may stay without acknowledgement.
    pub user_timeouts: UserTimeouts,
    /// How sessions behave.
    pub session: session::Rules,
    /// What tokens are accepted.
    pub tokens: Tokens,
    /// What clients show to come back to their sessions; `None` where no sessions are kept.
    pub resume_tokens: Option<ResumeTokens>,
    /// Which channels this server answers itself.
    pub router: StreamRouter,
    /// What the app gets to see of an upgrade request.
    pub proxy: ProxyRules,
    /// How many of its last closes the shard keeps.
    pub closes_max: usize,
    /// Whether operators are shown who clients are.
    pub debug_identifiers: bool,
}

impl fmt::Debug for Settings {
    /// Without the keys in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// One shard. The doc comment of the module says how to drive it.
pub struct Shard<M: Machine, N: Services<M::Socket>> {
    machine: M,
    services: N,
    settings: Arc<Settings>,
    metrics: Arc<ShardMetrics>,
    now: Now,
    slots: Slots<M::Socket>,
    wheel: Wheel,
    hub: Hub,
    fresh_streams: FreshStreams,
    identities: Identities,
    scratch: Box<[u8]>,
    heads: Heads,
    stashes: Stashes,
    rare_deadlines: RareDeadlines,
    /// Slots to be written at the end of the turn.
    dirty: Vec<u32>,
    /// Slots that are to be written in the next turn: they took all that one turn may write to one.
    unfinished_writes: Vec<u32>,
    /// Empty outboxes, to be used again.
    #[allow(clippy::vec_box, reason = "the boxes are what is used again")]
    spare_outboxes: Vec<Box<Outbox>>,
    buffers: Buffers,
    /// Reused to write frames in.
    room: Vec<u8>,
    /// Slots to be read from again in the next turn.
    again: VecDeque<u32>,
    /// Publications and remote disconnects that wait; the node bounds how many.
    work: VecDeque<Work>,
    /// Slots whose sessions catch up: publications may have to wait for them. With the bytes that are kept for that.
    holding: FxHashMap<u32, usize>,
    /// Of those, some to whom everything is out that was sent to them.
    replays_due: Vec<u32>,
    fanout: Option<Fanout>,
    /// Empty; its buffers serve the next publication.
    spare_fanout: Fanout,
    ping_frames: PingFrames,
    /// Random, so that shards do not ping at the same moments.
    heartbeat_offset: u32,
    /// Reused between inputs.
    effects: Vec<Effect>,
    /// Connections whose request is not complete.
    handshakes: usize,
    begun: Begun,
    accepting: Accepting,
    drain: Option<Drain>,
    /// It stands still.
    still: Option<Still<M::Socket>>,
    /// Connections that are served by another process, and may be served here in a moment.
    laid_out: LaidOut,
    closes: Closes,
    looks: Looks,
    sampler: Sampler,
}

enum Accepting {
    Yes,
    /// Nothing to accept with; try again then.
    PausedUntil(Duration),
    /// Draining.
    No,
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// A shard without connections.
    pub fn new(
        shard: u16,
        mut machine: M,
        services: N,
        settings: Arc<Settings>,
        metrics: Arc<ShardMetrics>,
    ) -> Shard<M, N> {
        let now = machine.now();
        let (seed, heartbeat_offset) = (machine.random() as u64, machine.random() as u32);
        Shard {
            machine,
            services,
            now,
            slots: Slots::new(shard),
            wheel: Wheel::new(tick(now.mono)),
            hub: Hub::new(settings.stream_hasher.clone()),
            fresh_streams: FreshStreams::default(),
            identities: Identities::new(seed),
            // Written to, not only reserved: its pages are paid for at boot and not by some later connection.
            scratch: vec![1; SCRATCH_BYTES].into(),
            heads: Heads::default(),
            stashes: Stashes::default(),
            rare_deadlines: RareDeadlines::default(),
            dirty: Vec::new(),
            unfinished_writes: Vec::new(),
            // Made at once, so that they lie together and do not keep the pages of what was in use when one was needed.
            spare_outboxes: (0..SPARE_OUTBOXES).map(|_| Box::default()).collect(),
            buffers: Buffers::new(settings.buffers_bytes_max),
            room: Vec::new(),
            again: VecDeque::new(),
            work: VecDeque::new(),
            holding: FxHashMap::default(),
            replays_due: Vec::new(),
            fanout: None,
            spare_fanout: Fanout::default(),
            ping_frames: PingFrames::default(),
            heartbeat_offset,
            effects: Vec::new(),
            handshakes: 0,
            begun: Begun::default(),
            accepting: Accepting::Yes,
            drain: None,
            still: None,
            laid_out: LaidOut::default(),
            closes: Closes::new(settings.closes_max),
            looks: Looks::default(),
            sampler: Sampler::default(),
            settings,
            metrics,
        }
    }

    /// The machine, for whoever drives the shard.
    pub fn machine(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Starts a turn: reads the clock and handles every deadline that has passed.
    pub fn begin_turn(&mut self) {
        self.now = self.machine.now();
        self.metrics.counters.turns_total.inc();
        if self.is_still() {
            return;
        }
        if let Accepting::PausedUntil(until) = self.accepting
            && self.now.mono >= until
        {
            self.accepting = Accepting::Yes;
            self.machine.resume_listening();
        }
        for _ in 0..DEADLINES_PER_TURN {
            let Some(index) = self.wheel.expired(&mut self.slots, tick(self.now.mono)) else { break };
            self.due(index);
            self.flush_if_many();
        }
        for _ in 0..self.again.len() {
            let Some(index) = self.again.pop_front() else { break };
            if self.slots[index].flags & flag::AGAIN != 0 {
                self.slots[index].flags &= !flag::AGAIN;
                self.read(index);
            }
        }
    }

    /// A socket is ready. A `token` of a connection that is gone is ignored.
    pub fn ready(&mut self, token: u64, readiness: Readiness) {
        let Some(index) = self.slots.find_token(token) else { return };
        let slot = &mut self.slots[index];
        if readiness.hangup {
            slot.flags |= flag::PEER_SHUT;
        }
        if readiness.writable && slot.outbox.is_some() {
            self.mark_dirty(index);
        }
        if (readiness.readable || readiness.hangup) && self.is_still() {
            self.note_ready(index);
        } else if readiness.readable || readiness.hangup {
            self.slots[index].flags |= flag::READABLE;
            self.read(index);
            self.flush_if_many();
        }
    }

    /// A message from another thread.
    pub fn receive(&mut self, message: Message<M::Socket>) {
        let Some(message) = self.keep_still(message) else { return };
        match message {
            // Behind the publications that it covers, or that came before the streams that it is about were followed.
            Message::Answer(answer @ Answer { reply: Reply::Broker(_) | Reply::Followed, .. }) => {
                self.work.push_back(Work::Answer(Box::new(answer)));
            }
            Message::Answer(answer) => self.answer(answer),
            Message::Yield { index, ticket } => self.work.push_back(Work::Yield { index, ticket }),
            Message::Publication(delivery) => self.work.push_back(Work::Publish(delivery)),
            Message::Disconnect(disconnect) => self.work.push_back(Work::Disconnect(disconnect)),
            Message::Adopt { incoming, read } => self.adopt(incoming, read),
            Message::Look(look) => self.look(look),
            Message::Settings(settings) => self.take_over(settings),
            // Whoever asked may have gone.
            Message::Turn(answer) => drop(answer.send(())),
            Message::Drain { over } => self.start_drain(over),
            // For whoever drives the shard.
            Message::HandOver(_) => {}
        }
    }

    /// Whoever is connected stays; what was decided by the settings before stays so. What is made from settings once, as
    /// the hub and the list of closes, and what sessions count time by must be the same in both.
    fn take_over(&mut self, settings: Arc<Settings>) {
        self.buffers.set_max(settings.buffers_bytes_max);
        self.settings = settings;
    }

    /// Ends a turn: goes on with deliveries, and writes out what the turn produced.
    pub fn end_turn(&mut self) {
        if !self.is_still() {
            self.go_on_replaying();
        }
        self.go_on_delivering();
        // Behind the deliveries: whoever is sent away has been given what was published before.
        self.go_on_draining();
        self.flush_dirty();
        self.dirty.append(&mut self.unfinished_writes);
        self.go_on_looking();
        self.sample_some();
        self.metrics.kept(&self.buffers);
        self.metrics.counters.broadcast_streams_num.set(self.hub.streams() as i64);
        self.metrics.counters.subscriptions_num.set(self.hub.attachments() as i64);
        self.metrics.counters.connections_num.set(self.slots.used() as i64);
        self.metrics.counters.handshakes_num.set(self.handshakes as i64);
    }

    /// When the next turn is due even if nothing happens; `None`: never. On the machine's monotonic clock.
    pub fn next_wake(&self) -> Option<Duration> {
        if self.has_work() {
            return Some(self.now.mono);
        }
        if self.is_still() {
            return None;
        }
        let deadline = self.wheel.next().map(|tick| Duration::from_millis(u64::from(tick) * TICK_MS));
        let pause = match self.accepting {
            Accepting::PausedUntil(until) => Some(until),
            Accepting::Yes | Accepting::No => None,
        };
        let drain = self.drain.as_ref().and_then(|drain| drain.next_wake(self.now.mono));
        [deadline, pause, drain].into_iter().flatten().min()
    }

    /// True when there is work that waits for no event.
    fn has_work(&self) -> bool {
        if self.is_still() {
            return self.is_delivering() || !self.dirty.is_empty() || !self.looks.is_empty();
        }
        !self.again.is_empty()
            || self.is_delivering()
            || !self.dirty.is_empty()
            || !self.replays_due.is_empty()
            || !self.looks.is_empty()
    }

    /// True when a drain was asked for and every connection is gone.
    pub fn is_drained(&self) -> bool {
        self.drain.is_some() && self.slots.used() == 0
    }

    /// Connections in this shard's hands.
    pub fn connections(&self) -> usize {
        self.slots.used()
    }

    /// True when nothing is kept for anybody: what a shard without connections must be.
    pub fn holds_nothing(&self) -> bool {
        self.slots.used() == 0
            && self.hub.is_empty()
            && self.identities.is_empty()
            && self.heads.is_empty()
            && self.stashes.is_empty()
            && self.rare_deadlines.is_empty()
            && self.buffers.total() == 0
            && self.handshakes == 0
            && self.wheel.next().is_none()
            && !self.has_work()
    }
}

#[cfg(test)]
mod tests;
