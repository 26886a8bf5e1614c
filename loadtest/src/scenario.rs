//! What a person asks for: open and hold, publish, perform, drop and return, read slowly, come and go.
//!
//! Each scenario is a list of steps over a [`Session`] and ends in a [`Report`], also when it is interrupted. A lost,
//! doubled or reordered message, a connection that did not get ready or did not stay, makes the run fail.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::clock::now_ns;
use crate::crew::{self, Crew, Plan};
use crate::engine::{Collected, Goodbye, Pace, Reply};
use crate::fleet::{self, Fleet, FleetOptions};
use crate::metrics::Calls;
use crate::protocol::{self, Protocol, Target, json_string};
use crate::publish::{Credentials, Publisher};
use crate::report::{Latency, Report};
use crate::session::{Ended, Session};

/// What every scenario needs to know.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// The server: ws://HOST:PORT/PATH.
    #[arg(long, value_name = "URL", required_unless_present = "server", conflicts_with = "server")]
    target: Option<String>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Clients.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000)]
    connections: u32,
    /// What they speak.
    #[arg(long, value_enum, default_value = "actioncable")]
    protocol: Protocol,
    /// What Action Cable clients subscribe to; {n} is the client's number, {n%K} spreads them over K.
    #[arg(long, value_name = "JSON", default_value = r#"{"channel":"$pubsub","stream_name":"load"}"#)]
    identifier: String,
    /// The channel that Pusher and Centrifugo clients subscribe to; {n} and {n%K} as above.
    #[arg(long, value_name = "NAME", default_value = "load")]
    channel: String,
    /// Subscribe to nothing: the welcome is enough.
    #[arg(long)]
    no_subscription: bool,
    /// Length of the Cookie header's value.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    cookie_bytes: usize,
    /// Connects a second; without it as fast as the server takes them.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// Connections that may be unfinished at a time when no rate is given.
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: u32,
    /// Addresses to connect from, comma separated [default: as many of 127.0.0.0/8 as needed].
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    sources: Vec<IpAddr>,
    /// How long a connection may take until it is ready, and how long anything else is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    timeout: f64,
    /// Try again this long after a failure; without it a failure is final.
    #[arg(long, value_name = "MS")]
    retry_after: Option<u64>,
    /// A process of the server, to watch its memory and CPU; may be given several times.
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// A line for the report: what was tested, where.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// A metrics page of the server in Prometheus' text form, http://HOST:PORT/PATH; may be given several times. What it
    /// offers is reported: connections, memory, calls to the backend.
    #[arg(long = "server-metrics", value_name = "URL")]
    server_metrics: Vec<String>,
    /// Client processes [default: as many as the open-file limit makes necessary].
    #[arg(long, value_name = "N")]
    processes: Option<u32>,
    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with curves to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// How publications are made.
#[derive(Debug, Clone, Args)]
pub struct Publishing {
    /// Where publications are posted; may be given several times, for servers that do not tell each other. Servers
    /// that --server started are known.
    #[arg(long = "publish-url", value_name = "URL", required_unless_present = "server")]
    publish_urls: Vec<String>,
    /// The body of a publication; {mark} is where sequence number and time go [default: what Cableway, a Pusher server
    /// or Centrifugo take for the stream or channel "load"].
    #[arg(long, value_name = "TEXT")]
    publish_body: Option<String>,
    /// Bearer token of the publisher.
    #[arg(long, value_name = "KEY")]
    publish_key: Option<String>,
    /// A header with which the publisher says who it is, such as "X-API-Key: secret".
    #[arg(long, value_name = "NAME: VALUE", conflicts_with = "publish_key")]
    publish_header: Option<String>,
    /// Sign publications as Pusher's HTTP API wants it.
    #[arg(long, value_name = "KEY:SECRET", conflicts_with_all = ["publish_key", "publish_header"])]
    publish_pusher: Option<String>,
    /// Publications a second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0)]
    publish_rate: f64,
    /// Publications.
    #[arg(long, value_name = "N", default_value_t = 10)]
    messages: u32,
    /// Length of the marked text.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    bytes: usize,
}

