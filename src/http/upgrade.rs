//! A request for a path of WebSockets behind requests that were answered here: the connection goes back to a shard.
//!
//! Proxies that keep connections to us send ordinary requests and upgrades over the same ones. A shard must see such an
//! upgrade as if the connection had just been accepted: the request's head, then what follows it. hyper has read the head,
//! so it is written out again from what hyper made of it. Whether a path is one of WebSockets is decided by the same
//! function as in the shard and on the same bytes, so no connection goes to and fro.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use ::http::Version;
use ::http::request::Parts;

use crate::proto::handshake::{self, Parsed, Rules};

/// That a connection should go back, shared by whoever reads its requests and whoever serves it. Both run in one task.
#[derive(Default)]
pub(super) struct Wish {
    /// The head of the request that a shard should see.
    head: Mutex<Option<Vec<u8>>>,
    /// Whether bytes are written that may not have left hyper's buffer: the answers to earlier requests go first.
    unflushed: AtomicBool,
}

impl Wish {
    pub(super) fn set(&self, head: Vec<u8>) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }

    /// The head, once everything before it has been answered.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        if self.unflushed.load(Relaxed) {
            return None;
        }
        self.head.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// hyper flushes a socket only when its own buffer is empty.
    pub(super) fn set_flushed(&self, flushed: bool) {
        self.unflushed.store(!flushed, Relaxed);
    }
}

/// The head of a request, if it is for a path of WebSockets.
pub(super) fn head_for_shard(request: &Parts, rules: &Rules) -> Option<Vec<u8>> {
    // The quick look is for all other requests, which need not be written out.
    rules.route(request.uri.path())?;
    let head = written(request);
    let mut slots = handshake::slots();
    match handshake::parse_head(&head, &mut slots) {
        Parsed::Complete { head: parsed, len } if len == head.len() && rules.route(parsed.path()).is_some() => {}
        _ => return None,
    }
    Some(head)
}

fn written(request: &Parts) -> Vec<u8> {
    let version = if request.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut head = format!("{} {} {version}\r\n", request.method, request.uri).into_bytes();
    for (name, value) in &request.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}
