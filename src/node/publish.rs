//! The way of a publication through the node: the broker gives it its position in the stream, the cluster is told, and
//! the shards that follow the stream get it.
//!
//! It can stand still ([`Pipeline::freeze`]), so that all that it holds can be given to another process, and goes on as if
//! nothing had been; or, when that process has taken over, what comes here is sent there ([`Pipeline::succeed`]).
//!
//! There is one bound for the whole node. A publication takes a permit first and gives it back when the last shard has
//! delivered it. With a permit it goes to all those shards at once, so a busy shard does not delay the others until the
//! bound is reached; then publishers wait, and with them the app's HTTP requests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, Semaphore, oneshot};
use tokio::time::MissedTickBehavior;

use crate::broadcast::{Handover, PublicationSink, PublishError};
use crate::broker::{Broker, Credit, FromParent, LocalBroker, Outlet, Place, SWEEPS};
use crate::cluster::Cluster;
use crate::hub::{StreamChange, StreamHasher};
use crate::link::{Held, Turns};
use crate::metrics;
use crate::model::{
    Answer, BrokerError, BrokerReply, Now, PresenceChange, Publication, RemoteDisconnect, Reply, ResumeTicket,
    SavedSession, Sid, SlotKey,
};
use crate::os::clock::Clock;
use crate::shard::{Delivery, Inbox, Message, Permit};

use super::followers::Followers;
use super::upgrade::successor::Successor;

/// Publications that were taken and that some shard has not delivered. Publishers of more wait; whispers are dropped.
/// Enough that every shard has work while a publisher's next request is on its way.
pub(super) const PUBLICATIONS_MAX: usize = 1024;

/// Bytes of a message for which it counts as one publication; a longer one counts as several. So the messages of all that
/// are not delivered have [`PUBLICATIONS_MAX`] times as much together, 256 MiB, and one more that is larger than that.
const BYTES_PER_PLACE: usize = 256 << 10;

/// The time in which everything that the broker keeps is looked through for what is over: so late, at most, is somebody
/// reported as gone.
pub(super) const SWEEP_ALL: Duration = Duration::from_secs(1);

/// A remote disconnect waits no longer for the broker's storage to know of it.
const SEND_AWAY_MAX: Duration = Duration::from_secs(1);

/// Whoever has the pipeline stand still waits no longer for answers of the broker. What is not answered by then is later.
const ANSWERS_MAX: Duration = Duration::from_millis(500);

/// How often whoever waits for a lull looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How many places of [`PUBLICATIONS_MAX`] a publication takes.
pub(super) fn places(publication: &Publication) -> u32 {
    (publication.message.len().div_ceil(BYTES_PER_PLACE)).clamp(1, PUBLICATIONS_MAX) as u32
}

/// Takes publications to the shards of this node that follow their streams.
pub(super) struct Pipeline {
    pub(super) broker: Broker,
    pub(super) cluster: Cluster,
    inboxes: Arc<[Arc<Inbox>]>,
    hasher: StreamHasher,
    pub(super) followers: Followers,
    /// Waiting publishers get permits in their order, before any whisper. Closed when there is a successor.
    room: Arc<Semaphore>,
    /// Read by whoever sends sessions away, so that nobody does so while the node stands still.
    sending_away: Arc<RwLock<()>>,
    /// It stands still, or is about to: nobody gets a permit of `room`, and what shards have under way takes one of `spare`.
    frozen: AtomicBool,
    spare: Arc<Semaphore>,
    /// Gets what comes here when it is there.
    successor: OnceLock<Arc<dyn Successor>>,
    /// What works beside the shards, to be held up in this order: first what takes publications in.
    sources: Mutex<Vec<Turns>>,
    /// The same of what only works at what is there.
    workers: Mutex<Vec<Turns>>,
    sweeping: Turns,
    pub(super) metrics: DeliveryMetrics,
    pub(super) clock: Clock,
}

metrics! {
    /// Counts of what is handed to the shards.
    pub struct DeliveryMetrics {
        /// Publications handled by this node, whether or not they had subscribers; remote disconnects count too.
        broadcast_msg_total: Counter,
    }
}

