//! The seams of one shard: how it touches the run.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use cableway::hub::StreamChange;
use cableway::model::{Call, Now, PresenceChange, Publication, Question, Reply, Request, SavedSession, Sid, SlotKey};
use cableway::shard::{Accepted, Incoming, Interest, Machine, Received, Services, TcpInfo};

use crate::client::Aim;
use crate::net::ConnId;
use crate::world::Sim;

/// Unix time at the start of the run's clock; the shards agree about it.
pub const UNIX: Duration = Duration::from_secs(1_790_000_000);

/// A shard's end of the run.
pub struct Seams {
    pub sim: Rc<RefCell<Sim>>,
    pub shard: usize,
}

impl Seams {
    /// Answers find their shard by the key.
    fn check_key(&self, key: SlotKey) {
        if usize::from(key.shard) != self.shard {
            self.sim.borrow_mut().fail(format!("shard {} asks as shard {}", self.shard, key.shard));
        }
    }

    fn set_watching(&self, watch: bool) {
        let sim = &mut *self.sim.borrow_mut();
        if sim.sites[self.shard].watching == watch {
            sim.fail(format!("watching the listener: {watch} twice"));
        }
        sim.sites[self.shard].watching = watch;
    }

    /// A shard touches only what it holds.
    fn check_holds(&self, sim: &mut Sim, conn: ConnId, does: &str) {
        if sim.is_copied {
            return sim.fail(format!("client {conn}: shard {} {does}, and it is copied", self.shard));
        }
        let (shard, holder) = (self.shard, sim.clients[conn].shard);
        if shard != holder {
            sim.fail(format!("client {conn}: shard {shard} {does}, and shard {holder} holds it"));
        }
    }
}

/// A connection that is new to a shard.
pub fn incoming(sim: &Rc<RefCell<Sim>>, conn: ConnId) -> Incoming<Socket> {
    let socket = Socket { sim: Rc::clone(sim), conn };
    Incoming { socket, listener: 0 }
}

/// A connection in a shard's hands.
pub struct Socket {
    sim: Rc<RefCell<Sim>>,
    pub conn: ConnId,
}

impl Socket {
    /// One more handle of it.
    pub fn again(&self) -> Socket {
        self.sim.borrow_mut().net.conn(self.conn).handles += 1;
        Socket { sim: Rc::clone(&self.sim), conn: self.conn }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let sim = &mut *self.sim.borrow_mut();
        let conn = sim.net.conn(self.conn);
        conn.handles -= 1;
        if conn.handles > usize::from(conn.has_copy) || conn.server_gone {
            return;
        }
        sim.trace(|| format!("a shard lets go of {}", self.conn));
        sim.check_let_go(self.conn);
        sim.net.server_drop(self.conn, &mut sim.rng);
    }
}

impl Machine for Seams {
    type Socket = Socket;

    fn now(&mut self) -> Now {
        let sim = self.sim.borrow();
        Now { mono: sim.mono + sim.sites[self.shard].origin, unix: sim.mono + UNIX }
    }

    fn random(&mut self) -> u128 {
        let rng = &mut self.sim.borrow_mut().rng;
        u128::from(rng.next()) << 64 | u128::from(rng.next())
    }

    fn accept(&mut self) -> Accepted<Socket> {
        let mut guard = self.sim.borrow_mut();
        let sim = &mut *guard;
        if !sim.sites[self.shard].listening || !sim.sites[self.shard].watching {
            sim.fail("accept on a listener that is not watched".into());
        }
        if sim.net.backlogs[self.shard].is_empty() || sim.rng.chance(30) {
            return Accepted::Nobody;
        }
        if sim.sites[self.shard].exhausted && sim.rng.chance(400) {
            return Accepted::Stuck;
        }
        let Some(conn) = sim.net.backlogs[self.shard].pop_front() else { return Accepted::Nobody };
        sim.accepted += 1;
        if sim.sites[self.shard].exhausted {
            sim.turned_away += 1;
            sim.clients[conn].turned_away = true;
            sim.net.server_drop(conn, &mut sim.rng);
            return Accepted::TurnedAway;
        }
        self.check_holds(sim, conn, "accepts it");
        sim.clients[conn].clock.accepted_at = Some(sim.mono);
        sim.trace(|| format!("shard {} accepts {conn}", self.shard));
        Accepted::Connection(incoming(&self.sim, conn))
    }

    fn pause_listening(&mut self) {
        self.set_watching(false);
    }

