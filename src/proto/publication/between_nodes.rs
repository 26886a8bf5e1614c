//! What nodes of a cluster say to each other (`contracts/pubsub-cluster.md` sections 3 and 4): a publication or a command,
//! one at a time.
//!
//! AnyCable's nodes speak the same. Ours add two keys, which AnyCable passes over: `node`, who published, and `seq`, which
//! counts what that node published to that stream, so that whoever follows the stream notices what it did not get.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::{BadPublication, Body, Incoming, Payload, patient_payload};
use crate::model::{NodeId, Position, Publication, RemoteDisconnect};
use crate::proto::json::{self, UNKNOWN_NAME_CHARS, text_of};

/// What a node said.
#[derive(Debug)]
pub enum NodeMessage {
    /// To be delivered. It has a position only if a node of ours gave it one.
    Publication(Publication, Option<Origin>),
    /// Somebody is to be disconnected, says a node (none: one that is not ours).
    Disconnect(RemoteDisconnect, Option<NodeId>),
    /// Another command. Holds the first characters of its name, and its payload as JSON text.
    Command {
        /// The name.
        name: String,
        /// `null` without one.
        payload: String,
        /// Who says it.
        node: Option<NodeId>,
    },
}

/// Where a publication comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node that took it.
    pub node: NodeId,
    /// Counts what that node published to that stream; the first number is any.
    pub seq: u64,
}

/// Reads what a node said. Time and memory are in proportion to the length of `body`.
///
/// # Errors
/// It is neither a publication nor a command, or a batch, which nodes do not send.
pub fn parse(body: &[u8]) -> Result<NodeMessage, BadPublication> {
    match serde_json::from_slice::<Body<'_>>(body) {
        Ok(Body::One(payload)) => match payload.node_message() {
            Err(_) => parse_patiently(body),
            read => read,
        },
        Ok(Body::Batch(_)) => Err(BadPublication::NoStream),
        Err(_) => parse_patiently(body),
    }
}

/// Reads what holds something that is no Unicode, or no text where one is looked for.
fn parse_patiently(body: &[u8]) -> Result<NodeMessage, BadPublication> {
    let body = String::from_utf8_lossy(body);
    patient_payload(&json::without_lone_surrogates(&body))?.node_message()
}

impl<const DATA_LAST: bool> Payload<'_, DATA_LAST> {
    fn node_message(&self) -> Result<NodeMessage, BadPublication> {
        let node = self.node.and_then(text_of).and_then(|text| NodeId::parse(&text));
        if let Some(stream) = self.stream() {
            // A node of AnyCable counts for itself: its position means nothing to our clients, nor to what we keep.
            let position = node.and_then(|_| self.position());
            let publication = Publication { position, ..self.publication(stream)? };
            let seq = number(self.seq);
            let origin = node.zip(seq).map(|(node, seq)| Origin { node, seq });
            return Ok(NodeMessage::Publication(publication, origin));
        }
        Ok(match self.remote_command()? {
            Incoming::Disconnect(disconnect) => NodeMessage::Disconnect(disconnect, node),
            _ => {
                let name = self.command.and_then(text_of).unwrap_or_default();
                let payload = self.payload.map_or("null", RawValue::get).to_owned();
                NodeMessage::Command { name: name.chars().take(UNKNOWN_NAME_CHARS).collect(), payload, node }
            }
        })
    }

    fn position(&self) -> Option<Position> {
        let epoch = self.epoch.and_then(text_of).filter(|epoch| !epoch.is_empty())?;
        let offset = number(self.offset).filter(|offset| *offset > 0)?;
        Some(Position { epoch: Arc::from(epoch), offset })
    }
}

fn number(raw: Option<&RawValue>) -> Option<u64> {
    raw.and_then(|raw| raw.get().parse().ok())
}

