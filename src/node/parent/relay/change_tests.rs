//! One child takes over from another one, seen from both.

use super::tests::*;
use super::*;

/// A child that is about to be succeeded, the one that is to take over, and one that publishes.
async fn three(relay: &Arc<Relay>) -> (TestChild, TestChild, TestChild) {
    let (mut old, new, publisher) =
        (TestChild::of(relay).await, TestChild::of(relay).await, TestChild::of(relay).await);
    old.follows("s").await;
    relay.will_succeed(&old.of_relay, &new.of_relay);
    (old, new, publisher)
}

/// It hands over, behind everything that came before.
async fn hands_over(old: &mut TestChild) {
    old.says(ToParent::HandOver { number: 70 });
    assert_eq!(old.hears().await, ToChild::Taken(70));
}

#[tokio::test]
async fn the_new_child_gets_everything_behind_what_the_old_one_got() {
    let relay = relay();
    let (mut old, mut new, mut publisher) = three(&relay).await;
    publisher.publishes(1, "s", "one").await;
    old.says(ToParent::HandOver { number: 7 });
    assert_eq!(old.gets().await, ("one".into(), 1));
    assert_eq!(old.hears().await, ToChild::Taken(7));
    publisher.publishes(2, "s", "two").await;
    let disconnect = RemoteDisconnect { identifiers: "user 1".into(), reconnect: true };
    publisher.says(ToParent::Disconnect { number: 3, disconnect: disconnect.clone() });
    assert_eq!(publisher.hears().await, ToChild::Disconnect(disconnect.clone()));
    assert_eq!(publisher.hears().await, ToChild::Taken(3));
    // Answers to what the old one has asked are its own to the end.
    old.is_up_to_date().await;
    old.says(ToParent::Delivered(1));
    new.says(ToParent::Follow(new.hasher.key("s").to_bits()));
    new.says(ToParent::TakenOver);
    assert_eq!(new.gets().await, ("two".into(), 2));
    assert_eq!(new.hears().await, ToChild::Disconnect(disconnect));
    new.says(ToParent::Delivered(1));
    publisher.publishes(4, "s", "three").await;
    assert_eq!(new.gets().await, ("three".into(), 3));
    new.says(ToParent::Delivered(1));
    new.is_up_to_date().await;
    old.is_up_to_date().await;
    old.dies().await;
    publisher.publishes(5, "s", "four").await;
    assert_eq!(new.gets().await, ("four".into(), 4));
    new.says(ToParent::Delivered(1));
    new.is_up_to_date().await;
    assert_eq!(relay.state().free(), PUBLICATIONS_MAX as u32, "nothing is lost of the bound");
}

#[tokio::test]
async fn an_old_child_that_goes_on_gets_what_was_held() {
    for new_dies in [false, true] {
        let relay = relay();
        let (mut old, new, mut publisher) = three(&relay).await;
        hands_over(&mut old).await;
        publisher.publishes(1, "s", "one").await;
        publisher.publishes(2, "s", "two").await;
        // What it says meanwhile is known.
        old.says(ToParent::Follow(old.hasher.key("t").to_bits()));
        old.is_up_to_date().await;
        publisher.publishes(3, "t", "of t").await;
        if new_dies {
            new.dies().await;
        } else {
            old.says(ToParent::GoOn);
        }
        assert_eq!(old.gets().await, ("one".into(), 1));
        assert_eq!(old.gets().await, ("two".into(), 2));
        assert_eq!(old.gets().await, ("of t".into(), 1));
        // It may say so, too.
        old.says(ToParent::GoOn);
        publisher.publishes(4, "s", "three").await;
        assert_eq!(old.gets().await, ("three".into(), 3));
        old.says(ToParent::Delivered(4));
        old.is_up_to_date().await;
        assert_eq!(relay.state().free(), PUBLICATIONS_MAX as u32);
        // And can be succeeded another time.
        let mut next = TestChild::of(&relay).await;
        relay.will_succeed(&old.of_relay, &next.of_relay);
        hands_over(&mut old).await;
        next.says(ToParent::TakenOver);
        publisher.publishes(5, "t", "again").await;
        assert_eq!(next.gets().await, ("again".into(), 2));
    }
}

