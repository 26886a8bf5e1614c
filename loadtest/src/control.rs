//! The control socket of a server that this tool has started: upgrades it as a person does, and asks who serves.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::clock::now_ns;

/// How long a server may take to say how it is.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// How long the command waits for the end of an upgrade.
const WAIT_S: u32 = 900;

/// Where a server takes orders.
#[derive(Debug, Clone)]
pub struct Control {
    program: PathBuf,
    socket: PathBuf,
}

impl Control {
    /// Chooses a place for the socket of a server of this program; the server makes it.
    pub fn new(program: &Path) -> Self {
        let name = format!("cableway-loadtest-{}-{}.sock", std::process::id(), now_ns());
        Self { program: program.to_owned(), socket: std::env::temp_dir().join(name) }
    }

    /// What the server is told.
    pub fn arguments(&self) -> [String; 2] {
        ["--control-socket".to_owned(), self.socket.to_string_lossy().into_owned()]
    }

    /// Upgrades the server, and gives what the command printed.
    pub fn upgrade(&self) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        let output = command.args(["upgrade", "--wait", &WAIT_S.to_string()]).args(self.arguments()).output()?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            bail!("the upgrade was refused ({}): {}", output.status, said(&output.stderr));
        }
        Ok(said(&output.stdout))
    }

    /// The process that answers at the socket.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let mut stream = UnixStream::connect(&self.socket).context("the control socket")?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.write_all(b"{\"command\":\"status\"}\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let status: serde_json::Value = serde_json::from_str(&line)?;
        let pid = status["status"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.with_context(|| format!("the status is {line}"))
    }
}
