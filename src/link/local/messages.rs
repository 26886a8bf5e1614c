//! What a process that is one of several and its parent say to each other: one enum for each direction.
//!
//! Written by names, so that a newer process may add what an older one passes over. A shard's number is its own process's in
//! everything that a child says and hears; the parent counts over all of them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{
    BrokerError, BrokerQuestion, BrokerReply, PresenceChange, Publication, RemoteDisconnect, ResumeTicket,
    SavedSession, Sid, SlotKey,
};

/// Version of what the two say to each other. It changes when one of an older version could not follow: a message that is not
/// known ends a link.
pub const LINK_FORMAT: u16 = 1;

/// The first thing that a child hears: what all of them have alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`LINK_FORMAT`] of the parent.
    pub format: u16,
    /// The seed of the hash of streams' names: `Follow` has such a key.
    pub stream_seed: u64,
    /// Where the monotonic clock begins, in microseconds of the machine's.
    pub clock_origin_usec: u64,
    /// Drawn at random: a client comes back to a session with a token that any child has made.
    pub resume_key: Box<str>,
    /// The parent passes publications on, and keeps what is kept. If not, each child is a node of a cluster.
    pub relays: bool,
    /// It keeps history, sessions and presence for them.
    pub remembers: bool,
}

/// What a child says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum ToParent {
    /// To be placed and handed to all children, in this order. Answered by [`ToChild::Taken`].
    Publish {
        /// Counts what waits for `Taken`.
        number: u64,
        /// Never empty.
        publications: Vec<Publication>,
    },
    /// Nobody waits for `Taken` any more: what is not placed by then is dropped.
    GiveUp {
        /// Of the `Publish`.
        number: u64,
    },
    /// To be handed on if there is room now.
    Whisper(Publication),
    /// Sessions are to be sent away, by all children. Answered by [`ToChild::Taken`].
    Disconnect {
        /// Counts what waits for `Taken`.
        number: u64,
        /// Whom.
        disconnect: RemoteDisconnect,
    },
    /// Every child has heard by itself that sessions with these connection identifiers are sent away.
    SentAway(Box<str>),
    /// From now on this child wants publications with this key.
    Follow(u64),
    /// And no more.
    Unfollow(u64),
    /// Is everything known that this child has followed by now? Answered by [`ToChild::Followed`].
    IsFollowed(SlotKey),
    /// A session's question. Answered by [`ToChild::Answer`].
    Ask {
        /// Who asks.
        key: SlotKey,
        /// What.
        question: BrokerQuestion,
    },
    /// Who is present on a stream? Answered by [`ToChild::Present`].
    WhoIsPresent {
        /// Counts such questions.
        number: u64,
        /// The stream.
        stream: Box<str>,
    },
    /// Somebody comes or goes.
    Presence {
        /// The session.
        sid: Sid,
        /// The stream.
        stream: Box<str>,
        /// What becomes of them.
        change: PresenceChange,
    },
    /// A session that can be resumed lives here.
    Resident {
        /// Which.
        sid: Sid,
        /// In which shard.
        shard: u16,
        /// In which slot.
        index: u32,
    },
    /// A session is over.
    Departed {
        /// Which.
        sid: Sid,
        /// What is left of it.
        saved: Option<Box<SavedSession>>,
    },
    /// A session is not given up.
    Stays(Sid),
    /// A session is not where it was asked for.
    NotHere {
        /// Which.
        sid: Sid,
        /// The shard that was asked.
        shard: u16,
        /// The slot.
        index: u32,
    },
    /// Publications that took so many places in the bound of all are delivered.
    Delivered(u32),
    /// Everything that was said before is to be carried out. Answered by [`ToChild::Taken`].
    CarryOut {
        /// Counts what waits for `Taken`.
        number: u64,
    },
    /// This process hands over to its successor and delivers nothing more that it gets behind the answer. Until one of them says
    /// who goes on, everything for their clients is kept. Answered by [`ToChild::Taken`].
    HandOver {
        /// Counts what waits for `Taken`.
        number: u64,
    },
    /// It has handed over and ends when its successor has said what it has. Answered by [`ToChild::Taken`] then.
    AwaitSuccessor {
        /// Counts what waits for `Taken`.
        number: u64,
    },
    /// It has not handed over and goes on by itself.
    GoOn,
    /// The successor goes on: it has said what it follows and who lives there.
    TakenOver,
    /// A request of whatever kind to the parent. Answered by [`ToChild::Reply`].
    Request(Request),
    /// The answer to [`ToChild::Request`].
    Reply(Reply),
}

