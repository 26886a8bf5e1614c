//! The simulated kernel: connections as pairs of bounded pipes, and an edge-triggered poller over them.
//!
//! What matters is kept as Linux has it: data that arrives, an end and an error each make one edge; room to write
//! makes one only after a write met the limit and a third of the buffer is free again; adding or changing a watch
//! reports what holds at that moment; an event shows what is true when it is taken, not when it was made; a read
//! gives all that is there; a socket closed over unread bytes resets the peer and may take back what was on its way.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::time::Duration;

use cableway::model::SlotKey;

use crate::rng::Rng;

/// Number of a connection; they are never reused within a run.
pub type ConnId = usize;

/// One connection, both ends.
pub struct Conn {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    to_server_max: usize,
    to_client_max: usize,
    /// The client has shut its half.
    pub client_fin: bool,
    /// The client reads no more either: what is sent to it is answered with a reset.
    client_closed: bool,
    /// Reported by the server's next call.
    error: Option<ErrorKind>,
    /// An error was reported or a reset arrived: nothing works any more.
    dead: bool,
    /// The server has let go of its end.
    pub server_gone: bool,
    watch: Option<Watch>,
    /// How it is watched by a shard that is about to have it.
    next_watch: Option<Watch>,
    /// One of its sockets is in a shard that does not serve it: it is the end of it when whoever does lets go.
    pub has_copy: bool,
    /// Sockets that lead to it; the first is there as soon as somebody accepts it.
    pub handles: usize,
    /// The shard that watched it last, and under what: no other connection ever was.
    token: Option<(usize, u64)>,
    /// Stands in the poller's list.
    queued: bool,
    /// A write met the limit and room has not been reported since.
    no_space: bool,
    /// Since when writes have found no room at all.
    pub blocked_at: Option<Duration>,
    /// A write met the limit at some time.
    pub ever_blocked: bool,
    /// A fault was injected that the client has no part in.
    pub faulty: bool,
    /// When the server got something from the client last.
    pub read_at: Duration,
    /// How many bytes it had read when.
    reads: Vec<(u64, Duration)>,
    /// When the server said that it writes no more.
    pub shut_at: Option<Duration>,
    /// Bytes that the server has written so far.
    written: u64,
    /// When it had written how many, as far as the client has not read them.
    written_at: VecDeque<(u64, Duration)>,
    /// Bytes that the client has sent so far, kept while the server may hand the connection over.
    pub sent: Vec<u8>,
}

struct Watch {
    /// Whose poller it is.
    shard: usize,
    token: u64,
    write: bool,
}

/// What the poller reports.
pub struct Ready {
    /// The watch's token.
    pub token: u64,
    /// Something to read, an error included.
    pub readable: bool,
    /// Room to write.
    pub writable: bool,
    /// The peer has shut its half or is gone.
    pub hangup: bool,
}

/// What a client finds when it reads.
pub enum Got {
    /// Bytes; none: nothing is there now.
    Bytes(Vec<u8>),
    /// The server has shut its half.
    End,
    /// The server has let go with bytes unread.
    Reset,
}

/// The shard of a key, and what it watches the key's connection under.
fn token_of(key: SlotKey) -> (usize, u64) {
    (usize::from(key.shard), u64::from(key.generation) << 32 | u64::from(key.index))
}

/// All connections of a run.
pub struct Net {
    conns: Vec<Conn>,
    /// What the pollers have to report; whose it is, the watch says.
    ready: Vec<ConnId>,
    /// Connections that wait to be accepted, by shard.
    pub backlogs: Vec<VecDeque<ConnId>>,
    /// Connections that shards have let go of in this turn.
    pub let_go: Vec<ConnId>,
}

impl Net {
    /// No connections, and a listener for each shard.
    pub fn new(shards: usize) -> Net {
        Net { conns: Vec::new(), ready: Vec::new(), backlogs: vec![VecDeque::new(); shards], let_go: Vec::new() }
    }

