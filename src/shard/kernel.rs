//! The real world: epoll, sockets, the monotonic clock, and the node around the shard.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};

use crate::model::{Call, CallError, Now, Publication, SlotKey};
use crate::os::clock::Clock;
use crate::os::poll::{self, Poller, Watch};
use crate::proto::handshake;

use super::inbox::Inbox;
use super::{Accepted, Shard, World};

/// Events taken from the kernel in one turn.
const EVENTS_PER_TURN: usize = 1024;

/// Token of the inbox's waker.
const WAKER: u64 = u64::MAX;

/// Token of the listeners. Neither is a slot's: no shard has four billion slots.
const LISTENER: u64 = u64::MAX - 1;

/// The rest of the node, as a shard sees it. Nothing here may wait.
pub trait Neighbours: Send + Sync {
    /// As [`World::call`].
    ///
    /// # Errors
    /// When there is nobody to ask or too many are asking.
    fn call(&self, call: Call) -> Result<(), CallError>;
    /// As [`World::cancel`].
    fn cancel(&self, key: SlotKey);
    /// As [`World::disconnect`].
    fn disconnect(&self, call: Call);
    /// As [`World::hand_over`].
    ///
    /// # Errors
    /// Gives the socket back when there is no room.
    fn hand_over(&self, socket: TcpStream, peer: SocketAddr, read: Vec<u8>) -> Result<(), TcpStream>;
    /// As [`World::publish`].
    fn publish(&self, publication: Publication);
    /// As [`World::identifiers_present`], with the shard's number.
    fn identifiers_present(&self, shard: u16, identifiers: &str, present: bool);
    /// As [`World::count_open`].
    fn count_open(&self, open: bool) -> bool;
}

/// What a shard's kernel is made from.
pub struct KernelSettings {
    /// The shard's number.
    pub shard: u16,
    /// Non-blocking listeners of this shard.
    pub listeners: Vec<TcpListener>,
    /// The node's clock.
    pub clock: Clock,
    /// The rest of the node.
    pub neighbours: Arc<dyn Neighbours>,
    /// What other threads have for this shard.
    pub inbox: Arc<Inbox>,
    /// Sockets that all shards may hold together; one more is answered 503 and closed at once. What is left of the
    /// limit of open files is for the rest of the process: with none left it could not even ask the app.
    pub sockets_max: usize,
}

/// Sockets that all shards of this process hold, as descriptors are the whole process's.
static SOCKETS: AtomicUsize = AtomicUsize::new(0);

/// Sockets that the shards may hold since descriptors ran out before `sockets_max` was reached, because something else
/// took them. Without it one shard would keep what another's reserve has just given back, and nobody could be turned
/// away there any more.
static SOCKETS_SINCE_RUN_OUT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Sockets that have to leave after descriptors ran out, before new ones are taken: more than shards that may be
/// counting one each at that moment.
const LEAVE_FIRST: usize = 16;

/// One of [`SOCKETS`].
struct Counted;

impl Counted {
    fn new() -> Counted {
        SOCKETS.fetch_add(1, Relaxed);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        SOCKETS.fetch_sub(1, Relaxed);
    }
}

/// A client's socket in the hands of a shard.
pub struct Socket {
    fd: OwnedFd,
    counted: Counted,
}

// As small as a bare descriptor, or every slot would pay.
const _: () = assert!(size_of::<Option<Socket>>() == 4);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The real world of one shard.
pub struct Kernel {
    shard: u16,
    poller: Poller,
    listeners: Vec<TcpListener>,
    /// A descriptor held back, so that a connection can be answered 503 when no other is left.
    reserve: Option<File>,
    clock: Clock,
    random: StdRng,
    neighbours: Arc<dyn Neighbours>,
    inbox: Arc<Inbox>,
    sockets_max: usize,
}

impl Kernel {
    /// Watches the listeners and the inbox.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(settings: KernelSettings) -> io::Result<Kernel> {
        let KernelSettings { shard, listeners, clock, neighbours, inbox, sockets_max } = settings;
        let poller = Poller::new()?;
        for listener in &listeners {
            poller.add(listener, LISTENER, Watch::Level)?;
        }
        poller.add(&inbox.waker, WAKER, Watch::EdgeRead)?;
        let reserve = Some(File::open("/dev/null")?);
        let random = StdRng::try_from_rng(&mut rand::rngs::SysRng).map_err(io::Error::other)?;
        Ok(Kernel { shard, poller, listeners, reserve, clock, random, neighbours, inbox, sockets_max })
    }

    /// There is no descriptor for the next connection: gives it the reserve, says 503 and lets it go.
    fn turn_away(&mut self) -> Accepted<Socket> {
        if self.reserve.take().is_none() {
            return Accepted::Stuck;
        }
        let mut outcome = Accepted::Nobody;
        for listener in &self.listeners {
            match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    dismiss(socket);
                    outcome = Accepted::TurnedAway;
                    break;
                }
                // Without a descriptor the kernel does not even look whether somebody waits.
                Err(rustix::io::Errno::AGAIN) => {}
                // Another thread was quicker to take what the reserve had given back.
                Err(_) => outcome = Accepted::Stuck,
            }
        }
        self.reserve = File::open("/dev/null").ok();
        outcome
    }
}

