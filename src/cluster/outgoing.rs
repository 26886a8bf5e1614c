//! What waits to be sent to other nodes.
//!
//! Publishers put in while they hold their stream's lock, and go on at once. The link takes out in order. When it is away
//! or too slow, the oldest go: what is live is worth most when it is new, and with a broker nobody depends on it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ClusterMetrics;
use crate::model::{NameHasher, NodeId, Publication, RemoteDisconnect};
use crate::proto::publication::between_nodes::{self, Origin};

/// Messages that wait. A second's worth of what one node can publish.
const MESSAGES_MAX: usize = 65_536;

/// Bytes of messages that wait.
const BYTES_MAX: usize = 32 << 20;

/// Nobody is sent what is older: a client that sees it would take it for new.
const AGE_MAX: Duration = Duration::from_secs(60);

/// What a message costs beside its texts.
const MESSAGE_BYTES: usize = 128;

/// Streams of which the numbers are known, at least those published to last; twice as many at most.
const COUNTERS: usize = 32_768;

/// A message ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The stream it is for; none: a command for all nodes.
    pub stream: Option<Box<str>>,
    /// What goes over the link.
    pub payload: String,
}

/// The queue.
pub struct Outgoing {
    node: NodeId,
    /// Held to put one in or to take some out.
    queue: Mutex<Queue>,
    came: Notify,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<(Instant, Message)>,
    bytes: usize,
    /// How many were put in since the node began.
    put_in: u64,
    counters: Counters,
}

enum Message {
    Publication(Publication, u64),
    Disconnect(RemoteDisconnect),
    Command {
        name: &'static str,
        payload: String,
    },
    /// Was taken out, and the link was lost before it was certain that it is there.
    Again(Sent),
}

impl Message {
    fn bytes(&self) -> usize {
        let texts = match self {
            Message::Publication(publication, _) => publication.message.len() + publication.stream.len(),
            Message::Disconnect(disconnect) => disconnect.identifiers.len(),
            Message::Command { payload, .. } => payload.len(),
            Message::Again(sent) => sent.payload.len(),
        };
        texts + MESSAGE_BYTES
    }
}

impl Queue {
    fn pop(&mut self) -> Option<(Instant, Message)> {
        let popped = self.messages.pop_front()?;
        self.bytes -= popped.1.bytes();
        Some(popped)
    }

    fn push(&mut self, message: Message, metrics: &ClusterMetrics) {
        self.put_in += 1;
        self.bytes += message.bytes();
        self.messages.push_back((Instant::now(), message));
        while self.messages.len() > MESSAGES_MAX || self.bytes > BYTES_MAX {
            self.pop();
            metrics.cluster_dropped_total.inc();
        }
    }
}

impl Outgoing {
    pub(super) fn new(node: NodeId) -> Outgoing {
        Outgoing { node, queue: Mutex::default(), came: Notify::new() }
    }

