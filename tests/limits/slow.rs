//! Clients that do not read what they are sent.

use std::io::Read;
use std::thread;
use std::time::Duration;

use tungstenite::Message;

use crate::client::Client;
use crate::server::{SOON, Server, Start};

/// One publication: a tenth of what may wait for a client, and enough of them fill every buffer of the kernel.
const BYTES: usize = 100_000;

/// Publishes large numbered messages until the metrics say what is waited for; everybody else in `readers` has to get
/// every one, in order, meanwhile.
fn publish_until(server: &Server, readers: &mut [Client], cause: &str) -> usize {
    for n in 0..1_000 {
        server.broadcast("news", &format!("\"{n}:{}\"", "x".repeat(BYTES)));
        for reader in readers.iter_mut() {
            let text = reader.text();
            assert!(text.contains(&format!("\"message\":\"{n}:x")), "not {n} but {:.120}", text);
        }
        if server.metrics().closed(cause) > 0 {
            return n + 1;
        }
    }
    panic!("the slow client was never closed for {cause}");
}

#[test]
fn a_client_that_reads_nothing_is_closed_as_too_slow_and_the_others_miss_nothing() {
    let server = Start::with(&["--ws-write-timeout", "60s"]).start();
    let mut slow = Client::following(server.address(), "news");
    let mut readers: Vec<Client> = (0..5).map(|_| Client::following(server.address(), "news")).collect();
    let published = publish_until(&server, &mut readers, "too_slow");
    assert!(published * BYTES > 1 << 20, "{published} publications are less than what may wait");
    assert_eq!(server.metrics().get("disconnected_slow_clients_total"), 1);

    // It reads at last: whole messages in order from the first on, then the reason, then the close frame.
    let mut next = 0;
    let reason = loop {
        let text = slow.text();
        if text.contains("\"type\":\"disconnect\"") {
            break text;
        }
        assert!(text.contains(&format!("\"message\":\"{next}:x")), "not {next} but {:.120}", text);
        next += 1;
    };
    assert!(next < published, "it was given everything");
    assert_eq!(reason, r#"{"type":"disconnect","reason":"too_slow","reconnect":true}"#);
    assert_eq!(slow.close_frame().0, 1000);
    slow.ends();

    server.broadcast("news", "\"last\"");
    readers.iter_mut().for_each(|reader| assert!(reader.text().contains("last")));
}

#[test]
fn a_client_to_whom_nothing_can_be_written_is_dropped_after_the_write_timeout() {
    let server = Start::with(&["--ws-write-timeout", "1s", "--ws-max-pending-size", "0"]).start();
    let mut slow = Client::following(server.address(), "news");
    let mut readers = [Client::following(server.address(), "news")];
    // What waits for it is not bounded here, so only time can end it.
    let mut published = 0;
    while server.metrics().closed("write_timeout") == 0 {
        server.broadcast("news", &format!("\"{published}:{}\"", "x".repeat(BYTES)));
        assert!(readers[0].text().contains(&format!("\"message\":\"{published}:x")));
        published += 1;
        assert!(published < 10_000, "never dropped");
    }
    let metrics = server.metrics();
    assert_eq!((metrics.closed("too_slow"), metrics.get("timeout_server_msg_total")), (0, 1));
    // Nothing is said to it any more: what was under way arrives, then the stream ends in the middle of a frame.
    slow.0.get_mut().set_read_timeout(Some(SOON)).expect("set");
    let mut piece = vec![0; 1 << 16];
    while slow.0.get_mut().read(&mut piece).is_ok_and(|n| n > 0) {}
}

#[test]
fn a_client_that_reads_slowly_but_steadily_is_kept() {
    let server = Start::with(&["--ws-write-timeout", "2s", "--ws-max-pending-size", "64MiB"]).start();
    let mut slow = Client::following(server.address(), "news");
    const COUNT: usize = 100;
    for n in 0..COUNT {
        server.broadcast("news", &format!("\"{n}:{}\"", "x".repeat(BYTES)));
    }
    for n in 0..COUNT {
        match slow.0.read().expect("a message") {
            Message::Text(text) => assert!(text.contains(&format!("\"message\":\"{n}:x")), "{:.120}", text),
            other => panic!("not {other:?}"),
        }
        // A sleep, because slowness is what is tested: all of it takes more than twice the write time-out.
        thread::sleep(Duration::from_millis(50));
    }
    let metrics = server.metrics();
    assert_eq!(metrics.closed_in_all(), metrics.closed("http"), "nobody was closed but HTTP requests");
    assert_eq!(metrics.get("clients_num"), 1);
}
