//! What a person can say of a run on the command line, and the plan that follows from it.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::fleet::{self, Fleet, FleetOptions};
use crate::protocol::{Protocol, Target, json_string};
use crate::publish::Credentials;
use crate::workers::Plan;

/// What every scenario needs to know.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// The server: ws://HOST:PORT/PATH; may be given several times, with the same path, and clients are spread over all.
    #[arg(long = "target", value_name = "URL", required_unless_present = "server", conflicts_with = "server")]
    pub(super) targets: Vec<String>,
    #[command(flatten)]
    pub(super) fleet: FleetOptions,
    /// Clients.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000)]
    pub(super) connections: u32,
    /// What they speak.
    #[arg(long, value_enum, default_value = "actioncable")]
    pub(super) protocol: Protocol,
    /// What Action Cable clients subscribe to; {n} is the client's number, {n%K} spreads them over K [default: the public
    /// stream "load"; with --server-app a channel of the app].
    #[arg(long, value_name = "JSON")]
    identifier: Option<String>,
    /// The channel that Pusher and Centrifugo clients subscribe to; {n} and {n%K} as above.
    #[arg(long, value_name = "NAME", default_value = "load")]
    pub(super) channel: String,
    /// Subscribe to nothing: the welcome is enough.
    #[arg(long)]
    pub(super) no_subscription: bool,
    /// Answer pings with the command that Action Cable servers with a time-out for pongs want.
    #[arg(long)]
    pub(super) pongs: bool,
    /// Seconds between two pings to a client: what a server that is started here is told, and what clients expect. They count
    /// pings that come later after the one before than one and a half times that.
    #[arg(long, value_name = "SECONDS")]
    pub(super) ping_interval: Option<f64>,
    /// Length of the Cookie header's value.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(super) cookie_bytes: usize,
    /// Connects a second; without it as fast as the server takes them.
    #[arg(long, value_name = "PER_SECOND")]
    pub(super) rate: Option<f64>,
    /// Connections that may be unfinished at a time when no rate is given.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(super) window: u32,
    /// Stop opening when less memory than this is free or could be freed by forgetting cached files.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub(super) leave_memory: u64,
    /// Addresses to connect from, comma separated [default: as many of 127.0.0.0/8 as needed].
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(super) sources: Vec<IpAddr>,
    /// How long a connection may take until it is ready, and how long anything else is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(super) timeout: f64,
    /// Try again this long after a failure; without it a failure is final.
    #[arg(long, value_name = "MS")]
    pub(super) retry_after: Option<u64>,
    /// A process of the server, to watch its memory and CPU; may be given several times.
    #[arg(long = "pid", value_name = "PID")]
    pub(super) pids: Vec<u32>,
    /// A line for the report: what was tested, where.
    #[arg(long, value_name = "TEXT")]
    pub(super) note: Option<String>,
    /// A metrics page of the server in Prometheus' text form, http://HOST:PORT/PATH; may be given several times. What it
    /// offers is reported: connections, memory, calls to the backend.
    #[arg(long = "server-metrics", value_name = "URL")]
    pub(super) server_metrics: Vec<String>,
    /// Client processes [default: as many as the open-file limit makes necessary].
    #[arg(long, value_name = "N")]
    pub(super) processes: Option<u32>,
    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write a page with curves to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

/// How publications are made.
#[derive(Debug, Clone, Args)]
pub struct Publishing {
    /// Where publications are posted; may be given several times, for servers that do not tell each other. Servers
    /// that --server started are known.
    #[arg(long = "publish-url", value_name = "URL")]
    pub(super) publish_urls: Vec<String>,
    /// Post each publication to the first server only: for nodes that tell each other.
    #[arg(long)]
    pub(super) publish_to_one: bool,
    /// The body of a publication; {mark} is where sequence number and time go [default: what Cableway, a Pusher server
    /// or Centrifugo take for the stream or channel "load"].
    #[arg(long, value_name = "TEXT")]
    pub(super) publish_body: Option<String>,
    /// Bearer token of the publisher.
    #[arg(long, value_name = "KEY")]
    pub(super) publish_key: Option<String>,
    /// A header with which the publisher says who it is, such as "X-API-Key: secret".
    #[arg(long, value_name = "NAME: VALUE", conflicts_with = "publish_key")]
    pub(super) publish_header: Option<String>,
    /// Sign publications as Pusher's HTTP API wants it.
    #[arg(long, value_name = "KEY:SECRET", conflicts_with_all = ["publish_key", "publish_header"])]
    pub(super) publish_pusher: Option<String>,
    /// Publications a second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0)]
    pub(super) publish_rate: f64,
    /// Publications.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) messages: u32,
    /// Length of the marked text.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub(super) bytes: usize,
}

/// How many intervals after the one before a ping is late. Action Cable's own client gives a connection up after two.
const LATE_INTERVALS: f64 = 1.5;

impl Load {
    /// What a server that is started here is told because of these options.
    pub(super) fn server_arguments(&self) -> Vec<String> {
        let interval = self.ping_interval.map(|seconds| format!("{}ms", (seconds * 1e3) as u64));
        interval.map_or_else(Vec::new, |interval| vec!["--ping-interval".to_owned(), interval])
    }

