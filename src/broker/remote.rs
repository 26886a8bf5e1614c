//! A broker on other machines: Redis or NATS. All nodes of a cluster share it, so a position means the same on each of them,
//! and a client finds what it missed, its session, and who is present wherever it comes back to.
//!
//! What is the same for both is here; what they are asked is in [`store`]. Nothing of it waits on a shard or a publisher's
//! lock: whoever asks is answered later, through the [`Outlet`].
//!
//! * A publication is stored ([`writer`]) and then passes the [`gate`], by which it and those of other nodes reach the shards
//!   in the order of their offsets. A publisher waits until it is stored, and for no longer than [`WAIT_MAX`] where the link
//!   is away: then it is delivered to the clients of this node without a position. Transient publications go past all of this.
//! * What a client missed is read, and answered when the gate has delivered all that the answer covers.
//! * Sessions that live are known here ([`residents`]); those that wait for their clients are stored.
//! * Of presence every node knows its own people, and tells them again when the storage has forgotten them.

mod gate;
mod hand_over;
mod people;
mod residents;
mod saved;
pub mod store;
mod tasks;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::sent_away::SentAway;
use super::{BrokerMetrics, LocalBroker, Place};
use crate::link::Turns;
use crate::metrics;
use crate::model::{
    BrokerError, BrokerQuestion, BrokerReply, NodeId, Now, PresenceChange, Publication, ResumeTicket, SavedSession,
    Sid, SlotKey,
};

use gate::Gate;
pub use gate::Then;
pub use hand_over::GivenRemote;
use people::People;
use residents::{Asker, Found, Residents};
use saved::{Saves, Yields};
use store::Store;
use tasks::{Recent, Tasks};
use writer::Waiting;

/// The longest that anybody waits for a link that is away: a publisher, or a client that asks for something.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// A command between nodes: whoever has this session is to give it up.
const YIELD: &str = "yield";

/// The answer: it is stored, or is not given up.
const YIELDED: &str = "yielded";

/// Where a remote broker gives its answers and publications. Nothing here waits.
pub trait Outlet: Send + Sync + 'static {
    /// A publication that has its place, for the shards of this node that follow its stream. Called in the order of a stream.
    fn deliver(&self, publication: Publication, permit: Option<OwnedSemaphorePermit>);

    /// A publication of this node was stored that nobody here follows.
    fn nobody_follows(&self);

    /// A publication for the other nodes.
    fn announce(&self, publication: &Publication);

    /// A command for the other nodes; `payload` is JSON text.
    fn command(&self, name: &'static str, payload: String);

    /// The answer to a session's question.
    fn answer(&self, key: SlotKey, result: Result<BrokerReply, BrokerError>);

    /// A session is to be given up to whoever shows the ticket.
    fn ask_to_yield(&self, place: Place, ticket: ResumeTicket);

    /// The time.
    fn now(&self) -> Now;
}

/// What a remote broker is told by the configuration.
#[derive(Clone, Debug)]
pub struct RemoteSettings {
    /// How long a session is kept (`--sessions-ttl`). Zero: not at all.
    pub sessions_ttl: Duration,
    /// Bytes of sessions that wait for a link that is away (`--sessions-max-size`).
    pub sessions_bytes_max: usize,
    /// How long somebody whose connection is over is reported as present (`--presence-ttl`).
    pub presence_ttl: Duration,
    /// Bytes of presence of this node's own people (`--presence-max-size`).
    pub presence_bytes_max: usize,
    /// How long the storage knows how far a stream has come, after its last publication.
    pub counters_ttl: Duration,
    /// The storage hands publications that it has stored to all nodes. If not, they are announced.
    pub store_announces: bool,
}

metrics! {
    /// Counts of a broker on other machines.
    pub struct RemoteMetrics {
        /// Publications delivered to this node's clients without a position because the broker could not be reached.
        broker_unstored_total: Counter,
        /// Stores that were sent again because the answer was lost, and had been carried out.
        broker_doubles_total: Counter,
        /// Publications that the broker's server refused to store at first.
        broker_refused_total: Counter,
        /// Publications that wait to be stored.
        broker_queue_size: Gauge,
        /// Publications that did not come from the cluster and were fetched from the history.
        cluster_filled_total: Counter,
        /// Publications that did not come from the cluster and that the history did not have any more: clients of this node
        /// that follow the stream miss them.
        cluster_lost_total: Counter,
        /// Publications from other nodes with a position of storage that is not there any more.
        cluster_old_epoch_total: Counter,
        /// Times that the storage was found to have lost what it had acknowledged, so that positions began anew.
        broker_epochs_total: Counter,
    }
}

