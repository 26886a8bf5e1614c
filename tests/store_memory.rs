//! What history and presence say that they take is what the process grows by.
//!
//! One test, because it is the whole process that is looked at.

use cableway::history::{History, HistoryLimits, Moment, STREAM_BYTES};
use cableway::model::{SharedText, Sid};
use cableway::os::{allocator, process};
use cableway::presence::Presence;

const LIMITS: HistoryLimits = HistoryLimits { messages_max: 100, ttl: 300, stream_bytes_max: usize::MAX };

/// Length of a message, at which its block is rounded up most.
const LEN: usize = 105;

/// Runs something and tells how much larger the process is after it.
fn growth<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = process::resident_bytes().unwrap() as usize;
    let made = make();
    (made, (process::resident_bytes().unwrap() as usize).saturating_sub(before))
}

/// The counted bytes are what was taken, but for holes between blocks; and not much more, though each thing is counted with
/// the largest share of its table that there can be.
fn assert_counted(what: &str, counted: usize, taken: usize) {
    println!("{what}: {counted} counted, {taken} taken");
    assert!(taken <= counted + counted / 20 + (1 << 19), "{what}: {counted} counted, {taken} taken");
    assert!(counted <= taken + taken / 2, "{what}: {counted} counted, {taken} taken");
}

fn filled(streams: usize, messages: usize) -> History {
    let mut history = History::new(LIMITS);
    let text = "x".repeat(LEN);
    for n in 0..messages {
        for stream in 0..streams {
            let at = Moment { mono: n as u32, wall: n as u32 };
            history.store(&format!("room:{stream:06}"), &SharedText::from(&*text), None, at);
        }
    }
    history
}

#[test]
fn counted_memory_is_real_memory() {
    allocator::give_back_early();
    let (long, taken) = growth(|| filled(2000, 100));
    assert_counted("100 messages of a stream", long.bytes(), taken);
    let most = long.messages() * (LEN + 64) + long.streams() * (STREAM_BYTES + 32 + 16 + 192);
    assert!(taken <= most + (1 << 20), "{taken} taken, {most} promised");

    // Twice as many as a queue keeps: what was dropped is not held.
    let (turned, taken) = growth(|| filled(1000, 200));
    assert_counted("100 messages out of 200", turned.bytes(), taken);

    let (short, taken) = growth(|| filled(100_000, 1));
    assert_counted("1 message of a stream", short.bytes(), taken);
    let most = short.streams() * (LEN + 64 + 150 + 11);
    assert!(taken <= most + (1 << 20), "{taken} taken, {most} promised");

    for streams in [1, 100_000] {
        let (presence, taken) = growth(|| {
            let mut presence = Presence::new(15);
            for n in 0..100_000_u32 {
                let sid = Sid::from_bits(u128::from(n));
                presence.join(&format!("room:{:06}", n % streams), sid, &format!("user:{n:06}"), Some("{\"a\":1}"));
            }
            presence
        });
        assert_counted(&format!("100000 present in {streams} streams"), presence.bytes(), taken);
        std::mem::forget(presence);
    }
}
