//! Several processes of Cableway as one server: what a person wants to see before trusting it.
//!
//! 1. Many subscribers over all processes, and publications that each of them has to get once and in order.
//! 2. One process is killed under that. Its own clients are lost, and the others must notice nothing: no gap, no late ping.
//! 3. What a publication costs with one process and with several, with subscribers and without.
//!
//! The parent's CPU and memory are told beside it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::clock::now_ns;
use crate::engine::{Collected, Counts, Pace};
use crate::fleet::Fleet;
use crate::metrics;
use crate::observe;
use crate::protocol::{self, Protocol};
use crate::publish::{Credentials, Publisher};
use crate::report::{Latency, Provenance};
use crate::workers::{self, Plan, Workers};

/// Heartbeats of a client come this often.
const PING_EVERY: Duration = Duration::from_secs(3);

/// Time in which heartbeats are counted around the end of a process: a few for each client.
const PINGS_WATCHED: Duration = Duration::from_secs(12);

/// Between two looks at counters.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// After the last publication, for a copy too many to arrive.
const LINGER: Duration = Duration::from_millis(500);

/// Connections that may be unfinished at a time.
const WINDOW: u32 = 512;

const SUBSCRIBED: &str = r#"{"channel":"$pubsub","stream_name":"load"}"#;

/// How it is done.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The Cableway binary.
    #[arg(long, value_name = "PATH")]
    server: PathBuf,
    /// Processes of it.
    #[arg(long, value_name = "N", default_value_t = 6)]
    server_processes: u32,
    /// One more argument for it; may be given several times.
    #[arg(long = "server-arg", value_name = "ARG", allow_hyphen_values = true)]
    server_args: Vec<String>,
    /// Clients.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100_000)]
    connections: u32,
    /// Publications.
    #[arg(long, value_name = "N", default_value_t = 100)]
    messages: u32,
    /// Publications a second; as many as two cores can deliver to all clients.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0)]
    publish_rate: f64,
    /// Clients of the comparison with one process: as many as one can hold.
    #[arg(long, value_name = "N", default_value_t = 15_000)]
    compared: u32,
    /// Publications without subscribers in that comparison.
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    unheard: u32,
    /// Leave the comparison out.
    #[arg(long)]
    no_comparison: bool,
    /// How long anything is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    timeout: f64,
    /// A line for the report: what was tested, where.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// What was found, line by line.
#[derive(Default)]
struct Findings {
    problems: Vec<String>,
}

impl Findings {
    fn fact(&self, name: &str, value: impl AsRef<str>) {
        println!("  {name:<38} {}", value.as_ref());
    }

    fn problem(&mut self, text: String) {
        println!("  PROBLEM: {text}");
        self.problems.push(text);
    }

    fn expect_nothing(&mut self, what: &str, count: u64) {
        if count > 0 {
            self.problem(format!("{count} {what}"));
        }
    }
}

/// Runs all of it, and prints what was found. True when nothing was wrong.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let descriptors = workers::raise_descriptor_limit();
    let mut findings = Findings::default();
    let provenance = Provenance::now();
    println!("{}", provenance.command);
    println!("Linux {}, {} cores, {descriptors} open files a process", provenance.kernel, provenance.cores);
    if let Some(note) = &options.note {
        println!("{note}");
    }
    together(options, descriptors, &mut findings)?;
    if !options.no_comparison {
        println!("\nCost of a publication; CPU of all server processes");
        for count in [1, options.server_processes] {
            cost(options, count, descriptors, &mut findings)?;
        }
    }
    println!("\n{}", if findings.problems.is_empty() { "clean" } else { "NOT CLEAN" });
    Ok(findings.problems.is_empty())
}

/// Clients of a server, all ready.
fn open(options: &Options, fleet: &Fleet, connections: u32, descriptors: u64) -> anyhow::Result<Workers> {
    let plan = Plan {
        target: format!("ws://{}/cable", fleet.address),
        servers: vec![fleet.address],
        protocol: Protocol::ActionCable,
        cookie_bytes: 0,
        identifier: Some(SUBSCRIBED.to_owned()),
        connections,
        first_number: 0,
        pongs: false,
        lanes: std::thread::available_parallelism().map_or(1, usize::from),
        sources: Vec::new(),
        ready_timeout_ms: (options.timeout * 1e3) as u64,
        retry_after_ms: None,
        ping_late_after_ms: None,
    };
    let mut workers = Workers::start(&plan, workers::processes_needed(connections, descriptors))?;
    workers.open(Pace::Window(WINDOW))?;
    let all = u64::from(connections);
    await_counts(options, &mut workers, |counts| counts.ready + counts.failed() >= all)?;
    let counts = workers.counts();
    ensure!(
        counts.ready_now() == all,
        "{} of {all} are ready; failures: {}",
        counts.ready_now(),
        counts.failure_words()
    );
    Ok(workers)
}