/// What its tasks and the node's end of it share.
struct Shared {
    settings: RemoteSettings,
    node: NodeId,
    outlet: Arc<dyn Outlet>,
    gate: Gate,
    residents: Residents,
    sent_away: SentAway,
    saves: Saves,
    yields: Yields,
    people: People,
    recent: Recent,
    /// How many nodes live, as far as is known.
    nodes: AtomicUsize,
    /// Sessions that are asked for and not answered.
    resuming: AtomicUsize,
    /// The number of the last store.
    last_store: AtomicU64,
    /// Questions and demands that are not answered.
    jobs: AtomicUsize,
    turns: AllTurns,
    metrics: BrokerMetrics,
    remote_metrics: Arc<RemoteMetrics>,
}

/// Of what is done beside the shards, one for each kind.
#[derive(Default)]
struct AllTurns {
    saving: Turns,
    telling: Turns,
    leasing: Turns,
    filling: Turns,
}

/// What somebody wants to have done.
enum Job {
    Ask(SlotKey, Instant, BrokerQuestion),
    SendAway(Box<str>, oneshot::Sender<()>),
    Present(Box<str>, oneshot::Sender<Result<Vec<u8>, BrokerError>>),
}

/// The node's end of it.
pub struct RemoteBroker {
    publications: mpsc::UnboundedSender<Waiting>,
    jobs: mpsc::UnboundedSender<Job>,
    shared: Arc<Shared>,
    /// Keeps the order of what is not stored.
    pub unstored: LocalBroker,
}

/// Whose session is to be given up, as nodes tell each other.
#[derive(Serialize, Deserialize)]
struct YieldRequest {
    sid: Sid,
    #[serde(default)]
    identifiers: Option<Box<str>>,
}

/// All that a remote broker does beside the shards; its future is [`Running::run`].
pub struct Running<S> {
    tasks: Tasks<S>,
    publications: mpsc::UnboundedReceiver<Waiting>,
    jobs: mpsc::UnboundedReceiver<Job>,
}

impl RemoteBroker {
    /// A broker that keeps everything in `store`. Nothing happens before what is given beside it runs.
    pub fn new<S: Store>(
        store: S,
        settings: RemoteSettings,
        node: NodeId,
        outlet: Arc<dyn Outlet>,
    ) -> (RemoteBroker, Running<S>) {
        let ((publications, stores), (jobs, job)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let remote_metrics = Arc::new(RemoteMetrics::default());
        let gate = Gate::new(Arc::clone(&outlet), Arc::clone(&remote_metrics), settings.counters_ttl);
        let shared = Arc::new(Shared {
            node,
            gate,
            residents: Residents::default(),
            sent_away: SentAway::new(settings.sessions_ttl),
            saves: Saves::new(settings.sessions_bytes_max),
            yields: Yields::default(),
            people: People::new(&settings),
            recent: Recent::new(settings.counters_ttl),
            nodes: AtomicUsize::new(0),
            resuming: AtomicUsize::new(0),
            last_store: AtomicU64::new(0),
            jobs: AtomicUsize::new(0),
            turns: AllTurns::default(),
            metrics: BrokerMetrics::default(),
            remote_metrics,
            outlet,
            settings,
        });
        let tasks = Tasks::new(store, Arc::clone(&shared));
        let running = Running { tasks, publications: stores, jobs: job };
        (RemoteBroker { publications, jobs, shared, unstored: LocalBroker::default() }, running)
    }

    /// What was counted.
    pub fn metrics(&self) -> &BrokerMetrics {
        &self.shared.metrics
    }

    /// What was counted of the broker's link and of other nodes.
    pub fn remote_metrics(&self) -> &RemoteMetrics {
        &self.shared.remote_metrics
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let Shared { metrics, saves, people, .. } = &*self.shared;
        let (records, bytes) = people.amounts();
        metrics.presence_records_num.set(records as i64);
        metrics.presence_bytes.set(bytes as i64);
        let (saved, bytes) = saves.amounts();
        metrics.saved_sessions_num.set(saved as i64);
        metrics.saved_sessions_bytes.set(bytes as i64);
    }

    /// Stores a publication and delivers it; done when that is so, or when it is delivered without being stored. It is kept
    /// here until then, so `permit` must bound how many there are.
    pub fn publish(&self, publication: Publication, permit: OwnedSemaphorePermit) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        // Ends with the node.
        let _ = self.publications.send(Waiting::new(publication, permit, done));
        is_done
    }

