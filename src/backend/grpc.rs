//! Calls the app over gRPC (`contracts/rpc-grpc.md`).
//!
//! Calls are encoded once, gRPC frame included ([`encode`]), and given to h2 over connections of our own ([`channel`]);
//! tonic reads the frames and statuses of answers and keeps the size limit.

mod channel;
mod connection;
mod encode;
pub mod messages;
pub mod server;

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use tokio::runtime::Handle;
use tonic::Streaming;
use tonic::codec::BufferSettings;
use tonic::{Code, Status};
use tonic_prost::ProstDecoder;

use self::channel::{Channel, Lease};
use self::connection::{AnswerBody, never_processed, status, without_details};
use super::attempt::{Failure, Method, Outcome, Prepared, Retry, Transport};
use super::{BackendError, BackendMetrics, GrpcTarget, Settings, Target, tls};
use crate::model::rpc::PresenceReply;
use crate::model::{CallError, CommandReply, ConnectReply, Request, Status as ReplyStatus, floor_char_boundary};

/// How often one attempt moves to another connection because the server certainly had not looked at the call.
const MOVES_MAX: usize = 3;

/// Longest text of an app's error kept for the log.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Names us to the app, as gRPC clients do.
const USER_AGENT: &str = concat!("cableway/", env!("CARGO_PKG_VERSION"), " grpc");

/// The gRPC transport.
pub(super) struct Grpc {
    /// As configured, for the log.
    target: String,
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
        let target = format!("gRPC {}", Target::Grpc(target.clone()));
        Ok(Grpc { target, channel, scheme, receive_bytes_max: settings.receive_bytes_max })
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
        let failed = |status| failure(status, call.body.len());
        let response = self.send(path, call, time).await.map_err(failed)?;
        self.receive(response).await.map_err(failed)
    }
}

/// Whether calls are encrypted: on request, and whenever a root certificate is given.
pub(super) fn encrypted(settings: &Settings) -> bool {
    settings.tls.enabled || settings.tls.root_ca.is_some()
}

impl Transport for Grpc {
    const FRAMING_BYTES: usize = encode::PREFIX_BYTES;

