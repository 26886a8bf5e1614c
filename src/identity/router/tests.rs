use super::*;
use crate::identity::sign_stream;

const TOKEN: &str = "InJvb206NyI=--d6c2f92b9915c1e511e0fc1001d7ad71a510372dbe1112481eb67e5d20e1b455";

fn secret() -> Option<Secret> {
    Secret::new("s3cr3t")
}

fn router(change: impl FnOnce(&mut StreamSettings)) -> StreamRouter {
    let mut settings = StreamSettings::default();
    change(&mut settings);
    StreamRouter::new(settings)
}

fn stream(name: &str, whisper: bool, presence: bool) -> Routed {
    Routed::Stream { name: name.into(), whisper, presence }
}

fn signed(token: &str) -> String {
    format!(r#"{{"channel":"$pubsub","signed_stream_name":"{token}"}}"#)
}

const PUBLIC: &str = r#"{"channel":"$pubsub","stream_name":"room:7"}"#;

#[test]
fn what_is_not_our_channel_is_the_apps() {
    let router = router(|s| (s.secret, s.public) = (secret(), true));
    for identifier in [
        "",
        "RoomChannel",
        "null",
        "[]",
        r#""$pubsub""#,
        r#"["$pubsub"]"#,
        "{}",
        r#"{"channel":"RoomChannel","id":7}"#,
        r#"{"channel":"RoomChannel","stream_name":{"a":1},"signed_stream_name":7,"identifier":[]}"#,
        r#"{"channel":null}"#,
        r#"{"channel":["$pubsub"],"stream_name":"a"}"#,
        r#"{"channel":"$PUBSUB","stream_name":"a"}"#,
        r#"{"channel":"$pubsub","stream_name":"a"} x"#,
        r#"{"channel":"$pubsub","stream_name":"a""#,
    ] {
        assert_eq!(router.route(identifier), Routed::Backend, "{identifier}");
    }
}

#[test]
fn a_signed_name_is_followed() {
    let identifier = signed(TOKEN);
    assert_eq!(router(|s| s.secret = secret()).route(&identifier), stream("room:7", false, true));
    let changed = router(|s| (s.secret, s.whisper, s.presence) = (secret(), true, false));
    assert_eq!(changed.route(&identifier), stream("room:7", true, false));
    assert_eq!(changed.route(&identifier.replace("$pubsub", "\\u0024pubsub")), stream("room:7", true, false));
}

#[test]
fn a_public_name_is_followed_only_where_that_is_allowed() {
    assert_eq!(router(|s| s.public = true).route(PUBLIC), stream("room:7", true, true));
    let quiet = router(|s| (s.public, s.whisper, s.presence) = (true, false, false));
    assert_eq!(quiet.route(PUBLIC), stream("room:7", true, true), "the switches are for signed names");
    assert_eq!(router(|s| s.secret = secret()).route(PUBLIC), Routed::Rejected);
    assert_eq!(router(|_| ()).route(PUBLIC), Routed::Rejected);
}

#[test]
fn without_a_secret_every_signed_name_is_refused() {
    // HMAC-SHA256 of the encoded name with an empty key, which a careless check would accept.
    let empty_key = "InJvb206NyI=--1b7675cc08aa9a9813785cb542d15c259478475bb69c3f1c5f7074f13fcbc2a8";
    for public in [false, true] {
        let router = router(|s| s.public = public);
        for token in [TOKEN, empty_key] {
            assert_eq!(router.route(&signed(token)), Routed::Rejected);
        }
    }
}

#[test]
fn the_signed_name_wins_even_when_it_is_bad() {
    let router = router(|s| (s.secret, s.public) = (secret(), true));
    let both = |token: &str| format!(r#"{{"channel":"$pubsub","stream_name":"other","signed_stream_name":{token}}}"#);
    assert_eq!(router.route(&both(&format!("\"{TOKEN}\""))), stream("room:7", false, true));
    for bad in ["\"x\"", "7", "{}", "[]"] {
        assert_eq!(router.route(&both(bad)), Routed::Rejected, "{bad}");
    }
    for none in ["\"\"", "null"] {
        assert_eq!(router.route(&both(none)), stream("other", true, true), "{none}");
    }
}

#[test]
fn a_channel_of_ours_without_a_name_is_refused() {
    let router = router(|s| {
        (s.secret, s.public, s.turbo, s.cable_ready) = (secret(), true, secret(), secret());
    });
    for params in ["", r#","stream_name":"""#, r#","stream_name":7"#, r#","stream_name":null,"signed_stream_name":"""#]
    {
        for channel in ["$pubsub", "Turbo::StreamsChannel", "CableReady::Stream"] {
            let identifier = format!(r#"{{"channel":"{channel}"{params}}}"#);
            assert_eq!(router.route(&identifier), Routed::Rejected, "{identifier}");
        }
    }
}

#[test]
fn names_of_internal_channels_are_refused() {
    let router = router(|s| (s.secret, s.public, s.turbo) = (secret(), true, secret()));
    for name in ["__anycable__", "__anycable_internal__"] {
        let token = sign_stream(&secret().unwrap(), name);
        assert_eq!(router.route(&PUBLIC.replace("room:7", name)), Routed::Rejected);
        assert_eq!(router.route(&signed(&token)), Routed::Rejected);
        assert_eq!(router.route(&signed(&token).replace("$pubsub", "Turbo::StreamsChannel")), Routed::Rejected);
    }
}

#[test]
fn turbo_and_cable_ready_have_their_own_secrets_and_no_extras() {
    let turbo = Secret::new("turbo").unwrap();
    let identifier = |token: &str| signed(token).replace("$pubsub", "Turbo::StreamsChannel");
    let cable_ready = format!(r#"{{"channel":"CableReady::Stream","identifier":"{TOKEN}"}}"#);
    let router = router(|s| {
        (s.secret, s.turbo, s.cable_ready) = (secret(), Some(turbo.clone()), secret());
        (s.public, s.whisper, s.presence) = (true, true, true);
    });
    assert_eq!(router.route(&identifier(&sign_stream(&turbo, "feed"))), stream("feed", false, false));
    assert_eq!(router.route(&identifier(TOKEN)), Routed::Rejected);
    assert_eq!(router.route(&cable_ready), stream("room:7", false, false));
    assert_eq!(router.route(&cable_ready.replace("--d", "--e")), Routed::Rejected);
    assert_eq!(router.channels(), ["$pubsub", "Turbo::StreamsChannel", "CableReady::Stream"]);
}

#[test]
fn turbo_and_cable_ready_go_to_the_app_where_they_are_off() {
    let router = router(|s| (s.secret, s.public) = (secret(), true));
    for channel in ["Turbo::StreamsChannel", "CableReady::Stream"] {
        assert_eq!(router.route(&signed(TOKEN).replace("$pubsub", channel)), Routed::Backend);
    }
    assert_eq!(router.channels(), ["$pubsub"]);
}
