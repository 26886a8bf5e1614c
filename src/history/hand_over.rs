//! What a history gives to another one that goes on with it: first everything, then, as often as it is asked, only what
//! has changed since.
//!
//! A stream that is published to becomes the newest of its list, so those that have changed stand together at its end, and
//! each counts how many messages it has not given yet. What is not asked for costs an addition a message.

use serde::{Deserialize, Serialize};

use crate::model::SharedText;

use super::{Entry, History, Stream};

/// No stream has come so far; more would not leave room to count on.
pub const OFFSET_MAX: u64 = 1 << 62;

/// One stream with its newest messages, in rows: a name for each message would take more than most messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Rows")]
pub struct KeptStream {
    name: SharedText,
    /// Offset of the newest message, kept or not.
    head: u64,
    /// When the newest message came, in monotonic seconds.
    mono: u32,
    /// How many messages are kept. Of those before, whoever has them drops them.
    kept: u32,
    /// The newest of them, oldest first.
    messages: Vec<SharedText>,
    /// The kind of each; empty if none has any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<Option<SharedText>>,
    /// When each came, in monotonic seconds and in Unix time.
    monos: Vec<u32>,
    walls: Vec<u32>,
}

/// The same, as somebody has written it.
#[derive(Deserialize)]
struct Rows {
    name: SharedText,
    head: u64,
    mono: u32,
    kept: u32,
    messages: Vec<SharedText>,
    #[serde(default)]
    kinds: Vec<Option<SharedText>>,
    monos: Vec<u32>,
    walls: Vec<u32>,
}

impl TryFrom<Rows> for KeptStream {
    type Error = &'static str;

    fn try_from(rows: Rows) -> Result<KeptStream, &'static str> {
        let Rows { name, head, mono, kept, messages, kinds, monos, walls } = rows;
        let count = messages.len();
        if monos.len() != count || walls.len() != count || !(kinds.is_empty() || kinds.len() == count) {
            return Err("a stream whose rows do not have one length");
        }
        if count > kept as usize || u64::from(kept) > head || head > OFFSET_MAX {
            return Err("a stream with more messages than were published to it");
        }
        if !monos.is_sorted() || monos.last().is_some_and(|last| *last > mono) {
            return Err("a stream whose messages are not in their order");
        }
        Ok(KeptStream { name, head, mono, kept, messages, kinds, monos, walls })
    }
}

impl KeptStream {
    /// The name of the stream.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// About how many bytes its texts have.
    pub fn bytes(&self) -> usize {
        let kinds = self.kinds.iter().flatten();
        self.name.as_bytes().len()
            + self.messages.iter().chain(kinds).map(|text| text.as_bytes().len() + 16).sum::<usize>()
    }

    /// A stream and its `newest` messages.
    fn of(stream: &Stream, newest: usize) -> KeptStream {
        let entries = || stream.kept.range(stream.kept.len() - newest..);
        let has_kinds = entries().any(|entry| entry.kind.is_some());
        KeptStream {
            name: (*stream.name).into(),
            head: stream.head,
            mono: stream.mono,
            kept: stream.kept.len() as u32,
            messages: entries().map(|entry| entry.message.clone()).collect(),
            kinds: entries().filter(|_| has_kinds).map(|entry| entry.kind.clone()).collect(),
            monos: entries().map(|entry| entry.mono).collect(),
            walls: entries().map(|entry| entry.wall).collect(),
        }
    }
}

impl History {
    /// Everything, those streams first that were published to least lately. From now on it is noted what changes.
    pub fn all(&mut self) -> Vec<KeptStream> {
        self.streams.as_mut_slice().iter_mut().for_each(|stream| stream.unseen = 0);
        self.newest_first(|_| true).map(|stream| KeptStream::of(stream, stream.kept.len())).rev_collect()
    }

    /// What has changed since [`all`](Self::all) or this was called last, in the same order.
    pub fn changed(&mut self) -> Vec<KeptStream> {
        let changed = self.newest_first(|stream| stream.unseen > 0);
        let changed = changed.map(|stream| KeptStream::of(stream, stream.kept.len().min(stream.unseen as usize)));
        let changed = changed.rev_collect();
        let mut at = self.newest;
        while let Some(stream) = self.streams.as_mut_slice().get_mut(at as usize).filter(|stream| stream.unseen > 0) {
            stream.unseen = 0;
            at = stream.older;
        }
        changed
    }

    /// The highest offset of all streams whose counter was forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Streams that are new begin behind this offset, as they would where it comes from.
    pub fn begin_behind(&mut self, forgotten: u64) {
        self.forgotten = self.forgotten.max(forgotten.min(OFFSET_MAX));
    }

    /// Goes on with a stream of another history. What is over the limits here is dropped.
    pub fn take_over(&mut self, given: KeptStream) {
        let KeptStream { name, head, mono, kept, messages, kinds, monos, walls } = given;
        let place = self.place_or_add(&name);
        let limits = self.limits;
        self.change(place, |stream| {
            let first = head - messages.len() as u64 + 1;
            if stream.head + 1 < first || stream.head > head {
                // Nothing that is here can be told to stand in front of these.
                while !stream.kept.is_empty() {
                    stream.pop();
                }
                stream.head = first - 1;
            }
            let known = (stream.head + 1 - first) as usize;
            let mut kinds = kinds.into_iter().skip(known);
            let rows = messages.into_iter().zip(monos).zip(walls).skip(known);
            for ((message, mono), wall) in rows {
                stream.push(Entry { message, kind: kinds.next().flatten(), mono, wall });
            }
            (stream.head, stream.mono, stream.unseen) = (head, mono, 0);
            let kept = kept.min(limits.messages_max) as usize;
            while stream.kept.len() > kept || (stream.kept.len() > 1 && stream.kept_bytes > limits.stream_bytes_max) {
                stream.pop();
            }
        });
        self.unlink(place);
        self.link_newest(place);
    }

