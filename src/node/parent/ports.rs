//! The ports of the server, which the parent keeps so that they are the server's while no child listens.

use crate::config::{Config, ListenOn, Secrets};
use crate::os::listener::HeldPort;

use crate::node::StartError;
use crate::node::listeners::{explained, resolve};

/// What the main port is for.
const CLIENTS: &str = "WebSockets";

/// Ports that are kept, and which they are.
pub struct Ports {
    main: u16,
    admin: Option<u16>,
    /// Only to be there.
    _held: Vec<HeldPort>,
}

impl Ports {
    /// Keeps all ports that the configuration names; port 0 is chosen now.
    pub fn hold(config: &Config) -> Result<Ports, StartError> {
        let mut held = Vec::new();
        let main = hold(&config.server.host, config.server.port, CLIENTS, config.server.reuse_port, &mut held)?;
        let broadcast = config.broadcast.has(crate::config::BroadcastAdapter::Http).then(|| config.broadcast_on());
        let api = Secrets::resolve(config).api_on.then(|| config.api_on());
        let metrics = config.metrics.http_path.is_some().then(|| config.metrics_on());
        let mut places: Vec<ListenOn> = [broadcast, api, metrics].into_iter().flatten().collect();
        places.dedup();
        for (at, place) in places.iter().enumerate() {
            let ListenOn::Own { host, port } = place else { continue };
            if !places[..at].contains(place) {
                hold(host, *port, "HTTP", false, &mut held)?;
            }
        }
        let admin = match config.admin_on() {
            Some(ListenOn::Own { host, port }) => Some(hold(&host, port, "HTTP", false, &mut held)?),
            Some(ListenOn::Main) | None => None,
        };
        Ok(Ports { main, admin, _held: held })
    }

    /// The one on which clients come.
    pub fn main(&self) -> u16 {
        self.main
    }

    /// Names the ports that were chosen.
    pub fn write_into(&self, config: &mut Config) {
        config.server.port = self.main;
        config.admin.port = config.admin.port.and(self.admin);
    }
}

fn hold(
    host: &str,
    mut port: u16,
    what: &'static str,
    shared: bool,
    held: &mut Vec<HeldPort>,
) -> Result<u16, StartError> {
    let address_text = format!("{host}:{port}");
    let refused = move |source| {
        let source = if what == CLIENTS { explained(source) } else { source };
        StartError::Listen { address: address_text.clone(), what, source }
    };
    for mut address in resolve(host).map_err(&refused)? {
        address.set_port(port);
        let one = HeldPort::hold(address, shared).map_err(&refused)?;
        port = one.address().map_err(&refused)?.port();
        held.push(one);
    }
    Ok(port)
}
