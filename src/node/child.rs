//! A process that is one of several: its end of the link to the parent.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

use crate::broker::{Broker, ParentBroker};
use crate::config::Config;
use crate::link::local::messages::{ToChild, ToParent, Welcome};
use crate::link::local::{self, Asked, Link, LinkLost, Sender};
use crate::os::family::Inherited;
use crate::os::hand_over::Channel;
use crate::os::pidfd::Pidfd;

use super::observe::Observer;
use super::processes::{self, Answering, Order, PATIENCE, Question, Said, Succeeded, Wish};
use super::publish::Pipeline;
use super::supervisor::Watched;
use super::{look, supervisor};

/// The link to the parent, before anything runs on it.
pub struct ParentEnd {
    /// What all children have alike.
    pub(super) welcome: Welcome,
    link: Link<ToParent, ToChild>,
    orders: (mpsc::Sender<Ordered>, mpsc::Receiver<Ordered>),
    descriptors: Channel,
    /// To the process that this one is to take over from.
    old: Option<Channel>,
    /// What was dealt out to this process of `--max-conn`, if that is not its share.
    room: Option<u64>,
}

/// What the parent wants to have done by whoever has the node.
#[derive(Debug)]
pub(super) enum Ordered {
    /// That the boot log tells of the server.
    Tell,
    /// That a configuration is taken over.
    Reload(ReloadOrder),
    /// That another process takes over, or that it is seen whether it could.
    Upgrade(UpgradeOrder),
}

/// A process that is to take over.
#[derive(Debug)]
pub(super) struct UpgradeOrder {
    /// Whether it is only tried as far as nothing changes.
    pub only_checks: bool,
    /// The channel to it, and what stands for it.
    pub new: io::Result<(Channel, Pidfd)>,
    /// What the parent says, as the number of its format.
    pub link_format: u16,
    done: oneshot::Sender<Result<Succeeded, String>>,
}

impl UpgradeOrder {
    /// Tells the parent what became of it.
    pub fn done(self, result: Result<Succeeded, String>) {
        // The parent may have waited long enough.
        let _ = self.done.send(result);
    }
}

/// A configuration to be taken over.
#[derive(Debug)]
pub struct ReloadOrder {
    /// The configuration.
    pub config: Box<Config>,
    done: oneshot::Sender<Result<(), String>>,
}

impl ReloadOrder {
    /// Tells the parent what became of it.
    pub fn done(self, result: Result<(), String>) {
        // The parent may have waited long enough.
        let _ = self.done.send(result);
    }
}

/// Orders that wait for the node: one of each kind.
const ORDERS_MAX: usize = 3;

/// The descriptors of an order were sent before it.
const DESCRIPTORS_WITHIN: Duration = Duration::from_secs(1);

/// The other processes of this server, as one of them sees them.
pub(super) struct Family {
    /// Clients that this process can hold, whatever its share of `--max-conn`.
    pub room_max: u64,
    sender: Sender<ToParent>,
    /// What anybody may ask is asked for one after the other.
    rounds: tokio::sync::Mutex<()>,
}

impl Family {
    /// Asks all processes, this one included. Nothing, if the parent does not answer.
    pub async fn ask(&self, question: Question) -> Vec<Said> {
        let body = processes::write(&Wish::Ask(question));
        let _round = self.rounds.lock().await;
        let answer = tokio::time::timeout(PATIENCE * 2, self.sender.request("", body)).await;
        answer.ok().and_then(Result::ok).and_then(|said| rmp_serde::from_slice(&said).ok()).unwrap_or_default()
    }
}

/// The same while the node runs.
pub(super) struct RunningParentEnd {
    pipeline: Weak<Pipeline>,
    sender: Sender<ToParent>,
    /// Closed when the link is lost.
    running: watch::Receiver<()>,
    orders: Option<mpsc::Receiver<Ordered>>,
    /// Dropped when the link is to be put to work.
    waits: Option<oneshot::Sender<()>>,
}

impl ParentEnd {
    /// Hears over an inherited socket what the parent says first. Waits for it, at most half a minute. `room` is what was dealt out
    /// to this process of `--max-conn`, if that is not its share.
    ///
    /// # Errors
    /// It does not come, or is something else.
    pub fn greet(inherited: Inherited, room: Option<u64>) -> Result<ParentEnd, LinkLost> {
        let mut socket = inherited.parent;
        let welcome = local::welcome(&mut socket)?;
        // What comes next waits in the socket. A parent that is slow is still the only one.
        let (link, orders) = (Link::new(socket, None), mpsc::channel(ORDERS_MAX));
        Ok(ParentEnd { welcome, link, orders, descriptors: inherited.orders, old: inherited.old, room })
    }

    /// The channel to the process that this one is to take over from. Once only.
    pub(super) fn take_old(&mut self) -> Option<Channel> {
        self.old.take()
    }

    /// For how many clients there is room here, if not for the share of the configuration.
    pub(super) fn room(&self) -> Option<u64> {
        self.room
    }

    /// For what is asked of all processes.
    pub(super) fn family(&self, room_max: u64) -> Family {
        Family { room_max, sender: self.link.sender(), rounds: tokio::sync::Mutex::default() }
    }

    pub(super) fn broker(&self, sessions_ttl: Duration) -> ParentBroker {
        ParentBroker::new(self.link.sender(), &self.welcome, sessions_ttl)
    }

