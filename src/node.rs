//! Assembly: every thread, channel and listener is made here, and taken down again.
//!
//! A node is some shards (one thread each), beside them one thread that calls the app and one for ordinary HTTP, each
//! with a tokio runtime; where there are links to Redis or NATS, a third keeps them. Answers go into the inbox of the shard that asked, publications into the inboxes of all
//! shards that follow the stream, and sockets that turned out to be HTTP from the shards to the HTTP server.

mod admin;
mod boot_log;
mod capacity;
mod child;
pub(crate) mod control;
mod counts;
mod dead_peers;
mod followers;
mod links;
mod listeners;
mod look;
mod metrics;
mod observe;
mod parent;
mod processes;
mod publish;
mod readiness;
mod reload;
mod services;
mod settings;
mod signals;
mod sorted_runs;
mod start;
mod state;
mod supervisor;
mod threads;
mod upgrade;
mod warnings;
mod whole;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::backend::{Backend, BackendError};
use crate::broker::Broker;
use crate::config::Config;
use crate::http::HttpServer;

use boot_log::ToTell;
use child::{Ordered, UpgradeOrder};
use control::{Control, Order, RunningControl, What, talk};
use links::RunningLinks;
use listeners::{MainPort, ReadyPort};
use observe::Observer;
use processes::Succeeded;
use reload::MadeOf;
use signals::{Asked, Signals};
use start::{Assembly, Plan};
use supervisor::{Supervisor, Turns};
use threads::{RuntimeThread, ShardThreads};

pub use boot_log::first_line;
pub use child::{ParentEnd, ReloadOrder};
pub use observe::Facts;
pub use parent::{Parent, ParentError, Renewed, TRY_RENEWAL_COMMAND, try_renewal};
pub use processes::Terms;
pub use reload::ReloadError;
pub use settings::ExtraRoutes;
use upgrade::{Following, NewProcess, Predecessor, ToSuccessor};
pub use upgrade::{Understood, UpgradeError, Upgraded};

/// How long a process that was succeeded waits for the next request on connections that their senders keep.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// Part of the time a shutdown may take that clients are spread over; the rest is for their last bytes and for telling
/// the app.
const DRAIN_SHARE: f64 = 0.8;

/// How long the last of what is forwarded to another process may take to be sent.
const FORWARD_MAX: Duration = Duration::from_secs(1);

