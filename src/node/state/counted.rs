//! What the parts of a node have counted.

use crate::broker::Broker;
use crate::node::observe::Parts;
use crate::telemetry::{self, Collect, Families, LOG_LINES_DROPPED, Value};

/// Everything that the parts of a node count for themselves, and how they are doing. What is asked of the machine is not
/// among it.
pub(in crate::node) fn collect(parts: &Parts, families: &mut Families) {
    let Parts { shards, http, backend, broadcast, pipeline, links, redisx, control, upgrades, .. } = parts;
    for shard in shards.iter() {
        shard.collect(&[], families);
    }
    http.collect(&[], families);
    control.collect(&[], families);
    upgrades.collect(&[], families);
    backend.metrics().collect(&[], families);
    broadcast.metrics().collect(&[], families);
    pipeline.metrics.collect(&[], families);
    pipeline.broker.measure();
    pipeline.broker.metrics().collect(&[], families);
    if let Broker::Remote(remote) = &pipeline.broker {
        remote.remote_metrics().collect(&[], families);
    }
    if let Some(exchange) = pipeline.cluster.exchange() {
        exchange.measure().collect(&[], families);
    }
    redisx.iter().for_each(|redisx| redisx.collect(&[], families));
    for link in links {
        let labels = [("link", link.name())];
        let up = Value::Gauge(f64::from(u8::from(link.is_up())));
        families.put("link_up", "Whether a link to Redis or NATS can be used.", &labels, up);
        let reconnects = Value::Counter(link.reconnects());
        families.put("link_reconnects_total", "How often a link that was away came back.", &labels, reconnects);
    }
    log(families);
    if let Some(before) = parts.inherited.totals.get() {
        families.go_on_from(before.clone());
    }
}

/// What the log of this process counts.
pub(in crate::node) fn log(families: &mut Families) {
    let help = "Lines of the log that were dropped: whoever reads it was too slow, or writing failed.";
    families.put("log_lines_dropped_total", help, &[], Value::Counter(LOG_LINES_DROPPED.get()));
}

/// What only grows, and with it what processes before this one had counted.
pub(super) fn totals(parts: &Parts) -> telemetry::Parts {
    let mut families = Families::default();
    collect(parts, &mut families);
    families.into_parts().of_the_gone()
}
