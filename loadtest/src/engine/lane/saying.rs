//! What goes out: rounds of messages that wait for their replies, and bytes that wait for the socket.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{self, SendFlags, sockopt};

use super::{Lane, SCRATCH_BYTES, failure, record};
use crate::clock::now_ns;
use crate::engine::counts::{Counters, Failure};
use crate::engine::slot::State;
use crate::wire::{self, opcode};

/// Messages begun in one turn.
const SAYINGS_PER_TURN: u32 = 64;

impl Lane {
    pub(super) fn say_due(&mut self) {
        for _ in 0..SAYINGS_PER_TURN {
            let Some(run) = &mut self.run else { return };
            if run.under_way >= run.saying.at_once || run.next >= self.slots.len() {
                return;
            }
            let index = run.next;
            run.next += 1;
            let slot = &mut self.slots[index];
            if slot.state != State::Ready {
                continue;
            }
            run.under_way += 1;
            slot.to_say = run.saying.rounds.max(1);
            if let Some(socket) = &slot.socket {
                // Parked clients never need it; one that talks must not wait for a delayed acknowledgement.
                let _ = sockopt::set_tcp_nodelay(socket, true);
            }
            self.say(index);
        }
    }

    pub(super) fn say(&mut self, index: usize) {
        let Some(run) = &self.run else { return };
        let saying = Arc::clone(&run.saying);
        let number = self.number(index);
        let texts: Vec<String> = saying.texts.iter().map(|text| text.expand(number)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.slots[index].since_ns = now_ns();
        if let Err(failure) = self.transmit_text(index, &texts) {
            self.fail(index, failure);
        }
    }

    pub(super) fn on_reply(&mut self, index: usize) -> Result<(), Failure> {
        Counters::add(&self.counters.replies, 1);
        let slot = &mut self.slots[index];
        record(&mut self.collected.reply_us, slot.since_ns);
        slot.to_say -= 1;
        if slot.to_say == 0 {
            self.finished_saying();
        } else {
            self.say(index);
        }
        Ok(())
    }

    pub(super) fn finished_saying(&mut self) {
        Counters::add(&self.counters.said, 1);
        if let Some(run) = &mut self.run {
            run.under_way = run.under_way.saturating_sub(1);
            if run.under_way == 0 && run.next >= self.slots.len() {
                self.run = None;
            }
        }
    }

    // Writing

    pub(super) fn transmit_text(&mut self, index: usize, texts: &[&str]) -> Result<(), Failure> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        for text in texts {
            wire::push_client_frame(&mut out, opcode::TEXT, text.as_bytes());
        }
        let sent = self.transmit(index, &out);
        // One large message must not stay with the lane for ever.
        out.shrink_to(SCRATCH_BYTES);
        self.out = out;
        sent
    }

    /// Sends what the socket takes now and keeps the rest for when it takes more.
    pub(super) fn transmit(&mut self, index: usize, bytes: &[u8]) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        let waiting = slot.transit.as_ref().is_some_and(|transit| !transit.unsent.is_empty());
        let sent = match &slot.socket {
            _ if waiting => 0,
            Some(socket) => send(socket, bytes)?,
            None => return Ok(()),
        };
        if sent < bytes.len() {
            slot.transit().unsent.extend_from_slice(&bytes[sent..]);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self, index: usize) -> Result<(), Failure> {
        let slot = &mut self.slots[index];
        let (Some(transit), Some(socket)) = (&mut slot.transit, &slot.socket) else { return Ok(()) };
        if !transit.unsent.is_empty() {
            let sent = send(socket, &transit.unsent)?;
            transit.unsent.drain(..sent);
            if transit.unsent.is_empty() {
                transit.unsent = Vec::new();
            }
        }
        if transit.is_empty() {
            slot.transit = None;
        }
        Ok(())
    }
}

fn send(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Failure> {
    match net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(failure(error)),
    }
}