/// Waits until the counters are so; false when that took too long.
fn await_counts(options: &Options, workers: &mut Workers, is_so: impl Fn(&Counts) -> bool) -> anyhow::Result<bool> {
    let begun = Instant::now();
    while !is_so(&workers.counts()) {
        if begun.elapsed().as_secs_f64() > options.timeout {
            return Ok(false);
        }
        workers.check()?;
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(true)
}

/// Tries of a publication: a connection that waits at a process while that is killed is reset, unanswered.
const TRIES: u32 = 3;

/// Posts publications, each at its time, from this sequence number on.
fn post(fleet: &Fleet, rate: f64, numbers: std::ops::Range<u32>) -> anyhow::Result<()> {
    let mut publisher = Publisher::connect(&fleet.publish_urls[0], &Credentials::None)?;
    let begun = now_ns();
    for (at, number) in numbers.enumerate() {
        let due = begun + (at as f64 / rate * 1e9) as u64;
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(now_ns())));
        let body = format!(r#"{{"stream":"load","data":"\"{}\""}}"#, protocol::mark(number, due));
        let mut tries = 1;
        while let Err(error) = publisher.post(&body) {
            ensure!(tries < TRIES, error);
            tries += 1;
            publisher = Publisher::connect(&fleet.publish_urls[0], &Credentials::None)?;
        }
    }
    Ok(())
}

/// Publishes, and sees that each client that stays gets each message once and in order.
fn publish(
    options: &Options,
    fleet: &Fleet,
    workers: &mut Workers,
    numbers: std::ops::Range<u32>,
    rate: f64,
    findings: &mut Findings,
) -> anyhow::Result<Collected> {
    let before = workers.counts();
    let expected = u64::from(numbers.end - numbers.start) * before.ready_now();
    let last = numbers.end;
    post(fleet, rate, numbers)?;
    await_counts(options, workers, |counts| counts.marked - before.marked >= expected)?;
    std::thread::sleep(LINGER);
    let collected = workers.collect(last)?;
    let counts = workers.counts();
    findings.fact("delivered", format!("{} of {expected}", counts.marked - before.marked));
    findings.expect_nothing("messages lost", counts.lost_between() - before.lost_between() + collected.missing_at_end);
    findings.expect_nothing("messages doubled", counts.duplicated - before.duplicated);
    findings.expect_nothing("messages out of order", counts.reordered - before.reordered);
    findings.expect_nothing("connections lost", counts.lost - before.lost);
    Ok(collected)
}

