//! One HTTP/2 connection to an app server: made, kept alive, and noticed when it is gone.
//!
//! `h2` is used directly rather than through a connection pool: a call then costs no task and no channel hop
//! of its own, and we decide when to connect, which the contract has rules for.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http_body::Frame;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::{Code, Status};

use super::super::settings::CONNECT_TIMEOUT;

/// Time from one answered ping to the next, also while no call runs. Ruby servers permit exactly 10 s and answer
/// anything shorter with `GOAWAY too_many_pings` (`contracts/rpc-grpc.md` section 6).
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long an app may take to answer a ping before the connection is given up.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the app may send ahead of our reading, per call and over all. Answers are small; the sizes let one of 4 MiB
/// come in few round trips.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Most bytes of header fields in one answer.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// A connection that takes calls.
#[derive(Clone)]
pub(super) struct Connection {
    pub sender: SendRequest<Bytes>,
    /// Whether the peer ever answered: until then, a connection that breaks counts as one that failed.
    pub proven: Arc<AtomicBool>,
}

type H2<T> = h2::client::Connection<NonVectored<T>, Bytes>;

/// A stream that does not tell h2 that it can write several buffers at once (`is_write_vectored`).
///
/// With such a stream h2 writes every body of 256 bytes and more out on its own; without, it copies bodies below
/// 1 KiB behind each other, and the calls of one turn leave in one write.
///
/// It keeps how the server began.
pub(super) struct NonVectored<T> {
    io: T,
    heard: Heard,
}

/// The first bytes that came from the server.
type Heard = Arc<OnceLock<SmallVec<[u8; 8]>>>;

impl<T: AsyncRead + Unpin> AsyncRead for NonVectored<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.heard.get().is_none() && buf.filled().len() > before {
            self.heard.get_or_init(|| buf.filled()[before..].iter().take(8).copied().collect());
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for NonVectored<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The connection's own half, to be run for as long as it lives.
pub(super) enum Wire {
    Plain(Box<H2<TcpStream>>),
    Tls(Box<H2<tokio_rustls::client::TlsStream<TcpStream>>>),
}

/// Connects to `address`, which a resolver or a user gave.
pub(super) async fn connect(
    address: impl tokio::net::ToSocketAddrs,
    host: &str,
    tls: Option<&TlsConnector>,
) -> Result<(Connection, Wire), String> {
    let taken = AtomicBool::new(false);
    let connecting = async {
        let tcp = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        taken.store(true, Relaxed);
        // Calls are small and somebody waits for each.
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(tls) = tls else {
            let (sender, wire) = handshake(tcp).await?;
            return Ok((sender, Wire::Plain(wire)));
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let stream = tls.connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("TLS: the app does not offer HTTP/2".to_owned());
        }
        let (sender, wire) = handshake(stream).await?;
        Ok((sender, Wire::Tls(wire)))
    };
    let (sender, wire) = timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
        Err(match taken.load(Relaxed) {
            true => format!("it takes connections and says nothing for {CONNECT_TIMEOUT:?}: is it a gRPC server?"),
            false => format!("no connection in {CONNECT_TIMEOUT:?}"),
        })
    })?;
    Ok((Connection { sender, proven: Arc::default() }, wire))
}

/// Starts HTTP/2, and waits until the server has begun to speak it: a port that takes connections is not a server yet. Its
/// SETTINGS come without being asked for (RFC 9113 section 3.4).
async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> Result<(SendRequest<Bytes>, Box<H2<T>>), String> {
    let heard = Heard::default();
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .handshake(NonVectored { io, heard: heard.clone() })
        .await
        .map_err(|error| error.to_string())?;
    let mut connection = Box::new(connection);
    let ended = poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending if heard.get().is_some() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    let ended = ended.await.map(|ended| ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string()));
    if heard.get().is_some_and(|heard| heard.starts_with(b"HTTP/")) {
        return Err("it answers HTTP/1 and not gRPC: give rpc-host the RPC server's port, or an http:// URL".to_owned());
    }
    ended.map_or(Ok((sender, connection)), Err)
}

impl Wire {
    /// Moves bytes until the connection ends, and says why it did.
    pub async fn run(self, proven: Arc<AtomicBool>) -> String {
        match self {
            Wire::Plain(connection) => run(connection, proven).await,
            Wire::Tls(connection) => run(connection, proven).await,
        }
    }
}

async fn run<T: AsyncRead + AsyncWrite + Unpin>(mut connection: Box<H2<T>>, proven: Arc<AtomicBool>) -> String {
    let pings = connection.ping_pong();
    let keep_alive = async {
        let Some(mut pings) = pings else { return std::future::pending().await };
        loop {
            sleep(KEEP_ALIVE_INTERVAL).await;
            match timeout(KEEP_ALIVE_TIMEOUT, pings.ping(h2::Ping::opaque())).await {
                Ok(Ok(_)) => proven.store(true, Relaxed),
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "ping not answered".to_owned(),
            }
        }
    };
    tokio::select! {
        ended = &mut *connection => ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string()),
        ended = keep_alive => ended,
    }
}

/// The gRPC status of a broken stream or connection (gRPC over HTTP/2, "HTTP2 Transport Mapping", Errors).
pub(super) fn status(error: &h2::Error) -> Status {
    let code = match error.reason() {
        _ if error.is_io() || error.is_go_away() => Code::Unavailable,
        Some(h2::Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(h2::Reason::CANCEL) => Code::Cancelled,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(h2::Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(_) => Code::Internal,
        // The connection ended under the call without a word.
        None => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// Whether the app certainly has not looked at the call, so that it may be sent again at once: the server refused the
/// stream, or said goodbye before it (RFC 9113 sections 6.8 and 8.7).
pub(super) fn never_processed(error: &h2::Error) -> bool {
    error.is_remote()
        && match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => true,
            Some(h2::Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        }
}

/// Removes the details of a status, which nobody here reads: tonic panics when they are not base64, and a panic ends the
/// process.
pub(super) fn without_details(headers: &mut http::HeaderMap) {
    headers.remove("grpc-status-details-bin");
}

/// The body of an answer. Gives flow-control credit back as it is read.
pub(super) struct AnswerBody {
    stream: h2::RecvStream,
    data_ended: bool,
}

impl AnswerBody {
    pub fn new(stream: h2::RecvStream) -> AnswerBody {
        AnswerBody { stream, data_ended: false }
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only when the stream is gone, and then the next poll says so.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // A server may reset a stream without error once its answer is complete (RFC 9113 section 8.1).
                Some(Err(error)) if error.reason() == Some(h2::Reason::NO_ERROR) && error.is_reset() => {
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(status(&error)))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|mut trailers| {
                without_details(&mut trailers);
                Ok(Frame::trailers(trailers))
            })),
            Err(error) => Poll::Ready(Some(Err(status(&error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
