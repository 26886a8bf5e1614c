//! The real machine: Linux with epoll, its sockets and its clocks.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};

use crate::model::Now;
use crate::os::clock::Clock;
use crate::os::poll::{Poller, Watch};
use crate::os::tcp;
use crate::proto::handshake;

use super::TcpInfo;
use super::inbox::{Inbox, Message};
use super::machine::{Accepted, Incoming, Interest, Machine, Received};

/// Token of the inbox's waker.
pub(super) const WAKER: u64 = u64::MAX;

/// Token of the listeners. Neither is a slot's: no shard has four billion slots.
pub(super) const LISTENER: u64 = u64::MAX - 1;

/// What an [`Epoll`] is made from.
pub struct EpollSettings {
    /// Non-blocking listeners of this shard, in the order of [`Settings::listeners`](super::Settings::listeners), and the
    /// address of each as often as it has addresses.
    pub listeners: Vec<TcpListener>,
    /// The node's clock.
    pub clock: Clock,
    /// What other threads have for this shard.
    pub inbox: Arc<Inbox>,
    /// Sockets that all shards may hold together; one more is answered 503 and closed at once. What is left of the
    /// limit of open files is for the rest of the process: with none left it could not even ask the app.
    pub sockets_max: usize,
    /// For listeners whose clients the kernel does not spread over the shards.
    pub deal: Option<Deal>,
}

/// Deals accepted connections out to all shards in turn.
pub struct Deal {
    inboxes: Arc<[Arc<Inbox>]>,
    own: usize,
    next: usize,
}

impl Deal {
    /// For the shard with this number; it begins with itself.
    pub fn new(inboxes: Arc<[Arc<Inbox>]>, own: usize) -> Deal {
        Deal { inboxes, own, next: own }
    }

    /// Whose turn it is: another shard's inbox, or `None` for one's own.
    fn turn(&mut self) -> Option<&Inbox> {
        let turn = self.next;
        self.next = (turn + 1) % self.inboxes.len();
        (turn != self.own).then(|| &*self.inboxes[turn])
    }
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
#[derive(Debug)]
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
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    _counted: Counted,
}

// As small as a bare descriptor, or every slot would pay.
const _: () = assert!(size_of::<Option<Socket>>() == 4);

impl Socket {
    /// The socket for somebody who is no shard.
    pub fn into_stream(self) -> TcpStream {
        self.fd.into()
    }
}

impl From<TcpStream> for Socket {
    /// A socket for a shard. It must not block.
    fn from(stream: TcpStream) -> Socket {
        Socket::from(OwnedFd::from(stream))
    }
}

impl From<OwnedFd> for Socket {
    /// The same, as it came from another process.
    fn from(fd: OwnedFd) -> Socket {
        Socket { fd, _counted: Counted::new() }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The real machine under one shard.
pub struct Epoll {
    pub(super) poller: Poller,
    listeners: Vec<TcpListener>,
    /// A descriptor held back, so that a connection can be answered 503 when no other is left.
    reserve: Option<File>,
    clock: Clock,
    random: StdRng,
    pub(super) inbox: Arc<Inbox>,
    sockets_max: usize,
    deal: Option<Deal>,
}

impl Epoll {
    /// Watches the listeners and the inbox.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(settings: EpollSettings) -> io::Result<Epoll> {
        let EpollSettings { listeners, clock, inbox, sockets_max, deal } = settings;
        let poller = Poller::new()?;
        for listener in &listeners {
            poller.add(listener, LISTENER, Watch::Level)?;
        }
        poller.add(&inbox.waker, WAKER, Watch::EdgeRead)?;
        let reserve = Some(File::open("/dev/null")?);
        let random = StdRng::try_from_rng(&mut rand::rngs::SysRng).map_err(io::Error::other)?;
        Ok(Epoll { poller, listeners, reserve, clock, random, inbox, sockets_max, deal })
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

impl Drop for Epoll {
    /// However the shard has ended, nothing stays in its inbox: publications there would keep their share of the bound.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl Machine for Epoll {
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
        for (at, listener) in self.listeners.iter().enumerate() {
            match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(fd) => {
                    let counted = Counted::new();
                    let since_run_out = SOCKETS_SINCE_RUN_OUT.load(Relaxed);
                    if SOCKETS.load(Relaxed) > self.sockets_max.min(since_run_out) {
                        dismiss(fd);
                        return Accepted::TurnedAway;
                    }
                    if since_run_out != usize::MAX {
                        SOCKETS_SINCE_RUN_OUT.store(usize::MAX, Relaxed);
                    }
                    let socket = Socket { fd, _counted: counted };
                    let incoming = Incoming { socket, listener: at as u8 };
                    let Some(other) = self.deal.as_mut().and_then(Deal::turn) else {
                        return Accepted::Connection(incoming);
                    };
                    other.put(Message::Adopt { incoming, read: Vec::new() });
                    return Accepted::Dealt;
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

    fn pause_listening(&mut self) {
        for listener in &self.listeners {
            let _ = self.poller.remove(listener);
        }
    }

    fn resume_listening(&mut self) {
        for listener in &self.listeners {
            let _ = self.poller.add(listener, LISTENER, Watch::Level);
        }
    }

    fn stop_listening(&mut self) {
        // The node may hold copies of the listeners for their statistics, so closing ours would not unwatch them.
        self.pause_listening();
        self.listeners.clear();
    }

    fn watch(&mut self, socket: &Socket, token: u64) -> io::Result<()> {
        self.poller.add(socket, token, Watch::EdgeRead)
    }

    fn set_interest(&mut self, socket: &Socket, token: u64, interest: Interest) -> io::Result<()> {
        let watch = match interest {
            Interest::Read => Watch::EdgeRead,
            Interest::ReadWrite => Watch::EdgeReadWrite,
        };
        self.poller.modify(socket, token, watch)
    }

    fn unwatch(&mut self, socket: &Socket) {
        let _ = self.poller.remove(socket);
    }

    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<Received> {
        // Not read(2), which goes through the file layer: 0.4 us more.
        let (bytes, _) = rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?;
        Ok(Received { bytes, maybe_more: bytes == buffer.len() })
    }

    fn write(&mut self, socket: &Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(match bytes {
            [only] => rustix::net::send(socket, only, SendFlags::NOSIGNAL)?,
            // SIGPIPE is ignored by the Rust runtime.
            several => rustix::io::writev(socket, several)?,
        })
    }

    fn set_user_timeout(&mut self, socket: &Socket, timeout: Duration) {
        let _ = rustix::net::sockopt::set_tcp_user_timeout(socket, timeout.as_millis() as u32);
    }

    fn shut(&mut self, socket: &Socket) {
        let _ = rustix::net::shutdown(socket, Shutdown::Write);
    }

    fn tcp_info(&self, socket: &Socket) -> Option<TcpInfo> {
        tcp::info(socket).ok()
    }

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        tcp::peer(socket)
    }
}
