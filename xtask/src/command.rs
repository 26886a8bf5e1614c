//! Running a program so that a person sees what runs and what it prints, while its closing lines are counted.

use crate::Places;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

/// Tests that a program said it ran.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Count {
    pub passed: u64,
    pub failed: u64,
}

impl Count {
    pub fn add(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Reads one line of output: the closing line of a Rust test binary, or of node's test runner.
    fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            for part in result.split([';', '.']) {
                match part.trim().split_once(' ') {
                    Some((n, "passed")) => self.passed += n.parse().unwrap_or(0),
                    Some((n, "failed")) => self.failed += n.parse().unwrap_or(0),
                    _ => {}
                }
            }
        } else if let Some(result) = line.strip_prefix("# ").or_else(|| line.strip_prefix("\u{2139} ")) {
            match result.split_once(' ') {
                Some(("pass", n)) => self.passed += n.trim().parse().unwrap_or(0),
                Some(("fail" | "cancelled", n)) => self.failed += n.trim().parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

pub struct Command {
    inner: std::process::Command,
}

/// The cargo that runs us, working in the repository and building into the shared target directory.
pub fn cargo(places: &Places) -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), places)
}

impl Command {
    pub fn new(program: impl AsRef<OsStr>, places: &Places) -> Self {
        let mut inner = std::process::Command::new(program);
        inner.current_dir(&places.root).env("CARGO_TARGET_DIR", &places.target).stdin(Stdio::null());
        // What `cargo run` says of xtask is no news to what xtask runs, and ring (with all that use it) would be built again
        // whenever a person goes from `cargo test` to `cargo xtask` and back.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
                inner.env_remove(name);
            }
        }
        Self { inner }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.inner.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    pub fn within(mut self, dir: PathBuf) -> Self {
        self.inner.current_dir(dir);
        self
    }

    /// Runs it with its output going straight through; true when it exited with 0.
    pub fn passes(mut self) -> bool {
        self.announce();
        match self.inner.status() {
            Ok(status) => status.success(),
            Err(error) => {
                println!("cannot run {}: {error}", self.inner.get_program().display());
                false
            }
        }
    }

    /// Runs it, showing its standard output line by line and counting the tests that it reports.
    pub fn counts(mut self) -> (bool, Count) {
        self.announce();
        let mut count = Count::default();
        let mut child = match self.inner.stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("cannot run {}: {error}", self.inner.get_program().display());
                return (false, count);
            }
        };
        let output = child.stdout.take().expect("standard output was asked for");
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            count.read(&line);
        }
        (child.wait().is_ok_and(|status| status.success()), count)
    }

    /// Runs it in silence; its standard output when it exited with 0.
    pub fn output(mut self) -> Option<String> {
        let output = self.inner.stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn announce(&self) {
        let words: Vec<OsString> =
            std::iter::once(self.inner.get_program()).chain(self.inner.get_args()).map(OsStr::to_owned).collect();
        println!("$ {}", words.join(OsStr::new(" ")).display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Count {
        let mut count = Count::default();
        text.lines().for_each(|line| count.read(line));
        count
    }

    #[test]
    fn closing_lines_of_rust_test_binaries_add_up() {
        let text = "test a ... ok\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s";
        assert_eq!(counted(text), Count { passed: 15, failed: 2 });
    }

    #[test]
    fn closing_lines_of_node_are_read_in_both_its_formats() {
        assert_eq!(counted("# tests 5\n# pass 4\n# fail 1\n# cancelled 0"), Count { passed: 4, failed: 1 });
        assert_eq!(counted("\u{2139} pass 7\n\u{2139} fail 0\n\u{2139} cancelled 2"), Count { passed: 7, failed: 2 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(counted("5 passed\npass 3\n# passing 2\ntest result"), Count::default());
    }
}