    /// Puts the link onto the runtime. Nothing is said or heard before [`RunningParentEnd::begin`].
    pub(super) fn start(
        self,
        runtime: &Runtime,
        pipeline: &Arc<Pipeline>,
        observer: &Arc<Observer>,
    ) -> RunningParentEnd {
        let sender = self.link.sender();
        let (still, running) = watch::channel(());
        let (orders, to_obey) = self.orders;
        let (waits, begins) = oneshot::channel();
        let end = RunningParentEnd {
            pipeline: Arc::downgrade(pipeline),
            sender,
            running,
            orders: Some(to_obey),
            waits: Some(waits),
        };
        let turning = tokio::sync::Mutex::new(supervisor::Turns::new(Arc::clone(observer)));
        let (descriptors, link_format) = (Arc::new(self.descriptors), self.welcome.format);
        let asked = Arc::new(Answers { observer: Arc::clone(observer), turning, orders, descriptors, link_format });
        let pipeline = Arc::clone(pipeline);
        runtime.spawn(async move {
            // Its end.
            let _: Result<(), _> = begins.await;
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
    /// Says what there was to say by now, and goes on with that. `has_taken_over`: this process has what another one had.
    pub fn begin(&mut self, has_taken_over: bool) {
        if has_taken_over {
            self.sender.put(&ToParent::TakenOver);
        }
        self.waits = None;
    }

    /// What the parent wants to have done from now on. Once only.
    pub fn take_orders(&mut self) -> Option<mpsc::Receiver<Ordered>> {
        self.orders.take()
    }

    /// Tells the parent that this process serves.
    pub fn tell_it_serves(&self) -> impl Future<Output = ()> + Send + use<> {
        let sender = self.sender.clone();
        async move {
            // Without a parent this process ends.
            let _ = sender.request("", processes::write(&Wish::Serving)).await;
        }
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

/// Answers what the parent asks of this process, and passes on what it wants to have done.
struct Answers {
    observer: Arc<Observer>,
    /// One look at a time.
    turning: tokio::sync::Mutex<supervisor::Turns>,
    orders: mpsc::Sender<Ordered>,
    descriptors: Arc<Channel>,
    link_format: u16,
}

impl Answers {
    async fn answer(&self, question: Question) -> Vec<u8> {
        let observer = &self.observer;
        let inboxes = &observer.parts.inboxes;
        match question {
            Question::Alive => Vec::new(),
            Question::Turns { patience } => {
                let (stuck, _) = self.turning.lock().await.look(patience).await;
                processes::write(&observer.turning(stuck))
            }
            Question::Metrics => processes::write(&observer.counted()),
            Question::Checks => processes::write(&observer.named_checks()),
            Question::Closes(query) => {
                let query = look::Query::parse(&query);
                processes::write(&look::closes_here(inboxes, &observer.parts.inherited, &query).await)
            }
            Question::Connections(query) => {
                let query = look::Query::parse(&query);
                processes::write(&look::connections_here(inboxes, &query).await)
            }
        }
    }

    async fn reload(&self, config: crate::config::Carried) -> Result<(), String> {
        let config = Box::new(config.into_config()?);
        let (done, is_done) = oneshot::channel();
        let order = Ordered::Reload(ReloadOrder { config, done });
        self.orders.try_send(order).map_err(|_| "it is busy with another one, or ends".to_owned())?;
        is_done.await.unwrap_or_else(|_| Err("it ends".to_owned()))
    }

    async fn upgrade(&self, only_checks: bool) -> Result<Succeeded, String> {
        let descriptors = Arc::clone(&self.descriptors);
        let received = tokio::task::spawn_blocking(move || new_process(&descriptors)).await;
        let (done, is_done) = oneshot::channel();
        let new = received.unwrap_or_else(|error| Err(io::Error::other(error)));
        let order = UpgradeOrder { only_checks, new, link_format: self.link_format, done };
        let order = Ordered::Upgrade(order);
        self.orders.try_send(order).map_err(|_| "it is busy with another order, or ends".to_owned())?;
        is_done.await.unwrap_or_else(|_| Err("it ends".to_owned()))
    }
}

/// The channel to the process that is to take over, and what stands for it.
fn new_process(descriptors: &Channel) -> io::Result<(Channel, Pidfd)> {
    descriptors.set_patience(Some(DESCRIPTORS_WITHIN))?;
    let received = descriptors.receive()?.map(|received| received.descriptors).unwrap_or_default();
    let [channel, process] =
        <[OwnedFd; 2]>::try_from(received).map_err(|_| io::Error::other("the order came without its descriptors"))?;
    Ok((Channel::try_from(channel)?, Pidfd::from(process)))
}

impl Asked for Answers {
    fn asked(self: Arc<Self>, _: Box<str>, body: Vec<u8>) -> Answering {
        Box::pin(async move {
            match rmp_serde::from_slice(&body) {
                Ok(Order::Answer(question)) => self.answer(question).await,
                Ok(Order::Reload(config)) => processes::write(&self.reload(config).await),
                Ok(Order::Upgrade { only_checks }) => processes::write(&self.upgrade(only_checks).await),
                Ok(Order::Room(clients)) => processes::write(&self.observer.parts.set_room(clients)),
                Ok(Order::Tell) => {
                    // One that ends has nothing to tell.
                    let _ = self.orders.try_send(Ordered::Tell);
                    Vec::new()
                }
                Err(error) => {
                    tracing::error!(%error, "the parent process says what this one does not understand");
                    Vec::new()
                }
            }
        })
    }
}
