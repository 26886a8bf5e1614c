//! Metrics on their way from one process of a server to another, where they are added up.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Families, Value};

/// What becomes of the metric of one process among those of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    /// They are added up.
    Sum,
    /// Each stays for itself, with the label `process`.
    Each,
    /// All say the same of something that they share, such as the machine; the largest is told.
    Shared,
}

/// The metrics of one process in a form that travels.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Parts(Vec<Carried>);

/// One metric: name, help, and its values by the text form of their labels.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Carried {
    name: String,
    help: String,
    values: Vec<(String, CarriedValue)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum CarriedValue {
    Counter(u64),
    Gauge(f64),
    Histogram(Vec<u64>, Vec<u64>, u64),
}

impl Families {
    /// Everything that was collected, to be added up elsewhere.
    pub fn into_parts(self) -> Parts {
        let carried = self.by_name.into_iter().map(|(name, family)| Carried {
            name: name.into_owned(),
            help: family.help.into_owned(),
            values: family.values.into_iter().map(|(labels, value)| (labels, value.into())).collect(),
        });
        Parts(carried.collect())
    }

    /// Adds the metrics of the process with this name. `total` tells by a metric's name and the text form of its labels what
    /// becomes of it.
    pub fn add_parts(&mut self, parts: Parts, process: &str, total: impl Fn(&str, &str) -> Total) {
        for Carried { name, help, values } in parts.0 {
            for (mut labels, value) in values {
                let value = match total(&name, &labels) {
                    Total::Sum => value.into(),
                    Total::Each => {
                        let separator = if labels.is_empty() { "" } else { "," };
                        labels = format!("{labels}{separator}process=\"{process}\"");
                        value.into()
                    }
                    Total::Shared => match self.larger(&name, &labels, value.into()) {
                        Some(value) => value,
                        None => continue,
                    },
                };
                self.add(Cow::Owned(name.clone()), Cow::Owned(help.clone()), labels, value);
            }
        }
    }

    /// Adds what a process counted that this one goes on from. Its metrics were collected without labels for all of them.
    pub fn go_on_from(&mut self, before: Parts) {
        let tags = self.tags.iter().map(|(label, text)| (label.as_str(), text.as_str()));
        let tags = super::text_of(tags);
        for Carried { name, help, values } in before.0 {
            for (labels, value) in values {
                let separator = if tags.is_empty() || labels.is_empty() { "" } else { "," };
                let labels = format!("{tags}{separator}{labels}");
                self.add(Cow::Owned(name.clone()), Cow::Owned(help.clone()), labels, value.into());
            }
        }
    }

    /// What has to be added to the value that is there for `value` to come out, if that is more.
    fn larger(&self, name: &str, labels: &str, value: Value) -> Option<Value> {
        let known = self.by_name.get(name).and_then(|family| family.values.get(labels));
        match (known, value) {
            (Some(Value::Counter(known)), Value::Counter(more)) => {
                more.checked_sub(*known).filter(|&more| more > 0).map(Value::Counter)
            }
            (Some(Value::Gauge(known)), Value::Gauge(more)) => (more > *known).then_some(Value::Gauge(more - known)),
            (Some(_), _) => None,
            (None, value) => Some(value),
        }
    }
}

impl Parts {
    /// Leaves what only grows, which stays true of a process that is gone.
    pub fn of_the_gone(mut self) -> Parts {
        for carried in &mut self.0 {
            carried.values.retain(|(_, value)| !matches!(value, CarriedValue::Gauge(_)));
        }
        self.0.retain(|carried| !carried.values.is_empty());
        self
    }

    /// Adds what another process counted under the same names and labels.
    pub fn add(&mut self, other: Parts) {
        let mut sum = Families::default();
        for parts in [std::mem::take(self), other] {
            sum.add_parts(parts, "", |_, _| Total::Sum);
        }
        *self = sum.into_parts();
    }
}

impl From<Value> for CarriedValue {
    fn from(value: Value) -> CarriedValue {
        match value {
            Value::Counter(count) => CarriedValue::Counter(count),
            Value::Gauge(gauge) => CarriedValue::Gauge(gauge),
            Value::Histogram(bounds, buckets, sum_us) => {
                CarriedValue::Histogram(bounds.into_owned(), buckets.into_vec(), sum_us)
            }
        }
    }
}

