//! What makes several processes one server: one order for every stream, one memory, one bound.
//!
//! The children are to the relay what the shards are to a node, and it does with them what [`Pipeline`] does with shards: the
//! broker gives a publication its place, and the children that follow its stream get it before the next one of that stream has
//! its own. It is written down once, and the links share the bytes. Of its share of the bound each child gives back its part
//! when its shards have delivered it; a child that is lost gives back all.
//!
//! What a child says is carried out at once and in order, except that publications wait while there is no room. They wait here,
//! with the app's requests in the children, so whatever else the child says is heard meanwhile.
//!
//! [`Pipeline`]: crate::node::publish::Pipeline

mod change;
mod renew;
mod state;

#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::broker::{LocalBroker, MemorySettings, SWEEPS};
use crate::config::{BrokerKind, Config, PubSub};
use crate::link::local::messages::{LINK_FORMAT, ToChild, ToParent, Welcome};
use crate::link::local::{Asked, Ended, Link, Lost, Sender};
use crate::metrics;
use crate::os::clock::{self, Clock};
use crate::telemetry::{Collect, Families};

use crate::node::processes::{self, Order};
use crate::node::publish::SWEEP_ALL;
use crate::node::settings;
pub use renew::GivenRelay;
use state::State;

/// A child that reads nothing for so long is of no use to its clients either.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// The relay of one parent.
pub struct Relay {
    welcome: Welcome,
    clock: Clock,
    broker: LocalBroker,
    metrics: RelayMetrics,
    /// Taken for what one message of a child comes to. The broker's locks are taken inside.
    state: Mutex<State>,
    /// Whether the links are to stop.
    stop: watch::Sender<bool>,
}

metrics! {
    /// What the parent of several processes counts.
    pub struct RelayMetrics {
        /// Publications handled by this node, whether or not they had subscribers; remote disconnects count too.
        broadcast_msg_total: Counter,
        /// Whispers dropped because too many publications waited to be delivered.
        whispers_dropped_total: Counter,
        /// Processes that the parent passes publications to.
        relay_processes_num: Gauge,
        /// Publications that wait in the parent because too many are not delivered yet.
        relay_waiting_num: Gauge,
        /// Bytes that wait in the parent to be read by the processes.
        relay_queue_bytes: Gauge,
        /// Messages from processes that the parent could not make sense of.
        relay_refused_total: Counter,
    }
}

/// The link to one child.
#[derive(Clone)]
pub struct ChildLink {
    sender: Sender<ToChild>,
    number: u16,
}

impl ChildLink {
    /// The child's number in the relay.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Has the child do something. It has as long as it likes; whoever gives up drops this.
    ///
    /// # Errors
    /// The link is lost.
    pub async fn request_order(self, order: &Order) -> Result<Vec<u8>, Lost> {
        self.request("", processes::write(order)).await
    }

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
    pub fn new(config: &Config) -> Arc<Relay> {
        let relays = relays(config);
        Relay::with_broker(settings::broker(config).filter(|_| relays), relays)
    }

    fn with_broker(memory: Option<MemorySettings>, relays: bool) -> Arc<Relay> {
        let drawn: [u64; 4] = rand::random();
        let clock_origin_usec = clock::machine_usec();
        let stream_seed = rand::random();
        Arc::new(Relay {
            welcome: Welcome {
                format: LINK_FORMAT,
                stream_seed,
                clock_origin_usec,
                resume_key: format!("{drawn:x?}").into(),
                relays,
                remembers: memory.is_some(),
            },
            clock: Clock::since(clock_origin_usec),
            broker: LocalBroker::new(memory),
            metrics: RelayMetrics::default(),
            state: Mutex::new(State::new(stream_seed)),
            stop: watch::Sender::new(false),
        })
    }

    /// Has one child more, over the parent's end of its link. The future is the link's life: it is to be run on the parent's
    /// runtime and ends with the reason when the link is lost, whereupon the child is to be killed if it lives, or when all links
    /// are stopped. `asked` answers its requests. With 1024 children there are no more.
    pub fn add(
        self: &Arc<Self>,
        socket: UnixStream,
        asked: Arc<dyn Asked>,
    ) -> Option<(ChildLink, impl Future<Output = Ended<ToChild>> + Send + use<>)> {
        let link = Link::<ToChild, ToParent>::new(socket, Some(STALLED_AFTER));
        let sender = link.sender();
        sender.put(&ToChild::Welcome(self.welcome.clone()));
        let number = self.state().add(sender)?;
        Some(self.live(number, link, asked))
    }

    fn live(
        self: &Arc<Self>,
        number: u16,
        link: Link<ToChild, ToParent>,
        asked: Arc<dyn Asked>,
    ) -> (ChildLink, impl Future<Output = Ended<ToChild>> + Send + use<>) {
        let sender = link.sender();
        let listed = Listed { relay: Arc::clone(self), number, goes_on: false };
        let mut stop = self.stop.subscribe();
        let life = async move {
            // All of it: a block takes only what it names.
            let mut listed = listed;
            let relay = &listed.relay;
            // The sender lives as long as the relay.
            let stops = async move { _ = stop.wait_for(|stop| *stop).await };
            let ended = link.run_until(stops, asked, |message| relay.state().heard(relay, number, message)).await;
            listed.goes_on = matches!(ended, Ended::Stopped(..));
            ended
        };
        (ChildLink { sender, number }, life)
    }

    /// Of these two processes `new` is to take over from `old`, when that says so.
    pub fn will_succeed(&self, old: &ChildLink, new: &ChildLink) {
        self.state().will_succeed(old.number, new.number);
    }

    /// Forgets what is over, part after part, for as long as the runtime runs that this is called in.
    pub fn keep_sweeping(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        if !self.welcome.remembers {
            return None;
        }
        let relay = Arc::clone(self);
        let sweeping = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP_ALL / SWEEPS as u32);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for part in (0..SWEEPS).cycle() {
                ticks.tick().await;
                let mut state = relay.state();
                relay.broker.sweep(part, relay.clock.now(), |event| state.hand_over(&relay, event, 0));
            }
        });
        Some(sweeping)
    }

    /// What is counted and kept here, for the sum over all processes.
    pub fn collect(&self, families: &mut Families) {
        let (children, waiting, bytes) = self.state().amounts();
        self.metrics.relay_processes_num.set(children as i64);
        self.metrics.relay_waiting_num.set(waiting as i64);
        self.metrics.relay_queue_bytes.set(bytes as i64);
        self.metrics.collect(&[], families);
        self.broker.measure();
        self.broker.metrics.collect(&[], families);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A child that is counted on until this is dropped.
struct Listed {
    relay: Arc<Relay>,
    number: u16,
    /// Its link has stopped to go on later.
    goes_on: bool,
}

impl Drop for Listed {
    fn drop(&mut self) {
        if !self.goes_on {
            self.relay.state().lost(&self.relay, self.number);
        }
    }
}

/// Whether the parent passes publications on. Where there is a cluster each child is a node of it by itself.
fn relays(config: &Config) -> bool {
    config.pubsub() == PubSub::None && matches!(config.broker.kind, BrokerKind::None | BrokerKind::Memory)
}
