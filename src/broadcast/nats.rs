//! Broadcasts by NATS (adapter `nats`): every node listens to one subject and serves its own clients.
//!
//! What is published while the link is away is lost, as it is for everybody who listens there.

use std::sync::Arc;

use super::{Broadcast, Fanout, Source};
use crate::link::nats::{Connection, NatsError, Servers};
use crate::link::{LinkState, keep};

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
}

impl NatsSource {
    /// Listens for as long as the node runs.
    pub async fn run(self, broadcast: Arc<Broadcast>) {
        let fanout = Fanout::new(Source::Nats, broadcast);
        tokio::join!(keep(&self.state, || self.listen(&fanout)), fanout.keep_delivering());
    }

    /// Listens until the connection is lost.
    async fn listen(&self, fanout: &Fanout) -> NatsError {
        let connection = match Connection::open(&self.servers).await {
            Ok(connection) => connection,
            Err(why) => return why,
        };
        let client = connection.client();
        client.subscribe(&self.subject, SID);
        let ready = async {
            if client.flush().await.is_ok() {
                self.state.came_up();
            }
            // The connection knows better when it ends, and why.
            std::future::pending().await
        };
        tokio::select! {
            why = connection.run(|message| fanout.push(&message.payload)) => why,
            never = ready => never,
        }
    }
}