impl Publishing {
    fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(match (&self.publish_key, &self.publish_header, &self.publish_pusher) {
            (Some(key), ..) => Credentials::Bearer(key.clone()),
            (_, Some(header), _) => Credentials::Header(header.clone()),
            (.., Some(pair)) => Credentials::pusher(pair).context("--publish-pusher")?,
            _ => Credentials::None,
        })
    }

    fn body(&self, load: &Load) -> anyhow::Result<String> {
        let body = match (&self.publish_body, load.protocol) {
            (Some(body), _) => body.clone(),
            (None, Protocol::Raw | Protocol::ActionCable) => r#"{"stream":"load","data":"\"{mark}\""}"#.to_owned(),
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

/// A scenario and its own settings.
#[derive(Debug, Clone)]
pub enum Scenario {
    /// Open and hold.
    Idle {
        /// How long, in seconds.
        hold: f64,
    },
    /// Open and see how fast that goes.
    Connect,
    /// Publish to everybody.
    Broadcast(Publishing),
    /// Say something and wait for the answer.
    Echo {
        /// Rounds of each client.
        rounds: u32,
        /// Clients that do it at the same time.
        at_once: u32,
        /// What they say.
        text: String,
    },
    /// Drop a share at once and come back.
    Storm {
        /// The share, 0 to 1.
        share: f64,
        /// How they go.
        goodbye: Goodbye,
    },
    /// A share reads slowly while everybody is published to.
    Slow {
        /// The share, 0 to 1.
        share: f64,
        /// Bytes a second; 0 for none at all.
        read_rate: u32,
        /// The publications.
        publishing: Publishing,
    },
    /// Clients come and go.
    Churn {
        /// How long, in seconds.
        seconds: f64,
        /// The share that goes and comes each second.
        share: f64,
        /// How they go.
        goodbye: Goodbye,
    },
}

impl Scenario {
    fn name(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Connect => "connect",
            Self::Broadcast(_) => "broadcast",
            Self::Echo { .. } => "echo",
            Self::Storm { .. } => "storm",
            Self::Slow { .. } => "slow",
            Self::Churn { .. } => "churn",
        }
    }
}

/// For sockets to be closed and buffers to be freed before memory is read.
const SETTLE: Duration = Duration::from_secs(3);

/// After the last publication, for a copy too many to arrive.
const LINGER: Duration = Duration::from_millis(300);

/// What a scenario gathers.
#[derive(Default)]
struct Findings {
    facts: Vec<(String, String)>,
    latencies: Vec<Latency>,
    problems: Vec<String>,
    published: u32,
}

impl Findings {
    fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.facts.push((name.to_owned(), value.into()));
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }
}

/// Runs a scenario, prints its table and writes its files. True when the run is clean.
pub fn run(load: &Load, scenario: &Scenario) -> anyhow::Result<bool> {
    let descriptors = crew::raise_descriptor_limit();
    let mut findings = Findings::default();
    if let Some(note) = &load.note {
        findings.fact("note", note);
    }
    // Outlives the session: the clients go before their servers.
    let fleet = Fleet::start(&load.fleet, load.connections, descriptors)?;
    let target = target(load, fleet.as_ref())?;
    let (mut pids, mut metrics) = (load.pids.clone(), load.server_metrics.clone());
    if let Some(fleet) = &fleet {
        findings.fact("server", fleet.words());
        pids.extend(fleet.pids());
        metrics.extend_from_slice(&fleet.metrics_urls);
    }
    let processes = load.processes.unwrap_or_else(|| crew::processes_needed(load.connections, descriptors));
    let crew = Crew::start(&plan(load, &target)?, processes)?;
    let mut session = Session::begin(crew, load.connections, pids, &metrics)?;
    // Whatever a step ran into, what was seen until then is reported.
    if let Err(error) = steps(load, fleet.as_ref(), scenario, &mut session, &mut findings) {
        findings.problem(format!("{error:#}"));
    }
    // How late the clients were until the end; a worker that is gone has been reported above.
    let _ = session.collect(findings.published);
    session.clear_line();
    let report = Report::new(scenario.name(), &session, findings.facts, findings.latencies, findings.problems);
    println!("{} on {target}\n{}", scenario.name(), report.text());
    report.write(load.json.as_deref(), load.html.as_deref())?;
    Ok(report.problems.is_empty())
}

