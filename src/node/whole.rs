//! A server of several processes, as one of them is asked about it: what all say, added up.
//!
//! In a server of one process everything here is what that one says.

use std::sync::Arc;

use crate::http::Check;
use crate::telemetry::{Collect, Families, Text, Total};

use super::look::{self, Query};
use super::metrics::NodeMetrics;
use super::observe::Observer;
use super::processes::{Counted, How, NamedCheck, Question, Said};

/// What becomes of a metric of one process.
fn total(name: &str, labels: &str) -> Total {
    match name {
        // Of the machine, or of the configuration.
        "listen_overflows_total" | "listen_drops_total" | "detection_bound_seconds" => Total::Shared,
        "link_up" | "link_reconnects_total" | "upgrade_pause_seconds" => Total::Each,
        // Processes number their shards and listeners from 0 on.
        _ if labels.contains("shard=\"") || labels.contains("listener=\"") => Total::Each,
        _ => Total::Sum,
    }
}

impl Observer {
    /// All metrics of the server.
    pub(super) async fn metrics_text(self: Arc<Self>, form: Text) -> String {
        let config = self.config();
        let Some(family) = &self.parts.family else {
            let mut families = self.families();
            of_one_connection(&self.counted_beside_parts(), &mut families);
            return families.to_text(&config.metrics.prefix, form);
        };
        let mut families = Families::new(config.metrics.tags.0.clone());
        let mut sum = Counted::default();
        for said in family.ask(Question::Metrics).await {
            let Some(counted) = said.read::<Counted>() else { continue };
            sum.websockets += counted.websockets;
            sum.grown_bytes += counted.grown_bytes;
            sum.kernel_grown_bytes = sum.kernel_grown_bytes.max(counted.kernel_grown_bytes);
            let is_parent = said.process == "parent";
            let of_one = |name: &str, labels: &str| if is_parent { Total::Sum } else { total(name, labels) };
            families.add_parts(counted.parts, &said.process, of_one);
        }
        of_one_connection(&sum, &mut families);
        families.to_text(&config.metrics.prefix, form)
    }

    /// What must be true for the server to get new clients.
    pub(super) async fn checks(self: Arc<Self>) -> Vec<Check> {
        let mut checks = self.own_checks();
        let Some(family) = &self.parts.family else { return checks };
        let said = family.ask(Question::Checks).await;
        for said in &said {
            for NamedCheck { name, ok } in said.read_now::<Vec<NamedCheck>>().unwrap_or_default() {
                let Some(check) = checks.iter_mut().find(|check| check.name == name) else { continue };
                // A client lands on a process that listens and has room if there is any.
                match check.name {
                    "not_draining" | "room_for_clients" => check.ok |= ok,
                    _ => check.ok &= ok,
                }
            }
        }
        let all_serve = !said.is_empty() && said.iter().all(|said| said.how == How::Now);
        checks.push(Check { name: "all_processes", ok: all_serve, needed: false });
        checks
    }

    /// Why the server is not well, although this process answers.
    pub(super) async fn sickness(self: Arc<Self>) -> Option<String> {
        let family = self.parts.family.as_ref()?;
        let said = family.ask(Question::Alive).await;
        if said.is_empty() {
            return Some("The parent process does not answer.".to_owned());
        }
        let silent = silent(&said, How::Silent);
        (!silent.is_empty()).then(|| format!("No answer from process {}.", silent.join(", ")))
    }

    /// `/debug/closes`.
    pub(super) async fn closes(self: Arc<Self>, query: String) -> look::Answer {
        let asked = Query::parse(&query);
        if let Some(refusal) = look::unknown_cause(&asked) {
            return refusal;
        }
        let Some(family) = &self.parts.family else {
            return look::answer_closes(
                &asked,
                look::closes_here(&self.parts.inboxes, &self.parts.inherited, &asked).await,
            );
        };
        look::answer_closes(&asked, rows(&family.ask(Question::Closes(query)).await))
    }

    /// `/debug/connections`.
    pub(super) async fn connections(self: Arc<Self>, query: String) -> look::Answer {
        let asked = Query::parse(&query);
        if let Some(refusal) = look::no_question(&asked) {
            return refusal;
        }
        let Some(family) = &self.parts.family else {
            return look::answer_connections(&asked, look::connections_here(&self.parts.inboxes, &asked).await);
        };
        look::answer_connections(&asked, rows(&family.ask(Question::Connections(query)).await))
    }

    /// The checks of this process for another one.
    pub(super) fn named_checks(&self) -> Vec<NamedCheck> {
        let named = |check: Check| NamedCheck { name: check.name.to_owned(), ok: check.ok };
        self.own_checks().into_iter().map(named).collect()
    }
}

/// Rows of all processes, each with the number of its process.
fn rows(said: &[Said]) -> look::Rows {
    let mut all = look::Rows { silent_processes: Some(silent(said, How::Silent)), ..look::Rows::default() };
    for said in said {
        let Some(look::Rows { rows, silent_shards, .. }) = said.read_now() else { continue };
        all.silent_shards += silent_shards;
        all.rows.extend(rows.into_iter().map(|mut row| {
            row["process"] = said.process.clone().into();
            row
        }));
    }
    all
}

/// Who has answered like this.
fn silent(said: &[Said], how: How) -> Vec<String> {
    said.iter().filter(|said| said.how == how).map(|said| said.process.clone()).collect()
}

/// Adds what is told of one connection in the mean.
fn of_one_connection(sum: &Counted, families: &mut Families) {
    let node = NodeMetrics::default();
    let mean = |bytes: u64| i64::try_from(bytes.checked_div(sum.websockets).unwrap_or(0)).unwrap_or(i64::MAX);
    node.user_bytes_per_connection.set(mean(sum.grown_bytes));
    node.kernel_bytes_per_connection.set(mean(sum.kernel_grown_bytes));
    // The others of these metrics are added to, with nothing.
    node.collect(&[], families);
}
