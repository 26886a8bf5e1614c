//! A server of several processes is upgraded, and none of its clients notices.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::*;

const CABLEWAY: &str = env!("CARGO_BIN_EXE_cableway");

/// A server, and what it is asked at.
struct Upgradable {
    family: Family,
    folder: tempfile::TempDir,
}

impl Upgradable {
    fn start(processes: u16, more: &[&str]) -> Upgradable {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
        let start = Family::arguments(processes, more).and(&["--control-socket", &path("control.sock")]);
        let start = start.env("CABLEWAY_TEST_FAULT_FILE", &path("faults"));
        Upgradable { family: Family::of(start.start(), processes), folder }
    }

    fn fault(&self, fault: &str) {
        fs::write(self.folder.path().join("faults"), fault).expect("written");
    }

    fn ask(&self, more: &[&str]) -> Said {
        Said::of(ask(&self.folder.path().join("control.sock"), more))
    }

    /// All processes are others, and the parent is the same.
    fn upgrade(&self) -> Said {
        let before = self.family.pids();
        let said = self.ask(&[]);
        assert_eq!(said.status, Some(0), "{said:?}\n{}", self.family.log.text());
        for (process, before) in (0u16..).zip(before) {
            assert_ne!(self.family.await_other_than(process, before), before);
        }
        said
    }
}

/// When it is dropped something is over.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What `cableway upgrade` came to.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    told: String,
    complained: String,
}

impl Said {
    fn of(output: Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { status: output.status.code(), told: text(&output.stdout), complained: text(&output.stderr) }
    }
}

fn ask(control: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(CABLEWAY);
    command.args(["upgrade", "--control-socket"]).arg(control).args(more).env_clear().output().expect("it runs")
}

fn all_get(family: &Family, clients: &mut [Client], data: &str) {
    family.broadcast("news", data);
    clients.iter_mut().for_each(|client| assert_eq!(next(client, 1), [data]));
}

#[test]
fn clients_of_all_processes_go_along_while_they_are_published_to() {
    let server = Upgradable::start(3, &["--broker", "memory", "--acceptors", "4"]);
    let family = &server.family;
    let mut clients = clients_everywhere(family, 30);
    family.server.metrics_until("those that were too many have left", |metrics| metrics.get("websockets_num") == 30);
    let accepted = family.metrics().get("connections_accepted_total");
    let parent = family.server.pid();
    let check = server.ask(&["--check"]);
    assert_eq!(check.status, Some(0), "{check:?}\n{}", family.log.text());
    assert!(check.told.contains("understands"), "{check:?}");

    let upgraded = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut sent = 0;
            while !upgraded.load(SeqCst) {
                family.broadcast("news", &sent.to_string());
                sent += 1;
            }
            sent
        });
        // Also when one of these fails, so that the sender ends.
        let until = Until(&upgraded);
        for _ in 0..3 {
            let said = server.upgrade();
            assert!(said.told.contains("cableway 0.1.0 in 3 processes has 3"), "those of the sender, too: {said:?}");
        }
        drop(until);
        publishing.join().expect("it published")
    });
    assert!(sent > 3, "{sent}");
    for client in &mut clients {
        let expected: Vec<String> = (0..sent).map(|number: u32| number.to_string()).collect();
        assert_eq!(next(client, sent as usize), expected, "each once and in order");
    }
    all_get(family, &mut clients, "-1");
    let mut more = clients_everywhere(family, 6);
    all_get(family, &mut more, "-2");
    let metrics =
        family.server.metrics_until("the last process is asked", |metrics| metrics.get("websockets_num") == 36);
    assert_eq!(family.server.pid(), parent);
    assert!(metrics.get("connections_accepted_total") >= accepted, "what was counted stays counted");
    assert_eq!(metrics.get("upgrades_total{result=\"ok\"}"), 9, "three of each");
    assert_eq!(metrics.get("process_restarts_total{process=\"1\"}"), 0);

    // They are children as any others: one that dies is started again, and all end in good order.
    let pid = family.pid(1);
    family::signal(pid, "KILL");
    family.await_log(&format!("process 1 (pid {pid}) has ended (signal: 9 (SIGKILL))"));
    family.await_other_than(1, pid);
    let pids = family.pids();
    let mut server = server;
    server.family.server.signal("TERM");
    drop((clients, more));
    assert_eq!(server.family.server.wait(SOON).code(), Some(0));
    pids.iter().for_each(|pid| assert!(family::is_gone(*pid), "{pid} is left"));
}

#[test]
fn a_new_process_that_dies_at_any_message_costs_nothing_before_it_has_everything() {
    let server = Upgradable::start(2, &[]);
    let family = &server.family;
    let mut clients = clients_everywhere(family, 12);
    let pids = family.pids();
    let mut survived = 0;
    // Listeners, offer, two pieces of what is kept and their end, state, connections; hello, lanes, prepared, kept, have.
    for (moment, last) in [("receive", 7), ("send", 5)] {
        for number in 1.. {
            server.fault(&format!("new {moment} {number} die"));
            let said = server.ask(&[]);
            survived += 1;
            assert_eq!(said.status, Some(1), "{moment} {number}: {said:?}");
            assert!(said.complained.contains("process 0: "), "{moment} {number}: {said:?}");
            assert_eq!(family.pids(), pids, "{moment} {number}");
            all_get(family, &mut clients, &format!("{number}"));
            // With the next one it has everything, and what becomes of it is known to it alone.
            if number == last {
                break;
            }
        }
    }
    assert_eq!(survived, 12);
    server.fault("");
    server.upgrade();
    all_get(family, &mut clients, "100");
}
