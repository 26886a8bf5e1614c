//! Where one process stops taking what comes by a channel, and another, which listens to it as well, goes on.
//!
//! What comes by pub/sub has no number. Each of the two notes what it gets, by its hash, from before the other listens. Marks,
//! published into the channel by the one that goes on, stand in both lists. What has come to the one that stops, and to the
//! other one, too, is handed on once. What came to the one that stops before the other listened is looked for in front of the
//! last mark only. A server with one order for all who listen (Redis) has both lists in one order. Where several publishers
//! overtake each other on the way (NATS, a Redis Cluster), a payload may stand in front of the last mark there and behind it
//! here: then it stands behind the first mark there, which is published [`MARKS_APART`] before the last one, and as long after
//! this side listens. So nothing is lost and nothing comes twice, however late each of them reads; only a payload that crosses a
//! mark on its way, while another comes that is equal byte for byte, may be taken for that one. What has come to the one that
//! stops may come to the other only when it goes on already: it is known then for [`LATE`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::model::NameHasher;

/// How long whoever goes on listens before it publishes the first mark, and waits between that and the last one. No publisher
/// overtakes another by more between a server and two that listen to it.
pub const MARKS_APART: Duration = Duration::from_millis(125);

/// How long behind the change a payload is waited for that the one that stopped has got and the other has not: a process on a busy
/// machine reads late.
const LATE: Duration = Duration::from_secs(2);

/// Payloads that are noted: more than a node can serve in the time of an upgrade. With more, the oldest are forgotten.
const NOTED_MAX: usize = 1 << 20;

/// One of the two marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// What stands in front of it may have come before both sides listened.
    First,
    /// Both sides have got what stands in front of it, or do soon.
    Last,
}

impl Mark {
    /// In their order.
    pub const BOTH: [Mark; 2] = [Mark::First, Mark::Last];
}

/// What both sides know: how payloads are hashed, and what the mark is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeamKey {
    hasher: NameHasher,
    mark: String,
}

impl Default for SeamKey {
    fn default() -> SeamKey {
        SeamKey { hasher: NameHasher::default(), mark: format!("{:016x}", rand::random::<u64>()) }
    }
}

impl SeamKey {
    /// The text of a mark.
    pub fn text(&self, mark: Mark) -> String {
        match mark {
            // A process of before there were two passes this over.
            Mark::First => format!("{}-first", self.mark),
            Mark::Last => self.mark.clone(),
        }
    }
}

/// One side of it. It costs nothing while nobody wants to know.
#[derive(Debug, Default)]
pub struct Seam {
    noted: Option<Noted>,
    late: Option<Late>,
}

/// What comes still and is handed on.
#[derive(Debug)]
struct Late {
    hasher: NameHasher,
    counts: Counts,
    until: Instant,
}

/// What [`Seam::note`] says of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It is to be handed on. With its number, if it is noted.
    New(Option<u64>),
    /// The other side has handed it on.
    HandedOn,
}

#[derive(Debug)]
struct Noted {
    key: SeamKey,
    payloads: VecDeque<u64>,
    /// Payloads that were noted before those.
    forgotten: u64,
    /// The number of the first payload behind the first mark.
    first: Option<u64>,
    /// The same of the last mark.
    last: Option<u64>,
}

/// What has come to the side that stops. What is left there, with it, goes over by itself, and stands here apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CameThere {
    /// The last mark has come.
    #[serde(default)]
    is_marked: bool,
    /// Behind the last mark, but for what is left; where it has not come, all that was noted.
    #[serde(default)]
    behind: Vec<u64>,
    /// Between the marks, but for what is left.
    #[serde(default, rename = "shortly_before")]
    between: Vec<u64>,
    /// In front of it, all but for what is left.
    #[serde(default)]
    before: Vec<u64>,
    /// In front of it, what is left.
    #[serde(default)]
    left_before: Vec<u64>,
    /// Between the marks, what is left.
    #[serde(default)]
    left_between: Vec<u64>,
    /// More came than are noted.
    #[serde(default)]
    has_forgotten: bool,
}

/// How often each hash occurs.
type Counts = HashMap<u64, usize, NameHasher>;

