//! Messages with descriptors from one process to another (unix(7): `SCM_RIGHTS`), and how a new process gets its end.
//!
//! A channel is a Unix seqpacket pair: messages arrive whole and in order, and the end of the other process is an end of the
//! stream. Descriptors are close-on-exec wherever they are, and owned from the moment they arrive: a message that is refused
//! closes them. Bytes that are too many for a message travel in a sealed `memfd`, which is its last descriptor.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};

use super::faults::{self, Moment};

/// Descriptors in one message, `SCM_MAX_FD` of Linux.
const SCM_MAX_FD: usize = 253;

/// Descriptors that one message takes whatever else is in it: one may be needed for its bytes.
pub const DESCRIPTORS_MAX: usize = SCM_MAX_FD - 1;

/// Bytes that travel in the message itself. A socket's default buffer holds three of such.
pub const INLINE_MAX: usize = 64 << 10;

/// The environment variable that tells a process that it is given its channel: [`STDIN`].
pub const VARIABLE: &str = "CABLEWAY_HAND_OVER_FD";

/// The one value of [`VARIABLE`]: as standard input, which is how a descriptor gets into a new process without a moment in
/// which others get it too.
const STDIN: &str = "0";

/// What a message begins with: its bytes follow, or are in its last descriptor.
const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// One end of a channel. Several threads may use it: each message is sent and received as one.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What arrived.
#[derive(Debug)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors, in the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Both ends of a new channel.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Channel(one), Channel(other)))
    }

    /// One more handle of the same end.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> io::Result<Channel> {
        Ok(Channel(self.0.try_clone()?))
    }

    /// How long sending may wait for room, and receiving for a message; `None`: for ever. For all handles of this end.
    ///
    /// # Errors
    /// None that a caller could mend.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, Timeout::Recv, patience)?;
        Ok(sockopt::set_socket_timeout(&self.0, Timeout::Send, patience)?)
    }

    /// Sends a message with at most [`DESCRIPTORS_MAX`] descriptors. The other process gets copies.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is closed, `TimedOut` when it does not read; else what the system says. Nothing of the
    /// message has arrived then.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::Error::new(ErrorKind::InvalidInput, "too many descriptors for one message"));
        }
        faults::at(Moment::Send);
        if bytes.len() <= INLINE_MAX {
            return self.send_as(&[INLINE], bytes, descriptors);
        }
        let memfd = memfd(bytes)?;
        let all: Vec<_> = descriptors.iter().copied().chain([memfd.as_fd()]).collect();
        self.send_as(&[IN_MEMFD], &[], &all)
    }

    /// Whether a message can be sent without waiting.
    ///
    /// # Errors
    /// What the system says.
    pub fn has_room(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.0, PollFlags::OUT)];
        match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
            // An end that nobody reads any more says so when it is sent to.
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends as [`Channel::send`] does what fits into a message, at most [`INLINE_MAX`] bytes, unless it had to wait for room;
    /// tells whether it is sent.
    ///
    /// # Errors
    /// See [`Channel::send`].
    pub fn try_send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<bool> {
        if descriptors.len() > DESCRIPTORS_MAX || bytes.len() > INLINE_MAX {
            return Err(io::Error::new(ErrorKind::InvalidInput, "too much for one message"));
        }
        faults::at(Moment::Send);
        match self.send_with(&[INLINE], bytes, descriptors, SendFlags::DONTWAIT) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends what is short on a channel that is none of those between the old and the new process; see [`Channel::receive_beside`].
    pub(super) fn send_beside(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_as(&[INLINE], bytes, descriptors)
    }

    fn send_as(&self, kind: &[u8], bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(kind, bytes, descriptors, SendFlags::empty())
    }

    fn send_with(&self, kind: &[u8], bytes: &[u8], descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let parts = [IoSlice::new(kind), IoSlice::new(bytes)];
        loop {
            match rustix::net::sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL | flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(late(error)),
            }
        }
    }

    /// Waits for the next message. `None`: the other end is closed, and everything that was sent has been received.
    ///
    /// # Errors
    /// `TimedOut` when none comes in time, `InvalidData` for what [`Channel::send`] has not sent, or when this process has no
    /// descriptors left for those that come. What came is closed then.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let received = self.receive_beside()?;
        if received.is_some() {
            faults::at(Moment::Receive);
        }
        Ok(received)
    }

    /// The same on a channel that is none of those between the old and the new process: tests do not count its messages.
    pub(super) fn receive_beside(&self) -> io::Result<Option<Received>> {
        let mut bytes = vec![0; 1 + INLINE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                // Its end is closed with something of ours unread: it has ended all the same.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(late(error)),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(invalid("descriptors did not arrive: the limit of open files is reached"));
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(invalid("the message is longer than any that is sent"));
        }
        bytes.truncate(received.bytes);
        match bytes.first() {
            None => return Ok(None),
            Some(&INLINE) => drop(bytes.drain(..1)),
            Some(&IN_MEMFD) => bytes = in_memfd(descriptors.pop())?,
            Some(_) => return Err(invalid("the message is of no known kind")),
        }
        Ok(Some(Received { bytes, descriptors }))
    }

    /// Nothing more is sent from here: the other end reads what there is, and then that this is the end.
    pub fn finish(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
    }

    /// Has the command get this end as its standard input, where [`inherited`] finds it.
    pub fn inherit_by(self, command: &mut Command) {
        command.stdin(Stdio::from(self.0)).env(VARIABLE, STDIN);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
}

