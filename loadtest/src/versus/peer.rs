//! A peer's script: installing, starting, and what it says of itself.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::engine::Reply;
use crate::observe::{self, ProcessCost};
use crate::protocol::{Protocol, Target};
use crate::publish::Credentials;
use crate::server::Process;

/// How long a peer may take from its start until it says that it accepts.
const START_MAX: Duration = Duration::from_secs(60);

/// What a started peer says of itself, one line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// What runs.
    pub version: String,
    /// What differs from its defaults.
    #[serde(default)]
    pub settings: String,
    /// What clients speak.
    pub protocol: Protocol,
    /// Where they connect.
    pub target: String,
    /// What they subscribe to.
    pub channel: Option<String>,
    /// How something is published to everybody.
    pub publish: Option<Publish>,
    /// What a client can say and have answered.
    pub say: Option<Say>,
    /// Handshakes that may be unfinished at a time, and clients that may say something at a time, where it refuses more.
    pub at_once: Option<u32>,
    /// The processes that count; all of the group without.
    #[serde(default)]
    pub pids: Vec<u32>,
    /// What a reader of the row must know.
    #[serde(default)]
    pub note: String,
}

/// How something is published.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Where it is posted.
    pub url: String,
    /// What is posted, with `{mark}`.
    pub body: String,
    /// One more header, `Name: value`.
    pub header: Option<String>,
    /// `KEY:SECRET` of Pusher's HTTP API.
    pub pusher: Option<String>,
}

impl Publish {
    /// What the publisher shows.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(match (&self.header, &self.pusher) {
            (None, None) => Credentials::None,
            (Some(header), None) => Credentials::Header(header.clone()),
            (None, Some(pair)) => Credentials::pusher(pair).context("publish.pusher")?,
            (Some(_), Some(_)) => bail!("a publisher has a header or a Pusher key, not both"),
        })
    }
}

/// What a client can say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Say {
    /// The texts, sent together; `{pad}` stands for the letters.
    pub texts: Vec<String>,
    /// What ends the wait.
    pub reply: Reply,
    /// How many letters.
    pub bytes: usize,
}

/// A script with its environment.
pub struct Peer {
    script: PathBuf,
    environment: Vec<(&'static str, String)>,
}

/// The names of all scripts of a directory.
pub fn all(scripts: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(scripts).with_context(|| format!("no scripts in {}", scripts.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

impl Peer {
    pub fn new(name: &str, options: &Options, home: &Path) -> anyhow::Result<Self> {
        let script = options.scripts.join(name).canonicalize().with_context(|| format!("there is no peer {name}"))?;
        let path = |path: &Path| {
            let path = path.canonicalize().with_context(|| format!("there is no {}", path.display()))?;
            Ok::<_, anyhow::Error>(path.display().to_string())
        };
        let mut environment = vec![
            ("VERSUS_HOME", path(home)?),
            ("VERSUS_CONNECTIONS", options.connections.to_string()),
            ("VERSUS_BACKLOG", options.backlog.to_string()),
            ("VERSUS_CABLEWAY", path(&options.server)?),
            ("VERSUS_LOADTEST", path(&std::env::current_exe()?)?),
        ];
        for (name, binary) in [("VERSUS_ANYCABLE_GO", &options.anycable_go), ("VERSUS_CENTRIFUGO", &options.centrifugo)]
        {
            if let Some(binary) = binary {
                environment.push((name, path(binary)?));
            }
        }
        Ok(Self { script, environment })
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg(what).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Installs what it needs; the error is the script's last word.
    pub fn install(&self) -> anyhow::Result<()> {
        let output = self.command("install").output().context("the script does not run")?;
        let words = String::from_utf8_lossy(&output.stderr);
        let reason = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
        ensure!(output.status.success(), "{}", reason.trim());
        Ok(())
    }

    /// Starts it and waits until it accepts.
    pub fn start(&self) -> anyhow::Result<Running> {
        let (process, line) = Process::spawn_talking(&mut self.command("start"), START_MAX)?;
        let description: Description =
            serde_json::from_str(&line).with_context(|| format!("it said {:?}", line.trim()))?;
        let target = Target::parse(&description.target)?;
        let address = target.authority.to_socket_addrs()?.next().context("its target has no address")?;
        Ok(Running { process, description, target, address })
    }
}

/// A started peer. Dropping it ends it.
pub struct Running {
    process: Process,
    /// What it said of itself.
    pub description: Description,
    /// Where clients connect.
    pub target: Target,
    /// The same, looked up.
    pub address: SocketAddr,
}

impl Running {
    fn pids(&self) -> anyhow::Result<Vec<u32>> {
        match self.description.pids.is_empty() {
            true => observe::processes_of_group(self.process.pid()).context("cannot read /proc"),
            false => Ok(self.description.pids.clone()),
        }
    }

    /// Memory and CPU of all its processes now.
    pub fn cost(&self) -> anyhow::Result<ProcessCost> {
        let mut sum = ProcessCost::default();
        for pid in self.pids()? {
            sum.add(&observe::process_cost(pid).with_context(|| format!("process {pid} of it is gone"))?);
        }
        Ok(sum)
    }

    /// CPU time of all its processes so far, in microseconds.
    pub fn cpu_us(&self) -> anyhow::Result<f64> {
        let mut sum = Duration::ZERO;
        for pid in self.pids()? {
            sum += observe::cpu_time(pid).with_context(|| format!("process {pid} of it is gone"))?;
        }
        Ok(sum.as_secs_f64() * 1e6)
    }
}
