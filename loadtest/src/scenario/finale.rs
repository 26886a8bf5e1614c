//! What happens to connections that were held: publications to all of them, and an upgrade of the server beneath them.
//!
//! An upgrade of very many is watched by few: clients of another stream, which is published to many times a second. How late
//! the latest of these publications comes is the longest pause as a client sees it. The many themselves could not be asked so
//! often, and what they are sent would be in the way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;

use super::options::{self, Load, Publishing};
use super::steps::{self, Receivers, SETTLE, all_stayed};
use super::{Findings, idle};
use crate::engine::{Collected, Pace};
use crate::fleet::Fleet;
use crate::protocol::Protocol;
use crate::report::Latency;
use crate::run::Run;
use crate::steady::Steady;
use crate::workers::Workers;

/// The stream of the few, and publications to it a second.
const PROBED: &str = "probe";
const PROBES_PER_SECOND: f64 = 20.0;

/// How long it is published to before the upgrade, for comparison.
const PROBED_BEFORE: Duration = Duration::from_secs(10);

/// How long an upgrade may take.
const UPGRADE_MAX: Duration = Duration::from_secs(1000);

/// What happens at the end.
#[derive(Debug, Clone, Default, Args)]
pub struct Finale {
    /// Publications to all at the end, which must come to each once and in order; as many again after an upgrade. With
    /// --server.
    #[arg(long, value_name = "N", default_value_t = 0)]
    messages: u32,
    /// Publications a second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0)]
    publish_rate: f64,
    /// Upgrade the server at the end: nobody may be closed, and no ping late.
    #[arg(long, requires = "server")]
    pub(super) upgrade: bool,
    /// Clients more that come for the upgrade and are published to 20 times a second: the latest receipt is the longest pause.
    #[arg(long, value_name = "N", default_value_t = 500)]
    probes: u32,
    /// Publications a second to all while the upgrade runs; none without it. What is just being delivered has to be delivered
    /// first, so more than the machine delivers make a server refuse.
    #[arg(long, value_name = "PER_SECOND", requires = "upgrade")]
    publish_meanwhile: Option<f64>,
}

impl Finale {
    pub(super) fn check(&self, load: &Load) -> anyhow::Result<()> {
        if self.messages > 0 {
            ensure!(load.fleet.starts_servers(), "--messages needs --server: that is where they are published");
            Publishing::to_all(self.messages, self.publish_rate).check(load)?;
        }
        if self.upgrade {
            let cable = matches!(load.protocol, Protocol::ActionCable | Protocol::ActionCableExt);
            let public = cable && !load.fleet.server_app;
            ensure!(public, "--upgrade follows public streams: with an Action Cable --protocol, without --server-app");
        }
        Ok(())
    }

    /// Does all of it.
    pub(super) fn run(
        &self,
        load: &Load,
        fleet: Option<&Fleet>,
        run: &mut Run,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let Some(fleet) = fleet.filter(|_| !run.interrupted()) else { return Ok(()) };
        self.publish(load, fleet, run, findings, "publish to receipt", "after publications")?;
        if self.upgrade && !run.interrupted() {
            self.upgrade(load, fleet, run, findings)?;
            let (name, moment) = ("publish to receipt, after the upgrade", "at the end");
            self.publish(load, fleet, run, findings, name, moment)?;
        }
        Ok(())
    }

    fn publish(
        &self,
        load: &Load,
        fleet: &Fleet,
        run: &mut Run,
        findings: &mut Findings,
        name: &str,
        moment: &str,
    ) -> anyhow::Result<()> {
        if self.messages == 0 {
            return Ok(());
        }
        let publishing = Publishing::to_all(self.messages, self.publish_rate);
        let (before, from) = (run.workers.counts(), findings.published);
        let collected = steps::publish(load, Some(fleet), run, findings, &publishing, from, Receivers::All)?;
        findings.latencies.push(Latency::new(name, &collected.delivery_us));
        idle::late_pings(load, run, findings, "late pings: publishing", &before)?;
        run.snapshot(moment)
    }

