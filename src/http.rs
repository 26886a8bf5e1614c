//! Ordinary HTTP: what apps publish, and what operators ask (health, readiness, metrics).
//!
//! One [`HttpServer`] per port, made of the [`Routes`] that live there and [`Limits`]. On the main port the shards hand
//! over the sockets that turned out not to be WebSockets, with the bytes they already read ([`HttpServer::serve`]), and
//! get them back when a later request on them is an upgrade; other ports are listened on here ([`HttpServer::listen`]).
//! hyper speaks HTTP/1.1; this module bounds it: how many connections, how long for a head, a body, an answer, and how
//! many bytes of each. Who has to go when there are too many is decided by `rooms`.
//!
//! It does not know shards or sessions, nor what a publication looks like: payloads go to
//! [`Broadcast`](crate::broadcast::Broadcast).

mod admin;
mod publish;
mod rooms;
mod routes;
mod socket;
mod upgrade;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use ::http::HeaderValue;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub use admin::{AdminRoute, AdminRoutes};
pub use rooms::Place;
use rooms::{Doing, Rooms, Sizes};
pub use routes::{
    Check, Cors, ExtraAnswer, ExtraRoutes, HealthRoute, Later, MetricsRoute, PublishRoute, ReadyRoute, Routes,
    metrics_form,
};
use socket::ReplayedStream;
use upgrade::Wish;

crate::metrics! {
    /// What the HTTP server counts.
    pub struct HttpMetrics {
        /// Connections of ordinary HTTP now.
        http_connections_num: Gauge,
        /// Connections of ordinary HTTP that were answered 503 or dropped because too many were open.
        http_connections_refused_total: Counter,
        /// Connections of ordinary HTTP that were closed to make room for newcomers: those that had no request under
        /// way, and when there were none, those whose request was slowest to arrive.
        http_connections_evicted_total: Counter,
        /// Connections of ordinary HTTP that became WebSockets: a proxy sent an upgrade over one that it had kept.
        http_upgrades_total: Counter,
        /// Times that accepting on an HTTP port failed, as it does when no descriptors are left.
        http_accept_errors_total: Counter,
    }
}

/// What one port of ordinary HTTP may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; half of them are for those who showed a key. One more takes the place of one that is not
    /// being answered. Default 1024: senders open one per publication at worst, and every one may hold buffers.
    pub connections_max: usize,
    /// Bytes of a request head; more is answered 431. Default 64 KiB; less than 8 KiB counts as 8 KiB.
    pub head_bytes_max: usize,
    /// Bytes of one request body; more is answered 413.
    pub body_bytes_max: usize,
    /// Bytes of all request bodies held at once; more is answered 503. Default 256 MiB.
    pub bodies_bytes_max: usize,
    /// Time for a head to arrive, also the time a connection may stay open without a request. Then it is closed. Default
    /// 75 s: load balancers keep connections open for 60 s and send a request into one that we close at that moment.
    pub head_timeout: Duration,
    /// Time for a body to arrive; then 408. Default 30 s.
    pub body_timeout: Duration,
    /// Time for a publication to be handed over, which waits while too many are not delivered; then 503. Default 30 s.
    pub publish_timeout: Duration,
    /// Time without any progress in writing; then the connection is dropped. Default 10 s.
    pub write_timeout: Duration,
    /// Time to read on after the last answer, so that bytes still under way do not turn the close into a reset
    /// that takes the answer with it. Default 2 s, and at most [`LINGER_BYTES_MAX`].
    pub linger: Duration,
}

impl Limits {
    /// The defaults, and how large a body may be, which is for the configuration to say (`--broadcast-max-size`).
    pub fn new(body_bytes_max: usize) -> Limits {
        Limits {
            connections_max: 1024,
            head_bytes_max: 64 << 10,
            body_bytes_max,
            bodies_bytes_max: 256 << 20,
            head_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(2),
        }
    }
}

/// Connections kept free for health, readiness and metrics when all others are being answered: a health check that is
/// refused gets a live server killed. Whatever else is asked on them is answered 503.
pub const OPS_RESERVE: usize = 16;

/// hyper's lower bound for its read buffer.
const HEAD_BYTES_LEAST: usize = 8 << 10;

/// Connections at once that are told 503 politely; beyond that they are dropped unanswered.
const REFUSALS_MAX: usize = 64;

