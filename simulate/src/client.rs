//! The clients: what they send, how fast they read, how they leave, and how they check what comes back.

mod answers;
mod deadlines;
mod deeds;
mod holds;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use cableway::model::{CloseCause, Sid, SlotKey};

use crate::model::{Model, Phase, Step};
use crate::net::Got;
use crate::world::Sim;

pub use deadlines::{Clock, Move};
use holds::{Hold, Positions};

/// The sample key of RFC 6455 section 1.3 and what must be answered to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What a client is after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    Cable,
    Echo,
    /// A path of the ordinary HTTP server.
    Other,
    /// A request that is refused with this status.
    Bad(u16),
    /// A request that never ends.
    Stall,
}

/// How far the server's answer has been read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    Head,
    Body(usize),
    Frames,
    /// Nothing may follow.
    Done,
}

/// A publication that may or must come.
pub struct Due {
    pub must: bool,
    /// Replies that have to be read before it.
    floor: u64,
}

pub struct Client {
    pub aim: Aim,
    /// The shard that holds the connection, or whose listener it waits at. Changed by [`Sim::moved`] alone.
    pub shard: usize,
    pub model: Model,
    /// By identifier and number of the publication.
    pub ledger: BTreeMap<(String, usize), Due>,
    /// By identifier, stream and whether it has a position.
    last_seen: BTreeMap<(String, String, bool), usize>,
    pub sid: Option<String>,
    /// The call that runs for this client.
    pub running: Option<SlotKey>,
    pub disconnect_seen: bool,
    /// A remote disconnect reached the shard while this client was connected.
    pub must_go: bool,
    out: VecDeque<u8>,
    /// Bytes that have left it.
    sent: u64,
    /// Where in what it sends each message and each frame between messages stands.
    said: Vec<Range<u64>>,
    buffer: Vec<u8>,
    reading: Reading,
    pub offered: &'static str,
    /// Its session survives its connection.
    pub can_come_back: bool,
    /// The session that it wants to go on with.
    pub shown: Option<String>,
    /// The client that it was on an earlier connection.
    pub came_back: bool,
    pub positions: Positions,
    /// Subscriptions that catch up.
    pub holding: BTreeMap<String, Hold>,
    /// What it was before its session was back, as long as that may be taken back.
    pub undo: Option<Box<Model>>,
    /// What it was before the last answer.
    pub before_answer: Option<Box<Model>>,
    /// It has read a welcome.
    pub welcomed: bool,
    /// It broke off.
    pub dropped: bool,
    /// Somebody else may be given its session.
    pub taken_over: bool,
    /// Too much waited for it.
    pub may_overflow: bool,
    /// No shard has it at the moment.
    pub is_nowhere: bool,
    /// An answer that reached the shard before is on its way to the one that the client is in now.
    pub is_followed_by_answer: bool,
    /// The question of which the answer has reached its shard last.
    pub answered: Option<SlotKey>,
    /// Its shard let go of it before an answer was carried out.
    pub never_in: bool,
    /// It let go of it behind an answer, after it had handled some of what the client said next.
    pub was_open_when_canceled: bool,
    /// Reads everything whenever it has a turn.
    pub prompt: bool,
    /// Reads nothing for now.
    pub deaf: bool,
    read_max: usize,
    write_max: usize,
    bad: bool,
    answers_pings: bool,
    actions: usize,
    /// Shut its half or worse.
    pub left: bool,
    /// Will send nothing more of its own.
    pub silent: bool,
    pub saw_close: bool,
    pub ended: bool,
    farewell: Option<(String, bool)>,
    replies_read: u64,
    pub upgraded_at: Option<Duration>,
    connected_at: Duration,
    pub clock: Clock,
    /// Bytes that it has read and understood.
    understood: u64,
    /// When everything it had to say was on its way last.
    spoke_at: Option<Duration>,
    /// It was moved away from a shard that was being emptied.
    pub was_drained: bool,
    ping_value: u64,
    pings: u32,
    emptied_at: Duration,
    pub turned_away: bool,
    pub handed_over: bool,
    /// The cause that the client can tell from what it saw.
    pub seen_cause: Option<CloseCause>,
}

impl Client {
    /// What its session was when its shard let go of it, but for what it may have handled since this was brought up to date.
    pub fn model_at_its_end(&self) -> Model {
        let mut model = self.model.clone();
        if self.was_open_when_canceled {
            model.phase = Phase::Open;
        }
        model
    }

