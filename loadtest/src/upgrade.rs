//! Upgrades a server again and again under load, and sees that no client notices: nobody is closed, every publication reaches
//! everybody once and in order, every command is answered and reaches the app once, messages that are half on their way end
//! whole, no ping is missed, and memory and descriptors do not grow.
//!
//! Publications have the times at which they were due; how late the latest one comes is the pause as clients see it.

mod halves;
mod serving;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::bench::App;
use crate::engine::{Counts, Pace, Reply};
use crate::observe::ProcessCost;
use crate::protocol::Protocol;
use crate::steady::Steady;
use crate::workers::{self, Plan, Workers};
use halves::Halves;
use serving::Serving;

/// What all clients subscribe to; the app gives them the stream `load`.
const IDENTIFIER: &str = r#"{"channel":"LoadChannel"}"#;

/// Seconds between pings of the server: several in the time of a run.
const PING_INTERVAL_S: f64 = 3.0;

/// How long the app takes for a call, so that some are always under way.
const CALL_TIME: Duration = Duration::from_millis(5);

/// Commands that are said around each upgrade at least, by as many rounds as that takes: seconds of work for the app.
const COMMANDS_MIN: u32 = 8_000;

/// Clients that talk to the app at a time.
const TALKING: u32 = 100;

/// The share of clients that read slowly, and how slowly, in bytes a second: less than is published.
const SLOW_SHARE: f64 = 0.01;
const SLOW_BYTES: u32 = 2048;

/// Clients with half of a message on its way, each way.
const HALVES: u32 = 10;

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Before and behind each upgrade: for commands and halves to get under way, and for what was freed to be given back.
const AROUND: Duration = Duration::from_millis(500);

/// After the last publication, for a copy too many to come.
const LINGER: Duration = Duration::from_millis(500);

/// What a process may use more than the first one did: heap that is laid out differently, a socket that is being closed.
const MEMORY_RATIO_MAX: f64 = 1.15;
const MEMORY_SPARE: u64 = 8 << 20;
const DESCRIPTORS_SPARE: u64 = 8;

/// What to run.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The server to test.
    #[arg(long, value_name = "PATH")]
    pub server: PathBuf,
    /// An argument for the server; may be given more than once.
    #[arg(long = "server-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub server_args: Vec<String>,
    /// Clients, one in a hundred of which reads slowly.
    #[arg(short = 'n', long, default_value_t = 15_000)]
    pub connections: u32,
    /// Upgrades in a row.
    #[arg(long, default_value_t = 10)]
    pub upgrades: u32,
    /// Publications a second.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Write what is printed to this file, too.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// A line for the top of it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub note: String,
}

/// Runs it; true if no client noticed anything.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let mut report = Report::default();
    report.line(&format!(
        "{} upgrades under {} clients, {} publications a second, commands, pings each {PING_INTERVAL_S} s",
        options.upgrades, options.connections, options.rate
    ));
    if !options.note.is_empty() {
        report.line(&options.note);
    }
    let mut scene = Scene::open(options)?;
    let result = scene.upgrades(options, &mut report).and_then(|()| scene.finish(&mut report));
    if let Err(error) = &result {
        report.problems.push(format!("{error:#}"));
        report.problems.push(format!("the log of the server ends:\n{}", scene.server.log_tail()));
    }
    for problem in std::mem::take(&mut report.problems) {
        report.line(&format!("PROBLEM: {problem}"));
        report.failed = true;
    }
    report.line(if report.failed { "FAILED" } else { "no client noticed anything" });
    if let Some(path) = &options.save {
        std::fs::write(path, &report.text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(!report.failed)
}

/// What is printed, and what is wrong.
#[derive(Default)]
struct Report {
    text: String,
    problems: Vec<String>,
    failed: bool,
}

impl Report {
    fn line(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.text, "{line}");
    }

    fn expect(&mut self, is_so: bool, problem: impl FnOnce() -> String) {
        if !is_so {
            self.problems.push(problem());
        }
    }
}

