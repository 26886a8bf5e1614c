//! A server beside the yardstick: as many connections, client processes and server processes, one side after the other in one
//! run. Clients are fresh processes for each side, so that neither finds a heap that the other has left.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::options::{Load, url};
use super::{Finale, Scenario, Subject, measure, serve_and_measure};
use crate::bench::{Figure, Limit};
use crate::observe;
use crate::report::Report;
use crate::run::Snapshot;
use crate::yardstick::Yardstick;

/// What was promised of the time until all are open, without an app.
const OPENING_RATIO_MAX: f64 = 1.5;

/// Seconds between pings where nothing else was said: Cableway's default.
const PING_INTERVAL_S: f64 = 3.0;

/// How long the yardstick is held at most: two heartbeats of a long interval show what they cost.
const HELD_S_MAX: f64 = 60.0;

/// How long the kernel may take to take back what it had for the sockets of the side before, and between two looks at that.
const CALM_MAX: Duration = Duration::from_secs(120);
const CALM_LOOK_EVERY: Duration = Duration::from_secs(2);

/// Share of its memory that the kernel may still give back between two looks.
const CALM_SHARE: f64 = 0.005;

/// When the yardstick has its turn. The order may matter: what the machine does for the first time, the first side pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Turn {
    /// Before the server.
    First,
    /// After it.
    Last,
}

/// Whether both sides can do what the options ask for.
pub(super) fn check(load: &Load) -> anyhow::Result<()> {
    ensure!(load.fleet.starts_servers(), "--beside-bare needs --server: both sides are started here");
    ensure!(load.ping_interval.is_none_or(|seconds| seconds > 0.0), "--beside-bare needs a --ping-interval above 0");
    Ok(())
}

/// Runs both sides. The report is the server's, with the yardstick's in it.
pub(super) fn run(load: &Load, scenario: &Scenario, hold: f64, turn: Turn, descriptors: u64) -> anyhow::Result<Report> {
    let the_yardstick = || yardstick(load, hold.min(HELD_S_MAX), descriptors);
    let the_server = || serve_and_measure(load, scenario, descriptors);
    let (first, last);
    match turn {
        Turn::First => {
            first = the_yardstick()?;
            await_calm();
            last = the_server()?;
        }
        Turn::Last => {
            last = the_server()?;
            await_calm();
            first = the_yardstick()?;
        }
    }
    let ((bare, bare_opened_s), (mut report, opened_s)) = (first, last);
    // With an app it is the app's time, too.
    let limit = if load.fleet.server_app { Limit::None } else { Limit::Ratio(OPENING_RATIO_MAX) };
    report.figures = figures(&Costs::find(&report, opened_s), &Costs::find(&bare, bare_opened_s), limit);
    for figure in report.figures.iter().filter(|figure| !figure.kept()) {
        report.problems.push(format!("{}: {}", figure.name, figure.words()));
    }
    report.problems.extend(bare.problems.iter().map(|problem| format!("yardstick: {problem}")));
    report.yardstick = Some(Box::new(bare));
    Ok(report)
}

fn yardstick(load: &Load, hold: f64, descriptors: u64) -> anyhow::Result<(Report, f64)> {
    let count = load.fleet.processes(load.connections, descriptors);
    let interval_s = load.ping_interval.unwrap_or(PING_INTERVAL_S);
    let yardstick = Yardstick::start(count, load.protocol, interval_s)?;
    let targets = [url(yardstick.address, load.protocol)];
    let words = format!("{count} process(es) on port {}", yardstick.address.port());
    let (pids, metrics) = (yardstick.pids(), Vec::new());
    let subject = Subject { targets: &targets, fleet: None, words: Some(words), pids, metrics };
    // It keeps no time for each connection, so a long ramp lets it be late at first: that is not what it is here for.
    let mut load = load.clone();
    load.ping_interval = None;
    let measured =
        measure(&load, &Scenario::Idle { hold, beside_bare: None, finale: Finale::default() }, descriptors, subject)?;
    if measured.0.problems.iter().any(|problem| problem == "interrupted") {
        println!("{}", measured.0.text());
        bail!("interrupted");
    }
    Ok(measured)
}

/// Waits until the kernel has taken back what it had for sockets that are closed, or it would be missing in the figures of the
/// next side.
fn await_calm() {
    let begun = Instant::now();
    let slab = || observe::kernel_cost().map_or(0, |cost| cost.slab_bytes) as f64;
    let mut before = slab();
    while begun.elapsed() < CALM_MAX {
        std::thread::sleep(CALM_LOOK_EVERY);
        let now = slab();
        if now > before * (1.0 - CALM_SHARE) {
            return;
        }
        before = now;
    }
}

/// What a side took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Costs {
    opened_s: f64,
    server_opening_us: f64,
    client_opening_us: f64,
    server_held_ns: f64,
    client_held_ns: f64,
    user_bytes: f64,
    kernel_bytes: f64,
}

impl Costs {
    fn find(report: &Report, opened_s: f64) -> Self {
        let [before, held, after, ..] = &report.snapshots[..] else { return Self::default() };
        let each = |now: f64, then: f64| (now - then) / after.ready.max(1) as f64;
        let seconds = (after.at_s - held.at_s).max(1e-3);
        let rss = |snapshot: &Snapshot| snapshot.server_rss_bytes().unwrap_or(0) as f64;
        let kernel = |snapshot: &Snapshot| (snapshot.kernel.slab_bytes + snapshot.kernel.tcp_buffer_bytes) as f64;
        Self {
            opened_s,
            server_opening_us: each(held.server_cpu_us, before.server_cpu_us),
            client_opening_us: each(held.client_cpu_us, before.client_cpu_us),
            server_held_ns: each(after.server_cpu_us, held.server_cpu_us) * 1e3 / seconds,
            client_held_ns: each(after.client_cpu_us, held.client_cpu_us) * 1e3 / seconds,
            user_bytes: each(rss(after), rss(before)),
            kernel_bytes: each(kernel(after), kernel(before)),
        }
    }
}

fn figures(server: &Costs, bare: &Costs, limit: Limit) -> Vec<Figure> {
    let figure = |name: &str, unit, limit, of: fn(&Costs) -> f64| {
        Figure::new(name, unit, limit, vec![(of(server), Some(of(bare)))])
    };
    let none = Limit::None;
    vec![
        figure("until all are open", "s", limit, |costs| costs.opened_s),
        figure("CPU of opening", "us each", none, |costs| costs.server_opening_us),
        figure("CPU of opening, clients", "us each", none, |costs| costs.client_opening_us),
        figure("CPU of holding", "ns a second each", none, |costs| costs.server_held_ns),
        figure("CPU of holding, clients", "ns a second each", none, |costs| costs.client_held_ns),
        figure("user memory", "B each", none, |costs| costs.user_bytes),
        figure("kernel memory, both ends", "B each", none, |costs| costs.kernel_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_until_all_are_open_has_a_limit_and_the_rest_is_told() {
        let bare = Costs { opened_s: 10.0, user_bytes: 50.0, ..Costs::default() };
        let at = |opened_s| figures(&Costs { opened_s, user_bytes: 400.0, ..bare }, &bare, Limit::Ratio(1.5));
        assert!(at(14.9).iter().all(Figure::kept));
        let over: Vec<_> = at(15.1).into_iter().filter(|figure| !figure.kept()).collect();
        assert_eq!(over.len(), 1);
        assert_eq!(over[0].words(), "15.10 s, the yardstick 10.00 s, 1.51 times (1.50 allowed)");
        assert_eq!(at(1.0)[5].ratio, Some(8.0));
    }
}
