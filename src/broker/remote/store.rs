//! What a broker on other machines is asked to keep, whichever it is.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::model::{NodeId, Publication, ResumeTicket, SavedSession, Sid};

/// One store, told apart from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreId {
    /// The node that stored.
    pub node: NodeId,
    /// Grows with each store of that node.
    pub seq: u64,
}

/// A publication to be stored.
#[derive(Clone, Debug)]
pub struct Unstored {
    /// Which of this node's stores it is. One that is sent again because nobody knows whether it was carried out has the
    /// same.
    pub seq: u64,
    /// Without its position.
    pub publication: Publication,
}

/// A publication that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// With its position.
    pub publication: Publication,
    /// By which store.
    pub origin: Option<StoreId>,
}

/// What became of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is kept at this place.
    At {
        /// The generation of the storage.
        epoch: Arc<str>,
        /// The place.
        offset: u64,
        /// It was kept there when it was sent before.
        is_again: bool,
    },
    /// It was kept when it was sent before, nobody knows where; the stream has come to this offset since.
    Before(u64),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The link is away, or was lost meanwhile: perhaps it was done.
    #[error("{0}")]
    Away(String),
    /// The server says no: it was not done.
    #[error("{0}")]
    Refused(String),
    /// The server would say no each time: it was not done, and is not to be tried again.
    #[error("{0}")]
    Never(String),
}

/// From where on a stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Behind this offset.
    After(u64),
    /// From this Unix time on, in seconds.
    Since(i64),
}

/// What was read of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The generation of the storage.
    pub epoch: Arc<str>,
    /// The offset of the newest publication, kept or not; `None` if the stream is not known.
    pub head: Option<u64>,
    /// Where the count began: one that was forgotten after a long time begins again at a higher number.
    pub base: u64,
    /// Those that are kept, in order.
    pub entries: Vec<Entry>,
}

/// How far a stream is. All zero for one that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The offset of the newest publication, kept or not.
    pub head: u64,
    /// Where the count began.
    pub base: u64,
    /// The generation of the storage in which the newest was stored, and how far the stream was when the first of that
    /// generation came. Not known of what older versions of this server have stored.
    pub begun: Option<(Box<str>, u64)>,
}

impl Count {
    /// How far the stream was when this generation of the storage began.
    pub fn before(&self, epoch: Option<&Arc<str>>) -> u64 {
        let begun = self.begun.as_ref().filter(|(of, _)| epoch.is_some_and(|epoch| **epoch == **of));
        begun.map_or(self.head, |(_, before)| *before)
    }
}

/// Whether the storage can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It can; the number grows with each time that the link came back.
    Up(u64),
    /// It cannot, since then.
    Down(Instant),
}

/// Somebody in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// Who, within the stream.
    pub id: Box<str>,
    /// JSON text.
    pub info: Option<Box<str>>,
}

/// A change of who is present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The stream.
    pub stream: Box<str>,
    /// The session.
    pub sid: Sid,
    /// As whom.
    pub person: Person,
    /// It comes, or it goes.
    pub is_there: bool,
    /// Whether some session of this node is there after this.
    pub node_is_there: bool,
}

/// What the storage knows of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// It knew that this node lives. If not, it knows nobody of this node any more.
    pub was_known: bool,
    /// How many live, this one included.
    pub nodes: usize,
    /// Who was on nodes that do not live, with their streams, where the storage does not tell others itself.
    pub gone: Vec<(Box<str>, Box<str>)>,
}

/// Keeps everything for all nodes of a cluster. Nothing here waits for a link that is away: it is [`Trouble::Away`] then.
pub trait Store: Send + Sync + 'static {
    /// Whether it can be reached.
    fn reach(&self) -> watch::Receiver<Reach>;

    /// Connects, again and again, for as long as the node runs. Storage that does not have what it had gets a new epoch
    /// before anything else happens.
    fn run(&self, remembered: Arc<dyn Remembered>) -> impl Future<Output = ()> + Send;

    /// Stores publications, those of a stream in this order, and tells what became of each. One that was refused has no
    /// effect on those behind it.
    fn store(&self, batch: &[Unstored]) -> impl Future<Output = Vec<Result<Stored, Trouble>>> + Send;

    /// Reads a stream.
    fn read(&self, stream: &str, from: From) -> impl Future<Output = Result<Read, Trouble>> + Send;

    /// The storage was found to have less than it had: it gets a new epoch, unless it has got one by now.
    fn begin_anew(&self) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// How far streams have come.
    fn counts(&self, streams: &[Arc<str>]) -> impl Future<Output = Result<Vec<Count>, Trouble>> + Send;

    /// Keeps sessions for clients that come back; each with how long ago it was over.
    fn save(&self, sessions: &[(&SavedSession, Duration)]) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Takes a session out, if whoever shows the ticket may have it and its client was not sent away; and how long ago it
    /// was saved.
    fn take(
        &self,
        ticket: &ResumeTicket,
    ) -> impl Future<Output = Result<Option<(SavedSession, Duration)>, Trouble>> + Send;

    /// No session with these identifiers that was saved by now is given out any more.
    fn send_away(&self, identifiers: &str) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Changes who is present, in this order; those who follow the streams are told.
    /// Gives for each whether they are to be, where the storage does not tell them itself.
    fn change_presence(&self, changes: &[Presence]) -> impl Future<Output = Result<Vec<bool>, Trouble>> + Send;

    /// Who is present on a stream.
    fn present(&self, stream: &str) -> impl Future<Output = Result<Vec<Person>, Trouble>> + Send;

    /// Says that this node lives, and ends the presence of who was on nodes that do not any more. Wants to be called every
    /// [`LEASE_EVERY`].
    fn keep_lease(&self) -> impl Future<Output = Result<Lease, Trouble>> + Send;
}

/// How often a node says that it lives.
pub const LEASE_EVERY: Duration = Duration::from_secs(5);

/// A node that has not said so for this long does not live.
pub const LEASE: Duration = Duration::from_secs(20);

/// What this node knows of the storage.
pub trait Remembered: Send + Sync + 'static {
    /// Offsets that streams have reached for certain.
    fn reached(&self) -> Vec<(Arc<str>, u64)>;

    /// This is the generation of the storage from now on.
    fn epoch(&self, epoch: &Arc<str>);
}
