//! Clients of different processes are clients of one server: one order, one memory, one list of who is present.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, connect, http, identifier, json_string, whole_response};
use crate::extended::{all_come, behind, extended, history, json, message, publish_until};
use crate::server::{SOON, Server, Start};

/// Enough that a client rarely lands where another one is.
const PROCESSES: usize = 3;

fn server(options: &[&str]) -> Server {
    let several = ["--processes", "3", "--acceptors", "3", "--broker", "memory", "--noauth"];
    let server = Start::with(&several).and(options).start();
    server.is_ready();
    server
}

/// The processes that the server has started, by `ppid` in /proc/PID/stat (proc(5)).
fn children(server: &Server) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        behind_name.split(' ').nth(1) == Some(&server.pid().to_string())
    };
    let entries = fs::read_dir("/proc").expect("proc is mounted").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// Which process has the server's end of a client's connection: by its inode in /proc/net/tcp.
fn owner(server: &Server, client: &Client) -> u32 {
    let socket = client.0.get_ref();
    let port = |address: io::Result<SocketAddr>| format!(":{:04X}", address.expect("connected").port());
    let (here, there) = (port(socket.local_addr()), port(socket.peer_addr()));
    let table = fs::read_to_string("/proc/net/tcp").expect("proc is mounted");
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut line = line.filter(|line| line[1].ends_with(&there) && line[2].ends_with(&here));
    let inode = format!("socket:[{}]", line.next().expect("it is connected")[9]);
    let has = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|link| link.to_str() == Some(&inode))
    };
    children(server).into_iter().find(has).expect("a process has it")
}

/// One client for each process, which follows a stream; with its process and its welcome.
fn one_each(server: &Server, stream: &str) -> Vec<(u32, Client, Value)> {
    let mut clients: Vec<(u32, Client, Value)> = Vec::new();
    let until = Instant::now() + SOON;
    while clients.len() < PROCESSES {
        let (mut client, welcome) = extended(server.address(), None);
        let owner = owner(server, &client);
        if clients.iter().all(|(known, ..)| *known != owner) {
            client.follow(stream);
            clients.push((owner, client, welcome));
        }
        assert!(Instant::now() < until, "clients reach all processes");
    }
    clients
}

fn sid(welcome: &Value) -> &str {
    welcome["sid"].as_str().expect("a sid")
}

#[test]
fn two_publishers_make_one_order_in_all_processes() {
    let server = server(&[]);
    let mut clients = one_each(&server, "room");
    let (address, stop) = (server.address(), AtomicBool::new(false));
    let counts = thread::scope(|scope| {
        // Each of its requests is a connection of its own, which any process gets.
        let stop = &stop;
        let publish = |first| scope.spawn(move || publish_until(address, "room", first, 2, stop));
        let publishers = [publish(0), publish(1)];
        thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        publishers.map(|publisher| publisher.join().expect("published"))
    });
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    for (_, client, _) in &mut clients {
        all_come(client, counts);
    }
}

#[test]
fn a_client_comes_back_to_its_session_in_another_process_and_misses_nothing() {
    let server = server(&[]);
    let mut clients = one_each(&server, "room");
    server.broadcast("room", "1");
    let (offset, epoch, _) = message(&mut clients[0].1);
    let (first, client, welcome) = clients.swap_remove(0);
    client.leave();
    (2..=4).for_each(|n| server.broadcast("room", &n.to_string()));
    let (mut sid_now, until) = (sid(&welcome).to_owned(), Instant::now() + SOON);
    let mut back = loop {
        let (client, welcome) = extended(server.address(), Some(&sid_now));
        assert_eq!(welcome["restored"], true, "{welcome}");
        sid_now = sid(&welcome).to_owned();
        if owner(&server, &client) != first {
            break client;
        }
        // It stands when the next one comes.
        drop(client);
        assert!(Instant::now() < until, "a client reaches another process");
    };
    assert_eq!(history(&mut back, "room", &behind("room", &epoch, offset)), Some(vec![2, 3, 4]));
    server.broadcast("room", "5");
    assert_eq!(message(&mut back).2, 5);
    assert_eq!(message(&mut clients[0].1).2, 1, "the others have had everything as it came");
    // While it stands, somebody who comes to whichever process gets it.
    let (_taker, taken) = extended(server.address(), Some(&sid_now));
    assert_eq!(taken["restored"], true, "{taken}");
    assert!(back.text().contains("session_resumed"));
}

#[test]
fn whispers_cross_and_whoever_is_excluded_hears_nothing() {
    let server = server(&[]);
    let mut clients = one_each(&server, "room");
    let identifier = json_string(&identifier("room"));
    clients[0].1.send(&format!("{{\"command\":\"whisper\",\"identifier\":{identifier},\"data\":{{\"n\":1}}}}"));
    for (_, client, _) in &mut clients[1..] {
        assert_eq!(json(&client.text())["message"], json!({"n": 1}));
    }
    let exclude = json!({"stream": "room", "data": "2", "meta": {"exclude_socket": sid(&clients[1].2)}});
    assert_eq!(http(server.address(), "POST", "/_broadcast", &exclude.to_string()).expect("an answer").status, 201);
    server.broadcast("room", "3");
    for (at, (_, client, _)) in clients.iter_mut().enumerate() {
        let expected: &[u64] = if at == 1 { &[3] } else { &[2, 3] };
        expected.iter().for_each(|n| assert_eq!(message(client).2, *n, "client {at}"));
    }
}

