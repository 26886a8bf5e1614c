//! Three network namespaces joined by two links: the server's, the victims', and that of the healthy clients. As root, with
//! `ip` and `nft`.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the server is for the victims.
pub const FOR_VICTIMS: &str = "10.203.114.1";
/// Where it is for the healthy.
pub const FOR_HEALTHY: &str = "10.203.115.1";

/// The server's end of the victims' link, and of the other.
const VICTIMS_LINK: &str = "victims";
const HEALTHY_LINK: &str = "healthy";
/// The clients' end of both.
const LINK: &str = "link0";

/// So little that one long message fills a connection, and thousands of them not the memory.
const SOCKET_BUFFERS: &str = "4096 32768 65536";

/// The namespaces, removed when dropped.
pub struct Network {
    pub server: String,
    pub victims: String,
    pub healthy: String,
}

impl Network {
    /// Makes them. `name` must not be in use.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let named = |what: &str| format!("cableway-{what}-{name}");
        let network = Self { server: named("server"), victims: named("victims"), healthy: named("healthy") };
        network.make().context("network namespaces cannot be made here: that takes root and iproute2")?;
        Ok(network)
    }

    fn make(&self) -> anyhow::Result<()> {
        for space in [&self.server, &self.victims, &self.healthy] {
            ip(&["netns", "add", space])?;
            ip(&["-n", space, "link", "set", "lo", "up"])?;
        }
        for (clients, link, address) in
            [(&self.victims, VICTIMS_LINK, FOR_VICTIMS), (&self.healthy, HEALTHY_LINK, FOR_HEALTHY)]
        {
            let server = &self.server;
            ip(&["-n", server, "link", "add", link, "type", "veth", "peer", "name", LINK, "netns", clients])?;
            ip(&["-n", server, "address", "add", &format!("{address}/24"), "dev", link])?;
            let client = address.strip_suffix('1').context("ends with 1")?;
            ip(&["-n", clients, "address", "add", &format!("{client}2/24"), "dev", LINK])?;
            ip(&["-n", server, "link", "set", link, "up"])?;
            ip(&["-n", clients, "link", "set", LINK, "up"])?;
        }
        within(&self.server, || std::fs::write("/proc/sys/net/ipv4/tcp_wmem", SOCKET_BUFFERS))??;
        within(&self.victims, || std::fs::write("/proc/sys/net/ipv4/tcp_rmem", SOCKET_BUFFERS))??;
        Ok(())
    }

    /// Nothing passes any more, and neither side is told by the other.
    pub fn cut_at_victims(&self) -> anyhow::Result<()> {
        ip(&["-n", &self.victims, "link", "set", LINK, "down"])
    }

    /// The same at the server's end.
    pub fn cut_at_server(&self) -> anyhow::Result<()> {
        ip(&["-n", &self.server, "link", "set", VICTIMS_LINK, "down"])
    }

    /// What the victims send is lost on its way.
    pub fn drop_in(&self) -> anyhow::Result<()> {
        drop_arriving(&self.server, VICTIMS_LINK)
    }

    /// What the server sends to the victims is lost on its way.
    pub fn drop_out(&self) -> anyhow::Result<()> {
        drop_arriving(&self.victims, LINK)
    }

    /// Nothing is lost any more; gives how many packets were.
    pub fn mend(&self) -> anyhow::Result<u64> {
        let mut lost = 0;
        for space in [&self.server, &self.victims] {
            let rules = nft(space, "list table inet cut")?;
            let mut words = rules.split_ascii_whitespace().skip_while(|word| *word != "packets");
            let count = words.nth(1).and_then(|count| count.parse::<u64>().ok());
            lost += count.context("nft tells no count of packets")?;
            nft(space, "delete table inet cut")?;
        }
        Ok(lost)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for space in [&self.server, &self.victims, &self.healthy] {
            // One that was never made is no reason to keep the others.
            let _ = Command::new("ip").args(["netns", "delete", space]).output();
        }
    }
}

/// Loses what arrives here, as a network does: whoever sends it is not told.
fn drop_arriving(space: &str, link: &str) -> anyhow::Result<()> {
    let chain = format!(
        "table inet cut {{ chain arriving {{ type filter hook input priority 0; iifname \"{link}\" counter drop\n}}\n}}"
    );
    nft(space, &chain).map(drop)
}

fn nft(space: &str, rules: &str) -> anyhow::Result<String> {
    let output = within(space, || Command::new("nft").arg(rules).output())?.context("nft (Debian package nftables)")?;
    ensure!(output.status.success(), "nft {rules:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip (Debian package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

/// Runs this on a thread of that namespace. Sockets, threads and processes that it makes stay there.
pub fn within<T: Send>(space: &str, what: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let path = format!("/var/run/netns/{space}");
    let space = File::open(&path).with_context(|| path.clone())?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).with_context(|| path.clone())?;
            Ok(what())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
