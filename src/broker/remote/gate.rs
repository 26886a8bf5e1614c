//! The gate: publications of the streams that this node follows pass it in the order of their offsets, each once.
//!
//! A publication can come here by three ways: as the answer to our own store, from the cluster, and out of the history. What
//! comes first is delivered. What has been delivered is dropped; what comes before its turn waits until those between have
//! come, or are fetched. So whatever the cluster loses or doubles, a client of this node sees each stream without a gap and in
//! order, and what cannot be fetched any more is counted.
//!
//! A stream stands here while a shard follows it. It opens at the counter of the stream, read when the cluster has
//! acknowledged that this node gets what is published from then on; what comes meanwhile waits.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::store::{Entry, StoreId};
use super::{Outlet, RemoteMetrics};
use crate::model::{NameHasher, Position, Publication};

/// Publications of one stream that wait for those before them. What is more is fetched again.
const WAITING_MAX: usize = 256;

/// Stores that are remembered because nobody knew whether they were carried out. They are those that were on their way when
/// a link was lost for long: a batch each time.
const SERVED_MAX: usize = 1024;

/// The place of a publication in the bound on those on their way.
pub type Permit = Option<OwnedSemaphorePermit>;

/// All streams that this node follows.
pub struct Gate {
    state: Mutex<State>,
    /// Streams whose counter is to be read.
    open: mpsc::UnboundedSender<Arc<str>>,
    /// Streams of which something is missing.
    fill: mpsc::UnboundedSender<Arc<str>>,
    /// Streams of which the storage has less than it had.
    doubt: mpsc::UnboundedSender<Arc<str>>,
    /// Something has come with another epoch than is known.
    pub unknown_epoch: Notify,
    /// How long the storage remembers how far a stream is.
    counters_ttl: Duration,
    outlet: Arc<dyn Outlet>,
    metrics: Arc<RemoteMetrics>,
}

/// For how long the storage is expected to know how far a stream is that it keeps the counter of for `counters_ttl`: its clock
/// is not ours.
pub fn remembered_for(counters_ttl: Duration) -> Duration {
    counters_ttl.mul_f64(0.9)
}

#[derive(Default)]
struct State {
    streams: HashMap<Arc<str>, Stream, NameHasher>,
    /// Stores of this node whose clients were served without a position, because nobody knew whether they were kept.
    served: Vec<StoreId>,
    epoch: Option<Arc<str>>,
    /// What has come with another epoch: that of storage that has begun anew, which is not known yet, or an old one.
    strays: Vec<(Publication, Permit)>,
}

