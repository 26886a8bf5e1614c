mod renew;

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use super::*;
use crate::broker::SessionsSettings;
use crate::hub::StreamHasher;
use crate::link::local::LinkLost;
pub use crate::model::{
    Admission, BrokerError, BrokerQuestion, BrokerReply, HistoryRequest, Position, PresenceChange, Publication,
    RemoteDisconnect, ResumeTicket, SavedSession, Sid, SlotKey, State as AppState,
};
pub(super) use crate::node::publish::PUBLICATIONS_MAX;

struct Silent;

impl Asked for Silent {
    fn asked(self: Arc<Self>, _: Box<str>, _: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        Box::pin(async { Vec::new() })
    }
}

/// A child as the relay sees it: an end of a link.
pub struct TestChild {
    pub of_relay: ChildLink,
    link: Sender<ToParent>,
    heard: UnboundedReceiver<ToChild>,
    pub hasher: StreamHasher,
    lives: (JoinHandle<Ended<ToChild>>, JoinHandle<LinkLost>),
}

impl TestChild {
    pub async fn of(relay: &Arc<Relay>) -> TestChild {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (of_relay, life) = relay.add(ours, Arc::new(Silent)).expect("not that many");
        let link = Link::<ToParent, ToChild>::new(theirs, None);
        let sender = link.sender();
        let (hears, mut heard) = unbounded_channel();
        let run = link.run(Arc::new(Silent), move |message| _ = hears.send(message));
        let lives = (tokio::spawn(life), tokio::spawn(run));
        let Some(ToChild::Welcome(welcome)) = heard.recv().await else { panic!("no welcome") };
        assert!(welcome.relays);
        let hasher = StreamHasher::new(welcome.stream_seed);
        TestChild { of_relay, link: sender, heard, hasher, lives }
    }

    pub fn says(&self, message: ToParent) {
        assert!(self.link.put(&message));
    }

    pub async fn hears(&mut self) -> ToChild {
        tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await.expect("soon").expect("not lost")
    }

    /// Follows a stream, for certain.
    pub async fn follows(&mut self, stream: &str) {
        self.says(ToParent::Follow(self.hasher.key(stream).to_bits()));
        self.says(ToParent::IsFollowed(key(1)));
        assert!(matches!(self.hears().await, ToChild::Followed { .. }));
    }

    /// Everything that was said is carried out.
    pub async fn is_up_to_date(&mut self) {
        self.says(ToParent::IsFollowed(key(9)));
        assert!(matches!(self.hears().await, ToChild::Followed { key: asked, .. } if asked == key(9)));
    }

    pub async fn publishes(&mut self, number: u64, stream: &str, message: &str) {
        self.says(publish(number, stream, message));
        assert_eq!(self.hears().await, ToChild::Taken(number));
    }

    /// The next thing it hears is a publication: its message and offset.
    pub async fn gets(&mut self) -> (String, u64) {
        match self.hears().await {
            ToChild::Publication { publication, .. } => {
                let offset = publication.position.map_or(0, |position| position.offset);
                (publication.message.to_string(), offset)
            }
            other => panic!("{other:?}"),
        }
    }

    /// As with kill -9.
    pub async fn dies(self) {
        let (relay, own) = self.lives;
        own.abort();
        relay.await.unwrap();
    }
}

pub fn relay() -> Arc<Relay> {
    Relay::with_broker(Some(memory()), true)
}

fn memory() -> MemorySettings {
    MemorySettings {
        epoch: "e".into(),
        history_limit: 10_000,
        history_ttl: Duration::from_secs(300),
        history_bytes_max: usize::MAX,
        presence_ttl: Duration::ZERO,
        presence_bytes_max: usize::MAX,
        sessions: SessionsSettings { ttl: Duration::from_secs(300), bytes_max: usize::MAX },
    }
}

pub fn key(index: u32) -> SlotKey {
    SlotKey { shard: 3, index, generation: 7 }
}

pub fn sid(n: u128) -> Sid {
    Sid::from_bits(n)
}

pub fn publish(number: u64, stream: &str, message: &str) -> ToParent {
    ToParent::Publish { number, publications: vec![Publication::new(stream, message)] }
}

pub fn ticket(n: u128) -> ResumeTicket {
    ResumeTicket { sid: sid(n), identifiers: None }
}