/// Where clients connect: what was given, or the servers that were started.
fn target(load: &Load, fleet: Option<&Fleet>) -> anyhow::Result<String> {
    let Some(fleet) = fleet else { return load.target.clone().context("no --target was given") };
    let path = if load.protocol == Protocol::Raw { fleet::ECHO_PATH } else { "/cable" };
    Ok(format!("ws://{}{path}", fleet.address))
}

fn plan(load: &Load, url: &str) -> anyhow::Result<Plan> {
    let target = Target::parse(url)?;
    let server: SocketAddr = target
        .authority
        .to_socket_addrs()
        .with_context(|| format!("{} has no address", target.authority))?
        .next()
        .with_context(|| format!("{} has no address", target.authority))?;
    let subscription = match load.protocol {
        Protocol::Raw => None,
        Protocol::ActionCable => Some(&load.identifier),
        Protocol::Pusher | Protocol::Centrifugo => Some(&load.channel),
    };
    let subscription = subscription.filter(|_| !load.no_subscription).cloned();
    ensure!(
        subscription.as_ref().is_none_or(|name| !name.contains('~')),
        "what is subscribed to must not contain '~': marks of publications do"
    );
    Ok(Plan {
        target: url.to_owned(),
        server,
        protocol: load.protocol,
        cookie_bytes: load.cookie_bytes,
        identifier: subscription,
        connections: load.connections,
        first_number: 0,
        lanes: std::thread::available_parallelism().map_or(1, usize::from),
        sources: load.sources.clone(),
        ready_timeout_ms: (load.timeout * 1e3) as u64,
        retry_after_ms: load.retry_after,
    })
}

fn steps(
    load: &Load,
    fleet: Option<&Fleet>,
    scenario: &Scenario,
    session: &mut Session,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    open(load, session, findings)?;
    let ready_us = session.collect(0)?.ready_us;
    findings.latencies.push(Latency::new("connect until ready", &ready_us));
    session.snapshot("held")?;
    if session.interrupted() {
        return Ok(());
    }
    match scenario {
        Scenario::Connect => {}
        Scenario::Idle { hold } => idle(session, findings, Duration::from_secs_f64(*hold))?,
        Scenario::Broadcast(publishing) => {
            let collected = publish(load, fleet, session, findings, publishing, 0, true)?;
            findings.latencies.push(Latency::new("publish to receipt", &collected.delivery_us));
            after_traffic(session)?;
        }
        Scenario::Echo { rounds, at_once, text } => {
            echo(load, session, findings, *rounds, *at_once, text)?;
            after_traffic(session)?;
        }
        Scenario::Storm { share, goodbye } => storm(load, session, findings, *share, *goodbye)?,
        Scenario::Slow { share, read_rate, publishing } => {
            slow(load, fleet, session, findings, *share, *read_rate, publishing)?;
        }
        Scenario::Churn { seconds, share, goodbye } => {
            churn(load, session, findings, *seconds, *share, *goodbye)?;
        }
    }
    Ok(())
}

fn open(load: &Load, session: &mut Session, findings: &mut Findings) -> anyhow::Result<()> {
    let pace = load.rate.map_or(Pace::Window(load.window.max(1)), Pace::Rate);
    let began_s = session.elapsed_s();
    session.crew.open(pace)?;
    let all = u64::from(load.connections);
    let retries = load.retry_after.is_some();
    let limit = Duration::from_secs_f64(load.timeout)
        + load.rate.map_or(Duration::from_secs(3600), |rate| {
            Duration::from_secs_f64(f64::from(load.connections) / rate.max(0.001))
        });
    session.wait("opening", limit, |counts| {
        counts.ready_now() >= all || (!retries && counts.ready + counts.failed() >= all)
    })?;
    let counts = session.crew.counts();
    let took_s = session.elapsed_s() - began_s;
    findings.fact("opened", format!("{} of {all} in {took_s:.1} s", counts.ready));
    findings.fact("rate", format!("{:.0} a second", counts.ready as f64 / took_s.max(1e-3)));
    if counts.retransmitted > 0 {
        findings.fact("connections that sent a segment twice", counts.retransmitted.to_string());
    }
    if counts.ready_now() < all {
        findings.problem(format!("{} of {all} connections are ready", counts.ready_now()));
    }
    Ok(())
}

