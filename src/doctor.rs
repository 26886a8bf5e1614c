//! What a machine needs for a number of connections: each layer, what is set, what is missing, and the line that sets it.
//!
//! Every check is a function of [`Facts`] and a [`Goal`] and gives a [`Row`]. Nothing here reads the machine or changes it:
//! `os::facts` reads, `cli::doctor` writes. Settings stand once, in [`settings`], with reason and source: rows, fix lines and
//! the files of [`files`] come from there.
//!
//! A verdict is [`Verdict::No`] only where the goal cannot be held; what costs speed or waits for a bad day is
//! [`Verdict::Warn`].

mod accept;
mod backends;
mod capacity;
mod conntrack;
mod descriptors;
pub mod files;
mod fix;
mod goal;
mod memory;
mod network;
mod numbers;
mod processors;
mod row;
mod settings;
mod table;
mod tcp;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::os::facts::{Facts, Place};

pub use capacity::{Bound, Capacity};
pub use descriptors::reserve;
pub use fix::{Change, Fix};
pub use goal::{Backend, Goal};
pub use row::{Layer, Row, Source, Verdict};
pub use table::table;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this document; another one may have other keys.
    pub version: u32,
    /// Where it was looked.
    pub machine: Machine,
    /// What was asked for.
    pub goal: Goal,
    /// Whether this machine holds it as it is.
    pub met: bool,
    /// How many connections it holds, and why not more.
    pub capacity: Capacity,
    /// The same when every fix line is carried out that needs no other machine.
    pub capacity_fixed: Capacity,
    /// Every check, by layer.
    pub rows: Vec<Row>,
}

/// A machine in a few words.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// What it looks like from inside.
    pub place: Place,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory.
    pub memory_bytes: u64,
}

/// The version of [`Report`].
const VERSION: u32 = 1;

/// Checks every layer.
pub fn examine(facts: &Facts, goal: &Goal) -> Report {
    let rows = rows(facts, goal);
    let (mut fixed, mut eased) = (facts.clone(), goal.clone());
    rows.iter().flat_map(|row| &row.fixes).for_each(|fix| fix.pretend(&mut fixed, &mut eased));
    Report {
        version: VERSION,
        machine: Machine {
            kernel: facts.kernel.clone(),
            place: facts.place,
            cores: facts.cpu.usable_cores(),
            memory_bytes: facts.memory.total_bytes,
        },
        goal: goal.clone(),
        met: is_met(&rows),
        capacity: Capacity::of(&rows),
        capacity_fixed: Capacity::of(&self::rows(&fixed, &eased)),
        rows,
    }
}

/// Every fix, with the check that wants it.
pub fn fixes(report: &Report) -> impl Iterator<Item = (&Row, &Fix)> {
    report.rows.iter().flat_map(|row| row.fixes.iter().map(move |fix| (row, fix)))
}

/// Whether nothing stands against the goal.
fn is_met(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.verdict != Verdict::No)
}

/// Every check, layer by layer.
fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let layers = [
        descriptors::rows,
        accept::rows,
        memory::rows,
        conntrack::rows,
        backends::rows,
        tcp::rows,
        network::rows,
        processors::rows,
    ];
    layers.into_iter().flat_map(|rows| rows(facts, goal)).collect()
}

/// What a server has to say when it starts: whatever stands against its goal, and options of its own that do not fit.
///
/// `facts` are of the process itself, which has raised its limit.
pub fn at_boot(facts: &Facts, goal: &Goal) -> Vec<String> {
    let rows = rows(facts, goal).into_iter();
    let failing = rows.filter(|row| row.verdict == Verdict::No || row.verdict == Verdict::Warn && row.is_option);
    failing.map(|row| row.line(goal)).collect()
}

/// How many clients this process can have by its descriptors alone, and the check that binds.
pub fn descriptors_bound(facts: &Facts, goal: &Goal) -> Option<Bound> {
    Capacity::of(&descriptors::rows(facts, goal)).first
}

/// How many clients the hardware holds: memory and processors.
pub fn hardware_bound(facts: &Facts, goal: &Goal) -> Option<Bound> {
    let rows = [memory::rows(facts, goal), processors::rows(facts, goal)].concat();
    Capacity::of(&rows).first
}
