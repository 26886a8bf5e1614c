//! What a session is at, with what belongs to it: one value.

use serde::{Deserialize, Serialize};

use crate::model::rpc::PresenceReply;
use crate::model::{ChannelIdentifier, CommandKind, HistoryRequest};

use super::hold::Held;
use super::replay::Replay;

/// What makes a session more than idle. Nearly every session is idle, and has no value of this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Activity {
    /// `None`: it takes messages.
    pub doing: Option<Doing>,
    /// Subscriptions that catch up: what is published to them waits.
    pub held: Vec<Held>,
    /// What waits there, in bytes.
    pub held_bytes: usize,
}

/// What a session is at.
///
/// ```text
///          a question is needed             the answer: yes
/// open ------------------------> Connecting ----------------> idle <----> Asking(what)
///   \---> Resuming ---- no such session ---^                   ^
///    \       \------- the session is back --------------------|
///     \---- token or noauth says yes -------------------------^
///    Asking for what was missed ---> Replaying ---> idle
///    any of them --- refused, or ended ---> Over
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Doing {
    /// It is asked whether the client may connect.
    Connecting,
    /// The client wants to go on with a session that it had.
    Resuming {
        /// Who its token says it is, if it showed one.
        identifiers: Option<Box<str>>,
    },
    /// A command of the client waits for an answer.
    Asking(Asked),
    /// The client is being told what it missed.
    Replaying(Box<Replay>),
    /// The client was refused or is gone: nothing more happens.
    Over,
}

/// What is asked, as far as the answer does not say it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Asked {
    /// The app, to carry out a command.
    Command {
        kind: CommandKind,
        identifier: ChannelIdentifier,
        /// What the client wants as soon as it is subscribed.
        then: Wanted,
    },
    /// The broker, for what a subscription missed.
    History { identifier: ChannelIdentifier },
    /// The broker, for who is present.
    Present { identifier: ChannelIdentifier },
    /// The cluster, whether a subscription that stands gets everything.
    Followed {
        identifier: ChannelIdentifier,
        confirmation: Confirmation,
        /// What the client wants when it is confirmed.
        then: Wanted,
    },
}

/// What a client is told when its subscription stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Confirmation {
    /// This server's own words.
    Here,
    /// The app's.
    App(Said),
}

/// What an app says to a client when the rest of its answer is carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    pub transmissions: Vec<String>,
    /// The connection is to be closed.
    pub disconnect: bool,
    pub presence: Option<PresenceReply>,
}

/// What a client asks for together with a subscription.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// To be told what it missed.
    pub history: Option<HistoryRequest>,
    /// To be present: who, and what others are told, as JSON text.
    pub presence: Option<(Box<str>, Option<Box<str>>)>,
}