fn counted(hashes: impl IntoIterator<Item = u64>) -> Counts {
    let mut counts = Counts::default();
    hashes.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
    counts
}

fn add(counts: &mut Counts, others: impl IntoIterator<Item = (u64, usize)>) {
    others.into_iter().for_each(|(hash, count)| *counts.entry(hash).or_default() += count);
}

/// Takes one out, if there is one.
fn take(counts: &mut Counts, hash: u64) -> bool {
    match counts.get_mut(&hash) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    }
}

impl Noted {
    fn number(&self) -> u64 {
        self.forgotten + self.payloads.len() as u64
    }

    /// Numbers and hashes, from one number to another.
    fn range(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        let at = |number: u64| number.saturating_sub(self.forgotten).min(self.payloads.len() as u64) as usize;
        (from.max(self.forgotten)..).zip(self.payloads.range(at(from)..at(to)).copied())
    }

    /// Which numbers of this side have come to the other one, and what has come there and not here.
    fn join(&self, there: CameThere, left: impl Iterator<Item = u64>) -> (HashSet<u64, NameHasher>, Counts) {
        let [mut before, mut between, mut behind] = [there.before, there.between, there.behind].map(counted);
        let mut left = counted(left);
        add(&mut between, counted(there.left_between));
        for hash in there.left_before {
            take(&mut left, hash);
            add(&mut before, [(hash, 1)]);
        }
        add(&mut behind, left);
        let mut known = HashSet::default();
        let last = self.last.filter(|_| there.is_marked);
        if let Some(last) = last {
            for (number, hash) in self.range(0, last) {
                let is_known = if take(&mut before, hash) {
                    take(&mut between, hash);
                    true
                } else {
                    // It may be behind the mark there, or forgotten there, or nowhere yet.
                    take(&mut behind, hash) || there.has_forgotten
                };
                known.extend(is_known.then_some(number));
            }
        } else {
            between.clear();
            add(&mut behind, before);
        }
        for (number, hash) in self.range(last.unwrap_or(0), u64::MAX) {
            let is_known = take(&mut behind, hash) || take(&mut between, hash);
            known.extend(is_known.then_some(number));
        }
        add(&mut behind, between);
        (known, behind)
    }
}

impl Seam {
    /// From now on what comes is noted.
    pub fn begin(&mut self, key: SeamKey) {
        self.noted = Some(Noted { key, payloads: VecDeque::new(), forgotten: 0, first: None, last: None });
    }

    /// Nobody wants to know any more.
    pub fn end(&mut self) {
        self.noted = None;
    }

    /// The mark that is to be published, if what comes is noted.
    pub fn key(&self) -> Option<SeamKey> {
        self.noted.as_ref().map(|noted| noted.key.clone())
    }

    /// Whether the mark has come, or nobody wants to know.
    pub fn is_marked(&self) -> bool {
        self.noted.as_ref().is_none_or(|noted| noted.last.is_some())
    }

    /// Something has come.
    pub fn note(&mut self, payload: &[u8]) -> Came {
        let number = self.noted.as_mut().map(|noted| {
            if noted.payloads.len() == NOTED_MAX {
                noted.payloads.pop_front();
                noted.forgotten += 1;
            }
            let number = noted.number();
            noted.payloads.push_back(noted.key.hasher.hash_one(payload));
            number
        });
        let Some(late) = &mut self.late else { return Came::New(number) };
        if late.until < Instant::now() {
            self.late = None;
        } else if take(&mut late.counts, late.hasher.hash_one(payload)) {
            return Came::HandedOn;
        }
        Came::New(number)
    }

    /// A mark has come: one that is waited for, or that of another node. Where the link was lost meanwhile it may come again; the
    /// last one of each counts.
    pub fn mark(&mut self, text: &str) {
        let Some(noted) = &mut self.noted else { return };
        let number = noted.number();
        match Mark::BOTH.into_iter().find(|mark| noted.key.text(*mark) == text) {
            Some(Mark::First) => noted.first = Some(number),
            Some(Mark::Last) => noted.last = Some(number),
            None => {}
        }
    }

