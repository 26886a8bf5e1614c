//! Whose pages may connect: the check of the `Origin` header.

/// The hosts whose pages may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Reads a comma list of `host[:port]` entries. An entry that starts with `*` stands for every host that ends
    /// with the rest of it: `*.example.com` (and `*example.io` takes `notexample.io` too). A port that the origin's scheme
    /// implies may be written or left out on either side. Nothing is trimmed. An empty list lets everybody in.
    pub fn parse(list: &str) -> Origins {
        if list.is_empty() { Origins::default() } else { Origins(list.split(',').map(str::to_owned).collect()) }
    }

    /// Whether everybody is let in.
    pub fn allow_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request with this `Origin` may pass. Without one, or with one that names no host (`null`), only
    /// where everybody may.
    pub fn allow(&self, origin: Option<&[u8]>) -> bool {
        self.allow_all()
            || origin.and_then(Place::read).is_some_and(|place| self.0.iter().any(|entry| place.matches(entry)))
    }
}

/// Where a page is from.
struct Place<'a> {
    /// The host as written, and the port unless it is the scheme's own.
    host: &'a [u8],
    /// `:443` and such, when that is the port.
    own_port: Option<&'static [u8]>,
}

impl<'a> Place<'a> {
    /// Takes an origin apart. `None` if it is no URL or has no host.
    fn read(origin: &'a [u8]) -> Option<Place<'a>> {
        let end_of_scheme = origin.windows(3).position(|three| three == b"://")?;
        let (scheme, rest) = (&origin[..end_of_scheme], &origin[end_of_scheme + 3..]);
        let scheme_is_sound = scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
        let authority = rest.split(|byte| b"/?#".contains(byte)).next()?;
        let host = authority.rsplit(|byte| *byte == b'@').next()?;
        if !scheme_is_sound || host.is_empty() || !is_authority(host) {
            return None;
        }
        let is_scheme = |names: [&str; 2]| names.iter().any(|name| scheme.eq_ignore_ascii_case(name.as_bytes()));
        let scheme_port: Option<&[u8]> =
            if is_scheme(["http", "ws"]) { Some(b":80") } else { is_scheme(["https", "wss"]).then_some(b":443") };
        let Some(port) = scheme_port else { return Some(Place { host, own_port: None }) };
        let bare = host.strip_suffix(port).filter(|bare| !bare.is_empty());
        let has_port = has_port(host);
        let own_port = (bare.is_some() || !has_port).then_some(port);
        Some(Place { host: bare.unwrap_or(host), own_port })
    }

    fn matches(&self, entry: &str) -> bool {
        let entry = entry.as_bytes();
        let bare = self.own_port.and_then(|port| entry.strip_suffix(port));
        [Some(entry), bare].into_iter().flatten().any(|entry| entry_matches(entry, self.host))
    }
}

/// Whether a port stands behind a host; the colons of an IPv6 address are in brackets.
fn has_port(host: &[u8]) -> bool {
    let behind_address = host.iter().position(|byte| *byte == b']').map_or(0, |end| end + 1);
    host[behind_address..].contains(&b':')
}

fn entry_matches(entry: &[u8], host: &[u8]) -> bool {
    match entry.split_first() {
        Some((b'*', suffix)) => {
            host.len().checked_sub(suffix.len()).is_some_and(|start| host[start..].eq_ignore_ascii_case(suffix))
        }
        _ => host.eq_ignore_ascii_case(entry),
    }
}

/// The bytes that the name of a host may have.
static SOUND: [bool; 256] = {
    let (mut sound, others) = ([false; 256], b"-._~!$&'()*+,;=%");
    let mut byte = 0;
    while byte < sound.len() {
        sound[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut nth = 0;
    while nth < others.len() {
        sound[others[nth] as usize] = true;
        nth += 1;
    }
    sound
};

/// Whether this can stand for `host[:port]` in a URL (RFC 3986 section 3.2.2): its characters, and digits behind the
/// colon. May be empty.
pub(super) fn is_authority(text: &[u8]) -> bool {
    let sound = |byte: &u8| SOUND[usize::from(*byte)];
    let (host_is_sound, port) = match text {
        [b'[', inner @ ..] => {
            // An IPv6 address stands in brackets, since it has colons itself.
            let Some(end) = inner.iter().position(|byte| *byte == b']') else { return false };
            (inner[..end].iter().all(|byte| sound(byte) || *byte == b':'), &inner[end + 1..])
        }
        _ => {
            let (host, port) = text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len()));
            (host.iter().all(sound), port)
        }
    };
    let port_is_sound = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    host_is_sound && port_is_sound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, origin: &str) -> bool {
        Origins::parse(list).allow(Some(origin.as_bytes()))
    }

