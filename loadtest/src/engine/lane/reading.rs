//! What comes in: bytes into frames, frames into messages, messages into what they mean.

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags};

use super::{Lane, SCRATCH_BYTES, failure, record};
use crate::engine::Reply;
use crate::engine::counts::{Counters, Failure};
use crate::engine::slot::{Arrival, State};
use crate::protocol::{self, Kind, Protocol};
use crate::wire::{self, opcode};

/// Frames with a longer payload are counted and dropped as they arrive; shorter ones are looked into.
const KEPT_PAYLOAD_MAX: u64 = 16 * 1024;

/// A fragmented message is looked into up to this length and only counted beyond it.
const FRAGMENTS_MAX: usize = 64 * 1024;

/// Bytes that may wait to be sent when a heartbeat is still answered. What a scenario says is not bounded by it.
const ANSWERS_WAITING_MAX: usize = 16 * 1024;

impl Lane {
    pub(super) fn read_all(&mut self, index: usize) {
        self.read(index, usize::MAX);
    }

    pub(super) fn read(&mut self, index: usize, limit: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut left = limit;
        while let Some(socket) = self.slots[index].socket.as_ref() {
            scratch.clear();
            let take = SCRATCH_BYTES.min(left);
            let received = if take == SCRATCH_BYTES {
                net::recv(socket, spare_capacity(&mut scratch), RecvFlags::empty()).map(|(count, _)| count)
            } else {
                scratch.resize(take, 0);
                net::recv(socket, scratch.as_mut_slice(), RecvFlags::empty()).map(|(count, _)| count)
            };
            let result = match received {
                Ok(0) => Err(Failure::Closed),
                Ok(count) => {
                    self.slots[index].heard_s = self.now_s;
                    left = left.saturating_sub(count);
                    Counters::add(&self.counters.bytes, count as u64);
                    self.feed(index, &scratch[..count]).map(|()| count == take && left > 0)
                }
                Err(Errno::AGAIN) => Ok(false),
                Err(Errno::INTR) => Ok(true),
                Err(error) => Err(failure(error)),
            };
            match result {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => {
                    self.fail(index, failure);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// Takes bytes from the socket, together with what was left over the last time.
    pub(super) fn feed(&mut self, index: usize, bytes: &[u8]) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        let left_over = slot.transit.as_mut().map(|transit| std::mem::take(&mut transit.received));
        match left_over {
            Some(mut received) if !received.is_empty() => {
                received.extend_from_slice(bytes);
                let used = self.parse(index, &received)?;
                received.drain(..used);
                if !received.is_empty() {
                    self.slots[index].transit().received = received;
                }
            }
            _ => {
                let used = self.parse(index, bytes)?;
                if used < bytes.len() {
                    self.slots[index].transit().received.extend_from_slice(&bytes[used..]);
                }
            }
        }
        let slot = &mut self.slots[index];
        if slot.transit.as_ref().is_some_and(|transit| transit.is_empty()) {
            slot.transit = None;
        }
        Ok(())
    }

    /// Handles what is complete in `bytes`; returns how much that was.
    pub(super) fn parse(&mut self, index: usize, bytes: &[u8]) -> Result<usize, Failure> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let slot = &mut self.slots[index];
            if slot.skip > 0 {
                let dropped = rest.len().min(slot.skip as usize);
                slot.skip -= dropped as u32;
                used += dropped;
                if slot.skip > 0 {
                    return Ok(used);
                }
                if std::mem::take(&mut slot.skip_ends_message) {
                    self.on_message(index, b"")?;
                    if self.slots[index].socket.is_none() {
                        return Ok(bytes.len());
                    }
                }
                continue;
            }
            if slot.state == State::Answering {
                match self.on_answer(index, rest)? {
                    Some(head) => used += head,
                    None => return Ok(used),
                }
                continue;
            }
            let Some(header) = wire::parse_header(rest).map_err(|_| Failure::Frame)? else { return Ok(used) };
            if header.mask.is_some() {
                return Err(Failure::Frame);
            }
            if header.payload_length > KEPT_PAYLOAD_MAX {
                slot.skip = u32::try_from(header.payload_length).map_err(|_| Failure::Frame)?;
                slot.skip_ends_message = header.fin;
                used += header.header_length;
                continue;
            }
            let end = header.header_length + header.payload_length as usize;
            let Some(payload) = rest.get(header.header_length..end) else { return Ok(used) };
            used += end;
            self.on_frame(index, header, payload)?;
            if self.slots[index].socket.is_none() {
                return Ok(bytes.len());
            }
        }
    }

    pub(super) fn on_frame(&mut self, index: usize, header: wire::Header, payload: &[u8]) -> Result<(), Failure> {
        match header.opcode {
            opcode::PING => {
                self.on_ping(index);
                if !self.takes_answers(index) {
                    return Ok(());
                }
                let mut out = std::mem::take(&mut self.out);
                out.clear();
                wire::push_client_frame(&mut out, opcode::PONG, payload);
                let sent = self.transmit(index, &out);
                self.out = out;
                sent
            }
            opcode::PONG => Ok(()),
            // RFC 6455 section 7.4.2: from 3000 on a code is the application's.
            opcode::CLOSE => Err(match *payload {
                [high, low, ..] if u16::from_be_bytes([high, low]) >= 3000 => Failure::Disconnected,
                _ => Failure::Closed,
            }),
            _ if header.fin && header.opcode != opcode::CONTINUATION => self.on_message(index, payload),
            _ => {
                let fragments = &mut self.slots[index].transit().fragments;
                if fragments.len() + payload.len() <= FRAGMENTS_MAX {
                    fragments.extend_from_slice(payload);
                }
                if !header.fin {
                    return Ok(());
                }
                let message = std::mem::take(fragments);
                self.on_message(index, &message)
            }
        }
    }

    /// Whether a heartbeat is answered: not while many answers wait for a server that sends and does not read.
    fn takes_answers(&self, index: usize) -> bool {
        let transit = self.slots[index].transit.as_ref();
        transit.is_none_or(|transit| transit.unsent.len() <= ANSWERS_WAITING_MAX)
    }

    pub(super) fn on_message(&mut self, index: usize, message: &[u8]) -> Result<(), Failure> {
        if self.script.protocol != Protocol::Centrifugo {
            return self.on_text(index, message);
        }
        // Several replies may share a frame, a line each; no JSON text has a line feed inside a string.
        for line in message.split(|byte| *byte == b'\n') {
            self.on_text(index, line)?;
            if self.slots[index].socket.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn on_text(&mut self, index: usize, message: &[u8]) -> Result<(), Failure> {
        Counters::add(&self.counters.messages, 1);
        let mark = protocol::find_mark(message);
        if let Some((sequence, at_ns)) = mark {
            self.on_marked(index, sequence, at_ns);
            if let Some(returning) = self.returning.get_mut(index)
                && let Some(position) = protocol::position(message)
            {
                returning.remember_position(position, &mut self.streams);
            }
        }
        match (protocol::kind(self.script.protocol, message), self.slots[index].state) {
            (Kind::Ping, _) => {
                self.on_ping(index);
                let answer = self.script.heartbeat_answer(self.slots[index].answers_pings);
                if let Some(answer) = answer.filter(|_| self.takes_answers(index)) {
                    return self.transmit_text(index, &[answer]);
                }
            }
            (Kind::Disconnect, _) => return Err(Failure::Disconnected),
            (Kind::Welcome, State::Welcoming) => return self.on_welcome(index, message),
            (Kind::Confirm, State::Subscribing) | (Kind::ConfirmHistory, State::CatchingUp) => self.became_ready(index),
            (Kind::Confirm, State::Resubscribing) => self.slots[index].state = State::CatchingUp,
            (Kind::RejectHistory, State::CatchingUp) => {
                Counters::add(&self.counters.unrecoverable, 1);
                self.became_ready(index);
            }
            (Kind::Reject | Kind::Error, State::Subscribing | State::Resubscribing) => return Err(Failure::Rejected),
            (Kind::Error, _) => return Err(Failure::Error),
            (kind, State::Ready) if self.slots[index].to_say > 0 => {
                let awaited = self.run.as_ref().is_some_and(|run| match run.saying.reply {
                    Reply::Any => true,
                    Reply::Pong => kind == Kind::Pong,
                    Reply::Data => kind == Kind::Data && mark.is_none(),
                    Reply::History => kind == Kind::ConfirmHistory,
                });
                if awaited {
                    return self.on_reply(index);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn on_welcome(&mut self, index: usize, message: &[u8]) -> Result<(), Failure> {
        match self.script.protocol {
            Protocol::Centrifugo => self.slots[index].answers_pings = protocol::wants_pong(message),
            // One server says the same to everybody.
            Protocol::Pusher => self.silence_max_s = protocol::activity_timeout_s(message),
            Protocol::ActionCableExt => return self.on_resumable_welcome(index, message),
            Protocol::Raw | Protocol::ActionCable => {}
        }
        self.subscribe(index)
    }

    fn subscribe(&mut self, index: usize) -> Result<(), Failure> {
        match self.script.subscribe_text(self.number(index)) {
            Some(text) => {
                self.slots[index].state = State::Subscribing;
                self.transmit_text(index, &[&text])
            }
            None => {
                self.became_ready(index);
                Ok(())
            }
        }
    }

    /// A client that comes back asks for what it missed, and subscribes anew if it has to.
    fn on_resumable_welcome(&mut self, index: usize, message: &[u8]) -> Result<(), Failure> {
        let (sid, restored) = protocol::welcome(message);
        let comes_back = self.returning[index].was_here();
        self.returning[index].remember_sid(sid);
        if !comes_back {
            return self.subscribe(index);
        }
        let number = self.number(index);
        let (text, state) = if restored {
            Counters::add(&self.counters.restored, 1);
            (self.script.history_text(number, self.left(index)), State::CatchingUp)
        } else {
            Counters::add(&self.counters.anew, 1);
            (self.script.resubscribe_text(number, self.left(index)), State::Resubscribing)
        };
        let Some(text) = text else {
            self.became_ready(index);
            return Ok(());
        };
        self.slots[index].state = state;
        self.transmit_text(index, &[&text])
    }

    pub(super) fn on_marked(&mut self, index: usize, sequence: u32, at_ns: u64) {
        let slot = &mut self.slots[index];
        Counters::add(&self.counters.marked, 1);
        match slot.sequence.arrive(sequence) {
            Arrival::InOrder => {}
            Arrival::Skipped(count) => Counters::add(&self.counters.skipped, u64::from(count)),
            Arrival::Late => Counters::add(&self.counters.reordered, 1),
            Arrival::Duplicate | Arrival::Stale => Counters::add(&self.counters.duplicated, 1),
        }
        let catching_up = slot.state == State::CatchingUp;
        record(&mut self.collected.delivery_us, at_ns);
        if catching_up {
            Counters::add(&self.counters.replayed, 1);
            record(&mut self.collected.replay_us, at_ns);
        }
    }
}
