//! Every kernel setting that is advised: for which goal which value, why, and who says so. Rows, fix lines and the files of
//! `deploy/` come from here.

use crate::os::facts::Facts;

use super::fix::Fix;
use super::goal::Goal;
use super::numbers::round_up;
use super::row::{Layer, Source};
use super::{conntrack, descriptors, memory};

/// A kernel setting.
pub(super) struct Setting {
    pub name: &'static str,
    pub layer: Layer,
    /// Why; where sources disagree, which was chosen.
    pub why: &'static str,
    pub sources: &'static [Source],
    /// The value for a goal, never lower than what is set. `None`: it depends on facts that are not known, or this machine
    /// has nothing to set.
    pub value: fn(&Facts, &Goal) -> Option<String>,
    /// Whether the kernel may not have it, because it belongs to a module.
    pub is_of_module: bool,
}

impl Setting {
    /// The change that sets it.
    pub fn fix(&self, facts: &Facts, goal: &Goal) -> Option<Fix> {
        (self.value)(facts, goal).map(|value| Fix::Sysctl { name: self.name, value })
    }
}

/// At least this, or what is set.
fn at_least(facts: &Facts, name: &str, wanted: u64) -> Option<String> {
    Some(facts.number(name).unwrap_or(0).max(wanted).to_string())
}

/// The kernel's default for `fs.nr_open`; a file that lowers it would help nobody.
const NR_OPEN_DEFAULT: u64 = 1 << 20;

/// Descriptors that other programs of the machine may need.
const OTHERS_FILES: u64 = 500_000;

/// What `fs.nr_open` should be: the next million above what one server needs.
fn nr_open(facts: &Facts, goal: &Goal) -> u64 {
    round_up(descriptors::limit_for(facts, goal), 1_000_000).max(NR_OPEN_DEFAULT)
}

pub(super) const NR_OPEN: Setting = Setting {
    name: "fs.nr_open",
    layer: Layer::Descriptors,
    why: "Most files that one process may be allowed. A LimitNOFILE= above it is not granted: systemd falls back to a \
          smaller limit without a word, and a nofile above it in limits.d keeps users from logging in. The default is \
          1,048,576; none of the guides names it, and [millions] asks for limits above it. [kernel] [man]",
    sources: &[Source::Kernel, Source::Man],
    value: |facts, goal| at_least(facts, NR_OPEN.name, nr_open(facts, goal)),
    is_of_module: false,
};

pub(super) const FILE_MAX: Setting = Setting {
    name: "fs.file-max",
    layer: Layer::Descriptors,
    why: "Most files on the whole machine; needs room above one server's limit for everything else. [balancer] has \
          2097152 and [millions] 6000000 whatever the goal; here it is half a million above fs.nr_open. The kernel's \
          default follows the memory. [millions] [balancer]",
    sources: &[Source::Millions, Source::Balancer],
    value: |facts, goal| {
        let others = round_up(descriptors::others_files(facts, goal), 100_000).max(OTHERS_FILES);
        at_least(facts, FILE_MAX.name, nr_open(facts, goal).saturating_add(others))
    },
    is_of_module: false,
};

pub(super) const EPOLL_WATCHES: Setting = Setting {
    name: "fs.epoll.max_user_watches",
    layer: Layer::Descriptors,
    why: "Sockets that one user may have watched, one entry each. The default is what fits into 4 % of the memory, about \
          230,000 for each GiB; over it accepted clients are dropped. None of the guides names it. [man]",
    sources: &[Source::Man],
    value: |facts, goal| at_least(facts, EPOLL_WATCHES.name, nr_open(facts, goal)),
    is_of_module: false,
};

pub(super) const SOMAXCONN: Setting = Setting {
    name: "net.core.somaxconn",
    layer: Layer::AcceptPath,
    why: "Ceiling for the queue of finished handshakes; --backlog asks for 4096 a shard and is silently cut to this. [proxy] \
          and [millions] have 4096, [balancer] 65535: the larger one, because it is only a ceiling. [proxy] and [listener] \
          call 128 the default; it is 4096 since Linux 5.4. When the queue is full a client waits whole seconds for \
          its next try: with a short one, 15,000 that come at once take 3 to 5 s instead of 0.5 s. [measured]",
    sources: &[Source::Balancer, Source::Proxy, Source::Millions, Source::Measured],
    value: |facts, goal| at_least(facts, SOMAXCONN.name, goal.backlog.max(65_535)),
    is_of_module: false,
};

