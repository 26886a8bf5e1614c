//! What the machine is and what is set on it, as plain data: the input of `doctor`, which decides and reads nothing.
//!
//! A file that is missing, or that may not be read, leaves a gap (`None`, no entry in `sysctls`); nothing here fails. The
//! files are read below a root, so that tests can lay out a machine of their own.

mod cgroup;
mod ethtool;
mod features;
mod files;
mod network;
mod process;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use cgroup::Cgroup;
pub use ethtool::{rings, set_rings};
pub use network::{Interface, Listener, Ring, Rings, Sockets};
pub use process::{Process, Unit};

use files::Files;

/// Settings under `/proc/sys` that anything in `doctor` looks at or sets.
const SYSCTLS: &[&str] = &[
    "fs.epoll.max_user_watches",
    "fs.file-max",
    "fs.nr_open",
    "net.core.default_qdisc",
    "net.core.netdev_max_backlog",
    "net.core.rps_sock_flow_entries",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_available_congestion_control",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "vm.swappiness",
];

/// Kernel modules that some advice needs.
const MODULES: &[&str] = &["nf_conntrack", "sch_fq", "tcp_bbr"];

/// A machine, and the place in it that was looked from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Facts {
    /// Release of the kernel, as `uname -r` has it.
    pub kernel: String,
    /// What kind of machine it looks like from inside.
    pub place: Place,
    /// What the server asks of the kernel and does not get; `None`: it was not tried.
    pub missing_features: Option<Vec<String>>,
    /// Bytes of a page of memory.
    pub page_bytes: u64,
    /// Settings under `/proc/sys`, by name, with single spaces between numbers. What cannot be read is not in it.
    pub sysctls: BTreeMap<String, String>,
    /// Of [`MODULES`] those that are there: loaded, built in, or on the disk.
    pub modules: Vec<String>,
    /// The process that looks: its limits are those of the shell that started it.
    pub own: Process,
    /// A server that runs already.
    pub server: Option<Process>,
    /// The service, if it is installed.
    pub unit: Option<Unit>,
    /// Descriptors in use on the whole machine.
    pub files_used: Option<u64>,
    /// Memory.
    pub memory: Memory,
    /// Sockets of the machine, or of this container.
    pub sockets: Sockets,
    /// Who listens.
    pub listeners: Vec<Listener>,
    /// Ports that connection tracking leaves alone; `None`: the rules cannot be read.
    pub untracked_ports: Option<Vec<u16>>,
    /// The network card that packets come in through.
    pub interface: Option<Interface>,
    /// Processors.
    pub cpu: Cpu,
}

/// What kind of machine it is. Decides how a limit is raised: from inside, or by whoever started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A machine of its own, virtual or not.
    #[default]
    Machine,
    /// A container: the kernel's settings are partly another's.
    Container,
    /// Windows' Linux.
    Wsl,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Of the machine; 0 where it cannot be read.
    pub total_bytes: u64,
    /// What could be had now (`MemAvailable`).
    pub available_bytes: u64,
    /// Swap space.
    pub swap_bytes: u64,
    /// The narrowest limit of the control groups above the server, or above this process while there is no server.
    pub cgroup: Option<Cgroup>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
}

/// Processors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cpu {
    /// Cores that this process may run on.
    pub cores: usize,
    /// What a control group allows, in cores.
    pub quota: Option<f64>,
    /// Memory nodes.
    pub numa_nodes: usize,
}

impl Cpu {
    /// Cores that a program can use, at least one; as the standard library counts them, a quota is rounded down.
    pub fn usable_cores(&self) -> usize {
        self.quota.map_or(self.cores, |quota| self.cores.min(quota as usize)).max(1)
    }
}

/// What to look at, besides what there is one of.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The network card; `None`: that of the default route.
    pub interface: Option<String>,
    /// Only what a server has to know of itself when it starts: no other processes, no unit, and nothing that another
    /// program would have to be asked for.
    pub only_own: bool,
}

impl Facts {
    /// Looks at this machine.
    pub fn read(wanted: &Wanted) -> Facts {
        let mut facts = Facts::read_below(&Files::of_this_machine(), wanted);
        if !wanted.only_own && facts.sysctls.contains_key("net.netfilter.nf_conntrack_max") {
            facts.untracked_ports = network::untracked_ports();
        }
        facts.missing_features = Some(features::missing());
        if let Some(interface) = facts.interface.as_mut().filter(|_| !wanted.only_own) {
            interface.rings = ethtool::rings(&interface.name).ok();
        }
        facts
    }

