//! What is said on a connection: a dialect is one value, and one module of `proto` that reads and writes it.
//!
//! Sessions, fan-out and heartbeats speak through [`Language`] and never name a dialect. A new one is a module that
//! implements it, a variant of [`Dialect`] and an arm of [`Dialect::language`]. How its messages travel is the
//! [`Carrier`](super::Carrier)'s business.
//!
//! The echo path has no dialect: nothing is said there, a message goes back as it came.

use serde::{Deserialize, Serialize};

use crate::model::{Disconnect, Publication, Sid};

use super::cable;
use super::frame::Message;

/// What client and server speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Dialect {
    /// `actioncable-v1-json`; also what a client speaks that offered nothing we know.
    #[default]
    Cable,
    /// `actioncable-v1-ext-json`: the same messages and some more, and the client answers pings.
    CableExtended,
}

impl Dialect {
    /// In the order in which they are preferred, whatever the client's order is.
    pub const ALL: [Dialect; 2] = [Dialect::Cable, Dialect::CableExtended];

    /// The module that speaks it.
    pub fn language(self) -> &'static dyn Language {
        match self {
            Dialect::Cable => &cable::BASE,
            Dialect::CableExtended => &cable::EXTENDED,
        }
    }
}

/// How one dialect is read and written. Each `write` function appends one whole message to `out`.
pub trait Language: Sync {
    /// The name in `Sec-WebSocket-Protocol`.
    fn subprotocol(&self) -> &'static str;

    /// Whether a client that is alive answers every ping with a message of its own.
    fn answers_pings(&self) -> bool;

    /// Whether its clients come back to a session that their connection did not outlive.
    fn resumes(&self) -> bool;

    /// Reads one message of a client. `Ok(None)` for one that means nothing and is no fault.
    ///
    /// # Errors
    /// The client's fault: nothing can be done with it. The connection stays open.
    fn parse<'a>(&self, message: &'a Message<'_>) -> Result<Option<cable::Command<'a>>, cable::BadCommand>;

    /// What to read instead of a message that could not be read because of halves of characters, as slicing a JavaScript
    /// string makes them: the same with a replacement character for each. `None` if that was not the reason.
    fn mend(&self, message: &Message<'_>, bad: &cable::BadCommand) -> Option<Message<'static>>;

    /// The first message of a session that this server let in itself, with what its client shows to come back to it.
    fn write_welcome(&self, out: &mut Vec<u8>, sid: Sid, resume_token: Option<&str>);

    /// Puts into the first message of a session that the app let in what its client shows to come back to it. Other
    /// messages stay as they are.
    fn add_resume_token(&self, message: &mut String, token: &str);

    /// The first message of a session that goes on with an earlier one, and what it is subscribed to.
    fn write_resumed(&self, out: &mut Vec<u8>, sid: Sid, resume_token: Option<&str>, identifiers: &[&str]);

    /// A heartbeat with the time now, in the session's unit.
    fn write_ping(&self, out: &mut Vec<u8>, timestamp: u64);

    /// The answer to a client's own ping.
    fn write_pong(&self, out: &mut Vec<u8>);

    /// Says why this server is about to close, and whether to come back.
    fn write_disconnect(&self, out: &mut Vec<u8>, disconnect: Disconnect);

    /// The subscription stands.
    fn write_confirm(&self, out: &mut Vec<u8>, identifier: &str);

    /// The subscription is refused.
    fn write_reject(&self, out: &mut Vec<u8>, identifier: &str);

    /// All missed messages have been sent.
    fn write_confirm_history(&self, out: &mut Vec<u8>, identifier: &str);

    /// The missed messages cannot be sent.
    fn write_reject_history(&self, out: &mut Vec<u8>, identifier: &str);

    /// Who is present: a JSON text.
    fn write_presence(&self, out: &mut Vec<u8>, identifier: &str, message: &[u8]);

    /// Who is present is not known here.
    fn write_presence_error(&self, out: &mut Vec<u8>, identifier: &str);

    /// A publication, for those who are subscribed under this identifier.
    fn write_publication(&self, out: &mut Vec<u8>, identifier: &str, publication: &Publication) {
        self.write_publication_head(out, identifier, publication);
        self.write_publication_rest(out, publication);
    }

    /// What differs from identifier to identifier: all but [`write_publication_rest`](Self::write_publication_rest).
    fn write_publication_head(&self, out: &mut Vec<u8>, identifier: &str, publication: &Publication);

    /// What follows the head, the same for every identifier: the publication's message and what ends it.
    fn write_publication_rest(&self, out: &mut Vec<u8>, publication: &Publication);
}
