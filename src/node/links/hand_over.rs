//! What two processes of one node say to each other of their links: the new one connects, follows what the old one follows, and
//! keeps what comes, before the old one stops.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::broadcast::{Fanout, RedisXInHand};
use crate::broker::{Broker, GivenRemote};
use crate::cluster::{Cluster, GivenCluster};
use crate::link::{GivenArrivals, LinkState, MARKS_APART, Mark, Seam, SeamKey};
use crate::model::NodeId;
use crate::node::publish::Pipeline;
use crate::os::clock::Clock;

/// How long the links of a process that takes over may take to be where those of the old one are.
const READY_MAX: Duration = Duration::from_secs(8);

/// How long after marks that have not come back they are published again.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether all is ready.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What both processes have alike, before the new one connects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::node) struct LinksGiven {
    node: NodeId,
    /// Its name as a consumer of the stream of Redis.
    consumer: String,
    seam: SeamKey,
}

/// What is followed in the cluster, and which links are up.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::node) struct LinksSnapshot {
    #[serde(default)]
    followed: Vec<Arc<str>>,
    #[serde(default)]
    up: Vec<String>,
    /// The marks that are waited for in what nodes say to each other, if they are not those of [`LinksGiven`].
    #[serde(default)]
    seam: Option<SeamKey>,
}

/// What the moment of change needs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::node) struct LinksState {
    #[serde(default)]
    cluster: Option<GivenCluster>,
    #[serde(default)]
    remote: Option<GivenRemote>,
    #[serde(default)]
    fanouts: BTreeMap<String, GivenArrivals>,
    /// Entries of the stream of Redis that are handed over and not acknowledged for certain.
    #[serde(default)]
    redisx: Vec<String>,
}

/// The links, as far as another process goes on with them.
#[derive(Default)]
pub(in crate::node) struct HandedLinks {
    /// Always there, but in a default, which no node has.
    node: Option<NodeId>,
    consumer: String,
    fanouts: BTreeMap<&'static str, Arc<Fanout>>,
    redisx: Option<Arc<RedisXInHand>>,
    /// What is followed for the sake of connections that are about to come.
    followed: Mutex<Vec<Arc<str>>>,
}

impl HandedLinks {
    /// Of a node, or of one that goes on from another process.
    pub(super) fn new(given: Option<&LinksGiven>) -> HandedLinks {
        let node = given.map_or_else(|| NodeId::from_bits(rand::random()), |given| given.node);
        let consumer =
            given.map_or_else(|| NodeId::from_bits(rand::random()).to_string(), |given| given.consumer.clone());
        HandedLinks { node: Some(node), consumer, ..HandedLinks::default() }
    }

    pub(super) fn node(&self) -> NodeId {
        self.node.unwrap_or_else(|| NodeId::from_bits(0))
    }

    pub(super) fn consumer(&self) -> &str {
        &self.consumer
    }

    /// The queue of a source.
    pub(super) fn fanout(&mut self, name: &'static str) -> Arc<Fanout> {
        Arc::clone(self.fanouts.entry(name).or_default())
    }

    pub(super) fn redisx(&mut self) -> Arc<RedisXInHand> {
        Arc::clone(self.redisx.get_or_insert_default())
    }

    /// A process that goes on from another one notes what comes from the first moment on.
    pub(super) fn begin(&self, given: Option<&LinksGiven>, cluster: &Cluster) {
        let Some(given) = given else { return };
        self.fanouts.values().for_each(|fanout| fanout.follow(given.seam.clone()));
        if let Some(exchange) = cluster.exchange() {
            exchange.received.arrivals.with(|queue| queue.seam.begin(given.seam.clone()));
        }
    }

    /// Has everything that the links give stand still when `pipeline` does.
    pub fn stand_still_with(&self, pipeline: &Pipeline) {
        self.redisx.iter().for_each(|redisx| pipeline.add_source(redisx.turns.clone()));
        self.fanouts.values().for_each(|fanout| pipeline.add_source(fanout.arrivals.turns.clone()));
        if let Some(exchange) = pipeline.cluster.exchange() {
            pipeline.add_source(exchange.received.arrivals.turns.clone());
        }
        if let Broker::Remote(remote) = &pipeline.broker {
            remote.turns().into_iter().for_each(|turns| pipeline.add_worker(turns));
        }
    }

    /// Another process is about to go on from this one: what comes is noted from now on.
    pub fn given(&self, pipeline: &Pipeline) -> LinksGiven {
        let seam = SeamKey::default();
        self.each_seam(pipeline, |noted| noted.begin(seam.clone()));
        self.redisx.iter().for_each(|redisx| redisx.set_hasty(true));
        LinksGiven { node: self.node(), consumer: self.consumer.clone(), seam }
    }

    fn each_seam(&self, pipeline: &Pipeline, change: impl Fn(&mut Seam)) {
        self.fanouts.values().for_each(|fanout| fanout.arrivals.with(|queue| change(&mut queue.seam)));
        if let Some(exchange) = pipeline.cluster.exchange() {
            exchange.received.arrivals.with(|queue| change(&mut queue.seam));
        }
    }

    /// It has come to nothing.
    pub fn forget(&self, pipeline: &Pipeline) {
        self.each_seam(pipeline, Seam::end);
        if let Some(exchange) = pipeline.cluster.exchange() {
            exchange.streams.let_go();
        }
        self.redisx.iter().for_each(|redisx| redisx.set_hasty(false));
    }

