//! The gate: publications of the streams that this node follows pass it in the order of their offsets, each once.
//!
//! A publication can come here by three ways: as the answer to our own store, from the cluster, and out of the history. What
//! comes first is delivered. What has been delivered is dropped; what comes before its turn waits until those between have
//! come, or are fetched. So whatever the cluster loses or doubles, a client of this node sees each stream without a gap and in
//! order, and what cannot be fetched any more is counted.
//!
//! A stream stands here while a shard follows it. It opens at the counter of the stream, read when the cluster has
//! acknowledged that this node gets what is published from then on; what comes meanwhile waits. When the storage gets a new
//! epoch, a stream opens again behind what its clients have: they have all of the old epoch that came, and nothing of the new
//! one, whoever stored it and however long this node did not know of it.

#[cfg(test)]
mod tests;

mod stream;
mod wanted;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::store::{Count, Entry, StoreId};
use super::{Outlet, RemoteMetrics};
use crate::model::{NameHasher, Position, Publication};

use stream::Stream;
pub use wanted::Want;
use wanted::Wanted;

/// Publications of one stream that wait for those before them. What is more is fetched again.
const WAITING_MAX: usize = 256;

/// Stores that are remembered because nobody knew whether they were carried out. They are those that were on their way when
/// a link was lost for long: a batch each time.
const SERVED_MAX: usize = 1024;

/// A power of two. Shards and the thread "links" rarely want the same lock.
const BUCKETS: usize = 64;

/// The place of a publication in the bound on those on their way.
pub type Permit = Option<OwnedSemaphorePermit>;

/// Called once, by any thread, while a lock of the gate is held; must not wait.
pub type Then = Box<dyn FnOnce() + Send>;

/// All streams that this node follows.
pub struct Gate {
    hasher: NameHasher,
    /// Each taken for one look, or while publications of one of its streams are handed over.
    buckets: Box<[Mutex<Bucket>]>,
    /// What is not of one stream. Taken with a bucket or without, and never the other way round.
    common: Mutex<Common>,
    /// There is something to be read, for each reason.
    came: [Notify; Want::COUNT],
    /// Something has come with another epoch than is known.
    pub unknown_epoch: Notify,
    /// How long the storage remembers how far a stream is.
    counters_ttl: Duration,
    /// What times of streams are counted from, with [`Gate::time`].
    begun: Instant,
    outlet: Arc<dyn Outlet>,
    metrics: Arc<RemoteMetrics>,
}

/// For how long the storage is expected to know how far a stream is that it keeps the counter of for `counters_ttl`: its clock
/// is not ours.
pub fn remembered_for(counters_ttl: Duration) -> Duration {
    counters_ttl.mul_f64(0.9)
}

/// Some of the streams.
struct Bucket {
    streams: HashMap<Arc<str>, Stream, NameHasher>,
    /// Those of them that are to be read.
    wanted: Wanted,
    epoch: Option<Arc<str>>,
    /// How far streams were in the process that this one goes on from, until they are followed here.
    inherited: HashMap<Arc<str>, GivenStream, NameHasher>,
}

#[derive(Default)]
struct Common {
    epoch: Option<Arc<str>>,
    /// Stores of this node whose clients were served without a position, because nobody knew whether they were kept.
    served: Vec<StoreId>,
    /// What has come with another epoch: that of storage that has begun anew, which is not known yet, or an old one.
    strays: Vec<(Publication, Permit)>,
}

/// How far a stream is, for another process that goes on as the same node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenStream {
    name: Arc<str>,
    /// Everything up to here has been delivered.
    last: u64,
    /// For how long it has not come further, in seconds; none: it has not come further since it was followed.
    age: Option<u64>,
    /// That was in an epoch that is over.
    #[serde(default)]
    is_anew: bool,
}

/// What became of a publication that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Passed {
    /// It is delivered.
    Delivered,
    /// It was before.
    Double,
    /// It waits for others.
    Waits,
    /// Nobody here follows its stream.
    NotFollowed,
}

