//! Peers that vanish without a word are found in bounded time: the silent ones by TCP keepalive, the ones that owe
//! acknowledgements by the user time-out. Neither does the work of the other.
//!
//! Needs a network that can be cut, so: two network namespaces, joined by a pair of virtual interfaces. As root, with
//! iproute2: `cargo test --test dead_peers -- --ignored`.

#![allow(clippy::disallowed_methods, reason = "these tests wait for a process of its own, which has its own clock")]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

#[allow(dead_code, reason = "shared with the tests of limits, which need more of it")]
#[path = "limits/client.rs"]
mod client;
#[allow(dead_code, reason = "shared with the tests of limits, which need more of it")]
#[path = "limits/server.rs"]
mod server;

use client::{Client, upgrade};
use server::{Metrics, Server, Start};

/// When everything set to 1 or 2 seconds must have come to its end, on a busy machine too.
const BOUND: Duration = Duration::from_secs(12);

const SERVER_IP: &str = "10.203.113.1";
const CLIENT_IP: &str = "10.203.113.2";

/// Two network namespaces with one link between them, removed when dropped.
struct Network {
    servers: String,
    clients: String,
}

impl Network {
    fn new() -> Network {
        let pid = std::process::id();
        let network = Network { servers: format!("cableway-s-{pid}"), clients: format!("cableway-c-{pid}") };
        let Network { servers, clients } = &network;
        ip(&["netns", "add", servers]);
        ip(&["netns", "add", clients]);
        ip(&["-n", servers, "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", clients]);
        for (space, address) in [(servers, SERVER_IP), (clients, CLIENT_IP)] {
            ip(&["-n", space, "address", "add", &format!("{address}/30"), "dev", "link0"]);
            ip(&["-n", space, "link", "set", "lo", "up"]);
            ip(&["-n", space, "link", "set", "link0", "up"]);
        }
        network
    }

    /// From now on nothing passes, and neither side is told by the other.
    fn cut(&self) {
        ip(&["-n", &self.clients, "link", "set", "link0", "down"]);
    }

    fn among_servers<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        within(&self.servers, what)
    }

    fn among_clients<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        within(&self.clients, what)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for space in [&self.servers, &self.clients] {
            // One that was never made is no reason to keep the other.
            let _ = Command::new("ip").args(["netns", "delete", space]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("iproute2 is there");
    assert!(status.success(), "ip {arguments:?}");
}

/// Runs this on a thread of that namespace. Sockets and processes that it makes stay there.
fn within<T: Send>(space: &str, what: impl FnOnce() -> T + Send) -> T {
    let space = File::open(format!("/var/run/netns/{space}")).expect("a namespace");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            what()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A server that is to find its dead peers, with one silent client and one that it pings every second.
struct Watch<'a> {
    network: &'a Network,
    server: Server,
    _silent: Client,
    _pinged: Client,
    pings_at_cut: u64,
}

impl<'a> Watch<'a> {
    fn start(network: &'a Network, keepalive_time: &str, user_timeout: &str) -> Watch<'a> {
        let usual = "--port 0 --norpc --public --broadcast-key unused --ping-interval 0 --tcp-keepalive-interval 1s";
        let start = Start::bare()
            .and(&usual.split(' ').collect::<Vec<_>>())
            .and(&["--host", SERVER_IP, "--tcp-keepalive-probes", "2"])
            .and(&["--tcp-keepalive-time", keepalive_time, "--tcp-user-timeout", user_timeout]);
        let server = network.among_servers(|| start.start());
        let address = server.address();
        let (silent, pinged) = network.among_clients(|| {
            let mut pinged = upgrade(address, "/cable?pi=1");
            assert!(pinged.text().contains("welcome"));
            (Client::welcomed(address), pinged)
        });
        Watch { network, server, _silent: silent, _pinged: pinged, pings_at_cut: 0 }
    }

    fn metrics_until(&self, what: &str, is_so: impl Fn(&Metrics) -> bool + Send + Sync) -> Metrics {
        self.network.among_servers(|| self.server.metrics_until(what, is_so))
    }

    /// Waits until so many seconds have passed for the pinged client, which gets one ping each.
    fn has_pinged(&self, times: u64) -> Metrics {
        self.metrics_until("pings go on", |m| m.get("pings_total") >= self.pings_at_cut + times)
    }
}

#[test]
#[ignore = "needs root and iproute2"]
fn vanished_peers_are_found_in_bounded_time_and_both_timers_are_needed() {
    let network = Network::new();
    let mut both = Watch::start(&network, "1s", "2s");
    let mut no_user_timeout = Watch::start(&network, "1s", "0");
    let mut no_keepalive = Watch::start(&network, "0", "2s");

    // Living peers are not taken for dead ones, silent or not.
    for watch in [&mut both, &mut no_user_timeout, &mut no_keepalive] {
        let metrics = watch.has_pinged(5);
        assert_eq!((metrics.get("clients_num"), metrics.closed("peer_timeout")), (2, 0));
    }
    for watch in [&mut both, &mut no_user_timeout, &mut no_keepalive] {
        watch.pings_at_cut = network.among_servers(|| watch.server.metrics()).get("pings_total");
    }
    network.cut();
    let cut_at = Instant::now();

    let metrics = both.metrics_until("both are found", |m| m.closed("peer_timeout") == 2);
    assert!(cut_at.elapsed() < BOUND, "found after {:?}", cut_at.elapsed());
    assert_eq!((metrics.get("clients_num"), metrics.get("websockets_num")), (0, 0));

    // Without the user time-out the silent one is found and the pinged one is not.
    no_user_timeout.metrics_until("the silent one is found", |m| m.closed("peer_timeout") == 1);
    assert!(cut_at.elapsed() < BOUND, "found after {:?}", cut_at.elapsed());
    let metrics = no_user_timeout.has_pinged(BOUND.as_secs() + 2);
    assert_eq!((metrics.get("clients_num"), metrics.closed("peer_timeout")), (1, 1));

    // Without keepalive it is the other way round.
    let metrics = no_keepalive.metrics_until("the pinged one is found", |m| m.closed("peer_timeout") == 1);
    assert_eq!(metrics.get("clients_num"), 1);
    let metrics = network.among_servers(|| no_keepalive.server.metrics());
    assert_eq!((metrics.get("clients_num"), metrics.closed("peer_timeout")), (1, 1));
    assert!(cut_at.elapsed() >= BOUND);
}
