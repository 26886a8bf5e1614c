//! Cableway and its peers under the same load, one after the other, in one run on one machine: one table.
//!
//! A peer is a script (`versus/README.md` is the contract). Each is started fresh, warmed up, and taken through the same
//! steps by this process; what it costs is read from its processes. A peer that cannot be installed or started keeps its
//! row, with the reason.

mod peer;
mod table;
mod trial;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;

use crate::report::Provenance;
use crate::workers;
use peer::{Description, Peer};
pub use trial::Figures;

/// How the comparison is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The peers' scripts.
    #[arg(long, value_name = "DIR", default_value = "loadtest/versus/peers")]
    scripts: PathBuf,
    /// Only these, comma separated, in this order [default: all, by name].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    peers: Vec<String>,
    /// Where peers are installed; lasts between runs [default: versus in the directory for temporary files].
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// The Cableway binary.
    #[arg(long, value_name = "PATH")]
    server: PathBuf,
    /// An AnyCable-Go binary, which is not installed by itself.
    #[arg(long, value_name = "PATH")]
    anycable_go: Option<PathBuf>,
    /// A Centrifugo binary, which is not installed by itself.
    #[arg(long, value_name = "PATH")]
    centrifugo: Option<PathBuf>,
    /// Clients of each peer.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 15_000)]
    connections: u32,
    /// Accept queue of each, where it can be told.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    backlog: u32,
    /// Publications, one a second.
    #[arg(long, value_name = "N", default_value_t = 15)]
    messages: u32,
    /// How long idle connections are watched.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    idle: f64,
    /// Peace before memory is read.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    settle: f64,
    /// A line for the table: what was tested, where.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table to this file as Markdown.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

/// One peer's row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The script's name.
    pub name: String,
    /// What it said of itself, when it started.
    pub description: Option<Description>,
    /// What was measured.
    pub figures: Option<Figures>,
    /// Why there is nothing, or not everything.
    pub trouble: Option<String>,
}

/// The whole run.
#[derive(Debug, Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    provenance: Provenance,
    note: Option<&'a str>,
    connections: u32,
    rows: &'a [Row],
}

/// Runs the peers and prints the table. True when every peer that was asked for has all its figures.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let descriptors = workers::raise_descriptor_limit();
    ensure!(
        workers::processes_needed(options.connections, descriptors) == 1,
        "{} connections are more than this process may open ({descriptors}); one process drives this comparison",
        options.connections
    );
    let home = options.home.clone().unwrap_or_else(|| std::env::temp_dir().join("cableway-versus"));
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let names = match options.peers.is_empty() {
        true => peer::all(&options.scripts)?,
        false => options.peers.clone(),
    };
    let mut rows = Vec::new();
    for name in names {
        eprintln!("{name}: installing");
        let row = row(&name, Peer::new(&name, options, &home)?, options);
        match &row.trouble {
            Some(trouble) => eprintln!("{name}: {trouble}"),
            None => eprintln!("{name}: done"),
        }
        rows.push(row);
        // After each, so that an interrupted run leaves what it has.
        write(options, &rows)?;
    }
    println!("{}", table::markdown(&rows));
    Ok(rows.iter().all(|row| row.trouble.is_none()))
}

fn row(name: &str, peer: Peer, options: &Options) -> Row {
    let mut row = Row { name: name.to_owned(), description: None, figures: None, trouble: None };
    let outcome = peer.install().context("not installed").and_then(|()| {
        eprintln!("{name}: running");
        let running = peer.start().context("not started")?;
        row.description = Some(running.description.clone());
        let (figures, trouble) = trial::run(&running, options);
        row.figures = Some(figures);
        trouble.map_or(Ok(()), Err)
    });
    row.trouble = outcome.err().map(|error| format!("{error:#}"));
    row
}

fn write(options: &Options, rows: &[Row]) -> anyhow::Result<()> {
    let record =
        Record { provenance: Provenance::now(), note: options.note.as_deref(), connections: options.connections, rows };
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&record)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.table {
        std::fs::write(path, table::page(&record)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