/// Says 503 to a client that there is no room for, and closes.
fn dismiss(socket: OwnedFd) {
    let refusal = handshake::unavailable(5).response;
    let _ = rustix::net::send(&socket, &refusal, SendFlags::NOSIGNAL);
    let _ = rustix::net::shutdown(&socket, Shutdown::Write);
    // A request left unread would turn the close into a reset and could take the answer back.
    let _ = rustix::net::recv(&socket, &mut [0u8; 4096], RecvFlags::DONTWAIT);
}

impl Drop for Kernel {
    /// However the shard has ended, nothing stays in its inbox: publications there would keep their share of the bound.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl World for Kernel {
    type Socket = Socket;

    fn now(&mut self) -> Now {
        self.clock.now()
    }

    fn random(&mut self) -> u128 {
        u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64())
    }

    fn accept(&mut self) -> Accepted<Socket> {
        if self.reserve.is_none() {
            // The first descriptor that comes free is the reserve's, or nobody could be turned away any more.
            match File::open("/dev/null") {
                Ok(file) => self.reserve = Some(file),
                Err(_) => return Accepted::Stuck,
            }
        }
        for listener in &self.listeners {
            match rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok((fd, peer)) => {
                    let counted = Counted::new();
                    let since_run_out = SOCKETS_SINCE_RUN_OUT.load(Relaxed);
                    if SOCKETS.load(Relaxed) > self.sockets_max.min(since_run_out) {
                        dismiss(fd);
                        return Accepted::TurnedAway;
                    }
                    if since_run_out != usize::MAX {
                        SOCKETS_SINCE_RUN_OUT.store(usize::MAX, Relaxed);
                    }
                    let socket = Socket { fd, counted };
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    return Accepted::Socket(socket, peer.unwrap_or((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).into()));
                }
                Err(rustix::io::Errno::AGAIN) => {}
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                    let sockets = SOCKETS.load(Relaxed).saturating_sub(LEAVE_FIRST).max(1);
                    SOCKETS_SINCE_RUN_OUT.store(sockets, Relaxed);
                    return self.turn_away();
                }
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM) => return Accepted::Stuck,
                // The connection was gone again before it was accepted (accept(2) lists several such errors);
                // the listener reports the next one.
                Err(_) => {}
            }
        }
        Accepted::Nobody
    }

    fn watch_listener(&mut self, watch: bool) {
        for listener in &self.listeners {
            let _ = match watch {
                true => self.poller.add(listener, LISTENER, Watch::Level),
                false => self.poller.remove(listener),
            };
        }
    }

    fn stop_listening(&mut self) {
        // The node may hold copies of the listeners for their statistics, so closing ours would not unwatch them.
        self.watch_listener(false);
        self.listeners.clear();
    }

    fn watch(&mut self, socket: &Socket, token: u64, write: bool, again: bool) -> io::Result<()> {
        let watch = if write { Watch::EdgeReadWrite } else { Watch::EdgeRead };
        if again { self.poller.modify(socket, token, watch) } else { self.poller.add(socket, token, watch) }
    }

    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(socket, buffer)?)
    }

    fn write(&mut self, socket: &Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(match bytes {
            [only] => rustix::net::send(socket, only, SendFlags::NOSIGNAL)?,
            // SIGPIPE is ignored by the Rust runtime.
            several => rustix::io::writev(socket, several)?,
        })
    }

    fn shut(&mut self, socket: &Socket) {
        let _ = rustix::net::shutdown(socket, Shutdown::Write);
    }

    fn hand_over(&mut self, socket: Socket, peer: SocketAddr, read: Vec<u8>) -> Result<(), Socket> {
        let _ = self.poller.remove(&socket);
        let Socket { fd, counted } = socket;
        self.neighbours.hand_over(fd.into(), peer, read).map_err(|socket| Socket { fd: socket.into(), counted })
    }

    fn call(&mut self, call: Call) -> Result<(), CallError> {
        self.neighbours.call(call)
    }

    fn cancel(&mut self, key: SlotKey) {
        self.neighbours.cancel(key);
    }

    fn disconnect(&mut self, call: Call) {
        self.neighbours.disconnect(call);
    }

    fn publish(&mut self, publication: Publication) {
        self.neighbours.publish(publication);
    }

    fn identifiers_present(&mut self, identifiers: &str, present: bool) {
        self.neighbours.identifiers_present(self.shard, identifiers, present);
    }

    fn count_open(&mut self, open: bool) -> bool {
        self.neighbours.count_open(open)
    }
}

/// Runs a shard on this thread until it is drained.
///
/// # Errors
/// The poller failed, which it does not.
pub fn run(mut shard: Shard<Kernel>) -> io::Result<()> {
    let mut events = Vec::with_capacity(EVENTS_PER_TURN);
    let mut messages = Vec::new();
    while !shard.is_drained() {
        let now = shard.world().now().mono;
        let timeout = match shard.world().inbox.may_sleep() {
            true => shard.next_wake().map(|wake| wake.saturating_sub(now)),
            false => Some(Duration::ZERO),
        };
        shard.world().poller.wait(&mut events, timeout)?;
        shard.begin_turn();
        for event in &events {
            let ready = poll::ready(event);
            match ready.token {
                LISTENER => shard.accept(),
                // Edge-triggered, so there is nothing to reset; what it is about is looked at below.
                WAKER => {}
                token => shard.ready(token, ready.readable, ready.writable, ready.hangup),
            }
        }
        shard.world().inbox.take(&mut messages);
        messages.drain(..).for_each(|message| shard.receive(message));
        shard.end_turn();
    }
    Ok(())
}