    /// A client connects and waits at the listener of a shard.
    pub fn connect(&mut self, shard: usize, to_server_max: usize, to_client_max: usize) -> ConnId {
        self.conns.push(Conn {
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            to_server_max,
            to_client_max,
            client_fin: false,
            client_closed: false,
            error: None,
            dead: false,
            server_gone: false,
            watch: None,
            next_watch: None,
            has_copy: false,
            handles: 1,
            token: None,
            queued: false,
            no_space: false,
            blocked_at: None,
            ever_blocked: false,
            faulty: false,
            read_at: Duration::ZERO,
            reads: Vec::new(),
            shut_at: None,
            written: 0,
            written_at: VecDeque::new(),
            sent: Vec::new(),
        });
        self.backlogs[shard].push_back(self.conns.len() - 1);
        self.conns.len() - 1
    }

    /// A connection.
    pub fn conn(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[id]
    }

    /// Takes what a shard's poller has to report.
    pub fn take_ready(&mut self, shard: usize, rng: &mut Rng) -> Vec<Ready> {
        let conns = &self.conns;
        let others = |id: &ConnId| conns[*id].watch.as_ref().is_some_and(|watch| watch.shard != shard);
        let (others, mut ids) = std::mem::take(&mut self.ready).into_iter().partition::<Vec<_>, _>(others);
        self.ready = others;
        rng.shuffle(&mut ids);
        let mut events = Vec::new();
        for id in ids {
            let conn = &mut self.conns[id];
            conn.queued = false;
            if let Some(event) = conn.state().filter(|event| event.readable || event.writable || event.hangup) {
                events.push(event);
            }
        }
        events
    }

    /// Whether there is anything to report to a shard.
    pub fn has_ready(&self, shard: usize) -> bool {
        self.ready.iter().any(|id| self.conns[*id].watch.as_ref().is_some_and(|watch| watch.shard == shard))
    }

    fn wake(&mut self, id: ConnId, for_write: bool) {
        let conn = &mut self.conns[id];
        let wanted = conn.watch.as_ref().is_some_and(|watch| !for_write || watch.write);
        if wanted && !conn.queued {
            conn.queued = true;
            self.ready.push(id);
        }
    }

    /// A shard watches a connection or changes its watch; a watch of another shard ends.
    pub fn watch(&mut self, id: ConnId, shard: usize, token: u64, write: bool) {
        let conn = &mut self.conns[id];
        conn.watch = Some(Watch { shard, token, write });
        conn.token = Some((shard, token));
        if !conn.has_room() {
            conn.no_space = true;
        }
        if conn.state().is_some_and(|event| event.readable || event.writable || event.hangup) {
            self.wake(id, false);
        }
    }

    /// A shard that is about to have a connection watches it, too.
    pub fn watch_next(&mut self, id: ConnId, shard: usize, token: u64) {
        self.conns[id].next_watch = Some(Watch { shard, token, write: false });
    }

    /// It does not get it, or not as it was.
    pub fn forget_copy(&mut self, id: ConnId) {
        let conn = &mut self.conns[id];
        (conn.next_watch, conn.has_copy) = (None, false);
    }

    /// Nobody gets anything.
    pub fn forget_copies(&mut self) {
        (0..self.conns.len()).for_each(|id| self.forget_copy(id));
    }

    /// It has it, and nobody else has.
    pub fn take_next_watches(&mut self) {
        self.ready.clear();
        for id in 0..self.conns.len() {
            self.conns[id].queued = false;
            self.conns[id].watch = None;
            if let Some(Watch { shard, token, write }) = self.conns[id].next_watch.take() {
                self.watch(id, shard, token, write);
            }
        }
    }

    /// Which connection a slot holds, or held until its socket was gone.
    pub fn holder_of(&self, key: SlotKey) -> Option<ConnId> {
        let token = token_of(key);
        self.conns.iter().position(|conn| conn.token == Some(token))
    }

