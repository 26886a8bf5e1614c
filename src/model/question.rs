//! What a session asks and waits for, whoever answers: one kind of question and one of answer.
//!
//! A session has at most one question open. Its answer comes back to the shard under the session's key, at once or
//! later; one for a session that is gone is dropped and counted.

use serde::{Deserialize, Serialize};

use std::sync::Arc;

use super::rpc::{AppReply, CallError, Request};
use super::{Publication, ResumeTicket, SavedSession, SlotKey};

/// Something a session asks. Its messages wait until the answer is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Of the app: Connect or a command.
    App(Request),
    /// Of the broker.
    Broker(BrokerQuestion),
    /// Of the cluster: does this node get what is published to these streams, on whichever node?
    Followed(Vec<Box<str>>),
}

/// What a session asks of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokerQuestion {
    /// Which publications did a subscription miss?
    History {
        /// The subscription's streams, in their order.
        streams: Vec<Box<str>>,
        /// From where on.
        since: HistoryRequest,
    },
    /// Who is present on a stream?
    Present {
        /// The presence stream.
        stream: Box<str>,
        /// Whether the records are wanted, or only how many there are.
        records: bool,
    },
    /// May this client go on with a session that it had? Whoever has that session gives it up.
    Resume(ResumeTicket),
}

/// From where on a client asks for publications (`contracts/action-cable-extended.md` section 4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRequest {
    /// For streams that are not in `positions`: from this Unix time on, in seconds. 0 means none.
    pub since: i64,
    /// For these streams: after this place.
    pub positions: Vec<(Box<str>, Position)>,
}

/// A place in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The generation of the stream's storage.
    pub epoch: Arc<str>,
    /// 1 is the first message of a stream.
    pub offset: u64,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Who asked.
    pub key: SlotKey,
    /// What was answered.
    pub reply: Reply,
}

impl Answer {
    /// The broker's answer.
    pub fn of_broker(key: SlotKey, result: Result<BrokerReply, BrokerError>) -> Answer {
        Answer { key, reply: Reply::Broker(result) }
    }

    /// The app's answer to a call.
    pub fn of_app(key: SlotKey, result: Result<AppReply, CallError>) -> Answer {
        Answer { key, reply: Reply::App(result) }
    }
}

/// What was answered, by whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The app's answer, or why there is none.
    App(Result<AppReply, CallError>),
    /// The broker's answer, or why there is none.
    Broker(Result<BrokerReply, BrokerError>),
    /// The cluster's answer: it does, or that cannot be waited for any longer.
    Followed,
}

/// The broker's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum BrokerReply {
    /// To [`BrokerQuestion::History`]: what was missed of each stream that has a history.
    History(Vec<Missed>),
    /// To [`BrokerQuestion::Present`]: the message for the client, JSON text.
    Present(#[serde(with = "serde_bytes")] Vec<u8>),
    /// To [`BrokerQuestion::Resume`]: the session, or nothing if there is none that this client may have.
    Resumed(Option<Box<SavedSession>>),
}

/// What a subscription missed of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The stream.
    pub stream: Box<str>,
    /// The client has everything up to this offset; 0 where it did not say.
    pub had: u64,
    /// In order, without a gap.
    pub publications: Vec<Publication>,
}

impl Missed {
    /// How a publication of this stream that waited meanwhile stands to this.
    pub fn side(&self, publication: &Publication) -> MissedSide {
        let offset = |publication: &Publication| publication.position.as_ref().map(|position| position.offset);
        let Some(at) = offset(publication) else { return MissedSide::After };
        let first = self.publications.first().and_then(offset).unwrap_or(u64::MAX);
        let last = self.publications.last().and_then(offset).unwrap_or(0);
        match at {
            _ if at <= self.had || (first..=last).contains(&at) => MissedSide::Within,
            // A client that asks by time is not given what is too old, and what waited is not too old.
            _ if at < first && last > 0 => MissedSide::Before,
            _ => MissedSide::After,
        }
    }
}

/// Where a publication belongs that waited while a client was told what it missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissedSide {
    /// It comes before what was missed.
    Before,
    /// The client has it, or gets it with what it missed.
    Within,
    /// It comes next.
    After,
}

/// Why the broker has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum BrokerError {
    /// There is no broker, or it does not keep this stream.
    #[error("no history is kept")]
    NotKept,
    /// What was asked for is not there any more.
    #[error("the history does not reach back that far")]
    Gone,
    /// The broker cannot be reached.
    #[error("the broker cannot be reached")]
    Unavailable,
}
