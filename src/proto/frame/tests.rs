//! Cases in bytes. Each runs whole, byte by byte, in every cut into two and in seeded random cuts, and must
//! come to the same events every time. They cover what sections 1 to 7 and 10 of the Autobahn suite ask of a server.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// What a test saw, on its own so that it outlives the input.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
    Failed(Violation),
}
use Seen::*;

fn text(payload: &str) -> Seen {
    Text(payload.to_owned())
}

fn see(event: Event<'_>) -> Seen {
    let string = |payload: Payload<'_>| String::from_utf8(payload.to_vec()).unwrap();
    match event {
        Event::Message(Message::Text(text)) => Text(text.into_owned()),
        Event::Message(Message::Binary(payload)) => Binary(payload.to_vec()),
        Event::Ping(payload) => Ping(payload.to_vec()),
        Event::Pong(payload) => Pong(payload.to_vec()),
        Event::Close(None) => Close(None),
        Event::Close(Some((code, reason))) => Close(Some((code, string(reason)))),
    }
}

/// Events of `bytes` in these pieces, up to a close or a violation, and whether the reader ended parked.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> (Vec<Seen>, bool) {
    let mut reader = FrameReader::new();
    let mut seen = Vec::new();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        loop {
            match reader.next(&mut input, limits) {
                Ok(Some(event)) => seen.push(see(event)),
                Ok(None) => break,
                Err(violation) => seen.push(Failed(violation)),
            }
            if matches!(seen.last(), Some(Close(_) | Failed(_))) {
                return (seen, reader.is_parked());
            }
        }
        assert!(input.is_empty());
    }
    (seen, reader.is_parked())
}

/// Reads `bytes` however they can be cut and returns the one result.
fn read_all_ways(bytes: &[u8], limits: &Limits) -> (Vec<Seen>, bool) {
    let whole = read([bytes], limits);
    assert_eq!(read(bytes.chunks(1), limits), whole, "byte by byte");
    for cut in 0..bytes.len().min(300) {
        assert_eq!(read([&bytes[..cut], &bytes[cut..]], limits), whole, "cut at {cut}");
    }
    let mut random = StdRng::seed_from_u64(bytes.len() as u64);
    for _ in 0..20 {
        let mut rest = bytes;
        let pieces = std::iter::from_fn(|| {
            let (piece, more) = rest.split_at(random.random_range(0..=rest.len().min(40)));
            let more_to_come = !rest.is_empty();
            rest = more;
            more_to_come.then_some(piece)
        });
        assert_eq!(read(pieces, limits), whole, "random cuts");
    }
    whole
}

/// A masked frame with the shortest length.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | len as u8),
        len @ ..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;
const TEXT_BEGINS: u8 = 0x01;
const BINARY_BEGINS: u8 = 0x02;
const GOES_ON: u8 = 0x00;
const ENDS: u8 = 0x80;

/// The events of these frames, without limits.
fn events(frames: &[(u8, &[u8])]) -> Vec<Seen> {
    let bytes: Vec<u8> = frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect();
    read_all_ways(&bytes, &Limits::NONE).0
}

/// What the first broken rule in raw bytes is.
fn violation(bytes: &[u8]) -> Violation {
    let (seen, parked) = read_all_ways(bytes, &Limits::NONE);
    assert!(parked, "a failed reader keeps nothing");
    match seen.last() {
        Some(Failed(violation)) => *violation,
        other => panic!("{bytes:x?} gave {other:?}"),
    }
}

#[test]
fn examples_of_the_rfc_are_read() {
    let (seen, parked) = read_all_ways(
        &[
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58, 0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f,
            0x9f, 0x4d, 0x51, 0x58,
        ],
        &Limits::NONE,
    );
    assert_eq!(seen, [text("Hello"), Pong(b"Hello".to_vec())]);
    assert!(parked);
}

#[test]
fn messages_of_every_length_form_are_read() {
    for len in [0, 1, 7, 8, 125, 126, 127, 128, 0xFFFF, 0x1_0000, 0x1_0001] {
        let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let bytes = frame(BINARY, &payload);
        assert_eq!(read([&bytes[..]], &Limits::NONE), (vec![Binary(payload.clone())], true));
        assert_eq!(read(bytes.chunks(997), &Limits::NONE), (vec![Binary(payload)], true));
        let bytes = frame(TEXT, &vec![b'*'; len]);
        assert_eq!(read_all_ways(&bytes, &Limits::NONE), (vec![Text("*".repeat(len))], true));
    }
}

