//! What has come from other nodes and waits for the shards.
//!
//! The link is read as fast as it gives, because a server beside us cuts off who reads too slowly. What the shards cannot
//! take waits here, with a bound; what is over it is dropped and counted.
//!
//! While another process is about to go on as this node, both get everything, and [`Seam`] tells what each of them hands on.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::sync::Notify;

use super::streams::Seen;
use super::{Exchange, Incoming, SEAM};
use crate::link::{Seam, TakenThere, Turns};
use crate::model::NodeId;
use crate::proto::publication::between_nodes::{self, NodeMessage};

/// Bytes of messages that wait for the shards.
const BYTES_MAX: usize = 8 << 20;

/// The same for a process that does not run yet, and gets everything for as long as an upgrade takes.
const BYTES_MAX_BEFORE: usize = 64 << 20;

/// What a message costs beside its text.
const MESSAGE_BYTES: usize = 256;

/// The queue.
#[derive(Default)]
pub struct Received {
    /// Held to put one in or to take one out.
    queue: Mutex<Queue>,
    came: Notify,
    /// One for each message that is handed on.
    pub turns: Turns,
    /// What has come, while somebody wants to know.
    pub seam: Seam,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Waiting>,
    bytes: usize,
}

struct Waiting {
    message: NodeMessage,
    bytes: usize,
    /// This node has sent it.
    own: bool,
    /// Its number in the seam and its text, while somebody wants to know.
    noted: Option<(u64, Box<[u8]>)>,
}

/// What a process has and has not handed on, for another one that goes on as the same node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GivenReceived {
    #[serde(default)]
    taken: TakenThere,
    /// What waits still, in its order.
    #[serde(default)]
    left: Vec<ByteBuf>,
}

impl Received {
    pub(super) fn take(&self, payload: &[u8], exchange: &Exchange) {
        let metrics = &exchange.metrics;
        metrics.cluster_received_total.inc();
        let message = match between_nodes::parse(payload) {
            Ok(message) => message,
            Err(error) => {
                metrics.failed_broadcast_msg_total.inc();
                tracing::warn!("a message from another node ignored: {error}");
                return;
            }
        };
        let own = sender(&message) == Some(exchange.node);
        if let NodeMessage::Command { name, payload, .. } = &message
            && name == SEAM
        {
            return self.seam.mark(payload.trim_matches('"'));
        }
        let number = self.seam.note(payload);
        if own {
            metrics.cluster_own_total.inc();
        }
        if let NodeMessage::Publication(publication, Some(origin)) = &message
            && !own
        {
            match exchange.streams.seen(&publication.stream, *origin) {
                Seen::Next => {}
                Seen::Again => {
                    metrics.cluster_doubles_total.inc();
                    return;
                }
                Seen::After(missing) => {
                    metrics.cluster_gaps_total.inc();
                    metrics.cluster_missing_total.add(missing);
                }
            }
        }
        let bytes = payload.len() + MESSAGE_BYTES;
        let bytes_max = if number.is_some() { BYTES_MAX_BEFORE } else { BYTES_MAX };
        let mut queue = self.queue();
        // One that is larger than all of it passes alone.
        if queue.bytes + bytes > bytes_max && queue.bytes > 0 {
            drop(queue);
            metrics.cluster_overflow_total.inc();
            return;
        }
        queue.bytes += bytes;
        queue.messages.push_back(Waiting { message, bytes, own, noted: number.map(|number| (number, payload.into())) });
        drop(queue);
        self.came.notify_one();
    }

    /// What was handed on and what was not, while nothing is.
    pub(super) fn given(&self) -> GivenReceived {
        let queue = self.queue();
        let noted = || queue.messages.iter().filter_map(|waiting| waiting.noted.as_ref());
        let numbers: Vec<u64> = noted().map(|(number, _)| *number).collect();
        let left = noted().map(|(_, payload)| ByteBuf::from(&**payload)).collect();
        GivenReceived { taken: self.seam.taken(&numbers), left }
    }

