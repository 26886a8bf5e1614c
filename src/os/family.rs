//! One process of this program starts others as its children: what they get from it, and how it hears of their end.
//!
//! A child is the same file as its parent, also when another version has been installed in its place by now. It gets a
//! connected socket, whose other end the parent has, a channel for orders with descriptors, and a text on its standard input. The
//! socket is the rope between them: when either ends, the other reads that. `PR_SET_PDEATHSIG` is no second one: it is about the
//! thread that has forked, and ends a child that would rather send its clients away.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use socket2::{Domain, SockRef, Type};

use super::hand_over::Channel;
use super::pidfd::Pidfd;

/// Which child of how many a process is: `2/6`, from 0 on.
pub const CHILD: &str = "CABLEWAY_CHILD";

/// The number of the socket that leads to the parent.
const PARENT_FD: &str = "CABLEWAY_PARENT_FD";

/// The number of the channel by which the parent gives descriptors.
const ORDERS_FD: &str = "CABLEWAY_ORDERS_FD";

/// The number of the channel to a process that this one is to take over from.
const OLD_FD: &str = "CABLEWAY_OLD_CHILD_FD";

/// What a supervisor has said to the parent only.
const OF_THE_SUPERVISOR: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// A child that was started and whose end was not asked for yet.
#[derive(Debug)]
pub struct Process(Pid);

/// A child that was started, and the parent's ends of what leads to it.
#[derive(Debug)]
pub struct Spawned {
    /// The child.
    pub process: Process,
    /// For everything that is said.
    pub link: UnixStream,
    /// For descriptors that belong to an order.
    pub orders: Channel,
}

impl Process {
    /// Starts a program with the arguments and the environment of this process. `text` is given to it, and should
    /// be less than a pipe holds, 64 KiB: if it is longer this waits until the child reads it. With `old` it is to take over
    /// from the process at the other end of that.
    ///
    /// Must not be called while another thread starts a program: that one would get the other ends, too, and the parent would
    /// not read that its child has gone.
    ///
    /// # Errors
    /// No process or no descriptor is left.
    pub fn spawn(program: &Path, child: u16, of: u16, text: &[u8], old: Option<Channel>) -> io::Result<Spawned> {
        let (link, of_child) = UnixStream::pair()?;
        let (orders, orders_of_child) = Channel::pair()?;
        let mut command = Command::new(program);
        let mut arguments = env::args_os();
        command.arg0(arguments.next().unwrap_or_else(|| "cableway".into())).args(arguments);
        for name in OF_THE_SUPERVISOR {
            command.env_remove(name);
        }
        command.env_remove(super::renew::VARIABLE);
        command.env(CHILD, format!("{child}/{of}")).env_remove(OLD_FD);
        inherit(&mut command, PARENT_FD, of_child.as_fd())?;
        inherit(&mut command, ORDERS_FD, orders_of_child.as_fd())?;
        if let Some(old) = &old {
            inherit(&mut command, OLD_FD, old.as_fd())?;
        }
        let mut spawned = command.stdin(Stdio::piped()).spawn()?;
        drop((of_child, orders_of_child, old));
        if let Some(mut stdin) = spawned.stdin.take() {
            // One that has ended already is found by its end.
            let _ = stdin.write_all(text);
        }
        let pid = i32::try_from(spawned.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the kernel gave no process id"))?;
        Ok(Spawned { process: Process(pid), link, orders })
    }

    /// A descriptor that stands for it, for another process that is to wait for its end or to cause it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn descriptor(&self) -> io::Result<Pidfd> {
        Pidfd::open(self.pid())
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

/// Has a program find a descriptor under its number, which a variable of its environment tells. It is this process's until it is
/// started, and any program's that is started meanwhile.
fn inherit(command: &mut Command, variable: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
    command.env(variable, descriptor.as_raw_fd().to_string());
    Ok(())
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
    /// For descriptors that belong to its orders.
    pub orders: Channel,
    /// Leads to the process that this one is to take over from.
    pub old: Option<Channel>,
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
    let named =
        |variable: &str| env::var(variable).ok().and_then(|raw| raw.parse().ok()).filter(|raw: &RawFd| *raw > 2);
    let wrong = |error: io::Error| explained(error.to_string());
    let parent = named(PARENT_FD).ok_or_else(|| explained(format!("without {PARENT_FD}")))?;
    let parent = take_link(parent).map_err(wrong)?;
    let orders = named(ORDERS_FD).ok_or_else(|| explained(format!("without {ORDERS_FD}")))?;
    let orders = Channel::try_from(take(orders)?).map_err(wrong)?;
    let old = named(OLD_FD).map(|raw| Channel::try_from(take(raw)?)).transpose().map_err(wrong)?;
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    // It would be called `exe`, after the link that it was started by, and nobody would find it by its name.
    let _ = fs::write("/proc/self/comm", "cableway");
    Ok(Some(Inherited { child, of, parent, orders, old, text }))
}

fn take_link(raw: RawFd) -> io::Result<UnixStream> {
    let fd = take(raw)?;
    let socket = SockRef::from(&fd);
    let is_ours = socket.r#type()? == Type::STREAM && socket.domain()? == Domain::UNIX;
    is_ours.then(|| UnixStream::from(fd)).ok_or_else(|| io::Error::other("no such socket"))
}

#[allow(unsafe_code, reason = "a descriptor that another process has opened is a bare number")]
fn take(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it is only asked for its flags, which fails if nothing is open there.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(raw) })?;
    // SAFETY: it is open, and `inherited` comes here once for each name, before this program has opened anything but its standard
    // streams.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn what_is_no_connected_unix_socket_is_no_parent() {
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        assert!(take_link(file).is_err());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let raw = theirs.into_raw_fd();
        let taken = take_link(raw).unwrap();
        assert_eq!(taken.as_raw_fd(), raw);
        (&taken).write_all(b"x").unwrap();
        (&ours).read_exact(&mut [0]).unwrap();
        drop(taken);
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    }
}
