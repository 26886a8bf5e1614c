//! `--apply`: sets what can be set right away, and shows what was and what is.

use std::fmt::Write;
use std::fs;
use std::io;
use std::process::{Command, Stdio};

use crate::doctor::{self, Change, Report};
use crate::os::facts::set_rings;

/// Carries out the fixes of a report and tells of each. Those that no program can carry out for its user are named.
pub(super) fn apply(report: &Report) -> String {
    let (mut text, mut left) = (String::new(), String::new());
    let mut failed = false;
    let mut done = Vec::new();
    for (row, fix) in doctor::fixes(report) {
        let changes = fix.changes();
        if changes.is_empty() {
            for line in fix.lines() {
                let _ = writeln!(left, "  {}: {line}", row.name);
            }
        }
        for change in changes {
            // Two checks may want the same.
            if done.contains(&change) {
                continue;
            }
            let before = value(&change);
            let result = carry_out(&change);
            let what = what(&change);
            let _ = match &result {
                Ok(()) => writeln!(text, "  {what}: {before} -> {}", value(&change)),
                Err(error) => writeln!(text, "  {what}: {before}, cannot be set: {error}"),
            };
            failed |= matches!(&result, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
            done.push(change);
        }
    }
    let mut all =
        if text.is_empty() { "Nothing to set.\n".to_owned() } else { format!("Set now, until the next boot:\n{text}") };
    if failed {
        all += "Only root of the machine may set some of these.\n";
    }
    if !left.is_empty() {
        let _ = write!(all, "Left to you:\n{left}");
    }
    all
}

fn what(change: &Change) -> String {
    match change {
        Change::Write { path, .. } => path.clone(),
        Change::Load(module) => format!("module {module}"),
        Change::Rings { interface, .. } => format!("rings of {interface}"),
    }
}

/// What is set, as the kernel tells it.
fn value(change: &Change) -> String {
    match change {
        Change::Write { path, .. } => match fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => "empty".to_owned(),
            Ok(text) => text.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
            Err(_) => "not there".to_owned(),
        },
        Change::Load(module) => {
            let is_there = std::path::Path::new("/sys/module").join(module).exists();
            if is_there { "loaded" } else { "not loaded" }.to_owned()
        }
        Change::Rings { interface, .. } => match crate::os::facts::rings(interface) {
            Ok(rings) => format!("rx {} tx {}", rings.rx.now, rings.tx.now),
            Err(_) => "not told".to_owned(),
        },
    }
}

fn carry_out(change: &Change) -> io::Result<()> {
    match change {
        // Opened without O_CREAT: a setting that there is not is not made.
        Change::Write { path, value } => {
            io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, value.as_bytes())
        }
        Change::Load(module) => {
            let output = Command::new("modprobe").arg(module).stdin(Stdio::null()).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.success() { Ok(()) } else { Err(io::Error::other(said.trim().to_owned())) }
        }
        Change::Rings { interface, rx, tx } => set_rings(interface, *rx, *tx),
    }
}
