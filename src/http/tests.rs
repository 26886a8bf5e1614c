//! Raw bytes in and out of real sockets.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::broadcast::{Broadcast, Handover, PublicationSink, PublishError, Source};
use crate::config::Config;
use crate::identity::Secret;
use crate::model::{Publication, RemoteDisconnect};

/// Records what is handed over, as `stream=message`, once the gate is open.
struct Recorder {
    taken: Mutex<Vec<String>>,
    gate: Semaphore,
    fails: bool,
    /// Hand-overs that came as far as the gate.
    began: watch::Sender<usize>,
}

impl Recorder {
    fn new(open: bool, fails: bool) -> Arc<Recorder> {
        let gate = Semaphore::new(if open { Semaphore::MAX_PERMITS } else { 0 });
        Arc::new(Recorder { taken: Mutex::default(), gate, fails, began: watch::Sender::new(0) })
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.taken.lock().unwrap())
    }

    async fn has_begun(&self) {
        self.began.subscribe().wait_for(|began| *began > 0).await.unwrap();
    }

    fn take(&self, what: Vec<String>) -> Handover<'_> {
        Box::pin(async move {
            self.began.send_modify(|began| *began += 1);
            self.gate.acquire().await.unwrap().forget();
            if self.fails {
                return Err(PublishError("no route".into()));
            }
            self.taken.lock().unwrap().extend(what);
            Ok(())
        })
    }
}

impl PublicationSink for Recorder {
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_> {
        self.take(publications.iter().map(|p| format!("{}={}", p.stream, p.message)).collect())
    }

    fn try_publish(&self, publication: Publication) -> bool {
        panic!("a request waits for room: {publication:?}");
    }

    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        self.take(vec![format!("disconnect {} {}", disconnect.identifiers, disconnect.reconnect)])
    }

    fn publish_here(&self, publications: Vec<Publication>) -> Handover<'_> {
        panic!("a request is for all nodes: {publications:?}");
    }

    fn disconnect_here(&self, disconnect: RemoteDisconnect) -> Handover<'_> {
        panic!("a request is for all nodes: {disconnect:?}");
    }
}

struct Fixture {
    server: HttpServer,
    sink: Arc<Recorder>,
    broadcast: Arc<Broadcast>,
    metrics: Arc<HttpMetrics>,
}

fn fixture_with(sink: Arc<Recorder>, change: impl FnOnce(&mut Routes, &mut Limits)) -> Fixture {
    let key = Secret::new("k3y");
    let broadcast = Arc::new(Broadcast::new(Arc::clone(&sink) as Arc<_>));
    let route = |path: &str, key, source| PublishRoute {
        path: path.into(),
        key,
        cors: None,
        broadcast: Arc::clone(&broadcast),
        source,
        presence: None,
    };
    let mut routes = Routes {
        broadcast: Some(route("/_broadcast", None, Source::Http)),
        api: Some(route("/api", key, Source::Api)),
        health: Some(HealthRoute { path: "/health".into(), sickness: Box::new(|| Box::pin(async { None })) }),
        ready: Some(ReadyRoute { path: "/ready".into(), checks: Box::new(|| Box::pin(async { Vec::new() })) }),
        metrics: Some(MetricsRoute {
            path: "/metrics".into(),
            text: Box::new(|_| Box::pin(async { "up 1\n".into() })),
        }),
        ..Routes::default()
    };
    let mut limits = Limits::new(Config::default().broadcast.max_size);
    change(&mut routes, &mut limits);
    let metrics = Arc::new(HttpMetrics::default());
    Fixture { server: HttpServer::new(routes, limits, metrics.clone()), sink, broadcast, metrics }
}

