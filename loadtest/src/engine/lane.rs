//! One client thread: its epoll, its slots, one loop.
//!
//! A turn waits for events, handles them, takes orders, opens and says what is due, and looks at deadlines ten times a
//! second. Sockets are registered once, edge-triggered, when they connect; a socket is read until the kernel has no
//! more, into one scratch buffer, and only a frame cut in two is kept.

mod opening;
mod reading;
mod saying;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::counts::{Counters, Failure};
use super::returning::{Returning, Streams};
use super::slot::{Sequence, Slot, State};
use super::source::Sources;
use super::{BadNetwork, Collected, Goodbye, Order, Pace, Saying, Settings};
use crate::clock::{now_ns, unix_s};
use crate::protocol::{self, Script};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 512;

/// What one read takes at most: as much as the default receive buffer of a loopback socket holds at first.
const SCRATCH_BYTES: usize = 128 * 1024;

/// How often deadlines, retries and slow readers are looked at.
const TICK: Duration = Duration::from_millis(100);
const TICKS_PER_SECOND: usize = 10;

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

/// A bad network while it lasts.
struct Dropping {
    bad_network: BadNetwork,
    since_ns: u64,
    /// How many clients have had their turn.
    turns: u64,
}

pub(super) struct Lane {
    servers: Vec<SocketAddr>,
    script: Script,
    sources: Sources,
    ready_timeout_ns: u64,
    retry_after_ns: Option<u64>,
    /// The number of slot 0, and the distance to the next one's.
    first_number: u32,
    stride: u32,
    slots: Vec<Slot>,
    /// One for each slot, if the protocol resumes.
    returning: Vec<Returning>,
    streams: Streams,
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
    dropping: Option<Dropping>,
    /// Who comes back from a bad network, and when, earliest first.
    returns: VecDeque<(u64, u32)>,
    /// The clock of this turn, in seconds.
    now_s: u32,
    /// The same in milliseconds; wraps around after 49 days.
    now_ms: u32,
    /// After how many milliseconds a ping is late.
    ping_late_ms: Option<u32>,
    /// After how many seconds of silence the server wants a ping of its clients; 0: never.
    silence_max_s: u32,
    /// The slot whose silence is looked at next.
    listen_next: usize,
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
            servers: settings.servers.clone(),
            script: settings.script.clone(),
            sources: settings.sources.clone(),
            ready_timeout_ns: settings.ready_timeout.as_nanos() as u64,
            retry_after_ns: settings.retry_after.map(|after| after.as_nanos() as u64),
            first_number: settings.first_number + lane,
            stride,
            slots: (0..count).map(|_| Slot::new()).collect(),
            returning: vec![Returning::default(); if settings.script.protocol.resumes() { count as usize } else { 0 }],
            streams: Streams::default(),
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
            dropping: None,
            returns: VecDeque::new(),
            now_s: 0,
            now_ms: 0,
            ping_late_ms: settings.ping_late_after.map(|after| after.as_millis().try_into().unwrap_or(u32::MAX)),
            silence_max_s: 0,
            listen_next: 0,
        })
    }

    pub fn run(&mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        let mut next_tick_ns = 0;
        loop {
            events.clear();
            let timeout = Timespec::try_from(self.wait_at_most()).expect("at most a tick");
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("epoll_wait on a descriptor of ours cannot fail: {error}"),
            }
            let turn_began = now_ns();
            self.now_s = (turn_began / 1_000_000_000) as u32;
            self.now_ms = (turn_began / 1_000_000) as u32;
            let mut woken = false;
            for event in &events {
                match event.data.u64() {
                    WAKE => woken = true,
                    index => self.on_event(index as usize, event.flags),
                }
            }
            let orders_began = now_ns();
            if woken && !self.take_orders() {
                return;
            }
            let orders_ns = now_ns() - orders_began;
            self.open_due();
            self.say_due();
            let now = now_ns();
            if now >= next_tick_ns {
                next_tick_ns = now + TICK.as_nanos() as u64;
                self.tick(now);
            }
            // To drop everybody is one long turn on purpose, and so is a burst; anything else that takes long is this tool
            // being the bottleneck.
            let turn_ns = now_ns() - turn_began - orders_ns;
            self.collected.lag_us_max = self.collected.lag_us_max.max(turn_ns / 1_000);
        }
    }

    /// How long the next turn may wait for events.
    fn wait_at_most(&self) -> Duration {
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
                Ok(Order::BadNetwork(bad_network)) => {
                    self.dropping =
                        bad_network.map(|bad_network| Dropping { bad_network, since_ns: now_ns(), turns: 0 });
                }
                Ok(Order::Collect { expected, answer }) => {
                    let mut collected = std::mem::replace(&mut self.collected, Collected::empty());
                    let ready = self.slots.iter().filter(|slot| slot.state == State::Ready);
                    collected.missing_at_end =
                        ready.map(|slot| u64::from(expected.saturating_sub(slot.sequence.next()))).sum();
                    self.look_for_overdue(&mut collected);
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
            let sid = self.returning.get(index).and_then(Returning::sid);
            self.script.push_request(&mut out, self.number(index), u32::from(self.slots[index].attempt), sid);
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
        self.drop_due(now);
        self.break_silences();
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

    /// Drops those whose turn has come, and lets those come back who were away for long enough.
    fn drop_due(&mut self, now: u64) {
        while self.returns.front().is_some_and(|(due, _)| *due <= now) {
            let Some((due, index)) = self.returns.pop_front() else { return };
            if self.slots[index as usize].state == State::Free {
                self.connect(index as usize, due);
            }
        }
        let Some(Dropping { bad_network, since_ns, turns }) = &mut self.dropping else { return };
        let rounds = now.saturating_sub(*since_ns) as f64 / bad_network.drop_every.as_nanos().max(1) as f64;
        let due = (rounds * self.slots.len() as f64) as u64;
        let mine = std::mem::replace(turns, due)..due;
        let back_at = now + bad_network.drop_for.as_nanos() as u64;
        for turn in mine {
            let index = (turn % self.slots.len() as u64) as usize;
            if self.slots[index].state == State::Ready {
                Counters::add(&self.counters.dropped, 1);
                self.close(index);
                self.returns.push_back((back_at, index as u32));
            }
        }
    }

    /// Up to where a client has heard everything. Seconds of two clocks are rounded, so it says one second earlier: that
    /// counts only for who has no place in the stream, and so has had nothing that could come twice.
    fn left(&self, index: usize) -> protocol::Left<'_> {
        let returning = &self.returning[index];
        let silent_s = self.now_s.saturating_sub(returning.left_s) + 1;
        protocol::Left {
            at_s: unix_s().saturating_sub(u64::from(silent_s)),
            position: returning.position(&self.streams),
        }
    }

    /// Takes note of a ping of the server.
    fn on_ping(&mut self, index: usize) {
        Counters::add(&self.counters.pings, 1);
        let (Some(late_ms), State::Ready) = (self.ping_late_ms, self.slots[index].state) else { return };
        let slot = &mut self.slots[index];
        let gap_ms = self.now_ms.wrapping_sub(std::mem::replace(&mut slot.pinged_ms, self.now_ms));
        self.collected.ping_gap_ms_max = self.collected.ping_gap_ms_max.max(gap_ms.into());
        Counters::add(&self.counters.pings_late, u64::from(gap_ms > late_ms));
    }

    /// Counts those that should have been pinged by now: a ping that never comes is not late when it comes.
    fn look_for_overdue(&self, collected: &mut Collected) {
        let Some(late_ms) = self.ping_late_ms else { return };
        for slot in self.slots.iter().filter(|slot| slot.state == State::Ready) {
            let gap_ms = self.now_ms.wrapping_sub(slot.pinged_ms);
            if gap_ms > late_ms {
                collected.pings_overdue += 1;
                collected.ping_gap_ms_max = collected.ping_gap_ms_max.max(gap_ms.into());
            }
        }
    }

    /// Sends a ping where nothing has come for as long as the server allows; every slot is looked at once a second.
    fn break_silences(&mut self) {
        if self.silence_max_s == 0 {
            return;
        }
        for _ in 0..self.slots.len().div_ceil(TICKS_PER_SECOND) {
            let index = self.listen_next;
            self.listen_next = (index + 1) % self.slots.len();
            let slot = &mut self.slots[index];
            let silent = self.now_s.saturating_sub(slot.heard_s) >= self.silence_max_s;
            if silent && slot.state == State::Ready && slot.to_say == 0 {
                slot.heard_s = self.now_s;
                if let Err(failure) = self.transmit_text(index, &[protocol::PUSHER_PING]) {
                    self.fail(index, failure);
                }
            }
        }
    }
}

/// Adds the time since `since_ns`, in microseconds.
fn record(histogram: &mut Histogram<u64>, since_ns: u64) {
    histogram.record(now_ns().saturating_sub(since_ns) / 1_000).expect("resizing histograms take every value");
}
