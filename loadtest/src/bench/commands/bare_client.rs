//! The bare client: calls the app through gRPC with nothing around, as the server does with everything around.
//!
//! It runs in a process of its own, so that its CPU can be told from the app's, on a current-thread tokio runtime
//! (`--runtime multi` for the other kind), with tonic, one HTTP/2 connection and one task per client connection.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::Semaphore;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::{COOKIE_BYTES, DATA, IDENTIFIER, WARM_UP};
use crate::bench::app::{CommandMessage, CommandResponse, Env, SUCCESS};
use crate::template::Template;

/// Deadline of a call, as the server has it.
pub(super) const DEADLINE: Duration = Duration::from_secs(3);

/// Who the clients are to the app.
pub(super) const IDENTIFIERS: &str = r#"{"user":"load"}"#;

/// What the bare client does.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientOptions {
    /// The app server, `HOST:PORT`.
    #[arg(long)]
    app: String,
    /// Tasks that call back to back.
    #[arg(long, default_value_t = 100)]
    tasks: u32,
    /// Calls of each.
    #[arg(long, default_value_t = 200)]
    calls: u32,
    /// Calls under way at once.
    #[arg(long, default_value_t = 28)]
    at_once: usize,
    /// The kind of tokio runtime.
    #[arg(long, value_enum, default_value = "current")]
    runtime: Runtime,
}

/// A kind of tokio runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Runtime {
    Current,
    Multi,
}

/// Warms up, says so, calls when a line comes, says so, and ends with its input.
pub fn run(options: &ClientOptions) -> anyhow::Result<()> {
    let mut builder = match options.runtime {
        Runtime::Current => tokio::runtime::Builder::new_current_thread(),
        Runtime::Multi => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build()?;
    let client = runtime.block_on(connect(&options.app))?;
    let wait_for_line = || std::io::stdin().lock().read_line(&mut String::new());
    runtime.block_on(call_all(&client, options, WARM_UP))?;
    println!("warm");
    wait_for_line()?;
    runtime.block_on(call_all(&client, options, options.calls))?;
    println!("done");
    wait_for_line()?;
    Ok(())
}

async fn call_all(client: &Grpc<Channel>, options: &ClientOptions, calls: u32) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(options.at_once));
    let tasks: Vec<_> = (0..options.tasks)
        .map(|number| {
            let (mut client, permits) = (client.clone(), Arc::clone(&permits));
            tokio::spawn(async move {
                for _ in 0..calls {
                    let _permit = permits.acquire().await?;
                    call(&mut client, number).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Connects to the app over one HTTP/2 connection.
async fn connect(app: &str) -> anyhow::Result<Grpc<Channel>> {
    let endpoint = Channel::from_shared(format!("http://{app}"))?.tcp_nodelay(true);
    Ok(Grpc::new(endpoint.connect().await.context("cannot reach the app server")?))
}

/// The same message that the server sends.
fn message(number: u32) -> CommandMessage {
    CommandMessage {
        command: "message".to_owned(),
        identifier: Template::new(IDENTIFIER).expand(number),
        connection_identifiers: IDENTIFIERS.to_owned(),
        data: DATA.to_owned(),
        env: Some(env()),
    }
}

pub(super) fn env() -> Env {
    let cookie = format!("_session={}", "x".repeat(COOKIE_BYTES - "_session=".len()));
    let headers = [("cookie".to_owned(), cookie), ("REMOTE_ADDR".to_owned(), "127.0.0.1".to_owned())];
    Env { url: "http://127.0.0.1:8080/cable".to_owned(), headers: BTreeMap::from(headers), ..Env::default() }
}

/// One call as the contract wants it, with the metadata and the deadline that the server gives it.
async fn call(client: &mut Grpc<Channel>, number: u32) -> anyhow::Result<()> {
    let mut request = Request::new(message(number));
    request.metadata_mut().insert("sid", sid(number).parse()?);
    request.metadata_mut().insert("protov", "v1".parse()?);
    request.set_timeout(DEADLINE);
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/anycable.RPC/Command");
    let codec = ProstCodec::<CommandMessage, CommandResponse>::default();
    check(&client.unary(request, path, codec).await?.into_inner())
}

pub(super) fn sid(number: u32) -> String {
    format!("load-{number:016}")
}

/// Fails unless the app has answered a message.
pub(super) fn check(response: &CommandResponse) -> anyhow::Result<()> {
    ensure!(response.status == SUCCESS && response.transmissions.len() == 1, "the app answered {response:?}");
    Ok(())
}
