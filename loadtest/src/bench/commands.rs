//! Commands through gRPC: CPU per call of the server, WebSocket and all, beside a bare tonic client that makes the same
//! calls with the same limit of concurrent ones. And the limit itself, as the app sees it.
//!
//! The bare client runs in a process of its own, so that its CPU can be told from the app's, on a current-thread tokio
//! runtime (`--runtime multi` for the other kind), with one HTTP/2 connection and one task per client connection.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::sync::Semaphore;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::app::{App, CommandMessage, CommandResponse, Env, SUCCESS};
use super::{Figure, Limit, OPENING_WINDOW, Options, PATIENCE, Running, Side, Want};
use crate::engine::{Pace, Reply, Saying};
use crate::protocol::{Protocol, json_string};
use crate::template::Template;

const IDENTIFIER: &str = r#"{"channel":"LoadChannel","id":"{n}"}"#;
const DATA: &str = r#"{"action":"perform","text":"hello from the load test"}"#;
const COOKIE_BYTES: usize = 200;

/// Calls of each connection before measuring.
const WARM_UP: u32 = 20;

/// Slow enough that all permits are in use, whatever the machine does meanwhile.
const APP_DELAY: Duration = Duration::from_millis(10);

/// What the bare client does.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientOptions {
    /// The app server's address.
    #[arg(long)]
    app: SocketAddr,
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

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let connections = options.connections_or(100);
    let calls = options.repeat.unwrap_or(200);
    let app = App::start()?;
    let mut figures = Vec::new();
    let mut cpu = Vec::new();
    let mut at_once = Vec::new();
    for round in 0..options.rounds_or(3) {
        let mut pair = [0.0; 2];
        for side in Side::both(round) {
            pair[side as usize] = if side == Side::Server && options.server.is_some() {
                let (each, most) = through_server(options, &app, connections, calls)?;
                at_once.push((most, Some(f64::from(options.rpc_concurrency))));
                each
            } else {
                through_bare_client(options, &app, connections, calls)?
            };
        }
        cpu.push((pair[0], Some(pair[1])));
    }
    figures.push(Figure::new(
        format!("commands: CPU per call, {connections} connections back to back"),
        "us",
        Limit::Ratio(1.5),
        cpu,
    ));
    if !at_once.is_empty() {
        let limit = f64::from(options.rpc_concurrency.min(connections));
        ensure!(
            at_once.iter().all(|(most, _)| (most - limit).abs() < 0.5),
            "the app saw {at_once:?} calls at once where the limit is {limit}"
        );
        figures.push(Figure::new("commands: most calls at once / limit", "calls", Limit::Ratio(1.0), at_once));
    }
    Ok(figures)
}

