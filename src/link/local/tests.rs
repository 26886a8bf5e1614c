use std::io::Write;
use std::sync::mpsc;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use super::messages::{LINK_FORMAT, Reply, Sorted};
use super::reader::Reader;
use super::*;
use crate::model::{Publication, Sid};

/// Answers with what was asked, the name in front.
struct Echo;

impl Asked for Echo {
    fn asked(self: Arc<Self>, name: Box<str>, body: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        Box::pin(async move { [name.as_bytes(), &body].concat() })
    }
}

/// Never answers.
struct Mute;

impl Asked for Mute {
    fn asked(self: Arc<Self>, _: Box<str>, _: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        Box::pin(std::future::pending())
    }
}

struct End<Out, In> {
    sender: Sender<Out>,
    heard: UnboundedReceiver<In>,
    life: JoinHandle<LinkLost>,
}

fn end<Out: Direction, In: Direction>(socket: UnixStream, asked: Arc<dyn Asked>) -> End<Out, In> {
    let link = Link::<Out, In>::new(socket, None);
    let sender = link.sender();
    let (hears, heard) = unbounded_channel();
    let life = tokio::spawn(link.run(asked, move |message| _ = hears.send(message)));
    End { sender, heard, life }
}

fn both() -> (End<ToChild, ToParent>, End<ToParent, ToChild>) {
    let (parent, child) = UnixStream::pair().unwrap();
    (end(parent, Arc::new(Echo)), end(child, Arc::new(Echo)))
}

fn whisper(message: String) -> ToParent {
    ToParent::Whisper(Publication { exclude: Some(Sid::from_bits(7)), ..Publication::new("s", message) })
}

#[tokio::test]
async fn what_is_said_is_heard_in_its_order_whatever_its_size() {
    let (mut parent, child) = both();
    let sizes = [0, 1, 100, 70_000, 3 << 20, 5, 9 << 20, 1, 1];
    for (n, size) in sizes.into_iter().enumerate() {
        assert!(child.sender.put(&whisper(n.to_string() + &"x".repeat(size))));
        (0..200).for_each(|key| assert!(child.sender.put(&ToParent::Follow(key))));
    }
    for (n, size) in sizes.into_iter().enumerate() {
        assert_eq!(parent.heard.recv().await, Some(whisper(n.to_string() + &"x".repeat(size))));
        for key in 0..200 {
            assert_eq!(parent.heard.recv().await, Some(ToParent::Follow(key)));
        }
    }
    assert_eq!(child.sender.waiting_bytes(), 0);
}

#[tokio::test]
async fn what_was_said_before_the_end_is_heard_even_by_who_finds_it_while_writing() {
    let (socket, mut other) = UnixStream::pair().unwrap();
    let mut parent: End<ToChild, ToParent> = end(socket, Arc::new(Echo));
    let count = 20_000;
    let writing = std::thread::spawn(move || {
        (0..count).for_each(|key| other.write_all(&Frame::new(&ToParent::Follow(key)).unwrap().0).unwrap());
        // It ends with something that it has not read.
        drop(other);
    });
    for n in 0..count {
        parent.sender.put(&ToChild::Taken(n));
        assert_eq!(parent.heard.recv().await, Some(ToParent::Follow(n)));
    }
    writing.join().unwrap();
    assert!(matches!(parent.life.await.unwrap(), LinkLost::Closed));
}

#[tokio::test]
async fn requests_are_answered_in_both_directions_and_fail_when_the_link_is_lost() {
    let (parent, child) = both();
    assert_eq!(child.sender.request("a", vec![1]).await, Ok(vec![b'a', 1]));
    assert_eq!(parent.sender.request("b", vec![2; 100_000]).await.unwrap().len(), 100_001);
    parent.life.abort();
    assert!(matches!(child.life.await.unwrap(), LinkLost::Closed));
    assert_eq!(child.sender.request("a", Vec::new()).await, Err(Lost));
    assert!(child.sender.is_lost() && !child.sender.has_room());
}

#[tokio::test]
async fn who_waits_for_an_answer_is_told_that_the_link_is_lost() {
    let (parent, child) = UnixStream::pair().unwrap();
    let parent: End<ToChild, ToParent> = end(parent, Arc::new(Mute));
    let child: End<ToParent, ToChild> = end(child, Arc::new(Mute));
    let sender = child.sender.clone();
    let asking = tokio::spawn(async move { sender.request("a", Vec::new()).await });
    while child.sender.0.waiters.len() == 0 {
        tokio::task::yield_now().await;
    }
    drop((parent.life.abort(), parent));
    assert_eq!(asking.await.unwrap(), Err(Lost));
}

#[tokio::test]
async fn deliveries_are_told_of_together() {
    let (mut parent, child) = both();
    let begins = |count: u32| {
        (0..count).for_each(|_| child.sender.owes(2));
        (0..count).for_each(|_| child.sender.delivered(2));
    };
    begins(1000);
    let mut told = 0;
    while told < 2000 {
        let Some(ToParent::Delivered(places)) = parent.heard.recv().await else { panic!() };
        told += places;
    }
    // A few are told of after a while, or with what is said next.
    begins(3);
    assert_eq!(parent.heard.recv().await, Some(ToParent::Delivered(6)));
    child.sender.owes(1);
    tokio::task::yield_now().await;
    child.sender.delivered(1);
    child.sender.put(&ToParent::Follow(5));
    assert_eq!(parent.heard.recv().await, Some(ToParent::Follow(5)));
    assert_eq!(parent.heard.recv().await, Some(ToParent::Delivered(1)));
    assert_eq!(
        (told, child.sender.waiting_bytes(), child.sender.0.owed.load(std::sync::atomic::Ordering::Acquire)),
        (2000, 0, 0)
    );
}

