//! The four things the load test needs from Linux that rustix has no safe wrapper for.
//!
//! This is the only file with `unsafe` in it. Each function takes ordinary types, makes one system call and turns
//! the answer into a `Result`; nothing here knows about WebSockets or scenarios.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Lets `connect` choose the source port after `bind` has chosen the source address.
///
/// Without it `bind` to port 0 must find a port that is free for every destination, so one address yields fewer
/// connections and each `bind` costs a search (ip(7), `IP_BIND_ADDRESS_NO_PORT`).
pub fn choose_port_at_connect(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `on`, which outlives the call; the descriptor is borrowed, so open.
    let status = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            mem::size_of_val(&on) as libc::socklen_t,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many segments this socket has sent a second time since it was made, its SYN included
/// (`tcpi_total_retrans`). Asked right after a handshake, anything but 0 on loopback means that the peer's
/// accept queue was full.
pub fn retransmissions(socket: impl AsFd) -> io::Result<u32> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is `length` writable bytes; the kernel writes at most that many and stores how many it wrote.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the structure is plain integers and was zeroed, so every bit pattern in it is a valid value.
    Ok(unsafe { info.assume_init() }.tcpi_total_retrans)
}

/// CPU time that all threads of a process have used, dead ones included, in nanoseconds resolution
/// (clock_getcpuclockid(3)). `/proc/PID/stat` counts in ticks of 10 ms, which is a third of a short run.
pub fn process_cpu_time(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for one clock id.
    let status = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if status != 0 {
        return Err(io::Error::from_raw_os_error(status));
    }
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: `time` is a valid place for one timespec.
    if unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the structure is filled; it is two integers in any case.
    let time = unsafe { time.assume_init() };
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Asks the kernel to end this process when the one that started it ends, however it ends, so that a killed
/// benchmark leaves no server and no worker behind (prctl(2), `PR_SET_PDEATHSIG`).
pub fn die_with_parent() -> io::Result<()> {
    signal_with_parent(libc::SIGKILL)
}

/// The same, for a process that has something to clean up: it is asked to end (`SIGTERM`).
pub fn end_with_parent() -> io::Result<()> {
    signal_with_parent(libc::SIGTERM)
}

fn signal_with_parent(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: this option takes a signal number and touches no memory.
    let status = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_loopback_connection_with_room_in_the_queue_retransmits_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(retransmissions(&client).unwrap(), 0);
        choose_port_at_connect(&client).unwrap();
    }

    #[test]
    fn cpu_time_grows_while_the_process_works() {
        let before = process_cpu_time(std::process::id()).unwrap();
        let mut sum = 0_u64;
        for i in 0..20_000_000_u64 {
            sum = std::hint::black_box(sum ^ i);
        }
        assert!(process_cpu_time(std::process::id()).unwrap() > before);
        assert!(process_cpu_time(u32::MAX).is_err());
    }
}