/// The text of a publication for other nodes. `data` is the message's JSON text, which AnyCable splices in as we do.
pub fn write(publication: &Publication, origin: Origin) -> String {
    let mut text = write_to_position(publication);
    let _ = write!(text, ",\"node\":\"{}\",\"seq\":{}}}", origin.node, origin.seq);
    text
}

fn write_to_position(publication: &Publication) -> String {
    let mut text = write_beginning(publication);
    if let Some(Position { epoch, offset }) = &publication.position {
        let _ = write!(text, ",\"offset\":{offset},\"epoch\":{}", json::string(epoch));
    }
    text
}

/// A text that reads as what was read.
pub fn write_again(message: &NodeMessage) -> String {
    match message {
        NodeMessage::Publication(publication, Some(origin)) => write(publication, *origin),
        // A position counts where a node of ours stands beside it, whichever.
        NodeMessage::Publication(publication, None) if publication.position.is_some() => {
            format!("{},\"node\":\"{}\"}}", write_to_position(publication), NodeId::from_bits(0))
        }
        NodeMessage::Publication(publication, None) => write_beginning(publication) + "}",
        NodeMessage::Disconnect(disconnect, node) => disconnect_text(disconnect, *node),
        NodeMessage::Command { name, payload, node } => command_text(name, payload, *node),
    }
}

/// All of it but the position, who sends it, and the brace at the end: for whoever adds those.
pub fn write_beginning(publication: &Publication) -> String {
    let Publication { stream, message, exclude, kind, transient, position: _ } = publication;
    // A message that is quoted as a whole has its own quotes escaped.
    let mut text = String::with_capacity(message.len() + message.len() / 4 + stream.len() + 128);
    let quoted = |text: &str| -> Cow<'static, str> { Cow::Owned(json::string(text)) };
    let _ = write!(text, "{{\"stream\":{},\"data\":{}", quoted(stream), quoted(message));
    let mut meta = Vec::new();
    meta.extend(exclude.map(|sid| format!("\"exclude_socket\":\"{sid}\"")));
    meta.extend(kind.as_ref().map(|kind| format!("\"broadcast_type\":{}", quoted(kind))));
    meta.extend(transient.then(|| "\"transient\":true".to_owned()));
    if !meta.is_empty() {
        let _ = write!(text, ",\"meta\":{{{}}}", meta.join(","));
    }
    text
}

/// The text of a remote disconnect for other nodes.
pub fn write_disconnect(disconnect: &RemoteDisconnect, node: NodeId) -> String {
    disconnect_text(disconnect, Some(node))
}

fn disconnect_text(disconnect: &RemoteDisconnect, node: Option<NodeId>) -> String {
    let RemoteDisconnect { identifiers, reconnect } = disconnect;
    let payload = format!("{{\"identifier\":{},\"reconnect\":{reconnect}}}", json::string(identifiers));
    command_text("disconnect", &payload, node)
}

/// The text of a command for other nodes; `payload` is JSON.
pub fn write_command(name: &str, payload: &str, node: NodeId) -> String {
    command_text(name, payload, Some(node))
}

