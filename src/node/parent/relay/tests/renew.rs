//! A relay goes on in another one, as it does in another program.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::broker::BrokerPart;

/// As it comes to another program.
fn carried<T: Serialize + DeserializeOwned>(plain: &T) -> T {
    rmp_serde::from_slice(&rmp_serde::to_vec_named(plain).unwrap()).unwrap()
}

/// Another relay that has everything of this one, with these children.
async fn renewed(relay: Arc<Relay>, children: &mut [&mut TestChild]) -> Arc<Relay> {
    let broker = LocalBroker::new(Some(MemorySettings { epoch: "another".into(), ..memory() }));
    let since = relay.now();
    relay.snapshot().for_each(|part| broker.take_over(carried(&part)));
    // Something changes meanwhile.
    tokio::task::yield_now().await;
    relay.stop();
    let mut stopped = Vec::new();
    for child in &mut *children {
        match (&mut child.lives.0).await.unwrap() {
            Ended::Stopped(link) => stopped.push((child.of_relay.number(), link)),
            Ended::Lost(why) => panic!("{why}"),
        }
    }
    let links = stopped.into_iter().map(|(number, link)| {
        let (socket, unfinished) = link.finish::<ToParent>();
        (number, (socket, carried(&unfinished)))
    });
    let links = links.collect();
    broker.take_over(carried::<BrokerPart>(&relay.changes(since)));
    let given = carried(&relay.export());
    let (relay, stopped) = Relay::import(&Config::default(), broker, given, links).unwrap();
    for stopped in stopped {
        let child = children.iter_mut().find(|child| child.of_relay.number() == stopped.number()).unwrap();
        child.lives.0 = tokio::spawn(relay.go_on(stopped, Arc::new(Silent)).1);
    }
    relay
}

/// What a child got of one stream, and how many of its own it was told to be taken.
#[derive(Default)]
struct Got {
    messages: Vec<String>,
    taken: u64,
}

