//! The head of a request, as httparse reads it, and the questions we have about it.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use super::origin::is_authority;
use super::response::{self, Refusal};

/// The longest head we wait for, in bytes, unless [`Rules::head_bytes_max`](super::Rules::head_bytes_max) says otherwise;
/// beyond it the door answers [`head_too_large`](super::head_too_large). Cookies of single sign-on take 20 to 30 KB; proxies
/// in front of us let 32 KiB (nginx) to 60 KiB (Envoy) pass.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Header lines a request may have; more get 431. The default of hyper, which reads all other requests.
pub const HEADERS_MAX: usize = 100;

/// Room for the header lines of one head, on the caller's stack.
pub type Slots<'b> = [MaybeUninit<httparse::Header<'b>>; HEADERS_MAX];

/// Fresh room for [`parse_head`].
pub const fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; HEADERS_MAX]
}

/// What the bytes read so far are.
#[derive(Debug)]
pub enum Parsed<'h, 'b> {
    /// The start of a head. See [`may_end`] for when to look again.
    Incomplete,
    /// A whole head.
    Complete {
        /// What it says.
        head: Head<'h, 'b>,
        /// Its length in bytes. What follows are the client's first frames, or a body.
        len: usize,
    },
    /// No HTTP/1 request: 400, 431 or 505.
    Bad(Refusal),
}

/// Reads a head from the start of `bytes`.
pub fn parse_head<'h, 'b>(bytes: &'b [u8], slots: &'h mut Slots<'b>) -> Parsed<'h, 'b> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, slots) {
        Ok(httparse::Status::Complete(len)) => {
            let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
            let head = Head { method, target, version: request.version.unwrap_or_default(), headers: request.headers };
            Parsed::Complete { head, len }
        }
        Ok(httparse::Status::Partial) => Parsed::Incomplete,
        Err(httparse::Error::TooManyHeaders) => Parsed::Bad(response::head_too_large()),
        Err(httparse::Error::Version) => Parsed::Bad(response::refused(505)),
        Err(_) => Parsed::Bad(response::refused(400)),
    }
}

/// Whether the bytes from `seen` on can end a head of which the first `seen` bytes were found incomplete.
///
/// Asked before parsing again, it keeps a client that sends byte by byte from making us read its head as often as it
/// has bytes.
pub fn may_end(bytes: &[u8], seen: usize) -> bool {
    // A head ends with an empty line; line ends are CR LF or, from lenient senders, LF alone.
    let fresh = bytes.get(seen.saturating_sub(2)..).unwrap_or_default();
    fresh.windows(2).any(|pair| pair == b"\n\n") || fresh.windows(3).any(|three| three == b"\n\r\n")
}

/// Name and length of the longest header line in a head, which need not be complete. For the log.
pub fn longest_header(bytes: &[u8]) -> Option<(Cow<'_, str>, usize)> {
    let lines = bytes.split(|&byte| byte == b'\n').skip(1);
    let line = lines.max_by_key(|line| line.len()).filter(|line| !line.is_empty())?;
    let name = line.split(|&byte| byte == b':').next()?;
    Some((String::from_utf8_lossy(&name[..name.len().min(LOGGED_NAME_BYTES)]), line.len()))
}

/// How much of a peer's name for a header is worth a place in the log.
const LOGGED_NAME_BYTES: usize = 64;

/// A request head.
#[derive(Debug)]
pub struct Head<'h, 'b> {
    method: &'b str,
    target: &'b str,
    /// The digit behind `HTTP/1.`
    version: u8,
    headers: &'h [httparse::Header<'b>],
}