/// Everything that takes part. Dropped in this order: first whoever would notice that others go.
struct Scene {
    publishing: Steady,
    fast: Workers,
    slow: Workers,
    halves: Halves,
    server: Serving,
    app: App,
    /// Commands that were sent so far.
    commands: u64,
    /// When pings were counted first, and how many there were.
    pings_from: (Instant, u64),
    first: Option<ProcessCost>,
}

impl Scene {
    fn open(options: &Options) -> anyhow::Result<Self> {
        let limit = workers::raise_descriptor_limit();
        let app = App::start()?;
        let mut arguments: Vec<String> =
            ["--ping-interval", "3s", "--broker", "memory", "--rpc-host"].map(str::to_owned).into();
        arguments.push(app.address.to_string());
        arguments.extend_from_slice(&options.server_args);
        let server = Serving::start(&options.server, &arguments)?;
        let slow = ((f64::from(options.connections) * SLOW_SHARE).ceil() as u32).min(options.connections);
        let fast = options.connections - slow;
        let mut plan = Plan {
            target: format!("ws://{}/cable", server.address),
            servers: vec![server.address],
            protocol: Protocol::ActionCable,
            cookie_bytes: 0,
            identifier: Some(IDENTIFIER.to_owned()),
            connections: fast,
            first_number: 0,
            pongs: false,
            lanes: 1,
            sources: Vec::new(),
            ready_timeout_ms: TIMEOUT.as_millis() as u64,
            retry_after_ms: None,
            ping_late_after_ms: None,
        };
        // Two at least, so that they read while this process does something else.
        let mut fast = Workers::start(&plan, workers::processes_needed(fast, limit).max(2))?;
        (plan.first_number, plan.connections) = (plan.connections, slow);
        let mut slow = Workers::start(&plan, 1)?;
        for clients in [&mut fast, &mut slow] {
            clients.open(Pace::Window(256))?;
        }
        let all = u64::from(options.connections);
        wait("clients are ready", || fast.counts().ready_now() + slow.counts().ready_now() >= all)?;
        let halves = Halves::open(server.address, HALVES)?;
        fast.collect(0)?;
        slow.collect(0)?;
        app.delay(CALL_TIME);
        slow.slow(1.0, SLOW_BYTES)?;
        let publishing = Steady::start(&server.publish_url, "load", options.rate, 0)?;
        let pings_from = (Instant::now(), fast.counts().pings);
        Ok(Self { publishing, fast, slow, halves, server, app, commands: 0, pings_from, first: None })
    }

    fn upgrades(&mut self, options: &Options, report: &mut Report) -> anyhow::Result<()> {
        report.line("");
        report.line(
            "    #      pid   latest publication  slowest command  server memory  descriptors  what the command said",
        );
        for number in 0..=options.upgrades {
            // The first line is what there is without one.
            let said = if number == 0 { self.talk(|_| Ok(String::new()))? } else { self.talk(Serving::upgrade)? };
            let (delivery, reply) = self.measured()?;
            let cost = self.server.cost()?;
            report.line(&format!(
                "{number:>5} {:>8} {delivery:>17.1?} {reply:>16.1?} {:>10.1} MiB {:>12}  {}",
                self.server.pid,
                cost.rss_bytes as f64 / f64::from(1 << 20),
                cost.descriptors,
                said.lines().find(|line| line.contains("waited")).unwrap_or("(none: for comparison)"),
            ));
            // The first one that has taken over is what the others are compared with: the very first came by its clients
            // in another way.
            if number == 1 {
                self.first = Some(cost);
            }
            self.nobody_has_gone()?;
        }
        Ok(())
    }

