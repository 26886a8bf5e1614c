//! The app servers and the calls to them.
//!
//! Shards submit a [`Call`] and go on; the [`Answer`] comes through a callback. Between the two stand, in order: a
//! bounded queue with a fixed number of calls running ([`dispatch`]), one call's deadline and retries ([`attempt`]),
//! and a transport, gRPC or HTTP. Disconnect calls, for whose answers nobody waits, have a queue of their own in
//! front ([`disconnect`]). Nothing here knows sessions, shards or sockets of clients.
//!
//! The contracts are `contracts/rpc-grpc.md` and `contracts/rpc-http.md`.

mod attempt;
mod disconnect;
mod dispatch;
pub mod grpc;
mod health;
mod http;
mod metrics;
mod settings;
mod state_json;
mod tls;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;

use self::attempt::Limits;
use self::disconnect::Disconnector;
use self::dispatch::Dispatch;
use self::health::Health;
pub use self::metrics::BackendMetrics;
pub use self::settings::{GrpcTarget, HostPort, Settings, Target, TlsSettings};
use crate::model::{Answer, Call, CallError, Request, SlotKey};

/// Takes answers. Runs on the thread that drives the calls, so it must not wait: put the answer into the shard's inbox
/// and return.
pub type Answers = Arc<dyn Fn(Answer) + Send + Sync>;

/// How long [`Backend::ready`] waits for a connection that is being made, and [`Backend::turns`] for the thread's turn.
const READY_WAIT_MAX: Duration = Duration::from_secs(1);

/// The backend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// `rpc_host` has none of the known forms.
    #[error("not an RPC target: {0:?} (host:port, dns:///host:port, grpc-list://a:1,b:2, http:// or https:// URL)")]
    Target(String),
    /// Certificates cannot be read.
    #[error("TLS of the RPC client: {0}")]
    Tls(String),
    /// Nothing would ever run.
    #[error("the number of concurrent RPC calls is 0")]
    Concurrency,
    /// The secret of HTTP RPC is no header value.
    #[error("the HTTP RPC secret has characters that cannot be in a header")]
    Secret,
}

/// What became of Disconnect calls, counted from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Handled by the app.
    pub sent: u64,
    /// Refused by the app, or lost on the way.
    pub failed: u64,
    /// Still waiting or running when the deadline passed.
    pub left: usize,
}

/// Calls that were taken and not started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldCalls {
    /// Their answers go to sessions.
    #[serde(default)]
    pub of_sessions: Vec<Call>,
    /// Nobody waits for their answers.
    #[serde(default)]
    pub disconnects: Vec<Call>,
}

/// Makes calls to the app.
///
/// [`submit`](Backend::submit), [`cancel`](Backend::cancel) and [`disconnect`](Backend::disconnect) are for shards:
/// they never wait and need no runtime. [`drain`](Backend::drain) and [`ready`](Backend::ready) are for async code.
/// Dropping it gives up whatever still runs.
pub struct Backend {
    pipeline: Option<Pipeline>,
    metrics: Arc<BackendMetrics>,
    description: String,
    runtime: Handle,
}

struct Pipeline {
    disconnector: Arc<Disconnector>,
    dispatch: Arc<Dispatch>,
    probe: Probe,
    health: Arc<Health>,
}

/// How calls to the app travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// gRPC over HTTP/2.
    Grpc,
    /// JSON over HTTP.
    Http,
}

/// What readiness asks.
enum Probe {
    Grpc(Arc<grpc::Grpc>),
    Http(Arc<http::Http>),
}

impl Backend {
    /// Starts the backend on `runtime`. Connects to nothing: that is left to the first call.
    ///
    /// # Errors
    ///
    /// Settings that cannot work: see [`BackendError`].
    pub fn start(settings: Settings, runtime: &Handle, answers: Answers) -> Result<Backend, BackendError> {
        if settings.concurrency == 0 {
            return Err(BackendError::Concurrency);
        }
        let metrics = Arc::new(BackendMetrics::default());
        let description = describe(&settings);
        let pipeline = match &settings.target {
            Target::None => None,
            Target::Grpc(target) => {
                let grpc = Arc::new(grpc::Grpc::new(target, &settings, runtime.clone(), metrics.clone())?);
                Some(Pipeline::new(&settings, runtime, grpc.clone(), Probe::Grpc(grpc), &metrics, answers))
            }
            Target::Http(url) => {
                let http = Arc::new(http::Http::new(url, &settings)?);
                Some(Pipeline::new(&settings, runtime, http.clone(), Probe::Http(http), &metrics, answers))
            }
        };
        Ok(Backend { pipeline, metrics, description, runtime: runtime.clone() })
    }

