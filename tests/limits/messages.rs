//! Messages at and over their limits, and frames that break the rules.

use std::io::Write;
use std::thread;

use tungstenite::Message;

use crate::client::{Client, upgrade};
use crate::server::{Server, Start};

/// A frame as a client sends it, with a mask of zeros unless `masked` is false.
fn frame(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(mask_bit | len as u8),
        len @ 126..65_536 => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    if masked {
        bytes.extend_from_slice(&[0; 4]);
    }
    bytes.extend_from_slice(payload);
    bytes
}

const TEXT: u8 = 0x81;
const TEXT_BEGIN: u8 = 0x01;
const GO_ON: u8 = 0x00;
const GO_ON_END: u8 = 0x80;

fn echo_server(more: &[&str]) -> Server {
    Start::with(&["--echo-path", "/echo"]).and(more).start()
}

/// Sends these bytes on both routes; each must be closed with this code and counted for this cause.
fn refused(server: &Server, bytes: &[u8], code: u16, cause: &str) {
    let before = server.metrics().closed(cause);
    for path in ["/cable", "/echo"] {
        let mut client = upgrade(server.address(), path);
        if path == "/cable" {
            client.text();
        }
        client.send_raw(bytes);
        assert_eq!(client.close_frame().0, code, "{path}");
        client.ends();
    }
    server.closed_for(cause, before + 2);
}

#[test]
fn a_message_of_65536_bytes_passes_and_one_byte_more_is_1009() {
    let server = echo_server(&[]);
    let mut echo = upgrade(server.address(), "/echo");
    let largest = "x".repeat(65_536);
    echo.send(&largest);
    assert_eq!(echo.text(), largest);

    refused(&server, &frame(TEXT, &[b'x'; 65_537], true), 1009, "message_too_big");
    // The announced length is enough to know.
    let announced = &frame(TEXT, &[b'x'; 70_000], true)[..14];
    refused(&server, announced, 1009, "message_too_big");
    // And so is the sum of fragments.
    let mut fragments = frame(TEXT_BEGIN, &[b'x'; 60_000], true);
    fragments.extend(frame(GO_ON_END, &[b'x'; 5_537], true));
    refused(&server, &fragments, 1009, "message_too_big");
}

#[test]
fn a_message_may_have_as_many_fragments_as_configured_and_not_more() {
    let server = echo_server(&["--max-fragments", "4"]);
    let fragments = |count: usize| {
        let mut bytes = frame(TEXT_BEGIN, b"a", true);
        (2..count).for_each(|_| bytes.extend(frame(GO_ON, b"b", true)));
        bytes.extend(frame(GO_ON_END, b"c", true));
        bytes
    };
    let mut echo = upgrade(server.address(), "/echo");
    echo.send_raw(&fragments(4));
    assert_eq!(echo.text(), "abbc");
    refused(&server, &fragments(5), 1009, "message_too_big");
}

#[test]
fn frames_that_break_the_rules_close_with_their_code_and_cause() {
    let server = echo_server(&[]);
    refused(&server, &frame(TEXT, b"{}", false), 1002, "protocol_error");
    // A reserved bit, an unknown opcode, a continuation of nothing, a ping in two pieces, a ping that is too long.
    refused(&server, &frame(0xc1, b"{}", true), 1002, "protocol_error");
    refused(&server, &frame(0x83, b"", true), 1002, "protocol_error");
    refused(&server, &frame(GO_ON_END, b"", true), 1002, "protocol_error");
    refused(&server, &frame(0x09, b"", true), 1002, "protocol_error");
    refused(&server, &frame(0x89, &[0; 126], true), 1002, "protocol_error");
    refused(&server, &frame(TEXT, b"\xff", true), 1007, "invalid_utf8");
    // Refused at the first bad byte, although the message is not finished.
    refused(&server, &frame(TEXT_BEGIN, b"ok \xc0\xaf", true), 1007, "invalid_utf8");
    let metrics = server.metrics();
    assert_eq!((metrics.closed("protocol_error"), metrics.closed("invalid_utf8")), (12, 4));
}

#[test]
fn the_echo_takes_20_megabytes_in_50000_fragments_when_nothing_is_limited() {
    const FRAGMENTS: usize = 50_000;
    const FRAGMENT: usize = 400;
    let server = echo_server(&["--max-message-size", "0", "--max-fragments", "0", "--ws-max-pending-size", "0"]);
    let mut echo = upgrade(server.address(), "/echo");
    let message: Vec<u8> = (0..FRAGMENTS * FRAGMENT).map(|n| (n % 251) as u8).collect();
    let mut writer = echo.0.get_ref().try_clone().expect("the same socket");
    let expected = message.clone();
    let sending = thread::spawn(move || {
        let mut bytes = Vec::with_capacity(FRAGMENTS * (FRAGMENT + 8));
        for (n, piece) in message.chunks(FRAGMENT).enumerate() {
            let opcode = if n == 0 { 0x02 } else { 0x00 };
            let end = if n + 1 == FRAGMENTS { 0x80 } else { 0x00 };
            bytes.extend(frame(opcode | end, piece, true));
        }
        writer.write_all(&bytes).expect("sent");
    });
    let received = echo.0.read().expect("the echo");
    sending.join().expect("sent");
    match received {
        Message::Binary(bytes) => assert!(bytes == expected, "{} bytes came back, changed", bytes.len()),
        other => panic!("not {other:?}"),
    }
    // Memory goes back once the message is through, and the connection is still good.
    echo.send("still here");
    assert_eq!(echo.text(), "still here");
}

#[test]
fn a_message_over_the_limit_of_one_client_is_nothing_to_the_others() {
    let server = echo_server(&[]);
    let mut follower = Client::following(server.address(), "news");
    refused(&server, &frame(TEXT, &[b'x'; 100_000], true), 1009, "message_too_big");
    server.broadcast("news", "1");
    assert!(follower.text().contains("\"message\":1"));
}
