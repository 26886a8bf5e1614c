//! Listening sockets, and what the kernel knows of their queues.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// Options of a listener. Linux hands all of them down to every accepted socket (tcp(7), socket(7)), so they cost
/// nothing per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerOptions {
    /// Connections that wait to be accepted; the kernel clamps it to `net.core.somaxconn`.
    pub backlog: u32,
    /// Probing silent peers; `None`: off.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes or probes may stay without acknowledgement before the kernel gives the peer up; zero: as
    /// the system's `tcp_retries2`, about 15 minutes.
    pub user_timeout: Duration,
}

/// TCP keepalive. It does not run while sent data is unacknowledged; [`ListenerOptions::user_timeout`] covers that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without answer before the peer is given up.
    pub probes: u32,
}

/// Binds and listens with `SO_REUSEPORT`, so that every shard can have a listener of its own on one address.
///
/// # Errors
/// As `bind(2)` and `listen(2)`. That keepalive or user time-out cannot be set is an error too: without them dead
/// peers stay for ever.
pub fn bind(address: SocketAddr, options: &ListenerOptions) -> io::Result<TcpListener> {
    let socket = socket(address, options)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(options))?;
    Ok(socket.into())
}

/// Binds and listens where nobody else listens; later listeners of this user may join it by [`bind`].
///
/// A listener without `SO_REUSEPORT` is refused an address on which anybody listens, with or without it, and `listen(2)`
/// looks again. So of two processes that do this at once, one fails. Linux looks at the option of the earlier listener
/// when a later one binds, so it is set only now.
///
/// # Errors
/// As [`bind`]; `AddrInUse` when somebody listens there.
pub fn bind_first(address: SocketAddr, options: &ListenerOptions) -> io::Result<TcpListener> {
    let socket = socket(address, options)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(options))?;
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

/// A port that is kept for other processes, which listen on it by [`bind`]; nobody connects to this.
#[derive(Debug)]
pub struct HeldPort(Socket);

impl HeldPort {
    /// Binds and does not listen. Fails where anybody listens, unless `shared`.
    ///
    /// # Errors
    /// As [`bind_first`].
    pub fn hold(address: SocketAddr, shared: bool) -> io::Result<HeldPort> {
        let options = ListenerOptions { backlog: 1, keepalive: None, user_timeout: Duration::ZERO };
        let hold = |address: SocketAddr| -> io::Result<HeldPort> {
            let socket = socket(address, &options)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            Ok(HeldPort(socket))
        };
        if shared && address.port() != 0 {
            return hold(address);
        }
        // Only who listens is alone. The port is never free in between.
        let first = bind_first(address, &options)?;
        hold(first.local_addr()?)
    }

    /// One that was kept before, by the program that this process ran then.
    pub fn renewed(socket: OwnedFd) -> HeldPort {
        HeldPort(Socket::from(socket))
    }

    /// Where it is.
    ///
    /// # Errors
    /// None that is known.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no address"))
    }
}

impl From<HeldPort> for OwnedFd {
    fn from(HeldPort(socket): HeldPort) -> OwnedFd {
        socket.into()
    }
}

/// Takes a listener over that somebody else has opened. It gets the options as if it had been bound here, and keeps its
/// address and its queue.
///
/// # Errors
/// As [`bind`], but for the address.
pub fn adopt(listener: TcpListener, options: &ListenerOptions) -> io::Result<TcpListener> {
    let socket = Socket::from(listener);
    tune(&socket, options)?;
    // Again: it sets the length of the queue and loses nobody who waits there.
    socket.listen(backlog(options))?;
    Ok(socket.into())
}

fn socket(address: SocketAddr, options: &ListenerOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        // [::] takes IPv4 clients too; a particular address is just that.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    tune(&socket, options)?;
    Ok(socket)
}

fn tune(socket: &Socket, options: &ListenerOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = options.keepalive {
        let parameters = TcpKeepalive::new()
            .with_time(keepalive.time)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes);
        socket.set_tcp_keepalive(&parameters)?;
    }
    if !options.user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(options.user_timeout))?;
    }
    socket.set_nonblocking(true)
}

fn backlog(options: &ListenerOptions) -> i32 {
    i32::try_from(options.backlog).unwrap_or(i32::MAX)
}

