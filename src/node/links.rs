//! The links of this node to Redis and NATS: what is kept over them, and the thread "links" on which all of it runs. A node
//! without any has no such thread.

use std::io;
use std::sync::Arc;

use tokio::runtime::Runtime;

use crate::broadcast::PublicationSink;
use crate::cluster::{Cluster, Incoming, Medium, Work};
use crate::config::Config;
use crate::link::LinkState;
use crate::model::{NodeId, Publication, RemoteDisconnect};
use crate::proto::publication::between_nodes::Origin;

use super::StartError;
use super::publish::Pipeline;
use super::threads::RuntimeThread;

/// What is to run on the thread.
#[derive(Default)]
pub(super) struct Links {
    /// This node's end of the cluster.
    pub cluster: Cluster,
    /// How each link is doing.
    pub states: Vec<Arc<LinkState>>,
    medium: Option<Box<dyn Medium>>,
}

impl Links {
    /// What the configuration asks for. Nothing is connected yet.
    pub fn new(_config: &Config) -> Result<Links, StartError> {
        Ok(Links::default())
    }

    /// The runtime, where there is anything to run.
    pub fn runtime(&self) -> io::Result<Option<Runtime>> {
        self.medium.is_some().then(RuntimeThread::runtime).transpose()
    }

    /// Puts everything onto the runtime and starts its thread.
    pub fn start(self, runtime: Option<Runtime>, pipeline: &Arc<Pipeline>) -> io::Result<Option<RuntimeThread>> {
        let Some(runtime) = runtime else { return Ok(None) };
        if let (Some(exchange), Some(medium)) = (self.cluster.exchange(), self.medium) {
            runtime.spawn(Arc::clone(exchange).run(medium, Arc::clone(pipeline) as Arc<_>));
        }
        RuntimeThread::start("links", runtime).map(Some)
    }
}

impl Incoming for Pipeline {
    fn publication(&self, publication: Publication, _: Option<Origin>, own: bool) -> Work<'_> {
        Box::pin(async move {
            // This node's clients had it when it was published.
            if !own {
                // Fails when the node ends, and then nobody is there to have it.
                let _ = self.publish_here(vec![publication]).await;
            }
        })
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) {
        drop(self.disconnect_here(disconnect));
    }

    fn command(&self, name: &str, _payload: &str, node: NodeId) {
        tracing::debug!(name, %node, "a command of another node is not known");
    }
}