    fn resume_listening(&mut self) {
        self.set_watching(true);
    }

    fn stop_listening(&mut self) {
        let sim = &mut *self.sim.borrow_mut();
        sim.sites[self.shard].listening = false;
        for conn in std::mem::take(&mut sim.net.backlogs[self.shard]) {
            // Linux resets them, or gives them to another listener of the port (`net.ipv4.tcp_migrate_req`).
            match sim.some_listener().filter(|_| sim.scenario.migrates) {
                Some(other) => {
                    sim.moved(conn, other);
                    sim.net.backlogs[other].push_back(conn);
                }
                None => {
                    sim.clients[conn].turned_away = true;
                    sim.net.server_drop(conn, &mut sim.rng);
                }
            }
        }
    }

    fn watch(&mut self, socket: &Socket, token: u64) -> io::Result<()> {
        self.set_interest(socket, token, Interest::Read)
    }

    fn set_interest(&mut self, socket: &Socket, token: u64, interest: Interest) -> io::Result<()> {
        let sim = &mut *self.sim.borrow_mut();
        if !sim.is_copied {
            self.check_holds(sim, socket.conn, "watches it");
        }
        if sim.rng.chance(sim.scenario.faults) {
            sim.net.conn(socket.conn).faulty = true;
            return Err(io::Error::from_raw_os_error(28));
        }
        if sim.is_copied {
            sim.net.watch_next(socket.conn, self.shard, token);
            return Ok(());
        }
        sim.net.watch(socket.conn, self.shard, token, interest == Interest::ReadWrite);
        Ok(())
    }

    fn unwatch(&mut self, socket: &Socket) {
        let sim = &mut *self.sim.borrow_mut();
        if sim.is_copied {
            return sim.net.forget_copy(socket.conn);
        }
        self.check_holds(sim, socket.conn, "watches it no more");
        sim.net.unwatch(socket.conn);
    }

    fn set_user_timeout(&mut self, _socket: &Socket, _timeout: Duration) {}

    /// The network knows when the client's bytes were read last. Clients' kernels acknowledge nothing here.
    fn tcp_info(&self, socket: &Socket) -> Option<TcpInfo> {
        let sim = &mut *self.sim.borrow_mut();
        self.check_holds(sim, socket.conn, "asks about it");
        let accepted_at = sim.clients[socket.conn].clock.accepted_at.unwrap_or_default();
        let since = sim.mono - sim.net.conn(socket.conn).read_at.max(accepted_at);
        Some(TcpInfo { since_data: since, since_ack: since, ..TcpInfo::default() })
    }

    fn peer(&self, _socket: &Socket) -> Option<SocketAddr> {
        Some(SocketAddr::from(([127, 0, 0, 1], 4000)))
    }

    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<Received> {
        let sim = &mut *self.sim.borrow_mut();
        self.check_holds(sim, socket.conn, "reads from it");
        if sim.rng.chance(10) {
            return Err(ErrorKind::Interrupted.into());
        }
        if sim.rng.chance(sim.scenario.faults) {
            sim.net.conn(socket.conn).faulty = true;
            return Err(ErrorKind::HostUnreachable.into());
        }
        let got = sim.net.server_read(socket.conn, buffer, sim.mono);
        sim.trace(|| format!("shard {} reads {got:?} from {}", self.shard, socket.conn));
        // A socket that decrypts, for one, may say so at any time.
        let bytes = got?;
        Ok(Received { bytes, maybe_more: bytes == buffer.len() || sim.rng.chance(100) })
    }

    fn write(&mut self, socket: &Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let sim = &mut *self.sim.borrow_mut();
        self.check_holds(sim, socket.conn, "writes to it");
        if sim.net.is_shut(socket.conn) {
            sim.fail(format!("client {}: written to after the shard had shut its half", socket.conn));
        }
        if sim.rng.chance(10) {
            return Err(ErrorKind::Interrupted.into());
        }
        let most = if sim.rng.chance(150) { sim.rng.between(1, 50) } else { usize::MAX };
        let written = sim.net.server_write(socket.conn, bytes, most, sim.mono);
        sim.trace(|| format!("shard {} writes {written:?} to {}", self.shard, socket.conn));
        Ok(written?)
    }

    fn shut(&mut self, socket: &Socket) {
        let sim = &mut *self.sim.borrow_mut();
        self.check_holds(sim, socket.conn, "shuts it");
        sim.trace(|| format!("shard {} shuts its half of {}", self.shard, socket.conn));
        if !sim.net.server_shut(socket.conn, sim.mono) {
            sim.fail(format!("client {}: shut twice", socket.conn));
        }
    }
}

