//! What sets a thing right.

use serde::{Serialize, Serializer};

use crate::os::facts::{Facts, Place};

use super::goal::Goal;
use super::numbers::bytes;

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Fix {
    /// A kernel setting.
    Sysctl {
        /// Its name.
        name: &'static str,
        /// The value.
        value: String,
    },
    /// The hard limit of open files of the shell that starts the server.
    OpenFiles {
        /// The limit.
        limit: u64,
        /// Where: it decides who can raise it.
        place: Place,
    },
    /// That of the service, in a drop-in.
    UnitOpenFiles(u64),
    /// A server that runs read its limit when it started.
    Restart {
        /// The limit that it should have then.
        limit: u64,
        /// Whether it is a service.
        is_unit: bool,
    },
    /// An option of the server.
    Option {
        /// Without dashes.
        name: &'static str,
        /// The value.
        value: u64,
    },
    /// A kernel module.
    Module(&'static str),
    /// Transparent huge pages where a program asks for them, only.
    HugePagesOnRequest,
    /// Longer rings of the network card.
    Rings {
        /// Which card.
        interface: String,
        /// For receiving.
        rx: u32,
        /// For sending.
        tx: u32,
    },
    /// Packets of every receive queue to all cores.
    SpreadPackets {
        /// Which card.
        interface: String,
        /// Its receive queues.
        queues: usize,
        /// Cores.
        cores: usize,
    },
    /// Flows that each receive queue remembers.
    Flows {
        /// Which card.
        interface: String,
        /// Its receive queues.
        queues: usize,
        /// For each.
        flows: u64,
    },
    /// A wider memory limit of the control group.
    GroupMemory {
        /// Bytes.
        bytes: u64,
        /// Where.
        place: Place,
    },
    /// More addresses of the app.
    BackendAddresses(u64),
    /// Another machine.
    Hardware(Hardware),
}

/// What no line can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// Memory, in bytes.
    Memory {
        /// For this goal.
        bytes: u64,
        /// Windows' Linux takes half of the memory unless told.
        place: Place,
    },
    /// Cores.
    Cores(u64),
    /// A kernel of at least this version.
    Kernel(&'static str),
}

impl Hardware {
    fn line(self) -> String {
        match self {
            Hardware::Memory { bytes: wanted, place: Place::Wsl } => format!(
                "memory={}GB   # under [wsl2] in .wslconfig, if Windows has it: else a machine with {}",
                wanted.div_ceil(1 << 30),
                bytes(wanted)
            ),
            Hardware::Memory { bytes: wanted, .. } => {
                format!("a machine with {} of memory, or several machines", bytes(wanted))
            }
            Hardware::Cores(cores) => format!("a machine with {cores} cores, or several machines"),
            Hardware::Kernel(version) => format!("Linux {version} or later"),
        }
    }
}

/// What `--apply` does for a fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write a value into a file of the kernel.
    Write {
        /// The file.
        path: String,
        /// The value.
        value: String,
    },
    /// Load a module.
    Load(&'static str),
    /// Set the rings of a card.
    Rings {
        /// Which card.
        interface: String,
        /// For receiving.
        rx: u32,
        /// For sending.
        tx: u32,
    },
}

impl Serialize for Fix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.lines().join("\n"))
    }
}

/// As the kernel wants a set of cores: hexadecimal, in words of 32 separated by commas.
fn mask(cores: usize) -> String {
    let words = (0..cores.div_ceil(32)).map(|word| match cores - word * 32 {
        32.. => "ffffffff".to_owned(),
        rest => format!("{:x}", (1_u64 << rest) - 1),
    });
    words.collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(",")
}

/// The line that writes a value for every receive queue.
fn for_queues(interface: &str, queues: usize, file: &str, value: &str) -> String {
    let device = format!("/sys/class/net/{interface}/queues");
    match queues {
        1 => format!("echo {value} > {device}/rx-0/{file}"),
        _ => format!("for q in {device}/rx-*; do echo {value} > $q/{file}; done"),
    }
}

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Where a setting lies.
fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