#[test]
fn pings_and_pongs_up_to_125_bytes_are_read() {
    for payload in [&b""[..], b"hello", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", &[0xfe; 125]] {
        assert_eq!(events(&[(PING, payload), (PONG, payload)]), [Ping(payload.to_vec()), Pong(payload.to_vec())]);
    }
    for first in [PING, PONG, CLOSE] {
        assert_eq!(violation(&frame(first, &[0xfe; 126])), Violation::ControlTooLong);
        assert_eq!(violation(&[first, 0xFF]), Violation::ControlTooLong);
    }
}

#[test]
fn reserved_bits_are_refused_at_the_first_byte() {
    for first in 0..=0xFF_u8 {
        if first & 0x70 != 0 {
            assert_eq!(violation(&[first]), Violation::ReservedBits, "{first:x}");
        }
    }
    let after_a_message = [frame(TEXT, b"*"), frame(TEXT | 0x40, b"*"), frame(PING, b"")].concat();
    let (seen, _) = read_all_ways(&after_a_message, &Limits::NONE);
    assert_eq!(seen, [text("*"), Failed(Violation::ReservedBits)]);
}

#[test]
fn reserved_opcodes_are_refused_at_the_first_byte() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(violation(&[opcode]), Violation::ReservedOpcode);
        assert_eq!(violation(&frame(0x80 | opcode, b"x")), Violation::ReservedOpcode);
        let inside = [frame(TEXT_BEGINS, b"a"), vec![0x80 | opcode]].concat();
        assert_eq!(violation(&inside), Violation::ReservedOpcode);
    }
}

#[test]
fn unmasked_frames_are_refused_at_the_second_byte() {
    for first in [TEXT, BINARY, CLOSE, PING, PONG, TEXT_BEGINS] {
        assert_eq!(violation(&[first, 0x00]), Violation::Unmasked);
        assert_eq!(violation(&[first, 0x05, b'H', b'e', b'l', b'l', b'o']), Violation::Unmasked);
    }
}

#[test]
fn fragments_are_joined() {
    assert_eq!(events(&[(TEXT_BEGINS, b"fragment1"), (ENDS, b"fragment2")]), [text("fragment1fragment2")]);
    assert_eq!(events(&[(BINARY_BEGINS, b"\xff"), (GOES_ON, b"\x00"), (ENDS, b"\xfe")]), [Binary(vec![255, 0, 254])]);
    assert_eq!(events(&[(TEXT_BEGINS, b""), (GOES_ON, b""), (ENDS, b"")]), [text("")]);
    assert_eq!(events(&[(TEXT_BEGINS, b""), (GOES_ON, b"middle"), (ENDS, b"")]), [text("middle")]);
    assert_eq!(events(&[(TEXT_BEGINS, b"a"), (ENDS, b"b"), (TEXT, b"c")]), [text("ab"), text("c")]);
}

#[test]
fn control_frames_between_fragments_come_first() {
    let seen = events(&[
        (TEXT_BEGINS, b"fragment1"),
        (PING, b"pongme 1!"),
        (GOES_ON, b"fragment2"),
        (GOES_ON, b""),
        (PONG, b""),
        (PING, b"pongme 2!"),
        (ENDS, b"fragment3"),
        (PING, b"after"),
    ]);
    let expected = [
        Ping(b"pongme 1!".to_vec()),
        Pong(vec![]),
        Ping(b"pongme 2!".to_vec()),
        text("fragment1fragment2fragment3"),
        Ping(b"after".to_vec()),
    ];
    assert_eq!(seen, expected);
    assert_eq!(events(&[(TEXT_BEGINS, b"a"), (CLOSE, &[3, 232])]), [Close(Some((1000, String::new())))]);
}

