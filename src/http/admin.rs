//! The routes of the admin port: what only operators may ask.
//!
//! With a key, a request shows it as a bearer token, as programs do, or as the password of any user, which browsers ask
//! for. Without one the port is on a loopback address (the configuration sees to that), and then a request must name
//! this machine by an address or as `localhost`: a page of a site whose name leads here would name the site.

use std::net::IpAddr;

use ::http::header::{self, AUTHORIZATION, HeaderValue};
use ::http::request::Parts;
use ::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::routes::empty;
use super::{ExtraAnswer, Place, Reply};
use crate::identity::Secret;

/// What an admin port answers; every other path is answered 404.
pub struct AdminRoutes {
    /// What a request has to show. Without one everybody on this machine may ask.
    pub key: Option<Secret>,
    /// The routes.
    pub routes: Vec<AdminRoute>,
}

/// One route of an admin port, for `GET` and `HEAD`.
pub struct AdminRoute {
    /// Its path, matched exactly.
    pub path: String,
    /// Makes the answer. It must not block; the future may wait for a short while.
    pub answer: Box<dyn Fn(&Parts) -> ExtraAnswer + Send + Sync>,
}

impl AdminRoute {
    /// A route.
    pub fn new(path: &str, answer: impl Fn(&Parts) -> ExtraAnswer + Send + Sync + 'static) -> AdminRoute {
        AdminRoute { path: path.to_owned(), answer: Box::new(answer) }
    }
}

pub(super) async fn answer(admin: &AdminRoutes, place: &Place, head: &Parts) -> Reply {
    match &admin.key {
        Some(key) if !shows(key, head) => {
            let mut reply = empty(StatusCode::UNAUTHORIZED);
            let challenge = HeaderValue::from_static("Basic realm=\"cableway admin\", charset=\"UTF-8\"");
            reply.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            return reply;
        }
        Some(_) => place.showed_a_key(),
        None if !names_this_machine(head) => return empty(StatusCode::FORBIDDEN),
        None => {}
    }
    let Some(route) = admin.routes.iter().find(|route| route.path == head.uri.path()) else {
        return empty(StatusCode::NOT_FOUND);
    };
    if !matches!(head.method, Method::GET | Method::HEAD) {
        let mut reply = empty(StatusCode::METHOD_NOT_ALLOWED);
        reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    let mut reply = (route.answer)(head).await;
    // It is about this moment, and not for caches.
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// Whether a request shows the key, compared as a whole and in constant time.
fn shows(key: &Secret, head: &Parts) -> bool {
    let Some(given) = head.headers.get(AUTHORIZATION).and_then(|given| given.to_str().ok()) else { return false };
    // The scheme is in any case (RFC 9110 section 11.1).
    let Some((scheme, rest)) = given.split_once(' ') else { return false };
    let shown = if scheme.eq_ignore_ascii_case("bearer") {
        rest.trim().as_bytes().to_vec()
    } else if scheme.eq_ignore_ascii_case("basic") {
        // `user:password`; a user has no colon (RFC 7617 section 2).
        let pair = STANDARD.decode(rest.trim()).unwrap_or_default();
        pair.splitn(2, |&byte| byte == b':').nth(1).unwrap_or_default().to_vec()
    } else {
        return false;
    };
    key.expose().as_bytes().ct_eq(&shown).into()
}

fn names_this_machine(head: &Parts) -> bool {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<::http::uri::Authority>().ok()) else { return false };
    let name = authority.host();
    name.eq_ignore_ascii_case("localhost")
        || name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: &str, value: &str) -> Parts {
        ::http::Request::builder().header(name, value).body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_key_is_shown_as_a_bearer_token_or_as_a_password() {
        let key = Secret::new("k:1").unwrap();
        for (given, good) in [
            ("Bearer k:1", true),
            ("bearer  k:1", true),
            ("Bearer k:2", false),
            ("Bearer", false),
            ("Bearer k:", false),
            // admin:k:1, :k:1, admin:k, k:1
            ("Basic YWRtaW46azox", true),
            ("Basic Oms6MQ==", true),
            ("Basic YWRtaW46aw==", false),
            ("Basic azox", false),
            ("Basic ###", false),
            ("Digest k:1", false),
        ] {
            assert_eq!(shows(&key, &head("Authorization", given)), good, "{given}");
        }
        assert!(!shows(&key, &head("Host", "localhost")));
    }

    #[test]
    fn without_a_key_a_site_whose_name_leads_here_learns_nothing() {
        for (host, good) in [
            ("127.0.0.1:9090", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("[::1]:9090", true),
            ("evil.example:9090", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            assert_eq!(names_this_machine(&head("Host", host)), good, "{host}");
        }
        assert!(!names_this_machine(&head("Accept", "*/*")));
    }
}