/// Connections that are gone although nobody here let them go.
fn all_stayed(session: &Session, findings: &mut Findings, lost_before: u64) {
    let lost = session.crew.counts().lost - lost_before;
    if lost > 0 {
        findings.problem(format!("{lost} connections were lost"));
    }
}

fn after_traffic(session: &mut Session) -> anyhow::Result<()> {
    session.pause("settling", SETTLE)?;
    session.snapshot("after traffic")
}

fn idle(session: &mut Session, findings: &mut Findings, hold: Duration) -> anyhow::Result<()> {
    let before = session.crew.counts();
    let began_s = session.elapsed_s();
    session.pause("holding", hold)?;
    let counts = session.crew.counts();
    let held_s = session.elapsed_s() - began_s;
    findings.fact("held", format!("{} for {held_s:.0} s", counts.ready_now()));
    findings.fact("heartbeats received", format!("{:.0} a second", (counts.pings - before.pings) as f64 / held_s));
    session.snapshot("after holding")?;
    let [.., held, after] = &session.snapshots[..] else { return Ok(()) };
    if after.server_cpu_us > 0.0 && after.ready > 0 {
        let cpu_us = after.server_cpu_us - held.server_cpu_us;
        let each_ns = cpu_us * 1e3 / held_s / after.ready as f64;
        findings.fact("server CPU while holding", format!("{each_ns:.0} ns a second and connection"));
    }
    all_stayed(session, findings, 0);
    Ok(())
}

/// Publishes and waits for the receipts. `from` is the first sequence number.
fn publish(
    load: &Load,
    fleet: Option<&Fleet>,
    session: &mut Session,
    findings: &mut Findings,
    publishing: &Publishing,
    from: u32,
    everybody: bool,
) -> anyhow::Result<Collected> {
    let body = publishing.body(load)?;
    ensure!(publishing.publish_rate > 0.0, "the rate of publications must be above 0");
    let credentials = publishing.credentials()?;
    let urls = publishing.publish_urls.iter().chain(fleet.iter().flat_map(|fleet| &fleet.publish_urls));
    let mut publishers = urls.map(|url| Publisher::connect(url, &credentials)).collect::<anyhow::Result<Vec<_>>>()?;
    let receivers = session.crew.counts().ready_now();
    let before = session.crew.counts();
    let start_ns = now_ns();
    let mut published = 0;
    for message in 0..publishing.messages {
        // The time it should go out, whatever the server or this tool were busy with until then.
        let due_ns = start_ns + (f64::from(message) / publishing.publish_rate * 1e9) as u64;
        let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns()));
        if session.pause("publishing", wait)? == Ended::Interrupted {
            break;
        }
        let mut mark = protocol::mark(from + message, due_ns);
        mark.push_str(&"x".repeat(publishing.bytes.saturating_sub(mark.len())));
        let body = body.replace("{mark}", &mark);
        publishers.iter_mut().try_for_each(|publisher| publisher.post(&body))?;
        published += 1;
    }
    findings.published = from + published;
    let expected = before.marked + u64::from(published) * receivers;
    let limit = Duration::from_secs_f64(load.timeout);
    if everybody {
        session.wait("receiving", limit, |counts| counts.marked >= expected)?;
    } else {
        // Nobody knows how many will come: until a second passes without any.
        let (mut last, mut since_ns) = (0, now_ns());
        session.wait("receiving", limit, |counts| {
            if counts.marked != last {
                (last, since_ns) = (counts.marked, now_ns());
            }
            now_ns() - since_ns > 1_000_000_000
        })?;
    }
    session.pause("receiving", LINGER)?;
    let collected = session.collect(from + published)?;
    let counts = session.crew.counts();
    let lost = counts.lost_between() - before.lost_between() + collected.missing_at_end;
    let doubled = counts.duplicated - before.duplicated;
    let reordered = counts.reordered - before.reordered;
    findings.fact(
        if everybody { "delivered" } else { "delivered while some read slowly" },
        format!(
            "{} of {}; lost {lost}, doubled {doubled}, out of order {reordered}",
            counts.marked - before.marked,
            u64::from(published) * receivers
        ),
    );
    if everybody {
        if lost + doubled + reordered > 0 {
            findings.problem(format!("{lost} messages lost, {doubled} doubled, {reordered} out of order"));
        }
        all_stayed(session, findings, before.lost);
    }
    Ok(collected)
}

