//! One call from its first attempt to its end: deadline, retries and the time between them
//! (`contracts/rpc-grpc.md` section 5).
//!
//! It knows neither gRPC nor HTTP: a [`Transport`] makes one attempt and says whether another may help.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;

use super::BackendMetrics;
use super::health::Health;
use crate::model::{Call, CallError, CommandReply, ConnectReply, Request, Sid, Status};

/// Time before the first retry of a call that met `UNAVAILABLE`; it doubles each time.
const UNAVAILABLE_WAIT: Duration = Duration::from_millis(100);
/// Time before the first retry of a call that met `RESOURCE_EXHAUSTED`; it doubles each time.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(10);

/// Something that can make one attempt at a call.
pub(super) trait Transport: Send + Sync + 'static {
    /// Bytes of an encoded call that are not its message, and do not count towards its size.
    const FRAMING_BYTES: usize = 0;

    /// Where such a call goes, for the log.
    fn target(&self, method: Method) -> impl Display;

    /// Encodes what is asked, as it goes out. Done once per call, however often it is tried.
    fn encode(&self, request: &Request) -> Bytes;

    /// Sends a call and waits for the answer. Dropping the future gives the call up, at the app too.
    fn attempt(&self, call: &Prepared, time: Duration) -> impl Future<Output = Result<Outcome, Failure>> + Send;
}

/// A call, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub method: Method,
    pub sid: Sid,
    pub body: Bytes,
}

/// The three things an app can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Connect,
    Command,
    Disconnect,
}

/// What the app answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Connect(ConnectReply),
    Command(Box<CommandReply>),
    Disconnect(Status, String),
}

/// Why an attempt brought no answer, and whether to try again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub error: CallError,
    pub retry: Retry,
    /// How the answer began, if it was not one.
    pub said: String,
    /// What whoever runs this should look at.
    pub hint: &'static str,
}

impl Failure {
    /// One that may be cured as `retry` says.
    pub fn new(error: CallError, retry: Retry) -> Failure {
        Failure { error, retry, said: String::new(), hint: "" }
    }

    /// One that no other attempt at the same call can cure.
    pub fn for_good(error: CallError) -> Failure {
        Failure::new(error, Retry::Never)
    }
}

/// Whether another attempt may help.
///
/// Connects and Commands are tried again as long as somebody waits, Disconnects until they pass, each unless it is `Never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// It cannot pass, or may have passed: the app answered with any other error, did not answer in time (it may be at it, and
    /// is not told twice), refused the secret, or said that the call is too large.
    Never,
    /// After 100 ms, 200 ms, 400 ms…: the app could not be reached, or the connection broke.
    Unavailable,
    /// After 10 ms, 20 ms, 40 ms…: the app is too busy.
    Exhausted,
    /// The app said when (`Retry-After`). Not sooner than `Exhausted` would, so that a zero does not spin.
    After(Duration),
    /// Not as long as somebody waits for the call: no server can be reached, or what stands in front of the app said so.
    Later,
}

/// The time limits of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub request_timeout: Option<Duration>,
    pub command_timeout: Duration,
    pub send_bytes_max: usize,
}

/// How often a call was retried in a row for the same reason.
#[derive(Default)]
struct Backoff {
    reason: Option<Retry>,
    times: u32,
}

impl Backoff {
    /// How long to wait before the next attempt; `None` when there is to be none.
    fn next(&mut self, retry: Retry) -> Option<Duration> {
        // The counter starts again when the reason changes; times named by the app are one reason.
        let same = self.reason.is_some_and(|last| std::mem::discriminant(&last) == std::mem::discriminant(&retry));
        self.times = if same { self.times + 1 } else { 0 };
        self.reason = Some(retry);
        // Far beyond every deadline long before the factor stops growing.
        let factor = 1 << self.times.min(16);
        match retry {
            Retry::Never | Retry::Later => None,
            Retry::Unavailable => Some(UNAVAILABLE_WAIT * factor),
            Retry::Exhausted => Some(EXHAUSTED_WAIT * factor),
            Retry::After(wait) => Some(wait.max(EXHAUSTED_WAIT * factor)),
        }
    }
}

/// Makes a call: attempts until one is answered, fails for good, or the deadline has passed. One that fails is logged.
pub(super) async fn run<T: Transport>(
    transport: &T,
    call: &Call,
    limits: Limits,
    metrics: &BackendMetrics,
    health: &Health,
) -> Result<Outcome, Failure> {
    let started = Instant::now();
    let method = match call.request {
        Request::Connect { .. } => Method::Connect,
        Request::Command { .. } => Method::Command,
        Request::Disconnect { .. } => Method::Disconnect,
    };
    let result = attempts(transport, method, call, limits, started + limits.command_timeout, metrics).await;
    metrics.rpc_call_seconds.observe(started.elapsed());
    metrics.rpc_call_total.inc();
    health.note(method, &result);
    let (sid, target) = (call.sid, transport.target(method));
    match &result {
        Err(Failure { error, said, hint, .. }) => {
            metrics.rpc_error_total.inc();
            if *error == CallError::Timeout {
                metrics.rpc_timeout_total.inc();
            }
            let said = (!said.is_empty()).then_some(said);
            let hint = (!hint.is_empty()).then_some(hint);
            warn!(?method, %target, %sid, %error, said, hint, "call to the app failed");
        }
        // Nobody else looks at the answer to a Disconnect.
        Ok(Outcome::Disconnect(Status::Error, error)) => {
            metrics.rpc_error_total.inc();
            warn!(?method, %target, %sid, error, "the app failed to handle a call");
        }
        Ok(Outcome::Connect(ConnectReply { status: Status::Error, error_msg, .. })) => {
            warn!(?method, %target, %sid, error = error_msg, "the app failed to handle a call");
        }
        Ok(Outcome::Command(reply)) if reply.status == Status::Error => {
            warn!(?method, %target, %sid, error = reply.error_msg, "the app failed to handle a call");
        }
        Ok(_) => {}
    }
    result
}

async fn attempts<T: Transport>(
    transport: &T,
    method: Method,
    call: &Call,
    limits: Limits,
    deadline: Instant,
    metrics: &BackendMetrics,
) -> Result<Outcome, Failure> {
    let prepared = Prepared { method, sid: call.sid, body: transport.encode(&call.request) };
    let (size, max) = (prepared.body.len() - T::FRAMING_BYTES, limits.send_bytes_max);
    if size > max {
        let why = format!("call of {size} bytes is over the limit of {max}");
        return Err(Failure::for_good(CallError::Failed(why)));
    }
    let mut backoff = Backoff::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = limits.request_timeout.map_or(left, |request| request.min(left));
        let failure = match timeout(time, transport.attempt(&prepared, time)).await {
            Ok(Ok(outcome)) => return Ok(outcome),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(Failure::for_good(CallError::Timeout)),
        };
        let Some(wait) = backoff.next(failure.retry) else { return Err(failure) };
        let next = Instant::now() + wait;
        if next >= deadline {
            // An app that names a time too late is not asked again, so there is nothing to wait for. Otherwise the
            // call ends at its deadline, as the contract measured: its place stays taken while the app is in trouble.
            if !matches!(failure.retry, Retry::After(_)) {
                sleep_until(deadline).await;
            }
            return Err(failure);
        }
        metrics.rpc_retries_total.inc();
        sleep(wait).await;
    }
}

#[cfg(test)]
mod tests;
