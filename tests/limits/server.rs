//! Starts the real program and watches it from outside: its log, its metrics, its CPU time, its end.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{self, Response};

/// How long anything may take that should happen at once. Long, because test machines are busy; reached only when a
/// test fails.
pub const SOON: Duration = Duration::from_secs(20);

/// The sleep between two looks at something that tells nobody when it changes: metrics, readiness, the end of a
/// process. Every such loop ends at a deadline.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a server is started with.
#[derive(Default)]
pub struct Start {
    arguments: Vec<String>,
    env: Vec<(String, String)>,
    open_files: Option<(u32, u32)>,
    reader: Reader,
    redirect: String,
    passed: Option<OwnedFd>,
    program: Option<PathBuf>,
}

/// Who reads what the server says.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Reader {
    /// This test, to the end.
    #[default]
    Reads,
    /// This test, which closes the pipe after the boot.
    Leaves,
    /// This test, which keeps the pipe open after the boot and reads no more.
    Stalls,
}

impl Start {
    /// No app, public streams, no pings, broadcasts on the main port, any free port on 127.0.0.1, and `more`.
    pub fn with(more: &[&str]) -> Start {
        let usual = "--host 127.0.0.1 --port 0 --norpc --public --broadcast-key unused --ping-interval 0";
        Start::bare().and(&usual.split(' ').collect::<Vec<_>>()).and(more)
    }

    /// Nothing but a log that this harness can read.
    pub fn bare() -> Start {
        Start::default().and(&["--log-format", "json"])
    }

    pub fn and(mut self, more: &[&str]) -> Start {
        self.arguments.extend(more.iter().map(|argument| argument.to_string()));
        self
    }

    /// The command, in front of all options.
    pub fn first(mut self, command: &str) -> Start {
        self.arguments.insert(0, command.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Start {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Soft and hard limit of open files.
    pub fn open_files(mut self, soft: u32, hard: u32) -> Start {
        self.open_files = Some((soft, hard));
        self
    }

    /// Both of its streams are one pipe, which has such a reader.
    pub fn read_by(mut self, reader: Reader) -> Start {
        self.reader = reader;
        self.to("2>&1")
    }

    /// A redirection of its streams, as a shell has them.
    pub fn to(mut self, redirect: &str) -> Start {
        self.redirect = redirect.to_owned();
        self
    }

    /// Another file with the program.
    #[allow(dead_code, reason = "not every test that shares this harness does that")]
    pub fn program(mut self, program: &Path) -> Start {
        self.program = Some(program.to_owned());
        self
    }

    /// Passes it a descriptor as systemd passes a listening socket of the name `main`.
    #[allow(dead_code, reason = "not every test that shares this harness does that")]
    pub fn passed(mut self, fd: impl Into<OwnedFd>) -> Start {
        self.passed = Some(fd.into());
        self.to("3<&0 0</dev/null")
    }

    /// Starts it where nobody can read where it listens: on this port.
    pub fn start_unread(self, address: SocketAddr) -> Server {
        let mut server = self.and(&["--port", &address.port().to_string()]).spawn();
        server.address = address;
        let until = Instant::now() + SOON;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until && server.child.try_wait().expect("ours").is_none(), "it does not listen");
            thread::sleep(LOOK_EVERY);
        }
        server
    }

    /// Starts it and waits for the end of the boot log, which tells the address.
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        // The endpoint of metrics is the last line of the boot log.
        match server.log.wait_for(|line| line.starts_with("metrics: ")) {
            Some(_) => server.address = server.log.address(),
            None => panic!("the server did not boot:\n{}", server.log.text()),
        }
        server
    }

    /// Starts it, and expects that it ends by itself.
    pub fn expect_end(self) -> (ExitStatus, String) {
        let mut server = self.spawn();
        let status = server.wait(SOON);
        server.log.wait_for_end();
        (status, server.log.text())
    }

    pub fn spawn(self) -> Server {
        let limit = match self.open_files {
            Some((soft, hard)) => format!("ulimit -S -n {soft} && ulimit -H -n {hard} && "),
            None => String::new(),
        };
        let pass = match self.passed {
            Some(_) => "export LISTEN_FDS=1 LISTEN_FDNAMES=main LISTEN_PID=$$ && ",
            None => "",
        };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{limit}{pass}exec \"$@\" {}", self.redirect)).arg("sh");
        let program = self.program.unwrap_or_else(|| env!("CARGO_BIN_EXE_cableway").into());
        command.arg(program).args(&self.arguments);
        // Whoever runs the tests may have settings of their own. A server that is killed would leave its socket behind.
        command.env_clear().env("CABLEWAY_CONTROL_SOCKET", "none");
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path))).envs(self.env);
        command.stdin(self.passed.map_or_else(Stdio::null, Stdio::from));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let log = Log::default();
        log.read(child.stdout.take().expect("piped"), self.reader);
        log.read(child.stderr.take().expect("piped"), self.reader);
        Server { child, address: SocketAddr::from(([0; 4], 0)), log }
    }
}

/// A running server, killed when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    pub log: Log,
}

