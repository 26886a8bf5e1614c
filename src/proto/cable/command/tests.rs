use super::*;

fn ok(json: &str) -> Command<'_> {
    parse(json.as_bytes()).unwrap().unwrap()
}

fn id(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(text)
}

#[test]
fn the_commands_of_the_contract_are_read() {
    let subscribe = r#"{"command":"subscribe","identifier":"{\"channel\":\"RoomChannel\",\"id\":7}"}"#;
    let room = id(r#"{"channel":"RoomChannel","id":7}"#);
    assert_eq!(ok(subscribe), Command::Subscribe { identifier: room.clone(), history: None, presence: None });
    assert_eq!(
        ok(
            r#"{"data":"{\"action\":\"say\"}","identifier":"{\"channel\":\"RoomChannel\",\"id\":7}","command":"message"}"#
        ),
        Command::Message { identifier: room, data: id(r#"{"action":"say"}"#) }
    );
    assert_eq!(ok(r#"{"command":"unsubscribe","identifier":"x"}"#), Command::Unsubscribe { identifier: id("x") });
    assert_eq!(ok(r#"{"command":"ping"}"#), Command::Ping);
    assert_eq!(ok(" {\"command\" : \"pong\" , \"extra\" : [ { } , null ] }\n"), Command::Pong);
    assert_eq!(
        ok(r#"{"command":"leave","identifier":"x","presence":{"id":"42"}}"#),
        Command::Leave { identifier: id("x") }
    );
}

#[test]
fn json_that_breaks_the_parsers_of_others_is_not_passed_on() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let whisper = |data: &str| format!(r#"{{"command":"whisper","identifier":"x","data":{data}}}"#);
    let join = |info: &str| format!(r#"{{"command":"join","identifier":"x","presence":{{"id":"1","info":{info}}}}}"#);
    for message in [whisper, join] {
        for good in [nested(128), r#""\ud83d\ude00""#.into(), r#"{"[[":"\\ud83d"}"#.into()] {
            ok(&message(&good));
        }
        for bad in [nested(129), nested(30_000), r#"{"a":["hi \ud83d"]}"#.into(), r#"{"\udc00":1}"#.into()] {
            let refused = parse(message(&bad).as_bytes()).unwrap_err();
            assert!(matches!(refused, BadCommand::Unfit(..)), "{refused}");
        }
    }
}

#[test]
fn history_is_read_alone_and_with_subscribe() {
    let history = HistoryRequest {
        since: 1_790_000_000,
        streams: vec![(id("room:7"), Position { epoch: id("Xk2p"), offset: 41 }), (id("b"), Position::default())],
    };
    let json = r#"{"since":1790000000,"streams":{"room:7":{"epoch":"Xk2p","offset":41},"b":null},"unknown":0}"#;
    assert_eq!(
        ok(&format!(r#"{{"command":"history","identifier":"x","history":{json}}}"#)),
        Command::History { identifier: id("x"), request: history.clone() }
    );
    assert_eq!(
        ok(&format!(r#"{{"command":"subscribe","identifier":"x","history":{json}}}"#)),
        Command::Subscribe { identifier: id("x"), history: Some(history), presence: None }
    );
    for nothing in ["{}", "null", r#"{"since":0,"streams":{}}"#, r#"{"since":null,"streams":null}"#] {
        let json = format!(r#"{{"command":"history","identifier":"x","history":{nothing}}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(BadCommand::EmptyHistory)), "{nothing}");
        let json = format!(r#"{{"command":"subscribe","identifier":"x","history":{nothing}}}"#);
        assert!(matches!(ok(&json), Command::Subscribe { history: None, .. }), "{nothing}");
    }
}

#[test]
fn presence_commands_say_who_and_what_is_wanted() {
    let ada = PresenceRequest { id: id("42"), info: Some(r#"{"name": "Ada"}"#) };
    let json = r#""presence":{"id":"42","info":{"name": "Ada"}}"#;
    assert_eq!(
        ok(&format!(r#"{{"command":"join","identifier":"x",{json}}}"#)),
        Command::Join { identifier: id("x"), presence: ada.clone() }
    );
    assert_eq!(
        ok(&format!(r#"{{"command":"subscribe","identifier":"x",{json}}}"#)),
        Command::Subscribe { identifier: id("x"), history: None, presence: Some(ada) }
    );
    for anonymous in ["", r#","presence":null"#, r#","presence":{"info":1}"#, r#","presence":{"id":""}"#] {
        let json = format!(r#"{{"command":"join","identifier":"x"{anonymous}}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(BadCommand::NoPresenceId)), "{anonymous}");
    }
    let cases =
        [("", true), (r#","data":{}"#, true), (r#","data":"x""#, true), (r#","data":{"return_records":false}"#, false)];
    for (data, return_records) in cases {
        let json = format!(r#"{{"command":"presence","identifier":"x"{data}}}"#);
        assert_eq!(ok(&json), Command::Presence { identifier: id("x"), return_records });
    }
}

#[test]
fn a_whisper_carries_any_json_as_it_was_written() {
    for (data, wanted) in [
        (r#","data":{"event" : "typing"}"#, r#"{"event" : "typing"}"#),
        (r#","data":12345678901234567890"#, "12345678901234567890"),
        (r#","data":"a\nb""#, r#""a\nb""#),
        (r#","data":null"#, "null"),
        ("", "null"),
    ] {
        let json = format!(r#"{{"command":"whisper","identifier":"x"{data}}}"#);
        assert_eq!(ok(&json), Command::Whisper { identifier: id("x"), data: wanted });
    }
}

#[test]
fn json_null_is_ignored() {
    assert_eq!(parse(b" null ").unwrap(), None);
}

#[test]
fn what_is_not_one_object_is_unreadable() {
    for bytes in [
        &b""[..],
        b" ",
        b"{",
        b"[]",
        br#"["subscribe","x"]"#,
        b"\"subscribe\"",
        b"7",
        b"true",
        br#"{"command":"ping"} {}"#,
        br#"{"command":"ping"}x"#,
        br#"{"command":"ping",}"#,
        br#"{"command":7}"#,
        br#"{"command":["ping"]}"#,
        br#"{"command":"subscribe","identifier":{"channel":"x"}}"#,
        br#"{"command":"subscribe","identifier":"x","history":[1]}"#,
        br#"{"command":"subscribe","identifier":"x","history":{"since":"1"}}"#,
        br#"{"command":"subscribe","identifier":"x","history":{"streams":{"a":{"offset":-1}}}}"#,
        br#"{"command":"join","identifier":"x","presence":"42"}"#,
        br#"{"command":"join","identifier":"x","presence":{"id":42}}"#,
        b"{\"command\":\"ping\",\"identifier\":\"\xff\"}",
        b"{\"command\":\"whisper\",\"identifier\":\"x\",\"data\":\"\xff\"}",
        b"{\"command\":\"ping\",\"identifier\":\"\n\"}",
        br#"{"command":"subscribe","identifier":"\ud800"}"#,
        br#"{"command":"message","identifier":"x","data":"\ud800"}"#,
    ] {
        let text = String::from_utf8_lossy(bytes);
        assert!(matches!(parse(bytes), Err(BadCommand::Unreadable(_))), "{text}: {:?}", parse(bytes));
    }
}

#[test]
fn a_command_must_be_known_and_complete() {
    for json in ["{}", r#"{"command":null}"#, r#"{"command":""}"#, r#"{"COMMAND":"ping"}"#] {
        assert!(matches!(parse(json.as_bytes()), Err(BadCommand::NoCommand)), "{json}");
    }
    let unknown = format!(r#"{{"command":"{}"}}"#, "é".repeat(1000));
    match parse(unknown.as_bytes()) {
        Err(BadCommand::UnknownCommand(name)) => assert_eq!(name, "é".repeat(UNKNOWN_NAME_CHARS)),
        other => panic!("{other:?}"),
    }
    for name in ["subscribe", "unsubscribe", "message", "history", "whisper", "join", "leave", "presence"] {
        for identifier in ["", r#","identifier":null"#, r#","identifier":"""#] {
            let json = format!(r#"{{"command":"{name}","data":"","history":{{"since":1}}{identifier}}}"#);
            assert!(matches!(parse(json.as_bytes()), Err(BadCommand::NoIdentifier(n)) if n == name), "{json}");
        }
    }
    for data in ["", r#","data":null"#, r#","data":{"a":[1,{}]}"#, r#","data":7"#, r#","data":-1.5"#, r#","data":true"#]
    {
        for json in [
            format!(r#"{{"command":"message","identifier":"x"{data}}}"#),
            format!(r#"{{"identifier":"x"{data},"command":"message"}}"#),
        ] {
            assert!(matches!(parse(json.as_bytes()), Err(BadCommand::DataNotText)), "{json}");
        }
    }
}

#[test]
fn texts_without_escapes_are_borrowed() {
    let Command::Message { identifier, data } = ok(r#"{"command":"message","identifier":"x","data":"plain"}"#) else {
        panic!("not a message")
    };
    assert!(matches!((identifier, data), (Cow::Borrowed(_), Cow::Borrowed(_))));
}

#[test]
fn of_two_equal_keys_the_last_counts() {
    assert_eq!(
        ok(r#"{"command":"ping","command":"unsubscribe","identifier":"a","identifier":"b"}"#),
        Command::Unsubscribe { identifier: id("b") }
    );
}

#[test]
fn nesting_as_deep_as_a_message_allows_does_not_overflow_the_stack() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(1 << 18), close.repeat(1 << 18));
    for nested in [deep("[", "]"), deep(r#"{"a":"#, "}").replace(":}", ":1}")] {
        let ignored = format!(r#"{{"command":"pong","x":{nested}}}"#);
        assert_eq!(ok(&ignored), Command::Pong);
        let whisper = format!(r#"{{"command":"whisper","identifier":"x","data":{nested}}}"#);
        assert!(matches!(parse(whisper.as_bytes()), Err(BadCommand::Unfit(..))), "others' stacks count too");
        let options = format!(r#"{{"command":"presence","identifier":"x","data":{nested}}}"#);
        assert!(matches!(ok(&options), Command::Presence { return_records: true, .. }));
        let streams = format!(r#"{{"command":"history","identifier":"x","history":{{"streams":{{"s":{nested}}}}}}}"#);
        assert_eq!(parse(streams.as_bytes()).is_ok(), nested.starts_with('{'), "an array is no position");
    }
}
