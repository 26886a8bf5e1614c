//! Where one process stops taking what comes by a channel, and another, which listens to it as well, goes on.
//!
//! What comes by pub/sub has no number. Each of the two notes what it gets, by its hash, from before the other listens. A mark,
//! published into the channel by the one that goes on, stands in both lists; what came behind it to the one that stops is
//! taken out of what came behind it to the other. A server with one order for all who listen (Redis) has both lists in one
//! order. Where several publishers overtake each other on the way (NATS, a Redis Cluster), a payload may stand in front of the
//! mark here and behind it there: within [`OVERTAKING`] before the mark it is looked for on both sides. So nothing is lost and
//! nothing comes twice; only a payload that crosses the mark on its way, while another that is equal byte for byte came within
//! that time, may be taken for that one.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::model::NameHasher;

/// How far publishers may overtake each other between a server and two that listen to it.
const OVERTAKING: Duration = Duration::from_millis(100);

/// How long whoever goes on listens before it publishes the mark: longer than [`OVERTAKING`], so that what may have overtaken
/// the mark has come.
pub const BEFORE_MARK: Duration = Duration::from_millis(250);

/// Payloads that are noted: more than a node can serve in the time of an upgrade. With more, the oldest are forgotten.
const NOTED_MAX: usize = 1 << 20;

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
    /// The text of the mark.
    pub fn mark(&self) -> &str {
        &self.mark
    }
}

/// One side of it. It costs nothing while nobody wants to know.
#[derive(Debug, Default)]
pub struct Seam(Mutex<Option<Noted>>);

#[derive(Debug)]
struct Noted {
    key: SeamKey,
    /// With the time of each.
    payloads: VecDeque<(u64, Instant)>,
    /// Payloads that were noted before those.
    forgotten: u64,
    /// The number of the first payload behind the mark, and when it came.
    mark: Option<(u64, Instant)>,
}

/// What the side that stops has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenThere {
    /// The mark has come.
    #[serde(default)]
    is_marked: bool,
    /// Behind the mark; where it has not come, all that was noted.
    #[serde(default)]
    behind: Vec<u64>,
    /// In front of it, and not long before.
    #[serde(default)]
    shortly_before: Vec<u64>,
    /// In front of it, all.
    #[serde(default)]
    before: Vec<u64>,
    /// In front of it, and not taken yet.
    #[serde(default)]
    left_before: Vec<u64>,
}

/// How often each hash occurs.
type Counts = HashMap<u64, usize, NameHasher>;

fn counted(hashes: impl IntoIterator<Item = u64>) -> Counts {
    let mut counts = Counts::default();
    hashes.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
    counts
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

    /// Hashes from one number to another.
    fn range(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, Instant)> {
        let at = |number: u64| number.saturating_sub(self.forgotten).min(self.payloads.len() as u64) as usize;
        self.payloads.range(at(from)..at(to)).copied()
    }
}

impl Seam {
    /// From now on what comes is noted.
    pub fn begin(&self, key: SeamKey) {
        *self.lock() = Some(Noted { key, payloads: VecDeque::new(), forgotten: 0, mark: None });
    }

    /// Nobody wants to know any more.
    pub fn end(&self) {
        *self.lock() = None;
    }

    /// The mark that is to be published, if what comes is noted.
    pub fn key(&self) -> Option<SeamKey> {
        self.lock().as_ref().map(|noted| noted.key.clone())
    }

    /// Whether the mark has come, or nobody wants to know.
    pub fn is_marked(&self) -> bool {
        self.lock().as_ref().is_none_or(|noted| noted.mark.is_some())
    }

    /// Something has come. Gives its number, if it is noted.
    pub fn note(&self, payload: &[u8]) -> Option<u64> {
        let mut state = self.lock();
        let noted = state.as_mut()?;
        if noted.payloads.len() == NOTED_MAX {
            noted.payloads.pop_front();
            noted.forgotten += 1;
        }
        let number = noted.number();
        noted.payloads.push_back((noted.key.hasher.hash_one(payload), Instant::now()));
        Some(number)
    }

    /// A mark has come: the one that is waited for, or that of another node. Where the link was lost meanwhile it may come
    /// again; the last one counts.
    pub fn mark(&self, text: &str) {
        if let Some(noted) = self.lock().as_mut().filter(|noted| noted.key.mark == text) {
            noted.mark = Some((noted.number(), Instant::now()));
        }
    }

    /// What this side has taken; those with the numbers of `left` it has not.
    pub fn taken(&self, left: &[u64]) -> TakenThere {
        let state = self.lock();
        let Some(noted) = &*state else { return TakenThere::default() };
        let mut left: Vec<u64> = left.to_vec();
        left.sort_unstable();
        let mut there = TakenThere { is_marked: noted.mark.is_some(), ..TakenThere::default() };
        let mark = noted.mark.unwrap_or((0, Instant::now()));
        for (number, (hash, came)) in (noted.forgotten..).zip(noted.range(0, u64::MAX)) {
            match (number < mark.0, left.binary_search(&number).is_ok()) {
                (true, true) => there.left_before.push(hash),
                (true, false) => {
                    there.before.push(hash);
                    if mark.1.duration_since(came) <= OVERTAKING {
                        there.shortly_before.push(hash);
                    }
                }
                (false, true) => {}
                (false, false) => there.behind.push(hash),
            }
        }
        there
    }

