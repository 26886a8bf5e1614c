//! The way of a connection to being ready, and its end, whoever wants that.

use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

use super::{Lane, chosen, failure, record};
use crate::clock::now_ns;
use crate::engine::counts::{Counters, Failure};
use crate::engine::slot::{Sequence, State};
use crate::engine::{Goodbye, Pace};
use crate::os;
use crate::protocol::Protocol;
use crate::wire::{self, opcode};

/// Connects in one turn, so that answers are read while a long ramp runs. A burst ignores it.
const CONNECTS_PER_TURN: u32 = 64;

impl Lane {
    pub(super) fn open_due(&mut self) {
        let Some(mut opening) = self.opening.take() else { return };
        let now = now_ns();
        let mut this_turn = 0;
        while opening.next < opening.end {
            let since_ns = match opening.pace {
                Pace::Window(window) if self.unfinished >= window || this_turn >= CONNECTS_PER_TURN => break,
                Pace::Window(_) => now_ns(),
                Pace::Storm if this_turn >= CONNECTS_PER_TURN => break,
                Pace::Storm | Pace::Burst => opening.since_ns,
                Pace::Rate(rate) => {
                    let due = opening.since_ns + (opening.opened as f64 / rate * 1e9) as u64;
                    if due > now || this_turn >= CONNECTS_PER_TURN {
                        break;
                    }
                    due
                }
            };
            let index = opening.next;
            opening.next += 1;
            if self.slots[index].state == State::Free {
                opening.opened += 1;
                this_turn += 1;
                self.connect(index, since_ns);
            }
        }
        if opening.next < opening.end {
            self.opening = Some(opening);
        }
    }

    pub(super) fn connect(&mut self, index: usize, since_ns: u64) {
        Counters::add(&self.counters.connects, 1);
        let slot = &mut self.slots[index];
        slot.attempt = slot.attempt.wrapping_add(1);
        slot.since_ns = since_ns;
        slot.state = State::Connecting;
        self.unfinished += 1;
        self.deadlines.push_back((now_ns() + self.ready_timeout_ns, index as u32, slot.attempt));
        if let Err(error) = self.begin_connect(index) {
            self.fail(index, failure(error));
        }
    }

    pub(super) fn begin_connect(&mut self, index: usize) -> Result<(), Errno> {
        let server = self.servers[self.number(index) as usize % self.servers.len()];
        let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        if let Some(source) = self.sources.pick(self.number(index)) {
            // Without the option it still works, with fewer ports.
            let _ = os::choose_port_at_connect(&socket);
            net::bind(&socket, &source)?;
        }
        match net::connect(&socket, &server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(index as u64), events)?;
        self.slots[index].socket = Some(socket);
        Ok(())
    }

    pub(super) fn became_ready(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = State::Ready;
        slot.pinged_ms = self.now_ms;
        self.unfinished -= 1;
        Counters::add(&self.counters.ready, 1);
        record(&mut self.collected.ready_us, slot.since_ns);
        if slot.socket.as_ref().is_some_and(|socket| os::retransmissions(socket).is_ok_and(|count| count > 0)) {
            Counters::add(&self.counters.retransmitted, 1);
        }
    }

    /// Reads the answer to the upgrade; the length of its head, or `None` when it has not come whole.
    pub(super) fn on_answer(&mut self, index: usize, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() <= wire::HEAD_LENGTH_MAX => return Ok(None),
            Ok(httparse::Status::Partial) | Err(_) => return Err(Failure::Handshake),
        };
        if response.code != Some(101) {
            return Err(Failure::Status);
        }
        let key = wire::key_value(self.number(index), u32::from(self.slots[index].attempt));
        let accept = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("sec-websocket-accept"));
        if accept.is_none_or(|accept| accept.value != wire::accept_value(&key)) {
            return Err(Failure::Handshake);
        }
        Counters::add(&self.counters.upgraded, 1);
        match self.script.protocol {
            Protocol::Raw => self.became_ready(index),
            Protocol::ActionCable | Protocol::ActionCableExt | Protocol::Pusher | Protocol::Centrifugo => {
                self.slots[index].state = State::Welcoming;
                if let Some(greeting) = self.script.greeting() {
                    self.transmit_text(index, &[greeting])?;
                }
            }
        }
        Ok(Some(length))
    }

    /// Closes a connection that we did not want to end.
    pub(super) fn fail(&mut self, index: usize, failure: Failure) {
        if self.slots[index].state == State::Ready {
            Counters::add(&self.counters.lost, 1);
        }
        Counters::add(&self.counters.failures[failure as usize], 1);
        self.close(index);
        if let Some(after) = self.retry_after_ns {
            self.retries.push_back((now_ns() + after, index as u32));
        }
    }

    pub(super) fn close(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        match slot.state {
            State::Free => return,
            State::Ready => Counters::add(&self.counters.ended, 1),
            _ => self.unfinished -= 1,
        }
        if slot.state == State::Ready
            && let Some(returning) = self.returning.get_mut(index)
        {
            returning.left_s = slot.heard_s;
        }
        if slot.to_say > 0 {
            slot.to_say = 0;
            self.finished_saying();
        }
        let slot = &mut self.slots[index];
        slot.state = State::Free;
        slot.transit = None;
        slot.skip = 0;
        slot.skip_ends_message = false;
        if !self.script.protocol.resumes() {
            slot.sequence = Sequence::default();
        }
        if let Some(socket) = slot.socket.take() {
            // Reset: our side must not fill the table of waiting ports with what the server refused or dropped.
            let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        }
    }

    pub(super) fn drop_share(&mut self, share: f64, goodbye: Goodbye) {
        self.retries.clear();
        self.returns.clear();
        self.opening = None;
        for index in 0..self.slots.len() {
            if !chosen(index, share) {
                continue;
            }
            if goodbye != Goodbye::Reset
                && let Some(socket) = self.slots[index].socket.as_ref()
            {
                if goodbye == Goodbye::Close {
                    self.out.clear();
                    wire::push_client_frame(&mut self.out, opcode::CLOSE, &1000_u16.to_be_bytes());
                    let _ = net::send(socket, &self.out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
                }
                // An end of stream instead of a reset: dropped without the linger option that `close` sets.
                let socket = self.slots[index].socket.take();
                self.close(index);
                drop(socket);
            } else {
                self.close(index);
            }
        }
    }
}
