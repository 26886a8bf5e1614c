//! What the app may know about the upgrade request of a session, and what it said the client is.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use triomphe::ThinArc;

/// URL and proxied headers of an upgrade request, as every RPC call carries them (`contracts/rpc-grpc.md`
/// section 2), and the connection identifiers once they are known.
///
/// Kept for the life of a session, so it is one shared allocation behind one word. The texts stand one after the
/// other, each ended by a NUL, which neither a URL nor a header name or value can contain (RFC 9110 section 5.5); an
/// empty header name ends the headers, and the identifiers, which may be any text, come last.
#[derive(Clone, PartialEq, Eq)]
pub struct Env(ThinArc<(), u8>);

/// Header names that nearly every session has, as one byte each. No header name begins with such a byte.
const SHORT: [(&str, &str); 2] = [("cookie", "\x01"), ("REMOTE_ADDR", "\x02")];

impl Env {
    /// Packs a URL and headers. A NUL inside a value ends it there; a header without a name is left out.
    pub fn new<'a>(url: &str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Env {
        fn put(packed: &mut String, text: &str) {
            packed.push_str(text.split('\0').next().unwrap_or_default());
            packed.push('\0');
        }
        let mut packed = String::with_capacity(url.len() + 2);
        put(&mut packed, url);
        for (name, value) in headers.into_iter().filter(|(name, _)| !name.is_empty()) {
            put(&mut packed, SHORT.iter().find(|(long, _)| *long == name).map_or(name, |(_, short)| short));
            put(&mut packed, value);
        }
        packed.push('\0');
        Env(ThinArc::from_header_and_slice((), packed.as_bytes()))
    }

    /// The same request with these connection identifiers.
    pub fn with_identifiers(&self, identifiers: &str) -> Env {
        let known = self.identifiers().len();
        let request = &self.text()[..self.text().len() - known];
        Env(ThinArc::from_header_and_slice((), [request, identifiers].concat().as_bytes()))
    }

    /// The absolute URL, `http://` or `https://`.
    pub fn url(&self) -> &str {
        self.text().split('\0').next().unwrap_or_default()
    }

    /// Header names and values, in the order given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.text().split('\0').skip(1);
        std::iter::from_fn(move || {
            let name = texts.next().filter(|name| !name.is_empty())?;
            let name = SHORT.iter().find(|(_, short)| *short == name).map_or(name, |(long, _)| long);
            Some((name, texts.next()?))
        })
    }

    /// Who the client is: what Connect returned, byte for byte; empty until then.
    pub fn identifiers(&self) -> &str {
        let text = self.text();
        let mut at = text.find('\0').map_or(text.len(), |end| end + 1);
        loop {
            let name = text[at..].find('\0').unwrap_or(0);
            at += name + 1;
            if name == 0 {
                return text.get(at..).unwrap_or_default();
            }
            at += text[at..].find('\0').map_or(text.len() - at, |end| end + 1);
        }
    }

    fn text(&self) -> &str {
        // The thin pointer forgets the type; checking a few hundred bytes again takes some ten nanoseconds.
        std::str::from_utf8(&self.0.slice).expect("made from text")
    }
}

impl fmt::Debug for Env {
    /// Header values are left out: they hold cookies and tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url().split('?').next().unwrap_or_default();
        f.debug_struct("Env").field("url", &url).finish_non_exhaustive()
    }
}

impl Serialize for Env {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let headers: Vec<_> = self.headers().collect();
        (self.url(), headers, self.identifiers()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Env {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (url, headers, identifiers) = <(String, Vec<(String, String)>, String)>::deserialize(deserializer)?;
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Ok(Env::new(&url, headers).with_identifiers(&identifiers))
    }
}

const _: () = assert!(size_of::<Env>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_headers_and_identifiers_read_back() {
        let given = [("cookie", "a=1; b=2"), ("x-empty", ""), ("REMOTE_ADDR", "::1")];
        let env = Env::new("http://h/cable", given);
        assert_eq!((env.url(), env.identifiers()), ("http://h/cable", ""));
        assert_eq!(env.headers().collect::<Vec<_>>(), given);
        for identifiers in ["{\"user\":\"7\"}", "", "odd\0text\0\0", "ä"] {
            let known = env.with_identifiers("someone else").with_identifiers(identifiers);
            assert_eq!(known.identifiers(), identifiers);
            assert_eq!(known.url(), "http://h/cable");
            assert_eq!(known.headers().collect::<Vec<_>>(), given);
        }
        let bare = Env::new("http://h/", []);
        assert_eq!((bare.headers().count(), bare.identifiers()), (0, ""));
        assert_eq!(bare.with_identifiers("x").identifiers(), "x");
    }

    #[test]
    fn it_is_the_same_after_it_was_written_out_and_read_back() {
        let env = Env::new("http://h/cable?a=1", [("cookie", "a"), ("x-b", "")]).with_identifiers("me");
        let written = serde_json::to_string(&env).unwrap();
        assert_eq!(serde_json::from_str::<Env>(&written).unwrap(), env);
    }

    #[test]
    fn debug_output_shows_neither_cookies_nor_query() {
        let env = Env::new("http://h/cable?jid=secret", [("cookie", "secret")]).with_identifiers("secret");
        assert!(!format!("{env:?}").contains("secret"));
    }
}
