//! How many instructions the server executes for one thing: a command, a publication, a delivered message, a heartbeat.
//!
//! The server runs with one acceptor under callgrind. Its counters are set to zero when it has booted and everybody is
//! connected, and read after every round, so they hold only what a round did: divided by how often it did it, that is one.
//! Counts hardly depend on the machine or on what else it does, unlike time: a change of some percent shows at once.
//! They say nothing of the kernel's work, of cache misses, or of work that several threads do at the same time. One client
//! does one thing at a time, so nothing is saved by doing things together.

mod callgrind;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use self::callgrind::{Callgrind, Profile};
use super::app::App;
use super::commands::{Performers, Transport};
use super::subscribers::Subscribers;
use super::{Running, TIMEOUT, Want, median};
use crate::protocol::Protocol;

/// Subscribers of the publication that is delivered.
const SUBSCRIBERS: u32 = 100;

/// Connections whose heartbeats are counted, one a second each.
const PARKED: u32 = 500;

/// Heartbeats of a round for each command of one: they are small, and the rest of a second's work is among them.
const HEARTBEATS: u32 = 4;

/// Share of a round that is done once before counting: first-time tables grow, and lazy things are made.
const WARM_UP_SHARE: u32 = 5;

/// Functions shown of each figure.
const FUNCTIONS_SHOWN: usize = 20;

/// What is counted, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct InstructionsOptions {
    /// The Cableway binary.
    #[arg(long, value_name = "PATH")]
    server: PathBuf,
    /// One more argument for the server; may be given several times.
    #[arg(long = "server-arg", value_name = "ARG", allow_hyphen_values = true)]
    server_args: Vec<String>,
    /// How often a round does it: a fifth as often for publications with subscribers, four times for heartbeats.
    #[arg(long, value_name = "N", default_value_t = 500)]
    repeat: u32,
    /// Rounds, whose median is the figure.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
    /// Show which functions the instructions are in.
    #[arg(long)]
    functions: bool,
}

/// Instructions for one of something.
#[derive(Debug, Clone, Serialize)]
pub struct InstructionCount {
    /// What was done.
    pub name: String,
    /// Median over the rounds.
    pub instructions: f64,
    /// Largest less smallest round, as a share of the median.
    pub spread: f64,
    /// Each round's number.
    pub rounds: Vec<f64>,
    /// How often a round did it.
    pub repeat: u32,
    /// Functions with the most instructions of their own, if asked for; the last round's, for one of it.
    pub own: Vec<FunctionCount>,
    /// The same with all that they called.
    pub inclusive: Vec<FunctionCount>,
}

/// A function's part.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionCount {
    /// As the binary's symbols have it; what is inlined counts to whom it is inlined into.
    pub function: String,
    /// For one of what was done.
    pub instructions: f64,
}

impl InstructionCount {
    fn new(name: &str, repeat: u32, rounds: Vec<f64>) -> Self {
        let (low, high) =
            rounds.iter().fold((f64::MAX, 0.0_f64), |(low, high), round| (low.min(*round), high.max(*round)));
        let instructions = median(rounds.clone()).unwrap_or(0.0);
        let spread = if instructions > 0.0 { (high - low) / instructions } else { 0.0 };
        Self { name: name.to_owned(), instructions, spread, rounds, repeat, own: Vec::new(), inclusive: Vec::new() }
    }

    /// One line for a person, and one for each function.
    pub fn lines(&self) -> String {
        let spread = format!("{:.1} %", self.spread * 100.0);
        let rounds = format!("{} x {}", self.rounds.len(), self.repeat);
        let mut lines = format!("{:<58} {:>12.0} {spread:>8} {rounds:>10}", self.name, self.instructions);
        for (heading, functions) in [("of their own", &self.own), ("with all that they called", &self.inclusive)] {
            if !functions.is_empty() {
                lines.push_str(&format!("\n    functions with the most instructions, {heading}:"));
            }
            for FunctionCount { function, instructions } in functions {
                let share = instructions / self.instructions.max(1.0) * 100.0;
                lines.push_str(&format!("\n    {instructions:>12.0} {share:>5.1} %  {function}"));
            }
        }
        lines
    }

    /// The line above those of [`InstructionCount::lines`].
    pub fn heading() -> String {
        format!("{:<58} {:>12} {:>8} {:>10}", "one", "instructions", "spread", "counted")
    }
}

