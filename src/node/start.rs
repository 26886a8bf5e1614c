//! How a node starts: decide, bind, make everything that can fail, then start threads and serve.
//!
//! Every value here takes down what it stands for when it is dropped, so each step may just return its error.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::{io, thread};

use tokio::runtime::Runtime;

use crate::backend::Backend;
use crate::broadcast::Broadcast;
use crate::broker::{Broker, LocalBroker};
use crate::config::{Config, ListenOn, Secrets};
use crate::http::{ExtraRoutes, HttpMetrics, HttpServer, Routes};
use crate::link::local::messages::Welcome;
use crate::model::Answer;
use crate::os::clock::Clock;
use crate::os::facts::Facts;
use crate::os::hand_over::Channel;
use crate::os::{limits, process};
use crate::shard::{self, Deal, Epoll, EpollSettings, Inbox, Message, Shard, ShardMetrics};

use super::boot_log::{Main, ToTell};
use super::capacity::{Capacity, Outlook};
use super::child::ParentEnd;
use super::counts::Counts;
use super::links::{Links, RunningLinks};
use super::listeners::{HttpPort, MainPort};
use super::observe::{self, Observer};
use super::publish::{Pipeline, ToPipeline};
use super::reload::MadeOf;
use super::services::{NodeServices, Shared};
use super::signals::Signals;
use super::state::Given;
use super::threads::{RuntimeThread, ShardThreads};
use super::upgrade::{self, Lane, Predecessor, Receivers};
use super::{Node, StartError, capacity, settings};

/// Threads for ordinary HTTP. Publications are few and short next to what becomes of them in the shards.
const HTTP_THREADS: usize = 1;

/// What is decided before anything is made.
pub(super) struct Plan {
    pub config: Arc<Config>,
    secrets: Secrets,
    pub open_files: u64,
    pub shards: usize,
    machine: Facts,
    capacity: Capacity,
    outlook: Outlook,
    /// The link to the parent, if this process is one of several.
    parent: Option<ParentEnd>,
    program: io::Result<PathBuf>,
    /// What the process before this one has that this one must have, too.
    pub given: Option<Given>,
}

impl Plan {
    /// Raises the limit of open files, and works out how many shards and clients there may be.
    pub fn new(config: Config, parent: Option<ParentEnd>) -> io::Result<Plan> {
        let secrets = Secrets::resolve(&config);
        let open_files = limits::raise_open_files()?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shards = if config.server.acceptors == 0 { cores } else { usize::from(config.server.acceptors) };
        let machine = capacity::facts(open_files);
        let mut capacity = Capacity::find(&config, &machine, shards);
        if let Some(room) = parent.as_ref().and_then(ParentEnd::room) {
            capacity.clients = room.min(room_max(&config, &machine, shards));
        }
        let outlook = Outlook::find(&config, &machine, shards, &capacity);
        let program = process::program();
        let config = Arc::new(config);
        let given = None;
        Ok(Plan { config, secrets, open_files, shards, machine, capacity, outlook, parent, program, given })
    }

    /// The channel to the process that this one is to take over from, if the parent gave one. Once only.
    pub fn take_old(&mut self) -> Option<Channel> {
        self.parent.as_mut().and_then(ParentEnd::take_old)
    }

    /// Whether this process is one of several.
    pub fn is_child(&self) -> bool {
        self.parent.is_some()
    }
}

/// How many clients there can be whatever `--max-conn` says.
fn room_max(config: &Config, machine: &Facts, shards: usize) -> u64 {
    let mut config = config.clone();
    config.server.max_conn = 0;
    Capacity::find(&config, machine, shards).clients
}

/// All parts of a node, before any of its own threads runs.
pub(super) struct Assembly {
    plan: Plan,
    address: SocketAddr,
    /// Copies of the shards' listeners.
    listeners: Arc<Mutex<Vec<TcpListener>>>,
    runtime: Runtime,
    calls: Runtime,
    links: Links,
    links_runtime: Option<Runtime>,
    core: Core,
    observer: Arc<Observer>,
    draining: Arc<AtomicBool>,
    main_http: HttpServer,
    http_ports: Vec<HttpPort>,
    machines: Vec<Epoll>,
    is_child: bool,
    main_was_passed: bool,
}

