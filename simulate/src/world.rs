//! Everything around the shard: what a run consists of, and the seams through which the shard touches it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cableway::hub::StreamKey;
use cableway::model::{BrokerQuestion, Call, Now, Publication, Question, Reply, Request, Sid, SlotKey};
use cableway::shard::{Accepted, Incoming, Interest, Machine, Received, Services};

use crate::client::{Aim, Client};
use crate::net::{ConnId, Net};
use crate::rng::Rng;
use crate::scenario::Scenario;

/// A publication that the shard has got.
pub struct Published {
    pub stream: String,
    pub text: String,
    pub kind: Option<String>,
    /// The client that must not get it.
    pub exclude: Option<usize>,
}

/// A question that is open.
#[derive(Clone)]
pub enum Open {
    App(Call),
    Broker(BrokerQuestion),
}

/// One run: clients, network, app, clock, and what was noted down to check them.
pub struct Sim {
    pub rng: Rng,
    pub scenario: Scenario,
    pub mono: Duration,
    pub net: Net,
    pub clients: Vec<Client>,
    /// Questions that are open, by key; the client.
    pub running: Vec<(SlotKey, usize, Open)>,
    /// Keys of questions that were canceled: an answer may still come.
    pub canceled: Vec<(SlotKey, Open)>,
    /// Publications in the order in which the shard got them.
    pub published: Vec<Published>,
    pub by_text: BTreeMap<String, usize>,
    /// Publications before this one are delivered.
    pub drained: usize,
    /// Whispers on their way back to the shard.
    pub whispered: VecDeque<Arc<Publication>>,
    /// Remote disconnects that were demanded.
    pub evicted: BTreeSet<(String, bool)>,
    pub present: BTreeSet<String>,
    /// Streams that the shard wants.
    pub followed: HashSet<StreamKey>,
    pub open: usize,
    pub accepted: u64,
    pub turned_away: u64,
    pub handed_over: u64,
    pub refused_open: u64,
    pub watching: bool,
    pub listening: bool,
    /// Out of descriptors.
    pub exhausted: bool,
    pub draining: bool,
    pub serial: u64,
    pub violation: Option<String>,
    pub trace: bool,
    pub digest: u64,
}