pub fn resume(index: u32, n: u128) -> ToParent {
    ToParent::Ask { key: key(index), question: BrokerQuestion::Resume(ticket(n)) }
}

pub fn saved(n: u128) -> Option<Box<SavedSession>> {
    Some(Box::new(SavedSession {
        sid: sid(n),
        saved_at: 0,
        identifiers: format!("user {n}").into(),
        admission: Admission::App,
        cstate: AppState::default(),
        subscriptions: Vec::new(),
        disconnectable: true,
    }))
}

/// Whose session a child was given for who asked in this slot, or that there is none.
pub fn given(message: ToChild, index: u32) -> Option<Sid> {
    match message {
        ToChild::Answer { key: asked, result: Ok(BrokerReply::Resumed(saved)) } if asked == key(index) => {
            saved.map(|saved| saved.sid)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_one_child_publishes_reaches_all_that_follow_with_its_place() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    let mut c = TestChild::of(&relay).await;
    a.follows("s").await;
    b.follows("s").await;
    c.follows("other").await;
    c.publishes(1, "s", "one").await;
    c.publishes(2, "s", "two").await;
    for child in [&mut a, &mut b] {
        assert_eq!((child.gets().await, child.gets().await), (("one".into(), 1), ("two".into(), 2)));
    }
    b.says(ToParent::Unfollow(b.hasher.key("s").to_bits()));
    b.is_up_to_date().await;
    c.publishes(3, "s", "three").await;
    assert_eq!(a.gets().await, ("three".into(), 3));
    b.is_up_to_date().await;
    assert_eq!(relay.metrics.broadcast_msg_total.get(), 3);
}

#[tokio::test]
async fn two_publishers_on_different_children_make_one_order() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    for child in [&mut a, &mut b] {
        child.follows("s").await;
    }
    let count = 400;
    for n in 0..count {
        a.says(publish(n, "s", &format!("a{n}")));
        b.says(publish(n, "s", &format!("b{n}")));
    }
    let mut orders = Vec::new();
    for child in [&mut a, &mut b] {
        let (mut order, mut taken) = (Vec::new(), 0);
        while order.len() < 2 * count as usize || taken < count {
            match child.hears().await {
                ToChild::Publication { publication, places } => {
                    child.says(ToParent::Delivered(places));
                    let position = publication.position.unwrap();
                    assert_eq!(position.offset, order.len() as u64 + 1);
                    order.push(publication.message.to_string());
                }
                ToChild::Taken(number) => {
                    assert_eq!(number, taken);
                    taken += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        orders.push(order);
    }
    assert_eq!(orders[0], orders[1]);
    let of_a: Vec<_> = orders[0].iter().filter(|text| text.starts_with('a')).collect();
    assert!(
        of_a.into_iter().eq(&(0..count).map(|n| format!("a{n}")).collect::<Vec<_>>()),
        "each publisher's own order"
    );
}

#[tokio::test]
async fn an_answer_comes_behind_the_publications_that_it_covers() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    a.follows("s").await;
    for n in 1..=3 {
        b.publishes(n, "s", &n.to_string()).await;
    }
    let since = HistoryRequest { since: 0, positions: vec![("s".into(), Position { epoch: "e".into(), offset: 1 })] };
    a.says(ToParent::Ask { key: key(5), question: BrokerQuestion::History { streams: vec!["s".into()], since } });
    for n in 1..=3 {
        assert_eq!(a.gets().await, (n.to_string(), n));
    }
    let ToChild::Answer { key: asked, result: Ok(BrokerReply::History(missed)) } = a.hears().await else { panic!() };
    let offsets = missed[0].publications.iter().map(|publication| publication.position.as_ref().unwrap().offset);
    assert_eq!((asked, offsets.collect::<Vec<_>>()), (key(5), vec![2, 3]));
}

#[tokio::test]
async fn the_bound_holds_over_all_children_and_frees_when_the_last_has_delivered_or_is_lost() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    let mut publisher = TestChild::of(&relay).await;
    a.follows("s").await;
    b.follows("s").await;
    for n in 0..PUBLICATIONS_MAX as u64 {
        publisher.publishes(n, "s", "1").await;
    }
    publisher.says(publish(5000, "s", "waits"));
    publisher.says(ToParent::Whisper(Publication { transient: true, ..Publication::new("s", "whispered") }));
    publisher.is_up_to_date().await;
    assert_eq!(relay.metrics.whispers_dropped_total.get(), 1);
    assert_eq!(relay.state().amounts().1, 1);
    a.says(ToParent::Delivered(7));
    a.is_up_to_date_after(PUBLICATIONS_MAX).await;
    publisher.is_up_to_date().await;
    assert_eq!(relay.state().amounts().1, 1, "b has not delivered anything");
    b.dies().await;
    assert_eq!(publisher.hears().await, ToChild::Taken(5000));
    assert_eq!(a.gets().await, ("waits".into(), PUBLICATIONS_MAX as u64 + 1));
    a.says(ToParent::Delivered(PUBLICATIONS_MAX as u32 - 6));
    a.is_up_to_date().await;
    assert_eq!(relay.state().free(), PUBLICATIONS_MAX as u32, "nothing is lost of the bound");
}

impl TestChild {
    /// The same, after so many publications.
    async fn is_up_to_date_after(&mut self, publications: usize) {
        self.says(ToParent::IsFollowed(key(9)));
        for _ in 0..publications {
            self.gets().await;
        }
        assert!(matches!(self.hears().await, ToChild::Followed { .. }));
    }
}

#[tokio::test]
async fn what_waits_is_dropped_when_its_publisher_gives_up_or_is_lost() {
    let relay = relay();
    let mut slow = TestChild::of(&relay).await;
    let (mut patient, mut other) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    slow.follows("s").await;
    let large = "1".repeat(64 << 20);
    for n in 0..4 {
        patient.publishes(n, "s", &large).await;
    }
    other.says(publish(1, "s", "lost"));
    other.is_up_to_date().await;
    patient.says(publish(10, "s", "given up"));
    patient.says(publish(11, "s", "placed"));
    patient.says(ToParent::GiveUp { number: 10 });
    patient.is_up_to_date().await;
    assert_eq!(relay.state().amounts().1, 2);
    other.dies().await;
    slow.says(ToParent::Delivered(PUBLICATIONS_MAX as u32));
    assert_eq!(patient.hears().await, ToChild::Taken(11));
    for n in 1..=4 {
        assert_eq!(slow.gets().await.1, n);
    }
    assert_eq!(slow.gets().await, ("placed".into(), 5));
}

#[tokio::test]
async fn a_client_comes_back_to_its_session_on_another_child() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    // It is over there.
    a.says(ToParent::Resident { sid: sid(1), shard: 2, index: 20 });
    a.says(ToParent::Departed { sid: sid(1), saved: saved(1) });
    a.is_up_to_date().await;
    b.says(resume(5, 1));
    assert_eq!(given(b.hears().await, 5), Some(sid(1)));
    b.says(resume(6, 1));
    assert_eq!(given(b.hears().await, 6), None, "it is given once");
    // It still stands there, and has moved.
    a.says(ToParent::Resident { sid: sid(2), shard: 2, index: 20 });
    a.is_up_to_date().await;
    b.says(resume(7, 2));
    assert_eq!(a.hears().await, ToChild::Yield { shard: 2, index: 20, ticket: ticket(2) });
    a.says(ToParent::Resident { sid: sid(2), shard: 1, index: 30 });
    a.says(ToParent::NotHere { sid: sid(2), shard: 2, index: 20 });
    assert_eq!(a.hears().await, ToChild::Yield { shard: 1, index: 30, ticket: ticket(2) });
    a.says(ToParent::Departed { sid: sid(2), saved: saved(2) });
    assert_eq!(given(b.hears().await, 7), Some(sid(2)));
    // It is not given up.
    a.says(ToParent::Resident { sid: sid(3), shard: 0, index: 1 });
    a.is_up_to_date().await;
    b.says(resume(8, 3));
    assert!(matches!(a.hears().await, ToChild::Yield { .. }));
    a.says(ToParent::Stays(sid(3)));
    assert_eq!(given(b.hears().await, 8), None);
}

#[tokio::test]
async fn sessions_of_a_lost_child_are_lost_and_answers_to_it_reach_nobody_else() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    a.says(ToParent::Resident { sid: sid(1), shard: 0, index: 1 });
    a.is_up_to_date().await;
    b.says(ToParent::Resident { sid: sid(2), shard: 0, index: 1 });
    b.says(resume(5, 1));
    assert!(matches!(a.hears().await, ToChild::Yield { .. }));
    a.says(resume(6, 2));
    assert!(matches!(b.hears().await, ToChild::Yield { .. }));
    a.dies().await;
    assert_eq!(given(b.hears().await, 5), None);
    // A new child has the number of the lost one.
    let mut c = TestChild::of(&relay).await;
    b.says(ToParent::Departed { sid: sid(2), saved: saved(2) });
    b.is_up_to_date().await;
    c.is_up_to_date().await;
    c.says(resume(7, 2));
    assert_eq!(given(c.hears().await, 7), Some(sid(2)), "it was kept, for who comes back");
}

