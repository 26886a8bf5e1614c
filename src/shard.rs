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
//! What it touches is behind the [`World`] trait, so a simulation runs the same code with sockets, clock and
//! neighbours of its own. There is no lock in here and no other thread.
//!
//! Every list has a bound: connections by descriptors and `--max-conn`, handshakes by
//! [`Settings::handshakes_max`], an outbox by [`Settings::outbox_bytes_max`], a turn by [`ACCEPTS_PER_TURN`],
//! [`READS_PER_TURN`] and [`DELIVERIES_PER_TURN`].

mod close;
mod deliver;
mod door;
mod inbox;
mod kernel;
mod metrics;
mod open;
mod outbox;
mod slots;
mod snapshot;
mod wheel;
mod world;

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::hub::Hub;
use crate::identity::StreamRouter;
use crate::model::{Answer, Call, CallError, Now, Publication, Reply, Sid, TICK_MS, tick};
use crate::proto::frame::{self, Event, Limits, Opcode};
use crate::proto::handshake;
use crate::session::{self, Context, Effect, Session, Tally};

use deliver::{Eviction, Fanout, PingFrame};
use slots::{Slots, Stage, flag};
use wheel::Wheel;

pub use door::{ProxyRules, Tokens};
pub use inbox::{Delivery, Inbox, Message};
pub use kernel::{Kernel, KernelSettings, Neighbours, run};
pub use metrics::ShardMetrics;
pub use world::{Accepted, World};

/// Connections accepted in one turn. Enough to empty a deep queue in a few turns, few enough that open
/// connections wait for a millisecond at most.
pub const ACCEPTS_PER_TURN: usize = 256;

/// Reads from one connection in one turn, each up to [`SCRATCH_BYTES`]; a client that sends without end gets its
/// next reads in the next turn, after everybody else.
pub const READS_PER_TURN: usize = 4;

/// Receivers served with publications in one turn. At about 10 us for a send this is how long a turn may take.
pub const DELIVERIES_PER_TURN: usize = 2048;

/// Sessions sent away in one turn on the app's demand.
pub const EVICTIONS_PER_TURN: usize = 512;

/// The one read buffer of a shard. A whole message of the default maximum size fits with room for the next.
pub const SCRATCH_BYTES: usize = 128 * 1024;

/// How long a connection that was closed by us may take to go: our last bytes have to arrive, and a socket closed
/// with unread bytes resets the peer and may take them back.
const LINGER: Duration = Duration::from_secs(2);

/// How long accepting pauses when there is neither descriptor nor reserve.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a shard treats its connections.
pub struct Settings {
    /// Which paths and origins may upgrade.
    pub handshake: handshake::Rules,
    /// How long a request may take to arrive.
    pub handshake_timeout: Duration,
    /// Connections that have not finished their request; more are answered 503.
    pub handshakes_max: usize,
    /// Size of client messages.
    pub limits: Limits,
    /// Size of client messages on the echo path.
    pub echo_limits: Limits,
    /// Bytes that may wait for one client; one more frame closes it. 0: no limit.
    pub outbox_bytes_max: usize,
    /// How long nothing at all may get out to a client that has bytes waiting.
    pub write_timeout: Duration,
    /// How sessions behave.
    pub session: session::Rules,
    /// What tokens are accepted.
    pub tokens: Tokens,
    /// Which channels this server answers itself.
    pub router: StreamRouter,
    /// What the app gets to see of an upgrade request.
    pub proxy: ProxyRules,
}

/// One shard. The doc comment of the module says how to drive it.
pub struct Shard<W: World> {
    world: W,
    settings: Arc<Settings>,
    metrics: Arc<ShardMetrics>,
    now: Now,
    slots: Slots<W::Socket>,
    wheel: Wheel,
    hub: Hub,
    /// First slot of each chain of sessions with the same connection identifiers.
    identities: HashTable<u32>,
    hasher: FixedState,
    scratch: Box<[u8]>,
    /// Bytes that were read behind a command that runs, by slot; at most a scratch buffer each.
    stashed: HashMap<u32, Vec<u8>>,
    /// Slots to be written at the end of the turn.
    dirty: Vec<u32>,
    /// Slots to be read from again in the next turn.
    again: VecDeque<u32>,
    /// Publications that wait, in order; the inbox bounds how many.
    publications: VecDeque<Arc<Delivery>>,
    fanout: Option<Fanout>,
    /// Empty; its buffers serve the next publication.
    spare_fanout: Fanout,
    evictions: VecDeque<Eviction>,
    ping_frames: [PingFrame; 2],
    /// Reused between inputs.
    effects: Vec<Effect>,
    handshakes: usize,
    accepting: Accepting,
    drain: Option<close::Drain>,
}

