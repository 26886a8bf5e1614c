//! Which streams this node follows, by name, and how far the link is with them.
//!
//! A stream is followed while a shard does. The link hears of the first and of the last: [`Streams::changes`] gives it what
//! is to be subscribed to and what not any more. Unsubscribing waits for [`LEAVE_AFTER`], because a client that reloads its
//! page is back by then, and costs nothing.
//!
//! Another process that is about to go on as this node subscribes to what is followed here, as it is given it: once
//! ([`Streams::give`]), and once more what has come since ([`Streams::give_more_and_hold`]). A stream that is followed behind
//! that is held: nobody is told here that it is subscribed to, but there.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Incoming;
use crate::model::{NameHasher, NodeId};
use crate::proto::publication::between_nodes::Origin;

/// How long a stream that nobody here follows any more stays subscribed to.
const LEAVE_AFTER: Duration = Duration::from_secs(5);

/// Nobody waits longer to hear that a stream is subscribed to.
pub const WAIT_MAX: Duration = Duration::from_secs(1);

/// A power of two. Shards and the link rarely want the same lock.
const BUCKETS: usize = 64;

/// Nodes of which the numbers of one stream are kept. More publish to few streams, and then some gaps are not noticed.
const NODES_MAX: usize = 32;

/// Numbers that are further apart are none of one count: the other node has forgotten where it was.
const JUMP_MAX: u64 = 1 << 20;

/// Called once, by any thread; must not wait.
pub type Then = Box<dyn FnOnce() + Send>;

/// The table.
pub struct Streams {
    hasher: NameHasher,
    /// Each taken for one look.
    buckets: Box<[Mutex<Bucket>]>,
    /// Never taken together with a bucket.
    pending: Mutex<Pending>,
    changed: Notify,
    waiting: Notify,
    up: AtomicBool,
    /// A bucket may hold.
    holds: AtomicBool,
    /// Who is told of each subscription. It has this, so not the other way round.
    told: OnceLock<Weak<dyn Incoming>>,
}

struct Bucket {
    entries: HashMap<Arc<str>, Entry, NameHasher>,
    /// Everything was given away, and what is followed from now on is held. Changed together with what was given, so that
    /// nothing that somebody was told of is ever held.
    holds: bool,
}

/// There is one for each stream that this node follows, which may be one for each client: what most have nothing of is apart.
#[derive(Default)]
struct Entry {
    shards: u16,
    /// The server has acknowledged it.
    subscribed: bool,
    /// It stands in `Pending::leaving`.
    leaving: bool,
    /// Another process has it, or is about to.
    given: bool,
    /// Nobody is told that it is subscribed to, and what comes to it is for nobody.
    held: bool,
    more: Option<Box<More>>,
}

const _: () = assert!(size_of::<(Arc<str>, Entry)>() == 32);

/// What a stream has that somebody waits for, or that other nodes publish to.
#[derive(Default)]
struct More {
    waiting: Vec<Then>,
    /// The last number of each node.
    seen: Vec<(NodeId, u64)>,
}

impl Bucket {
    fn new(hasher: NameHasher) -> Bucket {
        Bucket { entries: HashMap::with_hasher(hasher), holds: false }
    }
}

impl Entry {
    fn take_waiting(&mut self) -> Vec<Then> {
        let waiting = self.more.as_mut().map(|more| std::mem::take(&mut more.waiting));
        self.more.take_if(|more| more.seen.is_empty());
        waiting.unwrap_or_default()
    }
}

/// What the link is to look at. Names stand here at most once each for each reason, so it is bounded by the table.
#[derive(Default)]
struct Pending {
    wanted: Vec<Arc<str>>,
    leaving: VecDeque<(Instant, Arc<str>)>,
    /// Somebody waits for these to be subscribed to, until then.
    awaited: VecDeque<(Instant, Arc<str>)>,
}

/// What is to be done by the link, in this order.
#[derive(Debug, Default)]
pub struct Changes {
    /// Streams to unsubscribe from.
    pub unsubscribe: Vec<Arc<str>>,
    /// Streams to subscribe to. When the server has acknowledged it, [`Streams::subscribed`] is to be told.
    pub subscribe: Vec<Arc<str>>,
}

