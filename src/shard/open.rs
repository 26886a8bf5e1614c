//! How a connection becomes an open WebSocket: accept, read the request, answer it.

use std::hash::BuildHasher;
use std::net::SocketAddr;

use crate::model::{CloseCause, Sid};
use crate::proto::handshake::{self, Decision, HEAD_BYTES_MAX, Parsed, Route, Subprotocol};
use crate::session::{Context, Opening, Session};

use super::door::{self, Door};
use super::slots::{Stage, flag};
use super::{ACCEPT_PAUSE, ACCEPTS_PER_TURN, Accepted, Accepting, Shard, World};

/// What a refused client is told to wait before it tries again, in seconds.
const RETRY_AFTER_S: u32 = 5;

impl<W: World> Shard<W> {
    /// Somebody waits to be accepted. Accepts up to [`ACCEPTS_PER_TURN`]; the listener stays readable for the rest.
    pub fn accept(&mut self) {
        if !matches!(self.accepting, Accepting::Yes) {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            match self.world.accept() {
                Accepted::Socket(socket, peer) => self.accepted(socket, peer),
                Accepted::Nobody => return,
                Accepted::TurnedAway => {
                    self.metrics.counters.connections_accepted_total.inc();
                    self.metrics.closed(CloseCause::NoDescriptors);
                }
                Accepted::Stuck => {
                    self.metrics.counters.accept_pauses_total.inc();
                    self.world.watch_listener(false);
                    self.accepting = Accepting::PausedUntil(self.now.mono + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, socket: W::Socket, peer: SocketAddr) {
        self.metrics.counters.connections_accepted_total.inc();
        let door = Door { peer, accepted_at: self.now.mono, head: Vec::new() };
        let index = self.slots.insert(socket, Stage::Door(Box::new(door)));
        self.handshakes += 1;
        let token = self.slots.token(index);
        let Some(socket) = &self.slots[index].socket else { return };
        if let Err(error) = self.world.watch(socket, token, false, false) {
            return self.failed(index, &error);
        }
        if self.handshakes > self.settings.handshakes_max {
            return self.refuse(index, handshake::unavailable(RETRY_AFTER_S).response, CloseCause::TooManyHandshakes);
        }
        self.set_timer(index);
    }

    /// Bytes of the request. Once it is complete it is answered, and what came behind it is handled at once.
    pub(super) fn request_bytes(&mut self, index: u32, bytes: &mut [u8]) {
        let Stage::Door(door) = &mut self.slots[index].stage else { return };
        let peer = door.peer;
        let mut saved = std::mem::take(&mut door.head);
        let whole: &mut [u8] = if saved.is_empty() {
            bytes
        } else {
            let seen = saved.len();
            saved.extend_from_slice(bytes);
            if saved.len() < HEAD_BYTES_MAX && !handshake::may_end(&saved, seen) {
                // A head that trickles in is not parsed again for every byte.
                door.head = saved;
                return;
            }
            &mut saved
        };
        let mut header_slots = handshake::slots();
        let (head, len) = match handshake::parse_head(whole, &mut header_slots) {
            Parsed::Complete { head, len } if len <= HEAD_BYTES_MAX => (head, len),
            Parsed::Incomplete if whole.len() < HEAD_BYTES_MAX => {
                door.head = if saved.is_empty() { bytes.to_vec() } else { saved };
                return;
            }
            // One that came whole must not have more than one that came in pieces.
            Parsed::Complete { .. } | Parsed::Incomplete => {
                return self.refuse(index, handshake::head_too_large().response, CloseCause::HandshakeRefused);
            }
            Parsed::Bad(refusal) => return self.refuse(index, refusal.response, CloseCause::HandshakeRefused),
        };
        match handshake::answer(&head, &self.settings.handshake) {
            Decision::NotOurs => self.hand_over(index, peer, whole.to_vec()),
            Decision::Refuse(refusal) => self.refuse(index, refusal.response, CloseCause::HandshakeRefused),
            Decision::Upgrade { .. } if self.drain.is_some() => {
                self.refuse(index, handshake::unavailable(RETRY_AFTER_S).response, CloseCause::Draining);
            }
            Decision::Upgrade { .. } if !self.world.count_open(true) => {
                self.refuse(index, handshake::unavailable(RETRY_AFTER_S).response, CloseCause::MaxConnections);
            }
            Decision::Upgrade { route, protocol, response } => {
                self.slots[index].flags |= flag::COUNTED;
                self.leave_door(index);
                self.slots[index].stage = Stage::Echo;
                self.push(index, response.into());
                match route {
                    Route::Echo => self.set_timer(index),
                    Route::Cable => self.open_session(index, &head, peer, protocol),
                }
                self.frame_bytes(index, &mut whole[len..]);
            }
        }
    }

    fn leave_door(&mut self, index: u32) {
        if let Stage::Door(door) = &self.slots[index].stage {
            self.handshakes -= 1;
            self.metrics.counters.handshake_seconds.observe(self.now.mono.saturating_sub(door.accepted_at));
        }
    }

    fn open_session(
        &mut self,
        index: u32,
        head: &handshake::Head<'_, '_>,
        peer: SocketAddr,
        protocol: Option<Subprotocol>,
    ) {
        let settings = &self.settings;
        let (verdict, token) = settings.tokens.judge(head, self.now.unix.as_secs());
        let random = self.world.random();
        let (ping_interval, ping_precision) = (head.query("pi"), head.query("ptp"));
        let opening = Opening {
            sid: Sid::from_bits(random),
            env: door::env(head, peer, token.as_deref(), &settings.proxy),
            protocol,
            verdict,
            ping_interval: ping_interval.as_deref(),
            ping_precision: ping_precision.as_deref(),
            random: (random >> 64) as u64 ^ random as u64,
        };
        let mut effects = std::mem::take(&mut self.effects);
        let route = |identifier: &str| settings.router.route(identifier);
        let topic = |identifier: &str, stream: &str| self.hub.topic(identifier, stream);
        let mut ctx =
            Context { rules: &settings.session, now: self.now, topic: &topic, route: &route, effects: &mut effects };
        let session = Session::open(opening, &mut ctx);
        self.slots[index].stage = Stage::Session(Box::new(session));
        self.carry_out(index, &mut effects);
        self.effects = effects;
        self.set_timer(index);
    }

    /// The request was for something else than a WebSocket.
    fn hand_over(&mut self, index: u32, peer: SocketAddr, read: Vec<u8>) {
        let Some(socket) = self.slots[index].socket.take() else { return };
        match self.world.hand_over(socket, peer, read) {
            Ok(()) => self.gone(index, CloseCause::Http),
            Err(socket) => {
                self.slots[index].socket = Some(socket);
                self.refuse(index, handshake::unavailable(RETRY_AFTER_S).response, CloseCause::HandshakeRefused);
            }
        }
    }

    pub(super) fn refuse(&mut self, index: u32, response: Vec<u8>, cause: CloseCause) {
        self.close(index, Some(response.into()), cause);
    }

    /// A client was let in: from here on the app can find it by its identifiers.
    pub(super) fn session_opened(&mut self, index: u32) {
        if !matches!(self.slots[index].stage, Stage::Session(_)) {
            return;
        }
        self.metrics.counters.clients_num.add(1);
        self.slots[index].flags |= flag::INDEXED;
        let Stage::Session(session) = &self.slots[index].stage else { return };
        let identifiers = session.identifiers();
        let slots = &self.slots;
        let entry = self.identities.entry(
            self.hasher.hash_one(identifiers),
            |&first| identifiers_of(&slots[first].stage) == identifiers,
            |&first| self.hasher.hash_one(identifiers_of(&slots[first].stage)),
        );
        match entry {
            hashbrown::hash_table::Entry::Vacant(entry) => {
                self.world.identifiers_present(identifiers, true);
                entry.insert(index);
            }
            hashbrown::hash_table::Entry::Occupied(mut entry) => {
                let second = std::mem::replace(entry.get_mut(), index);
                self.slots[second].peers.previous = index;
                self.slots[index].peers.next = second;
            }
        }
    }

    /// Undoes [`Shard::session_opened`].
    pub(super) fn session_closed(&mut self, index: u32) {
        use super::slots::{Chain, NONE};
        if self.slots[index].flags & flag::INDEXED == 0 {
            return;
        }
        self.slots[index].flags &= !flag::INDEXED;
        self.metrics.counters.clients_num.add(-1);
        let identifiers = identifiers_of(&self.slots[index].stage);
        let hash = self.hasher.hash_one(identifiers);
        let Chain { previous, next } = self.slots[index].peers;
        if previous == NONE {
            let Ok(mut entry) = self.identities.find_entry(hash, |&first| first == index) else { return };
            if next == NONE {
                self.world.identifiers_present(identifiers, false);
                entry.remove();
                if self.identities.capacity() > 64 && self.identities.len() < self.identities.capacity() / 8 {
                    let slots = &self.slots;
                    let hasher = |&first: &u32| self.hasher.hash_one(identifiers_of(&slots[first].stage));
                    self.identities.shrink_to(self.identities.len() * 2, hasher);
                }
            } else {
                *entry.get_mut() = next;
            }
        } else {
            self.slots[previous].peers.next = next;
        }
        if next != NONE {
            self.slots[next].peers.previous = previous;
        }
        self.slots[index].peers = Chain::LOOSE;
    }
}

/// The connection identifiers of whoever lives there.
pub(super) fn identifiers_of(stage: &Stage) -> &str {
    match stage {
        Stage::Session(session) => session.identifiers(),
        _ => "",
    }
}
