//! Limits of the process and the machine.

use std::{fs, io};

/// Raises the soft limit of open files to the hard one and tells what it is then.
///
/// # Errors
/// The limit cannot be read; that it cannot be raised is no error, the answer tells.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE)?;
    if soft < hard {
        let _ = rlimit::setrlimit(rlimit::Resource::NOFILE, hard, hard);
    }
    open_files()
}

/// The limit of open files in force.
///
/// # Errors
/// The limit cannot be read.
pub fn open_files() -> io::Result<u64> {
    Ok(rlimit::getrlimit(rlimit::Resource::NOFILE)?.0)
}

/// Since boot, on the whole machine: connections that found an accept queue full, and SYNs dropped for want of
/// room (`ListenOverflows`, `ListenDrops` of `/proc/net/netstat`).
pub fn listen_overflows() -> Option<(u64, u64)> {
    overflows_in(&fs::read_to_string("/proc/net/netstat").ok()?)
}

/// The same from the text of that file.
pub(super) fn overflows_in(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let find = |wanted: &str| names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == wanted)?.1.parse().ok();
    Some((find("ListenOverflows")?, find("ListenDrops")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_its_limits() {
        assert!(open_files().unwrap() > 0);
        assert!(raise_open_files().unwrap() >= open_files().unwrap());
        assert!(listen_overflows().is_some());
    }
}
