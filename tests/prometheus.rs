//! What `deploy/prometheus` and `deploy/grafana` hold is true: the rules are well-formed, each alert fires and clears, every
//! metric that they name is one of a real server's, and a real Prometheus that scrapes a real server says when the app is
//! gone.
//!
//! The Debian package `prometheus` holds `promtool` and `prometheus`; `cargo xtask test` installs it and runs all of this.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests wait for processes of their own, which have their own clock"
)]
#![allow(dead_code, reason = "the harness is that of `limits`, which uses more of it")]

#[path = "limits/client.rs"]
mod client;
#[path = "prometheus/process.rs"]
mod process;
#[path = "limits/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cableway::model::CloseCause;
use process::{App, Prometheus};
use serde_json::Value;
use server::{SOON, Server, Start};

const RULES: &str = include_str!("../deploy/prometheus/cableway.rules.yml");
const ALERTS: &str = include_str!("../deploy/prometheus/cableway.alerts.yml");
const ALERT_TESTS: &str = include_str!("../deploy/prometheus/cableway.alerts.test.yml");
const DASHBOARD: &str = include_str!("../deploy/grafana/cableway.json");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus")
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(folder()).output().expect("promtool starts");
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}\n{}{}", said(&output.stdout), said(&output.stderr));
}

/// The dashboard's expressions, as Prometheus gets them when everything is chosen.
fn dashboard_expressions() -> Vec<String> {
    fn collect(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                into.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, into));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
            _ => {}
        }
    }
    let mut expressions = Vec::new();
    collect(&serde_json::from_str(DASHBOARD).expect("JSON"), &mut expressions);
    let filled = |expression: &String| {
        let filled = expression.replace("$job", ".*").replace("$instance", ".*").replace("$__rate_interval", "5m");
        assert!(!filled.contains('$'), "{expression} has a variable that nothing sets");
        filled
    };
    expressions.iter().map(filled).collect()
}

/// Words of a text that are made of what names are made of.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).filter(|word| !word.is_empty())
}

/// Names of our metrics in a text; recorded series, which have a `:`, are none.
fn metrics_named(text: &str) -> BTreeSet<&str> {
    words(text).filter(|word| word.starts_with("cableway_") && *word != "cableway_" && !word.contains(':')).collect()
}

#[test]
fn every_metric_that_rules_and_dashboard_name_is_one_of_a_real_server() {
    let server = Start::with(&[]).start();
    let body = server.get("/metrics").body;
    let mut exposed = BTreeSet::new();
    for declaration in body.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        match declaration.split_once(' ').expect("a kind") {
            (name, "histogram") => exposed.extend(["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}"))),
            (name, _) => drop(exposed.insert(name.to_owned())),
        }
    }
    for (file, text) in [("rules", RULES), ("alerts", ALERTS), ("alert tests", ALERT_TESTS), ("dashboard", DASHBOARD)] {
        let named = metrics_named(text);
        assert!(named.len() >= 5, "{file}: {named:?}");
        let unknown: Vec<_> = named.iter().filter(|name| !exposed.contains(**name)).collect();
        assert!(unknown.is_empty(), "{file}: no server has {unknown:?}");
    }
}

#[test]
fn every_recorded_series_that_alerts_and_dashboard_name_is_recorded() {
    let recorded: BTreeSet<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let mut used = BTreeSet::new();
    for text in [ALERTS, DASHBOARD] {
        used.extend(words(text).filter(|word| word.contains(":cableway_")));
    }
    assert!(used.len() >= 5 && used.is_subset(&recorded), "used {used:#?}, recorded {recorded:#?}");
}

#[test]
fn every_cause_that_rules_and_dashboard_name_is_one_that_connections_end_for() {
    let known: BTreeSet<&str> = CloseCause::ALL.iter().map(|cause| cause.label()).collect();
    let mut named = BTreeSet::new();
    for text in [RULES, ALERTS, &DASHBOARD.replace("\\\"", "\"")] {
        for quoted in text.split("cause=~\"").skip(1) {
            named.extend(quoted.split('"').next().expect("quoted").split('|').map(str::to_owned));
        }
    }
    assert!(named.len() >= 5, "{named:?}");
    let unknown: Vec<_> = named.iter().filter(|name| !known.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let delays = RULES.split("detection_delay_seconds_sum{cause=~\"").nth(1).expect("a list of causes");
    let delays: BTreeSet<&str> = delays.split('"').next().expect("quoted").split('|').collect();
    let find_dead_peers = CloseCause::ALL.iter().filter(|cause| cause.finds_dead_peers());
    assert_eq!(delays, find_dead_peers.map(|cause| cause.label()).collect());
}

#[test]
fn every_alert_has_a_series_on_which_it_fires_between_two_on_which_it_does_not() {
    let alerts: Vec<&str> = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        let (fires, silent) = (format!("- alertname: {alert}\n"), format!("- {{ alertname: {alert}, eval_time: "));
        assert!(ALERT_TESTS.contains(&fires), "{alert} never fires in its test");
        // What holds without end is told by what stays firing for others.
        let quiet = ALERT_TESTS.matches(&silent).count();
        assert!(quiet >= 2 || ALERT_TESTS.matches(&fires).count() >= 2, "{alert} is not seen silent before and after");
        let text = ALERTS.split(&format!("- alert: {alert}\n")).nth(1).expect("it is there");
        let text = text.split("- alert: ").next().expect("the rest");
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(text.contains(part), "{alert} has no {part}");
        }
    }
}

