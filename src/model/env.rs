//! What the app may know about the upgrade request of a session, and what it said the client is.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text_pair::TextPair;

/// URL and proxied headers of an upgrade request, as every RPC call carries them (`contracts/rpc-grpc.md`
/// section 2), and the connection identifiers once they are known.
///
/// Kept for the life of a session, so it is one shared allocation behind one word, and what nearly every session has
/// in common is not spelled out. The first text is the request: the URL, and each header behind a mark, a control byte,
/// which neither a URL nor a header name or value can contain (RFC 9110 section 5.5). The second is the identifiers.
#[derive(Clone, PartialEq, Eq)]
pub struct Env(TextPair);

/// Marks the header `cookie`, whose name is left out.
const COOKIE: u8 = 1;
/// Marks the header `REMOTE_ADDR`.
const REMOTE_ADDR: u8 = 2;
/// Marks any other header: its name, a colon and its value follow.
const OTHER: u8 = 3;

/// Left out of a URL that begins with it.
const SCHEME: &str = "http://";

impl Env {
    /// Packs a URL and headers. A text that contains a mark or a NUL ends there; a header without a name is left out.
    pub fn new<'a>(url: &str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Env {
        fn put(packed: &mut String, text: &str) {
            // The smallest byte is found many at a time, the first mark is not; and there hardly ever is one.
            let clean = text.bytes().min().is_none_or(|least| least > OTHER);
            packed.push_str(if clean { text } else { &text[..mark(text).unwrap_or(text.len())] });
        }
        let mut packed = String::with_capacity(512);
        put(&mut packed, url.strip_prefix(SCHEME).filter(|rest| !is_absolute(rest)).unwrap_or(url));
        for (name, value) in headers.into_iter().filter(|(name, _)| !name.is_empty()) {
            match name {
                "cookie" => packed.push(COOKIE.into()),
                "REMOTE_ADDR" => packed.push(REMOTE_ADDR.into()),
                _ => {
                    packed.push(OTHER.into());
                    put(&mut packed, name);
                    packed.push(':');
                }
            }
            put(&mut packed, value);
        }
        Env(TextPair::new(&packed, ""))
    }

    /// The same request with these connection identifiers.
    pub fn with_identifiers(&self, identifiers: &str) -> Env {
        Env(self.0.with_second(identifiers))
    }

    /// The absolute URL, `http://` or `https://`.
    pub fn url(&self) -> String {
        self.url_parts().concat()
    }

    /// The URL in two parts that belong together, so that it can be written somewhere without making a text of it.
    pub fn url_parts(&self) -> [&str; 2] {
        let request = self.0.first();
        let url = &request[..mark(request).unwrap_or(request.len())];
        [if is_absolute(url) { "" } else { SCHEME }, url]
    }

    /// About how many bytes there are to write: the request and the identifiers, without what is not spelled out.
    pub fn packed_len(&self) -> usize {
        self.0.packed_len()
    }

    /// Header names and values, in the order given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let request = self.0.first();
        let mut rest = mark(request).map_or("", |at| &request[at..]);
        std::iter::from_fn(move || {
            let (kind, behind) = rest.split_at_checked(1)?;
            let header;
            (header, rest) = behind.split_at(mark(behind).unwrap_or(behind.len()));
            match kind.as_bytes() {
                [COOKIE] => Some(("cookie", header)),
                [REMOTE_ADDR] => Some(("REMOTE_ADDR", header)),
                _ => header.split_once(':'),
            }
        })
    }

    /// Who the client is: what Connect returned, byte for byte; empty until then.
    pub fn identifiers(&self) -> &str {
        self.0.second()
    }
}

/// Where the first mark is, or a NUL.
fn mark(text: &str) -> Option<usize> {
    text.bytes().position(|byte| byte <= OTHER)
}

fn is_absolute(url: &str) -> bool {
    url.starts_with(SCHEME) || url.starts_with("https://")
}

impl fmt::Debug for Env {
    /// Header values are left out: they hold cookies and tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url();
        let url = url.split('?').next().unwrap_or_default();
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
        assert_eq!((env.url().as_str(), env.identifiers()), ("http://h/cable", ""));
        assert_eq!(env.headers().collect::<Vec<_>>(), given);
        for identifiers in ["{\"user\":\"7\"}", "", "odd\0text\0\0", "ä"] {
            let known = env.with_identifiers("someone else").with_identifiers(identifiers);
            assert_eq!(known.identifiers(), identifiers);
            assert_eq!(known.url(), "http://h/cable");
            assert_eq!(known.headers().collect::<Vec<_>>(), given);
        }
        for url in ["http://h/cable", "https://h/cable", "http://https://h", "http://http://h", "http://"] {
            assert_eq!(Env::new(url, given).url(), url);
        }
        let cut = Env::new("http://h/a\x01b", [("cookie", "a\0b"), ("x-\x02", "a:\x03"), ("x", ":")]);
        assert_eq!(cut.url(), "http://h/a");
        assert_eq!(cut.headers().collect::<Vec<_>>(), [("cookie", "a"), ("x-", "a:"), ("x", ":")]);
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