    fn read_below(files: &Files, wanted: &Wanted) -> Facts {
        let kernel = files.text("proc/sys/kernel/osrelease").unwrap_or_default();
        let server = if wanted.only_own { None } else { process::server(files) };
        let observed = server.as_ref().map_or("self".to_owned(), |server| server.pid.to_string());
        Facts {
            place: place(files, &kernel),
            missing_features: None,
            page_bytes: rustix::param::page_size() as u64,
            sysctls: SYSCTLS.iter().filter_map(|name| Some(((*name).to_owned(), sysctl(files, name)?))).collect(),
            modules: modules(files, &kernel),
            own: process::read(files, "self").unwrap_or_default(),
            unit: if wanted.only_own { None } else { process::unit(files) },
            files_used: files.text("proc/sys/fs/file-nr").and_then(|text| text.split(' ').next()?.parse().ok()),
            memory: memory(files, &observed),
            sockets: network::sockets(files),
            listeners: network::listeners(files),
            untracked_ports: None,
            interface: network::interface(files, wanted.interface.as_deref()),
            cpu: cpu(files, &observed),
            server,
            kernel,
        }
    }

    /// The numbers of a setting.
    pub fn numbers(&self, name: &str) -> Option<Vec<u64>> {
        self.sysctls.get(name)?.split(' ').map(|number| number.parse().ok()).collect()
    }

    /// The first number of a setting.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.numbers(name)?.first().copied()
    }
}

fn sysctl(files: &Files, name: &str) -> Option<String> {
    files.text(&format!("proc/sys/{}", name.replace('.', "/")))
}

fn place(files: &Files, kernel: &str) -> Place {
    let container = || {
        files.exists(".dockerenv")
            || files.exists("run/.containerenv")
            || files
                .text("proc/1/environ")
                .is_some_and(|text| text.split('\0').any(|pair| pair.starts_with("container=")))
    };
    match kernel.to_ascii_lowercase().contains("microsoft") {
        _ if container() => Place::Container,
        true => Place::Wsl,
        false => Place::Machine,
    }
}

fn modules(files: &Files, kernel: &str) -> Vec<String> {
    let listed = ["modules.builtin", "modules.dep"]
        .map(|list| files.text(&format!("lib/modules/{kernel}/{list}")).unwrap_or_default());
    let is_there = |name: &str| {
        files.exists(&format!("sys/module/{name}")) || listed.iter().any(|list| list.contains(&format!("/{name}.ko")))
    };
    MODULES.iter().filter(|name| is_there(name)).map(|name| (*name).to_owned()).collect()
}

