use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const LIMITS: HistoryLimits = HistoryLimits { messages_max: 3, ttl: 10, stream_bytes_max: 1 << 20 };

fn at(second: u32) -> Moment {
    Moment { mono: second, wall: 1_000_000 + second }
}

fn wall(second: i64) -> i64 {
    1_000_000 + second
}

fn store(history: &mut History, stream: &str, text: &str, second: u32) -> u64 {
    history.store(stream, &text.into(), None, at(second))
}

fn texts(messages: Vec<StoredMessage>) -> Vec<(u64, String)> {
    messages.into_iter().map(|stored| (stored.offset, stored.message.to_string())).collect()
}

fn after(history: &History, stream: &str, offset: u64, second: u32) -> Result<Vec<u64>, Gone> {
    let messages = history.after(stream, offset, at(second))?;
    Ok(messages.into_iter().map(|stored| stored.offset).collect())
}

#[test]
fn offsets_begin_at_one_and_are_counted_for_each_stream() {
    let mut history = History::new(LIMITS);
    assert_eq!(history.head("a"), 0);
    assert_eq!((store(&mut history, "a", "1", 0), store(&mut history, "a", "2", 0)), (1, 2));
    assert_eq!(store(&mut history, "b", "1", 0), 1);
    assert_eq!((history.head("a"), history.head("b"), history.streams(), history.messages()), (2, 1, 2, 3));
}

#[test]
fn a_message_comes_back_as_it_was_stored_and_shares_its_memory() {
    let mut history = History::new(LIMITS);
    let (message, kind) = (SharedText::from("{\"a\":1}"), SharedText::from("presence"));
    history.store("a", &"0".into(), None, at(1));
    history.store("a", &message, Some(&kind), at(1));
    let stored = history.after("a", 1, at(1)).unwrap().remove(0);
    assert!(std::ptr::eq(stored.message.as_bytes(), message.as_bytes()));
    assert_eq!(stored, StoredMessage { offset: 2, message, kind: Some(kind) });
}

#[test]
fn after_gives_what_follows_an_offset_and_says_gone_where_something_may_be_missing() {
    let mut history = History::new(LIMITS);
    for n in 1..=5 {
        store(&mut history, "a", &n.to_string(), 0);
    }
    // 3, 4 and 5 are kept.
    assert_eq!(after(&history, "a", 3, 0), Ok(vec![4, 5]));
    assert_eq!(after(&history, "a", 2, 0), Ok(vec![3, 4, 5]), "one below the oldest kept: nothing is missing");
    assert_eq!(after(&history, "a", 1, 0), Err(Gone), "2 is missing");
    assert_eq!(after(&history, "a", 5, 0), Ok(vec![]));
    assert_eq!(after(&history, "a", 6, 0), Err(Gone), "never was");
    assert_eq!(after(&history, "a", 0, 0), Err(Gone));
    assert_eq!(after(&history, "b", 1, 0), Err(Gone), "unknown");
    assert_eq!(after(&history, "a", u64::MAX, 0), Err(Gone));
}

#[test]
fn what_is_too_old_is_not_given_before_it_is_swept_and_the_counter_goes_on() {
    for swept in [false, true] {
        let mut history = History::new(LIMITS);
        store(&mut history, "a", "1", 0);
        store(&mut history, "a", "2", 5);
        let sweep = |history: &mut History, second| swept.then(|| history.expire(at(second)));
        sweep(&mut history, 10);
        assert_eq!(history.since("a", 0, at(10)).len(), 2, "as old as the limit, not older");
        sweep(&mut history, 11);
        assert_eq!(texts(history.since("a", 0, at(11))), [(2, "2".into())]);
        assert_eq!(after(&history, "a", 1, 11), Ok(vec![2]));
        sweep(&mut history, 16);
        assert_eq!(history.since("a", 0, at(16)), []);
        assert_eq!(after(&history, "a", 1, 16), Err(Gone));
        assert_eq!(after(&history, "a", 2, 16), Ok(vec![]), "up to date, though all is gone");
        assert_eq!((history.messages(), history.head("a")), (if swept { 0 } else { 2 }, 2));
        assert_eq!(store(&mut history, "a", "3", 20), 3);
        assert_eq!(after(&history, "a", 2, 20), Ok(vec![3]));
        // The counter lives ten times as long after the last message.
        sweep(&mut history, 120);
        assert_eq!(after(&history, "a", 3, 120), Ok(vec![]));
        sweep(&mut history, 121);
        assert_eq!(after(&history, "a", 3, 121), Err(Gone));
        history.expire(at(121));
        assert_eq!((history.streams(), history.bytes(), history.head("a")), (0, 0, 0));
    }
}