/// A stream, and the last number of each node that published to it.
pub type Numbered = (Arc<str>, Vec<(NodeId, u64)>);

/// What the number of a publication says.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is the next one, or the first that is seen.
    Next,
    /// It was seen before.
    Again,
    /// So many before it did not come.
    After(u64),
}

impl Default for Streams {
    fn default() -> Streams {
        let hasher = NameHasher::default();
        Streams {
            hasher,
            buckets: (0..BUCKETS).map(|_| Mutex::new(Bucket::new(hasher))).collect(),
            pending: Mutex::default(),
            changed: Notify::new(),
            waiting: Notify::new(),
            up: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            told: OnceLock::new(),
        }
    }
}

impl Streams {
    /// Streams in the table.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| lock(bucket).entries.len()).sum()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more shard follows a stream. Gives its name, for other tables.
    pub fn follow(&self, stream: &str) -> Arc<str> {
        let mut bucket = self.bucket(stream);
        let Bucket { entries, holds } = &mut *bucket;
        if let Some((name, _)) = entries.get_key_value(stream) {
            let name = Arc::clone(name);
            entries.entry(Arc::clone(&name)).and_modify(|entry| {
                entry.held |= entry.shards == 0 && *holds && !entry.given;
                entry.shards += 1;
            });
            return name;
        }
        let name: Arc<str> = stream.into();
        entries.insert(Arc::clone(&name), Entry { shards: 1, held: *holds, ..Entry::default() });
        drop(bucket);
        lock(&self.pending).wanted.push(Arc::clone(&name));
        self.changed.notify_one();
        name
    }

    /// One shard less follows it.
    pub fn unfollow(&self, stream: &str) {
        let mut bucket = self.bucket(stream);
        let Some((name, _)) = bucket.entries.get_key_value(stream) else { return };
        let name = Arc::clone(name);
        let Some(entry) = bucket.entries.get_mut(stream) else { return };
        entry.shards = entry.shards.saturating_sub(1);
        if entry.shards > 0 || std::mem::replace(&mut entry.leaving, true) {
            return;
        }
        drop(bucket);
        lock(&self.pending).leaving.push_back((Instant::now() + LEAVE_AFTER, name));
        self.changed.notify_one();
    }

    /// Calls `then` once the stream is subscribed to; see [`Cluster::when_subscribed`](super::Cluster::when_subscribed).
    pub fn when_subscribed(&self, stream: &str, then: Then) {
        let mut bucket = self.bucket(stream);
        let name = bucket.entries.get_key_value(stream).map(|(name, _)| Arc::clone(name));
        let entry = bucket.entries.get_mut(stream).filter(|entry| !entry.subscribed || entry.held);
        let (Some(name), Some(entry)) = (name, entry) else {
            drop(bucket);
            return then();
        };
        // Looked at with the bucket locked: `went_down` clears this first and then goes through the buckets.
        if !self.up.load(Ordering::SeqCst) {
            entry.held = false;
            drop(bucket);
            return then();
        }
        entry.more.get_or_insert_default().waiting.push(then);
        drop(bucket);
        lock(&self.pending).awaited.push_back((Instant::now() + WAIT_MAX, name));
        self.waiting.notify_one();
    }

    /// What a publication's number says, for a stream that is followed; it is remembered.
    pub fn seen(&self, stream: &str, origin: Origin) -> Seen {
        let mut bucket = self.bucket(stream);
        let Some(entry) = bucket.entries.get_mut(stream) else { return Seen::Next };
        let More { seen, .. } = &mut **entry.more.get_or_insert_default();
        let Some((_, last)) = seen.iter_mut().find(|(node, _)| *node == origin.node) else {
            if seen.len() == NODES_MAX {
                seen.remove(0);
            }
            seen.push((origin.node, origin.seq));
            return Seen::Next;
        };
        if *last >= origin.seq && *last - origin.seq < JUMP_MAX {
            return Seen::Again;
        }
        let ahead = origin.seq.wrapping_sub(*last);
        *last = origin.seq;
        if (2..JUMP_MAX).contains(&ahead) { Seen::After(ahead - 1) } else { Seen::Next }
    }