/// What was read of a stream to fill it.
pub struct Filling {
    /// Behind which offset it was read.
    pub after: u64,
    /// The offset of the newest publication; 0 if the storage does not know the stream.
    pub head: u64,
    /// Where the count began that it has now.
    pub base: u64,
    /// What is kept behind `after`, in order.
    pub entries: Vec<Entry>,
}

impl Gate {
    /// One through which nothing passes yet.
    pub fn new(outlet: Arc<dyn Outlet>, metrics: Arc<RemoteMetrics>, counters_ttl: Duration) -> Gate {
        let hasher = NameHasher::default();
        let bucket = || Bucket {
            streams: HashMap::with_hasher(hasher),
            wanted: Wanted::with_hasher(hasher),
            epoch: None,
            inherited: HashMap::with_hasher(hasher),
        };
        Gate {
            hasher,
            buckets: (0..BUCKETS).map(|_| Mutex::new(bucket())).collect(),
            common: Mutex::default(),
            came: Default::default(),
            unknown_epoch: Notify::new(),
            counters_ttl,
            begun: Instant::now(),
            outlet,
            metrics,
        }
    }

    /// One more shard follows a stream. `name` is the same, where another table has it already. Gives the name if this is
    /// the first.
    pub fn follow(&self, stream: &str, name: Option<Arc<str>>) -> Option<Arc<str>> {
        let mut bucket = self.bucket(stream);
        if let Some(known) = bucket.streams.get_mut(stream) {
            known.shards += 1;
            return None;
        }
        let name = name.unwrap_or_else(|| stream.into());
        let mut followed = Stream::followed();
        if let Some(given) = bucket.inherited.remove(stream) {
            self.go_on_from(&mut followed, &given);
        }
        bucket.streams.insert(Arc::clone(&name), followed);
        Some(name)
    }

    /// The cluster gives this node what is published to a stream from now on, or cannot: its counter can be read.
    pub fn subscribed(&self, stream: &str) {
        let mut bucket = self.bucket(stream);
        let Bucket { streams, wanted, .. } = &mut *bucket;
        let name = streams.get_key_value(stream).map(|(name, _)| Arc::clone(name));
        if let (Some(name), Some(stream)) = (name, streams.get_mut(stream)) {
            self.want_open(name, stream, wanted);
        }
    }

    /// One shard less follows it.
    pub fn unfollow(&self, stream: &str) {
        let mut bucket = self.bucket(stream);
        let Some(known) = bucket.streams.get_mut(stream) else { return };
        known.shards = known.shards.saturating_sub(1);
        if known.shards == 0 {
            bucket.wanted.forget(stream);
            let gone = bucket.streams.remove(stream);
            drop(bucket);
            gone.into_iter().flat_map(|mut gone| gone.take_openings()).for_each(|then| then());
        }
    }

    /// Calls `then` when a stream is open, so that whatever is stored from now on passes: at once if it is, if nobody follows
    /// it, or if it cannot be opened now.
    pub fn when_open(&self, stream: &str, then: Then) {
        let mut bucket = self.bucket(stream);
        match bucket.streams.get_mut(stream).filter(|stream| stream.is_opening()) {
            Some(stream) => stream.more().openings.push(then),
            None => {
                drop(bucket);
                then();
            }
        }
    }

    /// The counters of these could not be read. They are wanted again when that is possible; until then nobody waits, also who
    /// comes later.
    pub fn not_opened(&self, names: &[Arc<str>]) {
        for name in names {
            let mut bucket = self.bucket(name);
            let Some(stream) = bucket.streams.get_mut(name) else { continue };
            stream.shut(true);
            let openings = stream.take_openings();
            drop(bucket);
            openings.into_iter().for_each(|then| then());
        }
    }

    /// Grows as the clock does, and is old enough at the beginning for whatever another process remembers.
    fn time(&self) -> Duration {
        self.begun.elapsed() + self.counters_ttl
    }