#[test]
fn no_offset_is_given_out_twice_after_a_counter_was_forgotten() {
    // Aim: whoever slept past the life of a counter is told so, and is not sent what came much later as the next.
    let mut history = History::new(LIMITS);
    for _ in 0..3 {
        store(&mut history, "a", "old", 0);
    }
    history.expire(at(101));
    for offset in [4, 5, 6, 7] {
        assert_eq!(store(&mut history, "a", "new", 200), offset);
    }
    assert_eq!(after(&history, "a", 2, 200), Err(Gone));
    assert_eq!(after(&history, "a", 4, 200), Ok(vec![5, 6, 7]));
}

#[test]
fn since_takes_the_second_it_names_and_leaves_no_gap_when_the_clock_was_set_back() {
    let mut history = History::new(LIMITS);
    store(&mut history, "a", "1", 1);
    store(&mut history, "a", "2", 2);
    assert_eq!(texts(history.since("a", wall(2), at(3))), [(2, "2".into())]);
    assert_eq!(history.since("a", wall(1), at(3)).len(), 2);
    assert_eq!(history.since("a", wall(3), at(3)), []);
    assert_eq!(history.since("a", -5, at(3)).len(), 2);
    assert_eq!(history.since("a", i64::MAX, at(3)), []);
    assert_eq!(history.since("b", 0, at(3)), []);
    history.store("a", &"3".into(), None, Moment { mono: 3, wall: 5 });
    assert_eq!(texts(history.since("a", wall(2), at(3))), [(2, "2".into()), (3, "3".into())]);
}

#[test]
fn a_stream_is_bounded_in_messages_and_in_bytes_and_keeps_its_newest() {
    let entry = |len: usize| entry_bytes(&"x".repeat(len).into(), None);
    let mut history = History::new(HistoryLimits { messages_max: 100, stream_bytes_max: 5 * entry(100), ttl: 10 });
    for _ in 0..20 {
        store(&mut history, "a", &"x".repeat(100), 0);
    }
    assert_eq!(history.messages(), 5);
    store(&mut history, "a", &"x".repeat(200), 0);
    assert_eq!(after(&history, "a", 17, 0), Ok(vec![18, 19, 20, 21]));
    store(&mut history, "a", &"x".repeat(100_000), 0);
    assert_eq!(after(&history, "a", 21, 0), Ok(vec![22]));
    let with_long = history.bytes();
    store(&mut history, "a", "x", 0);
    assert_eq!(after(&history, "a", 22, 0), Ok(vec![23]));
    assert!(history.bytes() < with_long - 99_000);

    let mut none = History::new(HistoryLimits { messages_max: 0, ..LIMITS });
    assert_eq!((store(&mut none, "a", "1", 0), store(&mut none, "a", "2", 0)), (1, 2));
    assert_eq!((none.messages(), after(&none, "a", 2, 0), after(&none, "a", 1, 0)), (0, Ok(vec![]), Err(Gone)));
}

#[test]
fn memory_is_taken_from_the_least_recently_published_stream_first() {
    let mut history = History::new(HistoryLimits { messages_max: 100, ..LIMITS });
    for stream in ["a", "b", "c"] {
        for _ in 0..100 {
            store(&mut history, stream, &"x".repeat(100), 0);
        }
    }
    store(&mut history, "a", "again", 1);
    let before = history.bytes();
    let freed = history.evict(1);
    assert!(freed >= 1 && freed < 1000, "one message: {freed}");
    assert_eq!((history.bytes(), history.messages()), (before - freed, 299));
    assert_eq!(after(&history, "b", 1, 1).map(|left| left.len()), Ok(99));
    assert_eq!(after(&history, "b", 99, 1), Ok(vec![100]));
    // All messages of `b`; its counter is the last of it.
    let rest = 99 * entry_bytes(&"x".repeat(100).into(), None);
    history.evict(rest);
    assert_eq!((history.messages(), history.streams(), after(&history, "b", 100, 1)), (200, 3, Ok(vec![])));
    history.evict(1);
    assert_eq!((history.messages(), history.streams(), after(&history, "b", 100, 1)), (200, 2, Err(Gone)));
    history.evict(1);
    assert_eq!((after(&history, "c", 1, 1).map(|left| left.len()), history.messages()), (Ok(99), 199));
    let left = history.bytes();
    assert_eq!(history.evict(usize::MAX), left);
    assert_eq!((history.bytes(), history.messages(), history.streams()), (0, 0, 0));
    assert_eq!(history.evict(1), 0);
}

#[test]
fn a_stored_message_costs_its_bytes_and_at_most_64_more() {
    for len in (0..100).chain([1000, 5000]) {
        let mut history = History::new(HistoryLimits { messages_max: 300, ..LIMITS });
        let text = SharedText::from("x".repeat(len));
        for n in 1..=1000 {
            history.store("a", &text, None, at(n / 100));
            if n % 37 == 0 {
                history.evict(20_000);
                history.expire(at(n / 100));
            }
            let stream = STREAM_BYTES + block_bytes(1) + 16 + 192;
            assert!(history.bytes() <= history.messages() * (len + 64) + stream, "{len} {n}: {}", history.bytes());
        }
    }
    // Streams of one message, and their counters alone.
    let mut history = History::new(LIMITS);
    for n in 0..10_000 {
        store(&mut history, &format!("room:{n:06}"), "x", 0);
    }
    assert!(history.bytes() <= 10_000 * (11 + 150 + 1 + 64), "{}", history.bytes() / 10_000);
    history.expire(at(11));
    assert!(history.bytes() <= 10_000 * (11 + 150), "{}", history.bytes() / 10_000);
}

