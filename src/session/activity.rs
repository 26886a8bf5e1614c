//! What a session is at, with what belongs to it: one value.

use serde::{Deserialize, Serialize};

use crate::model::{ChannelIdentifier, CommandKind};

/// What a session is at. Idle, which nearly every session is, has no value of this: it is the `None` around it.
///
/// ```text
///          a question is needed             the answer: yes
/// open ------------------------> Connecting ----------------> idle <----> Asking(what)
///   \------ token or noauth says yes ---------------------------^
///    any of them --- refused, or ended ---> Over
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Activity {
    /// It is asked whether the client may connect.
    Connecting,
    /// A command of the client waits for an answer.
    Asking(Asked),
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
        /// The client wants to be told what it missed, once it is subscribed.
        history: Option<crate::model::HistoryRequest>,
    },
    /// The broker, for what a subscription missed.
    History { identifier: ChannelIdentifier },
}
