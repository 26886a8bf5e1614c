//! What a person runs in this repository: `cargo xtask test`, `cargo xtask bench`, `cargo xtask simulate` and others.
//!
//! It depends on nothing but the standard library, so that `cargo xtask` starts at once on a fresh machine, before any of
//! the tools it looks for is there. Every command it runs is printed first: nothing here is a secret ceremony.
#![allow(
    clippy::disallowed_methods,
    reason = "a command-line tool measures its own steps; there is no clock to pass in"
)]

mod command;
mod containers;
mod debian;
mod functions;
mod guest;
mod machine;
mod package;
mod smoke;
mod steps;
mod summary;
mod tuning;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask COMMAND

  test [--no-install] [--list] [FILTER...]
                         run every test there is, or the steps whose names contain a FILTER;
                         installs what is missing, or with --no-install only says what is and fails
  bench [NAME] [ARGS...] build the server and the load test in release, then run the comparison NAME
                         (all without one): `cableway-loadtest bench --help` lists names and arguments
  instructions [--server PATH] [--functions] [ARGS...]
                         count with valgrind the instructions of one command, publication, delivered message and
                         heartbeat: of the server at PATH, or built in release; --functions shows where they are spent
  functions [N]          the N (20) longest functions of the workspace, tests left out
  load SCENARIO [ARGS...]
                         build both in release, then run a scenario of the load test against as many server processes
                         as it needs: `cableway-loadtest --help` lists scenarios, each one's --help its arguments
  million [-n N] [--upgrade] [ARGS...]
                         build both in release, open a million connections (N) to the yardstick and then to a server, each of as
                         many processes as the limit of open files makes necessary, and compare; hold those of the server for 5
                         minutes, publish to all, and with --upgrade upgrade it beneath them: half an hour of a machine on
                         which nothing else runs (`cableway-loadtest idle --help`). Leaves target/million.json and .html
  processes [ARGS...]    build both in release, then see that 6 processes are one server: 100,000 subscribers, one process is
                         killed, and what a publication costs (`cableway-loadtest processes --help`)
  versus [ARGS...]       build both in release, then run Cableway and other servers under the same load
                         (`cableway-loadtest versus --help`)
  upgrade [--connections N] [--upgrades N] [ARGS...]
                         build both in release, then upgrade a server 10 times in a row under 15,000 clients, publications, commands
                         and messages that are half on their way, and see that no client notices (`cableway-loadtest upgrade --help`)
  dead-peers [--peers N] [--only TEXT]
                         as root: let 1,000 clients (N) die each death in a network that is cut, beside as many healthy ones,
                         and see that they are closed within the bound that the server states
  cuts [--clients N] [--minutes M] [--seed S]
                         cut the network of 200 (N) clients again and again for 10 (M) minutes while messages pour in, and see
                         that each gets every message once and in order
  guest [--memory MIB] [--cpus N] [--connections N] [--fill SECONDS] [--seconds N]
                         as root: boot a Debian with systemd in an emulated machine, install the package there, and see that the
                         service does what its unit promises; --fill opens as many clients as memory and that time allow
  package                build the Debian package, around a release build
  simulate [ARGS...]     run whole shards in the deterministic simulator, in release
                         (`--seeds N` seeds, `--seed S` to replay one)
";

/// Where things are: the repository and the one target directory that every step shares.
pub struct Places {
    root: PathBuf,
    target: PathBuf,
}

impl Places {
    fn find() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| root.join("target")),
            None => root.join("target"),
        };
        Self { root, target }
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let places = Places::find();
    let rest = |args: &mut dyn Iterator<Item = String>| args.collect::<Vec<_>>();
    match args.next().as_deref() {
        Some("test") => test(&places, rest(&mut args)),
        Some("bench") => bench(&places, &rest(&mut args)),
        Some("instructions") => instructions(&places, &rest(&mut args)),
        Some("functions") => functions::run(&places, &rest(&mut args)),
        Some("load") => load(&places, &rest(&mut args)),
        Some("million") => million(&places, &rest(&mut args)),
        Some("processes") => processes(&places, &rest(&mut args)),
        Some("upgrade") => upgrade(&places, &rest(&mut args)),
        Some("versus") => versus(&places, &rest(&mut args)),
        Some("dead-peers") => ended(steps::dead_peers(&places, &rest(&mut args))),
        Some("cuts") => match steps::cuts_for_long(&places, &rest(&mut args)) {
            Ok(outcome) => ended(outcome),
            Err(wrong) => {
                eprint!("{wrong}\n\n{USAGE}");
                ExitCode::from(64)
            }
        },
        Some("package") => package(&places),
        Some("guest") => match guest::run(&places, &rest(&mut args)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        },
        Some("simulate") => simulate(&places, &rest(&mut args)),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(64) // EX_USAGE
        }
    }
}

