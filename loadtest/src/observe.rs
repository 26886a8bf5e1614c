//! What a process and the machine cost, read from `/proc` and the process clocks: the other half of every figure.
//!
//! Nothing here measures time or talks to a server. Counters of the network are those of the whole network
//! namespace, so other traffic shows up in them; where a per-connection answer exists the engine asks for that.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use serde::Serialize;

use crate::os;

/// Memory and CPU of one process at one moment.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct ProcessCost {
    /// Pages of it that are in memory, bytes. Walked page by page (`smaps_rollup`): `VmRSS` of `status` is a sum of
    /// per-core counters that lag by up to some hundred pages.
    pub rss_bytes: u64,
    /// The same with pages shared by n processes counted 1/n.
    pub pss_bytes: u64,
    /// The part without a file behind it: heap and stacks.
    pub anonymous_bytes: u64,
    /// CPU time of all its threads, nanoseconds.
    pub cpu_ns: u64,
    /// Threads it has now.
    pub threads: u64,
    /// Descriptors it has open now.
    pub descriptors: u64,
}

impl ProcessCost {
    /// Adds what another process costs.
    pub fn add(&mut self, other: &Self) {
        self.rss_bytes += other.rss_bytes;
        self.pss_bytes += other.pss_bytes;
        self.anonymous_bytes += other.anonymous_bytes;
        self.cpu_ns += other.cpu_ns;
        self.threads += other.threads;
        self.descriptors += other.descriptors;
    }
}

/// The processes of a process group.
pub fn processes_of_group(group: u32) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // Behind the name, which may hold anything but ends at the last parenthesis: state, parent, group (proc(5)).
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if rest.split_ascii_whitespace().nth(2).and_then(|word| word.parse().ok()) == Some(group) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Reads all of [`ProcessCost`]. Takes some milliseconds for a large process, which that process does not pay.
pub fn process_cost(pid: u32) -> io::Result<ProcessCost> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(ProcessCost {
        rss_bytes: field(&rollup, "Rss:") * 1024,
        pss_bytes: field(&rollup, "Pss:") * 1024,
        anonymous_bytes: field(&rollup, "Anonymous:") * 1024,
        cpu_ns: cpu_time(pid)?.as_nanos() as u64,
        threads: field(&status, "Threads:"),
        descriptors: open_descriptors(pid)?,
    })
}

/// Descriptors that a process has open: the directory's size since Linux 6.2. Walking it instead makes the kernel keep 900
/// bytes for each of them, which would then be measured as memory of the connections.
fn open_descriptors(pid: u32) -> io::Result<u64> {
    let directory = format!("/proc/{pid}/fd");
    match fs::metadata(&directory)?.len() {
        0 => Ok(fs::read_dir(&directory)?.count() as u64),
        count => Ok(count),
    }
}

/// How often each thread of a process whose name begins with `name` has gone to sleep by itself (`status` in proc(5)), by
/// thread.
pub fn sleeps(pid: u32, name: &str) -> io::Result<BTreeMap<u32, u64>> {
    let mut sleeps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        // A thread that has ended meanwhile has no file.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let named = status.strip_prefix("Name:").is_some_and(|rest| rest.trim_start().starts_with(name));
        if let (true, Ok(thread)) = (named, entry.file_name().to_string_lossy().parse()) {
            sleeps.insert(thread, field(&status, "voluntary_ctxt_switches:"));
        }
    }
    Ok(sleeps)
}

/// CPU time of all threads of a process.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    os::process_cpu_time(pid)
}

/// Bytes of a process that are in memory, cheap enough for once a second and some pages off: for curves and the
/// progress line only. 0 when it is gone.
pub fn rss_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Counters that tell whether an accept queue overflowed. Whole namespace, since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct QueueCounters {
    /// SYNs sent again because nobody answered the first (`TcpExt: TCPSynRetrans`).
    pub syn_retransmitted: u64,
    /// Handshakes finished with no room in the accept queue (`TcpExt: ListenOverflows`).
    pub listen_overflows: u64,
    /// SYNs and last ACKs that a listener dropped for any reason (`TcpExt: ListenDrops`).
    pub listen_drops: u64,
    /// All segments sent again (`Tcp: RetransSegs`).
    pub segments_retransmitted: u64,
}

impl QueueCounters {
    /// What happened since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            syn_retransmitted: self.syn_retransmitted - before.syn_retransmitted,
            listen_overflows: self.listen_overflows - before.listen_overflows,
            listen_drops: self.listen_drops - before.listen_drops,
            segments_retransmitted: self.segments_retransmitted - before.segments_retransmitted,
        }
    }
}

/// Reads the counters of this network namespace.
pub fn queue_counters() -> io::Result<QueueCounters> {
    let netstat = fs::read_to_string("/proc/net/netstat")?;
    let snmp = fs::read_to_string("/proc/net/snmp")?;
    Ok(QueueCounters {
        syn_retransmitted: named(&netstat, "TcpExt:", "TCPSynRetrans"),
        listen_overflows: named(&netstat, "TcpExt:", "ListenOverflows"),
        listen_drops: named(&netstat, "TcpExt:", "ListenDrops"),
        segments_retransmitted: named(&snmp, "Tcp:", "RetransSegs"),
    })
}

