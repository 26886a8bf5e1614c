//! Redis as what nodes tell each other by: its pub/sub, one channel for each stream and one for commands
//! (`contracts/pubsub-cluster.md` section 3).
//!
//! Two connections to one server: one that subscribes, one that publishes. In a Redis Cluster any node will do, because
//! the nodes pass on to each other what is published. When one of the connections fails, both are made anew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{RedisError, RedisResult};

use super::{Exchange, Medium, Sent, Work};
use crate::link::redis::{
    ANSWER_TIMEOUT, PING_EVERY, Redis, closed, connect, connect_pubsub, in_time, is_of_link, until_silent,
};
use crate::link::{LinkState, keep};

/// Channels of one SUBSCRIBE. As many as AnyCable takes: a command of some KB, which holds Redis up for well under a
/// millisecond.
const CHANNELS_A_COMMAND: usize = 256;

/// Messages and bytes that are published at once and waited for.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// The medium.
pub struct RedisMedium {
    /// Where it is.
    pub redis: Arc<Redis>,
    /// How the link is doing.
    pub state: Arc<LinkState>,
    /// Begins the name of every channel.
    pub prefix: String,
    /// The channel for commands, without the prefix.
    pub commands: String,
    /// How often sentinels are asked for the master.
    pub ask_sentinels_every: Duration,
}

impl Medium for RedisMedium {
    fn run(self: Box<Self>, exchange: Arc<Exchange>) -> Work<'static> {
        Box::pin(async move {
            let run = || async {
                let connected = Connected { medium: &self, exchange: &exchange, unsure: Mutex::default() };
                let why = connected.run().await.err();
                exchange.streams.went_down();
                connected.keep_what_is_unsure();
                why.unwrap_or_else(closed)
            };
            keep(&self.state, run).await;
        })
    }
}

/// One life of the link.
struct Connected<'a> {
    medium: &'a RedisMedium,
    exchange: &'a Exchange,
    /// What was sent and not acknowledged yet.
    unsure: Mutex<Vec<Sent>>,
}

impl Connected<'_> {
    /// Runs until something fails.
    async fn run(&self) -> RedisResult<()> {
        let server = self.medium.redis.server().await?;
        let publishing = connect(&server, ANSWER_TIMEOUT).await?;
        let (mut sink, stream) = connect_pubsub(&server).await?.split();
        in_time(ANSWER_TIMEOUT, sink.subscribe(self.channel(&self.medium.commands))).await?;
        self.medium.state.came_up();
        let ends = tokio::try_join!(
            self.read(stream),
            self.subscribe(sink.clone()),
            self.mark(publishing.clone()),
            self.publish(publishing),
            async { Err(until_silent(sink).await) },
            async { Err(self.medium.redis.until_replaced(&server, self.medium.ask_sentinels_every).await) },
        );
        ends.map(|((), (), (), (), (), ())| ())
    }

    fn channel(&self, name: &str) -> String {
        format!("{}{name}", self.medium.prefix)
    }

    async fn read(&self, mut stream: PubSubStream) -> RedisResult<()> {
        while let Some(message) = stream.next().await {
            self.exchange.receive(message.get_payload_bytes());
        }
        Err(closed())
    }

    /// Subscribes to everything that is followed, and then to what changes.
    async fn subscribe(&self, mut sink: PubSubSink) -> RedisResult<()> {
        let Exchange { streams, metrics, .. } = self.exchange;
        let mut wanted = streams.came_up();
        loop {
            for chunk in wanted.chunks(CHANNELS_A_COMMAND) {
                in_time(ANSWER_TIMEOUT, sink.subscribe(self.channels(chunk))).await?;
                metrics.cluster_subscribe_commands_total.inc();
                streams.subscribed(chunk);
            }
            let changes = streams.changes().await;
            for chunk in changes.unsubscribe.chunks(CHANNELS_A_COMMAND) {
                in_time(ANSWER_TIMEOUT, sink.unsubscribe(self.channels(chunk))).await?;
                metrics.cluster_subscribe_commands_total.inc();
            }
            wanted = changes.subscribe;
        }
    }

    fn channels(&self, streams: &[Arc<str>]) -> Vec<String> {
        streams.iter().map(|stream| self.channel(stream)).collect()
    }

    /// Publishes marks, which come back to this node as to all others.
    async fn mark(&self, mut connection: MultiplexedConnection) -> RedisResult<()> {
        loop {
            let mark = self.exchange.wanted_mark().await;
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(self.channel(&self.medium.commands)).arg(mark).exec_async(&mut connection).await?;
        }
    }

    async fn publish(&self, mut connection: MultiplexedConnection) -> RedisResult<()> {
        let Exchange { outgoing, metrics, sending, .. } = self.exchange;
        loop {
            if tokio::time::timeout(PING_EVERY, outgoing.wait()).await.is_err() {
                redis::cmd("PING").exec_async(&mut connection).await?;
                continue;
            }
            let _turn = sending.next().await;
            let batch = outgoing.take(BATCH, BATCH_BYTES, metrics);
            if batch.is_empty() {
                continue;
            }
            let mut pipeline = redis::pipe();
            pipeline.ignore_errors();
            for Sent { stream, payload } in &batch {
                let channel = self.channel(stream.as_deref().unwrap_or(&self.medium.commands));
                pipeline.cmd("PUBLISH").arg(channel).arg(payload);
            }
            let sent = batch.len();
            *self.unsure.lock().unwrap_or_else(PoisonError::into_inner) = batch;
            let answers: Vec<RedisResult<u64>> = pipeline.query_async(&mut connection).await?;
            let refused: Vec<RedisError> = answers.into_iter().filter_map(Result::err).collect();
            if let Some(error) = refused.iter().find(|error| is_of_link(error)) {
                return Err(error.clone());
            }
            self.unsure.lock().unwrap_or_else(PoisonError::into_inner).clear();
            metrics.cluster_sent_total.add((sent - refused.len()) as u64);
            metrics.cluster_dropped_total.add(refused.len() as u64);
            if let Some(error) = refused.first() {
                tracing::warn!(%error, messages = refused.len(), "Redis refuses messages for other nodes: they are dropped");
            }
        }
    }

    fn keep_what_is_unsure(self) {
        self.exchange.outgoing.put_back(self.unsure.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
}
