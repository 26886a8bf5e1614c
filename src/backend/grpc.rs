//! Calls the app over gRPC (`contracts/rpc-grpc.md`).
//!
//! tonic frames messages, reads statuses and keeps the size limit; the connections under it are our own
//! ([`channel`]), and so are the messages ([`messages`]), so that no `protoc` is needed.

mod channel;
mod connection;
mod encode;
pub mod messages;
pub mod server;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::{Code, Status};
use tonic_prost::ProstDecoder;
use tower_service::Service;

use self::channel::{Channel, Lease};
use self::connection::{AnswerBody, never_processed, status};
use super::attempt::{Failure, Method, Outcome, Prepared, Retry, Transport};
use super::{BackendError, BackendMetrics, GrpcTarget, Settings, tls};
use crate::model::rpc::PresenceReply;
use crate::model::{CallError, CommandReply, ConnectReply, Request, Status as ReplyStatus};

/// How often one attempt moves to another connection because the server certainly had not looked at the call.
const MOVES_MAX: usize = 3;

/// Longest text of an app's error kept for the log.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Names us to the app, as gRPC clients do.
const USER_AGENT: &str = concat!("cableway/", env!("CARGO_PKG_VERSION"), " grpc");

/// The gRPC transport.
pub(super) struct Grpc {
    channel: Channel,
    scheme: http::uri::Scheme,
    receive_bytes_max: usize,
}

impl Grpc {
    pub fn new(
        target: &GrpcTarget,
        settings: &Settings,
        runtime: Handle,
        metrics: Arc<BackendMetrics>,
    ) -> Result<Grpc, BackendError> {
        let encrypted = encrypted(settings);
        let tls = encrypted.then(|| tls::connector(&settings.tls, &[b"h2"])).transpose()?;
        let scheme = if encrypted { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP };
        let channel = Channel::new(target, tls, runtime, metrics);
        Ok(Grpc { channel, scheme, receive_bytes_max: settings.receive_bytes_max })
    }

    /// Whether there is a connection, or one can be made.
    pub async fn ready(&self) -> Result<(), String> {
        self.channel.ready().await.map(drop).map_err(|error| error.why.to_string())
    }

    async fn unary<M: prost::Message + Default + 'static>(
        &self,
        path: &'static str,
        call: &Prepared,
        time: Duration,
    ) -> Result<M, Failure> {
        let mut request = tonic::Request::new(call.body.clone());
        // Both always are valid header values: one is fixed, the other 21 URL-safe characters.
        if let Ok(sid) = tonic::metadata::MetadataValue::try_from(&call.sid.ascii()[..]) {
            request.metadata_mut().insert("sid", sid);
        }
        request.metadata_mut().insert("protov", tonic::metadata::MetadataValue::from_static("v1"));
        request.set_timeout(time);
        let mut client = tonic::client::Grpc::new(Sender(self)).max_decoding_message_size(self.receive_bytes_max);
        let reply = client.unary(request, PathAndQuery::from_static(path), RawCodec(std::marker::PhantomData)).await;
        reply.map(tonic::Response::into_inner).map_err(failure)
    }
}

/// Whether calls are encrypted: on request, and whenever a root certificate is given.
pub(super) fn encrypted(settings: &Settings) -> bool {
    settings.tls.enabled || settings.tls.root_ca.is_some()
}

impl Transport for Grpc {
    fn encode(&self, request: &Request) -> Bytes {
        encode::encode(request)
    }

    async fn attempt(&self, call: &Prepared, time: Duration) -> Result<Outcome, Failure> {
        match call.method {
            Method::Connect => {
                let reply: messages::ConnectionResponse = self.unary("/anycable.RPC/Connect", call, time).await?;
                Ok(Outcome::Connect(ConnectReply {
                    status: reply_status(reply.status),
                    identifiers: reply.identifiers,
                    transmissions: reply.transmissions,
                    error_msg: reply.error_msg,
                    cstate: reply.env.map(|env| env.cstate.into_iter().collect()).unwrap_or_default(),
                }))
            }
            Method::Command => {
                let reply: messages::CommandResponse = self.unary("/anycable.RPC/Command", call, time).await?;
                let env = reply.env.unwrap_or_default();
                let presence = reply.presence.map(|messages::PresenceResponse { r#type: kind, id, info, ttl: _ }| {
                    PresenceReply { kind, id, info }
                });
                Ok(Outcome::Command(Box::new(CommandReply {
                    status: reply_status(reply.status),
                    disconnect: reply.disconnect,
                    stop_streams: reply.stop_streams,
                    streams: reply.streams,
                    stopped_streams: reply.stopped_streams,
                    transmissions: reply.transmissions,
                    error_msg: reply.error_msg,
                    cstate: env.cstate.into_iter().collect(),
                    istate: env.istate.into_iter().collect(),
                    presence,
                })))
            }
            Method::Disconnect => {
                let reply: messages::DisconnectResponse = self.unary("/anycable.RPC/Disconnect", call, time).await?;
                Ok(Outcome::Disconnect(reply_status(reply.status), reply.error_msg))
            }
        }
    }
}

