//! What a run consists of: the clients, the kernel, the app, the clock, and one [`Site`] for each shard.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cableway::broker::LocalBroker;
use cableway::hub::StreamKey;
use cableway::model::{BrokerQuestion, Call, PresenceChange, Publication, Reply, Sid, SlotKey};

use crate::broker::Outgoing;
use crate::client::Client;
use crate::kept::Memory;
use crate::net::Net;
use crate::rng::Rng;
use crate::scenario::Scenario;

/// A publication. Every shard that follows its stream gets it, in one order, each at a time of its own.
pub struct Published {
    pub stream: String,
    pub text: String,
    pub kind: Option<String>,
    /// The client that must not get it.
    pub exclude: Option<usize>,
    /// Its place in its stream, if it is stored.
    pub offset: Option<u64>,
}

/// A question that is open.
#[derive(Clone)]
pub enum Open {
    App(Call),
    Broker(BrokerQuestion),
}

/// What stands around one shard.
pub struct Site {
    /// The shard's monotonic clock shows the run's time and this. No two shards agree, so a deadline that moves from
    /// one to the other without being converted is early or late.
    pub origin: Duration,
    pub watching: bool,
    pub listening: bool,
    /// Out of descriptors.
    pub exhausted: bool,
    /// It was told to send everybody away, and must have done so by then.
    pub drained_by: Option<Duration>,
    /// When it goes on of itself, on the clock of the run, as far as it was at rest last.
    pub wakes_at: Option<Duration>,
    /// Identifiers with a session on this shard.
    pub present: BTreeSet<String>,
    /// Keys of the streams that this shard wants, each with the number of the time that it began to.
    pub followed: HashMap<StreamKey, u64>,
    /// How often it began to want one.
    pub follows: u64,
    /// Publications that were posted to it because it wanted them.
    pub given: u64,
    /// Their names.
    pub followed_by_name: HashSet<String>,
    /// The shard has got the publications before this one.
    pub got: usize,
    /// The shard has delivered the publications before this one.
    pub delivered: usize,
}

impl Site {
    /// Of a shard that listens, and has got nothing.
    pub fn new(origin: Duration) -> Site {
        Site {
            origin,
            watching: true,
            listening: true,
            exhausted: false,
            drained_by: None,
            wakes_at: None,
            present: BTreeSet::new(),
            followed: HashMap::new(),
            follows: 0,
            given: 0,
            followed_by_name: HashSet::new(),
            got: 0,
            delivered: 0,
        }
    }
}

/// One run: clients, network, app, clock, and what was noted down to check them.
pub struct Sim {
    pub rng: Rng,
    pub scenario: Scenario,
    /// The run's time. Everything outside the shards is on this clock.
    pub mono: Duration,
    /// By number of the shard.
    pub sites: Vec<Site>,
    pub net: Net,
    pub clients: Vec<Client>,
    /// Questions that are open, by key; the client.
    pub running: Vec<(SlotKey, usize, Open)>,
    /// Keys of questions that were canceled, and whose they were: an answer may still come.
    pub canceled: Vec<(SlotKey, usize, Open)>,
    /// The broker, in the runs that have one with memory.
    pub broker: Option<Rc<LocalBroker>>,
    /// What that must remember.
    pub memory: Memory,
    /// What the broker has for the shards, in order.
    pub outgoing: VecDeque<Outgoing>,
    /// Changes of presence by sessions of which it is not known yet whose they are.
    pub early_presences: Vec<(String, String, PresenceChange)>,
    /// Questions that the broker has got, and whose answers have not reached a shard.
    pub in_flight: Vec<(SlotKey, usize)>,
    /// The client that is being put together, and the key that it had: it may be over before the new one is known.
    pub arriving: Option<(usize, SlotKey)>,
    /// Keys of connections that have another one now.
    pub renamed: Vec<(SlotKey, SlotKey)>,
    /// Publications in the order in which they were posted to the shards.
    pub published: Vec<Published>,
    /// Numbers of the publications with a text: presence can tell the same twice.
    pub by_text: BTreeMap<String, Vec<usize>>,
    /// Whispers on their way back to the shards.
    pub whispered: VecDeque<Arc<Publication>>,
    /// Some client was closed because it did not read or did not answer, as far as the shards were at rest last.
    pub any_too_slow: bool,
    /// Remote disconnects that have reached a shard.
    pub evicted: BTreeSet<(String, bool)>,
    pub open: usize,
    pub accepted: u64,
    pub turned_away: u64,
    pub handed_over: u64,
    pub refused_open: u64,
    pub serial: u64,
    pub violation: Option<String>,
    pub trace: bool,
    pub digest: u64,
    /// The second in which the broker was swept last.
    pub swept_at: u64,
    /// All connections are copied: nobody touches one until it is decided who goes on with them.
    pub is_copied: bool,
    /// Sessions that can be resumed and were copied: with the shard and the slot where they will live.
    pub residents: Vec<(Sid, usize, u32)>,
}

