//! Small files of the kernel, below a root.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The most that is read of one file. `modules.dep` is the largest that is looked at.
const BYTES_MAX: u64 = 4 << 20;

/// Where the files of a machine lie.
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    pub fn of_this_machine() -> Files {
        Files { root: PathBuf::from("/") }
    }

    #[cfg(test)]
    pub fn below(root: &Path) -> Files {
        Files { root: root.to_owned() }
    }

    /// A file's text without the end of its last line; tabs are spaces.
    pub fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.root.join(path)).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end().replace('\t', " "))
    }

    /// A file that holds one number.
    pub fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// A file of which only the beginning is wanted.
    pub fn lines(&self, path: &str) -> Option<BufReader<File>> {
        Some(BufReader::new(File::open(self.root.join(path)).ok()?))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The names in a directory, in order.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// The size that the kernel tells of a directory.
    pub fn directory_size(&self, path: &str) -> Option<u64> {
        Some(fs::metadata(self.root.join(path)).ok()?.len())
    }

    /// The last part of where a link leads.
    pub fn link_name(&self, path: &str) -> Option<String> {
        fs::read_link(self.root.join(path)).ok().as_deref().and_then(Path::file_name)?.to_str().map(str::to_owned)
    }
}

/// How many numbers a list like `0-3,8` has.
pub(super) fn ranges(list: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        (last.saturating_sub(first)).checked_add(1)
    };
    list.split(',').filter_map(count).fold(0, usize::saturating_add)
}
