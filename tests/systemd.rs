//! The real program under a stand-in for systemd: its notify socket, its watchdog, the sockets that it passes, its reload and
//! its stop. What systemd itself makes of that is tried in a guest that boots it.

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
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use client::{Client, Response, connect, response_head, upgrade_request};
use server::{SOON, Server, Start};

const CABLEWAY: &str = env!("CARGO_BIN_EXE_cableway");

/// The supervisor's end of a notify socket.
struct Systemd {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Systemd {
    fn new() -> Systemd {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("bound");
        Systemd { folder, socket }
    }

    fn start(&self, start: Start) -> Start {
        start.env("NOTIFY_SOCKET", self.folder.path().join("notify").to_str().expect("text"))
    }

    /// The next datagram, as lines; `None` when none comes in this time.
    fn next(&self, within: Duration) -> Option<Vec<String>> {
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1)))).expect("set");
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for a datagram with such a line, and gives all of it. Everything before is passed over.
    fn wait_for(&self, what: &str, is_it: impl Fn(&str) -> bool) -> Vec<String> {
        let until = Instant::now() + SOON;
        let mut before = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(lines) = self.next(left) else { panic!("never {what}; told {before:?}") };
            if lines.iter().any(|line| is_it(line)) {
                return lines;
            }
            before.push(lines);
        }
    }

    fn wait_for_line(&self, line: &str) -> Vec<String> {
        self.wait_for(line, |told| told == line)
    }

    /// Everything that is told within this time.
    fn all_within(&self, time: Duration) -> Vec<String> {
        let until = Instant::now() + time;
        let mut all = Vec::new();
        while let Some(lines) = self.next(until.saturating_duration_since(Instant::now())) {
            all.extend(lines);
            if Instant::now() >= until {
                break;
            }
        }
        all
    }

    /// A configuration file that can be written again.
    fn file(&self, text: &str) -> PathBuf {
        let path = self.folder.path().join("cableway.toml");
        fs::write(&path, text).expect("written");
        path
    }
}

/// The answer to an upgrade from a page of this site.
fn upgrade_from(address: SocketAddr, origin: &str) -> Result<Client, Response> {
    let mut socket = connect(address);
    let request = upgrade_request("/cable").replace("Host: test", &format!("Host: test\r\nOrigin: https://{origin}"));
    socket.write_all(request.as_bytes()).expect("sent");
    let response = response_head(&mut socket).expect("an answer");
    if response.status != 101 {
        return Err(response);
    }
    Ok(Client::on(socket, response.rest))
}

