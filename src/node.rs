//! Assembly: every thread, channel and listener is made here, and taken down again.
//!
//! A node is some shards (one thread each), beside them one thread that calls the app and one for ordinary HTTP, each
//! with a tokio runtime, and the wires between: answers into inboxes, publications into all inboxes, sockets
//! that turned out to be HTTP from shards to the HTTP server.

mod boot_log;
mod capacity;
mod dead_peers;
mod followers;
mod listeners;
mod metrics;
mod observe;
mod publish;
mod readiness;
mod services;
mod settings;
mod warnings;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::time::Instant;

use crate::backend::{Backend, BackendError};
use crate::broadcast::Broadcast;
use crate::config::{Config, Secrets};
use crate::http::{HttpMetrics, HttpServer};
use crate::model::Answer;
use crate::os::clock::Clock;
use crate::os::limits;
use crate::shard::{self, Epoll, EpollSettings, Inbox, Message, Shard, ShardMetrics};

use capacity::Capacity;
use listeners::{bind_shards, listen};
use observe::Observer;
use publish::Pipeline;
use services::{NodeServices, Shared};

pub use observe::Facts;
pub use settings::ExtraRoutes;

/// Threads for ordinary HTTP. Publications are few and short next to what becomes of them in the shards.
const HTTP_THREADS: usize = 1;

/// Part of the time a shutdown may take that clients are spread over; the rest is for their last bytes and for telling
/// the app.
const DRAIN_SHARE: f64 = 0.8;

