//! The report as text of 100 columns.

use std::fmt::Write;

use super::Report;
use super::capacity::{Bound, Capacity};
use super::files::wrap;
use super::fix::Fix;
use super::goal::Backend;
use super::numbers::{bytes, grouped};
use super::row::{Row, Source, Verdict};
use crate::os::facts::Place;

/// What most terminals have at least beside each other.
const WIDTH: usize = 100;

const NAME_WIDTH: usize = 36;
const SET_WIDTH: usize = 29;

/// Where what explains a row begins.
const INDENT: &str = "        ";

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::No => "NO",
            Verdict::Unknown => "?",
        }
    }
}

/// The whole report. Rows that are passed have a reason only when everything is to be explained.
pub fn table(report: &Report, explain: bool) -> String {
    let mut text = head(report);
    let mut layer = None;
    for row in &report.rows {
        if layer != Some(row.layer) {
            layer = Some(row.layer);
            let _ = writeln!(text, "\n{}", row.layer.title());
        }
        text += &row_text(row, explain);
    }
    text.push('\n');
    text += &end(report);
    let named = |source: &&Source| text.contains(source.tag());
    let legend: Vec<_> = Source::ALL.iter().filter(named).collect();
    if !legend.is_empty() {
        text += "\nSources:\n";
        for source in legend {
            let _ = writeln!(text, "  {:<11} {}", source.tag(), source.what());
        }
    }
    text
}

fn head(report: &Report) -> String {
    let goal = &report.goal;
    let app = match goal.backend {
        Backend::Grpc => "calls over gRPC",
        Backend::Http => "calls over HTTP",
        Backend::Pass => "frames passed to the app",
    };
    let place = match report.machine.place {
        Place::Machine => "",
        Place::Container => ", a container",
        Place::Wsl => ", WSL",
    };
    let machine = &report.machine;
    let (cores, memory) = (machine.cores, bytes(machine.memory_bytes));
    format!(
        "Goal: {} connections on port {}, {app}.\nMachine: Linux {}{place}, {cores} core{}, {memory}.\n\n  {:<5} {:<NAME_WIDTH$} \
         {:<SET_WIDTH$} needed\n",
        grouped(goal.connections),
        goal.port,
        machine.kernel,
        if cores == 1 { "" } else { "s" },
        "",
        "check",
        "set",
    )
}

fn row_text(row: &Row, explain: bool) -> String {
    let (word, set, needs) = (row.verdict.word(), &row.set, &row.needs);
    let line = format!("  {word:<5} {:<NAME_WIDTH$} {set:<SET_WIDTH$} {needs}", row.name);
    let mut text = format!("{}\n", line.trim_end());
    if row.verdict == Verdict::Ok && !explain {
        return text;
    }
    let missing = row.sources.iter().map(|source| source.tag()).filter(|tag| !row.why.contains(tag));
    let why = std::iter::once(row.why.as_str()).chain(missing).collect::<Vec<_>>().join(" ");
    for line in wrap(&why, WIDTH - INDENT.len()) {
        let _ = writeln!(text, "{INDENT}{line}");
    }
    for line in row.fixes.iter().flat_map(Fix::lines) {
        let _ = writeln!(text, "{INDENT}-> {line}");
    }
    text
}

fn end(report: &Report) -> String {
    let sentences = [
        holds("This machine holds", &report.capacity),
        holds("With every fix line above it holds", &report.capacity_fixed),
        verdict(report),
    ];
    sentences.iter().flat_map(|sentence| wrap(sentence, WIDTH)).fold(String::new(), |text, line| text + &line + "\n")
}

fn holds(begin: &str, capacity: &Capacity) -> String {
    let Some(Bound { connections, by }) = &capacity.first else { return "No bound could be read.".to_owned() };
    let next = capacity.next.as_ref().map(|next| format!("; next, at {}, {}", grouped(next.connections), next.by));
    format!("{begin} {} connections: {by} binds first{}.", grouped(*connections), next.unwrap_or_default())
}

fn verdict(report: &Report) -> String {
    let count = |verdict| report.rows.iter().filter(|row| row.verdict == verdict).count();
    let advice = match count(Verdict::Warn) {
        0 => String::new(),
        1 => " One warning.".to_owned(),
        many => format!(" {many} warnings."),
    };
    let stands = match count(Verdict::No) {
        0 => "The goal is met.".to_owned(),
        1 => "The goal is NOT met: one check stands against it.".to_owned(),
        many => format!("The goal is NOT met: {many} checks stand against it."),
    };
    let hardware = super::fixes(report).any(|(row, fix)| row.verdict == Verdict::No && fix.is_hardware());
    let hardware = if hardware { " Not all of them can be set right on this machine." } else { "" };
    format!("{stands}{hardware}{advice}")
}