/// What shards, HTTP and observer use alike.
struct Core {
    inboxes: Arc<[Arc<Inbox>]>,
    backend: Arc<Backend>,
    settings: Arc<shard::Settings>,
    metrics: Arc<[Arc<ShardMetrics>]>,
    pipeline: Arc<Pipeline>,
    broadcast: Arc<Broadcast>,
    counts: Arc<Counts>,
}

impl Core {
    /// `of_all` is what several processes have alike, of which this is one.
    fn new(
        plan: &Plan,
        of_all: Option<&Welcome>,
        listeners: usize,
        calls: &Runtime,
        links: &mut Links,
    ) -> Result<Core, StartError> {
        let Plan { config, secrets, .. } = plan;
        let inboxes: Arc<[Arc<Inbox>]> =
            (0..plan.shards).map(|_| Inbox::new().map(Arc::new)).collect::<Result<Vec<_>, _>>()?.into();
        let to_inbox = Arc::clone(&inboxes);
        let answers = Arc::new(move |answer: Answer| {
            if let Some(inbox) = to_inbox.get(usize::from(answer.key.shard)) {
                inbox.put(Message::Answer(answer));
            }
        });
        let backend = settings::backend(config, secrets)?;
        let backend = Arc::new(Backend::start(backend, calls.handle(), answers)?);
        let mut settings = settings::shard(config, secrets, plan.shards, plan.capacity.sockets_max, listeners)?;
        if let Some(of_all) = of_all {
            settings::with_parent(&mut settings, of_all, config);
        }
        plan.given.iter().for_each(|given| given.change(&mut settings));
        let settings = Arc::new(settings);
        let clock = match (&plan.given, of_all) {
            (Some(given), _) => Clock::began_at(given.clock_began_ns),
            (None, Some(of_all)) => Clock::since(of_all.clock_origin_usec),
            (None, None) => Clock::start(),
        };
        let hasher = settings.stream_hasher.clone();
        let pipeline = Arc::new_cyclic(|pipeline| {
            let local = || Broker::Local(LocalBroker::new(super::settings::broker(config)));
            let broker = links.broker(config, Arc::new(ToPipeline(Weak::clone(pipeline)))).unwrap_or_else(local);
            Pipeline::new(Arc::clone(&inboxes), hasher, broker, links.cluster.clone(), clock)
        });
        links.handed.stand_still_with(&pipeline);
        Ok(Core {
            metrics: (0..plan.shards as u16).map(|n| Arc::new(ShardMetrics::new(n))).collect(),
            broadcast: Arc::new(Broadcast::new(Arc::clone(&pipeline) as Arc<_>)),
            counts: Arc::new(Counts::new(plan.capacity.clients)),
            inboxes,
            backend,
            settings,
            pipeline,
        })
    }
}