/// CPU of all processes of the server, and of its parent.
fn cpu(fleet: &Fleet) -> (Duration, Duration) {
    let of = |pid: u32| observe::cpu_time(pid).unwrap_or_default();
    (fleet.pids().into_iter().map(of).sum(), of(fleet.parent()))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn latency(name: &str, collected: &Collected) -> String {
    let latency = Latency::new(name, &collected.delivery_us);
    format!("median {:.1} ms, 99 % {:.1} ms, slowest {:.1} ms", latency.p50_ms, latency.p99_ms, latency.max_ms)
}

/// The first two parts.
fn together(options: &Options, descriptors: u64, findings: &mut Findings) -> anyhow::Result<()> {
    let Options { server_processes: count, connections, messages, .. } = *options;
    println!("\n{connections} subscribers of one stream over {count} processes");
    let fleet = Fleet::start_with(&options.server, count, &options.server_args, None)?;
    let begun = Instant::now();
    let mut workers = open(options, &fleet, connections, descriptors)?;
    findings.fact("opened", format!("in {:.1} s", begun.elapsed().as_secs_f64()));
    let each = clients_of_each(&fleet, count)?;
    findings.fact("clients of each process", format!("{each:?}"));

    let (all_before, parent_before) = cpu(&fleet);
    let begun = Instant::now();
    let collected = publish(options, &fleet, &mut workers, 0..messages, options.publish_rate, findings)?;
    let took = begun.elapsed().as_secs_f64();
    let (all, parent) = cpu(&fleet);
    findings.fact("publications", format!("{messages} in {took:.1} s"));
    findings.fact("publish to receipt", latency("publish to receipt", &collected));
    let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
    findings.fact("CPU of all server processes", seconds(all - all_before));
    let own = parent - parent_before;
    let share = own.as_secs_f64() / took * 100.0;
    findings.fact("of these the parent's", format!("{}, {share:.2} % of a core", seconds(own)));
    let memory = |pid: u32| observe::process_cost(pid).map_or(0, |cost| cost.rss_bytes);
    findings.fact("memory of the parent", mib(memory(fleet.parent())));
    findings.fact("memory of the others", mib(fleet.children().into_iter().map(memory).sum()));
    one_is_killed(options, &fleet, &mut workers, &each, findings)
}

/// WebSockets of each process, as the server counts them.
fn clients_of_each(fleet: &Fleet, count: u32) -> anyhow::Result<Vec<u64>> {
    let page = metrics::page(&fleet.metrics_urls[0])?;
    let of = |process: u32| {
        let label = format!("process=\"{process}\"");
        let lines = page.lines().filter(|line| line.contains("shard_connections_num{") && line.contains(&label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    };
    Ok((0..count).map(of).collect())
}

/// Which number a server process has.
fn number_of(pid: u32) -> Option<usize> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    variables.find_map(|variable| variable.strip_prefix("CABLEWAY_CHILD="))?.split('/').next()?.parse().ok()
}

fn one_is_killed(
    options: &Options,
    fleet: &Fleet,
    workers: &mut Workers,
    each: &[u64],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let victim =
        fleet.children().into_iter().find(|pid| number_of(*pid) == Some(0)).context("process 0 is not there")?;
    println!("\nprocess 0 is killed (-9) while everybody is published to");
    let before = workers.counts();
    let mut numbers = options.messages..options.messages + 10;
    post(fleet, 2.0, numbers.start..numbers.start + 2)?;
    let killed = i32::try_from(victim).ok().and_then(Pid::from_raw).context("no process id")?;
    kill_process(killed, Signal::KILL)?;
    let mut pings = vec![workers.counts().pings];
    let watched = Instant::now();
    numbers.start += 2;
    post(fleet, 2.0, numbers.clone())?;
    // By the second, from the moment of the kill on.
    while watched.elapsed() < PINGS_WATCHED {
        std::thread::sleep(Duration::from_secs(1));
        pings.push(workers.counts().pings);
    }
    let pinged = watched.elapsed();
    await_counts(options, workers, |counts| counts.lost - before.lost >= each[0])?;
    // What is on its way to the others has its time, too.
    let mut collected = Collected::empty();
    let missing = loop {
        std::thread::sleep(LINGER);
        let more = workers.collect(numbers.end)?;
        collected.add(&more);
        if more.missing_at_end == 0 || watched.elapsed().as_secs_f64() > options.timeout {
            break more.missing_at_end;
        }
    };
    let counts = workers.counts();
    let lost = counts.lost - before.lost;
    findings.fact("connections lost", format!("{lost}, and process 0 had {}", each[0]));
    if lost != each[0] {
        findings.problem(format!("{lost} connections were lost, and the process that was killed had {}", each[0]));
    }
    let others = counts.ready_now();
    findings.expect_nothing("messages lost by the others", counts.lost_between() - before.lost_between() + missing);
    findings.expect_nothing("messages doubled", counts.duplicated - before.duplicated);
    findings.expect_nothing("messages out of order", counts.reordered - before.reordered);
    findings.fact("publish to receipt", latency("publish to receipt", &collected));
    let all_pings = pings[pings.len() - 1] - pings[0];
    let due = others as f64 * (pinged.as_secs_f64() / PING_EVERY.as_secs_f64()).floor();
    findings.fact(
        "heartbeats of the others",
        format!("{all_pings} in {:.1} s, at least {due:.0} due", pinged.as_secs_f64()),
    );
    if (all_pings as f64) < due * 0.999 {
        findings.problem("heartbeats are missing".to_owned());
    }
    fleet.await_all()?;
    findings.fact("all processes serve again after", format!("{:.1} s at most", watched.elapsed().as_secs_f64()));
    Ok(())
}

/// The third part, with so many processes.
fn cost(options: &Options, count: u32, descriptors: u64, findings: &mut Findings) -> anyhow::Result<()> {
    println!("{count} process(es)");
    // Nothing else is to cost CPU.
    let quiet = ["--ping-interval".to_owned(), "0".to_owned()];
    let arguments: Vec<String> = options.server_args.iter().cloned().chain(quiet).collect();
    let fleet = Fleet::start_with(&options.server, count, &arguments, None)?;
    let mut workers = open(options, &fleet, options.compared, descriptors)?;
    let (before, _) = cpu(&fleet);
    let publications = 50;
    let collected = publish(options, &fleet, &mut workers, 0..publications, 5.0, findings)?;
    let spent = cpu(&fleet).0 - before;
    let each_us = spent.as_secs_f64() * 1e6 / f64::from(publications);
    findings.fact(
        &format!("with {} subscribers", options.compared),
        format!(
            "{:.1} ms of CPU, {:.2} us a delivery; {}",
            each_us / 1e3,
            each_us / f64::from(options.compared),
            latency("", &collected)
        ),
    );
    drop(workers);
    let mut publisher = Publisher::connect(&fleet.publish_urls[0], &Credentials::None)?;
    let post = |publisher: &mut Publisher| publisher.post(r#"{"stream":"nobody","data":"\"x\""}"#);
    (0..200).try_for_each(|_| post(&mut publisher))?;
    let ((before, parent_before), begun) = (cpu(&fleet), Instant::now());
    (0..options.unheard).try_for_each(|_| post(&mut publisher))?;
    let (each, (all, parent)) = (begun.elapsed() / options.unheard, cpu(&fleet));
    let us = |spent: Duration| spent.as_secs_f64() * 1e6 / f64::from(options.unheard);
    findings.fact(
        "without subscribers, one after the other",
        format!(
            "{:.0} us of CPU, {:.0} us of them the parent's; answered in {:.0} us",
            us(all - before),
            if count > 1 { us(parent - parent_before) } else { 0.0 },
            each.as_secs_f64() * 1e6
        ),
    );
    Ok(())
}
