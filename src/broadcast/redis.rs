//! Broadcasts by pub/sub of Redis (adapter `redis`): every node listens to one channel and serves its own clients.
//!
//! What is published while the link is away is lost, as it is for everybody who listens to pub/sub.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::RedisResult;

use super::{Broadcast, BroadcastMetrics, Fanout, Source};
use crate::link::redis::{ANSWER_TIMEOUT, Redis, closed, connect_pubsub, in_time, until_silent};
use crate::link::{LinkState, Mark, keep};

/// The source.
pub struct RedisSource {
    /// Where it is.
    pub redis: Arc<Redis>,
    /// How the link is doing.
    pub state: Arc<LinkState>,
    /// What to listen to (`--redis-channel`).
    pub channel: String,
    /// How often sentinels are asked for the master.
    pub ask_sentinels_every: Duration,
    /// What was heard.
    pub fanout: Arc<Fanout>,
}

impl RedisSource {
    /// Listens for as long as the node runs.
    pub async fn run(self, broadcast: Arc<Broadcast>) {
        let listen = || async { self.listen(broadcast.metrics()).await.err().unwrap_or_else(closed) };
        tokio::join!(keep(&self.state, listen), self.fanout.keep_delivering(Source::Redis, &broadcast));
    }

    /// Listens until something fails.
    async fn listen(&self, metrics: &BroadcastMetrics) -> RedisResult<()> {
        let server = self.redis.server().await?;
        let (mut sink, mut messages) = connect_pubsub(&server).await?.split();
        in_time(ANSWER_TIMEOUT, sink.subscribe(&self.channel)).await?;
        self.state.came_up();
        let read = async {
            while let Some(message) = messages.next().await {
                self.fanout.push(message.get_payload_bytes(), metrics);
            }
            Err::<(), _>(closed())
        };
        let silent = async { Err::<(), _>(until_silent(sink).await) };
        let replaced = async { Err::<(), _>(self.redis.until_replaced(&server, self.ask_sentinels_every).await) };
        tokio::try_join!(read, silent, replaced, self.mark()).map(|((), (), (), ())| ())
    }

    /// Publishes marks where they are wanted. They come back by the channel.
    async fn mark(&self) -> RedisResult<()> {
        for mark in Mark::BOTH {
            let mark = self.fanout.wanted_mark(mark).await;
            let mut publish = redis::cmd("PUBLISH");
            let mut connection = self.redis.connection(ANSWER_TIMEOUT).await?;
            publish.arg(&self.channel).arg(mark).exec_async(&mut connection).await?;
        }
        std::future::pending().await
    }
}