/// Bytes read and thrown away after the last answer, per connection. Some senders write a whole body before they read;
/// one whose body is over the limit by no more than this still gets its 413.
pub const LINGER_BYTES_MAX: usize = 32 << 20;

/// Pause after accepting failed. Without descriptors the listener stays readable, and trying again at once
/// would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is told to whoever finds no room, not even by throwing somebody out.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

impl Shared {
    fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ordinary HTTP on one port. Clones are the same server.
#[derive(Clone)]
pub struct HttpServer(Arc<Shared>);

struct Shared {
    /// Read for each request, replaced when the configuration was read again.
    routes: RwLock<Arc<Routes>>,
    limits: Limits,
    metrics: Arc<HttpMetrics>,
    rooms: Arc<Rooms>,
    refusals: Semaphore,
    /// One permit per byte.
    bodies: Semaphore,
    mode: watch::Sender<Mode>,
}

/// How far a server is on its way to its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Serving,
    /// It listens no more, and ends each connection behind the next answer.
    Leaving,
    /// It keeps no connection open.
    Draining,
}

impl HttpServer {
    /// A server with these routes. Several servers may share `metrics`.
    pub fn new(routes: Routes, mut limits: Limits, metrics: Arc<HttpMetrics>) -> HttpServer {
        // What the counting and hyper can take; asking for more (or less) than that is not worth a panic.
        limits.head_bytes_max = limits.head_bytes_max.max(HEAD_BYTES_LEAST);
        let known = limits.connections_max / 2;
        let sizes = Sizes { strangers: limits.connections_max - known, known, reserve: OPS_RESERVE };
        HttpServer(Arc::new(Shared {
            rooms: Rooms::new(sizes, Arc::clone(&metrics)),
            refusals: Semaphore::new(REFUSALS_MAX),
            bodies: Semaphore::new(limits.bodies_bytes_max.min(Semaphore::MAX_PERMITS)),
            mode: watch::Sender::new(Mode::Serving),
            routes: RwLock::new(Arc::new(routes)),
            limits,
            metrics,
        }))
    }

