//! What a session does to the presence of a stream (`contracts/action-cable-extended.md` section 7).

use serde::{Deserialize, Serialize};

/// A change of who is present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PresenceChange {
    /// The session is there as somebody from now on.
    Join {
        /// Who, within the stream.
        id: Box<str>,
        /// What others are told about them: JSON text.
        info: Option<Box<str>>,
    },
    /// The session is not there any more.
    Leave,
    /// The connection is over. Its client may be back soon, so others are told later.
    Gone,
}
