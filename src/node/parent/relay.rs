//! What makes several processes one server: one order for every stream, and one memory.
//!
//! The children are to the relay what the shards are to a node.

use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::link::local::messages::{ToChild, ToParent, Welcome};
use crate::link::local::{Asked, Link, LinkLost, Lost, Sender};
use crate::telemetry::Families;

/// A child that reads nothing for so long is of no use to its clients either.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// The relay of one parent.
pub struct Relay {
    welcome: Welcome,
}

/// The link to one child.
#[derive(Clone)]
pub struct ChildLink {
    sender: Sender<ToChild>,
}

impl ChildLink {
    /// Asks the child. It has as long as it likes; whoever gives up drops this.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn request(&self, name: &str, body: Vec<u8>) -> Result<Vec<u8>, Lost> {
        self.sender.request(name, body).await
    }
}

impl Relay {
    /// A relay without children. To be called once, before the first child is started.
    pub fn new(_config: &Config) -> Arc<Relay> {
        Arc::new(Relay {
            welcome: Welcome {
                stream_seed: rand::random(),
                clock_origin_usec: 0,
                resume_key: "".into(),
                relays: true,
                remembers: false,
            },
        })
    }

    /// Has a child, over the parent's end of its link. The future is the link's life: it is to be run on the parent's runtime and
    /// ends with the reason when the link is lost, whereupon the child is to be killed if it lives. `asked` answers its requests.
    ///
    /// # Errors
    /// The socket cannot be used by the runtime that this is called in.
    pub fn add(
        self: &Arc<Self>,
        socket: UnixStream,
        asked: Arc<dyn Asked>,
    ) -> io::Result<(ChildLink, impl Future<Output = LinkLost> + Send + use<>)> {
        let link = Link::<ToChild, ToParent>::new(socket, Some(STALLED_AFTER))?;
        let sender = link.sender();
        sender.put(&ToChild::Welcome(self.welcome.clone()));
        Ok((ChildLink { sender }, async move { link.run(asked, |_| {}).await }))
    }

    /// Forgets what is over, for as long as the runtime runs that this is called in.
    pub fn keep_sweeping(self: &Arc<Self>) {}

    /// What was counted and is kept here, for the sum over all processes.
    pub fn collect(&self, _families: &mut Families) {}
}
