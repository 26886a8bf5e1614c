//! Listening sockets that a supervisor has opened for this process: sd_listen_fds(3), socket activation.

use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{env, process};

use rustix::io::FdFlags;
use socket2::{Domain, SockRef, Type};

/// The first of them, `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;

/// More than any unit has; a larger number is a mistake.
const COUNT_MAX: RawFd = 4096;

/// Takes the listeners; none when nobody has passed any to this process, or they were taken before. Children do not get them.
///
/// # Errors
/// One of them is no listening TCP socket. It is named, with what to do.
pub fn listeners() -> io::Result<Vec<TcpListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| env::var(name).unwrap_or_default();
    let count = count(&variable("LISTEN_PID"), &variable("LISTEN_FDS"), process::id())?;
    if count == 0 || TAKEN.swap(true, Relaxed) {
        return Ok(Vec::new());
    }
    let names = variable("LISTEN_FDNAMES");
    let mut names = names.split(':');
    (FIRST..FIRST + count)
        .map(|raw| {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("without a name");
            let explained =
                |error: io::Error| io::Error::new(error.kind(), format!("descriptor {raw} ({name}): {error}"));
            take(raw).and_then(checked).map_err(explained)
        })
        .collect()
}

/// How many were passed to the process `own`.
fn count(pid: &str, fds: &str, own: u32) -> io::Result<RawFd> {
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    let count = fds.parse().ok().filter(|count| (0..=COUNT_MAX).contains(count));
    count.ok_or_else(|| invalid(&format!("LISTEN_FDS={fds} is no number of descriptors")))
}

#[allow(unsafe_code, reason = "a descriptor that another program has opened is a bare number")]
fn take(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it is only asked for its flags, which fails if nothing is open there.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(raw) })
        .map_err(|_| invalid("it is not open, though LISTEN_FDS counts it"))?;
    // SAFETY: it is open, and ours by LISTEN_PID; `listeners` comes here once for each number, and nothing else in this program
    // uses a descriptor that it has not opened itself.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

fn checked(fd: OwnedFd) -> io::Result<TcpListener> {
    let socket = SockRef::from(&fd);
    let kind =
        socket.r#type().map_err(|_| invalid("it is no socket; pass listening TCP sockets only (ListenStream=)"))?;
    if kind != Type::STREAM {
        return Err(invalid("it is no stream socket; write ListenStream= in the socket unit"));
    }
    if ![Domain::IPV4, Domain::IPV6].contains(&socket.domain()?) {
        return Err(invalid("it is no TCP socket; give ListenStream= a port, with an address if you like"));
    }
    if !socket.is_listener()? {
        return Err(invalid("it does not listen; the socket unit must not have Accept=yes"));
    }
    Ok(fd.into())
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_what_is_for_this_process_is_taken() {
        assert_eq!(count("7", "2", 7).unwrap(), 2);
        assert_eq!(count("8", "2", 7).unwrap(), 0, "a child has inherited the environment");
        assert_eq!(count("", "2", 7).unwrap(), 0);
        for wrong in ["", "-1", "many", "1000000"] {
            assert!(count("7", wrong, 7).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_listening_tcp_socket_is_refused_with_the_way_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(folder.path().join("s")).unwrap();
        let why = |fd: OwnedFd| checked(fd).expect_err("refused").to_string();
        assert!(why(File::open("/dev/null").unwrap().into()).contains("no socket"));
        assert!(why(UdpSocket::bind("127.0.0.1:0").unwrap().into()).contains("no stream socket"));
        assert!(why(unix.into()).contains("no TCP socket"));
        assert!(why(connected.into()).contains("Accept=yes"));
        let address = listener.local_addr().unwrap();
        assert_eq!(checked(listener.into()).unwrap().local_addr().unwrap(), address);
    }
}
