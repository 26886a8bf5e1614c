//! No line more often than a few times a second.
//!
//! Peers and a failing app can make this server warn without end, and a log that drowns in one warning hides the others.
//! Instead of a limit at each place that warns, there is one for all of them: each place in the program may log a few
//! lines a second, and a second later one more line says how many were left out. Debug lines are not limited: whoever
//! wants everything gets it. Nor is the boot, which may warn about many options from one place.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, callsite};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::queue::Queue;
use crate::model::floor_char_boundary;
use crate::os::clock::Clock;

/// Lines a second that one place in the program may log.
const LINES_PER_SECOND: u32 = 5;

/// Bytes of a line that was left out, kept to say what it was about.
const EXAMPLE_BYTES_MAX: usize = 200;

/// Marks the lines that are made here. They are not limited themselves.
const REPORT: &str = "cableway::log";

/// Counts lines, by where in the program they come from. At most as many entries as there are such places.
pub(super) struct Limit {
    /// Set once the boot is over.
    on: AtomicBool,
    clock: Clock,
    /// Held for one look; taken for lines that operators see, of which there are few.
    places: Mutex<HashMap<callsite::Identifier, Place>>,
    /// Whoever makes reports. It is started with this limit in hand, hence later.
    reporter: OnceLock<Queue>,
}

#[derive(Default)]
struct Place {
    /// The second that is counted, since the start.
    second: u64,
    logged: u32,
    left_out: u64,
    level: Option<Level>,
    /// The message of the first that was left out.
    example: String,
}

impl Limit {
    pub fn new() -> Limit {
        Limit { on: AtomicBool::new(false), clock: Clock::start(), places: Mutex::default(), reporter: OnceLock::new() }
    }

    /// From now on lines are limited, and this queue's thread reports.
    pub fn begin(&self, reporter: &Queue) {
        let _ = self.reporter.set(reporter.clone());
        self.on.store(true, Relaxed);
    }

    fn places(&self) -> MutexGuard<'_, HashMap<callsite::Identifier, Place>> {
        // Every change under this lock is complete when it ends, so a poisoned one is as good as new.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this line may be logged.
    fn admits(&self, event: &Event<'_>, second: u64) -> bool {
        let metadata = event.metadata();
        let mut places = self.places();
        let place = places.entry(metadata.callsite()).or_default();
        if place.second != second {
            place.second = second;
            place.logged = 0;
        }
        if place.logged < LINES_PER_SECOND {
            place.logged += 1;
            return true;
        }
        place.left_out += 1;
        if place.left_out == 1 {
            place.level = Some(*metadata.level());
            place.example.clear();
            event.record(&mut Message(&mut place.example));
            drop(places);
            self.reporter.get().inspect(|reporter| reporter.want_report());
        }
        false
    }

    /// Logs how many lines were left out since the last time.
    pub fn report(&self) {
        let places: Vec<_> = {
            let mut places = self.places();
            let some = places.values_mut().filter(|place| place.left_out > 0);
            some.map(|place| (place.level, std::mem::take(&mut place.left_out), std::mem::take(&mut place.example)))
                .collect()
        };
        for (level, left_out, example) in places {
            match level {
                Some(Level::ERROR) => tracing::error!(target: REPORT, left_out, "more lines like: {example}"),
                Some(Level::WARN) => tracing::warn!(target: REPORT, left_out, "more lines like: {example}"),
                _ => tracing::info!(target: REPORT, left_out, "more lines like: {example}"),
            }
        }
    }
}

/// Collects an event's message, as far as it is kept.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
            self.0.truncate(floor_char_boundary(self.0, EXAMPLE_BYTES_MAX));
        }
    }
}

/// Puts the limit in front of a log.
pub(super) struct Limited(pub Arc<Limit>);

impl<S: Subscriber> Layer<S> for Limited {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::INFO
            || metadata.target() == REPORT
            || !self.0.on.load(Relaxed)
            || self.0.admits(event, self.0.clock.now().mono.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            struct Everything(String);
            impl Visit for Everything {
                fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                    let _ = write!(self.0, "{}={value:?} ", field.name());
                }
            }
            let mut line = Everything(format!("{} ", event.metadata().level()));
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }

    impl Lines {
        fn like(&self, word: &str) -> Vec<String> {
            self.0.lock().unwrap().iter().filter(|line| line.contains(word)).cloned().collect()
        }
    }

    fn with_limit(on: bool, run: impl FnOnce(&Limit)) -> Lines {
        let (limit, lines) = (Arc::new(Limit::new()), Lines::default());
        limit.on.store(on, Relaxed);
        let log = tracing_subscriber::registry().with(lines.clone()).with(Limited(Arc::clone(&limit)));
        tracing::subscriber::with_default(log, || run(&limit));
        lines
    }

    #[test]
    fn a_line_that_comes_too_often_is_left_out_and_counted_and_others_are_not_touched() {
        let lines = with_limit(true, |limit| {
            for n in 0..1000 {
                tracing::warn!(n, "it fails");
                tracing::debug!("detail");
            }
            tracing::warn!("something else");
            limit.report();
            limit.report();
        });
        // The loop may run into another second, which has lines of its own.
        let shown = lines.like("message=it fails").len();
        assert!((5..100).contains(&shown), "{shown}");
        assert_eq!(lines.like("detail").len(), 1000);
        assert_eq!(lines.like("something else").len(), 1);
        let told = lines.like("more lines like");
        assert_eq!(told, [format!("WARN message=more lines like: it fails left_out={} ", 1000 - shown)]);
    }

    #[test]
    fn the_next_second_has_lines_of_its_own() {
        let lines = with_limit(true, |limit| {
            for second in 0..3 {
                let mut place = limit.places();
                place.values_mut().for_each(|place| place.second = u64::MAX - second);
                drop(place);
                (0..4).for_each(|_| tracing::info!("again"));
            }
        });
        assert_eq!(lines.like("again").len(), 12);
    }

    #[test]
    fn nothing_is_left_out_of_the_boot() {
        let lines = with_limit(false, |_| (0..50).for_each(|n| tracing::warn!("option {n}")));
        assert_eq!(lines.like("option").len(), 50);
    }
}
