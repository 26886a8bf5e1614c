//! The bare relay: WebSockets on one side, the app on the other, and the least that has to lie between them.
//!
//! For each command it does what every server must: reads a frame, parses its JSON, writes the JSON of the call, reads
//! that of the answer, and sends the transmissions on. It has no limits, no deadlines but that of the call, no streams and
//! no metrics, and lets everybody in. One current-thread tokio runtime, one task per client.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tonic::codegen::Bytes;

use super::bare_client::{DEADLINE, IDENTIFIERS, check, env, sid};
use crate::bare::dialect;
use crate::bench::app::{CommandMessage, CommandResponse, Env};
use crate::os;
use crate::protocol::Protocol;
use crate::wire::{self, BadHeader, opcode};

/// Room for what a client sends at once, and the longest frame.
const RECEIVED_BYTES_MAX: usize = 64 * 1024;

/// What the bare relay does.
#[derive(Debug, Clone, clap::Args)]
pub struct RelayOptions {
    /// Base URL of the app server's HTTP RPC.
    #[arg(long)]
    app: String,
    /// Calls under way at once.
    #[arg(long)]
    at_once: usize,
}

/// Says where it listens, and serves until its parent ends.
pub fn run(options: &RelayOptions) -> anyhow::Result<Infallible> {
    os::die_with_parent()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = App::new(&options.app)?;
        let permits = Arc::new(Semaphore::new(options.at_once));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        println!("listening {}", listener.local_addr()?);
        for number in 0.. {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let permits = Arc::clone(&permits);
            let connection = Connection { stream, number, app: app.clone(), permits, env: env() };
            tokio::spawn(async move {
                if let Err(error) = connection.serve().await {
                    eprintln!("a connection of the bare relay ended: {error:#}");
                }
            });
        }
        unreachable!("there are not so many numbers for connections")
    })
}

/// The way to the app: hyper's client with its pool, as the server has it.
#[derive(Clone)]
struct App {
    pool: Arc<hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>>,
    url: http::Uri,
}

impl App {
    fn new(base: &str) -> anyhow::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { pool: Arc::new(pool), url: format!("{base}/command").parse()? })
    }

    /// One call as the contract wants it, with the headers and the deadline that the server gives it.
    async fn call(&self, number: u32, message: &CommandMessage) -> anyhow::Result<CommandResponse> {
        let request = http::Request::post(self.url.clone())
            .header("Content-Type", "application/json")
            .header("X-Anycable-Meta-Sid", sid(number))
            .header("X-Anycable-Meta-Protov", "v1")
            .body(Full::new(Bytes::from(serde_json::to_vec(message)?)))?;
        let answer = async {
            let response = self.pool.request(request).await?;
            ensure!(response.status() == http::StatusCode::OK, "the app answered {}", response.status());
            Ok(response.into_body().collect().await?.to_bytes())
        };
        let response = serde_json::from_slice(&tokio::time::timeout(DEADLINE, answer).await??)?;
        check(&response)?;
        Ok(response)
    }
}

struct Connection {
    stream: TcpStream,
    number: u32,
    app: App,
    permits: Arc<Semaphore>,
    env: Env,
}

impl Connection {
    async fn serve(mut self) -> anyhow::Result<()> {
        let mut received = Vec::with_capacity(RECEIVED_BYTES_MAX);
        let mut out = Vec::new();
        let mut open = false;
        while self.stream.read_buf(&mut received).await? > 0 {
            let mut rest = &mut received[..];
            if !open {
                let Some(end) = memmem::find(rest, b"\r\n\r\n") else { continue };
                let (head, behind) = rest.split_at_mut(end + 4);
                dialect::push_answer(Protocol::ActionCable, &mut out, head, self.number as usize)
                    .context("a request without a key")?;
                (rest, open) = (behind, true);
            }
            let frame = |rest: &mut _| wire::take_client_frame(rest, RECEIVED_BYTES_MAX);
            while let Some((opcode, payload)) = frame(&mut rest).map_err(|BadHeader| anyhow::anyhow!("bad frame"))? {
                match opcode {
                    opcode::TEXT => self.command(payload, &mut out).await?,
                    opcode::PING => wire::push_server_frame(&mut out, opcode::PONG, payload),
                    opcode::CLOSE => return Ok(()),
                    _ => {}
                }
            }
            let kept = rest.len();
            received.drain(..received.len() - kept);
            self.stream.write_all(&out).await?;
            out.clear();
        }
        Ok(())
    }

    /// A message goes to the app; a subscription is confirmed without it.
    async fn command(&mut self, text: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        // A client's command has the names of the call's own fields.
        let command: CommandMessage = serde_json::from_slice(text)?;
        if command.command != "message" {
            dialect::push_reply(Protocol::ActionCable, out, text);
            return Ok(());
        }
        let connection_identifiers = IDENTIFIERS.to_owned();
        let call = CommandMessage { connection_identifiers, env: Some(self.env.clone()), ..command };
        let _permit = self.permits.acquire().await?;
        let response = self.app.call(self.number, &call).await?;
        for transmission in &response.transmissions {
            wire::push_server_frame(out, opcode::TEXT, transmission.as_bytes());
        }
        Ok(())
    }
}
