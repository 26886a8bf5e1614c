use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::broker::Place;
use crate::model::{BrokerError, BrokerReply, NodeId, Now, ResumeTicket, SlotKey};

/// Notes down what is delivered.
#[derive(Default)]
struct Noted(Mutex<Vec<String>>);

impl Outlet for Noted {
    fn deliver(&self, publication: Publication, _permit: Permit) {
        self.0.lock().unwrap().push(publication.message.to_string());
    }
    fn nobody_follows(&self) {}
    fn announce(&self, _publication: &Publication) {}
    fn command(&self, _name: &'static str, _payload: String) {}
    fn answer(&self, _key: SlotKey, _result: Result<BrokerReply, BrokerError>) {}
    fn ask_to_yield(&self, _place: Place, _ticket: ResumeTicket) {}
    fn now(&self) -> Now {
        Now::default()
    }
}

struct Fixture {
    gate: Gate,
    noted: Arc<Noted>,
}

fn at(offset: u64) -> Publication {
    let position = Some(Position { epoch: "e".into(), offset });
    Publication { position, ..Publication::new("s", offset.to_string()) }
}

fn entry(offset: u64) -> Entry {
    Entry { publication: at(offset), origin: None }
}

fn filling(head: u64, kept: impl IntoIterator<Item = u64>) -> Option<Filling> {
    Some(Filling { after: 0, head, base: 0, entries: kept.into_iter().map(entry).collect() })
}

/// Of a stream that has come this far, nobody knows in which epochs.
fn count(head: u64) -> Count {
    Count { head, ..Count::default() }
}

impl Fixture {
    /// The stream `s` is followed, and is at 10.
    fn open() -> Fixture {
        let noted = Arc::new(Noted::default());
        let gate = Gate::new(Arc::clone(&noted) as Arc<_>, Arc::default(), Duration::from_secs(100));
        gate.set_epoch(&"e".into());
        assert!(gate.follow("s", None).is_some());
        gate.opened([("s".into(), count(10))]);
        Fixture { gate, noted }
    }

    /// What is wanted to be read now, for this reason.
    fn wanted(&self, want: Want) -> Vec<Arc<str>> {
        self.gate.take_wanted(want, 10)
    }

    fn pass(&self, offset: u64) -> Passed {
        self.gate.pass(at(offset), None)
    }

    fn delivered(&self) -> Vec<String> {
        std::mem::take(&mut self.noted.0.lock().unwrap())
    }

