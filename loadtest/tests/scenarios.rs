//! Every scenario small, from the command line to the files it writes, with the yardstick as the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use cableway_loadtest::http1::Client;
use cableway_loadtest::publish::{Credentials, Publisher};
use rustix::net::{AddressFamily, SocketType};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cableway-loadtest");

struct Bare {
    child: Child,
    target: String,
    publish_url: String,
}

impl Bare {
    fn start() -> Self {
        Self::speaking("actioncable")
    }

    fn speaking(protocol: &str) -> Self {
        Self::pinging(protocol, "1")
    }

    fn pinging(protocol: &str, interval_s: &str) -> Self {
        Self::listening("127.0.0.1:0", protocol, interval_s)
    }

    fn listening(address: &str, protocol: &str, interval_s: &str) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["bare", "--listen", address, "--protocol", protocol, "--ping-interval", interval_s])
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

    /// Runs a scenario with 200 clients, watching the server's process; its exit status and what it wrote.
    fn run(&self, arguments: &[&str]) -> (Output, Value, String) {
        let pid = self.child.id().to_string();
        self.run_unwatched(&[arguments, &["--pid", &pid]].concat())
    }

    fn run_unwatched(&self, arguments: &[&str]) -> (Output, Value, String) {
        run_against(&self.target, arguments)
    }

    fn clean(&self, arguments: &[&str]) -> Value {
        let (output, report, html) = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(report["problems"], serde_json::json!([]));
        assert!(report["snapshots"][0]["server"]["rss_bytes"].as_u64().unwrap() > 0);
        assert!(!report["bottleneck"].as_str().unwrap().contains("too short"), "{}", report["bottleneck"]);
        assert!(html.contains("<svg") && html.contains("The run is clean") && !html.contains("src="));
        report
    }

    fn publishing(&self) -> [&str; 8] {
        let body = r#"{"identifier":"x","message":"{mark}"}"#;
        ["--publish-url", &self.publish_url, "--publish-body", body, "--messages", "5", "--publish-rate", "50"]
    }
}

