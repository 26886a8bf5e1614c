//! A real gRPC app server whose every answer the test gives by hand, and a backend that calls it.
//!
//! Everything runs on one thread with a paused clock. Loopback delivers at once, so the clock only moves when all that
//! could happen has happened, and times can be compared exactly.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;

use cableway::backend::grpc::messages::*;
use cableway::backend::grpc::server::{Rpc, serve_connection};
use cableway::backend::{Backend, Settings, Target};
use cableway::model::{Answer, AppReply, Call, CallError, CommandKind, Env, Reply, Request, Sid, SlotKey, State};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tonic::metadata::MetadataMap;

/// What the app was asked.
pub enum Message {
    Connect(ConnectionRequest),
    Command(CommandMessage),
    Disconnect(DisconnectRequest),
}

/// A call that has reached the app and waits for its answer.
pub struct Asked {
    pub metadata: MetadataMap,
    pub message: Message,
    reply: oneshot::Sender<Result<Told, tonic::Status>>,
}

/// An answer of the app.
pub enum Told {
    Connect(ConnectionResponse),
    Command(CommandResponse),
    Disconnect(DisconnectResponse),
}

impl Asked {
    pub fn answer(self, told: Told) {
        let _ = self.reply.send(Ok(told));
    }

    pub fn fail(self, code: tonic::Code) {
        let _ = self.reply.send(Err(tonic::Status::new(code, "because")));
    }

    pub fn refuse(self, code: tonic::Code, message: &str) {
        let _ = self.reply.send(Err(tonic::Status::new(code, message)));
    }

    /// Answers with success and nothing else.
    pub fn succeed(self) {
        let status = Status::Success as i32;
        let told = match self.message {
            Message::Connect(_) => Told::Connect(ConnectionResponse { status, ..Default::default() }),
            Message::Command(_) => Told::Command(CommandResponse { status, ..Default::default() }),
            Message::Disconnect(_) => Told::Disconnect(DisconnectResponse { status, ..Default::default() }),
        };
        self.answer(told);
    }

    /// The identifier of a Command, or the identifiers of a Disconnect.
    pub fn name(&self) -> &str {
        match &self.message {
            Message::Connect(_) => "",
            Message::Command(message) => &message.identifier,
            Message::Disconnect(message) => &message.identifiers,
        }
    }

    /// Waits until the caller has given the call up.
    pub async fn given_up(mut self) {
        soon(self.reply.closed()).await;
    }
}

struct App(mpsc::UnboundedSender<Asked>);

impl App {
    async fn ask(&self, metadata: MetadataMap, message: Message) -> Result<Told, tonic::Status> {
        let (reply, told) = oneshot::channel();
        let _ = self.0.send(Asked { metadata, message, reply });
        told.await.unwrap_or_else(|_| Err(tonic::Status::unknown("the test dropped the call")))
    }
}

impl Rpc for App {
    async fn connect(&self, request: tonic::Request<ConnectionRequest>) -> Result<ConnectionResponse, tonic::Status> {
        let (metadata, _, message) = request.into_parts();
        match self.ask(metadata, Message::Connect(message)).await? {
            Told::Connect(reply) => Ok(reply),
            _ => panic!("the test answered another method"),
        }
    }

    async fn command(&self, request: tonic::Request<CommandMessage>) -> Result<CommandResponse, tonic::Status> {
        let (metadata, _, message) = request.into_parts();
        match self.ask(metadata, Message::Command(message)).await? {
            Told::Command(reply) => Ok(reply),
            _ => panic!("the test answered another method"),
        }
    }

    async fn disconnect(
        &self,
        request: tonic::Request<DisconnectRequest>,
    ) -> Result<DisconnectResponse, tonic::Status> {
        let (metadata, _, message) = request.into_parts();
        match self.ask(metadata, Message::Disconnect(message)).await? {
            Told::Disconnect(reply) => Ok(reply),
            _ => panic!("the test answered another method"),
        }
    }
}

/// A port that stays this test's own while no server listens on it. The socket that holds it never listens, so
/// connecting is refused; servers may bind beside it, because all of them allow the address to be reused.
pub struct Place {
    address: SocketAddr,
    _holder: TcpSocket,
}

