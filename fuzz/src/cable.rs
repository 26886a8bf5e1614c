//! Whatever a client or an app says, it is read or refused; what was read holds no more than was sent, and everything
//! that we send on because of it is JSON.

use cableway::model::{NodeId, Publication};
use cableway::proto::Language;
use cableway::proto::cable::{self, BadCommand, Command};
use cableway::proto::publication::between_nodes::{self, NodeMessage, Origin};
use cableway::proto::publication::{self, Incoming};
use serde_json::value::RawValue;

/// How far a bounded quote of the peer goes, in characters.
const QUOTE_CHARS_MAX: usize = 32;

/// What was made of some bytes, by each reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// A client would have been understood.
    pub as_command: bool,
    /// An app would have been understood.
    pub as_publication: bool,
    /// Another node would have been understood.
    pub as_node_message: bool,
}

/// Gives the same bytes to all readers: they differ in whom they trust, not in what may arrive.
pub fn check(data: &[u8]) -> Read {
    Read {
        as_command: check_command(data),
        as_publication: check_publication(data),
        as_node_message: check_node_message(data),
    }
}

fn check_command(data: &[u8]) -> bool {
    let command = match cable::parse(data) {
        Ok(Some(command)) => command,
        Ok(None) => return true,
        Err(BadCommand::UnknownCommand(name)) => {
            assert!(name.chars().count() <= QUOTE_CHARS_MAX);
            return false;
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    match command {
        Command::Ping | Command::Pong => {}
        Command::Message { identifier, data: text } => {
            look_at_identifier(&identifier, data);
            assert!(text.len() <= data.len());
        }
        Command::Whisper { identifier, data: json } => {
            look_at_identifier(&identifier, data);
            look_at_json(json);
        }
        Command::Subscribe { identifier, history, presence } => {
            look_at_identifier(&identifier, data);
            assert!(history.is_none_or(|history| history.since != 0 || !history.streams.is_empty()));
            if let Some(presence) = presence {
                assert!(!presence.id.is_empty());
                presence.info.into_iter().for_each(look_at_json);
            }
        }
        Command::History { identifier, request } => {
            look_at_identifier(&identifier, data);
            assert!(request.since != 0 || !request.streams.is_empty());
            assert!(request.streams.len() <= data.len() / 2, "entries that nobody sent");
        }
        Command::Join { identifier, presence } => {
            look_at_identifier(&identifier, data);
            assert!(!presence.id.is_empty());
            presence.info.into_iter().for_each(look_at_json);
        }
        Command::Unsubscribe { identifier } | Command::Leave { identifier } | Command::Presence { identifier, .. } => {
            look_at_identifier(&identifier, data);
        }
    }
    true
}

/// An identifier comes back to its client in every message about it, so it must survive the way there and back.
fn look_at_identifier(identifier: &str, data: &[u8]) {
    assert!(!identifier.is_empty() && identifier.len() <= data.len());
    let mut out = Vec::new();
    cable::write::confirm_subscription(&mut out, identifier);
    let sent: serde_json::Value = serde_json::from_slice(&out).expect("what we send is JSON");
    assert_eq!(sent["identifier"], *identifier);
}

fn look_at_json(json: &str) {
    serde_json::from_str::<&RawValue>(json).expect("it goes into other messages as it is");
}

/// What is no UTF-8 is replaced: at worst each byte by three.
const REPLACED_FACTOR: usize = 3;

fn check_publications(publications: &[Publication], data: &[u8]) {
    let bytes: usize = publications.iter().map(|publication| publication.stream.len()).sum();
    assert!(bytes <= REPLACED_FACTOR * data.len(), "streams that nobody sent");
    for publication in publications {
        assert!(!publication.stream.is_empty());
        look_at_json(&publication.message);
        let mut out = Vec::new();
        cable::BASE.write_publication(&mut out, "\"i\n", publication);
        look_at_json(std::str::from_utf8(&out).expect("a text frame holds it"));
    }
}

fn check_publication(data: &[u8]) -> bool {
    match publication::parse(data) {
        Ok(Incoming::Publications(publications)) => {
            assert!(!publications.is_empty());
            check_publications(&publications, data);
            true
        }
        Ok(Incoming::PartOfBatch { publications, refused, .. }) => {
            assert!(refused > 0);
            check_publications(&publications, data);
            true
        }
        Ok(Incoming::Disconnect(disconnect)) => {
            assert!(disconnect.identifiers.len() <= REPLACED_FACTOR * data.len());
            true
        }
        Ok(Incoming::UnknownCommand(name)) => {
            assert!(name.chars().count() <= QUOTE_CHARS_MAX);
            false
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn check_node_message(data: &[u8]) -> bool {
    match between_nodes::parse(data) {
        Ok(NodeMessage::Publication(publication, origin)) => {
            check_publications(std::slice::from_ref(&publication), data);
            let origin = origin.unwrap_or_else(|| Origin { node: NodeId::from_bits(7), seq: 1 });
            let told = between_nodes::write(&publication, origin);
            let Ok(NodeMessage::Publication(read, from)) = between_nodes::parse(told.as_bytes()) else {
                panic!("the next node does not understand {told}");
            };
            assert_eq!((read, from), (publication, Some(origin)), "the next node understands something else");
            true
        }
        Ok(NodeMessage::Disconnect(disconnect, _)) => {
            assert!(disconnect.identifiers.len() <= REPLACED_FACTOR * data.len());
            true
        }
        Ok(NodeMessage::Command { name, payload, .. }) => {
            assert!(name.chars().count() <= QUOTE_CHARS_MAX);
            look_at_json(&payload);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
