//! Listeners: from a host name to bound sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::config::{Config, ListenOn};
use crate::http::HttpServer;
use crate::os::listener::ListenerOptions;
use crate::os::{listener, passed};

use super::{StartError, settings};

/// The addresses behind a host name. `localhost` is 127.0.0.1, as AnyCable has it; empty is every address of the
/// machine.
pub(super) fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(vec![(ip, 0).into()]);
    }
    match host {
        "" => Ok(vec![(Ipv6Addr::UNSPECIFIED, 0).into()]),
        "localhost" => Ok(vec![(Ipv4Addr::LOCALHOST, 0).into()]),
        name => {
            let mut addresses: Vec<_> = (name, 0).to_socket_addrs()?.collect();
            addresses.sort_unstable();
            addresses.dedup();
            match addresses.is_empty() {
                true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
                false => Ok(addresses),
            }
        }
    }
}

/// The main port, on which clients come.
#[derive(Debug)]
pub(super) struct MainPort {
    /// Listeners of each shard; the first shard has one at least.
    pub of_shards: Vec<Vec<TcpListener>>,
    /// Whether shards deal out what they accept, because the kernel does not spread clients over all of them.
    pub is_dealt: bool,
    /// A supervisor has opened it.
    pub was_passed: bool,
}

/// The main port of a process that hands over to this one.
#[derive(Debug)]
pub(super) struct HandedPort {
    /// As it was configured there.
    pub host: String,
    pub port: u16,
    pub listeners: Vec<TcpListener>,
    /// A supervisor has opened it.
    pub was_passed: bool,
}

impl MainPort {
    /// Where it is.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.of_shards[0][0].local_addr()
    }

    /// Takes what a supervisor has passed, or else binds. A port that is kept by the parent of this process is shared.
    pub fn open(config: &Config, shards: usize, is_kept: bool) -> Result<MainPort, StartError> {
        let passed = passed::listeners().map_err(StartError::Passed)?;
        if passed.is_empty() {
            let of_shards = bind_shards(config, shards, config.server.reuse_port || is_kept)?;
            return Ok(MainPort { of_shards, is_dealt: false, was_passed: false });
        }
        let adopted = adopt(passed, config).map_err(StartError::Passed)?;
        let port = MainPort { was_passed: true, ..MainPort::share(adopted, shards) };
        let sockets: usize = port.of_shards.iter().map(Vec::len).sum();
        tracing::info!(
            "main port: {sockets} listening socket(s) passed by the supervisor, {}; --host and --port open nothing",
            if port.is_dealt { "whose connections are dealt out to the shards in turn" } else { "some for each shard" },
        );
        Ok(port)
    }

    /// Takes the port of another process over, with whoever waits in its queues, if the configuration has it in the same place;
    /// or else binds. What a supervisor has opened stays where it is.
    pub fn take_over(
        handed: HandedPort,
        config: &Config,
        shards: usize,
        is_kept: bool,
    ) -> Result<MainPort, StartError> {
        let HandedPort { host, port, listeners, was_passed } = handed;
        let is_same = was_passed || (&host, port) == (&config.server.host, config.server.port);
        if !is_same || listeners.is_empty() {
            let of_shards = bind_shards(config, shards, config.server.reuse_port || is_kept)?;
            return Ok(MainPort { of_shards, is_dealt: false, was_passed: false });
        }
        let refused = |source| StartError::Listen { address: format!("{host}:{port}"), what: "WebSockets", source };
        let mut adopted = adopt(listeners, config).map_err(refused)?;
        if !was_passed {
            let mut addresses: Vec<SocketAddr> = adopted.iter().map(|(address, _)| *address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            for address in addresses {
                // For each shard one, where there are more shards than before.
                let known = adopted.iter().filter(|(known, _)| *known == address).count();
                for _ in known..shards {
                    adopted.push((address, listener::bind(address, &settings::listener(config)).map_err(refused)?));
                }
            }
        }
        Ok(MainPort { was_passed, ..MainPort::share(adopted, shards) })
    }

    /// Shares listeners out, those of each address for itself. The kernel spreads the clients of an address over its listeners
    /// evenly, so with as many as there are shards, or a multiple, each shard takes its own.
    fn share(mut listeners: Vec<(SocketAddr, TcpListener)>, shards: usize) -> MainPort {
        listeners.sort_by_key(|(address, _)| *address);
        let of_shards = (0..shards).map(|_| Vec::new()).collect();
        let mut port = MainPort { of_shards, is_dealt: false, was_passed: false };
        let mut rest = listeners.into_iter().peekable();
        while let Some((address, first)) = rest.next() {
            let others = std::iter::from_fn(|| rest.next_if(|(other, _)| *other == address));
            let same: Vec<TcpListener> = std::iter::once(first).chain(others.map(|(_, listener)| listener)).collect();
            port.is_dealt |= !same.len().is_multiple_of(shards);
            for (at, listener) in same.into_iter().enumerate() {
                port.of_shards[at % shards].push(listener);
            }
        }
        port
    }
}