impl Services<Socket> for Seams {
    fn serve_http(&mut self, incoming: Incoming<Socket>, read: Vec<u8>) -> Result<(), Socket> {
        let socket = incoming.socket;
        let mut guard = self.sim.borrow_mut();
        let sim = &mut *guard;
        let c = socket.conn;
        self.check_holds(sim, c, "hands it over");
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
        self.check_key(key);
        let sim = &mut *self.sim.borrow_mut();
        match question {
            Question::App(request) => sim.on_call(Call { key, sid, request }).err().map(|error| Reply::App(Err(error))),
            Question::Broker(question) => sim.on_broker_question(key, sid, question),
            Question::Followed(_) => Some(Reply::Followed),
        }
    }

    fn cancel(&mut self, key: SlotKey) {
        self.check_key(key);
        self.sim.borrow_mut().on_cancel(key);
    }

    fn tell(&mut self, key: SlotKey, sid: Sid, request: Request) {
        self.check_key(key);
        self.sim.borrow_mut().on_disconnect(&Call { key, sid, request });
    }

    fn publish(&mut self, publication: Publication) {
        self.sim.borrow_mut().on_whisper(publication);
    }

    fn change_presence(&mut self, sid: Sid, stream: &str, change: PresenceChange) {
        self.sim.borrow_mut().on_presence(sid, stream, change);
    }

    fn resident(&mut self, sid: Sid, index: u32) {
        let sim = &mut *self.sim.borrow_mut();
        if sim.is_copied {
            return sim.residents.push((sid, self.shard, index));
        }
        sim.on_resident(sid, self.shard, index);
    }

    fn departed(&mut self, sid: Sid, saved: Option<Box<SavedSession>>) {
        self.sim.borrow_mut().on_departed(sid, saved);
    }

    fn stays(&mut self, sid: Sid) {
        self.sim.borrow_mut().on_stays(sid);
    }

    fn not_here(&mut self, sid: Sid, index: u32) {
        self.sim.borrow_mut().on_not_here(sid, self.shard, index);
    }

    fn may_go_on(&mut self, saved: &SavedSession) -> bool {
        self.sim.borrow_mut().on_may_go_on(saved)
    }

    fn follow(&mut self, stream: &str, change: StreamChange) -> u64 {
        let sim = &mut *self.sim.borrow_mut();
        let site = &mut sim.sites[self.shard];
        let is_new = site.followed_by_name.insert(stream.into());
        let key_is_new = site.followed.contains_key(&change.key) != change.of_key;
        if change.of_key {
            site.follows += 1;
            site.followed.insert(change.key, site.follows);
        }
        let given = site.given;
        if !is_new || !key_is_new {
            sim.fail(format!("shard {}: {stream:?} followed twice", self.shard));
        }
        given
    }

    fn unfollow(&mut self, stream: &str, change: StreamChange) {
        let sim = &mut *self.sim.borrow_mut();
        let site = &mut sim.sites[self.shard];
        let key_was_there = !change.of_key || site.followed.remove(&change.key).is_some();
        if !site.followed_by_name.remove(stream) || !key_was_there {
            sim.fail(format!("shard {}: {stream:?} is not followed", self.shard));
        }
        sim.nobody_follows(self.shard, stream);
    }

    fn identity_came(&mut self, identifiers: &str) {
        let sim = &mut *self.sim.borrow_mut();
        if !sim.sites[self.shard].present.insert(identifiers.into()) {
            sim.fail(format!("identity {identifiers:?} came twice"));
        }
    }

    fn identity_left(&mut self, identifiers: &str) {
        let sim = &mut *self.sim.borrow_mut();
        if !sim.sites[self.shard].present.remove(identifiers) {
            sim.fail(format!("identity {identifiers:?} left twice"));
        }
    }

    fn try_open(&mut self) -> bool {
        let sim = &mut *self.sim.borrow_mut();
        let room = sim.open < sim.scenario.open_max;
        if room {
            sim.open += 1
        } else {
            sim.refused_open += 1
        }
        room
    }

    fn reopened(&mut self) {
        self.sim.borrow_mut().open += 1;
    }

    fn closed(&mut self) {
        let sim = &mut *self.sim.borrow_mut();
        match sim.open.checked_sub(1) {
            Some(fewer) => sim.open = fewer,
            None => sim.fail("more WebSockets closed than opened".into()),
        }
    }
}
