//! Very many client connections on a few threads: no task, no buffer and no WebSocket object for one that waits.
//!
//! An [`Engine`] owns one thread ("lane") per core, each with its own epoll and its own slots; connection `n` lives on
//! lane `n % lanes`. The caller gives orders (open, drop, say, expect) and reads counters, which lanes only ever add
//! to. Order of use: [`Engine::start`], [`Engine::open`], [`Engine::wait`], any orders, [`Engine::collect`] for the
//! histograms, drop. It knows the protocols but no scenario.

mod counts;
mod lane;
mod returning;
mod slot;
mod source;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use rustix::event::{EventfdFlags, eventfd};

pub use counts::{Counts, Failure};
pub use source::Sources;

use crate::clock;
use crate::protocol::Script;
use crate::template::Template;
use counts::Counters;
use lane::Lane;

/// What all connections of an engine have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the servers listen: connection `n` goes to the one at `n` modulo their number. At least one.
    pub servers: Vec<SocketAddr>,
    /// What clients say.
    pub script: Script,
    /// How many connections there can be: slots are made for these numbers.
    pub connections: u32,
    /// The number of the first connection, so that several processes share one range.
    pub first_number: u32,
    /// Threads.
    pub lanes: usize,
    /// Addresses to connect from; empty lets the kernel choose.
    pub sources: Sources,
    /// How long a connection may take until it is ready.
    pub ready_timeout: Duration,
    /// How long after a failure a connection tries again; none: never.
    pub retry_after: Option<Duration>,
    /// How long after the ping before, or after it got ready, a connection counts its next one as late; none: not counted.
    pub ping_late_after: Option<Duration>,
}

/// How connections are opened.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// At most this many unfinished at a time, otherwise as fast as they get ready.
    Window(u32),
    /// All of them at once, while answers are handled as they come: what a crowd of clients does after a restart.
    Storm,
    /// All connects before the first answer is looked at: the hardest thing for an accept queue.
    Burst,
    /// This many a second over the whole engine.
    Rate(f64),
}

/// A bad network: every client loses its connection again and again, one after the other, and comes back after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BadNetwork {
    /// How often each client is dropped.
    pub drop_every: Duration,
    /// How long it stays away. Shorter than that.
    pub drop_for: Duration,
}

/// How connections are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goodbye {
    /// Reset, as when a machine in between forgets them: leaves nothing behind on this side.
    Reset,
    /// End of stream, as when a process ends: leaves TIME_WAIT behind on this side.
    Fin,
    /// A close frame, then end of stream, as a browser does it.
    Close,
}

/// Which message ends the wait of a connection that has said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The next text or binary message, whatever it holds.
    Any,
    /// The protocol's answer to a client's ping.
    Pong,
    /// A message for the application that is no marked publication.
    Data,
    /// What says that all that was missed has been sent.
    History,
}

/// Messages that every connection says, each after the reply to the one before.
#[derive(Debug, Clone)]
pub struct Saying {
    /// The texts of one round, sent together; `{n}` is the connection's number.
    pub texts: Vec<Template>,
    /// What ends a round.
    pub reply: Reply,
    /// Rounds of each connection.
    pub rounds: u32,
    /// Connections of the whole engine that do this at the same time.
    pub at_once: u32,
}

enum Order {
    Open { pace: Pace, since_ns: u64, only_numbers_below: u32 },
    Drop { share: f64, goodbye: Goodbye },
    Say(Arc<Saying>),
    Expect(u32),
    Slow { share: f64, bytes_per_second: u32 },
    BadNetwork(Option<BadNetwork>),
    Collect { expected: u32, answer: SyncSender<Collected> },
    End,
}

/// What the lanes measured.
#[derive(Debug, Clone)]
pub struct Collected {
    /// From the connect (or the start of a burst or storm) until ready, microseconds.
    pub ready_us: Histogram<u64>,
    /// From saying something to its reply, microseconds.
    pub reply_us: Histogram<u64>,
    /// From the time a marked message should have been sent to its receipt, microseconds.
    pub delivery_us: Histogram<u64>,
    /// The same for those that came to a client that asked for what it had missed.
    pub replay_us: Histogram<u64>,
    /// Longest time between two turns of an event loop in which it did not wait, microseconds: how late this tool was.
    pub lag_us_max: u64,
    /// Longest time from one ping of a connection to the next, or from ready to the first one, milliseconds; with
    /// [`Settings::ping_late_after`].
    pub ping_gap_ms_max: u64,
    /// Ready connections whose ping is late now and has not come yet.
    pub pings_overdue: u64,
    /// Marked messages that ready connections have not got although `expected` were published.
    pub missing_at_end: u64,
}

impl Collected {
    /// Nothing measured yet.
    pub fn empty() -> Self {
        let histogram = || Histogram::new(3).expect("three digits are valid");
        Self {
            ready_us: histogram(),
            reply_us: histogram(),
            delivery_us: histogram(),
            replay_us: histogram(),
            lag_us_max: 0,
            ping_gap_ms_max: 0,
            pings_overdue: 0,
            missing_at_end: 0,
        }
    }

