//! What is kept of a handshake while its request is not complete, and what the app gets to see of it.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::identity::Jwt;
use crate::model::{Env, Scheme, TokenOutcome};
use crate::proto::handshake::Head;

/// When a connection was accepted whose request is not complete. Small enough for its slot: nearly all requests come in
/// one piece, and then nothing else has to be kept of a handshake.
#[derive(Clone, Copy)]
pub(super) struct Began(u32);

impl Began {
    /// Unit of what is kept. What has lasted longer than 19 hours counts from zero again.
    const UNIT_US: u128 = 16;

    /// What has lasted so long.
    pub fn ago(lasted: Duration, now: Duration) -> Began {
        Began(Began::units(now).wrapping_sub(Began::units(lasted)))
    }

    /// How long ago it was.
    pub fn age(self, now: Duration) -> Duration {
        Duration::from_micros(u64::from(Began::units(now).wrapping_sub(self.0)) * Began::UNIT_US as u64)
    }

    fn units(time: Duration) -> u32 {
        (time.as_micros() / Began::UNIT_US) as u32
    }
}

/// What came so far of requests that come in pieces, by slot; each bounded by
/// [`Rules::head_bytes_max`](crate::proto::handshake::Rules::head_bytes_max).
#[derive(Default)]
pub(super) struct Heads(HashMap<u32, Vec<u8>>);

impl Heads {
    /// Places that are kept when there are none.
    const SPARE: usize = 64;

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn put(&mut self, index: u32, head: Vec<u8>) {
        self.0.insert(index, head);
    }

    pub fn take(&mut self, index: u32) -> Option<Vec<u8>> {
        if self.0.is_empty() {
            return None;
        }
        let head = self.0.remove(&index);
        if self.0.is_empty() {
            self.0.shrink_to(Heads::SPARE);
        }
        head
    }

    pub fn get(&self, index: u32) -> &[u8] {
        self.0.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Memory that is held for this slot.
    pub fn bytes(&self, index: u32) -> usize {
        self.0.get(&index).map_or(0, Vec::capacity)
    }
}

/// Connections in the order in which their handshakes began. Those that have ended since stay in it for a while.
#[derive(Default)]
pub(super) struct Begun(VecDeque<u64>);

impl Begun {
    /// How many may have ended among those that have not, beside as many again.
    const ENDED_MAX: usize = 64;

    /// Adds one, by its token; so many are unfinished now, and `is_unfinished` tells which.
    pub fn push(&mut self, token: u64, unfinished: usize, is_unfinished: impl Fn(u64) -> bool) {
        if self.0.len() > 2 * unfinished + Self::ENDED_MAX {
            self.0.retain(|&token| is_unfinished(token));
        }
        self.0.push_back(token);
    }

    /// Takes out the first that is unfinished.
    pub fn pop(&mut self, is_unfinished: impl Fn(u64) -> bool) -> Option<u64> {
        while let Some(token) = self.0.pop_front() {
            if is_unfinished(token) {
                return Some(token);
            }
        }
        None
    }
}

/// Which parts of an upgrade request the app gets to see.
#[derive(Clone, Debug, Default)]
pub struct ProxyRules {
    /// Header names, lower case (`--headers`).
    pub headers: Vec<String>,
    /// Cookie names; empty: all (`--proxy-cookies`).
    pub cookies: Vec<String>,
    /// Name of the token's parameter when tokens are on: `x-<param>` then travels too.
    pub token_param: Option<String>,
}

/// Where tokens are looked for, and what is made of them (`contracts/jwt-and-signed-streams.md` section 1).
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// Name of the query parameter; the header is `x-<param>`.
    pub param: String,
    /// `None`: tokens are off.
    pub jwt: Option<Jwt>,
    /// Whether clients are closed when their token runs out.
    pub close_expired: bool,
}

