//! A process that need not be a child of this one, by a descriptor that stands for it (pidfd_open(2)): unlike its number, which
//! another process may have when it has ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The descriptor.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Of a process that cannot end unnoticed meanwhile, such as a child that was not waited for.
    ///
    /// # Errors
    /// There is none, or no descriptor is left.
    pub fn open(pid: u32) -> io::Result<Pidfd> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no number of a process"))?;
        Ok(Pidfd(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Ends it at once. One that has ended stays so.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Waits for its end; whether it came in time. `None`: as long as it takes.
    ///
    /// # Errors
    /// None that a caller could mend.
    pub fn wait(&self, patience: Option<Duration>) -> io::Result<bool> {
        let patience = patience.map(Timespec::try_from).transpose().map_err(|_| io::ErrorKind::InvalidInput)?;
        loop {
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], patience.as_ref()) {
                Ok(ended) => return Ok(ended > 0),
                // From the beginning again: signals to this program are few.
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One that another process has sent. It stands for whatever that says.
impl From<OwnedFd> for Pidfd {
    fn from(descriptor: OwnedFd) -> Pidfd {
        Pidfd(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_of_a_process_is_caused_and_noticed() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = Pidfd::open(child.id()).unwrap();
        assert!(!process.wait(Some(Duration::from_millis(5))).unwrap());
        process.kill();
        assert!(process.wait(Some(Duration::from_secs(20))).unwrap());
        child.wait().unwrap();
        process.kill();
        assert!(process.wait(Some(Duration::ZERO)).unwrap());
        assert!(Pidfd::open(0).is_err() && Pidfd::open(u32::MAX).is_err());
    }
}
