//! How a connection becomes an open one: it is accepted or adopted, its request is read and answered.

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::{CloseCause, Sid, TICK_MS, Tick, TokenOutcome, tick, tick_after};
use crate::proto::handshake::{self, Decision, Head, Parsed, Route, Switching};
use crate::session::{Context, Opening, Session};

use super::buffers::Buffer;
use super::frame::Frame;
use super::handshake::{Began, env};
use super::slots::{Slots, Stage, flag};
use super::{
    ACCEPT_PAUSE, ACCEPTS_PER_TURN, Accepted, Accepting, Incoming, Machine, RETRY_AFTER_S, Services, Shard,
    UNKNOWN_PEER,
};

/// Unfinished handshakes that are dropped, the oldest first, when a connection found no descriptor: so one of so many is
/// turned away while silent connections hold all that there are.
const MAKE_WAY: usize = 16;

fn is_handshake<S>(slots: &Slots<S>, token: u64) -> bool {
    slots.find_token(token).is_some_and(|index| matches!(slots[index].stage, Stage::Handshake(_)))
}

/// How much of a refused origin is worth a place in the log. The longest host name has 253 characters.
const LOGGED_ORIGIN_CHARS: usize = 270;

/// Where a client names the session that it wants to go on with, before the query parameter `sid`
/// (`contracts/action-cable-extended.md` section 2).
const RESTORE_HEADER: &str = "x-anycable-restore-sid";

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Somebody waits to be accepted. Accepts up to [`ACCEPTS_PER_TURN`]; the listener stays readable for the rest.
    pub fn accept(&mut self) {
        if !matches!(self.accepting, Accepting::Yes) || self.is_still() {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            match self.machine.accept() {
                Accepted::Connection(incoming) => {
                    self.begin_handshake(incoming);
                }
                Accepted::Dealt => {}
                Accepted::Nobody => return,
                Accepted::TurnedAway => {
                    self.metrics.counters.connections_accepted_total.inc();
                    self.metrics.closed(CloseCause::NoDescriptors);
                    self.make_way();
                }
                Accepted::Stuck => {
                    self.metrics.counters.accept_pauses_total.inc();
                    self.machine.pause_listening();
                    self.accepting = Accepting::PausedUntil(self.now.mono + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// There are no descriptors: those who connected and say nothing must not keep others out.
    fn make_way(&mut self) {
        for _ in 0..MAKE_WAY {
            let Some(oldest) = self.oldest_handshake() else { return };
            self.throw_out(oldest);
            // Nobody waits for them to close.
            self.slots[oldest].flags |= flag::PEER_SHUT;
        }
    }

    fn throw_out(&mut self, index: u32) {
        let response = handshake::unavailable(RETRY_AFTER_S).response;
        self.refuse(index, &response, CloseCause::TooManyHandshakes);
    }

    /// Takes a connection whose first bytes somebody else has read: the HTTP server after it answered a request, or
    /// whoever decrypts. From here on it is as if it had been accepted here and those bytes had come now.
    pub fn adopt(&mut self, incoming: Incoming<M::Socket>, mut read: Vec<u8>) {
        if let Some(index) = self.begin_handshake(incoming)
            && !read.is_empty()
        {
            self.request_bytes(index, &mut read);
        }
    }

    /// Gives the slot, unless the connection is over already.
    fn begin_handshake(&mut self, incoming: Incoming<M::Socket>) -> Option<u32> {
        self.metrics.counters.connections_accepted_total.inc();
        let Incoming { socket, listener } = incoming;
        let now = self.now.mono;
        let index = self.slots.insert(socket, listener, Stage::Handshake(Began::ago(Duration::ZERO, now)));
        self.handshakes += 1;
        if let Err(error) = self.watch(index) {
            self.failed(index, &error);
            return None;
        }
        self.note_handshake(index);
        if self.handshakes > self.settings.handshakes_max
            && let Some(oldest) = self.oldest_handshake()
        {
            self.throw_out(oldest);
            if oldest == index {
                return None;
            }
        }
        self.wheel.set(&mut self.slots, index, tick_after(now + self.settings.handshake_timeout));
        Some(index)
    }

    /// Remembers that a handshake began after all others.
    pub(super) fn note_handshake(&mut self, index: u32) {
        let (token, slots) = (self.slots.token(index), &self.slots);
        self.begun.push(token, self.handshakes, |token| is_handshake(slots, token));
    }

    /// Takes the handshake that began first out of the order, to be ended.
    fn oldest_handshake(&mut self) -> Option<u32> {
        let slots = &self.slots;
        slots.find_token(self.begun.pop(|token| is_handshake(slots, token))?)
    }

    /// Starts to watch a connection's socket.
    pub(super) fn watch(&mut self, index: u32) -> std::io::Result<()> {
        let token = self.slots.token(index);
        match &self.slots[index].socket {
            Some(socket) => self.machine.watch(socket, token),
            None => Ok(()),
        }
    }

    /// Bytes of the request. Once it is complete it is answered, and what came behind it is handled at once.
    pub(super) fn request_bytes(&mut self, index: u32, bytes: &mut [u8]) {
        let head_bytes_max = self.settings.handshake.head_bytes_max;
        let mut saved = self.take_head(index);
        let whole: &mut [u8] = if saved.is_empty() {
            bytes
        } else {
            let seen = saved.len();
            saved.extend_from_slice(bytes);
            if saved.len() < head_bytes_max && !handshake::may_end(&saved, seen) {
                // A head that trickles in is not parsed again for every byte.
                return self.keep_head(index, saved);
            }
            &mut saved
        };
        let mut header_slots = handshake::slots();
        let (head, len) = match handshake::parse_head(whole, &mut header_slots) {
            Parsed::Complete { head, len } if len <= head_bytes_max => (head, len),
            Parsed::Incomplete if whole.len() < head_bytes_max => {
                return self.keep_head(index, if saved.is_empty() { bytes.to_vec() } else { saved });
            }
            // One that came whole must not have more than one that came in pieces.
            Parsed::Complete { .. } | Parsed::Incomplete => {
                return self.refuse_large_head(index, whole);
            }
            Parsed::Bad(refusal) => return self.refuse(index, &refusal.response, CloseCause::HandshakeRefused),
        };
        match handshake::answer(&head, &self.settings.handshake) {
            Decision::NotOurs => self.serve_http(index, whole.to_vec()),
            Decision::Refuse(refusal) => {
                if let Some(origin) = head.header("origin").filter(|_| refusal.status == 403) {
                    let origin: String = origin.chars().take(LOGGED_ORIGIN_CHARS).collect();
                    tracing::warn!(
                        "an upgrade was refused with 403: its Origin {origin:?} is not in --allowed-origins"
                    );
                }
                self.log(index, || format!("upgrade refused with {}", refusal.status));
                self.refuse(index, &refusal.response, CloseCause::HandshakeRefused);
            }
            Decision::Upgrade { .. } if self.drain.is_some() => {
                self.refuse(index, &handshake::unavailable(RETRY_AFTER_S).response, CloseCause::Draining);
            }
            Decision::Upgrade { .. } if !self.services.try_open() => {
                self.refuse(index, &handshake::unavailable(RETRY_AFTER_S).response, CloseCause::MaxConnections);
            }
            Decision::Upgrade { route, dialect, response } => {
                self.slots[index].flags |= flag::COUNTED;
                self.slots[index].form.dialect = dialect;
                match route {
                    Route::Echo => {
                        self.choose_user_timeout(index, Duration::ZERO);
                        self.handshake_done(index, Stage::Echo);
                        self.push_switching(index, &response);
                        self.set_timer(index);
                    }
                    Route::Cable => self.open_session(index, &head, &response),
                }
                if len < whole.len() {
                    self.frame_bytes(index, &mut whole[len..]);
                }
            }
        }
    }

    fn push_switching(&mut self, index: u32, response: &Switching) {
        let frame = Frame::written(&mut self.room, |out| response.write(&self.settings.handshake.version_header, out));
        self.push(index, frame);
    }

    /// Where a connection comes from.
    pub(super) fn peer(&self, index: u32) -> Option<SocketAddr> {
        self.machine.peer(self.slots[index].socket.as_ref()?)
    }

    /// Nearly every client has what its socket came with, so this is rarely a system call.
    fn choose_user_timeout(&mut self, index: u32, ping_interval: Duration) {
        let timeouts = &self.settings.user_timeouts;
        let wanted = timeouts.of(ping_interval);
        if wanted != timeouts.inherited
            && let Some(socket) = &self.slots[index].socket
        {
            self.machine.set_user_timeout(socket, wanted);
        }
    }

    fn refuse_large_head(&mut self, index: u32, head: &[u8]) {
        if let Some((name, length)) = handshake::longest_header(head) {
            let max = self.settings.handshake.head_bytes_max;
            tracing::warn!(
                "a request was refused with 431: its head is over --max-head-size ({max} bytes); the longest header is \
                 {name:?}, {length} bytes of it came"
            );
        }
        self.refuse(index, &handshake::head_too_large().response, CloseCause::HandshakeRefused);
    }

    fn take_head(&mut self, index: u32) -> Vec<u8> {
        let head = self.heads.take(index).unwrap_or_default();
        self.buffers.change(Buffer::Head, head.capacity(), 0);
        head
    }

    /// Keeps what came of a request until there is more.
    pub(super) fn keep_head(&mut self, index: u32, head: Vec<u8>) {
        if !head.is_empty() {
            self.buffers.change(Buffer::Head, 0, head.capacity());
            self.heads.put(index, head);
        }
    }

    /// The request is answered, or will never be.
    pub(super) fn leave_handshake(&mut self, index: u32) {
        self.handshakes -= 1;
        drop(self.take_head(index));
    }

    /// The request is answered with an upgrade; `next` makes what the connection is at then, from when it was accepted.
    fn handshake_done(&mut self, index: u32, next: impl FnOnce(Tick) -> Stage) {
        let Stage::Handshake(began) = &self.slots[index].stage else { return };
        let lasted = began.age(self.now.mono);
        let ticks = (lasted.as_millis() as u64 / TICK_MS) as Tick;
        self.metrics.counters.handshake_seconds.observe(lasted);
        self.leave_handshake(index);
        self.slots[index].stage = next(tick(self.now.mono).wrapping_sub(ticks));
    }

    /// Begins the session that an upgrade leads to. What becomes of it is known before the response is written: what a
    /// WebSocket client is told comes behind the 101 all the same, another carrier may answer otherwise.
    fn open_session(&mut self, index: u32, head: &Head<'_, '_>, response: &Switching) {
        let (peer, settings) = (self.peer(index).unwrap_or(UNKNOWN_PEER), &self.settings);
        let (token, travelling) = settings.tokens.read(head, self.now.unix.as_secs());
        let (ping_interval, ping_precision) = (head.query("pi"), head.query("ptp"));
        let shown = head.header(RESTORE_HEADER).or_else(|| head.query("sid"));
        let resume = settings.resume_tokens.as_ref().zip(shown).and_then(|(tokens, shown)| tokens.read(&shown));
        let listener = settings.listeners.get(usize::from(self.slots[index].listener));
        let scheme = listener.map(|listener| listener.scheme).unwrap_or_default();
        let token_due = match &token {
            TokenOutcome::Identified { expires: Some(at), .. } if settings.tokens.close_expired => {
                let left = Duration::from_secs(*at).saturating_sub(self.now.unix);
                self.now.mono.checked_add(left).map(tick_after)
            }
            _ => None,
        };
        let opening = Opening {
            sid: Sid::from_bits(self.machine.random()),
            env: env(head, scheme, peer, travelling.as_deref(), &settings.proxy),
            dialect: self.slots[index].form.dialect,
            token,
            ping_interval: ping_interval.as_deref(),
            ping_precision: ping_precision.as_deref(),
            resume,
        };
        let mut effects = std::mem::take(&mut self.effects);
        let route = |identifier: &str| settings.router.route(identifier);
        let topic = |identifier: &str, stream: &str| self.hub.topic(identifier, stream);
        let resume_token = |sid| self.settings.resume_tokens.as_ref().map(|tokens| tokens.token(sid));
        let mut ctx = Context {
            rules: &settings.session,
            now: self.now,
            heartbeat_phase: self.heartbeat_phase(index),
            topic: &topic,
            resume_token: &resume_token,
            route: &route,
            effects: &mut effects,
        };
        let session = Session::open(opening, &mut ctx);
        self.choose_user_timeout(index, session.ping_interval());
        if let Some(due) = token_due {
            self.rare_deadlines.tokens.insert(index, due);
        }
        self.handshake_done(index, |since| Stage::Session(Box::new(session), since));
        self.push_switching(index, response);
        self.note_holding(index);
        self.carry_out(index, &mut effects);
        self.effects = effects;
        self.set_timer(index);
    }

    /// The request was for something else than a WebSocket.
    fn serve_http(&mut self, index: u32, read: Vec<u8>) {
        let Some(socket) = self.slots[index].socket.take() else { return };
        self.machine.unwatch(&socket);
        let incoming = Incoming { socket, listener: self.slots[index].listener };
        match self.services.serve_http(incoming, read) {
            Ok(()) => self.gone(index, CloseCause::Http),
            Err(socket) => {
                self.slots[index].socket = Some(socket);
                match self.watch(index) {
                    Ok(()) => {
                        let response = handshake::unavailable(RETRY_AFTER_S).response;
                        self.refuse(index, &response, CloseCause::HandshakeRefused);
                    }
                    Err(error) => self.failed(index, &error),
                }
            }
        }
    }
}