    /// Queues a Connect or Command call. Its answer comes later, unless the call is canceled.
    ///
    /// # Errors
    ///
    /// `Overloaded` when the queue is full, `NoBackend` when there is no app. Then no answer will come.
    pub fn submit(&self, call: Call) -> Result<(), CallError> {
        let pipeline = self.pipeline.as_ref().ok_or(CallError::NoBackend)?;
        debug_assert!(
            !matches!(call.request, Request::Disconnect { .. }),
            "Disconnect calls have a queue of their own"
        );
        pipeline.dispatch.submit(call)
    }

    /// This server has closed the session: its call, waiting or running, is given up at once and no answer will come.
    /// Disconnect calls are not touched. Without such a call nothing happens.
    pub fn cancel(&self, key: SlotKey) {
        if let Some(pipeline) = &self.pipeline {
            pipeline.dispatch.cancel(key);
        }
    }

    /// Queues a Disconnect call. Without an app there is nobody to tell, and the call is forgotten.
    ///
    /// # Errors
    ///
    /// The call itself when the queue is full. It has been counted as dropped; the caller lets go of it.
    pub fn disconnect(&self, call: Call) -> Result<(), Call> {
        self.pipeline.as_ref().map_or(Ok(()), |pipeline| pipeline.disconnector.push(call))
    }

    /// No call is started from now on, until [`go_on`](Backend::go_on). Those that run end as ever.
    pub fn hold(&self) {
        if let Some(Pipeline { disconnector, dispatch, .. }) = &self.pipeline {
            disconnector.hold();
            dispatch.hold();
        }
    }

    /// What was not started while no call is.
    pub fn held(&self) -> HeldCalls {
        let Some(Pipeline { disconnector, dispatch, .. }) = &self.pipeline else { return HeldCalls::default() };
        HeldCalls { of_sessions: dispatch.held(), disconnects: disconnector.held() }
    }

    /// Calls are started again.
    pub fn go_on(&self) {
        if let Some(Pipeline { disconnector, dispatch, .. }) = &self.pipeline {
            disconnector.go_on();
            dispatch.go_on();
        }
    }

    /// Somebody else makes the calls that were [`held`](Backend::held), and gets the Disconnect calls that come from now on
    /// or cannot be delivered. What runs ends here, and is waited for by [`drain`](Backend::drain).
    pub fn succeed(&self, tell: impl Fn(Call) + Send + 'static) {
        if let Some(Pipeline { disconnector, dispatch, .. }) = &self.pipeline {
            disconnector.succeed(Box::new(tell));
            dispatch.give_up_held();
        }
    }

    /// Calls of sessions that run.
    pub fn running(&self) -> usize {
        self.pipeline.as_ref().map_or(0, |pipeline| pipeline.dispatch.running())
    }

    /// Shutdown begins: from now on Disconnect calls are sent as fast as the app takes them, 16 at a time.
    pub fn begin_drain(&self) {
        if let Some(pipeline) = &self.pipeline {
            pipeline.disconnector.begin_drain(&self.runtime);
        }
    }

    /// Does what [`begin_drain`](Backend::begin_drain) does, and waits until all Disconnect calls have ended or the
    /// deadline has passed.
    pub async fn drain(&self, deadline: Instant) -> DrainReport {
        let Some(pipeline) = &self.pipeline else { return DrainReport { sent: 0, failed: 0, left: 0 } };
        self.begin_drain();
        pipeline.disconnector.drained(deadline).await
    }

    /// Whether the app can be called: gRPC has a connection or makes one, HTTP takes a TCP connection, and if a Connect has
    /// failed of late, one of our own did not. Without an app there is nothing to wait for. Takes at most a second.
    ///
    /// # Errors
    ///
    /// Why not, for `/ready`.
    pub async fn ready(&self) -> Result<(), String> {
        let Some(pipeline) = &self.pipeline else { return Ok(()) };
        let asked = async {
            match &pipeline.probe {
                Probe::Grpc(grpc) => grpc.ready().await,
                Probe::Http(http) => http.ready().await,
            }
        };
        let asked = tokio::time::timeout(READY_WAIT_MAX, asked).await;
        asked.unwrap_or_else(|_| Err("no connection within 1 s".to_owned()))?;
        pipeline.ask_in_doubt(&self.runtime);
        pipeline.health.check()
    }

