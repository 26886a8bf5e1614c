//! The seams: all that a shard needs of the world.
//!
//! In production this is the kernel, the monotonic clock and the channels to the rest of the node
//! ([`Kernel`](super::Kernel)). In a simulation one seeded object plays all of it and runs the same shard.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use crate::model::{Call, CallError, Now, Publication, SlotKey};

/// What came of trying to accept a connection.
#[derive(Debug)]
pub enum Accepted<S> {
    /// A connection.
    Socket(S, SocketAddr),
    /// Nobody is waiting.
    Nobody,
    /// There was no descriptor for it; it was answered 503 with the reserve and is gone.
    TurnedAway,
    /// There is no descriptor and no reserve either: no use in trying again at once.
    Stuck,
}

/// Sockets and readiness, the clock, and the ways out of a shard.
pub trait World {
    /// A connected socket. Dropping it closes it.
    type Socket;

    /// The time.
    fn now(&mut self) -> Now;

    /// Random bits, for session ids and for spreading pings.
    fn random(&mut self) -> u128;

    /// Takes the next waiting connection. Never waits.
    fn accept(&mut self) -> Accepted<Self::Socket>;

    /// Stops (`false`) or resumes watching the listener; a listener that cannot be served would wake the shard
    /// without end.
    fn watch_listener(&mut self, watch: bool);

    /// Stops listening for good.
    fn stop_listening(&mut self);

    /// Reports the socket under `token` from now on, edge-triggered: when there is something to read or the peer
    /// has gone; with `write`, also when there is room to write. Called again to add `write`.
    ///
    /// # Errors
    /// When the poller has no room; the connection cannot be served.
    fn watch(&mut self, socket: &Self::Socket, token: u64, write: bool, again: bool) -> io::Result<()>;

    /// Reads what is there, never waits. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else ends the connection.
    fn read(&mut self, socket: &Self::Socket, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes what there is room for, never waits.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; anything else ends the connection.
    fn write(&mut self, socket: &Self::Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Says that nothing more will be written.
    fn shut(&mut self, socket: &Self::Socket);

    /// Gives a socket that asked for ordinary HTTP to the HTTP server, with the bytes read so far.
    ///
    /// # Errors
    /// Gives the socket back when the HTTP server has no room.
    fn hand_over(&mut self, socket: Self::Socket, peer: SocketAddr, read: Vec<u8>) -> Result<(), Self::Socket>;

    /// Asks the app. The answer comes back as a message.
    ///
    /// # Errors
    /// When there is nobody to ask or too many are asking.
    fn call(&mut self, call: Call) -> Result<(), CallError>;

    /// The answer of this slot's call is not wanted any more.
    fn cancel(&mut self, key: SlotKey);

    /// Tells the app that a session is over.
    fn disconnect(&mut self, call: Call);

    /// Publishes what a client whispered.
    fn publish(&mut self, publication: Publication);

    /// The identifiers are those of an open session on this shard from here on (`true`), or no longer.
    fn identifiers_present(&mut self, identifiers: &str, present: bool);

    /// A WebSocket opened (`true`) or closed. Gives false, and counts nothing, when it would be one too many.
    fn count_open(&mut self, open: bool) -> bool;
}
