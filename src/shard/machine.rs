//! What the machine gives to a shard: sockets, readiness and the clock.
//!
//! In production this is Linux ([`Epoll`](super::Epoll)). In a simulation a seeded object plays it and runs the same
//! shard.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use crate::model::Now;
use crate::os::tcp::TcpInfo;

/// What stands for the address of a peer that nobody knows.
pub const UNKNOWN_PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// What came of trying to accept a connection.
#[derive(Debug)]
pub enum Accepted<S> {
    /// A connection.
    Connection(Incoming<S>),
    /// A connection that another shard has been given.
    Dealt,
    /// Nobody is waiting.
    Nobody,
    /// There was no descriptor for it; it was answered 503 with the reserve and is gone.
    TurnedAway,
    /// There is no descriptor and no reserve either: no use in trying again at once.
    Stuck,
}

/// A connection that is new to a shard.
#[derive(Debug)]
pub struct Incoming<S> {
    /// The socket, which does not block.
    pub socket: S,
    /// Which of [`Settings::listeners`](super::Settings::listeners) it came through.
    pub listener: u8,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes that were put into the buffer; 0 is the end of the stream.
    pub bytes: usize,
    /// Whether there may be more without another report of readiness. The kind of socket decides: a plain one has no
    /// more when it did not fill the buffer (epoll(7)).
    pub maybe_more: bool,
}

/// What a connection is reported for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the peer has gone.
    Read,
    /// That, and room to write.
    ReadWrite,
}

/// A connection is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Something to read, an error included.
    pub readable: bool,
    /// Room to write.
    pub writable: bool,
    /// The peer has shut its half or is gone.
    pub hangup: bool,
}

/// Sockets, readiness and the clock. Nothing here waits.
pub trait Machine {
    /// A connected socket. Dropping it closes it.
    type Socket;

    /// The time.
    fn now(&mut self) -> Now;

    /// Random bits, for session ids and for spreading pings.
    fn random(&mut self) -> u128;

    /// Takes the next waiting connection.
    fn accept(&mut self) -> Accepted<Self::Socket>;

    /// Stops reporting that somebody waits to be accepted: what cannot be served would wake the shard without end.
    fn pause_listening(&mut self);

    /// Goes on after [`pause_listening`](Machine::pause_listening).
    fn resume_listening(&mut self);

    /// Stops listening for good.
    fn stop_listening(&mut self);

    /// Reports the socket under `token` from now on, edge-triggered, for [`Interest::Read`].
    ///
    /// # Errors
    /// When there is no room; the connection cannot be served.
    fn watch(&mut self, socket: &Self::Socket, token: u64) -> io::Result<()>;

    /// Changes what a watched socket is reported for.
    ///
    /// # Errors
    /// The connection cannot be served any more.
    fn set_interest(&mut self, socket: &Self::Socket, token: u64, interest: Interest) -> io::Result<()>;

    /// Reports a socket that lives on elsewhere no more.
    fn unwatch(&mut self, socket: &Self::Socket);

    /// Reads what is there.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else ends the connection.
    fn read(&mut self, socket: &Self::Socket, buffer: &mut [u8]) -> io::Result<Received>;

    /// Writes what there is room for.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; anything else ends the connection.
    fn write(&mut self, socket: &Self::Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sets how long sent bytes and probes may stay without acknowledgement; zero: as the system has it. One that cannot
    /// be set stays as it is.
    fn set_user_timeout(&mut self, socket: &Self::Socket, timeout: Duration);

    /// Says that nothing more will be written.
    fn shut(&mut self, socket: &Self::Socket);

    /// How the other end is. It costs a system call: it is asked when a connection ends, and of a few of those that are
    /// open. `None`: nothing is known.
    fn tcp_info(&self, socket: &Self::Socket) -> Option<TcpInfo>;

    /// Where a socket leads, or led before its connection ended. It costs a system call, so it is asked when somebody
    /// wants to know.
    fn peer(&self, socket: &Self::Socket) -> Option<SocketAddr>;
}