/// What the kernel holds for sockets, bytes, where this machine lets us see it.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct KernelCost {
    /// Memory of all slab caches (`/proc/meminfo`, `Slab`): socket, inode, file and epoll structures are in it.
    pub slab_bytes: u64,
    /// Pages in socket buffers (`/proc/net/sockstat`, `TCP: … mem`).
    pub tcp_buffer_bytes: u64,
    /// TCP sockets in use (`/proc/net/sockstat`).
    pub tcp_sockets: u64,
}

/// Reads what the kernel holds for sockets, for the whole machine.
pub fn kernel_cost() -> io::Result<KernelCost> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let sockstat = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let after = |word: &str| {
        let mut words = tcp.split_ascii_whitespace();
        words.find(|w| *w == word);
        words.next().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    Ok(KernelCost {
        slab_bytes: field(&meminfo, "Slab:") * 1024,
        tcp_buffer_bytes: after("mem") * rustix::param::page_size() as u64,
        tcp_sockets: after("inuse"),
    })
}

/// Memory that could be used without swapping, bytes: of the machine, or what the control group leaves if that is less.
pub fn memory_available_bytes() -> u64 {
    let machine = field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:") * 1024;
    let group = |name: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    match (group("memory.max"), group("memory.current")) {
        (Some(most), Some(now)) => machine.min(most.saturating_sub(now)),
        _ => machine,
    }
}

/// IPv4 addresses of this machine that are not on loopback.
pub fn addresses() -> io::Result<u64> {
    // Every address has a line of its own kind in the kernel's table of local routes.
    let routes = fs::read_to_string("/proc/net/fib_trie")?;
    let mut found = std::collections::BTreeSet::new();
    let mut last = "";
    for line in routes.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address;
        } else if line.contains("/32 host LOCAL") && !last.starts_with("127.") {
            found.insert(last);
        }
    }
    Ok(found.len() as u64)
}

/// Memory that is free or holds nothing but cached files, bytes. Not `MemAvailable`: that takes half of the reclaimable
/// slabs for free, and the inodes of open sockets, which cannot be reclaimed, are among them.
pub fn free_memory_bytes() -> io::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    Ok(["MemFree:", "Active(file):", "Inactive(file):"].map(|name| field(&meminfo, name) * 1024).iter().sum())
}

/// The number after `name` at the start of a line; 0 when there is none.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// `/proc/net/netstat` and `snmp` are pairs of lines: names, then values, both behind the same prefix.
fn named(text: &str, prefix: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(prefix));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    names
        .split_ascii_whitespace()
        .zip(values.split_ascii_whitespace())
        .find(|(n, _)| *n == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_this_process_is_read() {
        let cost = process_cost(std::process::id()).unwrap();
        assert!(cost.rss_bytes > 500_000 && cost.anonymous_bytes <= cost.rss_bytes);
        assert!(cost.pss_bytes <= cost.rss_bytes);
        assert!(cost.cpu_ns > 0 && cost.threads >= 1 && cost.descriptors >= 3);
        assert!(rss_bytes(std::process::id()) > 500_000);
    }

    #[test]
    fn a_thread_that_waits_has_gone_to_sleep_once_more() {
        use std::sync::mpsc::{Sender, channel};
        let (ask, asked) = channel::<Sender<()>>();
        let waiting = move || asked.iter().for_each(|answer| answer.send(()).unwrap());
        let thread = std::thread::Builder::new().name("waiting-1".into()).spawn(waiting).unwrap();
        let wake = || {
            let (answer, answered) = channel();
            ask.send(answer).unwrap();
            answered.recv().unwrap();
            sleeps(std::process::id(), "waiting-").unwrap()
        };
        // It has its name once it has answered.
        let before = wake();
        let mut after = wake();
        while after == before {
            after = sleeps(std::process::id(), "waiting-").unwrap();
        }
        assert_eq!((before.len(), after.len()), (1, 1));
        assert!(after.values().sum::<u64>() > before.values().sum::<u64>());
        assert!(sleeps(std::process::id(), "nobody").unwrap().is_empty());
        drop(ask);
        thread.join().unwrap();
    }

    #[test]
    fn this_process_is_in_its_group() {
        let group = rustix::process::getpgrp().as_raw_nonzero().get() as u32;
        assert!(processes_of_group(group).unwrap().contains(&std::process::id()));
        assert!(processes_of_group(u32::MAX).unwrap().is_empty());
    }

    #[test]
    fn counters_are_found_by_name_whatever_the_column() {
        let text = "TcpExt: A ListenDrops B\nTcpExt: 1 22 3\nIpExt: X\nIpExt: 9\n";
        assert_eq!(named(text, "TcpExt:", "ListenDrops"), 22);
        assert_eq!(named(text, "TcpExt:", "Missing"), 0);
        queue_counters().unwrap();
        assert!(kernel_cost().unwrap().slab_bytes > 0);
        assert!(free_memory_bytes().unwrap() > 1 << 20);
    }
}
