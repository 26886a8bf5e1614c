//! The comparison with other servers, small, from the command line to the table it writes.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cableway-loadtest");

/// Runs peers with 200 clients each; what the program said, its rows and its table.
fn versus(peers: &str) -> (Output, Value, String) {
    let files = tempfile::tempdir().unwrap();
    let (json, table) = (files.path().join("rows.json"), files.path().join("table.md"));
    let output = Command::new(PROGRAM)
        .args(["versus", "--peers", peers, "-n", "200", "--messages", "2", "--idle", "1.5", "--settle", "0.2"])
        .arg("--scripts")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("versus/peers"))
        // These peers need no Cableway; any file will do.
        .args(["--server", PROGRAM, "--home"])
        .arg(files.path())
        .args(["--json".as_ref(), json.as_os_str(), "--table".as_ref(), table.as_os_str()])
        .env_remove("VERSUS_CENTRIFUGO")
        .output()
        .unwrap();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let rows = serde_json::from_str(&read(&json)).unwrap_or_else(|_| panic!("no rows: {output:?}"));
    (output, rows, read(&table))
}

#[test]
fn the_yardsticks_go_through_every_step_and_lose_nothing() {
    let (output, record, table) = versus("bare-raw,bare");
    assert!(output.status.success(), "{output:?}");
    for row in record["rows"].as_array().unwrap() {
        let figures = &row["figures"];
        assert_eq!((row["trouble"].as_str(), figures["failures"].as_str()), (None, Some("none")), "{row}");
        assert_eq!(figures["ready"], 200);
        for figure in ["idle_bytes", "after_traffic_bytes", "kept_bytes", "handshake_cpu_us", "storm_s"] {
            assert!(figures[figure].is_number(), "{figure} of {row}");
        }
        assert_eq!(figures["delivery"]["count"], 400);
        assert_eq!((&figures["lost"], &figures["doubled"]), (&Value::from(0), &Value::from(0)));
    }
    assert!(table.contains("| bare-raw |") && table.contains("200 connections"), "{table}");
}

#[test]
fn a_peer_that_is_not_there_keeps_its_row_and_the_reason() {
    let (output, record, table) = versus("centrifugo,bare-raw");
    assert!(!output.status.success());
    let trouble = record["rows"][0]["trouble"].as_str().unwrap();
    assert!(trouble.contains("--centrifugo PATH"), "{trouble}");
    assert_eq!(record["rows"][1]["figures"]["ready"], 200, "the others run all the same");
    assert!(table.contains(trouble));
}