pub(super) const SYN_BACKLOG: Setting = Setting {
    name: "net.ipv4.tcp_max_syn_backlog",
    layer: Layer::AcceptPath,
    why: "Half-open connections that may wait for their last packet. With SYN cookies the accept queue is the real bound \
          and this one counts when they are off. [proxy] 4096, [millions] and [listener] 8192, [balancer] 65535: equal to \
          somaxconn, so that it is never the smaller of the two. [kernel]",
    sources: &[Source::Balancer, Source::Millions, Source::Listener, Source::Kernel],
    value: |facts, goal| at_least(facts, SYN_BACKLOG.name, goal.backlog.max(65_535)),
    is_of_module: false,
};

pub(super) const SYNCOOKIES: Setting = Setting {
    name: "net.ipv4.tcp_syncookies",
    layer: Layer::AcceptPath,
    why: "Answers SYNs without memory when the queue is full, so that a flood does not shut clients out. The kernel's \
          default; here so that nobody has to wonder. [listener]",
    sources: &[Source::Listener],
    value: |_, _| Some("1".to_owned()),
    is_of_module: false,
};

pub(super) const NETDEV_BACKLOG: Setting = Setting {
    name: "net.core.netdev_max_backlog",
    layer: Layer::AcceptPath,
    why: "Packets that may wait between the network card and a core. The default of 1000 drops packets when everybody \
          reconnects at once. [millions]",
    sources: &[Source::Millions],
    value: |facts, _| at_least(facts, NETDEV_BACKLOG.name, 5_000),
    is_of_module: false,
};

pub(super) const TCP_RMEM: Setting = Setting {
    name: "net.ipv4.tcp_rmem",
    layer: Layer::Memory,
    why: "Receive buffer: minimum, start, maximum, in bytes. [balancer] has a minimum of 16 MB, which is for few \
          connections with much data: under memory pressure every socket may keep its minimum, and a million of them \
          16 TB. As [millions]: an idle socket may shrink to one page, a busy one grow to 16 MB.",
    sources: &[Source::Millions],
    value: |_, _| Some("4096 87380 16777216".to_owned()),
    is_of_module: false,
};

pub(super) const TCP_WMEM: Setting = Setting {
    name: "net.ipv4.tcp_wmem",
    layer: Layer::Memory,
    why: "Send buffer: minimum, start, maximum. Minimum and start of [millions]; its maximum is 16 MB, [balancer]'s \
          256 MB. Chosen is the kernel's default of 4 MB: what a slow client has not taken waits here before the server's \
          own outbox (1 MiB, --ws-max-pending-size) sees it, so a large maximum hides slow clients and pays for them.",
    sources: &[Source::Millions, Source::Kernel],
    value: |_, _| Some("4096 65536 4194304".to_owned()),
    is_of_module: false,
};

pub(super) const TCP_MEM: Setting = Setting {
    name: "net.ipv4.tcp_mem",
    layer: Layer::Memory,
    why: "Memory of all TCP buffers together, in pages: low, pressure, maximum. The kernel takes about 9 % of the memory at \
          boot. Parked sockets count for nothing, but a message to everybody at once counts at least a page for each \
          client until it is acknowledged; over it sends fail and the log says \"TCP: out of memory\". None of the guides \
          names it. [kernel]",
    sources: &[Source::Kernel],
    value: memory::tcp_mem,
    is_of_module: false,
};

pub(super) const SWAPPINESS: Setting = Setting {
    name: "vm.swappiness",
    layer: Layer::Memory,
    why: "How readily the kernel swaps. Parked sessions look unused and would be swapped out first, and every ping reads \
          them in again. The kernel's side of a socket cannot be swapped at all. None of the guides names it. [kernel]",
    sources: &[Source::Kernel],
    value: |_, _| Some("1".to_owned()),
    is_of_module: false,
};

