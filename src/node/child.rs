//! A process that is one of several: its end of the link to the parent.

use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::broker::{Broker, ParentBroker};
use crate::link::local::messages::{ToChild, ToParent, Welcome};
use crate::link::local::{self, Asked, Link, LinkLost, Lost, Sender};

use super::observe::Observer;
use super::publish::Pipeline;

/// The link to the parent, before anything runs on it.
pub struct ParentEnd {
    /// What all children have alike.
    pub(super) welcome: Welcome,
    link: Link<ToParent, ToChild>,
}

/// The same while the node runs.
pub(super) struct RunningParentEnd {
    pipeline: Weak<Pipeline>,
    sender: Sender<ToParent>,
    /// Closed when the link is lost.
    running: watch::Receiver<()>,
}

impl ParentEnd {
    /// Hears over an inherited socket what the parent says first. Waits for it, at most half a minute.
    ///
    /// # Errors
    /// It does not come, or is something else.
    pub fn greet(mut socket: UnixStream) -> Result<ParentEnd, LinkLost> {
        let welcome = local::welcome(&mut socket)?;
        // What comes next waits in the socket. A parent that is slow is still the only one.
        Ok(ParentEnd { welcome, link: Link::new(socket, None) })
    }

    pub(super) fn broker(&self, sessions_ttl: Duration) -> ParentBroker {
        ParentBroker::new(self.link.sender(), &self.welcome, sessions_ttl)
    }

    /// Puts the link onto the runtime.
    pub(super) fn start(
        self,
        runtime: &Runtime,
        pipeline: &Arc<Pipeline>,
        observer: &Arc<Observer>,
    ) -> RunningParentEnd {
        let sender = self.link.sender();
        let (still, running) = watch::channel(());
        let end = RunningParentEnd { pipeline: Arc::downgrade(pipeline), sender, running };
        let (pipeline, asked) = (Arc::clone(pipeline), Arc::new(Answers(Arc::clone(observer))));
        runtime.spawn(async move {
            let heard = |message| {
                if let Broker::Parent(parent) = &pipeline.broker {
                    parent.heard(message, &*pipeline, pipeline.clock.now());
                }
            };
            let why = self.link.run(asked, heard).await;
            if let Broker::Parent(parent) = &pipeline.broker {
                parent.lost();
            }
            tracing::warn!(%why, "the link to the parent process is lost; this process sends its clients away and ends");
            drop(still);
        });
        end
    }
}

impl RunningParentEnd {
    /// Asks the parent. It has as long as it likes; whoever gives up drops this.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn request(&self, name: &str, body: Vec<u8>) -> Result<Vec<u8>, Lost> {
        self.sender.request(name, body).await
    }

    /// Waits until the link is lost.
    pub fn until_lost(&self) -> impl Future<Output = ()> + use<> {
        let mut running = self.running.clone();
        async move { while running.changed().await.is_ok() {} }
    }

    /// Waits until everything that was to be said is said, or the link is lost.
    pub async fn said_all(&self) {
        while self.pipeline.strong_count() > 0 && self.sender.waiting_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Answers what the parent asks of this process.
struct Answers(Arc<Observer>);

impl Asked for Answers {
    fn asked(self: Arc<Self>, _name: Box<str>, _body: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        Box::pin(async { Vec::new() })
    }
}