    /// A publication of another node, or one of this node that has come back.
    pub fn received(&self, publication: Publication, permit: Option<OwnedSemaphorePermit>) {
        self.shared.gate.pass(publication, permit);
    }

    /// A shard follows a stream. `name` is the same, where another table has it already. Gives the name if it is the first:
    /// then [`subscribed`](Self::subscribed) is to be called.
    pub fn follow(&self, stream: &str, name: Option<Arc<str>>) -> Option<Arc<str>> {
        self.shared.gate.follow(stream, name)
    }

    /// Calls `then` when everything that is stored from then on reaches those who follow a stream, or it cannot be found out
    /// now whether it does. By any thread; must not wait.
    pub fn when_open(&self, stream: &str, then: Then) {
        self.shared.gate.when_open(stream, then);
    }

    /// What is published to a stream comes here from now on.
    pub fn subscribed(&self, stream: &str) {
        self.shared.gate.subscribed(stream);
    }

    /// A shard does not follow a stream any more.
    pub fn unfollow(&self, stream: &str) {
        self.shared.gate.unfollow(stream);
    }

    /// The cluster has subscribed to a stream anew: what was published meanwhile is fetched.
    pub fn subscribed_again(&self, stream: &str) {
        // Also where it is about to be opened: its counter may have been read before.
        self.shared.gate.subscribed(stream);
    }

    /// Whether no session waits to be stored, or is being taken out of the storage.
    pub fn has_kept_all(&self) -> bool {
        self.shared.resuming.load(Relaxed) == 0 && self.shared.saves.amounts().0 == 0
    }

    /// Asks on behalf of a session. The answer comes through the [`Outlet`].
    pub fn ask(&self, key: SlotKey, question: BrokerQuestion) {
        let Shared { residents, outlet, metrics, .. } = &*self.shared;
        if let BrokerQuestion::Resume(ticket) = &question {
            match residents.ask(ticket, Asker::Here(key)) {
                Found::Here(place) => return outlet.ask_to_yield(place, ticket.clone()),
                Found::Taken => {
                    metrics.sessions_refused_total.inc();
                    return outlet.answer(key, Ok(BrokerReply::Resumed(None)));
                }
                Found::Nowhere => _ = self.shared.resuming.fetch_add(1, Relaxed),
            }
        }
        self.want(Job::Ask(key, Instant::now(), question));
    }

    /// Who is present on a stream, as JSON text.
    ///
    /// # Errors
    /// It cannot be found out now.
    pub async fn present(&self, stream: &str) -> Result<Vec<u8>, BrokerError> {
        let (answer, is_answered) = oneshot::channel();
        self.want(Job::Present(stream.into(), answer));
        // Both end with the node.
        is_answered.await.unwrap_or(Err(BrokerError::Unavailable))
    }

    fn want(&self, job: Job) {
        self.shared.jobs.fetch_add(1, Relaxed);
        // Ends with the node.
        let _ = self.jobs.send(job);
    }

    /// Changes who is present.
    pub fn change_presence(&self, sid: Sid, stream: &str, change: PresenceChange) {
        let Shared { people, outlet, metrics, .. } = &*self.shared;
        people.change(sid, stream, change, outlet.now(), metrics);
    }

    /// A session lives there from now on.
    pub fn resident(&self, sid: Sid, place: Place) {
        self.shared.residents.resident(sid, place);
    }

    /// A session is over. What is left of it is kept, or given to who asked for it.
    pub fn departed(&self, sid: Sid, saved: Option<Box<SavedSession>>) {
        let shared = &*self.shared;
        let now = shared.outlet.now();
        let waiter = shared.residents.departed(sid);
        let saved = saved.map(|saved| SavedSession { saved_at: now.mono.as_secs() as u32, ..*saved });
        match (waiter, saved) {
            (Some((Asker::Here(key), ticket)), saved) => {
                let saved = saved.filter(|saved| saved.may_be_resumed_by(&ticket));
                shared.give(key, saved);
            }
            (waiter, Some(saved)) if !shared.settings.sessions_ttl.is_zero() => {
                shared.yields.leaves(sid, waiter.is_some());
                let evicted = shared.saves.put(saved);
                evicted.iter().for_each(|sid| shared.gone(*sid));
                shared.metrics.sessions_evicted_total.add(evicted.len() as u64);
            }
            (Some((Asker::Elsewhere, _)), _) => shared.tell_yielded(sid),
            (None, _) => {}
        }
    }