impl Pipeline {
    pub(super) fn new(
        inboxes: Arc<[Arc<Inbox>]>,
        hasher: StreamHasher,
        broker: Broker,
        cluster: Cluster,
        clock: Clock,
    ) -> Pipeline {
        Pipeline {
            broker,
            cluster,
            inboxes,
            hasher,
            followers: Followers::default(),
            room: Arc::new(Semaphore::new(PUBLICATIONS_MAX)),
            sending_away: Arc::default(),
            frozen: AtomicBool::new(false),
            spare: Arc::new(Semaphore::new(PUBLICATIONS_MAX)),
            successor: OnceLock::new(),
            sources: Mutex::default(),
            workers: Mutex::default(),
            sweeping: Turns::default(),
            metrics: DeliveryMetrics::default(),
            clock,
        }
    }

    /// Gives a publication its position and puts it into the inbox of every shard that follows its stream, before the
    /// next publication of that stream.
    fn place(&self, broker: &LocalBroker, publication: Publication, permit: OwnedSemaphorePermit) {
        broker.in_order(publication, self.clock.now(), |publication| self.hand_over(publication, Some(permit)));
    }

    /// Takes a publication for which there is room. Gives what a publisher is to wait for, if the broker is elsewhere.
    fn take(&self, publication: Publication, permit: OwnedSemaphorePermit) -> Option<oneshot::Receiver<()>> {
        match &self.broker {
            Broker::Local(local) => self.place(local, publication, permit),
            Broker::Remote(remote) if publication.transient => self.place(&remote.unstored, publication, permit),
            Broker::Remote(remote) => return Some(remote.publish(publication, permit)),
            // It has its own way.
            Broker::Parent(_) => {}
        }
        None
    }

    /// Puts a publication that has its place into the inboxes, and tells the other nodes; called under its stream's lock.
    fn hand_over(&self, publication: Publication, permit: Option<OwnedSemaphorePermit>) {
        self.cluster.announce(&publication);
        self.deliver(publication, permit);
    }

    /// Counts a publication and puts it into the inbox of every shard that follows its stream.
    pub(super) fn deliver(&self, publication: Publication, permit: Option<OwnedSemaphorePermit>) {
        self.metrics.broadcast_msg_total.inc();
        self.to_followers(publication, permit.map(|permit| Box::new(permit) as Permit));
    }

    fn to_followers(&self, publication: Publication, permit: Option<Permit>) {
        let stream = self.hasher.key(&publication.stream);
        let delivery = Arc::new(Delivery { publication, permit });
        self.followers.for_each(stream, |shard| {
            if let Some(inbox) = self.inboxes.get(usize::from(shard)) {
                inbox.put(Message::Publication(Arc::clone(&delivery)));
            }
        });
    }

