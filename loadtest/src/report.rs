//! What a run says at the end: a table for a person, JSON for a program, a page with curves for a manager.

mod bottleneck;
mod html;

use std::path::Path;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::bench::Figure;
use crate::engine::Counts;
use crate::metrics::Calls;
use crate::run::{Run, Sample, Snapshot};

/// A distribution, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// From what to what.
    pub name: String,
    /// How many were measured.
    pub count: u64,
    /// Half are faster.
    pub p50_ms: f64,
    /// Nine of ten are faster.
    pub p90_ms: f64,
    /// 95 of 100 are faster.
    pub p95_ms: f64,
    /// 99 of 100 are faster.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// Share and value, for a curve.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    /// Reads a histogram of microseconds.
    pub fn new(name: impl Into<String>, histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let shares = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];
        Self {
            name: name.into(),
            count: histogram.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: histogram.max() as f64 / 1e3,
            curve: shares.into_iter().map(|share| (share, at(share))).collect(),
        }
    }
}

/// How something was measured, when, and on what.
#[derive(Debug, Clone, Serialize)]
pub struct Provenance {
    /// As a shell takes it.
    pub command: String,
    /// Unix time of the end.
    pub ended_at: u64,
    /// Kernel release.
    pub kernel: String,
    /// Cores of this machine.
    pub cores: usize,
}

impl Provenance {
    /// This process, now.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            command: std::env::args().map(|argument| quoted(&argument)).collect::<Vec<_>>().join(" "),
            ended_at: since.map_or(0, |since| since.as_secs()),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// "Linux 6.18.44, 2 cores".
    pub fn machine(&self) -> String {
        format!("Linux {}, {} cores", self.kernel, self.cores)
    }
}

/// A finished run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The subcommand.
    pub scenario: &'static str,
    /// Where clients connected.
    pub targets: Vec<String>,
    /// Where and how.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Processes the clients lived in.
    pub processes: usize,
    /// Facts of this scenario.
    pub facts: Vec<(String, String)>,
    /// Distributions.
    pub latencies: Vec<Latency>,
    /// All counters.
    pub counts: Counts,
    /// Failures by kind, in words.
    pub failures: String,
    /// Named moments.
    pub snapshots: Vec<Snapshot>,
    /// Once a second.
    pub samples: Vec<Sample>,
    /// Longest turn of a client event loop, milliseconds.
    pub client_lag_ms_max: f64,
    /// Why a metrics page of the server could not be read, the last time that happened.
    pub metrics_unread: Option<String>,
    /// Calls to the server's backend while they were watched, with the time in seconds.
    pub backend_calls: Vec<(f64, Calls)>,
    /// Which side was busier.
    pub bottleneck: String,
    /// The server beside the yardstick, where both were measured.
    pub figures: Vec<Figure>,
    /// The same against the yardstick.
    pub yardstick: Option<Box<Report>>,
    /// Why the run counts as failed.
    pub problems: Vec<String>,
}

impl Report {
    /// Draws up what a run saw.
    pub fn new(
        scenario: &'static str,
        targets: &[String],
        run: &Run,
        facts: Vec<(String, String)>,
        latencies: Vec<Latency>,
        mut problems: Vec<String>,
    ) -> Self {
        if run.interrupted() {
            problems.push("interrupted".to_owned());
        }
        let counts = run.workers.counts();
        let provenance = Provenance::now();
        let client_lag_ms_max = run.lag_us_max as f64 / 1e3;
        Self {
            scenario,
            targets: targets.to_vec(),
            bottleneck: bottleneck::verdict(&run.samples, provenance.cores, client_lag_ms_max),
            provenance,
            processes: run.workers.processes(),
            facts,
            latencies,
            failures: counts.failure_words(),
            counts,
            snapshots: run.snapshots.clone(),
            samples: run.samples.clone(),
            client_lag_ms_max,
            metrics_unread: run.unread.clone(),
            backend_calls: run.calls.clone(),
            figures: Vec::new(),
            yardstick: None,
            problems,
        }
    }