    fn target(&self, _: Method) -> impl Display {
        &self.target
    }

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

/// What a status means for the call, whose size this is.
fn failure(status: Status, size: usize) -> Failure {
    let known = std::error::Error::source(&status).is_some_and(|source| source.is::<FailingAlready>());
    let mut message = status.message().to_owned();
    message.truncate(floor_char_boundary(&message, MESSAGE_BYTES_MAX));
    let failed = |message| CallError::Failed(format!("{:?}: {message}", status.code()));
    let (error, retry) = match status.code() {
        Code::Unavailable if known => (CallError::Unavailable(message), Retry::Later),
        Code::Unavailable => (CallError::Unavailable(message), Retry::Unavailable),
        Code::ResourceExhausted if is_too_large(&message, size) => (failed(message), Retry::Never),
        Code::ResourceExhausted => (failed(message), Retry::Exhausted),
        Code::DeadlineExceeded => (CallError::Timeout, Retry::Never),
        Code::Unauthenticated => (CallError::Unauthenticated(message), Retry::Never),
        Code::InvalidArgument => (CallError::InvalidArgument(message), Retry::Never),
        _ => (failed(message), Retry::Never),
    };
    let hint = match status.code() {
        Code::Unimplemented => "this server knows no AnyCable RPC: is rpc-host the address of the RPC server?",
        Code::Unauthenticated | Code::PermissionDenied => "the app, or what stands in front of it, refuses this server",
        Code::ResourceExhausted if retry == Retry::Never => "raise the largest message that the app takes",
        _ => "",
    };
    Failure { hint, ..Failure::new(error, retry) }
}

/// Whether the app has run out of something because the call is too large for it. gRPC has one status for that and for an app
/// that is too busy; the libraries tell them apart in words only, so a call over their common limit is too large as well.
fn is_too_large(message: &str, size: usize) -> bool {
    const USUAL_MAX: usize = 4 << 20;
    let message = message.to_ascii_lowercase();
    size > USUAL_MAX
        || ["larger than max", "exceeds max", "exceeds the max"].iter().any(|words| message.contains(words))
}

impl Grpc {
    /// Sends a call over one of our connections. The bytes of its message go to h2 as they are.
    async fn send(
        &self,
        path: &'static str,
        call: &Prepared,
        time: Duration,
    ) -> Result<http::Response<h2::RecvStream>, Status> {
        for _ in 0..MOVES_MAX {
            let lease = self.channel.ready().await.map_err(|error| {
                let mut status = Status::unavailable(&*error.why);
                if !error.waited {
                    status.set_source(Arc::new(FailingAlready));
                }
                status
            })?;
            let head = self.head(&lease, path, call, time)?;
            match exchange(&lease, head, call.body.clone()).await {
                Ok(response) => {
                    lease.connection.proven.store(true, Relaxed);
                    return Ok(response);
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

    /// The head of a request (gRPC over HTTP/2, "Requests"). The URI is the absolute form, out of which h2 makes
    /// `:scheme`, `:authority` and `:path`.
    fn head(
        &self,
        lease: &Lease,
        path: &'static str,
        call: &Prepared,
        time: Duration,
    ) -> Result<http::Request<()>, Status> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(lease.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static(path));
        let mut head = http::Request::new(());
        *head.method_mut() = http::Method::POST;
        *head.uri_mut() = Uri::from_parts(parts).map_err(|error| Status::internal(error.to_string()))?;
        let headers = head.headers_mut();
        headers.reserve(6);
        // Always a valid header value: 21 URL-safe characters.
        if let Ok(sid) = HeaderValue::from_bytes(&call.sid.ascii()) {
            headers.insert("sid", sid);
        }
        headers.insert("protov", HeaderValue::from_static("v1"));
        headers.insert("grpc-timeout", grpc_timeout(time));
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        Ok(head)
    }

    /// Reads the message and the status of an answer.
    async fn receive<M: prost::Message + Default + 'static>(
        &self,
        response: http::Response<h2::RecvStream>,
    ) -> Result<M, Status> {
        let (mut head, body) = response.into_parts();
        without_details(&mut head.headers);
        let decoder = ProstDecoder::<M>::new(receive_buffers());
        let mut messages = match Status::from_header_map(&head.headers) {
            Some(status) if status.code() != Code::Ok => return Err(status),
            // The status stands in the head, so no message follows.
            Some(_) => Streaming::new_empty(decoder, AnswerBody::new(body)),
            None => {
                let max = Some(self.receive_bytes_max);
                Streaming::new_response(decoder, AnswerBody::new(body), head.status, None, max)
            }
        };
        let message = messages.message().await?.ok_or_else(|| Status::internal("the answer has no message"))?;
        messages.trailers().await?;
        Ok(message)
    }
}

/// First size of the buffer that tonic collects an answer in. Its default is 8 KiB; most answers fit into this.
fn receive_buffers() -> BufferSettings {
    BufferSettings::new(1024, 32 * 1024)
}

/// The value of `grpc-timeout`: at most eight digits, in the finest unit that takes no more.
fn grpc_timeout(time: Duration) -> HeaderValue {
    const VALUE_MAX: u128 = 99_999_999;
    let units =
        [(time.as_nanos(), 'n'), (time.as_micros(), 'u'), (time.as_millis(), 'm'), (time.as_secs().into(), 'S')];
    let fits = units.into_iter().find(|(value, _)| *value <= VALUE_MAX);
    let (value, unit) = fits.unwrap_or((VALUE_MAX, 'S'));
    HeaderValue::try_from(format!("{value}{unit}")).expect("digits and a letter")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_at_most_eight_digits_in_the_finest_unit() {
        for (time, value) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_secs(3), "3000000u"),
            (Duration::from_secs(3600), "3600000m"),
            (Duration::from_secs(366 * 24 * 3600), "31622400S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(grpc_timeout(time), value);
        }
    }
}
