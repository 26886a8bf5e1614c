//! The cluster: other nodes that have clients of the same app.
//!
//! It is told of everything that enters at this node and has its place: each publication, while its stream's lock is
//! held, so that other nodes get a stream in the same order, and each remote disconnect. What comes from other nodes
//! does not come through here again. Telling must not wait: a cluster has a queue of its own, with a bound.
//!
//! There is no cluster yet: a node is alone, and this tells nobody.

use crate::model::{Publication, RemoteDisconnect};

/// The other nodes.
#[derive(Debug, Default)]
pub enum Cluster {
    /// There are none.
    #[default]
    Alone,
}

impl Cluster {
    /// Tells the other nodes of a publication that has its place.
    pub fn announce(&self, _publication: &Publication) {
        match self {
            Cluster::Alone => {}
        }
    }

    /// Tells the other nodes that sessions are to be sent away.
    pub fn announce_disconnect(&self, _disconnect: &RemoteDisconnect) {
        match self {
            Cluster::Alone => {}
        }
    }
}
