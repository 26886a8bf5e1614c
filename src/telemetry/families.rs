//! Collected metrics and the Prometheus text form (version 0.0.4 of the exposition format).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use super::metric::BOUNDS_US;
use super::{Counter, Gauge, Histogram};

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
    /// Of a [`Counter`].
    Counter(u64),
    /// Of a [`Gauge`].
    Gauge(f64),
    /// Of a [`Histogram`]: observations per bucket, and the sum in microseconds.
    Histogram(Box<[u64]>, u64),
}

impl From<&Counter> for Value {
    fn from(counter: &Counter) -> Value {
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
        Value::Histogram(buckets, histogram.sum_us.load(Relaxed))
    }
}

struct Family {
    help: &'static str,
    /// By the labels' text form, `a="1",b="2"`, so that equal labels add up.
    values: BTreeMap<String, Value>,
}

/// Metrics of one scrape, by name.
#[derive(Default)]
pub struct Families {
    by_name: BTreeMap<&'static str, Family>,
    tags: Vec<(String, String)>,
}

impl Families {
    /// Nothing yet. Every metric will carry these labels (`--metrics-tags`).
    pub fn new(tags: Vec<(String, String)>) -> Families {
        Families { by_name: BTreeMap::new(), tags }
    }

    /// Adds a value. A value that is there already under the same name and labels is added to.
    pub fn put(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: Value) {
        let mut key = String::new();
        let tags = self.tags.iter().map(|(label, text)| (label.as_str(), text.as_str()));
        for (label, text) in tags.chain(labels.iter().copied()) {
            let separator = if key.is_empty() { "" } else { "," };
            let escaped = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(key, "{separator}{label}=\"{escaped}\"");
        }
        let family = self.by_name.entry(name).or_insert_with(|| Family { help, values: BTreeMap::new() });
        match (family.values.get_mut(&key), value) {
            (Some(Value::Counter(sum)), Value::Counter(more)) => *sum += more,
            (Some(Value::Gauge(sum)), Value::Gauge(more)) => *sum += more,
            (Some(Value::Histogram(sums, sum)), Value::Histogram(more, more_sum)) => {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                *sum += more_sum;
            }
            (_, value) => drop(family.values.insert(key, value)),
        }
    }

    /// The Prometheus text form; every name gets the prefix in front (`cableway_`).
    pub fn to_text(&self, prefix: &str) -> String {
        let mut text = String::new();
        for (name, family) in &self.by_name {
            let kind = match family.values.values().next() {
                Some(Value::Counter(_)) => "counter",
                Some(Value::Gauge(_)) => "gauge",
                Some(Value::Histogram(..)) => "histogram",
                None => continue,
            };
            let help = family.help.trim().replace('\\', r"\\").replace('\n', " ");
            let _ = writeln!(text, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}");
            for (labels, value) in &family.values {
                let braces = |more: &str| match (labels.is_empty(), more.is_empty()) {
                    (true, true) => String::new(),
                    (false, true) => format!("{{{labels}}}"),
                    (true, false) => format!("{{{more}}}"),
                    (false, false) => format!("{{{labels},{more}}}"),
                };
                let _ = match value {
                    Value::Counter(n) => writeln!(text, "{prefix}{name}{} {n}", braces("")),
                    Value::Gauge(n) => writeln!(text, "{prefix}{name}{} {n}", braces("")),
                    Value::Histogram(buckets, sum_us) => {
                        let mut total = 0;
                        for (bucket, count) in buckets.iter().enumerate() {
                            total += count;
                            let bound =
                                BOUNDS_US.get(bucket).map_or("+Inf".into(), |us| (*us as f64 / 1e6).to_string());
                            let labels = braces(&format!("le=\"{bound}\""));
                            let _ = writeln!(text, "{prefix}{name}_bucket{labels} {total}");
                        }
                        let _ = writeln!(text, "{prefix}{name}_sum{} {}", braces(""), *sum_us as f64 / 1e6);
                        writeln!(text, "{prefix}{name}_count{} {total}", braces(""))
                    }
                };
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let text = families.to_text("t_");
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