#[tokio::test]
async fn a_remote_disconnect_reaches_all_children_in_its_place_and_holds_for_what_is_saved() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    a.follows("s").await;
    a.says(ToParent::Departed { sid: sid(1), saved: saved(1) });
    a.is_up_to_date().await;
    let disconnect = RemoteDisconnect { identifiers: "user 1".into(), reconnect: true };
    b.publishes(1, "s", "before").await;
    b.says(ToParent::Disconnect { number: 2, disconnect: disconnect.clone() });
    b.says(publish(3, "s", "after"));
    assert_eq!(a.gets().await.0, "before");
    assert_eq!(a.hears().await, ToChild::Disconnect(disconnect.clone()));
    assert_eq!(a.gets().await.0, "after");
    assert_eq!(b.hears().await, ToChild::Disconnect(disconnect));
    assert_eq!((b.hears().await, b.hears().await), (ToChild::Taken(2), ToChild::Taken(3)));
    b.says(resume(5, 1));
    assert_eq!(given(b.hears().await, 5), None);
    // The same, heard by every child by itself.
    a.says(ToParent::Departed { sid: sid(2), saved: saved(2) });
    a.says(ToParent::SentAway("user 2".into()));
    a.is_up_to_date().await;
    b.says(resume(6, 2));
    assert_eq!(given(b.hears().await, 6), None);
}

