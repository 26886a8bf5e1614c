//! Taking publications over HTTP (`contracts/broadcast.md` sections 2 and 4).
//!
//! A payload that is no publication is still answered 201: senders take any other status for an outage and send
//! again, which would not help. It is counted and the reason is logged.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use ::http::header::{AUTHORIZATION, CONTENT_LENGTH};
use ::http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use subtle::ConstantTimeEq;

use super::routes::{PublishRoute, empty};
use super::{Reply, Shared};
use crate::model::{Publication, RemoteDisconnect};
use crate::proto::publication;

/// The end of a hand-over; waits while somebody's inbox is full.
pub type Handover<'a> = Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + 'a>>;

/// Where publications and remote commands go: to the clients of this node, or to all nodes.
///
/// The sender is answered when the hand-over is done, not when clients have the message. A hand-over may be
/// dropped unfinished when it takes too long; what was handed over by then stays so.
pub trait Publisher: Send + Sync + 'static {
    /// Hands publications over, in this order. Never empty.
    fn publish(&self, publications: Vec<Publication>) -> Handover<'_>;

    /// Hands a remote disconnect over.
    fn disconnect(&self, disconnect: RemoteDisconnect) -> Handover<'_>;
}

/// Why a publication could not be handed over: our fault, or that of what is behind us.
#[derive(Debug, thiserror::Error)]
#[error("publication not handed over: {0}")]
pub struct PublishError(pub String);

pub(super) async fn answer(shared: &Shared, route: &PublishRoute, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let status = match &head.method {
        &Method::OPTIONS if route.cors.is_some() => StatusCode::OK,
        method if method != Method::POST => StatusCode::UNPROCESSABLE_ENTITY,
        _ if !authorized(route, &head.headers) => StatusCode::UNAUTHORIZED,
        _ => take(shared, route, &head.headers, body).await.unwrap_or_else(|refused| refused),
    };
    route.with_cors(&head.headers, empty(status))
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
    route: &PublishRoute,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<StatusCode, StatusCode> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > shared.limits.body_bytes_max as u64) {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let body = tokio::time::timeout(shared.limits.body_timeout, read(shared, body));
    let body = body.await.map_err(|_| StatusCode::REQUEST_TIMEOUT)??;
    let handover = publish(shared, route, &body.bytes);
    match tokio::time::timeout(shared.limits.publish_timeout, handover).await {
        Ok(Ok(())) => Ok(StatusCode::CREATED),
        Ok(Err(error)) => {
            tracing::error!(%error, "broadcast failed");
            Err(StatusCode::NOT_IMPLEMENTED)
        }
        Err(_) => {
            tracing::warn!("broadcast not handed over in time: inboxes stay full");
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

/// A body in memory, with its share of what all bodies may take.
struct HeldBody<'a> {
    bytes: Vec<u8>,
    _share: tokio::sync::SemaphorePermit<'a>,
}

/// Reads a body as it comes; nothing is allocated for what is only announced.
async fn read(shared: &Shared, mut body: Incoming) -> Result<HeldBody<'_>, StatusCode> {
    let mut bytes = Vec::new();
    let mut share = shared.bodies.try_acquire_many(0).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    while let Some(frame) = body.frame().await {
        // Shorter than announced, or badly chunked.
        let frame = frame.map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > shared.limits.body_bytes_max {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let more = u32::try_from(data.len()).ok().and_then(|len| shared.bodies.try_acquire_many(len).ok());
        share.merge(more.ok_or(StatusCode::SERVICE_UNAVAILABLE)?);
        bytes.extend_from_slice(&data);
    }
    Ok(HeldBody { bytes, _share: share })
}

async fn publish(shared: &Shared, route: &PublishRoute, body: &[u8]) -> Result<(), PublishError> {
    let metrics = &shared.metrics;
    match publication::parse(body) {
        Ok(publication::Incoming::Publications(publications)) => route.publisher.publish(publications).await?,
        Ok(publication::Incoming::Disconnect(disconnect)) => {
            metrics.remote_commands_total.inc();
            route.publisher.disconnect(disconnect).await?;
        }
        Ok(publication::Incoming::UnknownCommand(name)) => {
            metrics.remote_commands_total.inc();
            tracing::warn!(command = name, "unknown remote command ignored; known are: disconnect");
        }
        Err(reason) => {
            metrics.failed_broadcast_msg_total.inc();
            let cause = reason.source().map(|cause| format!(" ({cause})")).unwrap_or_default();
            tracing::warn!("broadcast ignored: {reason}{cause}");
            return Ok(());
        }
    }
    metrics.publications_total.inc();
    Ok(())
}