    /// The generation of the storage, and how far each stream is that is open.
    pub fn given(&self) -> (Option<Arc<str>>, Vec<GivenStream>) {
        let (mut streams, now) = (Vec::new(), self.time());
        let given = |(name, stream): (&Arc<str>, &Stream)| {
            let age = stream.age(now).map(|age| age.as_secs());
            let (last, is_anew) = match stream.last() {
                Some(last) => (last, false),
                None => (stream.before()?, true),
            };
            Some(GivenStream { name: Arc::clone(name), last, age, is_anew })
        };
        for bucket in &self.buckets {
            streams.extend(lock(bucket).streams.iter().filter_map(given));
        }
        (lock(&self.common).epoch.clone(), streams)
    }

    /// Stores of this node whose clients were served without a position.
    pub fn served(&self) -> Vec<StoreId> {
        lock(&self.common).served.clone()
    }

    /// Streams go on behind what another process has delivered, those that are followed here and those that will be until
    /// [`forget_inherited`](Self::forget_inherited). To be called before anything passes here.
    pub fn take_over(&self, epoch: Option<&Arc<str>>, streams: Vec<GivenStream>, served: Vec<StoreId>) {
        let is_another = {
            let mut common = lock(&self.common);
            let known = common.epoch.clone();
            if known.is_none() {
                common.epoch = epoch.cloned();
            }
            common.served = served;
            known.is_some() && known.as_ref() != epoch
        };
        if !is_another {
            self.buckets.iter().for_each(|bucket| lock(bucket).epoch = epoch.cloned());
        }
        for mut given in streams {
            given.is_anew |= is_another;
            let mut bucket = self.bucket(&given.name);
            let Bucket { streams, wanted, inherited, .. } = &mut *bucket;
            match streams.get_mut(&given.name) {
                Some(stream) => {
                    self.go_on_from(stream, &given);
                    self.want_open(given.name, stream, wanted);
                }
                None => _ = inherited.insert(Arc::clone(&given.name), given),
            }
        }
    }

    /// Whatever is followed from now on begins where it is.
    pub fn forget_inherited(&self) {
        self.buckets.iter().for_each(|bucket| lock(bucket).inherited = HashMap::with_hasher(self.hasher));
    }

    fn go_on_from(&self, stream: &mut Stream, given: &GivenStream) {
        stream.open_at(given.last);
        if given.is_anew {
            stream.begin_anew();
        }
        if let Some(came) = given.age.and_then(|age| self.time().checked_sub(Duration::from_secs(age))) {
            stream.came_at(came);
        }
    }

    /// Waits until there are streams to be read for this reason, and gives some of them.
    pub async fn wanted(&self, want: Want, max: usize) -> Vec<Arc<str>> {
        loop {
            let names = self.take_wanted(want, max);
            if !names.is_empty() {
                return names;
            }
            self.came[want as usize].notified().await;
        }
    }

    fn take_wanted(&self, want: Want, max: usize) -> Vec<Arc<str>> {
        let mut names = Vec::new();
        // Where all of them are busy, each comes first at times.
        let first = rand::random_range(0..BUCKETS);
        for bucket in self.buckets[first..].iter().chain(&self.buckets[..first]) {
            lock(bucket).wanted.take(want, max - names.len(), &mut names);
        }
        names
    }

    /// Those that are open and that the storage has to know, and how far each is.
    pub fn offsets(&self) -> Vec<(Arc<str>, u64)> {
        let mut offsets = Vec::new();
        for bucket in &self.buckets {
            let bucket = lock(bucket);
            let known = bucket.streams.iter().filter(|(_, stream)| self.is_remembered(stream));
            offsets.extend(known.filter_map(|(name, stream)| Some((Arc::clone(name), stream.last()?))));
        }
        offsets
    }