    /// Whether nobody is told that this stream is subscribed to, because another process that goes on as this node has not got
    /// it: then what comes to it is for nobody.
    pub fn is_held(&self, stream: &str) -> bool {
        self.holds.load(Ordering::SeqCst) && self.bucket(stream).entries.get(stream).is_some_and(|entry| entry.held)
    }

    /// Everything that is followed, for another process.
    pub fn give(&self) -> Vec<Arc<str>> {
        self.let_go();
        self.give_behind(|bucket| bucket.entries.values_mut().for_each(|entry| entry.given = false))
    }

    /// What is followed and was not given, for the same process. What is followed behind that is held until
    /// [`let_go`](Self::let_go), or until the link is lost.
    pub fn give_more_and_hold(&self) -> Vec<Arc<str>> {
        self.holds.store(true, Ordering::SeqCst);
        self.give_behind(|bucket| bucket.holds = true)
    }

    /// What is followed and was not given, when each bucket has been changed so.
    fn give_behind(&self, change: impl Fn(&mut Bucket)) -> Vec<Arc<str>> {
        let mut names = Vec::new();
        for bucket in &self.buckets {
            let mut bucket = lock(bucket);
            change(&mut bucket);
            for (name, entry) in bucket.entries.iter_mut().filter(|(_, entry)| entry.shards > 0 && !entry.given) {
                entry.given = true;
                names.push(Arc::clone(name));
            }
        }
        names
    }

    /// There is no other process.
    pub fn let_go(&self) {
        if !self.holds.swap(false, Ordering::SeqCst) {
            return;
        }
        let due = Instant::now() + WAIT_MAX;
        for bucket in &self.buckets {
            let (mut waiting, mut awaited) = (Vec::new(), Vec::new());
            let mut bucket = lock(bucket);
            bucket.holds = false;
            for (name, entry) in bucket.entries.iter_mut().filter(|(_, entry)| entry.held) {
                entry.held = false;
                match entry.subscribed {
                    true => waiting.append(&mut entry.take_waiting()),
                    false => awaited.push((due, Arc::clone(name))),
                }
            }
            drop(bucket);
            waiting.into_iter().for_each(|then| then());
            lock(&self.pending).awaited.extend(awaited);
        }
        self.waiting.notify_one();
    }

    /// Whether all that is followed is subscribed to.
    pub fn are_all_subscribed(&self) -> bool {
        let all =
            |bucket: &Mutex<Bucket>| lock(bucket).entries.values().all(|entry| entry.subscribed || entry.shards == 0);
        self.up.load(Ordering::SeqCst) && self.buckets.iter().all(all)
    }

    /// The last number of each node, for up to so many streams.
    pub fn numbers(&self, max: usize) -> Vec<Numbered> {
        let mut numbers = Vec::new();
        for bucket in &self.buckets {
            let bucket = lock(bucket);
            let seen = bucket.entries.iter().filter_map(|(name, entry)| Some((name, &entry.more.as_ref()?.seen)));
            let seen = seen.filter(|(_, seen)| !seen.is_empty()).take(max - numbers.len());
            numbers.extend(seen.map(|(name, seen)| (Arc::clone(name), seen.clone())));
        }
        numbers
    }

    /// Another process has seen these. Of two numbers of one node the later one counts.
    pub fn take_over_numbers(&self, numbers: Vec<Numbered>) {
        for (name, numbers) in numbers {
            let mut bucket = self.bucket(&name);
            let Some(entry) = bucket.entries.get_mut(&name) else { continue };
            let More { seen, .. } = &mut **entry.more.get_or_insert_default();
            for (node, last) in numbers {
                if let Some((_, known)) = seen.iter_mut().find(|(known, _)| *known == node) {
                    if last.abs_diff(*known) < JUMP_MAX {
                        *known = last.max(*known);
                    }
                } else if seen.len() < NODES_MAX {
                    seen.push((node, last));
                }
            }
        }
    }