#[test]
fn control_frames_cannot_be_fragmented() {
    for first in [CLOSE, PING, PONG] {
        assert_eq!(violation(&[first & 0x0F]), Violation::ControlFragmented);
        let inside = [frame(TEXT_BEGINS, b"a"), frame(first & 0x0F, b"")].concat();
        assert_eq!(violation(&inside), Violation::ControlFragmented);
    }
}

#[test]
fn continuations_need_a_message() {
    for first in [GOES_ON, ENDS] {
        assert_eq!(violation(&[first]), Violation::ContinuationStray);
        assert_eq!(violation(&[frame(TEXT, b"a"), frame(first, b"b")].concat()), Violation::ContinuationStray);
        let ended = [frame(TEXT_BEGINS, b"a"), frame(ENDS, b"b"), frame(first, b"c")].concat();
        assert_eq!(violation(&ended), Violation::ContinuationStray);
        assert_eq!(violation(&[frame(PING, b"a"), frame(first, b"c")].concat()), Violation::ContinuationStray);
    }
}

#[test]
fn messages_cannot_begin_inside_a_message() {
    for first in [TEXT, BINARY, TEXT_BEGINS, BINARY_BEGINS] {
        let bytes = [frame(TEXT_BEGINS, b"a"), frame(PING, b""), frame(first, b"b")].concat();
        assert_eq!(violation(&bytes), Violation::MessageInsideMessage);
    }
}

#[test]
fn lengths_have_to_be_minimal() {
    for len in [0_u16, 1, 125] {
        let bytes = [&[TEXT, 0xFE][..], &len.to_be_bytes()].concat();
        assert_eq!(violation(&bytes), Violation::LengthNotMinimal, "{len}");
    }
    for len in [0_u64, 125, 126, 0xFFFF] {
        let bytes = [&[TEXT, 0xFF][..], &len.to_be_bytes()].concat();
        assert_eq!(violation(&bytes), Violation::LengthNotMinimal, "{len}");
    }
}

#[test]
fn lengths_over_63_bits_are_refused() {
    for len in [1_u64 << 63, u64::MAX] {
        let bytes = [&[BINARY, 0xFF][..], &len.to_be_bytes()].concat();
        assert_eq!(violation(&bytes), Violation::LengthTopBit);
    }
}

#[test]
fn close_frames_are_read() {
    assert_eq!(events(&[(CLOSE, b"")]), [Close(None)]);
    assert_eq!(events(&[(CLOSE, b"\x03\xe8")]), [Close(Some((1000, String::new())))]);
    let greeting = [b"\x0b\xb8", "grüße".as_bytes()].concat();
    assert_eq!(events(&[(CLOSE, &greeting)]), [Close(Some((3000, "grüße".to_owned())))]);
    let longest = [&b"\x03\xe8"[..], &[b'*'; 123]].concat();
    assert_eq!(events(&[(CLOSE, &longest)]), [Close(Some((1000, "*".repeat(123))))]);
    assert_eq!(violation(&[CLOSE, 0x81]), Violation::CloseCodeCut);
}

#[test]
fn only_legal_close_codes_pass() {
    let legal = |code: u16| {
        [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014].contains(&code)
            || (3000..5000).contains(&code)
    };
    for code in 0..=u16::MAX {
        let (seen, parked) = read([&frame(CLOSE, &code.to_be_bytes())[..]], &Limits::NONE);
        let expected =
            if legal(code) { Close(Some((code, String::new()))) } else { Failed(Violation::CloseCodeIllegal) };
        assert_eq!(seen, [expected]);
        assert!(parked);
    }
}

#[test]
fn close_reasons_have_to_be_utf8() {
    let reason = b"\x03\xe8\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited";
    assert_eq!(violation(&frame(CLOSE, reason)), Violation::CloseReasonNotUtf8);
    assert_eq!(violation(&frame(CLOSE, b"\x03\xe8\xc3")), Violation::CloseReasonNotUtf8);
    assert_eq!(violation(&frame(CLOSE, b"\x03\xed\xff")), Violation::CloseCodeIllegal, "the code comes first");
}

