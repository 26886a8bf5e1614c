use super::*;

fn publications(json: &str) -> Vec<Publication> {
    match parse(json.as_bytes()) {
        Ok(Incoming::Publications(publications)) => publications,
        other => panic!("{json}: {other:?}"),
    }
}

fn message_of(data: &str) -> String {
    let body = serde_json::json!({"stream": "s", "data": data}).to_string();
    publications(&body)[0].message.to_string()
}

#[test]
fn a_publication_of_the_contract_is_read() {
    let sid = Sid::from_bits(7);
    let body = format!(
        r#"{{"stream":"room:7","data":"{{\"text\":\"hi\"}}","meta":{{"exclude_socket":"{sid}","broadcast_type":"presence","transient":true}}}}"#
    );
    let wanted = Publication {
        stream: "room:7".into(),
        message: r#"{"text":"hi"}"#.into(),
        exclude: Some(sid),
        kind: Some("presence".into()),
    };
    assert_eq!(publications(&body), [wanted]);
}

#[test]
fn json_data_is_spliced_in_as_it_was_written() {
    for json in [
        "{}",
        r#"{"z":1,"a":2}"#,
        "12345678901234567890",
        "1.0",
        "\"<b>&amp;</b>\u{2028}\"",
        "null",
        "true",
        "[1,\n 2]",
        r#""\ud800""#,
        r#""{\"a\":1}""#,
    ] {
        assert_eq!(message_of(json), json);
    }
    assert_eq!(message_of(" \n{\"a\": 1}\t"), "{\"a\": 1}");
}

#[test]
fn other_data_becomes_a_json_string() {
    for text in
        ["", " ", "hello", "<div>\"x\"</div>\n", "{", "1 2", "{\"a\":1} x", "NaN", "'a'", "\u{0}", "{\"a\":\"\u{1}\"}"]
    {
        let message = message_of(text);
        assert!(message.starts_with('"'), "{message}");
        assert_eq!(serde_json::from_str::<String>(&message).unwrap(), text);
    }
}

