//! Calls the app over HTTP (`contracts/rpc-http.md`).
//!
//! A keep-alive pool as large as the number of concurrent calls, HTTP/1.1, or HTTP/2 where the app offers it over TLS.
//! Redirects are not followed, 307 included: a call is answered where the operator said or it fails.

mod breaker;
mod connector;
mod json;
mod welcome;

use std::error::Error;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use self::breaker::{Breaker, Ended, Permit};
use self::connector::{Connector, TlsFailed};
use super::attempt::{Failure, Method, Outcome, Prepared, Retry, Transport};
use super::{BackendError, HostPort, Settings, tls};
use crate::model::{CallError, Request};
use crate::os::clock;

/// Limit of one attempt when none is configured.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Unused connections are closed after this time, as Go's client has it. Most apps close them sooner, which is noticed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// How much of an answer that is an error is read: enough for the log, and to use the connection again.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// How much of it goes to the log.
const SAID_BYTES_MAX: usize = 512;

/// The HTTP transport.
pub(super) struct Http {
    client: Client<Connector, Full<Bytes>>,
    connector: Connector,
    /// Of Connect, Command and Disconnect.
    urls: [Uri; 3],
    /// Read for each call, replaced when the configuration was read again.
    authorization: RwLock<Option<HeaderValue>>,
    receive_bytes_max: usize,
    /// Held for a few additions at a time.
    breaker: Mutex<Breaker>,
}

impl Http {
    pub fn new(url: &Uri, settings: &Settings) -> Result<Http, BackendError> {
        let bad = || BackendError::Target(url.to_string());
        let encrypted = url.scheme() == Some(&http::uri::Scheme::HTTPS);
        let host = url.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let tls = encrypted.then(|| tls::connector(&settings.tls, &[b"h2", b"http/1.1"])).transpose()?;
        let connector = Connector { host: HostPort { host, port }, tls };

        let method = |name: &str| {
            let mut parts = url.clone().into_parts();
            let path = format!("{}/{name}", url.path().trim_end_matches('/'));
            parts.path_and_query = Some(path.parse().map_err(|_| bad())?);
            Uri::from_parts(parts).map_err(|_| bad())
        };
        let urls = [method("connect")?, method("command")?, method("disconnect")?];

        let authorization = RwLock::new(authorization(settings.http_secret.as_deref())?);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(settings.concurrency)
            .http1_title_case_headers(true)
            .build(connector.clone());
        let receive_bytes_max = settings.receive_bytes_max;
        let breaker = Mutex::new(Breaker::new(Instant::now()));
        Ok(Http { client, connector, urls, authorization, receive_bytes_max, breaker })
    }

    /// Shows the app this key from now on.
    pub fn set_secret(&self, secret: Option<&str>) -> Result<(), BackendError> {
        *self.authorization.write().unwrap_or_else(PoisonError::into_inner) = authorization(secret)?;
        Ok(())
    }

    /// Whether the app takes a TCP connection.
    pub async fn ready(&self) -> Result<(), String> {
        self.connector.tcp().await.map(drop).map_err(|error| format!("{}: {error}", self.connector.host))
    }

