//! A server of several processes is upgraded: the parent goes on as another program in the same process, then another process
//! takes over from each child, and no client notices.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::json;

use super::*;
use crate::client::http;
use crate::extended::{Stop, all_come, behind, extended, history, json, message};

const CABLEWAY: &str = env!("CARGO_BIN_EXE_cableway");

/// A server of several processes whose program is a file of its own.
pub struct Renewable {
    pub family: Family,
    folder: tempfile::TempDir,
}

/// What `cableway upgrade` came to.
#[derive(Debug)]
pub struct Said {
    pub status: Option<i32>,
    pub told: String,
    pub complained: String,
}

impl Renewable {
    pub fn start(processes: u16, more: &[&str]) -> Renewable {
        Renewable::of(processes, |start| start.and(more))
    }

    pub fn of(processes: u16, more: impl FnOnce(Start) -> Start) -> Renewable {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("cableway");
        put_program(&program);
        let control = folder.path().join("control.sock");
        let usual = ["--broker", "memory", "--noauth", "--control-socket", control.to_str().expect("text")];
        let start = more(Family::arguments(processes, &usual).program(&program));
        let start = start.env("CABLEWAY_TEST_FAULT_FILE", folder.path().join("faults").to_str().expect("text"));
        Renewable { family: Family::of(start.start(), processes), folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
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

    pub fn ask(&self, more: &[&str]) -> Said {
        let mut command = Command::new(CABLEWAY);
        command.args(["upgrade", "--control-socket"]).arg(self.path("control.sock")).args(more).env_clear();
        let output = command.output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { status: output.status.code(), told: text(&output.stdout), complained: text(&output.stderr) }
    }

    /// The command says that it is done.
    pub fn upgrade(&self) -> Said {
        let said = self.ask(&[]);
        assert_eq!(said.status, Some(0), "{said:?}\n{}", self.family.log.text());
        said
    }

    /// Nothing happens but that the command says why.
    fn is_refused(&self, why: &str) {
        let (said, renewals) = (self.ask(&[]), self.renewals());
        assert_eq!(said.status, Some(1), "{why}: {said:?}");
        assert!(said.complained.contains(why), "{why}: {said:?}\n{}", self.family.log.text());
        assert_eq!(self.renewals(), renewals);
    }

    /// How often the parent has gone on as another program.
    fn renewals(&self) -> usize {
        let lines = self.family.log.messages();
        lines.iter().filter(|(_, line)| line.contains("goes on as the parent of")).count()
    }
}

/// Puts the program there. A link if it can be: it is large.
fn put_program(path: &Path) {
    if fs::hard_link(CABLEWAY, path).is_err() {
        fs::copy(CABLEWAY, path).expect("copied");
    }
}

/// Publishes every second number from `first` on, one after the other, until it is told to stop; gives how many.
fn publish(address: SocketAddr, first: u64, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Relaxed) {
        let body = json!({"stream": "news", "data": (first + 2 * count).to_string()}).to_string();
        let response = http(address, "POST", "/_broadcast", &body).expect("an answer");
        assert_eq!(response.status, 201, "{response:?}");
        count += 1;
    }
    count
}

#[test]
fn nobody_notices_that_the_parent_goes_on_as_another_program_three_times_in_a_row() {
    let server = Renewable::start(3, &[]);
    let family = &server.family;
    let mut clients: Vec<Client> = (0..24).map(|_| extended(family.address(), None).0).collect();
    clients.iter_mut().for_each(|client| client.follow("news"));
    let (gone, welcome) = extended(family.address(), None);
    gone.leave();
    let (pids, address) = (family.pids(), family.address());
    let before = family.server.metrics_until("one has left", |metrics| metrics.get("websockets_num") == 24);
    let check = server.ask(&["--check"]);
    assert!(check.status == Some(0) && check.told.contains("understands"), "{check:?}");
    assert_eq!(server.renewals(), 0);

    let stop = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let _stop = Stop(&stop);
        let stop = &stop;
        let publishers = [0, 1].map(|first| scope.spawn(move || publish(address, first, stop)));
        for times in 1..=3 {
            thread::sleep(Duration::from_millis(200));
            let said = server.upgrade();
            assert!(said.told.contains(&format!("process {} (cableway", family.server.pid())), "{said:?}");
            assert!(
                said.told.contains("cableway 0.1.0 in 3 processes has 2"),
                "those of the publishers, too: {said:?}"
            );
            assert_eq!(server.renewals(), times, "{}", family.log.text());
        }
        thread::sleep(Duration::from_millis(200));
        stop.store(true, Relaxed);
        publishers.map(|publisher| publisher.join().expect("published"))
    });
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    let sent = counts[0] + counts[1];
    clients.iter_mut().for_each(|client| all_come(client, counts));
    let of = |(process, before)| family.await_other_than(process, before);
    let pids: Vec<u32> = (0u16..).zip(pids).map(of).collect();

    // History, sessions and counters go on.
    family.broadcast("news", "7");
    let (offset, epoch, _) = message(&mut clients[0]);
    assert_eq!(offset, sent + 1);
    clients[1..].iter_mut().for_each(|client| assert_eq!(message(client).0, offset));
    let missed = history(&mut clients[0], "news", &behind("news", &epoch, sent - 10)).expect("it is there");
    assert_eq!(missed.len(), 11);
    let (back, restored) = extended(address, welcome["sid"].as_str());
    assert_eq!(restored["restored"], true, "{restored}");
    back.leave();
    let metrics = family.server.metrics_until("it has left", |metrics| metrics.get("websockets_num") == 24);
    assert_eq!(metrics.get("broadcast_msg_total"), sent + 1);
    assert!(metrics.get("connections_accepted_total") >= before.get("connections_accepted_total"));
    // Each command asks twice: at last whether it serves.
    assert_eq!(metrics.get("control_requests_total"), 7);
    assert_eq!(metrics.get("process_restarts_total{process=\"1\"}"), 0);
    assert_eq!(metrics.get("upgrades_total{result=\"ok\"}"), 9, "three of each process");

    // They are its children as before.
    family::signal(pids[1], "KILL");
    family.await_log(&format!("process 1 (pid {}) has ended (signal: 9 (SIGKILL))", pids[1]));
    family.await_other_than(1, pids[1]);
    family.server.metrics_until("process 1 serves again", |metrics| metrics.get("process_up{process=\"1\"}") == 1);
    let metrics = family.metrics();
    assert_eq!(metrics.get("process_restarts_total{process=\"1\"}"), 1);
    server.upgrade();
    let mut fresh = clients_everywhere(family, 12);
    family.broadcast("news", "8");
    fresh.iter_mut().for_each(|client| assert_eq!(next(client, 1), ["8"]));
    let pids = family.pids();
    let Renewable { mut family, folder } = server;
    family.server.signal("TERM");
    assert_eq!(family.server.wait(SOON).code(), Some(0));
    pids.iter().for_each(|pid| assert!(family::is_gone(*pid), "{pid} is left"));
    assert!(!folder.path().join("control.sock").exists());
}

