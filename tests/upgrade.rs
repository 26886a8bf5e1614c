//! A running server hands all of its connections over to a new process: the real program, asked by the real command. What goes
//! wrong on the way, at any moment, and who serves then.
//!
//! Crashes between two messages come from `os::faults`, which debug builds have.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests wait for processes of their own, which have their own clock"
)]
#![allow(dead_code, reason = "the harness is that of `limits`, which uses more of it")]

#[path = "limits/client.rs"]
mod client;
#[path = "limits/server.rs"]
mod server;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use client::Client;
use server::{SOON, Server, Start};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

const CABLEWAY: &str = env!("CARGO_BIN_EXE_cableway");

/// A server whose program is a file of its own, and the process that serves now.
struct Upgradable {
    folder: tempfile::TempDir,
    server: Server,
    pid: u32,
}

/// What `cableway upgrade` came to.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    told: String,
    complained: String,
}

impl Upgradable {
    fn start(more: &[&str]) -> Upgradable {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
        let program = folder.path().join("cableway");
        put_program(&program);
        let start = Start::with(more).and(&["--control-socket", &path("control.sock")]).program(&program);
        let server = start.env("CABLEWAY_TEST_FAULT_FILE", &path("faults")).start();
        let pid = server.pid();
        Upgradable { folder, server, pid }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The file of the program holds this script from now on.
    fn script(&self, script: &str) {
        let new = self.path("new");
        fs::write(&new, script).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("set");
        fs::rename(&new, self.path("cableway")).expect("renamed");
    }

    /// And the real one again.
    fn real_program(&self) {
        let _ = fs::remove_file(self.path("cableway"));
        put_program(&self.path("cableway"));
    }

    /// What is to happen in the next upgrade; see `os::faults`.
    fn fault(&self, fault: &str) {
        fs::write(self.path("faults"), fault).expect("written");
    }

    fn ask(&self, more: &[&str]) -> Said {
        said(command(&self.path("control.sock"), more).output().expect("it runs"))
    }

    fn status(&self) -> serde_json::Value {
        use std::io::{BufRead, BufReader, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(self.path("control.sock")).expect("somebody listens");
        stream.set_read_timeout(Some(SOON)).expect("set");
        stream.write_all(b"{\"command\":\"status\"}\n").expect("sent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["status"].take()
    }

    fn serving(&self) -> u32 {
        self.status()["pid"].as_u64().expect("a number") as u32
    }

    /// Another process serves, and the command says so.
    fn upgrade(&mut self) -> Said {
        let said = self.ask(&[]);
        assert_eq!(said.status, Some(0), "{said:?}\n{}", self.server.log.text());
        let serving = self.serving();
        let before = std::mem::replace(&mut self.pid, serving);
        assert_ne!(self.pid, before, "{said:?}");
        said
    }

    /// Nothing happens but that the command says why.
    fn is_refused(&self, why: &str) {
        let said = self.ask(&[]);
        assert_eq!(said.status, Some(1), "{why}: {said:?}");
        assert!(said.complained.contains(why), "{why}: {said:?}\n{}", self.server.log.text());
        assert_eq!(self.serving(), self.pid, "the process is the same");
    }
}

impl Drop for Upgradable {
    fn drop(&mut self) {
        // The first one ends with its harness.
        if self.pid != self.server.pid() {
            let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        }
    }
}

/// Puts the program there. A link if it can be: it is large.
fn put_program(path: &Path) {
    if fs::hard_link(CABLEWAY, path).is_err() {
        fs::copy(CABLEWAY, path).expect("copied");
    }
}

fn command(control: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(CABLEWAY);
    command.args(["upgrade", "--control-socket"]).arg(control).args(more).env_clear();
    command
}

fn said(output: Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { status: output.status.code(), told: text(&output.stdout), complained: text(&output.stderr) }
}

fn followers(address: SocketAddr, count: usize) -> Vec<Client> {
    (0..count).map(|_| Client::following(address, "news")).collect()
}

/// What is published now is the next thing that every client gets.
fn all_get(server: &Upgradable, clients: &mut [Client], data: &str) {
    server.server.broadcast("news", data);
    for client in clients {
        let text = client.text();
        assert!(text.ends_with(&format!("\"message\":{data}}}")), "{text} in the place of {data}");
    }
}

#[test]
fn clients_go_along_and_come_and_miss_nothing_in_two_upgrades() {
    let mut server = Upgradable::start(&["--acceptors", "2"]);
    let mut clients = followers(server.address(), 30);
    all_get(&server, &mut clients, "1");
    let check = server.ask(&["--check"]);
    assert_eq!((check.status, server.serving()), (Some(0), server.pid), "{check:?}");
    assert!(check.told.contains("understands"), "{check:?}");

    let first = server.pid;
    let said = server.upgrade();
    assert!(said.told.contains("has 30 connections") && said.told.contains("serves 30 connections"), "{said:?}");
    assert_eq!(server.server.wait(SOON).code(), Some(0), "the old one ends well");
    all_get(&server, &mut clients, "2");
    clients.extend(followers(server.address(), 5));
    all_get(&server, &mut clients, "3");

    // The same by a signal.
    let second = server.pid;
    let sent = Command::new("kill").args(["-USR2", &second.to_string()]).status();
    assert!(sent.expect("kill runs").success());
    let metrics = server.server.metrics_until("the second upgrade", |metrics| {
        metrics.0.get("cableway_upgrades_total{result=\"ok\"}") == Some(&2.0)
    });
    server.pid = server.serving();
    assert!(![first, second].contains(&server.pid));
    all_get(&server, &mut clients, "4");
    assert_eq!(metrics.get("clients_num"), 35);
    assert!(server.status()["version"].is_string());

    // The last one ends as any other.
    let sent = Command::new("kill").args(["-TERM", &server.pid.to_string()]).status();
    assert!(sent.expect("kill runs").success());
    for client in &mut clients {
        assert_eq!(client.text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
    }
}

#[test]
fn a_new_program_that_does_not_come_up_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cableway.toml");
    let sound = "[app]\nping_interval = 0\n";
    fs::write(&file, sound).expect("written");
    let mut server = Upgradable::start(&["--upgrade-timeout", "1s", "--config", file.to_str().expect("text")]);
    let mut clients = followers(server.address(), 5);
    let mut number = 0;
    let mut still_serves = |server: &Upgradable, clients: &mut [Client]| {
        number += 1;
        all_get(server, clients, &number.to_string());
        Client::welcomed(server.address());
    };
    // It says that it understands nothing that this version writes, in the form of the protocol: a byte, and MessagePack.
    #[derive(serde::Serialize)]
    enum ToOld {
        Hello { protocol: u16, version: &'static str, pid: u32, connections: Vec<u16>, states: Vec<u16> },
    }
    let hello = ToOld::Hello { protocol: 1, version: "9.9.9", pid: 1, connections: vec![900], states: vec![1] };
    let mut bytes = vec![0];
    bytes.extend(rmp_serde::to_vec_named(&hello).expect("written"));
    fs::write(server.path("hello"), bytes).expect("written");
    let of_another_time = format!("#!/bin/sh\ncat {} >&0\nsleep 5\n", server.path("hello").display());
    let foreign = "#!/bin/sh\necho hello >&0\nsleep 5\n".to_owned();
    for (script, why) in [
        ("#!/bin/sh\nexit 7\n".to_owned(), "exit status: 7"),
        ("#!/bin/sh\nkill -SEGV $$\n".to_owned(), "signal: 11"),
        ("no program\n".to_owned(), "Exec format error"),
        ("#!/bin/sh\nexec sleep 5\n".to_owned(), "took longer than 1s"),
        (foreign, "no known kind"),
        (of_another_time, "version 9.9.9 does not understand format"),
    ] {
        server.script(&script);
        server.is_refused(why);
        assert_eq!(server.ask(&["--check"]).status, Some(1), "{why}");
        still_serves(&server, &mut clients);
    }
    fs::set_permissions(server.path("cableway"), fs::Permissions::from_mode(0o644)).expect("set");
    server.is_refused("Permission denied");
    fs::remove_file(server.path("cableway")).expect("removed");
    server.is_refused("No such file");
    still_serves(&server, &mut clients);

    server.real_program();
    fs::write(&file, "[app]\nping_intervall = 0\n").expect("written");
    server.is_refused("it ended (exit status: 1)");
    assert!(
        server.server.log.wait_for(|line| line.contains("ping_intervall")).is_some(),
        "its own words are in the log"
    );
    still_serves(&server, &mut clients);
    let metrics = server.server.metrics();
    assert_eq!(metrics.get("upgrades_total{result=\"new_process_failed\"}"), 8);
    assert_eq!(metrics.get("upgrades_total{result=\"timeout\"}"), 1);

    fs::write(&file, sound).expect("written");
    server.upgrade();
    still_serves(&server, &mut clients);
}

/// Lets the new process have a fault at each of its messages in turn, until that is one behind the point of no return; how often
/// the old one went on.
fn survived(server: &Upgradable, clients: &mut [Client], moment: &str) -> u32 {
    for number in 1.. {
        server.fault(&format!("new {moment} {number} die"));
        let said = server.ask(&[]);
        if said.status == Some(0) {
            // It had said that it has everything.
            return number - 1;
        }
        assert_eq!(said.status, Some(1), "{moment} {number}: {said:?}");
        assert!(said.complained.contains("signal: 9"), "{moment} {number}: {said:?}");
        assert_eq!(server.serving(), server.pid, "{moment} {number}");
        all_get(server, clients, &number.to_string());
    }
    unreachable!("there are not so many messages")
}

#[test]
fn a_new_process_that_is_killed_while_it_receives_costs_nothing() {
    // Three chunks of connections.
    let server = Upgradable::start(&["--acceptors", "1"]);
    let mut clients = followers(server.address(), 600);
    // Listeners, offer, snapshot, state, and three chunks at least; then `Yours`, with which they are lost.
    let received = survived(&server, &mut clients, "receive");
    assert!(received >= 7, "{received}");
}

#[test]
fn a_new_process_that_is_killed_before_it_answers_costs_nothing() {
    let server = Upgradable::start(&["--acceptors", "2"]);
    let mut clients = followers(server.address(), 20);
    // Hello, lanes, prepared, kept, have; behind these is nothing that the old one waits for.
    let answered = survived(&server, &mut clients, "send");
    assert_eq!(answered, 5);
}

#[test]
fn a_new_process_that_stops_for_ever_is_given_up() {
    let mut server = Upgradable::start(&["--acceptors", "1", "--upgrade-timeout", "1s"]);
    let mut clients = followers(server.address(), 20);
    server.fault("new send 3 hang");
    server.is_refused("took longer than 1s to make everything ready");
    all_get(&server, &mut clients, "1");
    // When all stand still.
    server.fault("new send 5 hang");
    server.is_refused("took longer than");
    all_get(&server, &mut clients, "2");
    server.fault("");
    server.upgrade();
    all_get(&server, &mut clients, "3");
}

#[test]
fn a_new_process_that_stops_reading_while_connections_are_copied_ahead_keeps_nobody_waiting() {
    // More chunks than wait in a socket.
    let mut server = Upgradable::start(&["--acceptors", "1", "--upgrade-timeout", "8s"]);
    let mut clients = followers(server.address(), 2000);
    // Listeners, offer, snapshot, state, and a chunk of connections.
    server.fault("new receive 5 hang");
    let mut asking = command(&server.path("control.sock"), &[]);
    let mut asking = asking.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    for number in 1..4 {
        thread::sleep(Duration::from_millis(300));
        all_get(&server, &mut clients, &number.to_string());
        Client::welcomed(server.address());
    }
    assert!(asking.try_wait().expect("its state").is_none(), "all were served while it was waited for");
    let said = said(asking.wait_with_output().expect("it ends"));
    assert!(said.status == Some(1) && said.complained.contains("took longer than"), "{said:?}");
    assert_eq!(server.serving(), server.pid);
    all_get(&server, &mut clients, "4");
    server.fault("");
    server.upgrade();
    all_get(&server, &mut clients, "5");
}

#[test]
fn an_old_process_that_dies_leaves_its_connections_to_the_new_one_as_soon_as_that_has_them() {
    // Behind `Have`, and behind `Started`: it has said `Yours` between the two.
    for number in [5, 6] {
        let mut server = Upgradable::start(&["--acceptors", "2"]);
        let mut clients = followers(server.address(), 30);
        all_get(&server, &mut clients, "1");
        server.fault(&format!("old receive {number} die"));
        let said = server.ask(&[]);
        assert_eq!(said.status, Some(1), "it died before it could answer: {said:?}");
        server.server.wait(SOON);
        let until = Instant::now() + SOON;
        while server.pid == server.server.pid() {
            assert!(Instant::now() < until, "nobody serves:\n{}", server.server.log.text());
            // The old one's socket is refused until the new one has put its own there.
            if std::os::unix::net::UnixStream::connect(server.path("control.sock")).is_ok() {
                server.pid = server.serving();
            }
            thread::sleep(Duration::from_millis(10));
        }
        all_get(&server, &mut clients, "2");
        Client::welcomed(server.address());
        server.upgrade();
        all_get(&server, &mut clients, "3");
    }
}

#[test]
fn an_old_process_that_dies_before_leaves_no_other_behind() {
    let mut server = Upgradable::start(&["--acceptors", "1"]);
    server.fault("old receive 3 die");
    assert_eq!(server.ask(&[]).status, Some(1));
    server.server.wait(SOON);
    // Both write to the same pipe, which ends with the last of them.
    server.server.log.is_left();
    assert!(server.server.log.text().contains("cannot take over: "), "{}", server.server.log.text());
    assert!(std::net::TcpStream::connect(server.address()).is_err(), "nobody listens");
}

/// State and parent of a process.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name in brackets, which may hold spaces.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// Whether a process holds a pidfd of another one.
fn has_pidfd_of(holder: u32, pid: u32) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{holder}/fdinfo")) else { return false };
    let line = format!("Pid:\t{pid}");
    let is_one = |path| fs::read_to_string(path).is_ok_and(|info| info.lines().any(|found| found == line));
    descriptors.flatten().any(|descriptor| is_one(descriptor.path()))
}

/// Kills the process between that starts the new one, when that has said "begun" and its number; gives that number and what is said.
fn without_the_one_between(server: &Upgradable, number: usize) -> (u32, Said) {
    thread::scope(|scope| {
        let asked = scope.spawn(|| server.ask(&[]));
        let begun = format!("begun {number} ");
        let line = server.server.log.wait_for(|line| line.starts_with(&begun)).expect("it begins");
        let new: u32 = line[begun.len()..].parse().expect("a number");
        // The server has heard of it from the one between, when it holds a descriptor that means it.
        let until = Instant::now() + SOON;
        while !has_pidfd_of(server.pid, new) {
            assert!(Instant::now() < until, "the server is told what was started");
            thread::sleep(Duration::from_millis(2));
        }
        let (_, between) = state_and_parent(new).expect("it runs");
        assert_eq!(state_and_parent(between).map(|(_, parent)| parent), Some(server.pid), "its child's child");
        let sent = Command::new("kill").args(["-KILL", &between.to_string()]).status();
        assert!(sent.expect("kill runs").success());
        (new, asked.join().expect("no panic"))
    })
}

#[test]
fn the_process_between_may_be_killed_and_ends_with_what_it_is_for() {
    let mut server = Upgradable::start(&["--upgrade-timeout", "3s"]);
    let mut clients = followers(server.address(), 5);
    // One that ends, and one that does nothing: nobody can say how it ended, and it is killed all the same.
    for (number, does, why) in [(1, "exit 7", "it ended; its log says why"), (2, "exec sleep 9", "took longer than 3s")]
    {
        server.script(&format!("#!/bin/sh\necho begun {number} $$ >&2\nsleep 0.5\n{does}\n"));
        let (new, said) = without_the_one_between(&server, number);
        assert_eq!((said.status, server.serving()), (Some(1), server.pid), "{said:?}");
        assert!(said.complained.contains(why), "{said:?}");
        let left = state_and_parent(new).map(|(state, _)| state);
        assert!(matches!(left, None | Some('Z')), "it runs: {left:?}");
        all_get(&server, &mut clients, &number.to_string());
    }
    server.script(&format!("#!/bin/sh\necho begun 3 $$ >&2\nsleep 0.5\nexec {CABLEWAY} \"$@\"\n"));
    let (new, said) = without_the_one_between(&server, 3);
    assert_eq!((said.status, server.serving()), (Some(0), new), "{said:?}");
    server.pid = new;
    all_get(&server, &mut clients, "3");

    // Nobody has killed this one, and it has ended.
    server.real_program();
    server.server.wait(SOON);
    server.upgrade();
    let (_, parent) = state_and_parent(server.pid).expect("it runs");
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    assert!(parent != new && name.trim_end() != "cableway-start", "process {parent}, {name}");
    all_get(&server, &mut clients, "4");
}

/// Sends the new process a signal in the moment when it has everything, and has not said that it serves.
fn signalled_in_the_moment_of_the_change(server: &mut Upgradable, signal: &str) {
    server.fault("new send 6 wait");
    let said = thread::scope(|scope| {
        let asked = scope.spawn(|| server.ask(&[]));
        let until = Instant::now() + SOON;
        let new = loop {
            let fault = fs::read_to_string(server.path("faults")).expect("readable");
            if let Some(new) = fault.strip_prefix("waits ") {
                break new.to_owned();
            }
            assert!(Instant::now() < until, "it gets as far as that");
            thread::sleep(Duration::from_millis(5));
        };
        let sent = Command::new("kill").args([&format!("-{signal}"), &new]).status();
        assert!(sent.expect("kill runs").success());
        server.fault("");
        asked.join().expect("no panic")
    });
    assert_eq!(said.status, Some(0), "{said:?}");
}

#[test]
fn a_signal_in_the_moment_of_the_change_is_for_the_process_that_goes_on() {
    let mut server = Upgradable::start(&["--acceptors", "1"]);
    let mut clients = followers(server.address(), 5);
    signalled_in_the_moment_of_the_change(&mut server, "USR2");
    let until = Instant::now() + SOON;
    while server.server.log.numbers_of("upgrade: process ", "pid").len() < 2 {
        assert!(Instant::now() < until, "it is upgraded itself:\n{}", server.server.log.text());
        thread::sleep(Duration::from_millis(10));
    }
    server.pid = server.serving();
    all_get(&server, &mut clients, "1");

    signalled_in_the_moment_of_the_change(&mut server, "TERM");
    for client in &mut clients {
        assert!(client.text().contains("server_restart"), "it is told");
    }
}

#[test]
fn nobody_starts_a_process_between_by_hand() {
    let output = Command::new(CABLEWAY).args(["start-successor", "/bin/true"]).env_clear().output().expect("it runs");
    let said = said(output);
    assert_eq!(said.status, Some(64), "{said:?}");
    assert!(said.complained.contains("only a server that is upgraded starts this"), "{said:?}");
}

#[test]
fn there_is_one_upgrade_at_a_time_and_none_while_it_ends() {
    let server = Upgradable::start(&["--shutdown-delay", "2s", "--shutdown-timeout", "9s"]);
    server.script("#!/bin/sh\necho begun >&2\nsleep 2\nexit 7\n");
    thread::scope(|scope| {
        let first = scope.spawn(|| server.ask(&[]));
        server.server.log.wait_for(|line| line == "begun").expect("it begins");
        let second = server.ask(&["--check"]);
        assert_eq!(second.status, Some(1));
        assert!(second.complained.contains("an upgrade runs already"), "{second:?}");
        server.server.signal("USR2");
        assert!(server.status()["upgrading"].as_bool().expect("told"));
        let first = first.join().expect("no panic");
        assert!(first.complained.contains("exit status: 7"), "{first:?}");
    });
    assert!(server.server.log.wait_for(|line| line.contains("SIGUSR2 ignored")).is_some());
    server.server.signal("TERM");
    server.server.log.wait_for(|line| line == "shutting down").expect("it ends");
    server.is_refused("shutting down");
    assert!(server.status()["draining"].as_bool().expect("told"));
}

#[test]
fn servers_do_not_take_each_others_sockets() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = folder.path().to_str().expect("text");
    let start =
        |more: &[&str]| Start::with(more).env("CABLEWAY_CONTROL_SOCKET", "auto").env("XDG_RUNTIME_DIR", runtime);
    let one = start(&["--reuse-port"]).start();
    let port = one.address().port().to_string();
    let two = start(&["--reuse-port", "--port", &port]).start();
    let sockets = folder.path().join("cableway");
    let of = |name: String| sockets.join(name);
    let (first, second) = (of(format!("{port}.sock")), of(format!("{port}-{}.sock", two.pid())));
    for socket in [&first, &second] {
        let found = fs::symlink_metadata(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        assert!(found.file_type().is_socket() && found.mode() & 0o777 == 0o600);
    }
    // The command finds the one of the port by itself.
    let mut command = Command::new(CABLEWAY);
    command.args(["upgrade", "--check", "--ignore-config-path", "--port", &port]).env_clear();
    let found = said(command.env("XDG_RUNTIME_DIR", runtime).output().expect("it runs"));
    assert_eq!(found.status, Some(0), "{found:?}");
    let named = first.to_str().expect("text");
    let (status, log) = start(&["--control-socket", named]).expect_end();
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("belongs to another process that runs"), "{log}");
    // One that was killed leaves its socket behind, which is nobody's.
    drop(one);
    assert!(first.exists());
    let three = start(&["--control-socket", named]).start();
    assert!(three.log.text().contains(&format!("control socket: {named}")));
}

#[test]
#[ignore = "as root: it asks as another user"]
fn another_user_is_refused_told_so_and_counted() {
    let server = Upgradable::start(&[]);
    let as_nobody = |more: &[&str]| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        setpriv.arg(CABLEWAY).args(["upgrade", "--control-socket"]).arg(server.path("control.sock")).args(more);
        said(setpriv.output().expect("setpriv runs"))
    };
    // Everybody can run it where the build lies.
    let refused = as_nobody(&[]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.complained.contains("Permission denied"), "{refused:?}");
    // Even where somebody has opened the way.
    fs::set_permissions(server.folder.path(), fs::Permissions::from_mode(0o755)).expect("set");
    fs::set_permissions(server.path("control.sock"), fs::Permissions::from_mode(0o666)).expect("set");
    let refused = as_nobody(&["--check"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(
        refused.complained.contains("this socket is for user 0") && refused.complained.contains("65534"),
        "{refused:?}"
    );
    assert_eq!(server.server.metrics().get("control_refused_total"), 1);
    assert_eq!(server.serving(), server.pid);
}

/// Publishes to a stream without pause while `meanwhile` runs.
fn while_much_is_published(server: &Upgradable, stream: &str, meanwhile: impl FnOnce()) {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    server.server.broadcast(stream, "0");
                }
            });
        }
        let _ends = Ends(&ended);
        meanwhile();
    });
}