fn run_against(target: &str, arguments: &[&str]) -> (Output, Value, String) {
    let files = tempfile::tempdir().unwrap();
    let (json, html) = (files.path().join("report.json"), files.path().join("report.html"));
    let output = Command::new(PROGRAM)
        .arg(arguments[0])
        .args(["--target", target, "-n", "200"])
        .args(["--json".as_ref(), json.as_os_str(), "--html".as_ref(), html.as_os_str()])
        .args(&arguments[1..])
        .output()
        .unwrap();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let report = serde_json::from_str(&read(&json)).unwrap_or_else(|_| panic!("no report: {output:?}"));
    (output, report, read(&html))
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
fn pings_that_come_later_than_they_are_due_fail_the_run_and_others_do_not() {
    // One a second, so those are in time where one is due every three and late where five are.
    let bare = Bare::start();
    let idle = ["idle", "--hold", "2.5", "--processes", "2", "--ping-interval"];
    assert_eq!(bare.clean(&[&idle[..], &["3"]].concat())["counts"]["pings_late"], 0);
    let (output, report, _) = bare.run(&[&idle[..], &["0.2"]].concat());
    assert!(!output.status.success());
    assert!(report["counts"]["pings_late"].as_u64().unwrap() > 100, "{report}");
    assert!(report["problems"].to_string().contains("allowed 0.3 s"), "{}", report["problems"]);
}

#[test]
fn a_ping_that_never_comes_is_missed() {
    let silent = Bare::pinging("actioncable", "3600");
    let (output, report, _) = silent.run(&["idle", "--hold", "1.5", "--ping-interval", "0.5"]);
    assert!(!output.status.success());
    let problems = report["problems"].to_string();
    assert!(problems.contains("late pings: holding: 0, and 200 overdue"), "{problems}");
}

#[test]
fn yardsticks_in_two_processes_share_a_port_and_the_connections() {
    let first = Bare::start();
    let address = first.target.trim_start_matches("ws://").trim_end_matches("/cable");
    let second = Bare::listening(address, "actioncable", "1");
    assert_eq!(first.target, second.target);
    // Held long enough to be asked who has whom.
    let run = std::thread::scope(|scope| {
        let run = scope.spawn(|| first.clean(&["idle", "--hold", "4"]));
        let held = |bare: &Bare| -> u64 {
            let authority = bare.publish_url.trim_start_matches("http://").split('/').next().unwrap();
            let answer = Client::connect(authority).unwrap().request("GET", "/", "", b"").unwrap();
            let counts: Value = serde_json::from_slice(&answer.body).unwrap();
            counts["connections_per_shard"].as_array().unwrap().iter().filter_map(Value::as_u64).sum()
        };
        let mut shares = [0, 0];
        while shares.iter().sum::<u64>() < 200 {
            assert!(!run.is_finished(), "{shares:?} of 200");
            shares = [held(&first), held(&second)];
        }
        // The kernel deals them out by a hash: 50 of 200 would be seven standard deviations below the mean.
        assert!(shares.iter().all(|share| *share > 50), "{shares:?}");
        run.join().unwrap()
    });
    assert_eq!(run["counts"]["ready"], 200);
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
fn pusher_and_centrifugo_clients_subscribe_are_published_to_and_answer_heartbeats() {
    for (protocol, body) in [
        ("pusher", r#"{"event":"e","channel":"load","data":"{mark}"}"#),
        ("centrifugo", r#"{"push":{"channel":"load","pub":{"data":"{mark}"}}}"#),
    ] {
        let bare = Bare::speaking(protocol);
        let spread = ["--protocol", protocol, "--channel", "load-{n%10}"];
        let idle = bare.clean(&[&["idle", "--hold", "2"][..], &spread].concat());
        assert!(idle["counts"]["pings"].as_u64().unwrap() > 100, "{protocol}");
        let publishing =
            ["--publish-url", &bare.publish_url, "--publish-body", body, "--messages", "5", "--publish-rate", "50"];
        let report = bare.clean(&[&["broadcast"][..], &spread, &publishing].concat());
        assert_eq!(report["counts"]["marked"], 1_000, "{protocol}");
    }
    let pusher = Bare::speaking("pusher").clean(&["echo", "--protocol", "pusher", "--rounds", "2"]);
    assert_eq!(pusher["counts"]["replies"], 400);
    let (output, report, _) = Bare::speaking("centrifugo").run(&["echo", "--protocol", "centrifugo"]);
    assert!(!output.status.success() && report["problems"][0].as_str().unwrap().contains("nothing to say"));
}

/// A proxy for publications in front of the yardstick that answers as some servers do: in chunks, and with the connection
/// closed after each. Passes bodies on; every head goes to the receiver.
fn chunking_proxy(behind: String) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/apps/1/events", listener.local_addr().unwrap());
    let (heads, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut publisher = Publisher::connect(&behind, &Credentials::None).unwrap();
        for mut stream in listener.incoming().flatten() {
            let mut requests = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let start = head.len();
                if requests.read_line(&mut head).unwrap() == 0 {
                    break;
                }
                if let Some(value) = head[start..].strip_prefix("Content-Length: ") {
                    length = value.trim().parse().unwrap();
                }
            }
            if length == 0 {
                continue;
            }
            let mut body = vec![0; length];
            requests.read_exact(&mut body).unwrap();
            publisher.post(std::str::from_utf8(&body).unwrap()).unwrap();
            let answer =
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
            stream.write_all(answer).unwrap();
            let _ = heads.send(head);
        }
    });
    (url, received)
}

#[test]
fn a_publisher_says_who_it_is_in_every_way_and_lives_with_chunks_and_closed_connections() {
    for (option, value, expected) in [
        ("--publish-key", "k", "\r\nAuthorization: Bearer k\r\n"),
        ("--publish-header", "X-API-Key: secret", "\r\nX-API-Key: secret\r\n"),
        ("--publish-pusher", "app:secret", "POST /apps/1/events?auth_key=app&auth_timestamp="),
    ] {
        // One each: it takes one publisher at a time.
        let bare = Bare::start();
        let (url, heads) = chunking_proxy(bare.publish_url.clone());
        let mut arguments = vec!["broadcast", option, value];
        arguments.extend(bare.publishing());
        let at = arguments.iter().position(|argument| *argument == bare.publish_url).unwrap();
        arguments[at] = &url;
        assert_eq!(bare.clean(&arguments)["counts"]["marked"], 1_000);
        let heads: Vec<String> = heads.try_iter().collect();
        assert_eq!(heads.len(), 5);
        assert!(heads.iter().all(|head| head.contains(expected)), "{heads:?}");
    }
    let two = ["broadcast", "--target", "ws://h/", "--publish-url", "http://h/", "--publish-key", "k"];
    let output = Command::new(PROGRAM).args(two).args(["--publish-pusher", "a:b"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be used with"), "{output:?}");
}

/// A page of metrics whose calls grow with every look.
fn page() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut calls = 0;
        for mut stream in listener.incoming().flatten() {
            let mut requests = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while requests.read_line(&mut line).is_ok_and(|read| read > 0) {
                if line == "\r\n" {
                    calls += 100;
                    let body = format!(
                        "process_resident_memory_bytes 5e7\nserver_clients_num 200\nserver_rpc_call_total {calls}\n\
                         server_rpc_overloaded_total {}\nserver_connections_closed_total{{cause=\"bored\"}} {calls}\n",
                        calls / 10
                    );
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
                }
                line.clear();
            }
        }
    });
    url
}