#[tokio::test]
async fn what_an_old_child_does_not_follow_any_more_is_not_the_new_ones() {
    let relay = relay();
    let (mut old, mut new, mut publisher) = three(&relay).await;
    hands_over(&mut old).await;
    old.says(ToParent::Unfollow(old.hasher.key("s").to_bits()));
    old.is_up_to_date().await;
    new.says(ToParent::TakenOver);
    new.is_up_to_date().await;
    publisher.publishes(1, "s", "for nobody").await;
    new.is_up_to_date().await;
    old.is_up_to_date().await;
}

#[tokio::test]
async fn sessions_and_people_of_an_old_child_that_dies_are_the_new_ones() {
    let relay = relay();
    let (mut old, mut new, mut other) = three(&relay).await;
    old.says(ToParent::Resident { sid: sid(1), shard: 2, index: 20 });
    let change = PresenceChange::Join { id: "ann".into(), info: None };
    old.says(ToParent::Presence { sid: sid(1), stream: "p".into(), change });
    old.is_up_to_date().await;
    hands_over(&mut old).await;
    // Somebody comes back to a session of it. It has said "yours", and is killed before the new one has said anything.
    other.says(resume(5, 1));
    assert!(matches!(old.hears().await, ToChild::Yield { .. }));
    old.dies().await;
    assert_eq!(given(other.hears().await, 5), None, "it is let in anew");
    new.says(ToParent::Resident { sid: sid(1), shard: 0, index: 3 });
    new.says(ToParent::TakenOver);
    new.is_up_to_date().await;
    other.says(resume(6, 1));
    assert_eq!(new.hears().await, ToChild::Yield { shard: 0, index: 3, ticket: ticket(1) });
    new.says(ToParent::Departed { sid: sid(1), saved: saved(1) });
    assert_eq!(given(other.hears().await, 6), Some(sid(1)));
    other.says(ToParent::WhoIsPresent { number: 4, stream: "p".into() });
    let ToChild::Present { number: 4, result: Ok(text) } = other.hears().await else { panic!() };
    assert!(text.contains("ann"), "{text}");
    assert_eq!(relay.state().amounts().0, 2, "the old one is forgotten");
}

#[tokio::test]
async fn an_old_child_that_has_finished_waits_for_the_new_one() {
    for new_dies in [false, true] {
        let relay = relay();
        let (mut old, new, _publisher) = three(&relay).await;
        hands_over(&mut old).await;
        old.says(ToParent::AwaitSuccessor { number: 80 });
        old.is_up_to_date().await;
        if new_dies {
            new.dies().await;
        } else {
            new.says(ToParent::TakenOver);
        }
        assert_eq!(old.hears().await, ToChild::Taken(80));
        old.says(ToParent::AwaitSuccessor { number: 81 });
        assert_eq!(old.hears().await, ToChild::Taken(81), "it is over");
    }
}

#[tokio::test]
async fn when_both_are_lost_nothing_of_them_is_left() {
    for old_first in [true, false] {
        let relay = relay();
        let (mut old, mut new, mut publisher) = three(&relay).await;
        hands_over(&mut old).await;
        publisher.publishes(1, "s", "lost").await;
        new.says(ToParent::Resident { sid: sid(1), shard: 0, index: 3 });
        new.is_up_to_date().await;
        let (first, second) = if old_first { (old, new) } else { (new, old) };
        first.dies().await;
        second.dies().await;
        publisher.publishes(2, "s", "nobody follows").await;
        let mut state = relay.state();
        assert_eq!((state.free(), state.amounts().0), (PUBLICATIONS_MAX as u32, 1));
        state.hand_over(&relay, Publication::new("s", "nobody"), 0);
    }
}