/// What [`History`] says it does, as simply as possible.
#[derive(Default)]
struct Model {
    streams: HashMap<String, ModelStream>,
    forgotten: u64,
}

#[derive(Default)]
struct ModelStream {
    head: u64,
    last: u32,
    /// Offset, text, moment.
    kept: Vec<(u64, String, Moment)>,
}

impl Model {
    fn store(&mut self, stream: &str, text: &str, at: Moment) -> u64 {
        let fresh = ModelStream { head: self.forgotten, ..Default::default() };
        let stream = self.streams.entry(stream.to_owned()).or_insert(fresh);
        stream.head += 1;
        stream.last = at.mono;
        stream.kept.push((stream.head, text.to_owned(), at));
        if stream.kept.len() > LIMITS.messages_max as usize {
            stream.kept.remove(0);
        }
        stream.head
    }

    fn expire(&mut self, now: Moment) {
        for stream in self.streams.values_mut() {
            stream.kept.retain(|(_, _, at)| now.mono - at.mono <= LIMITS.ttl);
        }
        let dead = |stream: &ModelStream| now.mono - stream.last > 10 * LIMITS.ttl;
        let heads = self.streams.values().filter(|stream| dead(stream)).map(|stream| stream.head);
        self.forgotten = heads.max().unwrap_or(0).max(self.forgotten);
        self.streams.retain(|_, stream| !dead(stream));
    }

    fn after(&self, stream: &str, offset: u64) -> Option<Vec<(u64, String)>> {
        let stream = self.streams.get(stream).filter(|_| offset > 0)?;
        (offset..=stream.head).next()?;
        let all: Option<Vec<_>> = (offset + 1..=stream.head).map(|o| stream.kept.iter().find(|k| k.0 == o)).collect();
        Some(all?.into_iter().map(|(offset, text, _)| (*offset, text.clone())).collect())
    }
}

#[test]
fn random_use_gives_what_a_simple_model_gives() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut history, mut model) = (History::new(LIMITS), Model::default());
        let mut now = at(0);
        for step in 0..2000 {
            let stream = format!("s{}", random.random_range(0..30) * random.random_range(0..30));
            match random.random_range(0..10) {
                0..5 => {
                    let text = format!("message {step}");
                    // A dead counter is only certain to be forgotten once it was swept.
                    history.expire(now);
                    model.expire(now);
                    assert_eq!(store(&mut history, &stream, &text, now.mono), model.store(&stream, &text, now));
                }
                5 => now = at(now.mono + [0, 1, 3, 11, 60, 101][random.random_range(0..6)]),
                6 => history.expire(now),
                _ => {}
            }
            model.expire(now);
            let head = model.streams.get(&stream).map_or(0, |stream| stream.head);
            for offset in head.saturating_sub(5)..head + 2 {
                let given = history.after(&stream, offset, now).ok().map(texts);
                assert_eq!(given, model.after(&stream, offset), "seed {seed} step {step} {stream} {offset}");
            }
            let second = now.mono.saturating_sub(random.random_range(0..12));
            let kept = model.streams.get(&stream).map_or(&[][..], |stream| &stream.kept);
            let since = kept.iter().filter(|(_, _, at)| at.mono >= second).map(|(o, text, _)| (*o, text.clone()));
            assert_eq!(texts(history.since(&stream, wall(second.into()), now)), since.collect::<Vec<_>>());
            if step % 16 == 0 {
                assert_sums(&history);
            }
        }
        history.expire(at(now.mono + 101));
        assert_eq!((history.streams(), history.messages(), history.bytes()), (0, 0, 0), "seed {seed}");
    }
}

/// The sums and the list are those of what is there.
fn assert_sums(history: &History) {
    let streams = history.streams.as_slice();
    assert_eq!(history.bytes(), streams.iter().map(Stream::bytes).sum::<usize>());
    assert_eq!(history.messages(), streams.iter().map(|stream| stream.kept.len()).sum::<usize>());
    let listed = |from: u32, step: fn(&Stream) -> u32| {
        std::iter::successors(streams.get(from as usize), move |at| streams.get(step(at) as usize)).map(|at| at.mono)
    };
    let down: Vec<_> = listed(history.newest, |stream| stream.older).collect();
    let mut up: Vec<_> = listed(history.oldest, |stream| stream.newer).collect();
    assert!(up.is_sorted() && up.len() == streams.len());
    up.reverse();
    assert_eq!(down, up);
}
