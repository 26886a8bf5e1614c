//! The way up: bytes from sockets to frames to messages to sessions.

use std::collections::HashMap;
use std::io::ErrorKind;

use crate::model::{Tick, tick_after};
use crate::proto::Carrier;
use crate::proto::frame::{Event, FrameReader};

use super::buffers::Buffer;
use super::frame::Frame;
use super::slots::{Stage, flag};
use super::{LINGER_BYTES_MAX, Machine, READS_PER_TURN, Services, Shard};

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
    pub fn new(bytes: Vec<u8>) -> Stash {
        Stash { bytes, at: 0 }
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

impl Stashes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What waits for this slot.
    pub fn rest(&self, index: u32) -> &[u8] {
        self.0.get(&index).map_or(&[], Stash::rest)
    }

    /// The slots for which something waits.
    pub fn indexes(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }

    /// Memory that is held for this slot.
    pub fn bytes(&self, index: u32) -> usize {
        self.0.get(&index).map_or(0, |stash| stash.bytes.capacity())
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
            if matches!(&slot.stage, Stage::Session(session, _) if session.is_waiting()) {
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
        if let Stage::Session(session, _) = &mut self.slots[index].stage {
            session.alive();
        }
        match &self.slots[index].stage {
            Stage::Handshake(_) => self.request_bytes(index, bytes),
            Stage::Echo(_) | Stage::Session(..) => self.frame_bytes(index, bytes),
            Stage::Closing { drained } => self.drop_read(index, *drained as usize + bytes.len()),
            Stage::Orphan(_) | Stage::Free => {}
        }
    }

    /// A peer that we have closed goes on sending. It may until its end of the stream arrives, but not without end.
    fn drop_read(&mut self, index: u32, drained: usize) {
        if drained > LINGER_BYTES_MAX {
            return self.free(index);
        }
        self.slots[index].stage = Stage::Closing { drained: drained as u32 };
    }

    /// Bytes behind the handshake: whole frames are handled where they lie, the rest is kept by the reader. What comes
    /// behind a command that waits for an answer is kept until then.
    pub(super) fn frame_bytes(&mut self, index: u32, bytes: &mut [u8]) {
        let left = self.frames(index, bytes);
        if left > 0 {
            self.keep_stash(index, Stash::new(bytes[bytes.len() - left..].to_vec()));
        }
    }

    /// A question is answered: what was read behind it comes first, then what the socket holds.
    pub(super) fn go_on_reading(&mut self, index: u32) {
        if self.is_still() {
            // What it has said waits; more of it could be asked, and would have to be answered, without end.
            return self.read_again(index);
        }
        if let Some(mut stash) = self.take_stash(index) {
            let left = self.frames(index, &mut stash.bytes[stash.at..]);
            if left > 0 {
                stash.at = stash.bytes.len() - left;
                self.keep_stash(index, stash);
            }
        }
        self.read_again(index);
    }

    pub(super) fn keep_stash(&mut self, index: u32, stash: Stash) {
        self.stashes.0.insert(index, stash);
        self.buffers.change(Buffer::Stash, 0, self.stashes.bytes(index));
    }

    pub(super) fn take_stash(&mut self, index: u32) -> Option<Stash> {
        self.buffers.change(Buffer::Stash, self.stashes.bytes(index), 0);
        self.stashes.0.remove(&index)
    }

    /// Drops what was read of this client and not handled.
    pub(super) fn forget_read(&mut self, index: u32) {
        drop(self.take_stash(index));
        drop(self.take_reader(index));
    }

    /// Takes the reader away with the message that is not complete.
    pub(super) fn take_reader(&mut self, index: u32) -> FrameReader {
        let reader = std::mem::take(&mut self.slots[index].reader);
        if !reader.is_parked() {
            self.message_bytes_changed(index, reader.heap_bytes());
        }
        reader
    }

    /// Goes on with a reader; if its message is not complete, it has to be by then.
    pub(super) fn put_reader(&mut self, index: u32, reader: FrameReader, message_due: Tick) {
        if !reader.is_parked() {
            self.buffers.change(Buffer::Message, 0, reader.heap_bytes());
            self.rare_deadlines.messages.insert(index, message_due);
        }
        self.slots[index].reader = reader;
    }

    /// The reader holds more or less than `before` now. A message that is not complete has a deadline from its first byte
    /// on.
    fn message_bytes_changed(&mut self, index: u32, before: usize) {
        let now = self.slots[index].reader.heap_bytes();
        self.buffers.change(Buffer::Message, before, now);
        if before == 0 {
            self.rare_deadlines.messages.insert(index, tick_after(self.now.mono + self.settings.message_timeout));
            self.set_timer(index);
        } else if now == 0 {
            self.rare_deadlines.messages.remove(&index);
        }
    }

    /// Handles frames until nothing is left or the session has to wait; gives how many bytes have to wait with it.
    fn frames(&mut self, index: u32, mut bytes: &mut [u8]) -> usize {
        // Not the settings: all shards would count at one place who has them.
        let (limits, echo_limits) = (self.settings.limits, self.settings.echo_limits);
        loop {
            let slot = &mut self.slots[index];
            let limits = match &slot.stage {
                Stage::Echo(_) => &echo_limits,
                Stage::Session(session, _) if session.is_waiting() => return bytes.len(),
                Stage::Session(..) => &limits,
                // Closed by one of the frames before; what follows is nobody's.
                _ => return 0,
            };
            let held = slot.reader.heap_bytes();
            let event = match slot.form.carrier {
                Carrier::WebSocket => slot.reader.next(&mut bytes, limits),
            };
            if slot.reader.heap_bytes() != held {
                self.message_bytes_changed(index, held);
            }
            match event {
                Ok(None) => return 0,
                Ok(Some(Event::Message(message))) => match &self.slots[index].stage {
                    Stage::Session(..) => self.session_input(index, |session, ctx| session.message(&message, ctx)),
                    _ => {
                        self.metrics.counters.server_msg_total.inc();
                        let form = self.slots[index].form;
                        let frame = Frame::message(form, message.kind(), message.bytes(), &mut self.room);
                        self.push(index, frame);
                    }
                },
                Ok(Some(Event::Ping(payload))) => self.push_pong(index, &payload),
                // It was waited for, and it is there.
                Ok(Some(Event::Pong(_))) => self.set_timer(index),
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
}
