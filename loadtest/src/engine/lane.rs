//! One client thread: its epoll, its slots, one loop.
//!
//! A turn waits for events, handles them, takes orders, opens and says what is due, and looks at deadlines ten times a
//! second. Sockets are registered once, edge-triggered, when they connect; a socket is read until the kernel has no
//! more, into one scratch buffer, and only a frame cut in two is kept.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::counts::{Counters, Failure};
use super::slot::{Arrival, Sequence, Slot, State};
use super::source::Sources;
use super::{Collected, Goodbye, Order, Pace, Reply, Saying, Settings};
use crate::clock::now_ns;
use crate::os;
use crate::protocol::{self, Kind, Protocol, Script};
use crate::wire::{self, opcode};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 512;

/// Connects in one turn, so that answers are read while a long ramp runs. A burst ignores it.
const CONNECTS_PER_TURN: u32 = 64;

/// Messages begun in one turn.
const SAYINGS_PER_TURN: u32 = 64;

/// What one read takes at most: as much as the default receive buffer of a loopback socket holds at first.
const SCRATCH_BYTES: usize = 128 * 1024;

/// Frames with a longer payload are counted and dropped as they arrive; shorter ones are looked into.
const KEPT_PAYLOAD_MAX: u64 = 16 * 1024;

/// A fragmented message is looked into up to this length and only counted beyond it.
const FRAGMENTS_MAX: usize = 64 * 1024;

/// How often deadlines, retries and slow readers are looked at.
const TICK: Duration = Duration::from_millis(100);

/// The token of the wake-up descriptor; slots are numbered below.
const WAKE: u64 = u64::MAX;

struct Opening {
    pace: Pace,
    since_ns: u64,
    next: usize,
    end: usize,
    opened: u64,
}

struct SayingRun {
    saying: Arc<Saying>,
    next: usize,
    under_way: u32,
}

#[derive(Clone, Copy)]
struct Slow {
    share: f64,
    bytes_per_second: u32,
}

pub(super) struct Lane {
    server: SocketAddr,
    script: Script,
    sources: Sources,
    ready_timeout_ns: u64,
    retry_after_ns: Option<u64>,
    /// The number of slot 0, and the distance to the next one's.
    first_number: u32,
    stride: u32,
    slots: Vec<Slot>,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbox: Receiver<Order>,
    counters: Arc<Counters>,
    collected: Collected,
    scratch: Vec<u8>,
    out: Vec<u8>,
    opening: Option<Opening>,
    /// Connections that have begun and are not ready yet.
    unfinished: u32,
    /// When to give up on which attempt, earliest first.
    deadlines: VecDeque<(u64, u32, u16)>,
    retries: VecDeque<(u64, u32)>,
    run: Option<SayingRun>,
    slow: Option<Slow>,
}

/// Whether slot `index` belongs to a share of all, spread evenly.
fn chosen(index: usize, share: f64) -> bool {
    ((index + 1) as f64 * share).floor() > (index as f64 * share).floor()
}

fn failure(error: Errno) -> Failure {
    match error {
        Errno::CONNREFUSED => Failure::Refused,
        Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN => Failure::Reset,
        Errno::TIMEDOUT => Failure::Timeout,
        Errno::ADDRNOTAVAIL | Errno::ADDRINUSE => Failure::NoPort,
        Errno::MFILE | Errno::NFILE => Failure::NoDescriptor,
        _ => Failure::Other,
    }
}

impl Lane {
    pub fn new(
        settings: &Settings,
        lane: u32,
        inbox: Receiver<Order>,
        wake: Arc<OwnedFd>,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Self> {
        let stride = settings.lanes.max(1) as u32;
        let count = settings.connections.saturating_sub(lane).div_ceil(stride);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self {
            server: settings.server,
            script: settings.script.clone(),
            sources: settings.sources.clone(),
            ready_timeout_ns: settings.ready_timeout.as_nanos() as u64,
            retry_after_ns: settings.retry_after.map(|after| after.as_nanos() as u64),
            first_number: settings.first_number + lane,
            stride,
            slots: (0..count).map(|_| Slot::new()).collect(),
            epoll,
            wake,
            inbox,
            counters,
            collected: Collected::empty(),
            scratch: Vec::with_capacity(SCRATCH_BYTES),
            out: Vec::new(),
            opening: None,
            unfinished: 0,
            deadlines: VecDeque::new(),
            retries: VecDeque::new(),
            run: None,
            slow: None,
        })
    }

