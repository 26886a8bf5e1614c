//! The checks of the fuzz targets on seeded random input: close to right most of the time, so that it gets far.

#[path = "../../fuzz/src/cable.rs"]
mod cable;
#[path = "../../fuzz/src/frame.rs"]
mod frame;
#[path = "../../fuzz/src/handshake.rs"]
mod handshake;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::streams;

/// Overwrites a few bytes.
fn damage(random: &mut StdRng, bytes: &mut [u8]) {
    for _ in 0..random.random_range(0..3) {
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
    }
}

#[test]
fn the_frame_checks_hold_on_random_streams() {
    for seed in 0..1000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut data: Vec<u8> = (0..5).map(|_| random.random()).collect();
        if random.random_bool(0.5) {
            data[..2].fill(0);
        }
        let faulty = random.random_bool(0.3);
        data.extend(streams::stream(&mut random, faulty));
        data.truncate(random.random_range(1..=data.len()));
        damage(&mut random, &mut data);
        frame::check(&data);
    }
}

#[test]
fn the_handshake_checks_hold_on_random_heads() {
    const LINES: [&[u8]; 14] = [
        b"Host: a.test\r\n",
        b"Host: b.test:80\n",
        b"Connection: keep-alive, Upgrade\r\n",
        b"Upgrade: websocket\r\n",
        b"Sec-WebSocket-Version: 13\r\n",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Sec-WebSocket-Key: short\r\n",
        b"Sec-WebSocket-Protocol: anycable-token.x,actioncable-v1-ext-json\r\n",
        b"Sec-WebSocket-Protocol: actioncable-v1-json , \xFF\r\n",
        b"Origin: http://a.test\r\n",
        b"Origin: https://x.b.test:80\r\n",
        b"Origin: null\r\n",
        b"Cookie: a=\xE4; b=%20\r\n",
        b"X-Empty:\r\n",
    ];
    const TARGETS: [&[u8]; 8] = [
        b"/cable",
        b"/cable?pi=%31&ptp=%",
        b"/echo?jid=a+b",
        b"http://a.test/cable?x",
        b"http://a.test?x",
        b"*",
        b"/a/b",
        b"//?&=&%zz=%E2%28",
    ];
    let mut upgraded = 0;
    for seed in 0..10_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut data = vec![random.random(), random.random()];
        data.extend_from_slice(if random.random_bool(0.9) { b"GET " } else { b"POST " });
        data.extend_from_slice(TARGETS.choose(&mut random).unwrap());
        data.extend_from_slice(if random.random_bool(0.9) { b" HTTP/1.1\r\n" } else { b" HTTP/1.0\n" });
        // Half of the heads are sound before they are damaged.
        let sound = random.random_bool(0.5);
        let needed = if sound { &LINES[2..6] } else { &[] };
        let extra = random.random_range(0..12);
        for line in LINES[..1].iter().chain(needed) {
            data.extend_from_slice(line);
        }
        for _ in 0..extra {
            data.extend_from_slice(LINES[if sound { 7.. } else { 0.. }].choose(&mut random).unwrap());
        }
        data.extend_from_slice(b"\r\n");
        data.extend_from_slice([&b""[..], b"\x81\x80\x00\x00\x00\x00"].choose(&mut random).unwrap());
        damage(&mut random, &mut data);
        upgraded += usize::from(handshake::check(&data));
    }
    assert!(upgraded > 500, "only {upgraded} got as far as a 101");
}

/// A JSON text: now and then one of those that commands and publications are made of.
fn json(random: &mut StdRng, depth: u32, into: &mut String) {
    const SCALARS: [&str; 14] = [
        r#""a""#,
        r#""""#,
        r#""subscribe""#,
        r#""disconnect""#,
        r#""\u0041\n\ud83d\ude00""#,
        r#""\ud800""#,
        r#""{\"a\":[1,\"b\"]}""#,
        r#""[""#,
        "null",
        "true",
        "-1.5e300",
        "1e999",
        "99999999999999999999",
        " 7 ",
    ];
    match random.random_range(0..if depth == 0 { 4 } else { 7 }) {
        0..4 => into.push_str(SCALARS.choose(random).unwrap()),
        4 => {
            into.push('[');
            for n in 0..random.random_range(0..3) {
                into.push_str(if n == 0 { "" } else { "," });
                json(random, depth - 1, into);
            }
            into.push(']');
        }
        _ => object(random, depth - 1, into),
    }
}

