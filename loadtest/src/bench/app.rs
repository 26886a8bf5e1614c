//! A small app server, called through gRPC or HTTP: it lets everybody in, confirms every subscription, answers every
//! message, and knows how many calls it had at once. Messages are declared by hand from the contract, so no `protoc` is
//! needed.

mod http_rpc;
mod messages;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub use http_rpc::CONNECTS_PATH;
pub(super) use messages::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse, Env,
    SUCCESS,
};

use crate::protocol::json_string;

/// What the app saw, and how slow it is.
#[derive(Debug, Default)]
struct Calls {
    under_way: AtomicU64,
    most_at_once: AtomicU64,
    answered: AtomicU64,
    delay_us: AtomicU64,
    /// Messages of clients.
    messages: AtomicU64,
    /// Clients that it was asked to let in.
    connects: AtomicU64,
    /// How often it was told that a client is gone, of those that gave themselves a number.
    told: Mutex<BTreeMap<String, u32>>,
}

impl Calls {
    async fn take_time(&self) {
        let delay_us = self.delay_us.load(Ordering::Relaxed);
        if delay_us > 0 {
            tokio::time::sleep(Duration::from_micros(delay_us)).await;
        }
    }
}

/// A running app server, on its own threads; dropping it ends it.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    calls: Arc<Calls>,
    _runtime: tokio::runtime::Runtime,
}

impl App {
    /// Base URL of calls over HTTP.
    pub fn http_url(&self) -> String {
        format!("http://{}{}", self.address, http_rpc::BASE)
    }

    /// Starts it on a free loopback port.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn start_on(address: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let calls = Arc::new(Calls::default());
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        let service = Rpc { calls: Arc::clone(&calls) };
        runtime.spawn(async move {
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            if let Err(error) = tonic::transport::Server::builder()
                .accept_http1(true)
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
            {
                eprintln!("the app server ended: {error}");
            }
        });
        Ok(Self { address, calls, _runtime: runtime })
    }

    /// Lets every later call take this long.
    pub fn delay(&self, delay: Duration) {
        self.calls.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// The most calls at once since the last time this was asked.
    pub fn take_most_at_once(&self) -> u64 {
        self.calls.most_at_once.swap(0, Ordering::Relaxed)
    }

    /// How often it was told that a client is gone, by the identifiers of clients that connected with `client=` in their
    /// query.
    pub fn told(&self) -> BTreeMap<String, u32> {
        self.calls.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was asked to let a client in.
    pub fn connects(&self) -> u64 {
        self.calls.connects.load(Ordering::Relaxed)
    }

    /// Messages of clients that reached it.
    pub fn messages(&self) -> u64 {
        self.calls.messages.load(Ordering::Relaxed)
    }

    /// Calls answered.
    pub fn calls(&self) -> u64 {
        self.calls.answered.load(Ordering::Relaxed)
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
    calls: Arc<Calls>,
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
        let calls = Arc::clone(&self.calls);
        Box::pin(async move {
            let answer = match request.uri().path() {
                "/anycable.RPC/Connect" => {
                    Grpc::new(ProstCodec::default()).unary(Method { calls, answer: connect }, request).await
                }
                "/anycable.RPC/Command" => {
                    Grpc::new(ProstCodec::default()).unary(Method { calls, answer: command }, request).await
                }
                "/anycable.RPC/Disconnect" => {
                    Grpc::new(ProstCodec::default()).unary(Method { calls, answer: disconnect }, request).await
                }
                _ => http_rpc::answer(&calls, request).await,
            };
            Ok(answer)
        })
    }
}

struct Method<Q, R> {
    calls: Arc<Calls>,
    answer: fn(&Calls, &str, Q) -> R,
}

impl<Q: Send + 'static, R: Send + 'static> UnaryService<Q> for Method<Q, R> {
    type Response = R;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Status>> + Send>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (calls, answer) = (Arc::clone(&self.calls), self.answer);
        Box::pin(async move {
            // A call that the client gives up is dropped in the middle; it is over all the same.
            let _under_way = UnderWay::new(&calls);
            calls.take_time().await;
            let sid = request.metadata().get("sid").and_then(|sid| sid.to_str().ok()).unwrap_or_default().to_owned();
            Ok(Response::new(answer(&calls, &sid, request.into_inner())))
        })
    }
}

struct UnderWay<'a>(&'a Calls);

impl<'a> UnderWay<'a> {
    fn new(calls: &'a Calls) -> Self {
        let now = calls.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        calls.most_at_once.fetch_max(now, Ordering::Relaxed);
        Self(calls)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the identifiers of a client begin with that has a number.
const NUMBERED: &str = r#"{"client":"#;

fn connect(calls: &Calls, sid: &str, request: ConnectionRequest) -> ConnectionResponse {
    calls.connects.fetch_add(1, Ordering::Relaxed);
    let url = request.env.map(|env| env.url).unwrap_or_default();
    let number = url.split(['?', '&']).find_map(|pair| pair.strip_prefix("client="));
    ConnectionResponse {
        status: SUCCESS,
        identifiers: match number {
            Some(number) => format!("{NUMBERED}{}}}", json_string(number)),
            None => r#"{"user":"load"}"#.to_owned(),
        },
        // As anycable-rails does: with the id of the session its client can come back to it.
        transmissions: vec![format!(r#"{{"type":"welcome","sid":{}}}"#, json_string(sid))],
    }
}

fn command(calls: &Calls, _: &str, call: CommandMessage) -> CommandResponse {
    let identifier = json_string(&call.identifier);
    let mut response = CommandResponse { status: SUCCESS, ..CommandResponse::default() };
    match call.command.as_str() {
        "subscribe" => {
            response.streams.push("load".to_owned());
            response.transmissions.push(format!(r#"{{"type":"confirm_subscription","identifier":{identifier}}}"#));
        }
        "message" => {
            calls.messages.fetch_add(1, Ordering::Relaxed);
            let text = long_answer(&call.data).unwrap_or_else(|| "done".to_owned());
            response.transmissions.push(format!(r#"{{"identifier":{identifier},"message":"{text}"}}"#));
        }
        _ => {}
    }
    response
}

/// The text that a message with `"action":"long"` is answered with: as many `z` as its `bytes` say, a few megabytes at most.
fn long_answer(data: &str) -> Option<String> {
    let bytes = data.strip_prefix(r#"{"action":"long","bytes":"#)?.strip_suffix('}')?.parse().ok()?;
    Some("z".repeat(usize::min(bytes, 4 << 20)))
}

fn disconnect(calls: &Calls, _: &str, request: DisconnectRequest) -> DisconnectResponse {
    if request.identifiers.starts_with(NUMBERED) {
        let mut told = calls.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told.entry(request.identifiers).or_default() += 1;
    }
    DisconnectResponse { status: SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_knows_how_often_it_was_told_of_each_client_that_has_a_number() {
        let calls = Calls::default();
        let url = |url: &str| ConnectionRequest { env: Some(Env { url: url.to_owned(), ..Env::default() }) };
        for (client, times) in [("/cable?client=7&pi=0", 2), ("/cable?pi=0&client=8", 1), ("/cable", 3)] {
            let identifiers = connect(&calls, "", url(client)).identifiers;
            for _ in 0..times {
                disconnect(&calls, "", DisconnectRequest { identifiers: identifiers.clone() });
            }
        }
        let told = calls.told.into_inner().unwrap();
        assert_eq!(told, BTreeMap::from([(r#"{"client":"7"}"#.into(), 2), (r#"{"client":"8"}"#.into(), 1)]));
    }
}