    /// Lets every client say something, brings the halves under way, does something in the middle of that, and waits for all
    /// answers.
    fn talk(&mut self, meanwhile: impl FnOnce(&mut Serving) -> anyhow::Result<String>) -> anyhow::Result<String> {
        let before = self.fast.counts();
        let text = halves::message(r#"{"action":"echo","text":"hello"}"#);
        let speakers = before.ready_now();
        let rounds = COMMANDS_MIN.div_ceil((speakers as u32).max(1));
        let commands = speakers * u64::from(rounds);
        self.fast.say(vec![text], Reply::Data, rounds, TALKING)?;
        self.halves.begin()?;
        thread::sleep(AROUND);
        let said = meanwhile(&mut self.server)?;
        self.halves.finish()?;
        let answered = |counts: &Counts| counts.replies - before.replies;
        let fast = &mut self.fast;
        wait("commands are answered", || answered(&fast.counts()) >= commands)
            .with_context(|| format!("{} of {commands} commands", answered(&self.fast.counts())))?;
        thread::sleep(AROUND);
        self.commands += commands + self.halves.commands();
        Ok(said)
    }

    /// How late the latest publication came, and how long the slowest command took, since this was asked last.
    fn measured(&mut self) -> anyhow::Result<(Duration, Duration)> {
        let collected = self.fast.collect(0)?;
        Ok((Duration::from_micros(collected.delivery_us.max()), Duration::from_micros(collected.reply_us.max())))
    }

    fn nobody_has_gone(&mut self) -> anyhow::Result<()> {
        for clients in [&mut self.fast, &mut self.slow] {
            clients.check()?;
            let counts = clients.counts();
            ensure!(counts.lost + counts.failed() == 0, "clients are gone: {}", counts.failure_words());
        }
        Ok(())
    }

    /// Waits for everything that is under way, and compares.
    fn finish(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let published = self.publishing.finish()?;
        let (pings, pinged_for) = (self.fast.counts().pings - self.pings_from.1, self.pings_from.0.elapsed());
        self.slow.slow(0.0, 0)?;
        let of = |clients: &Workers| u64::from(published) * clients.counts().ready_now();
        let (fast, slow) = (&self.fast, &self.slow);
        let all_came =
            wait("publications are received", || fast.counts().marked >= of(fast) && slow.counts().marked >= of(slow));
        thread::sleep(LINGER);
        self.nobody_has_gone()?;
        report.line("");
        for (name, clients) in [("clients", &mut self.fast), ("slow readers", &mut self.slow)] {
            let missing = clients.collect(published)?.missing_at_end;
            let counts = clients.counts();
            let (lost, expected) = (counts.lost_between() + missing, u64::from(published) * counts.ready_now());
            let Counts { marked, duplicated, reordered, .. } = counts;
            report.line(&format!(
                "{name}: {} open, {} closed; {marked} of {expected} messages; lost {lost}, doubled {duplicated}, out of order \
                 {reordered}",
                counts.ready_now(),
                counts.lost
            ));
            report.expect(marked == expected && lost + duplicated + reordered == 0, || {
                format!("{name} did not get every message once and in order")
            });
        }
        all_came?;
        let called = self.app.messages();
        report.line(&format!("commands: {} sent and answered, {called} reached the app", self.commands));
        report.expect(called == self.commands, || "commands did not reach the app once each".to_owned());
        // Each client is pinged once in every interval; where it is in its own one is not known.
        let each = (pinged_for.as_secs_f64() / PING_INTERVAL_S).floor() - 1.0;
        let least = each.max(0.0) * self.fast.counts().ready_now() as f64;
        report.line(&format!("pings: {pings}, at least {least:.0} were due in {:.0} s", pinged_for.as_secs_f64()));
        report.expect(pings as f64 >= least, || "pings were missed".to_owned());
        report.line(&format!("publications: {published}; {}", self.publishing.repeated()));
        self.compare_costs(report)
    }

    fn compare_costs(&self, report: &mut Report) -> anyhow::Result<()> {
        let Some(first) = self.first else { return Ok(()) };
        let last = self.server.cost()?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        report.line(&format!(
            "first successor: {:.1} MiB, {} descriptors; last: {:.1} MiB, {} descriptors",
            mib(first.rss_bytes),
            first.descriptors,
            mib(last.rss_bytes),
            last.descriptors
        ));
        let most = (first.rss_bytes as f64 * MEMORY_RATIO_MAX) as u64 + MEMORY_SPARE;
        report.expect(last.rss_bytes <= most, || "memory has grown".to_owned());
        report
            .expect(last.descriptors <= first.descriptors + DESCRIPTORS_SPARE, || "descriptors have grown".to_owned());
        Ok(())
    }
}

/// Waits until something is so.
fn wait(what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !is_so() {
        ensure!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
