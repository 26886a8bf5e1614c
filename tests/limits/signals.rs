//! Signals that mean nothing here, and signals that come twice.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::server::{SOON, Start};

#[test]
fn signals_that_mean_nothing_here_end_nothing() {
    let mut server = Start::with(&[]).start();
    let mut client = Client::following(server.address(), "news");
    for signal in ["USR1", "ALRM", "PIPE", "XFSZ", "TTOU", "HUP"] {
        server.signal(signal);
        server.broadcast("news", &format!("\"{signal}\""));
        assert!(client.text().contains(signal));
    }
    assert!(server.log.wait_for(|line| line.ends_with("changed: nothing; needs a restart: nothing")).is_some());
    server.signal("TERM");
    assert_eq!(client.text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
    drop(client);
    assert_eq!(server.wait(SOON).code(), Some(0));
}

#[test]
fn a_signal_that_comes_twice_at_once_is_one() {
    let mut server = Start::with(&["--acceptors", "1"]).start();
    // They are sent away over a fifth of a second, so an end at once would be seen.
    let mut clients: Vec<Client> = (0..400).map(|_| Client::welcomed(server.address())).collect();
    let asked = Instant::now();
    server.signal("TERM");
    server.log.wait_for(|line| line == "shutting down").expect("it says so");
    server.signal("INT");
    let soon_enough = asked.elapsed() < Duration::from_secs(1);
    for client in &mut clients {
        assert_eq!(client.text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
        assert_eq!(client.close_frame().0, 1001);
    }
    drop(clients);
    assert_eq!(server.wait(SOON).code(), Some(0));
    server.log.is_left();
    // A machine so busy that a second went by between the two proves nothing.
    assert!(!soon_enough || !server.log.text().contains("second signal"), "{}", server.log.text());
}

#[test]
fn who_reads_that_it_serves_may_end_it_at_once() {
    for _ in 0..20 {
        let mut server = Start::with(&["--acceptors", "1"]).spawn();
        server.log.wait_for(|line| line.starts_with("capacity: ")).expect("it says so");
        server.signal("TERM");
        assert_eq!(server.wait(SOON).code(), Some(0));
    }
}
