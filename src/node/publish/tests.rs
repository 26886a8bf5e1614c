//! Order, bounds and hand-over of publications.

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
fn a_shard_that_follows_a_stream_is_told_how_much_it_was_given_before() {
    let (pipeline, inboxes) = pipeline(2);
    let pipeline = Arc::new(pipeline);
    ["s", "nobody's", "other"].into_iter().for_each(|stream| pipeline.deliver(to(stream, 1), None));
    assert_eq!(delivered_by(&inboxes[0]).len(), 2);
    let change = StreamChange { key: pipeline.hasher.key("new"), of_key: true };
    assert_eq!(pipeline.follow("new", change, 0), 2);
    pipeline.deliver(to("new", 1), None);
    assert_eq!((inboxes[0].publications(), inboxes[1].publications()), (3, 2));
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
            scope.spawn(|| (0..200).for_each(|n| assert!(pipeline.try_publish(to("s", format_args!("{round} b{n}"))))));
        });
        let orders = [texts(&inboxes[0]), texts(&inboxes[1])];
        assert_eq!(orders[0].len(), 400);
        assert_eq!(orders[0], orders[1]);
        let of_b = orders[0].iter().filter(|text| text.contains('b'));
        assert!(of_b.eq(&(0..200).map(|n| format!("{round} b{n}")).collect::<Vec<_>>()), "each publisher's own order");
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
    assert_eq!(pipeline.metrics.broadcast_msg_total.get(), PUBLICATIONS_MAX as u64 + 2, "refused ones do not count");
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

/// Notes what it gets.
#[derive(Default)]
struct Noted(Mutex<Vec<String>>);

impl Noted {
    fn note(&self, what: impl IntoIterator<Item = String>) -> Handover<'_> {
        self.0.lock().unwrap().extend(what);
        Box::pin(async { Ok(()) })
    }
}

impl Successor for Noted {
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
        self.note(publications.iter().map(|publication| publication.message.to_string()))
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        self.note([disconnect.identifiers.to_string()])
    }

    fn message(&self, _: Message<crate::shard::Socket>) {}

    fn adopt(&self, _: crate::shard::Incoming<crate::shard::Socket>, _: Vec<u8>) {}

    fn tell(&self, _: crate::model::Call) {}
}

fn away(identifiers: &str) -> RemoteDisconnect {
    RemoteDisconnect { identifiers: identifiers.into(), reconnect: true }
}

#[tokio::test]
async fn a_pipeline_stands_still_behind_what_was_published_and_goes_on_as_if_nothing_had_been() {
    let (pipeline, inboxes) = pipeline(1);
    let pipeline = Arc::new(pipeline);
    let turns = Turns::default();
    pipeline.add_source(turns.clone());
    let publish = |n: u32| {
        let pipeline = Arc::clone(&pipeline);
        tokio::spawn(async move { pipeline.publish(vec![to("s", n)]).await.unwrap() })
    };
    publish(1).await.unwrap();
    let freezing = Arc::clone(&pipeline);
    let mut freezing = pin!(freezing.freeze());
    assert!(!now_or_never(&mut freezing), "one is not delivered yet");
    let second = publish(2);
    tokio::task::yield_now().await;
    assert_eq!(texts(&inboxes[0]), ["1"]);
    let frozen = freezing.await;
    assert!(!now_or_never(&mut pin!(turns.next())));
    let third = tokio::spawn({
        let pipeline = Arc::clone(&pipeline);
        async move { PublicationSink::disconnect(&*pipeline, away("u")).await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert!(texts(&inboxes[0]).is_empty());
    // What a shard has under way is finished.
    assert!(pipeline.try_publish(to("s", "whispered")));
    assert_eq!(texts(&inboxes[0]), ["whispered"]);
    drop(frozen);
    second.await.unwrap();
    third.await.unwrap();
    let mut messages = Vec::new();
    inboxes[0].take(&mut messages);
    let kinds = |message: &Message<_>| matches!(message, Message::Disconnect(_));
    assert_eq!((messages.len(), messages.iter().filter(|message| kinds(message)).count()), (2, 1));
    assert!(now_or_never(&mut pin!(turns.next())));
    drop(messages);
    assert_eq!(pipeline.room.available_permits(), PUBLICATIONS_MAX);
}

#[tokio::test]
async fn what_waits_and_what_comes_later_goes_to_the_successor_once_and_in_order() {
    let (pipeline, inboxes) = pipeline(1);
    let pipeline = Arc::new(pipeline);
    let frozen = pipeline.freeze().await;
    let publish = |messages: [u32; 2]| {
        let pipeline = Arc::clone(&pipeline);
        tokio::spawn(async move { pipeline.publish(messages.map(|n| to("s", n)).to_vec()).await.unwrap() })
    };
    let waiting = publish([1, 2]);
    tokio::task::yield_now().await;
    let noted = Arc::new(Noted::default());
    pipeline.succeed(Arc::clone(&noted) as Arc<_>);
    waiting.await.unwrap();
    drop(frozen);
    publish([3, 4]).await.unwrap();
    PublicationSink::disconnect(&*pipeline, away("u")).await.unwrap();
    assert_eq!(*noted.0.lock().unwrap(), ["1", "2", "3", "4", "u"]);
    assert!(texts(&inboxes[0]).is_empty());
    assert!(!now_or_never(&mut pin!(pipeline.sweeping.next())), "what was frozen stays so");
}

#[tokio::test]
async fn a_batch_of_which_some_is_delivered_is_given_on_from_there() {
    let (pipeline, inboxes) = pipeline(1);
    let pipeline = Arc::new(pipeline);
    for n in 0..PUBLICATIONS_MAX - 1 {
        assert!(pipeline.try_publish(to("other", n)));
    }
    let batch = tokio::spawn({
        let pipeline = Arc::clone(&pipeline);
        async move { pipeline.publish(vec![to("s", "first"), to("s", "second")]).await.unwrap() }
    });
    tokio::task::yield_now().await;
    let noted = Arc::new(Noted::default());
    pipeline.succeed(Arc::clone(&noted) as Arc<_>);
    batch.await.unwrap();
    assert_eq!(texts(&inboxes[0]).last().map(String::as_str), Some("first"));
    assert_eq!(*noted.0.lock().unwrap(), ["second"]);
}