    /// How long after the one before a ping is late, where it is known when they are due.
    pub(super) fn ping_late_after_s(&self) -> Option<f64> {
        self.ping_interval.filter(|seconds| *seconds > 0.0).map(|seconds| seconds * LATE_INTERVALS)
    }

    /// What Action Cable clients subscribe to.
    pub(super) fn identifier(&self) -> &str {
        match &self.identifier {
            Some(identifier) => identifier,
            None if self.fleet.server_app => r#"{"channel":"LoadChannel"}"#,
            None => r#"{"channel":"$pubsub","stream_name":"load"}"#,
        }
    }
}

impl Publishing {
    /// Of a server that was started here, to all.
    pub(super) fn to_all(messages: u32, publish_rate: f64) -> Self {
        Self {
            publish_urls: Vec::new(),
            publish_to_one: false,
            publish_body: None,
            publish_key: None,
            publish_header: None,
            publish_pusher: None,
            publish_rate,
            messages,
            bytes: 100,
        }
    }

    pub(super) fn check(&self, load: &Load) -> anyhow::Result<()> {
        let somewhere = load.fleet.starts_servers() || !self.publish_urls.is_empty();
        ensure!(somewhere, "nowhere to publish: give --publish-url, or --server");
        ensure!(self.publish_rate > 0.0, "the rate of publications must be above 0");
        Ok(())
    }

    pub(super) fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(match (&self.publish_key, &self.publish_header, &self.publish_pusher) {
            (Some(key), ..) => Credentials::Bearer(key.clone()),
            (_, Some(header), _) => Credentials::Header(header.clone()),
            (.., Some(pair)) => Credentials::pusher(pair).context("--publish-pusher")?,
            _ => Credentials::None,
        })
    }

    pub(super) fn body(&self, load: &Load) -> anyhow::Result<String> {
        let body = match (&self.publish_body, load.protocol) {
            (Some(body), _) => body.clone(),
            (None, Protocol::Raw | Protocol::ActionCable | Protocol::ActionCableExt) => {
                r#"{"stream":"load","data":"\"{mark}\""}"#.to_owned()
            }
            (None, Protocol::Pusher | Protocol::Centrifugo) => {
                ensure!(!load.channel.contains("{n"), "many channels: say with --publish-body what goes where");
                let channel = json_string(&load.channel);
                match load.protocol {
                    Protocol::Pusher => format!(r#"{{"name":"load","channels":[{channel}],"data":"{{mark}}"}}"#),
                    _ => format!(r#"{{"channel":{channel},"data":"{{mark}}"}}"#),
                }
            }
        };
        ensure!(body.contains("{mark}"), "the publication's body has no {{mark}}");
        Ok(body)
    }
}

/// Where clients connect: what was given, or the servers that were started. At least one.
pub(super) fn targets(load: &Load, fleet: Option<&Fleet>) -> anyhow::Result<Vec<String>> {
    let Some(fleet) = fleet else {
        ensure!(!load.targets.is_empty(), "no --target was given");
        return Ok(load.targets.clone());
    };
    Ok(vec![url(fleet.address, load.protocol)])
}

/// The identifier with which Action Cable clients follow a public stream.
pub(super) fn public_stream(name: &str) -> String {
    format!(r#"{{"channel":"$pubsub","stream_name":{}}}"#, json_string(name))
}

/// Where clients connect on a server that was started here.
pub(super) fn url(address: SocketAddr, protocol: Protocol) -> String {
    let path = if protocol == Protocol::Raw { fleet::ECHO_PATH } else { "/cable" };
    format!("ws://{address}{path}")
}

fn address_of(target: &Target) -> anyhow::Result<SocketAddr> {
    let addresses = target.authority.to_socket_addrs();
    let mut addresses = addresses.with_context(|| format!("{} has no address", target.authority))?;
    addresses.next().with_context(|| format!("{} has no address", target.authority))
}

pub(super) fn plan(load: &Load, urls: &[String]) -> anyhow::Result<Plan> {
    let targets = urls.iter().map(|url| Target::parse(url)).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(targets.iter().all(|target| target.path == targets[0].path), "every --target needs the same path");
    let servers = targets.iter().map(address_of).collect::<anyhow::Result<_>>()?;
    let subscription = match load.protocol {
        Protocol::Raw => None,
        Protocol::ActionCable | Protocol::ActionCableExt => Some(load.identifier()),
        Protocol::Pusher | Protocol::Centrifugo => Some(load.channel.as_str()),
    };
    let subscription = subscription.filter(|_| !load.no_subscription).map(str::to_owned);
    ensure!(
        subscription.as_ref().is_none_or(|name| !name.contains('~')),
        "what is subscribed to must not contain '~': marks of publications do"
    );
    Ok(Plan {
        target: urls[0].clone(),
        servers,
        protocol: load.protocol,
        cookie_bytes: load.cookie_bytes,
        identifier: subscription,
        connections: load.connections,
        first_number: 0,
        pongs: load.pongs,
        lanes: std::thread::available_parallelism().map_or(1, usize::from),
        sources: load.sources.clone(),
        ready_timeout_ms: (load.timeout * 1e3) as u64,
        retry_after_ms: load.retry_after,
        ping_late_after_ms: load.ping_late_after_s().map(|seconds| (seconds * 1e3) as u64),
    })
}