    /// A session is not given up.
    pub fn stays(&self, sid: Sid) {
        match self.shared.residents.stays(sid) {
            Some(Asker::Here(key)) => self.shared.give(key, None),
            Some(Asker::Elsewhere) => self.shared.tell_yielded(sid),
            None => {}
        }
    }

    /// A session is not where it was asked for.
    pub fn not_here(&self, sid: Sid, from: Place) {
        match self.shared.residents.moved(sid, from) {
            Some((place, ticket)) => self.shared.outlet.ask_to_yield(place, ticket),
            // It has ended, and whoever waited has heard of that; or it is lost.
            None => self.stays(sid),
        }
    }

    /// Whether the app has not sent a session's client away since it was saved.
    pub fn may_go_on(&self, saved: &SavedSession) -> bool {
        self.shared.sent_away.may_go_on(saved)
    }

    /// The app sends everybody with these identifiers away: what is saved of them is not given out any more, by no node.
    /// Done when the storage knows.
    pub fn send_away(&self, identifiers: &str) -> oneshot::Receiver<()> {
        self.sent_away_elsewhere(identifiers);
        let (done, is_done) = oneshot::channel();
        if !self.shared.settings.sessions_ttl.is_zero() {
            self.want(Job::SendAway(identifiers.into(), done));
        }
        is_done
    }

    /// The same, said by another node, which tells the storage.
    pub fn sent_away_elsewhere(&self, identifiers: &str) {
        self.shared.sent_away.note(identifiers, self.shared.outlet.now());
    }

    /// Another node gives a command.
    pub fn command(&self, name: &str, payload: &str) {
        let shared = &*self.shared;
        let Ok(YieldRequest { sid, identifiers }) = serde_json::from_str(payload) else {
            return tracing::debug!(name, payload, "a command of another node is not understood");
        };
        match name {
            YIELD => {
                let ticket = ResumeTicket { sid, identifiers };
                match shared.residents.ask(&ticket, Asker::Elsewhere) {
                    Found::Here(place) => shared.outlet.ask_to_yield(place, ticket),
                    // It is told when that is stored.
                    Found::Nowhere => shared.yields.wanted_elsewhere(sid),
                    Found::Taken => shared.tell_yielded(sid),
                }
            }
            YIELDED => shared.yields.yielded(sid),
            _ => tracing::debug!(name, "a command of another node is not known"),
        }
    }

    /// Forgets what is over. To be called about once a second.
    pub fn sweep(&self) {
        let now = self.shared.outlet.now();
        self.shared.people.sweep(now);
        self.shared.sent_away.sweep(now);
    }
}

impl Shared {
    fn nodes(&self) -> usize {
        self.nodes.load(Relaxed)
    }

    fn set_nodes(&self, nodes: usize) {
        self.nodes.store(nodes, Relaxed);
    }

    /// Somebody gets a session at last, or none.
    fn give(&self, key: SlotKey, saved: Option<SavedSession>) {
        let saved = saved.filter(|saved| self.sent_away.may_go_on(saved));
        match saved {
            Some(_) => self.metrics.sessions_resumed_total.inc(),
            None => self.metrics.sessions_refused_total.inc(),
        }
        self.outlet.answer(key, Ok(BrokerReply::Resumed(saved.map(Box::new))));
    }

    fn tell_yielded(&self, sid: Sid) {
        self.say(YIELDED, &YieldRequest { sid, identifiers: None });
    }

    /// A session that was leaving is stored, or will not be.
    fn gone(&self, sid: Sid) {
        if self.yields.left(sid) {
            self.tell_yielded(sid);
        }
    }

    fn say(&self, name: &'static str, request: &YieldRequest) {
        // Plain texts always make JSON.
        self.outlet.command(name, serde_json::to_string(request).unwrap_or_default());
    }
}
