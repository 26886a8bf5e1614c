//! Assembly: every thread, channel and listener is made here, and taken down again.
//!
//! A node is some shards (one thread each), beside them one thread that calls the app and one for ordinary HTTP, each
//! with a tokio runtime; where there are links to Redis or NATS, a third keeps them. Answers go into the inbox of the shard that asked, publications into the inboxes of all
//! shards that follow the stream, and sockets that turned out to be HTTP from the shards to the HTTP server.

mod admin;
mod boot_log;
mod capacity;
mod child;
mod counts;
mod dead_peers;
mod followers;
mod links;
mod listeners;
mod look;
mod metrics;
mod observe;
mod parent;
mod publish;
mod readiness;
mod reload;
mod services;
mod settings;
mod signals;
mod sorted_runs;
mod start;
mod supervisor;
mod threads;
mod warnings;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::backend::{Backend, BackendError};
use crate::config::Config;
use crate::http::HttpServer;

use boot_log::ToTell;
use links::RunningLinks;
use listeners::MainPort;
use observe::Observer;
use reload::MadeOf;
use signals::{Asked, Signals};
use start::{Assembly, Plan};
use supervisor::Supervisor;
use threads::{RuntimeThread, ShardThreads};

pub use boot_log::first_line;
pub use child::ParentEnd;
pub use observe::Facts;
pub use reload::ReloadError;
pub use settings::ExtraRoutes;

/// Part of the time a shutdown may take that clients are spread over; the rest is for their last bytes and for telling
/// the app.
const DRAIN_SHARE: f64 = 0.8;

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
    other_http: Vec<HttpServer>,
    observer: Arc<Observer>,
    draining: Arc<AtomicBool>,
    address: SocketAddr,
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
    pub fn start_child(
        config: Config,
        file: Option<&Path>,
        extra: Option<ExtraRoutes>,
        parent: ParentEnd,
    ) -> Result<Node, StartError> {
        Node::start_one(Plan::new(config, Some(parent))?, file, extra)
    }

    fn start_one(plan: Plan, file: Option<&Path>, extra: Option<ExtraRoutes>) -> Result<Node, StartError> {
        boot_log::first_lines(plan.open_files, plan.shards, file);
        let main_port = MainPort::open(&plan.config, plan.shards)?;
        Assembly::new(plan, main_port, extra)?.start()
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

    /// Serves until SIGINT or SIGTERM, then shuts down in good order; a second signal ends it at once. For SIGHUP `reload` is
    /// called, which may give the node a new configuration by [`Node::reload`]. `ready` is called when signals are listened for
    /// and the log says so.
    ///
    /// # Errors
    /// Signals cannot be listened for.
    pub fn run_until_signalled(mut self, ready: impl FnOnce(), mut reload: impl FnMut(&mut Node)) -> io::Result<()> {
        let handle = self.runtime.handle().clone();
        let mut signals = {
            let _runtime = handle.enter();
            Signals::listen()?
        };
        // Not before: who reads that it serves may signal it at once.
        if let Some(to_tell) = self.to_tell.take() {
            boot_log::facts(&self.config, &to_tell, &self.backend, &self.made_of.settings.router);
        }
        ready();
        let supervisor = Arc::new(Supervisor::from_env());
        handle.spawn(Arc::clone(&supervisor).keep_told(Arc::clone(&self.observer)));
        if let Some(parent) = self.links.as_ref().and_then(RunningLinks::parent) {
            signals.end_when(parent.until_lost());
        }
        while handle.block_on(signals.next()) == Asked::Reload {
            supervisor.reloading();
            reload(&mut self);
            supervisor.reloaded();
        }
        handle.block_on(async {
            tokio::select! {
                () = self.shut_down(&supervisor) => (),
                () = signals.end_again() => tracing::warn!("second signal: ending at once"),
            }
        });
        // Whatever is left must not hold the process up: its time was bounded above.
        self.runtime.shutdown_background();
        self.shards.detach();
        self.calls.detach();
        self.links.into_iter().for_each(RunningLinks::detach);
        Ok(())
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
        let servers = std::iter::once(&self.main_http).chain(&self.other_http);
        servers.clone().for_each(HttpServer::drain);
        if let Some(links) = &self.links {
            links.finish().await;
        }
        let report = self.backend.drain(deadline).await;
        tracing::info!(told = report.sent, failed = report.failed, left = report.left, "app told of ended sessions");
        for server in servers {
            let _ = tokio::time::timeout_at(deadline, server.drained()).await;
        }
    }
}
