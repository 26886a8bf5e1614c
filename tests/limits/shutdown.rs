//! How the program stops: in good order, in bounded time, and at once when told twice.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::client::{Client, connect, upgrade};
use crate::server::{SOON, Server, Start};

const RESTART: &str = r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#;

fn sent_away(client: &mut Client) {
    assert_eq!(client.text(), RESTART);
    assert_eq!(client.close_frame(), (1001, "Server restart".into()));
    client.ends();
}

/// Waits until nobody listens there any more.
fn refuses_connections(server: &Server) {
    let until = Instant::now() + SOON;
    while TcpStream::connect(server.address()).is_ok() {
        assert!(Instant::now() < until, "still accepting");
    }
}

#[test]
fn clients_are_told_to_come_back_and_the_status_is_0() {
    for signal in ["TERM", "INT"] {
        let mut server = Start::with(&["--echo-path", "/echo"]).start();
        let mut clients: Vec<Client> = (0..20).map(|_| Client::following(server.address(), "news")).collect();
        let mut echo = upgrade(server.address(), "/echo");
        let mut silent = connect(server.address());
        server.metrics_until("the silent one is accepted", |m| m.get("handshakes_num") >= 1);
        server.signal(signal);
        clients.iter_mut().for_each(sent_away);
        assert_eq!(echo.close_frame().0, 1001);
        echo.ends();
        let mut said = String::new();
        silent.read_to_string(&mut said).expect("told");
        assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("\r\nRetry-After: "), "{said}");
        drop(clients);
        assert_eq!(server.wait(SOON).code(), Some(0), "{}", server.log.text());
    }
}

#[test]
fn a_server_without_clients_ends_at_once() {
    let mut server = Start::with(&[]).start();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn a_client_with_a_megabyte_waiting_gets_all_of_it_and_then_the_reason() {
    const COUNT: usize = 10;
    let mut server = Start::with(&["--ws-max-pending-size", "64MiB", "--ws-write-timeout", "20s"]).start();
    let mut slow = Client::following(server.address(), "news");
    // First fill what the kernel takes, so that the megabyte really waits in the server.
    let filler = "f".repeat(500_000);
    let mut filled = 0;
    while server.metrics().get("data_sent_total") + 400_000 > filled * 500_000 {
        server.broadcast("news", &format!("\"{filler}\""));
        filled += 1;
        assert!(filled < 200, "the kernel takes everything");
    }
    for n in 0..COUNT {
        server.broadcast("news", &format!("\"{n}:{}\"", "x".repeat(100_000)));
    }
    server.signal("TERM");
    for _ in 0..filled {
        assert!(slow.text().contains("\"message\":\"fff"));
    }
    for n in 0..COUNT {
        let text = slow.text();
        assert!(text.contains(&format!("\"message\":\"{n}:x")), "not {n} but {:.120}", text);
    }
    sent_away(&mut slow);
    drop(slow);
    assert_eq!(server.wait(SOON).code(), Some(0));
}

#[test]
fn it_is_not_ready_at_once_and_takes_clients_until_the_delay_is_over() {
    let mut server = Start::with(&["--shutdown-delay", "2s"]).start();
    server.is_ready();
    let mut before = Client::following(server.address(), "news");
    server.signal("TERM");
    server.log.wait_for(|line| line == "shutting down").expect("it says so");
    let ready = server.get("/ready");
    assert_eq!((ready.status, ready.body.contains("\"not_draining\":false")), (503, true), "{ready:?}");
    assert_eq!(server.get("/health").status, 200);
    // The balancer has not noticed yet: nobody is turned away, and everybody is served.
    let mut after = Client::following(server.address(), "news");
    server.broadcast("news", "1");
    assert!(before.text().contains("\"message\":1") && after.text().contains("\"message\":1"));
    sent_away(&mut before);
    sent_away(&mut after);
    refuses_connections(&server);
    drop((before, after));
    assert_eq!(server.wait(SOON).code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Start::with(&["--shutdown-delay", "25s", "--shutdown-timeout", "30s"]).start();
    let mut client = Client::welcomed(server.address());
    server.signal("TERM");
    server.log.wait_for(|line| line == "shutting down").expect("it says so");
    // Within a second of the first it would count as the same one.
    std::thread::sleep(Duration::from_millis(1100));
    let asked = Instant::now();
    server.signal("TERM");
    let status = server.wait(SOON);
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(server.log.wait_for(|line| line.starts_with("second signal")).is_some());
    // Its socket went with the process.
    let mut rest = Vec::new();
    let _ = client.0.get_mut().read_to_end(&mut rest);
    assert!(rest.is_empty());
}

#[test]
fn a_client_that_reads_nothing_cannot_hold_the_end_up() {
    let mut server = Start::with(&["--shutdown-timeout", "3s", "--ws-max-pending-size", "64MiB"])
        .and(&["--ws-write-timeout", "60s"])
        .start();
    let slow = Client::following(server.address(), "news");
    // An HTTP request whose body never comes, too.
    let mut half = connect(server.address());
    std::io::Write::write_all(&mut half, b"POST /_broadcast HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n")
        .expect("sent");
    for _ in 0..100 {
        server.broadcast("news", &format!("\"{}\"", "x".repeat(200_000)));
    }
    server.signal("TERM");
    let asked = Instant::now();
    assert_eq!(server.wait(SOON).code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    slow.leave();
}

#[test]
fn clients_are_sent_away_over_time_and_not_in_one_storm() {
    // 2,000 a second is the fastest pace, so 400 clients on one shard take a fifth of a second.
    let mut server = Start::with(&["--acceptors", "1"]).start();
    let mut clients: Vec<Client> = (0..400).map(|_| Client::welcomed(server.address())).collect();
    server.signal("TERM");
    sent_away(&mut clients[0]);
    let first = Instant::now();
    clients[1..].iter_mut().for_each(sent_away);
    let spread = first.elapsed();
    assert!((Duration::from_millis(100)..Duration::from_secs(10)).contains(&spread), "{spread:?}");
    drop(clients);
    assert_eq!(server.wait(SOON).code(), Some(0));
}
