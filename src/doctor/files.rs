//! The settings as files for a machine: what `--write` writes, and what `deploy/` ships.

use crate::config::Config;
use crate::os::facts::Facts;

use super::conntrack::is_tracked;
use super::descriptors::limit_for;
use super::fix::Fix;
use super::goal::{Backend, Goal};
use super::numbers::grouped;
use super::row::Source;
use super::settings::{RPS_FLOWS, SHIPPED, SWAPPINESS, Setting, TW_BUCKETS};

/// Width of comments.
const WIDTH: usize = 112;

/// What the shipped files are for.
const SHIPPED_CONNECTIONS: u64 = 5_000_000;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Below the directory that is written to.
    pub path: &'static str,
    /// Its text.
    pub text: String,
}

/// The files for a machine and a goal.
pub fn files(facts: &Facts, goal: &Goal) -> Vec<File> {
    let mut files = machine_files(facts, goal);
    files.push(File { path: "systemd/cableway.service.d/50-open-files.conf", text: drop_in(facts, goal) });
    files
}

/// The files of `deploy/`: for a machine that is not known. The unit there has its limit in itself.
pub fn shipped() -> Vec<File> {
    machine_files(&Facts::default(), &Goal::new(SHIPPED_CONNECTIONS, Backend::Grpc, &Config::default()))
}

fn machine_files(facts: &Facts, goal: &Goal) -> Vec<File> {
    vec![
        File { path: "sysctl.d/90-cableway.conf", text: sysctl(facts, goal) },
        File { path: "limits.d/cableway.conf", text: limits(facts, goal) },
        File { path: "modules-load.d/cableway.conf", text: modules(facts, goal) },
        File { path: "nftables/cableway.nft", text: nftables(goal) },
    ]
}

/// Text as comments of at most [`WIDTH`] columns.
fn comment(text: &str) -> String {
    wrap(text, WIDTH - 2).into_iter().map(|line| format!("# {line}\n")).collect()
}

/// Text in lines of at most so many characters.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_ascii_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// First lines of every file: what it is, for which goal, where it goes.
fn head(goal: &Goal, what: &str, use_it: &str) -> String {
    let count = grouped(goal.connections);
    comment(&format!("{what} Written by `cableway doctor` for {count} connections, port {}. {use_it}", goal.port))
}

/// What a setting's comment says: why, and the sources that the text does not name.
fn reason(why: &str, sources: &[Source]) -> String {
    let missing = sources.iter().map(|source| source.tag()).filter(|tag| !why.contains(tag));
    std::iter::once(why).chain(missing).collect::<Vec<_>>().join(" ")
}

/// The legend of the tags in a text.
fn legend(text: &str) -> String {
    let named = Source::ALL.iter().filter(|source| text.contains(source.tag()));
    named.map(|source| format!("#   {:<12} {}\n", source.tag(), source.what())).collect()
}

fn sysctl(facts: &Facts, goal: &Goal) -> String {
    let report = super::examine(facts, goal);
    let is_advised = |setting: &Setting| {
        super::fixes(&report).any(|(_, fix)| matches!(fix, Fix::Sysctl { name, .. } if *name == setting.name))
    };
    let rare = [&SWAPPINESS, &TW_BUCKETS, &RPS_FLOWS];
    let settings = SHIPPED.iter().copied().chain(rare.into_iter().filter(|setting| is_advised(setting)));
    let mut settings: Vec<&Setting> = settings.collect();
    // In the order of the checks.
    settings.sort_by_key(|setting| setting.layer as u8);

    let mut body = String::new();
    let mut layer = None;
    for setting in settings {
        if layer != Some(setting.layer) {
            layer = Some(setting.layer);
            body += &format!("\n# --- {} {}\n", setting.layer.title(), "-".repeat(100 - setting.layer.title().len()));
        }
        body += &format!("\n{}", comment(&reason(setting.why, setting.sources)));
        let dash = if setting.is_of_module { "-" } else { "" };
        body += &match (setting.value)(facts, goal) {
            Some(value) => format!("{dash}{} = {value}\n", setting.name),
            None => {
                let how = "It depends on the machine, so it is not set here: `cableway doctor --connections N --write DIR` \
                           works it out.";
                format!("{}#{} =\n", comment(how), setting.name)
            }
        };
    }
    let what = "Kernel settings for a machine that holds many mostly idle connections.";
    let use_it = "Copy to /etc/sysctl.d/, then: sysctl --system. A dash: no error where the module is not loaded. Every setting \
                  says why, and where the value is from:";
    format!("{}{}{body}\n{LEFT_OUT}", head(goal, what, use_it), legend(&body))
}

