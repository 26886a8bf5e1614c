//! How many processes, and how many clients they hold together.

use crate::config::{Config, Processes};
use crate::doctor;
use crate::os::facts::Facts;

use crate::node::StartError;
use crate::node::capacity::{self, Capacity, Outlook};
use crate::node::processes::share;

/// The kernel chooses a process for a client by a hash, so the fullest gets more than the mean. With this many standard
/// deviations left free it has room in all but one case of a thousand million.
const DEVIATIONS: f64 = 6.0;

/// Shards of one process that the relay can tell apart.
const SHARDS_MAX: usize = 64;

/// How many processes and shards there are, and what they hold.
pub struct Size {
    pub of: u16,
    /// Of all processes.
    pub shards: usize,
    pub shards_each: usize,
    /// Of all processes.
    pub capacity: Capacity,
    pub outlook: Outlook,
}

impl Size {
    /// Whether the relay can tell all shards apart.
    pub fn check(&self) -> Result<(), StartError> {
        match self.shards_each {
            0..=SHARDS_MAX => Ok(()),
            _ => Err(StartError::Setting(format!(
                "--acceptors is more than {SHARDS_MAX} for each process: lower it or raise --processes"
            ))),
        }
    }

    /// Works it out. `facts` are those of this process, whose limits each child has, too.
    pub fn find(config: &Config, facts: &Facts, cores: usize) -> Size {
        let of = match config.server.processes {
            Processes::Count(of) => of,
            Processes::Auto => needed(config, facts, cores),
        };
        let each = (0..of).map(|child| one(config, facts, cores, child, of));
        let each: Vec<(usize, Capacity)> = each.collect();
        let shards = each.iter().map(|(shards, _)| shards).sum();
        let machine = of_the_machine(facts, of);
        let together = Capacity::find(config, &machine, shards);
        let clients = each.iter().map(|(_, capacity)| capacity.clients).sum();
        let first = &each[0];
        let capacity = Capacity {
            bound_by: if clients <= together.clients { first.1.bound_by.clone() } else { together.bound_by },
            clients: together.clients.min(clients),
            reserve: each.iter().map(|(_, capacity)| capacity.reserve).sum(),
            sockets_max: each.iter().map(|(_, capacity)| capacity.sockets_max).sum(),
        };
        // That each process has a shard of its own is meant, however few cores there are.
        let outlook = Outlook::find(config, &machine, shards.min(cores), &capacity);
        Size { of, shards, shards_each: first.0, capacity, outlook }
    }
}

/// Shards and clients of one of so many.
fn one(config: &Config, facts: &Facts, cores: usize, child: u16, of: u16) -> (usize, Capacity) {
    let config = share(config, child, of, cores);
    let shards = usize::from(config.server.acceptors);
    let capacity = Capacity::find(&config, facts, shards);
    (shards, capacity)
}

/// The machine as so many processes have it: the limits of each are together this much larger.
fn of_the_machine(facts: &Facts, of: u16) -> Facts {
    let mut machine = facts.clone();
    machine.own.soft = machine.own.soft.saturating_mul(of.into());
    machine.own.hard = machine.own.hard.saturating_mul(of.into());
    // It is about one process.
    machine.sysctls.remove("fs.nr_open");
    machine
}

/// As many as hold `--max-conn`, or else what descriptors of the machine, memory and cores hold.
fn needed(config: &Config, facts: &Facts, cores: usize) -> u16 {
    let clients = match config.server.max_conn as u64 {
        0 => {
            let machine = of_the_machine(facts, Processes::MAX);
            let files = Capacity::find(config, &machine, cores).clients;
            let hardware = doctor::hardware_bound(facts, &capacity::goal(config, cores, files));
            hardware.map_or(files, |bound| bound.connections.min(files))
        }
        wanted => wanted,
    };
    // What one holds by itself, whatever its share of `--max-conn`.
    let mut unbounded = config.clone();
    unbounded.server.max_conn = 0;
    let holds = |of: u16| one(&unbounded, facts, cores, 0, of).1.clients as f64;
    let fits = |of: u16| {
        let mean = clients as f64 / f64::from(of);
        let deviation = if of > 1 { mean.sqrt() } else { 0.0 };
        mean + DEVIATIONS * deviation <= holds(of)
    };
    (1..Processes::MAX).find(|of| fits(*of)).unwrap_or(Processes::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(open_files: u64) -> Facts {
        let mut facts = Facts::default();
        facts.own.hard = open_files;
        facts.sysctls.insert("fs.file-max".to_owned(), (1u64 << 40).to_string());
        facts.sysctls.insert("fs.nr_open".to_owned(), (1u64 << 20).to_string());
        facts
    }

    #[test]
    fn there_are_as_many_processes_as_the_clients_need() {
        let mut config = Config::default();
        config.server.processes = Processes::Auto;
        for (max_conn, open_files, of) in [
            (15_000, 20_000, 1),
            (18_700, 20_000, 1),
            (18_751, 20_000, 2),
            (100_000, 20_000, 6),
            (1_000_000, 2_000_000, 1),
        ] {
            config.server.max_conn = max_conn;
            let size = Size::find(&config, &machine(open_files), 2);
            assert_eq!(size.of, of, "{max_conn} of {open_files}");
            assert_eq!((size.capacity.clients, size.capacity.bound_by.as_str()), (max_conn as u64, "--max-conn"));
        }
    }

    #[test]
    fn together_they_hold_the_sum_of_what_each_does_and_no_more_than_the_machine() {
        let mut config = Config::default();
        config.server.processes = Processes::Count(6);
        let mut facts = machine(20_000);
        let size = Size::find(&config, &facts, 2);
        assert_eq!((size.of, size.shards, size.shards_each), (6, 6, 1));
        assert_eq!(size.capacity.clients, 6 * 18_750);
        assert_eq!((size.capacity.bound_by.as_str(), size.capacity.reserve), ("open files (hard limit)", 6 * 1_250));
        facts.sysctls.insert("fs.file-max".to_owned(), "50000".to_owned());
        let size = Size::find(&config, &facts, 2);
        assert_eq!((size.capacity.clients, size.capacity.bound_by.as_str()), (50_000, "fs.file-max"));
    }
}