pub(super) const CONNTRACK_MAX: Setting = Setting {
    name: "net.netfilter.nf_conntrack_max",
    layer: Layer::Conntrack,
    why: "With a stateful firewall every connection costs an entry (about 0.9 KB, [millions]), and over the limit new ones \
          are dropped: \"nf_conntrack: table full\". The better way is to exempt the server's port (NOTRACK, the file for \
          nftables does it; not where Docker publishes the port, which needs tracking). Where it is tracked, the table \
          must hold every client and a fifth more, for those that have left. [millions]",
    sources: &[Source::Millions],
    value: |facts, goal| at_least(facts, CONNTRACK_MAX.name, conntrack::entries(facts, goal)),
    is_of_module: true,
};

pub(super) const CONNTRACK_BUCKETS: Setting = Setting {
    name: "net.netfilter.nf_conntrack_buckets",
    layer: Layer::Conntrack,
    why: "Chains of that table. The kernel chooses them from the memory when the module is loaded and not from the limit; \
          with more than a few entries a chain every packet walks them. Four a chain. None of the guides names it. [kernel]",
    sources: &[Source::Kernel],
    value: |facts, goal| at_least(facts, CONNTRACK_BUCKETS.name, conntrack::entries(facts, goal) / 4),
    is_of_module: true,
};

pub(super) const PORT_RANGE: Setting = Setting {
    name: "net.ipv4.ip_local_port_range",
    layer: Layer::BackendPorts,
    why: "Ports for connections to the app: 64,000 instead of 28,000 for each address of the app. Clients need none of them, \
          they all come to one port. [proxy] [balancer]",
    sources: &[Source::Proxy, Source::Balancer],
    value: |_, _| Some("1024 65535".to_owned()),
    is_of_module: false,
};

pub(super) const RESERVED_PORTS: Setting = Setting {
    name: "net.ipv4.ip_local_reserved_ports",
    layer: Layer::BackendPorts,
    why: "The range takes in ports that servers listen on: this keeps outgoing connections off ours and the app's, or a \
          restart may find its port taken. The guides widen the range and leave this out. [kernel]",
    sources: &[Source::Kernel],
    value: reserved_ports,
    is_of_module: false,
};

/// What is reserved already, and our ports.
fn reserved_ports(facts: &Facts, goal: &Goal) -> Option<String> {
    let set = facts.sysctls.get(RESERVED_PORTS.name).map_or("", String::as_str);
    let missing = goal.own_ports.iter().filter(|port| !is_reserved(set, **port)).map(u16::to_string);
    let all: Vec<String> = set.split(',').filter(|ports| !ports.is_empty()).map(str::to_owned).chain(missing).collect();
    Some(all.join(","))
}

/// Whether a port is in a list like `80,8000-8080`.
pub(super) fn is_reserved(list: &str, port: u16) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u16>().ok();
        number(first).zip(number(last)).is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}

pub(super) const TW_REUSE: Setting = Setting {
    name: "net.ipv4.tcp_tw_reuse",
    layer: Layer::BackendPorts,
    why: "Lets an outgoing connection take over a port whose last connection ended over a second ago. Only for outgoing \
          ones, and safe with timestamps, which are on by default; the default, 2, does it on loopback only. [balancer] \
          says it is for kernels below 4.12: that was tcp_tw_recycle, which is gone.",
    sources: &[Source::Balancer, Source::Kernel],
    value: |_, _| Some("1".to_owned()),
    is_of_module: false,
};

pub(super) const KEEPALIVE_TIME: Setting = Setting {
    name: "net.ipv4.tcp_keepalive_time",
    layer: Layer::Tcp,
    why: "Silence before the kernel probes, for programs that leave it to the system: Cableway sets its own on every socket \
          (--tcp-keepalive-time and the two below), to the same values. [anycable] and [millions] agree; the default is \
          two hours.",
    sources: &[Source::AnyCable, Source::Millions],
    value: |_, goal| keepalive(goal, 0),
    is_of_module: false,
};