    /// Goes on behind what another process has handed on, while nothing is handed on here. What comes is not noted any more.
    pub(super) fn take_over(&self, given: GivenReceived, exchange: &Exchange) {
        let GivenReceived { taken, mut left } = given;
        // What came here as well stands in the queue of this process.
        self.seam.retain_unknown(&mut left);
        let mut queue = self.queue();
        let taken = self.seam.join(&taken);
        queue.messages.retain(|waiting| waiting.noted.as_ref().is_none_or(|(number, _)| !taken.contains_key(number)));
        for payload in left.into_iter().rev() {
            // The other process has read it.
            let Ok(message) = between_nodes::parse(&payload) else { continue };
            let own = sender(&message) == Some(exchange.node);
            let bytes = payload.len() + MESSAGE_BYTES;
            queue.messages.push_front(Waiting { message, bytes, own, noted: None });
        }
        queue.bytes = queue.messages.iter().map(|waiting| waiting.bytes).sum();
        self.seam.end();
        drop(queue);
        self.came.notify_one();
    }

    /// Hands over what comes, one after the other.
    pub(super) async fn keep_delivering(&self, incoming: &dyn Incoming) {
        loop {
            if self.queue().messages.is_empty() {
                self.came.notified().await;
                continue;
            }
            let _turn = self.turns.next().await;
            let Some(Waiting { message, bytes, own, .. }) = self.queue().messages.pop_front() else { continue };
            match message {
                NodeMessage::Publication(publication, origin) => {
                    incoming.publication(publication, origin, own).await;
                }
                NodeMessage::Disconnect(disconnect, _) if !own => incoming.disconnect(disconnect),
                NodeMessage::Command { name, payload, node: Some(node) } if !own => {
                    incoming.command(&name, &payload, node);
                }
                NodeMessage::Command { name, node: None, .. } => {
                    tracing::debug!(name, "a command of another node is not known");
                }
                NodeMessage::Disconnect(..) | NodeMessage::Command { .. } => {}
            }
            // Given back when it is handed over: what waits for room is here still.
            self.queue().bytes -= bytes;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sender(message: &NodeMessage) -> Option<NodeId> {
    match message {
        NodeMessage::Publication(_, origin) => origin.map(|origin| origin.node),
        NodeMessage::Disconnect(_, node) | NodeMessage::Command { node, .. } => *node,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{Cluster, Settings, Work};
    use crate::link::{BEFORE_MARK, SeamKey};
    use crate::model::{Publication, RemoteDisconnect};
    use crate::proto::publication::between_nodes::Origin;

    /// Shards that take nothing before they are told to.
    #[derive(Default)]
    struct Slow {
        goes_on: Notify,
        taken: Mutex<Vec<usize>>,
    }

    impl Incoming for Slow {
        fn publication(&self, publication: Publication, _: Option<Origin>, _: bool) -> Work<'_> {
            Box::pin(async move {
                self.goes_on.notified().await;
                self.goes_on.notify_one();
                self.taken.lock().unwrap().push(publication.message.len());
            })
        }
        fn disconnect(&self, _: RemoteDisconnect) {}
        fn command(&self, _: &str, _: &str, _: NodeId) {}
        fn subscribed(&self, _: &str) {}
    }

    #[tokio::test]
    async fn what_is_over_the_bound_is_dropped_and_counted_and_what_waited_is_delivered_in_order() {
        let cluster = Cluster::new(NodeId::from_bits(1), Settings::default());
        let exchange = Arc::clone(cluster.exchange().unwrap());
        let slow = Arc::new(Slow::default());
        let delivering = (Arc::clone(&exchange), Arc::clone(&slow));
        let delivering = tokio::spawn(async move { delivering.0.received.keep_delivering(&*delivering.1).await });
        // Each as long as a tenth of the bound and some more.
        let long = |n: usize| format!("{{\"stream\":\"s\",\"data\":\"{}\"}}", "1".repeat(BYTES_MAX / 10 + n));
        for n in 0..12 {
            exchange.receive(long(n).as_bytes());
            // The first is being handed over, and has its place in the bound until it is.
            tokio::task::yield_now().await;
        }
        assert_eq!(exchange.metrics.cluster_overflow_total.get(), 3);
        slow.goes_on.notify_one();
        while slow.taken.lock().unwrap().len() < 9 {
            tokio::task::yield_now().await;
        }
        assert!(slow.taken.lock().unwrap().iter().copied().eq((0..9).map(|n| BYTES_MAX / 10 + n)));
        exchange.receive(long(12).as_bytes());
        while slow.taken.lock().unwrap().len() < 10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(exchange.metrics.cluster_overflow_total.get(), 3, "there is room again");
        delivering.abort();
    }

    fn waiting(exchange: &Exchange) -> String {
        let queue = exchange.received.queue();
        assert_eq!(queue.bytes, queue.messages.iter().map(|waiting| waiting.bytes).sum::<usize>());
        let text = |waiting: &Waiting| match &waiting.message {
            NodeMessage::Publication(publication, _) => publication.message.to_string(),
            other => panic!("{other:?}"),
        };
        queue.messages.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_hands_on_exactly_what_was_not_with_numbers_and_without() {
        let node = NodeId::from_bits(1);
        let exchange = || Cluster::new(node, Settings::default()).exchange().cloned().unwrap();
        let (ours, theirs) = (exchange(), exchange());
        [&ours, &theirs].into_iter().for_each(|exchange| _ = exchange.streams.follow("s"));
        let key = SeamKey::default();
        let numbered = |seq: u64| {
            between_nodes::write(&Publication::new("s", seq.to_string()), Origin { node: NodeId::from_bits(2), seq })
        };
        let foreign = r#"{"stream":"s","data":"0"}"#.to_owned();
        let mark = between_nodes::write_command(SEAM, &format!("\"{}\"", key.mark()), node);
        // Noted from the beginning by the one, and from later on by the other.
        ours.received.seam.begin(key.clone());
        [numbered(1), foreign.clone()].iter().for_each(|payload| ours.receive(payload.as_bytes()));
        theirs.received.seam.begin(key);
        tokio::time::advance(BEFORE_MARK).await;
        for payload in [&numbered(2), &mark, &foreign, &numbered(3)] {
            [&ours, &theirs].into_iter().for_each(|exchange| exchange.receive(payload.as_bytes()));
        }
        [&numbered(4), &foreign].into_iter().for_each(|payload| theirs.receive(payload.as_bytes()));
        // Handed on: 1, the first foreign one, 2, and the second foreign one.
        assert_eq!(waiting(&ours), "1 0 2 0 3");
        ours.received.queue().messages.drain(..4);
        let given = rmp_serde::to_vec_named(&ours.given()).unwrap();
        theirs.take_over(rmp_serde::from_slice(&given).unwrap());
        assert_eq!(waiting(&theirs), "3 4 0");
        assert!(theirs.received.seam.key().is_none());
        // One that comes a second time is known by its number.
        theirs.receive(numbered(3).as_bytes());
        assert_eq!(waiting(&theirs), "3 4 0");
        assert_eq!(theirs.metrics.cluster_gaps_total.get(), 0);
    }

    #[tokio::test]
    async fn what_came_before_the_other_listened_is_handed_on_by_it_first() {
        let exchange = || Cluster::new(NodeId::from_bits(1), Settings::default()).exchange().cloned().unwrap();
        let (ours, theirs) = (exchange(), exchange());
        let key = SeamKey::default();
        let foreign = |n: u32| format!("{{\"stream\":\"s\",\"data\":\"{n}\"}}");
        ours.received.seam.begin(key.clone());
        ours.receive(foreign(1).as_bytes());
        theirs.received.seam.begin(key);
        [&ours, &theirs].into_iter().for_each(|exchange| exchange.receive(foreign(2).as_bytes()));
        theirs.take_over(ours.given());
        assert_eq!(waiting(&theirs), "1 2");
    }
}
