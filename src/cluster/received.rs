//! What has come from other nodes and waits for the shards.
//!
//! The link is read as fast as it gives, because a server beside us cuts off who reads too slowly. What the shards cannot
//! take waits here, with a bound; what is over it is dropped and counted.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::streams::Seen;
use super::{Exchange, Incoming};
use crate::model::NodeId;
use crate::proto::publication::between_nodes::{self, NodeMessage};

/// Bytes of messages that wait for the shards.
const BYTES_MAX: usize = 8 << 20;

/// What a message costs beside its text.
const MESSAGE_BYTES: usize = 256;

/// The queue.
#[derive(Default)]
pub struct Received {
    /// Held to put one in or to take one out.
    queue: Mutex<Queue>,
    came: Notify,
}

#[derive(Default)]
struct Queue {
    /// With the bytes of each.
    messages: VecDeque<(NodeMessage, usize, bool)>,
    bytes: usize,
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
        let mut queue = self.queue();
        // One that is larger than all of it passes alone.
        if queue.bytes + bytes > BYTES_MAX && queue.bytes > 0 {
            drop(queue);
            metrics.cluster_overflow_total.inc();
            return;
        }
        queue.bytes += bytes;
        queue.messages.push_back((message, bytes, own));
        drop(queue);
        self.came.notify_one();
    }

    /// Hands over what comes, one after the other.
    pub(super) async fn keep_delivering(&self, incoming: &dyn Incoming) {
        loop {
            let Some((message, bytes, own)) = self.pop() else {
                self.came.notified().await;
                continue;
            };
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

    fn pop(&self) -> Option<(NodeMessage, usize, bool)> {
        self.queue().messages.pop_front()
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