    /// Bytes of all that it has said.
    fn said_bytes(&self) -> u64 {
        self.sent + self.out.len() as u64
    }

    /// Says something that is whole.
    fn says(&mut self, bytes: Vec<u8>) {
        let from = self.said_bytes();
        self.out.extend(bytes);
        self.said.push(from..self.said_bytes());
    }

    /// What it has said from there on is one message in pieces, with what stands between these.
    fn is_one_message(&mut self, from: u64) {
        self.said.retain(|said| said.start < from);
        self.said.push(from..self.said_bytes());
    }

    /// Takes part and expects to be served to the end.
    pub fn is_healthy(&self, sim_conn_faulty: bool) -> bool {
        !self.left && !self.ended && !self.saw_close && !sim_conn_faulty && self.farewell.is_none()
    }
}

impl Sim {
    /// A new client connects, if anybody listens.
    pub fn new_client(&mut self) {
        let Some(shard) = self.some_listener() else { return };
        let c = self.clients.len();
        let rng = &mut self.rng;
        let aim = match rng.below(100) {
            0..=2 => Aim::Other,
            3..=5 => Aim::Bad(0),
            6..=7 => Aim::Stall,
            8..=15 => Aim::Echo,
            _ => Aim::Cable,
        };
        let slow = rng.chance(self.scenario.slow);
        let offered = if self.scenario.comebacks > 0 && rng.chance(500) {
            "actioncable-v1-ext-json"
        } else {
            rng.pick(&[
                "",
                "actioncable-v1-json",
                "actioncable-v1-ext-json",
                "actioncable-v1-ext-json,actioncable-v1-json",
            ])
        };
        let prior = self.some_prior();
        let rng = &mut self.rng;
        let (mut aim, mut offered) = (aim, offered);
        let mut shown = None;
        if let Some(prior) = prior {
            (aim, offered) = (Aim::Cable, "actioncable-v1-ext-json");
            shown = self.clients[prior].sid.clone();
            if let Some(token) = self.clients[prior].model.token.clone().filter(|_| rng.chance(300)) {
                shown = Some(token);
            }
            match rng.below(20) {
                0 => shown = Some("nothing".into()),
                1 => shown = Some("AAAAAAAAAAAAAAAAAAAAA".into()),
                _ => {}
            }
            self.clients[prior].came_back = rng.chance(800);
        }
        let (aim, head) = deeds::head(rng, aim, c, offered, shown.as_deref());
        let resumes = self.scenario.settings.session.sessions && offered == "actioncable-v1-ext-json";
        let shown = shown.filter(|shown| resumes && Sid::parse(shown.get(..21).unwrap_or_default()).is_some());
        let shown = shown.map(|mut shown| {
            shown.truncate(21);
            shown
        });
        let positions = prior.map(|prior| self.clients[prior].positions.handed_on()).unwrap_or_default();
        let buffer_max = self.scenario.buffer_max;
        let conn =
            self.net.connect(shard, rng.between(16, buffer_max.max(200)), rng.between(buffer_max / 2 + 1, buffer_max));
        assert_eq!(conn, c, "clients and connections are numbered alike");
        let rng = &mut self.rng;
        let client = Client {
            aim,
            shard,
            model: Model {
                resuming: shown.is_some(),
                ..Model::new(
                    aim == Aim::Echo,
                    self.scenario.settings.session.has_backend,
                    self.scenario.settings.session.broker,
                )
            },
            ledger: BTreeMap::new(),
            last_seen: BTreeMap::new(),
            sid: None,
            running: None,
            disconnect_seen: false,
            must_go: false,
            out: head.into(),
            sent: 0,
            said: Vec::new(),
            buffer: Vec::new(),
            reading: Reading::Head,
            offered,
            can_come_back: resumes && aim == Aim::Cable,
            shown,
            came_back: false,
            positions,
            holding: BTreeMap::new(),
            undo: None,
            before_answer: None,
            welcomed: false,
            dropped: false,
            taken_over: false,
            may_overflow: false,
            is_nowhere: false,
            is_followed_by_answer: false,
            answered: None,
            never_in: false,
            was_open_when_canceled: false,
            prompt: !slow,
            deaf: slow && rng.chance(500),
            read_max: if slow { rng.between(1, 300) } else { usize::MAX },
            write_max: rng.pick(&[1, 7, 100, 5_000, 1 << 20]),
            bad: rng.chance(self.scenario.bad),
            answers_pings: rng.chance(900),
            actions: rng.pick(&[0, 5, 20, 60]),
            left: false,
            silent: false,
            saw_close: false,
            ended: false,
            farewell: None,
            replies_read: 0,
            upgraded_at: None,
            connected_at: self.mono,
            clock: Clock::default(),
            understood: 0,
            spoke_at: None,
            was_drained: false,
            ping_value: 0,
            pings: 0,
            emptied_at: self.mono,
            turned_away: false,
            handed_over: false,
            seen_cause: None,
        };
        self.clients.push(client);
        let pongs = self.clients[c].answers_pings;
        self.trace(|| format!("client {c} connects to shard {shard}: {aim:?}, answers pings: {pongs}"));
        // Some say more before they are answered.
        if matches!(aim, Aim::Cable | Aim::Echo) && self.rng.chance(300) {
            for _ in 0..self.rng.between(1, 5) {
                self.act(c);
            }
        }
    }

