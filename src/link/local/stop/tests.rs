use std::pin::Pin;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::Lost;
use super::super::messages::{ToChild, ToParent};
use super::*;
use crate::model::{Publication, RemoteDisconnect};

/// Answers after some turns of the runtime, so that some requests are under way whenever the link stops.
struct Slow;

impl Asked for Slow {
    fn asked(self: Arc<Self>, name: Box<str>, body: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        Box::pin(async move {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            [name.as_bytes(), &body].concat()
        })
    }
}

/// Never answers.
struct Mute;

impl Asked for Mute {
    fn asked(self: Arc<Self>, _: Box<str>, _: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// The end that stops.
struct Stopping {
    sender: Sender<ToChild>,
    stop: oneshot::Sender<()>,
    life: JoinHandle<Ended<ToChild>>,
}

impl Stopping {
    fn begin(link: Link<ToChild, ToParent>, asked: Arc<dyn Asked>, hears: UnboundedSender<ToParent>) -> Stopping {
        let sender = link.sender();
        let (stop, stops) = oneshot::channel::<()>();
        let stops = async move { _ = stops.await };
        let life = tokio::spawn(link.run_until(stops, asked, move |message| _ = hears.send(message)));
        Stopping { sender, stop, life }
    }

    async fn stop(self) -> (UnixStream, Unfinished) {
        self.stop.send(()).unwrap();
        match self.life.await.unwrap() {
            Ended::Stopped(stopped) => stopped.finish::<ToParent>(),
            Ended::Lost(why) => panic!("{why}"),
        }
    }
}

/// As it comes to another program.
fn carried(unfinished: &Unfinished) -> Unfinished {
    rmp_serde::from_slice(&rmp_serde::to_vec_named(unfinished).unwrap()).unwrap()
}

fn child(socket: UnixStream) -> (Sender<ToParent>, UnboundedReceiver<ToChild>) {
    let link = Link::<ToParent, ToChild>::new(socket, None);
    let sender = link.sender();
    let (hears, heard) = unbounded_channel();
    tokio::spawn(link.run(Arc::new(Slow), move |message| _ = hears.send(message)));
    (sender, heard)
}

/// A message of one of several lengths, some of them longer than a socket holds.
fn padding(number: u64) -> String {
    "x".repeat([0, 1, 300, 70_000, 700_000][number as usize % 5])
}

#[tokio::test]
async fn what_is_said_over_a_link_that_stops_again_and_again_is_heard_once_and_in_order() {
    // Aim: each direction has a long row of messages and a row of requests, and the parent's end stops at any moment, so in the
    // middle of frames, too. Only requests of the end that stops may fail.
    const COUNT: u64 = 500;
    let (socket, of_child) = UnixStream::pair().unwrap();
    let (to_parent, mut child_heard) = child(of_child);
    let (hears, mut parent_heard) = unbounded_channel();
    let mut parent = Stopping::begin(Link::new(socket, None), Arc::new(Slow), hears.clone());
    let of_child = tokio::spawn({
        let to_parent = to_parent.clone();
        async move {
            for number in 0..COUNT {
                to_parent.room().await;
                assert!(
                    to_parent.put(&ToParent::Whisper(Publication::new("s", format!("{number}{}", padding(number)))))
                );
                if number % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let asking = tokio::spawn(async move {
        for number in 0..200u64 {
            let body = number.to_le_bytes().to_vec();
            let answer = to_parent.request("a", body.clone()).await;
            assert_eq!(answer, Ok([b"a", &*body].concat()));
        }
    });
    let (mut stops, mut said) = (0, 0);
    while said < COUNT {
        for _ in 0..29 {
            let identifiers = format!("{said}{}", padding(said));
            said += 1;
            parent
                .sender
                .put(&ToChild::Disconnect(RemoteDisconnect { identifiers: identifiers.into(), reconnect: false }));
        }
        for _ in 0..stops % 11 {
            tokio::task::yield_now().await;
        }
        let (socket, unfinished) = parent.stop().await;
        stops += 1;
        parent = Stopping::begin(Link::go_on(socket, carried(&unfinished), None), Arc::new(Slow), hears.clone());
    }
    for number in 0..COUNT {
        let Some(ToParent::Whisper(publication)) = parent_heard.recv().await else { panic!("{number}") };
        assert!(*publication.message == format!("{number}{}", padding(number)), "{number}");
    }
    for number in 0..said {
        let Some(ToChild::Disconnect(disconnect)) = child_heard.recv().await else { panic!("{number}") };
        assert!(*disconnect.identifiers == format!("{number}{}", padding(number)), "{number}");
    }
    of_child.await.unwrap();
    asking.await.unwrap();
    assert!(stops > 15);
    assert_eq!(parent.sender.request("b", vec![1]).await, Ok(vec![b'b', 1]));
    assert_eq!(parent.sender.waiting_bytes(), 0);
}

#[tokio::test]
async fn an_answer_to_who_has_given_up_is_nobody_elses() {
    let (socket, of_child) = UnixStream::pair().unwrap();
    let (to_parent, _heard) = child(of_child);
    let (hears, mut parent_heard) = unbounded_channel();
    let parent = Stopping::begin(Link::new(socket, None), Arc::new(Mute), hears.clone());
    // The child answers this one behind the stop; one of the child's own is not answered before it.
    let waits = tokio::spawn({
        let sender = parent.sender.clone();
        async move { sender.request("old", Vec::new()).await }
    });
    let asks = tokio::spawn({
        let to_parent = to_parent.clone();
        async move { to_parent.request("kept", vec![7]).await }
    });
    to_parent.put(&ToParent::Follow(1));
    assert_eq!(parent_heard.recv().await, Some(ToParent::Follow(1)));
    let old = parent.sender.clone();
    let (socket, unfinished) = parent.stop().await;
    assert_eq!(waits.await.unwrap(), Err(Lost));
    assert!(old.is_lost() && old.put(&ToChild::Taken(5)), "what is said by it now goes nowhere");
    let parent = Stopping::begin(Link::go_on(socket, carried(&unfinished), None), Arc::new(Slow), hears);
    assert_eq!(parent.sender.request("new", Vec::new()).await, Ok(b"new".to_vec()));
    assert_eq!(asks.await.unwrap(), Ok([b"kept", &[7][..]].concat()), "asked again");
}

#[tokio::test]
async fn a_link_that_is_lost_while_it_stands_still_is_lost_when_it_goes_on() {
    let (socket, of_child) = UnixStream::pair().unwrap();
    let (to_parent, heard) = child(of_child);
    let (hears, mut parent_heard) = unbounded_channel();
    let parent = Stopping::begin(Link::new(socket, None), Arc::new(Slow), hears.clone());
    to_parent.put(&ToParent::Follow(1));
    assert_eq!(parent_heard.recv().await, Some(ToParent::Follow(1)));
    let (socket, unfinished) = parent.stop().await;
    to_parent.put(&ToParent::Follow(2));
    while to_parent.waiting_bytes() > 0 {
        tokio::task::yield_now().await;
    }
    let end = socket.try_clone().unwrap();
    // As if its process had ended.
    end.shutdown(std::net::Shutdown::Read).unwrap();
    drop((to_parent, heard, end));
    let parent = Stopping::begin(Link::go_on(socket, unfinished, None), Arc::new(Slow), hears);
    assert_eq!(parent_heard.recv().await, Some(ToParent::Follow(2)), "what it said before is heard");
    assert!(matches!(parent.life.await.unwrap(), Ended::Lost(LinkLost::Closed)));
}