    /// Which numbers of this side the other one has taken.
    pub fn join(&self, there: &TakenThere) -> HashMap<u64, (), NameHasher> {
        let state = self.lock();
        let mut taken = HashMap::default();
        let Some(noted) = &*state else { return taken };
        let [mut before, mut shortly, mut behind, mut left] =
            [&there.before, &there.shortly_before, &there.behind, &there.left_before]
                .map(|hashes| counted(hashes.iter().copied()));
        let mut mark = 0;
        match noted.mark.filter(|_| there.is_marked) {
            Some((number, at)) => {
                mark = number;
                let all: Vec<_> = (noted.forgotten..number).zip(noted.range(0, number)).collect();
                for (number, (hash, came)) in all.into_iter().rev() {
                    // Those that are left there are the last ones.
                    let is_taken = if take(&mut left, hash) {
                        false
                    } else if take(&mut before, hash) {
                        take(&mut shortly, hash);
                        true
                    } else {
                        // It may be behind the mark there, or nowhere yet; what is older was there before this side listened.
                        at.duration_since(came) > OVERTAKING || take(&mut behind, hash)
                    };
                    if is_taken {
                        taken.insert(number, ());
                    }
                }
            }
            None => {
                shortly.clear();
                there.before.iter().for_each(|hash| *behind.entry(*hash).or_default() += 1);
            }
        }
        for (number, (hash, _)) in (mark.max(noted.forgotten)..).zip(noted.range(mark, u64::MAX)) {
            if take(&mut behind, hash) || take(&mut shortly, hash) {
                taken.insert(number, ());
            }
        }
        taken
    }

    /// Leaves those that have not come here.
    pub fn retain_unknown<T: AsRef<[u8]>>(&self, payloads: &mut Vec<T>) {
        let state = self.lock();
        let Some(noted) = &*state else { return };
        let mut known = counted(noted.payloads.iter().map(|(hash, _)| *hash));
        payloads.retain(|payload| !take(&mut known, noted.key.hasher.hash_one(payload.as_ref())));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Noted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is delivered when the one that stops has taken `old` up to `cut` and the other has got `new`. `M` is the mark, and
    /// at `|` some time passes.
    async fn delivered(old: &str, cut: usize, new: &str) -> String {
        let key = SeamKey::default();
        let (there, here) = (Seam::default(), Seam::default());
        [&there, &here].into_iter().for_each(|seam| seam.begin(key.clone()));
        let mut numbers = [Vec::new(), Vec::new()];
        for ((seam, payloads), numbers) in [(&there, old), (&here, new)].into_iter().zip(&mut numbers) {
            for payload in payloads.chars() {
                match payload {
                    'M' => seam.mark(key.mark()),
                    '|' => tokio::time::advance(BEFORE_MARK).await,
                    _ => numbers.extend(seam.note(payload.to_string().as_bytes()).map(|number| (number, payload))),
                }
            }
        }
        let [all, got] = numbers;
        let left: Vec<u64> = all.iter().skip(cut).map(|(number, _)| *number).collect();
        let text = rmp_serde::to_vec_named(&there.taken(&left)).unwrap();
        let taken = here.join(&rmp_serde::from_slice(&text).unwrap());
        let first = all.iter().take(cut).map(|(_, payload)| *payload);
        first.chain(got.iter().filter(|(number, _)| !taken.contains_key(number)).map(|(_, payload)| *payload)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lost_and_nothing_comes_twice_at_the_seam() {
        for (old, cut, new, expected) in [
            // In one order.
            ("abMcd", 4, "bMcdef", "abcdef"),
            ("abMcd", 3, "bMcdef", "abcdef"),
            ("abM", 2, "bMc", "abc"),
            // Equal payloads.
            ("aa|aMaa", 5, "aMaaaa", "aaaaaaa"),
            ("aM", 1, "aMa", "aa"),
            // One has overtaken the mark, here or there.
            ("abcMd", 4, "abMcde", "abcde"),
            ("abMcd", 4, "abcMde", "abcde"),
            ("abMcd", 4, "abcMdce", "abcdce"),
            // The one that stops has not got as far as the mark.
            ("ab", 2, "bcMd", "abcd"),
            ("", 0, "aMb", "ab"),
            ("abM", 2, "abcMd", "abcd"),
            ("abXM", 2, "abMXd", "abXd"),
            // What came before the mark was not all handed on.
            ("abcMd", 2, "bcMde", "abcde"),
            ("abcMd", 1, "cMde", "acde"),
            // The mark got lost.
            ("abc", 3, "bcd", "abcd"),
        ] {
            assert_eq!(delivered(old, cut, new).await, expected, "{old} {cut} {new}");
        }
    }

    #[tokio::test]
    async fn nothing_is_noted_that_nobody_wants_to_know() {
        let seam = Seam::default();
        assert_eq!((seam.note(b"a"), seam.is_marked(), seam.taken(&[])), (None, true, TakenThere::default()));
        seam.begin(SeamKey::default());
        assert_eq!((seam.note(b"a"), seam.is_marked()), (Some(0), false));
        let mut payloads = vec!["a", "b", "a"];
        seam.retain_unknown(&mut payloads);
        assert_eq!(payloads, ["b", "a"]);
        seam.mark("another");
        assert!(!seam.is_marked());
        seam.end();
        assert!(seam.join(&TakenThere::default()).is_empty());
    }

    #[tokio::test]
    async fn what_is_noted_is_bounded() {
        let seam = Seam::default();
        seam.begin(SeamKey::default());
        for n in 0..NOTED_MAX + 10 {
            assert_eq!(seam.note(&n.to_le_bytes()), Some(n as u64));
        }
        assert_eq!(seam.taken(&[]).behind.len(), NOTED_MAX);
    }
}
