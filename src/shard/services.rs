//! What the node gives to a shard: answers to questions, the way for publications, the HTTP server, and counts that
//! all shards share.

use crate::hub::StreamChange;
use crate::model::{PresenceChange, Publication, Question, Reply, Request, SavedSession, Sid, SlotKey};

use super::Incoming;

/// The rest of the node, as a shard with sockets `S` sees it. Nothing here waits.
pub trait Services<S> {
    /// Asks on behalf of a session. Gives the answer if it is known at once; else it comes as a
    /// [`Message::Answer`](super::Message::Answer), unless it is canceled.
    fn ask(&mut self, key: SlotKey, sid: Sid, question: Question) -> Option<Reply>;

    /// The answer to this session's question is not wanted any more. It may come all the same, and the session may have
    /// been closed before it could ask.
    fn cancel(&mut self, key: SlotKey);

    /// Tells the app something that nobody waits for an answer to: that a session is over.
    fn tell(&mut self, key: SlotKey, sid: Sid, request: Request);

    /// Publishes what a client whispered.
    fn publish(&mut self, publication: Publication);

    /// Changes who is present on a stream.
    fn change_presence(&mut self, sid: Sid, stream: &str, change: PresenceChange);

    /// A session that can be resumed lives in this slot from now on.
    fn resident(&mut self, sid: Sid, index: u32);

    /// It is over. What is left of it, if its client may come back to it, is kept, or given to who asked for it.
    fn departed(&mut self, sid: Sid, saved: Option<Box<SavedSession>>);

    /// This shard was told to give up a session, and whoever asks may not have it.
    fn stays(&mut self, sid: Sid);

    /// This shard was told to give up a session in this slot, and it is not there.
    fn not_here(&mut self, sid: Sid, index: u32);

    /// Whether a session that was found may go on: not when the app has sent its client away meanwhile.
    fn may_go_on(&mut self, saved: &SavedSession) -> bool;

    /// This shard wants publications of this stream. When it returns, every later publication of this node comes here. Gives
    /// how many publications this shard has been given before, whether it has received them or not: those to this stream were
    /// for whoever followed it then.
    fn follow(&mut self, stream: &str, change: StreamChange) -> u64;

    /// This shard wants them no more.
    fn unfollow(&mut self, stream: &str, change: StreamChange);

    /// The first session with these connection identifiers is on this shard.
    fn identity_came(&mut self, identifiers: &str);

    /// The last one has gone.
    fn identity_left(&mut self, identifiers: &str);

    /// Counts one more open WebSocket, unless it would be one too many.
    fn try_open(&mut self) -> bool;

    /// Counts a WebSocket that was open elsewhere, however many there are.
    fn reopened(&mut self);

    /// Counts one less.
    fn closed(&mut self);

    /// Gives a socket that asked for ordinary HTTP to the HTTP server, with the bytes read so far. It may come back as a
    /// [`Message::Adopt`](super::Message::Adopt) when a later request on it is an upgrade.
    ///
    /// # Errors
    /// Gives the socket back when the HTTP server has no room.
    fn serve_http(&mut self, incoming: Incoming<S>, read: Vec<u8>) -> Result<(), S>;
}
