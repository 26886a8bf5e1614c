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
}

/// What a session asks of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The app's answer, or why there is none.
    App(Result<AppReply, CallError>),
    /// The broker's answer, or why there is none.
    Broker(Result<BrokerReply, BrokerError>),
}

/// The broker's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum BrokerReply {
    /// To [`BrokerQuestion::History`]: what was missed of each stream that has a history.
    History(Vec<Missed>),
    /// To [`BrokerQuestion::Present`]: the message for the client, JSON text.
    Present(Vec<u8>),
    /// To [`BrokerQuestion::Resume`]: the session, or nothing if there is none that this client may have.
    Resumed(Option<Box<SavedSession>>),
}

/// What a subscription missed of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The stream.
    pub stream: Box<str>,
    /// Everything up to this offset is either among the publications or was not asked for.
    pub head: u64,
    /// In order.
    pub publications: Vec<Publication>,
}

/// Why the broker has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
