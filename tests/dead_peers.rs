//! Peers that vanish without a word are found in bounded time: the silent ones by TCP keepalive, the ones that owe
//! acknowledgements by the user time-out. Neither does the work of the other.
//!
//! Needs a network that can be cut, so: two network namespaces, joined by a pair of virtual interfaces. As root, with
//! iproute2: `cargo test --test dead_peers -- --ignored`.

#![allow(clippy::disallowed_methods, reason = "these tests wait for a process of its own, which has its own clock")]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
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
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        let network = Network { servers: format!("cableway-s-{name}"), clients: format!("cableway-c-{name}") };
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

    /// The same at the server's end.
    fn cut_at_server(&self) {
        ip(&["-n", &self.servers, "link", "set", "link0", "down"]);
    }

    /// The link is there again.
    fn mend(&self) {
        ip(&["-n", &self.clients, "link", "set", "link0", "up"]);
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

/// A server with these keepalive settings and twenty clients, which are silent and not pinged: the next ping is due within
/// a day. One of them that came between the probes would begin another wait, for its acknowledgement.
struct Probed<'a> {
    network: &'a Network,
    server: Server,
    _clients: Vec<Client>,
    since: Instant,
}

const SILENT: usize = 20;

impl<'a> Probed<'a> {
    fn start(network: &'a Network, keepalive: [&str; 3], user_timeout: &str) -> Probed<'a> {
        let [time, interval, probes] = keepalive;
        let usual = "--port 0 --norpc --public --broadcast-key unused --ping-interval 86400";
        let start = Start::bare()
            .and(&usual.split(' ').collect::<Vec<_>>())
            .and(&["--host", SERVER_IP, "--tcp-keepalive-time", time, "--tcp-keepalive-interval", interval])
            .and(&["--tcp-keepalive-probes", probes, "--tcp-user-timeout", user_timeout]);
        let server = network.among_servers(|| start.start());
        let address = server.address();
        let clients = network.among_clients(|| (0..SILENT).map(|_| Client::welcomed(address)).collect());
        Probed { network, server, _clients: clients, since: Instant::now() }
    }

    fn lost(&self) -> u64 {
        self.network.among_servers(|| self.server.metrics()).closed("peer_timeout")
    }

    /// How long the server says that a silent peer can stay.
    fn bound(&self) -> Duration {
        let metrics = self.network.among_servers(|| self.server.metrics());
        let kind = "detection_bound_seconds{kind=\"vanished_silent\",cause=\"peer_timeout\"}";
        Duration::from_secs(metrics.get(kind))
    }

    /// Waits until all are found; gives how long after their last sign of life the last one was.
    fn all_found(&self) -> Duration {
        self.network.among_servers(|| self.server.closed_for("peer_timeout", SILENT as u64));
        self.since.elapsed()
    }

    /// How long they had been silent when they were found, as the server tells.
    fn mean_delay(&self) -> Duration {
        let metrics = self.network.among_servers(|| self.server.metrics());
        assert_eq!(metrics.get("detection_delay_seconds_count{cause=\"peer_timeout\"}"), SILENT as u64);
        let sum = metrics.0["cableway_detection_delay_seconds_sum{cause=\"peer_timeout\"}"];
        Duration::from_secs_f64(sum / SILENT as f64)
    }

    /// A sleep: how long a connection is silent is what is tested.
    fn until(&self, seconds: f32) {
        thread::sleep(Duration::from_secs_f32(seconds).saturating_sub(self.since.elapsed()));
    }
}

#[test]
#[ignore = "needs root and iproute2"]
fn keepalive_holds_as_it_is_set_whatever_the_user_timeout_is() {
    for cut in [Network::cut, Network::cut_at_server] {
        for user_timeout in ["30s", "4s", "0"] {
            let network = Network::new();
            let probed = Probed::start(&network, ["3s", "1s", "3"], user_timeout);
            let stated = probed.bound();
            cut(&network);
            let found = probed.all_found();
            // Three seconds of silence and three probes a second apart, and not before the last of them.
            assert_eq!(stated, Duration::from_secs(7));
            let bounds = Duration::from_millis(5_500)..=stated;
            assert!(bounds.contains(&found), "found after {found:?} with a user time-out of {user_timeout}");
            // The server tells the same: the kernel still knows when it heard of each peer last.
            let delay = probed.mean_delay();
            assert!(bounds.contains(&delay), "told to be {delay:?} with a user time-out of {user_timeout}");
        }
    }
}

#[test]
#[ignore = "needs root and iproute2"]
fn a_probe_that_is_lost_ends_no_living_connection() {
    for user_timeout in ["4s", "30s"] {
        let network = Network::new();
        let probed = Probed::start(&network, ["5s", "2s", "5"], user_timeout);
        // The first probe, after five seconds, is lost; the second is answered.
        probed.until(3.5);
        network.cut();
        probed.until(6.0);
        network.mend();
        probed.until(13.0);
        assert_eq!(probed.lost(), 0, "a user time-out of {user_timeout}");
        // And they are found when they are really gone.
        network.cut();
        probed.all_found();
    }
}
