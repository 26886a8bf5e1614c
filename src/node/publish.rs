//! Publications into every shard. With one node this is all the broker and the cluster there is.

use std::sync::Arc;

use crate::front::{Handover, Publisher};
use crate::hub::StreamHasher;
use crate::metrics;
use crate::model::{Publication, RemoteDisconnect};
use crate::shard::{Inbox, Message};

use super::followers::Followers;

/// Hands publications to the shards of this node that follow their streams.
pub struct ToShards {
    inboxes: Arc<[Arc<Inbox>]>,
    hasher: StreamHasher,
    pub(super) followers: Followers,
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
    pub(super) fn new(inboxes: Arc<[Arc<Inbox>]>, hasher: StreamHasher) -> ToShards {
        ToShards { inboxes, hasher, followers: Followers::default(), metrics: DeliveryMetrics::default() }
    }

    /// Hands a publication over if there is room everywhere; tells whether nobody missed it.
    pub(super) fn try_publish(&self, publication: Publication) -> bool {
        self.metrics.broadcast_msg_total.inc();
        let mut everywhere = true;
        let publication = Arc::new(publication);
        self.followers.for_each(self.hasher.key(&publication.stream), |shard| {
            everywhere &= self.inboxes[usize::from(shard)].try_publish(Arc::clone(&publication));
        });
        everywhere
    }
}

impl Publisher for ToShards {
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
        Box::pin(async move {
            for publication in publications.into_iter().map(Arc::new) {
                self.metrics.broadcast_msg_total.inc();
                let mut shards = Vec::new();
                self.followers.for_each(self.hasher.key(&publication.stream), |shard| shards.push(shard));
                for shard in shards {
                    self.inboxes[usize::from(shard)].publish(Arc::clone(&publication)).await;
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