/// What is said of who is present: the kind and the id.
fn presence(client: &mut Client) -> (String, String) {
    let event = json(&client.text());
    assert_eq!(event["type"], "presence", "{event}");
    let said = |name: &str| event["message"][name].as_str().unwrap_or_default().to_owned();
    (said("type"), said("id"))
}

#[test]
fn presence_is_one_list_and_the_people_of_a_killed_process_leave() {
    let server = server(&["--presence-ttl", "1"]);
    let mut clients = one_each(&server, "room");
    let identifier = json_string(&identifier("room"));
    for (at, (_, client, _)) in clients.iter_mut().enumerate() {
        client.send(&format!("{{\"command\":\"join\",\"identifier\":{identifier},\"presence\":{{\"id\":\"{at}\"}}}}"));
    }
    // They join in any order, and each hears of all.
    for (_, client, _) in &mut clients {
        let mut came: Vec<_> = (0..PROCESSES).map(|_| presence(client)).collect();
        came.sort();
        assert_eq!(came, ["0", "1", "2"].map(|id| ("join".to_owned(), id.to_owned())));
    }
    let (killed, ..) = clients.remove(0);
    kill(killed);
    for (_, client, _) in &mut clients {
        assert_eq!(presence(client), ("leave".into(), "0".into()));
        client.send(&format!("{{\"command\":\"presence\",\"identifier\":{identifier}}}"));
        let there = json(&client.text());
        assert_eq!(there["message"]["total"], 2, "{there}");
    }
}

#[test]
fn a_remote_disconnect_reaches_every_process_in_its_place() {
    let server = server(&[]);
    let mut clients = one_each(&server, "room");
    let welcome = clients[0].2.clone();
    let identifiers = json!({"sid": sid(&welcome)}).to_string();
    let disconnect = json!({"command": "disconnect", "payload": {"identifier": identifiers, "reconnect": true}});
    for n in 0..20 {
        // From one connection, so by one door: what is published before is heard before.
        let mut door = connect(server.address());
        let mut bodies = vec![json!({"stream": "room", "data": n.to_string()}).to_string()];
        bodies.extend((n == 10).then(|| disconnect.to_string()));
        post_all(&mut door, &bodies);
    }
    for n in 0..=10 {
        assert_eq!(message(&mut clients[0].1).2, n);
    }
    let told = clients[0].1.text();
    assert!(told.contains(r#""reason":"remote","reconnect":true"#), "{told}");
    for (_, client, _) in &mut clients[1..] {
        (0..20).for_each(|n| assert_eq!(message(client).2, n));
    }
    let (_, again) = extended(server.address(), Some(sid(&welcome)));
    assert_eq!(again["restored"], Value::Null, "{again}");
}

/// Posts one after the other over one connection, which ends with the last.
fn post_all(door: &mut std::net::TcpStream, bodies: &[String]) {
    use std::io::Write;
    for (at, body) in bodies.iter().enumerate() {
        let connection = if at + 1 == bodies.len() { "close" } else { "keep-alive" };
        let head = format!(
            "POST /_broadcast HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        door.write_all(head.as_bytes()).expect("sent");
    }
    let answers = whole_response(door).expect("an answer");
    assert_eq!(answers.status, 201, "{answers:?}");
}

/// As a crash is: without a word.
fn kill(pid: u32) {
    let killed = std::process::Command::new("sh").arg("-c").arg(format!("kill -9 {pid}")).status();
    assert!(killed.expect("sh runs").success());
}

#[test]
fn a_killed_process_takes_its_share_and_the_others_lose_nothing() {
    let server = server(&[]);
    let mut clients = one_each(&server, "room");
    let (address, stop) = (server.address(), AtomicBool::new(false));
    let (killed, mut lost, _) = clients.remove(0);
    let published = thread::scope(|scope| {
        let publisher = |first: u64| {
            let stop = &stop;
            scope.spawn(move || {
                let mut accepted = Vec::new();
                for n in (first..).step_by(2) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let body = json!({"stream": "room", "data": n.to_string()}).to_string();
                    // Whoever has said it to the killed process does not know what has become of it.
                    if http(address, "POST", "/_broadcast", &body).is_ok_and(|response| response.status == 201) {
                        accepted.push(n);
                    }
                }
                accepted
            })
        };
        let publishers = [publisher(0), publisher(1)];
        thread::sleep(Duration::from_millis(700));
        kill(killed);
        thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
        publishers.map(|publisher| publisher.join().expect("published"))
    });
    server.broadcast("room", "\"end\"");
    for (_, client, _) in &mut clients {
        let (mut last, mut got) = (None, Vec::new());
        loop {
            let (offset, _, said) = message(client);
            assert!(last.is_none_or(|last| offset == last + 1), "{last:?} then {offset}");
            last = Some(offset);
            let Some(n) = said.as_u64() else { break };
            got.push(n);
        }
        for (first, accepted) in published.iter().enumerate() {
            let of_this: Vec<_> = got.iter().copied().filter(|n| *n as usize % 2 == first).collect();
            assert!(of_this.is_sorted() && accepted.iter().all(|n| of_this.contains(n)), "what was accepted has come");
            assert!(of_this.len() <= accepted.len() + 2, "and hardly anything else");
        }
    }
    while lost.0.read().is_ok() {}
    // Another one takes its place, and serves.
    let until = Instant::now() + SOON;
    while children(&server).len() < PROCESSES {
        assert!(Instant::now() < until, "another process is started");
        thread::sleep(Duration::from_millis(10));
    }
    let mut clients = one_each(&server, "room");
    assert!(clients.iter().all(|(owner, ..)| *owner != killed));
    server.broadcast("room", "7");
    clients.iter_mut().for_each(|(_, client, _)| assert_eq!(message(client).2, 7));
}