    /// This is the generation of the storage. Tells whether there was another one before: what is delivered has other
    /// offsets from now on.
    pub fn set_epoch(&self, epoch: &Arc<str>) -> bool {
        let (is_another, strays) = {
            let mut common = lock(&self.common);
            if common.epoch.as_ref() == Some(epoch) {
                return false;
            }
            let is_another = common.epoch.replace(Arc::clone(epoch)).is_some();
            (is_another, if is_another { std::mem::take(&mut common.strays) } else { Vec::new() })
        };
        for bucket in &self.buckets {
            let mut bucket = lock(bucket);
            let Bucket { streams, wanted, epoch: current, .. } = &mut *bucket;
            *current = Some(Arc::clone(epoch));
            if is_another {
                for (name, stream) in streams.iter_mut() {
                    stream.begin_anew();
                    self.want_open(Arc::clone(name), stream, wanted);
                }
            }
        }
        for (publication, permit) in strays {
            let at = publication.position.as_ref().filter(|position| position.epoch == *epoch);
            if let Some(offset) = at.map(|position| position.offset)
                && let Some(stream) = self.bucket(&publication.stream).streams.get_mut(&*publication.stream)
            {
                stream.more().waiting.insert(offset, (publication, permit));
            }
        }
        is_another
    }

    /// The counters of all streams are to be read: something may be missing.
    pub fn open_all(&self) {
        for bucket in &self.buckets {
            let mut bucket = lock(bucket);
            let Bucket { streams, wanted, .. } = &mut *bucket;
            streams.iter_mut().for_each(|(name, stream)| self.want_open(Arc::clone(name), stream, wanted));
        }
    }

    /// The counters of streams are known.
    pub fn opened(&self, counts: impl IntoIterator<Item = (Arc<str>, Count)>) {
        for (name, count) in counts {
            let mut bucket = self.bucket(&name);
            let Bucket { streams, wanted, epoch, .. } = &mut *bucket;
            let head = count.head;
            let Some(stream) = streams.get_mut(&name) else { continue };
            match stream.last() {
                None => {
                    // What came meanwhile is delivered, although it may be counted already.
                    let first = stream.first_waiting().map_or(u64::MAX, |first| first - 1);
                    // What clients have of an epoch that is over is not there any more behind where this one began.
                    let behind = |before: u64| before.min(count.before(epoch.as_ref())).max(count.base);
                    let had = stream.before().map_or(head, behind);
                    stream.open_at(0);
                    self.go_to(stream, had.min(first));
                    self.advance(&name, stream, wanted);
                    stream.take_openings().into_iter().for_each(|then| then());
                }
                Some(last) if head < last && self.is_remembered(stream) => {
                    self.want(wanted, Want::Doubt, Arc::clone(&name));
                }
                // Nothing was published for so long that the storage has forgotten the stream.
                Some(last) if head < last => stream.open_at(head),
                Some(_) => {}
            }
            self.reach(&name, stream, wanted, head);
        }
    }

    /// A publication has come that was stored.
    pub fn pass(&self, publication: Publication, permit: Permit) -> Passed {
        let Some(Position { epoch, offset }) = publication.position.clone() else {
            self.outlet.deliver(publication, permit);
            return Passed::Delivered;
        };
        let mut bucket = self.bucket(&publication.stream);
        let Bucket { streams, wanted, epoch: current, .. } = &mut *bucket;
        let Some((name, _)) = streams.get_key_value(&*publication.stream) else { return Passed::NotFollowed };
        let name = Arc::clone(name);
        let Some(stream) = streams.get_mut(&name) else { return Passed::NotFollowed };
        if current.as_ref().is_some_and(|current| *current != epoch) {
            self.metrics.cluster_old_epoch_total.inc();
            let mut common = lock(&self.common);
            if common.strays.len() < WAITING_MAX {
                common.strays.push((publication, permit));
            }
            self.unknown_epoch.notify_one();
            return Passed::Waits;
        }
        match stream.last() {
            Some(last) if offset <= last => Passed::Double,
            Some(last) if offset == last + 1 => {
                self.outlet.deliver(publication, permit);
                self.go_to(stream, offset);
                self.advance(&name, stream, wanted);
                Passed::Delivered
            }
            last => {
                let waiting = &mut stream.more().waiting;
                if waiting.len() < WAITING_MAX {
                    waiting.entry(offset).or_insert((publication, permit));
                }
                self.reach(&name, stream, wanted, if last.is_some() { offset } else { 0 });
                Passed::Waits
            }
        }
    }

