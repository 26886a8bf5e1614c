//! What this machine can drive, before anybody waits for a ramp to fail: descriptors, ports, queues, memory, and the
//! commands that raise each.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::crew;

/// Memory that a pair of loopback sockets costs in the kernel, both ends with their file, inode and epoll entries.
/// Measured with a million of them on Linux 6.18.
const PAIR_BYTES: u64 = 7_500;

/// One thing that can be too small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// What it is now and what that means.
    pub words: String,
    /// The command that raises it, when it is too small.
    pub remedy: Option<String>,
}

/// Looks at this machine for that many connections to one address and port.
pub fn findings(connections: u64) -> Vec<Finding> {
    let number = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        text.split_ascii_whitespace().next_back()?.parse::<u64>().ok()
    };
    let mut findings = Vec::new();
    let mut add = |name, words: String, short: bool, remedy: String| {
        findings.push(Finding { name, words, remedy: short.then_some(remedy) });
    };

    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(1 << 30);
    let processes = crew::processes_needed(u32::try_from(connections).unwrap_or(u32::MAX), hard);
    add(
        "descriptors a process",
        format!("{hard}: {processes} client process(es); the server needs as many or a higher limit"),
        processes > 1,
        format!("ulimit -Hn {0}; or LimitNOFILE={0} in a systemd unit (also fs.nr_open)", connections + 1_000),
    );
    if let Some(all) = number("/proc/sys/fs/file-max") {
        let needed = connections * 2 + 10_000;
        add("descriptors of the machine", all.to_string(), all < needed, format!("sysctl -w fs.file-max={needed}"));
    }
    if let Ok(range) = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") {
        let mut ends = range.split_ascii_whitespace().filter_map(|end| end.parse::<u64>().ok());
        if let (Some(low), Some(high)) = (ends.next(), ends.next()) {
            let ports = high.saturating_sub(low) + 1;
            let addresses = connections.div_ceil(ports);
            add(
                "ports an address",
                format!(
                    "{ports}: at least {addresses} source address(es); on loopback they are taken from 127.0.0.0/8"
                ),
                ports < 25_000,
                "sysctl -w net.ipv4.ip_local_port_range='10240 65535'".to_owned(),
            );
        }
    }
    if let Some(queue) = number("/proc/sys/net/core/somaxconn") {
        add("longest accept queue", queue.to_string(), queue < 4096, "sysctl -w net.core.somaxconn=65535".to_owned());
    }
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024;
    let needed = connections * PAIR_BYTES;
    add(
        "memory",
        format!(
            "{} MiB available; both ends of {connections} connections take {} MiB of the kernel's",
            available >> 20,
            needed >> 20
        ),
        available < needed + needed / 4,
        format!("fewer connections: about {}", available * 4 / 5 / PAIR_BYTES),
    );
    if let Some(pages) = number("/proc/sys/net/ipv4/tcp_mem") {
        // Idle sockets hold no buffer pages; the limit matters once all of them get a message.
        let bytes = pages * rustix::param::page_size() as u64;
        add(
            "memory of TCP buffers",
            format!("{} MiB at most", bytes >> 20),
            bytes < connections * 1024,
            "sysctl -w net.ipv4.tcp_mem='786432 1048576 1572864'".to_owned(),
        );
    }
    match number("/proc/sys/net/netfilter/nf_conntrack_max") {
        Some(tracked) => add(
            "tracked connections",
            tracked.to_string(),
            tracked < connections * 2,
            format!("sysctl -w net.netfilter.nf_conntrack_max={}; or no tracking for the port", connections * 2),
        ),
        None => add("tracked connections", "conntrack is not loaded".to_owned(), false, String::new()),
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handful_of_connections_is_always_possible_and_a_billion_never() {
        let short = |connections| {
            findings(connections)
                .into_iter()
                .filter(|finding| finding.remedy.is_some())
                .map(|f| f.name)
                .collect::<Vec<_>>()
        };
        assert!(!short(10).contains(&"memory"), "{:?}", findings(10));
        assert!(short(1_000_000_000).contains(&"memory"));
    }
}
