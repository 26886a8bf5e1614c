//! The links of this node to Redis and NATS: what is kept over them, and the thread "links" on which all of it runs. A node
//! without any has no such thread.

mod hand_over;
mod nats;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::broadcast::{Broadcast, PublicationSink, RedisSource, RedisXMetrics, RedisXSource};
use crate::broker::{Broker, Channels, Outlet, RedisBrokerSettings, RedisStore, RemoteBroker, RemoteSettings};
use crate::cluster::{self, Cluster, Exchange, Incoming, Medium, RedisMedium, Work};
use crate::config::{BroadcastAdapter, BrokerKind, Config, PubSub};
use crate::link::LinkState;
use crate::link::redis::{Redis, RedisSettings, RedisSettingsError};
use crate::model::{NodeId, Publication, RemoteDisconnect};
use crate::proto::publication::between_nodes::Origin;

use super::StartError;
use super::child::{ParentEnd, RunningParentEnd};
use super::observe::Observer;
use super::publish::Pipeline;
use super::settings;
use super::threads::RuntimeThread;

pub(super) use hand_over::{HandedLinks, LinksGiven, LinksSnapshot, LinksState};

/// What reads broadcasts from a link until it is told to stop.
type Source = Box<dyn FnOnce(Arc<Broadcast>, watch::Receiver<bool>) -> SourceWork + Send>;
type SourceWork = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes a broker, and what it runs beside the shards.
type MakeBroker = Box<dyn FnOnce(RemoteSettings, Arc<dyn Outlet>) -> (RemoteBroker, Work<'static>) + Send>;

/// What is to run on the thread.
#[derive(Default)]
pub(super) struct Links {
    /// This node's end of the cluster.
    pub cluster: Cluster,
    /// How each link is doing.
    pub states: Vec<Arc<LinkState>>,
    /// What came by the stream of Redis, if it is read.
    pub redisx: Option<Arc<RedisXMetrics>>,
    /// What another process goes on with.
    pub handed: Arc<HandedLinks>,
    medium: Option<Box<dyn Medium>>,
    sources: Vec<Source>,
    /// What the broker keeps everything in.
    store: Option<MakeBroker>,
    /// To the parent, if this process is one of several.
    parent: Option<ParentEnd>,
    broker: Option<Work<'static>>,
}

/// The thread, and the way to stop what it reads.
pub(super) struct RunningLinks {
    stop: watch::Sender<bool>,
    /// Closed when all sources have ended.
    sources: watch::Receiver<()>,
    exchange: Option<Arc<Exchange>>,
    /// To the parent.
    parent: Option<RunningParentEnd>,
    pipeline: Arc<Pipeline>,
    thread: RuntimeThread,
}

impl RunningLinks {
    /// Has broadcasts read no more.
    pub fn stop_reading(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until what was read is handed over, the other nodes know of it, and the sessions of this node's clients are kept
    /// for them: until `deadline`, and between [`FINISH_MIN`] and [`FINISH_MAX`].
    pub async fn finish(&self, deadline: Instant) {
        let finished = async {
            // An error says that there are no sources any more.
            while self.sources.clone().changed().await.is_ok() {}
            let is_over = || self.exchange.as_ref().is_none_or(|exchange| exchange.has_sent_all());
            let is_kept = || match &self.pipeline.broker {
                Broker::Remote(remote) => {
                    // In this order: what is found now may be what was answered a moment ago.
                    let has_kept_all = remote.has_kept_all();
                    let left = self.pipeline.left_sessions();
                    let is_nothing_left = left.is_empty();
                    left.into_iter().for_each(|saved| remote.departed(saved.sid, Some(Box::new(saved))));
                    has_kept_all && is_nothing_left
                }
                Broker::Local(_) | Broker::Parent(_) => true,
            };
            while !(is_over() && is_kept()) {
                sleep(Duration::from_millis(5)).await;
            }
            if let Some(parent) = &self.parent {
                parent.said_all().await;
            }
        };
        let now = Instant::now();
        if timeout_at(deadline.clamp(now + FINISH_MIN, now + FINISH_MAX), finished).await.is_err() {
            tracing::warn!(
                "not all publications reached the other nodes, or not all sessions the broker; what is held of redisx is taken \
                 by another node"
            );
        }
    }

    /// The link to the parent.
    pub fn parent_mut(&mut self) -> Option<&mut RunningParentEnd> {
        self.parent.as_mut()
    }

    /// Leaves the thread to the end of the process.
    pub fn detach(self) {
        self.thread.detach();
    }
}

impl Links {
    /// What the configuration asks for, and the link to the parent. Nothing is connected yet. `given` is from the process that
    /// this one goes on from.
    ///
    /// # Errors
    /// Files that are named cannot be read, or hold nothing that can be used.
    pub fn new(config: &Config, parent: Option<ParentEnd>, given: Option<&LinksGiven>) -> Result<Links, StartError> {
        let mut handed = HandedLinks::new(given);
        let mut links = Links { parent, ..Links::default() };
        if config.pubsub() != PubSub::None {
            links.cluster = Cluster::new(handed.node(), cluster::Settings { reserved: reserved(config) });
        }
        links.add_all(config, &mut handed)?;
        handed.begin(given, &links.cluster);
        links.handed = Arc::new(handed);
        Ok(links)
    }

    fn add_all(&mut self, config: &Config, handed: &mut HandedLinks) -> Result<(), StartError> {
        let links = self;
        if config.uses_redis() {
            let redis = redis_settings(config);
            let redis =
                Redis::new(&redis).map_err(|error: RedisSettingsError| StartError::Setting(with_cause(&error)))?;
            links.add_redis(config, &Arc::new(redis), handed);
        }
        if config.uses_nats() {
            links.add_nats(config, handed)?;
        }
        Ok(())
    }

    fn add_redis(&mut self, config: &Config, redis: &Arc<Redis>, handed: &mut HandedLinks) {
        let ask_sentinels_every = config.redis.sentinel_discovery_interval;
        if config.pubsub() == PubSub::Redis {
            self.medium = Some(Box::new(RedisMedium {
                redis: Arc::clone(redis),
                state: self.state("redis_pubsub", redis.advice()),
                prefix: config.cluster.prefix.clone(),
                commands: config.cluster.redis_channel.clone(),
                ask_sentinels_every,
            }));
        }
        if config.broker.kind == BrokerKind::Redis {
            let state = self.state("redis_broker", redis.advice());
            let settings = RedisBrokerSettings {
                prefix: config.broker.prefix.clone(),
                history_limit: config.broker.history_limit,
                history_ttl: config.broker.history_ttl,
                sessions_ttl: config.broker.sessions_ttl,
                channels: (config.pubsub() == PubSub::Redis)
                    .then(|| Channels { prefix: config.cluster.prefix.clone(), reserved: reserved(config) }),
                ask_sentinels_every,
            };
            let node = handed.node();
            let store = RedisStore::new(Arc::clone(redis), state, settings, node);
            self.store = Some(Box::new(move |settings, outlet| {
                let (broker, running) = RemoteBroker::new(store, settings, node, outlet);
                (broker, Box::pin(running.run()))
            }));
        }
        if config.broadcast.has(BroadcastAdapter::Redis) {
            let source = RedisSource {
                redis: Arc::clone(redis),
                state: self.state("redis", redis.advice()),
                channel: config.broadcast.redis_channel.clone(),
                ask_sentinels_every,
                fanout: handed.fanout("redis"),
            };
            self.sources.push(Box::new(|broadcast, stop| Box::pin(until_stopped(source.run(broadcast), stop))));
        }
        if config.broadcast.has(BroadcastAdapter::RedisX) {
            let metrics = Arc::new(RedisXMetrics::default());
            self.redisx = Some(Arc::clone(&metrics));
            let source = RedisXSource {
                redis: Arc::clone(redis),
                state: self.state("redisx", redis.advice()),
                stream: config.broadcast.redisx_stream.clone(),
                group: config.broadcast.redisx_group.clone(),
                consumer: handed.consumer().to_owned(),
                read_block: config.broadcast.redisx_read_block,
                metrics,
                in_hand: handed.redisx(),
            };
            self.sources.push(Box::new(|broadcast, stop| Box::pin(source.run(broadcast, stop))));
        }
    }

    /// The broker, if it is on other machines; what it does waits for the thread.
    pub fn broker(&mut self, config: &Config, outlet: Arc<dyn Outlet>) -> Option<Broker> {
        if let Some(parent) = self.parent.as_ref().filter(|parent| parent.welcome.relays) {
            return Some(Broker::Parent(parent.broker(config.broker.sessions_ttl)));
        }
        let (broker, running) = self.store.take()?(settings::remote_broker(config), outlet);
        self.broker = Some(running);
        Some(Broker::Remote(broker))
    }

    fn state(&mut self, name: &'static str, advice: String) -> Arc<LinkState> {
        let state = Arc::new(LinkState::new(name, advice));
        self.states.push(Arc::clone(&state));
        state
    }

    /// The runtime, where there is anything to run.
    pub fn runtime(&self) -> io::Result<Option<Runtime>> {
        let is_needed =
            self.medium.is_some() || self.broker.is_some() || !self.sources.is_empty() || self.parent.is_some();
        is_needed.then(RuntimeThread::runtime).transpose()
    }

    /// Puts everything onto the runtime and starts its thread.
    pub fn start(
        self,
        runtime: Option<Runtime>,
        pipeline: &Arc<Pipeline>,
        broadcast: &Arc<Broadcast>,
        observer: &Arc<Observer>,
    ) -> io::Result<Option<RunningLinks>> {
        let Some(runtime) = runtime else { return Ok(None) };
        let parent = self.parent.map(|parent| parent.start(&runtime, pipeline, observer));
        let exchange = self.cluster.exchange().cloned();
        if let (Some(exchange), Some(medium)) = (&exchange, self.medium) {
            // Not before: a process that takes over has nothing to send, and a mark to publish.
            pipeline.add_worker(exchange.sending.clone());
            runtime.spawn(Arc::clone(exchange).run(medium, Arc::clone(pipeline) as Arc<_>));
        }
        self.broker.into_iter().for_each(|broker| drop(runtime.spawn(broker)));
        let (stop, stopped) = watch::channel(false);
        let (running, sources) = watch::channel(());
        let mut reading = JoinSet::new();
        for source in self.sources {
            reading.spawn_on(source(Arc::clone(broadcast), stopped.clone()), runtime.handle());
        }
        runtime.spawn(async move {
            let _running = running;
            reading.join_all().await;
        });
        let (pipeline, thread) = (Arc::clone(pipeline), RuntimeThread::start("links", runtime)?);
        Ok(Some(RunningLinks { stop, sources, exchange, parent, pipeline, thread }))
    }
}

async fn until_stopped(work: impl Future<Output = ()>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = work => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Names of streams whose channels are those of servers.
pub(super) fn reserved(config: &Config) -> Vec<String> {
    let (broadcast, cluster) = (&config.broadcast, &config.cluster);
    // Channels of broadcasts have no prefix. One that a stream's could be is what is left of it without.
    let of_broadcasts = [&broadcast.redis_channel, &broadcast.nats_channel];
    let of_broadcasts = of_broadcasts.into_iter().filter_map(|channel| channel.strip_prefix(&*cluster.prefix));
    let of_commands = [&cluster.redis_channel, &cluster.nats_channel].into_iter().map(String::as_str);
    of_broadcasts.chain(of_commands).map(str::to_owned).collect()
}

fn redis_settings(config: &Config) -> RedisSettings {
    let redis = &config.redis;
    let named = |path: &String| (!path.is_empty()).then(|| path.clone());
    RedisSettings {
        servers: redis.urls.0.clone(),
        sentinels: redis.sentinels.0.clone(),
        database: redis.database(),
        keepalive: redis.keepalive_interval,
        tls_verify: redis.tls_verify,
        tls_ca: named(&redis.tls_ca),
        tls_client: named(&redis.tls_client_cert).zip(named(&redis.tls_client_key)),
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// How long a shutdown waits for what is on its way to other nodes, also where its time is up by then.
const FINISH_MIN: Duration = Duration::from_secs(1);

/// And no longer. One reading of the stream of Redis takes up to 2 s.
const FINISH_MAX: Duration = Duration::from_secs(4);

impl Incoming for Pipeline {
    fn publication(&self, publication: Publication, _: Option<Origin>, own: bool) -> Work<'_> {
        Box::pin(async move {
            // Fails when the node ends, and then nobody is there to have it.
            match &self.broker {
                // It knows what this node's clients have, by the position.
                Broker::Remote(remote) if publication.position.is_some() => {
                    let room = self.room(&publication).await;
                    remote.received(publication, room);
                }
                // This node's clients had it when it was published.
                _ if own => {}
                _ => _ = self.publish_here(vec![publication]).await,
            }
        })
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) {
        drop(self.disconnect_here(disconnect));
    }

    fn command(&self, name: &str, payload: &str, node: NodeId) {
        match &self.broker {
            Broker::Remote(remote) => remote.command(name, payload),
            Broker::Local(_) | Broker::Parent(_) => {
                tracing::debug!(name, %node, "a command of another node is not known")
            }
        }
    }

    fn subscribed(&self, stream: &str) {
        if let Broker::Remote(remote) = &self.broker {
            remote.subscribed_again(stream);
        }
    }
}