#[tokio::test]
async fn who_is_present_is_the_same_for_all_and_a_lost_child_takes_its_people_along() {
    let relay = relay();
    let (a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    b.follows("p").await;
    let join = |n, id: &str| ToParent::Presence {
        sid: sid(n),
        stream: "p".into(),
        change: PresenceChange::Join { id: id.into(), info: None },
    };
    a.says(join(1, "ann"));
    assert!(b.gets().await.0.contains("ann"));
    a.says(join(2, "bob"));
    assert!(b.gets().await.0.contains("bob"));
    // Bob has come back to another child before the first one is lost.
    b.says(join(2, "bob"));
    b.says(ToParent::WhoIsPresent { number: 4, stream: "p".into() });
    let ToChild::Present { number: 4, result: Ok(text) } = b.hears().await else { panic!() };
    assert!(text.contains("ann") && text.contains("bob") && text.contains("\"total\":2"), "{text}");
    a.dies().await;
    {
        let mut state = relay.state();
        for part in 0..SWEEPS {
            relay.broker.sweep(part, relay.clock.now(), |event| state.hand_over(&relay, event, 0));
        }
    }
    assert!(b.gets().await.0.contains("ann"), "she is gone");
    b.says(ToParent::Ask { key: key(5), question: BrokerQuestion::Present { stream: "p".into(), records: true } });
    let ToChild::Answer { result: Ok(BrokerReply::Present(text)), .. } = b.hears().await else { panic!() };
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("ann") && text.contains("bob"), "{text}");
}

#[tokio::test]
async fn without_memory_there_is_order_and_nothing_else() {
    let relay = Relay::with_broker(None, true);
    let mut a = TestChild::of(&relay).await;
    a.follows("s").await;
    a.says(publish(1, "s", "one"));
    assert_eq!(a.gets().await, ("one".into(), 0));
    assert_eq!(a.hears().await, ToChild::Taken(1));
    a.says(ToParent::WhoIsPresent { number: 4, stream: "s".into() });
    assert_eq!(a.hears().await, ToChild::Present { number: 4, result: Err(BrokerError::NotKept) });
    a.says(resume(5, 1));
    a.is_up_to_date().await;
    assert_eq!(relay.metrics.relay_refused_total.get(), 1);
}
