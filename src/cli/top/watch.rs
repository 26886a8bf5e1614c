//! What is known from one look to the next. Pure: looks and times in, screens out.

use std::time::Duration;

use super::draw::Screen;
use super::figures::Figures;
use super::scrape::Scrape;

/// Looks that the pictures show: more than a terminal is wide.
const LOOKS_KEPT: usize = 512;

/// Follows one server.
pub(super) struct Watch {
    /// What is shown.
    pub screen: Screen,
    /// The latest scrape, and when it was.
    latest: Option<(Scrape, Duration)>,
}

impl Watch {
    /// Nothing is known yet.
    pub fn new(source: String, every: Duration) -> Watch {
        Watch { screen: Screen { source, every, ..Screen::default() }, latest: None }
    }

    /// A look at this time, and what came of it.
    pub fn looked(&mut self, at: Duration, result: Result<Scrape, String>) {
        match result {
            Ok(scrape) => {
                let earlier = self.latest.as_ref().map(|(scrape, when)| (scrape, at.saturating_sub(*when)));
                let figures = Figures::of(&scrape, earlier);
                for (series, rate) in
                    [(&mut self.screen.opened, figures.opened), (&mut self.screen.closed, figures.closed)]
                {
                    series.extend(rate);
                    series.drain(..series.len().saturating_sub(LOOKS_KEPT));
                }
                self.screen.figures = Some(figures);
                self.screen.trouble = None;
                self.latest = Some((scrape, at));
            }
            Err(why) => {
                let age = self.latest.as_ref().map_or(Duration::ZERO, |(_, when)| at.saturating_sub(*when));
                self.screen.trouble = Some((format!("{} {why}", self.screen.source), age));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(accepted: u32) -> Result<Scrape, String> {
        Ok(Scrape::parse(&format!(
            "c_connections_accepted_total {accepted}\nc_connections_closed_total{{cause=\"x\"}} 0\n"
        ))
        .unwrap())
    }

    #[test]
    fn a_server_that_goes_away_keeps_its_figures_with_their_age_and_counts_anew_when_it_is_back() {
        let at = Duration::from_secs;
        let mut watch = Watch::new("there".into(), at(1));
        watch.looked(at(1), scrape(10));
        watch.looked(at(2), scrape(30));
        assert_eq!(watch.screen.opened, [20.0]);
        watch.looked(at(9), Err("cannot be reached".into()));
        assert_eq!(watch.screen.trouble, Some(("there cannot be reached".into(), at(7))));
        assert_eq!(watch.screen.figures.as_ref().unwrap().opened, Some(20.0));
        // Started anew.
        watch.looked(at(12), scrape(4));
        assert_eq!((watch.screen.trouble.is_none(), watch.screen.figures.as_ref().unwrap().opened), (true, None));
        watch.looked(at(13), scrape(5));
        assert_eq!(watch.screen.opened, [20.0, 1.0]);
    }

    #[test]
    fn pictures_keep_no_more_than_they_can_show() {
        let mut watch = Watch::new(String::new(), Duration::from_secs(1));
        (1..2000).for_each(|n| watch.looked(Duration::from_secs(n), scrape(n as u32)));
        assert_eq!((watch.screen.opened.len(), watch.screen.closed.len()), (LOOKS_KEPT, LOOKS_KEPT));
    }
}
