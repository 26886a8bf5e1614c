//! The gRPC contract (`contracts/rpc-grpc.md`) against a real gRPC server.

mod backend_app;

use std::time::Duration;

use backend_app::*;
use cableway::backend::grpc::messages::{CommandResponse, ConnectionResponse, EnvResponse, PresenceResponse, Status};
use cableway::backend::{Settings, Target};
use cableway::model::rpc::{PresenceReply, Status as Verdict};
use cableway::model::{AppReply, CallError, CommandReply, ConnectReply, Request, State};
use tokio::time::Instant;
use tonic::Code;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Equal but for the timers' millisecond and the moments that work itself takes.
#[track_caller]
fn assert_about(measured: Duration, expected: Duration) {
    let late = measured.saturating_sub(expected);
    assert!(measured >= expected && late <= millis(25), "{measured:?} instead of {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn connect_carries_metadata_and_env_and_brings_the_reply_back() {
    let mut app = Server::start().await;
    let mut caller = Caller::to(&app);
    caller.backend.submit(connect(7)).unwrap();

    let asked = app.next().await;
    assert_eq!(asked.metadata.get("sid").unwrap().to_str().unwrap(), sid(7).to_string());
    assert_eq!(asked.metadata.get("protov").unwrap(), "v1");
    assert!(asked.metadata.get("user-agent").unwrap().to_str().unwrap().starts_with("cableway/"));
    assert_eq!(asked.metadata.get("grpc-timeout").unwrap(), "3000000u");
    let Message::Connect(message) = &asked.message else { panic!("another method") };
    let env = message.env.as_ref().unwrap();
    assert_eq!(env.url, "http://ws.test/cable?t=1");
    let headers: Vec<_> = env.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(headers, [("REMOTE_ADDR", "10.0.0.9"), ("cookie", "_s=abc")]);
    assert!(env.cstate.is_empty() && env.istate.is_empty());

    asked.answer(Told::Connect(ConnectionResponse {
        status: Status::Failure as i32,
        identifiers: "me".into(),
        transmissions: vec!["one".into(), "two".into()],
        error_msg: "no".into(),
        env: Some(EnvResponse { cstate: [("a".into(), "1".into())].into(), istate: Default::default() }),
    }));
    let answer = caller.answer().await;
    assert_eq!(answer.key, key(7));
    let expected = ConnectReply {
        status: Verdict::Failure,
        identifiers: "me".into(),
        transmissions: vec!["one".into(), "two".into()],
        error_msg: "no".into(),
        cstate: vec![("a".into(), "1".into())],
    };
    assert_eq!(answer.result, Ok(AppReply::Connect(expected)));
    assert_eq!(caller.backend.metrics().rpc_call_total.get(), 1);
    assert_eq!(caller.backend.metrics().rpc_error_total.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn every_field_of_a_command_reply_arrives() {
    let mut app = Server::start().await;
    let mut caller = Caller::to(&app);
    caller.backend.submit(command(1)).unwrap();
    app.next().await.answer(Told::Command(CommandResponse {
        status: Status::Success as i32,
        disconnect: true,
        stop_streams: true,
        streams: vec!["s".into()],
        transmissions: vec!["t".into()],
        error_msg: "e".into(),
        env: Some(EnvResponse {
            cstate: [("c".into(), "1".into())].into(),
            istate: [("i".into(), String::new())].into(),
        }),
        stopped_streams: vec!["x".into()],
        presence: Some(PresenceResponse { r#type: "join".into(), id: "7".into(), info: "{}".into(), ttl: 9 }),
    }));
    let expected = CommandReply {
        status: Verdict::Success,
        disconnect: true,
        stop_streams: true,
        streams: vec!["s".into()],
        stopped_streams: vec!["x".into()],
        transmissions: vec!["t".into()],
        error_msg: "e".into(),
        cstate: vec![("c".into(), "1".into())],
        istate: vec![("i".into(), String::new())],
        presence: Some(PresenceReply { kind: "join".into(), id: "7".into(), info: "{}".into() }),
    };
    assert_eq!(caller.answer().await.result, Ok(AppReply::Command(expected)));
}

#[tokio::test(start_paused = true)]
async fn an_absent_or_unknown_status_is_an_error_of_the_app_and_not_of_the_transport() {
    let mut app = Server::start().await;
    let mut caller = Caller::to(&app);
    for status in [0, 3, -1] {
        caller.backend.submit(connect(1)).unwrap();
        app.next().await.answer(Told::Connect(ConnectionResponse { status, ..Default::default() }));
        assert_eq!(caller.answer().await.result, Ok(AppReply::Connect(ConnectReply::default())));
    }
    assert_eq!(caller.backend.metrics().rpc_error_total.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn disconnect_carries_channel_states_as_json_text_without_the_empty_ones() {
    let mut app = Server::start().await;
    let caller = Caller::to(&app);
    let mut call = disconnect(1);
    call.request = Request::Disconnect {
        subscriptions: vec![("a".into(), [("room", "7")].into_iter().collect()), ("b".into(), State::default())],
        env: env().with_identifiers("who"),
        cstate: [("k", "v")].into_iter().collect(),
    };
    caller.backend.disconnect(call).unwrap();
    let asked = app.next().await;
    let Message::Disconnect(message) = &asked.message else { panic!("another method") };
    assert_eq!((message.identifiers.as_str(), &*message.subscriptions), ("who", &["a".to_owned(), "b".to_owned()][..]));
    let env = message.env.as_ref().unwrap();
    assert_eq!(env.istate, [("a".to_owned(), r#"{"room":"7"}"#.to_owned())].into());
    assert_eq!(env.cstate, [("k".to_owned(), "v".to_owned())].into());
}

#[tokio::test(start_paused = true)]
async fn codes_that_are_not_retried_fail_the_call_at_once() {
    let mut app = Server::start().await;
    let mut caller = Caller::to(&app);
    for (code, error) in [
        (Code::DeadlineExceeded, CallError::Timeout),
        (Code::Unauthenticated, CallError::Unauthenticated("because".into())),
        (Code::InvalidArgument, CallError::InvalidArgument("because".into())),
        (Code::Unknown, CallError::Failed("Unknown: because".into())),
        (Code::Internal, CallError::Failed("Internal: because".into())),
        (Code::Cancelled, CallError::Failed("Cancelled: because".into())),
        (Code::PermissionDenied, CallError::Failed("PermissionDenied: because".into())),
        (Code::Aborted, CallError::Failed("Aborted: because".into())),
    ] {
        caller.backend.submit(connect(1)).unwrap();
        app.next().await.fail(code);
        assert_eq!(caller.answer().await.result, Err(error));
        assert!(app.quiet());
    }
    let metrics = caller.backend.metrics();
    assert_eq!((metrics.rpc_call_total.get(), metrics.rpc_error_total.get()), (8, 8));
    assert_eq!((metrics.rpc_retries_total.get(), metrics.rpc_timeout_total.get()), (0, 1));
}

/// The table that was measured at AnyCable: attempts at 0, 0.1, 0.3, 0.7 and 1.5 s, the end at 3 s.
#[tokio::test(start_paused = true)]
async fn an_unavailable_app_is_asked_again_until_the_command_deadline() {
    let mut app = Server::start().await;
    let mut caller = Caller::to(&app);
    let start = Instant::now();
    caller.backend.submit(connect(1)).unwrap();
    for at in [0, 100, 300, 700, 1500] {
        let asked = app.next().await;
        assert_about(start.elapsed(), millis(at));
        asked.fail(Code::Unavailable);
    }
    assert_eq!(caller.answer().await.result, Err(CallError::Unavailable("because".into())));
    assert_about(start.elapsed(), millis(3000));
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 4);
    assert!(app.quiet());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_answered_late_times_out_and_is_given_up_at_the_app_too() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { request_timeout: Some(millis(500)), ..to(&app) });
    let start = Instant::now();
    caller.backend.submit(connect(1)).unwrap();
    let asked = app.next().await;
    assert_eq!(asked.metadata.get("grpc-timeout").unwrap(), "500000u");
    assert_eq!(caller.answer().await.result, Err(CallError::Timeout));
    assert_about(start.elapsed(), millis(500));
    asked.given_up().await;
    let metrics = caller.backend.metrics();
    assert_eq!((metrics.rpc_timeout_total.get(), metrics.rpc_error_total.get()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_canceled_call_is_given_up_at_the_app_and_gets_no_answer() {
    let mut app = Server::start().await;
    let mut caller = Caller::to(&app);
    caller.backend.submit(command(1)).unwrap();
    let asked = app.next().await;
    caller.backend.cancel(key(1));
    asked.given_up().await;
    assert_eq!(caller.backend.metrics().rpc_canceled_total.get(), 1);
    assert_eq!(caller.backend.metrics().rpc_error_total.get(), 0);
    // The place is free again, and the next answer is not that of the canceled call.
    caller.backend.submit(command(2)).unwrap();
    app.next().await.succeed();
    assert_eq!(caller.answer().await.key, key(2));
}

#[tokio::test(start_paused = true)]
async fn calls_fail_fast_while_no_server_listens_and_work_again_soon_after_it_is_back() {
    let place = Place::reserve();
    let mut app = Server::at(&place).await;
    let mut caller = Caller::to(&app);
    caller.backend.submit(command(1)).unwrap();
    app.next().await.succeed();
    assert!(caller.answer().await.result.is_ok());
    assert_eq!(caller.backend.metrics().grpc_active_conn_num.get(), 1);
    assert_eq!(caller.backend.ready().await, Ok(()));

    // One call runs when the server dies: it is tried again, then it finds that nobody listens.
    caller.backend.submit(command(2)).unwrap();
    let running = app.next().await;
    app.kill().await;
    drop(running);
    let start = Instant::now();
    assert!(matches!(caller.answer().await.result, Err(CallError::Unavailable(_))));
    assert!(start.elapsed() < millis(500), "{:?}", start.elapsed());
    assert_eq!(caller.backend.metrics().grpc_active_conn_num.get(), 0);

    // The next ones know already.
    let start = Instant::now();
    for index in 3..40 {
        caller.backend.submit(command(index)).unwrap();
        assert!(matches!(caller.answer().await.result, Err(CallError::Unavailable(_))));
    }
    assert!(start.elapsed() < millis(5), "{:?}", start.elapsed());
    assert!(caller.backend.ready().await.is_err());

    // However long it was away, it is found again in little more than a second without being called.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let mut app = Server::at(&place).await;
    tokio::time::sleep(millis(1300)).await;
    assert_eq!(caller.backend.metrics().grpc_active_conn_num.get(), 1);
    caller.backend.submit(command(50)).unwrap();
    app.next().await.succeed();
    assert!(caller.answer().await.result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_restarts_quickly_loses_no_call() {
    let place = Place::reserve();
    let mut app = Server::at(&place).await;
    let mut caller = Caller::to(&app);
    caller.backend.submit(command(0)).unwrap();
    app.next().await.succeed();
    assert!(caller.answer().await.result.is_ok());

    caller.backend.submit(command(1)).unwrap();
    let running = app.next().await;
    app.kill().await;
    drop(running);
    let mut app = Server::at(&place).await;
    let asked = app.next().await;
    assert_eq!(asked.name(), "1");
    asked.succeed();
    assert!(caller.answer().await.result.is_ok());
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 1);
}

/// Ruby servers end connections after 300 s (`max_connection_age`): nobody must notice.
#[tokio::test(start_paused = true)]
async fn a_goodbye_of_the_server_moves_new_calls_to_a_new_connection_without_a_retry() {
    let place = Place::reserve();
    let mut old = Server::at(&place).await;
    let mut caller = Caller::to(&old);
    caller.backend.submit(command(1)).unwrap();
    let running = old.next().await;
    old.stop();
    settle().await;
    let mut new = Server::at(&place).await;
    caller.backend.submit(command(2)).unwrap();
    new.next().await.succeed();
    assert_eq!(caller.answer().await.key, key(2));
    // The call that was running is answered on the old connection.
    running.succeed();
    let answer = caller.answer().await;
    assert_eq!(answer.key, key(1));
    assert!(answer.result.is_ok());
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 0);
}

/// A proxy in front of a dead app takes connections and drops them: that must not look like a server that works.
#[tokio::test(start_paused = true)]
async fn connections_that_break_before_any_answer_count_as_failed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let accepted = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let mut caller = Caller::new(Settings { target, ..Settings::default() });
    caller.backend.submit(command(1)).unwrap();
    assert!(matches!(caller.answer().await.result, Err(CallError::Unavailable(_))));
    // About one attempt a second, whoever calls.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = accepted.load(std::sync::atomic::Ordering::Relaxed);
    for index in 0..50 {
        caller.backend.submit(command(index)).unwrap();
        assert!(matches!(caller.answer().await.result, Err(CallError::Unavailable(_))));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let attempts = accepted.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!((8..=13).contains(&attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn calls_go_round_the_servers_of_a_list_and_skip_the_dead_ones() {
    let mut a = Server::start().await;
    let mut b = Server::start().await;
    let dead = Server::start().await;
    let target = format!("grpc-list://{},{},{}", a.address, dead.address, b.address);
    dead.kill().await;
    let mut caller = Caller::new(Settings { target: Target::parse(&target).unwrap(), ..Settings::default() });
    // The first call waits for one connection, and finds all of them made or failed afterwards.
    assert_eq!(caller.backend.ready().await, Ok(()));
    settle().await;
    for index in 0..6 {
        caller.backend.submit(command(index)).unwrap();
    }
    for server in [&mut a, &mut b] {
        for _ in 0..3 {
            server.next().await.succeed();
        }
    }
    for _ in 0..6 {
        assert!(caller.answer().await.result.is_ok());
    }
    assert_eq!(caller.backend.metrics().grpc_active_conn_num.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_dns_target_is_resolved_and_called() {
    let mut app = Server::start().await;
    let target = Target::parse(&format!("dns:///127.0.0.1:{}", app.address.port())).unwrap();
    let mut caller = Caller::new(Settings { target, ..Settings::default() });
    caller.backend.submit(command(1)).unwrap();
    app.next().await.succeed();
    assert!(caller.answer().await.result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn messages_over_the_limits_fail_without_a_retry() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { receive_bytes_max: 1000, send_bytes_max: 500, ..to(&app) });
    caller.backend.submit(command(1)).unwrap();
    let reply = CommandResponse { transmissions: vec!["x".repeat(1001)], ..Default::default() };
    app.next().await.answer(Told::Command(reply));
    assert!(matches!(caller.answer().await.result, Err(CallError::Failed(_))));

    let mut large = command(2);
    if let Request::Command { data, .. } = &mut large.request {
        *data = "x".repeat(501);
    }
    caller.backend.submit(large).unwrap();
    assert!(matches!(caller.answer().await.result, Err(CallError::Failed(_))));
    assert!(app.quiet());
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 0);
}

const SETTINGS: u8 = 4;

/// Takes a connection and begins to speak HTTP/2 on it, while the backend waits for that.
async fn greeted(listener: &tokio::net::TcpListener, caller: &Caller) -> tokio::net::TcpStream {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const PREFACE: usize = 24;
    let greet = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; PREFACE]).await.unwrap();
        stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.unwrap();
        stream
    };
    let (stream, ready) = tokio::join!(greet, caller.backend.ready());
    assert_eq!(ready, Ok(()));
    stream
}

/// Reads HTTP/2 frames, answers settings and pings, and returns when each ping came.
async fn pings(mut stream: tokio::net::TcpStream, count: usize) -> Vec<Instant> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let mut came = Vec::new();
    while came.len() < count {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        match (head[3], head[4] & ACK) {
            (SETTINGS, 0) => stream.write_all(&[0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0]).await.unwrap(),
            (PING, 0) => {
                came.push(Instant::now());
                head[4] = ACK;
                // One write: half a frame would be held back by Nagle's algorithm, in real time.
                stream.write_all(&[&head[..], &payload].concat()).await.unwrap();
            }
            _ => {}
        }
    }
    came
}

/// Never under 10 s: Ruby servers answer that with `GOAWAY too_many_pings`.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_pinged_every_ten_seconds_and_never_sooner() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let caller = Caller::new(Settings { target, ..Settings::default() });
    let stream = greeted(&listener, &caller).await;
    let start = Instant::now();
    let mut last = start;
    for came in soon(pings(stream, 4)).await {
        let interval = came - last;
        assert!(interval >= millis(9_999) && interval < millis(10_050), "{interval:?}");
        last = came;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_answering_pings_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let caller = Caller::new(Settings { target, ..Settings::default() });
    let mut silent = greeted(&listener, &caller).await;
    soon(async {
        use tokio::io::AsyncReadExt;
        let mut sink = [0; 1024];
        while silent.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_port_that_takes_connections_and_says_nothing_is_no_app() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let mut caller = Caller::new(Settings { target, ..Settings::default() });
    caller.backend.submit(connect(1)).unwrap();
    let (_silent, _) = soon(listener.accept()).await.unwrap();
    assert!(caller.answer().await.result.is_err());
    let why = caller.backend.ready().await.unwrap_err();
    assert!(why.contains("says nothing"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_answers_http_1_is_told_apart() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let mut caller = Caller::new(Settings { target, ..Settings::default() });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        }
    });
    caller.backend.submit(connect(1)).unwrap();
    let Err(CallError::Unavailable(why)) = caller.answer().await.result else { panic!("it was answered") };
    assert!(why.contains("answers HTTP/1 and not gRPC"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_of_the_moment_in_which_the_app_was_away_is_kept_until_it_is_told() {
    let place = Place::reserve();
    let mut app = Server::at(&place).await;
    let mut caller = Caller::to(&app);
    caller.backend.submit(connect(1)).unwrap();
    app.next().await.succeed();
    caller.answer().await;
    app.kill().await;
    for index in 0..3 {
        caller.backend.disconnect(disconnect(index)).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(caller.backend.metrics().disconnect_dropped_total.get(), 0);
    let mut app = Server::at(&place).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        let asked = app.next().await;
        told.push(asked.name().to_owned());
        asked.succeed();
    }
    told.sort();
    assert_eq!(told, ["0", "1", "2"]);
    let report = caller.backend.drain(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!((report.sent, report.failed, report.left), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_is_gone_does_not_hold_the_end_up() {
    let app = Server::start().await;
    let caller = Caller::to(&app);
    app.kill().await;
    for index in 0..100 {
        caller.backend.disconnect(disconnect(index)).unwrap();
    }
    let start = Instant::now();
    let report = caller.backend.drain(start + Duration::from_secs(60)).await;
    assert_eq!((report.sent, report.failed, report.left), (0, 100, 0));
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_connected_before_the_first_call() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    let caller = Caller::new(Settings { target, ..Settings::default() });
    let accepted = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await;
    assert!(accepted.is_err());
    caller.backend.submit(connect(1)).unwrap();
    listener.accept().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_an_app_every_call_is_refused_at_once() {
    let caller = Caller::new(Settings::default());
    assert_eq!(caller.backend.submit(connect(1)), Err(CallError::NoBackend));
    assert!(caller.backend.disconnect(disconnect(1)).is_ok());
    caller.backend.cancel(key(1));
    assert_eq!(caller.backend.ready().await, Ok(()));
    assert_eq!(caller.backend.drain(Instant::now()).await.left, 0);
    assert!(caller.backend.describe().starts_with("none"));
}

/// Where the status stands in an answer: in its head or behind its message.
#[derive(Clone, Copy)]
enum StatusIn {
    Head,
    Trailers,
}

/// Answers one call with a status whose details are no base64.
async fn answer_with_bad_details(listener: &tokio::net::TcpListener, place: StatusIn) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
    let mut status = http::HeaderMap::new();
    for (name, value) in [("grpc-status", "5"), ("grpc-message", "gone"), ("grpc-status-details-bin", "*")] {
        status.insert(name, http::HeaderValue::from_static(value));
    }
    let mut head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    match place {
        StatusIn::Head => {
            head.headers_mut().extend(status);
            respond.send_response(head, true).unwrap();
        }
        StatusIn::Trailers => {
            let mut body = respond.send_response(head, false).unwrap();
            body.send_trailers(status).unwrap();
        }
    }
    while connection.accept().await.is_some() {}
}

/// tonic panics on them, and a panic ends the process.
#[tokio::test]
async fn details_of_a_status_that_are_no_base64_harm_nobody() {
    for place in [StatusIn::Head, StatusIn::Trailers] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let mut caller = Caller::new(Settings { target, ..Settings::default() });
        let app = tokio::spawn(async move { answer_with_bad_details(&listener, place).await });
        caller.backend.submit(connect(7)).unwrap();
        assert_eq!(caller.answer().await.result, Err(CallError::Failed("NotFound: gone".into())));
        app.abort();
    }
}