impl Fix {
    /// The lines for a person: commands, or lines of a file with the file's name behind `#`.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Fix::Sysctl { name, value } if value.contains(' ') => vec![format!("sysctl -w {name}='{value}'")],
            Fix::Sysctl { name, value } => vec![format!("sysctl -w {name}={value}")],
            Fix::OpenFiles { limit, place: Place::Container } => {
                vec![format!("docker run --ulimit nofile={limit}:{limit} ...   # from outside of the container")]
            }
            Fix::OpenFiles { limit, .. } => vec![
                format!("ulimit -Hn {limit}   # as root, in the shell that starts it"),
                format!("* hard nofile {limit}   # /etc/security/limits.d/cableway.conf, at the next login"),
            ],
            Fix::UnitOpenFiles(limit) => vec![
                format!("LimitNOFILE={limit}   # under [Service]: systemctl edit cableway"),
                "systemctl restart cableway".to_owned(),
            ],
            Fix::Restart { limit, is_unit: true } => {
                vec![format!("systemctl restart cableway   # with LimitNOFILE={limit}")]
            }
            Fix::Restart { limit, is_unit: false } => {
                vec![format!("restart the server from a shell with: ulimit -Hn {limit}")]
            }
            Fix::Option { name, value } => vec![format!("cableway serve --{name} {value}")],
            Fix::Module(name) => vec![format!("modprobe {name}")],
            Fix::HugePagesOnRequest => vec![format!("echo madvise > {HUGE_PAGES}")],
            Fix::Rings { interface, rx, tx } => vec![format!("ethtool -G {interface} rx {rx} tx {tx}")],
            Fix::SpreadPackets { interface, queues, cores } => {
                vec![for_queues(interface, *queues, "rps_cpus", &mask(*cores))]
            }
            Fix::Flows { interface, queues, flows } => {
                vec![for_queues(interface, *queues, "rps_flow_cnt", &flows.to_string())]
            }
            Fix::GroupMemory { bytes, place: Place::Container } => {
                vec![format!(
                    "docker run --memory {}m ...   # only from outside of the container",
                    bytes.div_ceil(1 << 20)
                )]
            }
            Fix::GroupMemory { bytes, .. } => {
                vec![format!("MemoryMax={}M   # under [Service]: systemctl edit cableway", bytes.div_ceil(1 << 20))]
            }
            Fix::BackendAddresses(count) => {
                vec![format!("run the app on {count} addresses: doctor --backends {count}; or on a Unix socket")]
            }
            Fix::Hardware(hardware) => vec![hardware.line()],
        }
    }

    /// Whether nothing but another machine helps.
    pub fn is_hardware(&self) -> bool {
        matches!(self, Fix::Hardware(_))
    }

    /// What can be set right away, from inside.
    pub fn changes(&self) -> Vec<Change> {
        let write = |path: String, value: &str| Change::Write { path, value: value.to_owned() };
        match self {
            Fix::Sysctl { name, value } => vec![write(sysctl_path(name), value)],
            Fix::Module(name) => vec![Change::Load(name)],
            Fix::HugePagesOnRequest => vec![write(HUGE_PAGES.to_owned(), "madvise")],
            Fix::Rings { interface, rx, tx } => {
                vec![Change::Rings { interface: interface.clone(), rx: *rx, tx: *tx }]
            }
            Fix::SpreadPackets { interface, queues, cores } => (0..*queues)
                .map(|n| write(format!("/sys/class/net/{interface}/queues/rx-{n}/rps_cpus"), &mask(*cores)))
                .collect(),
            Fix::Flows { interface, queues, flows } => (0..*queues)
                .map(|n| write(format!("/sys/class/net/{interface}/queues/rx-{n}/rps_flow_cnt"), &flows.to_string()))
                .collect(),
            Fix::OpenFiles { .. }
            | Fix::UnitOpenFiles(_)
            | Fix::Restart { .. }
            | Fix::Option { .. }
            | Fix::GroupMemory { .. }
            | Fix::BackendAddresses(_)
            | Fix::Hardware(_) => Vec::new(),
        }
    }

    /// The machine and the options as they would be behind it. Another machine is not pretended.
    pub fn pretend(&self, facts: &mut Facts, goal: &mut Goal) {
        match self {
            Fix::Sysctl { name, value } => {
                facts.sysctls.insert((*name).to_owned(), value.clone());
            }
            Fix::OpenFiles { limit, .. } => facts.own.hard = *limit,
            Fix::UnitOpenFiles(limit) => {
                if let Some(unit) = &mut facts.unit {
                    unit.nofile = Some(*limit);
                }
            }
            Fix::Restart { limit, .. } => {
                if let Some(server) = &mut facts.server {
                    (server.soft, server.hard) = (*limit, *limit);
                }
            }
            Fix::Option { name, value } => match *name {
                "max-conn" => goal.max_conn = *value,
                "acceptors" => goal.acceptors = *value as usize,
                "ping-interval" => goal.ping_interval = std::time::Duration::from_secs(*value),
                _ => {}
            },
            Fix::Module(name) => {
                if *name == "tcp_bbr" {
                    let available = facts.sysctls.entry("net.ipv4.tcp_available_congestion_control".to_owned());
                    *available.or_default() += " bbr";
                }
            }
            Fix::HugePagesOnRequest => facts.memory.huge_pages = Some("madvise".to_owned()),
            Fix::Rings { rx, tx, .. } => {
                if let Some(rings) = facts.interface.as_mut().and_then(|interface| interface.rings.as_mut()) {
                    (rings.rx.now, rings.tx.now) = (*rx, *tx);
                }
            }
            Fix::SpreadPackets { queues, cores, .. } => {
                if let Some(interface) = &mut facts.interface {
                    interface.rps_cpus = vec![*cores as u32; *queues];
                }
            }
            Fix::Flows { flows, .. } => {
                if let Some(interface) = &mut facts.interface {
                    interface.rps_flows = *flows;
                }
            }
            Fix::GroupMemory { bytes, .. } => {
                if let Some(group) = &mut facts.memory.cgroup {
                    group.limit_bytes = *bytes;
                }
            }
            Fix::BackendAddresses(count) => goal.backend_addresses = *count,
            Fix::Hardware(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_cores_are_written_as_the_kernel_reads_them() {
        assert_eq!([1, 4, 32, 33, 64].map(mask), ["1", "f", "ffffffff", "1,ffffffff", "ffffffff,ffffffff"]);
    }
}
