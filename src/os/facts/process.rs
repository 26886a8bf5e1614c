//! Limits of a process, and of the service's unit.

use serde::{Deserialize, Serialize};

use super::files::Files;

/// A process's limit of open files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// Its number; 0 for the one that looks.
    pub pid: u32,
    /// The soft limit, which is in force.
    pub soft: u64,
    /// The hard limit, which the soft one may be raised to.
    pub hard: u64,
    /// Descriptors that it has open, where the kernel tells cheaply (Linux 6.2).
    pub open: Option<u64>,
    /// Bytes of memory that it uses.
    pub resident_bytes: u64,
    /// Whether it may raise its hard limit (`CAP_SYS_RESOURCE`).
    pub may_raise: bool,
}

/// The service `cableway.service`, from its file and drop-ins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unit {
    /// `LimitNOFILE=`, the hard one; `None`: not given, systemd's default holds.
    pub nofile: Option<u64>,
}

/// Linux' capability to raise hard limits (linux/capability.h).
const CAP_SYS_RESOURCE: u32 = 24;

/// Where systemd looks for units, what counts more last (systemd.unit(5)).
const UNIT_DIRECTORIES: [&str; 5] = [
    "lib/systemd/system",
    "usr/lib/systemd/system",
    "usr/local/lib/systemd/system",
    "run/systemd/system",
    "etc/systemd/system",
];

pub(super) fn read(files: &Files, process: &str) -> Option<Process> {
    let limits = files.text(&format!("proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_whitespace().map(|number| match number {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    let status = files.text(&format!("proc/{process}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let rights = field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    let resident = field("VmRSS:").and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
    Some(Process {
        pid: process.parse().unwrap_or(0),
        soft: numbers.next()??,
        hard: numbers.next()??,
        open: files.directory_size(&format!("proc/{process}/fd")).filter(|count| *count > 0),
        resident_bytes: resident.unwrap_or(0) * 1024,
        may_raise: rights >> CAP_SYS_RESOURCE & 1 == 1,
    })
}

/// The server that was started first, if any runs.
pub(super) fn server(files: &Files) -> Option<Process> {
    let own = std::process::id();
    let mut found: Vec<u32> = files.names("proc").iter().filter_map(|name| name.parse().ok()).collect();
    found.retain(|pid| *pid != own && serves(files, *pid));
    read(files, &found.into_iter().min()?.to_string())
}

/// Whether a process is a server of ours: the program with `serve`, with options only, or with nothing behind it.
fn serves(files: &Files, pid: u32) -> bool {
    files.text(&format!("proc/{pid}/comm")).as_deref() == Some("cableway")
        && files.text(&format!("proc/{pid}/cmdline")).is_some_and(|words| {
            let first = words.split('\0').nth(1).unwrap_or_default();
            first.is_empty() || first == "serve" || first.starts_with('-')
        })
}

pub(super) fn unit(files: &Files) -> Option<Unit> {
    let unit = UNIT_DIRECTORIES.iter().rev().find_map(|dir| files.text(&format!("{dir}/cableway.service")))?;
    let drop_ins = UNIT_DIRECTORIES.iter().flat_map(|dir| {
        let dir = format!("{dir}/cableway.service.d");
        let names = files.names(&dir).into_iter().filter(|name| name.ends_with(".conf"));
        names.filter_map(move |name| Some((name.clone(), files.text(&format!("{dir}/{name}"))?)))
    });
    // By name over all directories; the same name in a later directory takes the place of the earlier.
    let drop_ins: std::collections::BTreeMap<_, _> = drop_ins.collect();
    let texts = std::iter::once(unit).chain(drop_ins.into_values());
    Some(Unit { nofile: texts.filter_map(|text| limit(&text)).next_back() })
}

/// The last `LimitNOFILE=`; of `soft:hard` the second.
fn limit(unit: &str) -> Option<u64> {
    let value = unit.lines().filter_map(|line| line.trim().strip_prefix("LimitNOFILE=")).next_back()?;
    match value.rsplit(':').next()?.trim() {
        "infinity" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}
