//! The ports of the server, which the parent keeps so that they are the server's while no child listens.

use serde::{Deserialize, Serialize};

use crate::config::{Config, ListenOn, Secrets};
use crate::os::listener::HeldPort;
use crate::os::renew::Given;

use crate::node::StartError;
use crate::node::listeners::{explained, resolve};

/// Ports that are kept, and which they are.
pub struct Ports {
    main: u16,
    admin: Option<u16>,
    /// Only to be there.
    held: Vec<Held>,
}

/// What a port is for. A port that was chosen is known by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Role {
    /// WebSockets.
    Main,
    /// Ordinary HTTP on a port of its own.
    Http,
    Admin,
}

/// A port that is kept, by what the configuration said of it.
struct Held {
    role: Role,
    host: String,
    asked: u16,
    sockets: Vec<HeldPort>,
}

/// The same on their way to another program.
#[derive(Default, Serialize, Deserialize)]
pub struct GivenPorts(Vec<GivenPort>);

#[derive(Serialize, Deserialize)]
struct GivenPort {
    role: Role,
    host: String,
    asked: u16,
    sockets: Vec<Given>,
}

impl GivenPorts {
    /// All that there are.
    pub fn descriptors(&self) -> impl Iterator<Item = &Given> {
        self.0.iter().flat_map(|port| &port.sockets)
    }
}

/// What of the ports that a configuration wants is there already.
#[derive(Default)]
struct Known(Vec<Held>);

impl Known {
    /// Takes the one that is meant. Of two with the same number, what they are for is no matter.
    fn take(&mut self, role: Role, host: &str, asked: u16) -> Option<Held> {
        let is_it = |held: &Held| held.host == host && held.asked == asked && (held.role == role || asked != 0);
        let at = self.0.iter().position(is_it)?;
        Some(self.0.swap_remove(at))
    }
}

impl Ports {
    /// Keeps all ports that the configuration names; port 0 is chosen now.
    pub fn hold(config: &Config) -> Result<Ports, StartError> {
        let held = wanted(config).into_iter().map(|wanted| hold(config, wanted));
        Ok(Ports::of(config, held.collect::<Result<_, _>>()?))
    }

    /// The same where the program before has kept some; those that the configuration does not name any more are let go. One that
    /// cannot be had any more is left to the children, which say so.
    pub fn renewed(config: &Config, given: GivenPorts) -> Result<Ports, StartError> {
        let mut known = Known::default();
        for GivenPort { role, host, asked, sockets } in given.0 {
            let sockets = sockets.into_iter().map(|given| given.take().map(HeldPort::renewed));
            let sockets = sockets.collect::<Result<_, std::io::Error>>()?;
            known.0.push(Held { role, host, asked, sockets });
        }
        let held = wanted(config).into_iter().map(|(role, host, asked)| match known.take(role, &host, asked) {
            Some(known) => Held { role, ..known },
            None => hold(config, (role, host.clone(), asked)).unwrap_or_else(|error| {
                tracing::error!(%error, "a port cannot be kept for the processes");
                Held { role, host, asked, sockets: Vec::new() }
            }),
        });
        let held = held.collect();
        Ok(Ports::of(config, held))
    }

    /// Whether those that are not kept yet can be had.
    pub fn try_renewed(config: &Config, given: &GivenPorts) -> Result<(), StartError> {
        let is_known = |role: Role, host: &str, asked: u16| {
            let is_it =
                |port: &GivenPort| port.host == host && port.asked == asked && (port.role == role || asked != 0);
            given.0.iter().any(is_it)
        };
        for (role, host, asked) in wanted(config) {
            if !is_known(role, &host, asked) {
                hold(config, (role, host, asked))?;
            }
        }
        Ok(())
    }

    fn of(config: &Config, held: Vec<Held>) -> Ports {
        let number = |role: Role| {
            let of_role = held.iter().find(|held| held.role == role)?;
            // One that has no address has none to tell.
            Some(of_role.sockets.first().and_then(|socket| socket.address().ok()).map_or(of_role.asked, |it| it.port()))
        };
        Ports { main: number(Role::Main).unwrap_or(config.server.port), admin: number(Role::Admin), held }
    }

