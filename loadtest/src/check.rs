//! What this machine can drive, before anybody waits for a ramp to fail: descriptors, ports, queues, memory, and the
//! commands that raise each.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::{observe, workers};

/// Memory that a pair of loopback sockets costs in the kernel, both ends with their file, inode and epoll entries.
/// Measured with a million of them on Linux 6.18.
const PAIR_BYTES: u64 = 7_500;

/// What this tool holds per connection itself: a slot of 56 bytes, and a share of what a ramp leaves in the allocator.
const CLIENT_BYTES: u64 = 100;

/// What a server holds per connection that waits, when it does it well; see `bench memory`.
const SERVER_BYTES: u64 = 700;

/// Descriptors of a process besides its connections, generously.
const RESERVE: u64 = 1_000;

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
    let processes = workers::processes_needed(u32::try_from(connections).unwrap_or(u32::MAX), hard);
    add(
        "descriptors a process",
        format!("{hard}: {processes} client process(es); the server needs as many or a higher limit"),
        processes > 1,
        format!("ulimit -Hn {0}; or LimitNOFILE={0} in a systemd unit", connections + RESERVE),
    );
    if let Some(most) = number("/proc/sys/fs/nr_open") {
        add(
            "highest descriptor limit",
            format!("{most}: what `ulimit -n` can be raised to"),
            most < connections + RESERVE,
            format!("sysctl -w fs.nr_open={}", connections + RESERVE),
        );
    }
    if let Some(all) = number("/proc/sys/fs/file-max") {
        let needed = connections * 2 + 10_000;
        add("descriptors of the machine", all.to_string(), all < needed, format!("sysctl -w fs.file-max={needed}"));
    }
    // An entry counts once a socket and epoll; both ends have one.
    if let Some(watches) = number("/proc/sys/fs/epoll/max_user_watches") {
        let needed = connections * 2 + RESERVE;
        add(
            "epoll entries of a user",
            watches.to_string(),
            watches < needed,
            format!("sysctl -w fs.epoll.max_user_watches={needed}"),
        );
    }
    if let Ok(range) = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") {
        let mut ends = range.split_ascii_whitespace().filter_map(|end| end.parse::<u64>().ok());
        if let (Some(low), Some(high)) = (ends.next(), ends.next()) {
            let ports = high.saturating_sub(low) + 1;
            add(
                "ports an address",
                ports.to_string(),
                ports < 25_000,
                "sysctl -w net.ipv4.ip_local_port_range='10240 65535'".to_owned(),
            );
            let (needed, here) = (connections.div_ceil(ports), observe::addresses().unwrap_or(1));
            add(
                "source addresses",
                format!(
                    "{needed} needed to one address and port of a server; loopback has 16 million (127.0.0.0/8), this \
                     machine {here} of its own for a server elsewhere"
                ),
                needed > here,
                "only for a server elsewhere: ip addr add ADDRESS/PREFIX dev DEVICE, and --sources with all of them"
                    .to_owned(),
            );
        }
    }
    if let Some(queue) = number("/proc/sys/net/core/somaxconn") {
        add("longest accept queue", queue.to_string(), queue < 4096, "sysctl -w net.core.somaxconn=65535".to_owned());
    }
    if let Some(queue) = number("/proc/sys/net/ipv4/tcp_max_syn_backlog") {
        let remedy = "sysctl -w net.ipv4.tcp_max_syn_backlog=65535".to_owned();
        add("half-open connections a port", queue.to_string(), queue < 1024, remedy);
    }
    let available = observe::memory_available_bytes();
    let each = PAIR_BYTES + CLIENT_BYTES + SERVER_BYTES;
    let needed = connections * each;
    add(
        "memory, both ends here",
        format!(
            "{} MiB available; {} MiB needed: a connection takes {PAIR_BYTES} B of the kernel's for its two ends, \
             {CLIENT_BYTES} B of this tool's, {SERVER_BYTES} B or more of the server's",
            available >> 20,
            needed >> 20
        ),
        available < needed + needed / 10,
        format!("more memory, or fewer connections: -n {}, or the server elsewhere", available / 11 * 10 / each),
    );
    let needed = connections * (PAIR_BYTES / 2 + CLIENT_BYTES);
    add(
        "memory, server elsewhere",
        format!("{} MiB needed", needed >> 20),
        available < needed + needed / 10,
        format!("more memory, or fewer connections: -n {}", available / 11 * 10 / (PAIR_BYTES / 2 + CLIENT_BYTES)),
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
            format!(
                "sysctl -w net.netfilter.nf_conntrack_max={}; or no tracking: iptables -t raw -A PREROUTING -p tcp \
                 --dport PORT -j NOTRACK, and the same for OUTPUT",
                connections * 2
            ),
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
        assert!(!short(10).iter().any(|name| name.starts_with("memory")), "{:?}", findings(10));
        for name in ["memory, both ends here", "memory, server elsewhere", "source addresses", "descriptors a process"]
        {
            assert!(short(1_000_000_000).contains(&name), "{name}");
        }
    }

    #[test]
    fn every_remedy_is_something_to_do() {
        for finding in findings(1_000_000_000).into_iter().filter(|finding| finding.remedy.is_some()) {
            let remedy = finding.remedy.unwrap();
            let commands = ["sysctl -w ", "ulimit ", "ip addr add", "fewer connections: -n "];
            assert!(commands.iter().any(|command| remedy.contains(command)), "{}: {remedy}", finding.name);
        }
    }
}