    /// Other marks are waited for than until now, of which some may come still. Gives them, for the other side.
    pub fn renew_marks(&mut self) -> Option<SeamKey> {
        let noted = self.noted.as_ref()?;
        let key = SeamKey { mark: SeamKey::default().mark, hasher: noted.key.hasher };
        self.unmark(Some(key.clone()));
        Some(key)
    }

    /// Other marks are waited for, which the other side has given; one of before there were others gives none.
    pub fn unmark(&mut self, key: Option<SeamKey>) {
        let Some(noted) = &mut self.noted else { return };
        (noted.first, noted.last) = (None, None);
        noted.key = key.unwrap_or_else(|| noted.key.clone());
    }

    /// What has come here. Those with the numbers of `left` go over by themselves.
    pub fn came(&self, left: &[u64]) -> CameThere {
        let Some(noted) = &self.noted else { return CameThere::default() };
        let mut left: Vec<u64> = left.to_vec();
        left.sort_unstable();
        let mut here =
            CameThere { is_marked: noted.last.is_some(), has_forgotten: noted.forgotten > 0, ..CameThere::default() };
        let last = noted.last.unwrap_or(0);
        let first = noted.first.unwrap_or(last);
        for (number, hash) in noted.range(0, u64::MAX) {
            let is_left = left.binary_search(&number).is_ok();
            if number >= last {
                here.behind.extend((!is_left).then_some(hash));
                continue;
            }
            let (before, between) = match is_left {
                true => (&mut here.left_before, &mut here.left_between),
                false => (&mut here.before, &mut here.between),
            };
            before.push(hash);
            between.extend((number >= first).then_some(hash));
        }
        here
    }

