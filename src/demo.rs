//! `cableway demo`: a sample app and a page, so that trying Cableway needs nothing else.
//!
//! The sample app is an ordinary gRPC app server that runs in this process, and the page is an ordinary Action Cable
//! client. Neither takes a short cut: clients connect to the main port, calls go over loopback, and what the app says to
//! everybody is posted to the broadcast endpoint. It works as an app of one's own would. Beside the chat, the page can cut
//! its network for some seconds and gets what it missed, shows facts of the running server, and can start thousands of idle
//! clients.
//!
//! Before the node starts, [`Demo::bind`] gives it the app's address and the page's routes; [`Demo::run`] starts both
//! once the node knows where it is.

mod app;
mod chat;
mod facts;
mod idle_clients;
mod publisher;

use std::future::ready;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper::Response;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use facts::Facts;
pub use idle_clients::{
    COMMAND as IDLE_CLIENTS_COMMAND, CONNECTIONS_MAX as IDLE_CLIENTS_MAX, hold as hold_idle_clients,
};

use crate::backend::grpc::server;
use crate::http::{ExtraAnswer, ExtraRoutes};
use crate::os::clock::Clock;
use app::{App, STREAM};
use facts::{Baseline, Told};
use idle_clients::{IdleClients, IdleClientsError};

/// The page: one file, nothing from anywhere else.
const PAGE: &str = include_str!("demo/page.html");

/// What the page may do: run what is written in it, and talk to this server.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
     connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Descriptors that idle clients leave to everybody else.
const DESCRIPTORS_LEFT: u64 = 64;

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Where the server of this demo is, once it listens.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where idle clients connect to: the WebSocket port, on an address of this machine.
    pub address: SocketAddr,
    /// Path of the Action Cable endpoint, such as `/cable`.
    pub cable_path: String,
    /// Where the app posts what it has to say, and where people are invited to post: `http://HOST:PORT/_broadcast`.
    pub broadcast_url: String,
    /// What is shown there as `Authorization: Bearer KEY`, if anything must be. The page tells it to everybody who
    /// can open the page, so it is best one made for this demo; pages of other sites do not learn it.
    pub broadcast_key: Option<String>,
}

/// The sample app and the page, before and while they run.
pub struct Demo {
    rpc: TcpListener,
    rpc_address: SocketAddr,
    shared: Arc<Shared>,
}

/// What the routes share.
#[derive(Default)]
struct Shared {
    live: OnceLock<Live>,
    idle_clients: IdleClients,
    /// Taken for one copy at a time.
    measure: Mutex<Measure>,
}

/// Against what memory per connection is measured: the start, until the first idle clients are started, and from then on
/// the moment before it. Never a later one: memory that earlier ones took and left with the allocator would make
/// the next ones look free.
#[derive(Clone, Copy, Default)]
enum Measure {
    #[default]
    NotYet,
    SinceStart(Baseline),
    SinceFirstIdleClients(Baseline),
}

struct Live {
    app: Arc<App>,
    site: Site,
    facts: Box<dyn Fn() -> Facts + Send + Sync>,
}

impl Demo {
    /// Takes a free port on loopback for the app.
    ///
    /// # Errors
    /// There is none, or no descriptor for it.
    pub fn bind() -> io::Result<Demo> {
        let rpc = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        rpc.set_nonblocking(true)?;
        let rpc_address = rpc.local_addr()?;
        Ok(Demo { rpc, rpc_address, shared: Arc::default() })
    }

    /// Where the app is called (gRPC). Calls wait until [`Demo::run`].
    pub fn rpc_address(&self) -> SocketAddr {
        self.rpc_address
    }

    /// The page at `/` and what it asks for under `/demo/`. Answers 503 until [`Demo::run`].
    pub fn routes(&self) -> ExtraRoutes {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |request| answer(&shared, request))
    }

    /// Starts app and page on `runtime`; they end with it. `facts` must not block.
    ///
    /// # Errors
    /// The app's listener cannot be given to the runtime.
    pub fn run(
        self,
        runtime: &Handle,
        site: Site,
        facts: impl Fn() -> Facts + Send + Sync + 'static,
    ) -> io::Result<()> {
        let _runtime = runtime.enter();
        let rpc = tokio::net::TcpListener::from_std(self.rpc)?;
        let (queue, waiting) = mpsc::channel(publisher::WAITING_MAX);
        let app = Arc::new(App::new(queue, Clock::start()));
        runtime.spawn(server::serve(rpc, Arc::clone(&app), std::future::pending()));
        runtime.spawn(publisher::run(STREAM, waiting, site.broadcast_url.clone(), site.broadcast_key.clone()));
        *self.shared.measure() = Measure::SinceStart(Baseline::of(&facts()));
        let _ = self.shared.live.set(Live { app, site, facts: Box::new(facts) });
        Ok(())
    }
}

