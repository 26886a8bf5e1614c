//! What the app may know about the upgrade request of a session.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// URL and proxied headers of an upgrade request, as every RPC call carries them
/// (`contracts/rpc-grpc.md` section 2).
///
/// Kept for the life of a session, so it is one shared allocation: the texts stand one after the other,
/// each ended by a NUL, which neither a URL nor a header value can contain (RFC 9110 section 5.5).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Env(Arc<str>);

impl Env {
    /// Packs a URL and headers. A NUL inside a value ends it there.
    pub fn new<'a>(url: &str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Env {
        fn put(packed: &mut String, text: &str) {
            packed.push_str(text.split('\0').next().unwrap_or_default());
            packed.push('\0');
        }
        let mut packed = String::with_capacity(url.len() + 1);
        put(&mut packed, url);
        for (name, value) in headers {
            put(&mut packed, name);
            put(&mut packed, value);
        }
        Env(packed.into())
    }

    /// The absolute URL, `http://` or `https://`.
    pub fn url(&self) -> &str {
        self.0.split('\0').next().unwrap_or_default()
    }

    /// Header names and values, in the order given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.0.split_terminator('\0').skip(1);
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }
}

impl std::fmt::Debug for Env {
    /// Header values are left out: they hold cookies and tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let url = self.url().split('?').next().unwrap_or_default();
        f.debug_struct("Env").field("url", &url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_and_headers_read_back() {
        let env = Env::new("http://h/cable", [("cookie", "a=1; b=2"), ("x-empty", ""), ("REMOTE_ADDR", "::1")]);
        assert_eq!(env.url(), "http://h/cable");
        let headers: Vec<_> = env.headers().collect();
        assert_eq!(headers, [("cookie", "a=1; b=2"), ("x-empty", ""), ("REMOTE_ADDR", "::1")]);
        assert_eq!(Env::new("http://h/", []).headers().count(), 0);
    }

    #[test]
    fn debug_output_shows_neither_cookies_nor_query() {
        let env = Env::new("http://h/cable?jid=secret", [("cookie", "secret")]);
        assert!(!format!("{env:?}").contains("secret"));
    }
}