#[test]
fn a_server_that_only_shows_its_metrics_is_watched_and_what_it_does_not_show_is_left_out() {
    let bare = Bare::start();
    let (output, report, html) = bare.run_unwatched(&["storm", "--server-metrics", &page()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let metrics = &report["snapshots"][1]["metrics"];
    assert_eq!((&metrics["connections"], &metrics["rss_bytes"]), (&200.into(), &50_000_000.into()));
    assert!(metrics["cpu_s"].is_null() && report["snapshots"][1]["server"].is_null());
    assert!(report["samples"][0]["server_rss_bytes"] == 50_000_000);
    for expected in ["a second", "refused (too many waiting)", "bored", "server's CPU is not known", "47.7 MiB"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("timed out") && !text.contains("not observed"), "{text}");
    assert!(html.contains("Calls to the backend"));

    let (output, ..) = bare.run_unwatched(&["storm"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("not observed"));
    // A page that cannot be read is noticed before the run, not after an hour.
    let nobody = ["idle", "--target", &bare.target, "--server-metrics", "http://127.0.0.1:1/metrics"];
    let output = Command::new(PROGRAM).args(nobody).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("metrics"), "{output:?}");
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
fn clients_that_a_server_does_not_know_again_fail_the_run() {
    let bare = Bare::speaking("actioncable-ext");
    let ext = ["storm", "--restore", "--protocol", "actioncable-ext", "--timeout", "2"];
    let (output, report, _) = bare.run(&[&ext[..], &bare.publishing()].concat());
    assert!(!output.status.success());
    let problems = report["problems"].to_string();
    assert!(problems.contains("0 of 200 clients got their session again"), "{problems}");
    assert!(problems.contains("0 of 200 are back"), "{problems}");
    assert_eq!(report["failures"], "time-out 200");
}

#[test]
fn what_a_run_lacks_is_said_before_it_begins() {
    let with_url = ["--target", "ws://h/", "--publish-url", "http://h/"];
    for (arguments, said) in [
        (&["broadcast", "--target", "ws://h/"][..], "--publish-url"),
        (&[&["broadcast", "--drop-every", "15"], &with_url[..]].concat(), "--protocol actioncable-ext"),
        (&[&["storm", "--restore"], &with_url[..]].concat(), "--protocol actioncable-ext"),
        (
            &[&["broadcast", "--protocol", "actioncable-ext", "--drop-every", "1"], &with_url[..]].concat(),
            "--drop-for must be shorter",
        ),
        (&[&["broadcast", "--publish-rate", "0"], &with_url[..]].concat(), "above 0"),
        (&["idle", "--target", "ws://h/", "--beside-bare"], "--server"),
        (&["idle", "--server", "cableway", "--beside-bare=last", "--ping-interval", "0"], "--ping-interval above 0"),
    ] {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(said), "{arguments:?}: {text}");
    }
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

#[test]
fn a_run_whose_connections_are_all_refused_ends_at_once_and_says_so() {
    // Bound and not listening: the port is ours, and the kernel refuses who connects to it.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    let (output, report, _) = run_against(&format!("ws://{address}/cable"), &["idle", "--hold", "60"]);
    assert!(!output.status.success());
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = problems[0].as_str().unwrap();
    assert!(problem.contains("none of 200 connections got ready") && problem.contains("refused"), "{problem}");
    let ended_s = report["samples"].as_array().unwrap().iter().filter_map(|sample| sample["at_s"].as_f64());
    assert!(ended_s.fold(0.0, f64::max) < 30.0, "it held nothing for the whole time");
}