/// The status that a broadcast with this key is answered with.
fn broadcast(address: SocketAddr, key: &str, data: &str) -> u16 {
    let mut socket = connect(address);
    let body = format!("{{\"stream\":\"news\",\"data\":{}}}", client::json_string(data));
    let head =
        format!("POST /_broadcast HTTP/1.0\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all(format!("{head}{body}").as_bytes()).expect("sent");
    client::whole_response(&mut socket).expect("an answer").status
}

#[test]
fn it_is_ready_when_it_serves_and_says_how_many_are_there_and_that_it_stops() {
    let systemd = Systemd::new();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let start = Start::with(&["--acceptors", "2", "--port", &port.port().to_string()]);
    // The log is not waited for: what systemd hears must be true by itself.
    let mut server = systemd.start(start).env("WATCHDOG_USEC", "600000").spawn();
    let told = systemd.wait_for_line("READY=1");
    let mut clients: Vec<Client> = (0..5).map(|_| Client::following(port, "news")).collect();
    assert!(told.contains(&"WATCHDOG=1".to_owned()), "{told:?}");
    assert!(told.iter().any(|line| line.starts_with("STATUS=connections: 0 of at most ")), "{told:?}");
    systemd.wait_for("5 connections", |line| line.starts_with("STATUS=connections: 5 of at most "));
    // As long as everything turns, at least one sign of life in the time that the watchdog waits.
    for _ in 0..3 {
        systemd.wait_for_line("WATCHDOG=1");
    }
    server.signal("TERM");
    let told = systemd.wait_for_line("STOPPING=1");
    assert!(told.contains(&"STATUS=draining; connections left: 5".to_owned()), "{told:?}");
    for client in &mut clients {
        assert_eq!(client.text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
    }
    drop(clients);
    assert_eq!(server.wait(SOON).code(), Some(0));
}

#[test]
fn a_long_drain_asks_for_time_and_its_watchdog_is_fed() {
    let systemd = Systemd::new();
    let start = Start::with(&["--shutdown-delay", "3s", "--shutdown-timeout", "9s"]);
    let mut server = systemd.start(start).env("WATCHDOG_USEC", "600000").start();
    systemd.wait_for_line("READY=1");
    server.signal("TERM");
    systemd.wait_for_line("STOPPING=1");
    for _ in 0..3 {
        let told = systemd.wait_for("more time", |line| line.starts_with("EXTEND_TIMEOUT_USEC="));
        assert!(told.contains(&"WATCHDOG=1".to_owned()) && !told.contains(&"READY=1".to_owned()), "{told:?}");
    }
    server.signal("KILL");
    server.wait(SOON);
}

#[test]
fn a_start_that_fails_is_never_ready() {
    let systemd = Systemd::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (status, log) = systemd.start(Start::with(&["--port", &port])).expect_end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(systemd.all_within(Duration::ZERO), [""; 0]);
}

#[test]
fn an_upgrade_names_the_new_process_and_the_watchdog_goes_along() {
    // As systemd is, for what nobody is the parent of.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("set");
    let systemd = Systemd::new();
    let mut server = systemd.start(Start::with(&["--acceptors", "2"])).env("WATCHDOG_USEC", "600000").start();
    systemd.wait_for_line("READY=1");
    let mut client = Client::following(server.address(), "news");
    server.signal("USR2");
    systemd.wait_for_line("RELOADING=1");
    let told = systemd.wait_for("the new process", |line| line.starts_with("MAINPID="));
    assert!(told.contains(&"READY=1".to_owned()), "{told:?}");
    let pid = told.iter().find_map(|line| line.strip_prefix("MAINPID=")).expect("there");
    assert_ne!(pid, server.pid().to_string());
    // It would call another one's child alien, not wait for its end, and kill it as soon as it tells it to stop.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.contains(&format!("\nPPid:\t{}\n", std::process::id())), "{status}");
    let _end = Killed(pid.to_owned());
    assert_eq!(server.wait(SOON).code(), Some(0));
    drop(systemd.all_within(Duration::ZERO));
    // From the new one alone, and with all that is said of it.
    systemd.wait_for("one connection", |line| line.starts_with("STATUS=connections: 1 of at most "));
    for _ in 0..3 {
        let told = systemd.wait_for_line("WATCHDOG=1");
        assert!(!told.iter().any(|line| line.starts_with("MAINPID=")), "{told:?}");
    }
    assert_eq!(broadcast(server.address(), "unused", "1"), 201);
    assert!(client.text().ends_with("\"message\":1}"));
}

/// A process that is no child of this one, killed when this is dropped.
struct Killed(String);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0]).status();
    }
}

#[test]
fn an_upgrade_that_fails_is_a_reload_that_ends() {
    let systemd = Systemd::new();
    // The new process finds the mistake in the file.
    let path = systemd.file("[app]\nping_interval = 0\n");
    let server = systemd.start(Start::with(&["--config", path.to_str().expect("text")])).start();
    systemd.wait_for_line("READY=1");
    systemd.file("[app]\nping_intervall = 0\n");
    server.signal("USR2");
    systemd.wait_for_line("RELOADING=1");
    let told = systemd.wait_for_line("READY=1");
    assert!(!told.iter().any(|line| line.starts_with("MAINPID=")), "{told:?}");
    Client::welcomed(server.address());
}

#[test]
fn a_supervisor_that_is_gone_or_deaf_is_no_reason_to_end() {
    let gone = Start::with(&[]).env("NOTIFY_SOCKET", "/nonexistent/notify").env("WATCHDOG_USEC", "30000").start();
    // A socket that nobody reads is full after some datagrams.
    let systemd = Systemd::new();
    let deaf = systemd.start(Start::with(&[])).env("WATCHDOG_USEC", "30000").start();
    let odd = Start::with(&[]).env("NOTIFY_SOCKET", "vsock:2:1234").start();
    assert!(odd.log.wait_for(|line| line.starts_with("NOTIFY_SOCKET cannot be used")).is_some());
    // 10 ms apart; the kernel lets 10 wait (net.unix.max_dgram_qlen).
    std::thread::sleep(Duration::from_millis(500));
    for server in [&gone, &deaf, &odd] {
        Client::welcomed(server.address());
    }
}

