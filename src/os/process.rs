//! What this process uses, and signals to others.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use rustix::process::Pid;
pub use rustix::process::Signal;

/// Resident memory in bytes (`/proc/self/statm`). `None` where it cannot be read.
pub fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Memory that the kernel of the whole machine holds in its slab caches and in TCP buffers (`/proc/meminfo`,
/// `/proc/net/sockstat`): its side of every connection is in them. It does not count by process.
pub fn kernel_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let slab = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"))?;
    let slab: u64 = slab.trim().strip_suffix(" kB")?.parse().ok()?;
    let sockstat = fs::read_to_string("/proc/net/sockstat").ok()?;
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:"))?;
    let pages: u64 = tcp.rsplit_once(" mem ")?.1.trim().parse().ok()?;
    Some(slab * 1024 + pages * rustix::param::page_size() as u64)
}

/// Descriptors in use. Linux 6.2 and later tell the number as the directory's size; before that it is walked, which makes the
/// kernel keep an inode and a name for each of them (900 bytes, until memory gets short): not for the hot path.
pub fn open_descriptors() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        // One of those that are walked is the directory itself.
        0 => Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

/// Where the program of this process is, to start what is there then. As it was started, where that names a file: so a link
/// that is set to another version leads there. To be asked early: a path may be relative to where the process began.
///
/// # Errors
/// The kernel does not tell.
pub fn program() -> io::Result<PathBuf> {
    let running = fs::metadata("/proc/self/exe").map(|file| (file.dev(), file.ino()));
    let is_it = |path: &Path| {
        let file = fs::metadata(path).map(|file| (file.dev(), file.ino()));
        matches!((&running, &file), (Ok(running), Ok(file)) if running == file)
    };
    let named = env::args_os().next().map(PathBuf::from).filter(|path| path.components().count() > 1);
    if let Some(path) = named.and_then(|path| std::path::absolute(path).ok()).filter(|path| is_it(path)) {
        return Ok(path);
    }
    let path = env::current_exe()?;
    // What the kernel says of a file that was replaced.
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

/// Sends a signal.
///
/// # Errors
/// There is no such process, or it is another user's.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    // 0 and below would be groups of processes.
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_descriptors_are_counted() {
        assert!(resident_bytes().unwrap() > 100_000);
        // Less than a mebibyte is no Linux that runs tests.
        assert!(kernel_bytes().unwrap() > 1 << 20);
        let before = open_descriptors().unwrap();
        let _files: Vec<_> = (0..200).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_descriptors().unwrap() >= before + 100);
    }
}