impl Server {
    /// Where it really listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn get(&self, path: &str) -> Response {
        client::http(self.address, "GET", path, "").unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Waits until it wants clients; just after booting it has not looked for the app yet.
    pub fn is_ready(&self) {
        let until = Instant::now() + SOON;
        loop {
            let response = self.get("/ready");
            if response.status == 200 {
                return;
            }
            assert!(Instant::now() < until, "never ready: {response:?}");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Publishes `data`, a JSON value, on a stream.
    pub fn broadcast(&self, stream: &str, data: &str) {
        let body = format!("{{\"stream\":\"{stream}\",\"data\":{}}}", client::json_string(data));
        let response = client::http(self.address, "POST", "/_broadcast", &body).expect("an answer");
        assert_eq!(response.status, 201, "{response:?}");
    }

    pub fn metrics(&self) -> Metrics {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        Metrics::parse(&response.body)
    }

    /// Looks at the metrics until they are as they should be, and gives them.
    pub fn metrics_until(&self, what: &str, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
        let until = Instant::now() + SOON;
        loop {
            // A server that has no room just now says 503 to everybody.
            let response = client::http(self.address, "GET", "/metrics", "").ok().filter(|answer| answer.status == 200);
            let metrics = response.map(|response| Metrics::parse(&response.body));
            if let Some(metrics) = metrics.as_ref().filter(|metrics| is_so(metrics)) {
                return Metrics(metrics.0.clone());
            }
            assert!(Instant::now() < until, "never: {what}; metrics {metrics:#?}");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until so many connections have ended for this cause.
    pub fn closed_for(&self, cause: &str, count: u64) {
        self.metrics_until(&format!("{count} closed for {cause}"), |metrics| metrics.closed(cause) == count);
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", self.pid())).status();
        assert!(sent.expect("sh runs").success());
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self, at_most: Duration) -> ExitStatus {
        let until = Instant::now() + at_most;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(Instant::now() < until, "the server did not end within {at_most:?}:\n{}", self.log.text());
            thread::sleep(LOOK_EVERY);
        }
    }

    /// CPU time of the process so far, in user space and in the kernel.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        // Behind the name in brackets, which may hold spaces: state is the first, utime and stime 12th and 13th.
        let numbers: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks: u64 = [numbers[11], numbers[12]].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        // USER_HZ, 100 on every Linux there is.
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the server has said so far, stdout and stderr.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<LogState>, Condvar)>);

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    open: usize,
}

impl Log {
    fn read(&self, pipe: impl Read + Send + 'static, reader: Reader) {
        let log = self.clone();
        log.change(|state| state.open += 1);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            for line in pipe.by_ref().lines().map_while(Result::ok) {
                let booted = message(&line).starts_with("metrics: ");
                log.change(|state| state.lines.push(line));
                match reader {
                    Reader::Leaves if booted => break,
                    Reader::Stalls if booted => loop {
                        thread::park();
                    },
                    _ => {}
                }
            }
            drop(pipe);
            log.change(|state| state.open -= 1);
        });
    }

    fn change(&self, change: impl FnOnce(&mut LogState)) {
        change(&mut self.0.0.lock().expect("never poisoned"));
        self.0.1.notify_all();
    }

    /// The first message for which `is_it` is true, waited for; `None` when the log ends without one.
    pub fn wait_for(&self, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let state = self.0.0.lock().expect("never poisoned");
        let found = |state: &LogState| state.lines.iter().map(|line| message(line)).find(|line| is_it(line));
        let waiting = |state: &mut LogState| state.open > 0 && found(state).is_none();
        let (state, _) = self.0.1.wait_timeout_while(state, SOON, waiting).expect("never poisoned");
        found(&state)
    }

    fn wait_for_end(&self) {
        let state = self.0.0.lock().expect("never poisoned");
        drop(self.0.1.wait_timeout_while(state, SOON, |state| state.open > 0));
    }

    /// Waits until all of its readers have ended.
    pub fn is_left(&self) {
        self.wait_for_end();
    }

    /// Everything so far, as it came.
    pub fn text(&self) -> String {
        self.0.0.lock().expect("never poisoned").lines.join("\n")
    }

    /// Levels and messages so far.
    pub fn messages(&self) -> Vec<(String, String)> {
        let state = self.0.0.lock().expect("never poisoned");
        state.lines.iter().map(|line| (field(line, "level").unwrap_or_default(), message(line))).collect()
    }

    /// A number that lines with such a message carry.
    pub fn numbers_of(&self, message_start: &str, name: &str) -> Vec<u64> {
        let state = self.0.0.lock().expect("never poisoned");
        let lines = state.lines.iter().filter(|line| message(line).starts_with(message_start));
        let json = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        json.map(|line| line[name].as_u64().expect("a number")).collect()
    }

    fn address(&self) -> SocketAddr {
        let line = self.wait_for(|line| line.starts_with("health: http://")).expect("health has a place");
        let place = line.trim_start_matches("health: http://").trim_end_matches("/health");
        place.parse().unwrap_or_else(|_| panic!("{line:?} holds no address"))
    }
}

/// The message of a log line; what is no log line is one as a whole.
fn message(line: &str) -> String {
    field(line, "message").unwrap_or_else(|| line.to_owned())
}

fn field(line: &str, name: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(line[name].as_str()?.to_owned())
}

/// A scrape: names with their labels, as they stand in the text, and values.
#[derive(Debug)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    pub fn parse(text: &str) -> Metrics {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Metrics(
            samples
                .map(|line| {
                    let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?} is no sample"));
                    (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line:?} has no number")))
                })
                .collect(),
        )
    }

    /// A value by its name without the prefix `cableway_`.
    pub fn get(&self, name: &str) -> u64 {
        *self.0.get(&format!("cableway_{name}")).unwrap_or_else(|| panic!("no metric {name}")) as u64
    }

    pub fn closed(&self, cause: &str) -> u64 {
        self.get(&format!("connections_closed_total{{cause=\"{cause}\"}}"))
    }

    /// Bytes kept for clients.
    pub fn kept(&self, kind: &str) -> u64 {
        self.get(&format!("buffers_bytes{{kind=\"{kind}\"}}"))
    }

    /// Connections that have ended, whatever for.
    pub fn closed_in_all(&self) -> u64 {
        let causes = self.0.iter().filter(|(name, _)| name.starts_with("cableway_connections_closed_total{"));
        causes.map(|(_, count)| *count as u64).sum()
    }
}
