//! One call from its first attempt to its end: deadline, retries and the time between them
//! (`contracts/rpc-grpc.md` section 5).
//!
//! It knows neither gRPC nor HTTP: a [`Transport`] makes one attempt and says whether another may help.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::BackendMetrics;
use crate::model::{Call, CallError, CommandReply, ConnectReply, Request, Sid, Status};

/// Time before the first retry of a call that met `UNAVAILABLE`; it doubles each time.
const UNAVAILABLE_WAIT: Duration = Duration::from_millis(100);
/// Time before the first retry of a call that met `RESOURCE_EXHAUSTED`; it doubles each time.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(10);

/// Something that can make one attempt at a call.
pub(super) trait Transport: Send + Sync + 'static {
    /// Bytes of an encoded call that are not its message, and do not count towards its size.
    const FRAMING_BYTES: usize = 0;

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
}

/// Whether another attempt may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// After 100 ms, 200 ms, 400 ms…
    Unavailable,
    /// After 10 ms, 20 ms, 40 ms…
    Exhausted,
    /// The app said when (`Retry-After`). Not sooner than `Exhausted` would, so that a zero does not spin.
    After(Duration),
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
            Retry::Never => None,
            Retry::Unavailable => Some(UNAVAILABLE_WAIT * factor),
            Retry::Exhausted => Some(EXHAUSTED_WAIT * factor),
            Retry::After(wait) => Some(wait.max(EXHAUSTED_WAIT * factor)),
        }
    }
}

/// Makes a call: attempts until one is answered, fails for good, or the deadline has passed.
pub(super) async fn run<T: Transport>(
    transport: &T,
    call: &Call,
    limits: Limits,
    metrics: &BackendMetrics,
) -> Result<Outcome, CallError> {
    let started = Instant::now();
    let result = attempts(transport, call, limits, started + limits.command_timeout, metrics).await;
    metrics.rpc_call_seconds.observe(started.elapsed());
    metrics.rpc_call_total.inc();
    match &result {
        Err(error) => {
            metrics.rpc_error_total.inc();
            if *error == CallError::Timeout {
                metrics.rpc_timeout_total.inc();
            }
        }
        // Nobody else looks at the answer to a Disconnect.
        Ok(Outcome::Disconnect(Status::Error, _)) => metrics.rpc_error_total.inc(),
        Ok(_) => {}
    }
    result
}

async fn attempts<T: Transport>(
    transport: &T,
    call: &Call,
    limits: Limits,
    deadline: Instant,
    metrics: &BackendMetrics,
) -> Result<Outcome, CallError> {
    let method = match call.request {
        Request::Connect { .. } => Method::Connect,
        Request::Command { .. } => Method::Command,
        Request::Disconnect { .. } => Method::Disconnect,
    };
    let prepared = Prepared { method, sid: call.sid, body: transport.encode(&call.request) };
    let (size, max) = (prepared.body.len() - T::FRAMING_BYTES, limits.send_bytes_max);
    if size > max {
        return Err(CallError::Failed(format!("call of {size} bytes is over the limit of {max}")));
    }
    let mut backoff = Backoff::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = limits.request_timeout.map_or(left, |request| request.min(left));
        let failure = match timeout(time, transport.attempt(&prepared, time)).await {
            Ok(Ok(outcome)) => return Ok(outcome),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(CallError::Timeout),
        };
        let Some(wait) = backoff.next(failure.retry) else { return Err(failure.error) };
        let next = Instant::now() + wait;
        if next >= deadline {
            // An app that names a time too late is not asked again, so there is nothing to wait for. Otherwise the
            // call ends at its deadline, as the contract measured: its place stays taken while the app is in trouble.
            if !matches!(failure.retry, Retry::After(_)) {
                sleep_until(deadline).await;
            }
            return Err(failure.error);
        }
        metrics.rpc_retries_total.inc();
        sleep(wait).await;
    }
}

#[cfg(test)]
mod tests;
