//! What comes to the old process behind the point of no return, and belongs to the new one.

use crate::broadcast::Handover;
use crate::model::{Call, Publication, RemoteDisconnect};
use crate::shard::{Incoming, Message, Socket};

/// The new process, as the parts of the old one see it. Nothing here waits but where a future is given.
pub(in crate::node) trait Successor: Send + Sync {
    /// Publishes there. Done when the new process has handed them to its shards, as a publication here would be.
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_>;

    /// Sends sessions away there.
    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_>;

    /// What was or would have been for a shard here: answers by their old keys, sessions to be given up.
    fn message(&self, message: Message<Socket>);

    /// A connection that turned out to be a WebSocket here.
    fn adopt(&self, incoming: Incoming<Socket>, read: Vec<u8>);

    /// Tells the app there that a session is over: a call that waited here and was not begun.
    fn tell(&self, call: Call);
}