#[test]
fn who_is_present_and_whoever_asks_something_meanwhile_is_not_forgotten() {
    let server = Renewable::start(2, &["--presence-ttl", "1"]);
    let family = &server.family;
    let mut clients: Vec<Client> = (0..8).map(|_| extended(family.address(), None).0).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.follow("room");
        let id = at.to_string();
        extended::join(client, "room", &id);
        while json(&client.text())["message"]["id"] != *id {}
    }
    server.upgrade();
    let identifier = client::json_string(&client::identifier("room"));
    let total = |client: &mut Client| {
        client.send(&format!("{{\"command\":\"presence\",\"identifier\":{identifier}}}"));
        loop {
            let said = json(&client.text());
            if let Some(total) = said["message"]["total"].as_u64() {
                return total;
            }
        }
    };
    let mut last = clients.pop().expect("there are some");
    assert_eq!(total(&mut last), 8);
    // Metrics are asked for while the parent is busy with that.
    thread::scope(|scope| {
        let asking = scope.spawn(|| (0..40).for_each(|_| assert_eq!(family.get("/metrics").status, 200)));
        (0..3).for_each(|_| _ = server.upgrade());
        asking.join().expect("answered");
    });
    clients.into_iter().for_each(Client::leave);
    let until = Instant::now() + SOON;
    while total(&mut last) != 1 {
        assert!(Instant::now() < until, "they do not leave");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_program_that_cannot_go_on_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cableway.toml");
    fs::write(&file, "").expect("written");
    let server = Renewable::start(2, &["--upgrade-timeout", "1s", "--config", file.to_str().expect("text")]);
    let family = &server.family;
    let mut clients = clients_everywhere(family, 8);
    let (pids, mut number) = (family.pids(), 0);
    let mut still_serves = |clients: &mut [Client]| {
        number += 1;
        family.broadcast("news", &number.to_string());
        clients.iter_mut().for_each(|client| assert_eq!(next(client, 1), [number.to_string()]));
        assert_eq!(family.pids(), pids);
    };
    for (script, why) in [
        ("#!/bin/sh\nexit 0\n", "ended (exit status: 0)"),
        ("#!/bin/sh\nkill -9 $$\n", "ended (signal: 9 (SIGKILL))"),
        ("#!/bin/sh\nexec sleep 60\n", "took longer than 1s"),
        ("no program\n", "cannot take over"),
        (&format!("#!/bin/sh\nexec {CABLEWAY} \"$@\" < /dev/null\n"), "standard input is no state"),
        (&format!("#!/bin/sh\nexec {CABLEWAY} \"$@\" --pubsub redis --redis-url redis://127.0.0.1:1\n"), "--pubsub"),
    ] {
        server.script(script);
        server.is_refused(why);
        still_serves(&mut clients);
    }
    fs::remove_file(server.path("cableway")).expect("removed");
    server.is_refused("No such file");
    still_serves(&mut clients);
    server.real_program();
    fs::write(&file, "[server\n").expect("written");
    server.is_refused("cableway.toml");
    still_serves(&mut clients);
    fs::write(&file, "").expect("written");
    // Taken by somebody else, and wanted by the new configuration only.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    fs::write(&file, format!("[metrics]\nport = {port}\n")).expect("written");
    server.is_refused("already in use");
    still_serves(&mut clients);
    fs::write(&file, "").expect("written");

    // One that goes between the trial and the moment at which it is run: everything stood still by then.
    server.script(&format!("#!/bin/sh\nrm \"$0\"\nexec {CABLEWAY} \"$@\"\n"));
    let said = server.ask(&[]);
    assert!(said.status == Some(1) && said.complained.contains("No such file"), "{said:?}\n{}", family.log.text());
    still_serves(&mut clients);
    let metrics = family.metrics();
    assert_eq!(metrics.get("broadcast_msg_total"), 10);
    for (result, count) in [("new_process_failed", 9), ("timeout", 1), ("ok", 0)] {
        assert_eq!(metrics.get(&format!("upgrades_total{{result=\"{result}\"}}")), count, "{result}");
    }
    server.real_program();
    server.upgrade();
    family.broadcast("news", "11");
    clients.iter_mut().for_each(|client| assert_eq!(next(client, 1), ["11"]));
    (0u16..).zip(pids).for_each(|(process, before)| _ = family.await_other_than(process, before));
}

