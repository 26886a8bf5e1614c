//! A listening Unix socket for the user of this process and root, and for nobody else: made without a moment in which others
//! could connect, in the place of one that a dead process has left, and never in the place of one that somebody listens on.
//!
//! The socket is bound under a name of its own and renamed to its place, so whoever connects there meets the socket that was there
//! before or this one, and never none.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{process, thread};

use rustix::fs::{FlockOperation, Mode, OFlags};
use socket2::{Domain, SockAddr, Socket, Type};

/// Longest path in bytes: `sun_path` holds 108, one of them is the zero at the end. See unix(7).
pub const PATH_BYTES_MAX: usize = 107;

/// Connections that may wait to be accepted. A person or two and a script.
const BACKLOG: i32 = 16;

/// How long another process of the same user may hold the directory while it makes its socket there, and how often this one looks.
const LOCK_TRIES: u32 = 50;
const LOCK_EVERY: Duration = Duration::from_millis(20);

/// Who is at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The effective user when it connected, or began to listen. One that has no name in this user namespace is 65534.
    pub uid: u32,
    /// The process; 0: it has none in this PID namespace.
    pub pid: u32,
}

/// Who has connected to this process, or listens where it has connected to (`SO_PEERCRED`, unix(7)).
///
/// # Errors
/// It is no Unix socket.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    use std::os::fd::AsRawFd;
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    #[allow(
        unsafe_code,
        reason = "rustix has a pid there that cannot be 0, and the kernel says 0 for other PID namespaces"
    )]
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `peer`; the descriptor is borrowed for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(Peer { uid: peer.uid, pid: u32::try_from(peer.pid).unwrap_or(0) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The effective user of this process.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// The kernel takes no path of this length.
    #[error("{0} is too long: a Unix socket has at most {PATH_BYTES_MAX} bytes of path")]
    TooLong(PathBuf),
    /// Another process listens there.
    #[error("{path} belongs to another process that runs (pid {pid})")]
    Taken {
        /// The place.
        path: PathBuf,
        /// The process; 0: it has none here.
        pid: u32,
    },
    /// Something else is there, which is not for us to remove.
    #[error("{0} is there and is no socket of this user")]
    NotOurs(PathBuf),
    /// A directory that others could write into.
    #[error("{0} is no directory that belongs to this user alone (mode 0700)")]
    OpenToOthers(PathBuf),
    /// The machine refused.
    #[error("{path}: {source}")]
    Machine {
        /// The place.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket. The file goes when this is dropped, if it is still this socket's.
#[derive(Debug)]
pub struct ControlSocket {
    /// Non-blocking.
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file.
    file: (u64, u64),
}

impl ControlSocket {
    /// Listens at `path`, whose directory must be there. A socket that nobody listens on is replaced, and one on which the process
    /// `predecessor` listens.
    ///
    /// # Errors
    /// See [`ControlSocketError`].
    pub fn listen(path: &Path, predecessor: Option<u32>) -> Result<ControlSocket, ControlSocketError> {
        let machine = |source: io::Error| ControlSocketError::Machine { path: path.to_owned(), source };
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(machine(io::Error::new(io::ErrorKind::InvalidInput, "it names no file")));
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let own_name = folder.join(format!(".{}.{}", name.display(), process::id()));
        if own_name.as_os_str().len() > PATH_BYTES_MAX {
            return Err(ControlSocketError::TooLong(path.to_owned()));
        }
        let _lock = lock(folder).map_err(machine)?;
        may_be_replaced(path, predecessor)?;
        // Left by a process that had this number and died in the middle.
        if is_socket(&own_name).map_err(machine)? {
            fs::remove_file(&own_name).map_err(machine)?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(machine)?;
        // The file gets the mode of the unbound socket, so there is no moment in which it has another one.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| machine(error.into()))?;
        let made = SockAddr::unix(&own_name)
            .and_then(|address| socket.bind(&address))
            .and_then(|()| socket.listen(BACKLOG))
            .and_then(|()| socket.set_nonblocking(true))
            .and_then(|()| fs::rename(&own_name, path))
            .and_then(|()| fs::symlink_metadata(path));
        let file = made.map_err(|error| {
            let _ = fs::remove_file(&own_name);
            machine(error)
        })?;
        let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
        Ok(ControlSocket { listener, path: path.to_owned(), file: (file.dev(), file.ino()) })
    }

    /// One that this process has opened before it ran this program.
    ///
    /// # Errors
    /// It is there no more.
    pub fn renewed(listener: OwnedFd, path: &Path) -> io::Result<ControlSocket> {
        let file = fs::symlink_metadata(path)?;
        Ok(ControlSocket { listener: listener.into(), path: path.to_owned(), file: (file.dev(), file.ino()) })
    }

    /// One more handle of the listener, which keeps it open.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Leaves the file where it is.
    pub fn leave(mut self) {
        // No file has this number.
        self.file = (0, 0);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A successor has put its own there.
        let is_ours = |file: Metadata| (file.dev(), file.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a directory that only this user can enter; one that is there must be so.
///
/// # Errors
/// It cannot be made, or belongs to somebody else, or others may enter it, or it is a link.
pub fn private_folder(path: &Path) -> Result<(), ControlSocketError> {
    let machine = |source| ControlSocketError::Machine { path: path.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(machine(error)),
    }
    let found = fs::symlink_metadata(path).map_err(machine)?;
    if found.is_dir() && found.uid() == own_uid() && found.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(ControlSocketError::OpenToOthers(path.to_owned()))
    }
}

/// Keeps others of this program from making a socket in the same folder at the same time. Somebody who holds it for long keeps nobody
/// up: then it is done without.
fn lock(folder: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY.bits() as i32;
    let folder = File::options().read(true).custom_flags(flags).open(folder)?;
    for _ in 0..LOCK_TRIES {
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            break;
        }
        thread::sleep(LOCK_EVERY);
    }
    Ok(folder)
}

fn is_socket(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.file_type().is_socket()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a socket of ours may take this place.
fn may_be_replaced(path: &Path, predecessor: Option<u32>) -> Result<(), ControlSocketError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ControlSocketError::Machine { path: path.to_owned(), source }),
    };
    if !found.file_type().is_socket() || found.uid() != own_uid() {
        return Err(ControlSocketError::NotOurs(path.to_owned()));
    }
    match connect(path) {
        Ok(stream) => match peer(&stream) {
            Ok(peer) if Some(peer.pid) == predecessor => Ok(()),
            other => Err(ControlSocketError::Taken { path: path.to_owned(), pid: other.map_or(0, |peer| peer.pid) }),
        },
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // Its queue is full, so somebody has it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ControlSocketError::Taken { path: path.to_owned(), pid: 0 })
        }
        Err(source) => Err(ControlSocketError::Machine { path: path.to_owned(), source }),
    }
}

/// Connects without waiting: on a Unix socket that is done at once or, when the queue is full, refused as `WouldBlock`.
///
/// # Errors
/// Nobody listens there, or this user may not connect.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn it_is_for_its_user_alone_and_goes_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let socket = ControlSocket::listen(&path, None).unwrap();
        assert_eq!(mode(&path), 0o600);
        let stream = connect(&path).unwrap();
        let own = Peer { uid: own_uid(), pid: process::id() };
        assert_eq!(peer(&stream).unwrap(), own, "who listens");
        assert_eq!(peer(&socket.listener.accept().unwrap().0).unwrap(), own, "who has connected");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the name under which it was made is gone");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_left_of_a_dead_process_is_replaced_and_what_lives_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "dead");
        let living = ControlSocket::listen(&path, None).unwrap();
        let own = process::id();
        let refused = ControlSocket::listen(&path, Some(own + 1)).expect_err("it lives");
        assert!(matches!(refused, ControlSocketError::Taken { pid, .. } if pid == own), "{refused}");
        // The one that hands over to this process.
        let successor = ControlSocket::listen(&path, Some(own)).unwrap();
        drop(living);
        assert!(path.exists(), "it is the successor's");
        connect(&path).unwrap();
        assert!(successor.listener.accept().is_ok());
    }

    #[test]
    fn files_and_links_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "kept").unwrap();
        symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            let refused = ControlSocket::listen(path, None).expect_err("no socket");
            assert!(matches!(refused, ControlSocketError::NotOurs(_)), "{refused}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        let long = folder.path().join("x".repeat(120));
        assert!(matches!(ControlSocket::listen(&long, None), Err(ControlSocketError::TooLong(_))));
        let nowhere = ControlSocket::listen(&folder.path().join("no/such"), None);
        assert!(matches!(nowhere, Err(ControlSocketError::Machine { .. })));
    }

    #[test]
    fn a_folder_that_others_may_enter_or_that_is_a_link_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (own, link) = (folder.path().join("own"), folder.path().join("link"));
        private_folder(&own).unwrap();
        private_folder(&own).expect("and again");
        assert_eq!(mode(&own), 0o700);
        symlink(&own, &link).unwrap();
        assert!(matches!(private_folder(&link), Err(ControlSocketError::OpenToOthers(_))));
        fs::set_permissions(&own, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(private_folder(&own), Err(ControlSocketError::OpenToOthers(_))));
    }
}