/// A running server. One that is dropped closes its ports and its connections, and waits for its threads.
pub struct Node {
    config: Arc<Config>,
    /// For the log, when it runs.
    to_tell: Option<ToTell>,
    /// What it was made of beside the configuration, to take over a new one.
    made_of: MadeOf,
    // Dropped in this order: first whatever accepts or asks, last what answers.
    runtime: Runtime,
    shards: ShardThreads,
    calls: RuntimeThread,
    /// Keeps the links to Redis and NATS, if there are any.
    links: Option<RunningLinks>,
    backend: Arc<Backend>,
    /// Copies of the shards' listeners, for their queues' length. Emptied when they are to close.
    listeners: Arc<Mutex<Vec<TcpListener>>>,
    main_http: HttpServer,
    http_ports: Vec<ReadyPort>,
    observer: Arc<Observer>,
    draining: Arc<AtomicBool>,
    address: SocketAddr,
    /// What still comes from the process that this one has taken over from.
    predecessor: Option<Following>,
    /// The process that serves now, and gets what still comes here.
    successor: Option<Arc<ToSuccessor>>,
    /// Until it is answered at.
    control: Option<Control>,
    /// Of a process that has taken over, until it looks at what has come.
    signals: Option<Signals>,
    /// Whether this process is one of several.
    is_child: bool,
    /// What its parent wants to be taken over.
    ordered: Option<ReloadOrder>,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("cannot listen on {address} ({what})")]
    Listen {
        /// Host and port as configured.
        address: String,
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A supervisor has passed something that is no listener.
    #[error("cannot use the sockets that the supervisor has passed (LISTEN_FDS)")]
    Passed(#[source] io::Error),
    /// The machine refused something else.
    #[error("cannot start")]
    Machine(#[from] io::Error),
    /// The app's address or keys cannot be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A path cannot be used.
    #[error("{0}")]
    Setting(String),
    /// The process that was to hand over to this one.
    #[error("cannot take over: {0}")]
    Predecessor(String),
}

impl Node {
    /// Starts a server: binds everything, logs what it found, and serves from then on. `file` is where the configuration
    /// came from, for the log; `extra` adds routes to the main port (the demo's page).
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left behind.
    pub fn start(config: Config, file: Option<&Path>, extra: Option<ExtraRoutes>) -> Result<Node, StartError> {
        Node::start_one(Plan::new(config, None)?, file, extra)
    }

    /// The same for one of several processes, over its link to the parent. When that is lost it ends as if it were told to
    /// terminate.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left behind.
    pub fn start_child(config: Config, parent: ParentEnd) -> Result<Node, StartError> {
        Node::start_one(Plan::new(config, Some(parent))?, None, None)
    }

    fn start_one(mut plan: Plan, file: Option<&Path>, extra: Option<ExtraRoutes>) -> Result<Node, StartError> {
        let is_child = plan.is_child();
        if !is_child {
            boot_log::first_lines(plan.open_files, plan.shards, file);
        }
        let predecessor =
            if is_child { plan.take_old().map(Predecessor::over).transpose() } else { Predecessor::meet() };
        let Some(mut predecessor) = predecessor? else {
            let main_port = MainPort::open(&plan.config, plan.shards, is_child)?;
            let control = Control::open(plan.config.app.control_socket.as_deref(), main_port.address()?.port(), None)?;
            let node = Assembly::new(plan, main_port, Vec::new(), extra)?.start()?;
            return Ok(Node { control, ..node });
        };
        let (refusal, pid) = (predecessor.refusal()?, predecessor.pid);
        let option = plan.config.app.control_socket.clone();
        plan.given = Some(predecessor.given());
        let (main_port, others) = (predecessor.main.take(), std::mem::take(&mut predecessor.others));
        let main_port = main_port.map_or_else(
            || MainPort::open(&plan.config, plan.shards, is_child),
            |handed| MainPort::take_over(handed, &plan.config, plan.shards, is_child),
        );
        let node = main_port
            .and_then(|main_port| Assembly::new(plan, main_port, others, extra))
            .and_then(|assembly| assembly.take_over(predecessor));
        let node = node.inspect_err(|error| refusal.say(error))?;
        // It is the old process's until that has given everything away, and no reason to end from then on.
        let control = Control::open(option.as_deref(), node.address.port(), Some(pid));
        let control = control.unwrap_or_else(|error| {
            tracing::error!(%error, "there is no control socket; SIGUSR2 upgrades this server all the same");
            None
        });
        Ok(Node { control, ..node })
    }

    /// What the parent of this process wants to be taken over, if that is why the configuration is to be read again.
    pub fn take_order(&mut self) -> Option<ReloadOrder> {
        self.ordered.take()
    }

    /// Logs what the server is. The parent of several processes has told of the machine.
    fn tell(&mut self) {
        if let Some(to_tell) = self.to_tell.take() {
            if !self.is_child {
                boot_log::machine(&self.config, &to_tell.capacity, &to_tell.outlook);
            }
            boot_log::facts(&self.config, &to_tell, &self.backend, &self.made_of.settings.router);
        }
    }

    /// Where the main port really is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The runtime for whatever lives beside the shards.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Whether this process has taken over from another one.
    pub fn has_taken_over(&self) -> bool {
        self.predecessor.is_some()
    }

    /// A process that takes over gets this environment variable, too: for what was chosen here and must be the same there.
    pub fn hand_on(&mut self, variable: &'static str, value: String) {
        self.made_of.for_successors.push((variable, value));
    }

    /// What the server knows of itself.
    pub fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// Serves until SIGINT or SIGTERM, then shuts down in good order; a second signal ends it at once. For SIGHUP `reload` is
    /// called, which may give the node a new configuration by [`Node::reload`]. SIGUSR2 and the control socket ask for an
    /// upgrade: when another process serves, this one finishes what it has begun and ends. `ready` is called when signals are
    /// listened for and the log says so.
    ///
    /// # Errors
    /// Signals cannot be listened for.
    pub fn run_until_signalled(mut self, ready: impl FnOnce(), mut reload: impl FnMut(&mut Node)) -> io::Result<()> {
        let handle = self.runtime.handle().clone();
        let control = self.serve_control();
        let mut signals = match self.signals.take() {
            Some(signals) => signals,
            None => {
                let _runtime = handle.enter();
                Signals::listen()?
            }
        };
        signals.listen_at(control);
        // Not before: who reads that it serves may signal it at once. One of several processes tells it for all, when its parent
        // wants it.
        if !self.is_child {
            self.tell();
        }
        ready();
        let supervisor = Arc::new(Supervisor::from_env(self.has_taken_over()));
        handle.spawn(Arc::clone(&supervisor).keep_told(Turns::new(Arc::clone(&self.observer))));
        if let Some(parent) = self.links.as_mut().and_then(RunningLinks::parent_mut) {
            signals.obey(parent.take_orders(), parent.until_lost());
            handle.spawn(parent.tell_it_serves());
        }
        loop {
            match handle.block_on(signals.next()) {
                Asked::End => break,
                Asked::Reload => {
                    supervisor.reloading();
                    reload(&mut self);
                    supervisor.reloaded();
                }
                Asked::Order(order) => {
                    let Some(successor) = self.carry_out(order, &supervisor, &mut signals) else { continue };
                    self.finish(signals, Some(successor));
                    return Ok(());
                }
                Asked::ByParent(Ordered::Upgrade(order)) => {
                    if self.carry_out_for_parent(order) {
                        // The parent signals whom it means.
                        self.finish(signals, None);
                        return Ok(());
                    }
                }
                Asked::ByParent(Ordered::Tell) => self.tell(),
                Asked::ByParent(Ordered::Reload(order)) => {
                    self.ordered = Some(order);
                    reload(&mut self);
                }
            }
        }
        handle.block_on(async {
            tokio::select! {
                () = self.shut_down(&supervisor) => (),
                () = signals.end_again() => tracing::warn!("second signal: ending at once"),
            }
        });
        self.detach();
        Ok(())
    }

    /// Finishes what was begun, when another process serves; signals are passed on to it.
    fn finish(self, mut signals: Signals, pass_on_to: Option<u32>) {
        let handle = self.runtime.handle().clone();
        handle.block_on(async {
            tokio::select! {
                () = self.outlive() => (),
                () = signals.pass_on(pass_on_to) => (),
            }
        });
        self.detach();
    }

    /// Whatever is left must not hold the process up: its time was bounded before.
    fn detach(self) {
        self.runtime.shutdown_background();
        self.shards.detach();
        self.calls.detach();
        self.links.into_iter().for_each(RunningLinks::detach);
    }

    /// Begins to answer at the control socket. A failure is no reason to end: clients are served.
    fn serve_control(&mut self) -> Option<RunningControl> {
        let control = self.control.take()?;
        let path = control.path().display().to_string();
        let observer = Arc::clone(&self.observer);
        let metrics = Arc::clone(&observer.parts.control);
        match control.serve(self.runtime.handle(), metrics, move || observer.control_status()) {
            Ok(running) => {
                tracing::info!("control socket: {path}");
                Some(running)
            }
            Err(error) => {
                tracing::warn!(%error, "nobody can be answered at the control socket {path}");
                None
            }
        }
    }

    /// Does what was asked for, and tells whoever asked; the process that serves now, if this one has handed over.
    fn carry_out(&mut self, order: Order, supervisor: &Supervisor, signals: &mut Signals) -> Option<u32> {
        let Order { what, reader } = order;
        let (result, successor) = match what {
            _ if self.is_child => {
                let text = "this is one of several processes: their parent upgrades them";
                tracing::warn!("no upgrade: {text}");
                self.runtime.block_on(reader.end(Err(text.to_owned())));
                return None;
            }
            What::Check => (self.check_upgrade().map(talk::Done::from), None),
            What::Upgrade => {
                reader.tell(format!(
                    "upgrading process {} (cableway {})",
                    std::process::id(),
                    env!("CARGO_PKG_VERSION")
                ));
                supervisor.reloading();
                let upgraded = self.upgrade();
                match &upgraded {
                    Ok(upgraded) => supervisor.handed_over(upgraded.pid),
                    Err(_) => supervisor.reloaded(),
                }
                let successor = upgraded.as_ref().ok().map(|upgraded| upgraded.pid);
                (upgraded.map(talk::Done::from), successor)
            }
        };
        let result = result.map_err(|error| error.to_string());
        self.runtime.block_on(reader.end(result));
        signals.forget_upgrades();
        successor
    }

    /// Hands over to a process that the parent has started, or sees whether it could; whether that process serves now.
    fn carry_out_for_parent(&mut self, mut order: UpgradeOrder) -> bool {
        let new = std::mem::replace(&mut order.new, Err(io::ErrorKind::NotFound.into()));
        let patience = self.config.app.upgrade_timeout;
        let new = new.map_err(|error| UpgradeError::Old(error.to_string()));
        let new =
            new.and_then(|(channel, process)| NewProcess::of_parent(channel, process, order.link_format, patience));
        let result = match order.only_checks {
            true => new.and_then(|new| self.check_with(new)).map(Succeeded::from),
            false => self.upgrade_to(new).map(Succeeded::from),
        };
        let serves = result.is_ok() && !order.only_checks;
        order.done(result.map_err(|error| error.to_string()));
        serves
    }

    fn http_servers(&self) -> impl Iterator<Item = &HttpServer> {
        std::iter::once(&self.main_http).chain(self.http_ports.iter().map(|port| &port.server))
    }

    /// Waits until what this process has begun and another one goes on with is finished, at most `--shutdown-timeout`.
    async fn outlive(&self) {
        let deadline = Instant::now() + self.config.app.shutdown_timeout;
        let finished = async {
            let left = async {
                for server in self.http_servers() {
                    server.drained().await;
                }
            };
            if tokio::time::timeout(LEAVE_MAX, left).await.is_err() {
                self.http_servers().for_each(HttpServer::drain);
            }
            for server in self.http_servers() {
                server.drained().await;
            }
            while self.backend.running() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.backend.drain(deadline).await;
            if let Some(predecessor) = &self.predecessor {
                predecessor.ended().await;
            }
        };
        let in_time = tokio::time::timeout_at(deadline, finished).await.is_ok();
        if let Some(successor) = &self.successor {
            let _ = tokio::time::timeout(FORWARD_MAX, successor.finish()).await;
        }
        if let Broker::Parent(parent) = &self.observer.parts.pipeline.broker {
            // What is asked of sessions that were here has an answer as long as this process has a link.
            let _ = tokio::time::timeout(FORWARD_MAX, parent.succeeded()).await;
        }
        tracing::info!(in_time, "what this process had begun is finished");
    }

    /// Stops taking clients, sends those there are away, tells the app, and waits for all of it, at most
    /// `--shutdown-timeout`.
    async fn shut_down(&self, supervisor: &Supervisor) {
        let deadline = Instant::now() + self.config.app.shutdown_timeout;
        self.draining.store(true, Relaxed);
        let facts = self.observer.facts();
        let clients = facts.clients;
        supervisor.stopping(facts.websockets);
        tracing::info!(clients, timeout = ?self.config.app.shutdown_timeout, "shutting down");
        tokio::time::sleep(self.config.app.shutdown_delay).await;

        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let over = deadline.saturating_duration_since(Instant::now()).mul_f64(DRAIN_SHARE);
        self.shards.drain(over);
        self.backend.begin_drain();
        let all_out = async {
            while !self.shards.are_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let all_in_time = tokio::time::timeout_at(deadline, all_out).await.is_ok();
        tracing::info!(sent_away = clients, all_in_time, "clients sent away");
        self.http_servers().for_each(HttpServer::drain);
        self.links.iter().for_each(RunningLinks::stop_reading);
        let report = self.backend.drain(deadline).await;
        tracing::info!(told = report.sent, failed = report.failed, left = report.left, "app told of ended sessions");
        for server in self.http_servers() {
            let _ = tokio::time::timeout_at(deadline, server.drained()).await;
        }
        // Now nothing comes any more that other nodes are to know of.
        if let Some(links) = &self.links {
            links.finish(deadline).await;
        }
    }
}
