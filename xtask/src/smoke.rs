//! The load test's scenarios in small against a real server: minutes of work for a person, seconds here. It shows that both
//! programs understand each other and that nothing is lost; how fast they are is for `cargo xtask bench`.

use crate::Places;
use crate::command::{Command, Count};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

/// Clients of each scenario: enough to fill every shard, few enough to open in a moment with a debug build.
const CONNECTIONS: &str = "300";

const BROADCAST_KEY: &str = "smoke";

/// Who is compared: servers of every dialect and kind of script that install in seconds.
const PEERS: &str = "cableway,cableway-app,bare-raw,ws";

/// A server that ends with this value.
struct Server {
    child: Child,
    /// Host and port, as the boot log names them.
    address: String,
}

impl Server {
    fn start(places: &Places, binary: &Path) -> Result<Self, String> {
        let mut child = std::process::Command::new(binary)
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"])
            .args(["--noauth", "--norpc", "--public-streams", "--broadcast-key", BROADCAST_KEY])
            .current_dir(&places.target)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("the server does not start: {error}"))?;
        let mut output = BufReader::new(child.stdout.take().expect("standard output was asked for"));
        let mut line = String::new();
        // The boot log is some lines long, and ends with the process if it ends early.
        while output.read_line(&mut line).is_ok_and(|read| read > 0) {
            if let Some(address) = endpoint(&line) {
                // Read on, or the server would wait for us with its log once the pipe is full. Ends with the server.
                std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
                return Ok(Self { child, address });
            }
            line.clear();
        }
        let _ = child.kill();
        let _ = child.wait();
        Err("the server ended before it named its WebSocket endpoint".to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Host and port of the WebSocket URL in a line of the boot log.
fn endpoint(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("ws://")?;
    rest.split_once('/').map(|(address, _)| address.to_owned())
}

/// Runs every scenario that needs no app; each counts as one test.
pub fn run(places: &Places, binary: &Path, loadtest: &Path) -> Result<Count, String> {
    let server = Server::start(places, binary)?;
    let target = format!("ws://{}/cable", server.address);
    let publish = format!("http://{}/_broadcast", server.address);
    let publishing =
        ["--publish-url", &publish, "--publish-key", BROADCAST_KEY, "--publish-rate", "20", "--messages", "40"];
    let scenarios: [(&str, &[&str]); 6] = [
        ("connect", &[]),
        ("idle", &["--hold", "3"]),
        ("broadcast", &publishing),
        ("slow", &publishing),
        ("storm", &[]),
        ("churn", &["--seconds", "3"]),
    ];
    let mut count = Count::default();
    let mut tell = |passed: bool| count.add(Count { passed: u64::from(passed), failed: u64::from(!passed) });
    for (scenario, options) in scenarios {
        let command = Command::new(loadtest, places).arg(scenario).args(["--target", &target, "-n", CONNECTIONS]);
        tell(command.args(options).passes());
    }
    // As on a machine with a low limit of open files: several servers and several client processes.
    let fleet = ["--server-processes", "2", "--server-app", "--processes", "2", "-n", CONNECTIONS, "--hold", "3"];
    tell(Command::new(loadtest, places).arg("idle").args(fleet).arg("--server").arg(binary).passes());
    // As many on the yardstick beside them. That has a limit of its own, which a debug build on a busy machine need not keep:
    // nothing is to be lost, and who is faster is not asked.
    let beside =
        ["--server-processes", "2", "--processes", "2", "-n", CONNECTIONS, "--hold", "3", "--ping-interval", "3"];
    let command = Command::new(loadtest, places).arg("idle").args(beside).args(["--beside-bare", "--server-app"]);
    tell(command.arg("--server").arg(binary).passes());
    // With a broker, behind an app that must not hear of clients whose session goes on.
    let resuming = ["--protocol", "actioncable-ext", "--server-app", "--server-arg=--broker=memory", "-n", CONNECTIONS];
    let publishing = ["--publish-rate", "20", "--messages", "60"];
    for scenario in [&["storm", "--restore"][..], &["broadcast", "--drop-every", "1", "--drop-for", "0.4"]] {
        let command = Command::new(loadtest, places).args(scenario).args(resuming).args(publishing);
        tell(command.arg("--server").arg(binary).passes());
    }
    let small = ["--rounds", "1", "--repeat", "2", "--connections", CONNECTIONS, "--settle", "0.1"];
    for comparison in ["publish-stored", "fanout-stored", "history", "restore", "resumable"] {
        let command = Command::new(loadtest, places).args(["bench", comparison]);
        tell(command.args(small).arg("--server").arg(binary).passes());
    }
    let versus = Command::new(loadtest, places)
        .arg("versus")
        .arg("--scripts")
        .arg(places.root.join("loadtest/versus/peers"))
        .args(["--peers", PEERS, "-n", CONNECTIONS, "--messages", "3", "--idle", "2", "--settle", "1"])
        .arg("--home")
        .arg(places.target.join("versus"))
        .arg("--server")
        .arg(binary);
    tell(versus.passes());
    let counted = ["instructions", "--repeat", "10", "--rounds", "1", "--functions"];
    tell(Command::new(loadtest, places).args(counted).arg("--server").arg(binary).passes());
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_read_from_the_boot_log() {
        let line = r#"{"level":"INFO","message":"WebSockets: ws://127.0.0.1:45627/cable"}"#;
        assert_eq!(endpoint(line).as_deref(), Some("127.0.0.1:45627"));
        assert_eq!(endpoint("Starting Cableway"), None);
    }
}