impl Sim {
    /// Before anything has happened.
    pub fn new(seed: u64, trace: bool) -> Sim {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::draw(&mut rng);
        let kept = scenario.settings.session.broker.then(|| crate::broker::draw(&mut rng));
        let (broker, memory) = kept.map_or_else(Default::default, |(broker, memory)| (Some(broker), memory));
        let mono = Duration::from_millis(rng.between(0, 10_000_000) as u64);
        let sites: Vec<Site> = (0..scenario.shards)
            .map(|_| {
                let most = rng.pick(&[0, 150, 30_000, 40_000_000]);
                Site::new(Duration::from_millis(rng.between(0, most) as u64))
            })
            .collect();
        Sim {
            rng,
            scenario,
            mono,
            net: Net::new(sites.len()),
            sites,
            clients: Vec::new(),
            running: Vec::new(),
            canceled: Vec::new(),
            broker,
            memory,
            outgoing: VecDeque::new(),
            early_presences: Vec::new(),
            in_flight: Vec::new(),
            arriving: None,
            renamed: Vec::new(),
            published: Vec::new(),
            by_text: BTreeMap::new(),
            whispered: VecDeque::new(),
            any_too_slow: false,
            evicted: BTreeSet::new(),
            open: 0,
            accepted: 0,
            turned_away: 0,
            handed_over: 0,
            refused_open: 0,
            serial: 0,
            violation: None,
            trace,
            digest: 0xcbf2_9ce4_8422_2325,
            swept_at: 0,
            is_copied: false,
            residents: Vec::new(),
        }
    }

    /// Notes the first thing that is wrong.
    pub fn fail(&mut self, what: String) {
        self.trace(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    /// A line of the trace.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>12.3} {}", self.mono.as_secs_f64(), line());
        }
    }

    /// Runs of one seed must have equal digests.
    pub fn digest_mix(&mut self, word: u64) {
        self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    /// A shard that a new connection goes to: the kernel spreads them over those that listen.
    pub fn some_listener(&mut self) -> Option<usize> {
        let listening: Vec<usize> = (0..self.sites.len()).filter(|&s| self.sites[s].listening).collect();
        (!listening.is_empty()).then(|| self.rng.pick(&listening))
    }

    /// A moment of a shard's clock on the clock of the run.
    pub fn run_time(&self, shard: usize, moment: Duration) -> Duration {
        moment.saturating_sub(self.sites[shard].origin)
    }

    /// What becomes of a question.
    pub fn make_answer(&mut self, question: &Open) -> Reply {
        match question {
            Open::App(call) => Reply::App(self.app_answer(call)),
            Open::Broker(question) => self.made_up(question),
        }
    }

    /// Whether somebody waits to be accepted by this shard, and it looks.
    pub fn has_waiting(&self, s: usize) -> bool {
        let site = &self.sites[s];
        site.watching && site.listening && !self.net.backlogs[s].is_empty()
    }

    /// The client's connection is in this shard from here on, with everything that belongs to it.
    ///
    /// What the new shard has got and has not delivered may come. A client that has subscriptions may only move
    /// between shards that have delivered the same publications: otherwise it would miss some or see some twice.
    pub fn moved(&mut self, c: usize, to: usize) {
        let from = std::mem::replace(&mut self.clients[c].shard, to);
        self.trace(|| format!("client {c} moves from shard {from} to shard {to}"));
        let progress = |site: &Site| (site.got, site.delivered);
        if !self.clients[c].model.subs.is_empty()
            && !self.clients[c].saw_close
            && progress(&self.sites[from]) != progress(&self.sites[to])
        {
            self.fail(format!("client {c}: moved to a shard that has delivered more or less"));
        }
        for p in self.sites[to].delivered..self.sites[to].got {
            self.note_publication(c, p, true);
        }
    }
}
