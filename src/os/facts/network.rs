//! Sockets, listeners, connection tracking and the network card.

use std::io::BufRead;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::os::limits;

use super::files::Files;

/// Counts of the sockets (`/proc/net/sockstat`, `/proc/net/netstat`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sockets {
    /// TCP sockets.
    pub tcp: Option<u64>,
    /// Ends of connections that wait out their last packets (TIME_WAIT).
    pub time_wait: Option<u64>,
    /// Since boot: connections that found an accept queue full.
    pub listen_overflows: Option<u64>,
    /// Since boot: SYNs that a listener dropped for any reason.
    pub listen_drops: Option<u64>,
}

/// A listening socket. Every shard of a server has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listener {
    /// Its port.
    pub port: u16,
    /// Connections that wait to be accepted.
    pub waiting: u64,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The driver; none for what is no device.
    pub driver: Option<String>,
    /// Queues for receiving.
    pub rx_queues: usize,
    /// Queues for sending.
    pub tx_queues: usize,
    /// For each receive queue the number of cores that packets are spread over in software (RPS).
    pub rps_cpus: Vec<u32>,
    /// Flows that receive flow steering (RFS) knows on the first queue.
    pub rps_flows: u64,
    /// Lengths of the rings; `None`: the driver does not tell.
    pub rings: Option<Rings>,
    /// Packets that were dropped on their way in, since boot.
    pub rx_dropped: u64,
}

/// The rings of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// For receiving.
    pub rx: Ring,
    /// For sending.
    pub tx: Ring,
}

/// The ring of a queue, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// What is set.
    pub now: u32,
    /// What the card can have.
    pub max: u32,
}

pub(super) fn sockets(files: &Files) -> Sockets {
    let text = files.text("proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: ")).unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let count = |name: &str| words.chunks_exact(2).find(|pair| pair[0] == name)?[1].parse().ok();
    let overflows = files.text("proc/net/netstat").and_then(|text| limits::overflows_in(&text));
    Sockets {
        tcp: count("inuse"),
        time_wait: count("tw"),
        listen_overflows: overflows.map(|(overflows, _)| overflows),
        listen_drops: overflows.map(|(_, drops)| drops),
    }
}

/// The state of a listener in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// All listeners. The kernel tells them before all connections, so a million of those are not read.
pub(super) fn listeners(files: &Files) -> Vec<Listener> {
    let mut found = Vec::new();
    for table in ["proc/net/tcp", "proc/net/tcp6"] {
        let Some(lines) = files.lines(table) else { continue };
        let rows = lines.lines().skip(1).map_while(Result::ok);
        found.extend(rows.map_while(|line| listener(&line)));
    }
    found.sort_unstable_by_key(|listener: &Listener| (listener.port, listener.waiting));
    found
}

fn listener(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, LISTEN, queues, ..] = fields[..] else { return None };
    Some(Listener {
        port: u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?,
        // What is the receive queue of a connection is the accept queue of a listener.
        waiting: u64::from_str_radix(queues.split_once(':')?.1, 16).ok()?,
    })
}

/// The card with this name, or that of the default route.
pub(super) fn interface(files: &Files, name: Option<&str>) -> Option<Interface> {
    let name = name.map(str::to_owned).or_else(|| default_route(files))?;
    let device = format!("sys/class/net/{name}");
    let queues = files.names(&format!("{device}/queues"));
    let receive: Vec<_> = queues.iter().filter(|queue| queue.starts_with("rx-")).collect();
    let cores = |mask: String| mask.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum();
    let rps = receive.iter().filter_map(|queue| files.text(&format!("{device}/queues/{queue}/rps_cpus")));
    files.exists(&device).then(|| Interface {
        driver: files.link_name(&format!("{device}/device/driver")),
        rx_queues: receive.len(),
        tx_queues: queues.len() - receive.len(),
        rps_cpus: rps.map(cores).collect(),
        rps_flows: files.number(&format!("{device}/queues/rx-0/rps_flow_cnt")).unwrap_or(0),
        rings: None,
        rx_dropped: files.number(&format!("{device}/statistics/rx_dropped")).unwrap_or(0),
        name,
    })
}

fn default_route(files: &Files) -> Option<String> {
    let text = files.text("proc/net/route")?;
    let mut routes = text.lines().skip(1).map(|line| line.split(' ').collect::<Vec<_>>());
    routes.find(|route| route.get(1) == Some(&"00000000")).map(|route| route[0].to_owned())
}

/// Ports that rules exempt from connection tracking. `None`: no program could tell.
pub(super) fn untracked_ports() -> Option<Vec<u16>> {
    let asked = [("nft", &["list", "ruleset"][..]), ("iptables-save", &["-t", "raw"])];
    let told: Vec<String> = asked.iter().filter_map(|(program, words)| output(program, words)).collect();
    if told.is_empty() {
        return None;
    }
    let mut ports: Vec<u16> = told.iter().flat_map(|text| text.lines()).flat_map(untracked_in).collect();
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}

fn output(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The ports of a rule that ends tracking of what comes in: `tcp dport { 80, 8080 } notrack`, or
/// `-A PREROUTING -p tcp --dport 8080 -j NOTRACK` (`-j CT --notrack`).
fn untracked_in(rule: &str) -> Vec<u16> {
    let rule = rule.trim();
    if !rule.to_ascii_lowercase().contains("notrack") {
        return Vec::new();
    }
    let Some((_, ports)) = rule.split_once("dport ").or_else(|| rule.split_once("dports ")) else { return Vec::new() };
    let ports = match ports.strip_prefix('{') {
        Some(set) => set.split('}').next().unwrap_or_default(),
        None => ports.split(' ').next().unwrap_or_default(),
    };
    ports.split(',').filter_map(|port| port.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_end_tracking_are_understood() {
        assert_eq!(untracked_in("\t\ttcp dport 8080 notrack"), [8080]);
        assert_eq!(untracked_in("tcp dport { 80, 8080 } counter packets 0 bytes 0 notrack"), [80, 8080]);
        assert_eq!(untracked_in("-A PREROUTING -p tcp -m tcp --dport 8080 -j CT --notrack"), [8080]);
        assert_eq!(untracked_in("-A PREROUTING -p tcp -m multiport --dports 80,8080 -j NOTRACK"), [80, 8080]);
        assert_eq!(untracked_in("tcp sport 8080 notrack"), [0; 0], "the way out alone is not enough");
        assert_eq!(untracked_in("tcp dport 8080 accept"), [0; 0]);
    }
}