#[test]
fn a_reload_changes_origins_and_keys_and_closes_nobody() {
    let systemd = Systemd::new();
    let file = |origin: &str, key: &str, more: &str| {
        systemd.file(&format!("broadcast_key = \"{key}\"\n{more}\n[server]\nallowed_origins = [\"{origin}\"]\n"))
    };
    let path = file("one.example", "first", "");
    let arguments =
        "--host 127.0.0.1 --port 0 --norpc --noauth --public-streams --ping-interval 0 --acceptors 2 --config";
    let start = Start::bare().and(&arguments.split(' ').collect::<Vec<_>>()).and(&[path.to_str().expect("text")]);
    let server = systemd.start(start).start();
    let address = server.address();
    systemd.wait_for_line("READY=1");
    // Enough for both shards to have some.
    let mut clients: Vec<Client> = (0..12)
        .map(|_| {
            let mut client = upgrade_from(address, "one.example").expect("allowed");
            assert!(client.text().starts_with("{\"type\":\"welcome\""));
            client.follow("news");
            client
        })
        .collect();
    assert_eq!(upgrade_from(address, "two.example").err().expect("refused").status, 403);

    file("two.example", "second", "rpc.host = \"other:50051\"\n");
    server.signal("HUP");
    let told = systemd.wait_for_line("RELOADING=1");
    let usec = told.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("the time");
    assert!(usec.parse::<u64>().expect("a number") > 0);
    systemd.wait_for_line("READY=1");
    let line = server.log.wait_for(|line| line.starts_with("the configuration was read again")).expect("a line");
    assert_eq!(
        line,
        "the configuration was read again: changed: --allowed-origins, --broadcast-key; needs a restart: --rpc-host"
    );
    // Shards take it over in a turn of their own, so the last answer by the old settings may still be on its way.
    let until = Instant::now() + SOON;
    while upgrade_from(address, "one.example").is_ok() {
        assert!(Instant::now() < until, "the origin is still allowed");
    }
    for _ in 0..12 {
        upgrade_from(address, "two.example").expect("allowed now");
    }
    assert_eq!(broadcast(address, "first", "1"), 401);
    assert_eq!(broadcast(address, "second", "2"), 201);
    for client in &mut clients {
        assert!(client.text().ends_with("\"message\":2}"), "nobody was closed, and nothing came in between");
    }

    // A mistake changes nothing, and neither does a file that cannot be read.
    for text in ["broadcast_key = \"third\"\n[server]\nallowed_origin = [\"three.example\"]\n", "[server\n"] {
        systemd.file(text);
        server.signal("HUP");
        systemd.wait_for_line("RELOADING=1");
        systemd.wait_for_line("READY=1");
        upgrade_from(address, "two.example").expect("still allowed");
        assert_eq!(broadcast(address, "third", "3"), 401);
    }
    assert!(
        server
            .log
            .wait_for(|line| line.contains("refused, nothing has changed: ") && line.contains("server.allowed_origins"))
            .is_some(),
        "{}",
        server.log.text()
    );
    assert_eq!(broadcast(address, "second", "4"), 201);
    for client in &mut clients {
        assert!(client.text().ends_with("\"message\":4}"));
    }
}

#[test]
fn a_reload_changes_limits_and_the_level_of_the_log() {
    let systemd = Systemd::new();
    let file = |max_conn: u32, size: &str, level: &str| {
        systemd.file(&format!(
            "[server]\nmax_conn = {max_conn}\n[ws]\nmax_message_size = \"{size}\"\n[logging]\nlevel = \"{level}\"\n"
        ))
    };
    let path = file(1, "1KiB", "info");
    let server = Start::with(&["--config", path.to_str().expect("text")]).start();
    let mut client = Client::following(server.address(), "news");
    assert_eq!(client::try_upgrade(server.address(), "/cable").err().expect("full").status, 503);
    file(2, "128KiB", "debug");
    server.signal("HUP");
    let line = server.log.wait_for(|line| line.starts_with("the configuration was read again")).expect("a line");
    assert!(line.contains("changed: --max-conn, --max-message-size, --log-level; needs a restart: nothing"), "{line}");
    let mut second = Client::welcomed(server.address());
    assert_eq!(server.metrics().get("websockets_max"), 2);
    // Longer than it might be before; on both, so that it is also so for one that was there.
    let identifier = client::json_string(&client::identifier("news"));
    let whisper = format!("{{\"command\":\"whisper\",\"identifier\":{identifier},\"data\":\"{}\"}}", "x".repeat(2000));
    second.follow("news");
    client.send(&whisper);
    assert!(second.text().contains("xxx"));
    second.send(&whisper);
    assert!(client.text().contains("xxx"));
    assert!(server.log.messages().iter().any(|(level, _)| level == "DEBUG"), "{}", server.log.text());
}