    fn upgrade(&self, load: &Load, fleet: &Fleet, run: &mut Run, findings: &mut Findings) -> anyhow::Result<()> {
        let control = fleet.control().context("this server takes no orders")?.clone();
        let mut probes = Probes::open(load, fleet, run, self.probes)?;
        run.pause("probing", PROBED_BEFORE)?;
        findings.latencies.push(Latency::new("probes: publish to receipt", &probes.collect()?.delivery_us));

        let before = run.workers.counts();
        let url = &fleet.publish_urls[0];
        let meanwhile = self.publish_meanwhile.map(|rate| Steady::start(url, "load", rate, findings.published));
        let mut meanwhile = meanwhile.transpose()?;
        let begun = Instant::now();
        let command = thread::spawn(move || control.upgrade());
        run.wait("upgrading", UPGRADE_MAX, |_| command.is_finished())?;
        ensure!(command.is_finished(), "the upgrade has not ended after {:.0} s", begun.elapsed().as_secs_f64());
        let took_s = begun.elapsed().as_secs_f64();
        let said = command.join().unwrap_or_else(|_| anyhow::bail!("the thread that asked for it is gone"));
        let said = said.map_err(|error| anyhow!("{error:#}\nthe server's log ends:\n{}", fleet.log_tail()))?;
        findings.fact("upgrade", format!("{took_s:.2} s; {}", said.lines().collect::<Vec<_>>().join("; ")));
        run.pause("settling", SETTLE)?;

        if let Some(steady) = &mut meanwhile {
            let published = steady.finish()?;
            let expected = u64::from(published - findings.published) * before.ready_now();
            findings.published = published;
            findings.fact("publications to all during the upgrade", steady.repeated());
            steps::await_receipts(load, run, before.marked + expected, Receivers::All)?;
            let collected = run.collect(published)?;
            steps::compare_receipts(run, findings, &before, expected, collected.missing_at_end, Receivers::All);
            let name = "publish to receipt, during the upgrade";
            findings.latencies.push(Latency::new(name, &collected.delivery_us));
        }
        let collected = probes.finish(run, findings)?;
        let pause = Latency::new("probes: publish to receipt, upgrade", &collected.delivery_us);
        findings.fact("longest pause as probes saw it", format!("{:.0} ms at most", pause.max_ms));
        findings.latencies.push(pause);
        idle::late_pings(load, run, findings, "late pings: upgrading", &before)?;
        all_stayed(run, findings, before.lost);
        drop(probes);
        fleet.follow()?;
        run.watch(fleet.pids());
        run.snapshot("after the upgrade")
    }
}

/// Clients of a stream of their own. Dropped in this order: nobody publishes to who is gone.
struct Probes {
    publishing: Steady,
    clients: Workers,
}

impl Probes {
    fn open(load: &Load, fleet: &Fleet, run: &mut Run, count: u32) -> anyhow::Result<Self> {
        let mut plan = options::plan(load, &[options::url(fleet.address, load.protocol)])?;
        plan.identifier = Some(options::public_stream(PROBED));
        (plan.first_number, plan.connections, plan.lanes) = (load.connections, count, 1);
        let mut clients = Workers::start(&plan, 1)?;
        clients.open(Pace::Window(load.window.max(1)))?;
        let all = u64::from(count);
        run.wait("probing", Duration::from_secs_f64(load.timeout), |_| clients.counts().ready_now() >= all)?;
        let counts = clients.counts();
        ensure!(counts.ready_now() == all, "probes: {} of {all}; {}", counts.ready_now(), counts.failure_words());
        let publishing = Steady::start(&fleet.publish_urls[0], PROBED, PROBES_PER_SECOND, 0)?;
        Ok(Self { publishing, clients })
    }

    fn collect(&mut self) -> anyhow::Result<Collected> {
        self.clients.collect(0)
    }

    /// Stops, and sees that each had each message once and in order.
    fn finish(&mut self, run: &mut Run, findings: &mut Findings) -> anyhow::Result<Collected> {
        let published = self.publishing.finish()?;
        run.pause("probing", SETTLE)?;
        let collected = self.clients.collect(published)?;
        let counts = self.clients.counts();
        let lost = counts.lost_between() + collected.missing_at_end;
        let (doubled, reordered, closed) = (counts.duplicated, counts.reordered, counts.lost);
        let words = format!("lost {lost}, doubled {doubled}, out of order {reordered}, {closed} closed");
        if lost + doubled + reordered + closed > 0 {
            findings.problem(format!("probes: {words}"));
        }
        let (probes, repeated) = (counts.ready_now(), self.publishing.repeated());
        findings.fact("probes", format!("{probes}, {published} publications to each, {repeated}; {words}"));
        Ok(collected)
    }
}