    /// An earlier client that comes back: most have lost their connection, and some do not know that it stands.
    fn some_prior(&mut self) -> Option<usize> {
        if !self.rng.chance(self.scenario.comebacks) || self.clients.is_empty() {
            return None;
        }
        let any = self.rng.chance(200);
        let (any_again, clients) = (self.rng.chance(100), &self.clients);
        let is_one = |&c: &usize| {
            let client = &clients[c];
            let is_gone = client.dropped || (any && client.welcomed);
            client.can_come_back && client.sid.is_some() && is_gone && (any_again || !client.came_back)
        };
        let priors: Vec<usize> = (0..clients.len()).filter(is_one).collect();
        // Mostly the one that was dropped last.
        let last = priors.last().copied().filter(|_| self.rng.chance(600));
        last.or_else(|| (!priors.is_empty()).then(|| self.rng.pick(&priors)))
    }

    /// A client gets a turn: reads, writes, and perhaps does something.
    pub fn client_step(&mut self, c: usize) {
        if self.clients[c].ended {
            return;
        }
        self.client_reads(c, false);
        let client = &mut self.clients[c];
        if client.ended {
            return;
        }
        if client.saw_close && !client.left && self.rng.chance(700) {
            return self.leave(c, false);
        }
        let wrote = self.client_writes(c, false);
        let client = &self.clients[c];
        if wrote > 0 || client.silent || client.left || client.upgraded_at.is_none() {
            return;
        }
        if client.actions == 0 {
            if self.rng.chance(15) {
                self.farewell(c);
            }
            return;
        }
        self.clients[c].actions -= 1;
        if self.rng.chance(20) {
            return self.farewell(c);
        }
        for _ in 0..self.rng.pick(&[1, 1, 1, 2, 6]) {
            self.act(c);
        }
    }

    /// Sends what is queued; returns how many bytes the pipe took.
    pub fn client_writes(&mut self, c: usize, all: bool) -> usize {
        let client = &mut self.clients[c];
        if client.left || client.ended {
            return 0;
        }
        let max = if all { usize::MAX } else { self.rng.between(1, client.write_max) };
        let max = max.min(self.net.room_to_server(c));
        let bytes: Vec<u8> = client.out.iter().take(max).copied().collect();
        if bytes.is_empty() {
            return 0;
        }
        let n = self.net.client_send(c, &bytes);
        client.out.drain(..n);
        client.sent += n as u64;
        if n > 0 && client.out.is_empty() {
            client.spoke_at = Some(self.mono);
        }
        n
    }

    /// Reads and checks; returns whether anything came.
    pub fn client_reads(&mut self, c: usize, all: bool) -> bool {
        let client = &mut self.clients[c];
        if client.ended || (client.deaf && !all) {
            return false;
        }
        let max = if all { usize::MAX } else { client.read_max };
        match self.net.client_receive(c, max) {
            Got::Bytes(bytes) => {
                let some = !bytes.is_empty();
                self.clients[c].buffer.extend_from_slice(&bytes);
                for byte in &bytes {
                    self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                }
                self.digest_mix(c as u64);
                self.parse(c);
                if self.net.unread(c) == 0 {
                    self.clients[c].emptied_at = self.mono;
                }
                some
            }
            Got::End => {
                self.ends(c, "the stream ended");
                true
            }
            Got::Reset => {
                self.ends(c, "the connection was reset");
                true
            }
        }
    }

    /// Whether it may be one of those that hold most when all together hold too much.
    fn may_hold_too_much(&mut self, c: usize) -> bool {
        self.scenario.settings.buffers_bytes_max < usize::MAX && self.net.conn(c).ever_blocked
    }

