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
    let mut look = Look { connections, findings: Vec::new() };
    look.descriptors();
    look.addresses();
    look.queues();
    look.memory();
    look.tcp_buffers();
    look.tracking();
    look.findings
}

/// The last number in a file of the kernel's: its largest value where there are several.
fn number(path: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.split_ascii_whitespace().next_back()?.parse().ok()
}

/// What was found so far. Each method looks at one kind of limit; what this kernel does not tell is left out.
struct Look {
    connections: u64,
    findings: Vec<Finding>,
}

impl Look {
    fn add(&mut self, name: &'static str, words: impl ToString, short: bool, remedy: impl Into<String>) {
        self.findings.push(Finding { name, words: words.to_string(), remedy: short.then(|| remedy.into()) });
    }

    /// Adds a kernel setting that must be at least `needed`, and is set to that or to `better`.
    fn setting(&mut self, name: &'static str, key: &str, needed: u64, better: Option<u64>) {
        if let Some(value) = number(&format!("/proc/sys/{}", key.replace('.', "/"))) {
            self.add(name, value, value < needed, format!("sysctl -w {key}={}", better.unwrap_or(needed)));
        }
    }

    fn descriptors(&mut self) {
        let wanted = self.connections + RESERVE;
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 30);
        let processes = workers::processes_needed(u32::try_from(self.connections).unwrap_or(u32::MAX), hard);
        self.add(
            "descriptors a process",
            format!("{hard}: {processes} client process(es); the server needs as many or a higher limit"),
            processes > 1,
            format!("ulimit -Hn {wanted}; or LimitNOFILE={wanted} in a systemd unit"),
        );
        if let Some(most) = number("/proc/sys/fs/nr_open") {
            self.add(
                "highest descriptor limit",
                format!("{most}: what `ulimit -n` can be raised to"),
                most < wanted,
                format!("sysctl -w fs.nr_open={wanted}"),
            );
        }
        self.setting("descriptors of the machine", "fs.file-max", self.connections * 2 + 10_000, None);
        // An entry counts once a socket and epoll; both ends have one.
        let entries = self.connections * 2 + RESERVE;
        self.setting("epoll entries of a user", "fs.epoll.max_user_watches", entries, None);
    }

    fn addresses(&mut self) {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let mut ends = range.split_ascii_whitespace().filter_map(|end| end.parse::<u64>().ok());
        let (Some(low), Some(high)) = (ends.next(), ends.next()) else { return };
        let ports = high.saturating_sub(low) + 1;
        let remedy = "sysctl -w net.ipv4.ip_local_port_range='10240 65535'";
        self.add("ports an address", ports, ports < 25_000, remedy);
        let (needed, here) = (self.connections.div_ceil(ports), observe::addresses().unwrap_or(1));
        self.add(
            "source addresses",
            format!(
                "{needed} needed to one address and port of a server; loopback has 16 million (127.0.0.0/8), this \
                 machine {here} of its own for a server elsewhere"
            ),
            needed > here,
            "only for a server elsewhere: ip addr add ADDRESS/PREFIX dev DEVICE, and --sources with all of them",
        );
    }

    fn queues(&mut self) {
        self.setting("longest accept queue", "net.core.somaxconn", 4096, Some(65_535));
        self.setting("half-open connections a port", "net.ipv4.tcp_max_syn_backlog", 1024, Some(65_535));
    }

    fn memory(&mut self) {
        let available = observe::memory_available_bytes();
        let each = PAIR_BYTES + CLIENT_BYTES + SERVER_BYTES;
        let needed = self.connections * each;
        self.add(
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
        let each = PAIR_BYTES / 2 + CLIENT_BYTES;
        let needed = self.connections * each;
        self.add(
            "memory, server elsewhere",
            format!("{} MiB needed", needed >> 20),
            available < needed + needed / 10,
            format!("more memory, or fewer connections: -n {}", available / 11 * 10 / each),
        );
    }

    fn tcp_buffers(&mut self) {
        let Some(pages) = number("/proc/sys/net/ipv4/tcp_mem") else { return };
        // Idle sockets hold no buffer pages; the limit matters once all of them get a message.
        let bytes = pages * rustix::param::page_size() as u64;
        self.add(
            "memory of TCP buffers",
            format!("{} MiB at most", bytes >> 20),
            bytes < self.connections * 1024,
            "sysctl -w net.ipv4.tcp_mem='786432 1048576 1572864'",
        );
    }

    fn tracking(&mut self) {
        let Some(tracked) = number("/proc/sys/net/netfilter/nf_conntrack_max") else {
            return self.add("tracked connections", "conntrack is not loaded", false, "");
        };
        let needed = self.connections * 2;
        self.add(
            "tracked connections",
            tracked,
            tracked < needed,
            format!(
                "sysctl -w net.netfilter.nf_conntrack_max={needed}; or no tracking: iptables -t raw -A PREROUTING -p \
                 tcp --dport PORT -j NOTRACK, and the same for OUTPUT"
            ),
        );
    }
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