impl Shared {
    fn measure(&self) -> MutexGuard<'_, Measure> {
        self.measure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, live: &Live) -> String {
        let facts = (live.facts)();
        let told = Told {
            version: env!("CARGO_PKG_VERSION"),
            connections: facts.connections,
            connections_max: facts.connections_max,
            resident_bytes: facts.resident_bytes,
            growth: match *self.measure() {
                Measure::NotYet => None,
                Measure::SinceStart(baseline) | Measure::SinceFirstIdleClients(baseline) => baseline.growth(&facts),
            },
            growth_connections_min: facts::CONNECTIONS_MIN,
            open_files_limit: facts.open_files_limit,
            open_files: facts.open_files,
            shards: facts.shards,
            messages_delivered: facts.messages_delivered,
            uptime_s: facts.uptime.as_secs(),
            idle_clients: self.idle_clients.status(),
            cable_path: &live.site.cable_path,
            broadcast_url: &live.site.broadcast_url,
            broadcast_key: live.site.broadcast_key.as_deref(),
            stream: STREAM,
        };
        // Numbers and texts always make JSON.
        serde_json::to_string(&told).unwrap_or_default()
    }

    /// Starts idle clients, if there is room for them.
    fn start_idle_clients(&self, live: &Live, connections: usize) -> Result<(), (StatusCode, String)> {
        let facts = (live.facts)();
        let room = facts.connections_max.saturating_sub(facts.connections).saturating_sub(DESCRIPTORS_LEFT);
        // The holding process has the same limit as this one.
        let room = room.min(facts.open_files_limit.saturating_sub(DESCRIPTORS_LEFT));
        if connections as u64 > room {
            let text = format!("There is room for {room} more connections here; the open-file limit binds.");
            return Err((StatusCode::CONFLICT, text));
        }
        let before = Baseline::of(&facts);
        self.idle_clients.start(live.site.address, &live.site.cable_path, connections).map_err(|error| {
            let status = match error {
                IdleClientsError::Size => StatusCode::UNPROCESSABLE_ENTITY,
                IdleClientsError::Taken => StatusCode::CONFLICT,
                IdleClientsError::Start(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, error.to_string())
        })?;
        let mut measure = self.measure();
        if matches!(*measure, Measure::SinceStart(_)) && facts.connections < facts::CONNECTIONS_MIN {
            *measure = Measure::SinceFirstIdleClients(before);
        }
        Ok(())
    }
}

/// The answer to a request for something of the demo's; `None` for other paths.
fn answer(shared: &Shared, request: &Parts) -> Option<ExtraAnswer> {
    let path = request.uri.path();
    let allowed: &[Method] = match path {
        "/" | "/demo/facts" => &[Method::GET, Method::HEAD],
        "/demo/idle-clients" => &[Method::POST, Method::DELETE],
        "/demo/ticks" => &[Method::POST],
        _ => return None,
    };
    let reply = if !is_by_own_name(request) {
        let text = "The demo answers under localhost and under addresses such as http://127.0.0.1:8080/ only.";
        refused(StatusCode::MISDIRECTED_REQUEST, text)
    } else if !allowed.contains(&request.method) {
        let allowed = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let mut reply = refused(StatusCode::METHOD_NOT_ALLOWED, &format!("Allowed: {allowed}."));
        // Made of method names, so it is one.
        reply.headers_mut().extend(HeaderValue::from_str(&allowed).ok().map(|allowed| (header::ALLOW, allowed)));
        reply
    } else if path == "/" {
        let mut reply = reply(StatusCode::OK, HTML, PAGE);
        reply.headers_mut().insert(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
        reply
    } else if let Some(live) = shared.live.get() {
        match (path, &request.method) {
            ("/demo/facts", _) => reply(StatusCode::OK, JSON, shared.told(live)),
            _ if !is_own_page(request) => refused(StatusCode::FORBIDDEN, "Only the demo page may do this."),
            ("/demo/ticks", _) => {
                let app = Arc::clone(&live.app);
                tokio::spawn(async move { app.tick().await });
                reply(StatusCode::ACCEPTED, JSON, "{}")
            }
            (_, &Method::DELETE) => {
                shared.idle_clients.release();
                reply(StatusCode::ACCEPTED, JSON, shared.told(live))
            }
            _ => match connections(request).ok_or(IdleClientsError::Size) {
                Ok(connections) => match shared.start_idle_clients(live, connections) {
                    Ok(()) => reply(StatusCode::ACCEPTED, JSON, shared.told(live)),
                    Err((status, text)) => refused(status, &text),
                },
                Err(error) => refused(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
            },
        }
    } else {
        refused(StatusCode::SERVICE_UNAVAILABLE, "The demo is starting.")
    };
    Some(Box::pin(ready(reply)))
}

/// `?connections=N`
fn connections(request: &Parts) -> Option<usize> {
    let mut pairs = form_urlencoded::parse(request.uri.query()?.as_bytes());
    pairs.find_map(|(key, value)| (key == "connections").then_some(value))?.parse().ok()
}

/// Whether the request names this server by an address or as `localhost`. A page of another site can have its own name lead
/// here (DNS rebinding) and would then read the broadcast key as a page of ours; an address cannot be made to.
fn is_by_own_name(request: &Parts) -> bool {
    let named = request.uri.authority().map(|authority| authority.as_str());
    let host = named.or_else(|| request.headers.get(header::HOST)?.to_str().ok());
    // Browsers always send a host.
    let Some(host) = host else { return !request.headers.contains_key(header::HOST) };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Whether the request is not from a page of another site. Browsers put an `Origin` on every POST and DELETE; what
/// has none is no browser, and may do what anybody on this machine may do.
fn is_own_page(request: &Parts) -> bool {
    let Some(origin) = request.headers.get(header::ORIGIN) else {
        return true;
    };
    let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let origin = origin.as_bytes();
    host.is_some() && [&b"http://"[..], b"https://"].iter().any(|scheme| origin.strip_prefix(*scheme) == host)
}

type Reply = Response<Full<Bytes>>;

fn reply(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Reply {
    const NO_SNIFFING: (HeaderName, HeaderValue) =
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    const NO_STORE: (HeaderName, HeaderValue) = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().extend([(header::CONTENT_TYPE, kind), NO_SNIFFING, NO_STORE]);
    reply
}

fn refused(status: StatusCode, why: &str) -> Reply {
    reply(status, JSON, json!({ "error": why }).to_string())
}

#[cfg(test)]
mod tests;