    #[test]
    fn an_empty_list_lets_everybody_in() {
        for origin in ["http://a.test", "null", "", "what?"] {
            assert!(allows("", origin));
        }
        assert!(Origins::parse("").allow(None));
        assert!(Origins::default().allow_all());
    }

    #[test]
    fn entries_match_host_and_port_as_written_in_any_case() {
        assert!(allows("a.test", "http://a.test"));
        assert!(allows("a.test", "https://A.Test/page?x#y"));
        assert!(allows("A.TEST:8080", "http://a.test:8080"));
        assert!(allows("b.test,a.test", "http://a.test"));
        assert!(allows("[::1]:3000", "http://[::1]:3000"));
        assert!(allows("a.test", "http://user@a.test"));
        assert!(!allows("a.test", "http://b.a.test"));
        assert!(!allows("b.test, a.test", "http://a.test"), "entries are not trimmed");
    }

    #[test]
    fn the_port_of_the_scheme_may_be_written_or_not() {
        for (scheme, port) in [("http", 80), ("ws", 80), ("https", 443), ("wss", 443), ("WSS", 443)] {
            for host in ["a.test", "[::1]"] {
                for entry in [host.to_owned(), format!("{host}:{port}")] {
                    assert!(allows(&entry, &format!("{scheme}://{host}")), "{entry} {scheme}");
                    assert!(allows(&entry, &format!("{scheme}://{host}:{port}")), "{entry} {scheme}");
                    assert!(!allows(&entry, &format!("{scheme}://{host}:8443")), "{entry} {scheme}");
                    assert!(!allows(&entry, &format!("{scheme}://{host}:{}", 523 - port)), "{entry} {scheme}");
                }
            }
        }
        assert!(allows("*.test:443", "https://a.test") && allows("*.test", "https://a.test:443"));
        assert!(!allows("a.test:80", "https://a.test") && !allows("a.test:443", "http://a.test"));
        assert!(allows("a.test", "app://a.test") && !allows("a.test:443", "app://a.test"));
    }

    #[test]
    fn a_star_matches_by_suffix() {
        assert!(allows("*.example.com", "https://x.y.example.com"));
        assert!(!allows("*.example.com", "https://example.com"));
        assert!(!allows("*.example.com", "https://x.example.com:8443"));
        assert!(allows("*.example.com:8443", "https://x.example.com:8443"));
        assert!(allows("*EXAMPLE.io", "https://notexample.IO"));
        assert!(allows("*", "https://any.test"));
        assert!(!allows("*.example.com", "https://evil.test/.example.com"));
        assert!(!allows("*.example.com", "https://evil.test?.example.com"));
        assert!(!allows("*.example.com", "https://evil.test\\.example.com"));
        assert!(!allows("a.*", "https://a.test"), "only a leading star is one");
    }

    #[test]
    fn an_origin_without_a_host_is_refused() {
        for list in ["*", "a.test", ",a.test"] {
            assert!(!Origins::parse(list).allow(None));
            for origin in [
                "null",
                "",
                "a.test",
                "//a.test",
                "http:a.test",
                "http://",
                "http:///x",
                "://a.test",
                "1http://a.test",
                "http://a.test:x",
                "http://a test",
                "http://[::1",
                "http://[::1]x",
                "http://a.test:1:2",
            ] {
                assert!(!allows(list, origin), "{origin}");
            }
            assert!(!Origins::parse(list).allow(Some(b"http://\xffa.test")));
        }
    }
}
