//! The new process's side: it makes everything, takes what it is given, and serves when it is told to, or when the old process
//! is gone and nobody else would.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::backend::Backend;
use crate::broadcast::PublicationSink;
use crate::config::ListenOn;
use crate::model::{Answer, BrokerError, CallError, RemoteDisconnect, Reply, SlotKey};
use crate::node::StartError;
use crate::node::listeners::HandedPort;
use crate::node::observe::Parts;
use crate::node::publish::Pipeline;
use crate::node::state::{self, Given, NodeState, Piece};
use crate::os::clock;
use crate::os::hand_over::{self, Channel};
use crate::shard::{Arrived, Asks, Inbox, Incoming, LaneError, Message, Socket};

use super::protocol::{Forward, Have, Hello, LineError, Offer, Port, Talk, ToNew, ToOld, Yours};

/// How long the old process may be silent before everything is given. It may have very much to keep, and is at work.
const GIVEN_MAX: Duration = Duration::from_secs(120);

/// How long a lane may be silent.
const LANE_MAX: Duration = Duration::from_secs(10);

/// The process that this one was started by, to take over from it.
pub(in crate::node) struct Predecessor {
    talk: Talk,
    offer: Offer,
    pub main: Option<HandedPort>,
    /// Of ordinary HTTP, by where the configuration had them.
    pub others: Vec<(ListenOn, Vec<TcpListener>)>,
    /// Its process.
    pub pid: u32,
}

/// What the new process reads from, and what it tells to the lane's shard.
pub(in crate::node) struct Lane {
    pub lane: Channel,
    pub senders: usize,
    pub arrived: std::sync::mpsc::Sender<Result<Arrived, LaneError>>,
    /// Its end: the shard is not to go on.
    pub go_on: std::sync::mpsc::Receiver<()>,
}

/// The other ends of all [`Lane`]s.
pub(in crate::node) struct Arriving {
    writers: Vec<Channel>,
    arrived: std::sync::mpsc::Receiver<Result<Arrived, LaneError>>,
    go_on: Vec<std::sync::mpsc::Sender<()>>,
}

/// Lanes for so many shards, from so many.
pub(in crate::node) fn lanes(shards: usize, senders: usize) -> io::Result<(Vec<Lane>, Arriving)> {
    let (done, arrived) = std::sync::mpsc::channel();
    let mut arriving = Arriving { writers: Vec::new(), arrived, go_on: Vec::new() };
    let mut lanes = Vec::new();
    for _ in 0..shards {
        let (lane, writer) = Channel::pair()?;
        lane.set_patience(Some(GIVEN_MAX + LANE_MAX))?;
        let (start, go_on) = std::sync::mpsc::channel();
        lanes.push(Lane { lane, senders, arrived: done.clone(), go_on });
        arriving.writers.push(writer);
        arriving.go_on.push(start);
    }
    Ok((lanes, arriving))
}

impl Predecessor {
    /// The old process, if this one was started by one to take over.
    ///
    /// # Errors
    /// It offers nothing that could be used.
    pub fn meet() -> Result<Option<Predecessor>, StartError> {
        let named = |error: io::Error| StartError::Predecessor(format!("{}: {error}", hand_over::VARIABLE));
        hand_over::inherited().map_err(named)?.map(Predecessor::over).transpose()
    }

    /// The old process at the other end of a channel: it is told that this program can be started with this configuration, and
    /// says what there is.
    ///
    /// # Errors
    /// It offers nothing that could be used.
    pub fn over(channel: Channel) -> Result<Predecessor, StartError> {
        hand_over::takes_over();
        let parent = std::os::unix::process::parent_id();
        let talk = Talk(channel);
        talk.say(&ToOld::Hello(Hello::own()), &[]).map_err(ended)?;
        let mut listeners: Vec<TcpListener> = Vec::new();
        let offer = loop {
            match hear(&talk)? {
                (ToNew::Listeners {}, some) => listeners.extend(some.into_iter().map(TcpListener::from)),
                (ToNew::Offer(offer), _) => break *offer,
                (ToNew::Abort {}, _) => return Err(not_wanted()),
                _ => return Err(StartError::Predecessor("the old process says something out of turn".to_owned())),
            }
        };
        let mut listeners = listeners.into_iter();
        let mut take = |port: &Port| -> Vec<TcpListener> { listeners.by_ref().take(port.listeners).collect() };
        let main = HandedPort {
            host: offer.main.host.clone(),
            port: offer.main.port,
            listeners: take(&offer.main),
            was_passed: offer.main_was_passed,
        };
        let own = |port: &Port| ListenOn::Own { host: port.host.clone(), port: port.port };
        let others = offer.others.iter().map(|port| (own(port), take(port))).collect();
        let pid = offer.pid.unwrap_or(parent);
        Ok(Predecessor { talk, offer, main: Some(main), others, pid })
    }

