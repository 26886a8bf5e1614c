//! What `dead-peers` leaves behind when it is interrupted: nothing. As root, with `ip` and `nft`, and a built `cableway`.

#![allow(clippy::disallowed_methods, reason = "it waits for a process of its own, which has its own clock")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(60);

fn namespaces(run: &Child) -> Vec<String> {
    let end = format!("-{}", run.id());
    let names = fs::read_dir("/var/run/netns").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("cableway-") && name.ends_with(&end)).collect()
}

/// Processes that `run` has started, and theirs.
fn descendants(of: u32) -> Vec<u32> {
    let children = fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let children = children.flat_map(|task| {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root, iproute2, nftables and a built cableway"]
fn an_interrupted_run_leaves_no_namespace_and_no_process() {
    let loadtest = Path::new(env!("CARGO_BIN_EXE_cableway-loadtest"));
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = Command::new(loadtest);
        command.args(["dead-peers", "--peers", "20", "--only", "process stopped", "--server"]);
        command.arg(loadtest.with_file_name("cableway")).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut run = command.spawn().expect("it starts");
        // Two servers, with healthy clients and victims each.
        let mut started = Vec::new();
        until("everybody is there", || {
            started = descendants(run.id());
            started.len() == 6 || run.try_wait().expect("a status").is_some()
        });
        assert_eq!(namespaces(&run).len(), 3, "{signal:?}");
        let pid = Pid::from_raw(run.id().try_into().expect("a process id")).expect("a process id");
        kill_process(pid, signal).expect("it is there");
        until("it ends", || run.try_wait().expect("a status").is_some());
        assert!(!run.wait().expect("a status").success(), "{signal:?}");
        assert_eq!(namespaces(&run), [""; 0], "{signal:?}");
        let left: Vec<_> = started.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        assert!(left.is_empty(), "{signal:?}: {left:?} of {started:?}");
    }
}