    /// Gives them up to the program that this process is about to run.
    pub fn give(self) -> GivenPorts {
        let given = self.held.into_iter().map(|Held { role, host, asked, sockets }| GivenPort {
            role,
            host,
            asked,
            sockets: sockets.into_iter().map(Given::give).collect(),
        });
        GivenPorts(given.collect())
    }

    /// Which there are.
    pub fn places(&self) -> GivenPorts {
        let places = self.held.iter().map(|Held { role, host, asked, .. }| GivenPort {
            role: *role,
            host: host.clone(),
            asked: *asked,
            sockets: Vec::new(),
        });
        GivenPorts(places.collect())
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

/// What for, and where.
type Wanted = (Role, String, u16);

/// All ports that the configuration names, each once.
fn wanted(config: &Config) -> Vec<Wanted> {
    let mut wanted = vec![(Role::Main, config.server.host.clone(), config.server.port)];
    let broadcast = config.broadcast.has(crate::config::BroadcastAdapter::Http).then(|| config.broadcast_on());
    let api = Secrets::resolve(config).api_on.then(|| config.api_on());
    let metrics = config.metrics.http_path.is_some().then(|| config.metrics_on());
    let mut places: Vec<ListenOn> = [broadcast, api, metrics].into_iter().flatten().collect();
    places.dedup();
    for (at, place) in places.iter().enumerate() {
        let ListenOn::Own { host, port } = place else { continue };
        if !places[..at].contains(place) {
            wanted.push((Role::Http, host.clone(), *port));
        }
    }
    if let Some(ListenOn::Own { host, port }) = config.admin_on() {
        wanted.push((Role::Admin, host, port));
    }
    wanted
}

fn hold(config: &Config, (role, host, asked): Wanted) -> Result<Held, StartError> {
    let shared = role == Role::Main && config.server.reuse_port;
    let what = if role == Role::Main { "WebSockets" } else { "HTTP" };
    let address_text = format!("{host}:{asked}");
    let refused = move |source| {
        let source = if role == Role::Main { explained(source) } else { source };
        StartError::Listen { address: address_text.clone(), what, source }
    };
    let (mut port, mut sockets) = (asked, Vec::new());
    for mut address in resolve(&host).map_err(&refused)? {
        address.set_port(port);
        let one = HeldPort::hold(address, shared).map_err(&refused)?;
        port = one.address().map_err(&refused)?.port();
        sockets.push(one);
    }
    Ok(Held { role, host, asked, sockets })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(main: u16, metrics: u16, admin: u16) -> Config {
        let mut config = Config::default();
        config.server.host = "127.0.0.1".to_owned();
        config.server.port = main;
        config.metrics.host = "127.0.0.1".to_owned();
        config.metrics.port = metrics;
        config.admin.port = Some(admin);
        config.broadcast.adapters.clear();
        config
    }

    /// A port that nobody has.
    fn free() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn ports_that_were_chosen_stay_and_those_that_are_named_anew_are_had_beside_them() {
        let before = config(0, free(), 0);
        let ports = Ports::hold(&before).unwrap();
        let chosen = (ports.main, ports.admin);
        assert!(ports.main != 0 && ports.admin.is_some_and(|admin| ![0, ports.main].contains(&admin)));
        let after = config(0, free(), 0);
        Ports::try_renewed(&after, &ports.places()).unwrap();
        let given = ports.give();
        assert_eq!(given.descriptors().count(), 3);
        let ports = Ports::renewed(&after, given).unwrap();
        assert_eq!((ports.main, ports.admin), chosen);
        // The old port of metrics is let go, the new one is kept.
        let sockets = ports.held.iter().flat_map(|held| &held.sockets);
        let held: Vec<u16> = sockets.map(|socket| socket.address().unwrap().port()).collect();
        assert_eq!(held, [chosen.0, after.metrics.port, chosen.1.unwrap()]);
        // One that somebody else has is found beforehand; later it is left to the children.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wrong = config(0, taken.local_addr().unwrap().port(), 0);
        assert!(Ports::try_renewed(&wrong, &ports.places()).is_err());
        let ports = Ports::renewed(&wrong, ports.give()).unwrap();
        assert_eq!((ports.main, ports.admin), chosen);
    }
}
