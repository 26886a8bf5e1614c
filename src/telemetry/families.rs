//! Collected metrics and their text forms: that of Prometheus (version 0.0.4 of its exposition format) and OpenMetrics 1.0.

mod carried;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use super::{Counter, Gauge, Histogram, OwnCounter};

pub use carried::{Parts, Total};

/// Something that can put its metrics into [`Families`].
pub trait Collect {
    /// Adds every metric under the given labels.
    fn collect(&self, labels: &[(&str, &str)], into: &mut Families);
}

/// Declares a struct of metrics. A field's name is the metric's name, its doc comment the help text.
///
/// ```
/// cableway::metrics! {
///     /// What a kettle counts.
///     pub struct KettleMetrics {
///         /// Cups poured.
///         cups_total: Counter,
///     }
/// }
/// ```
#[macro_export]
macro_rules! metrics {
    ($(#[$meta:meta])* $vis:vis struct $Name:ident { $($(#[doc = $help:literal])+ $field:ident: $kind:ident,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $Name {
            $($(#[doc = $help])+ pub $field: $crate::telemetry::$kind,)*
        }

        impl $crate::telemetry::Collect for $Name {
            fn collect(&self, labels: &[(&str, &str)], into: &mut $crate::telemetry::Families) {
                $(into.put(stringify!($field), concat!($($help),+), labels, (&self.$field).into());)*
            }
        }
    };
}

/// A value read from a metric.
pub enum Value {
    /// Of a [`Counter`] or an [`OwnCounter`].
    Counter(u64),
    /// Of a [`Gauge`].
    Gauge(f64),
    /// Of a [`Histogram`]: its bounds, observations per bucket, and the sum in microseconds.
    Histogram(Cow<'static, [u64]>, Box<[u64]>, u64),
}

impl From<&Counter> for Value {
    fn from(counter: &Counter) -> Value {
        Value::Counter(counter.get())
    }
}

impl From<&OwnCounter> for Value {
    fn from(counter: &OwnCounter) -> Value {
        Value::Counter(counter.get())
    }
}

impl From<&Gauge> for Value {
    fn from(gauge: &Gauge) -> Value {
        Value::Gauge(gauge.get() as f64)
    }
}

impl From<&Histogram> for Value {
    fn from(histogram: &Histogram) -> Value {
        let buckets = histogram.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        Value::Histogram(Cow::Borrowed(histogram.bounds), buckets, histogram.sum_us.load(Relaxed))
    }
}

struct Family {
    help: Cow<'static, str>,
    /// By the labels' text form, `a="1",b="2"`, so that equal labels add up.
    values: BTreeMap<String, Value>,
}

/// Metrics of one scrape, by name.
#[derive(Default)]
pub struct Families {
    by_name: BTreeMap<Cow<'static, str>, Family>,
    tags: Vec<(String, String)>,
}

impl Families {
    /// Nothing yet. Every metric will carry these labels (`--metrics-tags`).
    pub fn new(tags: Vec<(String, String)>) -> Families {
        Families { by_name: BTreeMap::new(), tags }
    }

    /// Adds a value. A value that is there already under the same name and labels is added to.
    pub fn put(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: Value) {
        let tags = self.tags.iter().map(|(label, text)| (label.as_str(), text.as_str()));
        let key = text_of(tags.chain(labels.iter().copied()));
        self.add(Cow::Borrowed(name), Cow::Borrowed(help), key, value);
    }

    /// Adds a value under the text form of its labels.
    fn add(&mut self, name: Cow<'static, str>, help: Cow<'static, str>, key: String, value: Value) {
        let family = self.by_name.entry(name).or_insert_with(|| Family { help, values: BTreeMap::new() });
        match (family.values.get_mut(&key), value) {
            (Some(Value::Counter(sum)), Value::Counter(more)) => *sum = sum.saturating_add(more),
            (Some(Value::Gauge(sum)), Value::Gauge(more)) => *sum += more,
            // Another version may have other bounds; its buckets mean nothing here.
            (Some(Value::Histogram(bounds, ..)), Value::Histogram(others, ..)) if *bounds != others => {}
            (Some(Value::Histogram(_, sums, sum)), Value::Histogram(_, more, more_sum)) => {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(more));
                *sum = sum.saturating_add(more_sum);
            }
            (_, value) => drop(family.values.insert(key, value)),
        }
    }

    /// The text of all of them; every name gets the prefix in front (`cableway_`).
    pub fn to_text(&self, prefix: &str, form: Text) -> String {
        let mut text = String::new();
        for (name, family) in &self.by_name {
            let Some(first) = family.values.values().next() else { continue };
            form.write_head(&mut text, prefix, name, &family.help, first);
            for (labels, value) in &family.values {
                form.write_samples(&mut text, &format!("{prefix}{name}"), labels, value);
            }
        }
        if form == Text::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }
}

/// The text form of labels.
fn text_of<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut key = String::new();
    for (label, text) in labels {
        let separator = if key.is_empty() { "" } else { "," };
        let escaped = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let _ = write!(key, "{separator}{label}=\"{escaped}\"");
    }
    key
}

/// A text form of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// Version 0.0.4 of the Prometheus exposition format.
    Prometheus,
    /// OpenMetrics 1.0: counters are named without `_total` in what is said about them, units are named, and an end is
    /// marked.
    OpenMetrics,
}