#[test]
fn who_comes_goes_or_changes_behind_the_copies_that_are_made_ahead_is_served_as_he_is() {
    // More shards or fewer than there were.
    for (number, acceptors) in [2, 1, 3].into_iter().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("cableway.toml");
        let configured = |acceptors: usize| fs::write(&file, format!("[server]\nacceptors = {acceptors}\n"));
        configured(2).expect("written");
        let config = file.to_str().expect("text").to_owned();
        let mut server = Upgradable::start(&["--log-level", "debug", "--config", &config]);
        configured(acceptors).expect("written");
        let mut clients = followers(server.address(), 300);
        let [mut says, mut follows, mut leaves, gone] = std::array::from_fn(|_| clients.pop().expect("one of them"));
        let noise: Vec<Client> = (0..3).map(|_| Client::following(server.address(), "noise")).collect();
        let mut came = None;
        // As long as something is being delivered the server waits a moment before it stops.
        while_much_is_published(&server, "noise", || {
            thread::scope(|scope| {
                let asked = scope.spawn(|| server.ask(&[]));
                let copied = |line: &str| line.starts_with("upgrade: connections are copied ahead");
                assert!(server.server.log.wait_for(copied).is_some(), "{}", server.server.log.text());
                says.send_raw(&[0x81]);
                follows.follow("more");
                let why = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                leaves.0.close(Some(why)).expect("sent");
                assert_eq!(leaves.close_frame().0, 1000);
                leaves.ends();
                drop(gone);
                came = Some(Client::following(server.address(), "news"));
                let said = asked.join().expect("no panic");
                assert_eq!(said.status, Some(0), "{said:?}\n{}", server.server.log.text());
            });
        });
        server.pid = server.serving();
        // The rest of a frame: masked, empty of sense, and no command.
        says.send_raw(&[0x82, 0, 0, 0, 0, b'{', b'}']);
        clients.extend([says, follows, came.expect("it came")]);
        all_get(&server, &mut clients, "1");
        let mut follows = clients.swap_remove(clients.len() - 2);
        server.server.broadcast("more", "2");
        assert!(follows.text().ends_with("\"message\":2}"));
        let open = clients.len() + 1 + noise.len();
        server.server.metrics_until(&format!("{open} clients in round {number}"), |metrics| {
            metrics.get("clients_num") == open as u64
        });
    }
}
