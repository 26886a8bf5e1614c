//! What every peer goes through, in this order: warm up, open all, idle, publications, large messages, idle again,
//! everybody dropped and back at once. A step that fails ends the trial; what was measured before it stays.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;

use super::Options;
use super::peer::{Publish, Running, Say};
use crate::clock::now_ns;
use crate::engine::{self, Engine, Goodbye, Pace, Saying, Sources};
use crate::observe;
use crate::protocol::{self, Script};
use crate::publish::Publisher;
use crate::report::Latency;
use crate::template::Template;

/// Connections that come and go before anything is measured, so that code, pools and compilers are warm.
const WARM_UP: u32 = 500;

/// Connections that are unfinished at a time while all are opened.
const OPENING_WINDOW: u32 = 512;

/// Clients that send their large message at the same time.
const LARGE_AT_ONCE: u32 = 64;

/// Length of the text that is published.
const PUBLISHED_BYTES: usize = 100;

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(90);

/// After the last publication, for a copy too many to arrive.
const LINGER: Duration = Duration::from_millis(500);

/// What was measured; what is missing was not, or cannot be.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Clients that were ready after the ramp.
    pub ready: u64,
    /// Failures by kind, in words, over the whole trial.
    pub failures: String,
    /// Ramp with 512 unfinished at a time.
    pub opened_per_second: Option<f64>,
    /// Server CPU of a connection, from SYN to ready.
    pub handshake_cpu_us: Option<f64>,
    /// The same of this tool.
    pub handshake_client_cpu_us: Option<f64>,
    /// User memory of an idle connection.
    pub idle_bytes: Option<f64>,
    /// Server CPU a second of an idle connection.
    pub idle_cpu_ns: Option<f64>,
    /// Heartbeats a minute that it got meanwhile.
    pub heartbeats_per_minute: Option<f64>,
    /// Server CPU of a delivered message, without what idling costs in that time.
    pub delivery_cpu_us: Option<f64>,
    /// The same of this tool.
    pub delivery_client_cpu_us: Option<f64>,
    /// From when a publication should have gone out to each receipt.
    pub delivery: Option<Latency>,
    /// Messages that were published to somebody and never came.
    pub lost: Option<u64>,
    /// That came twice.
    pub doubled: Option<u64>,
    /// That came after a later one.
    pub reordered: Option<u64>,
    /// Large messages that were not answered.
    pub unanswered: Option<u64>,
    /// User memory of an idle connection after all that traffic.
    pub after_traffic_bytes: Option<f64>,
    /// Until all were back after a reset of all, seconds.
    pub storm_s: Option<f64>,
    /// Clients that had to send a SYN again meanwhile.
    pub storm_syn_again: Option<u64>,
    /// User memory that is left when everybody has gone, over what there was before the first came, bytes.
    pub kept_bytes: Option<f64>,
    /// Threads, while all were connected.
    pub threads: u64,
}

/// Takes a started peer through all steps.
pub fn run(running: &Running, options: &Options) -> (Figures, Option<anyhow::Error>) {
    let mut figures = Figures::default();
    let mut engine = None;
    let outcome = steps(running, options, &mut figures, &mut engine);
    if let Some(engine) = &engine {
        figures.failures = engine.counts().failure_words();
    }
    (figures, outcome.err())
}