impl Text {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Text::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Text::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What an `Accept` header asks for: OpenMetrics if it names it and does not like plain text better.
    pub fn accepted(accept: &str) -> Text {
        let quality = |wanted: &str| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let is_wanted = parts.next()?.eq_ignore_ascii_case(wanted);
                let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
                is_wanted.then_some(quality.unwrap_or(1.0))
            });
            ranges.fold(0.0, f32::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") { Text::OpenMetrics } else { Text::Prometheus }
    }

    fn write_head(self, text: &mut String, prefix: &str, name: &str, help: &str, first: &Value) {
        let kind = match first {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(..) => "histogram",
        };
        let mut help = help.trim().replace('\\', r"\\").replace('\n', " ");
        let mut family = name;
        if self == Text::OpenMetrics {
            help = help.replace('"', "\\\"");
            family = name.strip_suffix("_total").filter(|_| kind == "counter").unwrap_or(name);
            let unit = ["seconds", "bytes"]
                .into_iter()
                .find(|unit| family.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')));
            if let Some(unit) = unit {
                let _ = writeln!(text, "# UNIT {prefix}{family} {unit}");
            }
        }
        let _ = writeln!(text, "# HELP {prefix}{family} {help}\n# TYPE {prefix}{family} {kind}");
    }

    fn write_samples(self, text: &mut String, name: &str, labels: &str, value: &Value) {
        let braces = |more: &str| match (labels.is_empty(), more.is_empty()) {
            (true, true) => String::new(),
            (false, true) => format!("{{{labels}}}"),
            (true, false) => format!("{{{more}}}"),
            (false, false) => format!("{{{labels},{more}}}"),
        };
        let _ = match value {
            Value::Counter(n) => writeln!(text, "{name}{} {n}", braces("")),
            Value::Gauge(n) => writeln!(text, "{name}{} {n}", braces("")),
            Value::Histogram(bounds, buckets, sum_us) => {
                let mut total = 0u64;
                for (bucket, count) in buckets.iter().enumerate() {
                    total = total.saturating_add(*count);
                    let bound = bounds.get(bucket).map(|us| *us as f64 / 1e6);
                    let labels = braces(&format!("le=\"{}\"", self.bound(bound)));
                    let _ = writeln!(text, "{name}_bucket{labels} {total}");
                }
                let _ = writeln!(text, "{name}_sum{} {}", braces(""), *sum_us as f64 / 1e6);
                writeln!(text, "{name}_count{} {total}", braces(""))
            }
        };
    }

    /// A bound as the label `le` has it; OpenMetrics wants a fraction in it.
    fn bound(self, bound: Option<f64>) -> String {
        match (bound, self) {
            (None, _) => "+Inf".to_owned(),
            (Some(bound), Text::Prometheus) => bound.to_string(),
            (Some(bound), Text::OpenMetrics) => format!("{bound:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::SLOW;
    use super::*;

    metrics! {
        /// For this test.
        struct TestMetrics {
            /// Cups poured.
            cups_total: Counter,
            /// Water left.
            water: Gauge,
            /// Time to boil.
            boil_seconds: Histogram,
        }
    }

    #[test]
    fn openmetrics_names_units_and_counters_in_its_own_way_and_ends() {
        let metrics = TestMetrics::default();
        metrics.cups_total.inc();
        metrics.boil_seconds.observe(Duration::from_secs(1));
        let mut families = Families::default();
        metrics.collect(&[], &mut families);
        let slow = Histogram::new(SLOW);
        slow.observe(Duration::from_secs(3600));
        slow.observe(Duration::from_secs(3601));
        families.put("wait_seconds", "A \"long\" wait.", &[], (&slow).into());
        let text = families.to_text("t_", Text::OpenMetrics);
        for line in [
            "# TYPE t_cups counter",
            "t_cups_total 1",
            "# UNIT t_boil_seconds seconds",
            "t_boil_seconds_bucket{le=\"1.0\"} 1",
            "# HELP t_wait_seconds A \\\"long\\\" wait.",
            "t_wait_seconds_bucket{le=\"1800.0\"} 0",
            "t_wait_seconds_bucket{le=\"3600.0\"} 1",
            "t_wait_seconds_bucket{le=\"+Inf\"} 2",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}: {text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
    }

    #[test]
    fn openmetrics_is_for_whoever_asks_for_it() {
        // The last is what Prometheus 3 sends.
        for (accept, form) in [
            ("", Text::Prometheus),
            ("*/*", Text::Prometheus),
            ("text/html, text/plain;q=0.9", Text::Prometheus),
            ("application/openmetrics-text;q=0", Text::Prometheus),
            ("application/openmetrics-text;q=0.2, text/plain", Text::Prometheus),
            ("Application/OpenMetrics-Text", Text::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,*/*;q=0.1",
                Text::OpenMetrics,
            ),
        ] {
            assert_eq!(Text::accepted(accept), form, "{accept}");
        }
    }

    #[test]
    fn equal_names_and_labels_add_up_and_print() {
        let (one, two) = (TestMetrics::default(), TestMetrics::default());
        one.cups_total.inc();
        two.cups_total.add(2);
        two.water.set(-3);
        one.boil_seconds.observe(Duration::from_micros(100));
        two.boil_seconds.observe(Duration::from_secs(60));
        let mut families = Families::default();
        one.collect(&[], &mut families);
        two.collect(&[], &mut families);
        families.put("cups_total", "Cups poured.", &[("cause", "a\"b")], Value::Counter(9));
        let text = families.to_text("t_", Text::Prometheus);
        assert!(
            text.contains("# HELP t_cups_total Cups poured.\n# TYPE t_cups_total counter\nt_cups_total 3\n"),
            "{text}"
        );
        assert!(text.contains("t_cups_total{cause=\"a\\\"b\"} 9\n"), "{text}");
        assert!(text.contains("t_water -3\n"), "{text}");
        assert!(text.contains("t_boil_seconds_bucket{le=\"0.0001\"} 1\n"), "{text}");
        assert!(text.contains("t_boil_seconds_bucket{le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.contains("t_boil_seconds_count 2\n"), "{text}");
    }
}