    /// Which connection stands in a slot.
    pub fn live_at(&self, shard: usize, index: u32) -> Option<ConnId> {
        let is_it = |&id: &ConnId| self.conns[id].token.is_some_and(|(at, token)| at == shard && token as u32 == index);
        // The generation is the higher half.
        (0..self.conns.len()).filter(is_it).max_by_key(|&id| self.conns[id].token)
    }

    /// The server is not told of this connection any more.
    pub fn unwatch(&mut self, id: ConnId) {
        self.conns[id].watch = None;
    }

    /// A connection that moved is known by this key, even if its new shard could not watch it.
    pub fn rename(&mut self, id: ConnId, key: SlotKey) {
        self.conns[id].token = Some(token_of(key));
    }

    /// The server reads.
    pub fn server_read(&mut self, id: ConnId, buffer: &mut [u8], now: Duration) -> Result<usize, ErrorKind> {
        let conn = &mut self.conns[id];
        let n = conn.to_server.len().min(buffer.len());
        if n > 0 {
            for (to, from) in buffer.iter_mut().zip(conn.to_server.drain(..n)) {
                *to = from;
            }
            conn.read_at = now;
            let before = conn.reads.last().map_or(0, |(bytes, _)| *bytes);
            conn.reads.push((before + n as u64, now));
            return Ok(n);
        }
        if let Some(error) = conn.error.take() {
            conn.dead = true;
            return Err(error);
        }
        if conn.client_fin || conn.dead { Ok(0) } else { Err(ErrorKind::WouldBlock) }
    }