#[test]
fn text_is_joined_across_cuts_inside_characters() {
    let all = "Hello-µ@ßöäüàá-UTF-8!! κόσμε 𐍈 \u{10FFFF} \u{FFFE} \u{0}";
    assert_eq!(events(&[(TEXT, all.as_bytes())]), [text(all)]);
    let bytes: Vec<u8> = all
        .bytes()
        .enumerate()
        .flat_map(|(i, byte)| frame(if i == 0 { TEXT_BEGINS } else { GOES_ON }, &[byte]))
        .chain(frame(ENDS, b""))
        .collect();
    assert_eq!(read([&bytes[..]], &Limits::NONE), (vec![text(all)], true));
    assert_eq!(read(bytes.chunks(3), &Limits::NONE), (vec![text(all)], true));
}

#[test]
fn text_is_refused_at_the_first_bad_byte() {
    for (bad, at) in [
        (&b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited"[..], 6),
        (b"abc\x80def", 3),
        (b"\xc0\xafxx", 0),
        (b"\xf4\x90\x80\x80", 1),
        (b"\xf8\x88\x80\x80\x80", 0),
        (b"\xe2\x82x", 2),
    ] {
        assert_eq!(violation(&frame(TEXT, bad)), Violation::TextNotUtf8);
        // The frame stays unfinished: its end is not needed to know.
        let cut = &frame(TEXT, bad)[..6 + at + 1];
        assert_eq!(violation(cut), Violation::TextNotUtf8, "{bad:x?}");
        assert_eq!(read([&cut[..6 + at]], &Limits::NONE), (vec![], false), "and not sooner");
        // The same with every byte in a fragment of its own, and controls between them.
        let mut bytes = frame(TEXT_BEGINS, b"ok ");
        for byte in &bad[..=at] {
            assert_eq!(read([&bytes[..]], &Limits::NONE).0.iter().filter(|seen| matches!(seen, Failed(_))).count(), 0);
            bytes.extend(frame(PING, b"?"));
            bytes.extend(frame(GOES_ON, &[*byte]));
        }
        assert_eq!(violation(&bytes), Violation::TextNotUtf8);
    }
    assert_eq!(events(&[(BINARY, b"\xff\xfe"), (PING, b"\xff")]).len(), 2, "only text has to be UTF-8");
}

#[test]
fn text_that_ends_inside_a_character_is_refused() {
    for open in [&b"\xc3"[..], b"\xe2\x82", b"\xf0\x9f\x98"] {
        assert_eq!(violation(&frame(TEXT, open)), Violation::TextNotUtf8);
        assert_eq!(violation(&[frame(TEXT_BEGINS, open), frame(ENDS, b"")].concat()), Violation::TextNotUtf8);
        assert_eq!(read([&frame(TEXT_BEGINS, open)[..]], &Limits::NONE), (vec![], false), "it may still go on");
    }
}

#[test]
fn a_message_of_the_size_limit_passes_and_one_byte_more_does_not() {
    let limits = Limits { message_bytes_max: 300, fragments_max: 10 };
    assert_eq!(read_all_ways(&frame(TEXT, &[b'a'; 300]), &limits), (vec![Text("a".repeat(300))], true));
    // The header is enough, none of the payload has to come.
    let header = |first, len: u16| [&[first, 0xFE][..], &len.to_be_bytes()].concat();
    assert_eq!(read_all_ways(&header(TEXT, 301), &limits), (vec![Failed(Violation::MessageTooBig)], true));
    let huge = [&[BINARY, 0xFF][..], &(i64::MAX as u64).to_be_bytes()].concat();
    assert_eq!(read_all_ways(&huge, &limits), (vec![Failed(Violation::MessageTooBig)], true));

    let fragments = [frame(TEXT_BEGINS, &[b'a'; 100]), frame(PING, &[0; 125]), frame(GOES_ON, &[b'a'; 100])].concat();
    let fits = [fragments.clone(), frame(ENDS, &[b'a'; 100])].concat();
    assert_eq!(read_all_ways(&fits, &limits), (vec![Ping(vec![0; 125]), Text("a".repeat(300))], true));
    let over = [fragments, frame(ENDS, &[b'a'; 101])[..2].to_vec()].concat();
    assert_eq!(read_all_ways(&over, &limits), (vec![Ping(vec![0; 125]), Failed(Violation::MessageTooBig)], true));
}

#[test]
fn a_sum_of_lengths_that_overflows_is_too_big_even_without_limit() {
    let half = [&[BINARY_BEGINS, 0xFF][..], &(i64::MAX as u64).to_be_bytes(), &MASK].concat();
    assert_eq!(read([&half[..]], &Limits::NONE), (vec![], false), "announced only: nothing is allocated for it");
    // Reached without sending 2^63 bytes by asking the header check itself.
    let open = Some(header::Open { bytes: usize::MAX, fragments: 1 });
    assert_eq!(Header::parse(&[ENDS, 0x81], open, &Limits::NONE).unwrap_err(), Violation::MessageTooBig);
}

#[test]
fn more_fragments_than_the_limit_are_refused_at_the_first_byte() {
    let limits = Limits { message_bytes_max: usize::MAX, fragments_max: 3 };
    let three = [frame(TEXT_BEGINS, b"a"), frame(GOES_ON, b""), frame(PING, b""), frame(ENDS, b"c")].concat();
    assert_eq!(read_all_ways(&[three.clone(), three].concat(), &limits).0.len(), 4, "each message counts anew");
    let four = [frame(TEXT_BEGINS, b"a"), frame(GOES_ON, b""), frame(GOES_ON, b""), vec![ENDS]].concat();
    assert_eq!(read_all_ways(&four, &limits), (vec![Failed(Violation::TooManyFragments)], true));
    let none = Limits { fragments_max: 0, ..limits };
    assert_eq!(read_all_ways(&[TEXT], &none), (vec![Failed(Violation::TooManyFragments)], true));
}

#[test]
fn violations_name_their_close_code_and_cause() {
    use crate::model::CloseCause;
    for (violation, code, cause) in [
        (Violation::ReservedBits, 1002, CloseCause::ProtocolError),
        (Violation::CloseCodeIllegal, 1002, CloseCause::ProtocolError),
        (Violation::CloseReasonNotUtf8, 1007, CloseCause::InvalidUtf8),
        (Violation::TextNotUtf8, 1007, CloseCause::InvalidUtf8),
        (Violation::MessageTooBig, 1009, CloseCause::MessageTooBig),
        (Violation::TooManyFragments, 1009, CloseCause::MessageTooBig),
    ] {
        assert_eq!((violation.close_code(), violation.cause()), (code, cause));
        assert!(close_code_is_legal(violation.close_code()));
        assert_eq!(violation.reason().is_empty(), code == 1009, "contract section 6: a bare 1009");
        assert!(violation.reason().is_empty() || violation.reason() == violation.to_string());
    }
}

#[test]
fn a_whole_frame_is_handed_out_in_place_and_nothing_is_kept() {
    let mut bytes = [frame(TEXT, b"one"), frame(PING, b"two"), frame(CLOSE, b"\x03\xe8three")].concat();
    let range = bytes.as_ptr_range();
    let mut input = &mut bytes[..];
    let mut reader = FrameReader::new();
    for _ in 0..3 {
        let payload = match reader.next(&mut input, &Limits::NONE).unwrap().unwrap() {
            Event::Message(Message::Text(Cow::Borrowed(text))) => {
                assert!(range.contains(&text.as_ptr()));
                continue;
            }
            Event::Message(Message::Binary(payload)) | Event::Ping(payload) | Event::Close(Some((_, payload))) => {
                payload
            }
            other => panic!("{other:?}"),
        };
        let Payload::Borrowed(payload) = payload else { panic!("copied") };
        assert!(range.contains(&payload.as_ptr()));
        assert_eq!(reader.heap_bytes(), 0);
    }
    assert_eq!(reader.next(&mut input, &Limits::NONE), Ok(None));
    assert!(reader.is_parked());
}

#[test]
fn a_frame_whose_header_was_cut_is_still_handed_out_in_place() {
    let bytes = frame(TEXT, &[b'a'; 200]);
    let mut reader = FrameReader::new();
    let (mut head, mut rest) = (bytes[..5].to_vec(), bytes[5..].to_vec());
    assert_eq!(reader.next(&mut &mut head[..], &Limits::NONE), Ok(None));
    assert!(!reader.is_parked());
    let mut rest = &mut rest[..];
    let event = reader.next(&mut rest, &Limits::NONE).unwrap().unwrap();
    assert!(matches!(event, Event::Message(Message::Binary(Payload::Borrowed(_)) | Message::Text(Cow::Borrowed(_)))));
    assert!(reader.is_parked());
}

#[test]
fn what_is_held_follows_what_arrived_and_not_what_was_announced() {
    const ANNOUNCED: usize = 1 << 40;
    let mut head = [&[BINARY, 0xFF][..], &(ANNOUNCED as u64).to_be_bytes(), &MASK].concat();
    let mut reader = FrameReader::new();
    assert_eq!(reader.next(&mut &mut head[..], &Limits::NONE), Ok(None));
    let fixed = reader.heap_bytes();
    assert!(fixed <= 192, "{fixed} bytes for the state alone");
    let mut arrived = 0;
    for len in [1, 1, 10, 1000, 4096, 65536, 65536, 1] {
        assert_eq!(reader.next(&mut &mut vec![0; len][..], &Limits::NONE), Ok(None));
        arrived += len;
        let held = reader.heap_bytes() - fixed;
        assert!(held >= arrived && held <= arrived + (arrived / 8).max(64), "{held} for {arrived}");
    }
}

#[test]
fn a_message_with_a_known_end_is_held_without_slack() {
    let bytes = frame(BINARY, &[7; 5000]);
    let mut reader = FrameReader::new();
    let mut pieces = bytes.chunks(4900);
    assert_eq!(reader.next(&mut &mut pieces.next().unwrap().to_vec()[..], &Limits::NONE), Ok(None));
    let mut last = pieces.next().unwrap().to_vec();
    let mut last = &mut last[..];
    let Ok(Some(Event::Message(Message::Binary(Payload::Owned(payload))))) = reader.next(&mut last, &Limits::NONE)
    else {
        panic!("not assembled")
    };
    assert_eq!((payload.len(), payload.capacity()), (5000, 5000));
    assert_eq!(reader.heap_bytes(), 0, "the reader let go of it");
}

#[test]
fn a_control_frame_inside_a_message_keeps_the_message() {
    let mut reader = FrameReader::new();
    let mut bytes = [frame(TEXT_BEGINS, b"a"), frame(PING, b"b")].concat();
    let mut input = &mut bytes[..];
    assert_eq!(reader.next(&mut input, &Limits::NONE).map(|event| event.map(see)), Ok(Some(Ping(b"b".to_vec()))));
    assert!(!reader.is_parked());
    let mut last = frame(ENDS, b"c");
    let mut input = &mut last[..];
    assert_eq!(reader.next(&mut input, &Limits::NONE).map(|event| event.map(see)), Ok(Some(text("ac"))));
    assert!(reader.is_parked());
}

fn encode(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame, opcode, payload);
    frame
}

