//! What has come from other nodes and waits for the shards.
//!
//! What the shards cannot take waits, with a bound; what is over it is dropped and counted.

use super::streams::{Numbered, Seen};
use super::{Exchange, Incoming, NUMBERS_MAX, SEAM};
use crate::link::{Arrivals, GivenArrivals, NotPut};

use crate::proto::publication::between_nodes::{self, NodeMessage};

/// What a message costs beside its text.
const MESSAGE_BYTES: usize = 256;

/// The queue.
pub struct Received {
    /// What waits.
    pub arrivals: Arrivals<NodeMessage>,
}

impl Default for Received {
    fn default() -> Received {
        Received { arrivals: Arrivals::new(MESSAGE_BYTES) }
    }
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
        if let NodeMessage::Command { name, payload, .. } = &message
            && name == SEAM
        {
            return self.arrivals.with(|queue| queue.seam.mark(payload.trim_matches('"')));
        }
        if let NodeMessage::Publication(publication, _) = &message
            && exchange.streams.is_held(&publication.stream)
        {
            // Whoever goes on does not get it, and must not take a later one for it.
            return;
        }
        if exchange.is_own(&message) {
            metrics.cluster_own_total.inc();
        }
        // Under the lock: whoever goes on knows the numbers of exactly what has come.
        let put = self.arrivals.with(|queue| queue.put(payload, || exchange.is_new(&message).then_some(message)));
        match put {
            Ok(()) => {}
            Err(NotPut::Full) => metrics.cluster_overflow_total.inc(),
            Err(NotPut::Unwanted | NotPut::HandedOn) => metrics.cluster_doubles_total.inc(),
        }
    }

    /// What was handed on and what was not, while nothing is, and the numbers of what has come.
    pub(super) fn given(&self, exchange: &Exchange) -> (GivenArrivals, Vec<Numbered>) {
        self.arrivals.with(|queue| {
            (queue.given(|message| between_nodes::write_again(message).into()), exchange.streams.numbers(NUMBERS_MAX))
        })
    }

    /// Goes on behind what another process has handed on, while nothing is handed on here.
    pub(super) fn take_over(&self, given: GivenArrivals, numbers: Vec<Numbered>, exchange: &Exchange) {
        self.arrivals.with(|queue| {
            queue.take_over(given, |payload| between_nodes::parse(payload).ok());
            exchange.streams.take_over_numbers(numbers);
        });
    }

    /// Hands over what comes, one after the other.
    pub(super) async fn keep_delivering(&self, exchange: &Exchange, incoming: &dyn Incoming) {
        loop {
            let next = self.arrivals.next().await;
            let own = exchange.is_own(&next.item);
            match next.item {
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
        }
    }
}

impl Exchange {
    /// Whether this node has sent it.
    fn is_own(&self, message: &NodeMessage) -> bool {
        let sender = match message {
            NodeMessage::Publication(_, origin) => origin.map(|origin| origin.node),
            NodeMessage::Disconnect(_, node) | NodeMessage::Command { node, .. } => *node,
        };
        sender == Some(self.node)
    }