impl Assembly {
    /// Makes everything that can fail. `handed` are listeners of ordinary HTTP that are there already.
    pub fn new(
        mut plan: Plan,
        main_port: MainPort,
        mut handed: Vec<(ListenOn, Vec<TcpListener>)>,
        extra: Option<ExtraRoutes>,
    ) -> Result<Assembly, StartError> {
        let address = main_port.address()?;
        let main_was_passed = main_port.was_passed;
        let copies = main_port.of_shards.iter().flatten().map(TcpListener::try_clone).collect::<Result<Vec<_>, _>>()?;
        let listeners = Arc::new(Mutex::new(copies));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(HTTP_THREADS)
            .thread_name("http")
            .enable_all()
            .build()?;
        let calls = RuntimeThread::runtime()?;
        let parent = plan.parent.take();
        let of_all = parent.as_ref().map(|parent| parent.welcome.clone());
        let family = parent.as_ref().map(|parent| parent.family(room_max(&plan.config, &plan.machine, plan.shards)));
        let is_child = family.is_some();
        let mut links = Links::new(&plan.config, parent, plan.given.as_ref().and_then(Given::links))?;
        // The first shard has as many as any.
        let core = Core::new(&plan, of_all.as_ref(), main_port.of_shards[0].len(), &calls, &mut links)?;
        let links_runtime = links.runtime()?;
        let draining = Arc::new(AtomicBool::new(false));
        let http_metrics = Arc::new(HttpMetrics::default());
        let observer = Arc::new(Observer::new(observe::Parts {
            config: Mutex::new(Arc::clone(&plan.config)),
            open_files: plan.open_files,
            shards: Arc::clone(&core.metrics),
            inboxes: Arc::clone(&core.inboxes),
            http: Arc::clone(&http_metrics),
            backend: Arc::clone(&core.backend),
            counts: Arc::clone(&core.counts),
            broadcast: Arc::clone(&core.broadcast),
            pipeline: Arc::clone(&core.pipeline),
            listeners: Arc::clone(&listeners),
            draining: Arc::clone(&draining),
            links: links.states.clone(),
            redisx: links.redisx.clone(),
            handed: Arc::clone(&links.handed),
            inherited: Arc::default(),
            control: Arc::default(),
            family,
            upgrades: Arc::default(),
        }));
        let ports = settings::ports(&plan.config, &plan.secrets, &core.broadcast, &observer, extra);
        let limits = settings::http_limits(&plan.config, plan.open_files);
        let server = |routes| HttpServer::new(routes, limits.clone(), Arc::clone(&http_metrics));
        let websockets = Some(core.settings.handshake.clone());
        let main_http = server(Routes { websockets, ..ports.main });
        let others = ports.others.into_iter().map(|(place, routes)| {
            match handed.iter().position(|(known, listeners)| *known == place && !listeners.is_empty()) {
                Some(at) => Ok(HttpPort { place, listeners: handed.swap_remove(at).1, server: server(routes) }),
                None => HttpPort::bind(&place, server(routes), is_child),
            }
        });
        let http_ports = others.collect::<Result<_, _>>()?;
        let machines = machines(&plan, main_port, &core)?;
        Ok(Assembly {
            plan,
            address,
            listeners,
            runtime,
            calls,
            links,
            links_runtime,
            core,
            observer,
            draining,
            main_http,
            http_ports,
            machines,
            is_child,
            main_was_passed,
        })
    }

    /// Starts the threads, and serves from then on.
    pub fn start(self) -> Result<Node, StartError> {
        self.start_behind(None)
    }

    /// The same, with everything that the old process has; it is told what went wrong. When this process serves, nobody else
    /// does.
    pub fn take_over(self, predecessor: Predecessor) -> Result<Node, StartError> {
        self.start_behind(Some(predecessor))
    }

