//! How many clients this process can hold, and which limit binds first.

use crate::config::Config;
use crate::os::limits;

/// Descriptors kept for everything that is not a client, at least: the shards' own, calls to the app, logs.
const RESERVE_MIN: u64 = 64;

/// Descriptors kept, at most: the HTTP server's connections and unfinished handshakes want some too, but a large limit
/// is there for clients.
const RESERVE_MAX: u64 = 2048;

/// How many clients fit, and why not more.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// WebSockets this process takes; one more is answered 503.
    pub clients: u64,
    /// Descriptors that are not given to clients.
    pub reserve: u64,
    /// What would have to be raised first.
    pub bound_by: &'static str,
    /// Sockets of all kinds that the shards take: half of the reserve is for requests and refusals, and the other half
    /// stays free for the process itself however many connect and say nothing.
    pub sockets_max: usize,
}

impl Capacity {
    /// Works it out for a limit of open files that is in force.
    pub fn find(config: &Config, open_files: u64, shards: usize) -> Capacity {
        let own = 16 + 8 * shards as u64 + u64::from(config.rpc.concurrency).min(256);
        let reserve = (open_files / 16).clamp(RESERVE_MIN, RESERVE_MAX).max(own).min(open_files / 2);
        let mut capacity = Capacity {
            clients: open_files - reserve,
            reserve,
            bound_by: "open files (ulimit -n, LimitNOFILE=)",
            sockets_max: usize::try_from(open_files - reserve / 2).unwrap_or(usize::MAX),
        };
        if let Some((used, max)) = limits::system_files() {
            capacity.bind(max.saturating_sub(used), "open files of the machine (fs.file-max)");
        }
        if let Some(watches) = limits::epoll_watches() {
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

    #[test]
    fn the_smallest_limit_binds_and_is_named() {
        let mut config = Config::default();
        let capacity = Capacity::find(&config, 20_000, 2);
        assert_eq!((capacity.clients, capacity.reserve), (18_750, 1_250));
        assert!(capacity.bound_by.contains("LimitNOFILE"));
        config.server.max_conn = 100;
        let capacity = Capacity::find(&config, 20_000, 2);
        assert_eq!((capacity.clients, capacity.bound_by), (100, "--max-conn"));
    }

    #[test]
    fn a_tiny_limit_still_leaves_room_for_both() {
        let capacity = Capacity::find(&Config::default(), 128, 2);
        assert!(capacity.clients >= 60 && capacity.reserve >= 60, "{capacity:?}");
    }
}