impl Sim {
    /// Before anything has happened.
    pub fn new(seed: u64, trace: bool) -> Sim {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::draw(&mut rng);
        let mono = Duration::from_millis(rng.between(0, 10_000_000) as u64);
        Sim {
            rng,
            scenario,
            mono,
            net: Net::default(),
            clients: Vec::new(),
            running: Vec::new(),
            canceled: Vec::new(),
            published: Vec::new(),
            by_text: BTreeMap::new(),
            drained: 0,
            whispered: VecDeque::new(),
            evicted: BTreeSet::new(),
            present: BTreeSet::new(),
            followed: HashSet::new(),
            open: 0,
            accepted: 0,
            turned_away: 0,
            handed_over: 0,
            refused_open: 0,
            watching: true,
            listening: true,
            exhausted: false,
            draining: false,
            serial: 0,
            violation: None,
            trace,
            digest: 0xcbf2_9ce4_8422_2325,
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

    /// A connection has another key now; whoever is to answer its question has to know.
    pub fn moved(&mut self, from: SlotKey, to: SlotKey) {
        for (key, c, _) in &mut self.running {
            if *key == from {
                *key = to;
                self.clients[*c].running = Some(to);
            }
        }
    }

    /// What becomes of a question.
    pub fn make_answer(&mut self, question: &Open) -> Reply {
        match question {
            Open::App(call) => Reply::App(self.app_answer(call)),
            Open::Broker(question) => self.broker_answer(question),
        }
    }

    fn watch_listener(&mut self, watch: bool) {
        if self.watching == watch {
            self.fail(format!("watch_listener({watch}) twice"));
        }
        self.watching = watch;
    }

    /// Runs of one seed must have equal digests.
    pub fn digest_mix(&mut self, word: u64) {
        self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
}

/// The shard's end of the run.
pub struct Seams(pub Rc<RefCell<Sim>>);

/// A connection in the shard's hands.
pub struct Socket {
    sim: Rc<RefCell<Sim>>,
    conn: ConnId,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let sim = &mut *self.sim.borrow_mut();
        sim.trace(|| format!("the shard lets go of {}", self.conn));
        sim.net.server_drop(self.conn, &mut sim.rng);
    }
}

impl Machine for Seams {
    type Socket = Socket;

    fn now(&mut self) -> Now {
        let mono = self.0.borrow().mono;
        Now { mono, unix: mono + Duration::from_secs(1_790_000_000) }
    }

    fn random(&mut self) -> u128 {
        let rng = &mut self.0.borrow_mut().rng;
        u128::from(rng.next()) << 64 | u128::from(rng.next())
    }

    fn accept(&mut self) -> Accepted<Socket> {
        let mut guard = self.0.borrow_mut();
        let sim = &mut *guard;
        if !sim.listening || !sim.watching {
            sim.fail("accept on a listener that is not watched".into());
        }
        if sim.net.backlog.is_empty() || sim.rng.chance(30) {
            return Accepted::Nobody;
        }
        if sim.exhausted && sim.rng.chance(400) {
            return Accepted::Stuck;
        }
        let Some(conn) = sim.net.backlog.pop_front() else { return Accepted::Nobody };
        sim.accepted += 1;
        if sim.exhausted {
            sim.turned_away += 1;
            sim.clients[conn].turned_away = true;
            sim.net.server_drop(conn, &mut sim.rng);
            return Accepted::TurnedAway;
        }
        sim.clients[conn].accepted_at = Some(sim.mono);
        sim.trace(|| format!("the shard accepts {conn}"));
        let socket = Socket { sim: Rc::clone(&self.0), conn };
        Accepted::Connection(Incoming { socket, peer: SocketAddr::from(([127, 0, 0, 1], 4000)), listener: 0 })
    }

    fn pause_listening(&mut self) {
        self.0.borrow_mut().watch_listener(false);
    }

    fn resume_listening(&mut self) {
        self.0.borrow_mut().watch_listener(true);
    }

    fn stop_listening(&mut self) {
        let sim = &mut *self.0.borrow_mut();
        sim.listening = false;
        for conn in std::mem::take(&mut sim.net.backlog) {
            sim.clients[conn].turned_away = true;
            sim.net.server_drop(conn, &mut sim.rng);
        }
    }

    fn watch(&mut self, socket: &Socket, token: u64) -> io::Result<()> {
        self.set_interest(socket, token, Interest::Read)
    }

    fn set_interest(&mut self, socket: &Socket, token: u64, interest: Interest) -> io::Result<()> {
        let sim = &mut *self.0.borrow_mut();
        if sim.rng.chance(sim.scenario.faults) {
            sim.net.conn(socket.conn).faulty = true;
            return Err(io::Error::from_raw_os_error(28));
        }
        sim.net.watch(socket.conn, token, interest == Interest::ReadWrite);
        Ok(())
    }

    fn unwatch(&mut self, socket: &Socket) {
        self.0.borrow_mut().net.unwatch(socket.conn);
    }

    fn peer(&self, _socket: &Socket) -> Option<SocketAddr> {
        None
    }

    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<Received> {
        let sim = &mut *self.0.borrow_mut();
        if sim.rng.chance(10) {
            return Err(ErrorKind::Interrupted.into());
        }
        if sim.rng.chance(sim.scenario.faults) {
            sim.net.conn(socket.conn).faulty = true;
            return Err(ErrorKind::HostUnreachable.into());
        }
        let got = sim.net.server_read(socket.conn, buffer);
        sim.trace(|| format!("the shard reads {got:?} from {}", socket.conn));
        // A socket that decrypts, for one, may say so at any time.
        got.map(|bytes| Received { bytes, maybe_more: bytes == buffer.len() || sim.rng.chance(100) })
            .map_err(Into::into)
    }

    fn write(&mut self, socket: &Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let sim = &mut *self.0.borrow_mut();
        if sim.net.is_shut(socket.conn) {
            sim.fail(format!("client {}: written to after the shard had shut its half", socket.conn));
        }
        if sim.rng.chance(10) {
            return Err(ErrorKind::Interrupted.into());
        }
        let most = if sim.rng.chance(150) { sim.rng.between(1, 50) } else { usize::MAX };
        let written = sim.net.server_write(socket.conn, bytes, most);
        if written.is_ok() {
            sim.net.conn(socket.conn).write_progress_at = sim.mono;
        }
        sim.trace(|| format!("the shard writes {written:?} to {}", socket.conn));
        Ok(written?)
    }

    fn shut(&mut self, socket: &Socket) {
        let sim = &mut *self.0.borrow_mut();
        sim.trace(|| format!("the shard shuts its half of {}", socket.conn));
        if !sim.net.server_shut(socket.conn) {
            sim.fail(format!("client {}: shut twice", socket.conn));
        }
    }
}

impl Services<Socket> for Seams {
    fn serve_http(&mut self, socket: Socket, _peer: SocketAddr, read: Vec<u8>) -> Result<(), Socket> {
        let mut guard = self.0.borrow_mut();
        let sim = &mut *guard;
        let c = socket.conn;
        if sim.clients[c].aim != Aim::Other && !matches!(sim.clients[c].aim, Aim::Bad(_)) {
            sim.fail(format!("client {c}: handed over to the HTTP server"));
        }
        if !sim.net.conn(c).sent.starts_with(&read) {
            sim.fail(format!("client {c}: handed over with bytes it did not send"));
        }
        if sim.rng.chance(300) {
            return Err(socket);
        }
        sim.handed_over += 1;
        sim.clients[c].handed_over = true;
        drop(guard);
        drop(socket);
        Ok(())
    }

    fn ask(&mut self, key: SlotKey, sid: Sid, question: Question) -> Option<Reply> {
        let sim = &mut *self.0.borrow_mut();
        match question {
            Question::App(request) => sim.on_call(Call { key, sid, request }).err().map(|error| Reply::App(Err(error))),
            Question::Broker(question) => sim.on_broker_question(key, sid, question),
        }
    }

    fn cancel(&mut self, key: SlotKey) {
        self.0.borrow_mut().on_cancel(key);
    }

    fn tell(&mut self, key: SlotKey, sid: Sid, request: Request) {
        self.0.borrow_mut().on_disconnect(&Call { key, sid, request });
    }

    fn publish(&mut self, publication: Publication) {
        self.0.borrow_mut().on_whisper(publication);
    }

    fn follow(&mut self, stream: StreamKey) {
        let sim = &mut *self.0.borrow_mut();
        if !sim.followed.insert(stream) {
            sim.fail(format!("{stream:?} followed twice"));
        }
    }

    fn unfollow(&mut self, stream: StreamKey) {
        let sim = &mut *self.0.borrow_mut();
        if !sim.followed.remove(&stream) {
            sim.fail(format!("{stream:?} is not followed"));
        }
    }

    fn identity_came(&mut self, identifiers: &str) {
        let sim = &mut *self.0.borrow_mut();
        if !sim.present.insert(identifiers.into()) {
            sim.fail(format!("identity {identifiers:?} came twice"));
        }
    }

    fn identity_left(&mut self, identifiers: &str) {
        let sim = &mut *self.0.borrow_mut();
        if !sim.present.remove(identifiers) {
            sim.fail(format!("identity {identifiers:?} left twice"));
        }
    }

    fn try_open(&mut self) -> bool {
        let sim = &mut *self.0.borrow_mut();
        let room = sim.open < sim.scenario.open_max;
        if room {
            sim.open += 1
        } else {
            sim.refused_open += 1
        }
        room
    }

    fn reopened(&mut self) {
        self.0.borrow_mut().open += 1;
    }

    fn closed(&mut self) {
        let sim = &mut *self.0.borrow_mut();
        match sim.open.checked_sub(1) {
            Some(fewer) => sim.open = fewer,
            None => sim.fail("more WebSockets closed than opened".into()),
        }
    }
}
