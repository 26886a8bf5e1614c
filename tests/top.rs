//! `cableway top` beside a real server, as a person and a script start it. What it draws is tested beside the code; here it
//! has a terminal, which `script` makes.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests wait for processes of their own, which have their own clock"
)]
#![allow(dead_code, reason = "the harness is that of `limits`, which uses more of it")]

#[path = "limits/client.rs"]
mod client;
#[path = "limits/server.rs"]
mod server;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use client::Client;
use server::{SOON, Start};

const CABLEWAY: &str = env!("CARGO_BIN_EXE_cableway");

fn top(arguments: &[&str]) -> Output {
    let mut command = Command::new(CABLEWAY);
    command.arg("top").args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output().expect("it starts")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// It in a terminal of 80 by 24, killed when dropped.
struct Terminal {
    process: Child,
    keys: ChildStdin,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(address: SocketAddr) -> Terminal {
        let command = format!("stty rows 24 cols 80; exec '{CABLEWAY}' top --interval 0.1 --url {address}");
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
        script.env("TERM", "xterm").env("NO_COLOR", "1").env("LC_ALL", "C");
        let mut process = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script starts");
        let (sender, screen) = mpsc::channel();
        let mut output = process.stdout.take().expect("piped");
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut piece) {
                let _ = sender.send(piece[..n].to_vec());
            }
        });
        let keys = process.stdin.take().expect("piped");
        Terminal { process, keys, screen, seen: String::new() }
    }

    /// Waits until this has been drawn since the last time it was asked.
    fn shows(&mut self, text: &str) {
        let until = Instant::now() + SOON;
        while !self.seen.contains(text) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(piece) = self.screen.recv_timeout(left) else {
                panic!("no {text:?}; seen {} bytes", self.seen.len())
            };
            self.seen.push_str(&said(&piece));
        }
        self.seen.clear();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn one_frame_is_printed_as_text_for_scripts() {
    let server = Start::with(&["--acceptors", "2", "--metrics-prefix", "anycable_go_"]).start();
    let _clients: Vec<Client> = (0..7).map(|_| Client::welcomed(server.address())).collect();
    let output = top(&["--once", "--interval", "0.1", "--url", &server.address().to_string()]);
    let text = said(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in ["|WebSockets  7/", "|clients     7 in", "|descriptors ", "|accept queue 0/", "|0 #", "|1 #", "http  "]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 80 && line == line.trim_end()), "{text}");
}

#[test]
fn a_server_that_cannot_be_asked_is_an_error_with_its_reason() {
    let server = Start::with(&["--metrics-http", "/elsewhere"]).start();
    let here = server.address().to_string();
    // Nobody listens on a port that was given back a moment ago.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let health = format!("{here}/health");
    for (url, code, part) in [
        (nowhere.to_string().as_str(), 1, "cannot be reached: Connection refused"),
        (&here, 1, "answers 404: the metrics are elsewhere"),
        (&health, 1, "answers something else"),
        ("https://127.0.0.1", 64, "only http:// is spoken"),
    ] {
        let output = top(&["--once", "--url", url]);
        assert_eq!(output.status.code(), Some(code), "{url}: {output:?}");
        assert!(said(&output.stderr).contains(part), "{url}: {output:?}");
        assert!(output.stdout.is_empty());
    }
    let output = top(&["--url", &here]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output.stderr).contains("no terminal; --once"), "{output:?}");
    assert!(said(&top(&["--help"]).stdout).contains("--interval SECONDS"));
}

#[test]
fn a_terminal_follows_a_server_that_goes_away_and_comes_back_and_is_put_back_at_the_end() {
    let server = Start::with(&[]).start();
    let address = server.address();
    let mut terminal = Terminal::start(address);
    terminal.shows("\x1b[?1049h");
    terminal.shows("Opened and closed");
    drop(server);
    // Only what differs from the frame before is sent, so this looks for words that stand where nothing like them has stood.
    terminal.shows("trying");
    let port = address.port().to_string();
    let _server = Start::with(&["--port", &port]).start();
    terminal.shows("Room");
    terminal.keys.write_all(b"q").expect("it listens");
    terminal.shows("\x1b[?1049l");
    assert!(terminal.process.wait().expect("a child of ours").success());
}

#[test]
fn a_terminal_is_put_back_before_a_signal_ends_it() {
    let server = Start::with(&[]).start();
    let mut terminal = Terminal::start(server.address());
    terminal.shows("Opened and closed");
    // Of the children of `script` there is one, which has become it.
    let children = format!("/proc/{0}/task/{0}/children", terminal.process.id());
    let child = std::fs::read_to_string(children).expect("it runs");
    let sent = Command::new("sh").arg("-c").arg(format!("kill -TERM {child}")).status();
    assert!(sent.expect("sh runs").success());
    terminal.shows("\x1b[?1049l");
    assert!(terminal.process.wait().expect("a child of ours").success());
}
