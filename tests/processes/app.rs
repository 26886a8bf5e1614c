//! A real gRPC app server that lets everybody in and remembers whom it has heard of.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cableway::backend::grpc::messages::*;
use cableway::backend::grpc::server::{Rpc, serve_connection};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A call takes so long, so that calls overlap.
const CALL: Duration = Duration::from_millis(5);

/// What it knows.
#[derive(Default)]
struct Known {
    connected: Vec<String>,
    disconnected: Vec<String>,
    running: usize,
    most_at_once: usize,
}

/// The app server. It ends when it is dropped.
pub struct App {
    pub address: SocketAddr,
    known: Arc<Mutex<Known>>,
    _stop: oneshot::Sender<()>,
}

struct Calls(Arc<Mutex<Known>>);

impl Calls {
    async fn run(&self) {
        {
            let mut known = self.0.lock().expect("never poisoned");
            known.running += 1;
            known.most_at_once = known.most_at_once.max(known.running);
        }
        tokio::time::sleep(CALL).await;
        self.0.lock().expect("never poisoned").running -= 1;
    }
}

impl Rpc for Calls {
    async fn connect(&self, _: tonic::Request<ConnectionRequest>) -> Result<ConnectionResponse, tonic::Status> {
        self.run().await;
        let mut known = self.0.lock().expect("never poisoned");
        let identifiers = format!("{{\"user\":{}}}", known.connected.len());
        known.connected.push(identifiers.clone());
        let transmissions = vec!["{\"type\":\"welcome\"}".to_owned()];
        Ok(ConnectionResponse { status: Status::Success as i32, identifiers, transmissions, ..Default::default() })
    }

    async fn command(&self, _: tonic::Request<CommandMessage>) -> Result<CommandResponse, tonic::Status> {
        self.run().await;
        Ok(CommandResponse { status: Status::Success as i32, ..Default::default() })
    }

    async fn disconnect(
        &self,
        request: tonic::Request<DisconnectRequest>,
    ) -> Result<DisconnectResponse, tonic::Status> {
        self.run().await;
        let identifiers = request.into_inner().identifiers;
        self.0.lock().expect("never poisoned").disconnected.push(identifiers);
        Ok(DisconnectResponse { status: Status::Success as i32, ..Default::default() })
    }
}

impl App {
    pub fn start() -> App {
        let known = Arc::new(Mutex::new(Known::default()));
        let calls = Arc::new(Calls(Arc::clone(&known)));
        let (stop, mut stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            runtime.block_on(async move {
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (socket, _) = accepted.expect("a connection");
                            tokio::spawn(serve_connection(socket, Arc::clone(&calls), std::future::pending()));
                        }
                        _ = &mut stopped => return,
                    }
                }
            });
        });
        App { address, known, _stop: stop }
    }

    /// The identifiers of those who were let in.
    pub fn connected(&self) -> Vec<String> {
        self.known.lock().expect("never poisoned").connected.clone()
    }

    /// The identifiers of those whose end it was told of, each time.
    pub fn disconnected(&self) -> Vec<String> {
        self.known.lock().expect("never poisoned").disconnected.clone()
    }

    /// The most calls that ran at a time.
    pub fn most_at_once(&self) -> usize {
        self.known.lock().expect("never poisoned").most_at_once
    }
}
