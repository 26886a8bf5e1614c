//! Several processes as one server: `cableway serve --processes N`, the real program, looked at from outside.
//!
//! The kernel chooses the process for a connection, so tests open connections until each process has some, and ask the server
//! which has which.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests wait for processes of their own, which have their own clock"
)]
#![allow(dead_code, reason = "the harness is that of `limits`, which uses more of it")]

#[path = "limits/client.rs"]
mod client;
#[path = "cluster/extended.rs"]
mod extended;
#[path = "limits/server.rs"]
mod server;

#[path = "processes/app.rs"]
mod app;
#[path = "processes/family.rs"]
mod family;
#[path = "processes/relay.rs"]
mod relay;
#[path = "processes/renew.rs"]
mod renew;
#[path = "processes/upgrade.rs"]
mod upgrade;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};
use std::{fs, thread};

use client::{Client, connect, response_head};
use family::{Family, debug};
use server::{SOON, Start};

/// A server of so many processes, and so many clients on a stream, some of them on each process.
fn with_clients(processes: u16, more: &[&str], count: usize) -> (Family, Vec<Client>) {
    let family = Family::start(processes, more);
    let clients = clients_everywhere(&family, count);
    (family, clients)
}

fn clients_everywhere(family: &Family, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::new();
    let until = Instant::now() + SOON;
    loop {
        while clients.len() < count {
            clients.push(Client::following(family.address(), "news"));
        }
        if family.clients_of_each().iter().all(|clients| *clients > 0) {
            return clients;
        }
        assert!(Instant::now() < until, "{:?}", family.clients_of_each());
        clients.pop().expect("there is one").leave();
    }
}