impl TryFrom<OwnedFd> for Channel {
    type Error = io::Error;

    /// Another process's end of a channel, as it arrived in a message.
    fn try_from(fd: OwnedFd) -> io::Result<Channel> {
        let is_one = sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX)
            && sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::SEQPACKET);
        if is_one { Ok(Channel(fd)) } else { Err(invalid("the descriptor is no Unix seqpacket socket")) }
    }
}

/// The channel that this process was started with, if it was. It is taken away from standard input, which is empty from then
/// on. To be called once.
///
/// # Errors
/// The environment says that there is one, and there is not.
pub fn inherited() -> io::Result<Option<Channel>> {
    let Ok(value) = std::env::var(VARIABLE) else { return Ok(None) };
    if value != STDIN {
        return Err(invalid("only standard input (0) can be the channel"));
    }
    let channel = Channel::try_from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(Some(channel))
}

/// This process is one that takes over. For tests, which have chosen ones fail.
pub fn takes_over() {
    faults::is_new();
}

fn memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("cableway-hand-over", flags)?);
    file.write_all(bytes)?;
    file.rewind()?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file.into())
}

/// The bytes in a descriptor that arrived. The sender cannot change them any more.
fn in_memfd(descriptor: Option<OwnedFd>) -> io::Result<Vec<u8>> {
    let descriptor = descriptor.ok_or_else(|| invalid("the descriptor with the bytes of the message is missing"))?;
    let sealed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    if !rustix::fs::fcntl_get_seals(&descriptor).is_ok_and(|seals| seals.contains(sealed)) {
        return Err(invalid("the bytes of the message are in nothing that could be trusted to stay"));
    }
    let mut file = File::from(descriptor);
    let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn late(error: rustix::io::Errno) -> io::Error {
    match error {
        rustix::io::Errno::AGAIN => io::Error::from(ErrorKind::TimedOut),
        error => error.into(),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::io::FdFlags;

    use super::*;

    fn numbered(n: usize) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        write!(file, "{n}").unwrap();
        file.into()
    }

    fn number(fd: OwnedFd) -> String {
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
        let (mut file, mut text) = (File::from(fd), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    /// Sends what [`Channel::send`] would not.
    fn send_raw(channel: &Channel, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        channel.send_as(&bytes[..1], &bytes[1..], descriptors).unwrap();
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_in_order() {
        let (here, there) = Channel::pair().unwrap();
        let files: Vec<_> = (0..DESCRIPTORS_MAX).map(numbered).collect();
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        // Sizes on both sides of what fits into a message. The last is more than any socket's buffer.
        for size in [0, 1, INLINE_MAX, INLINE_MAX + 1, 5 << 20] {
            let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
            here.send(&bytes, &files).unwrap();
            let received = there.receive().unwrap().unwrap();
            assert!(received.bytes == bytes, "{size} bytes");
            let numbers: Vec<_> = received.descriptors.into_iter().map(number).collect();
            assert_eq!(numbers, (0..DESCRIPTORS_MAX).map(|n| n.to_string()).collect::<Vec<_>>());
        }
        let too_many: Vec<_> = files.iter().copied().chain([here.as_fd()]).collect();
        assert_eq!(here.send(b"", &too_many).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn the_end_comes_behind_what_was_sent_and_an_end_without_reader_is_an_error() {
        let (here, there) = Channel::pair().unwrap();
        here.send(b"last", &[]).unwrap();
        drop(here);
        assert_eq!(there.receive().unwrap().unwrap().bytes, b"last");
        assert!(there.receive().unwrap().is_none());
        assert_eq!(there.send(b"x", &[]).unwrap_err().kind(), ErrorKind::BrokenPipe);
        // One that ended with something unread has ended, too.
        let (here, there) = Channel::pair().unwrap();
        there.send(b"unread", &[]).unwrap();
        drop(here);
        assert!(there.receive().unwrap().is_none());
    }

    #[test]
    fn waiting_has_an_end_both_ways() {
        let (here, there) = Channel::pair().unwrap();
        here.set_patience(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(here.receive().unwrap_err().kind(), ErrorKind::TimedOut);
        let full = (0..1000).find_map(|_| here.send(&[0; INLINE_MAX], &[]).err()).expect("the buffer has an end");
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        assert_eq!(there.receive().unwrap().unwrap().bytes.len(), INLINE_MAX);
        here.send(&[0; INLINE_MAX], &[]).expect("there is room again");
    }

    #[test]
    fn without_waiting_a_message_is_sent_whole_or_not_at_all() {
        let (here, there) = Channel::pair().unwrap();
        let mut sent = 0;
        assert!(here.has_room().unwrap());
        while here.try_send(&[7; INLINE_MAX], &[here.as_fd()]).unwrap() {
            sent += 1;
            assert!(sent < 1000, "the buffer has an end");
        }
        assert!(sent > 0 && !here.has_room().unwrap());
        for _ in 0..sent {
            let Received { bytes, descriptors } = there.receive().unwrap().unwrap();
            assert_eq!((bytes.len(), descriptors.len()), (INLINE_MAX, 1));
        }
        assert!(here.has_room().unwrap());
        assert!(here.try_send(b"x", &[]).unwrap());
        assert_eq!(there.receive().unwrap().unwrap().bytes, b"x");
        let too_much = here.try_send(&[0; INLINE_MAX + 1], &[]).unwrap_err();
        assert_eq!(too_much.kind(), ErrorKind::InvalidInput);
        drop(there);
        assert_eq!(here.try_send(b"x", &[]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn several_threads_send_and_each_message_stays_whole() {
        let (here, there) = Channel::pair().unwrap();
        let senders: Vec<_> = (0..3u8)
            .map(|n| {
                let here = here.try_clone().unwrap();
                thread::spawn(move || (0..100).for_each(|_| here.send(&[n; 3000], &[here.as_fd()]).unwrap()))
            })
            .collect();
        drop(here);
        let mut counts = [0; 3];
        while let Some(Received { bytes, descriptors }) = there.receive().unwrap() {
            assert!(bytes.len() == 3000 && bytes.iter().all(|byte| *byte == bytes[0]) && descriptors.len() == 1);
            counts[usize::from(bytes[0])] += 1;
        }
        assert_eq!(counts, [100; 3]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }

    #[test]
    fn what_nobody_should_send_is_refused_and_its_descriptors_are_closed() {
        // Aim: the write end of a pipe goes along with each bad message. When its last copy is closed, the pipe ends.
        let (here, there) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let unsealed = numbered(1);
        send_raw(&here, &[7, 1, 2], &[writer.as_fd()]);
        send_raw(&here, &[IN_MEMFD], &[]);
        send_raw(&here, &[IN_MEMFD], &[writer.as_fd(), unsealed.as_fd()]);
        send_raw(&here, &[INLINE; INLINE_MAX + 2], &[writer.as_fd()]);
        drop(writer);
        for _ in 0..4 {
            assert_eq!(there.receive().unwrap_err().kind(), ErrorKind::InvalidData);
        }
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
        here.send(b"good", &[]).unwrap();
        assert_eq!(there.receive().unwrap().unwrap().bytes, b"good");
    }

    #[test]
    fn other_sockets_are_no_channels() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Channel::try_from(OwnedFd::from(stream)).is_err());
        assert!(Channel::try_from(numbered(1)).is_err());
        let (channel, _other) = Channel::pair().unwrap();
        assert!(Channel::try_from(OwnedFd::from(channel)).is_ok());
    }
}