    /// Whether its number says that it did not come before; it is remembered.
    fn is_new(&self, message: &NodeMessage) -> bool {
        let NodeMessage::Publication(publication, Some(origin)) = message else { return true };
        if self.is_own(message) {
            return true;
        }
        match self.streams.seen(&publication.stream, *origin) {
            Seen::Next => true,
            Seen::Again => false,
            Seen::After(missing) => {
                self.metrics.cluster_gaps_total.inc();
                self.metrics.cluster_missing_total.add(missing);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Notify;

    use super::*;
    use crate::cluster::{Cluster, Settings, Work};
    use crate::link::{ARRIVED_BYTES_MAX as BYTES_MAX, Mark, SeamKey};
    use crate::model::{NodeId, Publication, RemoteDisconnect};
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
        let delivering =
            tokio::spawn(async move { delivering.0.received.keep_delivering(&delivering.0, &*delivering.1).await });
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
        let text = |message: &NodeMessage| match message {
            NodeMessage::Publication(publication, _) => publication.message.to_string(),
            other => panic!("{other:?}"),
        };
        exchange.received.arrivals.with(|queue| queue.items().map(text).collect::<Vec<_>>().join(" "))
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
        let mark = |mark| between_nodes::write_command(SEAM, &format!("\"{}\"", key.text(mark)), node);
        let begin = |exchange: &Exchange| exchange.received.arrivals.with(|queue| queue.seam.begin(key.clone()));
        // Noted from early on by the one, and from later on by the other.
        let kept = numbered(1).replace("\"1\"", "\"70\"");
        ours.receive(kept.as_bytes());
        begin(&ours);
        [numbered(2), foreign.clone()].iter().for_each(|payload| ours.receive(payload.as_bytes()));
        begin(&theirs);
        for payload in [&mark(Mark::First), &numbered(3), &mark(Mark::Last), &foreign, &numbered(4)] {
            [&ours, &theirs].into_iter().for_each(|exchange| exchange.receive(payload.as_bytes()));
        }
        // What comes to the one only comes to the other later.
        ours.receive(numbered(5).as_bytes());
        [&foreign, &foreign].into_iter().for_each(|payload| theirs.receive(payload.as_bytes()));
        assert_eq!(waiting(&ours), "70 2 0 3 0 4 5");
        let mut handed_on = Vec::new();
        for _ in 0..5 {
            handed_on.push(ours.received.arrivals.next().await.item);
        }
        let given = rmp_serde::to_vec_named(&ours.given()).unwrap();
        theirs.take_over(rmp_serde::from_slice(&given).unwrap());
        assert_eq!(waiting(&theirs), "4 5 0 0");
        assert!(theirs.received.arrivals.with(|queue| queue.seam.key().is_none()));
        // What comes a second time is known.
        [numbered(4), numbered(5)].iter().for_each(|payload| theirs.receive(payload.as_bytes()));
        assert_eq!(waiting(&theirs), "4 5 0 0");
        theirs.receive(numbered(6).as_bytes());
        assert_eq!(waiting(&theirs), "4 5 0 0 6");
        assert_eq!(theirs.metrics.cluster_gaps_total.get(), 0);
    }

    #[tokio::test]
    async fn what_comes_to_a_stream_that_the_other_has_not_is_taken_for_no_other() {
        let exchange = || Cluster::new(NodeId::from_bits(1), Settings::default()).exchange().cloned().unwrap();
        let (ours, theirs) = (exchange(), exchange());
        let key = SeamKey::default();
        for exchange in [&ours, &theirs] {
            exchange.received.arrivals.with(|queue| {
                queue.seam.begin(key.clone());
                queue.seam.mark(&key.text(Mark::Last));
            });
        }
        ours.streams.give_more_and_hold();
        ours.streams.follow("s");
        let payload = r#"{"stream":"s","data":"7"}"#;
        ours.receive(payload.as_bytes());
        assert_eq!(waiting(&ours), "");
        theirs.take_over(ours.given());
        theirs.receive(payload.as_bytes());
        assert_eq!(waiting(&theirs), "7");
    }

    #[tokio::test]
    async fn what_came_before_the_other_followed_a_stream_is_taken_for_no_other() {
        let node = NodeId::from_bits(1);
        let exchange = || Cluster::new(node, Settings::default()).exchange().cloned().unwrap();
        let (ours, theirs) = (exchange(), exchange());
        let key = SeamKey::default();
        let marks = |key: &SeamKey| {
            Mark::BOTH.map(|mark| between_nodes::write_command(SEAM, &format!("\"{}\"", key.text(mark)), node))
        };
        [&ours, &theirs]
            .into_iter()
            .for_each(|exchange| exchange.received.arrivals.with(|queue| queue.seam.begin(key.clone())));
        marks(&key).iter().for_each(|mark| theirs.receive(mark.as_bytes()));
        // Followed since, and given.
        let renewed = ours.received.arrivals.with(|queue| queue.seam.renew_marks());
        let payload = r#"{"stream":"s","data":"7"}"#;
        ours.receive(payload.as_bytes());
        theirs.received.arrivals.with(|queue| queue.seam.unmark(renewed.clone()));
        marks(&renewed.unwrap()).iter().for_each(|mark| theirs.receive(mark.as_bytes()));
        // The marks from before come late, and those of now not at all.
        marks(&key).iter().for_each(|mark| ours.receive(mark.as_bytes()));
        assert_eq!(waiting(&ours), "7");
        drop(ours.received.arrivals.next().await);
        theirs.take_over(ours.given());
        theirs.receive(payload.as_bytes());
        assert_eq!(waiting(&theirs), "7");
    }

    #[tokio::test]
    async fn what_came_before_the_other_listened_is_handed_on_by_it_first() {
        let exchange = || Cluster::new(NodeId::from_bits(1), Settings::default()).exchange().cloned().unwrap();
        let (ours, theirs) = (exchange(), exchange());
        let key = SeamKey::default();
        let begin = |exchange: &Exchange| exchange.received.arrivals.with(|queue| queue.seam.begin(key.clone()));
        let foreign = |n: u32| format!("{{\"stream\":\"s\",\"data\":\"{n}\"}}");
        // Before anybody wanted to know, one like a later one.
        ours.receive(foreign(2).as_bytes());
        begin(&ours);
        ours.receive(foreign(1).as_bytes());
        begin(&theirs);
        [&ours, &theirs].into_iter().for_each(|exchange| exchange.receive(foreign(2).as_bytes()));
        theirs.take_over(ours.given());
        assert_eq!(waiting(&theirs), "2 1 2");
    }
}
