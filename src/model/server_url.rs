//! Addresses of servers beside this one (Redis, NATS), which often hold a password.

use std::fmt;

use percent_encoding::percent_decode_str;

/// How URLs of one kind of server are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrlForm {
    /// Scheme without TLS, which is also meant where there is none.
    pub plain: &'static str,
    /// Scheme with TLS.
    pub tls: &'static str,
    /// Port where none is given.
    pub port: u16,
}

impl UrlForm {
    /// Redis and what speaks its protocol.
    pub const REDIS: UrlForm = UrlForm { plain: "redis", tls: "rediss", port: 6379 };
    /// Redis Sentinel.
    pub const SENTINEL: UrlForm = UrlForm { port: 26379, ..UrlForm::REDIS };
    /// NATS.
    pub const NATS: UrlForm = UrlForm { plain: "nats", tls: "tls", port: 4222 };
}

/// Where a server is and how to log in there. Never prints the user or the password but by [`ServerUrl::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    form: UrlForm,
    text: String,
    /// Whether the connection is made by TLS.
    pub tls: bool,
    /// User, decoded. `None`: the server's default user.
    pub user: Option<String>,
    /// Password, decoded. `None`: none is sent.
    pub password: Option<String>,
    /// Name or address, without the brackets of an IPv6 address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What follows the port, without slashes at its ends: of Redis the number of the database.
    pub path: String,
}

impl ServerUrl {
    /// Reads `scheme://user:password@host:port/path`; everything but the host may be left out.
    ///
    /// # Errors
    /// Says what to write instead, and never repeats what may be a password.
    pub fn parse(text: &str, form: UrlForm) -> Result<ServerUrl, String> {
        let (tls, rest) = match text.split_once("://") {
            None => (false, text),
            Some((scheme, rest)) if scheme == form.plain => (false, rest),
            Some((scheme, rest)) if scheme == form.tls => (true, rest),
            Some(_) => return Err(format!("a URL begins with {}:// or, for TLS, {}:// here", form.plain, form.tls)),
        };
        if rest.contains(|c: char| c.is_whitespace() || c.is_control() || "?#\"'\\".contains(c)) {
            return Err(
                "a URL has no blanks, quotes, ? and # here; write such a character of a password as % and two \
                        hexadecimal digits"
                    .to_owned(),
            );
        }
        let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let (place, path) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = host_and_port(place, form.port)?;
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, password)) => (decoded(user)?, decoded(password)?),
            None => (None, None),
        };
        Ok(ServerUrl {
            form,
            text: text.to_owned(),
            tls,
            user,
            password,
            host,
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    /// Host and port, for logs and messages. IPv6 addresses have brackets.
    pub fn address(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Whether there is a user or a password in it.
    pub fn has_login(&self) -> bool {
        self.user.is_some() || self.password.is_some()
    }

    /// The text as it was written, with user and password: for whoever logs in, never for a log.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for ServerUrl {
    /// The URL without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", if self.tls { self.form.tls } else { self.form.plain })?;
        if self.has_login() {
            f.write_str("***@")?;
        }
        f.write_str(&self.address())?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

impl fmt::Debug for ServerUrl {
    /// As [`fmt::Display`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn host_and_port(place: &str, port_default: u16) -> Result<(String, u16), String> {
    let is_bare_v6 = place.parse::<std::net::Ipv6Addr>().is_ok();
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && !is_bare_v6 => (host, Some(port)),
        _ => (place, None),
    };
    let port =
        match port {
            None => port_default,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(
                "the port must be a number from 1 to 65535; write a : or / or @ of a password as %3A, %2F, %40",
            )?,
        };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.is_empty() {
        return Err("the host is missing".to_owned());
    }
    let is_address = bare.parse::<std::net::Ipv6Addr>().is_ok();
    if !is_address && bare.contains([':', '[', ']', '/', '@']) {
        return Err("the host must be a name or an address, IPv6 in brackets".to_owned());
    }
    Ok((bare.to_owned(), port))
}

/// Nothing is no user and no password.
fn decoded(text: &str) -> Result<Option<String>, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "user and password must be UTF-8".to_owned())?;
    Ok(Some(text.into_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(text: &str) -> Result<ServerUrl, String> {
        ServerUrl::parse(text, UrlForm::REDIS)
    }

    #[test]
    fn every_part_may_be_left_out_but_the_host() {
        let all = redis("rediss://me:p%40ss@redis.test:6380/3").expect("good");
        assert_eq!((all.tls, all.user.as_deref(), all.password.as_deref()), (true, Some("me"), Some("p@ss")));
        assert_eq!((all.host.as_str(), all.port, all.path.as_str()), ("redis.test", 6380, "3"));
        let least = redis("redis.test").expect("good");
        assert_eq!((least.tls, least.user, least.password), (false, None, None));
        assert_eq!((least.host.as_str(), least.port, least.path.as_str()), ("redis.test", 6379, ""));
        assert_eq!(redis("redis://:word@a").expect("good").password.as_deref(), Some("word"));
        for text in ["redis://[::1]:7", "[::1]:7"] {
            let url = redis(text).expect(text);
            assert_eq!((url.host.as_str(), url.address().as_str()), ("::1", "[::1]:7"));
        }
        assert_eq!(ServerUrl::parse("::1", UrlForm::NATS).expect("good").address(), "[::1]:4222");
    }

    #[test]
    fn nothing_that_is_printed_has_the_password() {
        let url = redis("redis://me:word@a:7/1").expect("good");
        assert_eq!((format!("{url}"), format!("{url:?}")), ("redis://***@a:7/1".into(), "redis://***@a:7/1".into()));
        assert_eq!(url.expose(), "redis://me:word@a:7/1");
    }

    #[test]
    fn what_is_no_url_is_refused_without_repeating_it() {
        for text in [
            "http://:s3cr3t@a",
            "redis://:s3cr3t@",
            "redis://",
            "redis://:s3cr3t@a:x",
            "redis://:s3cr3t@a:0",
            "redis://:wo/rd@a:b:c",
            "redis://a b",
            "redis://:wo#rd@a",
            "redis://[::1",
            "redis:///1",
            "",
        ] {
            let why = redis(text).expect_err(text);
            assert!(!why.contains("s3cr3t") && why.len() > 10, "{text}: {why}");
        }
        assert_eq!(redis("redis://:wo/rd@a:7").expect("a slash before the @").password.as_deref(), Some("wo/rd"));
    }
}