fn fixture(change: impl FnOnce(&mut Routes, &mut Limits)) -> Fixture {
    fixture_with(Recorder::new(true, false), change)
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

impl Fixture {
    /// A client of a connection that was handed over with these bytes.
    async fn connect(&self, already_read: &[u8]) -> (TcpStream, JoinHandle<()>) {
        let (client, socket) = pair().await;
        let (server, already_read) = (self.server.clone(), already_read.to_vec());
        (client, tokio::spawn(async move { assert!(server.serve(socket, already_read).await.is_none()) }))
    }

    /// Sends everything, ends our side, and returns everything that comes back.
    async fn exchange(&self, already_read: &[u8], bytes: &[u8]) -> String {
        let (client, served) = self.connect(already_read).await;
        let (mut from, mut to) = client.into_split();
        let bytes = bytes.to_vec();
        let sent = tokio::spawn(async move {
            // The server may have had enough before all is sent.
            let _ = to.write_all(&bytes).await;
            let _ = to.shutdown().await;
        });
        let mut answer = Vec::new();
        from.read_to_end(&mut answer).await.unwrap();
        sent.await.unwrap();
        served.await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn status(&self, request: &str) -> u16 {
        status_of(&self.exchange(b"", request.as_bytes()).await)
    }
}

fn status_of(answer: &str) -> u16 {
    assert!(answer.starts_with("HTTP/1."), "{answer:?}");
    answer[9..12].parse().unwrap()
}

/// Lets the server go on until it is so. What is looked at tells nobody when it changes.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Reads one answer that has no body.
async fn read_head(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

const PUBLICATION: &str = r#"{"stream":"room:7","data":"{\"text\":\"hi\"}"}"#;
const TAKEN: &str = r#"room:7={"text":"hi"}"#;

#[tokio::test]
async fn a_publication_is_handed_over_and_answered_201() {
    let fixture = fixture(|_, _| ());
    let answer = fixture.exchange(b"", post("/_broadcast", "", PUBLICATION).as_bytes()).await;
    let mut lines = answer.split("\r\n");
    assert_eq!(lines.next(), Some("HTTP/1.1 201 Created"));
    let headers: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    assert!(headers.contains(&"content-length: 0"), "{headers:?}");
    assert!(!headers.iter().any(|header| header.starts_with("server")), "{headers:?}");
    assert_eq!(lines.collect::<String>(), "");
    assert_eq!(fixture.sink.taken(), [TAKEN]);
    assert_eq!(fixture.broadcast.metrics().publications_total.get(), 1);
    assert_eq!(fixture.metrics.http_connections_num.get(), 0);
}

#[tokio::test]
async fn bytes_that_were_already_read_come_first() {
    let fixture = fixture(|_, _| ());
    let requests = format!("{}{}", post("/_broadcast", "", PUBLICATION), post("/_broadcast", "", PUBLICATION));
    for already_read in [0, 1, 20, requests.len() / 2, requests.len() / 2 + 30, requests.len()] {
        let (first, rest) = requests.as_bytes().split_at(already_read);
        let answer = fixture.exchange(first, rest).await;
        assert_eq!(answer.matches("HTTP/1.1 201 Created").count(), 2, "{already_read}: {answer}");
        assert_eq!(fixture.sink.taken(), [TAKEN, TAKEN]);
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let fixture = fixture(|_, _| ());
    let (mut client, _served) = fixture.connect(b"").await;
    for _ in 0..3 {
        client.write_all(post("/_broadcast", "", PUBLICATION).as_bytes()).await.unwrap();
        assert_eq!(status_of(&read_head(&mut client).await), 201);
        assert_eq!(fixture.sink.taken(), [TAKEN]);
    }
}

#[tokio::test]
async fn a_target_may_be_an_absolute_url() {
    let fixture = fixture(|_, _| ());
    let target = "http://localhost:8090/_broadcast";
    assert_eq!(fixture.status(&post(target, "", PUBLICATION)).await, 201);
    assert_eq!(fixture.sink.taken(), [TAKEN]);
    assert_eq!(fixture.status("GET http://x/health HTTP/1.1\r\nHost: h\r\n\r\n").await, 200);
}

#[tokio::test]
async fn the_key_must_be_shown_exactly() {
    let fixture = fixture(|_, _| ());
    for (authorization, status) in [
        ("", 401),
        ("Authorization: Bearer k3y\r\n", 201),
        ("authorization: Bearer k3y\r\n", 201),
        ("Authorization: Bearer K3y\r\n", 401),
        ("Authorization: bearer k3y\r\n", 401),
        ("Authorization: Bearer  k3y\r\n", 401),
        ("Authorization: Bearer k3\r\n", 401),
        ("Authorization: Bearer k3yk3y\r\n", 401),
        ("Authorization: k3y\r\n", 401),
        ("Authorization: Bearer\r\n", 401),
        ("Authorization: Bearer \u{e9}\r\n", 401),
    ] {
        let answer = fixture.exchange(b"", post("/api/publish", authorization, PUBLICATION).as_bytes()).await;
        assert_eq!(status_of(&answer), status, "{authorization}");
        assert!(answer.contains("content-length: 0\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert_eq!(fixture.sink.taken().len(), usize::from(status == 201), "{authorization}");
    }
}

#[tokio::test]
async fn only_post_publishes() {
    let fixture = fixture(|_, _| ());
    for method in ["GET", "PUT", "OPTIONS", "DELETE", "HEAD"] {
        for path in ["/_broadcast", "/api/publish"] {
            let request = post(path, "", PUBLICATION).replace("POST", method);
            assert_eq!(fixture.status(&request).await, 422, "{method} {path}");
        }
    }
    assert!(fixture.sink.taken().is_empty());
}

#[tokio::test]
async fn routes_match_exactly() {
    let fixture = fixture(|_, _| ());
    for path in [
        "/",
        "/_broadcast/",
        "/_BROADCAST",
        "//health",
        "/x/../health",
        "/healt%68",
        "/health/",
        "/api",
        "/api/",
        "/api/publish/",
        "/apipublish",
        "/api/presence",
        "/cable",
        "*",
    ] {
        let answer = fixture.exchange(b"", format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await;
        assert_eq!(status_of(&answer), 404, "{path}");
        assert!(answer.contains("content-type: text/plain; charset=utf-8\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n404 page not found"), "{answer}");
    }
    assert_eq!(fixture.status("GET /health?verbose=1 HTTP/1.1\r\nHost: h\r\n\r\n").await, 200);
}

#[tokio::test]
async fn a_route_that_is_not_on_this_port_is_not_found() {
    let fixture = fixture(|routes, _| {
        let metrics = routes.metrics.take();
        *routes = Routes { metrics, ..Routes::default() };
    });
    assert_eq!(fixture.status(&post("/_broadcast", "", PUBLICATION)).await, 404);
    assert_eq!(fixture.status(&post("/api/publish", "Authorization: Bearer k3y\r\n", PUBLICATION)).await, 404);
    assert_eq!(fixture.status("GET /health HTTP/1.1\r\n\r\n").await, 404);
    assert_eq!(fixture.status("GET /ready HTTP/1.1\r\n\r\n").await, 404);
    assert_eq!(fixture.status("GET /metrics HTTP/1.1\r\n\r\n").await, 200);
}

#[tokio::test]
async fn health_and_metrics_answer_any_method() {
    let fixture = fixture(|_, _| ());
    let health = "This server is alive. See /ready for more.\n";
    for (path, version, body) in [("/health", "", health), ("/metrics", " version=0.0.4;", "up 1\n")] {
        for method in ["GET", "POST", "PURGE"] {
            let answer = fixture.exchange(b"", format!("{method} {path} HTTP/1.0\r\n\r\n").as_bytes()).await;
            assert_eq!(status_of(&answer), 200);
            assert!(answer.contains(&format!("content-type: text/plain;{version} charset=utf-8\r\n")), "{answer}");
            assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, body);
        }
        let answer = fixture.exchange(b"", format!("HEAD {path} HTTP/1.1\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn readiness_says_which_check_is_false() {
    for (backend, status) in [(true, 200), (false, 503)] {
        let check = |name, ok, needed| Check { name, ok, needed };
        let checks = move || {
            let checks =
                vec![check("not_draining", true, true), check("backend", backend, true), check("redis", false, false)];
            Box::pin(async { checks }) as Later<_>
        };
        let fixture = fixture(|routes, _| routes.ready.as_mut().unwrap().checks = Box::new(checks));
        let answer = fixture.exchange(b"", b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(status_of(&answer), status);
        // What it can do without is told and does not decide.
        let checks = format!("{{\"not_draining\":true,\"backend\":{backend}}}");
        let wanted = format!("{{\"ready\":{backend},\"checks\":{checks},\"links\":{{\"redis\":false}}}}\n");
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, wanted, "in the order of the checks");
    }
}

#[tokio::test]
async fn what_is_no_publication_is_answered_201_and_counted() {
    let fixture = fixture(|_, _| ());
    for body in ["", "x", "{}", r#"{"stream":"s","data":7}"#, "[{}]"] {
        assert_eq!(fixture.status(&post("/_broadcast", "", body)).await, 201, "{body}");
    }
    assert!(fixture.sink.taken().is_empty());
    assert_eq!(fixture.broadcast.metrics().failed_broadcast_msg_total.get(), 5);
    assert_eq!(fixture.broadcast.metrics().publications_total.get(), 0);
}

#[tokio::test]
async fn batches_and_remote_commands_are_taken_and_count_as_one() {
    let fixture = fixture(|_, _| ());
    for (body, wanted) in [
        (r#"[{"stream":"a","data":"1"},{"stream":"b","data":"x"}]"#, &["a=1", "b=\"x\""][..]),
        (r#"{"command":"disconnect","payload":{"identifier":"u","reconnect":true}}"#, &["disconnect u true"]),
        (r#"{"command":"dance"}"#, &[]),
    ] {
        assert_eq!(fixture.status(&post("/_broadcast", "", body)).await, 201);
        assert_eq!(fixture.sink.taken(), wanted);
    }
    assert_eq!(fixture.broadcast.metrics().publications_total.get(), 3);
    assert_eq!(fixture.broadcast.metrics().remote_commands_total.get(), 2);
    assert_eq!(fixture.broadcast.metrics().failed_broadcast_msg_total.get(), 0);
}

#[tokio::test]
async fn the_answer_waits_for_the_hand_over() {
    let fixture = fixture_with(Recorder::new(false, false), |_, _| ());
    let (mut client, _served) = fixture.connect(post("/_broadcast", "", PUBLICATION).as_bytes()).await;
    fixture.sink.has_begun().await;
    // A whole other connection is served meanwhile, so an early answer would be here by now.
    assert_eq!(fixture.status("GET /health HTTP/1.1\r\n\r\n").await, 200);
    let mut byte = [0];
    assert_eq!(client.try_read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    fixture.sink.gate.add_permits(1);
    assert_eq!(status_of(&read_head(&mut client).await), 201);
    assert_eq!(fixture.sink.taken(), [TAKEN]);
}

#[tokio::test]
async fn a_hand_over_that_fails_or_takes_too_long_is_not_answered_201() {
    let failing = fixture_with(Recorder::new(true, true), |_, _| ());
    assert_eq!(failing.status(&post("/_broadcast", "", PUBLICATION)).await, 501);
    let stuck = fixture_with(Recorder::new(false, false), |_, l| l.publish_timeout = Duration::from_millis(10));
    assert_eq!(stuck.status(&post("/_broadcast", "", PUBLICATION)).await, 503);
    assert_eq!(
        failing.broadcast.metrics().publications_total.get() + stuck.broadcast.metrics().publications_total.get(),
        0
    );
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_even_by_a_sender_that_writes_it_all_first() {
    let fixture = fixture(|_, limits| limits.body_bytes_max = 1000);
    assert_eq!(fixture.status(&post("/_broadcast", "", &"x".repeat(1000))).await, 201);
    for size in [1001, 8 << 20] {
        let body = "x".repeat(size);
        let chunked =
            format!("POST /_broadcast HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n");
        for request in [post("/_broadcast", "", &body), chunked] {
            let (mut client, _served) = fixture.connect(b"").await;
            client.write_all(request.as_bytes()).await.expect("the server reads on while it is written to");
            assert_eq!(status_of(&read_head(&mut client).await), 413, "{size}");
        }
    }
    let announced = "POST /_broadcast HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n";
    assert_eq!(fixture.status(announced).await, 413);
    assert_eq!(
        fixture.broadcast.metrics().failed_broadcast_msg_total.get(),
        1,
        "the body of 1000 bytes was no publication"
    );
}

#[tokio::test]
async fn bodies_held_at_once_are_bounded_together() {
    let fixture = fixture(|_, limits| limits.bodies_bytes_max = 100);
    let request = post("/_broadcast", "", &"x".repeat(80));
    let (mut first, _served) = fixture.connect(b"").await;
    first.write_all(&request.as_bytes()[..request.len() - 1]).await.unwrap();
    until("the first body is held", || fixture.server.0.bodies.available_permits() <= 21).await;
    assert_eq!(fixture.status(&request).await, 503);
    first.write_all(b"x").await.unwrap();
    assert_eq!(status_of(&read_head(&mut first).await), 201);
    assert_eq!(fixture.status(&request).await, 201, "room returned");
    assert_eq!(fixture.server.0.bodies.available_permits(), 100);
}

#[tokio::test]
async fn large_bodies_that_do_not_end_keep_small_ones_out_no_more() {
    let fixture = fixture(|_, limits| limits.bodies_bytes_max = 200);
    let large = post("/_broadcast", "", &"x".repeat(90));
    let mut slow = Vec::new();
    for _ in 0..2 {
        let (mut client, served) = fixture.connect(b"").await;
        client.write_all(&large.as_bytes()[..large.len() - 1]).await.unwrap();
        slow.push((client, served));
    }
    until("both are held", || fixture.server.0.bodies.available_permits() <= 22).await;
    assert_eq!(fixture.status(&post("/_broadcast", "", PUBLICATION)).await, 201);
    assert_eq!(fixture.metrics.http_connections_evicted_total.get(), 1);
    assert_eq!(fixture.sink.taken(), [TAKEN]);
}

#[tokio::test]
async fn a_body_shorter_than_announced_or_badly_chunked_is_422() {
    let fixture = fixture(|_, _| ());
    let short = post("/_broadcast", "", PUBLICATION);
    assert_eq!(fixture.status(&short[..short.len() - 1]).await, 422);
    let chunked = "POST /_broadcast HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert_eq!(fixture.status(chunked).await, 422);
    assert!(fixture.sink.taken().is_empty());
}

#[tokio::test]
async fn slow_peers_are_not_waited_for() {
    let fixture = fixture(|_, limits| {
        limits.head_timeout = Duration::from_millis(20);
        limits.body_timeout = Duration::from_millis(20);
        limits.linger = Duration::from_millis(20);
    });
    for head in ["", "GET /hea", "GET /health HTTP/1.1\r\nHost: h\r\n"] {
        let (mut client, served) = fixture.connect(head.as_bytes()).await;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        served.await.unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), "", "{head}");
    }
    let request = post("/_broadcast", "", PUBLICATION);
    let (mut client, served) = fixture.connect(&request.as_bytes()[..request.len() - 1]).await;
    assert_eq!(status_of(&read_head(&mut client).await), 408);
    served.await.unwrap();
    assert!(fixture.sink.taken().is_empty());
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_dropped() {
    let fixture = fixture(|routes, limits| {
        routes.metrics.as_mut().unwrap().text = Box::new(|_| Box::pin(async { "x".repeat(64 << 20) }));
        limits.write_timeout = Duration::from_millis(20);
    });
    let (_client, served) = fixture.connect(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").await;
    served.await.unwrap();
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let fixture = fixture(|_, limits| limits.head_bytes_max = 8 << 10);
    let request = format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(fixture.status(&request).await, 431);
    assert_eq!(fixture.status("GARBAGE\r\n\r\n").await, 400);
}

#[tokio::test]
async fn limits_beyond_what_can_be_counted_are_no_panic() {
    let fixture = fixture(|_, limits| {
        (limits.connections_max, limits.bodies_bytes_max, limits.head_bytes_max) = (usize::MAX, usize::MAX, 0);
    });
    assert_eq!(fixture.status(&post("/_broadcast", "", PUBLICATION)).await, 201);
    fixture.server.drain();
    fixture.server.drained().await;
}

const KEY: &str = "Authorization: Bearer k3y\r\n";

#[tokio::test]
async fn strangers_that_were_answered_and_fall_silent_keep_nobody_out() {
    // As many as there are places, and again: all are answered and stay. Then the app comes with its key.
    let fixture = fixture(|_, limits| limits.connections_max = 8);
    let mut strangers = Vec::new();
    for _ in 0..16 {
        let (mut client, served) = fixture.connect(b"").await;
        client.write_all(b"HEAD /nothing HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        assert_eq!(status_of(&read_head(&mut client).await), 404);
        strangers.push((client, served));
    }
    assert_eq!(fixture.status(&post("/api/publish", KEY, PUBLICATION)).await, 201);
    assert_eq!(fixture.metrics.http_connections_refused_total.get(), 0);
    assert!(fixture.metrics.http_connections_evicted_total.get() >= 16 - 4);
}

#[tokio::test]
async fn heads_and_bodies_that_do_not_come_keep_nobody_out() {
    let fixture = fixture(|_, limits| limits.connections_max = 4);
    let begun = post("/_broadcast", "", PUBLICATION);
    let mut slow = Vec::new();
    for n in 0..40 {
        slow.push(fixture.connect(&begun.as_bytes()[..begun.len() - 1 - 40 * (n % 2)]).await);
        assert_eq!(fixture.status("GET /health HTTP/1.1\r\n\r\n").await, 200);
        assert_eq!(fixture.status(&begun).await, 201);
    }
}

#[tokio::test]
async fn who_showed_a_key_keeps_its_connection_however_many_strangers_come() {
    let fixture = fixture(|_, limits| limits.connections_max = 2);
    let (mut app, _served) = fixture.connect(b"").await;
    for n in 0..20 {
        app.write_all(post("/api/publish", KEY, PUBLICATION).as_bytes()).await.unwrap();
        assert_eq!(status_of(&read_head(&mut app).await), 201, "{n}");
        assert_eq!(fixture.status("GET /nothing HTTP/1.1\r\n\r\n").await, 404);
    }
}

#[tokio::test]
async fn health_checks_that_stay_open_do_not_keep_others_out() {
    // Aim: nobody waits for the end of a connection that has its answer. The peers ask for a close and do not close.
    let fixture = fixture(|_, limits| {
        limits.connections_max = 2;
        limits.linger = Duration::from_secs(3600);
    });
    let mut open = Vec::new();
    for n in 0..100 {
        let (mut client, served) = fixture.connect(b"").await;
        client.write_all(b"HEAD /health HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
        assert_eq!(status_of(&read_head(&mut client).await), 200, "{n}");
        open.push((client, served));
    }
}

#[tokio::test]
async fn operators_and_keys_are_answered_while_every_stranger_is_being_answered() {
    let fixture = fixture_with(Recorder::new(false, false), |_, limits| limits.connections_max = 2);
    let (_first, _served) = fixture.connect(post("/_broadcast", "", PUBLICATION).as_bytes()).await;
    fixture.sink.has_begun().await;
    let request = post("/_broadcast", "", PUBLICATION);
    for head in
        ["GET /health HTTP/1.1\r\n\r\n", "GET http://h/ready HTTP/1.1\r\n\r\n", "GET /metrics?x HTTP/1.1\r\n\r\n"]
    {
        assert_eq!(fixture.status(head).await, 200, "{head}");
    }
    assert_eq!(fixture.status(&request).await, 503, "no stranger has room");
    assert_eq!(fixture.status("GET / HTTP/1.1\r\n\r\n").await, 503);
    let (mut app, _app_served) = fixture.connect(post("/api/publish", KEY, PUBLICATION).as_bytes()).await;
    fixture.sink.gate.add_permits(2);
    assert_eq!(status_of(&read_head(&mut app).await), 201);
}

#[tokio::test]
async fn with_nobody_to_throw_out_one_more_is_refused_politely() {
    let fixture = fixture(|_, limits| limits.connections_max = 1);
    let place = || {
        let place = fixture.server.0.rooms.enter().expect("a place");
        place.begins(Doing::Answered);
        place
    };
    let _places: Vec<_> = (0..=OPS_RESERVE).map(|_| place()).collect();
    assert_eq!(fixture.exchange(b"", b"").await.as_bytes(), REFUSAL);
    assert_eq!(fixture.metrics.http_connections_refused_total.get(), 1);
}

fn websocket_rules() -> crate::proto::handshake::Rules {
    let path = |text| crate::model::PathPattern::parse(text).unwrap();
    crate::proto::handshake::Rules {
        cable_paths: vec![path("/cable"), path("/x/*")],
        http_paths: vec![path("/health"), path("/x/health")],
        ..Default::default()
    }
}

const UPGRADE: &str = "GET /cable?a=1 HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\ncookie: a=1\r\ncookie: b=2\r\n\r\n";

#[tokio::test]
async fn an_upgrade_behind_answered_requests_gives_the_connection_back_with_all_that_was_read() {
    let fixture = fixture(|routes, _| routes.websockets = Some(websocket_rules()));
    let before = "HEAD /health HTTP/1.1\r\nHost: h\r\n\r\n";
    let bytes = format!("{before}{before}{UPGRADE}frames");
    // All at once and in pieces of every kind: pipelined, split within a head, in time.
    for already_read in [0, 5, before.len(), bytes.len() - 10, bytes.len()] {
        let (mut client, socket) = pair().await;
        let server = fixture.server.clone();
        let (first, rest) = bytes.as_bytes().split_at(already_read);
        let first = first.to_vec();
        let served = tokio::spawn(async move { server.serve(socket, first).await });
        client.write_all(rest).await.unwrap();
        let (mut socket, mut read) = served.await.unwrap().expect("it comes back");
        drop(client.shutdown().await);
        socket.read_to_end(&mut read).await.unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), format!("{UPGRADE}frames"), "{already_read}");
        drop(socket);
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{already_read}: {answers}");
    }
    assert_eq!(fixture.metrics.http_connections_num.get(), 0);
    fixture.server.drained().await;
}

#[tokio::test]
async fn answers_that_a_slow_peer_has_not_read_are_not_lost_when_the_connection_goes_back() {
    let fixture = fixture(|routes, _| {
        routes.websockets = Some(websocket_rules());
        routes.metrics.as_mut().unwrap().text = Box::new(|_| Box::pin(async { "x".repeat(16 << 20) }));
    });
    let (mut client, socket) = pair().await;
    let server = fixture.server.clone();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n{UPGRADE}").into_bytes();
    let served = tokio::spawn(async move { server.serve(socket, request).await });
    let head = read_head(&mut client).await;
    assert!(head.contains("content-length: 16777216"), "{head}");
    let mut body = vec![0; 16 << 20];
    client.read_exact(&mut body).await.unwrap();
    assert!(body.iter().all(|byte| *byte == b'x'));
    let (_socket, read) = served.await.unwrap().expect("it comes back");
    assert_eq!(String::from_utf8(read).unwrap(), UPGRADE);
}

#[tokio::test]
async fn only_paths_of_websockets_give_the_connection_back() {
    let fixture = fixture(|routes, _| routes.websockets = Some(websocket_rules()));
    for (path, status) in [("/health", 200), ("/x/health", 404), ("/cables", 404), ("/x", 404), ("http://h/y", 404)] {
        assert_eq!(fixture.status(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await, status, "{path}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_a_body_says_that_the_connection_closes() {
    let fixture = fixture(|_, limits| limits.body_bytes_max = 100);
    let large = "x".repeat(101);
    for (request, status, closes) in [
        (post("/_broadcast", "", &large), 413, true),
        (post("/api/publish", "", PUBLICATION), 401, true),
        (post("/nothing", "", PUBLICATION), 404, true),
        (post("/_broadcast", "", PUBLICATION), 201, false),
        (post("/nothing", "", ""), 404, false),
        ("GET /nothing HTTP/1.1\r\n\r\n".to_owned(), 404, false),
    ] {
        let answer = fixture.exchange(b"", request.as_bytes()).await;
        assert_eq!(status_of(&answer), status, "{request}");
        assert_eq!(answer.contains("connection: close\r\n"), closes, "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_cannot_publish_where_no_key_is_needed() {
    let fixture = fixture(|_, _| ());
    let page = "Origin: http://evil.test\r\nContent-Type: text/plain\r\n";
    assert_eq!(fixture.status(&post("/_broadcast", page, PUBLICATION)).await, 403);
    assert!(fixture.sink.taken().is_empty());
    let with_key = format!("{page}{KEY}");
    assert_eq!(fixture.status(&post("/api/publish", &with_key, PUBLICATION)).await, 201, "a key is enough");
}

#[tokio::test]
async fn a_page_may_publish_without_a_key_where_its_site_is_allowed_to() {
    let ours = || Cors::Matching(Box::new(|origin| origin == "http://ours.test"));
    for (cors, origin, status) in
        [(ours(), "http://ours.test", 201), (ours(), "http://evil.test", 403), (Cors::Any, "http://evil.test", 201)]
    {
        let fixture = fixture(|routes, _| routes.broadcast.as_mut().unwrap().cors = Some(cors));
        let request = post("/_broadcast", &format!("Origin: {origin}\r\n"), PUBLICATION);
        assert_eq!(fixture.status(&request).await, status, "{origin}");
    }
}

#[tokio::test]
async fn cors_headers_are_sent_where_they_are_asked_for() {
    let fixture = fixture(|routes, _| {
        routes.broadcast.as_mut().unwrap().cors = Some(Cors::Any);
        routes.api.as_mut().unwrap().cors = Some(Cors::Matching(Box::new(|origin| origin == "http://a.test")));
    });
    let preflight = |path: &str, origin: &str| format!("OPTIONS {path} HTTP/1.1\r\nOrigin: {origin}\r\n\r\n");
    let any = fixture.exchange(b"", preflight("/_broadcast", "http://b.test").as_bytes()).await;
    assert_eq!(status_of(&any), 200);
    assert!(any.contains("access-control-allow-origin: *\r\n"), "{any}");
    assert!(any.contains("access-control-allow-methods: POST, OPTIONS\r\n"), "{any}");
    assert!(any.contains("Authorization\r\n") && !any.contains("credentials"), "{any}");

    let known = fixture.exchange(b"", preflight("/api/publish", "http://a.test").as_bytes()).await;
    assert_eq!(status_of(&known), 200);
    assert!(known.contains("access-control-allow-origin: http://a.test\r\n"), "{known}");
    assert!(known.contains("access-control-allow-credentials: true\r\n"), "{known}");
    let unknown = fixture.exchange(b"", preflight("/api/publish", "http://b.test").as_bytes()).await;
    assert_eq!(status_of(&unknown), 200);
    assert!(!unknown.contains("allow-origin"), "{unknown}");
    let refused = post("/api/publish", "Origin: http://a.test\r\n", PUBLICATION);
    let refused = fixture.exchange(b"", refused.as_bytes()).await;
    assert_eq!(status_of(&refused), 401);
    assert!(refused.contains("access-control-allow-origin: http://a.test\r\n"), "a page may read it: {refused}");
}

#[tokio::test]
async fn presence_over_http_is_checked_in_order_and_not_kept_here() {
    let fixture = fixture(|_, _| ());
    let key = "Authorization: Bearer k3y\r\n";
    for (method, path, headers, status) in [
        ("POST", "/api/presence/room:7/users", key, 422),
        ("GET", "/api/presence/room:7/users", "", 401),
        ("GET", "/api/presence/x", "", 401),
        ("GET", "/api/presence/x", key, 404),
        ("GET", "/api/presence//users", key, 404),
        ("GET", "/api/presence/a/b/users", key, 404),
        ("GET", "/api/presence/a%2Fb/users", key, 501),
        ("GET", "/api/presence/room:7/users", key, 501),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\n{headers}\r\n");
        let answer = fixture.exchange(b"", request.as_bytes()).await;
        assert_eq!(status_of(&answer), status, "{method} {path}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn draining_finishes_requests_and_ends_everything_else() {
    let fixture = fixture_with(Recorder::new(false, false), |_, limits| {
        // No time-out may do the work of draining.
        limits.head_timeout = Duration::from_secs(3600);
        limits.linger = Duration::from_millis(20);
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = fixture.server.clone();
    let listening = tokio::spawn(async move { server.listen(listener).await });

    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"HEAD /health HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    assert_eq!(status_of(&read_head(&mut idle).await), 200);
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(post("/_broadcast", "", PUBLICATION).as_bytes()).await.unwrap();
    fixture.sink.has_begun().await;

    fixture.server.drain();
    listening.await.unwrap();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "an idle connection is closed");
    drop(idle);
    fixture.sink.gate.add_permits(1);
    assert_eq!(status_of(&read_head(&mut busy).await), 201);
    assert_eq!(busy.read(&mut [0]).await.unwrap(), 0);
    drop(busy);
    fixture.server.drained().await;
    assert_eq!(fixture.metrics.http_connections_num.get(), 0);
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn who_keeps_a_connection_to_a_server_that_leaves_is_answered_once_more_and_told() {
    let fixture = fixture_with(Recorder::new(false, false), |_, limits| limits.linger = Duration::from_millis(20));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = fixture.server.clone();
    let listening = tokio::spawn(async move { server.listen(listener).await });
    let mut kept = TcpStream::connect(address).await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    for client in [&mut kept, &mut idle] {
        client.write_all(b"HEAD /health HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        assert!(!read_head(client).await.contains("close"));
    }
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(post("/_broadcast", "", PUBLICATION).as_bytes()).await.unwrap();
    fixture.sink.has_begun().await;

    fixture.server.leave();
    listening.await.unwrap();
    fixture.sink.gate.add_permits(2);
    kept.write_all(post("/_broadcast", "", PUBLICATION).as_bytes()).await.unwrap();
    for client in [&mut busy, &mut kept] {
        let head = read_head(client).await;
        assert!(status_of(&head) == 201 && head.contains("connection: close"), "{head}");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
    drop((busy, kept));
    fixture.server.drain();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    drop(idle);
    fixture.server.drained().await;
}