    /// Waits for room for a publication. There is none any more when there is a successor.
    pub(super) async fn room(&self, publication: &Publication) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).acquire_many_owned(places(publication)).await.ok()
    }

    fn successor(&self) -> Result<&Arc<dyn Successor>, PublishError> {
        self.successor.get().ok_or_else(|| PublishError("the node has ended".to_owned()))
    }

    /// Room for something of a shard, which does not wait; also while this stands still and the shard finishes what it has
    /// under way.
    fn try_room(&self, places: u32) -> Option<OwnedSemaphorePermit> {
        let of = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_many_owned(places).ok();
        of(&self.room).or_else(|| of(&self.spare).filter(|_| self.frozen.load(Ordering::Acquire)))
    }

    /// Something that takes publications in, piece after piece. It stands still when the pipeline does.
    pub(super) fn add_source(&self, turns: Turns) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(turns);
    }

    /// The same of something that works at what is there.
    pub(super) fn add_worker(&self, turns: Turns) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(turns);
    }

    /// Waits for a moment in which everything that was published is delivered; whether it came in time. Nothing is kept waiting.
    pub(super) async fn lull(&self, patience: Duration) -> bool {
        let is_quiet = || {
            let undelivered = match &self.broker {
                Broker::Parent(parent) => parent.undelivered(),
                Broker::Local(_) | Broker::Remote(_) => 0,
            };
            undelivered == 0 && self.room.available_permits() == PUBLICATIONS_MAX
        };
        let quiet = async {
            while !is_quiet() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(patience, quiet).await.is_ok()
    }

    /// Waits until everything that was published is delivered, and keeps whatever comes waiting for as long as the guard is
    /// kept. Shards may still deliver and finish what they have under way. To be called by one at a time; whoever gives up
    /// waiting drops this, and everything goes on.
    pub(super) async fn freeze(self: &Arc<Self>) -> Frozen {
        let mut frozen = Frozen { pipeline: Arc::clone(self), held: Vec::new(), sending_away: None, permits: None };
        let list = |turns: &Mutex<Vec<Turns>>| turns.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for turns in list(&self.sources) {
            frozen.held.push(turns.hold().await);
        }
        frozen.sending_away = Some(Arc::clone(&self.sending_away).write_owned().await);
        self.frozen.store(true, Ordering::Release);
        frozen.permits = Arc::clone(&self.room).acquire_many_owned(PUBLICATIONS_MAX as u32).await.ok();
        if let Broker::Remote(remote) = &self.broker {
            remote.questions_answered(ANSWERS_MAX).await;
        }
        for turns in list(&self.workers) {
            frozen.held.push(turns.hold().await);
        }
        frozen.held.push(self.sweeping.hold().await);
        frozen
    }

    /// From now on everything that comes, and what waits, goes to `successor`. Nothing is delivered here any more, for ever:
    /// what is frozen stays so.
    pub(super) fn succeed(&self, successor: Arc<dyn Successor>) {
        // There is one successor.
        let _ = self.successor.set(successor);
        self.room.close();
    }

    /// A shard follows a stream. Gives how many publications were put into its inbox before.
    pub(super) fn follow(self: &Arc<Self>, stream: &str, change: StreamChange, shard: u16) -> u64 {
        if change.of_key {
            self.followers.follow(change.key, shard, || {
                if let Broker::Parent(parent) = &self.broker {
                    parent.follow(change.key);
                }
            });
        }
        // Behind the table: who found the shard there when it followed the stream before has put in what it had. A few that
        // found it only now may be among these, too; they came before anybody was told that the subscription stands.
        let given = self.inboxes.get(usize::from(shard)).map_or(0, |inbox| inbox.publications());
        let name = self.cluster.follow(stream);
        if let Broker::Remote(remote) = &self.broker
            && let Some(name) = remote.follow(stream, name)
        {
            let pipeline = Arc::downgrade(self);
            self.cluster.when_subscribed(
                stream,
                Box::new(move || {
                    if let Some(pipeline) = pipeline.upgrade()
                        && let Broker::Remote(remote) = &pipeline.broker
                    {
                        remote.subscribed(&name);
                    }
                }),
            );
        }
        given
    }

    /// A shard does not follow a stream any more.
    pub(super) fn unfollow(&self, stream: &str, change: StreamChange, shard: u16) {
        if let Broker::Remote(remote) = &self.broker {
            remote.unfollow(stream);
        }
        self.cluster.unfollow(stream);
        if change.of_key {
            self.followers.unfollow(change.key, shard, || {
                if let Broker::Parent(parent) = &self.broker {
                    parent.unfollow(change.key);
                }
            });
        }
    }

    /// Whether what is published to these streams, on whichever node, comes here. Answers now, or later to who asked.
    pub(super) fn ask_followed(self: &Arc<Self>, key: SlotKey, streams: &[Box<str>]) -> Option<Reply> {
        if let Broker::Parent(parent) = &self.broker {
            return parent.is_followed(key);
        }
        // One more than there are: whoever is the last to count down answers, and that may be this call.
        let left = Arc::new(AtomicUsize::new(streams.len() + 1));
        for stream in streams {
            let (left, inbox) = (Arc::clone(&left), self.inboxes.get(usize::from(key.shard)).cloned());
            let then = move || {
                if left.fetch_sub(1, Ordering::AcqRel) == 1
                    && let Some(inbox) = inbox
                {
                    inbox.put(Message::Answer(Answer { key, reply: Reply::Followed }));
                }
            };
            self.cluster.when_subscribed(stream, self.when_open(stream, Box::new(then)));
        }
        (left.fetch_sub(1, Ordering::AcqRel) == 1).then_some(Reply::Followed)
    }

    /// What calls `then`, with a broker elsewhere as soon as that lets pass what is published to a stream.
    fn when_open(self: &Arc<Self>, stream: &str, then: Box<dyn FnOnce() + Send>) -> Box<dyn FnOnce() + Send> {
        if !matches!(self.broker, Broker::Remote(_)) {
            return then;
        }
        let (pipeline, name) = (Arc::downgrade(self), Box::<str>::from(stream));
        Box::new(move || match pipeline.upgrade().as_ref().map(|pipeline| &pipeline.broker) {
            Some(Broker::Remote(remote)) => remote.when_open(&name, then),
            _ => then(),
        })
    }

    /// Gives the shard that asked the broker's answer.
    pub(super) fn answer(&self, key: SlotKey, result: Result<BrokerReply, BrokerError>) {
        self.give(Answer::of_broker(key, result));
    }

    fn give(&self, answer: Answer) {
        if let Some(inbox) = self.inboxes.get(usize::from(answer.key.shard)) {
            inbox.put(Message::Answer(answer));
        }
    }

    fn tell_of_disconnect(&self, disconnect: RemoteDisconnect) {
        for inbox in self.inboxes.iter() {
            inbox.put(Message::Disconnect(disconnect.clone()));
        }
    }

    /// Sessions that were given to clients of shards that have ended.
    pub(super) fn left_sessions(&self) -> Vec<SavedSession> {
        self.inboxes.iter().flat_map(|inbox| inbox.take_sessions()).collect()
    }

    /// A shard is to give up a session.
    pub(super) fn ask_to_yield(&self, Place { shard, index }: Place, ticket: ResumeTicket) {
        if let Some(inbox) = self.inboxes.get(usize::from(shard)) {
            inbox.put(Message::Yield { index, ticket });
        }
    }

    /// Changes who is present on a stream, and tells those who follow it. A join finds no room where too many publications
    /// wait to be delivered, like a whisper; that somebody has left is told all the same.
    pub(super) fn change_presence(&self, sid: Sid, stream: &str, change: PresenceChange) {
        let local = match &self.broker {
            Broker::Local(local) => local,
            Broker::Remote(remote) => return remote.change_presence(sid, stream, change),
            Broker::Parent(parent) => return parent.change_presence(sid, stream, change),
        };
        let permit = self.try_room(1);
        if permit.is_none() && matches!(change, PresenceChange::Join { .. }) {
            local.metrics.presence_refused_total.inc();
            return;
        }
        local.change_presence(stream, sid, change, self.clock.now(), |event| self.hand_over(event, permit));
    }

    /// Has the broker forget what is over, part after part, until the runtime ends or nobody publishes any more.
    pub(super) fn keep_sweeping(self: &Arc<Self>, runtime: &Handle) {
        if !self.broker.remembers() {
            return;
        }
        let pipeline = Arc::downgrade(self);
        runtime.spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP_ALL / SWEEPS as u32);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for part in (0..SWEEPS).cycle() {
                ticks.tick().await;
                let Some(pipeline) = pipeline.upgrade() else { return };
                let _turn = pipeline.sweeping.next().await;
                match &pipeline.broker {
                    Broker::Local(local) => {
                        local.sweep(part, pipeline.clock.now(), |event| pipeline.hand_over(event, None));
                    }
                    Broker::Remote(remote) if part == 0 => remote.sweep(),
                    Broker::Parent(parent) if part == 0 => parent.sweep(pipeline.clock.now()),
                    Broker::Remote(_) | Broker::Parent(_) => {}
                }
            }
        });
    }
}

