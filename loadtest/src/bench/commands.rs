//! Commands through the app: CPU per call of the server, WebSocket and all. And the limit of concurrent calls itself, as the
//! app sees it.
//!
//! Through gRPC the yardstick is a bare tonic client that makes the same calls with the same limit of concurrent ones.
//! Through HTTP that would say nothing: server and client would use the same library, hyper, and what is left between
//! them is the WebSocket, two system calls for each command. So there the yardstick is a bare relay, the same client
//! with WebSockets in front.

mod bare_client;
mod relay;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

pub use bare_client::{ClientOptions, run as bare_client};
pub use relay::{RelayOptions, run as bare_relay};

use super::app::App;
use super::{Figure, Limit, OPENING_WINDOW, Options, Running, Side, TIMEOUT, Want};
use crate::engine::{Engine, Pace, Reply, Saying};
use crate::protocol::{Protocol, json_string};
use crate::template::Template;

const IDENTIFIER: &str = r#"{"channel":"LoadChannel","id":"{n}"}"#;
const DATA: &str = r#"{"action":"perform","text":"hello from the load test"}"#;
const COOKIE_BYTES: usize = 200;

/// Calls of each connection before measuring.
const WARM_UP: u32 = 20;

/// Slow enough that all permits are in use, whatever the machine does meanwhile.
const APP_DELAY: Duration = Duration::from_millis(10);

/// How the app is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Grpc,
    Http,
}

impl Transport {
    /// The app, as `--rpc-host` and the bare client take it.
    pub fn app_address(self, app: &App) -> String {
        match self {
            Self::Grpc => app.address.to_string(),
            Self::Http => app.http_url(),
        }
    }
}

pub(super) fn run(options: &Options, transport: Transport) -> anyhow::Result<Vec<Figure>> {
    let name = match transport {
        Transport::Grpc => "commands",
        Transport::Http => "commands-http",
    };
    let connections = options.connections_or(100);
    let calls = options.repeat.unwrap_or(200);
    let app = App::start()?;
    let mut figures = Vec::new();
    let mut cpu = Vec::new();
    let mut at_once = Vec::new();
    for round in 0..options.rounds_or(3) {
        let mut pair = [0.0; 2];
        for side in Side::both(round) {
            pair[side as usize] = if !side.is_bare(options) || transport == Transport::Http {
                let (each, most) = through_server(side, options, transport, &app, connections, calls)?;
                if !side.is_bare(options) {
                    at_once.push((most, Some(f64::from(options.rpc_concurrency))));
                }
                each
            } else {
                through_bare_client(options, &app, connections, calls)?
            };
        }
        cpu.push((pair[0], Some(pair[1])));
    }
    figures.push(Figure::new(
        format!("{name}: CPU per call, {connections} connections back to back"),
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
        figures.push(Figure::new(format!("{name}: most calls at once / limit"), "calls", Limit::Ratio(1.0), at_once));
    }
    Ok(figures)
}

/// Clients that send commands to a server with an app.
pub(super) struct Performers {
    engine: Engine,
    connections: u32,
    text: String,
}

impl Performers {
    /// Connects and subscribes them.
    pub fn open(server: &Running, connections: u32) -> anyhow::Result<Self> {
        let engine = super::clients(server, Protocol::ActionCable, connections, COOKIE_BYTES, Some(IDENTIFIER))?;
        super::open_all(&engine, connections, Pace::Window(OPENING_WINDOW))?;
        // The number goes into the identifier inside the JSON string, so escaping comes first.
        let text =
            format!(r#"{{"command":"message","identifier":{},"data":{}}}"#, json_string(IDENTIFIER), json_string(DATA));
        Ok(Self { engine, connections, text })
    }

    /// Lets each perform `rounds` times, the next when the one before is answered.
    pub fn perform(&self, rounds: u32) -> anyhow::Result<()> {
        let before = self.engine.counts();
        let texts = vec![Template::new(&self.text)];
        self.engine.say(Saying { texts, reply: Reply::Data, rounds, at_once: self.connections });
        let connections = u64::from(self.connections);
        let done = self.engine.wait(TIMEOUT, |counts| counts.said - before.said >= connections);
        let replies = self.engine.counts().replies - before.replies;
        let expected = u64::from(rounds) * connections;
        ensure!(done && replies == expected, "{replies} of {expected} commands were answered");
        super::all_ready(&self.engine, self.connections)
    }
}

/// CPU per call of the server or the bare relay, and the most calls the app saw at once when it was slow.
fn through_server(
    side: Side,
    options: &Options,
    transport: Transport,
    app: &App,
    connections: u32,
    calls: u32,
) -> anyhow::Result<(f64, f64)> {
    let want = Want { app: Some(transport.app_address(app)), ..Want::quiet(Protocol::ActionCable) };
    let server = Running::start(side, options, &want)?;
    let performers = Performers::open(&server, connections)?;
    performers.perform(WARM_UP)?;
    app.take_most_at_once();
    let before = server.cpu_us()?;
    performers.perform(calls)?;
    let each = (server.cpu_us()? - before) / (f64::from(calls) * f64::from(connections));
    let fast = app.take_most_at_once();
    ensure!(
        fast <= u64::from(options.rpc_concurrency),
        "the app saw {fast} calls at once where the limit is {}",
        options.rpc_concurrency
    );
    app.delay(APP_DELAY);
    let slow = performers.perform(5);
    app.delay(Duration::ZERO);
    slow?;
    Ok((each, app.take_most_at_once() as f64))
}

/// CPU per call of the bare client, which runs in a process of its own.
fn through_bare_client(options: &Options, app: &App, tasks: u32, calls: u32) -> anyhow::Result<f64> {
    let mut child = Command::new(options.yardstick()?)
        .args(["app-client", "--app", &Transport::Grpc.app_address(app), "--tasks", &tasks.to_string()])
        .args(["--calls", &calls.to_string(), "--at-once", &options.rpc_concurrency.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the bare client")?;
    let pid = child.id();
    let mut input = child.stdin.take().context("the bare client has no input")?;
    let mut output = BufReader::new(child.stdout.take().context("the bare client has no output")?);
    let mut expect = |word: &str| -> anyhow::Result<f64> {
        let mut line = String::new();
        output.read_line(&mut line)?;
        if line.trim_end() != word {
            bail!("the bare client said {line:?} instead of {word:?}");
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
