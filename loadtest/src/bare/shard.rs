//! One thread of the yardstick: accept, read, answer, hold, send.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use memchr::memmem;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags};

use super::{Publication, Settings, dialect};
use crate::clock::now_ns;
use crate::protocol::Protocol;
use crate::wire::{self, BadHeader, opcode};

const EVENTS_MAX: usize = 512;
const SCRATCH_BYTES: usize = 64 * 1024;
/// Longest head, and longest frame of a client.
const RECEIVED_BYTES_MAX: usize = 1 << 20;
/// Heartbeats go out in batches, ten a second at most.
const PING_TICK: Duration = Duration::from_millis(100);
/// Batches of an interval, where that is long.
const PING_BATCHES: u32 = 1000;

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

#[derive(Default)]
struct Slot {
    socket: Option<OwnedFd>,
    open: bool,
    /// Bytes on their way, in or out; none for nearly everybody nearly always.
    transit: Option<Box<Transit>>,
}

#[derive(Default)]
struct Transit {
    received: Vec<u8>,
    unsent: Vec<u8>,
}

pub(super) struct Shard {
    listener: OwnedFd,
    accepting: bool,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    publications: Receiver<Publication>,
    open: Arc<AtomicU64>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    scratch: Vec<u8>,
    out: Vec<u8>,
    protocol: Protocol,
    echo: bool,
    /// Who subscribed to what, by identifier.
    rooms: Option<HashMap<String, Vec<usize>>>,
    ping_interval: Option<Duration>,
    /// Slot whose heartbeat is next, and how many are due, with the fraction.
    ping_next: usize,
    pings_due: f64,
    ping_last_ns: u64,
}

/// The connection is over.
struct Gone;

