//! Drives whole shards from one seed: random bytes, short reads and writes, answers of the app, broadcasts, time
//! and disconnects, and checks everything that clients, the app and the counters see.
//!
//! ```text
//! cargo run --release -p simulate -- --seeds 1000             seeds 0 to 999
//! cargo run --release -p simulate -- --seeds 1000 --start 5000
//! cargo run --release -p simulate -- --seed 17                one seed again
//! cargo run --release -p simulate -- --seed 17 --trace        and what happens, line by line
//! ```
//!
//! A failing seed is printed with what was wrong; the same seed on the same code always fails in the same way,
//! because nothing here reads a clock or asks the system for chance. Where to look:
//!
//! * `scenario` draws the conditions of a run; `run` decides what happens next, carries posts to the shards and
//!   checks the end.
//! * `net` is the kernel: listeners, pipes and edge-triggered pollers.
//! * `world` is the run's state, with a `Site` for each shard; `seams` is how a shard touches it.
//! * `client` sends, reads and checks what comes; `app` checks calls and answers them, `broker` the questions
//!   that the broker gets, and what it says, with the real one in half of the runs.
//! * `model` says what a session must do, `kept` what a broker must remember: the second opinions that everything is
//!   compared with.

mod app;
mod broker;
mod client;
mod frames;
mod kept;
mod model;
mod net;
mod rng;
mod run;
mod scenario;
mod seams;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// Failing seeds that are printed before the rest is left alone.
const FAILURES_MAX: usize = 10;

const USAGE: &str = "usage: simulate --seeds N [--start S] | --seed S [--trace]";

struct Arguments {
    start: u64,
    seeds: u64,
    trace: bool,
}

fn arguments() -> Option<Arguments> {
    let mut parsed = Arguments { start: 0, seeds: 0, trace: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => parsed.seeds = words.next()?.parse().ok()?,
            "--start" => parsed.start = words.next()?.parse().ok()?,
            "--seed" => (parsed.start, parsed.seeds) = (words.next()?.parse().ok()?, 1),
            "--trace" => parsed.trace = true,
            _ => return None,
        }
    }
    (parsed.seeds > 0).then_some(parsed)
}

/// Runs a seed; a panic of the shard is a failure like any other.
fn attempt(seed: u64, trace: bool) -> Result<run::Summary, String> {
    catch_unwind(AssertUnwindSafe(|| run::run(seed, trace))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("of an unknown kind")))
    })
}

fn main() -> ExitCode {
    let Some(Arguments { start, seeds, trace }) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    let mut failures = 0;
    let (mut shards, mut clients, mut turns, mut published, mut frames) = (0, 0, 0, 0, 0);
    let (mut resumed, mut served, mut rejected) = (0, 0, 0);
    let (mut upgrades, mut given_up) = (0, 0);
    let mut run = 0;
    for seed in start..start.saturating_add(seeds) {
        run += 1;
        // If the process dies of a stack overflow or an abort, this says where to look.
        if run % 100 == 0 {
            eprintln!("up to seed {seed}: {failures} failed");
        }
        match attempt(seed, trace) {
            Ok(summary) => {
                shards += summary.shards;
                clients += summary.clients;
                turns += summary.turns;
                published += summary.published;
                frames += summary.frames;
                resumed += summary.resumed;
                served += summary.served;
                rejected += summary.rejected;
                upgrades += summary.upgrades;
                given_up += summary.given_up;
            }
            Err(what) => {
                failures += 1;
                println!("seed {seed}: {what}\n  again: cargo run --release -p simulate -- --seed {seed} --trace");
                if failures == FAILURES_MAX {
                    println!("more than enough failures; the rest is left alone");
                    break;
                }
            }
        }
    }
    println!(
        "{run} seeds from {start}, {failures} failed: {shards} shards, {clients} clients, {turns} turns, \
         {published} publications, {frames} messages; {resumed} sessions resumed, history {served} times served and \
         {rejected} times rejected; {upgrades} upgrades, and {given_up} that were given up"
    );
    if failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handful_of_seeds_passes() {
        let mut shards = [0; 3];
        for seed in 0..12 {
            let summary = attempt(seed, false).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
            shards[summary.shards - 1] += 1;
        }
        assert!(shards.iter().all(|&runs| runs > 0), "runs with one, two and three shards: {shards:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        for seed in [3, 1_003, 1_004, 1_005] {
            let (once, again) = (attempt(seed, false), attempt(seed, false));
            assert!(once.is_ok());
            assert_eq!(once, again);
        }
    }
}