fn steps(
    running: &Running,
    options: &Options,
    figures: &mut Figures,
    engine_place: &mut Option<Engine>,
) -> anyhow::Result<()> {
    let connections = options.connections;
    let settle = Duration::from_secs_f64(options.settle);
    let description = &running.description;
    let engine = &*engine_place.insert(clients(running, connections)?);
    let at_most = |usual: u32| description.at_once.map_or(usual, |at_once| usual.min(at_once.max(1)));
    let (opening, large_at_once) = (Pace::Window(at_most(OPENING_WINDOW)), at_most(LARGE_AT_ONCE));

    let warm_up = WARM_UP.min(connections);
    engine.open_below(warm_up, opening);
    engine.wait(TIMEOUT, |counts| counts.ready + counts.failed() >= u64::from(warm_up));
    ensure!(engine.counts().ready > 0, "nobody got ready: {}", engine.counts().failure_words());
    if let Some(publish) = &description.publish {
        let mut publisher = Publisher::connect(&publish.url, &publish.credentials()?)?;
        publisher.post(&publish.body.replace("{mark}", "warm"))?;
    }
    let unanswered = match &description.say {
        Some(say) => say_large(engine, say, warm_up, large_at_once),
        None => 0,
    };
    std::thread::sleep(LINGER);
    leave(engine)?;
    std::thread::sleep(settle);
    engine.collect(0);
    let before = running.cost()?;

    let (cpu, began, failed) = (Cpu::now(running)?, Instant::now(), engine.counts().failed());
    engine.open(opening);
    let all = u64::from(connections);
    engine.wait(TIMEOUT, |counts| counts.ready_now() + counts.failed() - failed >= all);
    let took_s = began.elapsed().as_secs_f64();
    let used = cpu.since(running)?;
    let ready = engine.counts().ready_now();
    figures.ready = ready;
    ensure!(ready > 0, "nobody got ready: {}", engine.counts().failure_words());
    figures.opened_per_second = Some(ready as f64 / took_s);
    figures.handshake_cpu_us = Some(used.server / ready as f64);
    figures.handshake_client_cpu_us = Some(used.client / ready as f64);
    let per_connection = |bytes: u64, then: u64| (bytes as f64 - then as f64) / ready as f64;

    std::thread::sleep(settle);
    let idle = running.cost()?;
    figures.idle_bytes = Some(per_connection(idle.rss_bytes, before.rss_bytes));
    figures.threads = idle.threads;
    let (pings, cpu, began) = (engine.counts().pings, Cpu::now(running)?, Instant::now());
    std::thread::sleep(Duration::from_secs_f64(options.idle));
    let seconds = began.elapsed().as_secs_f64();
    let used = cpu.since(running)?;
    let idling = Cpu { server: used.server / seconds, client: used.client / seconds };
    figures.idle_cpu_ns = Some(idling.server * 1e3 / ready as f64);
    figures.heartbeats_per_minute = Some((engine.counts().pings - pings) as f64 / ready as f64 / seconds * 60.0);

    if let Some(publish) = &description.publish {
        publications(running, engine, publish, options.messages, &idling, figures)?;
    }
    // Who does not answer a few does not get thousands.
    figures.unanswered = match &description.say {
        Some(say) if unanswered == 0 => Some(say_large(engine, say, connections, large_at_once)),
        Some(_) => Some(unanswered),
        None => None,
    };
    std::thread::sleep(settle);
    figures.after_traffic_bytes = Some(per_connection(running.cost()?.rss_bytes, before.rss_bytes));
    ensure!(
        engine.counts().ready_now() == all,
        "{} of {all} connections are left; failures: {}",
        engine.counts().ready_now(),
        engine.counts().failure_words()
    );

    storm(engine, all, figures)?;
    leave(engine)?;
    std::thread::sleep(settle);
    figures.kept_bytes = Some(running.cost()?.rss_bytes as f64 - before.rss_bytes as f64);
    match figures.unanswered {
        Some(unanswered) if unanswered > 0 => bail!("{unanswered} large messages were not answered"),
        _ => Ok(()),
    }
}

fn clients(running: &Running, connections: u32) -> anyhow::Result<Engine> {
    let description = &running.description;
    let script = Script::new(description.protocol, &running.target, 0, description.channel.as_deref());
    Engine::start(&engine::Settings {
        servers: vec![running.address],
        script,
        connections,
        first_number: 0,
        lanes: std::thread::available_parallelism().map_or(1, usize::from),
        sources: Sources::for_servers(&[running.address], connections),
        ready_timeout: Duration::from_secs(60),
        retry_after: None,
        ping_late_after: None,
    })
}

fn leave(engine: &Engine) -> anyhow::Result<()> {
    engine.drop_share(1.0, Goodbye::Reset);
    ensure!(engine.wait(TIMEOUT, |counts| counts.ready_now() == 0), "the clients do not leave");
    Ok(())
}

