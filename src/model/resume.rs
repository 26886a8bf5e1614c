//! A session that waits for its client to come back (`contracts/action-cable-extended.md` section 2).

use serde::{Deserialize, Serialize};

use super::{Sid, State, Topic};

/// By whom a client was let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// Nobody: it is not in.
    #[default]
    No,
    /// By a token that it showed.
    Token,
    /// By the app.
    App,
    /// By the rule that everybody is let in.
    Open,
}

/// What a client shows to go on with a session that it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeTicket {
    /// Its session's id.
    pub sid: Sid,
    /// The connection identifiers of the token that it shows now, if it shows one.
    pub identifiers: Option<Box<str>>,
}

impl ResumeTicket {
    /// Whether whoever shows it is let in, now as then, in the way that made the session: by a token for the same
    /// identifiers; or without one, where the session's id is all that the app or we could ask for.
    pub fn opens(&self, admission: Admission, session: &str) -> bool {
        match (admission, &self.identifiers) {
            (Admission::Token, Some(identifiers)) => **identifiers == *session,
            (Admission::App | Admission::Open, None) => true,
            _ => false,
        }
    }
}

/// All of a session that its client wants back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSession {
    /// The id that the session had.
    pub sid: Sid,
    /// When it was saved, in seconds on the broker's clock.
    pub saved_at: u32,
    /// The connection identifiers.
    pub identifiers: Box<str>,
    /// By whom it was let in.
    pub admission: Admission,
    /// The app's state for the connection.
    pub cstate: State,
    /// In their order.
    pub subscriptions: Vec<SavedSubscription>,
    /// The app has heard of this session.
    pub disconnectable: bool,
}

/// One subscription of a [`SavedSession`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSubscription {
    /// The identifier with each of its streams; one with an empty stream while it has none.
    pub topics: Vec<Topic>,
    /// The app's state for the channel.
    pub istate: State,
    /// Answered by this server and not by the app; then whether its subscribers may whisper, and have presence.
    pub here: Option<(bool, bool)>,
}

impl SavedSession {
    /// What it takes, in bytes of memory.
    pub fn bytes(&self) -> usize {
        let of_subscription = |subscription: &SavedSubscription| {
            let topics: usize = subscription.topics.iter().map(|topic| size_of::<Topic>() + topic.bytes()).sum();
            size_of::<SavedSubscription>() + topics + subscription.istate.bytes()
        };
        let subscriptions: usize = self.subscriptions.iter().map(of_subscription).sum();
        size_of::<SavedSession>() + self.identifiers.len() + self.cstate.bytes() + subscriptions
    }

    /// Whether whoever shows this ticket may have it.
    pub fn may_be_resumed_by(&self, ticket: &ResumeTicket) -> bool {
        ticket.opens(self.admission, &self.identifiers)
    }
}
