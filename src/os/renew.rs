//! This process goes on as another program: the same process id, the same children, and descriptors that the other program finds
//! under their numbers.
//!
//! Its state travels in a sealed `memfd`, whose number is in the environment, with the process it is for: a process that has
//! only inherited the environment finds nothing. Between [`renew`] and the moment at which the other program takes them, the
//! descriptors are not close-on-exec, so no other thread may start a program then.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::{process, ptr};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

/// The environment variable: process id and number of the descriptor, with a space between.
pub const VARIABLE: &str = "CABLEWAY_RENEWED";

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

/// A descriptor on its way to another program, or out of the one before. It is nobody's: it stays open until it is taken.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Given(RawFd);

impl Given {
    /// Gives one up.
    pub fn give(descriptor: impl Into<OwnedFd>) -> Given {
        Given(descriptor.into().into_raw_fd())
    }

    /// Its number.
    pub fn number(&self) -> RawFd {
        self.0
    }

    /// Takes it, close-on-exec.
    ///
    /// # Errors
    /// There is none under this number.
    #[allow(unsafe_code, reason = "a descriptor that the program before has opened is a bare number")]
    pub fn take(self) -> io::Result<OwnedFd> {
        keep(self.0, false)?;
        // SAFETY: it is open, and it was given up by `give` with this number, in this process and perhaps by the program before;
        // a value is taken once, and nobody else makes one of it.
        Ok(unsafe { OwnedFd::from_raw_fd(self.0) })
    }
}

/// Whether it stays open when another program is run.
#[allow(unsafe_code, reason = "it has no owner")]
fn keep(number: RawFd, keep: bool) -> io::Result<()> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: only its flags are changed, which fails if nothing is open there.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_setfd(descriptor, if keep { FdFlags::empty() } else { FdFlags::CLOEXEC })?)
}

/// A file in memory for the state.
///
/// # Errors
/// Out of descriptors.
pub fn state() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(File::from(rustix::fs::memfd_create("cableway-state", flags)?))
}

/// Nothing in it changes any more, and it is read from its beginning.
///
/// # Errors
/// It is no such file.
pub fn seal(state: &mut File) -> io::Result<()> {
    state.rewind()?;
    Ok(rustix::fs::fcntl_add_seals(state, SEALS | SealFlags::SEAL)?)
}

/// Runs another program in this process, with its arguments and its environment, and with these descriptors. Comes back only if
/// that cannot be; then everything is as it was.
pub fn renew(program: &Path, state: &File, descriptors: &[RawFd]) -> io::Error {
    let all = || descriptors.iter().copied().chain([state.as_raw_fd()]);
    let result = all().try_for_each(|number| keep(number, true)).and_then(|()| run(program, state.as_raw_fd()));
    for number in all() {
        // It was possible before.
        let _ = keep(number, false);
    }
    result.err().unwrap_or_else(|| io::ErrorKind::Other.into())
}

fn run(program: &Path, state: RawFd) -> io::Result<()> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let arguments = env::args_os().map(|argument| CString::new(argument.into_vec()));
    let arguments = arguments.collect::<Result<Vec<CString>, _>>()?;
    let own = (OsString::from(VARIABLE), OsString::from(format!("{} {state}", process::id())));
    let others = env::vars_os().filter(|(name, _)| name != VARIABLE);
    let environment =
        others.chain([own]).map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let environment = environment.collect::<Result<Vec<CString>, _>>()?;
    let pointers =
        |texts: &[CString]| -> Vec<_> { texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect() };
    let (argument_pointers, environment_pointers) = (pointers(&arguments), pointers(&environment));
    #[allow(unsafe_code, reason = "the standard library's `exec` changes what is done at signals, also when it fails")]
    // SAFETY: all are texts that end with a zero and live until the call returns; both lists end with a null pointer.
    unsafe {
        libc::execve(program.as_ptr(), argument_pointers.as_ptr(), environment_pointers.as_ptr());
    }
    Err(io::Error::last_os_error())
}

/// The state that the program before has left to this one, if this process ran another one before. Once only.
///
/// # Errors
/// The environment says that there is one, and there is not.
pub fn renewed() -> io::Result<Option<File>> {
    let Ok(value) = env::var(VARIABLE) else { return Ok(None) };
    let explained =
        |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE} is set, {why}; unset it"));
    let Some((pid, number)) = value.split_once(' ') else { return Err(explained("and names no process")) };
    if pid.parse() != Ok(process::id()) {
        // Of a process that has started this one.
        return Ok(None);
    }
    let number = number.parse().ok().filter(|number| *number > 2);
    let number = number.ok_or_else(|| explained("and names no descriptor"))?;
    let state = Given(number).take().map_err(|_| explained("and its descriptor is not open"))?;
    is_sealed(state).map(Some).map_err(|_| explained("and its descriptor is no state"))
}

/// A state that another process has given to this one.
///
/// # Errors
/// It could still change.
pub fn is_sealed(state: OwnedFd) -> io::Result<File> {
    match rustix::fs::fcntl_get_seals(&state)?.contains(SEALS) {
        true => Ok(File::from(state)),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn flags(number: RawFd) -> String {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned()
    }

    #[test]
    fn a_program_that_is_not_there_leaves_everything_as_it_was() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let given = Given::give(theirs);
        let mut state = state().unwrap();
        state.write_all(b"x").unwrap();
        seal(&mut state).unwrap();
        let before = (flags(given.number()), flags(state.as_raw_fd()));
        let error = renew(Path::new("/nowhere/cableway"), &state, &[given.number()]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!((flags(given.number()), flags(state.as_raw_fd())), before);
        let theirs = std::os::unix::net::UnixStream::from(given.take().unwrap());
        (&theirs).write_all(b"y").unwrap();
        ours.read_exact(&mut [0]).unwrap();
        assert!(Given(-1).take().is_err() && Given(1 << 20).take().is_err());
    }

    #[test]
    fn a_state_that_could_change_is_none() {
        let mut file = state().unwrap();
        file.write_all(b"abc").unwrap();
        assert!(is_sealed(file.try_clone().unwrap().into()).is_err());
        assert!(is_sealed(File::open("/dev/null").unwrap().into()).is_err());
        seal(&mut file).unwrap();
        assert!(file.write_all(b"d").is_err());
        let mut read = String::new();
        is_sealed(file.into()).unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "abc");
    }
}