    /// Goes on from the other side, and notes nothing any more. Gives which numbers of this side have come to the other one,
    /// too: it has handed them on, or they are in `left`, which this side has to hand on first.
    pub fn join<T: AsRef<[u8]>>(&mut self, there: CameThere, left: &[T]) -> HashSet<u64, NameHasher> {
        let Some(noted) = self.noted.take() else { return HashSet::default() };
        let hasher = noted.key.hasher;
        let is_marked = there.is_marked && noted.last.is_some();
        let (known, mut counts) = noted.join(there, left.iter().map(|payload| hasher.hash_one(payload.as_ref())));
        counts.retain(|_, count| *count > 0);
        // Without a mark what came before this side listened would be among them.
        let is_more_to_come = is_marked && !counts.is_empty();
        self.late = is_more_to_come.then(|| Late { hasher, counts, until: Instant::now() + LATE });
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is delivered when the one that stops has taken `old` up to `cut` and the other has got `new`, and gets the rest of
    /// it, from `!` on, when it goes on already. `m` and `M` are the marks, and at `|` some time passes.
    async fn delivered(old: &str, cut: usize, new: &str) -> String {
        let key = SeamKey::default();
        let mut seams = [Seam::default(), Seam::default()];
        seams.iter_mut().for_each(|seam| seam.begin(key.clone()));
        let mut numbers = [Vec::new(), Vec::new()];
        let (new, late) = new.split_once('!').unwrap_or((new, ""));
        for ((seam, payloads), numbers) in seams.iter_mut().zip([old, new]).zip(&mut numbers) {
            for payload in payloads.chars() {
                match payload {
                    'm' => seam.mark(&key.text(Mark::First)),
                    'M' => seam.mark(&key.text(Mark::Last)),
                    _ => match seam.note(payload.to_string().as_bytes()) {
                        Came::New(Some(number)) => numbers.push((number, payload)),
                        other => panic!("{other:?}"),
                    },
                }
            }
        }
        let [there, here] = &mut seams;
        let [all, got] = numbers;
        let (first, left) = all.split_at(cut);
        let text = rmp_serde::to_vec_named(&there.came(&left.iter().map(|(number, _)| *number).collect::<Vec<_>>()));
        let left: Vec<String> = left.iter().map(|(_, payload)| payload.to_string()).collect();
        let known = here.join(rmp_serde::from_slice(&text.unwrap()).unwrap(), &left);
        let mut delivered: String = first.iter().map(|(_, payload)| *payload).collect();
        delivered.extend(left);
        delivered.extend(got.iter().filter(|(number, _)| !known.contains(number)).map(|(_, payload)| *payload));
        for payload in late.chars() {
            if payload == '|' {
                tokio::time::advance(2 * LATE).await;
            } else if here.note(payload.to_string().as_bytes()) == Came::New(None) {
                delivered.push(payload);
            }
        }
        delivered
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lost_and_nothing_comes_twice_at_the_seam() {
        for (old, cut, new, expected) in [
            // In one order.
            ("abmMcd", 4, "bmMcdef", "abcdef"),
            ("abmMcd", 3, "bmMcdef", "abcdef"),
            ("abmM", 2, "bmMc", "abc"),
            ("amcM", 2, "mcMd", "acd"),
            // Equal payloads.
            ("aamaMaa", 5, "amaMaaaa", "aaaaaaa"),
            ("amM", 1, "amMa", "aa"),
            ("amM", 1, "mMa", "aa"),
            ("aamaMaa", 5, "maMaaaa", "aaaaaaa"),
            // One has overtaken a mark, here or there.
            ("amcMd", 3, "amMcde", "acde"),
            ("abmMcd", 4, "abmcMde", "abcde"),
            ("abmMcd", 4, "abmcMdce", "abcdce"),
            ("abmMcd", 3, "abmcMde", "abcde"),
            ("amM", 1, "maMb", "ab"),
            ("maM", 1, "amMb", "ab"),
            // The one that stops has not got as far as the mark, or never got it.
            ("ab", 2, "bcmMd", "abcd"),
            ("", 0, "amMb", "ab"),
            ("abmM", 2, "abcmMd", "abcd"),
            ("abmXM", 3, "abmMXd", "abXd"),
            ("amM", 1, "abmMc", "abc"),
            // What came before the mark was not all handed on.
            ("abmcMd", 2, "bmcMde", "abcde"),
            ("abmcMd", 1, "mcMde", "abcde"),
            // A mark got lost.
            ("abc", 3, "bcd", "abcd"),
            ("abc", 2, "bd", "abcd"),
            ("abMc", 2, "bmMcd", "abcd"),
            // What the one that stops has got comes to the other when it goes on: behind the mark, or overtaken by it.
            ("abmMcd", 4, "bmMc!de", "abcde"),
            ("abmMcd", 2, "bmM!cde", "abcde"),
            ("abmMcd", 3, "bmM!dce", "abcde"),
            ("ambMc", 3, "mM!bcbc", "abcbc"),
            ("ambMc", 1, "mM!bcbc", "abcbc"),
            ("amaMaa", 3, "maM!aaa", "aaaaa"),
            // What is left goes first, also where the other has got only some of it.
            ("abmMcde", 3, "bmMcd!ef", "abcdef"),
            ("abmMcde", 0, "bmMcd!ef", "abcdef"),
            ("abmcMd", 1, "bmM!cde", "abcde"),
            // Not for ever, and not what came before the other listened.
            ("abmMc", 3, "bmM!|c", "abcc"),
            ("amMc", 2, "mM!cac", "acac"),
            ("amMc", 0, "mM!cac", "acac"),
            ("abc", 3, "bc!cd", "abccd"),
        ] {
            assert_eq!(delivered(old, cut, new).await, expected, "{old} {cut} {new}");
        }
    }

    #[tokio::test]
    async fn nothing_is_noted_that_nobody_wants_to_know() {
        let mut seam = Seam::default();
        assert_eq!((seam.note(b"a"), seam.is_marked(), seam.came(&[])), (Came::New(None), true, CameThere::default()));
        seam.begin(SeamKey::default());
        assert_eq!((seam.note(b"a"), seam.is_marked()), (Came::New(Some(0)), false));
        seam.mark("another");
        assert!(!seam.is_marked());
        seam.end();
        assert!(seam.join(CameThere::default(), &["a"]).is_empty());
        assert_eq!(seam.note(b"a"), Came::New(None));
    }

    #[tokio::test]
    async fn what_is_noted_is_bounded() {
        let mut seam = Seam::default();
        seam.begin(SeamKey::default());
        for n in 0..NOTED_MAX + 10 {
            assert_eq!(seam.note(&n.to_le_bytes()), Came::New(Some(n as u64)));
        }
        let came = seam.came(&[]);
        assert_eq!((came.behind.len(), came.has_forgotten), (NOTED_MAX, true));
    }
}
