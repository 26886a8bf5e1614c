//! The HTTP contract (`contracts/rpc-http.md`) against a real HTTP server whose every answer the test gives by hand.

mod backend_app;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use backend_app::{Caller, command, connect, disconnect, key, settle, sid, soon};
use bytes::Bytes;
use cableway::backend::{Settings, Target};
use cableway::model::rpc::Status;
use cableway::model::{AppReply, CallError, ConnectReply};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

struct Asked {
    head: http::request::Parts,
    body: Bytes,
    reply: oneshot::Sender<Response<Full<Bytes>>>,
}

impl Asked {
    fn answer(self, status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let _ = self.reply.send(response.body(Full::new(body.into())).unwrap());
    }

    fn succeed(self) {
        self.answer(200, &[], r#"{"status":1}"#);
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

struct Server {
    address: SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    accepted: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, asked) = mpsc::unbounded_channel();
        let accepted = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let calls = calls.clone();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let calls = calls.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let (reply, answer) = oneshot::channel();
                        let _ = calls.send(Asked { head, body, reply });
                        Ok::<_, Infallible>(answer.await.unwrap_or_default())
                    }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Server { address, asked, accepted, task }
    }

    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn next(&mut self) -> Asked {
        soon(self.asked.recv()).await.unwrap()
    }

    fn settings(&self) -> Settings {
        let target = Target::parse(&format!("http://{}/_anycable/", self.address)).unwrap();
        Settings { target, ..Settings::default() }
    }
}

