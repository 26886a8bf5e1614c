//! Broadcasts by NATS (adapter `nats`): every node listens to one subject and serves its own clients.
//!
//! What is published while the link is away is lost, as it is for everybody who listens there.

use std::sync::Arc;

use super::{Broadcast, BroadcastMetrics, Fanout, Source};
use crate::link::nats::{Connection, NatsError, Servers, publish_apart};
use crate::link::{LinkState, MARKS_APART, Mark, keep};

/// The number of the subscription.
const SID: u64 = 1;

/// The source.
pub struct NatsSource {
    /// Where it is.
    pub servers: Arc<Servers>,
    /// How the link is doing.
    pub state: Arc<LinkState>,
    /// What to listen to (`--nats-channel`).
    pub subject: String,
    /// What was heard.
    pub fanout: Arc<Fanout>,
}

impl NatsSource {
    /// Listens for as long as the node runs.
    pub async fn run(self, broadcast: Arc<Broadcast>) {
        let listen = || self.listen(broadcast.metrics());
        tokio::join!(keep(&self.state, listen), self.fanout.keep_delivering(Source::Nats, &broadcast));
    }

    /// Listens until the connection is lost.
    async fn listen(&self, metrics: &BroadcastMetrics) -> NatsError {
        let connection = match Connection::open(&self.servers).await {
            Ok(connection) => connection,
            Err(why) => return why,
        };
        let client = connection.client();
        client.subscribe(&self.subject, SID);
        let ready = async {
            if client.flush().await.is_ok() {
                self.state.came_up();
                self.mark().await;
            }
            // The connection knows better when it ends, and why.
            std::future::pending().await
        };
        tokio::select! {
            why = connection.run(|message| self.fanout.push(&message.payload, metrics)) => why,
            never = ready => never,
        }
    }

    /// Publishes marks where they are wanted.
    async fn mark(&self) {
        for mark in Mark::BOTH {
            let mark = self.fanout.wanted_mark(mark).await;
            while let Err(error) = publish_apart(&self.servers, &self.subject, mark.as_bytes()).await {
                tracing::debug!(%error, "a mark was not published");
                tokio::time::sleep(MARKS_APART).await;
            }
        }
    }
}