    /// Delivers a publication without a position to who follows its stream. `unsure`: it may be in the history all the same,
    /// and is not to be delivered once more when it is found there.
    pub fn pass_unstored(&self, publication: Publication, permit: Permit, unsure: Option<StoreId>) {
        let _in_order = self.bucket(&publication.stream);
        {
            let served = &mut lock(&self.common).served;
            served.extend(unsure);
            let over = served.len().saturating_sub(SERVED_MAX);
            served.drain(..over);
        }
        self.outlet.deliver(publication, permit);
    }

    /// A stream has come this far, as somebody knows.
    pub fn reaches(&self, stream: &str, head: u64) {
        let mut bucket = self.bucket(stream);
        let Bucket { streams, wanted, .. } = &mut *bucket;
        let Some((name, _)) = streams.get_key_value(stream) else { return };
        let name = Arc::clone(name);
        if let Some(stream) = streams.get_mut(&name) {
            self.reach(&name, stream, wanted, head);
        }
    }

    /// What is missing of a stream, if something is, is wanted to be read.
    pub fn refill(&self, stream: &str) {
        let mut bucket = self.bucket(stream);
        let Bucket { streams, wanted, .. } = &mut *bucket;
        let name = streams.get_key_value(stream).map(|(name, _)| Arc::clone(name));
        if let (Some(name), Some(stream)) = (name, streams.get_mut(stream))
            && stream.last().is_some_and(|last| last < stream.head())
        {
            self.want_filling(&name, stream, wanted);
        }
    }

    fn reach(&self, name: &Arc<str>, stream: &mut Stream, wanted: &mut Wanted, head: u64) {
        if head > stream.head() {
            stream.more().head = head;
            stream.came_at(self.time());
        }
        if stream.last().is_some_and(|last| last < head) {
            self.want_filling(name, stream, wanted);
        }
    }

    /// A stream was read. `None`: it could not be, and is wanted again when something more comes.
    pub fn filled(&self, stream: &str, read: Option<Filling>) {
        let mut bucket = self.bucket(stream);
        let Bucket { streams, wanted, .. } = &mut *bucket;
        let Some((name, _)) = streams.get_key_value(stream) else { return };
        let name = Arc::clone(name);
        let Some(stream) = streams.get_mut(&name) else { return };
        stream.fills(false);
        let (Some(Filling { after, head, base, entries }), Some(before)) = (read, stream.last()) else { return };
        if before < after {
            // It was opened anew meanwhile, and what is between was not read.
            return self.reach(&name, stream, wanted, head);
        }
        if head < before {
            if self.is_remembered(stream) {
                self.want(wanted, Want::Doubt, name);
            }
            return;
        }
        let mut last = before;
        for Entry { publication, origin } in entries {
            let Some(offset) = publication.position.as_ref().map(|position| position.offset) else { continue };
            if offset <= last {
                continue;
            }
            self.go_on(stream, last, offset - 1, base);
            last = offset;
            if origin.is_some_and(|origin| self.was_served(origin)) {
                continue;
            }
            // One that waited has its place in the bound.
            let (publication, permit) = stream.take_waiting(offset).unwrap_or_else(|| {
                self.metrics.cluster_filled_total.inc();
                (publication, None)
            });
            self.outlet.deliver(publication, permit);
        }
        self.go_on(stream, last, head, base);
        self.go_to(stream, last.max(head));
        self.advance(&name, stream, wanted);
    }

    /// Whether clients have had without a position what this store kept; that is forgotten then.
    fn was_served(&self, origin: StoreId) -> bool {
        let served = &mut lock(&self.common).served;
        let at = served.iter().position(|served| *served == origin);
        at.map(|at| served.swap_remove(at)).is_some()
    }

