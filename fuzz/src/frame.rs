//! Whatever bytes a client sends, and however the network cuts them, the reader says the same, keeps little, and keeps
//! nothing when nothing is unfinished.

use cableway::proto::frame::{CONTROL_BYTES_MAX, Event, FrameReader, Kind, Limits, Violation, close_code_is_legal};

/// How a stream is cut into reads.
enum Cuts {
    Whole,
    Bytes,
    /// Lengths drawn from this state.
    Random(u32),
}

impl Cuts {
    fn next_len(&mut self, left: usize) -> usize {
        match self {
            Cuts::Whole => left,
            Cuts::Bytes => 1,
            Cuts::Random(state) => {
                *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (*state >> 24) as usize % 70
            }
        }
    }
}

/// What a stream came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    events: Vec<Said>,
    end: End,
}

/// An event on its own.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Message(Kind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, Vec<u8>)>),
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Parked,
    Unfinished,
    Closed,
    Failed(Violation),
}

/// The first five bytes choose limits and cuts, the others are the stream.
pub fn check(data: &[u8]) {
    let Some((&[size, fragments, cut_a, cut_b, cut_c], stream)) = data.split_first_chunk() else { return };
    let limits = Limits {
        message_bytes_max: if size == 0 { usize::MAX } else { usize::from(size) * 16 },
        fragments_max: if fragments == 0 { u32::MAX } else { u32::from(fragments) },
    };
    let whole = read(stream, Cuts::Whole, &limits);
    assert_eq!(read(stream, Cuts::Bytes, &limits), whole);
    assert_eq!(read(stream, Cuts::Random(u32::from_be_bytes([0, cut_a, cut_b, cut_c])), &limits), whole);
}

fn read(stream: &[u8], mut cuts: Cuts, limits: &Limits) -> Outcome {
    let mut reader = FrameReader::new();
    let mut events = Vec::new();
    let mut rest = stream;
    let mut end = None;
    let mut arrived = 0;
    while end.is_none() && !rest.is_empty() {
        let (piece, more) = rest.split_at(cuts.next_len(rest.len()).min(rest.len()));
        rest = more;
        arrived += piece.len();
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        end = loop {
            let before = input.len();
            match reader.next(&mut input, limits) {
                Ok(Some(event)) => {
                    assert!(input.len() < before || before == 0, "an event without a byte");
                    let said = look_at(event, limits);
                    let closed = matches!(said, Said::Close(_));
                    events.push(said);
                    if closed {
                        break Some(End::Closed);
                    }
                }
                Ok(None) => {
                    assert!(input.is_empty(), "bytes were left");
                    break None;
                }
                Err(violation) => {
                    assert!(reader.is_parked(), "a failed reader keeps nothing");
                    break Some(End::Failed(violation));
                }
            }
        };
        // The state itself, what arrived, and an eighth or 64 bytes more for a message and for a control frame.
        let held_max = 192 + arrived + arrived / 8 + 2 * 64;
        assert!(reader.heap_bytes() <= held_max, "{} bytes held of {arrived}", reader.heap_bytes());
        assert_eq!(reader.is_parked(), reader.heap_bytes() == 0);
    }
    let end = end.unwrap_or(if reader.is_parked() { End::Parked } else { End::Unfinished });
    Outcome { events, end }
}

fn look_at(event: Event<'_>, limits: &Limits) -> Said {
    match event {
        Event::Message(message) => {
            assert!(message.bytes().len() <= limits.message_bytes_max);
            assert!(message.kind() == Kind::Binary || std::str::from_utf8(message.bytes()).is_ok());
            Said::Message(message.kind(), message.bytes().to_vec())
        }
        Event::Ping(payload) => {
            assert!(payload.len() <= CONTROL_BYTES_MAX);
            Said::Ping(payload.to_vec())
        }
        Event::Pong(payload) => {
            assert!(payload.len() <= CONTROL_BYTES_MAX);
            Said::Pong(payload.to_vec())
        }
        Event::Close(None) => Said::Close(None),
        Event::Close(Some((code, reason))) => {
            assert!(close_code_is_legal(code) && std::str::from_utf8(&reason).is_ok());
            Said::Close(Some((code, reason.to_vec())))
        }
    }
}