    fn ends(&mut self, c: usize, how: &str) {
        self.trace(|| format!("client {c}: {how}"));
        let faulty = self.net.conn(c).faulty;
        let now = self.mono;
        // Without descriptors, whoever has not finished its request makes way, and nobody waits until it has read why.
        let makes_way = self.turned_away > 0;
        self.clients[c].ended = true;
        let may_hold_too_much = self.may_hold_too_much(c);
        let client = &self.clients[c];
        let fresh = client.prompt && now.saturating_sub(client.emptied_at) < Duration::from_millis(400);
        if client.left || faulty || client.handed_over || client.turned_away || client.saw_close || !fresh {
            return;
        }
        // One that waits for its app is given up without a word.
        if client.taken_over {
            return;
        }
        let complaint = match client.reading {
            Reading::Head if client.buffer.is_empty() => {
                let timeout = self.scenario.settings.handshake_timeout;
                let early = client.clock.accepted_at.is_none_or(|at| client.clock.is_early(at, timeout, now));
                early.then_some("without an answer to the request")
            }
            Reading::Head | Reading::Body(_) if may_hold_too_much || makes_way => None,
            Reading::Head | Reading::Body(_) => Some("in the middle of the response"),
            // Dropped with what waited for it, when that was too much for all together.
            Reading::Frames if may_hold_too_much => None,
            Reading::Frames => Some("without a close frame"),
            Reading::Done => None,
        };
        if let Some(complaint) = complaint {
            self.fail(format!("client {c}: {how} {complaint}"));
        }
    }

    /// With everything read and written and nothing to do for the shard: is anything missing?
    pub fn check_settled(&mut self, c: usize) {
        let faulty = self.net.conn(c).faulty;
        self.note_alive(c);
        self.check_deadlines(c);
        let now = self.mono;
        let client = &self.clients[c];
        if !client.is_healthy(faulty) || !client.prompt || client.turned_away || client.handed_over {
            return;
        }
        if client.reading == Reading::Head {
            if client.clock.accepted_at.is_some() && client.out.is_empty() && client.aim != Aim::Stall {
                self.fail(format!("client {c} ({:?}): its request is not answered", client.aim));
            }
            return;
        }
        if client.reading != Reading::Frames {
            return;
        }
        let waits = |identifier: &String, p: usize| {
            self.published[p].offset.is_some() && client.holding.contains_key(identifier)
        };
        let missing = client.ledger.iter().find(|((identifier, p), due)| due.must && !waits(identifier, *p));
        if let Some(((identifier, p), _)) = missing {
            return self.fail(format!("client {c}: publication {p} under {identifier} has not come"));
        }
        if client.must_go {
            return self.fail(format!("client {c}: was to be disconnected and is not"));
        }
        if self.sites[client.shard].drained_by.is_some_and(|by| now > by + deadlines::SLACK) {
            return self.fail(format!("client {c}: its shard was drained and it was not sent away"));
        }
        if client.out.is_empty() {
            loop {
                match self.advance(c) {
                    Step::Done => {}
                    Step::Blocked(wanted) => {
                        return self.fail(format!("client {c}: nobody was asked for {wanted:?}"));
                    }
                    Step::Waiting | Step::Empty => break,
                }
            }
            self.catch_up_with_presence(c);
            let model = &self.clients[c].model;
            if let Some(change) = model.presences.front() {
                return self.fail(format!("client {c}: presence was not changed: {change:?}"));
            }
            if model.phase == Phase::Connecting && model.waiting.is_none() {
                return self.fail(format!("client {c}: the app was not asked whether it may connect"));
            }
            if let Some(missing) = model.expected.front() {
                return self.fail(format!("client {c}: {missing:?} has not come"));
            }
            if let Some(ping) = model.unanswered() {
                return self.fail(format!("client {c}: ping {ping:?} has not been answered"));
            }
            if let Some(whisper) = model.whispers.front() {
                return self.fail(format!("client {c}: {whisper:?} was not published"));
            }
            let hasher = &self.scenario.settings.stream_hasher;
            let followed = &self.sites[self.clients[c].shard].followed;
            let streams = self.clients[c].model.subs.iter().flat_map(|sub| &sub.streams);
            let missing: Vec<_> =
                streams.filter(|stream| !followed.contains_key(&hasher.key(stream))).cloned().collect();
            if !missing.is_empty() {
                self.fail(format!("client {c}: its shard does not follow {missing:?}"));
            }
        }
    }
}
