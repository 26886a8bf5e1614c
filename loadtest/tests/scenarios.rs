//! Every scenario small, from the command line to the files it writes, with the yardstick as the server.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cableway-loadtest");

struct Bare {
    child: Child,
    target: String,
    publish_url: String,
}

impl Bare {
    fn start() -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["bare", "--listen", "127.0.0.1:0", "--protocol", "actioncable", "--ping-interval", "1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        Self {
            child,
            target: format!("ws://{}/cable", words[1]),
            publish_url: format!("http://{}/_broadcast", words[3]),
        }
    }

    /// Runs a scenario with 200 clients; its exit status and what it wrote.
    fn run(&self, arguments: &[&str]) -> (Output, Value, String) {
        let files = tempfile::tempdir().unwrap();
        let (json, html) = (files.path().join("report.json"), files.path().join("report.html"));
        let output = Command::new(PROGRAM)
            .arg(arguments[0])
            .args(["--target", &self.target, "-n", "200", "--pid", &self.child.id().to_string()])
            .args(["--json".as_ref(), json.as_os_str(), "--html".as_ref(), html.as_os_str()])
            .args(&arguments[1..])
            .output()
            .unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let report = serde_json::from_str(&read(&json)).unwrap_or_else(|_| panic!("no report: {output:?}"));
        (output, report, read(&html))
    }

    fn clean(&self, arguments: &[&str]) -> Value {
        let (output, report, html) = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(report["problems"], serde_json::json!([]));
        assert!(report["snapshots"][0]["server"]["rss_bytes"].as_u64().unwrap() > 0);
        assert!(html.contains("<svg") && html.contains("The run is clean") && !html.contains("src="));
        report
    }

    fn publishing(&self) -> [&str; 8] {
        let body = r#"{"identifier":"x","message":"{mark}"}"#;
        ["--publish-url", &self.publish_url, "--publish-body", body, "--messages", "5", "--publish-rate", "50"]
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn idle_connections_in_two_processes_are_held_and_get_heartbeats() {
    let report = Bare::start().clean(&["idle", "--hold", "2", "--processes", "2"]);
    assert_eq!(report["processes"], 2);
    assert_eq!(report["counts"]["ready"], 200);
    assert!(report["counts"]["pings"].as_u64().unwrap() > 100);
}

#[test]
fn every_publication_is_counted_at_every_subscriber() {
    let bare = Bare::start();
    for processes in ["1", "2"] {
        let arguments = [&["broadcast", "--processes", processes][..], &bare.publishing()].concat();
        let report = bare.clean(&arguments);
        assert_eq!(report["counts"]["marked"], 1_000);
        assert_eq!(report["latencies"][1]["count"], 1_000);
    }
}

#[test]
fn echoes_are_answered_in_one_process_and_in_two() {
    let bare = Bare::start();
    for processes in ["1", "2"] {
        let report = bare.clean(&["echo", "--rounds", "3", "--at-once", "20", "--processes", processes]);
        assert_eq!(report["counts"]["replies"], 600);
    }
}

#[test]
fn a_storm_a_ramp_and_a_coming_and_going_end_with_everybody_there() {
    let bare = Bare::start();
    assert_eq!(bare.clean(&["storm", "--share", "0.5"])["counts"]["ready"], 300);
    assert_eq!(bare.clean(&["connect", "--rate", "400"])["counts"]["ready"], 200);
    let churned = bare.clean(&["churn", "--seconds", "2", "--share", "0.25"]);
    assert!(churned["counts"]["ended"].as_u64().unwrap() >= 250);
}

#[test]
fn slow_readers_are_told_from_the_others() {
    let bare = Bare::start();
    let arguments = [&["slow", "--share", "0.1", "--read-rate", "0"][..], &bare.publishing()].concat();
    let report = bare.clean(&arguments);
    // Nobody but the slow tenth misses anything while it does not read, and it catches up in the end.
    assert_eq!(report["counts"]["marked"], 2_000);
}

#[test]
fn a_run_against_nobody_fails_and_says_why() {
    let mut nobody = Bare::start();
    // Port 1 is nobody's on a machine of today.
    nobody.target = "ws://127.0.0.1:1/cable".to_owned();
    let (output, report, html) = nobody.run(&["connect"]);
    assert!(!output.status.success());
    assert_eq!(report["failures"], "refused 200");
    assert!(html.contains("Failed:"));
}

#[test]
fn the_check_names_what_is_too_small_and_how_to_raise_it() {
    let output = Command::new(PROGRAM).args(["check", "-n", "1000000000"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("LOW") && text.contains("ulimit -Hn") && text.contains("memory"), "{text}");
}
