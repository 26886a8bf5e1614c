//! Several processes as one server: what the parent and its children say to each other beside publications.
//!
//! A child that is asked something about the server asks the parent, which asks all children, each within [`PATIENCE`], and the
//! child that was asked adds up what they say. The parent knows no HTTP and adds up nothing.

mod share;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Carried;
use crate::telemetry::Parts;

use super::{Understood, Upgraded};

pub(super) use share::{share, too_many_for};

/// How long the other processes may take to say what is asked of the server. One that takes longer is named as silent.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What a child is given on its standard input.
#[derive(Serialize, Deserialize)]
pub struct Terms {
    /// Its share of the configuration, with ports that are chosen.
    pub config: Carried,
    /// In every line of the log.
    pub node_id: String,
    /// What was dealt out to it of `--max-conn`, if that is not its share.
    #[serde(default)]
    pub room: Option<u64>,
}

/// What the parent asks of a child, and a child of all through the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// Whether it is there. Answered with nothing.
    Alive,
    /// Whether everything in it turns. Answered by [`Turning`].
    Turns {
        /// How long a shard may take.
        patience: Duration,
    },
    /// Answered by [`Counted`].
    Metrics,
    /// Answered by a list of [`NamedCheck`]s.
    Checks,
    /// `/debug/closes` with this query. Answered by `look::Rows`.
    Closes(String),
    /// `/debug/connections` with this query. Answered by `look::Rows`.
    Connections(String),
}

/// What the parent wants of one child.
#[derive(Serialize, Deserialize)]
pub(super) enum Order {
    /// To answer.
    Answer(Question),
    /// To take over what can be of this configuration. Answered by a `Result<(), String>`.
    Reload(Carried),
    /// To have room for so many clients from now on. Answered by how many it has then; one of an older version does not say.
    Room(u64),
    /// To hand over to the process whose descriptors were sent before, or to see whether it could. Answered by a
    /// `Result<Succeeded, String>`.
    Upgrade {
        /// Only as far as nothing changes.
        only_checks: bool,
    },
    /// To log what there is to say of the whole server at its start. Answered with nothing, at once.
    Tell,
}

/// What a hand-over to another process, or a look at that, came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Succeeded {
    /// The version of the new process.
    pub version: String,
    /// Connections that it has now.
    pub connections: usize,
    /// Bytes of state, sockets not counted.
    pub state_bytes: usize,
    /// From when the first shard stopped until the new process served.
    pub pause: Duration,
}

impl From<Upgraded> for Succeeded {
    fn from(Upgraded { version, connections, state_bytes, pause, .. }: Upgraded) -> Succeeded {
        Succeeded { version, connections, state_bytes, pause }
    }
}

impl From<Understood> for Succeeded {
    fn from(Understood { new_version, .. }: Understood) -> Succeeded {
        Succeeded { version: new_version, ..Succeeded::default() }
    }
}

/// What a child wants of its parent.
#[derive(Serialize, Deserialize)]
pub(super) enum Wish {
    /// It serves from now on. Answered with nothing.
    Serving,
    /// That all are asked. Answered by a list of [`Said`].
    Ask(Question),
}

/// What one process has said.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    /// Its number, or `parent`.
    pub process: String,
    /// What became of the question.
    pub how: How,
    /// The answer, as its kind wants it; of one that is silent or away an older one, if there is any.
    pub answer: Option<serde_bytes::ByteBuf>,
}

/// How somebody has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    /// In time.
    Now,
    /// It runs and has said nothing in time.
    Silent,
    /// It has ended and is being started again, or has not begun to serve yet.
    Away,
}

impl Said {
    /// Reads the answer, whenever it was given.
    pub fn read<T: for<'a> Deserialize<'a>>(&self) -> Option<T> {
        rmp_serde::from_slice(self.answer.as_ref()?).ok()
    }

    /// Reads the answer if it was given now.
    pub fn read_now<T: for<'a> Deserialize<'a>>(&self) -> Option<T> {
        self.read().filter(|_| self.how == How::Now)
    }
}

/// Whether a process turns, and a line's worth about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Turning {
    /// What does not turn.
    pub stuck: Option<String>,
    /// Open WebSockets.
    pub websockets: u64,
    /// How many there may be.
    pub websockets_max: u64,
    /// For how many there is room without `--max-conn`.
    pub room_max: u64,
    /// It is known that the app cannot be called.
    pub app_is_away: bool,
}

/// The metrics of one process.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Counted {
    pub parts: Parts,
    /// Open WebSockets, for what is told of one of them.
    pub websockets: u64,
    /// Memory of the process that came since its boot.
    pub grown_bytes: u64,
    /// Memory of the kernel of the machine that came since then.
    pub kernel_grown_bytes: u64,
}

/// One reason to get new clients or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamedCheck {
    pub name: String,
    pub ok: bool,
}

impl Terms {
    /// Reads them.
    ///
    /// # Errors
    /// They are none.
    pub fn read(text: &[u8]) -> Result<Terms, rmp_serde::decode::Error> {
        rmp_serde::from_slice(text)
    }
}

/// Writes something down for another process. Plain data can always be written into memory.
pub(super) fn write(message: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(message).unwrap_or_default()
}

/// An answer in the making.
pub(super) type Answering = Pin<Box<dyn Future<Output = Vec<u8>> + Send>>;