fn memory(files: &Files, observed: &str) -> Memory {
    let text = files.text("proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let pages = files.text("sys/kernel/mm/transparent_hugepage/enabled");
    Memory {
        total_bytes: bytes("MemTotal"),
        available_bytes: bytes("MemAvailable"),
        swap_bytes: bytes("SwapTotal"),
        cgroup: cgroup::memory(files, observed),
        huge_pages: pages.and_then(|text| Some(text.split('[').nth(1)?.split(']').next()?.to_owned())),
    }
}

fn cpu(files: &Files, observed: &str) -> Cpu {
    let status = files.text("proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let nodes = files.names("sys/devices/system/node");
    let is_node = |name: &&String| name.strip_prefix("node").is_some_and(|n| n.parse::<u32>().is_ok());
    Cpu {
        cores: allowed.map_or(0, |list| files::ranges(list.trim())),
        quota: cgroup::cores(files, observed),
        numa_nodes: nodes.iter().filter(is_node).count().max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_cores_and_limits() {
        let facts = Facts::read(&Wanted { only_own: true, ..Wanted::default() });
        assert!(facts.memory.total_bytes > 1 << 26 && facts.memory.available_bytes <= facts.memory.total_bytes);
        assert!(facts.cpu.cores > 0 && facts.cpu.numa_nodes > 0 && facts.page_bytes >= 4096);
        assert!(facts.own.hard > 0 && facts.own.soft <= facts.own.hard && facts.own.open.unwrap() > 0, "{facts:?}");
        assert!(facts.number("net.core.somaxconn").unwrap() > 0);
        assert!(facts.number("fs.file-max").unwrap() > facts.files_used.unwrap());
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts, "they can be recorded");
    }

    #[test]
    fn an_empty_machine_is_all_gaps() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Facts::read_below(&Files::below(dir.path()), &Wanted::default());
        assert!(facts.sysctls.is_empty() && facts.listeners.is_empty() && facts.interface.is_none(), "{facts:?}");
        assert_eq!((facts.memory.total_bytes, facts.files_used, facts.server), (0, None, None));
    }

    /// Aim: what a kernel writes in each file is understood. A machine is laid out in a directory.
    #[test]
    fn a_machine_laid_out_in_files_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "5.15.153.1-microsoft-standard-WSL2\n"),
            ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
            ("proc/sys/fs/file-nr", "1312\t0\t9223372036854775807\n"),
            ("proc/meminfo", "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\nSwapTotal:  4 kB\n"),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8\nCapEff:\t0000000001000000\n"),
            ("proc/self/limits", "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  1048576  files\n"),
            ("proc/41/comm", "cableway\n"),
            ("proc/41/cmdline", "cableway\0top\0"),
            ("proc/42/comm", "cableway\n"),
            ("proc/42/cmdline", "/usr/bin/cableway\0serve\0"),
            ("proc/42/limits", "Max open files  65536  65536  files\n"),
            ("proc/42/cgroup", "0::/system.slice/cableway.service\n"),
            ("sys/fs/cgroup/system.slice/cableway.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/cableway.service/memory.current", "5\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "1000\n"),
            ("sys/fs/cgroup/system.slice/cableway.service/cpu.max", "150000 100000\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/devices/system/node/node0/meminfo", ""),
            ("sys/devices/system/node/node1/meminfo", ""),
            ("lib/modules/5.15.153.1-microsoft-standard-WSL2/modules.builtin", "kernel/net/ipv4/tcp_bbr.ko\n"),
            ("usr/lib/systemd/system/cableway.service", "[Service]\nLimitNOFILE=5000000\n"),
            ("etc/systemd/system/cableway.service.d/10-more.conf", "[Service]\nLimitNOFILE=1024:700000\n"),
            ("proc/net/route", "Iface\tDestination\tGateway\neth1\t000200C0\t0\neth0\t00000000\t010200C0\n"),
            ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0000,0000000f\n"),
            ("sys/class/net/eth0/queues/rx-0/rps_flow_cnt", "4096\n"),
            ("sys/class/net/eth0/queues/tx-0/xps_cpus", "0\n"),
            ("proc/net/sockstat", "sockets: used 9\nTCP: inuse 5 orphan 1 tw 7 alloc 5 mem 30\n"),
            ("proc/net/netstat", "TcpExt: A ListenOverflows ListenDrops\nTcpExt: 1 12 13\n"),
            (
                "proc/net/tcp6",
                "  sl  local_address remote_address st tx_queue rx_queue\n   0: 00000000000000000000000000000000:1F90 \
                 00000000000000000000000000000000:0000 0A 00000000:00000011 00:00000000\n   1: \
                 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0001 01 00000000:00000000\n",
            ),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let facts = Facts::read_below(&Files::below(dir.path()), &Wanted::default());
        assert_eq!(facts.place, Place::Wsl);
        assert_eq!(facts.numbers("net.ipv4.tcp_rmem").unwrap(), [4096, 131_072, 6_291_456]);
        assert_eq!(facts.number("net.core.somaxconn"), None);
        assert_eq!(facts.files_used, Some(1312));
        let memory = &facts.memory;
        assert_eq!((memory.total_bytes, memory.swap_bytes), (16_384_000_000, 4096));
        assert_eq!(memory.cgroup, Some(Cgroup { version: 2, limit_bytes: 8_589_934_592, used_bytes: 1000 }));
        assert_eq!(memory.huge_pages.as_deref(), Some("madvise"));
        assert_eq!(facts.cpu, Cpu { cores: 5, quota: Some(1.5), numa_nodes: 2 });
        assert_eq!((facts.own.soft, facts.own.hard, facts.own.may_raise), (1024, 1_048_576, true));
        let server = facts.server.as_ref().expect("the one that serves");
        assert_eq!((server.pid, server.hard, server.may_raise), (42, 65_536, false));
        assert_eq!(facts.unit, Some(Unit { nofile: Some(700_000) }));
        assert_eq!(facts.modules, ["tcp_bbr"]);
        assert_eq!(facts.listeners, [Listener { port: 8080, waiting: 17 }]);
        assert_eq!((facts.sockets.time_wait, facts.sockets.listen_overflows), (Some(7), Some(12)));
        let card = facts.interface.as_ref().expect("that of the default route");
        assert_eq!((card.name.as_str(), card.rx_queues, card.tx_queues), ("eth0", 1, 1));
        assert_eq!((card.rps_cpus.as_slice(), card.rps_flows), (&[4][..], 4096));
    }

    #[test]
    fn limits_of_both_kinds_of_control_groups_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n"),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "7\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "4096\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let facts = Facts::read_below(&Files::below(dir.path()), &Wanted::default());
        assert_eq!(facts.memory.cgroup, Some(Cgroup { version: 1, limit_bytes: 1 << 20, used_bytes: 4096 }));
        assert_eq!(facts.cpu.quota, Some(0.5));
    }
}
