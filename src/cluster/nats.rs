//! NATS as what nodes tell each other by: a subject for each stream and one for commands
//! (`contracts/pubsub-cluster.md` section 4).
//!
//! One connection does it all. The server carries out what it is told in order, so its answer to one PING says that all
//! subscriptions or messages before it are there. What this connection publishes does not come back to it.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Exchange, Medium, Sent, Work};
use crate::link::nats::{Client, Connection, Names, NatsError, Outgoing, Refused, Servers, publish_apart};
use crate::link::{LinkState, keep};
use crate::model::NameHasher;

/// Subscriptions that are acknowledged together.
const SUBJECTS_AT_ONCE: usize = 256;

/// Messages and bytes that are published at once and waited for.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// The number of the subscription to commands. That of a stream is a hash of its name, so that nothing has to be kept to
/// end it: that two of a million streams have one number is as likely as 1 to 30 million, and then one of them is not
/// subscribed to.
const COMMANDS_SID: u64 = 1;

/// The medium.
pub struct NatsMedium {
    /// Where it is.
    pub servers: Arc<Servers>,
    /// How the link is doing.
    pub state: Arc<LinkState>,
    /// The subjects of streams.
    pub names: Names,
    /// The subject for commands.
    pub commands: String,
}

impl Medium for NatsMedium {
    fn run(self: Box<Self>, exchange: Arc<Exchange>) -> Work<'static> {
        Box::pin(async move {
            let hasher = NameHasher::default();
            let run = || async {
                let connected = Connected { medium: &self, exchange: &exchange, hasher, unsure: Mutex::default() };
                let why = connected.run().await;
                exchange.streams.went_down();
                connected.keep_what_is_unsure();
                why
            };
            keep(&self.state, run).await;
        })
    }
}

/// One life of the link.
struct Connected<'a> {
    medium: &'a NatsMedium,
    exchange: &'a Exchange,
    hasher: NameHasher,
    /// What was sent and not acknowledged yet.
    unsure: Mutex<Arc<Vec<Sent>>>,
}

impl Connected<'_> {
    /// Runs until the connection is lost.
    async fn run(&self) -> NatsError {
        let connection = match Connection::open(&self.medium.servers).await {
            Ok(connection) => connection,
            Err(why) => return why,
        };
        let client = connection.client();
        let work = async {
            // They end when the connection does, which knows better why.
            let _ = tokio::try_join!(self.subscribe(&client), self.publish(&client), self.mark());
            std::future::pending().await
        };
        tokio::select! {
            why = connection.run(|message| self.exchange.receive(&message.payload)) => why,
            never = work => never,
        }
    }

    /// Subscribes to everything that is followed, and then to what changes.
    async fn subscribe(&self, client: &Client) -> Result<(), Refused> {
        client.subscribe(&self.medium.commands, COMMANDS_SID);
        client.flush().await?;
        self.medium.state.came_up();
        let Exchange { streams, metrics, .. } = self.exchange;
        let mut wanted = streams.came_up();
        loop {
            for chunk in wanted.chunks(SUBJECTS_AT_ONCE) {
                for stream in chunk {
                    client.subscribe(&self.medium.names.subject(stream), self.sid(stream));
                }
                client.flush().await?;
                metrics.cluster_subscribe_commands_total.inc();
                streams.subscribed(chunk);
            }
            let changes = streams.changes().await;
            for chunk in changes.unsubscribe.chunks(SUBJECTS_AT_ONCE) {
                chunk.iter().for_each(|stream| client.unsubscribe(self.sid(stream)));
                client.room().await?;
                metrics.cluster_subscribe_commands_total.inc();
            }
            wanted = changes.subscribe;
        }
    }

    fn sid(&self, stream: &str) -> u64 {
        self.hasher.hash_one(stream).max(COMMANDS_SID + 1)
    }

    async fn publish(&self, client: &Client) -> Result<(), Refused> {
        let Exchange { outgoing, metrics, sending, .. } = self.exchange;
        loop {
            outgoing.wait().await;
            let _turn = sending.next().await;
            let batch = Arc::new(outgoing.take(BATCH, BATCH_BYTES, metrics));
            // Kept first: what follows may be given up at each wait.
            self.set_unsure(Arc::clone(&batch));
            for sent in &*batch {
                self.publish_one(client, &self.subject(sent), &sent.payload).await?;
            }
            client.flush().await?;
            self.set_unsure(Arc::default());
        }
    }

    /// Publishes marks.
    async fn mark(&self) -> Result<(), Refused> {
        loop {
            let mark = self.exchange.wanted_mark().await;
            if let Err(error) = publish_apart(&self.medium.servers, &self.medium.commands, mark.as_bytes()).await {
                tracing::debug!(%error, "a mark was not published");
            }
        }
    }

    fn subject(&self, sent: &Sent) -> String {
        sent.stream.as_deref().map_or_else(|| self.medium.commands.clone(), |stream| self.medium.names.subject(stream))
    }

    async fn publish_one(&self, client: &Client, subject: &str, payload: &str) -> Result<(), Refused> {
        let metrics = &self.exchange.metrics;
        let message = Outgoing { subject, payload: payload.as_bytes(), ..Outgoing::default() };
        client.room().await?;
        match client.publish(&message) {
            Err(why @ Refused::TooLong(_)) => {
                metrics.cluster_dropped_total.inc();
                tracing::warn!(bytes = payload.len(), "a message for other nodes is dropped: {why}");
            }
            Err(why) => return Err(why),
            Ok(()) => metrics.cluster_sent_total.inc(),
        }
        Ok(())
    }

    fn set_unsure(&self, batch: Arc<Vec<Sent>>) {
        *self.unsure.lock().unwrap_or_else(PoisonError::into_inner) = batch;
    }

    fn keep_what_is_unsure(self) {
        let unsure = self.unsure.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.exchange.outgoing.put_back(Arc::unwrap_or_clone(unsure));
    }
}
