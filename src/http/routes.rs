//! Which paths there are on a port, and the answers that need no body.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ::http::header::{self, HeaderValue};
use ::http::request::Parts;
use ::http::{Method, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::body::Incoming;
use serde::{Serialize, Serializer};

use super::rooms::{Doing, Place};
use super::{AdminRoutes, Reply, Shared, admin, publish};
use crate::broadcast::{Broadcast, Source};
use crate::identity::Secret;
use crate::model::BrokerError;
use crate::proto::handshake::Rules;
use crate::telemetry::Text;

/// The routes of one port; what is `None` is not there and answered 404. Paths start with `/` and are matched
/// exactly: no trailing slash, no dot segments, no escapes.
#[derive(Default)]
pub struct Routes {
    /// Where apps publish (`POST`).
    pub broadcast: Option<PublishRoute>,
    /// The HTTP API; its path is the base: `BASE/publish`, `BASE/presence/STREAM/users`.
    pub api: Option<PublishRoute>,
    /// Says that the process is alive, whatever the state of everything else.
    pub health: Option<HealthRoute>,
    /// Says whether this server should get new clients.
    pub ready: Option<ReadyRoute>,
    /// Metrics, in the form that is asked for.
    pub metrics: Option<MetricsRoute>,
    /// What only operators may ask. A port that has it answers nothing else.
    pub admin: Option<AdminRoutes>,
    /// Asked for every other path.
    pub extra: Option<ExtraRoutes>,
    /// Which paths are not for this server but for WebSockets: a request for one gives the connection back.
    pub websockets: Option<Rules>,
}

/// Routes that somebody else brings: an answer in the making, or `None` for a path that is not theirs. Bodies of
/// requests are not read.
pub type ExtraRoutes = Arc<dyn Fn(&::http::request::Parts) -> Option<ExtraAnswer> + Send + Sync>;

/// An answer in the making; must not wait for long.
pub type ExtraAnswer = Later<Response<Full<Bytes>>>;

/// A route that takes publications.
pub struct PublishRoute {
    /// Its path.
    pub path: String,
    /// What a sender shows as `Authorization: Bearer KEY`. Without one everybody may publish.
    pub key: Option<Secret>,
    /// Whether browsers may use it from other sites.
    pub cors: Option<Cors>,
    /// Takes what is sent here.
    pub broadcast: Arc<Broadcast>,
    /// What that is called in the log.
    pub source: Source,
    /// Who is present on a stream; `None` where nobody is asked.
    pub presence: Option<WhoIsPresent>,
}

/// Answers who is present on a stream.
pub type WhoIsPresent = Box<dyn Fn(&str) -> Present + Send + Sync>;

/// Who is present, in the making: JSON text, or why it is not known. Must not wait for long.
pub type Present = Pin<Box<dyn Future<Output = Result<Vec<u8>, BrokerError>> + Send>>;

/// From which sites browsers may use a route.
pub enum Cors {
    /// All.
    Any,
    /// Those for which this is true of the `Origin` header.
    Matching(Box<dyn Fn(&str) -> bool + Send + Sync>),
}

/// Something in the making; must not wait for long.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The route of health.
pub struct HealthRoute {
    /// Its path.
    pub path: String,
    /// Asked for each request: why the server is not well, although it answers. One line.
    pub sickness: Box<dyn Fn() -> Later<Option<String>> + Send + Sync>,
}

/// The readiness route.
pub struct ReadyRoute {
    /// Its path.
    pub path: String,
    /// Asked for each request; must not block.
    pub checks: Box<dyn Fn() -> Later<Vec<Check>> + Send + Sync>,
}

/// One reason to be ready or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// What must be true, such as `backend_reachable`.
    pub name: &'static str,
    /// Whether it is.
    pub ok: bool,
    /// Whether this server is not ready without it. Else it is only told.
    pub needed: bool,
}

