//! What the server asks of the kernel, tried out: a version says little where Linux is imitated (gVisor, WSL 1) or patched.

use std::io;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::os::poll::{Poller, Waker};
use crate::os::tcp;

/// Names of what the kernel refuses; none where all is there.
pub(super) fn missing() -> Vec<String> {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
    let probes =
        TcpKeepalive::new().with_time(Duration::from_secs(300)).with_interval(Duration::from_secs(10)).with_retries(5);
    let tried: [(&str, io::Result<()>); 6] = [
        ("SO_REUSEPORT", socket().and_then(|socket| socket.set_reuse_port(true))),
        ("TCP_USER_TIMEOUT", socket().and_then(|socket| socket.set_tcp_user_timeout(Some(Duration::from_secs(30))))),
        ("TCP_KEEPCNT", socket().and_then(|socket| socket.set_tcp_keepalive(&probes))),
        ("TCP_INFO", socket().and_then(|socket| tcp::info(&socket).map(|_| ()))),
        ("epoll", Poller::new().map(|_| ())),
        ("eventfd", Waker::new().map(|_| ())),
    ];
    tried.into_iter().filter(|(_, result)| result.is_err()).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_runs_these_tests_has_everything() {
        assert_eq!(missing(), [""; 0]);
    }
}
