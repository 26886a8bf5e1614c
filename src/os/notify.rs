//! What a service tells its supervisor: sd_notify(3), the protocol of systemd's notify socket, and how often a watchdog
//! wants to hear of it, sd_watchdog_enabled(3).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

/// The supervisor's notify socket. It may be deaf or gone at any time: nothing here waits for it.
pub struct Notifier {
    socket: UnixDatagram,
    /// Named each time and not connected to: a supervisor that starts again binds a new socket there.
    to: SocketAddr,
}

impl Notifier {
    /// The socket that `NOTIFY_SOCKET` names; `None` without it.
    ///
    /// # Errors
    /// It names no Unix socket, or there is no descriptor left.
    pub fn from_env() -> io::Result<Option<Notifier>> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        let to = address(&name)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Some(Notifier { socket, to }))
    }

    /// Sends assignments, one a line. Never waits.
    ///
    /// # Errors
    /// Nobody listens there, or whoever does has not read what it was sent before.
    pub fn tell(&self, assignments: &str) -> io::Result<()> {
        self.socket.send_to_addr(assignments.as_bytes(), &self.to).map(drop)
    }
}

/// `/path`, or `@name` in the abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name),
        [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
    }
}

/// Within which time the supervisor wants a sign of life from this process; `None`: it does not watch.
pub fn watchdog() -> Option<Duration> {
    let variable = |name| env::var(name).ok();
    watchdog_of(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), process::id())
}

fn watchdog_of(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let usec = usec?.parse().ok().filter(|&usec| usec > 0)?;
    Some(Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_that_watches_somebody_else_is_none() {
        let second = Some(Duration::from_secs(1));
        for (usec, pid, expected) in [
            (Some("1000000"), None, second),
            (Some("1000000"), Some("7"), second),
            (Some("1000000"), Some("8"), None),
            (Some("1000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, Some("7"), None),
        ] {
            assert_eq!(watchdog_of(usec, pid, 7), expected, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn a_socket_is_a_path_or_an_abstract_name_and_one_that_is_deaf_holds_nobody_up() {
        assert!(address(OsStr::new("vsock:2:9999")).is_err() && address(OsStr::new("relative")).is_err());
        let name = format!("@cableway-notify-test-{}", process::id());
        let to = address(OsStr::new(&name)).unwrap();
        let notifier = Notifier { socket: UnixDatagram::unbound().unwrap(), to: to.clone() };
        notifier.socket.set_nonblocking(true).unwrap();
        assert!(notifier.tell("READY=1").is_err(), "nobody listens there");
        let supervisor = UnixDatagram::bind_addr(&to).unwrap();
        notifier.tell("READY=1\nSTATUS=up").unwrap();
        let mut buffer = [0; 64];
        let length = supervisor.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=up");
        let full = (0..1_000_000).find_map(|_| notifier.tell("WATCHDOG=1").err());
        assert_eq!(full.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }
}