    /// Streams from the newest on, while they are wanted.
    fn newest_first(&self, is_wanted: fn(&Stream) -> bool) -> impl Iterator<Item = &Stream> {
        let at = move |place: u32| self.streams.as_slice().get(place as usize).filter(|stream| is_wanted(stream));
        std::iter::successors(at(self.newest), move |stream| at(stream.older))
    }
}

/// For lists that are walked from their other end.
trait RevCollect: Iterator + Sized {
    fn rev_collect(self) -> Vec<Self::Item> {
        let mut list: Vec<_> = self.collect();
        list.reverse();
        list
    }
}

impl<I: Iterator> RevCollect for I {}

#[cfg(test)]
mod tests {
    use super::super::{HistoryLimits, Moment};
    use super::*;
    use crate::model::seeded::{self, sent};

    fn history() -> History {
        History::new(HistoryLimits { messages_max: 10, ttl: 100, stream_bytes_max: 10_000 })
    }

    fn text(history: &History) -> String {
        let now = Moment::default();
        let stream = |stream: &Stream| {
            let messages = history.since(&stream.name, 0, now);
            let messages = messages.iter().map(|stored| format!("{}:{}", stored.offset, &*stored.message));
            format!("{} {} [{}]", stream.name, stream.head, messages.collect::<Vec<_>>().join(" "))
        };
        history.newest_first(|_| true).map(stream).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn another_history_is_the_same_after_all_and_any_number_of_changes() {
        // Aim: whatever happens between the pieces, the one that gets them has the same streams in the same order. A seeded
        // loop of stores and expiries, with pieces taken at any time.
        for seed in 0..200u64 {
            let mut next = seeded::numbers(seed);
            let (mut ours, mut theirs) = (history(), history());
            let mut mono = 0;
            for step in 0..200 {
                mono += next(3) as u32 / 2;
                let (message, kind) = (SharedText::from(format!("\"{step}\"")), SharedText::from("k"));
                let at = Moment { mono, wall: mono + 7 };
                ours.store(&next(8).to_string(), &message, (next(4) == 0).then_some(&kind), at);
                match next(40) {
                    0 if step < 100 => sent(ours.all()).into_iter().for_each(|stream| theirs.take_over(stream)),
                    1 if step > 100 => sent(ours.changed()).into_iter().for_each(|stream| theirs.take_over(stream)),
                    2 => ours.expire(Moment { mono: mono + 80, wall: 0 }),
                    _ => {}
                }
                if step == 100 {
                    theirs = history();
                    sent(ours.all()).into_iter().for_each(|stream| theirs.take_over(stream));
                    assert!(ours.changed().is_empty());
                }
            }
            sent(ours.changed()).into_iter().for_each(|stream| theirs.take_over(stream));
            theirs.begin_behind(ours.forgotten());
            // What is over is dropped by each when its time comes.
            for history in [&mut ours, &mut theirs] {
                history.expire(Moment { mono: mono + 80, wall: 0 });
            }
            assert_eq!(text(&theirs), text(&ours), "seed {seed}");
            assert_eq!((theirs.messages(), theirs.streams()), (ours.messages(), ours.streams()));
            let at = Moment { mono, wall: mono };
            let new = |history: &mut History| history.store("new", &"1".into(), None, at);
            assert_eq!(new(&mut theirs), new(&mut ours), "seed {seed}");
        }
    }

    #[test]
    fn only_what_came_since_is_given_again() {
        let mut ours = history();
        let at = Moment::default();
        for n in 0..8 {
            ours.store(&n.to_string(), &"1".into(), None, at);
        }
        assert_eq!(ours.all().len(), 8);
        ours.store("3", &"2".into(), None, at);
        ours.store("new", &"3".into(), None, at);
        let changed: Vec<_> =
            ours.changed().iter().map(|stream| (stream.name.to_string(), stream.messages.len())).collect();
        assert_eq!(changed, [("3".to_owned(), 1), ("new".to_owned(), 1)]);
        assert!(ours.changed().is_empty());
    }

    #[test]
    fn a_counter_that_was_forgotten_is_never_given_out_again() {
        let (mut ours, mut theirs) = (history(), history());
        for _ in 0..5 {
            ours.store("s", &"1".into(), None, Moment::default());
        }
        ours.expire(Moment { mono: 10_000, wall: 0 });
        theirs.begin_behind(ours.forgotten());
        assert_eq!(theirs.store("t", &"1".into(), None, Moment::default()), 6);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = {
            let mut ours = history();
            (0..3).for_each(|n| _ = ours.store("s", &"1".into(), None, Moment { mono: n, wall: n }));
            ours.all().remove(0)
        };
        let refused = |change: fn(&mut KeptStream)| {
            let mut bad = good.clone();
            change(&mut bad);
            rmp_serde::from_slice::<KeptStream>(&rmp_serde::to_vec_named(&bad).unwrap()).is_err()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|stream| _ = stream.walls.pop()));
        assert!(refused(|stream| stream.kinds = vec![None]));
        assert!(refused(|stream| stream.head = 2));
        assert!(refused(|stream| stream.kept = 2));
        assert!(refused(|stream| stream.monos = vec![2, 1, 0]));
        assert!(refused(|stream| stream.mono = 1));
    }
}