    /// The server writes; `most` is how much it gets out at most by chance.
    pub fn server_write(
        &mut self,
        id: ConnId,
        bytes: &[IoSlice<'_>],
        most: usize,
        now: Duration,
    ) -> Result<usize, ErrorKind> {
        let conn = &mut self.conns[id];
        if let Some(error) = conn.error.take() {
            conn.dead = true;
            return Err(error);
        }
        if conn.dead {
            return Err(ErrorKind::BrokenPipe);
        }
        let total: usize = bytes.iter().map(|slice| slice.len()).sum();
        if conn.client_closed {
            conn.error = Some(ErrorKind::ConnectionReset);
            self.wake(id, false);
            return Ok(total);
        }
        let room = conn.to_client_max.saturating_sub(conn.to_client.len());
        if room < total {
            conn.no_space = true;
            conn.ever_blocked = true;
        }
        if room == 0 {
            conn.blocked_at.get_or_insert(now);
            return Err(ErrorKind::WouldBlock);
        }
        conn.blocked_at = None;
        let written = room.min(total).min(most.max(1));
        conn.to_client.extend(bytes.iter().flat_map(|slice| slice.iter()).take(written));
        conn.written += written as u64;
        conn.written_at.push_back((conn.written, now));
        Ok(written)
    }

    /// When the server wrote the last of the first so many bytes, which the client has read.
    pub fn written_at(&mut self, id: ConnId, bytes: u64) -> Duration {
        let conn = &mut self.conns[id];
        while conn.written_at.front().is_some_and(|(end, _)| *end < bytes) {
            conn.written_at.pop_front();
        }
        conn.written_at.front().map_or(Duration::ZERO, |(_, at)| *at)
    }

    /// When the server read a byte of what the client has sent.
    pub fn read_at(&self, id: ConnId, byte: u64) -> Option<Duration> {
        let reads = &self.conns[id].reads;
        reads.get(reads.partition_point(|(bytes, _)| *bytes <= byte)).map(|(_, at)| *at)
    }

    /// Whether the server has read everything the client has sent.
    pub fn is_read(&self, id: ConnId) -> bool {
        self.conns[id].to_server.is_empty()
    }

    /// The server says that it writes no more. False when it had said so before.
    pub fn server_shut(&mut self, id: ConnId, now: Duration) -> bool {
        self.conns[id].shut_at.replace(now).is_none()
    }

    /// Whether the server has said that it writes no more.
    pub fn is_shut(&self, id: ConnId) -> bool {
        self.conns[id].shut_at.is_some()
    }

    /// The server lets go.
    pub fn server_drop(&mut self, id: ConnId, rng: &mut Rng) {
        self.let_go.push(id);
        let conn = &mut self.conns[id];
        conn.server_gone = true;
        conn.watch = None;
        if !conn.to_server.is_empty() {
            // Unread bytes: the peer is reset, and what was on its way may be lost.
            let arrives = rng.below(conn.to_client.len() + 1);
            conn.to_client.truncate(arrives);
            conn.dead = true;
        }
    }

    /// Bytes that the client can send now. Nothing holds up what nobody gets.
    pub fn room_to_server(&self, id: ConnId) -> usize {
        let conn = &self.conns[id];
        if conn.server_gone { usize::MAX } else { conn.to_server_max.saturating_sub(conn.to_server.len()) }
    }

    /// The client sends; returns how much the pipe took.
    pub fn client_send(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let conn = &mut self.conns[id];
        if conn.server_gone {
            return bytes.len();
        }
        let n = bytes.len().min(conn.to_server_max.saturating_sub(conn.to_server.len()));
        conn.to_server.extend(&bytes[..n]);
        if conn.sent.len() < 40_000 {
            conn.sent.extend_from_slice(&bytes[..n]);
        }
        if n > 0 {
            self.wake(id, false);
        }
        n
    }

    /// The client reads up to `max` bytes.
    pub fn client_receive(&mut self, id: ConnId, max: usize) -> Got {
        let conn = &mut self.conns[id];
        let n = conn.to_client.len().min(max);
        if n > 0 {
            let bytes = conn.to_client.drain(..n).collect();
            if conn.no_space && conn.has_room() {
                conn.no_space = false;
                self.wake(id, true);
            }
            return Got::Bytes(bytes);
        }
        if max > 0 && conn.server_gone && conn.dead {
            return Got::Reset;
        }
        if max > 0 && (conn.shut_at.is_some() || conn.server_gone) { Got::End } else { Got::Bytes(Vec::new()) }
    }

    /// Bytes that the client could read.
    pub fn unread(&self, id: ConnId) -> usize {
        self.conns[id].to_client.len()
    }

    /// The client shuts its half, or closes the whole socket.
    pub fn client_end(&mut self, id: ConnId, both: bool) {
        let conn = &mut self.conns[id];
        conn.client_closed |= both;
        conn.client_fin = true;
        self.wake(id, false);
    }

    /// The connection breaks: by a reset of the client, or by what the network does to it.
    pub fn break_off(&mut self, id: ConnId, error: ErrorKind, rng: &mut Rng) {
        let conn = &mut self.conns[id];
        let arrives = rng.below(conn.to_server.len() + 1);
        conn.to_server.truncate(arrives);
        conn.error = Some(error);
        conn.client_closed = true;
        conn.client_fin = true;
        self.wake(id, false);
    }
}

impl Conn {
    /// Room to write, as the poller sees it: a third of the buffer.
    fn has_room(&self) -> bool {
        (self.to_client_max.saturating_sub(self.to_client.len())) * 3 >= self.to_client_max
    }

    /// What an event would say now; `None` if nobody watches.
    fn state(&self) -> Option<Ready> {
        let watch = self.watch.as_ref()?;
        let broken = self.error.is_some() || self.dead;
        Some(Ready {
            token: watch.token,
            readable: !self.to_server.is_empty() || self.client_fin || broken,
            writable: watch.write && (self.has_room() || broken),
            hangup: self.client_fin || broken,
        })
    }

    /// Bytes wait for a client that makes no room.
    pub fn is_stuck(&self) -> bool {
        self.blocked_at.is_some() && !self.server_gone && !self.client_closed && self.error.is_none() && !self.dead
    }

    /// The client has its end open, and nothing went wrong.
    pub fn is_whole(&self) -> bool {
        !self.client_fin && !self.client_closed && self.error.is_none() && !self.dead && !self.faulty
    }
}