enum Accepting {
    Yes,
    /// Nothing to accept with; try again then.
    PausedUntil(Duration),
    /// Draining.
    No,
}

impl<W: World> Shard<W> {
    /// A shard without connections.
    pub fn new(shard: u16, mut world: W, settings: Arc<Settings>, metrics: Arc<ShardMetrics>) -> Shard<W> {
        let now = world.now();
        let seed = world.random() as u64;
        Shard {
            world,
            settings,
            metrics,
            now,
            slots: Slots::new(shard),
            wheel: Wheel::new(tick(now.mono)),
            hub: Hub::new(seed),
            identities: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            // Written to, not only reserved: its pages are paid for at boot and not by some later connection.
            scratch: vec![1; SCRATCH_BYTES].into(),
            stashed: HashMap::new(),
            dirty: Vec::new(),
            again: VecDeque::new(),
            publications: VecDeque::new(),
            fanout: None,
            spare_fanout: Fanout::default(),
            evictions: VecDeque::new(),
            ping_frames: Default::default(),
            effects: Vec::new(),
            handshakes: 0,
            accepting: Accepting::Yes,
            drain: None,
        }
    }

    /// The world, for whoever drives the shard.
    pub fn world(&mut self) -> &mut W {
        &mut self.world
    }

    /// Starts a turn: reads the clock and handles every deadline that has passed.
    pub fn begin_turn(&mut self) {
        self.now = self.world.now();
        self.metrics.counters.turns_total.inc();
        if let Accepting::PausedUntil(until) = self.accepting
            && self.now.mono >= until
        {
            self.accepting = Accepting::Yes;
            self.world.watch_listener(true);
        }
        while let Some(index) = self.wheel.expired(&mut self.slots, tick(self.now.mono)) {
            self.due(index);
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
    /// `hangup` says that the peer has shut its half or is gone.
    pub fn ready(&mut self, token: u64, readable: bool, writable: bool, hangup: bool) {
        let Some(index) = self.slots.find_token(token) else { return };
        let slot = &mut self.slots[index];
        if hangup {
            slot.flags |= flag::PEER_SHUT;
        }
        if writable && slot.outbox.is_some() {
            self.mark_dirty(index);
        }
        if readable || hangup {
            self.slots[index].flags |= flag::READABLE;
            self.read(index);
        }
    }

    /// A message from another thread.
    pub fn receive(&mut self, message: Message) {
        match message {
            Message::Answer(answer) => self.answer(answer),
            Message::Publication(publication) => self.publications.push_back(publication),
            Message::Disconnect(disconnect) => self.evict(disconnect),
            Message::Drain { over } => self.start_drain(over),
        }
    }

    /// Ends a turn: goes on with deliveries, and writes out what the turn produced.
    pub fn end_turn(&mut self) {
        self.go_on_evicting();
        self.go_on_delivering();
        // Behind the deliveries: whoever is sent away has been given what was published before.
        self.go_on_draining();
        self.flush_dirty();
        self.metrics.counters.broadcast_streams_num.set(self.hub.streams() as i64);
        self.metrics.counters.subscriptions_num.set(self.hub.attachments() as i64);
        self.metrics.counters.connections_num.set(self.slots.used() as i64);
        self.metrics.counters.handshakes_num.set(self.handshakes as i64);
    }

    /// When the next turn is due even if nothing happens; `None`: never. On the world's monotonic clock.
    pub fn next_wake(&self) -> Option<Duration> {
        if self.has_work() {
            return Some(self.now.mono);
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
        !self.again.is_empty()
            || !self.publications.is_empty()
            || self.fanout.is_some()
            || !self.evictions.is_empty()
            || !self.dirty.is_empty()
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
            && self.stashed.is_empty()
            && self.handshakes == 0
            && self.wheel.next().is_none()
            && !self.has_work()
    }

    /// Reads from a connection until nothing is left, the connection has to wait, or its share is used up.
    fn read(&mut self, index: u32) {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.read_into(index, &mut scratch);
        self.scratch = scratch;
    }

    fn read_into(&mut self, index: u32, scratch: &mut [u8]) {
        let generation = self.slots[index].generation;
        for _ in 0..READS_PER_TURN {
            let slot = &mut self.slots[index];
            if slot.generation != generation || slot.flags & flag::READABLE == 0 {
                return;
            }
            let Some(socket) = &slot.socket else { return };
            if matches!(&slot.stage, Stage::Session(session) if session.is_waiting()) {
                return;
            }
            match self.world.read(socket, scratch) {
                Ok(0) => return self.peer_gone(index),
                Ok(n) => {
                    // Less than there was room for means that nothing is left, until the poller says otherwise
                    // (epoll(7)), except for an end of stream that was reported already.
                    if n < scratch.len() && slot.flags & flag::PEER_SHUT == 0 {
                        slot.flags &= !flag::READABLE;
                    }
                    if !matches!(slot.stage, Stage::Door(_)) {
                        self.metrics.counters.data_rcvd_total.add(n as u64);
                    }
                    self.bytes(index, &mut scratch[..n]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    slot.flags &= !flag::READABLE;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.failed(index, &error),
            }
        }
        let slot = &mut self.slots[index];
        if slot.generation == generation && slot.flags & (flag::READABLE | flag::AGAIN) == flag::READABLE {
            slot.flags |= flag::AGAIN;
            self.again.push_back(index);
        }
    }

    /// Bytes of the client.
    fn bytes(&mut self, index: u32, bytes: &mut [u8]) {
        match &self.slots[index].stage {
            Stage::Door(_) => self.request_bytes(index, bytes),
            Stage::Echo | Stage::Session(_) => self.frame_bytes(index, bytes),
            Stage::Closing | Stage::Orphan(_) | Stage::Free => {}
        }
    }

    /// Bytes behind the handshake: whole frames are handled where they lie, the rest is kept by the reader.
    fn frame_bytes(&mut self, index: u32, mut bytes: &mut [u8]) {
        let settings = Arc::clone(&self.settings);
        loop {
            let slot = &mut self.slots[index];
            let limits = match &slot.stage {
                Stage::Echo => &settings.echo_limits,
                Stage::Session(session) if session.is_waiting() => {
                    if !bytes.is_empty() {
                        self.stashed.insert(index, bytes.to_vec());
                    }
                    return;
                }
                Stage::Session(_) => &settings.limits,
                // Closed by one of the frames before; what follows is nobody's.
                _ => return,
            };
            match slot.reader.next(&mut bytes, limits) {
                Ok(None) => return,
                Ok(Some(Event::Message { kind, payload })) => match &slot.stage {
                    Stage::Session(_) => self.session_input(index, |session, ctx| session.message(&payload, ctx)),
                    _ => {
                        let opcode = if kind == frame::Kind::Text { Opcode::Text } else { Opcode::Binary };
                        self.metrics.counters.server_msg_total.inc();
                        self.push(index, frame::encode(opcode, &payload));
                    }
                },
                Ok(Some(Event::Ping(payload))) => {
                    self.alive(index);
                    self.push(index, frame::encode(Opcode::Pong, &payload));
                }
                Ok(Some(Event::Pong(_))) => self.alive(index),
                Ok(Some(Event::Close(close))) => return self.client_closes(index, close.map(|(code, _)| code)),
                Err(violation) => {
                    let last = frame::close(Some(violation.close_code()), violation.reason());
                    return self.close(index, Some(last), violation.cause());
                }
            }
        }
    }

    fn alive(&mut self, index: u32) {
        if let Stage::Session(session) = &mut self.slots[index].stage {
            session.alive();
            self.set_timer(index);
        }
    }

    /// The app's answer. One for a session that is gone is dropped and counted.
    fn answer(&mut self, answer: Answer) {
        let Some(index) = self.slots.find(answer.key) else {
            self.metrics.counters.late_answers_total.inc();
            return;
        };
        match self.slots[index].stage {
            Stage::Session(_) => self.answer_session(index, answer.result),
            Stage::Orphan(_) => self.answer_orphan(index, answer.result),
            _ => self.metrics.counters.late_answers_total.inc(),
        }
    }

    fn answer_session(&mut self, index: u32, result: Result<Reply, CallError>) {
        self.session_input(index, |session, ctx| session.answer(result, ctx));
        let Some(mut bytes) = self.stashed.remove(&index) else { return self.resume(index) };
        // What was read behind the command comes first, then what the socket holds.
        self.bytes(index, &mut bytes);
        self.resume(index);
    }

    /// Goes on reading where a wait for the app had stopped it.
    fn resume(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.socket.is_some() && slot.flags & (flag::READABLE | flag::AGAIN) == flag::READABLE {
            slot.flags |= flag::AGAIN;
            self.again.push_back(index);
        }
    }

    /// Gives a session an input and carries out what it decides.
    fn session_input(&mut self, index: u32, input: impl FnOnce(&mut Session, &mut Context<'_>)) {
        let mut effects = std::mem::take(&mut self.effects);
        let (Stage::Session(session) | Stage::Orphan(session)) = &mut self.slots[index].stage else { return };
        let route = |identifier: &str| self.settings.router.route(identifier);
        let topic = |identifier: &str, stream: &str| self.hub.topic(identifier, stream);
        let (rules, now) = (&self.settings.session, self.now);
        input(session, &mut Context { rules, now, topic: &topic, route: &route, effects: &mut effects });
        self.carry_out(index, &mut effects);
        self.effects = effects;
        self.set_timer(index);
    }

    /// Carries out a session's effects, in order.
    fn carry_out(&mut self, index: u32, effects: &mut Vec<Effect>) {
        let generation = self.slots[index].generation;
        let mut refused = None;
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(text) => {
                    self.metrics.counters.server_msg_total.inc();
                    self.push(index, frame::encode(Opcode::Text, &text));
                }
                Effect::Ping(precision) => self.ping(index, precision),
                Effect::NativePing => self.push(index, frame::encode(Opcode::Ping, &[])),
                Effect::Call(request) => {
                    let Some(sid) = self.sid(index) else { continue };
                    let call = Call { key: self.slots.key(index), sid, request: *request };
                    refused = self.world.call(call).err();
                }
                Effect::Disconnect(request) => {
                    let Some(sid) = self.sid(index) else { continue };
                    self.world.disconnect(Call { key: self.slots.key(index), sid, request: *request });
                }
                Effect::Cancel => self.world.cancel(self.slots.key(index)),
                Effect::Open => self.session_opened(index),
                Effect::Attach(topic) if self.is_live(index) => self.hub.attach(index, &topic),
                // An effect before this one has closed the connection, and nobody would detach it any more.
                Effect::Attach(_) => {}
                Effect::Detach(topic) => self.hub.detach(index, &topic),
                Effect::Whisper { stream, message } => {
                    let publication = Publication { stream, message, exclude: self.sid(index), kind: None };
                    self.world.publish(publication);
                }
                Effect::Close { code, reason, cause } => {
                    self.close(index, Some(frame::close(Some(code), reason)), cause);
                }
                Effect::Count(tally) => self.tally(tally),
                Effect::Note(note) => {
                    tracing::debug!(target: "cableway::session", sid = ?self.sid(index).map(|s| s.to_string()), "{note}");
                }
            }
        }
        // A call that could not even be queued is answered here and now.
        if let Some(error) = refused
            && self.slots[index].generation == generation
        {
            let key = self.slots.key(index);
            self.answer(Answer { key, result: Err(error) });
        }
    }

    fn sid(&self, index: u32) -> Option<Sid> {
        match &self.slots[index].stage {
            Stage::Session(session) | Stage::Orphan(session) => Some(session.sid()),
            _ => None,
        }
    }

    fn tally(&self, tally: Tally) {
        match tally {
            Tally::FailedAuth => self.metrics.counters.failed_auths_total.inc(),
            Tally::ClientMessage => self.metrics.counters.client_msg_total.inc(),
            Tally::FailedClientMessage => self.metrics.counters.failed_client_msg_total.inc(),
        }
    }
}