    /// Whether the thread that makes the calls still turns. Takes at most a second.
    pub async fn turns(&self) -> bool {
        let asked = self.runtime.spawn(async {});
        matches!(tokio::time::timeout(READY_WAIT_MAX, asked).await, Ok(Ok(())))
    }

    /// Shows the app this key from now on, where calls travel by HTTP.
    ///
    /// # Errors
    /// It is no header value; then the key stays as it was.
    pub fn set_http_secret(&self, secret: Option<&str>) -> Result<(), BackendError> {
        match self.pipeline.as_ref().map(|pipeline| &pipeline.probe) {
            Some(Probe::Http(http)) => http.set_secret(secret),
            Some(Probe::Grpc(_)) | None => Ok(()),
        }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<BackendMetrics> {
        &self.metrics
    }

    /// How calls travel; `None` without an app.
    pub fn transport(&self) -> Option<TransportKind> {
        self.pipeline.as_ref().map(|pipeline| match pipeline.probe {
            Probe::Grpc(_) => TransportKind::Grpc,
            Probe::Http(_) => TransportKind::Http,
        })
    }

    /// One line for the boot log.
    pub fn describe(&self) -> String {
        self.description.clone()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // The workers of the disconnector hold it too, and may be waiting for a call that it runs.
        self.dispatch.close();
    }
}

impl Pipeline {
    fn new<T: attempt::Transport>(
        settings: &Settings,
        runtime: &Handle,
        transport: Arc<T>,
        probe: Probe,
        metrics: &Arc<BackendMetrics>,
        answers: Answers,
    ) -> Pipeline {
        let bounds = dispatch::Bounds {
            concurrency: settings.concurrency,
            queue_max: settings.queue_max,
            queue_bytes_max: settings.queue_bytes_max,
        };
        let limits = Limits {
            request_timeout: match settings.target {
                Target::Http(_) => Some(settings.request_timeout.unwrap_or(http::REQUEST_TIMEOUT)),
                _ => settings.request_timeout,
            },
            command_timeout: settings.command_timeout,
            // The length in front of a gRPC message has 32 bits.
            send_bytes_max: settings.send_bytes_max.min(u32::MAX as usize),
        };
        let health = Arc::<Health>::default();
        let (dispatch, driver) = Dispatch::new(transport, bounds, limits, metrics.clone(), health.clone(), answers);
        runtime.spawn(driver);
        let dispatch = Arc::new(dispatch);
        let bounds = disconnect::Bounds {
            rate: settings.disconnect_rate,
            backlog: settings.disconnect_backlog,
            backlog_bytes_max: settings.disconnect_backlog_bytes,
            concurrency: settings.concurrency,
        };
        let disconnector = Arc::new(Disconnector::new(dispatch.clone(), bounds, metrics.clone()));
        disconnector.start(runtime);
        Pipeline { disconnector, dispatch, probe, health }
    }

    /// Asks the app whether it lets anybody in, if there is reason to doubt that.
    fn ask_in_doubt(&self, runtime: &Handle) {
        let Some(question) = self.health.question() else { return };
        let (dispatch, health) = (self.dispatch.clone(), self.health.clone());
        let disconnector = Arc::downgrade(&self.disconnector);
        runtime.spawn(async move {
            let goodbye = health.answered(dispatch.ask(question).await);
            if let (Some(goodbye), Some(disconnector)) = (goodbye, disconnector.upgrade()) {
                // A full queue has counted it as dropped.
                let _ = disconnector.push(goodbye);
            }
        });
    }
}

fn describe(settings: &Settings) -> String {
    let (kind, encrypted) = match &settings.target {
        Target::None => return "none: sessions are decided without an app server".to_owned(),
        Target::Grpc(_) => ("gRPC", grpc::encrypted(settings)),
        Target::Http(url) => ("HTTP", url.scheme() == Some(&::http::uri::Scheme::HTTPS)),
    };
    let tls = match (encrypted, settings.tls.verify) {
        (false, _) => "off",
        (true, true) => "on",
        (true, false) => "on, certificate not verified",
    };
    let (target, concurrency) = (&settings.target, settings.concurrency);
    format!("{kind} {target}, protocol v1, concurrency {concurrency}, TLS {tls}")
}
