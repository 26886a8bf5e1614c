//! The HTTP upgrade: a request head in, a 101 or a refusal out.
//!
//! Every rule by which a request becomes a WebSocket stands here and in the files below, and nowhere else
//! (`contracts/action-cable.md` section 1, RFC 6455 section 4.2). Nothing here reads a socket: the shard gives the bytes
//! it has to [`parse_head`], the head to [`answer`], and writes what comes back. What follows the head in the same
//! bytes is the client's first frames and is not looked at.

mod head;
mod origin;
mod response;
#[cfg(test)]
mod tests;

pub use crate::model::{PathPattern, PathPatternError};
pub use head::{HEAD_BYTES_MAX, HEADERS_MAX, Head, Parsed, Slots, longest_header, may_end, parse_head, slots};
pub use origin::Origins;
pub use response::{Refusal, Switching, head_too_large, timed_out, unavailable};

use super::Dialect;

/// What this server upgrades, and for whom.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Where Action Cable is spoken (`--path`).
    pub cable_paths: Vec<PathPattern>,
    /// Where every message is sent back (`--echo-path`); looked at after the cable paths.
    pub echo_path: Option<PathPattern>,
    /// Paths of ordinary HTTP on the same port: they win over patterns of the paths above, so that `/*` leaves health
    /// checks alone.
    pub http_paths: Vec<PathPattern>,
    /// Whose pages may connect (`--allowed_origins`).
    pub allowed_origins: Origins,
    /// The value of `X-AnyCable-Version` in a 101: visible ASCII, no line breaks.
    pub version_header: String,
    /// The longest head, in bytes (`--max-head-size`).
    pub head_bytes_max: usize,
}

impl Default for Rules {
    /// No path, and everybody's pages.
    fn default() -> Rules {
        Rules {
            cable_paths: Vec::new(),
            echo_path: None,
            http_paths: Vec::new(),
            allowed_origins: Origins::default(),
            version_header: String::new(),
            head_bytes_max: HEAD_BYTES_MAX,
        }
    }
}

impl Rules {
    /// Where upgrades for this path lead; `None` when the path is not ours.
    pub fn route(&self, path: &str) -> Option<Route> {
        let is_http = || self.http_paths.iter().any(|pattern| pattern.matches(path));
        let serves = |pattern: &PathPattern| pattern.matches(path) && (pattern.is_plain() || !is_http());
        if self.cable_paths.iter().any(serves) {
            Some(Route::Cable)
        } else {
            self.echo_path.as_ref().is_some_and(serves).then_some(Route::Echo)
        }
    }
}

/// Where an upgrade leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To an Action Cable session.
    Cable,
    /// To the echo that conformance suites are pointed at.
    Echo,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is a WebSocket once `response` is written.
    Upgrade {
        /// Who serves it.
        route: Route,
        /// What both speak: what was agreed upon, or the base dialect when nothing was offered that we know.
        dialect: Dialect,
        /// The 101.
        response: Switching,
    },
    /// It meant to be one on a path of ours, and may not.
    Refuse(Refusal),
    /// Its path is none of ours: the ordinary HTTP server answers.
    NotOurs,
}

/// Decides on a request.
///
/// The order of the checks is part of the contract: a request with several faults gets the status of the first.
pub fn answer(head: &Head<'_, '_>, rules: &Rules) -> Decision {
    let Some(route) = rules.route(head.path()) else { return Decision::NotOurs };
    match check(head, rules) {
        Ok(key) => {
            let agreed = if route == Route::Cable { negotiate(head) } else { None };
            let response = Switching::new(key, agreed);
            Decision::Upgrade { route, dialect: agreed.unwrap_or_default(), response }
        }
        Err(status) => Decision::Refuse(response::refused(status)),
    }
}

/// The key to answer, or the status that refuses.
fn check<'b>(head: &Head<'_, 'b>, rules: &Rules) -> Result<&'b [u8], u16> {
    let upgrade = head.upgrade();
    if !upgrade.host_is_sound {
        return Err(400);
    }
    if !upgrade.connection || !upgrade.websocket {
        return Err(400);
    }
    if head.method() != "GET" {
        return Err(405);
    }
    if !upgrade.version_13 {
        return Err(400);
    }
    if !rules.allowed_origins.allow(upgrade.origin) {
        return Err(403);
    }
    upgrade.key.filter(|key| is_key(key)).ok_or(400)
}

/// Whether this is base64 of 16 bytes (RFC 6455 section 4.2.1 item 5). The four bits that the 22nd digit has over are
/// not looked at: some clients draw 22 random digits.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    matches!(key.split_at_checked(22), Some((digits, b"==")) if digits.iter().all(digit))
}

/// The first of ours that the client also offers.
fn negotiate(head: &Head<'_, '_>) -> Option<Dialect> {
    let offers = |ours: &Dialect| head.offered_protocols().any(|offered| offered == ours.language().subprotocol());
    Dialect::ALL.into_iter().find(offers)
}