fn echo(
    load: &Load,
    session: &mut Session,
    findings: &mut Findings,
    rounds: u32,
    at_once: u32,
    text: &str,
) -> anyhow::Result<()> {
    let (texts, reply) = match load.protocol {
        Protocol::Raw => (vec![text.to_owned()], Reply::Any),
        Protocol::ActionCable => {
            let identifier = json_string(&load.identifier);
            let data = json_string(text);
            (vec![format!(r#"{{"command":"message","identifier":{identifier},"data":{data}}}"#)], Reply::Data)
        }
        Protocol::Pusher => (vec![format!(r#"{{"event":"pusher:ping","data":{}}}"#, json_string(text))], Reply::Pong),
        Protocol::Centrifugo => bail!("Centrifugo's clients have nothing to say that every server answers"),
    };
    let before = session.crew.counts();
    let began_s = session.elapsed_s();
    session.crew.say(texts, reply, rounds, at_once.max(1))?;
    let ready = before.ready_now();
    let limit = Duration::from_secs_f64(load.timeout * f64::from(rounds.max(1)));
    let ended = session.wait("saying", limit, |counts| counts.said - before.said >= ready)?;
    let replies = session.crew.counts().replies - before.replies;
    let expected = u64::from(rounds) * ready;
    let took_s = session.elapsed_s() - began_s;
    findings.fact("replies", format!("{replies} of {expected}, {:.0} a second", replies as f64 / took_s.max(1e-3)));
    if ended == Ended::TimedOut || replies < expected {
        findings.problem(format!("{} of {expected} messages were not answered", expected - replies.min(expected)));
    }
    let collected = session.collect(0)?;
    findings.latencies.push(Latency::new("message to reply", &collected.reply_us));
    all_stayed(session, findings, before.lost);
    Ok(())
}

fn storm(
    load: &Load,
    session: &mut Session,
    findings: &mut Findings,
    share: f64,
    goodbye: Goodbye,
) -> anyhow::Result<()> {
    let before = session.crew.counts();
    let queue_before = crate::observe::queue_counters()?;
    session.watch_calls(true);
    session.crew.drop_share(share.clamp(0.0, 1.0), goodbye)?;
    session.crew.open(Pace::Storm)?;
    let all = u64::from(load.connections);
    let retries = load.retry_after.is_some();
    session.wait("returning", Duration::from_secs_f64(load.timeout), |counts| {
        let dropped = counts.ended - before.ended;
        let back = counts.ready - before.ready;
        let failed = if retries { 0 } else { counts.failed() - before.failed() };
        dropped > 0 && counts.ready_now() + failed >= all && back + failed >= dropped
    })?;
    let counts = session.crew.counts();
    let queue = crate::observe::queue_counters()?.since(queue_before);
    let ready = session.collect(0)?.ready_us;
    let at = |quantile: f64| ready.value_at_quantile(quantile) as f64 / 1e6;
    findings.fact("dropped", (counts.ended - before.ended).to_string());
    findings.fact(
        "back: 50 %, 99 %, all",
        format!("{:.2} s, {:.2} s, {:.2} s", at(0.5), at(0.99), ready.max() as f64 / 1e6),
    );
    findings.fact("refused or failed", counts.failures_since(&before).failure_words());
    findings.fact("tried again", (counts.retried - before.retried).to_string());
    findings.fact("sent a segment twice", (counts.retransmitted - before.retransmitted).to_string());
    findings.fact(
        "accept queues (whole network namespace)",
        format!("{} overflows, {} drops", queue.listen_overflows, queue.listen_drops),
    );
    findings.latencies.push(Latency::new("start of the storm until ready", &ready));
    if counts.ready_now() < all {
        findings.problem(format!("{} of {all} are back", counts.ready_now()));
    }
    // Disconnect calls of the clients that went are still under way.
    session.pause("settling", SETTLE)?;
    session.watch_calls(false);
    findings.fact("calls to the backend", backend_calls(session));
    session.snapshot("after traffic")
}

/// The calls of a storm in words.
fn backend_calls(session: &Session) -> String {
    let (Some((_, first)), Some((_, last))) = (session.calls.first(), session.calls.last()) else {
        return "not observed: give --server-metrics of a server that counts them".to_owned();
    };
    let rate = |pair: &[(f64, Calls)]| {
        let [(then_s, then), (now_s, now)] = pair else { return 0.0 };
        now.made.saturating_sub(then.made) as f64 / (now_s - then_s).max(1e-3)
    };
    let peak = session.calls.windows(2).map(rate).fold(0.0, f64::max);
    let mut words = format!("{}; at peak {peak:.0} a second", last.words_since(first));
    if let Some(waiting) = session.calls.iter().filter_map(|(_, calls)| calls.waiting).max() {
        words.push_str(&format!(", {waiting} waiting for their turn"));
    }
    if let Some(at_once) = last.at_once_max {
        words.push_str(&format!(", {at_once} at once allowed"));
    }
    if let Some(queued) = last.queued {
        words.push_str(&format!("; {queued} calls about clients that left still to come"));
    }
    words
}

fn slow(
    load: &Load,
    fleet: Option<&Fleet>,
    session: &mut Session,
    findings: &mut Findings,
    share: f64,
    read_rate: u32,
    publishing: &Publishing,
) -> anyhow::Result<()> {
    let all_fast = publish(load, fleet, session, findings, publishing, 0, true)?;
    findings.latencies.push(Latency::new("publish to receipt, nobody slow", &all_fast.delivery_us));
    session.crew.slow(share.clamp(0.0, 1.0), read_rate)?;
    let before = session.crew.counts();
    let some_slow = publish(load, fleet, session, findings, publishing, publishing.messages, false)?;
    findings.latencies.push(Latency::new("publish to receipt, with slow readers", &some_slow.delivery_us));
    session.snapshot("with slow readers")?;
    session.crew.slow(0.0, 0)?;
    session.pause("catching up", SETTLE)?;
    let lost = session.crew.counts().lost - before.lost;
    let slow_ones = (f64::from(load.connections) * share).round() as u64;
    findings.fact("slow clients that the server let go", format!("{lost} of {slow_ones}"));
    if lost > slow_ones {
        findings.problem(format!("{} clients were lost that read as fast as they could", lost - slow_ones));
    }
    session.snapshot("after traffic")
}

fn churn(
    load: &Load,
    session: &mut Session,
    findings: &mut Findings,
    seconds: f64,
    share: f64,
    goodbye: Goodbye,
) -> anyhow::Result<()> {
    let before = session.crew.counts();
    let began_s = session.elapsed_s();
    while session.elapsed_s() - began_s < seconds {
        session.crew.drop_share(share.clamp(0.0, 1.0), goodbye)?;
        session.crew.open(Pace::Window(load.window.max(1)))?;
        if session.pause("churning", Duration::from_secs(1))? == Ended::Interrupted {
            return Ok(());
        }
    }
    let all = u64::from(load.connections);
    session.wait("churning", Duration::from_secs_f64(load.timeout), |counts| counts.ready_now() >= all)?;
    let counts = session.crew.counts();
    findings.fact("came and went", (counts.ended - before.ended).to_string());
    session.pause("settling", SETTLE)?;
    session.snapshot("after churn")?;
    if counts.ready_now() < all {
        findings.problem(format!("{} of {all} are back", counts.ready_now()));
    }
    all_stayed(session, findings, before.lost);
    session.crew.drop_share(1.0, Goodbye::Close)?;
    session.wait("leaving", SETTLE, |counts| counts.ready_now() == 0)?;
    session.pause("settling", SETTLE)?;
    session.snapshot("everybody gone")?;
    let rss = |moment: &str| {
        let snapshot = session.snapshots.iter().find(|snapshot| snapshot.moment == moment)?;
        Some(snapshot.server_rss_bytes()? as f64)
    };
    if let (Some(held), Some(churned)) = (rss("held"), rss("after churn")) {
        findings.fact("server memory after churn / before", format!("{:.3}", churned / held));
    }
    Ok(())
}
