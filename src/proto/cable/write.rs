//! What clients are told. Each function appends one whole message to `out`; keys come in the order of
//! `contracts/action-cable.md` section 2.

use crate::model::{DisconnectReason, Publication, Sid};
use crate::proto::json::push_string;

/// The first message of a session that this server authenticated itself.
pub fn welcome(out: &mut Vec<u8>, sid: Sid, resume_token: Option<&str>) {
    welcome_head(out, sid, resume_token);
    out.push(b'}');
}

/// The first message of a session that goes on with an earlier one. An empty list is written, too: without one AnyCable's
/// client takes all that it ever subscribed to for restored, and waits for messages of subscriptions that do not stand.
pub fn resumed(out: &mut Vec<u8>, sid: Sid, resume_token: Option<&str>, identifiers: &[&str]) {
    welcome_head(out, sid, resume_token);
    out.extend_from_slice(br#","restored":true,"restored_ids":["#);
    for (at, identifier) in identifiers.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        push_string(out, identifier);
    }
    out.extend_from_slice(b"]}");
}

fn welcome_head(out: &mut Vec<u8>, sid: Sid, resume_token: Option<&str>) {
    out.extend_from_slice(br#"{"type":"welcome","sid":""#);
    out.extend_from_slice(&sid.ascii());
    out.push(b'"');
    if let Some(token) = resume_token {
        out.extend_from_slice(RESUME_TOKEN.as_bytes());
        out.extend_from_slice(token.as_bytes());
        out.push(b'"');
    }
}

/// Comes before a token, whose characters need no escapes.
const RESUME_TOKEN: &str = r#","resume_token":""#;

/// Adds the token to a welcome as an app's library writes it: an object that begins with its type. Anything else stays
/// as it is, and its client comes back by the session's id or not at all.
pub fn add_resume_token(message: &mut String, token: &str) {
    if message.starts_with(r#"{"type":"welcome""#) && message.ends_with('}') {
        message.pop();
        message.push_str(RESUME_TOKEN);
        message.push_str(token);
        message.push_str("\"}");
    }
}

/// A ping with the time now, in the session's unit.
pub fn ping(out: &mut Vec<u8>, timestamp: u64) {
    out.extend_from_slice(br#"{"type":"ping","message":"#);
    out.extend_from_slice(timestamp.to_string().as_bytes());
    out.push(b'}');
}

/// The answer to the `ping` command.
pub fn pong(out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"type":"pong"}"#);
}

/// Says why this server is about to close, and whether to come back.
pub fn disconnect(out: &mut Vec<u8>, reason: DisconnectReason, reconnect: bool) {
    out.extend_from_slice(br#"{"type":"disconnect","reason":""#);
    out.extend_from_slice(reason.as_str().as_bytes());
    out.extend_from_slice(if reconnect { br#"","reconnect":true}"# } else { br#"","reconnect":false}"# });
}

/// The subscription stands.
pub fn confirm_subscription(out: &mut Vec<u8>, identifier: &str) {
    about_identifier(out, "confirm_subscription", identifier);
}

/// The subscription is refused.
pub fn reject_subscription(out: &mut Vec<u8>, identifier: &str) {
    about_identifier(out, "reject_subscription", identifier);
}

/// All missed messages have been sent.
pub fn confirm_history(out: &mut Vec<u8>, identifier: &str) {
    about_identifier(out, "confirm_history", identifier);
}

/// The missed messages cannot be sent.
pub fn reject_history(out: &mut Vec<u8>, identifier: &str) {
    about_identifier(out, "reject_history", identifier);
}

/// The answer to the `presence` command: a JSON text.
pub fn presence(out: &mut Vec<u8>, identifier: &str, message: &[u8]) {
    out.extend_from_slice(br#"{"type":"presence","identifier":"#);
    push_string(out, identifier);
    out.extend_from_slice(br#","message":"#);
    out.extend_from_slice(message);
    out.push(b'}');
}

/// The same where presence is not kept.
pub fn presence_error(out: &mut Vec<u8>, identifier: &str) {
    presence(out, identifier, br#"{"type":"error","total":0}"#);
}

/// A publication for subscribers under this identifier, up to its message.
pub fn publication_head(out: &mut Vec<u8>, identifier: &str, publication: &Publication) {
    let kind_len = publication.kind.as_deref().map_or(0, |kind| r#""type":"","#.len() + kind.len());
    // Room for some escapes in the identifier.
    out.reserve(r#"{"identifier":"","message":"#.len() + kind_len + identifier.len() + identifier.len() / 4);
    out.push(b'{');
    if let Some(kind) = &publication.kind {
        out.extend_from_slice(br#""type":"#);
        push_string(out, kind);
        out.push(b',');
    }
    out.extend_from_slice(br#""identifier":"#);
    push_string(out, identifier);
    out.extend_from_slice(br#","message":"#);
}

/// What follows [`publication_head`]: the message as it is, its position if it has one, and the end.
pub fn publication_rest(out: &mut Vec<u8>, publication: &Publication) {
    out.reserve(publication.message.len() + 1);
    out.extend_from_slice(publication.message.as_bytes());
    if let Some(position) = &publication.position {
        out.extend_from_slice(br#","stream_id":"#);
        push_string(out, &publication.stream);
        out.extend_from_slice(br#","epoch":"#);
        push_string(out, &position.epoch);
        out.extend_from_slice(br#","offset":"#);
        out.extend_from_slice(position.offset.to_string().as_bytes());
    }
    out.push(b'}');
}

fn about_identifier(out: &mut Vec<u8>, kind: &str, identifier: &str) {
    out.extend_from_slice(br#"{"type":""#);
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(br#"","identifier":"#);
    push_string(out, identifier);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Position;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    const IDENTIFIER: &str = r#"{"channel":"RoomChannel","id":7}"#;

    #[test]
    fn every_message_has_the_bytes_of_the_contract() {
        let sid = Sid::from_bits(0);
        let cases = [
            (written(|out| welcome(out, sid, None)), r#"{"type":"welcome","sid":"AAAAAAAAAAAAAAAAAAAAA"}"#),
            (
                written(|out| welcome(out, sid, Some("t"))),
                r#"{"type":"welcome","sid":"AAAAAAAAAAAAAAAAAAAAA","resume_token":"t"}"#,
            ),
            (
                written(|out| resumed(out, sid, None, &["a", "\""])),
                r#"{"type":"welcome","sid":"AAAAAAAAAAAAAAAAAAAAA","restored":true,"restored_ids":["a","\""]}"#,
            ),
            (
                written(|out| resumed(out, sid, Some("t"), &[])),
                r#"{"type":"welcome","sid":"AAAAAAAAAAAAAAAAAAAAA","resume_token":"t","restored":true,"restored_ids":[]}"#,
            ),
            (written(|out| ping(out, 1_790_000_000)), r#"{"type":"ping","message":1790000000}"#),
            (written(|out| ping(out, u64::MAX)), r#"{"type":"ping","message":18446744073709551615}"#),
            (written(pong), r#"{"type":"pong"}"#),
            (
                written(|out| disconnect(out, DisconnectReason::Remote, false)),
                r#"{"type":"disconnect","reason":"remote","reconnect":false}"#,
            ),
            (
                written(|out| disconnect(out, DisconnectReason::ServerRestart, true)),
                r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#,
            ),
            (
                written(|out| confirm_subscription(out, IDENTIFIER)),
                r#"{"type":"confirm_subscription","identifier":"{\"channel\":\"RoomChannel\",\"id\":7}"}"#,
            ),
            (written(|out| reject_subscription(out, "x")), r#"{"type":"reject_subscription","identifier":"x"}"#),
            (written(|out| confirm_history(out, "x")), r#"{"type":"confirm_history","identifier":"x"}"#),
            (written(|out| reject_history(out, "x")), r#"{"type":"reject_history","identifier":"x"}"#),
            (
                written(|out| presence_error(out, "x")),
                r#"{"type":"presence","identifier":"x","message":{"type":"error","total":0}}"#,
            ),
        ];
        for (got, wanted) in cases {
            assert_eq!(got, wanted);
        }
    }

    fn publication(identifier: &str, sent: &Publication) -> String {
        written(|out| {
            publication_head(out, identifier, sent);
            publication_rest(out, sent);
        })
    }

    #[test]
    fn a_publication_is_spliced_in_raw_and_its_kind_comes_first() {
        let mut sent = Publication::new("s", r#"{"b":1.0,"a":"<é>"}"#);
        assert_eq!(
            publication(IDENTIFIER, &sent),
            r#"{"identifier":"{\"channel\":\"RoomChannel\",\"id\":7}","message":{"b":1.0,"a":"<é>"}}"#
        );
        sent.kind = Some("a\"b".into());
        let wanted = r#"{"type":"a\"b","identifier":"x","message":{"b":1.0,"a":"<é>"}}"#;
        assert_eq!(publication("x", &sent), wanted);
    }

    #[test]
    fn a_position_comes_behind_the_message() {
        let position = Some(Position { epoch: "Xk2p".into(), offset: 41 });
        let sent = Publication { position, ..Publication::new("a\"b", "1") };
        let wanted = r#"{"identifier":"x","message":1,"stream_id":"a\"b","epoch":"Xk2p","offset":41}"#;
        assert_eq!(publication("x", &sent), wanted);
    }

    #[test]
    fn the_apps_welcome_gets_the_token_and_nothing_else_does() {
        for (message, wanted) in [
            (r#"{"type":"welcome","sid":"s"}"#, r#"{"type":"welcome","sid":"s","resume_token":"t"}"#),
            (r#"{"type":"welcome"}"#, r#"{"type":"welcome","resume_token":"t"}"#),
            (r#"{"type":"welcome""#, r#"{"type":"welcome""#),
            (r#"{"type":"confirm_subscription"}"#, r#"{"type":"confirm_subscription"}"#),
            ("", ""),
        ] {
            let mut message = message.to_owned();
            add_resume_token(&mut message, "t");
            assert_eq!(message, wanted);
        }
    }

    #[test]
    fn what_a_json_string_may_not_hold_is_escaped() {
        let nasty: String = (0u8..0x80).map(char::from).chain("é\u{2028}😀".chars()).collect();
        let json = written(|out| push_string(out, &nasty));
        assert!(json.bytes().all(|byte| byte >= 0x20), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), nasty);
        assert_eq!(written(|out| push_string(out, "\"\\\n\u{1}/<>")), r#""\"\\\n\u0001/<>""#);
    }
}