    /// Messages that wait, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        let queue = self.queue();
        (queue.messages.len(), queue.bytes)
    }

    /// How many were put in since the node began.
    pub(super) fn put_in(&self) -> u64 {
        self.queue().put_in
    }

    pub(super) fn publication(&self, publication: Publication, metrics: &ClusterMetrics) {
        let mut queue = self.queue();
        let seq = queue.counters.next(&publication.stream);
        queue.push(Message::Publication(publication, seq), metrics);
        drop(queue);
        self.came.notify_one();
    }

    pub(super) fn disconnect(&self, disconnect: RemoteDisconnect, metrics: &ClusterMetrics) {
        self.queue().push(Message::Disconnect(disconnect), metrics);
        self.came.notify_one();
    }

    /// Gives the other nodes of ours a command; `payload` is JSON text.
    pub fn command(&self, name: &'static str, payload: String, metrics: &ClusterMetrics) {
        self.queue().push(Message::Command { name, payload }, metrics);
        self.came.notify_one();
    }

    /// Waits until there are messages.
    pub async fn wait(&self) {
        while self.queue().messages.is_empty() {
            self.came.notified().await;
        }
    }

    /// Takes up to `most` messages out, in their order, and no more than about `bytes_max`.
    pub fn take(&self, most: usize, bytes_max: usize, metrics: &ClusterMetrics) -> Vec<Sent> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        let mut queue = self.queue();
        while taken.len() < most && bytes < bytes_max {
            let Some((came, message)) = queue.pop() else { break };
            if came.elapsed() > AGE_MAX {
                metrics.cluster_dropped_total.inc();
                continue;
            }
            bytes += message.bytes();
            taken.push(message);
        }
        drop(queue);
        // Encoded here and not by the publishers, who hold locks.
        taken.into_iter().map(|message| self.encode(message)).collect()
    }

    fn encode(&self, message: Message) -> Sent {
        match message {
            Message::Publication(publication, seq) => {
                let payload = between_nodes::write(&publication, Origin { node: self.node, seq });
                Sent { stream: Some(publication.stream), payload }
            }
            Message::Disconnect(disconnect) => {
                Sent { stream: None, payload: between_nodes::write_disconnect(&disconnect, self.node) }
            }
            Message::Command { name, payload } => {
                Sent { stream: None, payload: between_nodes::write_command(name, &payload, self.node) }
            }
            Message::Again(sent) => sent,
        }
    }

    /// Puts messages back to the front, in their order: the link was lost before it was certain that they are there. One
    /// that is there all the same comes twice: nodes of ours drop it, those of AnyCable deliver it again.
    pub fn put_back(&self, messages: Vec<Sent>) {
        let mut queue = self.queue();
        for sent in messages.into_iter().rev() {
            let message = Message::Again(sent);
            queue.bytes += message.bytes();
            let came = queue.messages.front().map_or_else(Instant::now, |(came, _)| *came);
            queue.messages.push_front((came, message));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits to be sent and how far each stream is counted, for a process that goes on as the same node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GivenOutgoing {
    #[serde(default)]
    messages: Vec<Sent>,
    #[serde(default)]
    counters: Vec<(Box<str>, u64)>,
}

impl Outgoing {
    /// Everything, while nothing is put in and nothing taken out.
    pub(super) fn given(&self) -> GivenOutgoing {
        let queue = self.queue();
        let messages = queue.messages.iter().map(|(_, message)| match message {
            Message::Again(sent) => sent.clone(),
            Message::Publication(publication, seq) => self.encode(Message::Publication(publication.clone(), *seq)),
            Message::Disconnect(disconnect) => self.encode(Message::Disconnect(disconnect.clone())),
            Message::Command { name, payload } => self.encode(Message::Command { name, payload: payload.clone() }),
        });
        let Counters { recent, older } = &queue.counters;
        let counters = older.iter().chain(recent).map(|(stream, last)| (stream.clone(), *last));
        GivenOutgoing { messages: messages.collect(), counters: counters.collect() }
    }

    /// Goes on with it, before anything is put in here.
    pub(super) fn take_over(&self, given: GivenOutgoing) {
        let mut queue = self.queue();
        queue.put_in += given.messages.len() as u64;
        queue.counters.recent.extend(given.counters.into_iter().take(2 * COUNTERS));
        drop(queue);
        self.put_back(given.messages);
        self.came.notify_one();
    }
}

/// What was published to each stream, counted. One that is forgotten begins anew at a number far away from its last.
#[derive(Default)]
struct Counters {
    recent: HashMap<Box<str>, u64, NameHasher>,
    older: HashMap<Box<str>, u64, NameHasher>,
}

impl Counters {
    fn next(&mut self, stream: &str) -> u64 {
        if let Some(last) = self.recent.get_mut(stream) {
            *last += 1;
            return *last;
        }
        // Below 2^53, which is what JSON holds everywhere, with room to count.
        let first = || rand::random::<u64>() >> 12;
        let next = self.older.remove(stream).map_or_else(first, |last| last + 1);
        if self.recent.len() >= COUNTERS {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(stream.into(), next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::publication::between_nodes::{NodeMessage, parse};

    fn outgoing() -> (Outgoing, ClusterMetrics) {
        (Outgoing::new(NodeId::from_bits(7)), ClusterMetrics::default())
    }

    /// Message and number.
    fn read(sent: &Sent) -> (String, u64) {
        match parse(sent.payload.as_bytes()) {
            Ok(NodeMessage::Publication(publication, Some(origin))) => (publication.message.to_string(), origin.seq),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn messages_leave_in_their_order_and_are_counted_for_each_stream() {
        let (outgoing, metrics) = outgoing();
        for n in 0..4 {
            outgoing.publication(Publication::new(["a", "b"][n % 2], n.to_string()), &metrics);
        }
        let first = outgoing.take(3, usize::MAX, &metrics);
        outgoing.put_back(first.clone());
        let all = outgoing.take(10, usize::MAX, &metrics);
        assert_eq!(first.iter().map(read).collect::<Vec<_>>(), all[..3].iter().map(read).collect::<Vec<_>>());
        let read: Vec<_> = all.iter().map(read).collect();
        assert_eq!(read.iter().map(|(message, _)| &**message).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
        assert_eq!((read[2].1 - read[0].1, read[3].1 - read[1].1), (1, 1));
        assert_eq!((outgoing.waiting(), outgoing.put_in()), ((0, 0), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_when_the_queue_is_full_and_when_they_are_too_old() {
        let (outgoing, metrics) = outgoing();
        for n in 0..MESSAGES_MAX + 10 {
            outgoing.publication(Publication::new("a", n.to_string()), &metrics);
        }
        assert_eq!((outgoing.waiting().0, metrics.cluster_dropped_total.get()), (MESSAGES_MAX, 10));
        let big = || Publication::new("a", format!("\"{}\"", "x".repeat(BYTES_MAX / 2)));
        (0..3).for_each(|_| outgoing.publication(big(), &metrics));
        assert_eq!(outgoing.waiting().0, 1);
        tokio::time::advance(AGE_MAX + Duration::from_secs(1)).await;
        outgoing.publication(Publication::new("a", "1"), &metrics);
        let left = outgoing.take(10, usize::MAX, &metrics);
        assert_eq!((left.len(), &*read(&left[0]).0), (1, "1"));
        assert_eq!(metrics.cluster_dropped_total.get() + 1, outgoing.put_in());
    }

    #[tokio::test]
    async fn another_process_goes_on_sending_and_counting_as_the_same_node() {
        let ((ours, metrics), (theirs, _)) = (outgoing(), outgoing());
        ours.publication(Publication::new("a", "1"), &metrics);
        let first = ours.take(10, usize::MAX, &metrics);
        ours.publication(Publication::new("a", "2"), &metrics);
        ours.disconnect(RemoteDisconnect { identifiers: "u".into(), reconnect: true }, &metrics);
        let given = rmp_serde::to_vec_named(&ours.given()).unwrap();
        theirs.take_over(rmp_serde::from_slice(&given).unwrap());
        theirs.publication(Publication::new("a", "3"), &metrics);
        theirs.wait().await;
        let sent = theirs.take(10, usize::MAX, &metrics);
        assert_eq!(sent[..2], ours.take(10, usize::MAX, &metrics)[..]);
        let (last, next) = (read(&first[0]).1, read(&sent[2]));
        assert_eq!((&*next.0, next.1), ("3", last + 2));
        assert_eq!(theirs.put_in(), 3);
    }

    #[test]
    fn the_counters_of_streams_are_bounded_and_those_in_use_go_on() {
        let mut counters = Counters::default();
        let mut last = counters.next("busy");
        for n in 0..5 * COUNTERS {
            counters.next(&n.to_string());
            if n % 1000 == 0 {
                let next = counters.next("busy");
                assert_eq!(next, last + 1);
                last = next;
            }
        }
        assert!(counters.recent.len() + counters.older.len() <= 2 * COUNTERS);
        assert_ne!(counters.next("0"), 2, "one that was forgotten begins anywhere");
    }
}
