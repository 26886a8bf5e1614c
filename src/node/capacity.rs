//! How many clients this process can hold, and which limit binds first.

use crate::config::Config;
use crate::os::limits;

/// Descriptors kept for everything that is not a client, at least: the shards' own, calls to the app, log files.
const RESERVE_MIN: u64 = 64;

/// Descriptors kept, at most: the HTTP server's connections and unfinished handshakes need some too, but most of a large
/// limit is for clients.
const RESERVE_MAX: u64 = 2048;

/// What the machine allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineLimits {
    /// The limit of open files in force for this process.
    pub open_files: u64,
    /// Descriptors in use on the whole machine, and how many there may be; `None` where it cannot be read.
    pub system_files: Option<(u64, u64)>,
    /// Sockets that this user may have watched; `None` where it cannot be read.
    pub epoll_watches: Option<u64>,
}

impl MachineLimits {
    /// Reads the limits of the machine; that of open files is known already, because it was raised.
    pub fn read(open_files: u64) -> MachineLimits {
        MachineLimits { open_files, system_files: limits::system_files(), epoll_watches: limits::epoll_watches() }
    }
}

/// How many clients fit, and why not more.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// WebSockets this process takes; one more is answered 503.
    pub clients: u64,
    /// Descriptors that are not given to clients.
    pub reserve: u64,
    /// The limit that would have to be raised first.
    pub bound_by: &'static str,
    /// Sockets of all kinds that the shards take: half of the reserve is for requests and refusals, and the other half
    /// stays free for the process itself however many connect and say nothing.
    pub sockets_max: usize,
}

impl Capacity {
    /// Computes it from the configuration and the limits of the machine.
    pub fn find(config: &Config, machine: &MachineLimits, shards: usize) -> Capacity {
        let open_files = machine.open_files;
        let own = 16 + 8 * shards as u64 + u64::from(config.rpc.concurrency).min(256);
        let reserve = (open_files / 16).clamp(RESERVE_MIN, RESERVE_MAX).max(own).min(open_files / 2);
        let mut capacity = Capacity {
            clients: open_files - reserve,
            reserve,
            bound_by: "open files (ulimit -n, LimitNOFILE=)",
            sockets_max: usize::try_from(open_files - reserve / 2).unwrap_or(usize::MAX),
        };
        if let Some((used, max)) = machine.system_files {
            capacity.bind(max.saturating_sub(used), "open files of the machine (fs.file-max)");
        }
        if let Some(watches) = machine.epoll_watches {
            capacity.bind(watches, "watched sockets of this user (fs.epoll.max_user_watches)");
        }
        if config.server.max_conn > 0 {
            capacity.bind(config.server.max_conn as u64, "--max-conn");
        }
        capacity
    }

    fn bind(&mut self, clients: u64, by: &'static str) {
        if clients < self.clients {
            (self.clients, self.bound_by) = (clients, by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which only the process's own limit binds.
    fn roomy(open_files: u64) -> MachineLimits {
        MachineLimits { open_files, system_files: Some((5_000, 1 << 40)), epoll_watches: Some(1 << 30) }
    }

    #[test]
    fn the_smallest_limit_binds_and_is_named() {
        let mut config = Config::default();
        let mut machine = roomy(20_000);
        let bound = |config: &Config, machine: &MachineLimits| {
            let Capacity { clients, bound_by, reserve, sockets_max } = Capacity::find(config, machine, 2);
            assert_eq!((reserve, sockets_max), (1_250, 19_375), "both are of the process's own limit");
            (clients, bound_by)
        };
        assert_eq!(bound(&config, &machine), (18_750, "open files (ulimit -n, LimitNOFILE=)"));
        machine.system_files = Some((5_000, 15_000));
        assert_eq!(bound(&config, &machine), (10_000, "open files of the machine (fs.file-max)"));
        machine.epoll_watches = Some(9_000);
        assert_eq!(bound(&config, &machine), (9_000, "watched sockets of this user (fs.epoll.max_user_watches)"));
        config.server.max_conn = 100;
        assert_eq!(bound(&config, &machine), (100, "--max-conn"));
    }

    #[test]
    fn what_cannot_be_read_binds_nothing_and_a_full_machine_leaves_room_for_nobody() {
        let unknown = MachineLimits { open_files: 20_000, ..MachineLimits::default() };
        assert_eq!(Capacity::find(&Config::default(), &unknown, 2).clients, 18_750);
        let full = MachineLimits { system_files: Some((600, 500)), ..roomy(20_000) };
        assert_eq!(Capacity::find(&Config::default(), &full, 2).clients, 0);
    }

    #[test]
    fn a_tiny_limit_still_leaves_room_for_both() {
        let capacity = Capacity::find(&Config::default(), &roomy(128), 2);
        assert!(capacity.clients >= 60 && capacity.reserve >= 60, "{capacity:?}");
    }
}
