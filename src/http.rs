//! Ordinary HTTP: what apps publish, and what operators ask (health, readiness, metrics).
//!
//! One [`HttpServer`] per port, made of the [`Routes`] that live there and [`Limits`]. On the main port the shards hand
//! over the sockets that turned out not to be WebSockets, with the bytes they already read ([`HttpServer::serve`]);
//! other ports are listened on here ([`HttpServer::listen`]). hyper speaks HTTP/1.1; this module bounds it: how many
//! connections, how long for a head, a body, an answer, and how many bytes of each.
//!
//! It does not know shards or sessions, nor what a publication looks like: payloads go to
//! [`Broadcast`](crate::broadcast::Broadcast).

mod publish;
mod routes;
mod socket;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub use routes::{Check, Cors, ExtraAnswer, ExtraRoutes, MetricsRoute, PublishRoute, ReadyRoute, Routes};
use socket::ReplayedStream;

crate::metrics! {
    /// What the HTTP server counts.
    pub struct HttpMetrics {
        /// Connections of ordinary HTTP now.
        http_connections_num: Gauge,
        /// Connections of ordinary HTTP that were answered 503 or dropped because too many were open.
        http_connections_refused_total: Counter,
        /// Times that accepting on an HTTP port failed, as it does when no descriptors are left.
        http_accept_errors_total: Counter,
    }
}

/// What one port of ordinary HTTP may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once. One more is answered 503, unless it asks what operators ask (see [`OPS_RESERVE`]).
    /// Default 1024: senders open one per publication at worst, and every one may hold buffers.
    pub connections_max: usize,
    /// Bytes of a request head; more is answered 431. Default 64 KiB; less than 8 KiB counts as 8 KiB.
    pub head_bytes_max: usize,
    /// Bytes of one request body; more is answered 413.
    pub body_bytes_max: usize,
    /// Bytes of all request bodies held at once; more is answered 503. Default 256 MiB.
    pub bodies_bytes_max: usize,
    /// Time for a head to arrive, also the time a connection may stay open without a request. Then it is
    /// closed. Default 30 s.
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
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(2),
        }
    }
}

/// Connections kept free for health, readiness and metrics when all others are in use: a health check that is
/// refused gets a live server killed. They are served one request each.
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

const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Ordinary HTTP on one port. Clones are the same server.
#[derive(Clone)]
pub struct HttpServer(Arc<Shared>);

struct Shared {
    routes: Routes,
    limits: Limits,
    metrics: Arc<HttpMetrics>,
    connections: Semaphore,
    ops: Semaphore,
    refusals: Semaphore,
    /// One permit per byte.
    bodies: Semaphore,
    draining: watch::Sender<bool>,
}

impl HttpServer {
    /// A server with these routes. Several servers may share `metrics`.
    pub fn new(routes: Routes, mut limits: Limits, metrics: Arc<HttpMetrics>) -> HttpServer {
        // What the counting and hyper can take; asking for more (or less) than that is not worth a panic.
        limits.connections_max = limits.connections_max.min(u32::MAX as usize);
        limits.head_bytes_max = limits.head_bytes_max.max(HEAD_BYTES_LEAST);
        HttpServer(Arc::new(Shared {
            connections: Semaphore::new(limits.connections_max),
            ops: Semaphore::new(OPS_RESERVE),
            refusals: Semaphore::new(REFUSALS_MAX),
            bodies: Semaphore::new(limits.bodies_bytes_max.min(Semaphore::MAX_PERMITS)),
            draining: watch::Sender::new(false),
            routes,
            limits,
            metrics,
        }))
    }

    /// Accepts and serves connections until [`HttpServer::drain`]. Needs a tokio runtime with I/O and time.
    pub async fn listen(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.draining() => return,
            };
            match accepted {
                Ok((socket, _)) => {
                    // Failing to tune is no reason to refuse.
                    let _ = socket.set_nodelay(true);
                    let server = self.clone();
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
    /// Never fails: whatever goes wrong is between this server and that peer.
    pub async fn serve<S>(&self, socket: S, already_read: Vec<u8>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let shared = &self.0;
        let (permit, keep_alive) = match shared.connections.try_acquire() {
            Ok(permit) => (Some(permit), true),
            Err(_) if shared.routes.is_for_operators(&already_read) => (shared.ops.try_acquire().ok(), false),
            Err(_) => (None, false),
        };
        let mut socket = ReplayedStream::new(socket, already_read, &shared.limits);
        if permit.is_none() {
            shared.metrics.http_connections_refused_total.inc();
            if let Ok(_permit) = shared.refusals.try_acquire() {
                // The peer may be gone already; then there is nobody to tell.
                let _ = socket.write_all(REFUSAL).await;
                let _ = socket.shutdown().await;
            }
            return;
        }
        shared.metrics.http_connections_num.add(1);
        let _gone = CountDown(&shared.metrics);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(shared.limits.head_timeout)
            .max_buf_size(shared.limits.head_bytes_max)
            .keep_alive(keep_alive)
            // A sender that ends its side after the request still waits for the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(socket), Answering(Arc::clone(shared)));
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            () = self.draining() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "HTTP connection failed");
        }
    }

    /// Stops listening and keeping connections open. Requests that are being served are finished.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    async fn draining(&self) {
        // The sender lives as long as this server, so waiting cannot fail.
        let _ = self.0.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Waits until no connection is left. Only after [`HttpServer::drain`] is that bound to happen: the limits see to it.
    pub async fn drained(&self) {
        let all = self.0.limits.connections_max as u32;
        // Never closed, so these cannot fail.
        let _connections = self.0.connections.acquire_many(all).await;
        let _ops = self.0.ops.acquire_many(OPS_RESERVE as u32).await;
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

/// Answers the requests of one connection.
struct Answering(Arc<Shared>);

impl hyper::service::Service<Request<Incoming>> for Answering {
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { Ok(routes::answer(&shared, request).await) })
    }
}

#[cfg(test)]
mod tests;
