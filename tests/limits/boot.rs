//! What the program says and does when it starts.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use crate::client::{Client, connect};
use crate::server::Start;

#[test]
fn the_first_line_tells_the_open_file_limit_where_tools_look_for_it() {
    let server = Start::with(&["--acceptors", "3"]).open_files(300, 300).start();
    let (level, first) = server.log.messages().swap_remove(0);
    let expected = format!(
        "Starting Cableway {} (pid: {}, open file limit: 300, shards: 3)",
        env!("CARGO_PKG_VERSION"),
        server.pid()
    );
    assert_eq!((level.as_str(), first), ("INFO", expected));
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let server = Start::with(&[]).open_files(150, 400).start();
    assert!(server.log.messages()[0].1.contains("open file limit: 400"), "{}", server.log.text());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["400", "400"]);
    let metrics = server.metrics();
    assert_eq!(metrics.get("open_descriptors_max"), 400);
    // Says how many clients that makes, and warns that it is little.
    let capacity = server.log.wait_for(|line| line.starts_with("capacity: ")).expect("a line");
    let clients = metrics.get("websockets_max");
    assert!(capacity.starts_with(&format!("capacity: {clients} clients, bound by open files")), "{capacity}");
    let told = server.log.messages();
    let warned: Vec<_> = told.iter().filter(|(level, line)| level == "WARN" && line.contains("open files")).collect();
    assert!(warned.len() == 1 && warned[0].1.contains("cableway doctor"), "once, with where to read more: {told:?}");
}

#[test]
fn a_backlog_over_somaxconn_is_warned_about_and_the_queue_is_what_the_kernel_gives() {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux");
    let somaxconn: u64 = text.trim().parse().expect("a number");
    let more = (somaxconn + 1).to_string();
    let server = Start::with(&["--backlog", &more, "--acceptors", "1"]).start();
    let told = server.log.messages();
    let line =
        |start: &str| told.iter().find(|(_, line)| line.starts_with(start)).unwrap_or_else(|| panic!("{told:?}"));
    assert_eq!(line("accept queue: ").1, format!("accept queue: {somaxconn} connections a shard"));
    let (level, warned) = line("accept queue (net.core.somaxconn): ");
    assert!(level == "WARN" && warned.contains("sysctl -w net.core.somaxconn="), "{warned}");
    assert_eq!(server.metrics().get("accept_queue_max{listener=\"0\"}"), somaxconn);

    let server = Start::with(&["--backlog", "7", "--acceptors", "2"]).start();
    let (level, _) =
        server.log.messages().into_iter().find(|(_, line)| line.starts_with("accept queue: 7 ")).expect("a line");
    assert_eq!(level, "INFO");
    let metrics = server.metrics();
    for listener in ["0", "1"] {
        assert_eq!(metrics.get(&format!("accept_queue_max{{listener=\"{listener}\"}}")), 7);
    }
}

#[test]
fn a_port_that_is_taken_ends_it_with_status_1_and_names_the_address() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let port = address.port().to_string();
    for (what, arguments) in [
        ("WebSockets", vec!["--host", "127.0.0.1", "--port", &port, "--norpc"]),
        (
            "HTTP",
            vec!["--host", "127.0.0.1", "--port", "0", "--norpc", "--broadcast-key", "k", "--metrics-port", &port],
        ),
    ] {
        let (status, log) = Start::bare().and(&arguments).expect_end();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(&address.to_string()) && log.contains(what), "{log}");
        assert_eq!(log.to_lowercase().matches("address already in use").count(), 1, "{log}");
    }
}

#[test]
fn a_second_server_on_a_port_ends_with_status_1_unless_several_are_meant() {
    for acceptors in ["1", "8"] {
        let first = Start::with(&["--acceptors", acceptors]).start();
        let port = first.address().port().to_string();
        let second = || Start::with(&["--acceptors", acceptors]).and(&["--port", &port]);
        let (status, log) = second().expect_end();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(&first.address().to_string()) && log.contains("--reuse-port"), "{log}");
        connect(first.address());

        let shared = second().and(&["--reuse-port"]).start();
        assert_eq!(shared.address(), first.address());
        // Both serve: with the first one gone, every client gets to the other.
        drop(first);
        (0..8).for_each(|_| Client::following(shared.address(), "news").leave());
    }
}

#[test]
fn a_setting_that_makes_no_sense_ends_it_with_a_word_about_it() {
    let (status, log) = Start::bare().and(&["--handshake-timeout", "soon"]).expect_end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("handshake-timeout") && log.contains("soon"), "{log}");
}

#[test]
fn both_kinds_of_address_are_served() {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    assert!(has_ipv6, "this machine has no IPv6 loopback");
    let arguments = ["--port", "0", "--norpc", "--public", "--broadcast-key", "unused"];

    let server = Start::bare().and(&["--host", "::1"]).and(&arguments).start();
    assert_eq!(server.address().ip(), Ipv6Addr::LOCALHOST);
    Client::following(server.address(), "news").leave();
    let v4 = SocketAddr::from(([127, 0, 0, 1], server.address().port()));
    assert!(std::net::TcpStream::connect(v4).is_err(), "one address means that one");

    let server = Start::bare().and(&["--host", "::"]).and(&arguments).start();
    let port = server.address().port();
    for address in [SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
        Client::following(address, "news").leave();
    }

    let server = Start::bare().and(&["--host", "localhost"]).and(&arguments).start();
    assert_eq!(server.address().ip().to_string(), "127.0.0.1");
}

#[test]
fn the_port_comes_from_the_strongest_of_its_names() {
    // Each stronger name is added to the weaker ones, which hold a port that is taken: one that won would end the
    // server.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let wrong = taken.local_addr().expect("an address").port().to_string();
    let start = || Start::bare().and(&["--host", "127.0.0.1", "--norpc", "--public", "--broadcast-key", "unused"]);
    let names = ["PORT", "ANYCABLE_PORT", "CABLEWAY_PORT"];
    for strongest in 0..names.len() {
        let mut start = start().env(names[strongest], "0");
        for weaker in &names[..strongest] {
            start = start.env(weaker, &wrong);
        }
        let server = start.start();
        assert_ne!(server.address().port().to_string(), wrong);
        connect(server.address());
    }
    let mut flag = start().and(&["--port", "0"]);
    for name in names {
        flag = flag.env(name, &wrong);
    }
    connect(flag.start().address());

    // And the names are really read: with the taken port in any of them there is no server.
    for name in names {
        let (status, log) = start().env(name, &wrong).expect_end();
        assert_eq!(status.code(), Some(1), "{name}: {log}");
        assert!(log.contains(&format!("127.0.0.1:{wrong}")), "{name}: {log}");
    }
}

#[test]
fn every_line_of_the_log_names_the_node() {
    let server = Start::with(&["--node-id", "node-7"]).start();
    assert!(server.log.text().lines().all(|line| line.ends_with(",\"nodeid\":\"node-7\"}")), "{}", server.log.text());
    let unnamed = Start::with(&[]).start();
    let text = unnamed.log.text();
    let (_, name) = text.lines().next().and_then(|line| line.rsplit_once("\"nodeid\":")).expect("a name");
    assert_eq!(name.trim_matches(['"', '}']).len(), 6, "{name}");
}