#[test]
fn a_reload_changes_the_key_of_the_admin_port_and_turns_none_off() {
    let systemd = Systemd::new();
    let path = systemd.file("[admin]\nkey = \"first\"\nport = 0\n");
    let server = Start::with(&["--config", path.to_str().expect("text")]).start();
    let line = server.log.wait_for(|line| line.starts_with("admin: http://")).expect("it is on");
    let admin: SocketAddr =
        line.trim_start_matches("admin: http://").split('/').next().unwrap().parse().expect("a place");
    let status = |key: &str| {
        let mut socket = connect(admin);
        let request = format!("GET /debug/closes HTTP/1.0\r\nAuthorization: Bearer {key}\r\n\r\n");
        socket.write_all(request.as_bytes()).expect("sent");
        client::whole_response(&mut socket).expect("an answer").status
    };
    let reload = |text: &str, end: &str| {
        systemd.file(text);
        server.signal("HUP");
        assert!(server.log.wait_for(|line| line.ends_with(end)).is_some(), "{}", server.log.text());
    };
    assert_eq!((status("first"), status("second")), (200, 401));
    reload("[admin]\nkey = \"second\"\nport = 0\n", "changed: --admin-key; needs a restart: nothing");
    assert_eq!((status("first"), status("second")), (401, 200));
    // An open port must not come about by a line that was lost, nor tokens be asked for of those who have none.
    let text = "[admin]\nport = 0\n[jwt]\nsecret = \"new\"\n[server]\nmax_conn = 9\n";
    reload(text, "changed: --max-conn; needs a restart: --jwt-secret, --admin-key");
    assert_eq!((status("second"), status("")), (200, 401));
}

/// An upgrade that somebody has asked for and that nobody has answered yet.
fn waiting_client(address: SocketAddr) -> TcpStream {
    let mut socket = connect(address);
    socket.write_all(upgrade_request("/cable").as_bytes()).expect("sent");
    socket
}

fn welcomed(mut socket: TcpStream) -> Client {
    let response = response_head(&mut socket).expect("an answer");
    assert_eq!(response.status, 101, "{response:?}");
    let mut client = Client::on(socket, response.rest);
    assert!(client.text().starts_with("{\"type\":\"welcome\""));
    client
}

#[test]
fn a_passed_socket_serves_those_who_came_before_and_spreads_them_over_the_shards() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let start = || Start::with(&["--acceptors", "3", "--backlog", "77"]).passed(listener.try_clone().expect("copied"));
    let early = waiting_client(address);
    let mut server = start().start();
    assert_eq!(server.address(), address);
    let _early = welcomed(early);
    let _clients: Vec<Client> = (0..11).map(|_| Client::welcomed(address)).collect();
    let metrics = server.metrics();
    let of_shards: Vec<u64> =
        (0..3).map(|shard| metrics.get(&format!("shard_connections_num{{shard=\"{shard}\"}}"))).collect();
    // The request for the metrics is a connection, too, and was dealt to one of them.
    assert!(of_shards.iter().all(|of_shard| (4..=5).contains(of_shard)), "{of_shards:?}");
    assert_eq!(metrics.get("accept_queue_max{listener=\"0\"}"), 77, "the queue is as long as was asked for");
    // Those who come while it is away wait for the next one.
    server.signal("TERM");
    server.log.wait_for(|line| line == "shutting down").expect("it says so");
    drop((_early, _clients));
    server.wait(SOON);
    let between = waiting_client(address);
    let _server = start().start();
    welcomed(between);
}

#[test]
fn what_is_passed_and_is_no_listener_ends_the_start_with_the_way_out() {
    for (fd, why) in [
        (fs::File::open("/dev/null").expect("there").into(), "it is no socket"),
        (std::net::UdpSocket::bind("127.0.0.1:0").expect("a port").into(), "write ListenStream= in the socket unit"),
    ] {
        let fd: std::os::fd::OwnedFd = fd;
        let (status, log) = Start::with(&[]).passed(fd).expect_end();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("(LISTEN_FDS): descriptor 3 (main): ") && log.contains(why), "{log}");
    }
}

