//! The rings of a network card, as `ethtool -g` and `-G` read and set them (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

use super::network::{Ring, Rings};

const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_SRINGPARAM: u32 = 0x11;

/// `struct ethtool_ringparam`: the command, four maxima, four values; receive, mini, jumbo, send.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RingParameters {
    command: u32,
    rx_max: u32,
    rx_mini_max: u32,
    rx_jumbo_max: u32,
    tx_max: u32,
    rx: u32,
    rx_mini: u32,
    rx_jumbo: u32,
    tx: u32,
}

/// Reads the rings.
///
/// # Errors
/// The driver has none, or there is no such card.
pub fn rings(interface: &str) -> io::Result<Rings> {
    let told = call(interface, RingParameters { command: ETHTOOL_GRINGPARAM, ..RingParameters::default() })?;
    Ok(Rings { rx: Ring { now: told.rx, max: told.rx_max }, tx: Ring { now: told.tx, max: told.tx_max } })
}

/// Sets the rings for receiving and sending, and leaves the others as they are.
///
/// # Errors
/// The driver has none or refuses, there is no such card, or this process may not.
pub fn set_rings(interface: &str, rx: u32, tx: u32) -> io::Result<()> {
    let told = call(interface, RingParameters { command: ETHTOOL_GRINGPARAM, ..RingParameters::default() })?;
    call(interface, RingParameters { command: ETHTOOL_SRINGPARAM, rx, tx, ..told })?;
    Ok(())
}

#[allow(unsafe_code, reason = "ethtool's ioctl has no safe wrapper")]
fn call(interface: &str, mut parameters: RingParameters) -> io::Result<RingParameters> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
    if interface.is_empty() || interface.len() >= name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut parameters).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: data };
    // SAFETY: the name ends with a zero byte, because it is shorter than its array. The kernel reads and writes exactly one
    // `ethtool_ringparam` behind `ifru_data` for these two commands, and `parameters` is one and lives on behind the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_rings_is_an_error() {
        assert!(rings("lo").is_err());
        assert!(rings("").is_err());
        assert!(rings("a name that is too long for one").is_err());
        assert!(set_rings("no-such-card", 1, 1).is_err());
    }
}