/// How many clients each process has, when those that were too many have left, and whoever asked.
fn until_there_are(family: &Family, count: u64) -> Vec<u64> {
    let until = Instant::now() + SOON;
    loop {
        let of_each = family.clients_of_each();
        if of_each.iter().sum::<u64>() == count {
            return of_each;
        }
        assert!(Instant::now() < until, "{of_each:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The messages that a client gets next.
fn next(client: &mut Client, count: usize) -> Vec<String> {
    let message = |text: String| serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["message"].to_string();
    (0..count).map(|_| message(client.text())).collect()
}

#[test]
fn every_client_of_every_process_gets_each_publication_once_and_all_in_one_order() {
    for broker in ["none", "memory"] {
        let (family, mut clients) = with_clients(3, &["--broker", broker], 24);
        // Three senders at once, each of whose requests lands on any process.
        thread::scope(|scope| {
            for sender in 0..3 {
                let family = &family;
                scope.spawn(move || {
                    (0..30).for_each(|number| family.broadcast("news", &format!("\"{sender}:{number}\"")));
                });
            }
        });
        let first = next(&mut clients[0], 90);
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 90, "each once");
        for sender in 0..3 {
            let of_sender: Vec<_> =
                first.iter().filter(|message| message.starts_with(&format!("\"{sender}:"))).collect();
            let sent: Vec<_> = (0..30).map(|number| format!("\"{sender}:{number}\"")).collect();
            assert!(of_sender.iter().copied().eq(sent.iter()), "{of_sender:?}");
        }
        for client in &mut clients[1..] {
            assert_eq!(next(client, 90), first, "one order for all");
        }
        let metrics = family.metrics();
        assert_eq!(metrics.get("broadcast_msg_total"), 90, "a publication is one, however many processes pass it on");
    }
}

#[test]
fn a_process_that_is_killed_loses_its_own_clients_and_the_others_notice_nothing() {
    let (family, mut clients) = with_clients(3, &["--broker", "memory"], 24);
    let of_each = until_there_are(&family, 24);
    let lost = of_each[1];
    let accepted = family.metrics().get("connections_accepted_total");
    family.broadcast("news", "1");
    clients.iter_mut().for_each(|client| assert_eq!(next(client, 1), ["1"]));
    let pid = family.pid(1);
    family::signal(pid, "KILL");
    family.await_log(&format!("process 1 (pid {pid}) has ended (signal: 9 (SIGKILL))"));
    family.broadcast("news", "2");
    family.server.metrics_until("process 1 serves again", |metrics| metrics.get("process_up{process=\"1\"}") == 1);
    family.broadcast("news", "3");
    let mut still = Vec::new();
    for mut client in clients.drain(..) {
        match client.0.read() {
            Ok(message) => {
                assert!(message.to_string().contains("\"message\":2,"), "{message}");
                assert_eq!(next(&mut client, 1), ["3"]);
                still.push(client);
            }
            Err(_) => client.leave(),
        }
    }
    assert_eq!(still.len() as u64, 24 - lost, "those of the others, and no more");
    let metrics =
        family.server.metrics_until("the rest is counted", |metrics| metrics.get("websockets_num") == 24 - lost);
    assert_eq!(metrics.get("process_restarts_total{process=\"1\"}"), 1);
    assert!(metrics.get("connections_accepted_total") >= accepted, "what was counted stays counted");
    // It takes clients again, and hears what all hear.
    clients = clients_everywhere(&family, 12);
    family.broadcast("news", "4");
    clients.iter_mut().chain(&mut still).for_each(|client| assert_eq!(next(client, 1), ["4"]));
}

#[test]
fn a_process_that_ends_again_and_again_is_waited_for_longer_each_time() {
    let family = Family::start(2, &[]);
    for wait in ["100ms", "200ms", "400ms"] {
        let pid = family.await_other(0);
        family::signal(pid, "KILL");
        family.await_log_line(|line| {
            line.starts_with(&format!("process 0 (pid {pid}) has ended")) && line.ends_with(wait)
        });
    }
    family.await_other(0);
    assert_eq!(family.get("/health").status, 200);
}

#[test]
fn an_end_drains_every_process_and_leaves_none() {
    for signal in ["TERM", "INT"] {
        let (mut family, mut clients) = with_clients(3, &["--shutdown-timeout", "5s"], 12);
        let pids = family.pids();
        family.server.signal(signal);
        for client in &mut clients {
            assert_eq!(client.text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
        }
        drop(clients);
        assert_eq!(family.server.wait(SOON).code(), Some(0));
        pids.iter().for_each(|pid| assert!(family::is_gone(*pid), "{pid} is left"));
    }
}

#[test]
fn a_second_signal_ends_all_processes_at_once() {
    let (mut family, clients) = with_clients(2, &["--shutdown-delay", "50s", "--shutdown-timeout", "60s"], 6);
    let pids = family.pids();
    family.server.signal("TERM");
    family.await_log("shutting down all processes");
    // One within a second counts as the same.
    thread::sleep(Duration::from_millis(1100));
    family.server.signal("TERM");
    assert_eq!(family.server.wait(SOON).code(), Some(0));
    pids.iter().for_each(|pid| assert!(family::is_gone(*pid), "{pid} is left"));
    drop(clients);
}

#[test]
fn without_their_parent_the_processes_send_their_clients_away_and_end() {
    let (family, mut clients) = with_clients(3, &["--shutdown-timeout", "5s"], 12);
    let pids = family.pids();
    family.server.signal("KILL");
    for client in &mut clients {
        assert_eq!(client.text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
    }
    drop(clients);
    let until = Instant::now() + SOON;
    while !pids.iter().all(|pid| family::is_gone(*pid)) {
        assert!(Instant::now() < until, "{pids:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The status of an upgrade from a page of this site.
fn upgrade_from(address: SocketAddr, origin: &str) -> u16 {
    let mut socket = connect(address);
    let origin = format!("Host: test\r\nOrigin: https://{origin}");
    let request = client::upgrade_request("/cable").replace("Host: test", &origin);
    socket.write_all(request.as_bytes()).expect("sent");
    response_head(&mut socket).expect("an answer").status
}

#[test]
fn a_reload_reaches_every_process_and_those_that_start_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cableway.toml");
    let file = |text: &str| fs::write(&path, text).expect("written");
    file("[server]\nallowed_origins = [\"one.example\"]\n");
    let family = Family::start(3, &["--config", path.to_str().expect("text")]);
    let all = |origin: &str, status: u16| {
        let until = Instant::now() + SOON;
        let mut in_a_row = 0;
        // Enough for each process to have some.
        while in_a_row < 20 {
            assert!(Instant::now() < until, "not every process takes it over");
            in_a_row = if upgrade_from(family.address(), origin) == status { in_a_row + 1 } else { 0 };
        }
    };
    all("one.example", 101);
    all("two.example", 403);
    file("[server]\nallowed_origins = [\"two.example\"]\n");
    family.server.signal("HUP");
    family.await_log("the configuration was read again: changed: --allowed-origins; needs a restart: nothing");
    all("two.example", 101);
    all("one.example", 403);
    // What the file has become by then is not what a process starts with that is started again.
    file("[server\n");
    let pid = family.pid(1);
    family::signal(pid, "KILL");
    family.await_other_than(1, pid);
    family.server.metrics_until("process 1 serves again", |metrics| metrics.get("process_up{process=\"1\"}") == 1);
    all("two.example", 101);
    all("one.example", 403);
    family.server.signal("HUP");
    family.await_log_line(|line| line.contains("refused, nothing has changed: "));
    all("two.example", 101);
}

#[test]
fn whichever_process_is_asked_tells_of_the_whole_server() {
    let (family, mut clients) = with_clients(3, &[], 15);
    family.server.metrics_until("those that were too many have left", |metrics| metrics.get("websockets_num") == 15);
    for _ in 0..12 {
        let metrics = family.metrics();
        assert_eq!((metrics.get("websockets_num"), metrics.get("clients_num")), (15, 15));
        let of_each =
            (0..3).map(|process| metrics.get(&format!("shard_connections_num{{shard=\"0\",process=\"{process}\"}}")));
        // A connection that asks something is a shard's for a moment.
        let sum = of_each.sum::<u64>();
        assert!((15..=18).contains(&sum), "{sum}");
        let seen = debug(&family, "/debug/connections?oldest&limit=100");
        assert_eq!(seen["connections"].as_array().map(Vec::len), Some(15));
        assert_eq!(seen["silent_processes"], serde_json::json!([]));
        assert!(family.get("/ready").body.contains("\"all_processes\":true"));
    }
    let closes = || debug(&family, "/debug/closes")["closes"].as_array().expect("a list").clone();
    let before = closes().len();
    clients.drain(..5).for_each(Client::leave);
    family.server.metrics_until("five have left", |metrics| metrics.get("websockets_num") == 10);
    let closes = closes();
    let processes: BTreeSet<_> = closes.iter().map(|row| row["process"].to_string()).collect();
    assert_eq!(closes.len(), before + 5);
    assert!(!processes.contains("null"), "{processes:?}");
}

#[test]
fn a_process_that_says_nothing_is_named_and_not_waited_for() {
    let (family, clients) = with_clients(2, &[], 8);
    let before = family.metrics();
    let stopped = family.pid(0);
    family::signal(stopped, "STOP");
    // A connection that lands on the stopped one is not answered, so the other one is asked on connections that it has.
    let health = family.get_by_any("/health");
    assert_eq!((health.status, &*health.body), (503, "No answer from process 0.\n"));
    let metrics = family.get_by_any("/metrics");
    let metrics = server::Metrics::parse(&metrics.body);
    assert_eq!((metrics.get("process_up{process=\"0\"}"), metrics.get("process_up{process=\"1\"}")), (0, 1));
    assert_eq!(metrics.get("websockets_num"), before.get("websockets_num"), "its clients are there");
    assert!(metrics.get("connections_accepted_total") >= before.get("connections_accepted_total"));
    family::signal(stopped, "CONT");
    family.server.metrics_until("it answers again", |metrics| metrics.get("process_up{process=\"0\"}") == 1);
    assert_eq!(family.get("/health").status, 200);
    drop(clients);
}

#[test]
fn a_process_that_hangs_is_ended_and_started_again() {
    let family = Family::start(2, &[]);
    let pid = family.pid(1);
    family::signal(pid, "STOP");
    family.await_log(&format!("process 1 (pid {pid}) is killed: it does not turn any more"));
    family.await_other_than(1, pid);
    assert_eq!(family.get("/health").status, 200);
}

#[test]
fn the_app_hears_of_each_end_once_whichever_process_had_it() {
    let app = app::App::start();
    let more = ["--rpc-host", &app.address.to_string(), "--rpc-concurrency", "4", "--disconnect-mode", "always"];
    let family = Family::start_plain(3, &more);
    family.server.is_ready();
    let clients: Vec<Client> = (0..20).map(|_| Client::welcomed(family.address())).collect();
    assert!(app.most_at_once() <= 4, "the bound of calls is that of all processes");
    let connected = app.connected();
    assert_eq!(connected.len(), 20);
    clients.into_iter().for_each(Client::leave);
    let until = Instant::now() + SOON;
    while app.disconnected().len() < 20 {
        assert!(Instant::now() < until, "{:?}", app.disconnected());
        thread::sleep(Duration::from_millis(20));
    }
    let told = app.disconnected();
    assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), 20, "{told:?}");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), connected.into_iter().collect());
}

/// Lets clients come until there are so many. One that has no room where it lands is sent away, and comes again.
fn filled(family: &Family, clients: &mut Vec<Client>, count: usize) {
    let until = Instant::now() + SOON;
    while clients.len() < count {
        assert!(Instant::now() < until, "only {} of {count} find room", clients.len());
        match client::try_upgrade(family.address(), "/cable") {
            Ok(client) => clients.push(client),
            Err(refused) => {
                assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true));
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Nobody finds room, wherever he lands.
fn is_full(family: &Family, when: &str) {
    for _ in 0..20 {
        let refused = client::try_upgrade(family.address(), "/cable").err();
        assert_eq!(refused.map(|refused| refused.status), Some(503), "{when}");
    }
}

#[test]
fn max_conn_is_of_all_processes_however_unevenly_clients_land() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cableway.toml");
    fs::write(&file, "[server]\nmax_conn = 12\n").expect("written");
    let family = Family::start(3, &["--config", file.to_str().expect("text")]);
    assert_eq!(family.metrics().get("websockets_max"), 12);
    let mut clients = Vec::new();
    // One that has no room by itself gets some of the others'.
    filled(&family, &mut clients, 12);
    is_full(&family, "at first");
    let reloads = |options: &str, changed: &str| {
        fs::write(&file, options).expect("written");
        family.server.signal("HUP");
        family.await_log(&format!("the configuration was read again: changed: {changed};"));
    };
    // Room stays where it was dealt out, also where an even share would be more.
    reloads("[server]\nmax_conn = 12\n[logging]\nlevel = \"debug\"\n", "--log-level");
    is_full(&family, "after a reload");
    // Whoever is there stays when the limit is lowered, and nobody comes before there is room. Each process has so much less room
    // than clients as there are too many.
    let room = until_there_are(&family, 12).into_iter().map(|clients| clients.saturating_sub(1)).sum::<u64>();
    reloads("[server]\nmax_conn = 11\n", "--max-conn, --log-level");
    is_full(&family, "when it is lowered");
    family.server.metrics_until("dealt out", |metrics| metrics.get("websockets_max") == room);
    drop(clients.pop());
    family.server.metrics_until("one has left", |metrics| metrics.get("websockets_num") == 11);
    is_full(&family, "when one has left");
    reloads("[server]\nmax_conn = 13\n", "--max-conn");
    filled(&family, &mut clients, 13);
    is_full(&family, "when it is raised");
    // Every process had more than there may be, and so none of them had room.
    reloads("[server]\nmax_conn = 1\n", "--max-conn");
    family.server.metrics_until("dealt out", |metrics| metrics.get("websockets_max") == 0);
    clients.clear();
    filled(&family, &mut clients, 1);
    is_full(&family, "with one");
}

#[test]
fn a_supervisor_hears_of_all_processes_from_the_parent_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(SOON)).expect("set");
    let told = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("something is told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let start =
        Family::arguments(2, &[]).env("NOTIFY_SOCKET", path.to_str().expect("text")).env("WATCHDOG_USEC", "600000");
    let mut family = Family::of(start.start(), 2);
    let first = told();
    assert!(first.contains("READY=1") && first.contains("WATCHDOG=1"), "{first}");
    assert!(first.contains("STATUS=connections: 0 of at most ") && first.contains("; processes: 2"), "{first}");
    let stopped = family.pid(1);
    family::signal(stopped, "STOP");
    while !told().contains("; process 1 does not turn") {}
    family::signal(stopped, "CONT");
    while !told().contains("WATCHDOG=1") {}
    // One that has ended is being looked after: nobody needs to end the others for it.
    family::signal(family.pid(0), "KILL");
    for _ in 0..3 {
        while !told().contains("WATCHDOG=1") {}
    }
    family.server.signal("TERM");
    while !told().contains("STOPPING=1") {}
    assert_eq!(family.server.wait(SOON).code(), Some(0));
}

#[test]
fn what_cannot_be_is_refused_with_the_way_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (status, log) = Family::arguments(2, &[]).passed(listener).expect_end();
    assert!(status.code() == Some(1) && log.contains("disable the socket unit"), "{log}");
    let (status, log) = Start::with(&["--processes", "300"]).expect_end();
    assert!(!status.success() && log.contains("write a number from 1 to 256, or auto"), "{log}");
    let (status, log) = Start::bare().and(&["--processes", "2"]).first("demo").expect_end();
    assert!(!status.success() && log.contains("leave --processes away"), "{log}");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (status, log) = Family::arguments(2, &["--port", &port]).expect_end();
    assert!(status.code() == Some(1) && log.contains("already in use"), "{log}");
    let (status, log) = Start::with(&[]).env("CABLEWAY_CHILD", "0/2").expect_end();
    assert!(!status.success() && log.contains("unset it"), "{log}");
    // One that cannot start ends the server before it serves; the app's address is looked at by each process.
    let (status, log) = Family::arguments(2, &["--acceptors", "1000"]).expect_end();
    assert!(status.code() == Some(1) && log.contains("raise --processes"), "{log}");
}

#[test]
fn auto_starts_as_many_as_the_clients_need_under_the_limit() {
    let server = Start::with(&["--processes", "auto", "--max-conn", "700"]).open_files(512, 512).start();
    let line = server.log.wait_for(|line| line.starts_with("processes: ")).expect("there are several");
    assert!(line.starts_with("processes: 3, each with 1 shard(s)"), "{line}");
    assert!(server.log.wait_for(|line| line.starts_with("capacity: 700 clients, bound by --max-conn")).is_some());
    let one = Start::with(&["--processes", "auto", "--max-conn", "300"]).open_files(512, 512).start();
    assert!(one.log.messages().iter().all(|(_, line)| !line.starts_with("processes: ")), "{}", one.log.text());
}
