//! A server of several processes, and what can be known of each of them.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{self, Response, connect};
use crate::server::{SOON, Server, Start};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A server of several processes.
pub struct Family {
    pub server: Server,
    processes: u16,
    admin: SocketAddr,
}

impl Deref for Family {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Family {
    /// What such a server is started with; see [`Start::with`].
    pub fn arguments(processes: u16, more: &[&str]) -> Start {
        Start::with(&["--processes", &processes.to_string(), "--admin-port", "0"]).and(more)
    }

    pub fn start(processes: u16, more: &[&str]) -> Family {
        Family::of(Family::arguments(processes, more).start(), processes)
    }

    /// One that asks the app about clients.
    pub fn start_plain(processes: u16, more: &[&str]) -> Family {
        let usual = "--host 127.0.0.1 --port 0 --ping-interval 0 --broadcast-key unused --admin-port 0 --processes";
        let start = Start::bare().and(&usual.split(' ').collect::<Vec<_>>()).and(&[&processes.to_string()]).and(more);
        Family::of(start.start(), processes)
    }

    pub fn of(server: Server, processes: u16) -> Family {
        let line = server.log.wait_for(|line| line.starts_with("admin: http://")).expect("it is on");
        let admin = line.trim_start_matches("admin: http://").split('/').next().expect("a place");
        Family { admin: admin.parse().expect("an address"), server, processes }
    }

    /// The processes by number; of one that is just being started again there is none.
    fn running(&self) -> Vec<Option<u32>> {
        let parent = self.server.pid();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("the kernel tells");
        let mut running = vec![None; self.processes.into()];
        for pid in children.split_whitespace().map(|pid| pid.parse::<u32>().expect("a number")) {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut variables = environment.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
            let child = variables.find_map(|variable| variable.strip_prefix("CABLEWAY_CHILD="));
            let number = child.and_then(|child| child.split('/').next()?.parse::<usize>().ok());
            if let Some(slot) = number.and_then(|number| running.get_mut(number)) {
                *slot = Some(pid);
            }
        }
        running
    }

    pub fn pids(&self) -> Vec<u32> {
        (0..self.processes).map(|process| self.pid(process)).collect()
    }

    /// Waits until there is such a process.
    pub fn pid(&self, process: u16) -> u32 {
        self.await_other_than(process, 0)
    }

    /// Waits until there is one, and until it serves.
    pub fn await_other(&self, process: u16) -> u32 {
        let pid = self.pid(process);
        let up = format!("process_up{{process=\"{process}\"}}");
        self.server.metrics_until("it serves", |metrics| metrics.get(&up) == 1);
        pid
    }

    /// Waits until this is another process than it was.
    pub fn await_other_than(&self, process: u16, before: u32) -> u32 {
        let until = Instant::now() + SOON;
        loop {
            if let Some(pid) = self.running()[usize::from(process)].filter(|pid| *pid != before) {
                return pid;
            }
            assert!(Instant::now() < until, "process {process} is not there:\n{}", self.server.log.text());
            thread::sleep(LOOK_EVERY);
        }
    }

    /// WebSockets of each process.
    pub fn clients_of_each(&self) -> Vec<u64> {
        let metrics = self.server.metrics();
        let of = |process| metrics.get(&format!("shard_connections_num{{shard=\"0\",process=\"{process}\"}}"));
        (0..self.processes).map(of).collect()
    }

    pub fn await_log(&self, start: &str) {
        self.await_log_line(|line| line.starts_with(start));
    }

    pub fn await_log_line(&self, is_it: impl Fn(&str) -> bool) {
        assert!(self.server.log.wait_for(is_it).is_some(), "{}", self.server.log.text());
    }

    /// Asks a process that answers; one that is stopped takes connections as well. Each question takes the time of those that
    /// say nothing, so there is only one.
    pub fn get_by_any(&self, path: &str) -> Response {
        let (answered, next) = mpsc::channel();
        for _ in 0..8 {
            let mut socket = connect(self.server.address());
            socket.write_all(b"HEAD /nothing HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
            let answered = answered.clone();
            thread::spawn(move || client::response_head(&mut socket).map(|_| answered.send(socket)));
        }
        let mut socket = next.recv_timeout(SOON).expect("one answers");
        let head = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        socket.write_all(head.as_bytes()).expect("sent");
        client::whole_response(&mut socket).expect("an answer")
    }
}

/// What the admin port answers.
pub fn debug(family: &Family, path: &str) -> Value {
    let mut socket = connect(family.admin);
    let head = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    socket.write_all(head.as_bytes()).expect("sent");
    let answer = client::whole_response(&mut socket).expect("an answer");
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {pid}")).status();
    assert!(sent.expect("sh runs").success(), "{pid} is not there");
    // One of its threads hears of it first, and the others run until that has had its turn.
    let until = Instant::now() + SOON;
    while signal == "STOP" && !is_stopped(pid) {
        assert!(Instant::now() < until, "{pid} runs on");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether all threads of a process are stopped.
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // Behind the name in brackets, which may hold anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Whether a process has ended; one that nobody has waited for has, too.
pub fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}
