//! Counting: the metric types, the macro that declares a module's metrics in one place, and their text form.
//!
//! Metrics are plain atomics that their owner updates; nobody registers anywhere. At a scrape, `node`
//! collects every owner's metrics into [`Families`], which adds up equal names and labels (each shard counts
//! for itself) and prints them.

mod families;
mod metric;

pub use families::{Collect, Families, Parts, Text, Total, Value};
pub use metric::{Bounds, Counter, Gauge, Histogram, OwnCounter, QUICK, SLOW};

/// Lines of the log that nobody got to read. The log belongs to the process and not to a node, and so does this.
pub static LOG_LINES_DROPPED: Counter = Counter::new();
