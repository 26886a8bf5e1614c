//! The responses that the shard writes itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::proto::Dialect;

/// A request that will not become a WebSocket. The connection is closed behind the response.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The response, whole.
    pub response: Vec<u8>,
}

/// What a key is hashed with (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Base64 of a SHA-1 digest.
const ACCEPT_BYTES: usize = 28;

/// The 101 for a key that was checked. It is written where it is wanted, since nearly every connection gets one.
#[derive(Debug, PartialEq, Eq)]
pub struct Switching {
    accept: [u8; ACCEPT_BYTES],
    agreed: Option<Dialect>,
}

impl Switching {
    pub(super) fn new(key: &[u8], agreed: Option<Dialect>) -> Switching {
        let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        let mut accept = [0; ACCEPT_BYTES];
        // The room is exactly what 20 bytes need.
        let _ = STANDARD.encode_slice(digest, &mut accept);
        Switching { accept, agreed }
    }

    /// Appends the response, whole. `version` is [`Rules::version_header`](super::Rules::version_header).
    pub fn write(&self, version: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        );
        out.extend_from_slice(&self.accept);
        if let Some(dialect) = self.agreed {
            out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.extend_from_slice(dialect.language().subprotocol().as_bytes());
        }
        out.extend_from_slice(b"\r\nX-AnyCable-Version: ");
        out.extend_from_slice(version.as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// A handshake that broke a rule.
pub(super) fn refused(status: u16) -> Refusal {
    let allow = if status == 405 { "Allow: GET\r\n" } else { "" };
    write(status, &[allow, "Sec-Websocket-Version: 13\r\n"])
}

/// 431: the head is longer than [`Rules::head_bytes_max`](super::Rules::head_bytes_max).
pub fn head_too_large() -> Refusal {
    write(431, &[])
}

/// 408: the head did not come in time.
pub fn timed_out() -> Refusal {
    write(408, &[])
}

/// 503: there is no room; come back after so many seconds.
pub fn unavailable(retry_after_s: u32) -> Refusal {
    write(503, &["Retry-After: ", &retry_after_s.to_string(), "\r\n"])
}

fn write(status: u16, headers: &[&str]) -> Refusal {
    let text = match status {
        400 => "400 Bad Request",
        403 => "403 Forbidden",
        405 => "405 Method Not Allowed",
        408 => "408 Request Timeout",
        431 => "431 Request Header Fields Too Large",
        505 => "505 HTTP Version Not Supported",
        _ => "503 Service Unavailable",
    };
    let body = &text[4..];
    let response = format!(
        "HTTP/1.1 {text}\r\nContent-Type: text/plain; charset=utf-8\r\n{}X-Content-Type-Options: nosniff\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}\n",
        headers.concat(),
        body.len() + 1,
    );
    Refusal { status, response: response.into_bytes() }
}