/// Listeners that somebody else has opened, with the options that they would have here, and where they are.
fn adopt(listeners: Vec<TcpListener>, config: &Config) -> io::Result<Vec<(SocketAddr, TcpListener)>> {
    let options = settings::listener(config);
    let adopted = listeners.into_iter().map(|listener| {
        let listener = listener::adopt(listener, &options)?;
        Ok((listener.local_addr()?, listener))
    });
    adopted.collect()
}

/// Binds one listener for each shard on each address of the host; port 0 is chosen once. The port is this process's
/// alone unless it is `shared`, as `--reuse-port` says: several would share its clients without a word.
fn bind_shards(config: &Config, shards: usize, shared: bool) -> Result<Vec<Vec<TcpListener>>, StartError> {
    let host = &config.server.host;
    let refused = |port: u16| {
        let address = format!("{host}:{port}");
        move |source| StartError::Listen { address, what: "WebSockets", source }
    };
    let options = settings::listener(config);
    let mut port = config.server.port;
    let mut of_shards: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    for mut address in resolve(host).map_err(refused(port))? {
        for (shard, listeners) in of_shards.iter_mut().enumerate() {
            address.set_port(port);
            let is_first = shard == 0 && !shared;
            let bind = if is_first { listener::bind_first } else { listener::bind };
            let bound = bind(address, &options).map_err(explained).map_err(refused(port))?;
            port = bound.local_addr().map_err(refused(port))?.port();
            listeners.push(bound);
        }
    }
    Ok(of_shards)
}

/// Says what to do about a port that is taken, which `--reuse-port` may be the answer to.
pub(super) fn explained(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(
            io::ErrorKind::AddrInUse,
            "address already in use; if several servers are meant to share it, start each with --reuse-port",
        ),
        _ => error,
    }
}

/// What `TcpListener::bind` asks for, of a port that several processes share.
const SHARED: ListenerOptions = ListenerOptions { backlog: 128, keepalive: None, user_timeout: Duration::ZERO };

/// A port of its own for ordinary HTTP, bound, and the server for it.
pub(super) struct HttpPort {
    pub place: ListenOn,
    pub listeners: Vec<TcpListener>,
    pub server: HttpServer,
}

impl HttpPort {
    /// Binds a listener on each address of the host; one that is `shared` with the other processes of this server.
    pub(super) fn bind(place: &ListenOn, server: HttpServer, shared: bool) -> Result<HttpPort, StartError> {
        let ListenOn::Own { host, port } = place else { unreachable!("the main port has its own way in") };
        let refused = |source| StartError::Listen { address: format!("{host}:{port}"), what: "HTTP", source };
        let mut listeners = Vec::new();
        for mut address in resolve(host).map_err(refused)? {
            address.set_port(*port);
            let listener = if shared { listener::bind(address, &SHARED) } else { TcpListener::bind(address) };
            let listener = listener.map_err(refused)?;
            listener.set_nonblocking(true).map_err(refused)?;
            listeners.push(listener);
        }
        Ok(HttpPort { place: place.clone(), listeners, server })
    }

    /// Where it really listens first.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.listeners.first()?.local_addr().ok()
    }

    /// Makes everything that can fail; what is left is to accept.
    pub(super) fn ready(self, runtime: &Runtime) -> io::Result<ReadyPort> {
        let _runtime = runtime.enter();
        let copies = self.listeners.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        let listeners = self.listeners.into_iter().map(tokio::net::TcpListener::from_std).collect::<io::Result<_>>()?;
        Ok(ReadyPort { place: self.place, copies, listeners, server: self.server })
    }
}

/// A port of its own for ordinary HTTP that accepts as soon as it is told to.
pub(super) struct ReadyPort {
    pub place: ListenOn,
    /// More handles of the listeners, for a process that takes over.
    pub copies: Vec<TcpListener>,
    listeners: Vec<tokio::net::TcpListener>,
    pub server: HttpServer,
}

impl ReadyPort {
    /// Accepts from now on, on the runtime.
    pub(super) fn serve(&mut self, runtime: &Runtime) {
        for listener in self.listeners.drain(..) {
            let server = self.server.clone();
            runtime.spawn(async move { server.listen(listener).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(of_addresses: &[usize], shards: usize) -> (Vec<usize>, bool) {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |port: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, 1 + port as u16));
        let of_address = |(port, &count): (usize, &usize)| (0..count).map(move |_| (address(port), listener()));
        let port = MainPort::share(of_addresses.iter().enumerate().flat_map(of_address).collect(), shards);
        (port.of_shards.iter().map(Vec::len).collect(), port.is_dealt)
    }

    #[test]
    fn connections_are_dealt_out_unless_each_shard_has_a_listener_of_each_address() {
        for (of_addresses, shards, of_shards, is_dealt) in [
            (&[1][..], 1, &[1][..], false),
            (&[1], 3, &[1, 0, 0], true),
            (&[3], 3, &[1, 1, 1], false),
            (&[4], 2, &[2, 2], false),
            (&[3], 2, &[2, 1], true),
            // One for IPv4 and one for IPv6.
            (&[1, 1], 2, &[2, 0], true),
            (&[2, 2], 2, &[2, 2], false),
        ] {
            assert_eq!(shared(of_addresses, shards), (of_shards.to_vec(), is_dealt), "{of_addresses:?}");
        }
    }
}