    /// A link is up: gives everything that is to be subscribed to. Changes since then come by [`Self::changes`].
    pub fn came_up(&self) -> Vec<Arc<str>> {
        {
            let mut pending = lock(&self.pending);
            pending.wanted.clear();
            pending.leaving.clear();
        }
        self.up.store(true, Ordering::SeqCst);
        let mut names = Vec::new();
        for bucket in &self.buckets {
            let mut bucket = lock(bucket);
            bucket.entries.retain(|_, entry| entry.shards > 0);
            names.extend(bucket.entries.iter_mut().map(|(name, entry)| {
                entry.leaving = false;
                Arc::clone(name)
            }));
        }
        names
    }

    /// The link is lost: nothing is subscribed to, and nobody waits for it.
    pub fn went_down(&self) {
        self.up.store(false, Ordering::SeqCst);
        for bucket in &self.buckets {
            let mut waiting = Vec::new();
            for entry in lock(bucket).entries.values_mut() {
                (entry.subscribed, entry.held) = (false, false);
                waiting.append(&mut entry.take_waiting());
            }
            waiting.into_iter().for_each(|then| then());
        }
    }

    /// Tells `incoming` of each subscription.
    pub(super) fn tell(&self, incoming: &Arc<dyn Incoming>) {
        // A second time there would be two media.
        let _ = self.told.set(Arc::downgrade(incoming));
    }

    /// The server has acknowledged these.
    pub fn subscribed(&self, names: &[Arc<str>]) {
        let told = self.told.get().and_then(Weak::upgrade);
        for name in names {
            let mut bucket = self.bucket(name);
            let Some(entry) = bucket.entries.get_mut(name) else { continue };
            entry.subscribed = true;
            let waiting = if entry.held { Vec::new() } else { entry.take_waiting() };
            drop(bucket);
            told.iter().for_each(|told| told.subscribed(name));
            waiting.into_iter().for_each(|then| then());
        }
    }

    /// Waits until there is something to do for the link. Whoever is dropped while it waits has taken nothing.
    pub async fn changes(&self) -> Changes {
        loop {
            let (changes, next) = self.due();
            if !(changes.subscribe.is_empty() && changes.unsubscribe.is_empty()) {
                return changes;
            }
            notified_or_due(&self.changed, next).await;
        }
    }

    fn due(&self) -> (Changes, Option<Instant>) {
        let (wanted, left, next) = {
            let mut pending = lock(&self.pending);
            let left = take_due(&mut pending.leaving);
            (std::mem::take(&mut pending.wanted), left, pending.leaving.front().map(|(due, _)| *due))
        };
        let mut changes = Changes::default();
        for name in left {
            let mut bucket = self.bucket(&name);
            let Some(entry) = bucket.entries.get_mut(&name).filter(|entry| entry.leaving) else { continue };
            entry.leaving = false;
            if entry.shards == 0 {
                bucket.entries.remove(&name);
                changes.unsubscribe.push(name);
            }
        }
        changes.subscribe = wanted
            .into_iter()
            .filter(|name| self.bucket(name).entries.get(name).is_some_and(|entry| !entry.subscribed))
            .collect();
        (changes, next)
    }

    /// Lets nobody wait longer than [`WAIT_MAX`], but for those that are held.
    pub(super) async fn keep_releasing(&self) {
        loop {
            let (late, next) = {
                let mut pending = lock(&self.pending);
                (take_due(&mut pending.awaited), pending.awaited.front().map(|(due, _)| *due))
            };
            for name in late {
                let mut bucket = self.bucket(&name);
                let entry = bucket.entries.get_mut(&name).filter(|entry| !entry.held);
                let waiting = entry.map(Entry::take_waiting);
                drop(bucket);
                waiting.into_iter().flatten().for_each(|then| then());
            }
            notified_or_due(&self.waiting, next).await;
        }
    }

    fn bucket(&self, stream: &str) -> MutexGuard<'_, Bucket> {
        // Bits that the bucket's own table uses neither for places nor for tags.
        lock(&self.buckets[(self.hasher.hash_one(stream) >> 32) as usize % BUCKETS])
    }
}