/// A status that the contract does not know is the app's fault.
fn reply_status(status: i32) -> ReplyStatus {
    match messages::Status::try_from(status) {
        Ok(messages::Status::Success) => ReplyStatus::Success,
        Ok(messages::Status::Failure) => ReplyStatus::Failure,
        Ok(messages::Status::Error) | Err(_) => ReplyStatus::Error,
    }
}

/// Marks a status made because every server is known to be failing.
#[derive(Debug, thiserror::Error)]
#[error("every app server is failing")]
struct FailingAlready;

fn failure(status: Status) -> Failure {
    let known = std::error::Error::source(&status).is_some_and(|source| source.is::<FailingAlready>());
    let mut message = status.message().to_owned();
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    let (error, retry) = match status.code() {
        Code::Unavailable if known => (CallError::Unavailable(message), Retry::Never),
        Code::Unavailable => (CallError::Unavailable(message), Retry::Unavailable),
        Code::ResourceExhausted => (CallError::Failed(format!("resource exhausted: {message}")), Retry::Exhausted),
        Code::DeadlineExceeded => (CallError::Timeout, Retry::Never),
        Code::Unauthenticated => (CallError::Unauthenticated(message), Retry::Never),
        Code::InvalidArgument => (CallError::InvalidArgument(message), Retry::Never),
        code => (CallError::Failed(format!("{code:?}: {message}")), Retry::Never),
    };
    Failure { error, retry }
}

/// Messages go out as bytes that are encoded already, and come in through prost.
struct RawCodec<M>(std::marker::PhantomData<M>);

impl<M: prost::Message + Default + 'static> Codec for RawCodec<M> {
    type Encode = Bytes;
    type Decode = M;
    type Encoder = RawEncoder;
    type Decoder = ProstDecoder<M>;

    fn encoder(&mut self) -> RawEncoder {
        RawEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<M> {
        ProstDecoder::new(buffers())
    }
}

/// First size of tonic's buffers, and how much of a message they may take in one piece. tonic's default is 8 KiB for
/// either way of each call; most calls and answers fit into this.
fn buffers() -> BufferSettings {
    BufferSettings::new(1024, 32 * 1024)
}

struct RawEncoder;

impl Encoder for RawEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, message);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

/// Sends one HTTP request of tonic's over one of our connections.
struct Sender<'a>(&'a Grpc);

impl<'a> Service<http::Request<tonic::body::Body>> for Sender<'a> {
    type Response = http::Response<AnswerBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send + 'a>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send(request))
    }
}

impl Grpc {
    async fn send(&self, request: http::Request<tonic::body::Body>) -> Result<http::Response<AnswerBody>, Status> {
        let (mut head, body) = request.into_parts();
        // One message, made of one buffer: this neither waits nor copies.
        let body = body.collect().await?.to_bytes();
        head.headers.insert(http::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        for _ in 0..MOVES_MAX {
            let lease = self.channel.ready().await.map_err(|error| {
                let mut status = Status::unavailable(&*error.why);
                if !error.waited {
                    status.set_source(Arc::new(FailingAlready));
                }
                status
            })?;
            let mut request = http::Request::from_parts(head.clone(), ());
            *request.uri_mut() = self.uri(&lease, &head.uri)?;
            match exchange(&lease, request, body.clone()).await {
                Ok(response) => {
                    lease.connection.proven.store(true, Relaxed);
                    return Ok(response.map(AnswerBody::new));
                }
                Err(Broken::Connection) => self.channel.ended(&lease),
                Err(Broken::Call(error)) if never_processed(&error) => {
                    // A refused stream says nothing about the connection: the server is full or will say goodbye.
                    if error.is_go_away() {
                        self.channel.ended(&lease);
                    }
                }
                Err(Broken::Call(error)) => return Err(status(&error)),
            }
        }
        Err(Status::unavailable("the app server refuses calls"))
    }

    /// The absolute form, out of which h2 makes `:scheme`, `:authority` and `:path`.
    fn uri(&self, lease: &Lease, path: &Uri) -> Result<Uri, Status> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(lease.authority.clone());
        parts.path_and_query = path.path_and_query().cloned();
        Uri::from_parts(parts).map_err(|error| Status::internal(error.to_string()))
    }
}

/// What broke when an exchange failed.
enum Broken {
    /// Before anything of the call was sent: another connection may serve it.
    Connection,
    /// The call itself.
    Call(h2::Error),
}

async fn exchange(
    lease: &Lease,
    request: http::Request<()>,
    body: Bytes,
) -> Result<http::Response<h2::RecvStream>, Broken> {
    // Waits while the server has as many streams open as it permits.
    let mut sender = lease.connection.sender.clone().ready().await.map_err(|_| Broken::Connection)?;
    let (response, mut stream) = sender.send_request(request, false).map_err(|_| Broken::Connection)?;
    // h2 keeps what the flow control window has no room for; its size is limited by `send_bytes_max`.
    stream.send_data(body, true).map_err(Broken::Call)?;
    response.await.map_err(Broken::Call)
}
