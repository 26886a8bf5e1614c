//! Publications into every shard. With one node this is all the broker and the cluster there is.

use std::sync::Arc;

use crate::http::{Handover, Publisher};
use crate::metrics;
use crate::model::{Publication, RemoteDisconnect};
use crate::shard::{Inbox, Message};

/// Hands publications to all shards of this node. Which of them has subscribers only the shard knows: asking would
/// cost a lock, and a shard without any drops it after one look.
pub struct ToShards {
    inboxes: Arc<[Arc<Inbox>]>,
    pub(super) metrics: DeliveryMetrics,
}

metrics! {
    /// What goes to the shards.
    pub struct DeliveryMetrics {
        /// Publications handled by this node, whether or not they had subscribers; remote disconnects count too.
        broadcast_msg_total: Counter,
    }
}

impl ToShards {
    pub(super) fn new(inboxes: Arc<[Arc<Inbox>]>) -> ToShards {
        ToShards { inboxes, metrics: DeliveryMetrics::default() }
    }

    /// Hands a publication over if there is room everywhere; tells whether nobody missed it.
    pub(super) fn try_publish(&self, publication: &Arc<Publication>) -> bool {
        self.metrics.broadcast_msg_total.inc();
        let mut everywhere = true;
        for inbox in self.inboxes.iter() {
            everywhere &= inbox.try_publish(Arc::clone(publication));
        }
        everywhere
    }
}

impl Publisher for ToShards {
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
        Box::pin(async move {
            for publication in publications.into_iter().map(Arc::new) {
                self.metrics.broadcast_msg_total.inc();
                for inbox in self.inboxes.iter() {
                    inbox.publish(Arc::clone(&publication)).await;
                }
            }
            Ok(())
        })
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        self.metrics.broadcast_msg_total.inc();
        for inbox in self.inboxes.iter() {
            inbox.put(Message::Disconnect(disconnect.clone()));
        }
        Box::pin(async { Ok(()) })
    }
}