impl<'b> Head<'_, 'b> {
    /// The method, as written.
    pub fn method(&self) -> &'b str {
        self.method
    }

    /// Authority and the rest of a target in absolute form (RFC 9112 section 3.2.2), which proxies and some HTTP
    /// clients send.
    fn absolute(&self) -> Option<(&'b str, &'b str)> {
        // Nearly every target is in origin form.
        if self.target.starts_with('/') {
            return None;
        }
        let (scheme, rest) = self.target.split_once("://")?;
        // The schemes of HTTP, and those of WebSockets, which some proxies leave there.
        if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return None;
        }
        Some(rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())))
    }

    fn path_and_query(&self) -> &'b str {
        self.absolute().map_or(self.target, |(_, rest)| rest)
    }

    /// The path without the query, as written: escapes are not decoded.
    pub fn path(&self) -> &'b str {
        match self.path_and_query().split('?').next() {
            None | Some("") => "/",
            Some(path) => path,
        }
    }

    /// Path and query in origin form, as the app's URL ends with it.
    pub fn request_uri(&self) -> Cow<'b, str> {
        let uri = self.path_and_query();
        if uri.is_empty() || uri.starts_with('?') { format!("/{uri}").into() } else { uri.into() }
    }

    /// The first value of a query parameter, decoded as forms are (`+` is a space, broken escapes stay, what is not
    /// UTF-8 is replaced). A name without `=` has an empty value.
    pub fn query(&self, name: &str) -> Option<Cow<'b, str>> {
        let (_, query) = self.path_and_query().split_once('?')?;
        form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The first value of a header, in bytes. `name` in any case.
    pub fn header_bytes(&self, name: &str) -> Option<&'b [u8]> {
        self.values(name).next()
    }

    /// The first value of a header; bytes that are not UTF-8 are replaced. `name` in any case.
    pub fn header(&self, name: &str) -> Option<Cow<'b, str>> {
        self.header_bytes(name).map(String::from_utf8_lossy)
    }

    /// All values of a header as one (RFC 9110 section 5.3): joined with commas, and those of `Cookie`, which HTTP/2 splits,
    /// with semicolons (RFC 9113 section 8.2.3). Bytes that are not UTF-8 are replaced.
    pub fn joined(&self, name: &str) -> Option<Cow<'b, str>> {
        let separator = if name.eq_ignore_ascii_case("cookie") { "; " } else { ", " };
        let mut values = self.values(name).filter(|value| !value.is_empty()).map(String::from_utf8_lossy);
        let first = values.next()?;
        Some(values.fold(first, |joined, value| Cow::Owned(format!("{joined}{separator}{value}"))))
    }

    /// Name and value of every header line, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.headers.iter().map(|header| (header.name, header.value))
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.headers().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The host and port that the client asked for; empty if it named none. A target in absolute form wins over the
    /// header (RFC 9112 section 3.2.2).
    pub fn host(&self) -> &'b str {
        let named = match self.absolute() {
            Some((authority, _)) => Some(authority),
            None => self.header_bytes("host").and_then(|host| std::str::from_utf8(host).ok()),
        };
        named.unwrap_or_default()
    }

    /// What this says of an upgrade, in one pass over the header lines.
    pub(super) fn upgrade(&self) -> Upgrade<'b> {
        let mut hosts = 0;
        let mut upgrade = Upgrade {
            host_is_sound: self.absolute().is_none_or(|(authority, _)| is_authority(authority.as_bytes())),
            ..Upgrade::default()
        };
        for (name, value) in self.headers() {
            let is = |known| name.eq_ignore_ascii_case(known);
            // By length first: most header lines are none of these.
            match name.len() {
                4 if is("host") => {
                    hosts += 1;
                    upgrade.host_is_sound &= is_authority(value);
                }
                6 if is("origin") => upgrade.origin = upgrade.origin.or(Some(value)),
                7 if is("upgrade") => upgrade.websocket |= lists(value, "websocket"),
                10 if is("connection") => upgrade.connection |= lists(value, "upgrade"),
                17 if is("sec-websocket-key") => upgrade.key = upgrade.key.or(Some(value)),
                21 if is("sec-websocket-version") => upgrade.version_13 |= lists(value, "13"),
                _ => {}
            }
        }
        upgrade.host_is_sound &= hosts == 1 || hosts == 0 && self.version == 0;
        upgrade
    }

    /// The subprotocols the client offers, in its order. What is not UTF-8 cannot be one and is left out.
    pub fn offered_protocols(&self) -> impl Iterator<Item = &'b str> {
        self.values("sec-websocket-protocol")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .filter_map(|item| std::str::from_utf8(item.trim_ascii()).ok())
            .filter(|item| !item.is_empty())
    }

    /// The token that the client hid among the subprotocols as `anycable-token.<token>`, because browsers can set no
    /// header. Never sent back. An empty one is none.
    pub fn token_protocol(&self) -> Option<&'b str> {
        let mut tokens = self.offered_protocols().filter_map(|offered| offered.strip_prefix("anycable-token."));
        tokens.find(|token| !token.is_empty())
    }
}

/// What a request says of an upgrade. Of a header in several lines all are one list, and else the first counts.
#[derive(Default)]
pub(super) struct Upgrade<'b> {
    /// It names its host as RFC 9112 section 3.2 demands: once, unless it is HTTP/1.0, and with nothing in it that could
    /// end the host in a URL.
    pub host_is_sound: bool,
    /// `Connection` lists `upgrade`.
    pub connection: bool,
    /// `Upgrade` lists `websocket`.
    pub websocket: bool,
    /// `Sec-WebSocket-Version` lists `13`.
    pub version_13: bool,
    /// `Sec-WebSocket-Key`.
    pub key: Option<&'b [u8]>,
    /// `Origin`.
    pub origin: Option<&'b [u8]>,
}

/// Whether the value of a header lists this token, in any case (RFC 9110 section 5.6.1).
fn lists(value: &[u8], token: &str) -> bool {
    // Nearly always it is all that is listed.
    value.eq_ignore_ascii_case(token.as_bytes())
        || value.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}