/// The metrics route.
pub struct MetricsRoute {
    /// Its path.
    pub path: String,
    /// Asked for each request; must not block.
    pub text: Box<dyn Fn(Text) -> Later<String> + Send + Sync>,
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(super) async fn answer(
    shared: &Shared,
    routes: &Routes,
    place: &Place,
    head: &Parts,
    body: &mut Incoming,
) -> Reply {
    place.begins(Doing::Answered);
    // An absolute target (`POST http://host/_broadcast`, as Ruby's client sends) names the same resource as the
    // path in it (RFC 9112 section 3.2.2).
    let path = head.uri.path();
    if let Some(admin) = &routes.admin {
        return admin::answer(admin, place, head).await;
    }
    if let Some(route) = routes.health.as_ref().filter(|route| route.path == path) {
        return match (route.sickness)().await {
            None => with_body(StatusCode::OK, TEXT, "This server is alive. See /ready for more.\n"),
            Some(why) => with_body(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
        };
    }
    if let Some(route) = routes.ready.as_ref().filter(|route| route.path == path) {
        return readiness(&(route.checks)().await);
    }
    if let Some(route) = routes.metrics.as_ref().filter(|route| route.path == path) {
        let form = metrics_form(head);
        let kind = HeaderValue::from_static(form.media_type());
        let mut reply = with_body(StatusCode::OK, kind, (route.text)(form).await);
        reply.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        return reply;
    }
    if let Some(route) = routes.broadcast.as_ref().filter(|route| route.path == path) {
        return publish::answer(shared, place, route, head, body).await;
    }
    if let Some(route) = &routes.api
        && let Some(rest) = path.strip_prefix(route.path.as_str())
    {
        if rest == "/publish" {
            return publish::answer(shared, place, route, head, body).await;
        }
        if let Some(rest) = rest.strip_prefix("/presence/") {
            return route.with_cors(&head.headers, presence(route, rest, head).await);
        }
    }
    if place.is_reserve() {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    }
    if let Some(extra) = &routes.extra
        && let Some(answer) = extra(head)
    {
        return answer.await;
    }
    with_body(StatusCode::NOT_FOUND, TEXT, "404 page not found")
}

/// The form of metrics that a request asks for.
pub fn metrics_form(head: &Parts) -> Text {
    let accept = head.headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    Text::accepted(&accept.collect::<Vec<_>>().join(","))
}

impl PublishRoute {
    /// Adds what a browser needs to let a page of another site read the answer. Credentials are allowed only
    /// beside a named origin: browsers refuse them beside `*`.
    pub(super) fn with_cors(&self, asked: &::http::HeaderMap, mut reply: Reply) -> Reply {
        let Some(cors) = &self.cors else {
            return reply;
        };
        let headers = reply.headers_mut();
        match cors {
            Cors::Any => {
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            Cors::Matching(allows) => {
                headers.insert(header::VARY, HeaderValue::from_static("Origin"));
                if let Some(origin) = asked.get(header::ORIGIN)
                    && origin.to_str().is_ok_and(allows)
                {
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                }
            }
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, OPTIONS"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(CORS_HEADERS));
        reply
    }
}

/// The request headers that pages of other sites may send (`contracts/ops.md` section 2).
const CORS_HEADERS: &str = "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization";

/// `GET BASE/presence/STREAM/users` (`contracts/broadcast.md` section 4, checks in its order). A stream with a slash comes
/// as `%2F`.
async fn presence(route: &PublishRoute, rest: &str, request: &Parts) -> Reply {
    if request.method != Method::GET {
        return empty(StatusCode::UNPROCESSABLE_ENTITY);
    }
    if !publish::authorized(route, &request.headers) {
        return empty(StatusCode::UNAUTHORIZED);
    }
    let stream = rest.strip_suffix("/users").filter(|stream| !stream.is_empty() && !stream.contains('/'));
    let Some(stream) = stream.and_then(unescaped) else { return empty(StatusCode::NOT_FOUND) };
    let Some(presence) = &route.presence else { return empty(StatusCode::NOT_IMPLEMENTED) };
    match presence(&stream).await {
        Ok(who) => with_body(StatusCode::OK, JSON, who),
        Err(BrokerError::NotKept) => empty(StatusCode::NOT_IMPLEMENTED),
        Err(_) => empty(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// A segment of a path with its escapes resolved (RFC 3986 section 2.1); `None` if that is no UTF-8.
fn unescaped(segment: &str) -> Option<String> {
    percent_encoding::percent_decode_str(segment).decode_utf8().ok().map(Cow::into_owned)
}

/// `{"ready":true,"checks":{"not_draining":true},"links":{"redis":false}}`; without `links` where there are none.
#[derive(Serialize)]
struct Readiness<'a> {
    ready: bool,
    #[serde(serialize_with = "by_name")]
    checks: Vec<&'a Check>,
    #[serde(serialize_with = "by_name", skip_serializing_if = "Vec::is_empty")]
    links: Vec<&'a Check>,
}

fn by_name<S: Serializer>(checks: &[&Check], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(checks.iter().map(|check| (check.name, check.ok)))
}

fn readiness(checks: &[Check]) -> Reply {
    let (checks, links): (Vec<&Check>, Vec<_>) = checks.iter().partition(|check| check.needed);
    let ready = checks.iter().all(|check| check.ok);
    // Names and truth values always make JSON.
    let mut body = serde_json::to_string(&Readiness { ready, checks, links }).unwrap_or_default();
    body.push('\n');
    with_body(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, JSON, body)
}

pub(super) fn empty(status: StatusCode) -> Reply {
    let mut reply = Reply::default();
    *reply.status_mut() = status;
    reply
}

fn with_body(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Reply {
    let mut reply = Reply::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    reply
}
