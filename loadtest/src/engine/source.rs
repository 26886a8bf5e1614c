//! Which local addresses connections come from. One address has about 28,000 ports on Linux's defaults
//! (`ip_local_port_range`), so a million connections on loopback need many addresses out of 127.0.0.0/8.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Connections an address is used for when we choose the addresses: well below the port range, because finding a free
/// port gets slow when most are taken.
const CONNECTIONS_PER_ADDRESS: u32 = 8_000;

/// A list of source addresses; connection `n` uses the one at `n` modulo its length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(Vec<IpAddr>);

impl Sources {
    /// The given addresses; none: the kernel chooses.
    pub fn list(addresses: Vec<IpAddr>) -> Self {
        Self(addresses)
    }

    /// As many of 127.0.0.0/8 as `connections` need when all servers are on IPv4 loopback; otherwise none.
    pub fn for_servers(servers: &[SocketAddr], connections: u32) -> Self {
        if !servers.iter().all(|server| matches!(server.ip(), IpAddr::V4(address) if address.is_loopback())) {
            return Self::default();
        }
        let count = connections.div_ceil(CONNECTIONS_PER_ADDRESS).max(4);
        // From 127.1.0.1 up; 250 a byte leaves out 0 and 255.
        let address = |i: u32| Ipv4Addr::new(127, (1 + i / 62_500) as u8, (i / 250 % 250) as u8, (1 + i % 250) as u8);
        Self((0..count).map(|i| IpAddr::V4(address(i))).collect())
    }

    /// The address of connection `number`.
    pub fn pick(&self, number: u32) -> Option<SocketAddr> {
        let index = number as usize % self.0.len().max(1);
        self.0.get(index).map(|address| SocketAddr::new(*address, 0))
    }

    /// How many addresses there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_connections_get_enough_loopback_addresses() {
        let sources = Sources::for_servers(&["127.0.0.1:80".parse().unwrap()], 1_000_000);
        assert_eq!(sources.count(), 125);
        let picked: std::collections::HashSet<_> = (0..1_000_000).map(|n| sources.pick(n).unwrap()).collect();
        assert_eq!(picked.len(), 125);
        assert!(picked.iter().all(|address| address.ip().is_loopback()));
    }

    #[test]
    fn a_server_elsewhere_is_reached_from_whatever_the_kernel_chooses() {
        let sources =
            Sources::for_servers(&["127.0.0.1:80", "[::1]:80"].map(|address| address.parse().unwrap()), 1_000);
        assert_eq!(sources.pick(7), None);
    }
}