#[tokio::test]
async fn what_nobody_understands_is_the_end_of_a_link() {
    let long = (u32::MAX).to_le_bytes().to_vec();
    let unknown = Frame::new(&"nothing that a child says").unwrap().0.to_vec();
    let nonsense = [&3u32.to_le_bytes()[..], &[0xc1, 0xc1, 0xc1]].concat();
    for (bytes, expected) in [(long, "a frame of"), (unknown, "no message"), (nonsense, "no message")] {
        let (socket, mut other) = UnixStream::pair().unwrap();
        let parent: End<ToChild, ToParent> = end(socket, Arc::new(Echo));
        other.write_all(&bytes).unwrap();
        let why = parent.life.await.unwrap().to_string();
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test]
async fn an_announced_length_takes_no_memory_before_the_bytes_are_there() {
    let (socket, mut other) = UnixStream::pair().unwrap();
    let (read, _write) = {
        socket.set_nonblocking(true).unwrap();
        tokio::net::UnixStream::from_std(socket).unwrap().into_split()
    };
    let mut reader = Reader::<ToParent>::new(read, BytesMut::new());
    other.write_all(&(FRAME_BYTES_MAX as u32).to_le_bytes()).unwrap();
    reader.read().await.unwrap();
    assert!(matches!(reader.next(), Ok(None)));
    assert!(reader.buffer.capacity() < 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_reads_nothing_is_given_up() {
    let (socket, _other) = UnixStream::pair().unwrap();
    let link = Link::<ToChild, ToParent>::new(socket, Some(Duration::from_secs(10)));
    let sender = link.sender();
    let big = ToChild::Disconnect(crate::model::RemoteDisconnect {
        identifiers: "x".repeat(4 << 20).into(),
        reconnect: false,
    });
    assert!(sender.put(&big));
    assert!(matches!(link.run(Arc::new(Echo), |_| {}).await, LinkLost::Stalled(_)));
    assert!(sender.is_lost() && sender.waiting_bytes() == 0);
}

#[tokio::test]
async fn a_queue_over_its_bound_is_the_end_of_a_link() {
    let (socket, _other) = UnixStream::pair().unwrap();
    let link = Link::<ToParent, ToChild>::new(socket, None);
    let sender = link.sender();
    let frame = Frame::new(&whisper("x".repeat(ROOM_BYTES))).unwrap();
    assert!(sender.has_room());
    sender.put_frame(frame.clone());
    assert!(!sender.has_room(), "more of what can wait has to");
    (0..QUEUE_BYTES_MAX / ROOM_BYTES).for_each(|_| sender.put_frame(frame.clone()));
    assert!(matches!(link.run(Arc::new(Echo), |_| {}).await, LinkLost::Full));
}

#[tokio::test]
async fn who_can_wait_waits_for_room() {
    let (socket, other) = UnixStream::pair().unwrap();
    let link = Link::<ToParent, ToChild>::new(socket, None);
    let sender = link.sender();
    sender.put(&whisper("x".repeat(ROOM_BYTES)));
    let waits = tokio::spawn({
        let sender = sender.clone();
        async move { sender.room().await }
    });
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    let life = tokio::spawn(link.run(Arc::new(Echo), |_| {}));
    let _parent: End<ToChild, ToParent> = end(other, Arc::new(Echo));
    waits.await.unwrap();
    assert!(sender.has_room());
    life.abort();
    let _ = life.await;
    sender.room().await;
}

#[test]
fn the_first_message_is_read_without_a_runtime() {
    let welcome = || Welcome {
        format: LINK_FORMAT,
        stream_seed: 1,
        clock_origin_usec: 2,
        resume_key: "key".into(),
        relays: true,
        remembers: false,
    };
    let (mut parent, mut child) = UnixStream::pair().unwrap();
    for message in [ToChild::Welcome(welcome()), ToChild::Taken(1)] {
        parent.write_all(&Frame::new(&message).unwrap().0).unwrap();
    }
    assert_eq!(super::welcome(&mut child).unwrap(), welcome());
    assert!(super::welcome(&mut child).unwrap_err().to_string().contains("no welcome"));
    parent.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(matches!(super::welcome(&mut child), Err(LinkLost::TooLong(_))));
    drop(parent);
    let (closed, is_closed) = mpsc::channel();
    std::thread::spawn(move || closed.send(super::welcome(&mut child).is_err()));
    assert!(is_closed.recv().unwrap());
}

#[test]
fn requests_and_replies_are_sorted_out() {
    let reply = || Reply { number: 1, body: vec![2] };
    assert!(matches!(ToChild::reply(reply()).sort(), Sorted::Reply(told) if told == reply()));
    assert!(matches!(ToParent::reply(reply()).sort(), Sorted::Reply(told) if told == reply()));
    assert!(matches!(ToParent::Stays(Sid::from_bits(1)).sort(), Sorted::Other(ToParent::Stays(_))));
    assert!(ToChild::delivered(1).is_none());
}