#[derive(Default)]
struct Stream {
    /// Shards that follow it.
    shards: u32,
    /// Everything up to here has been delivered, or was there before. `None` until the counter is read.
    last: Option<u64>,
    /// It has come at least this far.
    head: u64,
    /// When it came that far.
    came: Option<Instant>,
    waiting: BTreeMap<u64, (Publication, Permit)>,
    /// It stands in `fill`.
    is_filling: bool,
    /// Who wants to know when everything up to an offset is delivered; 0: when it is open.
    watchers: Vec<(u64, oneshot::Sender<()>)>,
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

/// What the streams of a gate want read; for who runs it.
pub struct Wanted {
    /// To be opened, by [`Gate::opened`].
    pub open: mpsc::UnboundedReceiver<Arc<str>>,
    /// To be filled, by [`Gate::filled`].
    pub fill: mpsc::UnboundedReceiver<Arc<str>>,
    /// Of these the storage has less than it had.
    pub doubt: mpsc::UnboundedReceiver<Arc<str>>,
}

/// What was read of a stream to fill it.
pub struct Filling {
    /// The offset of the newest publication; 0 if the storage does not know the stream.
    pub head: u64,
    /// Where the count began that it has now.
    pub base: u64,
    /// What is kept behind [`Gate::last`], in order.
    pub entries: Vec<Entry>,
}

impl Gate {
    /// One through which nothing passes yet.
    pub fn new(outlet: Arc<dyn Outlet>, metrics: Arc<RemoteMetrics>, counters_ttl: Duration) -> (Gate, Wanted) {
        let ((open, opens), (fill, fills)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (doubt, doubts) = mpsc::unbounded_channel();
        let unknown_epoch = Notify::new();
        let gate = Gate { state: Mutex::default(), open, fill, doubt, unknown_epoch, counters_ttl, outlet, metrics };
        (gate, Wanted { open: opens, fill: fills, doubt: doubts })
    }

    /// One more shard follows a stream. Tells whether it is the first.
    pub fn follow(&self, stream: &str) -> bool {
        let mut state = self.lock();
        if let Some(known) = state.streams.get_mut(stream) {
            known.shards += 1;
            return false;
        }
        state.streams.insert(stream.into(), Stream { shards: 1, ..Stream::default() });
        true
    }

    /// The cluster gives this node what is published to a stream from now on, or cannot: its counter can be read.
    pub fn subscribed(&self, stream: &str) {
        // Ends with the node.
        let _ = self.open.send(stream.into());
    }

    /// One shard less follows it.
    pub fn unfollow(&self, stream: &str) {
        let mut state = self.lock();
        let Some(known) = state.streams.get_mut(stream) else { return };
        known.shards = known.shards.saturating_sub(1);
        if known.shards == 0 {
            state.streams.remove(stream);
        }
    }

    /// Those that are open and that the storage has to know, and how far each is.
    pub fn offsets(&self) -> Vec<(Arc<str>, u64)> {
        let state = self.lock();
        let known = state.streams.iter().filter(|(_, stream)| self.is_remembered(stream));
        known.filter_map(|(name, stream)| Some((Arc::clone(name), stream.last?))).collect()
    }

    /// This is the generation of the storage. Tells whether there was another one before: what is delivered has other
    /// offsets from now on.
    pub fn set_epoch(&self, epoch: &Arc<str>) -> bool {
        let mut state = self.lock();
        if state.epoch.as_ref() == Some(epoch) || state.epoch.replace(Arc::clone(epoch)).is_none() {
            return false;
        }
        let State { streams, served, strays, .. } = &mut *state;
        served.clear();
        for (name, stream) in streams.iter_mut() {
            stream.last = None;
            stream.head = 0;
            stream.waiting.clear();
            let _ = self.open.send(Arc::clone(name));
        }
        for (publication, permit) in std::mem::take(strays) {
            let at = publication.position.as_ref().filter(|position| position.epoch == *epoch);
            let offset = at.map(|position| position.offset);
            if let (Some(offset), Some(stream)) = (offset, streams.get_mut(&*publication.stream)) {
                stream.waiting.insert(offset, (publication, permit));
            }
        }
        true
    }

    /// The counters of all streams are to be read: something may be missing.
    pub fn open_all(&self) {
        for name in self.lock().streams.keys() {
            let _ = self.open.send(Arc::clone(name));
        }
    }

    /// The counters of streams are known.
    pub fn opened(&self, heads: impl IntoIterator<Item = (Arc<str>, u64)>) {
        let mut state = self.lock();
        for (name, head) in heads {
            let Some(stream) = state.streams.get_mut(&name) else { continue };
            match stream.last {
                None => {
                    // What came meanwhile is delivered, although it may be counted already.
                    let first = stream.waiting.keys().next().map_or(u64::MAX, |first| first - 1);
                    stream.last = Some(head.min(first));
                    self.advance(&name, stream);
                }
                Some(last) if head < last && self.is_remembered(stream) => {
                    let _ = self.doubt.send(Arc::clone(&name));
                }
                // Nothing was published for so long that the storage has forgotten the stream.
                Some(last) if head < last => (stream.last, stream.head) = (Some(head), head),
                Some(_) => {}
            }
            self.reach(&name, stream, head);
        }
    }

    /// A publication has come that was stored.
    pub fn pass(&self, publication: Publication, permit: Permit) -> Passed {
        let Some(Position { epoch, offset }) = publication.position.clone() else {
            self.outlet.deliver(publication, permit);
            return Passed::Delivered;
        };
        let mut state = self.lock();
        let is_current = state.epoch.as_ref().is_none_or(|current| *current == epoch);
        let Some((name, _)) = state.streams.get_key_value(&*publication.stream) else { return Passed::NotFollowed };
        let name = Arc::clone(name);
        let Some(stream) = state.streams.get_mut(&name) else { return Passed::NotFollowed };
        if !is_current {
            self.metrics.cluster_old_epoch_total.inc();
            if state.strays.len() < WAITING_MAX {
                state.strays.push((publication, permit));
            }
            self.unknown_epoch.notify_one();
            return Passed::Waits;
        }
        match stream.last {
            Some(last) if offset <= last => Passed::Double,
            Some(last) if offset == last + 1 => {
                self.outlet.deliver(publication, permit);
                stream.last = Some(offset);
                self.advance(&name, stream);
                Passed::Delivered
            }
            last => {
                if stream.waiting.len() < WAITING_MAX {
                    stream.waiting.entry(offset).or_insert((publication, permit));
                }
                self.reach(&name, stream, if last.is_some() { offset } else { 0 });
                Passed::Waits
            }
        }
    }

    /// Delivers a publication without a position to who follows its stream. `unsure`: it may be in the history all the same,
    /// and is not to be delivered once more when it is found there.
    pub fn pass_unstored(&self, publication: Publication, permit: Permit, unsure: Option<StoreId>) {
        let mut state = self.lock();
        state.served.extend(unsure);
        let over = state.served.len().saturating_sub(SERVED_MAX);
        state.served.drain(..over);
        self.outlet.deliver(publication, permit);
    }

    /// A stream has come this far, as somebody knows.
    pub fn reaches(&self, stream: &str, head: u64) {
        let mut state = self.lock();
        let Some((name, _)) = state.streams.get_key_value(stream) else { return };
        let name = Arc::clone(name);
        if let Some(stream) = state.streams.get_mut(&name) {
            self.reach(&name, stream, head);
        }
    }

    fn reach(&self, name: &Arc<str>, stream: &mut Stream, head: u64) {
        if head > stream.head {
            (stream.head, stream.came) = (head, Some(Instant::now()));
        }
        if stream.last.is_some_and(|last| last < head) {
            self.want_filling(name, stream);
        }
    }

    /// A stream was read. `None`: it could not be, and is wanted again when something more comes.
    pub fn filled(&self, stream: &str, read: Option<Filling>) {
        let mut state = self.lock();
        let State { streams, served, .. } = &mut *state;
        let Some((name, _)) = streams.get_key_value(stream) else { return };
        let name = Arc::clone(name);
        let Some(stream) = streams.get_mut(&name) else { return };
        stream.is_filling = false;
        let (Some(Filling { head, base, entries }), Some(before)) = (read, stream.last) else { return };
        if head < before {
            if self.is_remembered(stream) {
                let _ = self.doubt.send(name);
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
            if let Some(at) = origin.and_then(|origin| served.iter().position(|served| *served == origin)) {
                served.swap_remove(at);
                continue;
            }
            // One that waited has its place in the bound.
            let (publication, permit) = stream.waiting.remove(&offset).unwrap_or_else(|| {
                self.metrics.cluster_filled_total.inc();
                (publication, None)
            });
            self.outlet.deliver(publication, permit);
        }
        self.go_on(stream, last, head, base);
        stream.last = Some(last.max(head));
        self.advance(&name, stream);
    }

    /// Of those behind `last` and up to `to` none is kept any more: delivers what has come by itself, and counts the others.
    fn go_on(&self, stream: &mut Stream, mut last: u64, to: u64, base: u64) {
        while last < to {
            let next = stream.waiting.range(last + 1..=to).next().map(|(offset, _)| *offset);
            let lost = next.map_or(to, |next| next - 1).saturating_sub(last.max(base));
            self.metrics.cluster_lost_total.add(lost);
            last = next.unwrap_or(to);
            if let Some((publication, permit)) = next.and_then(|next| stream.waiting.remove(&next)) {
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
            self.filled(stream, Some(Filling { head, base: 0, entries: entries.to_vec() }));
        } else {
            self.reaches(stream, head);
        }
    }

    /// Whether something of a stream is missing, as far as is known.
    pub fn has_gap(&self, stream: &str) -> bool {
        self.lock().streams.get(stream).is_some_and(|stream| stream.last.is_some_and(|last| last < stream.head))
    }

    /// How far a stream is that is followed and open.
    pub fn last(&self, stream: &str) -> Option<u64> {
        self.lock().streams.get(stream)?.last
    }

    /// Done when everything up to `offset` of a stream is delivered or lost, or nobody follows it any more. Whoever
    /// watches must not wait for ever.
    pub fn watch(&self, stream: &str, offset: u64) -> Option<oneshot::Receiver<()>> {
        let mut state = self.lock();
        let stream = state.streams.get_mut(stream)?;
        if stream.last.is_some_and(|last| last >= offset) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        stream.watchers.push((offset, sender));
        Some(receiver)
    }

    /// Delivers what has waited for its turn, and tells who watches.
    fn advance(&self, name: &Arc<str>, stream: &mut Stream) {
        let Some(mut last) = stream.last else { return };
        while let Some(first) = stream.waiting.first_entry() {
            if *first.key() <= last {
                first.remove();
            } else if *first.key() == last + 1 {
                let (publication, permit) = first.remove();
                self.outlet.deliver(publication, permit);
                last += 1;
            } else {
                stream.head = stream.head.max(*first.key());
                self.want_filling(name, stream);
                break;
            }
        }
        stream.last = Some(last);
        if last > stream.head {
            (stream.head, stream.came) = (last, Some(Instant::now()));
        }
        if stream.watchers.is_empty() {
            return;
        }
        let (done, left) = std::mem::take(&mut stream.watchers).into_iter().partition(|(offset, _)| *offset <= last);
        stream.watchers = left;
        for (_, watcher) in Vec::<(u64, oneshot::Sender<()>)>::into_iter(done) {
            // Perhaps it has not waited for this long.
            let _ = watcher.send(());
        }
    }

    /// Whether the storage has to know how far a stream is.
    fn is_remembered(&self, stream: &Stream) -> bool {
        stream.came.is_some_and(|came| came.elapsed() < remembered_for(self.counters_ttl))
    }

    fn want_filling(&self, name: &Arc<str>, stream: &mut Stream) {
        if !std::mem::replace(&mut stream.is_filling, true) {
            let _ = self.fill.send(Arc::clone(name));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed in a way that matters more than the panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
