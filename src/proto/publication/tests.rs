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
        transient: true,
        position: None,
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
        r#""\ud83d\ude00""#,
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
    for data in ["1", "{}", "[]", "true"] {
        let json = format!(r#"{{"stream":"s","data":{data}}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::DataNotText)), "{json}");
    }
}

fn disconnected(json: &str) -> RemoteDisconnect {
    match parse(json.as_bytes()) {
        Ok(Incoming::Disconnect(disconnect)) => disconnect,
        other => panic!("{json}: {other:?}"),
    }
}

/// Streams and messages of the good elements, how many are bad, and what is said about the first of them.
fn part_of_batch(json: &str) -> (Vec<String>, usize, String) {
    match parse(json.as_bytes()) {
        Ok(Incoming::PartOfBatch { publications, refused, first }) => {
            let said = publications.iter().map(|p| format!("{}={}", p.stream, p.message)).collect();
            (said, refused, first.to_string())
        }
        other => panic!("{json}: {other:?}"),
    }
}

#[test]
fn data_that_is_no_text_does_not_matter_where_there_is_no_stream() {
    for data in ["7", "{}", r#""\ud800""#, "[1]", "1e999"] {
        let json = format!(r#"{{"data":{data},"command":"disconnect","payload":{{"identifier":"x"}}}}"#);
        assert_eq!(disconnected(&json), RemoteDisconnect { identifiers: "x".into(), reconnect: false }, "{json}");
    }
}

#[test]
fn half_a_surrogate_pair_is_delivered_as_the_replacement_character() {
    for (json, wanted) in [
        (r#"{"stream":"r1","data":"hi \ud83d"}"#, "r1=\"hi \u{fffd}\""),
        (r#"{"stream":"r1","data":"{\"text\":\"hi \ud83d\"}"}"#, "r1={\"text\":\"hi \u{fffd}\"}"),
        (r#"{"stream":"r1","data":"{\"text\":\"hi \\ud83d\"}"}"#, r#"r1={"text":"hi \ufffd"}"#),
        (r#"{"stream":"r\ud83d","data":"1"}"#, "r\u{fffd}=1"),
        (r#"{"stream":"r1","data":"1","meta":{"broadcast_type":"\ude00"}}"#, "r1=1"),
    ] {
        let read = publications(json);
        assert_eq!(format!("{}={}", read[0].stream, read[0].message), wanted, "{json}");
    }
    assert_eq!(&*disconnected(r#"{"command":"disconnect","payload":{"identifier":"\ud83d"}}"#).identifiers, "\u{fffd}");
    let latin1 = parse(b"{\"stream\":\"s\",\"data\":\"caf\xe9\"}").unwrap();
    assert!(matches!(latin1, Incoming::Publications(read) if &*read[0].message == "\"caf\u{fffd}\""));
}

#[test]
fn an_element_of_a_batch_that_is_no_publication_does_not_take_the_others_along() {
    for bad in [
        r#"{"stream":"b","data":1}"#,
        r#"{"stream":""}"#,
        r#"{"stream":7}"#,
        r#"{"command":"disconnect"}"#,
        r#"{"stream":"b","meta":7}"#,
        "{}",
        "7",
        "null",
        "[[]]",
    ] {
        let json = format!(r#"[{{"stream":"a","data":"1"}},{bad},{{"stream":"c","data":"\ud83d"}},{bad}]"#);
        let (taken, refused, first) = part_of_batch(&json);
        assert_eq!((taken.join(" ").as_str(), refused), ("a=1 c=\"\u{fffd}\"", 2), "{json}");
        assert!(first.starts_with("element 1 of the batch: "), "{first}");
    }
    let (taken, refused, _) = part_of_batch("[7,{}]");
    assert_eq!((taken.len(), refused), (0, 2));
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
fn a_batch_without_elements_or_without_an_end_is_refused() {
    assert!(matches!(parse(b"[]"), Err(BadPublication::EmptyBatch)));
    for json in [r#"[{"stream":"a"}"#, r#"[{"stream":"a"},"#, r#"[{"stream":"a"}] x"#, r#"[{"stream":"a"},{]"#] {
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::Unreadable(_))), "{json}");
    }
}

#[test]
fn a_remote_disconnect_names_identifiers_and_defaults_to_no_reconnect() {
    let disconnect = |identifiers: &str, reconnect| RemoteDisconnect { identifiers: identifiers.into(), reconnect };
    for (json, wanted) in [
        (
            r#"{"command":"disconnect","payload":{"identifier":"{\"user\":\"7\"}","reconnect":false}}"#,
            disconnect(r#"{"user":"7"}"#, false),
        ),
        (r#"{"command":"disconnect","payload":{"identifier":"x","reconnect":true}}"#, disconnect("x", true)),
        (r#"{"stream":"","command":"disconnect","payload":{"identifier":"x"}}"#, disconnect("x", false)),
        (r#"{"command":"disconnect","payload":{"identifier":"","reconnect":null}}"#, disconnect("", false)),
    ] {
        assert_eq!(disconnected(json), wanted, "{json}");
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
    match parse(json.as_bytes()) {
        Ok(Incoming::UnknownCommand(name)) => assert_eq!(name, "x".repeat(UNKNOWN_NAME_CHARS)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rubbish_is_refused_with_a_reason() {
    for json in
        ["{}", r#"{"data":"1"}"#, r#"{"stream":""}"#, r#"{"stream":null}"#, r#"{"command":""}"#, r#"{"command":7}"#]
    {
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::NoStream)), "{json}");
    }
    for json in ["", "null", "7", "\"s\"", r#"{"stream":7}"#, r#"{"stream":"s"} x"#, r#"{"stream":"s""#] {
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::Unreadable(_))), "{json}");
    }
    for meta in ["7", "[]", r#"{"exclude_socket":7}"#, r#"{"broadcast_type":{}}"#] {
        let json = format!(r#"{{"stream":"s","meta":{meta}}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(BadPublication::BadMeta(_))), "{json}");
    }
}

#[test]
fn nesting_without_end_does_not_overflow_the_stack() {
    let deep = "[".repeat(1 << 18) + &"]".repeat(1 << 18);
    assert_eq!(message_of(&deep), deep);
    assert_eq!(part_of_batch(&deep).0.len(), 0);
    assert!(parse(format!(r#"{{"x":{deep},"meta":{deep},"stream":"s"}}"#).as_bytes()).is_err());
    assert!(parse(format!(r#"{{"x":{deep},"stream":"s"}}"#).as_bytes()).is_ok());
}
