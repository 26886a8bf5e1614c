//! What a server answers at `/metrics`, read: samples by name and labels. Pure.

/// One scrape.
#[derive(Debug, Default)]
pub(super) struct Scrape {
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    /// Without the prefix that the server puts in front.
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// A metric that every server has, by which its prefix (`--metrics-prefix`) is known.
const LANDMARK: &str = "connections_accepted_total";

impl Scrape {
    /// Reads the Prometheus text form; `None` when it is not that of a Cableway.
    pub fn parse(text: &str) -> Option<Scrape> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut samples: Vec<Sample> = lines.filter_map(sample).collect();
        let prefix = samples.iter().find_map(|sample| sample.name.strip_suffix(LANDMARK))?.to_owned();
        samples.retain_mut(|sample| match sample.name.strip_prefix(&prefix) {
            Some(name) => {
                sample.name = name.to_owned();
                true
            }
            None => false,
        });
        Some(Scrape { samples })
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The sum of all samples of a metric; `None` when there is none.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.named(name).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// The samples of a metric by one of its labels, those that share it joined by `join`, in the order of the text.
    pub fn by_label(&self, name: &str, label: &str, join: fn(f64, f64) -> f64) -> Vec<(String, f64)> {
        self.by_key(name, |sample| Some(sample.label(label)?.to_owned()), join)
    }

    /// The samples of a metric of shards, by shard: `1`, or `0.1` of a process where there are several.
    pub fn by_shard(&self, name: &str) -> Vec<(String, f64)> {
        let key = |sample: &Sample| {
            let shard = sample.label("shard")?;
            Some(sample.label("process").map_or_else(|| shard.to_owned(), |process| format!("{process}.{shard}")))
        };
        self.by_key(name, key, |one, other| one + other)
    }

    fn by_key(
        &self,
        name: &str,
        key: impl Fn(&Sample) -> Option<String>,
        join: fn(f64, f64) -> f64,
    ) -> Vec<(String, f64)> {
        let mut joined: Vec<(String, f64)> = Vec::new();
        for sample in self.named(name) {
            let Some(key) = key(sample) else { continue };
            match joined.iter_mut().find(|(known, _)| *known == key) {
                Some((_, value)) => *value = join(*value, sample.value),
                None => joined.push((key, sample.value)),
            }
        }
        joined
    }

    /// A histogram, of those samples whose label is as given if one is given.
    pub fn histogram(&self, name: &str, label: Option<(&str, &str)>) -> Histogram {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        let bucket = format!("{name}_bucket");
        let wanted = |sample: &&Sample| label.is_none_or(|(label, text)| sample.label(label) == Some(text));
        for sample in self.named(&bucket).filter(wanted) {
            let Some(bound) = sample.label("le").and_then(|bound| bound.parse().ok()) else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Histogram { buckets }
    }
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, text)| text.as_str())
    }
}

/// A line that is no comment: `name{label="text",…} value`.
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // A time may stand behind the value. Rust reads `+Inf` and `NaN` as Prometheus writes them.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut chars = quoted.char_indices();
        rest = loop {
            match chars.next()? {
                (at, '"') => break &quoted[at + 1..],
                (_, '\\') => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (_, other) => text.push(other),
            }
        };
        labels.push((name.trim().to_owned(), text));
    }
}

/// Counts of observations up to each bound, bounds ascending, the last one infinite.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// All observations.
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// What has been observed since an earlier scrape of the same server.
    pub fn since(mut self, earlier: &Histogram) -> Histogram {
        for (bound, count) in &mut self.buckets {
            let before = earlier.buckets.iter().find(|(known, _)| known == bound);
            *count -= before.map_or(0.0, |(_, count)| *count);
        }
        self
    }

    /// What this share of the observations does not exceed, as Prometheus estimates it: evenly spread within a bucket, and
    /// of those over every bound nothing but the last bound is known. `None` without observations.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count();
        if self.count() <= 0.0 {
            return None;
        }
        let (mut bound_below, mut count_below) = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= rank {
                return Some(match bound.is_finite() && count > count_below {
                    true => bound_below + (bound - bound_below) * (rank - count_below) / (count - count_below),
                    false => bound_below,
                });
            }
            (bound_below, count_below) = (bound, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP any_connections_accepted_total x\n# TYPE any_connections_accepted_total counter\n\
        any_connections_accepted_total{env=\"a\\\"b,c}\"} 12\n\
        any_closed{env=\"p\",cause=\"x\"} 1\nany_closed{env=\"p\",cause=\"y\"} 2\nany_closed{env=\"q\",cause=\"x\"} 4 1700000000\n\
        any_bound{kind=\"never\"} inf\nany_took_bucket{le=\"0.1\"} 50\nany_took_bucket{le=\"1\"} 100\nany_took_bucket{le=\"+Inf\"} 100\n\
        other_metric 3\nno sample at all\nany_broken{x=\"1} 3\n";

    #[test]
    fn samples_are_found_by_name_whatever_prefix_and_tags_the_server_has() {
        let scrape = Scrape::parse(TEXT).unwrap();
        assert_eq!(scrape.value("connections_accepted_total"), Some(12.0));
        assert_eq!(scrape.value("metric"), None);
        assert_eq!(scrape.value("bound"), Some(f64::INFINITY));
        let closed = scrape.by_label("closed", "cause", |a, b| a + b);
        assert_eq!(closed, [("x".to_owned(), 5.0), ("y".to_owned(), 2.0)]);
        assert_eq!(scrape.named("connections_accepted_total").next().unwrap().label("env"), Some("a\"b,c}"));
        assert!(scrape.by_label("closed", "nothing", f64::max).is_empty());
        let shards = "c_connections_accepted_total 1\nc_held{shard=\"0\",process=\"1\"} 2\nc_held{shard=\"0\"} 3\n";
        let held = Scrape::parse(shards).unwrap().by_shard("held");
        assert_eq!(held, [("1.0".to_owned(), 2.0), ("0".to_owned(), 3.0)]);
    }

    #[test]
    fn what_is_not_of_a_cableway_is_refused() {
        for text in ["", "<!DOCTYPE html>", "go_goroutines 7\n"] {
            assert!(Scrape::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn quantiles_are_as_prometheus_estimates_them() {
        let scrape = Scrape::parse(TEXT).unwrap();
        let took = scrape.histogram("took", None);
        assert_eq!((took.count(), took.quantile(0.25), took.quantile(0.5)), (100.0, Some(0.05), Some(0.1)));
        assert!((took.quantile(0.75).unwrap() - 0.55).abs() < 1e-9);
        assert_eq!(scrape.histogram("nothing", None).quantile(0.5), None);
        let over = Histogram { buckets: vec![(1.0, 0.0), (f64::INFINITY, 5.0)] };
        assert_eq!(over.quantile(0.99), Some(1.0));
        let since = Histogram { buckets: vec![(1.0, 3.0), (f64::INFINITY, 9.0)] }.since(&over);
        assert_eq!((since.count(), since.quantile(0.5)), (4.0, Some(2.0 / 3.0)));
    }
}
