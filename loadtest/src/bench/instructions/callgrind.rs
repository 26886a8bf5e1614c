//! A server under `valgrind --tool=callgrind`, whose counters are set to zero and read while it runs (through `vgdb`, which
//! comes with valgrind), and what it writes about them.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

/// How long the server may take to obey, in seconds: vgdb waits without end otherwise.
const ANSWER_S_MAX: u32 = 60;

/// Where callgrind writes the counters of one process. Removed when it is dropped.
pub(super) struct Callgrind {
    folder: PathBuf,
    dumps: u32,
}

impl Callgrind {
    /// Makes sure that valgrind is there.
    pub fn new() -> anyhow::Result<Self> {
        match Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
            Ok(status) => ensure!(status.success(), "valgrind --version ended with {status}"),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("valgrind is missing: instructions are counted with it (Debian package valgrind)")
            }
            Err(error) => return Err(error).context("cannot run valgrind"),
        }
        let name = format!("cableway-callgrind-{}-{}", std::process::id(), crate::clock::now_ns());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder, dumps: 0 })
    }

    /// What runs a program under callgrind; the program's arguments are still to come.
    pub fn launcher(&self, program: &Path) -> Command {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--vgdb=yes"]);
        let mut out_file = std::ffi::OsString::from("--callgrind-out-file=");
        out_file.push(self.folder.join("counts"));
        command.arg(out_file).arg(program);
        command
    }

    /// Forgets what was counted until now.
    pub fn zero(&self, pid: u32) -> anyhow::Result<()> {
        tell(pid, "zero")
    }

    /// What was counted since the last time, which is then forgotten.
    pub fn take(&mut self, pid: u32) -> anyhow::Result<Profile> {
        tell(pid, "dump")?;
        self.dumps += 1;
        let path = self.folder.join(format!("counts.{}", self.dumps));
        let text = std::fs::read_to_string(&path).with_context(|| format!("callgrind wrote no {}", path.display()))?;
        Profile::parse(&text)
    }
}

impl Drop for Callgrind {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn tell(pid: u32, command: &str) -> anyhow::Result<()> {
    let output = Command::new("vgdb")
        .args([format!("--pid={pid}"), format!("--cmd-time-out={ANSWER_S_MAX}"), command.to_owned()])
        .stdin(Stdio::null())
        .output()
        .context("cannot run vgdb, which comes with valgrind")?;
    ensure!(
        output.status.success(),
        "vgdb {command} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Instructions, all and by function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Profile {
    pub instructions: u64,
    /// Of each function itself.
    pub own: HashMap<String, u64>,
    /// With all that it called.
    pub inclusive: HashMap<String, u64>,
}

impl Profile {
    /// Reads callgrind's format (valgrind manual, "Callgrind Format Specification"). Names are given in full once and by
    /// number later; a line of costs belongs to the last `fn=`, or, behind `calls=`, to what it called.
    ///
    /// `callgrind_annotate` is not used: it books everything below a thread on the function that starts threads.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut profile = Self::default();
        let mut names: HashMap<&str, &str> = HashMap::new();
        let mut function = "";
        let mut called = false;
        for line in text.lines() {
            if let Some((key, value)) = line.split_once('=') {
                if let "fn" | "cfn" = key {
                    let name = match value.split_once(' ') {
                        Some((number, name)) => {
                            names.insert(number, name);
                            name
                        }
                        None => names.get(value).copied().unwrap_or(value),
                    };
                    if key == "fn" {
                        function = name;
                    }
                }
                called |= key == "calls";
            } else if line.starts_with(['+', '-', '*']) || line.starts_with(|c: char| c.is_ascii_digit()) {
                let cost = line.split_ascii_whitespace().nth(1).unwrap_or("0");
                let cost: u64 = cost.parse().with_context(|| format!("a line of callgrind's: {line:?}"))?;
                *profile.inclusive.entry(function.to_owned()).or_default() += cost;
                if !std::mem::take(&mut called) {
                    *profile.own.entry(function.to_owned()).or_default() += cost;
                    profile.instructions += cost;
                }
            }
        }
        Ok(profile)
    }

    /// The `count` functions with the most instructions, of themselves or with all that they called.
    pub fn top(&self, inclusive: bool, count: usize) -> Vec<(&str, u64)> {
        let functions = if inclusive { &self.inclusive } else { &self.own };
        let mut functions: Vec<(&str, u64)> = functions.iter().map(|(name, cost)| (name.as_str(), *cost)).collect();
        functions.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        functions.truncate(count);
        functions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_booked_on_the_function_and_on_who_called_it() {
        let text = "version: 1\nevents: Ir\nsummary: 111\n\nob=(1) /lib/x.so\nfl=(1) a.rs\nfn=(1) outer\n16 5\n+2 1\n\
            fi=(2) b.rs\n3 4\nfe=(1)\ncfi=(2)\ncfn=(2) inner::<impl X = Y>\ncalls=2 +1\n* 100\n* 1\n\n\
            fl=(2)\nfn=(2)\n7 60\n+1 40\n\ntotals: 111\n";
        let profile = Profile::parse(text).unwrap();
        assert_eq!(profile.instructions, 111);
        assert_eq!(profile.top(false, 9), [("inner::<impl X = Y>", 100), ("outer", 11)]);
        assert_eq!(profile.top(true, 1), [("outer", 111)]);
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error() {
        assert!(Profile::parse("fn=(1) f\n16 many\n").is_err());
    }
}
