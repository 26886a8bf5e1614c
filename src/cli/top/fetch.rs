//! Asks a server for its metrics.

use std::fmt;
use std::time::Duration;

use super::scrape::Scrape;
use crate::cli::ask::{self, Place};

/// How long each step of asking may take: a server that is stopped takes connections and says nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there are no figures.
#[derive(Debug)]
pub(super) enum Trouble {
    NoAnswer(ask::Trouble),
    Status(u16),
    NotMetrics,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::NoAnswer(trouble) => trouble.fmt(f),
            Trouble::Status(404) => {
                write!(f, "answers 404: the metrics are elsewhere (--metrics-http, --metrics-port)")
            }
            Trouble::Status(status) => write!(f, "answers {status}"),
            Trouble::NotMetrics => write!(f, "answers something else than the metrics of a Cableway"),
        }
    }
}

/// One scrape.
pub(super) fn scrape(place: &Place) -> Result<Scrape, Trouble> {
    let answer = ask::get(place, PATIENCE).map_err(Trouble::NoAnswer)?;
    match answer.status {
        200 => Scrape::parse(&String::from_utf8_lossy(&answer.body)).ok_or(Trouble::NotMetrics),
        status => Err(Trouble::Status(status)),
    }
}