    /// What is to be followed.
    pub fn snapshot(&self, pipeline: &Pipeline, states: &[Arc<LinkState>]) -> LinksSnapshot {
        let followed = pipeline.cluster.exchange().map(|exchange| exchange.streams.give()).unwrap_or_default();
        LinksSnapshot { followed, up: up(states), seam: None }
    }

    /// What is to be followed beside that; `None` if there is nothing. Whoever follows another stream from now on hears from the
    /// new process that its subscription stands.
    pub fn more(&self, pipeline: &Pipeline, states: &[Arc<LinkState>]) -> Option<LinksSnapshot> {
        let exchange = pipeline.cluster.exchange()?;
        let followed = exchange.streams.give_more_and_hold();
        // Marks from before say nothing of what is followed now, and this process may get them only now.
        let seam = || exchange.received.arrivals.with(|queue| queue.seam.renew_marks());
        (!followed.is_empty()).then(|| LinksSnapshot { followed, up: up(states), seam: seam() })
    }

    /// Follows it beside what is followed already, and waits until the links of this process get everything that those of the
    /// other one get.
    ///
    /// # Errors
    /// One of them does not.
    pub fn follow(
        &self,
        snapshot: LinksSnapshot,
        pipeline: &Pipeline,
        states: &[Arc<LinkState>],
    ) -> Result<(), &'static str> {
        let LinksSnapshot { followed, up, seam } = snapshot;
        if let Some(exchange) = pipeline.cluster.exchange() {
            followed.iter().for_each(|name| _ = exchange.streams.follow(name));
            self.followed.lock().unwrap_or_else(PoisonError::into_inner).extend(followed);
            exchange.received.arrivals.with(|queue| queue.seam.unmark(seam));
        }
        // One that is away there is not waited for here.
        let wanted = || states.iter().filter(|state| up.iter().any(|name| name == state.name()));
        let is_marked = |fanout: &Fanout| fanout.arrivals.with(|queue| queue.seam.is_marked());
        let clock = Clock::start();
        let mut next_mark = None;
        loop {
            let not_up = wanted().find(|state| !state.is_up()).map(|state| state.name());
            let unmarked =
                self.fanouts.iter().find(|(name, fanout)| !is_marked(fanout) && up.iter().any(|up| up == *name));
            let not_followed = pipeline.cluster.exchange().filter(|exchange| {
                up.iter().any(|name| name.ends_with("_pubsub")) && {
                    let now = clock.now().mono;
                    let is_subscribed = exchange.streams.are_all_subscribed();
                    match next_mark {
                        None if is_subscribed => next_mark = Some((Mark::First, now + MARKS_APART)),
                        Some((mark, at)) if at <= now => {
                            exchange.publish_mark(mark);
                            next_mark = Some(match mark {
                                Mark::First => (Mark::Last, now + MARKS_APART),
                                Mark::Last => (Mark::First, now + MARK_EVERY),
                            });
                        }
                        _ => {}
                    }
                    !is_subscribed || !exchange.received.arrivals.with(|queue| queue.seam.is_marked())
                }
            });
            let missing = not_up.or(unmarked.map(|(name, _)| *name)).or(not_followed.map(|_| "pubsub"));
            match missing {
                None => return Ok(()),
                Some(name) if clock.now().mono > READY_MAX => return Err(name),
                Some(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Everything, while the pipeline stands still.
    pub fn state(&self, pipeline: &Pipeline) -> LinksState {
        LinksState {
            cluster: pipeline.cluster.exchange().map(|exchange| exchange.given()),
            remote: match &pipeline.broker {
                Broker::Remote(remote) => Some(remote.given()),
                _ => None,
            },
            fanouts: self.fanouts.iter().map(|(name, fanout)| ((*name).to_owned(), fanout.given())).collect(),
            redisx: self.redisx.as_ref().map(|redisx| redisx.unacknowledged()).unwrap_or_default(),
        }
    }

    /// Goes on with it, while the pipeline of this process stands still.
    pub fn take_over(&self, state: LinksState, pipeline: &Pipeline) {
        let LinksState { cluster, remote, mut fanouts, redisx } = state;
        if let Some(exchange) = pipeline.cluster.exchange() {
            exchange.take_over(cluster.unwrap_or_default());
        }
        if let (Broker::Remote(broker), Some(remote)) = (&pipeline.broker, remote) {
            broker.take_over(remote);
        }
        for (name, fanout) in &self.fanouts {
            fanout.take_over(fanouts.remove(*name).unwrap_or_default());
        }
        if let Some(known) = &self.redisx {
            known.take_over(redisx);
        }
    }

    /// All connections of the other process are here, and follow what they follow.
    pub fn all_are_here(&self, pipeline: &Pipeline) {
        let followed = std::mem::take(&mut *self.followed.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(exchange) = pipeline.cluster.exchange() {
            followed.iter().for_each(|name| exchange.streams.unfollow(name));
        }
        if let Broker::Remote(remote) = &pipeline.broker {
            remote.all_are_here();
        }
    }
}

/// Names of links that are up.
fn up(states: &[Arc<LinkState>]) -> Vec<String> {
    states.iter().filter(|state| state.is_up()).map(|state| state.name().to_owned()).collect()
}