#[test]
#[ignore = "needs promtool (Debian package prometheus)"]
fn promtool_finds_the_configuration_and_the_rules_well_formed() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "cableway.rules.yml", "cableway.alerts.yml"]);
}

#[test]
#[ignore = "needs promtool (Debian package prometheus)"]
fn each_alert_fires_and_clears_on_made_series() {
    promtool(&["test", "rules", "cableway.alerts.test.yml"]);
}

#[test]
#[ignore = "needs promtool (Debian package prometheus)"]
fn every_expression_of_the_dashboard_is_one_that_prometheus_can_read() {
    let expressions = dashboard_expressions();
    assert!(expressions.len() >= 40, "{}", expressions.len());
    let place = tempfile::tempdir().expect("a folder");
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (n, expression) in expressions.iter().enumerate() {
        rules.push_str(&format!("  - record: panel:{n}\n    expr: {}\n", Value::from(expression.as_str())));
    }
    let file = place.path().join("dashboard.yml");
    fs::write(&file, rules).expect("written");
    promtool(&["check", "rules", &file.display().to_string()]);
}

/// The shipped configuration and rules, with the server's address and waits of a second: a test cannot wait for minutes.
fn quick(server: &Server) -> [(&'static str, String); 3] {
    let configuration = include_str!("../deploy/prometheus/prometheus.yml");
    assert!(configuration.contains("\"localhost:8080\"") && configuration.contains("_interval: 15s"));
    let configuration = configuration
        .replace("localhost:8080", &server.address().to_string())
        .replace("_interval: 15s", "_interval: 200ms");
    let quick = |rules: &str| {
        let lines = rules.lines().map(|line| match line.split_once("for: ") {
            Some((indent, _)) => format!("{indent}for: 1s"),
            None => line.replace("[5m]", "[2s]").replace("[10m]", "[2s]"),
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    [("prometheus.yml", configuration), ("cableway.rules.yml", quick(RULES)), ("cableway.alerts.yml", quick(ALERTS))]
}

/// Lets one client after the other come until it is so; an app that fails is noticed by those who ask for it.
fn clients_come_until(server: &Server, what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + 2 * SOON;
    while !is_so() {
        assert!(Instant::now() < until, "never: {what}");
        let _ = client::try_upgrade(server.address(), "/cable").map(|mut client| client.0.read());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs prometheus (Debian package prometheus)"]
fn a_real_prometheus_fires_the_alert_for_a_killed_app_and_clears_it_when_the_app_is_back() {
    let app = App::start();
    let address = app.address();
    let server = Start::bare()
        .and(&["--host", "127.0.0.1", "--port", "0", "--broadcast-key", "unused"])
        .and(&["--rpc-host", &format!("http://{address}/_anycable")])
        .start();
    let prometheus = Prometheus::start(&quick(&server));
    clients_come_until(&server, "calls are counted", || prometheus.value("cableway_rpc_call_total") > Some(5.0));
    clients_come_until(&server, "their rate is known", || {
        prometheus.value("instance:cableway_rpc_errors:ratio_rate5m") == Some(0.0)
    });
    assert_eq!(prometheus.firing(), Vec::<String>::new());

    app.kill();
    clients_come_until(&server, "the alert fires", || prometheus.firing() == ["CablewayBackendFailing"]);
    // Every panel has something to show or nothing to say, and none is an error.
    let answers: Vec<bool> = dashboard_expressions()
        .iter()
        .map(|expression| prometheus.value(&expression.replace("[5m]", "[2s]")).is_some())
        .collect();
    let shown = answers.iter().filter(|shown| **shown).count();
    assert!(shown * 10 >= answers.len() * 8, "{shown} of {} panels show something", answers.len());

    let _app = App::start_at(address);
    clients_come_until(&server, "the alert clears", || prometheus.firing().is_empty());
}