fn take_due(list: &mut VecDeque<(Instant, Arc<str>)>) -> Vec<Arc<str>> {
    let now = Instant::now();
    let due = list.partition_point(|(due, _)| *due <= now);
    list.drain(..due).map(|(_, name)| name).collect()
}

async fn notified_or_due(notify: &Notify, due: Option<Instant>) {
    let due = async {
        match due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = notify.notified() => {}
        () = due => {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave a table half changed, so a poisoned lock is used as it is.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn names(names: &[Arc<str>]) -> Vec<&str> {
        names.iter().map(|name| &**name).collect()
    }

    /// Whether there is nothing to do now.
    fn nothing(streams: &Streams) -> bool {
        let (changes, _) = streams.due();
        changes.subscribe.is_empty() && changes.unsubscribe.is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn the_link_hears_of_the_first_that_follows_and_of_the_last_only_after_a_while() {
        let streams = Streams::default();
        assert!(streams.came_up().is_empty());
        (0..3).for_each(|_| _ = streams.follow("a"));
        let changes = streams.changes().await;
        assert_eq!((names(&changes.subscribe), changes.unsubscribe.len()), (vec!["a"], 0));
        streams.subscribed(&changes.subscribe);
        // A client that is back soon costs nothing, however often.
        for _ in 0..100 {
            (0..3).for_each(|_| streams.unfollow("a"));
            (0..3).for_each(|_| _ = streams.follow("a"));
        }
        tokio::time::advance(2 * LEAVE_AFTER).await;
        assert!(nothing(&streams));
        (0..3).for_each(|_| streams.unfollow("a"));
        assert!(nothing(&streams));
        let begun = Instant::now();
        assert_eq!(names(&streams.changes().await.unsubscribe), ["a"]);
        assert!(begun.elapsed() >= LEAVE_AFTER && streams.is_empty());
        assert!(lock(&streams.pending).leaving.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_is_back_subscribes_to_all_that_is_followed_still() {
        let streams = Streams::default();
        ["a", "b", "c"].iter().for_each(|name| _ = streams.follow(name));
        streams.unfollow("b");
        let mut all = streams.came_up();
        all.sort();
        assert_eq!(names(&all), ["a", "c"]);
        assert!(nothing(&streams), "what came before is in it");
        streams.subscribed(&all);
        streams.went_down();
        streams.follow("d");
        assert_eq!(streams.came_up().len(), 3);
        tokio::time::advance(2 * LEAVE_AFTER).await;
        assert!(nothing(&streams));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_told_of_a_subscription_that_another_process_that_goes_on_has_not() {
        let streams = Arc::new(Streams::default());
        let called: Arc<Mutex<Vec<&str>>> = Arc::default();
        let wait = |stream: &'static str| {
            let called = Arc::clone(&called);
            streams.when_subscribed(stream, Box::new(move || lock(&called).push(stream)));
        };
        let calls = || std::mem::take(&mut *lock(&called)).join(" ");
        let releasing = Arc::clone(&streams);
        let releasing = tokio::spawn(async move { releasing.keep_releasing().await });
        streams.follow("a");
        let all = streams.came_up();
        streams.subscribed(&all);
        assert_eq!(names(&streams.give()), ["a"]);
        // Followed since: told as ever, and given behind it.
        streams.follow("b");
        wait("b");
        let subscribe = streams.changes().await.subscribe;
        streams.subscribed(&subscribe);
        assert_eq!(calls(), "b");
        streams.follow("c");
        wait("c");
        let mut more = streams.give_more_and_hold();
        more.sort();
        assert_eq!(names(&more), ["b", "c"]);
        // What was given is told still, what is not is not, however long it takes.
        ["d", "e"].iter().for_each(|name| _ = streams.follow(name));
        ["a", "b", "d", "e"].into_iter().for_each(wait);
        assert_eq!(calls(), "a b");
        let subscribe = streams.changes().await.subscribe;
        streams.subscribed(&subscribe.into_iter().filter(|name| &**name != "e").collect::<Vec<_>>());
        wait("d");
        assert_eq!(calls(), "c");
        assert_eq!(["c", "d", "x"].map(|name| streams.is_held(name)), [false, true, false]);
        tokio::time::sleep(2 * WAIT_MAX).await;
        assert_eq!(calls(), "");
        // It comes to nothing.
        streams.let_go();
        assert_eq!(calls(), "d d");
        tokio::time::sleep(2 * WAIT_MAX).await;
        assert_eq!(calls(), "e");
        // All of it for the next one.
        assert_eq!(streams.give().len(), 5);
        // A link that is lost promises nothing, and whoever was told gets what comes when it is back.
        streams.give_more_and_hold();
        streams.follow("f");
        wait("f");
        assert!(streams.is_held("f"));
        streams.went_down();
        streams.follow("g");
        wait("g");
        assert_eq!(calls(), "f g");
        streams.came_up();
        streams.follow("h");
        assert_eq!(["f", "g", "h"].map(|name| streams.is_held(name)), [false, false, true]);
        releasing.abort();
    }

    #[test]
    fn what_somebody_was_told_of_is_never_held() {
        let streams = Streams::default();
        streams.came_up();
        for round in 0..50 {
            streams.give();
            let followed: Vec<_> = (0..500).map(|n| streams.follow(&format!("{round} {n}"))).collect();
            streams.subscribed(&followed);
            let looks = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                let giving = scope.spawn(|| {
                    looks.wait();
                    streams.give_more_and_hold()
                });
                looks.wait();
                while !giving.is_finished() {
                    let held = followed.iter().find(|stream| streams.is_held(stream));
                    assert_eq!(held, None, "round {round}");
                }
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_subscription_is_called_when_it_is_there_or_the_link_is_away_or_it_takes_too_long() {
        let streams = Arc::new(Streams::default());
        let called = Arc::new(AtomicUsize::new(0));
        let wait = |stream: &str| {
            let called = Arc::clone(&called);
            streams.when_subscribed(stream, Box::new(move || _ = called.fetch_add(1, Ordering::SeqCst)));
            tokio::task::yield_now()
        };
        let calls = || called.load(Ordering::SeqCst);
        let releasing = Arc::clone(&streams);
        let releasing = tokio::spawn(async move { releasing.keep_releasing().await });
        streams.follow("a");
        wait("a").await;
        assert_eq!(calls(), 1, "the link is away");
        let all = streams.came_up();
        wait("a").await;
        assert_eq!(calls(), 1);
        streams.subscribed(&all);
        wait("a").await;
        assert_eq!(calls(), 3, "when it was there, and at once");
        streams.follow("b");
        wait("b").await;
        streams.went_down();
        assert_eq!(calls(), 4);
        streams.came_up();
        wait("b").await;
        tokio::time::sleep(WAIT_MAX + Duration::from_millis(10)).await;
        assert_eq!(calls(), 5);
        wait("nobody's").await;
        assert_eq!(calls(), 6);
        releasing.abort();
    }

    #[test]
    fn numbers_of_other_nodes_tell_what_comes_twice_and_what_does_not_come() {
        let streams = Streams::default();
        let node = |n| NodeId::from_bits(n);
        let seen = |n: u64, seq| streams.seen("a", Origin { node: node(n), seq });
        assert_eq!(seen(1, 5), Seen::Next);
        assert_eq!(seen(1, 5), Seen::Next, "nobody follows it");
        streams.follow("a");
        let with_first = [(5, Seen::Next), (6, Seen::Next), (6, Seen::Again), (9, Seen::After(2)), (8, Seen::Again)];
        for (seq, expected) in with_first {
            assert_eq!(seen(1, seq), expected, "{seq}");
        }
        assert_eq!(seen(2, 1), Seen::Next, "another node counts for itself");
        let far = 9 + 2 * JUMP_MAX;
        assert_eq!(
            (seen(1, far), seen(1, far + 1), seen(1, 3), seen(1, 4)),
            (Seen::Next, Seen::Next, Seen::Next, Seen::Next)
        );
        for n in 10..10 + 2 * NODES_MAX as u64 {
            assert_eq!(seen(n, 1), Seen::Next);
        }
        let bucket = streams.bucket("a");
        assert_eq!(bucket.entries["a"].more.as_ref().map(|more| more.seen.len()), Some(NODES_MAX));
    }
}
