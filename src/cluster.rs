//! The cluster: other nodes that have clients of the same app.
//!
//! It is told of everything that enters at this node and has its place: each publication, while its stream's lock is
//! held, so that other nodes get a stream in the same order, and each remote disconnect. What comes from other nodes
//! does not come through here again. Telling does not wait: it puts into a queue with a bound ([`outgoing`]), and the
//! clients of this node have been served by then.
//!
//! A [`Medium`] carries it: Redis or NATS. What is the same for both is in [`Exchange`]: what is to be sent, which streams
//! this node follows ([`streams`]), and what has come in ([`received`]). All of it runs on the thread "links".
//!
//! Nodes know each other's messages by a key that AnyCable passes over: who published and a number that counts for each
//! stream. So a message of this node that comes back is dropped, one that comes twice is dropped, and one that never
//! comes is noticed.

mod nats;
mod outgoing;
mod received;
mod redis;
mod streams;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::link::{GivenArrivals, Mark, Turns};
use crate::metrics;
use crate::model::{NodeId, Publication, RemoteDisconnect};
use crate::proto::publication::between_nodes::{self, Origin};

pub use nats::NatsMedium;
pub use outgoing::{GivenOutgoing, Outgoing, Sent};
pub use received::Received;
pub use redis::RedisMedium;
pub use streams::{Changes, Numbered, Streams, Then};

/// What takes its time and gives nothing.
pub type Work<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What comes from other nodes goes to.
pub trait Incoming: Send + Sync + 'static {
    /// Delivers a publication to the clients of this node; waits while there is no room. It has `origin` if a node of ours
    /// took it; `own` says that this node did.
    fn publication(&self, publication: Publication, origin: Option<Origin>, own: bool) -> Work<'_>;

    /// Disconnects clients of this node.
    fn disconnect(&self, disconnect: RemoteDisconnect);

    /// Another node of ours gives a command that has this name; `payload` is JSON text.
    fn command(&self, name: &str, payload: &str, node: NodeId);

    /// The server has acknowledged that this stream is subscribed to, for the first time or again.
    fn subscribed(&self, stream: &str);
}

/// What carries messages between nodes.
pub trait Medium: Send + 'static {
    /// Connects, again and again, for as long as the node runs, and meanwhile: sends what [`Exchange::outgoing`] has,
    /// subscribes to what [`Exchange::streams`] says, gives what comes to [`Exchange::received`], and tells
    /// [`Streams::went_down`] and [`Streams::came_up`].
    fn run(self: Box<Self>, exchange: Arc<Exchange>) -> Work<'static>;
}

/// What a cluster is told by the configuration.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Names of streams that are channels of servers (commands, broadcasts): what is published to such a stream stays on
    /// this node, and it is not followed on others.
    pub reserved: Vec<String>,
}

metrics! {
    /// What is exchanged with other nodes.
    pub struct ClusterMetrics {
        /// Messages sent to other nodes.
        cluster_sent_total: Counter,
        /// Messages for other nodes dropped because the link was away or too slow: other nodes' clients miss them.
        cluster_dropped_total: Counter,
        /// Messages that wait to be sent to other nodes.
        cluster_queue_size: Gauge,
        /// Bytes of messages that wait to be sent to other nodes.
        cluster_queue_bytes: Gauge,
        /// Messages from the link, own ones included.
        cluster_received_total: Counter,
        /// Messages of this node that came back and were dropped.
        cluster_own_total: Counter,
        /// Messages from other nodes that came a second time and were dropped.
        cluster_doubles_total: Counter,
        /// Times that messages of another node did not come.
        cluster_gaps_total: Counter,
        /// Messages of other nodes that did not come, as far as it was noticed.
        cluster_missing_total: Counter,
        /// Messages from other nodes dropped because the clients of this node are served too slowly.
        cluster_overflow_total: Counter,
        /// Payloads from the link that were no message.
        failed_broadcast_msg_total: Counter,
        /// Streams that this node follows in the cluster.
        cluster_streams_num: Gauge,
        /// Commands sent to subscribe to streams or to unsubscribe, each for up to 256 of them.
        cluster_subscribe_commands_total: Counter,
    }
}

/// This node's end of the cluster; alone without one.
#[derive(Clone, Default)]
pub struct Cluster(Option<Arc<Exchange>>);

/// What is the same for all media.
pub struct Exchange {
    /// This process.
    pub node: NodeId,
    /// What is to be sent.
    pub outgoing: Outgoing,
    /// What is followed.
    pub streams: Streams,
    /// What has come.
    pub received: Received,
    /// What was counted.
    pub metrics: ClusterMetrics,
    /// One for each batch that is sent.
    pub sending: Turns,
    /// Marks to be published.
    marks: Mutex<VecDeque<Mark>>,
    mark_wanted: Notify,
    settings: Settings,
}

/// The name of the command that is a mark; its payload is the text. See [`Seam`](crate::link::Seam).
const SEAM: &str = "seam";

/// Streams of which the numbers of other nodes are given to another process. Of more, gaps and doubles are not noticed there
/// until each node has published once.
const NUMBERS_MAX: usize = 1 << 17;