fn close(code: Option<u16>, reason: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    write_close(&mut frame, code, reason);
    frame
}

#[test]
fn frames_are_written_with_the_shortest_header() {
    assert_eq!(encode(Opcode::Text, b"Hello"), [0x81, 5, b'H', b'e', b'l', b'l', b'o']);
    assert_eq!(encode(Opcode::Ping, b""), [0x89, 0]);
    assert_eq!(*header(Opcode::Binary, 125), [0x82, 125]);
    assert_eq!(*header(Opcode::Binary, 126), [0x82, 126, 0, 126]);
    assert_eq!(*header(Opcode::Text, 0xFFFF), [0x81, 126, 0xFF, 0xFF]);
    assert_eq!(*header(Opcode::Text, 0x1_0000), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    for len in [0, 125, 126, 0xFFFF, 0x1_0000] {
        let payload = vec![b'x'; len];
        let frame = encode(Opcode::Text, &payload);
        assert_eq!(*frame, [&*header(Opcode::Text, len), &payload].concat());
    }
}

#[test]
fn close_frames_are_written() {
    assert_eq!(close(None, "left out"), [0x88, 0]);
    assert_eq!(close(Some(1001), "Server restart"), b"\x88\x10\x03\xe9Server restart");
    let long = format!("{}ä", "x".repeat(122));
    assert_eq!(close(Some(1000), &long), [&b"\x88\x7c\x03\xe8"[..], &[b'x'; 122]].concat(), "cut before the ä");
}
