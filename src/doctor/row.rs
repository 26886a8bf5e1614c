//! A check's result.

use serde::{Serialize, Serializer};

use crate::os::facts::Facts;

use super::fix::Fix;
use super::goal::Goal;
use super::numbers::grouped;
use super::settings::Setting;

/// What a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is as the goal needs it.
    Ok,
    /// The goal is held, but something is slower or more brittle than it has to be.
    Warn,
    /// The goal is not held.
    No,
    /// It cannot be read here.
    Unknown,
}

/// What limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Open files.
    Descriptors,
    /// From SYN to `accept`.
    AcceptPath,
    /// Memory of the kernel and of the server.
    Memory,
    /// The firewall's table.
    Conntrack,
    /// Ports for connections to the app.
    BackendPorts,
    /// Keepalive, congestion control, TIME_WAIT.
    Tcp,
    /// The network card.
    Nic,
    /// Cores, memory nodes, the kernel itself.
    Processors,
}

impl Layer {
    /// As a heading.
    pub fn title(self) -> &'static str {
        match self {
            Layer::Descriptors => "descriptors",
            Layer::AcceptPath => "accept path",
            Layer::Memory => "memory",
            Layer::Conntrack => "connection tracking",
            Layer::BackendPorts => "backend ports",
            Layer::Tcp => "TCP",
            Layer::Nic => "network card",
            Layer::Processors => "processors and kernel",
        }
    }
}

/// Where advice comes from. The first five are the documents that the project started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A guide to system tuning for a proxy.
    Proxy,
    /// A production guide for a layer-4 balancer.
    Balancer,
    /// AnyCable's guide to OS tuning.
    AnyCable,
    /// A report on millions of sockets on one machine.
    Millions,
    /// A paper on how one listener serves thousands of connections.
    Listener,
    /// The kernel's documentation.
    Kernel,
    /// Manual pages.
    Man,
    /// Measured with this server.
    Measured,
}

impl Source {
    /// Every source, in the order of legends.
    pub const ALL: [Source; 8] = [
        Source::Proxy,
        Source::Balancer,
        Source::AnyCable,
        Source::Millions,
        Source::Listener,
        Source::Kernel,
        Source::Man,
        Source::Measured,
    ];

    /// In text: `[proxy]`.
    pub fn tag(self) -> &'static str {
        match self {
            Source::Proxy => "[proxy]",
            Source::Balancer => "[balancer]",
            Source::AnyCable => "[anycable]",
            Source::Millions => "[millions]",
            Source::Listener => "[listener]",
            Source::Kernel => "[kernel]",
            Source::Man => "[man]",
            Source::Measured => "[measured]",
        }
    }

    /// What it is.
    pub fn what(self) -> &'static str {
        match self {
            Source::Proxy => "a guide to system tuning for a proxy (ulimit, backlog, somaxconn)",
            Source::Balancer => "a production guide for a layer-4 balancer (500k operations a second)",
            Source::AnyCable => "AnyCable's guide to OS tuning (open files, keepalive)",
            Source::Millions => "a report on 2 to 5 million sockets on one machine",
            Source::Listener => "a paper on how one listener serves thousands of connections",
            Source::Kernel => "Documentation/ of Linux: networking/ip-sysctl, networking/scaling, admin-guide",
            Source::Man => "manual pages: setrlimit(2), epoll(7), limits.conf(5), systemd.exec(5), ethtool(8)",
            Source::Measured => "measured with this server, see loadtest/results/",
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.what())
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which layer it belongs to.
    pub layer: Layer,
    /// What was looked at.
    pub name: String,
    /// What is set.
    pub set: String,
    /// What the goal needs.
    pub needs: String,
    /// What follows.
    pub verdict: Verdict,
    /// Why it matters, and where the sources are wrong.
    pub why: String,
    /// The lines that set it right; empty when it is right.
    pub fixes: Vec<Fix>,
    /// Where the advice comes from.
    pub sources: Vec<Source>,
    /// Connections that this allows, where it is a bound.
    pub holds: Option<u64>,
    /// Whether it is about an option of the server.
    #[serde(skip)]
    pub is_option: bool,
}

impl Row {
    /// A check that is passed, until a method says otherwise.
    pub(super) fn new(
        layer: Layer,
        name: impl Into<String>,
        set: impl ToString,
        needs: impl ToString,
        why: impl Into<String>,
        sources: &[Source],
    ) -> Row {
        Row {
            layer,
            name: name.into(),
            set: set.to_string(),
            needs: needs.to_string(),
            verdict: Verdict::Ok,
            why: why.into(),
            fixes: Vec::new(),
            sources: sources.to_vec(),
            holds: None,
            is_option: false,
        }
    }

    /// The check of a kernel setting: `judge` says what its first number is worth. One that cannot be read is unknown.
    pub(super) fn setting(
        setting: &Setting,
        facts: &Facts,
        goal: &Goal,
        needs: impl ToString,
        judge: impl FnOnce(u64) -> Verdict,
    ) -> Row {
        let set = match facts.numbers(setting.name) {
            Some(numbers) => numbers.into_iter().map(grouped).collect::<Vec<_>>().join(" "),
            None => facts.sysctls.get(setting.name).cloned().unwrap_or_else(|| "not readable".to_owned()),
        };
        let row = Row::new(setting.layer, setting.name, set, needs, setting.why, setting.sources);
        match facts.number(setting.name).map(judge) {
            Some(Verdict::Ok) => row,
            Some(verdict) => row.fail(verdict, setting.fix(facts, goal)),
            None => Row { verdict: Verdict::Unknown, ..row },
        }
    }

    /// Is not passed, and this would change it.
    pub(super) fn fail(self, verdict: Verdict, fixes: impl IntoIterator<Item = Fix>) -> Row {
        Row { verdict, fixes: fixes.into_iter().collect(), ..self }
    }

    /// Allows only so many connections; is not passed when those are fewer than the goal.
    pub(super) fn bound(self, holds: u64, goal: &Goal, fixes: impl IntoIterator<Item = Fix>) -> Row {
        let row = Row { holds: Some(holds), ..self };
        if holds < goal.connections { row.fail(Verdict::No, fixes) } else { row }
    }

    /// In one line of a server's boot log.
    pub(super) fn line(&self, goal: &Goal) -> String {
        let fixes: Vec<String> = self.fixes.iter().flat_map(Fix::lines).collect();
        let (name, set, needs) = (&self.name, &self.set, &self.needs);
        let mut line = format!("{name}: {set}; {} clients need {needs}", grouped(goal.connections));
        // How many descriptors are for is in the line about the capacity.
        if let Some(holds) = self.holds.filter(|_| self.layer != Layer::Descriptors) {
            line += &format!(", so this holds {}", grouped(holds));
        }
        format!("{line}: {} (cableway doctor explains)", fixes.join("; "))
    }
}