    /// Of those behind `last` and up to `to` none is kept any more: delivers what has come by itself, and counts the others.
    fn go_on(&self, stream: &mut Stream, mut last: u64, to: u64, base: u64) {
        while last < to {
            let next = stream.next_waiting(last + 1..=to);
            let lost = next.map_or(to, |next| next - 1).saturating_sub(last.max(base));
            self.metrics.cluster_lost_total.add(lost);
            last = next.unwrap_or(to);
            if let Some((publication, permit)) = next.and_then(|next| stream.take_waiting(next)) {
                self.outlet.deliver(publication, permit);
            }
        }
    }

    /// What was read of a stream for somebody else: the counter, and what is kept behind an offset that is any.
    pub fn offer(&self, stream: &str, head: u64, entries: &[Entry]) {
        let offset = |entry: &Entry| entry.publication.position.as_ref().map_or(0, |position| position.offset);
        let Some(last) = self.last(stream).filter(|last| *last < head) else { return };
        let is_next = entries.first().is_some_and(|first| offset(first) <= last + 1);
        if is_next {
            self.filled(stream, Some(Filling { after: last, head, base: 0, entries: entries.to_vec() }));
        } else {
            self.reaches(stream, head);
        }
    }

    /// Whether something of a stream is missing, as far as is known.
    pub fn has_gap(&self, stream: &str) -> bool {
        let bucket = self.bucket(stream);
        bucket.streams.get(stream).is_some_and(|stream| stream.last().is_some_and(|last| last < stream.head()))
    }

    /// How far a stream is that is followed and open.
    pub fn last(&self, stream: &str) -> Option<u64> {
        self.bucket(stream).streams.get(stream)?.last()
    }

    /// Done when a stream is open and everything up to `offset` of it is delivered or lost, or nobody follows it any more.
    /// Whoever watches must not wait for ever.
    pub fn watch(&self, stream: &str, offset: u64) -> Option<oneshot::Receiver<()>> {
        let mut bucket = self.bucket(stream);
        let stream = bucket.streams.get_mut(stream)?;
        if stream.last().is_some_and(|last| last >= offset) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        stream.more().watchers.push((offset, sender));
        Some(receiver)
    }

    /// Everything of a stream up to here is delivered.
    fn go_to(&self, stream: &mut Stream, last: u64) {
        if last > stream.head() {
            stream.came_at(self.time());
        }
        stream.set_last(last);
    }

    /// Delivers what has waited for its turn, and tells who watches.
    fn advance(&self, name: &Arc<str>, stream: &mut Stream, wanted: &mut Wanted) {
        let Some(mut last) = stream.last() else { return };
        while let Some(first) = stream.first_waiting() {
            if first > last + 1 {
                stream.more().head = stream.head().max(first);
                self.want_filling(name, stream, wanted);
                break;
            }
            let waited = stream.take_waiting(first);
            if let Some((publication, permit)) = waited.filter(|_| first == last + 1) {
                self.outlet.deliver(publication, permit);
                last = first;
            }
        }
        self.go_to(stream, last);
        stream.settle();
    }

    /// Whether the storage has to know how far a stream is.
    fn is_remembered(&self, stream: &Stream) -> bool {
        stream.age(self.time()).is_some_and(|age| age < remembered_for(self.counters_ttl))
    }

    fn want_filling(&self, name: &Arc<str>, stream: &mut Stream, wanted: &mut Wanted) {
        if !stream.fills(true) {
            self.want(wanted, Want::Fill, Arc::clone(name));
        }
    }

    fn want_open(&self, name: Arc<str>, stream: &mut Stream, wanted: &mut Wanted) {
        stream.shut(false);
        self.want(wanted, Want::Open, name);
    }

    fn want(&self, wanted: &mut Wanted, want: Want, name: Arc<str>) {
        wanted.add(want, name);
        self.came[want as usize].notify_one();
    }

    fn bucket(&self, stream: &str) -> MutexGuard<'_, Bucket> {
        // Bits that the bucket's own table uses neither for places nor for tags.
        lock(&self.buckets[(self.hasher.hash_one(stream) >> 32) as usize % BUCKETS])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave it half changed in a way that matters more than the panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
