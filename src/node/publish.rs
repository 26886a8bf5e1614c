//! The way of a publication through the node: the broker gives it its position in the stream, the cluster is told, and
//! the shards that follow the stream get it.
//!
//! There is one bound for the whole node. A publication takes a permit first and gives it back when the last shard has
//! delivered it. With a permit it goes to all those shards at once, so a busy shard does not delay the others until the
//! bound is reached; then publishers wait, and with them the app's HTTP requests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::MissedTickBehavior;

use crate::broadcast::{Handover, PublicationSink, PublishError};
use crate::broker::{Broker, Credit, FromParent, LocalBroker, Outlet, Place, SWEEPS};
use crate::cluster::Cluster;
use crate::hub::{StreamChange, StreamHasher};
use crate::metrics;
use crate::model::{
    Answer, BrokerError, BrokerReply, Now, PresenceChange, Publication, RemoteDisconnect, Reply, ResumeTicket, Sid,
    SlotKey,
};
use crate::os::clock::Clock;
use crate::shard::{Delivery, Inbox, Message, Permit};

use super::followers::Followers;

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
    /// Never closed. Waiting publishers get permits in their order, before any whisper.
    room: Arc<Semaphore>,
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

    /// Waits for room for a publication.
    pub(super) async fn room(&self, publication: &Publication) -> Result<OwnedSemaphorePermit, PublishError> {
        let room = Arc::clone(&self.room).acquire_many_owned(places(publication)).await;
        room.map_err(|error| PublishError(error.to_string()))
    }

    /// A shard follows a stream.
    pub(super) fn follow(self: &Arc<Self>, stream: &str, change: StreamChange, shard: u16) {
        if change.of_key {
            self.followers.follow(change.key, shard, || {
                if let Broker::Parent(parent) = &self.broker {
                    parent.follow(change.key);
                }
            });
        }
        self.cluster.follow(stream);
        if let Broker::Remote(remote) = &self.broker
            && remote.follow(stream)
        {
            let (pipeline, name) = (Arc::downgrade(self), Box::<str>::from(stream));
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
    pub(super) fn ask_followed(&self, key: SlotKey, streams: &[Box<str>]) -> Option<Reply> {
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
            self.cluster.when_subscribed(stream, Box::new(then));
        }
        (left.fetch_sub(1, Ordering::AcqRel) == 1).then_some(Reply::Followed)
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
        let permit = Arc::clone(&self.room).try_acquire_owned().ok();
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
            let mut stores = Vec::new();
            if let Broker::Parent(parent) = &self.broker {
                return parent.publish(publications).await.map_err(|error| PublishError(error.to_string()));
            }
            for publication in publications {
                let permit = self.room(&publication).await?;
                stores.extend(self.take(publication, permit));
            }
            for store in stores {
                store.await.map_err(|error| PublishError(error.to_string()))?;
            }
            Ok(())
        })
    }

    fn try_publish(&self, publication: Publication) -> bool {
        if let Broker::Parent(parent) = &self.broker {
            return parent.whisper(publication);
        }
        let Ok(permit) = Arc::clone(&self.room).try_acquire_many_owned(places(&publication)) else { return false };
        // What becomes of it is waited for by nobody.
        drop(self.take(publication, permit));
        true
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        let remote = match &self.broker {
            Broker::Local(_) => {
                self.cluster.announce_disconnect(&disconnect);
                return self.disconnect_here(disconnect);
            }
            Broker::Remote(remote) => remote,
            Broker::Parent(parent) => {
                return Box::pin(async move {
                    parent.disconnect(disconnect).await.map_err(|error| PublishError(error.to_string()))
                });
            }
        };
        // The storage knows before any node: whoever comes back, wherever, is refused from then on.
        let known = remote.send_away(&disconnect.identifiers);
        Box::pin(async move {
            // Where the storage is away it is told when it is back. The clients do not wait for that.
            let _ = tokio::time::timeout(SEND_AWAY_MAX, known).await;
            self.cluster.announce_disconnect(&disconnect);
            self.disconnect_here(disconnect).await
        })
    }

    fn publish_here(&self, publications: Vec<Publication>) -> Handover<'_> {
        Box::pin(async move {
            for publication in publications {
                let permit = self.room(&publication).await?;
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

    fn disconnect(&self, disconnect: RemoteDisconnect) {
        self.tell_of_disconnect(disconnect);
    }

    fn answer(&self, key: SlotKey, reply: Reply) {
        self.give(Answer { key, reply });
    }

    fn ask_to_yield(&self, place: Place, ticket: ResumeTicket) {
        Pipeline::ask_to_yield(self, place, ticket);
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
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::thread;

    use super::*;
    use crate::broker::LocalBroker;

    fn pipeline(shards: usize) -> (Pipeline, Arc<[Arc<Inbox>]>) {
        let inboxes: Arc<[_]> = (0..shards).map(|_| Arc::new(Inbox::new().unwrap())).collect();
        let hasher = StreamHasher::new(1);
        let pipeline = Pipeline::new(
            Arc::clone(&inboxes),
            hasher.clone(),
            Broker::Local(LocalBroker::default()),
            Cluster::default(),
            Clock::start(),
        );
        for shard in 0..shards as u16 {
            ["s", "other"].into_iter().for_each(|stream| pipeline.followers.follow(hasher.key(stream), shard, || {}));
        }
        (pipeline, inboxes)
    }

    fn to(stream: &str, message: impl ToString) -> Publication {
        Publication::new(stream, message.to_string())
    }

    fn delivered_by(inbox: &Inbox) -> Vec<Arc<Delivery>> {
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        let publications = messages.into_iter().map(|message| match message {
            Message::Publication(delivery) => delivery,
            other => panic!("{other:?}"),
        });
        publications.collect()
    }

    fn texts(inbox: &Inbox) -> Vec<String> {
        delivered_by(inbox).iter().map(|delivery| delivery.publication.message.to_string()).collect()
    }

    fn now_or_never(future: &mut (impl Future + Unpin)) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn two_publishers_of_one_stream_reach_all_shards_in_one_order() {
        // Aim: no two shards see the publications of a stream in different orders. One thread publishes as a request
        // does, one as a whisper does, both as fast as they can, to inboxes that nobody empties meanwhile.
        let (pipeline, inboxes) = pipeline(2);
        for round in 0..100 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for n in 0..200 {
                        let mut handover = pipeline.publish(vec![to("s", format_args!("{round} a{n}"))]);
                        assert!(now_or_never(&mut handover));
                    }
                });
                scope.spawn(|| {
                    (0..200).for_each(|n| assert!(pipeline.try_publish(to("s", format_args!("{round} b{n}")))))
                });
            });
            let orders = [texts(&inboxes[0]), texts(&inboxes[1])];
            assert_eq!(orders[0].len(), 400);
            assert_eq!(orders[0], orders[1]);
            let of_b = orders[0].iter().filter(|text| text.contains('b'));
            assert!(
                of_b.eq(&(0..200).map(|n| format!("{round} b{n}")).collect::<Vec<_>>()),
                "each publisher's own order"
            );
        }
    }

    #[test]
    fn the_bound_holds_and_frees_when_the_last_shard_has_delivered() {
        let (pipeline, inboxes) = pipeline(2);
        for n in 0..PUBLICATIONS_MAX {
            assert!(pipeline.try_publish(to("s", n)));
        }
        assert!(!pipeline.try_publish(to("other", "one too many")));
        let mut waiting = pipeline.publish(vec![to("s", "waits")]);
        assert!(!now_or_never(&mut waiting));
        let mut slow = delivered_by(&inboxes[0]);
        assert_eq!(slow.len(), PUBLICATIONS_MAX, "taken out is not delivered yet");
        drop(delivered_by(&inboxes[1]));
        assert!(!now_or_never(&mut waiting), "one shard has delivered, the other has not");
        slow.pop();
        assert!(now_or_never(&mut waiting));
        assert!(!pipeline.try_publish(to("s", "whispered")));
        assert_eq!((texts(&inboxes[0]), texts(&inboxes[1])), (vec!["waits".to_owned()], vec!["waits".to_owned()]));
        assert!(pipeline.try_publish(to("s", "whispered")));
        assert_eq!(
            pipeline.metrics.broadcast_msg_total.get(),
            PUBLICATIONS_MAX as u64 + 2,
            "refused ones do not count"
        );
    }

    #[test]
    fn long_messages_that_are_not_delivered_are_bounded_in_bytes() {
        let (pipeline, inboxes) = pipeline(1);
        let megabytes = |count: usize| to("s", "x".repeat(count << 20));
        for _ in 0..32 {
            assert!(pipeline.try_publish(megabytes(8)));
        }
        assert!(!pipeline.try_publish(to("s", "256 MiB are there")));
        assert_eq!(delivered_by(&inboxes[0]).len(), 32);
        // One that is larger than all of it still passes, alone.
        let all = to("s", "x".repeat(PUBLICATIONS_MAX * BYTES_PER_PLACE + 1));
        assert!(pipeline.try_publish(all) && !pipeline.try_publish(to("s", "short")));
    }

    #[test]
    fn a_shard_that_does_not_follow_a_stream_is_left_alone() {
        let (pipeline, inboxes) = pipeline(3);
        pipeline.followers.unfollow(pipeline.hasher.key("s"), 1, || {});
        assert!(pipeline.try_publish(to("s", 1)) && pipeline.try_publish(to("nobody's", 2)));
        let reached: Vec<_> = inboxes.iter().map(|inbox| texts(inbox).len()).collect();
        assert_eq!(reached, [1, 0, 1]);
        assert_eq!(pipeline.room.available_permits(), PUBLICATIONS_MAX);
    }

    #[test]
    fn a_hand_over_that_is_given_up_leaves_no_trace() {
        let (pipeline, inboxes) = pipeline(1);
        for n in 0..PUBLICATIONS_MAX - 1 {
            assert!(pipeline.try_publish(to("s", n)));
        }
        let mut batch = pipeline.publish(vec![to("s", "first"), to("s", "second")]);
        assert!(!now_or_never(&mut batch));
        drop(batch);
        let texts = texts(&inboxes[0]);
        assert_eq!((texts.len(), &*texts[PUBLICATIONS_MAX - 1]), (PUBLICATIONS_MAX, "first"));
        assert_eq!(pipeline.room.available_permits(), PUBLICATIONS_MAX);
    }
}
