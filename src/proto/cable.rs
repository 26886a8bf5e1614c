//! The Action Cable language: what clients say and what they are told, as JSON
//! (`contracts/action-cable.md` sections 2 and 3, `contracts/action-cable-extended.md` sections 3 to 7).
//!
//! [`Cable`] is the [`Language`] of both versions. [`parse`] reads one client message; the functions of [`mod@write`]
//! append one server message each. All speak payloads: frames are put around them elsewhere. An identifier is opaque
//! here: it is decoded from the command's JSON string, compared and echoed, never looked into.

mod command;
pub mod write;

use std::borrow::Cow;

use crate::model::{Disconnect, Publication, Sid};

use super::dialect::Language;
use super::frame::Message;
use super::json::without_lone_surrogates;

pub use command::{BadCommand, Command, HistoryRequest, Position, PresenceRequest, parse};

/// Action Cable as a dialect.
#[derive(Debug)]
pub struct Cable {
    subprotocol: &'static str,
    is_extended: bool,
}

/// What every Action Cable client speaks.
pub const BASE: Cable = Cable { subprotocol: "actioncable-v1-json", is_extended: false };

/// AnyCable's extension.
pub const EXTENDED: Cable = Cable { subprotocol: "actioncable-v1-ext-json", is_extended: true };

impl Language for Cable {
    fn subprotocol(&self) -> &'static str {
        self.subprotocol
    }

    fn answers_pings(&self) -> bool {
        self.is_extended
    }

    fn resumes(&self) -> bool {
        self.is_extended
    }

    fn parse<'a>(&self, message: &'a Message<'_>) -> Result<Option<Command<'a>>, BadCommand> {
        match message {
            Message::Text(text) => command::parse_text(text),
            // Nobody sends these; what is JSON is understood all the same.
            Message::Binary(bytes) => parse(bytes),
        }
    }

    fn mend(&self, message: &Message<'_>, bad: &BadCommand) -> Option<Message<'static>> {
        match (bad, message) {
            (BadCommand::Unreadable(_) | BadCommand::DataNotText, Message::Text(text)) => {
                match without_lone_surrogates(text) {
                    Cow::Owned(clean) => Some(Message::Text(Cow::Owned(clean))),
                    Cow::Borrowed(_) => None,
                }
            }
            _ => None,
        }
    }

    fn write_welcome(&self, out: &mut Vec<u8>, sid: Sid, resume_token: Option<&str>) {
        write::welcome(out, sid, resume_token);
    }

    fn add_resume_token(&self, message: &mut String, token: &str) {
        write::add_resume_token(message, token);
    }

    fn write_resumed(&self, out: &mut Vec<u8>, sid: Sid, resume_token: Option<&str>, identifiers: &[&str]) {
        write::resumed(out, sid, resume_token, identifiers);
    }

    fn write_ping(&self, out: &mut Vec<u8>, timestamp: u64) {
        write::ping(out, timestamp);
    }

    fn write_pong(&self, out: &mut Vec<u8>) {
        write::pong(out);
    }

    fn write_disconnect(&self, out: &mut Vec<u8>, disconnect: Disconnect) {
        write::disconnect(out, disconnect.reason, disconnect.reconnect);
    }

    fn write_confirm(&self, out: &mut Vec<u8>, identifier: &str) {
        write::confirm_subscription(out, identifier);
    }

    fn write_reject(&self, out: &mut Vec<u8>, identifier: &str) {
        write::reject_subscription(out, identifier);
    }

    fn write_confirm_history(&self, out: &mut Vec<u8>, identifier: &str) {
        write::confirm_history(out, identifier);
    }

    fn write_reject_history(&self, out: &mut Vec<u8>, identifier: &str) {
        write::reject_history(out, identifier);
    }

    fn write_presence(&self, out: &mut Vec<u8>, identifier: &str, message: &[u8]) {
        write::presence(out, identifier, message);
    }

    fn write_presence_error(&self, out: &mut Vec<u8>, identifier: &str) {
        write::presence_error(out, identifier);
    }

    fn write_publication_head(&self, out: &mut Vec<u8>, identifier: &str, publication: &Publication) {
        write::publication_head(out, identifier, publication);
    }

    fn write_publication_rest(&self, out: &mut Vec<u8>, publication: &Publication) {
        write::publication_rest(out, publication);
    }
}