/// Whether the connection still stands.
fn is_there(client: &mut Client) -> bool {
    client.0.get_ref().set_nonblocking(true).expect("set");
    let error = loop {
        if let Err(error) = client.0.read() {
            break error;
        }
    };
    client.0.get_ref().set_nonblocking(false).expect("set");
    matches!(error, tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn max_conn_is_of_all_processes_while_they_are_upgraded_and_when_one_is_started_again() {
    let server = Renewable::start(3, &["--max-conn", "12"]);
    let family = &server.family;
    let mut clients = Vec::new();
    filled(family, &mut clients, 12);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                is_full(family, "meanwhile");
            }
        });
        server.upgrade();
        stop.store(true, Relaxed);
    });
    is_full(family, "after an upgrade");
    let pid = family.pid(0);
    family::signal(pid, "KILL");
    family.await_other_than(0, pid);
    clients.retain_mut(is_there);
    assert!(clients.len() < 12, "its own clients are gone");
    filled(family, &mut clients, 12);
    is_full(family, "when it is full again");
}

#[test]
fn a_supervisor_and_signals_find_the_same_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(SOON)).expect("set");
    let told = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("something is told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let file = folder.path().join("cableway.toml");
    fs::write(&file, "[server]\nallowed_origins = [\"one.example\"]\n").expect("written");
    let mut server = Renewable::of(2, |start| {
        let start = start.and(&["--config", file.to_str().expect("text")]);
        start.env("NOTIFY_SOCKET", path.to_str().expect("text")).env("WATCHDOG_USEC", "600000")
    });
    assert!(told().contains("READY=1"));
    for times in 1..=3 {
        // Twice in a row is once; it may come at any moment.
        server.family.server.signal("USR2");
        server.family.server.signal("USR2");
        let until = Instant::now() + SOON;
        while server.renewals() < times {
            assert!(Instant::now() < until, "{}", server.family.log.text());
            thread::sleep(Duration::from_millis(10));
        }
        for _ in 0..3 {
            let mut said = told();
            while !said.contains("WATCHDOG=1") {
                assert!(!said.contains("MAINPID") && !said.contains("STOPPING"), "{said}");
                said = told();
            }
        }
        server.family.server.metrics_until("it answers", |metrics| metrics.get("process_up{process=\"1\"}") == 1);
    }
    fs::write(&file, "[server]\nallowed_origins = [\"two.example\"]\n").expect("written");
    server.family.server.signal("HUP");
    server.family.await_log("the configuration was read again: changed: --allowed-origins; needs a restart: nothing");
    // The end comes in the middle of it, or before, or behind.
    server.family.server.signal("USR2");
    server.family.server.signal("TERM");
    while !told().contains("STOPPING=1") {}
    assert_eq!(server.family.server.wait(SOON).code(), Some(0));
}