#[test]
fn missing_data_is_the_empty_string_and_other_types_are_refused() {
    for json in [r#"{"stream":"s"}"#, r#"{"stream":"s","data":null}"#, r#"{"stream":"s","data":""}"#] {
        assert_eq!(&*publications(json)[0].message, "\"\"");
    }
    for data in ["1", "{}", "[]", "true", r#""\ud800""#] {
        let json = format!(r#"{{"stream":"s","data":{data}}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::DataNotText)), "{json}");
    }
}

#[test]
fn data_that_is_no_text_does_not_matter_where_there_is_no_stream() {
    for data in ["7", "{}", r#""\ud800""#, "[1]", "1e999"] {
        let json = format!(r#"{{"data":{data},"command":"disconnect","payload":{{"identifier":"x"}}}}"#);
        let wanted = RemoteDisconnect { identifiers: "x".into(), reconnect: false };
        assert_eq!(parse(json.as_bytes()).unwrap(), Incoming::Disconnect(wanted), "{json}");
        let json = format!(r#"[{{"stream":"a","data":"1"}},{{"stream":"b","data":{data}}}]"#);
        match parse(json.as_bytes()) {
            Err(BadPublication::InBatch { index: 1, reason }) if matches!(*reason, BadPublication::DataNotText) => {}
            other => panic!("{json}: {other:?}"),
        }
    }
}

#[test]
fn a_socket_that_is_not_ours_excludes_nobody() {
    for socket in ["\"\"", "\"abc\"", "null", r#""12345678901234567890!""#] {
        let json = format!(r#"{{"stream":"s","data":"1","meta":{{"exclude_socket":{socket},"broadcast_type":""}}}}"#);
        let read = &publications(&json)[0];
        assert_eq!((read.exclude, &read.kind), (None, &None), "{json}");
    }
}

#[test]
fn positions_and_unknown_keys_from_apps_are_ignored() {
    let json = r#"{"offset":"x","epoch":7,"stream":"s","data":"1","meta":null,"command":{},"payload":7,"more":[]}"#;
    assert_eq!(publications(json), publications(r#"{"stream":"s","data":"1"}"#));
}

#[test]
fn a_batch_keeps_its_order() {
    let read = publications(r#" [{"stream":"room:7","data":"\"a\""},{"stream":"room:8","data":"\"b\""}] "#);
    let read: Vec<_> = read.iter().map(|p| (&*p.stream, &*p.message)).collect();
    assert_eq!(read, [("room:7", "\"a\""), ("room:8", "\"b\"")]);
}

#[test]
fn a_batch_is_all_or_nothing() {
    for bad in [r#"{"stream":"b","data":1}"#, r#"{"stream":""}"#, r#"{"command":"disconnect"}"#, "{}"] {
        let json = format!(r#"[{{"stream":"a","data":"1"}},{bad},{{"stream":"c","data":"1"}}]"#);
        match parse(json.as_bytes()) {
            Err(BadPublication::InBatch { index: 1, .. }) => {}
            other => panic!("{json}: {other:?}"),
        }
    }
    assert!(matches!(parse(br#"[{"stream":"a"},7]"#), Err(BadPublication::Unreadable(_))));
    assert!(matches!(parse(b"[]"), Err(BadPublication::EmptyBatch)));
}

#[test]
fn a_remote_disconnect_names_identifiers_and_defaults_to_no_reconnect() {
    let disconnect = |identifiers: &str, reconnect| {
        Incoming::Disconnect(RemoteDisconnect { identifiers: identifiers.into(), reconnect })
    };
    for (json, wanted) in [
        (
            r#"{"command":"disconnect","payload":{"identifier":"{\"user\":\"7\"}","reconnect":false}}"#,
            disconnect(r#"{"user":"7"}"#, false),
        ),
        (r#"{"command":"disconnect","payload":{"identifier":"x","reconnect":true}}"#, disconnect("x", true)),
        (r#"{"stream":"","command":"disconnect","payload":{"identifier":"x"}}"#, disconnect("x", false)),
        (r#"{"command":"disconnect","payload":{"identifier":"","reconnect":null}}"#, disconnect("", false)),
    ] {
        assert_eq!(parse(json.as_bytes()).unwrap(), wanted, "{json}");
    }
    for payload in ["", r#","payload":null"#, r#","payload":{}"#, r#","payload":{"identifier":7}"#, r#","payload":"x""#]
    {
        let json = format!(r#"{{"command":"disconnect"{payload}}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::NoIdentifier)), "{json}");
    }
}

#[test]
fn an_unknown_command_is_told_apart_from_rubbish() {
    let json = format!(r#"{{"command":"{}","payload":{{}}}}"#, "x".repeat(1000));
    assert_eq!(parse(json.as_bytes()).unwrap(), Incoming::UnknownCommand("x".repeat(UNKNOWN_NAME_CHARS)));
}

#[test]
fn rubbish_is_refused_with_a_reason() {
    for json in
        ["{}", r#"{"data":"1"}"#, r#"{"stream":""}"#, r#"{"stream":null}"#, r#"{"command":""}"#, r#"{"command":7}"#]
    {
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::NoStream)), "{json}");
    }
    for json in
        ["", "null", "7", "\"s\"", r#"{"stream":7}"#, r#"{"stream":"s"} x"#, r#"{"stream":"s""#, "[[]]", "[null]"]
    {
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::Unreadable(_))), "{json}");
    }
    assert!(matches!(parse(b"{\"stream\":\"s\",\"data\":\"\xff\"}"), Err(BadPublication::Unreadable(_))));
    for meta in ["7", "[]", r#"{"exclude_socket":7}"#, r#"{"broadcast_type":{}}"#] {
        let json = format!(r#"{{"stream":"s","meta":{meta}}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::BadMeta(_))), "{json}");
    }
}

#[test]
fn nesting_without_end_does_not_overflow_the_stack() {
    let deep = "[".repeat(1 << 18) + &"]".repeat(1 << 18);
    assert_eq!(message_of(&deep), deep);
    assert!(parse(deep.as_bytes()).is_err());
    assert!(parse(format!(r#"{{"x":{deep},"meta":{deep},"stream":"s"}}"#).as_bytes()).is_err());
    assert!(parse(format!(r#"{{"x":{deep},"stream":"s"}}"#).as_bytes()).is_ok());
}