/// Counts everything, handing over each number when it is there.
pub fn instructions(options: &InstructionsOptions, report: &mut dyn FnMut(InstructionCount)) -> anyhow::Result<()> {
    ensure!(options.rounds > 0 && options.repeat > 0, "--rounds and --repeat must be at least 1");
    report(command(options, Transport::Grpc, "command through gRPC")?);
    report(command(options, Transport::Http, "command through HTTP")?);
    let alone = publication(options, "publication over HTTP, no subscribers", 0, options.repeat)?;
    report(alone.clone());
    let name = format!("publication over HTTP, {SUBSCRIBERS} subscribers");
    let delivered = publication(options, &name, SUBSCRIBERS, options.repeat.div_ceil(5))?;
    report(delivered.clone());
    let each = |with: &f64| (with - alone.instructions) / f64::from(SUBSCRIBERS);
    let rounds = delivered.rounds.iter().map(each).collect();
    report(InstructionCount::new("delivered message, from the two before", delivered.repeat, rounds));
    report(heartbeat(options)?);
    Ok(())
}

fn command(options: &InstructionsOptions, transport: Transport, name: &str) -> anyhow::Result<InstructionCount> {
    let app = App::start()?;
    let want = Want { app: Some(transport.app_address(&app)), ..Want::quiet(Protocol::ActionCable) };
    let mut counted = Counted::start(options, &want)?;
    let performers = Performers::open(&counted.server, 1)?;
    counted.rounds(name, options.repeat, |repeat| {
        performers.perform(repeat)?;
        Ok(u64::from(repeat))
    })
}

fn publication(
    options: &InstructionsOptions,
    name: &str,
    subscribers: u32,
    repeat: u32,
) -> anyhow::Result<InstructionCount> {
    let mut counted = Counted::start(options, &Want::quiet(Protocol::ActionCable))?;
    let mut followed = Subscribers::new(&counted.server, false, subscribers, 1)?;
    followed.open()?;
    counted.rounds(name, repeat, |repeat| {
        (0..repeat).try_for_each(|_| followed.publish())?;
        Ok(u64::from(repeat))
    })
}

fn heartbeat(options: &InstructionsOptions) -> anyhow::Result<InstructionCount> {
    let want = Want { ping_interval: Duration::from_secs(1), ..Want::quiet(Protocol::ActionCable) };
    let mut counted = Counted::start(options, &want)?;
    let parked = Subscribers::new(&counted.server, false, PARKED, 1)?;
    parked.open()?;
    let engine = &parked.engine;
    let mut seen = engine.counts().pings;
    let name = format!("heartbeat of a parked connection, {PARKED} a second");
    counted.rounds(&name, (options.repeat * HEARTBEATS).max(2 * PARKED), |repeat| {
        let before = seen;
        let all = engine.wait(TIMEOUT, |counts| counts.pings >= before + u64::from(repeat));
        ensure!(all, "{} of {repeat} heartbeats came", engine.counts().pings - before);
        seen = engine.counts().pings;
        super::all_ready(engine, PARKED)?;
        Ok(seen - before)
    })
}

/// A server whose instructions are counted. It ends before its counters' folder goes.
struct Counted {
    server: Running,
    callgrind: Callgrind,
    rounds: u32,
    functions: bool,
}

impl Counted {
    fn start(options: &InstructionsOptions, want: &Want) -> anyhow::Result<Self> {
        let callgrind = Callgrind::new()?;
        let arguments =
            ["--acceptors".to_owned(), "1".to_owned()].into_iter().chain(options.server_args.iter().cloned());
        let server = Running::launch(callgrind.launcher(&options.server), arguments, want)?;
        Ok(Self { server, callgrind, rounds: options.rounds, functions: options.functions })
    }

    /// Counts rounds of `work`, which does something about as often as it is told, and says how often.
    fn rounds(
        &mut self,
        name: &str,
        repeat: u32,
        mut work: impl FnMut(u32) -> anyhow::Result<u64>,
    ) -> anyhow::Result<InstructionCount> {
        let pid = self.server.pid();
        let mut counted = || {
            work(repeat.div_ceil(WARM_UP_SHARE))?;
            self.callgrind.zero(pid)?;
            let (mut rounds, mut last) = (Vec::new(), (Profile::default(), 1.0));
            for _ in 0..self.rounds {
                let times = work(repeat)? as f64;
                last = (self.callgrind.take(pid)?, times);
                rounds.push(last.0.instructions as f64 / times);
            }
            anyhow::Ok((InstructionCount::new(name, repeat, rounds), last))
        };
        let (mut count, (profile, times)) = counted().with_context(|| format!("counting failed: {name}"))?;
        if self.functions {
            let top = |inclusive| {
                let counts = profile.top(inclusive, FUNCTIONS_SHOWN).into_iter();
                let each = |(name, cost): (&str, u64)| (name.to_owned(), cost as f64 / times);
                let counts = counts.map(each);
                counts.map(|(function, instructions)| FunctionCount { function, instructions }).collect()
            };
            count.own = top(false);
            count.inclusive = top(true);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_the_median_and_says_how_far_rounds_differ() {
        let count = InstructionCount::new("x", 500, vec![99.0, 102.0, 100.0]);
        assert_eq!((count.instructions, count.spread), (100.0, 0.03));
        assert!(count.lines().contains("3.0 %") && count.lines().contains("3 x 500"), "{}", count.lines());
    }
}
