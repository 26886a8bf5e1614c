//! What each of several processes may have of the limits that are set for all.

use crate::config::Config;

/// The part of `total` that this one of `of` gets: all parts together are `total`, and each is 1 at least.
fn part(total: usize, child: u16, of: u16) -> usize {
    let (child, of) = (usize::from(child), usize::from(of));
    (total / of + usize::from(child < total % of)).max(1)
}

/// The same of a limit whose 0 means that there is none.
fn part_if_any(total: usize, child: u16, of: u16) -> usize {
    if total == 0 { 0 } else { part(total, child, of) }
}

/// The configuration of one of several processes on a machine with so many cores: limits of the server are divided, and what is
/// of one client or one stream stays.
///
/// What the broker keeps is not divided: with the broker "memory" the parent has it, and elsewhere it is a bound for what a node
/// keeps while its broker is away.
pub(in crate::node) fn share(config: &Config, child: u16, of: u16, cores: usize) -> Config {
    let mut config = config.clone();
    let server = &mut config.server;
    server.max_conn = part_if_any(server.max_conn, child, of);
    let acceptors = if server.acceptors == 0 { cores } else { usize::from(server.acceptors) };
    server.acceptors = u16::try_from(part(acceptors, child, of)).unwrap_or(u16::MAX);
    let rpc = &mut config.rpc;
    rpc.concurrency = part(rpc.concurrency as usize, child, of) as u32;
    rpc.queue_size = part(rpc.queue_size, child, of);
    rpc.queue_bytes = part_if_any(rpc.queue_bytes, child, of);
    let disconnect = &mut config.disconnect;
    disconnect.rate = part(disconnect.rate as usize, child, of) as u32;
    disconnect.backlog = part(disconnect.backlog, child, of);
    disconnect.backlog_bytes = part_if_any(disconnect.backlog_bytes, child, of);
    // The parent has the one of the server.
    config.app.control_socket = None;
    config.ws.max_buffers_size = part_if_any(config.ws.max_buffers_size, child, of);
    config
}

/// Options whose values are less than one for each process, so that all of them together have more than was set.
pub(in crate::node) fn too_many_for(config: &Config, of: u16) -> Vec<&'static str> {
    let limits = [
        ("--max-conn", config.server.max_conn),
        ("--acceptors", usize::from(config.server.acceptors)),
        ("--rpc-concurrency", config.rpc.concurrency as usize),
        ("--rpc-queue-size", config.rpc.queue_size),
        ("--disconnect-rate", config.disconnect.rate as usize),
        ("--disconnect-backlog-size", config.disconnect.backlog),
    ];
    let short = limits.into_iter().filter(|(_, total)| (1..usize::from(of)).contains(total));
    short.map(|(option, _)| option).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_whole_and_as_even_as_can_be() {
        for (total, of) in [(28, 6), (100_000, 6), (6, 6), (7, 3), (1, 1), (100, 7)] {
            let parts: Vec<usize> = (0..of).map(|child| part(total, child, of)).collect();
            assert_eq!(parts.iter().sum::<usize>(), total, "{parts:?}");
            assert!(parts.iter().max().unwrap() - parts.iter().min().unwrap() <= 1, "{parts:?}");
        }
    }

    #[test]
    fn nobody_gets_nothing_and_what_is_unlimited_stays_so() {
        let mut config = Config::default();
        config.rpc.concurrency = 2;
        config.rpc.queue_bytes = 0;
        let shares: Vec<Config> = (0..4).map(|child| share(&config, child, 4, 2)).collect();
        for share in &shares {
            assert_eq!((share.rpc.concurrency, share.rpc.queue_bytes, share.server.max_conn), (1, 0, 0));
            assert_eq!(share.server.acceptors, 1, "two cores for four processes");
        }
        assert_eq!(too_many_for(&config, 4), ["--rpc-concurrency"]);
        assert_eq!(too_many_for(&config, 2), [""; 0]);
        let sum: u32 = shares.iter().map(|share| share.disconnect.rate).sum();
        assert_eq!(sum, config.disconnect.rate);
        assert_eq!(share(&config, 0, 2, 8).server.acceptors, 4);
    }
}
