//! What the kernel knows of a connected socket's other end.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// What `TCP_INFO` says of a connection. It is there for as long as the socket is open, after a reset or a time-out too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Since bytes came last, or since the connection was made. It starts again after 49 days.
    pub since_data: Duration,
    /// Since an acknowledgement came last: of bytes, of a keepalive probe, or in a probe of the peer. It starts again
    /// after 49 days.
    pub since_ack: Duration,
    /// Smoothed time from a segment to its acknowledgement.
    pub rtt: Duration,
    /// Segments that were sent and are not acknowledged.
    pub unacked: u32,
    /// Segments that were sent again, since the connection was made.
    pub retransmits: u32,
    /// Bytes that the peer has acknowledged. The end of our stream counts as one.
    pub sent: u64,
    /// Bytes that came. The end of the peer's stream counts as one.
    pub received: u64,
}

impl TcpInfo {
    /// Since the last sign of life of any kind.
    pub fn silent(&self) -> Duration {
        self.since_data.min(self.since_ack)
    }
}

/// As much of `struct tcp_info` (linux/tcp.h) as is read here. The kernel only ever adds to its end, and fills as much as
/// there is room for. `libc` has a shorter one, as glibc has.
const INFO_BYTES: usize = 136;

/// Offsets in it.
mod offset {
    pub const UNACKED: usize = 24;
    pub const LAST_DATA_RECV: usize = 52;
    pub const LAST_ACK_RECV: usize = 56;
    pub const RTT: usize = 68;
    pub const TOTAL_RETRANS: usize = 100;
    pub const BYTES_ACKED: usize = 120;
    pub const BYTES_RECEIVED: usize = 128;
}

/// Asks the kernel about a connection. One system call, which waits for nothing.
///
/// # Errors
/// It is no TCP socket.
pub fn info(socket: impl AsFd) -> io::Result<TcpInfo> {
    let mut bytes = [0; INFO_BYTES];
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)?;
    let small = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let large = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    Ok(TcpInfo {
        since_data: Duration::from_millis(small(offset::LAST_DATA_RECV).into()),
        since_ack: Duration::from_millis(small(offset::LAST_ACK_RECV).into()),
        rtt: Duration::from_micros(small(offset::RTT).into()),
        unacked: small(offset::UNACKED),
        retransmits: small(offset::TOTAL_RETRANS),
        sent: large(offset::BYTES_ACKED),
        received: large(offset::BYTES_RECEIVED),
    })
}

/// Where a socket leads, or led before its connection ended: `SO_PEERNAME` tells it after a reset, too, when
/// getpeername(2) does not know it any more.
pub fn peer(socket: impl AsFd) -> Option<SocketAddr> {
    const V4: usize = size_of::<libc::sockaddr_in>();
    let mut bytes = [0; size_of::<libc::sockaddr_in6>()];
    // The kernel refuses to fill less than there is room for, and cuts off what there is no room for.
    get(&socket, libc::SOL_SOCKET, libc::SO_PEERNAME, &mut bytes[..V4]).ok()?;
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        libc::AF_INET => Some(SocketAddr::from(([bytes[4], bytes[5], bytes[6], bytes[7]], port))),
        libc::AF_INET6 => {
            get(&socket, libc::SOL_SOCKET, libc::SO_PEERNAME, &mut bytes).ok()?;
            let mut address = [0; 16];
            address.copy_from_slice(&bytes[8..24]);
            let scope = u32::from_ne_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
            Some(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Reads an option of a socket into `bytes`; what the kernel does not fill stays.
#[allow(unsafe_code, reason = "neither option has a safe wrapper")]
fn get(socket: impl AsFd, level: i32, name: i32, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `bytes`, and `length`; both live on behind
    // the call. Every byte may have every value.
    let result =
        unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, bytes.as_mut_ptr().cast(), &mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use socket2::SockRef;

    use super::*;

    fn pair(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    #[test]
    fn bytes_of_both_ways_and_the_time_since_the_last_are_known() {
        let (mut server, mut client) = pair("127.0.0.1:0");
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[2; 70]).unwrap();
        client.read_exact(&mut [0; 70]).unwrap();
        // What the client answers with acknowledges the 70 bytes.
        client.write_all(&[3]).unwrap();
        server.read_exact(&mut [0]).unwrap();
        let known = info(&server).unwrap();
        assert_eq!((known.received, known.sent, known.unacked), (1001, 70, 0), "{known:?}");
        assert!(known.since_data < Duration::from_secs(10) && known.since_ack < Duration::from_secs(10), "{known:?}");
        assert!(known.rtt > Duration::ZERO && known.rtt < Duration::from_secs(10), "{known:?}");
    }

    #[test]
    fn a_connection_that_was_reset_is_still_known() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut server, mut client) = pair(address);
            let from = client.local_addr().unwrap();
            client.write_all(&[1; 10]).unwrap();
            server.read_exact(&mut [0; 10]).unwrap();
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert!(server.peer_addr().is_err());
            assert_eq!(peer(&server), Some(from));
            assert_eq!(info(&server).unwrap().received, 10);
        }
    }

    #[test]
    fn what_is_no_connection_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(info(&file).is_err());
        assert_eq!(peer(&file), None);
    }
}
