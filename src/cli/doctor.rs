//! `cableway doctor`: whether this machine holds so many connections, and what to set if not.
//!
//! It reads the machine, lets `crate::doctor` judge, and prints. Only with `--write` and `--apply` does it change
//! anything: files below one directory, or the settings that it has listed.

mod apply;
mod arguments;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::doctor::{self, Goal, Report};
use crate::os::facts::{self, Facts};

use arguments::{Asked, USAGE, Wanted};

/// The command.
pub(super) const COMMAND: &str = "doctor";

/// The goal is not met.
const NOT_MET: u8 = 1;

/// It was called wrongly, or could not do what it was called for.
const WRONG_CALL: u8 = 2;

/// Runs it with the words behind the command.
pub(super) fn run(words: impl IntoIterator<Item = String>, env: &BTreeMap<String, String>) -> ExitCode {
    let asked = match arguments::read(words, env) {
        Ok(Wanted::Help) => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Wanted::Look(asked)) => asked,
        Err(why) => {
            super::complain(&format!("{}\n\n{}", why.trim_end(), USAGE.trim_end()));
            return ExitCode::from(WRONG_CALL);
        }
    };
    carry_out(&asked).unwrap_or_else(|why| {
        super::complain(&why);
        ExitCode::from(WRONG_CALL)
    })
}

/// Somebody who closed the pipe has read enough.
fn say(text: &str) {
    let _ = write!(io::stdout(), "{text}");
}

fn carry_out(asked: &Asked) -> Result<ExitCode, String> {
    let mut facts = facts_of(asked)?;
    let Some(goal) = &asked.goal else {
        say(&format!("{}\n", serde_json::to_string_pretty(&facts).map_err(|error| error.to_string())?));
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(directory) = &asked.write {
        write_files(directory, &facts, goal)?;
    }
    let mut report = doctor::examine(&facts, goal);
    if asked.apply {
        let text = apply::apply(&report);
        // With --json standard output is one document.
        if asked.json {
            super::complain(text.trim_end())
        } else {
            say(&format!("{text}\n"))
        }
        facts = facts_of(asked)?;
        report = doctor::examine(&facts, goal);
    }
    print(&report, asked)?;
    Ok(if report.met { ExitCode::SUCCESS } else { ExitCode::from(NOT_MET) })
}

fn print(report: &Report, asked: &Asked) -> Result<(), String> {
    let text = match asked.json {
        true => serde_json::to_string_pretty(report).map_err(|error| error.to_string())? + "\n",
        false => doctor::table(report, asked.explain),
    };
    say(&text);
    Ok(())
}

/// Of this machine, or as they were recorded.
fn facts_of(asked: &Asked) -> Result<Facts, String> {
    if let Some(file) = &asked.from {
        let text = fs::read_to_string(file).map_err(|error| format!("--from {}: {error}", file.display()))?;
        return serde_json::from_str(&text)
            .map_err(|error| format!("--from {}: not what `doctor --facts` prints: {error}", file.display()));
    }
    let facts = Facts::read(&facts::Wanted { interface: asked.interface.clone(), only_own: false });
    match &asked.interface {
        Some(name) if facts.interface.is_none() => {
            Err(format!("--interface {name}: there is no such network card; `ls /sys/class/net` lists them"))
        }
        _ => Ok(facts),
    }
}

/// Words by which a file is known as one of ours.
const WRITTEN_BY: &str = "Written by `cableway doctor`";

/// Writes the files, and says which. Nothing is written when one of them is somebody else's.
fn write_files(directory: &Path, facts: &Facts, goal: &Goal) -> Result<(), String> {
    let files = doctor::files::files(facts, goal);
    for file in &files {
        let path = directory.join(file.path);
        // Line breaks stand wherever the line was full.
        let is_ours = |text: &str| text.replace("\n# ", " ").contains(WRITTEN_BY);
        if fs::read_to_string(&path).is_ok_and(|text| !is_ours(&text)) {
            return Err(format!("--write: {} is there and not from here; move it away first", path.display()));
        }
    }
    for file in &files {
        let path = directory.join(file.path);
        let failed = |error: io::Error| format!("--write: cannot write {}: {error}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(directory)).map_err(failed)?;
        fs::write(&path, &file.text).map_err(failed)?;
        super::complain(&format!("written: {}", path.display()));
    }
    Ok(())
}