impl PublicationSink for Pipeline {
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
        Box::pin(async move {
            if let Broker::Parent(parent) = &self.broker {
                // The bound is the parent's. This is for whoever wants that nothing is under way.
                let Ok(_under_way) = self.room.acquire().await else {
                    return self.successor()?.publish(publications).await;
                };
                return parent.publish(publications).await.map_err(|error| PublishError(error.to_string()));
            }
            let (mut stores, mut rest) = (Vec::new(), publications.into_iter());
            let mut left = None;
            for publication in rest.by_ref() {
                match self.room(&publication).await {
                    Some(permit) => stores.extend(self.take(publication, permit)),
                    None => {
                        left = Some(publication);
                        break;
                    }
                }
            }
            for store in stores {
                store.await.map_err(|error| PublishError(error.to_string()))?;
            }
            match left {
                Some(left) => self.successor()?.publish(std::iter::once(left).chain(rest).collect()).await,
                None => Ok(()),
            }
        })
    }

    fn try_publish(&self, publication: Publication) -> bool {
        if let Broker::Parent(parent) = &self.broker {
            return parent.whisper(publication);
        }
        let Some(permit) = self.try_room(places(&publication)) else { return false };
        // What becomes of it is waited for by nobody.
        drop(self.take(publication, permit));
        true
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        Box::pin(async move {
            let sending_away = self.sending_away.read().await;
            if let Some(successor) = self.successor.get() {
                drop(sending_away);
                return successor.disconnect(disconnect).await;
            }
            if let Broker::Parent(parent) = &self.broker {
                return parent.disconnect(disconnect).await.map_err(|error| PublishError(error.to_string()));
            }
            if let Broker::Remote(remote) = &self.broker {
                // The storage knows before any node: whoever comes back, wherever, is refused from then on. Where it is away
                // it is told when it is back, and the clients do not wait for that.
                let known = remote.send_away(&disconnect.identifiers);
                let _ = tokio::time::timeout(SEND_AWAY_MAX, known).await;
            }
            self.cluster.announce_disconnect(&disconnect);
            self.disconnect_here(disconnect).await
        })
    }

    fn publish_here(&self, publications: Vec<Publication>) -> Handover<'_> {
        Box::pin(async move {
            for publication in publications {
                let permit =
                    self.room(&publication).await.ok_or_else(|| PublishError("the node has ended".to_owned()))?;
                self.deliver(publication, Some(permit));
            }
            Ok(())
        })
    }

    fn disconnect_here(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        self.metrics.broadcast_msg_total.inc();
        // Before the shards are told: whoever comes back to a session after that is refused, and before that sent away.
        match &self.broker {
            Broker::Local(local) => {
                if let Some(sessions) = local.sessions() {
                    sessions.send_away(&disconnect.identifiers, self.clock.now());
                }
            }
            Broker::Remote(remote) => remote.sent_away_elsewhere(&disconnect.identifiers),
            Broker::Parent(parent) => parent.sent_away_everywhere(&disconnect.identifiers, self.clock.now()),
        }
        self.tell_of_disconnect(disconnect);
        Box::pin(async { Ok(()) })
    }
}

