//! The files under `deploy/` belong together with the defaults of the server: a limit in one must not cut
//! off another.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cableway::config::Config;
use cableway::doctor::{self, Source};

const SYSCTL: &str = include_str!("../deploy/sysctl.d/90-cableway.conf");
const UNIT: &str = include_str!("../deploy/systemd/cableway.service");
const SOCKET: &str = include_str!("../deploy/systemd/cableway.socket");

/// Names and numbers of the sysctl file, by the grammar of sysctl.d(5).
fn sysctl() -> BTreeMap<&'static str, Vec<u64>> {
    let mut settings = BTreeMap::new();
    for line in SYSCTL.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.split_once(" = ").unwrap_or_else(|| panic!("'{line}' is no setting"));
        let name = name.strip_prefix('-').unwrap_or(name);
        let is_name = name.split('.').count() >= 2
            && name.split('.').all(|part| {
                !part.is_empty()
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
            });
        assert!(is_name, "'{name}' is no name of a setting");
        // Some are names of algorithms.
        let numbers = value.split([' ', ',']).filter_map(|number| number.parse().ok()).collect();
        assert!(settings.insert(name, numbers).is_none(), "{name} is set twice");
    }
    settings
}

/// Aim: the files say what `cableway doctor` says. They are written by the same table; with `CABLEWAY_BLESS=1` this test
/// writes them again.
#[test]
fn the_files_for_the_machine_are_those_of_doctor() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let files = doctor::files::shipped();
    assert!(files.len() >= 4);
    for file in files {
        let path = deploy.join(file.path);
        if std::env::var_os("CABLEWAY_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(&path, &file.text).expect("written");
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", file.path));
        assert!(text == file.text, "{} is not what doctor writes; CABLEWAY_BLESS=1 writes it again", file.path);
    }
}

/// Values of a key of the unit.
fn unit(key: &str) -> Vec<&'static str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn every_line_that_sets_something_has_its_reason_and_source_right_above() {
    assert!(sysctl().len() >= 18, "{:?}", sysctl());
    for file in doctor::files::shipped().iter().filter(|file| !file.path.starts_with("nftables")) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty()) {
            let above: Vec<&str> = lines[..i].iter().rev().take_while(|line| line.starts_with('#')).copied().collect();
            let reason = above.concat();
            assert!(reason.len() > 40, "{}: {line} has no reason above it", file.path);
            let named = Source::ALL.iter().any(|source| reason.contains(source.tag()));
            assert!(named, "{}: {line} has no source", file.path);
        }
    }
}

/// Aim: nftables itself reads the rules. Reading them needs a network of one's own, which is made for it.
#[test]
#[ignore = "needs nft (Debian package nftables) and root"]
fn nftables_takes_the_rules_twice_and_doctor_sees_the_port_exempt() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nftables/cableway.nft");
    let (rules, cableway) = (rules.display(), env!("CARGO_BIN_EXE_cableway"));
    let script = format!("set -e; nft -f '{rules}'; nft -f '{rules}'; nft list ruleset; '{cableway}' doctor --facts");
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("notrack\n").count(), 2, "in and out, once each: {said}");
    let (_, facts) = said.split_once("\n{").expect("facts");
    let facts: serde_json::Value = serde_json::from_str(&format!("{{{facts}")).expect("JSON");
    assert_eq!(facts["untracked_ports"], serde_json::json!([8080]));
}

#[test]
fn the_kernel_settings_leave_room_for_the_service_and_its_defaults() {
    let (settings, config) = (sysctl(), Config::default());
    let files: u64 = unit("LimitNOFILE")[0].parse().expect("a number");
    assert!(files >= 1_000_000);
    assert!(settings["fs.nr_open"][0] >= files, "systemd would fall back to a smaller limit");
    assert!(settings["fs.file-max"][0] > files);
    assert!(settings["net.netfilter.nf_conntrack_max"][0] >= files);
    assert!(settings["net.core.somaxconn"][0] >= u64::from(config.tcp.backlog));
    assert!(settings["net.ipv4.tcp_max_syn_backlog"][0] >= settings["net.core.somaxconn"][0]);
    assert_eq!(settings["net.ipv4.tcp_keepalive_time"][0], config.tcp.keepalive_time.as_secs());
    assert_eq!(settings["net.ipv4.tcp_keepalive_intvl"][0], config.tcp.keepalive_interval.as_secs());
    assert_eq!(settings["net.ipv4.tcp_keepalive_probes"][0], u64::from(config.tcp.keepalive_probes));
    assert!(settings["net.ipv4.ip_local_reserved_ports"].contains(&u64::from(config.server.port)));
    for buffers in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
        let [least, start, most] = settings[buffers][..] else { panic!("{buffers} has three numbers") };
        assert!(least <= 4096 && least <= start && start <= most, "{buffers}");
    }
}

#[test]
fn systemd_waits_longer_than_the_drain_takes() {
    let wait = unit("TimeoutStopSec")[0].trim_end_matches('s').parse().map(Duration::from_secs).expect("seconds");
    assert!(wait > Config::default().app.shutdown_timeout);
    assert_eq!(unit("KillSignal"), ["SIGTERM"]);
}

#[test]
fn systemd_never_gives_a_service_up_and_hears_of_it_what_it_waits_for() {
    assert_eq!(unit("Type"), ["notify"]);
    assert_eq!(unit("NotifyAccess"), ["main"]);
    assert_eq!(unit("StartLimitIntervalSec"), ["0"]);
    assert_eq!(unit("Restart"), ["always"]);
    assert!(unit("ExecReload")[0].ends_with("/cableway upgrade"));
}

#[test]
fn the_socket_is_where_the_server_would_listen_itself() {
    let socket = |key: &str| SOCKET.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let config = Config::default();
    assert_eq!(socket("ListenStream"), Some(config.server.port.to_string().as_str()));
    assert_eq!(socket("Backlog"), Some(config.tcp.backlog.to_string().as_str()));
    assert_eq!(socket("Accept"), None, "the server accepts");
}

#[test]
fn the_service_starts_a_command_that_there_is() {
    let start = unit("ExecStart");
    let words: Vec<&str> = start[0].split(' ').collect();
    assert!(words[0].ends_with("/cableway"));
    let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    let invocation = cableway::config::parse_with(&words[1..], &BTreeMap::new(), &no_file).expect("good");
    assert_eq!(invocation.command, cableway::config::Command::Serve(Box::default()));
}

/// Aim: systemd itself has nothing to say about the unit. The binary is not installed where the tests run, so
/// an executable that is there stands in for it.
#[test]
#[ignore = "needs systemd-analyze (Debian package systemd)"]
fn the_unit_is_clean_under_systemd_analyze_verify() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("cableway.service");
    let executable = std::env::current_exe().expect("a path");
    let text = UNIT.replace("/usr/bin/cableway", &executable.display().to_string());
    std::fs::write(&path, text).expect("written");
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .arg("--man=no")
        .arg(&path)
        .output()
        .expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("cableway")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