/// The accept queue of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Connections that wait to be accepted.
    pub length: u32,
    /// How many may wait.
    pub maximum: u32,
}

/// Asks the kernel for the accept queue (`TCP_INFO` of a listener: `tcpi_unacked` and `tcpi_sacked`).
///
/// # Errors
/// The socket does not listen.
#[allow(unsafe_code, reason = "TCP_INFO has no safe wrapper")]
pub fn accept_queue(listener: impl AsFd) -> io::Result<AcceptQueue> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `info`; all of `info` was zeroed, and
    // every bit pattern is a valid `tcp_info`.
    let info = unsafe {
        let fd = listener.as_fd().as_raw_fd();
        let result = libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut len);
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        info.assume_init()
    };
    Ok(AcceptQueue { length: info.tcpi_unacked, maximum: info.tcpi_sacked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_share_a_port_and_tell_their_queues() {
        let options = ListenerOptions {
            backlog: 7,
            keepalive: Some(Keepalive { time: Duration::from_secs(300), interval: Duration::from_secs(10), probes: 5 }),
            user_timeout: Duration::from_secs(30),
        };
        let first = bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let address = first.local_addr().unwrap();
        let second = bind(address, &options).unwrap();
        assert_eq!(accept_queue(&second).unwrap(), AcceptQueue { length: 0, maximum: 7 });
        let clients: Vec<_> = (0..4).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let waiting = accept_queue(&first).unwrap().length + accept_queue(&second).unwrap().length;
        assert_eq!(waiting as usize, clients.len());
    }

    #[test]
    fn the_first_listener_is_alone_until_others_are_let_in() {
        let options = ListenerOptions { backlog: 64, keepalive: None, user_timeout: Duration::ZERO };
        let first = bind_first("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let address = first.local_addr().unwrap();
        assert_eq!(bind_first(address, &options).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let second = bind(address, &options).unwrap();
        // Neither is refused because of the other kind.
        assert_eq!(bind_first(address, &options).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let clients: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let waiting = [&first, &second].map(|listener| accept_queue(listener).unwrap().length);
        assert!(waiting.iter().all(|waiting| *waiting > 0), "{waiting:?} of {} clients", clients.len());
        drop((first, second, clients));
        bind_first(address, &options).expect("nobody listens there any more");
    }

    #[test]
    fn a_port_is_kept_for_those_who_listen_there_later() {
        let options = ListenerOptions { backlog: 64, keepalive: None, user_timeout: Duration::ZERO };
        let held = HeldPort::hold("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = held.address().unwrap();
        HeldPort::hold(address, false).expect("nobody listens there");
        for _ in 0..2 {
            let listeners = [bind(address, &options).unwrap(), bind(address, &options).unwrap()];
            assert_eq!(HeldPort::hold(address, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            HeldPort::hold(address, true).unwrap();
            let clients: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            let waiting = listeners.each_ref().map(|listener| accept_queue(listener).unwrap().length as usize);
            assert!(waiting.iter().all(|waiting| *waiting > 0), "{waiting:?}");
            assert_eq!(waiting.iter().sum::<usize>(), clients.len(), "nobody waits at the one who holds the port");
        }
    }

    #[test]
    fn of_many_that_want_to_be_first_at_once_one_is() {
        let options = ListenerOptions { backlog: 64, keepalive: None, user_timeout: Duration::ZERO };
        for _ in 0..50 {
            let free = bind_first("127.0.0.1:0".parse().unwrap(), &options).unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let start = std::sync::Barrier::new(4);
            let winners = std::thread::scope(|scope| {
                let one = || {
                    start.wait();
                    let bound = bind_first(address, &options);
                    // Nobody lets go before all have tried.
                    start.wait();
                    bound.is_ok()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
            });
            assert!(winners <= 1, "{winners} listen alone");
        }
    }

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let options = ListenerOptions {
            backlog: 7,
            keepalive: Some(Keepalive { time: Duration::from_secs(301), interval: Duration::from_secs(11), probes: 6 }),
            user_timeout: Duration::from_secs(31),
        };
        let listener = bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = Socket::from(accepted);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(301));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(11));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(31)));
    }
}