fn command_text(name: &str, payload: &str, node: Option<NodeId>) -> String {
    let node = node.map(|node| format!(",\"node\":\"{node}\"")).unwrap_or_default();
    format!("{{\"command\":{},\"payload\":{payload}{node}}}", json::string(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Sid;

    const NODE: &str = "0aZ45678";

    fn origin() -> Origin {
        Origin { node: NodeId::parse(NODE).unwrap(), seq: 7 }
    }

    #[test]
    fn a_publication_reads_as_it_was_written() {
        let plain = Publication::new("room:7", r#"{"text":"hi \"you\""}"#);
        assert_eq!(
            write(&plain, origin()),
            r#"{"stream":"room:7","data":"{\"text\":\"hi \\\"you\\\"\"}","node":"0aZ45678","seq":7}"#
        );
        let full = Publication {
            exclude: Some(Sid::from_bits(5)),
            kind: Some("presence".into()),
            transient: true,
            position: Some(Position { epoch: "Xk2p".into(), offset: 41 }),
            ..Publication::new("a \"b\" \u{1F600}\n*>", "\"text\"")
        };
        for publication in [plain, full] {
            let text = write(&publication, origin());
            let NodeMessage::Publication(read, from) = parse(text.as_bytes()).unwrap() else { panic!("{text}") };
            assert_eq!((read, from), (publication, Some(origin())), "{text}");
        }
    }

    #[test]
    fn what_anycable_sends_is_understood() {
        let text = r#"{"stream":"room:7","data":"hi","meta":{"exclude_socket":"x"},"offset":41,"epoch":"Xk2p"}"#;
        let NodeMessage::Publication(read, None) = parse(text.as_bytes()).unwrap() else { panic!() };
        assert_eq!((&*read.message, read.exclude), ("\"hi\"", None));
        assert_eq!(read.position, None, "it counts for itself");
        let text = r#"{"command":"disconnect","payload":{"identifier":"u","reconnect":true}}"#;
        let NodeMessage::Disconnect(read, None) = parse(text.as_bytes()).unwrap() else { panic!() };
        assert_eq!((&*read.identifiers, read.reconnect), ("u", true));
    }

    #[test]
    fn commands_read_as_they_were_written() {
        let disconnect = RemoteDisconnect { identifiers: "{\"user\":\"7\"}".into(), reconnect: false };
        let text = write_disconnect(&disconnect, origin().node);
        let NodeMessage::Disconnect(read, node) = parse(text.as_bytes()).unwrap() else { panic!("{text}") };
        assert_eq!((read, node), (disconnect, Some(origin().node)));
        let text = write_command("yield", r#"{"sid":"x"}"#, origin().node);
        let NodeMessage::Command { name, payload, node } = parse(text.as_bytes()).unwrap() else { panic!("{text}") };
        assert_eq!((&*name, &*payload, node), ("yield", r#"{"sid":"x"}"#, Some(origin().node)));
    }

    #[test]
    fn what_was_read_is_written_again() {
        for text in [
            r#"{"stream":"s","data":"hi","meta":{"broadcast_type":"x"}}"#,
            r#"{"stream":"s","data":"1","offset":4,"epoch":"e","node":"0aZ45678"}"#,
            r#"{"stream":"s","data":"1","offset":4,"epoch":"e","node":"0aZ45678","seq":7}"#,
            r#"{"stream":"s","data":"\ud83d"}"#,
            r#"{"command":"disconnect","payload":{"identifier":"u","reconnect":true}}"#,
            r#"{"command":"disconnect","payload":{"identifier":"u"},"node":"0aZ45678"}"#,
            r#"{"command":"x","payload":[1]}"#,
            r#"{"command":"x","payload":7,"node":"0aZ45678"}"#,
        ] {
            let message = parse(text.as_bytes()).unwrap();
            let again = write_again(&message);
            assert_eq!(format!("{:?}", parse(again.as_bytes()).unwrap()), format!("{message:?}"), "{again}");
        }
    }

    #[test]
    fn bad_keys_of_nodes_are_passed_over_and_bad_messages_are_refused() {
        for keys in [r#""node":7,"seq":"x""#, r#""node":"short","seq":1"#, r#""offset":-1,"epoch":7"#, r#""seq":1.5"#] {
            let text = format!("{{\"stream\":\"s\",\"data\":\"1\",{keys}}}");
            let NodeMessage::Publication(read, None) = parse(text.as_bytes()).unwrap() else { panic!("{text}") };
            assert_eq!(read.position, None, "{text}");
        }
        for text in ["", "7", "[]", r#"[{"stream":"s"}]"#, r#"{"stream":""}"#, r#"{"stream":"s","data":7}"#, "\u{0}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        parse(b"{\"stream\":\"s\",\"data\":\"\xff\"}").expect("what is no Unicode is replaced");
    }
}
