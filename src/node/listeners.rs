//! Listeners: from a host name to bound sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

use tokio::runtime::Runtime;

use crate::config::{Config, ListenOn};
use crate::http::HttpServer;
use crate::os::listener;

use super::{StartError, settings};

/// The addresses behind a host name. `localhost` is 127.0.0.1, as AnyCable has it; empty is every address of the
/// machine.
fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
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

/// Binds one listener for each shard on each address of the host; port 0 is chosen once. The port is this process's
/// alone unless `--reuse-port` says that several are meant: they would share its clients without a word.
pub(super) fn bind_shards(config: &Config, shards: usize) -> Result<Vec<Vec<TcpListener>>, StartError> {
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
            let is_first = shard == 0 && !config.server.reuse_port;
            let bind = if is_first { listener::bind_first } else { listener::bind };
            let bound = bind(address, &options).map_err(explained).map_err(refused(port))?;
            port = bound.local_addr().map_err(refused(port))?.port();
            listeners.push(bound);
        }
    }
    Ok(of_shards)
}

/// Says what to do about a port that is taken, which `--reuse-port` may be the answer to.
fn explained(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(
            io::ErrorKind::AddrInUse,
            "address already in use; if several servers are meant to share it, start each with --reuse-port",
        ),
        _ => error,
    }
}

/// A port of its own for ordinary HTTP, bound, and the server for it.
pub(super) struct HttpPort {
    pub place: ListenOn,
    pub listeners: Vec<TcpListener>,
    pub server: HttpServer,
}

impl HttpPort {
    /// Binds a listener on each address of the host.
    pub(super) fn bind(place: &ListenOn, server: HttpServer) -> Result<HttpPort, StartError> {
        let ListenOn::Own { host, port } = place else { unreachable!("the main port has its own way in") };
        let refused = |source| StartError::Listen { address: format!("{host}:{port}"), what: "HTTP", source };
        let mut listeners = Vec::new();
        for mut address in resolve(host).map_err(refused)? {
            address.set_port(*port);
            let listener = TcpListener::bind(address).map_err(refused)?;
            listener.set_nonblocking(true).map_err(refused)?;
            listeners.push(listener);
        }
        Ok(HttpPort { place: place.clone(), listeners, server })
    }

    /// Where it really listens first.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.listeners.first()?.local_addr().ok()
    }

    /// Accepts from now on, on the runtime; gives the server.
    pub(super) fn serve(self, runtime: &Runtime) -> io::Result<HttpServer> {
        let _runtime = runtime.enter();
        for listener in self.listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let server = self.server.clone();
            runtime.spawn(async move { server.listen(listener).await });
        }
        Ok(self.server)
    }
}
