//! epoll and a way to wake it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// Waits for sockets.
#[derive(Debug)]
pub struct Poller(OwnedFd);

/// How a descriptor is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Reported for as long as there is something to read.
    Level,
    /// Reported once each time something more can be read or the peer has gone.
    EdgeRead,
    /// As [`Watch::EdgeRead`], and also each time there is room to write again.
    EdgeReadWrite,
}

/// A descriptor is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// What it was registered under.
    pub token: u64,
    /// There is something to read, an error included.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer has shut its half or is gone.
    pub hangup: bool,
}

impl Poller {
    /// A poller that watches nothing.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches a descriptor. It is forgotten by itself when it is closed.
    ///
    /// # Errors
    /// `fs.epoll.max_user_watches` is reached, or it is watched already.
    pub fn add(&self, fd: impl AsFd, token: u64, watch: Watch) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(token), flags(watch))?)
    }

    /// Changes how a descriptor is watched.
    ///
    /// # Errors
    /// It is not watched.
    pub fn modify(&self, fd: impl AsFd, token: u64, watch: Watch) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, epoll::EventData::new_u64(token), flags(watch))?)
    }

    /// Stops watching a descriptor that lives on.
    ///
    /// # Errors
    /// It is not watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits until something is ready, or for the time given (`None`: for ever), and fills `ready`, up to its
    /// capacity, with what is.
    ///
    /// # Errors
    /// None that a caller could mend. An interrupted wait comes back with nothing ready.
    pub fn wait(&self, ready: &mut Vec<epoll::Event>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) });
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(ready), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads one event of [`Poller::wait`].
pub fn ready(event: &epoll::Event) -> Ready {
    use epoll::EventFlags as F;
    let flags = event.flags;
    Ready {
        token: event.data.u64(),
        readable: flags.intersects(F::IN | F::ERR | F::HUP | F::RDHUP),
        writable: flags.intersects(F::OUT),
        hangup: flags.intersects(F::HUP | F::RDHUP | F::ERR),
    }
}

fn flags(watch: Watch) -> epoll::EventFlags {
    use epoll::EventFlags as F;
    match watch {
        Watch::Level => F::IN,
        Watch::EdgeRead => F::IN | F::RDHUP | F::ET,
        Watch::EdgeReadWrite => F::IN | F::OUT | F::RDHUP | F::ET,
    }
}

/// Wakes a poller from another thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A waker, to be watched with [`Watch::EdgeRead`]: it is never read from, each wake is an edge of its own.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the poller.
    pub fn wake(&self) {
        // Fails only when the counter is full, after 2^64 wakes.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