/// Server CPU per call, and the most calls the app saw at once when it was slow.
fn through_server(options: &Options, app: &App, connections: u32, calls: u32) -> anyhow::Result<(f64, f64)> {
    let want = Want { app: Some(app.address), ..Want::quiet(Protocol::ActionCable) };
    let server = Running::start(Side::Server, options, &want)?;
    let engine = super::clients(&server, Protocol::ActionCable, connections, COOKIE_BYTES, Some(IDENTIFIER))?;
    super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
    // The number goes into the identifier inside the JSON string, so escaping comes first.
    let text =
        format!(r#"{{"command":"message","identifier":{},"data":{}}}"#, json_string(IDENTIFIER), json_string(DATA));
    let perform = |rounds: u32| -> anyhow::Result<()> {
        let before = engine.counts();
        let saying = Saying { texts: vec![Template::new(&text)], reply: Reply::Data, rounds, at_once: connections };
        engine.say(saying);
        let done = engine.wait(PATIENCE, |counts| counts.said - before.said >= u64::from(connections));
        let replies = engine.counts().replies - before.replies;
        let expected = u64::from(rounds) * u64::from(connections);
        ensure!(done && replies == expected, "{replies} of {expected} commands were answered");
        super::all_ready(&engine, connections)
    };
    perform(WARM_UP)?;
    app.take_most_at_once();
    let before = server.cpu_us()?;
    perform(calls)?;
    let each = (server.cpu_us()? - before) / (f64::from(calls) * f64::from(connections));
    let fast = app.take_most_at_once();
    ensure!(
        fast <= u64::from(options.rpc_concurrency),
        "the app saw {fast} calls at once where the limit is {}",
        options.rpc_concurrency
    );
    app.delay(APP_DELAY);
    let slow = perform(5);
    app.delay(Duration::ZERO);
    slow?;
    Ok((each, app.take_most_at_once() as f64))
}

fn through_bare_client(options: &Options, app: &App, tasks: u32, calls: u32) -> anyhow::Result<f64> {
    let mut child = Command::new(options.yardstick()?)
        .args(["grpc-client", "--app", &app.address.to_string(), "--tasks", &tasks.to_string()])
        .args(["--calls", &calls.to_string(), "--at-once", &options.rpc_concurrency.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the bare gRPC client")?;
    let pid = child.id();
    let mut input = child.stdin.take().context("the bare client has no input")?;
    let mut output = BufReader::new(child.stdout.take().context("the bare client has no output")?);
    let mut expect = |word: &str| -> anyhow::Result<f64> {
        let mut line = String::new();
        output.read_line(&mut line)?;
        if line.trim_end() != word {
            bail!("the bare gRPC client said {line:?} instead of {word:?}");
        }
        Ok(crate::observe::cpu_time(pid)?.as_secs_f64() * 1e6)
    };
    let measured = (|| {
        let before = expect("warm")?;
        input.write_all(b"go\n")?;
        let after = expect("done")?;
        Ok((after - before) / (f64::from(calls) * f64::from(tasks)))
    })();
    // It ends when its input does.
    drop(input);
    child.wait()?;
    measured
}

/// The bare client: warms up, says so, calls when a line comes, says so, and ends with its input.
pub fn bare_client(options: &ClientOptions) -> anyhow::Result<()> {
    let mut builder = match options.runtime {
        Runtime::Current => tokio::runtime::Builder::new_current_thread(),
        Runtime::Multi => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build()?;
    let channel = runtime.block_on(async {
        let endpoint = Channel::from_shared(format!("http://{}", options.app))?.tcp_nodelay(true);
        endpoint.connect().await.context("cannot reach the app server")
    })?;
    let wait_for_line = || std::io::stdin().lock().read_line(&mut String::new());
    runtime.block_on(call_all(&channel, options, WARM_UP))?;
    println!("warm");
    wait_for_line()?;
    runtime.block_on(call_all(&channel, options, options.calls))?;
    println!("done");
    wait_for_line()?;
    Ok(())
}

async fn call_all(channel: &Channel, options: &ClientOptions, calls: u32) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(options.at_once));
    let tasks: Vec<_> = (0..options.tasks)
        .map(|number| {
            let (channel, permits) = (channel.clone(), Arc::clone(&permits));
            tokio::spawn(async move {
                let mut client = Grpc::new(channel);
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

/// One call as the contract wants it: the same message, metadata and deadline that the server sends.
async fn call(client: &mut Grpc<Channel>, number: u32) -> anyhow::Result<()> {
    let mut env = Env { url: "http://127.0.0.1:8080/cable".to_owned(), ..Env::default() };
    let cookie = format!("_session={}", "x".repeat(COOKIE_BYTES - "_session=".len()));
    env.headers.insert("cookie".to_owned(), cookie);
    env.headers.insert("REMOTE_ADDR".to_owned(), "127.0.0.1".to_owned());
    let mut request = Request::new(CommandMessage {
        command: "message".to_owned(),
        identifier: Template::new(IDENTIFIER).expand(number),
        connection_identifiers: r#"{"user":"load"}"#.to_owned(),
        data: DATA.to_owned(),
        env: Some(env),
    });
    request.metadata_mut().insert("sid", format!("load-{number:016}").parse()?);
    request.metadata_mut().insert("protov", "v1".parse()?);
    request.set_timeout(Duration::from_secs(3));
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/anycable.RPC/Command");
    let codec = ProstCodec::<CommandMessage, CommandResponse>::default();
    let response = client.unary(request, path, codec).await?.into_inner();
    ensure!(response.status == SUCCESS && response.transmissions.len() == 1, "the app answered {response:?}");
    Ok(())
}