impl Tokens {
    /// What the request's token says of the client, and the token itself if it travels to the app on its own:
    /// one from the query is in the URL already.
    pub(super) fn read<'b>(&self, head: &Head<'_, 'b>, unix_s: u64) -> (TokenOutcome, Option<Cow<'b, str>>) {
        let Some(jwt) = &self.jwt else { return (TokenOutcome::NoToken, None) };
        let header = head.header(&format!("x-{}", self.param)).filter(|token| !token.is_empty());
        let travels = header.or_else(|| head.token_protocol().map(Cow::Borrowed));
        let token = travels.clone().or_else(|| head.query(&self.param));
        (jwt.verify(token.as_deref(), unix_s), travels)
    }
}

/// URL and headers of an upgrade request for the app (`contracts/rpc-grpc.md` section 2).
pub(super) fn env(
    head: &Head<'_, '_>,
    scheme: Scheme,
    peer: SocketAddr,
    token: Option<&str>,
    rules: &ProxyRules,
) -> Env {
    let url = format!("{}://{}{}", scheme.http(), head.host(), head.request_uri());
    let mut headers: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::with_capacity(rules.headers.len() + 2);
    for name in &rules.headers {
        let Some(value) = head.joined(name).filter(|value| !value.is_empty()) else { continue };
        let value = match name.as_str() {
            "cookie" if !rules.cookies.is_empty() => Cow::Owned(filter_cookies(&value, &rules.cookies)),
            _ => value,
        };
        if !value.is_empty() {
            headers.push((name.into(), value));
        }
    }
    headers.push(("REMOTE_ADDR".into(), peer.ip().to_canonical().to_string().into()));
    if let (Some(token), Some(param)) = (token, &rules.token_param) {
        let name = format!("x-{}", param.to_ascii_lowercase());
        if !rules.headers.contains(&name) {
            headers.push((name.into(), token.into()));
        }
    }
    Env::new(&url, headers.iter().map(|(name, value)| (name.as_ref(), value.as_ref())))
}

/// Keeps the named cookies, with their values as they are.
fn filter_cookies(header: &str, keep: &[String]) -> String {
    let pairs = header.split(';').map(str::trim);
    let kept = pairs.filter(|pair| keep.iter().any(|name| pair.split('=').next() == Some(name)));
    kept.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_handshakes_forgets_those_that_have_ended() {
        let mut begun = Begun::default();
        // One stays open, and a million come and go.
        begun.push(0, 1, |token| token == 0);
        for token in 1..1_000_000 {
            begun.push(token, 2, |other| other == 0 || other == token);
        }
        assert!(begun.0.len() <= 2 * 2 + Begun::ENDED_MAX + 1, "{}", begun.0.len());
        assert_eq!(begun.pop(|token| token == 0), Some(0));
        assert_eq!(begun.pop(|token| token == 999_999), Some(999_999));
        assert_eq!(begun.pop(|_| true), None);
    }

    #[test]
    fn the_age_of_a_handshake_is_right_to_its_unit_and_survives_a_change_of_clocks() {
        let us = Duration::from_micros;
        // Also where the count begins anew in between.
        for start in [0, 5, 7_777_777, (u64::from(u32::MAX) - 3) * 16] {
            for lasted in [0, 99, 100, 2_500_000, 3_600_000_000] {
                let age = Began::ago(us(lasted), us(start)).age(us(start + 1_000_000));
                assert!(age.abs_diff(us(lasted + 1_000_000)) < us(32), "{start} {lasted} {age:?}");
            }
        }
    }

    #[test]
    fn many_requests_in_pieces_leave_no_memory_behind() {
        let mut heads = Heads::default();
        (0..10_000).for_each(|index| heads.put(index, b"GET".to_vec()));
        assert_eq!(heads.get(9_999), b"GET");
        assert_eq!(heads.take(10_000), None);
        (0..10_000).for_each(|index| assert!(heads.take(index).is_some()));
        assert!(heads.is_empty() && heads.0.capacity() < 4 * Heads::SPARE, "{}", heads.0.capacity());
    }

    #[test]
    fn the_cookie_filter_keeps_values_as_they_are() {
        let keep = ["a".to_owned(), "b".to_owned()];
        assert_eq!(filter_cookies("a=1; c=3; b=x=y==;d", &keep), "a=1; b=x=y==");
        assert_eq!(filter_cookies("a=1;b=2", &keep), "a=1; b=2");
        assert_eq!(filter_cookies("aa=1", &keep), "");
    }
}