fn healthcheck(arguments: &[&str], env: &[(&str, &str)]) -> (ExitStatus, String) {
    let mut command = Command::new(CABLEWAY);
    command.arg("healthcheck").args(arguments).env_clear().envs(env.iter().copied());
    let output = command.output().expect("it starts");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_healthcheck_finds_the_server_by_its_configuration_and_notices_one_that_is_stuck() {
    let server = Start::with(&["--health-path", "/health"]).start();
    let port = server.address().port().to_string();
    for (arguments, env) in [
        (&["--port", &port][..], &[][..]),
        (&[], &[("CABLEWAY_PORT", port.as_str()), ("CABLEWAY_HOST", "0.0.0.0")]),
        (&["--url", &format!("http://127.0.0.1:{port}/health")], &[]),
    ] {
        let (status, said) = healthcheck(arguments, env);
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{arguments:?}");
    }
    let (status, said) = healthcheck(&["--url", &format!("127.0.0.1:{port}/nothing")], &[]);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("/nothing answers 404"), "{said}");
    server.signal("STOP");
    let (status, said) = healthcheck(&["--port", &port], &[]);
    server.signal("CONT");
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("does not answer"), "{said}");
}

/// A program that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs systemd-socket-activate (Debian package systemd)"]
fn the_first_client_starts_the_server_and_is_served() {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let mut activate = Command::new("systemd-socket-activate");
    activate.args([&format!("--listen={address}"), "--fdname=main", CABLEWAY, "--norpc", "--public"]);
    activate.args(["--broadcast-key", "unused", "--acceptors", "2"]);
    let mut running = Running(activate.stdout(Stdio::null()).spawn().expect("systemd-socket-activate starts"));
    let until = Instant::now() + SOON;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until && running.0.try_wait().expect("ours").is_none(), "nobody listens");
        std::thread::yield_now();
    }
    let mut client = welcomed(waiting_client(address));
    client.follow("news");
    let comm = fs::read_to_string(format!("/proc/{}/comm", running.0.id())).expect("it runs");
    assert_eq!(comm.trim(), "cableway", "it has taken the place of its starter");
}

/// One thread of a process, stopped until this is dropped. ptrace(2) is the only way to stop one thread, and perl, which is on
/// every Debian, the way to it without unsafe code.
struct StoppedThread(Child);

impl StoppedThread {
    fn new(server: &Server, name: &str) -> StoppedThread {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs").flatten();
        let is_it =
            |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name);
        let thread = tasks.into_iter().find(is_it).unwrap_or_else(|| panic!("no thread {name}")).file_name();
        let ptrace = if cfg!(target_arch = "aarch64") { "117" } else { "101" };
        // PTRACE_SEIZE, PTRACE_INTERRUPT, and the wait for its stop (__WALL).
        let script = "$| = 1; my ($call, $thread) = map { $_ + 0 } @ARGV;\
                      syscall($call, 0x4206, $thread, 0, 0) == 0 or die \"ptrace: $!\";\
                      syscall($call, 0x4207, $thread, 0, 0) == 0 or die \"ptrace: $!\";\
                      waitpid($thread, 0x40000000) == $thread or die \"waitpid: $!\";\
                      print \"stopped\\n\"; <STDIN>;";
        let mut perl = Command::new("perl");
        perl.args(["-e", script, ptrace]).arg(thread).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut perl = perl.spawn().expect("perl starts");
        let mut line = String::new();
        let output = perl.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("read");
        assert_eq!(line, "stopped\n", "it cannot be traced: be root, or set kernel.yama.ptrace_scope=0");
        StoppedThread(perl)
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // Its tracer's end lets a thread go on.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "stops single threads by ptrace: needs perl, and root where yama is strict"]
fn a_watchdog_is_not_fed_while_a_thread_that_clients_need_is_stuck() {
    const WATCHDOG: Duration = Duration::from_secs(1);
    let systemd = Systemd::new();
    let usec = WATCHDOG.as_micros().to_string();
    let server = systemd.start(Start::with(&["--acceptors", "2"])).env("WATCHDOG_USEC", &usec).start();
    systemd.wait_for_line("READY=1");
    let _client = Client::welcomed(server.address());
    for (thread, named) in [
        ("shard-0", Some("shard 0")),
        ("shard-1", Some("shard 1")),
        ("calls", Some("the thread that calls the app")),
        // This one feeds, so nobody is left to say so.
        ("http", None),
    ] {
        systemd.wait_for_line("WATCHDOG=1");
        let stopped = StoppedThread::new(&server, thread);
        match named {
            Some(named) => {
                systemd.wait_for(named, |line| line.ends_with(&format!("{named} does not turn")));
            }
            // What it had said before.
            None => drop(systemd.all_within(Duration::ZERO)),
        }
        // The time in which a supervisor ends such a process.
        let told = systemd.all_within(2 * WATCHDOG);
        assert!(!told.contains(&"WATCHDOG=1".to_owned()), "{thread}: {told:?}");
        drop(stopped);
    }
    systemd.wait_for_line("WATCHDOG=1");
    Client::welcomed(server.address());
}
