//! The other side of the contract: an app server in Rust, for the demo and for tests.
//!
//! It is the smallest thing that real gRPC clients can talk to: unary calls over plain HTTP/2, through tonic's
//! server half. It serves on loopback and is no replacement for an app server on a network.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::messages::{
    CommandMessage, CommandResponse, ConnectionRequest, ConnectionResponse, DisconnectRequest, DisconnectResponse,
};

/// Connections served at the same time; one more waits to be accepted.
pub const CONNECTIONS_MAX: usize = 256;

/// Time after which accepting is tried again when it failed (out of descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What an app answers. Metadata of a call (`sid`, `protov`) is in the request.
pub trait Rpc: Send + Sync + 'static {
    /// May this client connect, and who is it?
    fn connect(
        &self,
        request: Request<ConnectionRequest>,
    ) -> impl Future<Output = Result<ConnectionResponse, Status>> + Send;

    /// A client subscribes, unsubscribes or performs an action.
    fn command(&self, request: Request<CommandMessage>)
    -> impl Future<Output = Result<CommandResponse, Status>> + Send;

    /// A client is gone.
    fn disconnect(
        &self,
        request: Request<DisconnectRequest>,
    ) -> impl Future<Output = Result<DisconnectResponse, Status>> + Send;
}

/// Serves `app` to every client of `listener` until the future is dropped or `stop` completes; then connections end
/// after the calls that run on them.
pub async fn serve<A: Rpc>(listener: TcpListener, app: Arc<A>, stop: impl Future<Output = ()> + Send) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stopping, stopped) = tokio::sync::watch::channel(());
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            // The semaphore is never closed, so there is always a place in the end.
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (app, mut stopped) = (app.clone(), stopped.clone());
                tokio::spawn(async move {
                    let stop = async move { drop(stopped.changed().await) };
                    serve_connection(stream, app, stop).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
    drop(listener);
    drop(stopped);
    // Nobody is there to hear it when no connection is open.
    let _ = stopping.send(());
    stopping.closed().await;
}

/// Listens on `address` (port 0: a free one) and serves `app` there on the current runtime. Returns the address really
/// bound; dropping the handle's owner does not stop it, [`tokio::task::JoinHandle::abort`] stops accepting.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn listen<A: Rpc>(
    address: SocketAddr,
    app: Arc<A>,
) -> std::io::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((bound, tokio::spawn(serve(listener, app, std::future::pending()))))
}

/// Serves one connection until it ends, or gracefully once `stop` completes. Dropping the future cuts it off.
pub async fn serve_connection<A: Rpc>(stream: TcpStream, app: Arc<A>, stop: impl Future<Output = ()> + Send) {
    // A peer that is gone already shows as an error below.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request| {
        let app = app.clone();
        async move { Ok::<_, std::convert::Infallible>(route(app, request).await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stop = pin!(stop);
    let mut stopping = false;
    poll_fn(|cx| {
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        // How a client ended its connection changes nothing for the app.
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}

async fn route<A: Rpc>(
    app: Arc<A>,
    request: http::Request<hyper::body::Incoming>,
) -> http::Response<tonic::body::Body> {
    match request.uri().path() {
        "/anycable.RPC/Connect" => tonic::server::Grpc::new(ProstCodec::default()).unary(Connect(app), request).await,
        "/anycable.RPC/Command" => tonic::server::Grpc::new(ProstCodec::default()).unary(Command(app), request).await,
        "/anycable.RPC/Disconnect" => {
            tonic::server::Grpc::new(ProstCodec::default()).unary(Disconnect(app), request).await
        }
        _ => Status::unimplemented("no such method").into_http(),
    }
}

type Answering<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// Makes a type that tonic can call out of one method of [`Rpc`].
macro_rules! method {
    ($Name:ident, $method:ident, $Request:ty, $Response:ty) => {
        struct $Name<A>(Arc<A>);

        impl<A: Rpc> UnaryService<$Request> for $Name<A> {
            type Response = $Response;
            type Future = Answering<$Response>;

            fn call(&mut self, request: Request<$Request>) -> Self::Future {
                let app = self.0.clone();
                Box::pin(async move { app.$method(request).await.map(Response::new) })
            }
        }
    };
}

method!(Connect, connect, ConnectionRequest, ConnectionResponse);
method!(Command, command, CommandMessage, CommandResponse);
method!(Disconnect, disconnect, DisconnectRequest, DisconnectResponse);