const LEFT_OUT: &str = "\
# --- left out, and why ----------------------------------------------------------------------------
#
# net.core.rmem_default, net.core.wmem_default ([balancer]): TCP takes the middle numbers of tcp_rmem and tcp_wmem.
# net.core.rmem_max, net.core.wmem_max ([balancer] 256 MB, [millions] 16 MB): bounds of what a program may ask for with
# SO_RCVBUF and SO_SNDBUF; Cableway asks for nothing and leaves it to the kernel.
";

fn limits(facts: &Facts, goal: &Goal) -> String {
    let limit = limit_for(facts, goal);
    let why = "One descriptor for each client and some for the server itself. Only the hard limit: the server raises its soft \
               limit when it starts, and other programs that use select(2) break with a soft limit above 1024; [proxy], \
               [balancer] and [millions] set both. fs.nr_open must be above it first, or nobody can log in. A service does \
               not read this file: its unit has LimitNOFILE=. [man]";
    let root = "The star does not mean root. [balancer] [man]";
    let what = "Limits of open files, for a server that is started from a shell.";
    let body = format!("\n{}* hard nofile {limit}\n\n{}root hard nofile {limit}\n", comment(why), comment(root));
    let use_it = "Copy to /etc/security/limits.d/; it counts from the next login on. Sources:";
    format!("{}{}{body}", head(goal, what, use_it), legend(&body))
}

fn modules(facts: &Facts, goal: &Goal) -> String {
    let mut body = String::new();
    let mut module = |name: &str, why: &str| body += &format!("\n{}{name}\n", comment(why));
    module("tcp_bbr", "For net.ipv4.tcp_congestion_control = bbr. [balancer]");
    module("sch_fq", "For net.core.default_qdisc = fq. [balancer]");
    if facts == &Facts::default() || is_tracked(facts) {
        let why = "The settings net.netfilter.* exist only when it is loaded; if the firewall loads it later, they are the \
                   default ones again. It tracks nothing by itself. Remove the line where there is no firewall. [millions] \
                   [kernel]";
        module("nf_conntrack", why);
    }
    let what = "Kernel modules that the settings need.";
    let use_it = "Copy to /etc/modules-load.d/; they are loaded at boot before sysctl.d is read. Sources:";
    format!("{}{}{body}", head(goal, what, use_it), legend(&body))
}

fn nftables(goal: &Goal) -> String {
    let port = goal.port;
    let why = "A tracked connection costs an entry of about 0.9 KB and the work for each packet; over the table's limit new \
               clients are dropped. This exempts the server's port, in and out. [millions] has it as rules of iptables. \
               Packets that are not tracked match no `ct state established`: let the port in by its number (tcp dport \
               8080 accept, and out by tcp sport). Not where Docker publishes the port, or anything else translates addresses: \
               that needs tracking."
        .replace("8080", &port.to_string());
    let rules = format!(
        "# So that reading it twice does not double the rules.\n\
         add table inet cableway_notrack\n\
         delete table inet cableway_notrack\n\
         \n\
         table inet cableway_notrack {{\n    \
             # What clients send. [millions]\n    \
             chain prerouting {{\n        \
                 type filter hook prerouting priority raw; policy accept;\n        \
                 tcp dport {port} notrack\n    \
             }}\n    \
             # What the server sends. [millions]\n    \
             chain output {{\n        \
                 type filter hook output priority raw; policy accept;\n        \
                 tcp sport {port} notrack\n    \
             }}\n\
         }}\n"
    );
    let what = "No connection tracking for the server's port.";
    let body = format!("\n{}\n{rules}", comment(&why));
    let use_it = "Try it with: nft -f cableway.nft; to keep it, include it from /etc/nftables.conf. Sources:";
    format!("{}{}{body}", head(goal, what, use_it), legend(&body))
}

fn drop_in(facts: &Facts, goal: &Goal) -> String {
    let limit = limit_for(facts, goal);
    let why = "One descriptor for each client and some for the server itself. It is granted only below fs.nr_open \
               (sysctl.d/90-cableway.conf): above it systemd falls back to a smaller one without a word. [man] [kernel]";
    let what = "The limit of open files of the service.";
    let body = format!("\n[Service]\n{}LimitNOFILE={limit}\n", comment(why));
    let use_it = "Copy to /etc/systemd/system/cableway.service.d/, then: systemctl daemon-reload && systemctl restart cableway. \
                  Sources:";
    format!("{}{}{body}", head(goal, what, use_it), legend(&body))
}
