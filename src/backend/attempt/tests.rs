//! Retries and deadlines over a transport that fails as told, with the clock paused.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;
use crate::model::{Env, SlotKey};

struct Scripted {
    script: Mutex<VecDeque<Step>>,
    asked_at: Mutex<Vec<Duration>>,
    start: Instant,
}

enum Step {
    Fail(Retry),
    Succeed,
    Hang,
}

impl Transport for Scripted {
    fn target(&self, _: Method) -> impl Display {
        "script"
    }

    fn encode(&self, _: &Request) -> Bytes {
        Bytes::from_static(b"0123456789")
    }

    async fn attempt(&self, _: &Prepared, _: Duration) -> Result<Outcome, Failure> {
        self.asked_at.lock().unwrap().push(self.start.elapsed());
        let step = self.script.lock().unwrap().pop_front();
        match step.expect("one attempt too many") {
            Step::Fail(retry) => Err(Failure::new(CallError::Failed("scripted".into()), retry)),
            Step::Succeed => Ok(Outcome::Connect(ConnectReply::default())),
            Step::Hang => std::future::pending().await,
        }
    }
}

struct Ran {
    result: Result<Outcome, Failure>,
    asked_at_ms: Vec<u128>,
    took_ms: u128,
    metrics: BackendMetrics,
}

const LIMITS: Limits =
    Limits { request_timeout: None, command_timeout: Duration::from_secs(3), send_bytes_max: usize::MAX };

async fn ran(limits: Limits, script: impl IntoIterator<Item = Step>) -> Ran {
    let script = Mutex::new(script.into_iter().collect());
    let transport = Scripted { script, asked_at: Mutex::default(), start: Instant::now() };
    let key = SlotKey { shard: 0, index: 0, generation: 0 };
    let call = Call { key, sid: Sid::from_bits(1), request: Request::Connect { env: Env::new("", []) } };
    let metrics = BackendMetrics::default();
    let result = run(&transport, &call, limits, &metrics, &Health::default()).await;
    assert!(transport.script.lock().unwrap().is_empty(), "an attempt too few");
    let asked_at_ms = transport.asked_at.lock().unwrap().iter().map(Duration::as_millis).collect();
    Ran { result, asked_at_ms, took_ms: transport.start.elapsed().as_millis(), metrics }
}

fn fails(times: usize, retry: Retry) -> impl Iterator<Item = Step> {
    std::iter::repeat_with(move || Step::Fail(retry)).take(times)
}

#[tokio::test(start_paused = true)]
async fn unavailable_is_retried_as_measured_at_anycable() {
    let ran = ran(LIMITS, fails(5, Retry::Unavailable)).await;
    assert_eq!(ran.asked_at_ms, [0, 100, 300, 700, 1500]);
    assert_eq!(ran.took_ms, 3000);
    assert!(ran.result.is_err());
    assert_eq!((ran.metrics.rpc_retries_total.get(), ran.metrics.rpc_error_total.get()), (4, 1));
    assert_eq!(ran.metrics.rpc_timeout_total.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn resource_exhausted_is_retried_nine_times_as_measured_at_anycable() {
    let ran = ran(LIMITS, fails(9, Retry::Exhausted)).await;
    assert_eq!(ran.asked_at_ms, [0, 10, 30, 70, 150, 310, 630, 1270, 2550]);
    assert_eq!(ran.took_ms, 3000);
}

#[tokio::test(start_paused = true)]
async fn the_wait_starts_small_again_when_the_reason_changes() {
    let steps = [Retry::Unavailable, Retry::Unavailable, Retry::Exhausted, Retry::Exhausted, Retry::Unavailable];
    let ran = ran(LIMITS, steps.map(Step::Fail).into_iter().chain([Step::Succeed])).await;
    assert_eq!(ran.asked_at_ms, [0, 100, 300, 310, 330, 430]);
    assert!(ran.result.is_ok());
    assert_eq!((ran.metrics.rpc_call_total.get(), ran.metrics.rpc_error_total.get()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_time_named_by_the_app_is_kept_and_a_zero_does_not_spin() {
    let after = |ms| Step::Fail(Retry::After(Duration::from_millis(ms)));
    let ran = ran(LIMITS, [after(1000), after(0), after(0), Step::Succeed]).await;
    assert_eq!(ran.asked_at_ms, [0, 1000, 1020, 1060]);
}

#[tokio::test(start_paused = true)]
async fn a_time_named_by_the_app_that_is_too_late_ends_the_call_at_once() {
    let ran = ran(LIMITS, [Step::Fail(Retry::After(Duration::from_secs(3)))]).await;
    assert_eq!(ran.took_ms, 0);
    assert!(ran.result.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_retried_is_not() {
    for retry in [Retry::Never, Retry::Later] {
        let ran = ran(LIMITS, [Step::Fail(retry)]).await;
        assert_eq!((ran.asked_at_ms.len(), ran.took_ms), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_command_deadline_ends_an_attempt_that_hangs_retries_included() {
    let ran = ran(LIMITS, [Step::Fail(Retry::Unavailable), Step::Hang]).await;
    assert_eq!(ran.took_ms, 3000);
    assert_eq!(ran.result, Err(Failure::for_good(CallError::Timeout)));
    assert_eq!(ran.metrics.rpc_timeout_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_request_time_out_ends_one_attempt_and_is_not_retried() {
    let limits = Limits { request_timeout: Some(Duration::from_millis(200)), ..LIMITS };
    let ran = ran(limits, [Step::Fail(Retry::Unavailable), Step::Hang]).await;
    assert_eq!(ran.took_ms, 300);
    assert_eq!(ran.result, Err(Failure::for_good(CallError::Timeout)));
}

#[tokio::test(start_paused = true)]
async fn a_call_over_the_size_limit_is_not_sent() {
    assert!(ran(Limits { send_bytes_max: 9, ..LIMITS }, []).await.result.is_err());
    assert!(ran(Limits { send_bytes_max: 10, ..LIMITS }, [Step::Succeed]).await.result.is_ok());
}
