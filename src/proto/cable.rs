//! The Action Cable language: what clients say and what they are told, as JSON
//! (`contracts/action-cable.md` sections 2 and 3, `contracts/action-cable-extended.md` sections 3 to 7).
//!
//! [`parse`] reads one client message; the functions of [`write`] append one server message each. All speak
//! payloads: frames are put around them elsewhere. An identifier is opaque here: it is decoded from the
//! command's JSON string, compared and echoed, never looked into.

mod command;
pub mod write;

pub use command::{BadCommand, Command, HistoryRequest, Position, PresenceRequest, parse};
