//! The way up: bytes from sockets to frames to messages to sessions.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;

use crate::proto::Carrier;
use crate::proto::frame::{self, Event, Opcode};

use super::slots::{Stage, flag};
use super::{Machine, READS_PER_TURN, Services, Shard};

/// Bytes that were read behind a command that still runs, by slot: at most a scratch buffer each, since a connection
/// that waits is not read.
#[derive(Default)]
pub(super) struct Stashes(HashMap<u32, Stash>);

/// What is left of one read. It is not copied again for each command in it.
pub(super) struct Stash {
    bytes: Vec<u8>,
    /// Those before are used up.
    at: usize,
}

impl Stash {
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

impl Stashes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn insert(&mut self, index: u32, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.0.insert(index, Stash { bytes, at: 0 });
        }
    }

    pub fn remove(&mut self, index: &u32) -> Option<Stash> {
        self.0.remove(index)
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Reads from a connection until nothing is left, the connection has to wait, or its share is used up.
    pub(super) fn read(&mut self, index: u32) {
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
            match self.machine.read(socket, scratch) {
                Ok(received) if received.bytes == 0 => return self.peer_gone(index),
                Ok(received) => {
                    // An end of the stream that was reported already is not reported again.
                    if !received.maybe_more && slot.flags & flag::PEER_SHUT == 0 {
                        slot.flags &= !flag::READABLE;
                    }
                    if !matches!(slot.stage, Stage::Handshake(_)) {
                        self.metrics.counters.data_rcvd_total.add(received.bytes as u64);
                    }
                    self.bytes(index, &mut scratch[..received.bytes]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    slot.flags &= !flag::READABLE;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.failed(index, &error),
            }
        }
        if self.slots[index].generation == generation {
            self.read_again(index);
        }
    }

    /// Goes on reading in the next turn, if there may be something and nobody has said so yet.
    pub(super) fn read_again(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.socket.is_some() && slot.flags & (flag::READABLE | flag::AGAIN) == flag::READABLE {
            slot.flags |= flag::AGAIN;
            self.again.push_back(index);
        }
    }

    /// Bytes of the client.
    fn bytes(&mut self, index: u32, bytes: &mut [u8]) {
        match &self.slots[index].stage {
            Stage::Handshake(_) => self.request_bytes(index, bytes),
            Stage::Echo | Stage::Session(_) => self.frame_bytes(index, bytes),
            Stage::Closing | Stage::Orphan(_) | Stage::Free => {}
        }
    }

    /// Bytes behind the handshake: whole frames are handled where they lie, the rest is kept by the reader. What comes
    /// behind a command that waits for an answer is kept until then.
    pub(super) fn frame_bytes(&mut self, index: u32, bytes: &mut [u8]) {
        let left = self.frames(index, bytes);
        if left > 0 {
            self.stashes.insert(index, bytes[bytes.len() - left..].to_vec());
        }
    }

    /// A question is answered: what was read behind it comes first, then what the socket holds.
    pub(super) fn go_on_reading(&mut self, index: u32) {
        if let Some(mut stash) = self.stashes.remove(&index) {
            let left = self.frames(index, &mut stash.bytes[stash.at..]);
            if left > 0 {
                stash.at = stash.bytes.len() - left;
                self.stashes.0.insert(index, stash);
            }
        }
        self.read_again(index);
    }

    /// Handles frames until nothing is left or the session has to wait; gives how many bytes have to wait with it.
    fn frames(&mut self, index: u32, mut bytes: &mut [u8]) -> usize {
        let settings = Arc::clone(&self.settings);
        loop {
            let slot = &mut self.slots[index];
            let limits = match &slot.stage {
                Stage::Echo => &settings.echo_limits,
                Stage::Session(session) if session.is_waiting() => return bytes.len(),
                Stage::Session(_) => &settings.limits,
                // Closed by one of the frames before; what follows is nobody's.
                _ => return 0,
            };
            let event = match slot.form.carrier {
                Carrier::WebSocket => slot.reader.next(&mut bytes, limits),
            };
            match event {
                Ok(None) => return 0,
                Ok(Some(Event::Message(message))) => match &slot.stage {
                    Stage::Session(_) => self.session_input(index, |session, ctx| session.message(&message, ctx)),
                    _ => {
                        self.metrics.counters.server_msg_total.inc();
                        let carrier = slot.form.carrier;
                        self.push(index, carrier.message(message.kind(), message.bytes()));
                    }
                },
                Ok(Some(Event::Ping(payload))) => {
                    self.alive(index);
                    self.push(index, frame::encode(Opcode::Pong, &payload));
                }
                Ok(Some(Event::Pong(_))) => self.alive(index),
                Ok(Some(Event::Close(close))) => {
                    self.client_closes(index, close.map(|(code, _)| code));
                    return 0;
                }
                Err(violation) => {
                    self.violated(index, violation);
                    return 0;
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
}