impl Shard {
    pub fn new(
        settings: &Settings,
        listener: OwnedFd,
        publications: Receiver<Publication>,
        wake: Arc<OwnedFd>,
        open: Arc<AtomicU64>,
    ) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &*wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self {
            listener,
            accepting: true,
            epoll,
            wake,
            publications,
            open,
            slots: Vec::new(),
            free: Vec::new(),
            scratch: Vec::with_capacity(SCRATCH_BYTES),
            out: Vec::new(),
            protocol: settings.protocol,
            echo: settings.echo,
            rooms: settings.rooms.then(HashMap::new),
            ping_interval: settings.ping_interval,
            ping_next: 0,
            pings_due: 0.0,
            ping_last_ns: now_ns(),
        })
    }

    pub fn run(&mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        let tick = self.ping_interval.map(|interval| {
            Timespec::try_from(PING_TICK.max(interval / PING_BATCHES)).expect("an interval is not so long")
        });
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), tick.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("epoll_wait on a descriptor of ours cannot fail: {error}"),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    WAKE => self.broadcast(),
                    index => self.on_event(index as usize, event.flags),
                }
            }
            if let Some(interval) = self.ping_interval {
                self.ping(interval);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let index = self.free.pop().unwrap_or_else(|| {
                        self.slots.push(Slot::default());
                        self.slots.len() as u32 - 1
                    });
                    let events = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
                    let data = epoll::EventData::new_u64(u64::from(index));
                    if epoll::add(&self.epoll, &socket, data, events).is_ok() {
                        self.slots[index as usize].socket = Some(socket);
                    } else {
                        self.free.push(index);
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // No descriptor: the listener would stay readable and the loop spin, so look away until one is
                    // closed.
                    self.accepting = epoll::delete(&self.epoll, &self.listener).is_err();
                    return;
                }
            }
        }
    }

    fn close(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.socket.take().is_none() {
            return;
        }
        if std::mem::take(&mut slot.open) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.rooms.iter_mut().flat_map(HashMap::values_mut).for_each(|room| room.retain(|member| *member != index));
        }
        let slot = &mut self.slots[index];
        slot.transit = None;
        self.free.push(index as u32);
        if !self.accepting {
            let data = epoll::EventData::new_u64(LISTENER);
            self.accepting = epoll::add(&self.epoll, &self.listener, data, epoll::EventFlags::IN).is_ok();
        }
    }

    fn on_event(&mut self, index: usize, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) && self.flush(index).is_err() {
            return self.close(index);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(socket) = &self.slots[index].socket {
            scratch.clear();
            let received = net::recv(socket, spare_capacity(&mut scratch), RecvFlags::empty());
            let fate = match received {
                Ok((0, _)) => Err(Gone),
                // A short read has emptied the socket, unless the end of the stream is behind it.
                Ok((count, _)) => {
                    let more = count == SCRATCH_BYTES || flags.contains(epoll::EventFlags::RDHUP);
                    self.on_bytes(index, &mut scratch).map(|()| more)
                }
                Err(Errno::AGAIN) => Ok(false),
                Err(Errno::INTR) => Ok(true),
                Err(_) => Err(Gone),
            };
            match fate {
                Ok(true) => {}
                Ok(false) => break,
                Err(Gone) => {
                    self.close(index);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    fn on_bytes(&mut self, index: usize, bytes: &mut Vec<u8>) -> Result<(), Gone> {
        let slot = &mut self.slots[index];
        let mut joined = match slot.transit.as_deref_mut() {
            Some(transit) if !transit.received.is_empty() => {
                let mut received = std::mem::take(&mut transit.received);
                if received.len() + bytes.len() > RECEIVED_BYTES_MAX {
                    return Err(Gone);
                }
                received.extend_from_slice(bytes);
                Some(received)
            }
            _ => None,
        };
        let bytes = joined.as_mut().unwrap_or(bytes);
        let mut used = 0;
        if !slot.open {
            match self.answer(index, bytes)? {
                Some(head) => used = head,
                None => {
                    self.keep(index, bytes);
                    return Ok(());
                }
            }
        }
        let mut rest = &mut bytes[used..];
        while let Some((opcode, payload)) =
            wire::take_client_frame(&mut rest, RECEIVED_BYTES_MAX).map_err(|BadHeader| Gone)?
        {
            self.on_frame(index, opcode, payload)?;
        }
        if !rest.is_empty() {
            self.keep(index, rest);
        }
        self.tidy(index);
        Ok(())
    }

    fn keep(&mut self, index: usize, bytes: &[u8]) {
        self.slots[index].transit.get_or_insert_default().received.extend_from_slice(bytes);
    }

    fn tidy(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.transit.as_ref().is_some_and(|transit| transit.received.is_empty() && transit.unsent.is_empty()) {
            slot.transit = None;
        }
    }

    /// Answers the upgrade once its head is whole; the length of the head.
    fn answer(&mut self, index: usize, bytes: &[u8]) -> Result<Option<usize>, Gone> {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let answer = dialect::push_answer(self.protocol, &mut out, &bytes[..end], index).ok_or(Gone);
        // First of all, or a publisher that knows of the connection would find nobody here.
        self.slots[index].open = answer.is_ok();
        self.open.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
        let sent = answer.and_then(|()| self.transmit(index, &out));
        self.out = out;
        sent.map(|()| Some(end + 4))
    }

    fn on_frame(&mut self, index: usize, opcode: u8, payload: &[u8]) -> Result<(), Gone> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        match opcode {
            opcode::PING => wire::push_server_frame(&mut out, opcode::PONG, payload),
            opcode::CLOSE => wire::push_server_frame(&mut out, opcode::CLOSE, payload),
            opcode::TEXT | opcode::BINARY if self.protocol != Protocol::Raw => {
                if let Some(rooms) = &mut self.rooms
                    && let Some(room) = dialect::joined_room(payload)
                {
                    rooms.entry(room).or_default().push(index);
                }
                dialect::push_reply(self.protocol, &mut out, payload);
            }
            opcode::TEXT | opcode::BINARY if self.echo => wire::push_server_frame(&mut out, opcode, payload),
            _ => {}
        }
        let sent = if out.is_empty() { Ok(()) } else { self.transmit(index, &out) };
        out.shrink_to(SCRATCH_BYTES);
        self.out = out;
        if opcode == opcode::CLOSE { Err(Gone) } else { sent }
    }

    fn broadcast(&mut self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut counter);
        while let Ok(Publication { frame, room }) = self.publications.try_recv() {
            match room {
                None => (0..self.slots.len()).for_each(|index| self.deliver(index, &frame)),
                Some(room) => {
                    // Closing takes members out of a room, so it is not in the table meanwhile.
                    let found = self.rooms.as_mut().and_then(|rooms| rooms.remove_entry(&*room));
                    let Some((room, mut members)) = found else { continue };
                    members.iter().for_each(|index| self.deliver(*index, &frame));
                    members.retain(|index| self.slots[*index].open);
                    self.rooms.get_or_insert_default().insert(room, members);
                }
            }
        }
    }

    fn deliver(&mut self, index: usize, frame: &[u8]) {
        if self.slots[index].open && self.transmit(index, frame).is_err() {
            self.close(index);
        }
    }

    fn ping(&mut self, interval: Duration) {
        let now = now_ns();
        let elapsed = now - self.ping_last_ns;
        if elapsed < PING_TICK.as_nanos() as u64 / 2 {
            return;
        }
        self.ping_last_ns = now;
        self.pings_due += self.slots.len() as f64 * elapsed as f64 / interval.as_nanos() as f64;
        let mut frame = Vec::with_capacity(64);
        dialect::push_heartbeat(self.protocol, &mut frame);
        while self.pings_due >= 1.0 {
            self.pings_due -= 1.0;
            self.ping_next = (self.ping_next + 1) % self.slots.len().max(1);
            let index = self.ping_next;
            if self.slots.get(index).is_some_and(|slot| slot.open) && self.transmit(index, &frame).is_err() {
                self.close(index);
            }
        }
    }

    /// Sends; what the socket does not take waits for it.
    fn transmit(&mut self, index: usize, bytes: &[u8]) -> Result<(), Gone> {
        let slot = &mut self.slots[index];
        let Some(socket) = &slot.socket else { return Ok(()) };
        let waiting = slot.transit.as_ref().is_some_and(|transit| !transit.unsent.is_empty());
        let sent = if waiting { 0 } else { send(socket, bytes)? };
        if sent < bytes.len() {
            if !waiting {
                watch(&self.epoll, socket, index, epoll::EventFlags::OUT)?;
            }
            slot.transit.get_or_insert_default().unsent.extend_from_slice(&bytes[sent..]);
        }
        Ok(())
    }

    fn flush(&mut self, index: usize) -> Result<(), Gone> {
        let slot = &mut self.slots[index];
        let (Some(transit), Some(socket)) = (&mut slot.transit, &slot.socket) else { return Ok(()) };
        let sent = send(socket, &transit.unsent)?;
        transit.unsent.drain(..sent);
        if transit.unsent.is_empty() {
            watch(&self.epoll, socket, index, epoll::EventFlags::empty())?;
        }
        self.tidy(index);
        Ok(())
    }
}

fn watch(epoll: &OwnedFd, socket: &OwnedFd, index: usize, also: epoll::EventFlags) -> Result<(), Gone> {
    let events = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET | also;
    epoll::modify(epoll, socket, epoll::EventData::new_u64(index as u64), events).map_err(|_| Gone)
}

fn send(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Gone> {
    match net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(_) => Err(Gone),
    }
}
