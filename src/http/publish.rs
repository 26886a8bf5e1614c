//! Taking publications over HTTP (`contracts/broadcast.md` sections 2 and 4): method, key, body and status. What a body
//! says is for [`Broadcast`](crate::broadcast::Broadcast).
//!
//! A payload that is no publication is still answered 201: senders take any other status for an outage and send
//! again, which would not help.

use std::time::Duration;

use ::http::header::{AUTHORIZATION, CONTENT_LENGTH, ORIGIN};
use ::http::request::Parts;
use ::http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use subtle::ConstantTimeEq;
use tokio::sync::SemaphorePermit;

use super::rooms::{Doing, Place};
use super::routes::{Cors, PublishRoute, empty};
use super::{Reply, Shared};

pub(super) async fn answer(
    shared: &Shared,
    place: &Place,
    route: &PublishRoute,
    head: &Parts,
    body: &mut Incoming,
) -> Reply {
    let status = match &head.method {
        &Method::OPTIONS if route.cors.is_some() => StatusCode::OK,
        method if method != Method::POST => StatusCode::UNPROCESSABLE_ENTITY,
        _ if !authorized(route, &head.headers) => StatusCode::UNAUTHORIZED,
        _ if is_foreign_page(route, &head.headers) => StatusCode::FORBIDDEN,
        _ => {
            if route.key.is_some() {
                place.showed_a_key();
            }
            if place.is_reserve() { no_room() } else { take(shared, place, route, &head.headers, body).await }
                .unwrap_or_else(|refused| refused)
        }
    };
    route.with_cors(&head.headers, empty(status))
}

fn no_room() -> Result<StatusCode, StatusCode> {
    Err(StatusCode::SERVICE_UNAVAILABLE)
}

/// Whether a page sends this to a route that wants no key, and its site may not. Browsers send a `text/plain` POST of any
/// page without asking first, and name the site in `Origin`; apps send none.
fn is_foreign_page(route: &PublishRoute, headers: &HeaderMap) -> bool {
    route.key.is_none()
        && headers.get_all(ORIGIN).iter().any(|origin| match &route.cors {
            None => true,
            Some(Cors::Any) => false,
            Some(Cors::Matching(allows)) => !origin.to_str().is_ok_and(allows),
        })
}

/// Whether the request shows the route's key, compared as a whole and in constant time.
pub(super) fn authorized(route: &PublishRoute, headers: &HeaderMap) -> bool {
    let Some(key) = &route.key else {
        return true;
    };
    let wanted = format!("Bearer {}", key.expose());
    headers.get(AUTHORIZATION).is_some_and(|given| wanted.as_bytes().ct_eq(given.as_bytes()).into())
}

async fn take(
    shared: &Shared,
    place: &Place,
    route: &PublishRoute,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<StatusCode, StatusCode> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > shared.limits.body_bytes_max as u64) {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let body = tokio::time::timeout(shared.limits.body_timeout, read(shared, place, body));
    place.begins(Doing::Sending);
    let body = body.await.map_err(|_| StatusCode::REQUEST_TIMEOUT)??;
    place.begins(Doing::Answered);
    let taken = route.broadcast.take(route.source, &body.bytes);
    match tokio::time::timeout(shared.limits.publish_timeout, taken).await {
        Ok(Ok(())) => Ok(StatusCode::CREATED),
        Ok(Err(_)) => Err(StatusCode::NOT_IMPLEMENTED),
        Err(_) => {
            tracing::warn!(source = %route.source, "broadcast not handed over in time: shards do not keep up");
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

/// A request body in memory, with the permit for its bytes.
struct BodyWithPermit<'a> {
    bytes: Vec<u8>,
    _permit: SemaphorePermit<'a>,
}

/// Reads a body as it comes; nothing is allocated for what is only announced.
async fn read<'a>(shared: &'a Shared, place: &Place, body: &mut Incoming) -> Result<BodyWithPermit<'a>, StatusCode> {
    let mut bytes = Vec::new();
    let mut permit = shared.bodies.try_acquire_many(0).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    while let Some(frame) = body.frame().await {
        // Shorter than announced, or badly chunked.
        let frame = frame.map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > shared.limits.body_bytes_max {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        permit.merge(room_for(shared, place, bytes.len(), data.len()).await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?);
        bytes.extend_from_slice(&data);
        place.holds(bytes.len());
    }
    Ok(BodyWithPermit { bytes, _permit: permit })
}

/// Room for so many `more` bytes of a body of which some are `held`. When all bodies together take too much, the largest
/// that is not complete makes way; that may be this one, which gets none.
async fn room_for<'a>(shared: &'a Shared, place: &Place, held: usize, more: usize) -> Option<SemaphorePermit<'a>> {
    let permits = u32::try_from(more).ok()?;
    if let Ok(room) = shared.bodies.try_acquire_many(permits) {
        return Some(room);
    }
    if !place.takes_room_of_a_larger_body(held + more) {
        return None;
    }
    // It is free as soon as the other one has noticed.
    tokio::time::timeout(MAKE_WAY_TIMEOUT, shared.bodies.acquire_many(permits)).await.ok()?.ok()
}

/// How long a connection that is thrown out may take to let go of its body. It has nothing else to do.
const MAKE_WAY_TIMEOUT: Duration = Duration::from_secs(1);
