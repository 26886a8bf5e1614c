//! Starts a program that is to outlive this process as somebody else's child.
//!
//! A supervisor knows the end of its own children only, and a process becomes its child when its parent ends: it goes to the next
//! subreaper above, systemd for example. So this process starts a *starter*, which starts the program, and whose end hands it on.
//! Until then the starter is the parent, to whom alone the kernel says how a process has ended, and passes that on.
//!
//! ```text
//! this process          starter                   program
//!   (spawn) ---------> COMMAND
//!                       (spawn) ----------------> with its end of a channel
//!      <-- "started PID", the other end, a pidfd
//!      <-- "ended STATUS"                          where it ends early
//!   (kill) ----------> x                           the child of the next above from here on
//! ```
//!
//! The starter is the file of this process, also when another one is installed in its place by now. It ends with this process.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;
use std::{env, fs};

use rustix::event::{PollFd, PollFlags, poll};

use super::hand_over::{self, Channel, Received};
use super::pidfd::Pidfd;
use super::signals;

/// The command that makes this program a starter. For no person, and in no help.
pub const COMMAND: &str = "start-successor";

/// How the kernel names a starter, as a file has it in `/proc`: otherwise it would be `exe`.
const NAME: &str = "cableway-start";

/// How long a starter may take to say what it knows already.
const REPORT_MAX: Duration = Duration::from_secs(2);

/// A process that was started by a starter. When this is dropped it runs on, and is the child of the next above.
#[derive(Debug)]
pub struct Started {
    pid: u32,
    /// Means the process also when its number is another one's.
    process: Pidfd,
    starter: Starter,
}

impl Started {
    /// Starts a program with the arguments and the environment of this process, and more and less of that. Gives the other end of
    /// the channel that it gets ([`hand_over::inherited`]).
    ///
    /// # Errors
    /// `TimedOut` when it takes longer than `patience`; else why it cannot be started.
    pub fn start(
        program: &Path,
        environment: &[(&'static str, String)],
        without: &[&str],
        patience: Duration,
    ) -> io::Result<(Started, Channel)> {
        let (link, theirs) = Channel::pair()?;
        let mut arguments = env::args_os();
        let mut command = Command::new("/proc/self/exe");
        command.arg0(arguments.next().unwrap_or_else(|| "cableway".into()));
        command.arg(COMMAND).arg(program).args(arguments);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        for name in without {
            command.env_remove(name);
        }
        theirs.inherit_by(&mut command);
        let starter = Starter { process: command.spawn()?, link };
        // It holds the other end, whose end is to be noticed.
        drop(command);
        match starter.hear(patience)? {
            (Report::Started(pid), Some([channel, process])) => {
                Ok((Started { pid, process: Pidfd::from(process), starter }, Channel::try_from(channel)?))
            }
            (Report::Failed(why), _) => Err(io::Error::other(why)),
            (report, _) => Err(unexpected(&format!("{report:?}"))),
        }
    }

    /// Its number, as its parent knows it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it has ended, which is waited for; `None`: it has not.
    ///
    /// # Errors
    /// It has ended, and nobody can say how.
    pub fn how_it_ended(&self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        if !self.process.wait(Some(patience))? {
            return Ok(None);
        }
        match self.starter.hear(REPORT_MAX)? {
            (Report::Ended(status), _) => Ok(Some(status)),
            (report, _) => Err(unexpected(&format!("{report:?}"))),
        }
    }

    /// Ends it at once, and returns when it has ended.
    pub fn kill(&self) {
        self.process.kill();
        let _ = self.process.wait(None);
    }
}

/// The parent of what is started. Dropped: it is none any more.
#[derive(Debug)]
struct Starter {
    process: Child,
    link: Channel,
}

impl Starter {
    /// What it says next, with the two descriptors that may come along.
    fn hear(&self, patience: Duration) -> io::Result<(Report, Option<[OwnedFd; 2]>)> {
        // The kernel takes zero for "for ever".
        self.link.set_patience(Some(patience.max(Duration::from_millis(1))))?;
        let Some(Received { bytes, descriptors }) = self.link.receive_beside()? else {
            return Err(io::Error::other("the process between has ended without a word"));
        };
        let report = Report::parse(&bytes).ok_or_else(|| unexpected(&String::from_utf8_lossy(&bytes)))?;
        Ok((report, descriptors.try_into().ok()))
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        // Killed and not asked, so that this ends. Its children have their new parent before it can be waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the process between says {what:?}"))
}

/// What a starter says.
#[derive(Debug)]
enum Report {
    /// With a descriptor of the channel, and one of the process.
    Started(u32),
    /// There is no such process.
    Failed(String),
    Ended(ExitStatus),
}

impl Report {
    fn text(&self) -> String {
        match self {
            Report::Started(pid) => format!("started {pid}"),
            Report::Failed(why) => format!("failed {why}"),
            Report::Ended(status) => format!("ended {}", status.into_raw()),
        }
    }

    fn parse(text: &[u8]) -> Option<Report> {
        match std::str::from_utf8(text).ok()?.split_once(' ')? {
            ("started", pid) => pid.parse().ok().map(Report::Started),
            ("failed", why) => Some(Report::Failed(why.to_owned())),
            ("ended", raw) => raw.parse().ok().map(ExitStatus::from_raw).map(Report::Ended),
            _ => None,
        }
    }
}

/// What a starter does: starts the program that comes first of these words with the others, and says what becomes of it until
/// whoever has started the starter ends. What it returns then is for nobody.
///
/// # Errors
/// It was started by somebody else.
pub fn start_successor(mut words: impl Iterator<Item = OsString>) -> io::Result<()> {
    let by_hand = || io::Error::new(ErrorKind::InvalidInput, "only a server that is upgraded starts this");
    let link = hand_over::inherited()?.ok_or_else(by_hand)?;
    let program = words.next().ok_or_else(by_hand)?;
    signals::ignore_meaningless();
    let _ = fs::write("/proc/self/comm", NAME);
    let say = |report: &Report, descriptors: &[BorrowedFd<'_>]| link.send_beside(report.text().as_bytes(), descriptors);
    let mut command = Command::new(program);
    command.args(words);
    let (mut process, pidfd, channel) = match spawn(command) {
        Ok(spawned) => spawned,
        Err(error) => return say(&Report::Failed(error.to_string()), &[]),
    };
    say(&Report::Started(process.id()), &[channel.as_fd(), pidfd.as_fd()])?;
    // It is to end with the one that uses it.
    drop(channel);
    if ends_before(&pidfd, &link)? {
        say(&Report::Ended(process.wait()?), &[])?;
    }
    Ok(())
}

/// A process, a descriptor that means it, and the other end of its channel.
fn spawn(mut command: Command) -> io::Result<(Child, Pidfd, Channel)> {
    let (here, there) = Channel::pair()?;
    there.inherit_by(&mut command);
    let mut process = command.spawn()?;
    match Pidfd::open(process.id()) {
        Ok(pidfd) => Ok((process, pidfd, here)),
        Err(error) => {
            let _ = process.kill();
            let _ = process.wait();
            Err(io::Error::other(format!("pidfd_open, which Linux has since 5.3: {error}")))
        }
    }
}

/// Waits until a process ends, or the other end of a link: whether it is the process.
fn ends_before(pidfd: &Pidfd, link: &Channel) -> io::Result<bool> {
    loop {
        // Nothing is said on the link but that it ends.
        let mut either = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(link, PollFlags::IN)];
        match poll(&mut either, None) {
            Ok(_) if !either[0].revents().is_empty() => return Ok(true),
            Ok(_) if !either[1].revents().is_empty() => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