    /// What parts are made of that must be as they are there.
    pub fn given(&self) -> Given {
        self.offer.given.clone()
    }

    /// How many shards copy what they have.
    pub fn shards(&self) -> usize {
        self.offer.shards
    }

    /// For the case that this process does not take over.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn refusal(&self) -> io::Result<Refusal> {
        Ok(Refusal(Talk(self.talk.0.try_clone()?)))
    }

    /// Takes everything, with the lanes' shards at work; on return nobody else has it, and it is to be served. `listen` is called
    /// when that is about to be so: signals are for this process from then on.
    ///
    /// # Errors
    /// Something of it cannot be used, or the old process keeps it.
    pub fn take_everything(
        &self,
        parts: &Parts,
        arriving: Arriving,
        listen: impl FnOnce() -> io::Result<()>,
    ) -> Result<Taken, StartError> {
        let Arriving { writers, arrived, go_on } = arriving;
        let ends: Vec<_> = writers.iter().map(AsFd::as_fd).collect();
        self.talk.say_with_all(&ToOld::Lanes {}, &ends).map_err(ended)?;
        // Where all of them are closed there is nothing more to come.
        drop(writers);
        self.talk.say(&ToOld::Prepared {}, &[]).map_err(ended)?;
        loop {
            match hear(&self.talk)?.0 {
                ToNew::Snapshot(bytes) => {
                    Piece::from_bytes(&bytes).and_then(|piece| piece.apply(parts)).map_err(unusable)?;
                }
                ToNew::SnapshotEnds {} => self.talk.say(&ToOld::Kept {}, &[]).map_err(ended)?,
                ToNew::State(bytes) => {
                    NodeState::from_bytes(&bytes).map_err(unusable)?.apply(parts);
                    break;
                }
                ToNew::Abort {} => return Err(not_wanted()),
                _ => return Err(StartError::Predecessor("the old process says something out of turn".to_owned())),
            }
        }
        let mut have = Have { connections: 0, bytes: 0 };
        let mut waiting = HashMap::new();
        // Ends when all shards have said what they have.
        for arrived in arrived {
            let arrived = arrived.map_err(unusable)?;
            have.connections += arrived.connections;
            have.bytes += arrived.bytes;
            waiting.extend(arrived.waiting.into_iter().map(|(old, new, asks)| (old, (new, asks))));
        }
        let moved = waiting.iter().map(|(&old, &(new, _))| (old, new)).collect();
        // Those whose calls are made here do not wait for the old process.
        for old in state::renamed(parts, &moved) {
            waiting.remove(&old);
        }
        listen()?;
        self.talk.say(&ToOld::Have(have), &[]).map_err(ended)?;
        let yours = match self.talk.hear(Some(GIVEN_MAX)) {
            Ok((ToNew::Yours(yours), _)) => Some(yours),
            // It had all of it, and did not say that it keeps it.
            Err(LineError::Ended) => None,
            Ok((ToNew::Abort {}, _)) => return Err(not_wanted()),
            Ok(_) => return Err(StartError::Predecessor("the old process says something out of turn".to_owned())),
            Err(error) => return Err(StartError::Predecessor(error.to_string())),
        };
        Ok(Taken { have, waiting, yours, go_on })
    }
}

