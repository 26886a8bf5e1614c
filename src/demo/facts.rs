//! The live facts that the page shows about the server it came from.

use std::time::Duration;

use serde::Serialize;

use super::idle_clients;

/// Connections below which no memory per connection is told: resident memory changes by pages and by what the
/// allocator keeps, and divided by a few connections it says nothing about one.
pub const CONNECTIONS_MIN: u64 = 100;

/// What the node knows about itself. Asked for once a second per open page; must not block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// WebSocket connections now.
    pub connections: u64,
    /// How many this process can hold.
    pub connections_max: u64,
    /// Resident memory of the process, in bytes. `None` where it cannot be read.
    pub resident_bytes: Option<u64>,
    /// The limit of open files.
    pub open_files_limit: u64,
    /// Descriptors in use. `None` where it cannot be read.
    pub open_files: Option<u64>,
    /// Shards, one thread each.
    pub shards: usize,
    /// Messages delivered to clients since start.
    pub messages_delivered: u64,
    /// Time since start.
    pub uptime: Duration,
}

/// Memory and connections at one moment, to measure what came since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Baseline {
    resident_bytes: Option<u64>,
    connections: u64,
}

impl Baseline {
    /// This moment.
    pub fn of(facts: &Facts) -> Baseline {
        Baseline { resident_bytes: facts.resident_bytes, connections: facts.connections }
    }

    /// What the connections that came since cost at most, if they are enough to tell: whatever else the process has
    /// needed since, such as buffers for its first calls, is counted in.
    pub fn growth(&self, facts: &Facts) -> Option<Growth> {
        let connections = facts.connections.checked_sub(self.connections)?;
        if connections < CONNECTIONS_MIN {
            return None;
        }
        let bytes = facts.resident_bytes?.saturating_sub(self.resident_bytes?);
        Some(Growth { bytes, connections, bytes_each: bytes / connections })
    }
}

/// Memory that came with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Growth {
    bytes: u64,
    connections: u64,
    bytes_each: u64,
}

/// What `/demo/facts` answers.
#[derive(Serialize)]
pub(super) struct Told<'a> {
    pub version: &'static str,
    pub connections: u64,
    pub connections_max: u64,
    pub resident_bytes: Option<u64>,
    /// `null` below [`CONNECTIONS_MIN`].
    pub growth: Option<Growth>,
    pub growth_connections_min: u64,
    pub open_files_limit: u64,
    pub open_files: Option<u64>,
    pub shards: usize,
    pub messages_delivered: u64,
    pub uptime_s: u64,
    pub idle_clients: Option<idle_clients::Status>,
    pub cable_path: &'a str,
    pub broadcast_url: &'a str,
    pub broadcast_key: Option<&'a str>,
    pub stream: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(connections: u64, resident_bytes: Option<u64>) -> Facts {
        Facts { connections, resident_bytes, ..Facts::default() }
    }

    #[test]
    fn memory_is_told_for_what_came_since_and_only_if_that_is_enough() {
        let baseline = Baseline::of(&facts(10, Some(1_000_000)));
        assert_eq!(baseline.growth(&facts(109, Some(9_000_000))), None);
        let growth = baseline.growth(&facts(1_010, Some(1_500_000)));
        assert_eq!(growth, Some(Growth { bytes: 500_000, connections: 1_000, bytes_each: 500 }));
        // Connections came, memory went: the allocator gave back more than they took.
        assert_eq!(baseline.growth(&facts(1_010, Some(900_000))).unwrap().bytes_each, 0);
        assert_eq!(baseline.growth(&facts(0, Some(900_000))), None);
        assert_eq!(baseline.growth(&facts(1_010, None)), None);
    }
}