    fn start_behind(mut self, predecessor: Option<Predecessor>) -> Result<Node, StartError> {
        let calls = RuntimeThread::start("calls", self.calls)?;
        let machines = std::mem::take(&mut self.machines);
        // As many shards as there have a lane each.
        let senders = predecessor.as_ref().map(Predecessor::shards).filter(|&shards| shards != machines.len());
        let (lanes, arriving) = match &predecessor {
            Some(_) => {
                upgrade::lanes(machines.len(), senders.unwrap_or(1)).map(|(lanes, arriving)| (lanes, Some(arriving)))?
            }
            None => (Vec::new(), None),
        };
        let shards = start_shards(machines, lanes, &self.core, &self.main_http, &self.runtime)?;
        let admin_on = self.plan.config.admin_on();
        let admin = self.http_ports.iter().find(|port| Some(&port.place) == admin_on.as_ref());
        let admin = admin.and_then(HttpPort::address);
        let http_ports = self.http_ports.into_iter().map(|port| port.ready(&self.runtime));
        let mut http_ports = http_ports.collect::<io::Result<Vec<_>>>()?;
        let Core { pipeline, broadcast, .. } = &self.core;
        // Links connect and follow what this node follows from now on; what comes waits.
        let frozen = predecessor.as_ref().map(|_| self.runtime.block_on(pipeline.freeze()));
        let mut links = self.links.start(self.links_runtime, pipeline, broadcast, &self.observer)?;
        let mut signals = None;
        let taken = match (&predecessor, arriving) {
            (Some(predecessor), Some(arriving)) => {
                let taken = predecessor.take_everything(&self.observer.parts, arriving, || {
                    let _runtime = self.runtime.enter();
                    signals = Some(Signals::listen()?);
                    Ok(())
                });
                Some(taken?)
            }
            _ => None,
        };
        // Nothing fails from here on: there may be nobody else to serve.
        if let Some(parent) = links.as_mut().and_then(RunningLinks::parent_mut) {
            parent.begin(taken.is_some());
        }
        drop(frozen);
        let predecessor_ends = predecessor.zip(taken).map(|(predecessor, mut taken)| {
            taken.serve(&predecessor, &self.observer.parts);
            predecessor.follow(taken, receivers(&self.core, &self.runtime))
        });
        http_ports.iter_mut().for_each(|port| port.serve(&self.runtime));
        self.observer.watch(self.runtime.handle());
        self.core.pipeline.keep_sweeping(self.runtime.handle());
        self.observer.keep_probing(self.runtime.handle());
        let Core { backend, settings, broadcast, .. } = self.core;
        let Plan { config, secrets, shards: shard_count, machine, capacity, outlook, program, .. } = self.plan;
        let scheme = settings.listeners.first().copied().unwrap_or_default().scheme;
        let main = Main { address: self.address, scheme, admin };
        let sockets_max = capacity.sockets_max;
        Ok(Node {
            to_tell: Some(ToTell { secrets, main, outlook, capacity }),
            config,
            made_of: MadeOf {
                machine,
                shards: shard_count,
                sockets_max,
                settings,
                broadcast,
                program,
                main_was_passed: self.main_was_passed,
                for_successors: Vec::new(),
            },
            runtime: self.runtime,
            shards,
            calls,
            links,
            backend,
            listeners: self.listeners,
            main_http: self.main_http,
            http_ports,
            observer: self.observer,
            draining: self.draining,
            address: self.address,
            control: None,
            signals,
            is_child: self.is_child,
            ordered: None,
            predecessor: predecessor_ends,
            successor: None,
        })
    }
}

/// Who gets what still comes from the process before this one.
fn receivers(core: &Core, runtime: &Runtime) -> Receivers {
    Receivers {
        pipeline: Arc::clone(&core.pipeline),
        backend: Arc::clone(&core.backend),
        inboxes: Arc::clone(&core.inboxes),
        runtime: runtime.handle().clone(),
    }
}

/// One machine for each shard.
fn machines(plan: &Plan, main_port: MainPort, core: &Core) -> io::Result<Vec<Epoll>> {
    let (inboxes, clock) = (&core.inboxes, core.pipeline.clock);
    let sockets_max = plan.capacity.sockets_max;
    let of_shard = main_port.of_shards.into_iter().zip(inboxes.iter()).enumerate();
    let settings = of_shard.map(|(shard, (listeners, inbox))| EpollSettings {
        listeners,
        clock,
        inbox: Arc::clone(inbox),
        sockets_max,
        deal: main_port.is_dealt.then(|| Deal::new(Arc::clone(inboxes), shard)),
    });
    settings.map(Epoll::new).collect()
}

