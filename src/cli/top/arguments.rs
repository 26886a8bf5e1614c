//! What `cableway top` is asked for. Pure.

use std::time::Duration;

use crate::cli::ask::Place;

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
            "--url" => place = Place::parse(&value()?, "/metrics")?,
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
