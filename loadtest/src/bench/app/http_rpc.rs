//! The same calls over HTTP: a POST of JSON to a path that ends in the method's name.

use std::sync::atomic::Ordering;

use http_body_util::{BodyExt as _, Full};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::body::Body;
use tonic::codegen::Bytes;

use super::{Calls, UnderWay, command, connect, disconnect};

/// What all paths begin with: tonic hands over only those below the name of its service.
pub(super) const BASE: &str = "/anycable.RPC";

/// A GET is answered with the number of clients that the app was asked to let in.
pub const CONNECTS_PATH: &str = "/anycable.RPC/connects";

/// Longest body of a call.
const BODY_BYTES_MAX: usize = 4 << 20;

pub(super) async fn answer(calls: &Calls, request: http::Request<Body>) -> http::Response<Body> {
    if request.method() == http::Method::GET && request.uri().path() == CONNECTS_PATH {
        let connects = calls.connects.load(Ordering::Relaxed).to_string();
        return http::Response::new(Body::new(Full::new(Bytes::from(connects))));
    }
    let method = request.uri().path().strip_prefix(BASE).unwrap_or_default().to_owned();
    if request.method() != http::Method::POST || !matches!(&*method, "/connect" | "/command" | "/disconnect") {
        return status(404);
    }
    // A call that the client gives up is dropped in the middle; it is over all the same.
    let _under_way = UnderWay::new(calls);
    let sid = request.headers().get("x-anycable-meta-sid").and_then(|sid| sid.to_str().ok());
    let sid = sid.unwrap_or_default().to_owned();
    let Ok(body) = http_body_util::Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await else {
        return status(413);
    };
    let body = body.to_bytes();
    calls.take_time().await;
    let answer = match &*method {
        "/connect" => json(calls, &sid, &body, connect),
        "/command" => json(calls, &sid, &body, command),
        _ => json(calls, &sid, &body, disconnect),
    };
    match answer {
        Ok(json) => {
            let response = http::Response::builder().header("Content-Type", "application/json");
            response.body(Body::new(Full::new(Bytes::from(json)))).expect("a status and a constant header")
        }
        Err(_) => status(422),
    }
}

fn json<Q: DeserializeOwned, R: Serialize>(
    calls: &Calls,
    sid: &str,
    body: &[u8],
    answer: fn(&Calls, &str, Q) -> R,
) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&answer(calls, sid, serde_json::from_slice(body)?))
}

fn status(code: u16) -> http::Response<Body> {
    http::Response::builder().status(code).body(Body::empty()).expect("a known status")
}