/// What the parent says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum ToChild {
    /// Said first, and once.
    Welcome(Welcome),
    /// To be delivered; it has its place in its stream.
    Publication {
        /// What it takes of the bound of all. To be given back by [`ToParent::Delivered`].
        places: u32,
        /// What to deliver.
        publication: Publication,
    },
    /// To be sent away.
    Disconnect(RemoteDisconnect),
    /// What was given to the parent under this number is handed to all children.
    Taken(u64),
    /// The answer to [`ToParent::IsFollowed`].
    Followed {
        /// Who asked.
        key: SlotKey,
        /// How often this child has been heard to say `Follow`.
        follows: u64,
    },
    /// The answer to [`ToParent::Ask`]. What it covers was said before.
    Answer {
        /// Who asked.
        key: SlotKey,
        /// What is known.
        result: Result<BrokerReply, BrokerError>,
    },
    /// The answer to [`ToParent::WhoIsPresent`].
    Present {
        /// Of the question.
        number: u64,
        /// JSON text.
        result: Result<Box<str>, BrokerError>,
    },
    /// A session is to be given up to whoever shows the ticket.
    Yield {
        /// The shard.
        shard: u16,
        /// The slot.
        index: u32,
        /// By what right.
        ticket: ResumeTicket,
    },
    /// A request of whatever kind to a child. Answered by [`ToParent::Reply`].
    Request(Request),
    /// The answer to [`ToParent::Request`].
    Reply(Reply),
}

/// A request that is nothing to the relay: control and observation.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Counts those of one direction.
    pub number: u64,
    /// What is wanted.
    pub name: Box<str>,
    /// In whichever form the two agree on.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// The answer to a [`Request`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Of the request.
    pub number: u64,
    /// In whichever form the two agree on.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// One of the two directions.
pub trait Direction: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// A request in this direction.
    fn request(request: Request) -> Self;

    /// An answer in this direction.
    fn reply(reply: Reply) -> Self;

    /// Tells that deliveries are done, in the direction in which that is told.
    fn delivered(places: u32) -> Option<Self>;

    /// Takes requests and replies out.
    fn sort(self) -> Sorted<Self>;
}

/// What somebody said, by whose business it is.
#[derive(Debug)]
pub enum Sorted<M> {
    /// To be answered.
    Request(Request),
    /// For who asked.
    Reply(Reply),
    /// For the relay.
    Other(M),
}

impl Direction for ToParent {
    fn request(request: Request) -> ToParent {
        ToParent::Request(request)
    }

    fn reply(reply: Reply) -> ToParent {
        ToParent::Reply(reply)
    }

    fn delivered(places: u32) -> Option<ToParent> {
        Some(ToParent::Delivered(places))
    }

    fn sort(self) -> Sorted<ToParent> {
        match self {
            ToParent::Request(request) => Sorted::Request(request),
            ToParent::Reply(reply) => Sorted::Reply(reply),
            other => Sorted::Other(other),
        }
    }
}

impl Direction for ToChild {
    fn request(request: Request) -> ToChild {
        ToChild::Request(request)
    }

    fn reply(reply: Reply) -> ToChild {
        ToChild::Reply(reply)
    }

    fn delivered(_: u32) -> Option<ToChild> {
        None
    }

    fn sort(self) -> Sorted<ToChild> {
        match self {
            ToChild::Request(request) => Sorted::Request(request),
            ToChild::Reply(reply) => Sorted::Reply(reply),
            other => Sorted::Other(other),
        }
    }
}