    pub fn run(&mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        let mut next_tick_ns = 0;
        loop {
            events.clear();
            let timeout = Timespec::try_from(self.patience()).expect("at most a tick");
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("epoll_wait on a descriptor of ours cannot fail: {error}"),
            }
            let turn_began = now_ns();
            let mut woken = false;
            for event in &events {
                match event.data.u64() {
                    WAKE => woken = true,
                    index => self.on_event(index as usize, event.flags),
                }
            }
            if woken && !self.take_orders() {
                return;
            }
            self.open_due();
            self.say_due();
            let now = now_ns();
            if now >= next_tick_ns {
                next_tick_ns = now + TICK.as_nanos() as u64;
                self.tick(now);
            }
            // A burst is one long turn on purpose; anything else that takes long is this tool being the bottleneck.
            self.collected.lag_us_max = self.collected.lag_us_max.max((now_ns() - turn_began) / 1_000);
        }
    }

    /// How long the next turn may wait for events.
    fn patience(&self) -> Duration {
        let opening = self.opening.as_ref().is_some_and(|opening| match opening.pace {
            Pace::Window(window) => self.unfinished < window,
            Pace::Storm | Pace::Burst => true,
            Pace::Rate(_) => false,
        });
        let saying = self.run.as_ref().is_some_and(|run| run.under_way < run.saying.at_once);
        match &self.opening {
            _ if opening || saying => Duration::ZERO,
            Some(Opening { pace: Pace::Rate(rate), .. }) => TICK.min(Duration::from_secs_f64(1.0 / rate.max(10.0))),
            _ => TICK,
        }
    }

    /// False when the engine ends.
    fn take_orders(&mut self) -> bool {
        let mut counter = [0; 8];
        // It is non-blocking; when it is empty already there is nothing to do about that.
        let _ = rustix::io::read(&*self.wake, &mut counter);
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Open { pace, since_ns, only_numbers_below }) => {
                    let lane = self.first_number % self.stride;
                    let below = only_numbers_below.saturating_sub(lane).div_ceil(self.stride) as usize;
                    let end = below.min(self.slots.len());
                    self.opening = Some(Opening { pace, since_ns, next: 0, end, opened: 0 });
                }
                Ok(Order::Drop { share, goodbye }) => self.drop_share(share, goodbye),
                Ok(Order::Say(saying)) => self.run = Some(SayingRun { saying, next: 0, under_way: 0 }),
                Ok(Order::Expect(sequence)) => {
                    for slot in &mut self.slots {
                        slot.sequence = Sequence::expect(sequence);
                    }
                }
                Ok(Order::Slow { share, bytes_per_second }) => {
                    self.slow = (share > 0.0).then_some(Slow { share, bytes_per_second });
                    if self.slow.is_none() {
                        // What piled up meanwhile raises no new edge.
                        for index in 0..self.slots.len() {
                            self.read_all(index);
                        }
                    }
                }
                Ok(Order::Collect { expected, answer }) => {
                    let mut collected = std::mem::replace(&mut self.collected, Collected::empty());
                    let ready = self.slots.iter().filter(|slot| slot.state == State::Ready);
                    collected.missing_at_end =
                        ready.map(|slot| u64::from(expected.saturating_sub(slot.sequence.next()))).sum();
                    let _ = answer.send(collected);
                }
                Ok(Order::End) | Err(TryRecvError::Disconnected) => {
                    self.drop_share(1.0, Goodbye::Reset);
                    return false;
                }
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn number(&self, index: usize) -> u32 {
        self.first_number + index as u32 * self.stride
    }

    // Opening

    fn open_due(&mut self) {
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

    fn connect(&mut self, index: usize, since_ns: u64) {
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

    fn begin_connect(&mut self, index: usize) -> Result<(), Errno> {
        let family = if self.server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        if let Some(source) = self.sources.pick(self.number(index)) {
            // Without the option it still works, with fewer ports.
            let _ = os::choose_port_at_connect(&socket);
            net::bind(&socket, &source)?;
        }
        match net::connect(&socket, &self.server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(index as u64), events)?;
        self.slots[index].socket = Some(socket);
        Ok(())
    }

    fn became_ready(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = State::Ready;
        self.unfinished -= 1;
        Counters::add(&self.counters.ready, 1);
        record(&mut self.collected.ready_us, slot.since_ns);
        if slot.socket.as_ref().is_some_and(|socket| os::retransmissions(socket).is_ok_and(|count| count > 0)) {
            Counters::add(&self.counters.retransmitted, 1);
        }
    }

    // Ending

    /// Closes a connection that we did not want to end.
    fn fail(&mut self, index: usize, failure: Failure) {
        if self.slots[index].state == State::Ready {
            Counters::add(&self.counters.lost, 1);
        }
        Counters::add(&self.counters.failures[failure as usize], 1);
        self.close(index);
        if let Some(after) = self.retry_after_ns {
            self.retries.push_back((now_ns() + after, index as u32));
        }
    }

    fn close(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        match slot.state {
            State::Free => return,
            State::Ready => Counters::add(&self.counters.ended, 1),
            _ => self.unfinished -= 1,
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
        slot.sequence = Sequence::default();
        if let Some(socket) = slot.socket.take() {
            // Reset: our side must not fill the table of waiting ports with what the server refused or dropped.
            let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        }
    }

    fn drop_share(&mut self, share: f64, goodbye: Goodbye) {
        self.retries.clear();
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

    // Events

    fn on_event(&mut self, index: usize, flags: epoll::EventFlags) {
        let ended = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        if self.slots[index].state == State::Connecting && flags.intersects(epoll::EventFlags::OUT | ended) {
            if flags.intersects(ended)
                && let Some(Ok(Err(error))) = self.slots[index].socket.as_ref().map(sockopt::socket_error)
            {
                return self.fail(index, failure(error));
            }
            self.slots[index].state = State::Answering;
            let mut out = std::mem::take(&mut self.out);
            out.clear();
            self.script.push_request(&mut out, self.number(index), u32::from(self.slots[index].attempt));
            let sent = self.transmit(index, &out);
            self.out = out;
            if let Err(failure) = sent {
                return self.fail(index, failure);
            }
        } else if flags.contains(epoll::EventFlags::OUT)
            && let Err(failure) = self.flush(index)
        {
            return self.fail(index, failure);
        }
        let readable = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | ended;
        if flags.intersects(readable) && !self.slow.is_some_and(|slow| chosen(index, slow.share)) {
            self.read_all(index);
        }
    }

    fn read_all(&mut self, index: usize) {
        self.read(index, usize::MAX);
    }

    fn read(&mut self, index: usize, limit: usize) {
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
    fn feed(&mut self, index: usize, bytes: &[u8]) -> Result<(), Failure> {
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
    fn parse(&mut self, index: usize, bytes: &[u8]) -> Result<usize, Failure> {
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

    /// Reads the answer to the upgrade; the length of its head, or `None` when it has not come whole.
    fn on_answer(&mut self, index: usize, bytes: &[u8]) -> Result<Option<usize>, Failure> {
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
            Protocol::ActionCable => self.slots[index].state = State::Welcoming,
        }
        Ok(Some(length))
    }

    fn on_frame(&mut self, index: usize, header: wire::Header, payload: &[u8]) -> Result<(), Failure> {
        match header.opcode {
            opcode::PING => {
                Counters::add(&self.counters.pings, 1);
                let mut out = std::mem::take(&mut self.out);
                out.clear();
                wire::push_client_frame(&mut out, opcode::PONG, payload);
                let sent = self.transmit(index, &out);
                self.out = out;
                sent
            }
            opcode::PONG => Ok(()),
            opcode::CLOSE => Err(Failure::Closed),
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

    fn on_message(&mut self, index: usize, message: &[u8]) -> Result<(), Failure> {
        Counters::add(&self.counters.messages, 1);
        if let Some((sequence, at_ns)) = protocol::find_mark(message) {
            self.on_marked(index, sequence, at_ns);
        }
        let kind = match self.script.protocol {
            Protocol::Raw => Kind::Data,
            Protocol::ActionCable => protocol::kind(message),
        };
        match (kind, self.slots[index].state) {
            (Kind::Ping, _) => Counters::add(&self.counters.pings, 1),
            (Kind::Disconnect, _) => return Err(Failure::Disconnected),
            (Kind::Welcome, State::Welcoming) => match self.script.subscribe_text(self.number(index)) {
                Some(text) => {
                    self.slots[index].state = State::Subscribing;
                    return self.transmit_text(index, &[&text]);
                }
                None => self.became_ready(index),
            },
            (Kind::Confirm, State::Subscribing) => self.became_ready(index),
            (Kind::Reject, State::Subscribing) => return Err(Failure::Rejected),
            (kind, State::Ready) if self.slots[index].to_say > 0 => {
                let awaited = self.run.as_ref().is_some_and(|run| match run.saying.reply {
                    Reply::Any => true,
                    Reply::Pong => kind == Kind::Pong,
                    Reply::Data => kind == Kind::Data,
                });
                if awaited {
                    return self.on_reply(index);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn on_marked(&mut self, index: usize, sequence: u32, at_ns: u64) {
        let slot = &mut self.slots[index];
        Counters::add(&self.counters.marked, 1);
        match slot.sequence.arrive(sequence) {
            Arrival::InOrder => {}
            Arrival::Skipped(count) => Counters::add(&self.counters.skipped, u64::from(count)),
            Arrival::Late => Counters::add(&self.counters.reordered, 1),
            Arrival::Duplicate | Arrival::Stale => Counters::add(&self.counters.duplicated, 1),
        }
        record(&mut self.collected.delivery_us, at_ns);
    }

    // Saying

    fn say_due(&mut self) {
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

    fn say(&mut self, index: usize) {
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

    fn on_reply(&mut self, index: usize) -> Result<(), Failure> {
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

    fn finished_saying(&mut self) {
        Counters::add(&self.counters.said, 1);
        if let Some(run) = &mut self.run {
            run.under_way = run.under_way.saturating_sub(1);
            if run.under_way == 0 && run.next >= self.slots.len() {
                self.run = None;
            }
        }
    }

    // Writing

    fn transmit_text(&mut self, index: usize, texts: &[&str]) -> Result<(), Failure> {
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
    fn transmit(&mut self, index: usize, bytes: &[u8]) -> Result<(), Failure> {
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

    fn flush(&mut self, index: usize) -> Result<(), Failure> {
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

    // Time

    fn tick(&mut self, now: u64) {
        while let Some(&(due, index, attempt)) = self.deadlines.front() {
            let slot = &self.slots[index as usize];
            let pending = slot.attempt == attempt && !matches!(slot.state, State::Ready | State::Free);
            if pending && due > now {
                break;
            }
            self.deadlines.pop_front();
            if pending {
                self.fail(index as usize, Failure::Timeout);
            }
        }
        while self.retries.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, index)) = self.retries.pop_front() else { return };
            if self.slots[index as usize].state == State::Free {
                Counters::add(&self.counters.retried, 1);
                // The time that counts is since the first try of this storm, which `since_ns` still holds.
                let since_ns = self.slots[index as usize].since_ns;
                self.connect(index as usize, since_ns);
            }
        }
        if let Some(slow) = self.slow {
            let budget = (f64::from(slow.bytes_per_second) * TICK.as_secs_f64()) as usize;
            if budget > 0 {
                for index in 0..self.slots.len() {
                    if chosen(index, slow.share) {
                        self.read(index, budget);
                    }
                }
            }
        }
    }
}

fn send(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Failure> {
    match net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(failure(error)),
    }
}

/// Adds the time since `since_ns`, in microseconds.
fn record(histogram: &mut Histogram<u64>, since_ns: u64) {
    histogram.record(now_ns().saturating_sub(since_ns) / 1_000).expect("resizing histograms take every value");
}