/// Starts a thread for each shard, and waits until every shard is made: what it holds at rest is there before anybody
/// measures. One with a lane stands still until it is told to go on.
fn start_shards(
    machines: Vec<Epoll>,
    lanes: Vec<Lane>,
    core: &Core,
    http: &HttpServer,
    runtime: &Runtime,
) -> io::Result<ShardThreads> {
    let shared = Arc::new(Shared {
        backend: Arc::clone(&core.backend),
        broadcast: Arc::clone(&core.broadcast),
        pipeline: Arc::clone(&core.pipeline),
        counts: Arc::clone(&core.counts),
        inboxes: Arc::clone(&core.inboxes),
        http: http.clone(),
        runtime: runtime.handle().clone(),
    });
    let mut threads = ShardThreads::new(Arc::clone(&core.inboxes));
    let (ready, all_ready) = mpsc::channel::<()>();
    let mut lanes = lanes.into_iter();
    for ((shard, machine), metrics) in (0u16..).zip(machines).zip(core.metrics.iter()) {
        let services = NodeServices { shard, shared: Arc::clone(&shared) };
        let (settings, metrics, ready) = (Arc::clone(&core.settings), Arc::clone(metrics), ready.clone());
        let lane = lanes.next();
        threads.start(shard, move || {
            let mut engine = Shard::new(shard, machine, services, settings, metrics);
            drop(ready);
            if let Some(Lane { lane, senders, arrived, go_on }) = lane {
                engine.stop();
                let _ = arrived.send(engine.arrive(&lane, senders));
                drop((lane, arrived));
                if go_on.recv().is_err() {
                    return;
                }
            }
            if let Err(error) = shard::run(engine) {
                tracing::error!(shard, %error, "a shard stopped; its connections are lost");
            }
        })?;
    }
    drop(ready);
    let _ = all_ready.recv();
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::OwnedFd;
    use std::sync::PoisonError;
    use std::time::Duration;

    use super::*;

    /// Threads are told apart by their names, so one node at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Reached only when a test fails.
    const SOON: Duration = Duration::from_secs(20);

    fn config() -> Config {
        let mut config = Config::default();
        config.server.host = "127.0.0.1".into();
        config.server.port = 0;
        config.server.acceptors = 2;
        config.app.public = true;
        config.broadcast.key = crate::config::Secret::Key("unused".into());
        config.rpc.host = "127.0.0.1:1".into();
        config
    }

    fn threads() -> Vec<String> {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        let ours = |name: &String| name.starts_with("shard-") || ["calls", "http"].contains(&name.as_str());
        let mut names: Vec<_> = names.map(|name| name.trim_end().to_owned()).filter(ours).collect();
        names.sort_unstable();
        names
    }

    /// A thread that was joined may be listed for a moment longer, and one that was just started gives itself its name.
    fn threads_become(expected: &[&str]) {
        let clock = Clock::start();
        let begun = clock.now().mono;
        while threads() != expected {
            assert!(clock.now().mono - begun < SOON, "{:?}", threads());
            thread::yield_now();
        }
    }

    fn assembly() -> Assembly {
        let plan = Plan::new(config(), None).unwrap();
        let main_port = MainPort::open(&plan.config, plan.shards, false).unwrap();
        Assembly::new(plan, main_port, Vec::new(), None).unwrap()
    }

    #[test]
    fn a_port_that_is_taken_is_an_error_and_frees_the_other_ports() {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (free, taken) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let main = free.local_addr().unwrap();
        drop(free);
        let mut config = config();
        config.server.port = main.port();
        config.metrics.host = "127.0.0.1".into();
        config.metrics.port = taken.local_addr().unwrap().port();
        let error = Node::start(config, None, None).err().expect("the port is taken");
        assert!(matches!(error, StartError::Listen { what: "HTTP", .. }), "{error}");
        threads_become(&[]);
        TcpListener::bind(main).expect("nobody listens there any more");
    }

    #[test]
    fn the_last_step_that_fails_takes_all_threads_and_ports_down() {
        // Aim: an error after all shards run leaves nothing behind. A file in the place of a listener cannot be watched,
        // which is found out when everything else serves.
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut assembly = assembly();
        let main = assembly.address;
        let place = ListenOn::Own { host: "127.0.0.1".into(), port: 0 };
        let good = HttpPort::bind(&place, assembly.main_http.clone(), false).unwrap();
        let own = good.listeners[0].local_addr().unwrap();
        let file = TcpListener::from(OwnedFd::from(File::open("/proc/self/exe").unwrap()));
        file.set_nonblocking(true).unwrap();
        let bad = HttpPort { place, listeners: vec![file], server: assembly.main_http.clone() };
        assembly.http_ports = vec![good, bad];
        assert!(matches!(assembly.start().err(), Some(StartError::Machine(_))));
        threads_become(&[]);
        for address in [main, own] {
            TcpListener::bind(address).expect("nobody listens there any more");
        }
    }

    #[test]
    fn a_node_that_is_dropped_takes_all_threads_and_ports_down() {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let node = assembly().start().unwrap();
        threads_become(&["calls", "http", "shard-0", "shard-1"]);
        let main = node.address();
        drop(node);
        threads_become(&[]);
        TcpListener::bind(main).expect("nobody listens there any more");
    }
}