/// Tells the old process, if this one was started by one to take over, that this one does not.
///
/// # Errors
/// There is one.
pub(in crate::node) fn refuse_predecessor(why: &str) -> Result<(), StartError> {
    let named = |error: io::Error| StartError::Predecessor(format!("{}: {error}", hand_over::VARIABLE));
    let Some(channel) = hand_over::inherited().map_err(named)? else { return Ok(()) };
    let error = StartError::Setting(why.to_owned());
    Refusal(Talk(channel)).say(&error);
    Err(error)
}

/// Says why this process does not take over.
pub(in crate::node) struct Refusal(Talk);

impl Refusal {
    /// Says so to the old process, which knows by it that nothing has happened.
    pub fn say(&self, error: &StartError) {
        let mut why = error.to_string();
        if let Some(cause) = std::error::Error::source(error) {
            why = format!("{why}: {cause}");
        }
        // One that has ended does not want to know.
        let _ = self.0.say(&ToOld::Failed { why }, &[]);
    }
}

/// Everything.
pub(in crate::node) struct Taken {
    have: Have,
    /// Sessions that wait for an answer that the old process is to get, by their keys there.
    waiting: HashMap<SlotKey, (SlotKey, Asks)>,
    /// `None`: the old process has ended.
    yours: Option<Yours>,
    go_on: Vec<std::sync::mpsc::Sender<()>>,
}

impl Taken {
    /// Has the shards serve, and says so.
    pub fn serve(&mut self, predecessor: &Predecessor, parts: &Parts) {
        for go_on in self.go_on.drain(..) {
            // A shard that has ended is seen by the watchdog.
            let _ = go_on.send(());
        }
        let at_usec = clock::machine_usec();
        let _ = predecessor.talk.say(&ToOld::Started { at_usec }, &[]);
        let pause = self.yours.map(|yours| Duration::from_micros(at_usec.saturating_sub(yours.stopped_usec)));
        let before = self.yours.map_or(0, |yours| yours.longest_pause_usec);
        parts.upgrades.taken_over(self.have.connections, pause.unwrap_or_default(), before);
        match pause {
            Some(pause) => tracing::info!(
                from = predecessor.pid,
                connections = self.have.connections,
                state_bytes = self.have.bytes,
                pause_ms = pause.as_secs_f64() * 1e3,
                "took over from process {}",
                predecessor.pid
            ),
            None => tracing::warn!(
                connections = self.have.connections,
                "the old process ended when it had given everything away and before it said so; this one goes on"
            ),
        }
    }
}

/// What comes from the old process while it finishes what it has begun.
pub(in crate::node) struct Following {
    ended: watch::Receiver<bool>,
}