/// What this node knows of the cluster, for a process that goes on as the same node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GivenCluster {
    #[serde(default)]
    outgoing: GivenOutgoing,
    #[serde(default)]
    received: GivenArrivals,
    #[serde(default)]
    numbers: Vec<Numbered>,
}

impl Cluster {
    /// A node of a cluster.
    pub fn new(node: NodeId, settings: Settings) -> Cluster {
        Cluster(Some(Arc::new(Exchange {
            node,
            outgoing: Outgoing::new(node),
            streams: Streams::default(),
            received: Received::default(),
            metrics: ClusterMetrics::default(),
            sending: Turns::default(),
            marks: Mutex::default(),
            mark_wanted: Notify::new(),
            settings,
        })))
    }

    /// What it exchanges; none if this node is alone.
    pub fn exchange(&self) -> Option<&Arc<Exchange>> {
        self.0.as_ref()
    }

    /// Tells the other nodes of a publication that has its place. Called under its stream's lock.
    pub fn announce(&self, publication: &Publication) {
        let Some(exchange) = &self.0 else { return };
        if !exchange.is_reserved(&publication.stream) {
            exchange.outgoing.publication(publication.clone(), &exchange.metrics);
        }
    }

    /// Tells the other nodes that sessions are to be sent away.
    pub fn announce_disconnect(&self, disconnect: &RemoteDisconnect) {
        if let Some(exchange) = &self.0 {
            exchange.outgoing.disconnect(disconnect.clone(), &exchange.metrics);
        }
    }

    /// Gives the other nodes of ours a command; `payload` is JSON text.
    pub fn command(&self, name: &'static str, payload: String) {
        if let Some(exchange) = &self.0 {
            exchange.outgoing.command(name, payload, &exchange.metrics);
        }
    }

    /// One more shard follows this stream. Gives its name, for other tables, if it is followed here.
    pub fn follow(&self, stream: &str) -> Option<Arc<str>> {
        let exchange = self.0.as_ref().filter(|exchange| !exchange.is_reserved(stream))?;
        Some(exchange.streams.follow(stream))
    }

    /// One shard less follows it.
    pub fn unfollow(&self, stream: &str) {
        if let Some(exchange) = &self.0 {
            exchange.streams.unfollow(stream);
        }
    }

    /// Calls `then` when what other nodes publish to this stream, which is followed, comes here for certain: at once if it
    /// does or if the link is away, and after [`streams::WAIT_MAX`] in any case.
    pub fn when_subscribed(&self, stream: &str, then: Then) {
        match &self.0 {
            Some(exchange) => exchange.streams.when_subscribed(stream, then),
            None => then(),
        }
    }
}

impl Exchange {
    /// Runs the medium and hands what comes to `incoming`, for as long as the node runs.
    pub async fn run(self: Arc<Self>, medium: Box<dyn Medium>, incoming: Arc<dyn Incoming>) {
        self.streams.tell(&incoming);
        tokio::join!(
            medium.run(Arc::clone(&self)),
            self.received.keep_delivering(&self, &*incoming),
            self.streams.keep_releasing(),
        );
    }

    /// The gauges, brought up to date.
    pub fn measure(&self) -> &ClusterMetrics {
        let (messages, bytes) = self.outgoing.waiting();
        self.metrics.cluster_queue_size.set(messages as i64);
        self.metrics.cluster_queue_bytes.set(bytes as i64);
        self.metrics.cluster_streams_num.set(self.streams.len() as i64);
        &self.metrics
    }

    /// Whether everything that was to be sent is sent or dropped.
    pub fn has_sent_all(&self) -> bool {
        let ended = self.metrics.cluster_sent_total.get() + self.metrics.cluster_dropped_total.get();
        self.outgoing.put_in() == ended
    }

    /// Takes what the medium has received, whatever channel it came by.
    pub fn receive(&self, payload: &[u8]) {
        self.received.take(payload, self);
    }

    /// Everything that it knows of the cluster, while nothing is sent, received, or published.
    pub fn given(&self) -> GivenCluster {
        let (received, numbers) = self.received.given(self);
        GivenCluster { outgoing: self.outgoing.given(), received, numbers }
    }

    /// Goes on with it.
    pub fn take_over(&self, given: GivenCluster) {
        let GivenCluster { outgoing, received, numbers } = given;
        self.outgoing.take_over(outgoing);
        self.received.take_over(received, numbers, self);
    }

    /// Has a mark published, for whoever notes what comes.
    pub fn publish_mark(&self, mark: Mark) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).push_back(mark);
        self.mark_wanted.notify_one();
    }

    /// Waits until a mark is to be published, and gives it.
    async fn wanted_mark(&self) -> String {
        loop {
            let mark = self.marks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let key = self.received.arrivals.with(|queue| queue.seam.key());
            match mark.zip(key) {
                Some((mark, key)) => {
                    return between_nodes::write_command(SEAM, &format!("\"{}\"", key.text(mark)), self.node);
                }
                None => self.mark_wanted.notified().await,
            }
        }
    }

    fn is_reserved(&self, stream: &str) -> bool {
        self.settings.reserved.iter().any(|reserved| reserved == stream)
    }
}