impl FromParent for Pipeline {
    fn deliver(&self, publication: Publication, credit: Credit) {
        self.to_followers(publication, Some(Box::new(credit)));
    }

    fn send_away(&self, disconnect: RemoteDisconnect) {
        self.tell_of_disconnect(disconnect);
    }

    fn answer(&self, key: SlotKey, reply: Reply) {
        self.give(Answer { key, reply });
    }

    fn ask_to_yield(&self, place: Place, ticket: ResumeTicket) {
        Pipeline::ask_to_yield(self, place, ticket);
    }
}

/// A pipeline that stands still. Dropped: it goes on, unless it has a successor.
pub(super) struct Frozen {
    pipeline: Arc<Pipeline>,
    held: Vec<Held>,
    sending_away: Option<OwnedRwLockWriteGuard<()>>,
    permits: Option<OwnedSemaphorePermit>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.pipeline.successor.get().is_some() {
            // What worked here works there now.
            std::mem::forget(std::mem::take(&mut self.held));
        } else {
            self.pipeline.frozen.store(false, Ordering::Release);
        }
    }
}

/// What a remote broker gives to the pipeline that has it.
pub(super) struct ToPipeline(pub Weak<Pipeline>);

impl Outlet for ToPipeline {
    fn deliver(&self, publication: Publication, permit: Option<OwnedSemaphorePermit>) {
        if let Some(pipeline) = self.0.upgrade() {
            pipeline.deliver(publication, permit);
        }
    }

    fn nobody_follows(&self) {
        if let Some(pipeline) = self.0.upgrade() {
            pipeline.metrics.broadcast_msg_total.inc();
        }
    }

    fn announce(&self, publication: &Publication) {
        if let Some(pipeline) = self.0.upgrade() {
            pipeline.cluster.announce(publication);
        }
    }

    fn command(&self, name: &'static str, payload: String) {
        if let Some(pipeline) = self.0.upgrade() {
            pipeline.cluster.command(name, payload);
        }
    }

    fn answer(&self, key: SlotKey, result: Result<BrokerReply, BrokerError>) {
        if let Some(pipeline) = self.0.upgrade() {
            pipeline.answer(key, result);
        }
    }

    fn ask_to_yield(&self, place: Place, ticket: ResumeTicket) {
        if let Some(pipeline) = self.0.upgrade() {
            pipeline.ask_to_yield(place, ticket);
        }
    }

    fn now(&self) -> Now {
        self.0.upgrade().map_or_else(Now::default, |pipeline| pipeline.clock.now())
    }
}

#[cfg(test)]
mod tests;
