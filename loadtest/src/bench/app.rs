//! A small app server behind gRPC: it lets everybody in, confirms every subscription, answers every message, and knows
//! how many calls it had at once. Messages are declared by hand from the contract, so no `protoc` is needed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::protocol::json_string;

/// What the app learns about the connection.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Env {
    #[prost(string, tag = "1")]
    pub url: String,
    #[prost(map = "string, string", tag = "2")]
    pub headers: HashMap<String, String>,
    #[prost(map = "string, string", tag = "3")]
    pub cstate: HashMap<String, String>,
    #[prost(map = "string, string", tag = "4")]
    pub istate: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConnectionRequest {
    #[prost(message, optional, tag = "3")]
    pub env: Option<Env>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConnectionResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
    #[prost(string, tag = "2")]
    pub identifiers: String,
    #[prost(string, repeated, tag = "3")]
    pub transmissions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CommandMessage {
    #[prost(string, tag = "1")]
    pub command: String,
    #[prost(string, tag = "2")]
    pub identifier: String,
    #[prost(string, tag = "3")]
    pub connection_identifiers: String,
    #[prost(string, tag = "4")]
    pub data: String,
    #[prost(message, optional, tag = "5")]
    pub env: Option<Env>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CommandResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
    #[prost(string, repeated, tag = "4")]
    pub streams: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub transmissions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DisconnectRequest {
    #[prost(string, tag = "1")]
    pub identifiers: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DisconnectResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

pub(super) const SUCCESS: i32 = 1;

/// What the app saw, and how slow it is.
#[derive(Debug, Default)]
struct Book {
    under_way: AtomicU64,
    most_at_once: AtomicU64,
    calls: AtomicU64,
    delay_us: AtomicU64,
}

/// A running app server, on its own threads; dropping it ends it.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    book: Arc<Book>,
    _runtime: tokio::runtime::Runtime,
}

impl App {
    /// Starts it on a free loopback port.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn start_on(address: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let book = Arc::new(Book::default());
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        let service = Rpc { book: Arc::clone(&book) };
        runtime.spawn(async move {
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            if let Err(error) =
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
            {
                eprintln!("the app server ended: {error}");
            }
        });
        Ok(Self { address, book, _runtime: runtime })
    }

    /// Lets every later call take this long.
    pub fn delay(&self, delay: Duration) {
        self.book.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// The most calls at once since the last time this was asked.
    pub fn take_most_at_once(&self) -> u64 {
        self.book.most_at_once.swap(0, Ordering::Relaxed)
    }

    /// Calls answered.
    pub fn calls(&self) -> u64 {
        self.book.calls.load(Ordering::Relaxed)
    }
}

/// Serves until the process ends: `cableway-loadtest app`.
pub fn serve(address: SocketAddr, delay: Duration) -> anyhow::Result<Infallible> {
    let app = App::start_on(address)?;
    app.delay(delay);
    println!("app server on {}", app.address);
    loop {
        std::thread::sleep(Duration::from_secs(10));
        println!("{} calls, at most {} at once in the last 10 s", app.calls(), app.take_most_at_once());
    }
}

#[derive(Clone)]
struct Rpc {
    book: Arc<Book>,
}

impl NamedService for Rpc {
    const NAME: &'static str = "anycable.RPC";
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Infallible>> + Send>>;

impl tower_service::Service<http::Request<Body>> for Rpc {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let book = Arc::clone(&self.book);
        Box::pin(async move {
            let answer = match request.uri().path() {
                "/anycable.RPC/Connect" => {
                    Grpc::new(ProstCodec::default()).unary(Method { book, answer: connect }, request).await
                }
                "/anycable.RPC/Command" => {
                    Grpc::new(ProstCodec::default()).unary(Method { book, answer: command }, request).await
                }
                "/anycable.RPC/Disconnect" => {
                    Grpc::new(ProstCodec::default()).unary(Method { book, answer: disconnect }, request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            };
            Ok(answer)
        })
    }
}

struct Method<Q, R> {
    book: Arc<Book>,
    answer: fn(Q) -> R,
}

impl<Q: Send + 'static, R: Send + 'static> UnaryService<Q> for Method<Q, R> {
    type Response = R;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Status>> + Send>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (book, answer) = (Arc::clone(&self.book), self.answer);
        Box::pin(async move {
            // A call that the client gives up is dropped in the middle; it is over all the same.
            let _under_way = UnderWay::new(&book);
            let delay_us = book.delay_us.load(Ordering::Relaxed);
            if delay_us > 0 {
                tokio::time::sleep(Duration::from_micros(delay_us)).await;
            }
            Ok(Response::new(answer(request.into_inner())))
        })
    }
}

struct UnderWay<'a>(&'a Book);

impl<'a> UnderWay<'a> {
    fn new(book: &'a Book) -> Self {
        let now = book.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        book.most_at_once.fetch_max(now, Ordering::Relaxed);
        Self(book)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.0.calls.fetch_add(1, Ordering::Relaxed);
    }
}

fn connect(_: ConnectionRequest) -> ConnectionResponse {
    ConnectionResponse {
        status: SUCCESS,
        identifiers: r#"{"user":"load"}"#.to_owned(),
        transmissions: vec![r#"{"type":"welcome"}"#.to_owned()],
    }
}

fn command(call: CommandMessage) -> CommandResponse {
    let identifier = json_string(&call.identifier);
    let mut response = CommandResponse { status: SUCCESS, ..CommandResponse::default() };
    match call.command.as_str() {
        "subscribe" => {
            response.streams.push("load".to_owned());
            response.transmissions.push(format!(r#"{{"type":"confirm_subscription","identifier":{identifier}}}"#));
        }
        "message" => {
            response.transmissions.push(format!(r#"{{"identifier":{identifier},"message":"done"}}"#));
        }
        _ => {}
    }
    response
}

fn disconnect(_: DisconnectRequest) -> DisconnectResponse {
    DisconnectResponse { status: SUCCESS }
}
