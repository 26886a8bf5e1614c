//! Requests in bytes and what becomes of them.

use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn rules() -> Rules {
    Rules {
        cable_paths: ["/cable", "/{tenant}/ws/*"].map(|path| PathPattern::parse(path).unwrap()).to_vec(),
        echo_path: Some(PathPattern::parse("/echo").unwrap()),
        allowed_origins: Origins::parse(""),
        version_header: "1.6.16-cw".to_owned(),
        ..Rules::default()
    }
}

/// A sound upgrade of `target`, with more header lines.
fn request(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: a.test:8080\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

/// Hands the head to `look`; the bytes have to hold exactly one.
fn with_head<T>(bytes: &[u8], look: impl FnOnce(&Head<'_, '_>) -> T) -> T {
    let mut slots = slots();
    match parse_head(bytes, &mut slots) {
        Parsed::Complete { head, len } => {
            assert_eq!(len, bytes.len());
            look(&head)
        }
        other => panic!("{other:?}"),
    }
}

fn answered(bytes: impl AsRef<[u8]>) -> Decision {
    with_head(bytes.as_ref(), |head| answer(head, &rules()))
}

fn text(switching: &Switching) -> String {
    let mut out = Vec::new();
    switching.write(&rules().version_header, &mut out);
    String::from_utf8(out).unwrap()
}

/// The status of a refusal, after a look at its shape.
fn status(bytes: impl AsRef<[u8]>) -> u16 {
    match answered(bytes) {
        Decision::Refuse(refusal) => {
            let response = String::from_utf8(refusal.response).unwrap();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            let (_, words) = head.lines().next().unwrap().split_at("HTTP/1.1 ".len());
            assert_eq!(words, format!("{} {}", refusal.status, body.trim_end()));
            for line in [
                "Content-Type: text/plain; charset=utf-8",
                "Sec-Websocket-Version: 13",
                "X-Content-Type-Options: nosniff",
                "Connection: close",
                &format!("Content-Length: {}", body.len()),
            ] {
                assert!(head.lines().any(|other| other == line), "{line} in {head}");
            }
            assert!(!head.contains("Server:"));
            refusal.status
        }
        other => panic!("{other:?}"),
    }
}

/// The dialect that the response names.
fn negotiated(more: &str) -> Option<Dialect> {
    match answered(request("/cable", more)) {
        Decision::Upgrade { dialect, response, .. } => {
            let response = text(&response);
            let line = response.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "));
            let named = Dialect::ALL.into_iter().find(|known| line == Some(known.language().subprotocol()));
            assert_eq!(named.is_some(), line.is_some());
            assert_eq!(dialect, named.unwrap_or(Dialect::Cable), "without a name it is the base");
            named
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_answer_to_the_example_of_the_rfc_is_exact() {
    let Decision::Upgrade { route, dialect, response } =
        answered(request("/cable?a=1", "Sec-WebSocket-Protocol: actioncable-v1-json, actioncable-unsupported\r\n"))
    else {
        panic!("refused")
    };
    assert_eq!((route, dialect), (Route::Cable, Dialect::Cable));
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: actioncable-v1-json\r\n\
        X-AnyCable-Version: 1.6.16-cw\r\n\r\n";
    assert_eq!(text(&response), expected);
    let Decision::Upgrade { response, .. } = answered(request("/cable", "")) else { panic!("refused") };
    let expected = expected.replace("Sec-WebSocket-Protocol: actioncable-v1-json\r\n", "");
    assert_eq!(text(&response), expected);
}

#[test]
fn paths_lead_to_their_route() {
    for (target, expected) in [
        ("/cable", Some(Route::Cable)),
        ("/cable?x=/echo", Some(Route::Cable)),
        ("/acme/ws/1", Some(Route::Cable)),
        ("http://a.test/cable", Some(Route::Cable)),
        ("HTTPS://a.test:99/cable?x", Some(Route::Cable)),
        ("/echo", Some(Route::Echo)),
        ("/cable/", None),
        ("/", None),
        ("*", None),
        ("http://a.test", None),
        ("http://a.test?/cable", None),
        ("ftp://a.test/cable", None),
        ("/x?y=http://a.test/cable", None),
    ] {
        let route = match answered(request(target, "")) {
            Decision::Upgrade { route, .. } => Some(route),
            Decision::NotOurs => None,
            Decision::Refuse(refusal) => panic!("{target}: {}", refusal.status),
        };
        assert_eq!(route, expected, "{target}");
    }
    let no_echo = Rules { echo_path: None, ..rules() };
    with_head(request("/echo", "").as_bytes(), |head| assert_eq!(answer(head, &no_echo), Decision::NotOurs));
}

#[test]
fn an_ordinary_request_elsewhere_is_not_ours_whatever_it_lacks() {
    assert_eq!(answered("GET /health HTTP/1.1\r\nHost: a\r\n\r\n"), Decision::NotOurs);
    assert_eq!(answered("POST http://a/_broadcast HTTP/1.1\r\nContent-Length: 5\r\n\r\n"), Decision::NotOurs);
}

#[test]
fn faults_are_answered_in_the_order_of_the_contract() {
    let all = [
        ("Connection: Upgrade\r\n", 400),
        ("Upgrade: websocket\r\n", 400),
        ("GET ", 405),
        ("Sec-WebSocket-Version: 13\r\n", 400),
        (KEY, 400),
    ];
    let replace = |request: String, part: &str| match part {
        "GET " => request.replace("GET ", "POST "),
        _ => request.replace(part, ""),
    };
    // Each fault alone, and together with every later one.
    for (i, (part, expected)) in all.iter().enumerate() {
        assert_eq!(status(replace(request("/cable", ""), part)), *expected, "{part}");
        let worse = all[i..].iter().fold(request("/cable", ""), |request, (part, _)| replace(request, part));
        assert_eq!(status(worse), *expected, "{part} and all later");
    }
    let strict = Rules { allowed_origins: Origins::parse("a.test"), ..rules() };
    let strict_status = |bytes: String| match with_head(bytes.as_bytes(), |head| answer(head, &strict)) {
        Decision::Refuse(refusal) => refusal.status,
        Decision::Upgrade { .. } => 101,
        Decision::NotOurs => 0,
    };
    assert_eq!(strict_status(request("/cable", "Origin: http://a.test\r\n")), 101);
    assert_eq!(strict_status(request("/cable", "")), 403);
    assert_eq!(strict_status(request("/cable", "Origin: null\r\n")), 403);
    assert_eq!(strict_status(replace(request("/cable", ""), KEY)), 403, "the origin comes before the key");
    assert_eq!(strict_status(replace(request("/cable", ""), "Sec-WebSocket-Version: 13\r\n")), 400);
    assert_eq!(strict_status(request("/cable", "Origin: http://a.test\r\n").replace(KEY, "x")), 400);
}

#[test]
fn a_refused_method_is_told_the_right_one() {
    let Decision::Refuse(refusal) = answered(request("/cable", "").replace("GET", "PUT")) else { panic!("upgraded") };
    let response = String::from_utf8(refusal.response).unwrap();
    assert!(response.contains("\r\nAllow: GET\r\n") && response.ends_with("\r\n\r\nMethod Not Allowed\n"));
}

#[test]
fn connection_and_upgrade_are_token_lists_in_any_case() {
    let upgraded =
        |from: &str, to: &str| matches!(answered(request("/cable", "").replace(from, to)), Decision::Upgrade { .. });
    assert!(upgraded("Connection: Upgrade", "connection: keep-alive, uPGRADE"));
    assert!(upgraded("Connection: Upgrade", "Connection: keep-alive\r\nConnection:upgrade ,x"));
    assert!(upgraded("Upgrade: websocket", "UPGRADE: h2c, WebSocket"));
    assert!(!upgraded("Connection: Upgrade", "Connection: upgrades"));
    assert!(!upgraded("Upgrade: websocket", "Upgrade: websocket2"));
    assert!(!upgraded("Version: 13", "Version: 8"));
    assert!(!upgraded("Version: 13", "Version: 113"));
}

#[test]
fn the_key_has_to_be_base64_of_16_bytes() {
    let with_key = |key: &str| request("/cable", "").replace(KEY, key);
    assert!(matches!(answered(with_key("AAAAAAAAAAAAAAAAAAAAAA==")), Decision::Upgrade { .. }));
    assert!(matches!(answered(with_key("AAAAAAAAAAAAAAAAAAAAAZ==")), Decision::Upgrade { .. }), "spare bits set");
    for key in [
        "",
        "AAAA",
        "AAAAAAAAAAAAAAAAAAAAAAA=",
        "AAAAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAA-==",
        "AAAAAAAAAAAAAAAAAAAAAAAAAA==",
        "AAAAAAAAAAAAAAAAAAAAAA==, AAAAAAAAAAAAAAAAAAAAAA==",
    ] {
        assert_eq!(status(with_key(key)), 400, "{key}");
    }
}

#[test]
fn the_servers_order_decides_on_the_subprotocol() {
    assert_eq!(negotiated(""), None);
    assert_eq!(negotiated("Sec-WebSocket-Protocol: chat, actioncable-unsupported\r\n"), None);
    assert_eq!(negotiated("Sec-WebSocket-Protocol: actioncable-v1-ext-json\r\n"), Some(Dialect::CableExtended));
    assert_eq!(
        negotiated("Sec-WebSocket-Protocol: actioncable-v1-ext-json, actioncable-v1-json\r\n"),
        Some(Dialect::Cable)
    );
    assert_eq!(
        negotiated("Sec-WebSocket-Protocol: x\r\nsec-websocket-protocol:actioncable-v1-ext-json,,\r\n"),
        Some(Dialect::CableExtended)
    );
    assert_eq!(negotiated("Sec-WebSocket-Protocol: ActionCable-v1-json\r\n"), None, "names are compared exactly");
}

#[test]
fn a_token_among_the_subprotocols_is_read_and_never_sent_back() {
    let bytes = request("/cable", "Sec-WebSocket-Protocol: anycable-token.ab.cd-_, actioncable-v1-ext-json\r\n");
    with_head(bytes.as_bytes(), |head| assert_eq!(head.token_protocol(), Some("ab.cd-_")));
    let Decision::Upgrade { response, dialect, .. } = answered(bytes) else { panic!("refused") };
    assert_eq!(dialect, Dialect::CableExtended);
    assert!(!text(&response).contains("ab.cd"));
    assert_eq!(negotiated("Sec-WebSocket-Protocol: anycable-token.x\r\n"), None);
    with_head(request("/cable", "").as_bytes(), |head| assert_eq!(head.token_protocol(), None));
}

#[test]
fn an_empty_token_among_the_subprotocols_is_none() {
    for (offered, token) in [("anycable-token.", None), ("anycable-token., anycable-token.ab", Some("ab"))] {
        let bytes = request("/cable", &format!("Sec-WebSocket-Protocol: {offered}\r\n"));
        with_head(bytes.as_bytes(), |head| assert_eq!(head.token_protocol(), token, "{offered}"));
    }
}

#[test]
fn a_pattern_leaves_the_paths_of_ordinary_http_alone() {
    let path = |text| PathPattern::parse(text).unwrap();
    let rules = Rules {
        cable_paths: vec![path("/*"), path("/plain")],
        http_paths: vec![path("/health"), path("/api/presence/*"), path("/plain")],
        ..rules()
    };
    for (path, route) in [
        ("/", Some(Route::Cable)),
        ("/healthy", Some(Route::Cable)),
        ("/plain", Some(Route::Cable)),
        ("/health", None),
        ("/api/presence/a/users", None),
    ] {
        assert_eq!(rules.route(path), route, "{path}");
    }
}

#[test]
fn the_echo_route_speaks_no_subprotocol() {
    let answer = answered(request("/echo", "Sec-WebSocket-Protocol: actioncable-v1-json\r\n"));
    let Decision::Upgrade { route: Route::Echo, response, .. } = answer else { panic!("{answer:?}") };
    assert!(!text(&response).contains("Sec-WebSocket-Protocol"));
}

#[test]
fn http_1_0_passes_even_without_a_host() {
    let old = request("/cable", "").replace("HTTP/1.1", "HTTP/1.0");
    assert!(matches!(answered(&old), Decision::Upgrade { .. }));
    assert!(matches!(answered(old.replace("Host: a.test:8080\r\n", "")), Decision::Upgrade { .. }));
}

#[test]
fn the_host_is_named_once_and_ends_where_a_host_ends() {
    assert_eq!(status(request("/cable", "").replace("Host: a.test:8080\r\n", "")), 400);
    assert_eq!(status(request("/cable", "Host: b.test\r\n")), 400);
    for host in ["a.test/x?", "a test", "u@a.test", "a.test:x", "\u{e4}.test"] {
        assert_eq!(status(request("/cable", "").replace("a.test:8080", host)), 400, "{host}");
    }
    assert_eq!(status(request("http://u@a.test/cable", "")), 400);
}

#[test]
fn the_parts_of_a_target_are_read() {
    let parts = |target: &str| {
        with_head(request(target, "").as_bytes(), |head| {
            (head.host().to_owned(), head.path().to_owned(), head.request_uri().into_owned())
        })
    };
    let expect = |host: &str, path: &str, uri: &str| (host.to_owned(), path.to_owned(), uri.to_owned());
    assert_eq!(parts("/a/b?c=d?e"), expect("a.test:8080", "/a/b", "/a/b?c=d?e"));
    assert_eq!(parts("http://b.test/a?c"), expect("b.test", "/a", "/a?c"));
    assert_eq!(parts("http://b.test"), expect("b.test", "/", "/"));
    assert_eq!(parts("http://b.test?c"), expect("b.test", "/", "/?c"));
    assert_eq!(parts("?c"), expect("a.test:8080", "/", "/?c"));
    assert_eq!(parts("*"), expect("a.test:8080", "*", "*"));
}

#[test]
fn query_parameters_are_decoded_and_the_first_counts() {
    let target = "/cable?pi=10&pi=20&jid=a%2eb%2Bc&sp=+x%20y&flag&&e%6Dpty=&bad=%zz%4&eur=%E2%82%AC&cut=%E2&=anonymous";
    with_head(request(target, "").as_bytes(), |head| {
        for (name, value) in [
            ("pi", "10"),
            ("jid", "a.b+c"),
            ("sp", " x y"),
            ("flag", ""),
            ("empty", ""),
            ("bad", "%zz%4"),
            ("eur", "€"),
            ("cut", "\u{FFFD}"),
            ("", "anonymous"),
        ] {
            assert_eq!(head.query(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(head.query("ptp"), None);
        assert_eq!(head.query("p"), None);
    });
    with_head(request("/cable", "").as_bytes(), |head| assert_eq!(head.query("pi"), None));
    with_head(request("http://a.test?pi=1", "").as_bytes(), |head| assert_eq!(head.query("pi").as_deref(), Some("1")));
}

#[test]
fn headers_are_found_in_any_case_and_need_not_be_utf8() {
    let mut bytes = request("/cable", "X-One: first\r\nx-one: second\r\nX-Empty:\r\n").into_bytes();
    let at = bytes.len() - 2;
    bytes.splice(
        at..at,
        *b"Cookie: a=\xff\xe9\r\nOrigin: http://\xff\r\nSec-WebSocket-Protocol: \xff, actioncable-v1-json\r\n",
    );
    with_head(&bytes, |head| {
        assert_eq!(head.header("x-ONE").as_deref(), Some("first"));
        assert_eq!(head.header("x-empty").as_deref(), Some(""));
        assert_eq!(head.header("x-none"), None);
        assert_eq!(head.header("cookie").as_deref(), Some("a=\u{FFFD}\u{FFFD}"));
        assert_eq!(head.header_bytes("cookie"), Some(&b"a=\xff\xe9"[..]));
        assert_eq!(head.offered_protocols().collect::<Vec<_>>(), ["actioncable-v1-json"]);
        assert_eq!(head.headers().filter(|(name, _)| name.eq_ignore_ascii_case("x-one")).count(), 2);
    });
    assert!(matches!(answered(&bytes), Decision::Upgrade { dialect: Dialect::Cable, .. }));
}

#[test]
fn early_frames_behind_the_head_are_left_alone() {
    let head = request("/cable", "");
    let bytes = [head.as_bytes(), b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"].concat();
    let mut slots = slots();
    let Parsed::Complete { head: parsed, len } = parse_head(&bytes, &mut slots) else { panic!("incomplete") };
    assert_eq!(len, head.len());
    assert!(matches!(answer(&parsed, &rules()), Decision::Upgrade { .. }));
}

#[test]
fn every_cut_of_a_head_is_incomplete_and_only_its_last_byte_may_end_it() {
    let bytes = request("/cable?x=1", "Cookie: a=1\r\n").into_bytes();
    for cut in 0..bytes.len() {
        assert!(matches!(parse_head(&bytes[..cut], &mut slots()), Parsed::Incomplete), "{cut}");
        assert_eq!(may_end(&bytes[..cut + 1], cut), cut + 1 == bytes.len(), "{cut}");
        assert!(may_end(&bytes, cut), "{cut}");
    }
    let lenient = b"GET / HTTP/1.1\nHost: a\n\n";
    assert!(may_end(lenient, lenient.len() - 1));
    assert!(matches!(parse_head(lenient, &mut slots()), Parsed::Complete { .. }));
    assert!(!may_end(b"", 0));
}

#[test]
fn what_is_no_request_is_refused_at_once() {
    let bad = |bytes: &[u8]| match parse_head(bytes, &mut slots()) {
        Parsed::Bad(refusal) => refusal.status,
        other => panic!("{other:?}"),
    };
    assert_eq!(bad(b"\x16\x03\x01\x02\x00"), 400, "a TLS hello");
    assert_eq!(bad(b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n"), 400);
    assert_eq!(bad(b"GET / HTTP/1.1\r\nName: a\0b\r\n\r\n"), 400);
    assert_eq!(bad(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
    assert_eq!(bad(many.as_bytes()), 431);
    let most = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX));
    assert!(matches!(parse_head(most.as_bytes(), &mut slots()), Parsed::Complete { .. }));
}

#[test]
fn the_doors_own_refusals_are_exact() {
    let refusal = unavailable(7);
    assert_eq!(refusal.status, 503);
    assert_eq!(
        String::from_utf8(refusal.response).unwrap(),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 7\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Length: 20\r\nConnection: close\r\n\r\nService Unavailable\n"
    );
    for (refusal, status, body) in
        [(timed_out(), 408, "Request Timeout"), (head_too_large(), 431, "Request Header Fields Too Large")]
    {
        assert_eq!(refusal.status, status);
        let response = String::from_utf8(refusal.response).unwrap();
        assert!(response.starts_with(&format!("HTTP/1.1 {status} {body}\r\n")));
        assert!(response.ends_with(&format!("Connection: close\r\n\r\n{body}\n")));
    }
}

#[test]
fn targets_in_absolute_form_are_taken_with_the_schemes_of_websockets_too() {
    for scheme in ["http", "https", "ws", "wss", "WSS", "Ws"] {
        let bytes = request(&format!("{scheme}://cable.test/cable?a=1"), "");
        with_head(bytes.as_bytes(), |head| {
            assert_eq!((head.path(), head.host(), &*head.request_uri()), ("/cable", "cable.test", "/cable?a=1"));
        });
        assert!(matches!(answered(bytes), Decision::Upgrade { .. }), "{scheme}");
    }
    assert!(matches!(answered(request("ftp://cable.test/cable", "")), Decision::NotOurs));
}

#[test]
fn a_header_that_comes_in_several_lines_is_one_list() {
    let bytes = request("/cable", "Cookie: a=1\r\nX-A: 1\r\ncookie: b=2; c=3\r\nx-a:\r\nx-a: 2, 3\r\nX-B: 1\r\n");
    with_head(bytes.as_bytes(), |head| {
        assert_eq!(head.joined("cookie").as_deref(), Some("a=1; b=2; c=3"));
        assert_eq!(head.joined("x-a").as_deref(), Some("1, 2, 3"));
        assert_eq!((head.joined("x-b").as_deref(), head.joined("x-c")), (Some("1"), None));
    });
}

#[test]
fn the_longest_header_of_a_head_that_is_not_complete_is_found() {
    let head = format!("GET /{} HTTP/1.1\r\nHost: a\r\nCookie: {}", "x".repeat(900), "y".repeat(500));
    let (name, length) = longest_header(head.as_bytes()).unwrap();
    assert_eq!((&*name, length), ("Cookie", 508));
    assert_eq!(longest_header(b"GET /"), None);
}