/// A running server.
pub struct Node {
    config: Arc<Config>,
    runtime: Runtime,
    backend: Arc<Backend>,
    inboxes: Arc<[Arc<Inbox>]>,
    shards: Vec<thread::JoinHandle<()>>,
    /// Copies of the shards' listeners, for their queues' length. Emptied when they are to close.
    listeners: Arc<Mutex<Vec<TcpListener>>>,
    main_http: HttpServer,
    other_http: Vec<HttpServer>,
    observer: Arc<Observer>,
    draining: Arc<AtomicBool>,
    address: SocketAddr,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("cannot listen on {address} ({what}): {source}")]
    Listen {
        /// Host and port as configured.
        address: String,
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The machine refused something else.
    #[error("cannot start: {0}")]
    Machine(#[from] io::Error),
    /// The app's address or keys cannot be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A path cannot be used.
    #[error("{0}")]
    Setting(String),
}

impl Node {
    /// Starts a server: binds everything, logs what it found, and serves from then on. `file` is where the configuration
    /// came from, for the log; `extra` adds routes to the main port (the demo's page).
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left behind.
    pub fn start(config: Config, file: Option<&Path>, extra: Option<ExtraRoutes>) -> Result<Node, StartError> {
        let config = Arc::new(config);
        let secrets = Secrets::resolve(&config);
        let open_files = limits::raise_open_files()?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shards = if config.server.acceptors == 0 { cores } else { usize::from(config.server.acceptors) };
        let capacity = Capacity::find(&config, open_files, shards);
        boot_log::first_lines(open_files, shards, file);

        let mut of_shards = bind_shards(&config, shards)?;
        let address = of_shards[0][0].local_addr()?;
        let copies = of_shards.iter().flatten().map(TcpListener::try_clone).collect::<Result<Vec<_>, _>>()?;
        let listeners = Arc::new(Mutex::new(copies));

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(HTTP_THREADS)
            .thread_name("http")
            .enable_all()
            .build()?;
        let calls = calls_thread()?;
        let inboxes: Arc<[Arc<Inbox>]> =
            (0..shards).map(|_| Inbox::new().map(Arc::new)).collect::<Result<Vec<_>, _>>()?.into();
        let to_inbox = Arc::clone(&inboxes);
        let answers = Arc::new(move |answer: Answer| {
            if let Some(inbox) = to_inbox.get(usize::from(answer.key.shard)) {
                inbox.put(Message::Answer(answer));
            }
        });
        let backend = settings::backend(&config, &secrets)?;
        let backend = Arc::new(Backend::start(backend, &calls, answers)?);
        let shard_settings = Arc::new(settings::shard(&config, &secrets)?);
        let shard_metrics: Arc<[_]> = (0..shards as u16).map(|n| Arc::new(ShardMetrics::new(n))).collect();
        let http_metrics = Arc::new(HttpMetrics::default());
        let pipeline = Arc::new(Pipeline::new(Arc::clone(&inboxes), shard_settings.stream_hasher.clone()));
        let broadcast = Arc::new(Broadcast::new(Arc::clone(&pipeline) as Arc<_>));
        let draining = Arc::new(AtomicBool::new(false));
        let http = Arc::new(OnceLock::new());
        let shared = Arc::new(Shared::new(
            Arc::clone(&backend),
            Arc::clone(&broadcast),
            Arc::clone(&pipeline),
            Arc::clone(&http),
            runtime.handle().clone(),
            capacity.clients,
        ));
        let observer = Arc::new(Observer::new(observe::Parts {
            config: Arc::clone(&config),
            capacity,
            open_files,
            shards: Arc::clone(&shard_metrics),
            http: Arc::clone(&http_metrics),
            backend: Arc::clone(&backend),
            shared: Arc::clone(&shared),
            broadcast: Arc::clone(&broadcast),
            pipeline: Arc::clone(&pipeline),
            listeners: Arc::clone(&listeners),
            draining: Arc::clone(&draining),
        }));

        let ports = settings::ports(&config, &secrets, &broadcast, &observer, extra);
        let limits = settings::http_limits(&config, open_files);
        let main_http = HttpServer::new(ports.main, limits.clone(), Arc::clone(&http_metrics));
        let _ = http.set(main_http.clone());
        let mut other_http = Vec::new();
        for (place, routes) in ports.others {
            other_http.push(listen(&runtime, &place, routes, &limits, &http_metrics)?);
        }

        let clock = Clock::start();
        let mut threads = Vec::with_capacity(shards);
        let (ready, all_ready) = std::sync::mpsc::channel::<()>();
        for (shard, inbox) in (0..shards as u16).zip(inboxes.iter()) {
            let machine = Epoll::new(EpollSettings {
                listeners: std::mem::take(&mut of_shards[usize::from(shard)]),
                clock,
                inbox: Arc::clone(inbox),
                sockets_max: capacity.sockets_max,
            })?;
            let services = NodeServices { shard, shared: Arc::clone(&shared) };
            let metrics = Arc::clone(&shard_metrics[usize::from(shard)]);
            let settings = Arc::clone(&shard_settings);
            let ready = ready.clone();
            let run = move || {
                let engine = Shard::new(shard, machine, services, settings, metrics);
                drop(ready);
                if let Err(error) = shard::run(engine) {
                    tracing::error!(shard, %error, "a shard stopped; its connections are lost");
                }
            };
            threads.push(thread::Builder::new().name(format!("shard-{shard}")).spawn(run)?);
        }
        // Every shard lets go of its end once it is made: what it holds at rest is there before anybody measures.
        drop(ready);
        let _ = all_ready.recv();
        observer.watch(runtime.handle());
        boot_log::facts(&config, &secrets, &capacity, &backend, address, &shard_settings.router);
        Ok(Node {
            config,
            runtime,
            backend,
            inboxes,
            shards: threads,
            listeners,
            main_http,
            other_http,
            observer,
            draining,
            address,
        })
    }

    /// Where the main port really is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The runtime for whatever lives beside the shards.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What the server knows of itself.
    pub fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// Serves until SIGINT or SIGTERM, then shuts down in good order; a second signal ends it at once.
    ///
    /// # Errors
    /// Signals cannot be listened for.
    pub fn run_until_signalled(self) -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = {
            let _runtime = self.runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let handle = self.runtime.handle().clone();
        let mut next = async || tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () };
        handle.block_on(next());
        handle.block_on(async {
            tokio::select! {
                () = self.shut_down() => (),
                () = next() => tracing::warn!("second signal: ending at once"),
            }
        });
        // Whatever is left must not hold the process up: its time was bounded above.
        self.runtime.shutdown_background();
        Ok(())
    }

    /// Stops taking clients, sends those there are away, tells the app, and waits for all of it, at most
    /// `--shutdown-timeout`.
    async fn shut_down(&self) {
        let deadline = Instant::now() + self.config.app.shutdown_timeout;
        self.draining.store(true, Relaxed);
        let clients = self.observer.facts().clients;
        tracing::info!(clients, timeout = ?self.config.app.shutdown_timeout, "shutting down");
        tokio::time::sleep(self.config.app.shutdown_delay).await;

        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let over = deadline.saturating_duration_since(Instant::now()).mul_f64(DRAIN_SHARE);
        for inbox in self.inboxes.iter() {
            inbox.put(Message::Drain { over });
        }
        self.backend.begin_drain();
        let all_out = async {
            while self.shards.iter().any(|thread| !thread.is_finished()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let all_in_time = tokio::time::timeout_at(deadline, all_out).await.is_ok();
        tracing::info!(sent_away = clients, all_in_time, "clients sent away");
        let servers = std::iter::once(&self.main_http).chain(&self.other_http);
        servers.clone().for_each(HttpServer::drain);
        let report = self.backend.drain(deadline).await;
        tracing::info!(told = report.sent, failed = report.failed, left = report.left, "app told of ended sessions");
        for server in servers {
            let _ = tokio::time::timeout_at(deadline, server.drained()).await;
        }
    }
}

/// The thread that calls the app. One, with a runtime of its own: all calls share a driver and a connection or two, so
/// a second thread would only pass them to and fro, and publications must not hold answers up.
fn calls_thread() -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(std::future::pending::<()>());
    thread::Builder::new().name("calls".into()).spawn(run)?;
    Ok(handle)
}