/// How a command ends that is a single step.
fn ended(outcome: summary::Outcome) -> ExitCode {
    match outcome {
        summary::Outcome::Impossible(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
        outcome if outcome.failed() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn test(places: &Places, args: Vec<String>) -> ExitCode {
    let mut install = true;
    let mut filters = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--no-install" => install = false,
            "--list" => {
                for step in steps::ALL {
                    println!("{:<10} {}", step.name, step.what);
                }
                return ExitCode::SUCCESS;
            }
            flag if flag.starts_with('-') => {
                eprint!("unknown option {flag}\n\n{USAGE}");
                return ExitCode::from(64);
            }
            _ => filters.push(arg),
        }
    }
    steps::run(places, install, &filters)
}

fn bench(places: &Places, args: &[String]) -> ExitCode {
    let all = ["all".to_owned()];
    measure(places, args, |loadtest| loadtest.arg("bench").args(if args.is_empty() { &all } else { args }))
}

fn instructions(places: &Places, args: &[String]) -> ExitCode {
    measure(places, args, |loadtest| loadtest.arg("instructions").args(args))
}

fn load(places: &Places, args: &[String]) -> ExitCode {
    measure(places, args, |loadtest| loadtest.args(args).arg("--note").arg(provenance(places)))
}

/// What `million` runs unless its arguments say otherwise. On two cores nearly all of one goes to pings every 30 seconds and their
/// receipt, so a publication to all takes most of a minute; and with more than 400 unfinished at a time some take too long.
const MILLION: [(&str, &str); 8] = [
    ("-n", "1000000"),
    ("--ping-interval", "30"),
    ("--hold", "300"),
    ("--window", "400"),
    ("--retry-after", "2000"),
    ("--timeout", "120"),
    ("--messages", "3"),
    ("--publish-rate", "0.02"),
];

fn million(places: &Places, args: &[String]) -> ExitCode {
    let said = |option: &str| {
        let is = |arg: &String| arg == option || arg.strip_prefix(option).is_some_and(|rest| rest.starts_with('='));
        args.iter().any(|arg| is(arg) || (option == "-n" && arg.starts_with("--connections")))
    };
    let unsaid = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().filter(|(option, _)| !said(option));
        pairs.flat_map(|(option, value)| [option.to_string(), value.to_string()]).collect::<Vec<_>>()
    };
    let file = |ending: &str| places.target.join(format!("million.{ending}")).to_string_lossy().into_owned();
    let mut arguments = vec!["idle".to_owned()];
    arguments.extend(unsaid(&MILLION));
    arguments.extend(unsaid(&[("--json", &file("json")), ("--html", &file("html"))]));
    if !said("--beside-bare") {
        arguments.push("--beside-bare".to_owned());
    }
    arguments.extend_from_slice(args);
    load(places, &arguments)
}

fn processes(places: &Places, args: &[String]) -> ExitCode {
    measure(places, args, |loadtest| loadtest.arg("processes").args(args).arg("--note").arg(provenance(places)))
}

fn upgrade(places: &Places, args: &[String]) -> ExitCode {
    measure(places, args, |loadtest| loadtest.arg("upgrade").args(args).arg("--note").arg(provenance(places)))
}

fn versus(places: &Places, args: &[String]) -> ExitCode {
    measure(places, args, |loadtest| {
        let scripts = places.root.join("loadtest/versus/peers");
        loadtest.arg("versus").arg("--scripts").arg(scripts).args(args).arg("--note").arg(provenance(places))
    })
}

/// Builds server and load test as users get them, and runs the load test on the server; on another one if `args` name it.
fn measure(places: &Places, args: &[String], arguments: impl FnOnce(command::Command) -> command::Command) -> ExitCode {
    let named = args.iter().any(|arg| arg == "--server" || arg.starts_with("--server="));
    let server = ["--package", "cableway", "--bin", "cableway"];
    let built = command::cargo(places)
        .args(["build", "--release", "--package", "cableway-loadtest", "--bin", "cableway-loadtest"])
        .args(if named { &[][..] } else { &server[..] })
        .passes();
    if !built {
        return ExitCode::FAILURE;
    }
    let release = places.target.join("release");
    let mut loadtest = arguments(command::Command::new(release.join("cableway-loadtest"), places));
    if !named {
        loadtest = loadtest.arg("--server").arg(release.join("cableway"));
    }
    if loadtest.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn package(places: &Places) -> ExitCode {
    machine::install(places, &[package::CARGO_DEB]);
    let build = ["build", "--release", "--locked", "--package", "cableway", "--bin", "cableway"];
    if !command::cargo(places).args(build).passes() {
        return ExitCode::FAILURE;
    }
    match package::build(places, &places.target.join("release/cableway")) {
        Ok(package) => {
            println!("{}", package.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// When and of what a measurement is: a figure without is worth nothing later.
fn provenance(places: &Places) -> String {
    let first_line = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).current_dir(&places.root).output();
        output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let date = first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]);
    format!("{date}, commit {}", first_line("git", &["describe", "--always", "--dirty", "--abbrev=12"]))
}

fn simulate(places: &Places, args: &[String]) -> ExitCode {
    let passed = command::cargo(places).args(["run", "--release", "--package", "simulate", "--"]).args(args).passes();
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