    /// The table.
    pub fn text(&self) -> String {
        let Provenance { command, .. } = &self.provenance;
        let mut rows = vec![("command".to_owned(), command.clone()), ("machine".to_owned(), self.provenance.machine())];
        rows.append(&mut self.rows());
        let table = |heading: String, rows: &[(String, String)]| {
            rows.iter().fold(heading, |out, (name, value)| out + &format!("  {name:<48} {value}\n"))
        };
        let mut text = table(format!("{} on {}\n", self.scenario, self.targets.join(", ")), &rows);
        if let Some(yardstick) = &self.yardstick {
            text += &table("\nthe same on the yardstick\n".to_owned(), &yardstick.rows());
        }
        text
    }

    /// The table's rows: what it is, how much it was.
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: &str| rows.push((name.to_owned(), value.to_owned()));
        for (name, value) in &self.facts {
            row(name, value);
        }
        row("failures", &self.failures);
        for latency in self.latencies.iter().filter(|latency| latency.count > 0) {
            let Latency { p50_ms, p90_ms, p95_ms, p99_ms, max_ms, .. } = latency;
            let words =
                format!("p50 {p50_ms:.2}  p90 {p90_ms:.2}  p95 {p95_ms:.2}  p99 {p99_ms:.2}  max {max_ms:.2} ms");
            row(&latency.name, &words);
        }
        for snapshot in &self.snapshots {
            row(&format!("memory: {}", snapshot.moment), &self.memory_words(snapshot));
            if let Some(metrics) = &snapshot.metrics {
                row(&format!("the server says: {}", snapshot.moment), &metrics.words());
            }
        }
        let mut told = self.snapshots.iter().filter_map(|snapshot| snapshot.metrics.as_ref());
        if let (Some(first), Some(last)) = (told.next(), told.next_back()) {
            if let (Some(before), Some(calls)) = (&first.calls, &last.calls) {
                row("calls to the backend, whole run", &calls.words_since(before));
            }
            let closed = last.closed_since(first);
            if !closed.is_empty() {
                row("connections that the server saw end", &closed);
            }
        }
        if let Some(error) = &self.metrics_unread {
            row("metrics page that could not be read", error);
        }
        row("client processes / longest turn", &format!("{} / {:.1} ms", self.processes, self.client_lag_ms_max));
        row("CPU", &self.bottleneck);
        for figure in &self.figures {
            row(&format!("beside the yardstick: {}", figure.name), &figure.words());
        }
        for problem in &self.problems {
            row("FAILED", problem);
        }
        rows
    }

    /// What a snapshot says of memory, in all and for each connection since the first snapshot.
    fn memory_words(&self, snapshot: &Snapshot) -> String {
        let mut words = format!("{} ready", snapshot.ready);
        if let Some(server) = &snapshot.server {
            let mib = |bytes: u64| bytes as f64 / 1048576.0;
            let (rss, pss) = (mib(server.rss_bytes), mib(server.pss_bytes));
            let (threads, descriptors) = (server.threads, server.descriptors);
            words += &format!("; server RSS {rss:.1} PSS {pss:.1} MiB, {threads} threads, {descriptors} descriptors");
        }
        let Some(first) = self.snapshots.first().filter(|_| snapshot.ready > 0) else { return words };
        let each = |now: u64, then: u64| (now as f64 - then as f64) / snapshot.ready as f64;
        if let (Some(now), Some(then)) = (snapshot.server_rss_bytes(), first.server_rss_bytes()) {
            words += &format!("; {:.0} B of user memory each", each(now, then));
        }
        let kernel = each(snapshot.kernel.slab_bytes, first.kernel.slab_bytes)
            + each(snapshot.kernel.tcp_buffer_bytes, first.kernel.tcp_buffer_bytes);
        // It is the whole machine's: what others give back hides what a small run takes.
        match kernel >= 0.0 {
            true => words += &format!("; kernel, both ends, {kernel:.0} B each"),
            false => words.push_str("; kernel: hidden by what others on this machine gave back"),
        }
        words + &format!("; this tool {:.0} B each", each(snapshot.client_rss_bytes, first.client_rss_bytes))
    }

    /// Writes the files asked for.
    pub fn write(&self, json: Option<&Path>, html: Option<&Path>) -> anyhow::Result<()> {
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(self)? + "\n";
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = html {
            std::fs::write(path, html::page(self)).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,%+@".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("--n=1"), "--n=1");
        assert_eq!(quoted(r#"{"a":1}"#), r#"'{"a":1}'"#);
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