impl Place {
    pub fn reserve() -> Place {
        let holder = TcpSocket::new_v4().unwrap();
        holder.set_reuseaddr(true).unwrap();
        holder.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Place { address: holder.local_addr().unwrap(), _holder: holder }
    }
}

/// A running app server.
pub struct Server {
    pub address: SocketAddr,
    pub asked: mpsc::UnboundedReceiver<Asked>,
    task: JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
}

impl Server {
    pub async fn start() -> Server {
        Server::serving(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// Listens at a place where another has listened before, or will.
    pub async fn at(place: &Place) -> Server {
        Server::serving(TcpListener::bind(place.address).await.unwrap())
    }

    fn serving(listener: TcpListener) -> Server {
        let address = listener.local_addr().unwrap();
        let (calls, asked) = mpsc::unbounded_channel();
        let (stop, mut stopped) = oneshot::channel();
        let app = Arc::new(App(calls));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut stops = Vec::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stop, stopped) = oneshot::channel::<()>();
                        stops.push(stop);
                        let stopped = async move { drop(stopped.await) };
                        connections.spawn(serve_connection(accepted.unwrap().0, app.clone(), stopped));
                    }
                    _ = &mut stopped => break,
                }
            }
            drop(listener);
            drop(stops);
            while connections.join_next().await.is_some() {}
        });
        Server { address, asked, task, stop: Some(stop) }
    }

    /// The process is gone: its port is closed, its connections are cut off.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Says goodbye on every connection and takes no new one; calls that run may end.
    pub fn stop(&mut self) {
        self.stop.take();
    }

    pub async fn next(&mut self) -> Asked {
        soon(self.asked.recv()).await.unwrap()
    }

    /// Whether a call has reached the app that the test has not looked at.
    pub fn quiet(&self) -> bool {
        self.asked.is_empty()
    }
}

/// The end of a call.
#[derive(Debug)]
pub struct Answered {
    pub key: SlotKey,
    pub result: Result<AppReply, CallError>,
}

pub struct Caller {
    pub backend: Backend,
    pub answers: mpsc::UnboundedReceiver<Answered>,
}

impl Caller {
    pub fn new(settings: Settings) -> Caller {
        let (sender, answers) = mpsc::unbounded_channel();
        let deliver = Arc::new(move |Answer { key, reply }| {
            let Reply::App(result) = reply else { panic!("only the app is asked here") };
            drop(sender.send(Answered { key, result }));
        });
        let backend = Backend::start(settings, &tokio::runtime::Handle::current(), deliver).unwrap();
        Caller { backend, answers }
    }

    pub fn to(server: &Server) -> Caller {
        Caller::new(to(server))
    }

    pub async fn answer(&mut self) -> Answered {
        soon(self.answers.recv()).await.unwrap()
    }
}

pub fn to(server: &Server) -> Settings {
    Settings { target: Target::parse(&server.address.to_string()).unwrap(), ..Settings::default() }
}

pub fn key(index: u32) -> SlotKey {
    SlotKey { shard: 0, index, generation: 0 }
}

pub fn sid(index: u32) -> Sid {
    Sid::from_bits(u128::from(index))
}

pub fn env() -> Env {
    Env::new("http://ws.test/cable?t=1", [("cookie", "_s=abc"), ("REMOTE_ADDR", "10.0.0.9")])
}

pub fn connect(index: u32) -> Call {
    Call { key: key(index), sid: sid(index), request: Request::Connect { env: env() } }
}

/// A `message` command; the channel's name is the index.
pub fn command(index: u32) -> Call {
    let request = Request::Command {
        command: CommandKind::Message,
        identifier: index.to_string().as_str().into(),
        data: "data".into(),
        env: env().with_identifiers("who"),
        cstate: State::default(),
        istate: State::default(),
    };
    Call { key: key(index), sid: sid(index), request }
}

/// A Disconnect whose identifiers are the index.
pub fn disconnect(index: u32) -> Call {
    let request = Request::Disconnect {
        subscriptions: vec![],
        env: env().with_identifiers(&index.to_string()),
        cstate: State::default(),
    };
    Call { key: key(index), sid: sid(index), request }
}

/// Fails the test when something does not come: a paused clock would wait for ever, busily.
pub async fn soon<T>(thing: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(60), thing).await.expect("nothing comes")
}

/// Lets everything happen that can happen without time passing much.
pub async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}