impl From<CarriedValue> for Value {
    fn from(value: CarriedValue) -> Value {
        match value {
            CarriedValue::Counter(count) => Value::Counter(count),
            CarriedValue::Gauge(gauge) => Value::Gauge(gauge),
            CarriedValue::Histogram(bounds, buckets, sum_us) => {
                Value::Histogram(Cow::Owned(bounds), buckets.into(), sum_us)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Collect, Text};
    use super::*;

    crate::metrics! {
        /// For this test.
        struct Kettle {
            /// Cups poured.
            cups_total: Counter,
            /// Water left.
            water: Gauge,
            /// Height of the mountain.
            height: Gauge,
            /// Time to boil.
            boil_seconds: Histogram,
        }
    }

    fn kettle(cups: u64, water: i64, height: i64) -> Parts {
        let kettle = Kettle::default();
        kettle.cups_total.add(cups);
        kettle.water.set(water);
        kettle.height.set(height);
        kettle.boil_seconds.observe(std::time::Duration::from_millis(cups));
        let mut families = Families::new(vec![("kitchen".into(), "a".into())]);
        kettle.collect(&[], &mut families);
        families.put("bound", "A bound.", &[], Value::Gauge(f64::INFINITY));
        // As it comes over a socket.
        let bytes = rmp_serde::to_vec(&families.into_parts()).unwrap();
        rmp_serde::from_slice(&bytes).unwrap()
    }

    fn total(name: &str, _: &str) -> Total {
        match name {
            "water" => Total::Each,
            "height" | "bound" => Total::Shared,
            _ => Total::Sum,
        }
    }

    #[test]
    fn processes_are_added_up_told_apart_or_agree_as_each_metric_wants() {
        let mut all = Families::default();
        for (process, parts) in [("0", kettle(2, 5, 8_000)), ("1", kettle(3, 7, 8_848)), ("2", kettle(4, 1, 8_000))] {
            all.add_parts(parts, process, total);
        }
        let text = all.to_text("", Text::Prometheus);
        for line in [
            "cups_total{kitchen=\"a\"} 9",
            "water{kitchen=\"a\",process=\"1\"} 7",
            "height{kitchen=\"a\"} 8848",
            "bound{kitchen=\"a\"} inf",
            "boil_seconds_count{kitchen=\"a\"} 3",
            "# TYPE boil_seconds histogram",
            "# HELP cups_total Cups poured.",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}: {text}");
        }
    }

    #[test]
    fn a_process_goes_on_counting_from_another_that_is_gone() {
        let kettle = |cups: u64| {
            let kettle = Kettle::default();
            kettle.cups_total.add(cups);
            kettle.boil_seconds.observe(std::time::Duration::from_secs(cups));
            kettle.water.set(9);
            kettle
        };
        let mut before = Families::default();
        kettle(2).collect(&[("kitchen", "a")], &mut before);
        before.put("broken_total", "Kettles that broke.", &[], Value::Counter(1));
        let mut now =
            Families::new(vec![("house", "h".to_owned())].into_iter().map(|(a, b)| (a.to_owned(), b)).collect());
        kettle(3).collect(&[("kitchen", "a")], &mut now);
        now.go_on_from(before.into_parts().of_the_gone());
        let text = now.to_text("", Text::Prometheus);
        for line in [
            "cups_total{house=\"h\",kitchen=\"a\"} 5",
            "broken_total{house=\"h\"} 1",
            "boil_seconds_sum{house=\"h\",kitchen=\"a\"} 5",
            "water{house=\"h\",kitchen=\"a\"} 9",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}: {text}");
        }
    }

    #[test]
    fn buckets_of_another_version_are_not_mixed_with_those_of_this_one() {
        let mut families = Families::default();
        families.put("wait_seconds", "Waits.", &[], Value::Histogram(Cow::Owned(vec![1, 2]), vec![1, 1, 1].into(), 7));
        let mut other = Families::default();
        other.put("wait_seconds", "Waits.", &[], Value::Histogram(Cow::Owned(vec![1]), vec![5, 5].into(), 7));
        families.go_on_from(other.into_parts());
        assert!(families.to_text("", Text::Prometheus).contains("wait_seconds_count 3\n"));
    }

    #[test]
    fn of_a_process_that_is_gone_what_it_counted_stays() {
        let mut gone = kettle(2, 5, 1).of_the_gone();
        gone.add(kettle(3, 5, 1).of_the_gone());
        let mut all = Families::default();
        all.add_parts(gone, "0", total);
        let text = all.to_text("", Text::Prometheus);
        assert!(text.contains("cups_total{kitchen=\"a\"} 5\n"), "{text}");
        assert!(!text.contains("water") && !text.contains("height"), "{text}");
    }
}