#[tokio::test(start_paused = true)]
async fn each_method_is_a_post_to_its_path_with_the_headers_of_the_contract() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { http_secret: Some("s3cret".into()), ..app.settings() });
    caller.backend.submit(connect(7)).unwrap();
    let asked = app.next().await;
    assert_eq!((asked.head.method.as_str(), asked.head.uri.path()), ("POST", "/_anycable/connect"));
    assert_eq!(asked.header("content-type"), Some("application/json"));
    assert_eq!(asked.header("authorization"), Some("Bearer s3cret"));
    assert_eq!(asked.header("x-anycable-meta-sid"), Some(sid(7).to_string().as_str()));
    assert_eq!(asked.header("x-anycable-meta-protov"), Some("v1"));
    assert_eq!(asked.header("host"), Some(app.address.to_string().as_str()));
    assert_eq!(
        asked.body,
        r#"{"env":{"url":"http://ws.test/cable?t=1","headers":{"REMOTE_ADDR":"10.0.0.9","cookie":"_s=abc"}}}"#
    );
    asked.answer(200, &[], r#"{"status":2,"identifiers":"me","transmissions":["no"],"env":{"cstate":{"a":"1"}}}"#);
    let expected = ConnectReply {
        status: Status::Failure,
        identifiers: "me".into(),
        transmissions: vec!["no".into()],
        error_msg: String::new(),
        cstate: vec![("a".into(), "1".into())],
    };
    assert_eq!(caller.answer().await.result, Ok(AppReply::Connect(expected)));

    caller.backend.submit(command(1)).unwrap();
    let asked = app.next().await;
    assert_eq!(asked.head.uri.path(), "/_anycable/command");
    asked.succeed();
    assert!(caller.answer().await.result.is_ok());

    caller.backend.disconnect(disconnect(1)).unwrap();
    let asked = app.next().await;
    assert_eq!(asked.head.uri.path(), "/_anycable/disconnect");
    asked.succeed();
    let report = caller.backend.drain(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!((report.sent, report.left), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_welcome_that_the_app_gave_no_sid_gets_the_sessions() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(app.settings());
    caller.backend.submit(connect(7)).unwrap();
    let said = r#"{"status":1,"transmissions":["{\"type\":\"welcome\"}"]}"#;
    app.next().await.answer(200, &[], said);
    let Ok(AppReply::Connect(reply)) = caller.answer().await.result else { panic!("no reply to Connect") };
    assert_eq!(reply.transmissions, [format!(r#"{{"type":"welcome","sid":"{}"}}"#, sid(7))]);
}

#[tokio::test(start_paused = true)]
async fn without_a_secret_there_is_no_authorization() {
    let mut app = Server::start().await;
    let caller = Caller::new(app.settings());
    caller.backend.submit(connect(7)).unwrap();
    assert_eq!(app.next().await.header("authorization"), None);
}

#[tokio::test(start_paused = true)]
async fn a_secret_can_be_changed_and_one_that_cannot_be_a_header_changes_nothing() {
    let mut app = Server::start().await;
    let caller = Caller::new(Settings { http_secret: Some("first".into()), ..app.settings() });
    assert!(caller.backend.set_http_secret(Some("a\nb")).is_err());
    for (n, secret) in [(1, "first"), (2, "second")] {
        caller.backend.submit(connect(n)).unwrap();
        assert_eq!(app.next().await.header("authorization"), Some(format!("Bearer {secret}").as_str()));
        caller.backend.set_http_secret(Some("second")).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_status_of_the_table_fails_as_it_says_and_is_not_retried() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(app.settings());
    let failed = |text: &str| CallError::Failed(text.to_owned());
    let location: &[(&str, &str)] = &[("location", "/elsewhere")];
    for (status, headers, error) in [
        (401, &[][..], CallError::Unauthenticated("HTTP 401".into())),
        (400, &[], CallError::InvalidArgument("HTTP 400: why".into())),
        (422, &[], CallError::InvalidArgument("HTTP 422: why".into())),
        (201, &[], failed("HTTP 201")),
        (202, &[], failed("HTTP 202")),
        (403, &[], failed("HTTP 403")),
        (404, &[], failed("HTTP 404")),
        (429, &[], failed("HTTP 429")),
        (500, &[], failed("HTTP 500")),
        (503, &[], failed("HTTP 503")),
        (301, location, failed("HTTP 301 to /elsewhere")),
        (302, location, failed("HTTP 302 to /elsewhere")),
        (307, location, failed("HTTP 307 to /elsewhere")),
    ] {
        caller.backend.submit(connect(1)).unwrap();
        app.next().await.answer(status, headers, "why");
        assert_eq!(caller.answer().await.result, Err(error));
        assert!(app.asked.is_empty());
    }
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 0);
    assert_eq!(caller.backend.metrics().rpc_error_total.get(), 13);
}

#[tokio::test(start_paused = true)]
async fn a_busy_app_that_says_when_to_come_back_is_asked_again_then() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(app.settings());
    for status in [429, 503] {
        let start = Instant::now();
        caller.backend.submit(connect(1)).unwrap();
        app.next().await.answer(status, &[("retry-after", "1")], "");
        let again = app.next().await;
        assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < Duration::from_millis(1050));
        again.succeed();
        assert!(caller.answer().await.result.is_ok());
    }
    // Later than the command may take: no point in waiting.
    let start = Instant::now();
    caller.backend.submit(connect(1)).unwrap();
    app.next().await.answer(503, &[("retry-after", "120")], "");
    assert_eq!(caller.answer().await.result, Err(CallError::Failed("HTTP 503".into())));
    assert!(start.elapsed() < Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn an_empty_or_broken_or_oversized_answer_fails_the_call() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { receive_bytes_max: 1000, ..app.settings() });
    for body in [String::new(), "not json".into(), format!(r#"{{"status":1,"identifiers":"{}"}}"#, "x".repeat(1000))] {
        caller.backend.submit(connect(1)).unwrap();
        app.next().await.answer(200, &[], body);
        assert!(matches!(caller.answer().await.result, Err(CallError::Failed(_))));
    }
    caller.backend.submit(connect(1)).unwrap();
    app.next().await.answer(200, &[("content-type", "text/plain")], r#"{"status":1}"#);
    assert!(caller.answer().await.result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_app_that_does_not_answer_in_three_seconds_is_a_time_out() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { command_timeout: Duration::from_secs(60), ..app.settings() });
    let start = Instant::now();
    caller.backend.submit(connect(1)).unwrap();
    let mut asked = app.next().await;
    assert_eq!(caller.answer().await.result, Err(CallError::Timeout));
    assert!(start.elapsed() >= Duration::from_secs(3) && start.elapsed() < Duration::from_millis(3050));
    // The request is aborted, not only forgotten.
    soon(asked.reply.closed()).await;
    assert_eq!(caller.backend.metrics().rpc_timeout_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_for_as_many_calls_as_may_run() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(Settings { concurrency: 10, ..app.settings() });
    for _ in 0..3 {
        (0..10).for_each(|index| caller.backend.submit(command(index)).unwrap());
        let mut running = Vec::new();
        for _ in 0..10 {
            running.push(app.next().await);
        }
        running.into_iter().for_each(Asked::succeed);
        for _ in 0..10 {
            assert!(caller.answer().await.result.is_ok());
        }
        settle().await;
    }
    assert_eq!(app.accepted.load(std::sync::atomic::Ordering::Relaxed), 10);
}

#[tokio::test(start_paused = true)]
async fn a_dead_app_is_retried_like_grpc_then_the_breaker_opens_and_later_lets_calls_through_again() {
    let app = Server::start().await;
    let (settings, address) = (app.settings(), app.address);
    app.kill().await;
    let mut caller = Caller::new(settings);
    assert!(caller.backend.ready().await.is_err());

    // Two clients are enough: five attempts each make ten.
    let start = Instant::now();
    (0..2).for_each(|index| caller.backend.submit(command(index)).unwrap());
    for _ in 0..2 {
        assert!(matches!(caller.answer().await.result, Err(CallError::Unavailable(_))));
    }
    assert!(start.elapsed() >= Duration::from_secs(3));
    assert_eq!(caller.backend.metrics().rpc_retries_total.get(), 8);

    // Open: calls fail at once, although the app is back.
    let listener = TcpListener::bind(address).await.unwrap();
    let start = Instant::now();
    caller.backend.submit(command(3)).unwrap();
    assert!(matches!(caller.answer().await.result, Err(CallError::Unavailable(_))));
    assert!(start.elapsed() < Duration::from_millis(5));

    // Five seconds after it opened it lets calls through.
    tokio::time::sleep(Duration::from_secs(5)).await;
    caller.backend.submit(command(4)).unwrap();
    soon(listener.accept()).await.unwrap();
    assert_eq!(caller.backend.ready().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn when_a_connect_fails_readiness_asks_the_app_itself_and_believes_only_that() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(app.settings());
    caller.backend.submit(connect(1)).unwrap();
    app.next().await.answer(500, &[], "");
    assert!(caller.answer().await.result.is_err());
    assert_eq!(caller.backend.ready().await, Ok(()), "a client may ask for anything");
    let question = app.next().await;
    assert_eq!(question.head.uri.path(), "/_anycable/connect");
    assert_eq!(question.body, r#"{"env":{"url":"http://localhost/cable"}}"#);
    question.answer(500, &[], "");
    settle().await;
    assert_eq!(caller.backend.ready().await, Err("app server failed: HTTP 500".into()));
    app.next().await.answer(200, &[], r#"{"status":1,"identifiers":"nobody"}"#);
    let goodbye = app.next().await;
    assert_eq!(goodbye.body, r#"{"identifiers":"nobody","env":{"url":"http://localhost/cable"}}"#);
    goodbye.succeed();
    settle().await;
    assert_eq!(caller.backend.ready().await, Ok(()));
    settle().await;
    assert!(app.asked.is_empty(), "no doubt, no question");
}

#[tokio::test(start_paused = true)]
async fn half_an_emoji_in_an_answer_does_not_cost_the_answer() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(app.settings());
    caller.backend.submit(connect(1)).unwrap();
    app.next().await.answer(200, &[], r#"{"status":1,"identifiers":"hi \ud83d"}"#);
    let Ok(AppReply::Connect(reply)) = caller.answer().await.result else { panic!("thrown away") };
    assert_eq!(reply.identifiers, "hi \u{fffd}");
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_is_kept_while_a_proxy_cannot_reach_the_app_and_given_up_when_it_can_never_pass() {
    let mut app = Server::start().await;
    let caller = Caller::new(app.settings());
    for (status, comes_again) in
        [(502, true), (503, true), (504, true), (429, true), (401, false), (404, false), (422, false), (500, false)]
    {
        caller.backend.disconnect(disconnect(1)).unwrap();
        app.next().await.answer(status, &[], "");
        if comes_again {
            app.next().await.answer(status, &[], "");
            app.next().await.succeed();
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(app.asked.is_empty(), "{status}");
    }
    let report = caller.backend.drain(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!((report.sent, report.failed, report.left), (4, 4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_canceled_call_is_aborted_and_gets_no_answer() {
    let mut app = Server::start().await;
    let mut caller = Caller::new(app.settings());
    caller.backend.submit(command(1)).unwrap();
    let mut asked = app.next().await;
    caller.backend.cancel(key(1));
    soon(asked.reply.closed()).await;
    caller.backend.submit(command(2)).unwrap();
    app.next().await.succeed();
    assert_eq!(caller.answer().await.key, key(2));
    assert_eq!(caller.backend.metrics().rpc_canceled_total.get(), 1);
}

#[test]
fn a_secret_that_cannot_be_a_header_is_refused_at_boot() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let target = Target::parse("http://127.0.0.1:1/").unwrap();
    let settings = Settings { target, http_secret: Some("a\nb".into()), ..Settings::default() };
    let _entered = runtime.enter();
    let started = cableway::backend::Backend::start(settings, runtime.handle(), std::sync::Arc::new(drop));
    assert!(started.is_err());
}