    /// Filled, lost.
    fn counted(&self) -> (u64, u64) {
        let metrics = &self.gate.metrics;
        (metrics.cluster_filled_total.get(), metrics.cluster_lost_total.get())
    }
}

#[test]
fn what_comes_by_several_ways_is_delivered_once_and_in_order() {
    let f = Fixture::open();
    assert_eq!(
        [11, 11, 10, 3].map(|offset| f.pass(offset)),
        [Passed::Delivered, Passed::Double, Passed::Double, Passed::Double]
    );
    // Two answers of our own stores overtake the message of another node.
    assert_eq!([13, 14].map(|offset| f.pass(offset)), [Passed::Waits, Passed::Waits]);
    assert_eq!(f.wanted(Want::Fill), [Arc::from("s")]);
    assert!(f.wanted(Want::Fill).is_empty(), "asked for once");
    assert_eq!(f.pass(12), Passed::Delivered);
    assert_eq!(f.delivered(), ["11", "12", "13", "14"]);
    assert!(!f.gate.has_gap("s"));
    assert_eq!(f.gate.pass(Publication { stream: "other".into(), ..at(1) }, None), Passed::NotFollowed);
    assert_eq!(f.counted(), (0, 0));
}

#[test]
fn a_gap_is_filled_from_the_history_and_what_is_not_there_any_more_is_counted() {
    let f = Fixture::open();
    f.gate.refill("s");
    assert!(f.wanted(Want::Fill).is_empty(), "nothing is missing");
    f.pass(14);
    f.gate.filled("s", None);
    f.wanted(Want::Fill);
    f.gate.refill("s");
    assert_eq!(f.wanted(Want::Fill), [Arc::from("s")]);
    f.gate.filled("s", None);
    f.pass(15);
    assert!(f.delivered().is_empty());
    f.gate.filled("s", filling(15, [12, 13, 14, 15]));
    assert_eq!(f.delivered(), ["12", "13", "14", "15"]);
    assert_eq!(f.counted(), (2, 1), "12 and 13 came out of the history, 11 was gone");
    // Nothing is kept, but what waits is there, and the counter has come further.
    f.pass(18);
    f.gate.filled("s", filling(20, []));
    assert_eq!((f.delivered(), f.gate.last("s")), (vec!["18".to_owned()], Some(20)));
    assert_eq!(f.counted(), (2, 5));
    assert_eq!(f.pass(21), Passed::Delivered);
}

#[test]
fn a_counter_that_was_forgotten_and_begins_again_has_lost_nothing() {
    let f = Fixture::open();
    f.pass(1001);
    f.gate.filled("s", Some(Filling { after: 0, head: 1001, base: 1000, entries: vec![entry(1001)] }));
    assert_eq!((f.delivered(), f.counted()), (vec!["1001".to_owned()], (0, 0)));
}

#[test]
fn a_stream_that_is_new_here_begins_where_it_is_or_with_what_has_come_meanwhile() {
    let f = Fixture::open();
    f.gate.unfollow("s");
    assert_eq!(f.pass(11), Passed::NotFollowed);
    assert!(f.gate.follow("s", None).is_some() && f.gate.follow("s", None).is_none());
    f.gate.subscribed("s");
    assert_eq!(f.wanted(Want::Open), [Arc::from("s")]);
    assert_eq!([12, 13].map(|offset| f.pass(offset)), [Passed::Waits, Passed::Waits]);
    f.gate.opened([("s".into(), count(14))]);
    assert_eq!(
        f.delivered(),
        ["12", "13"],
        "counted when the counter was read, and published after this node followed"
    );
    assert!(f.gate.has_gap("s"), "14 has not come");
    f.gate.filled("s", filling(14, [14]));
    assert_eq!((f.delivered(), f.gate.last("s")), (vec!["14".to_owned()], Some(14)));
}

#[test]
fn an_answer_waits_until_all_that_it_covers_is_delivered() {
    let f = Fixture::open();
    assert!(f.gate.watch("s", 10).is_none(), "that is so");
    let mut until = f.gate.watch("s", 12).unwrap();
    // It was read from 12 on, so what is before has to come or to be read, too.
    f.gate.offer("s", 12, &[entry(12)]);
    assert!(until.try_recv().is_err() && f.delivered().is_empty());
    f.gate.offer("s", 12, &[entry(11), entry(12)]);
    assert_eq!((until.try_recv(), f.delivered()), (Ok(()), vec!["11".to_owned(), "12".to_owned()]));
    let mut until = f.gate.watch("s", 13).unwrap();
    f.gate.unfollow("s");
    assert!(until.try_recv().is_err(), "nobody follows it any more");
}

#[test]
fn what_was_served_without_a_position_is_not_delivered_again_when_it_is_found() {
    let f = Fixture::open();
    let store = StoreId { node: NodeId::from_bits(1), seq: 7 };
    f.gate.pass_unstored(Publication::new("s", "unsure"), None, Some(store));
    let found = Entry { origin: Some(store), ..entry(11) };
    f.gate.filled("s", Some(Filling { after: 0, head: 12, base: 0, entries: vec![found, entry(12)] }));
    assert_eq!((f.delivered(), f.gate.last("s")), (vec!["unsure".to_owned(), "12".to_owned()], Some(12)));
}

#[test]
fn storage_that_has_less_than_it_had_is_doubted_and_another_epoch_begins_anew() {
    let f = Fixture::open();
    f.gate.opened([("s".into(), count(9))]);
    assert_eq!(f.wanted(Want::Doubt), [Arc::from("s")]);
    f.pass(12);
    f.gate.filled("s", filling(5, []));
    assert_eq!(f.wanted(Want::Doubt), [Arc::from("s")]);
    assert!(f.gate.set_epoch(&"f".into()) && !f.gate.set_epoch(&"f".into()));
    assert_eq!(f.wanted(Want::Open), [Arc::from("s")]);
    assert_eq!(f.pass(11), Passed::Waits, "a position of the old epoch");
    f.gate.opened([("s".into(), count(3))]);
    let next = |epoch: &str| Publication { position: Some(Position { epoch: epoch.into(), offset: 4 }), ..at(4) };
    assert_eq!(f.gate.pass(next("f"), None), Passed::Delivered);
    assert_eq!(f.delivered(), ["4"]);
    // One that comes before this node knows of its epoch is not lost.
    assert_eq!(f.gate.pass(next("g"), None), Passed::Waits);
    assert!(f.gate.set_epoch(&"g".into()));
    f.gate.opened([("s".into(), count(4))]);
    assert_eq!(f.delivered(), ["4"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_forgotten_because_it_is_quiet_is_no_loss() {
    let f = Fixture::open();
    f.pass(11);
    assert_eq!(f.gate.offsets().len(), 1);
    tokio::time::sleep(Duration::from_secs(95)).await;
    assert!(f.gate.offsets().is_empty());
    f.gate.opened([("s".into(), count(0))]);
    assert!(f.wanted(Want::Doubt).is_empty());
    f.pass(1001);
    f.gate.filled("s", Some(Filling { after: 0, head: 1001, base: 1000, entries: vec![entry(1001)] }));
    assert_eq!((f.delivered(), f.counted().1), (vec!["11".to_owned(), "1001".to_owned()], 0));
}

#[test]
fn what_is_wanted_is_bounded_by_what_is_followed() {
    let f = Fixture::open();
    let names: Vec<Arc<str>> = (0..1000).map(|n| format!("s{n}").into()).collect();
    for name in &names {
        assert_eq!(f.gate.follow(name, Some(Arc::clone(name))).as_ref(), Some(name));
        (0..3).for_each(|_| f.gate.subscribed(name));
    }
    // The link comes back twice, and half of the streams are left.
    (0..2).for_each(|_| f.gate.open_all());
    names[..500].iter().for_each(|name| f.gate.unfollow(name));
    let mut wanted = Vec::new();
    while let some @ [_, ..] = &f.gate.take_wanted(Want::Open, 64)[..] {
        assert!(some.len() <= 64);
        wanted.extend_from_slice(some);
    }
    wanted.sort();
    let mut expected = [&names[500..], &["s".into()]].concat();
    expected.sort();
    assert_eq!(wanted, expected);
}

#[test]
fn who_waits_for_a_stream_to_be_open_is_called_when_it_is_or_cannot_be() {
    let f = Fixture::open();
    let called = Arc::new(AtomicUsize::new(0));
    let wait = |stream: &str| {
        let called = Arc::clone(&called);
        f.gate.when_open(stream, Box::new(move || _ = called.fetch_add(1, Ordering::Relaxed)));
    };
    let calls = || called.load(Ordering::Relaxed);
    wait("s");
    wait("nobody's");
    assert_eq!(calls(), 2, "at once");
    f.gate.follow("t", None);
    wait("t");
    assert_eq!(calls(), 2);
    f.gate.not_opened(&["t".into()]);
    assert_eq!(calls(), 3, "its counter cannot be read now");
    wait("t");
    assert_eq!(calls(), 4, "nor a moment later, and nobody knows when");
    f.gate.open_all();
    wait("t");
    assert_eq!(calls(), 4, "it is tried again");
    f.gate.opened([("t".into(), count(7))]);
    assert_eq!((calls(), f.gate.last("t")), (5, Some(7)));
    f.gate.follow("u", None);
    wait("u");
    f.gate.unfollow("u");
    assert_eq!(calls(), 6, "nobody follows it any more");
}

#[tokio::test(start_paused = true)]
async fn another_process_goes_on_behind_what_was_delivered() {
    // Aim: whichever comes first there, the follower or what is known of its stream, it goes on behind 11; and a stream of
    // which nothing came for so long that the storage may have forgotten it is no reason for doubt.
    let ours = Fixture::open();
    ours.gate.follow("quiet", None);
    ours.gate.opened([("quiet".into(), count(7))]);
    ours.gate.reaches("quiet", 7);
    tokio::time::advance(Duration::from_secs(95)).await;
    assert_eq!(ours.pass(11), Passed::Delivered);
    let (epoch, streams) = ours.gate.given();
    let text = rmp_serde::to_vec_named(&(&epoch, &streams)).unwrap();
    let (read_epoch, read_streams): (Option<Arc<str>>, Vec<GivenStream>) = rmp_serde::from_slice(&text).unwrap();
    assert_eq!((read_epoch, &read_streams), (epoch.clone(), &streams));
    for follows_first in [false, true] {
        let noted = Arc::new(Noted::default());
        let gate = Gate::new(Arc::clone(&noted) as Arc<_>, Arc::default(), Duration::from_secs(100));
        let theirs = Fixture { gate, noted };
        let follow = || ["s", "quiet"].map(|stream| theirs.gate.follow(stream, None));
        if follows_first {
            follow();
        }
        theirs.gate.take_over(epoch.as_ref(), streams.clone(), Vec::new());
        if !follows_first {
            follow();
        }
        theirs.gate.forget_inherited();
        theirs.gate.set_epoch(&"e".into());
        assert_eq!((theirs.gate.last("s"), theirs.gate.last("quiet")), (Some(11), Some(7)));
        // The storage has 13, and has forgotten the other.
        theirs.gate.opened([("s".into(), count(13)), ("quiet".into(), count(0))]);
        assert_eq!(theirs.wanted(Want::Fill), [Arc::from("s")]);
        theirs.gate.filled("s", filling(13, [12, 13]));
        assert_eq!([11, 13, 14].map(|offset| theirs.pass(offset)), [Passed::Double, Passed::Double, Passed::Delivered]);
        assert_eq!(theirs.delivered(), ["12", "13", "14"]);
        assert!(theirs.wanted(Want::Doubt).is_empty() && theirs.gate.last("quiet") == Some(0));
        // What the storage has to know and does not is doubted as ever.
        theirs.gate.opened([("s".into(), count(3))]);
        assert_eq!(theirs.wanted(Want::Doubt), [Arc::from("s")]);
    }
    let another = Gate::new(Arc::new(Noted::default()), Arc::default(), Duration::from_secs(100));
    another.set_epoch(&"new".into());
    another.take_over(epoch.as_ref(), streams, Vec::new());
    another.follow("s", None);
    assert_eq!(another.last("s"), None, "offsets of another epoch mean nothing");
}

/// Of a stream that has come this far, and was at `before` when this epoch began.
fn count_of(head: u64, base: u64, epoch: &str, before: u64) -> Count {
    Count { head, base, begun: Some((epoch.into(), before)) }
}

fn at_of(offset: u64, epoch: &str) -> Publication {
    Publication { position: Some(Position { epoch: epoch.into(), offset }), ..at(offset) }
}

#[test]
fn of_a_new_epoch_clients_miss_nothing_however_late_this_node_learns_of_it() {
    // Clients have everything up to 12. What the counter says, and from where on they are to have it then.
    let cases = [
        ("all was lost, and nothing has come yet", Count::default(), 0),
        ("all was lost, and something has come", count_of(1002, 1000, "f", 1000), 1000),
        ("11 and 12 were lost, and nothing has come yet", count_of(10, 5, "e", 5), 10),
        ("11 and 12 were lost, and one has come", count_of(11, 5, "f", 10), 10),
        ("11 and 12 were lost, and more have come", count_of(15, 5, "f", 10), 10),
        ("nothing of it was lost, and nothing has come", count_of(12, 5, "e", 5), 12),
        ("nothing of it was lost, and more have come since", count_of(14, 5, "f", 12), 12),
        ("nothing of it was lost, and some have come before and since", count_of(15, 5, "f", 14), 12),
        ("nothing of it was lost, and some have come before", count_of(14, 5, "e", 5), 12),
        ("an older version keeps no epoch", count(14), 12),
    ];
    for (what, count, from) in cases {
        let f = Fixture::open();
        [11, 12].iter().for_each(|offset| _ = f.pass(*offset));
        f.delivered();
        f.gate.set_epoch(&"f".into());
        assert_eq!((f.gate.last("s"), f.wanted(Want::Open)), (None, vec!["s".into()]), "{what}");
        let Count { head, base, .. } = count;
        f.gate.opened([("s".into(), count)]);
        assert_eq!(f.gate.last("s"), Some(from), "{what}");
        assert_eq!(
            f.wanted(Want::Fill).len(),
            usize::from(head > from),
            "{what}: what is counted may not come any more"
        );
        // The first of them comes although the counter has it already, and the others are fetched.
        let behind = from + 1..=head;
        let mut expected: Vec<_> = behind.clone().map(|offset| offset.to_string()).collect();
        if !behind.is_empty() {
            assert_eq!(f.gate.pass(at_of(from + 1, "f"), None), Passed::Delivered, "{what}");
        }
        let entries = behind.map(|offset| Entry { publication: at_of(offset, "f"), origin: None }).collect();
        f.gate.filled("s", Some(Filling { after: from, head, base, entries }));
        // And the next one.
        let next = head.max(999) + 1;
        f.gate.pass(at_of(next, "f"), None);
        let entries = vec![Entry { publication: at_of(next, "f"), origin: None }];
        f.gate.filled("s", Some(Filling { after: head, head: next, base: base.max(next - 1), entries }));
        expected.push(next.to_string());
        assert_eq!((f.delivered(), f.counted().1), (expected, 0), "{what}");
    }
}

#[test]
fn what_waits_when_a_new_epoch_is_opened_is_not_taken_for_what_clients_have() {
    // 11 to 15 were lost; 13 of the new epoch came when 11 to 14 of it were stored.
    let f = Fixture::open();
    (11..16).for_each(|offset| _ = f.pass(offset));
    f.delivered();
    assert_eq!(f.gate.pass(at_of(13, "f"), None), Passed::Waits);
    // A second loss before it was opened changes nothing.
    ["d", "f"].iter().for_each(|epoch| _ = f.gate.set_epoch(&(*epoch).into()));
    f.gate.pass(at_of(13, "f"), None);
    f.gate.opened([("s".into(), count_of(14, 5, "f", 10))]);
    assert_eq!((f.gate.last("s"), f.wanted(Want::Fill)), (Some(10), vec!["s".into()]));
    let entries = (11..15).map(|offset| Entry { publication: at_of(offset, "f"), origin: None }).collect();
    f.gate.filled("s", Some(Filling { after: 10, head: 14, base: 5, entries }));
    assert_eq!(f.delivered(), ["11", "12", "13", "14"]);
}

#[test]
fn what_was_read_behind_where_a_stream_was_before_says_nothing_of_what_is_between() {
    let f = Fixture::open();
    [11, 12, 14].iter().for_each(|offset| _ = f.pass(*offset));
    assert_eq!(f.wanted(Want::Fill), [Arc::from("s")]);
    // Its answer is on its way when 11 and 12 are found to be lost.
    f.gate.set_epoch(&"f".into());
    f.gate.opened([("s".into(), count_of(13, 5, "f", 10))]);
    f.delivered();
    let entry = |offset| Entry { publication: at_of(offset, "f"), origin: None };
    f.gate.filled("s", Some(Filling { after: 12, head: 13, base: 5, entries: vec![entry(13)] }));
    assert_eq!((f.delivered().len(), f.counted()), (0, (0, 0)));
    assert_eq!(f.wanted(Want::Fill), [Arc::from("s")], "it is read again");
    f.gate.filled("s", Some(Filling { after: 10, head: 13, base: 5, entries: [11, 12, 13].map(entry).to_vec() }));
    assert_eq!(f.delivered(), ["11", "12", "13"]);
}

#[test]
fn what_was_served_without_a_position_is_known_in_the_next_epoch_too() {
    let f = Fixture::open();
    let store = StoreId { node: NodeId::from_bits(1), seq: 7 };
    f.gate.pass_unstored(Publication::new("s", "unsure"), None, Some(store));
    // Another stream was found to have lost something; of this one the store is there.
    f.gate.set_epoch(&"f".into());
    f.gate.opened([("s".into(), count_of(11, 5, "e", 5))]);
    let found = Entry { publication: at_of(11, "f"), origin: Some(store) };
    f.gate.filled("s", Some(Filling { after: 10, head: 11, base: 5, entries: vec![found] }));
    assert_eq!((f.delivered(), f.gate.last("s")), (vec!["unsure".to_owned()], Some(11)));
}

#[test]
fn another_process_goes_on_in_an_epoch_that_neither_or_only_it_has_opened() {
    // The old one has 12 of the epoch before; 11 and 12 were lost, and others have come there.
    for knows_first in [false, true] {
        let ours = Fixture::open();
        [11, 12].iter().for_each(|offset| _ = ours.pass(*offset));
        if !knows_first {
            ours.gate.set_epoch(&"f".into());
        }
        let (epoch, streams) = ours.gate.given();
        let text = rmp_serde::to_vec_named(&streams).unwrap();
        let theirs = Gate::new(Arc::new(Noted::default()), Arc::default(), Duration::from_secs(100));
        if knows_first {
            theirs.set_epoch(&"f".into());
        }
        theirs.take_over(epoch.as_ref(), rmp_serde::from_slice(&text).unwrap(), Vec::new());
        theirs.set_epoch(&"f".into());
        theirs.follow("s", None);
        assert_eq!(theirs.last("s"), None);
        theirs.opened([("s".into(), count_of(14, 5, "f", 10))]);
        assert_eq!(theirs.last("s"), Some(10), "{knows_first}");
    }
}