    /// Adds what others measured.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.ready_us, &other.ready_us),
            (&mut self.reply_us, &other.reply_us),
            (&mut self.delivery_us, &other.delivery_us),
            (&mut self.replay_us, &other.replay_us),
        ] {
            mine.add(theirs).expect("resizing histograms take every value");
        }
        self.lag_us_max = self.lag_us_max.max(other.lag_us_max);
        self.ping_gap_ms_max = self.ping_gap_ms_max.max(other.ping_gap_ms_max);
        self.pings_overdue += other.pings_overdue;
        self.missing_at_end += other.missing_at_end;
    }
}

struct Handle {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

/// Many client connections. Dropping it resets all of them.
pub struct Engine {
    lanes: Vec<Handle>,
}

impl Engine {
    /// Makes the threads and the slots; connects nothing yet.
    pub fn start(settings: &Settings) -> anyhow::Result<Self> {
        let lanes = (0..settings.lanes.max(1))
            .map(|lane| {
                let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
                let counters = Arc::new(Counters::default());
                let (orders, inbox) = channel();
                let mut lane = Lane::new(settings, lane as u32, inbox, Arc::clone(&wake), Arc::clone(&counters))?;
                let thread = std::thread::Builder::new().name("lane".into()).spawn(move || lane.run())?;
                Ok(Handle { orders, wake, counters, thread: Some(thread) })
            })
            .collect::<anyhow::Result<_>>()
            .context("cannot start the client threads")?;
        Ok(Self { lanes })
    }

    /// Opens every connection that is not open. Latencies count from each connect with [`Pace::Window`], from the time
    /// it should have been made with [`Pace::Rate`], and from now for all of them otherwise.
    pub fn open(&self, pace: Pace) {
        self.open_below(u32::MAX, pace);
    }

    /// Opens those of them whose number is below `number`.
    pub fn open_below(&self, number: u32, pace: Pace) {
        let since_ns = clock::now_ns();
        let lanes = self.lanes.len() as u32;
        let pace = match pace {
            Pace::Window(window) => Pace::Window(window.div_ceil(lanes)),
            Pace::Storm | Pace::Burst => pace,
            Pace::Rate(rate) => Pace::Rate(rate / f64::from(lanes)),
        };
        self.order(|| Order::Open { pace, since_ns, only_numbers_below: number });
    }

    /// Begins no more connections; those that have begun go on.
    pub fn stop_opening(&self) {
        self.open_below(0, Pace::Window(1));
    }

    /// Gives up a share of the connections that are open, 0 to 1, spread evenly over the numbers.
    pub fn drop_share(&self, share: f64, goodbye: Goodbye) {
        self.order(|| Order::Drop { share, goodbye });
    }

    /// Lets every ready connection say something. [`Counts::said`] grows by one for each that has finished.
    pub fn say(&self, saying: Saying) {
        let lanes = self.lanes.len() as u32;
        let saying = Arc::new(Saying { at_once: saying.at_once.div_ceil(lanes), ..saying });
        self.order(|| Order::Say(Arc::clone(&saying)));
    }

    /// Makes `sequence` the next number that every connection expects.
    pub fn expect(&self, sequence: u32) {
        self.order(|| Order::Expect(sequence));
    }

    /// Lets a share of the connections read this many bytes a second from now on, 0 for none at all.
    pub fn slow(&self, share: f64, bytes_per_second: u32) {
        self.order(|| Order::Slow { share, bytes_per_second });
    }

    /// From now on drops connections again and again; with `None` no more, and who is away comes back when it is time.
    pub fn bad_network(&self, bad_network: Option<BadNetwork>) {
        self.order(|| Order::BadNetwork(bad_network));
    }

    /// Takes the histograms, leaving empty ones, and counts what is missing when `expected` marked messages, numbered
    /// from 0, were published to everyone.
    pub fn collect(&self, expected: u32) -> Collected {
        let (answer, answers) = sync_channel(self.lanes.len());
        self.order(|| Order::Collect { expected, answer: answer.clone() });
        drop(answer);
        let mut all = Collected::empty();
        while let Ok(one) = answers.recv() {
            all.add(&one);
        }
        all
    }

    /// The counters of all lanes, added.
    pub fn counts(&self) -> Counts {
        self.lanes.iter().map(|lane| lane.counters.read()).sum()
    }

    /// Waits until the counters satisfy `done`, looking every half a millisecond. False when `limit` passed first.
    pub fn wait(&self, limit: Duration, mut done: impl FnMut(&Counts) -> bool) -> bool {
        let start = Instant::now();
        while !done(&self.counts()) {
            if start.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        true
    }

    fn order(&self, mut make: impl FnMut() -> Order) {
        for lane in &self.lanes {
            // A lane ends only on `End`, which only `drop` sends, unless it panicked; then its counters stand still and
            // the scenario fails by its own time-out.
            if lane.orders.send(make()).is_ok() {
                let _ = rustix::io::write(&*lane.wake, &1_u64.to_ne_bytes());
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.order(|| Order::End);
        for lane in &mut self.lanes {
            if let Some(thread) = lane.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