    /// Accepts and serves connections until [`HttpServer::drain`]. Needs a tokio runtime with I/O and time.
    pub async fn listen(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.reaches(Mode::Leaving) => return,
            };
            match accepted {
                Ok((socket, _)) => {
                    // Failing to tune is no reason to refuse.
                    let _ = socket.set_nodelay(true);
                    let server = self.clone();
                    // Its routes have no WebSockets, so nothing comes back.
                    tokio::spawn(async move { server.serve(socket, Vec::new()).await });
                }
                Err(error) => {
                    self.0.metrics.http_accept_errors_total.inc();
                    tracing::debug!(%error, "accepting an HTTP connection failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Serves one connection to its end, starting with the bytes that somebody already read from it.
    ///
    /// Gives it back when its peer asks for a path of [`Routes::websockets`], with that request and what came behind it
    /// read. Never fails: whatever goes wrong is between this server and that peer.
    pub async fn serve<S>(&self, socket: S, already_read: Vec<u8>) -> Option<(S, Vec<u8>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.serve_in(self.enter(), socket, already_read).await
    }

    /// Takes a connection in, so that [`HttpServer::drained`] waits for it; it is to be served in the place.
    pub fn enter(&self) -> Option<Arc<Place>> {
        self.0.rooms.enter()
    }

    /// The same as [`HttpServer::serve`] for a connection that was taken in already, or for which there was no room.
    pub async fn serve_in<S>(&self, place: Option<Arc<Place>>, socket: S, already_read: Vec<u8>) -> Option<(S, Vec<u8>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let shared = &self.0;
        let wish = Arc::new(Wish::default());
        let mut socket = ReplayedStream::new(socket, already_read, &shared.limits, place.clone(), Arc::clone(&wish));
        let Some(place) = place else {
            shared.metrics.http_connections_refused_total.inc();
            if let Ok(_permit) = shared.refusals.try_acquire() {
                // The peer may be gone already; then there is nobody to tell.
                let _ = socket.write_all(REFUSAL).await;
                let _ = socket.shutdown().await;
            }
            return None;
        };
        shared.metrics.http_connections_num.add(1);
        let _gone = CountDown(&shared.metrics);
        let answering = Answering { shared: Arc::clone(shared), place: Arc::clone(&place), wish: Arc::clone(&wish) };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(shared.limits.head_timeout)
            .max_buf_size(shared.limits.head_bytes_max)
            // A sender that ends its side after the request still waits for the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(socket), answering);
        tokio::select! {
            served = self.drive(connection, &wish) => served,
            () = place.thrown_out() => None,
        }
    }

    /// Runs a connection to its end, or until it should go back.
    async fn drive<S>(&self, mut connection: Connection<S>, wish: &Wish) -> Option<(S, Vec<u8>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut draining = pin!(self.reaches(Mode::Draining));
        let mut keeps_open = true;
        let head = poll_fn(|cx| {
            if keeps_open && draining.as_mut().poll(cx).is_ready() {
                keeps_open = false;
                Pin::new(&mut connection).graceful_shutdown();
            }
            let ended = Pin::new(&mut connection).poll(cx);
            if let Some(head) = wish.take() {
                return Poll::Ready(Some(head));
            }
            ended.map(|ended| {
                match ended {
                    Err(error) if error.is_parse_too_large() => {
                        let max = self.0.limits.head_bytes_max;
                        tracing::warn!(
                            "a request was refused with 431: its head is over --max-head-size ({max} bytes)"
                        );
                    }
                    Err(error) => tracing::debug!(%error, "HTTP connection failed"),
                    Ok(()) => {}
                }
                None
            })
        });
        let mut read = head.await?;
        self.0.metrics.http_upgrades_total.inc();
        let parts = connection.into_parts();
        let (socket, rest) = parts.io.into_inner().into_inner();
        read.extend_from_slice(&parts.read_buf);
        read.extend_from_slice(&rest);
        Some((socket, read))
    }

    /// From now on requests are answered by these. Those under way are finished by the ones before.
    pub fn set_routes(&self, routes: Routes) {
        *self.0.routes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
    }

    /// Stops listening, and ends each connection behind its next answer, which says so: a sender whose request is on its way
    /// is answered still. For a process whose port is served by another one; [`HttpServer::drain`] ends the rest.
    pub fn leave(&self) {
        self.advance(Mode::Leaving);
    }

    /// Stops listening and keeping connections open. Requests that are being served are finished.
    pub fn drain(&self) {
        self.advance(Mode::Draining);
    }

    fn advance(&self, mode: Mode) {
        self.0.mode.send_modify(|current| *current = mode.max(*current));
    }

    async fn reaches(&self, mode: Mode) {
        // The sender lives as long as this server, so waiting cannot fail.
        let _ = self.0.mode.subscribe().wait_for(|current| *current >= mode).await;
    }

    /// Waits until no connection is left. Only after [`HttpServer::drain`] is that bound to happen: the limits see to it.
    pub async fn drained(&self) {
        self.0.rooms.empty().await;
    }
}

/// Takes a connection off the gauge, however its future ends.
struct CountDown<'a>(&'a HttpMetrics);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.http_connections_num.add(-1);
    }
}

type Reply = Response<Full<Bytes>>;

/// A socket as hyper serves it.
type Connection<S> = http1::Connection<TokioIo<ReplayedStream<S>>, Answering>;

/// Answers the requests of one connection.
struct Answering {
    shared: Arc<Shared>,
    place: Arc<Place>,
    wish: Arc<Wish>,
}

impl hyper::service::Service<Request<Incoming>> for Answering {
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (head, mut body) = request.into_parts();
        let routes = self.shared.routes();
        let websockets = routes.websockets.as_ref();
        if let Some(head) = websockets.and_then(|rules| upgrade::head_for_shard(&head, rules)) {
            self.wish.set(head);
            // Nothing is answered here: the connection is taken out of hyper's hands.
            return Box::pin(std::future::pending());
        }
        let (shared, place) = (Arc::clone(&self.shared), Arc::clone(&self.place));
        Box::pin(async move {
            let mut reply = routes::answer(&shared, &routes, &place, &head, &mut body).await;
            place.begins(Doing::Waiting);
            // The rest of the body would be taken for the next request, or there is nobody to serve that: the connection ends
            // behind this answer. A sender that keeps connections has to know.
            if !body.is_end_stream() || *shared.mode.borrow() != Mode::Serving {
                reply.headers_mut().insert(::http::header::CONNECTION, CLOSE);
            }
            Ok(reply)
        })
    }
}

const CLOSE: HeaderValue = HeaderValue::from_static("close");

#[cfg(test)]
mod tests;
