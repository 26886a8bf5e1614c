//! What `cableway top` is asked for. Pure.

use std::time::Duration;

use http::Uri;

pub(super) const USAGE: &str = "\
cableway top: what a running server does, in a terminal

Usage:
  cableway top [--url URL] [--interval SECONDS] [--once]

  --url URL            where its metrics are   [default http://127.0.0.1:8080/metrics]
                       Without a path: /metrics. A server elsewhere is reached through ssh -L.
  --interval SECONDS   time between two looks   [default 1]
  --once               print one frame as text and end; rates are those of one interval

Keys: q quits. NO_COLOR is honoured, and a terminal that is not UTF-8 gets ASCII only.
";

/// What is wanted.
#[derive(Debug, PartialEq)]
pub(super) enum Wanted {
    /// The usage.
    Help,
    /// Figures of this server.
    Figures { place: Place, every: Duration, once: bool },
}

/// Where metrics are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Place {
    /// As a person would write it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Reads an `http://` URL; the scheme may be left out.
    fn parse(url: &str) -> Result<Place, String> {
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = whole.parse().map_err(|error| format!("--url {url}: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("--url {url}: only http:// is spoken; reach a server elsewhere through ssh -L"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| format!("--url {url} names no host"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Place {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
            path: if path == "/" { "/metrics".to_owned() } else { path.to_owned() },
        })
    }
}

/// The least time between two looks: a scrape costs the server a little.
const INTERVAL_MIN: f64 = 0.1;

/// Reads the words behind `top`.
pub(super) fn read(words: impl IntoIterator<Item = String>) -> Result<Wanted, String> {
    let mut words = words.into_iter();
    let mut place = Place { host: "127.0.0.1".to_owned(), port: 8080, path: "/metrics".to_owned() };
    let (mut every, mut once) = (Duration::from_secs(1), false);
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let mut value = || value.clone().or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value"));
        match name {
            "--help" | "-h" => return Ok(Wanted::Help),
            "--once" => once = true,
            "--url" => place = Place::parse(&value()?)?,
            "--interval" => {
                let text = value()?;
                let seconds = text.parse().ok().filter(|seconds| (INTERVAL_MIN..=3600.0).contains(seconds));
                let seconds =
                    seconds.ok_or_else(|| format!("--interval {text}: between {INTERVAL_MIN} and 3600 seconds"))?;
                every = Duration::from_secs_f64(seconds);
            }
            _ => return Err(format!("cableway top does not know {word:?}")),
        }
    }
    Ok(Wanted::Figures { place, every, once })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Result<Wanted, String> {
        read(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn urls_are_read_with_and_without_scheme_port_and_path() {
        for (url, authority, path) in [
            ("http://127.0.0.1:7000", "127.0.0.1:7000", "/metrics"),
            ("10.0.0.1:7000/", "10.0.0.1:7000", "/metrics"),
            ("http://[::1]:7000/other?x=1", "[::1]:7000", "/other?x=1"),
            ("http://host", "host:80", "/metrics"),
        ] {
            let Ok(Wanted::Figures { place, .. }) = of(&format!("--url {url}")) else { panic!("{url}") };
            assert_eq!((place.authority().as_str(), place.path.as_str()), (authority, path), "{url}");
        }
    }

    #[test]
    fn options_have_defaults_and_wrong_ones_are_named() {
        let place = Place { host: "127.0.0.1".into(), port: 8080, path: "/metrics".into() };
        assert_eq!(of(""), Ok(Wanted::Figures { place: place.clone(), every: Duration::from_secs(1), once: false }));
        let quick = Wanted::Figures { place, every: Duration::from_millis(500), once: true };
        assert_eq!(of("--once --interval=0.5"), Ok(quick));
        assert_eq!(of("--url x --help"), Ok(Wanted::Help));
        for (words, part) in [
            ("--url", "needs a value"),
            ("--url https://x", "only http://"),
            ("--url http://", "--url http://"),
            ("--interval 0", "between 0.1"),
            ("--interval soon", "--interval soon"),
            ("--port 7", "does not know \"--port\""),
            ("stray", "does not know \"stray\""),
        ] {
            let error = of(words).expect_err(words);
            assert!(error.contains(part), "{words}: {error}");
        }
    }
}