impl Following {
    /// Waits until nothing more can come.
    pub async fn ended(&self) {
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// Who gets what comes from the old process.
pub(in crate::node) struct Receivers {
    pub pipeline: Arc<Pipeline>,
    pub backend: Arc<Backend>,
    pub inboxes: Arc<[Arc<Inbox>]>,
    pub runtime: Handle,
}

impl Predecessor {
    /// Takes what still comes from the old process, on a thread of its own.
    pub fn follow(self, taken: Taken, receivers: Receivers) -> Following {
        let (ends, ended) = watch::channel(false);
        let (publishes, published) = mpsc::unbounded_channel();
        let talk = Arc::new(self.talk);
        let answers = Arc::clone(&talk);
        receivers.runtime.spawn(publish_all(published, Arc::clone(&receivers.pipeline), answers));
        let mut follower = Follower { receivers, waiting: taken.waiting, publishes, next_shard: 0 };
        let run = move || {
            loop {
                match talk.hear::<ToNew>(None) {
                    Ok((ToNew::Forward(forward), descriptors)) => match *forward {
                        Forward::Finished {} => break,
                        forward => follower.take(forward, descriptors),
                    },
                    Err(LineError::Ended | LineError::Channel(_)) => break,
                    Ok(_) | Err(LineError::Silent(_)) => {}
                    Err(error) => tracing::warn!(%error, "something that the old process forwards is lost"),
                }
            }
            follower.end();
            let _ = ends.send(true);
        };
        if let Err(error) = thread::Builder::new().name("predecessor".into()).spawn(run) {
            // The end of the channel is dropped with what would have run: the old process is told that nobody listens.
            tracing::error!(%error, "what the old process finishes is lost");
        }
        Following { ended }
    }
}

/// A key that no connection has.
const NOBODY: SlotKey = SlotKey { shard: 0, index: u32::MAX, generation: 0 };

/// A publication or a demand that somebody waits for in the old process.
enum Published {
    Publications(u64, Vec<crate::model::Publication>),
    Disconnect(u64, RemoteDisconnect),
}

/// One after the other, so that they keep their order.
async fn publish_all(mut published: mpsc::UnboundedReceiver<Published>, pipeline: Arc<Pipeline>, talk: Arc<Talk>) {
    while let Some(next) = published.recv().await {
        let (number, result) = match next {
            Published::Publications(number, publications) => (number, pipeline.publish(publications).await),
            Published::Disconnect(number, disconnect) => (number, pipeline.disconnect(disconnect).await),
        };
        let error = result.err().map(|error| error.0);
        // One that has ended does not wait any more.
        let _ = talk.say(&ToOld::Taken { number, error }, &[]);
    }
}

struct Follower {
    receivers: Receivers,
    waiting: HashMap<SlotKey, (SlotKey, Asks)>,
    publishes: mpsc::UnboundedSender<Published>,
    next_shard: usize,
}

impl Follower {
    fn take(&mut self, forward: Forward, descriptors: Vec<OwnedFd>) {
        let Receivers { pipeline, backend, inboxes, .. } = &self.receivers;
        match forward {
            Forward::Answer { key, reply } => {
                // A shard knows what to do with an answer that nobody waits for.
                let key = self.waiting.remove(&key).map_or(NOBODY, |(key, _)| key);
                put(inboxes, Answer { key, reply });
            }
            Forward::Publish { number, publications } => {
                let _ = self.publishes.send(Published::Publications(number, publications));
            }
            Forward::Disconnect { number, identifiers, reconnect } => {
                let _ = self.publishes.send(Published::Disconnect(number, RemoteDisconnect { identifiers, reconnect }));
            }
            Forward::Deliver(publication) => pipeline.deliver(publication, None),
            Forward::DisconnectHere { identifiers, reconnect } => {
                drop(pipeline.disconnect_here(RemoteDisconnect { identifiers, reconnect }));
            }
            // Whichever shard is asked does not have it in a slot that nobody has, and asks who has.
            Forward::Yield(ticket) => inboxes[0].put(Message::Yield { index: u32::MAX, ticket }),
            Forward::Adopt { listener, read, .. } => {
                let Some(socket) = descriptors.into_iter().next() else { return };
                self.next_shard = (self.next_shard + 1) % inboxes.len();
                let incoming = Incoming { socket: Socket::from(socket), listener };
                inboxes[self.next_shard].put(Message::Adopt { incoming, read: read.into_vec() });
            }
            // A full queue has counted it as dropped.
            Forward::Tell(call) => drop(backend.disconnect(*call)),
            Forward::Finished {} => {}
        }
    }

    /// Nothing more comes: who still waits for an answer gets none.
    fn end(&mut self) {
        for (_, (key, asks)) in self.waiting.drain() {
            let reply = match asks {
                Asks::App => Reply::App(Err(CallError::Failed("the process that made the call has ended".to_owned()))),
                Asks::Broker => Reply::Broker(Err(BrokerError::Unavailable)),
                Asks::Cluster => Reply::Followed,
            };
            put(&self.receivers.inboxes, Answer { key, reply });
        }
    }
}

fn put(inboxes: &[Arc<Inbox>], answer: Answer) {
    if let Some(inbox) = inboxes.get(usize::from(answer.key.shard)) {
        inbox.put(Message::Answer(answer));
    }
}

fn hear(talk: &Talk) -> Result<(ToNew, Vec<OwnedFd>), StartError> {
    talk.hear(Some(GIVEN_MAX)).map_err(|error| StartError::Predecessor(error.to_string()))
}

fn ended(error: io::Error) -> StartError {
    StartError::Predecessor(format!("the old process cannot be told: {error}"))
}

fn unusable(error: impl std::fmt::Display) -> StartError {
    StartError::Predecessor(error.to_string())
}

fn not_wanted() -> StartError {
    StartError::Predecessor("the old process goes on by itself".to_owned())
}