    fn url(&self, method: Method) -> &Uri {
        match method {
            Method::Connect => &self.urls[0],
            Method::Command => &self.urls[1],
            Method::Disconnect => &self.urls[2],
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, call: &Prepared) -> Result<(StatusCode, HeaderMap, Bytes), Broken> {
        let mut request = http::Request::new(Full::new(call.body.clone()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.url(call.method).clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("cableway/", env!("CARGO_PKG_VERSION"))));
        headers.insert("x-anycable-meta-protov", HeaderValue::from_static("v1"));
        if let Ok(sid) = HeaderValue::from_bytes(&call.sid.ascii()) {
            headers.insert("x-anycable-meta-sid", sid);
        }
        let authorization = self.authorization.read().unwrap_or_else(PoisonError::into_inner).clone();
        authorization.and_then(|authorization| headers.insert(AUTHORIZATION, authorization));
        let response = self.client.request(request).await.map_err(|error| {
            if mentions::<TlsFailed>(&error) { Broken::Tls(chain(&error)) } else { Broken::Network(chain(&error)) }
        })?;
        let (head, body) = response.into_parts();
        let max = if head.status == StatusCode::OK { self.receive_bytes_max } else { ERROR_BYTES_MAX };
        match Limited::new(body, max).collect().await {
            Ok(body) => Ok((head.status, head.headers, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() && head.status == StatusCode::OK => Err(Broken::TooLong),
            // The status says all that is needed.
            Err(error) if error.is::<LengthLimitError>() => Ok((head.status, head.headers, Bytes::new())),
            Err(error) => Err(Broken::Network(error.to_string())),
        }
    }
}

fn authorization(secret: Option<&str>) -> Result<Option<HeaderValue>, BackendError> {
    let Some(secret) = secret.filter(|secret| !secret.is_empty()) else { return Ok(None) };
    let mut value = HeaderValue::try_from(format!("Bearer {secret}")).map_err(|_| BackendError::Secret)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Why an exchange brought no answer.
enum Broken {
    Network(String),
    Tls(String),
    TooLong,
}

/// A request that the breaker let through; when it is dropped halfway the breaker hears that too.
struct Attempt<'a> {
    http: &'a Http,
    permit: Permit,
    ended: Ended,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.http.breaker().done(&self.permit, self.ended, Instant::now());
    }
}

impl Transport for Http {
    fn target(&self, method: Method) -> impl Display {
        self.url(method)
    }

    fn encode(&self, request: &Request) -> Bytes {
        json::encode(request)
    }

    async fn attempt(&self, call: &Prepared, time: Duration) -> Result<Outcome, Failure> {
        let Some(permit) = self.breaker().admit(Instant::now()) else {
            let why = "too many calls failed; waiting".to_owned();
            return Err(Failure::new(CallError::Unavailable(why), Retry::Later));
        };
        let mut attempt = Attempt { http: self, permit, ended: Ended::Unknown };
        // The time-out is kept here and not only by the caller because the breaker has to tell it from a call that
        // was given up.
        let Ok(result) = tokio::time::timeout(time, self.exchange(call)).await else {
            attempt.ended = Ended::Failed;
            return Err(Failure::for_good(CallError::Timeout));
        };
        attempt.ended = if matches!(result, Ok(_) | Err(Broken::TooLong)) { Ended::Answered } else { Ended::Failed };
        drop(attempt);
        match result {
            Ok((StatusCode::OK, _, body)) => json::decode(call.method, &body)
                .map(|outcome| welcome::with_sid(outcome, call.sid))
                .map_err(|why| no_answer(&why, &body)),
            Ok((status, headers, body)) => Err(refusal(status, &headers, &body)),
            Err(Broken::Network(why)) => Err(Failure::new(CallError::Unavailable(why), Retry::Unavailable)),
            Err(Broken::Tls(why)) => Err(Failure::for_good(CallError::Unauthenticated(why))),
            Err(Broken::TooLong) => {
                let why = format!("answer over the limit of {} bytes", self.receive_bytes_max);
                Err(Failure::for_good(CallError::Failed(why)))
            }
        }
    }
}

/// The failure of a call that was answered with something that is no answer.
fn no_answer(why: &str, body: &[u8]) -> Failure {
    let page = body.trim_ascii_start().starts_with(b"<");
    Failure {
        said: excerpt(body),
        hint: if page {
            "a page and no RPC: does rpc-host end with the path where the app serves AnyCable's RPC?"
        } else {
            ""
        },
        ..Failure::for_good(CallError::Failed(format!("answer: {why}")))
    }
}

/// The failure of a call that was answered with another status than 200.
fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let said = excerpt(body);
    // What tells pages apart may stand behind their styles.
    let hint = hint(status, &String::from_utf8_lossy(body));
    let http = format!("HTTP {}", status.as_u16());
    let (error, retry) = match status {
        StatusCode::UNAUTHORIZED => (CallError::Unauthenticated(http), Retry::Never),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
            (CallError::InvalidArgument(format!("{http}: {said}")), Retry::Never)
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let retry = retry_after(headers, clock::wall()).map_or(Retry::Later, Retry::After);
            (CallError::Failed(http), retry)
        }
        // Something in front of the app has not reached it.
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => (CallError::Failed(http), Retry::Later),
        _ if status.is_redirection() => {
            let location =
                headers.get(LOCATION).map(|to| format!(" to {}", excerpt(to.as_bytes()))).unwrap_or_default();
            (CallError::Failed(format!("{http}{location}")), Retry::Never)
        }
        _ => (CallError::Failed(http), Retry::Never),
    };
    Failure { error, retry, said, hint }
}

/// What whoever runs this should look at.
fn hint(status: StatusCode, said: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    match status {
        StatusCode::FORBIDDEN if says(&["Blocked host"]) => {
            "Rails refuses the host name: add it to config.hosts, or call the app by one that is there"
        }
        StatusCode::UNAUTHORIZED => {
            "the secrets differ: secret or http-rpc-secret here, ANYCABLE_SECRET or ANYCABLE_HTTP_RPC_SECRET in the app"
        }
        StatusCode::FORBIDDEN => {
            "the secrets differ (secret or http-rpc-secret here, ANYCABLE_SECRET or ANYCABLE_HTTP_RPC_SECRET in the app), \
             or what stands in front of the app, such as Rails' config.hosts, refuses this server"
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            "nothing is served at this path: rpc-host has to end with the path where the app serves AnyCable's RPC \
             (http_rpc_mount_path, such as /_anycable)"
        }
        _ if status.is_redirection() => {
            "redirects are not followed: give rpc-host the address that answers itself (https instead of http, \
             or a host that config.force_ssl leaves alone)"
        }
        _ if says(&["Action Controller", "sorry, but something went wrong", "Exception caught", "Puma caught"]) => {
            "a Rails error page: the app raised before AnyCable's RPC was reached; its own log says where"
        }
        _ if status.is_server_error() => "the app's own log says more",
        _ => "",
    }
}

/// The beginning of what the app said, on one line.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(SAID_BYTES_MAX)]);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// When the app wants to be asked again (RFC 9110 section 10.2.3: seconds, or a date).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u32>() {
        Ok(seconds) => Some(Duration::from_secs(seconds.into())),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// Whether an error was caused by a `T`.
fn mentions<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| error.is::<T>())
}

/// An error with its causes, on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let texts = std::iter::successors(Some(error), |&error| error.source()).map(|error| error.to_string());
    texts.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, seconds) in [
            ("0", Some(0)),
            ("2", Some(2)),
            (" 3 ", Some(3)),
            ("Sun, 06 Nov 1994 08:49:41 GMT", Some(4)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
