//! A relay that stops, and goes on in another program that this process runs then: with the same memory, the same places in
//! every stream, and the same links, of which the children see a pause.

use std::collections::HashMap;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::broker::{BrokerPart, LivingSession, LocalBroker, LocalSnapshot};
use crate::config::Config;
use crate::link::local::messages::{LINK_FORMAT, ToChild, ToParent, Welcome};
use crate::link::local::{Asked, Ended, Link, Unfinished};
use crate::model::Now;
use crate::node::settings;
use crate::os::clock::Clock;

use super::state::{GivenState, State};
use super::{ChildLink, Relay, RelayMetrics, STALLED_AFTER, relays};

/// What a relay goes on with, beside what its broker keeps and what its links have begun.
#[derive(Serialize, Deserialize)]
pub struct GivenRelay {
    welcome: Welcome,
    state: GivenState,
    /// Sessions that live in the children.
    living: Vec<LivingSession>,
}

impl GivenRelay {
    /// The numbers of the children that have a link, lowest first.
    pub fn numbers(&self) -> impl Iterator<Item = u16> {
        self.state.numbers()
    }
}

/// A link that stands still.
pub struct StoppedLink(u16, Link<ToChild, ToParent>);

impl StoppedLink {
    /// The child's number in the relay.
    pub fn number(&self) -> u16 {
        self.0
    }
}

impl Relay {
    /// Bytes that wait to be read by the children, and how many of these have a link.
    pub fn waiting(&self) -> (usize, usize) {
        let (children, _, bytes) = self.state().amounts();
        (bytes, children)
    }

    /// Has the life of each link end with [`Ended::Stopped`]. What the links have is to be taken when all have ended: until then
    /// what one child says may be for another one. Sweeping must have ended before.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether a child has not said yet that it has what another one had.
    pub fn is_changing(&self) -> bool {
        self.state().is_changing()
    }

    /// What time it is here.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// What the broker keeps. From then on it is noted what changes.
    pub fn snapshot(&self) -> LocalSnapshot<'_> {
        self.broker.snapshot()
    }

    /// What has changed since [`snapshot`](Self::snapshot), which began at `since`.
    pub fn changes(&self, since: Now) -> BrokerPart {
        self.broker.changes(since)
    }

    /// Nobody wants to know what changes any more.
    pub fn forget_changes(&self) {
        self.broker.forget_changes();
    }

    /// All the rest.
    pub fn export(&self) -> GivenRelay {
        let state = self.state();
        let living = self.broker.sessions().map(|sessions| sessions.living());
        GivenRelay { welcome: self.welcome.clone(), state: state.export(), living: living.unwrap_or_default() }
    }

    /// A broker that what another relay kept can be put into.
    pub fn broker(config: &Config) -> LocalBroker {
        LocalBroker::new(settings::broker(config).filter(|_| relays(config)))
    }

    /// Goes on with a broker that has everything, and with the links; `links` has for each child its socket and what was begun
    /// on it.
    ///
    /// # Errors
    /// This configuration wants something else, or something is missing.
    pub fn import(
        config: &Config,
        broker: LocalBroker,
        given: GivenRelay,
        mut links: HashMap<u16, (UnixStream, Unfinished)>,
    ) -> Result<(Arc<Relay>, Vec<StoppedLink>), String> {
        let GivenRelay { welcome, state, living } = given;
        if welcome.relays != relays(config) || welcome.remembers != broker.sessions().is_some() {
            return Err("--broker and --pubsub of several processes can be changed by a new start only".to_owned());
        }
        if welcome.format != LINK_FORMAT {
            return Err(format!("the processes speak format {}, and {LINK_FORMAT} is understood here", welcome.format));
        }
        let mut stopped = Vec::new();
        let sender = |number| {
            let (socket, unfinished) =
                links.remove(&number).ok_or_else(|| format!("the link of a process is missing ({number})"))?;
            let link = Link::go_on(socket, unfinished, Some(STALLED_AFTER));
            let sender = link.sender();
            stopped.push(StoppedLink(number, link));
            Ok(sender)
        };
        let state = State::import(state, welcome.stream_seed, sender)?;
        if let Some(sessions) = broker.sessions() {
            sessions.take_over_living(living);
        }
        let clock = Clock::since(welcome.clock_origin_usec);
        let (metrics, stop) = (RelayMetrics::default(), watch::Sender::new(false));
        Ok((Arc::new(Relay { welcome, clock, broker, metrics, state: Mutex::new(state), stop }), stopped))
    }

    /// Has a link go on; as [`Relay::add`].
    pub fn go_on(
        self: &Arc<Self>,
        StoppedLink(number, link): StoppedLink,
        asked: Arc<dyn Asked>,
    ) -> (ChildLink, impl Future<Output = Ended<ToChild>> + Send + use<>) {
        self.live(number, link, asked)
    }
}
