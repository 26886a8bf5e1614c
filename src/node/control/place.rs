//! Where the control socket of a server is: decided in one way by the server and by whoever looks for it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::os::control_socket::{self, ControlSocket, ControlSocketError};

/// The value of `--control-socket` that leaves the place to the program.
const AUTO: &str = "auto";

/// Where the unit of the package has its runtime directory. For whoever asks from outside of the unit.
const PACKAGE_FOLDER: &str = "/run/cableway";

/// Name of the socket in a directory that belongs to one server.
const NAME: &str = "control.sock";

/// Folder of the sockets of all servers of a user, one for each port.
const FOLDER: &str = "cableway";

/// Opens the socket that `--control-socket` asks for, if any. `predecessor` is the process that hands over to this one.
///
/// # Errors
/// See [`ControlSocketError`].
pub(super) fn open(
    option: Option<&str>,
    port: u16,
    predecessor: Option<u32>,
) -> Result<Option<ControlSocket>, ControlSocketError> {
    let Some(option) = option else { return Ok(None) };
    if option != AUTO {
        return ControlSocket::listen(Path::new(option), predecessor).map(Some);
    }
    if let Some(folder) = runtime_folder() {
        return ControlSocket::listen(&folder.join(NAME), predecessor).map(Some);
    }
    let folder = user_folder();
    control_socket::private_folder(&folder)?;
    let socket = match ControlSocket::listen(&folder.join(format!("{port}.sock")), predecessor) {
        // Several share the port (`--reuse-port`), or have it on different addresses.
        Err(ControlSocketError::Taken { .. }) => {
            ControlSocket::listen(&folder.join(format!("{port}-{}.sock", std::process::id())), None)
        }
        other => other,
    };
    socket.map(Some)
}

/// Whether somebody has named a place.
pub(super) fn is_named(option: Option<&str>) -> bool {
    option.is_some_and(|option| option != AUTO)
}

/// `$RUNTIME_DIRECTORY`, which a supervisor has made for this service: the first, if there are several.
fn runtime_folder() -> Option<PathBuf> {
    let folders = env::var_os("RUNTIME_DIRECTORY")?;
    env::split_paths(&folders).next().filter(|folder| folder.is_absolute())
}

/// The folder for this user's servers.
fn user_folder() -> PathBuf {
    folder_of_user(env::var_os("XDG_RUNTIME_DIR").as_deref(), control_socket::own_uid())
}

fn folder_of_user(runtime: Option<&OsStr>, uid: u32) -> PathBuf {
    // After `su` or `sudo` it may be another user's.
    let is_own = |folder: &&Path| {
        folder.is_absolute() && fs::metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == uid)
    };
    match runtime.map(Path::new).filter(is_own) {
        Some(runtime) => runtime.join(FOLDER),
        None => env::temp_dir().join(format!("{FOLDER}-{uid}")),
    }
}

/// The socket of the server that has this port, for whoever wants to ask it.
///
/// # Errors
/// There is none: where it was looked for, and what is there instead.
pub fn find(option: Option<&str>, port: u16) -> Result<PathBuf, String> {
    let Some(option) = option else {
        return Err("--control-socket none: such a server has no control socket; send it SIGUSR2".to_owned());
    };
    if option != AUTO {
        return Ok(PathBuf::from(option));
    }
    let folder = user_folder();
    let mut looked: Vec<PathBuf> = runtime_folder().into_iter().map(|folder| folder.join(NAME)).collect();
    looked.push(folder.join(format!("{port}.sock")));
    looked.push(Path::new(PACKAGE_FOLDER).join(NAME));
    let is_socket = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if let Some(found) = looked.iter().find(|path| is_socket(path)) {
        return Ok(found.clone());
    }
    let listed = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let others: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_socket(path)).collect();
    let hint = match others.is_empty() {
        true => "give the server's --control-socket, or its --port, and be the user who started it".to_owned(),
        false => format!("there are: {}; name one with --control-socket", listed(&others)),
    };
    Err(format!("no control socket at {}; {hint}", listed(&looked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_directory_of_another_user_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let uid = control_socket::own_uid();
        let own = folder_of_user(Some(folder.path().as_os_str()), uid);
        assert_eq!(own, folder.path().join("cableway"));
        let temporary = env::temp_dir().join(format!("cableway-{uid}"));
        for other in [None, Some(OsStr::new("")), Some(OsStr::new("relative")), Some(OsStr::new("/proc/self/none"))] {
            assert_eq!(folder_of_user(other, uid), temporary, "{other:?}");
        }
        let other = folder_of_user(Some(folder.path().as_os_str()), uid + 1);
        assert_eq!(other, env::temp_dir().join(format!("cableway-{}", uid + 1)));
    }

    #[test]
    fn a_socket_that_is_named_or_turned_off_is_looked_for_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.sock");
        let text = path.to_str().unwrap();
        assert_eq!(find(Some(text), 1), Ok(path.clone()));
        assert!(find(None, 1).expect_err("off").contains("SIGUSR2"));
        assert!(open(None, 1, None).unwrap().is_none());
        let socket = open(Some(text), 1, None).unwrap().expect("on");
        assert_eq!(socket.path(), path);
    }
}