impl Got {
    fn take(&mut self, child: &TestChild, message: ToChild) {
        match message {
            ToChild::Publication { publication, places } => {
                child.says(ToParent::Delivered(places));
                let Position { epoch, offset } = publication.position.unwrap();
                self.messages.push(publication.message.to_string());
                assert_eq!((&*epoch, offset), ("e", self.messages.len() as u64));
            }
            ToChild::Taken(number) => {
                assert_eq!(number, self.taken);
                self.taken += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn publications_go_on_in_one_order_while_the_relay_is_renewed_again_and_again() {
    const ROUNDS: u64 = 20;
    const EACH: u64 = 60;
    let mut relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    a.follows("s").await;
    b.follows("s").await;
    let (mut of_a, mut of_b) = (Got::default(), Got::default());
    for round in 0..ROUNDS {
        for n in 0..EACH {
            let number = round * EACH + n;
            a.says(publish(number, "s", &format!("a{number}")));
            // Some are longer than a socket holds, so they wait and are half written.
            let more = "x".repeat(if n == 7 { 300_000 } else { 0 });
            b.says(publish(number, "s", &format!("b{number}{more}")));
        }
        for _ in 0..round % 7 {
            tokio::task::yield_now().await;
        }
        relay = renewed(relay, &mut [&mut a, &mut b]).await;
        for (child, got) in [(&mut a, &mut of_a), (&mut b, &mut of_b)] {
            while let Ok(message) = child.heard.try_recv() {
                got.take(child, message);
            }
        }
    }
    for (child, got) in [(&mut a, &mut of_a), (&mut b, &mut of_b)] {
        while got.messages.len() as u64 != 2 * ROUNDS * EACH || got.taken != ROUNDS * EACH {
            let message = child.hears().await;
            got.take(child, message);
        }
        child.is_up_to_date().await;
    }
    assert!(of_a.messages == of_b.messages, "one order for both");
    for publisher in ["a", "b"] {
        let of_this = of_a.messages.iter().filter(|message| message.starts_with(publisher));
        let numbers = of_this.map(|message| message[1..].trim_end_matches('x').parse::<u64>().unwrap());
        assert!(numbers.eq(0..ROUNDS * EACH));
    }
    b.is_up_to_date().await;
    assert_eq!(relay.state().free(), PUBLICATIONS_MAX as u32);
    let since = HistoryRequest { since: 0, positions: vec![("s".into(), Position { epoch: "e".into(), offset: 900 })] };
    a.says(ToParent::Ask { key: key(5), question: BrokerQuestion::History { streams: vec!["s".into()], since } });
    let ToChild::Answer { result: Ok(BrokerReply::History(missed)), .. } = a.hears().await else { panic!() };
    assert_eq!(missed[0].publications.len() as u64, 2 * ROUNDS * EACH - 900);
}

#[tokio::test]
async fn who_waits_who_is_present_and_who_lives_where_is_known_afterwards() {
    let relay = relay();
    let (mut a, mut b) = (TestChild::of(&relay).await, TestChild::of(&relay).await);
    let mut c = TestChild::of(&relay).await;
    b.follows("s").await;
    b.follows("p").await;
    // More than there is room for, so the last wait.
    let count = PUBLICATIONS_MAX as u64 + 5;
    (0..count).for_each(|n| a.says(publish(n, "s", "x")));
    for n in 0..PUBLICATIONS_MAX as u64 {
        assert_eq!(a.hears().await, ToChild::Taken(n));
        assert_eq!(b.gets().await.1, n + 1);
    }
    c.says(ToParent::Resident { sid: sid(1), shard: 3, index: 9 });
    c.is_up_to_date().await;
    a.says(resume(5, 1));
    let asked = ToChild::Yield { shard: 3, index: 9, ticket: ticket(1) };
    assert_eq!(c.hears().await, asked);
    b.says(ToParent::Departed { sid: sid(2), saved: saved(2) });
    b.is_up_to_date().await;

    let relay = renewed(relay, &mut [&mut a, &mut b, &mut c]).await;
    assert_eq!(relay.state().free(), 0);
    b.says(ToParent::Delivered(5));
    for n in PUBLICATIONS_MAX as u64..count {
        assert_eq!(a.hears().await, ToChild::Taken(n));
        assert_eq!(b.gets().await.1, n + 1);
    }
    // It gives up what the client is to get that asked before.
    c.says(ToParent::Departed { sid: sid(1), saved: saved(1) });
    assert_eq!(given(a.hears().await, 5), Some(sid(1)));
    a.says(resume(6, 2));
    assert_eq!(given(a.hears().await, 6), Some(sid(2)));
    // A child that is lost gives its places back, and its number goes to the next.
    b.says(ToParent::Delivered(PUBLICATIONS_MAX as u32 - 1));
    b.is_up_to_date().await;
    let join = |n, id: &str| ToParent::Presence {
        sid: sid(n),
        stream: "p".into(),
        change: PresenceChange::Join { id: id.into(), info: None },
    };
    c.says(join(7, "ann"));
    assert!(b.gets().await.0.contains("ann"));

    let relay = renewed(relay, &mut [&mut a, &mut b, &mut c]).await;
    let number = c.of_relay.number();
    c.dies().await;
    {
        let mut state = relay.state();
        for part in 0..SWEEPS {
            relay.broker.sweep(part, relay.clock.now(), |event| state.hand_over(&relay, event, 0));
        }
    }
    assert!(b.gets().await.0.contains("ann"), "she has gone with it");
    b.dies().await;
    assert_eq!(relay.state().free(), PUBLICATIONS_MAX as u32);
    let d = TestChild::of(&relay).await;
    assert!(d.of_relay.number() < number);
    a.is_up_to_date().await;
}

#[tokio::test]
async fn what_this_configuration_does_not_want_or_what_is_not_whole_is_refused() {
    let relay = relay();
    let mut a = TestChild::of(&relay).await;
    a.is_up_to_date().await;
    let import = |broker| Relay::import(&Config::default(), broker, relay.export(), HashMap::new()).map(drop);
    assert!(import(LocalBroker::new(None)).unwrap_err().contains("--broker"));
    assert!(import(LocalBroker::new(Some(memory()))).unwrap_err().contains("is missing"));
}
