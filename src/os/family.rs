//! One process of this program starts others as its children: what they get from it, and how it hears of their end.
//!
//! A child is the same file as its parent, also when another version has been installed in its place by now. It gets a
//! connected socket, whose other end the parent has, and a text on its standard input. The socket is the rope between them: when
//! either ends, the other reads that. `PR_SET_PDEATHSIG` is no second one: it is about the thread that has forked, and ends a
//! child that would rather send its clients away.

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use socket2::{Domain, SockRef, Type};

/// Which child of how many a process is: `2/6`, from 0 on.
pub const CHILD: &str = "CABLEWAY_CHILD";

/// The number of the socket that leads to the parent.
const PARENT_FD: &str = "CABLEWAY_PARENT_FD";

/// What a supervisor has said to the parent only.
const OF_THE_SUPERVISOR: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// A child that was started and whose end was not asked for yet.
#[derive(Debug)]
pub struct Process(Pid);

impl Process {
    /// Starts this program once more with the arguments and the environment of this process. `text` is given to it, and should
    /// be less than a pipe holds, 64 KiB: if it is longer this waits until the child reads it.
    ///
    /// Gives the socket that leads to it. Must not be called while another thread starts a program: that one would get the
    /// other end, too, and the parent would not read that its child has gone.
    ///
    /// # Errors
    /// No process or no descriptor is left.
    pub fn spawn(child: u16, of: u16, text: &[u8]) -> io::Result<(Process, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new("/proc/self/exe");
        let mut arguments = env::args_os();
        command.arg0(arguments.next().unwrap_or_else(|| "cableway".into())).args(arguments);
        for name in OF_THE_SUPERVISOR {
            command.env_remove(name);
        }
        command.env_remove(super::renew::VARIABLE);
        command.env(CHILD, format!("{child}/{of}"));
        command.env(PARENT_FD, std::os::fd::AsRawFd::as_raw_fd(&theirs).to_string());
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
        let mut spawned = command.stdin(Stdio::piped()).spawn()?;
        drop(theirs);
        if let Some(mut stdin) = spawned.stdin.take() {
            // One that has ended already is found by its end.
            let _ = stdin.write_all(text);
        }
        let pid = i32::try_from(spawned.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the kernel gave no process id"))?;
        Ok((Process(pid), ours))
    }

    /// A child that this process had before it ran this program.
    ///
    /// # Errors
    /// It is no process id.
    pub fn renewed(pid: u32) -> io::Result<Process> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.map(Process).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.as_raw_nonzero().get().unsigned_abs()
    }

    /// Asks it to end in good order.
    pub fn terminate(&self) {
        // Until it has been waited for, its number is nobody else's.
        let _ = kill_process(self.0, Signal::TERM);
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let _ = kill_process(self.0, Signal::KILL);
    }

    /// How it has ended, if it has. Then its number is free, and this is not to be asked again.
    pub fn ended(&self) -> Option<ExitStatus> {
        match waitpid(Some(self.0), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(ExitStatus::from_raw(status.as_raw())),
            Ok(None) => None,
            // It is no child any more: whoever waited for it has not told us.
            Err(_) => Some(ExitStatus::from_raw(0)),
        }
    }
}

/// What a child has got from its parent.
#[derive(Debug)]
pub struct Inherited {
    /// Which child this is, from 0 on.
    pub child: u16,
    /// How many there are.
    pub of: u16,
    /// Leads to the parent.
    pub parent: UnixStream,
    /// What it said at the start.
    pub text: Vec<u8>,
}

/// Takes what a parent has given to this process; `None` if it is no child. Once only.
///
/// # Errors
/// The environment says that it is a child, and there is no parent.
pub fn inherited() -> io::Result<Option<Inherited>> {
    let Some(child) = env::var(CHILD).ok().filter(|child| !child.is_empty()) else { return Ok(None) };
    let explained = |why: String| {
        let message = format!("{CHILD} is set, which only a parent process of this program does ({why}); unset it");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    let number = |text: &str| text.parse::<u16>().ok();
    let numbers = child.split_once('/').and_then(|(child, of)| Some((number(child)?, number(of)?)));
    let (child, of) = numbers.filter(|(child, of)| child < of).ok_or_else(|| explained(format!("{child:?}")))?;
    let raw = env::var(PARENT_FD).ok().and_then(|raw| raw.parse().ok()).filter(|raw: &RawFd| *raw > 2);
    let parent = raw.ok_or_else(|| explained(format!("without {PARENT_FD}")))?;
    let parent = take(parent).map_err(|error| explained(error.to_string()))?;
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    // It would be called `exe`, after the link that it was started by, and nobody would find it by its name.
    let _ = fs::write("/proc/self/comm", "cableway");
    Ok(Some(Inherited { child, of, parent, text }))
}

#[allow(unsafe_code, reason = "a descriptor that another process has opened is a bare number")]
fn take(raw: RawFd) -> io::Result<UnixStream> {
    // SAFETY: it is only asked for its flags, which fails if nothing is open there.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(raw) })?;
    // SAFETY: it is open, and `inherited` comes here once, before this program has opened anything but its standard streams.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    let socket = SockRef::from(&fd);
    let is_ours = socket.r#type()? == Type::STREAM && socket.domain()? == Domain::UNIX;
    is_ours.then(|| UnixStream::from(fd)).ok_or_else(|| io::Error::other("no such socket"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn what_is_no_connected_unix_socket_is_no_parent() {
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        assert!(take(file).is_err());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let raw = theirs.into_raw_fd();
        let taken = take(raw).unwrap();
        assert_eq!(taken.as_raw_fd(), raw);
        (&taken).write_all(b"x").unwrap();
        (&ours).read_exact(&mut [0]).unwrap();
        drop(taken);
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    }
}