fn publications(
    running: &Running,
    engine: &Engine,
    publish: &Publish,
    messages: u32,
    idling: &Cpu,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut publisher = Publisher::connect(&publish.url, &publish.credentials()?)?;
    let (before, cpu, began) = (engine.counts(), Cpu::now(running)?, Instant::now());
    let receivers = before.ready_now();
    let start_ns = now_ns();
    for sequence in 0..messages {
        let due_ns = start_ns + u64::from(sequence) * 1_000_000_000;
        std::thread::sleep(Duration::from_nanos(due_ns.saturating_sub(now_ns())));
        let mut mark = protocol::mark(sequence, due_ns);
        mark.push_str(&"x".repeat(PUBLISHED_BYTES.saturating_sub(mark.len())));
        publisher.post(&publish.body.replace("{mark}", &mark)).context("a publication was refused")?;
    }
    let expected = u64::from(messages) * receivers;
    engine.wait(TIMEOUT, |counts| counts.marked - before.marked + counts.lost - before.lost >= expected);
    std::thread::sleep(LINGER);
    let (used, seconds) = (cpu.since(running)?, began.elapsed().as_secs_f64());
    let (counts, collected) = (engine.counts(), engine.collect(messages));
    let marked = counts.marked - before.marked;
    // Heartbeats go on meanwhile, in one server each three seconds and in another never.
    let each = |used: f64, idling: f64| Some((used - idling * seconds).max(0.0) / marked.max(1) as f64);
    figures.delivery_cpu_us = each(used.server, idling.server);
    figures.delivery_client_cpu_us = each(used.client, idling.client);
    figures.delivery = Some(Latency::new("publish to receipt", &collected.delivery_us));
    figures.doubled = Some(counts.duplicated - before.duplicated);
    figures.reordered = Some(counts.reordered - before.reordered);
    // Everybody who was there should have had all of them, also who was let go meanwhile.
    figures.lost = Some(expected.saturating_sub(marked - (counts.duplicated - before.duplicated)));
    Ok(())
}

/// Lets everybody send one large message; how many were not answered.
fn say_large(engine: &Engine, say: &Say, connections: u32, at_once: u32) -> u64 {
    let pad = "x".repeat(say.bytes);
    let texts = say.texts.iter().map(|text| Template::new(&text.replace("{pad}", &pad))).collect();
    let before = engine.counts();
    engine.say(Saying { texts, reply: say.reply, rounds: 1, at_once });
    let expected = u64::from(connections).min(before.ready_now());
    engine.wait(TIMEOUT, |counts| counts.said - before.said >= expected);
    expected.saturating_sub(engine.counts().replies - before.replies)
}

fn storm(engine: &Engine, all: u64, figures: &mut Figures) -> anyhow::Result<()> {
    let before = engine.counts();
    engine.collect(0);
    engine.drop_share(1.0, Goodbye::Reset);
    engine.open(Pace::Storm);
    engine.wait(TIMEOUT, |counts| {
        counts.ended - before.ended >= all && counts.ready_now() + counts.failed() - before.failed() >= all
    });
    let counts = engine.counts();
    let back = engine.collect(0).ready_us;
    figures.storm_syn_again = Some(counts.retransmitted - before.retransmitted);
    ensure!(
        counts.ready_now() == all,
        "{} of {all} are back after all were dropped; failures: {}",
        counts.ready_now(),
        counts.failure_words()
    );
    figures.storm_s = Some(back.max() as f64 / 1e6);
    Ok(())
}

/// CPU time of both sides in microseconds: at one moment, since then, or a second.
struct Cpu {
    server: f64,
    client: f64,
}

impl Cpu {
    fn now(running: &Running) -> anyhow::Result<Self> {
        let client = observe::cpu_time(std::process::id())?.as_secs_f64() * 1e6;
        Ok(Self { server: running.cpu_us()?, client })
    }

    fn since(&self, running: &Running) -> anyhow::Result<Self> {
        let now = Self::now(running)?;
        Ok(Self { server: now.server - self.server, client: now.client - self.client })
    }
}