/// An object with the fields that the readers know, in any order, some of them twice, with values that fit or do not.
fn object(random: &mut StdRng, depth: u32, into: &mut String) {
    const COMMANDS: [&str; 12] = [
        "subscribe",
        "unsubscribe",
        "message",
        "ping",
        "pong",
        "history",
        "whisper",
        "join",
        "leave",
        "presence",
        "disconnect",
        "no such command, and a long name at that",
    ];
    const FIELDS: [(&str, &str); 19] = [
        ("identifier", r#""{\"channel\":\"A\"}""#),
        ("data", r#""{\"action\":\"b\"}""#),
        ("stream", r#""room:7""#),
        ("meta", r#"{"exclude_socket":"x","broadcast_type":"presence"}"#),
        ("payload", r#"{"identifier":"me","reconnect":true}"#),
        ("history", r#"{"since":1,"streams":{"s":{"epoch":"e","offset":2},"t":null}}"#),
        ("presence", r#"{"id":"me","info":{"n":[1]}}"#),
        ("id", r#""me""#),
        ("info", "[]"),
        ("since", "1"),
        ("streams", r#"{"":{}}"#),
        ("exclude_socket", "null"),
        ("reconnect", "false"),
        ("return_records", "false"),
        ("\\u0064ata", "1"),
        ("node", r#""0aZ45678""#),
        ("seq", "7"),
        ("offset", "41"),
        ("epoch", r#""Xk2p""#),
    ];
    into.push('{');
    if random.random_bool(0.7) {
        into.push_str(&format!(r#""command":"{}","#, COMMANDS.choose(random).unwrap()));
    }
    for n in 0..random.random_range(0..6) {
        let (name, fitting) = FIELDS.choose(random).unwrap();
        into.push_str(&format!(r#"{}"{name}":"#, if n == 0 { "" } else { "," }));
        if random.random_bool(0.8) { into.push_str(fitting) } else { json(random, depth, into) }
    }
    if into.ends_with(',') {
        into.pop();
    }
    into.push('}');
}

#[test]
fn the_cable_checks_hold_on_random_json() {
    let mut commands = 0;
    let mut publications = 0;
    let mut of_nodes = 0;
    for seed in 0..20_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut text = String::new();
        match random.random_range(0..10) {
            0 => json(&mut random, 3, &mut text),
            // A batch.
            1 => {
                text.push('[');
                object(&mut random, 2, &mut text);
                text.push(',');
                object(&mut random, 2, &mut text);
                text.push(']');
            }
            _ => object(&mut random, 2, &mut text),
        }
        let mut data = text.into_bytes();
        damage(&mut random, &mut data);
        let read = cable::check(&data);
        commands += usize::from(read.as_command);
        publications += usize::from(read.as_publication);
        of_nodes += usize::from(read.as_node_message);
    }
    assert!(commands > 1000, "only {commands} were commands");
    assert!(publications > 500, "only {publications} were publications");
    assert!(of_nodes > 500, "only {of_nodes} were messages of nodes");
}

#[test]
fn json_that_only_nests_is_read_or_refused_without_a_deep_stack() {
    for open in ["[", r#"{"data":"#, r#"{"command":"whisper","identifier":"a","data":["#] {
        cable::check(open.repeat(100_000).as_bytes());
        cable::check(format!("{open}{}{}", "[".repeat(200_000), "]".repeat(200_000)).as_bytes());
    }
    let nested = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let whisper = format!(r#"{{"command":"whisper","identifier":"a","data":{nested}}}"#);
    assert!(!cable::check(whisper.as_bytes()).as_command, "for other clients it is too deep");
    let unknown = format!(r#"{{"command":"pong","what":{nested}}}"#);
    assert!(cable::check(unknown.as_bytes()).as_command);
    let publication = format!(r#"{{"stream":"a","data":"{nested}"}}"#);
    assert!(cable::check(publication.as_bytes()).as_publication);
}