pub(super) const KEEPALIVE_INTERVAL: Setting = Setting {
    name: "net.ipv4.tcp_keepalive_intvl",
    layer: Layer::Tcp,
    why: "Seconds between probes. [anycable] 10, [millions] 30: with 5 probes of 10 s a dead client is found 50 s after the \
          first, with 3 of 30 s after 90 s, and 5 probes forgive more loss.",
    sources: &[Source::AnyCable, Source::Millions],
    value: |_, goal| keepalive(goal, 1),
    is_of_module: false,
};

pub(super) const KEEPALIVE_PROBES: Setting = Setting {
    name: "net.ipv4.tcp_keepalive_probes",
    layer: Layer::Tcp,
    why: "Unanswered probes until the connection is closed. [anycable] 5, [millions] 3: as tcp_keepalive_intvl. Neither says \
          that keepalive does not run while sent data is unacknowledged: --tcp-user-timeout covers that.",
    sources: &[Source::AnyCable, Source::Millions],
    value: |_, goal| keepalive(goal, 2),
    is_of_module: false,
};

/// The server's own value; its default where it is off.
fn keepalive(goal: &Goal, which: usize) -> Option<String> {
    const DEFAULT: [u64; 3] = [300, 10, 5];
    Some(if goal.keepalive[0] > 0 { goal.keepalive[which] } else { DEFAULT[which] }.to_string())
}

pub(super) const CONGESTION_CONTROL: Setting = Setting {
    name: "net.ipv4.tcp_congestion_control",
    layer: Layer::Tcp,
    why: "BBR does not take a lost packet for a full line, which helps clients on mobile networks. [balancer] wants it for \
          throughput, which small messages do not need; it is advice, no condition.",
    sources: &[Source::Balancer],
    value: |_, _| Some("bbr".to_owned()),
    is_of_module: true,
};

pub(super) const DEFAULT_QDISC: Setting = Setting {
    name: "net.core.default_qdisc",
    layer: Layer::Tcp,
    why: "The queue of network cards that come up from now on. BBR paces what it sends: fq does it for all sockets \
          together, without it each socket that sends has a timer. [balancer]",
    sources: &[Source::Balancer],
    value: |_, _| Some("fq".to_owned()),
    is_of_module: true,
};

pub(super) const TW_BUCKETS: Setting = Setting {
    name: "net.ipv4.tcp_max_tw_buckets",
    layer: Layer::Tcp,
    why: "Ended connections that wait a minute for late packets (TIME_WAIT). They are on the side that closes first, which is \
          ours when the server drains. Over it they end early, with a line in the kernel's log; it costs nobody a \
          connection. None of the guides names it. [kernel]",
    sources: &[Source::Kernel],
    value: |facts, _| at_least(facts, TW_BUCKETS.name, 262_144),
    is_of_module: false,
};

pub(super) const RPS_FLOWS: Setting = Setting {
    name: "net.core.rps_sock_flow_entries",
    layer: Layer::Nic,
    why: "Flows that receive flow steering knows: with it a packet is handled on the core of the shard that reads it. \
          [balancer] names RPS and RFS and gives no value; this is the one of the kernel's guide. [kernel]",
    sources: &[Source::Balancer, Source::Kernel],
    value: |facts, _| at_least(facts, RPS_FLOWS.name, 32_768),
    is_of_module: false,
};

/// Those of the shipped file, in its order. `vm.swappiness`, RFS and TIME_WAIT are left to each machine.
pub(super) const SHIPPED: &[&Setting] = &[
    &NR_OPEN,
    &FILE_MAX,
    &EPOLL_WATCHES,
    &SOMAXCONN,
    &SYN_BACKLOG,
    &SYNCOOKIES,
    &NETDEV_BACKLOG,
    &TCP_RMEM,
    &TCP_WMEM,
    &TCP_MEM,
    &CONNTRACK_MAX,
    &CONNTRACK_BUCKETS,
    &PORT_RANGE,
    &RESERVED_PORTS,
    &TW_REUSE,
    &KEEPALIVE_TIME,
    &KEEPALIVE_INTERVAL,
    &KEEPALIVE_PROBES,
    &DEFAULT_QDISC,
    &CONGESTION_CONTROL,
];
