//! How many clients this process can hold, which limit binds first, and what else of the machine stands in the way. Checks
//! and arithmetic are those of `cableway doctor`.

use crate::config::{Config, RpcImplementation};
use crate::doctor::{self, Backend, Goal};
use crate::os::facts::{Facts, Wanted};

/// Fewer clients than that are hardly meant, unless `--max-conn` says so: the log warns of what is in the way of them.
const CLIENTS_WANTED: u64 = 60_000;

/// The facts of the machine for this process, whose limit of open files is known already, because it was raised.
pub fn facts(open_files: u64) -> Facts {
    let mut facts = Facts::read(&Wanted { only_own: true, ..Wanted::default() });
    (facts.own.soft, facts.own.hard) = (open_files, open_files);
    facts
}

/// How many clients fit, and why not more.
#[derive(Clone, Debug)]
pub struct Capacity {
    /// WebSockets this process takes; one more is answered 503.
    pub clients: u64,
    /// Descriptors that are not given to clients.
    pub reserve: u64,
    /// The limit that would have to be raised first.
    pub bound_by: String,
    /// Sockets of all kinds that the shards take: half of the reserve is for requests and refusals, and the other half
    /// stays free for the process itself however many connect and say nothing.
    pub sockets_max: usize,
}

impl Capacity {
    /// Computes it from the configuration and the facts of the machine.
    pub fn find(config: &Config, facts: &Facts, shards: usize) -> Capacity {
        let open_files = facts.own.hard;
        let reserve = doctor::reserve(open_files, shards, config.rpc.concurrency.into());
        let bound = doctor::descriptors_bound(facts, &goal(config, shards, CLIENTS_WANTED));
        let bound = bound.expect("the limit of open files is always a bound");
        Capacity {
            clients: bound.connections,
            reserve,
            bound_by: bound.by,
            sockets_max: usize::try_from(open_files - reserve / 2).unwrap_or(usize::MAX),
        }
    }
}

/// What the boot log says of the machine.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    /// A line for each check that fails.
    pub failing: Vec<String>,
    /// What every shard's accept queue is clamped to.
    pub accept_queue: u64,
}

impl Outlook {
    /// Looks at it with as many clients as are meant: `--max-conn`, or else as many as descriptors and hardware hold.
    pub fn find(config: &Config, facts: &Facts, shards: usize, capacity: &Capacity) -> Outlook {
        let clients = match config.server.max_conn as u64 {
            0 => {
                let hardware = doctor::hardware_bound(facts, &goal(config, shards, CLIENTS_WANTED));
                let hardware = hardware.map_or(u64::MAX, |bound| bound.connections);
                capacity.clients.min(hardware).max(CLIENTS_WANTED)
            }
            meant => meant,
        };
        let backlog = u64::from(config.tcp.backlog);
        Outlook {
            failing: doctor::at_boot(facts, &goal(config, shards, clients)),
            accept_queue: facts.number("net.core.somaxconn").map_or(backlog, |most| most.min(backlog)),
        }
    }
}

pub(super) fn goal(config: &Config, shards: usize, clients: u64) -> Goal {
    let backend = match config.rpc.implementation {
        RpcImplementation::Http => Backend::Http,
        _ => Backend::Grpc,
    };
    Goal { acceptors: shards, ..Goal::new(clients, backend, config) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which only the process's own limit binds.
    fn roomy(open_files: u64) -> Facts {
        let mut facts = Facts { files_used: Some(5_000), ..Facts::default() };
        facts.own.hard = open_files;
        set(&mut facts, "fs.file-max", 1 << 40);
        set(&mut facts, "fs.epoll.max_user_watches", 1 << 30);
        facts
    }

    fn set(facts: &mut Facts, name: &str, value: u64) {
        facts.sysctls.insert(name.to_owned(), value.to_string());
    }

    #[test]
    fn the_smallest_limit_binds_and_is_named() {
        let mut config = Config::default();
        let mut machine = roomy(20_000);
        let bound = |config: &Config, machine: &Facts| {
            let Capacity { clients, bound_by, reserve, sockets_max } = Capacity::find(config, machine, 2);
            assert_eq!((reserve, sockets_max), (1_250, 19_375), "both are of the process's own limit");
            (clients, bound_by)
        };
        assert_eq!(bound(&config, &machine), (18_750, "open files (hard limit)".to_owned()));
        set(&mut machine, "fs.file-max", 15_000);
        assert_eq!(bound(&config, &machine), (10_000, "fs.file-max".to_owned()));
        set(&mut machine, "fs.epoll.max_user_watches", 9_000);
        assert_eq!(bound(&config, &machine), (9_000, "fs.epoll.max_user_watches".to_owned()));
        config.server.max_conn = 100;
        assert_eq!(bound(&config, &machine), (100, "--max-conn".to_owned()));
    }

    #[test]
    fn what_cannot_be_read_binds_nothing_and_a_full_machine_leaves_room_for_nobody() {
        let mut unknown = Facts::default();
        unknown.own.hard = 20_000;
        assert_eq!(Capacity::find(&Config::default(), &unknown, 2).clients, 18_750);
        let mut full = roomy(20_000);
        set(&mut full, "fs.file-max", 500);
        assert_eq!(Capacity::find(&Config::default(), &full, 2).clients, 0);
    }

    #[test]
    fn a_tiny_limit_still_leaves_room_for_both() {
        let capacity = Capacity::find(&Config::default(), &roomy(128), 2);
        assert!(capacity.clients >= 60 && capacity.reserve >= 60, "{capacity:?}");
    }

    #[test]
    fn a_small_limit_is_warned_about_unless_it_is_meant() {
        let failing = |config: &Config, open_files| {
            let facts = roomy(open_files);
            let capacity = Capacity::find(config, &facts, 2);
            Outlook::find(config, &facts, 2, &capacity).failing
        };
        let mut config = Config::default();
        let lines = failing(&config, 20_000);
        assert!(lines.len() == 1 && lines[0].starts_with("open files (hard limit): 20,000; "), "{lines:?}");
        assert_eq!(failing(&config, 200_000), [""; 0]);
        config.server.max_conn = 10_000;
        assert_eq!(failing(&config, 20_000), [""; 0]);
        config.server.max_conn = 19_999;
        assert_eq!(failing(&config, 20_000).len(), 1);
    }

    #[test]
    fn the_queue_is_what_the_kernel_gives() {
        let mut facts = roomy(100_000);
        let config = Config::default();
        let queue = |facts: &Facts| Outlook::find(&config, facts, 2, &Capacity::find(&config, facts, 2)).accept_queue;
        assert_eq!(queue(&facts), 4096);
        set(&mut facts, "net.core.somaxconn", 128);
        assert_eq!(queue(&facts), 128);
    }
}
