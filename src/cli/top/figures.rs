//! From two scrapes to the figures that are shown. Pure.

use std::time::Duration;

use super::scrape::Scrape;
use crate::model::CloseCause;

/// What is shown of one moment. A figure that the server does not have, or that two scrapes are needed for and there is one
/// only, is `None`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Figures {
    pub websockets: Option<f64>,
    pub websockets_max: Option<f64>,
    pub clients: Option<f64>,
    pub handshakes: Option<f64>,
    /// Connections of each shard.
    pub shards: Vec<(String, f64)>,
    /// Each second.
    pub opened: Option<f64>,
    pub closed: Option<f64>,
    /// The most frequent first: now, then since boot. Causes that nothing ever ended for are left out.
    pub causes: Vec<Cause>,
    /// The fullest listener: waiting, and how many may wait.
    pub accept_queue: Option<(f64, f64)>,
    pub overflows: Option<Counted>,
    pub memory: Option<f64>,
    pub user_bytes: Option<f64>,
    pub kernel_bytes: Option<f64>,
    pub descriptors: Option<(f64, f64)>,
    pub log_lines_dropped: Option<f64>,
    pub calls: Option<Counted>,
    pub failed_calls: Option<Counted>,
    /// Half of the calls, and all but one in a hundred, took no longer; of late.
    pub call_seconds: Option<(f64, f64)>,
    pub calls_waiting: Option<f64>,
    pub disconnects_waiting: Option<f64>,
    pub delays: Vec<Delay>,
    /// Connections by the time since their last sign of life, quietest last.
    pub silence: Vec<(String, f64)>,
}

/// Ends of connections for one cause.
#[derive(Debug, PartialEq)]
pub(super) struct Cause {
    pub name: String,
    pub counted: Counted,
}

/// A counter: its growth each second, and its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Counted {
    pub rate: Option<f64>,
    pub total: f64,
}

/// How long dead peers stayed, by the cause that they were closed for, since the server's boot.
#[derive(Debug, PartialEq)]
pub(super) struct Delay {
    pub cause: String,
    pub found: f64,
    pub half: Option<f64>,
    pub most: Option<f64>,
    /// The longest time that one can stay; infinite when nothing finds some kind of them.
    pub bound: Option<f64>,
}

impl Figures {
    /// Of a scrape, and of an earlier one of the same server, so long ago.
    pub fn of(now: &Scrape, earlier: Option<(&Scrape, Duration)>) -> Figures {
        // A server that has been started anew has counted from zero.
        let restarted = |before: &Scrape| {
            now.value("connections_accepted_total") < before.value("connections_accepted_total")
                || now.value("turns_total") < before.value("turns_total")
        };
        let earlier = earlier.filter(|(before, passed)| !passed.is_zero() && !restarted(before));
        let growth = |total: f64, before: Option<f64>| {
            let (_, passed) = earlier?;
            Some((total - before.unwrap_or(0.0)).max(0.0) / passed.as_secs_f64())
        };
        let counted = |name| {
            let total = now.value(name)?;
            Some(Counted { rate: growth(total, earlier.and_then(|(before, _)| before.value(name))), total })
        };
        let both = |one, other| Some((now.value(one)?, now.value(other)?));
        let took = now.histogram("rpc_call_seconds", None);
        let took = match earlier {
            Some((before, _)) => took.since(&before.histogram("rpc_call_seconds", None)),
            None => took,
        };
        Figures {
            websockets: now.value("websockets_num"),
            websockets_max: now.value("websockets_max"),
            clients: now.value("clients_num"),
            handshakes: now.value("handshakes_num"),
            shards: now.by_shard("shard_connections_num"),
            opened: counted("connections_accepted_total").and_then(|opened| opened.rate),
            closed: counted("connections_closed_total").and_then(|closed| closed.rate),
            causes: causes(now, earlier.map(|(before, _)| before), growth),
            accept_queue: accept_queue(now),
            overflows: counted("listen_overflows_total"),
            memory: now.value("mem_sys_bytes"),
            user_bytes: now.value("user_bytes_per_connection"),
            kernel_bytes: now.value("kernel_bytes_per_connection"),
            descriptors: both("open_descriptors_num", "open_descriptors_max"),
            log_lines_dropped: now.value("log_lines_dropped_total"),
            calls: counted("rpc_call_total"),
            failed_calls: counted("rpc_error_total"),
            call_seconds: took.quantile(0.5).zip(took.quantile(0.99)),
            calls_waiting: now.value("rpc_pending_num"),
            disconnects_waiting: now.value("disconnect_queue_size"),
            delays: delays(now),
            silence: silence(now),
        }
    }
}

fn add(one: f64, other: f64) -> f64 {
    one + other
}

fn causes(now: &Scrape, earlier: Option<&Scrape>, growth: impl Fn(f64, Option<f64>) -> Option<f64>) -> Vec<Cause> {
    let closed = |scrape: &Scrape| scrape.by_label("connections_closed_total", "cause", add);
    let before = earlier.map(closed).unwrap_or_default();
    let was = |name: &str| before.iter().find(|(known, _)| known == name).map(|(_, total)| *total);
    let ended = closed(now).into_iter().filter(|(_, total)| *total > 0.0);
    let mut causes: Vec<Cause> = ended
        .map(|(name, total)| Cause { counted: Counted { rate: growth(total, was(&name)), total }, name })
        .collect();
    let order = |cause: &Cause| (cause.counted.rate.unwrap_or(0.0), cause.counted.total);
    causes.sort_by(|a, b| order(b).partial_cmp(&order(a)).unwrap_or(std::cmp::Ordering::Equal));
    causes
}

fn accept_queue(now: &Scrape) -> Option<(f64, f64)> {
    let maxima = now.by_label("accept_queue_max", "listener", f64::max);
    let queues = now.by_label("accept_queue_length", "listener", f64::max).into_iter().filter_map(|(at, length)| {
        let (_, max) = maxima.iter().find(|(known, _)| *known == at)?;
        Some((length, *max))
    });
    queues.max_by(|(a, a_max), (b, b_max)| (a / a_max.max(1.0)).total_cmp(&(b / b_max.max(1.0))))
}

/// In the order of time, which is not that of the text.
fn silence(now: &Scrape) -> Vec<(String, f64)> {
    let mut silence = now.by_label("connections_silent", "silent_for", add);
    silence.sort_by_key(|(span, _)| least_seconds(span));
    silence
}

/// Where a span begins: `10-60s`, `15-60m`, `60m+`.
fn least_seconds(span: &str) -> u64 {
    let digits = span.find(|c: char| !c.is_ascii_digit()).unwrap_or(span.len());
    let number: u64 = span[..digits].parse().unwrap_or(u64::MAX);
    number.saturating_mul(if span.contains('m') { 60 } else { 1 })
}

/// Of the causes that find dead peers; where a client ends its connection, the delay is how long it was quiet before.
fn delays(now: &Scrape) -> Vec<Delay> {
    let finds = |name: &str| CloseCause::ALL.iter().any(|cause| cause.label() == name && cause.finds_dead_peers());
    let bounds = now.by_label("detection_bound_seconds", "cause", f64::max);
    let found = now.by_label("detection_delay_seconds_count", "cause", add);
    let seen = found.into_iter().filter(|(cause, count)| finds(cause) && *count > 0.0).map(|(cause, found)| {
        let delay = now.histogram("detection_delay_seconds", Some(("cause", &cause)));
        let bound = bounds.iter().find(|(known, _)| *known == cause).map(|(_, bound)| *bound);
        Delay { found, half: delay.quantile(0.5), most: delay.quantile(0.99), bound, cause }
    });
    let mut delays: Vec<Delay> = seen.collect();
    delays.sort_by(|a, b| b.found.total_cmp(&a.found));
    delays
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two scrapes of a server, two seconds apart.
    fn scrapes() -> [Scrape; 2] {
        let first = "c_connections_accepted_total 100\nc_connections_closed_total{cause=\"client_gone\"} 40\n\
            c_connections_closed_total{cause=\"no_pong\"} 7\nc_connections_closed_total{cause=\"too_slow\"} 0\n\
            c_rpc_call_total 10\nc_rpc_call_seconds_bucket{le=\"1\"} 10\n\
            c_rpc_call_seconds_bucket{le=\"2\"} 10\nc_rpc_call_seconds_bucket{le=\"+Inf\"} 10\n";
        let second = "c_connections_accepted_total 120\nc_connections_closed_total{cause=\"client_gone\"} 41\n\
            c_connections_closed_total{cause=\"no_pong\"} 15\nc_connections_closed_total{cause=\"too_slow\"} 0\n\
            c_rpc_call_total 30\nc_rpc_call_seconds_bucket{le=\"1\"} 10\nc_rpc_call_seconds_bucket{le=\"2\"} 30\n\
            c_rpc_call_seconds_bucket{le=\"+Inf\"} 30\n\
            c_accept_queue_length{listener=\"0\"} 90\nc_accept_queue_max{listener=\"0\"} 100\n\
            c_accept_queue_length{listener=\"1\"} 100\nc_accept_queue_max{listener=\"1\"} 4096\n\
            c_detection_bound_seconds{kind=\"a\",cause=\"no_pong\"} 10\nc_detection_bound_seconds{kind=\"b\",cause=\"no_pong\"} 20\n\
            c_detection_delay_seconds_bucket{cause=\"no_pong\",le=\"10\"} 15\n\
            c_detection_delay_seconds_bucket{cause=\"no_pong\",le=\"+Inf\"} 15\n\
            c_detection_delay_seconds_count{cause=\"client_gone\"} 41\n\
            c_connections_silent{silent_for=\"0-10s\"} 1\nc_connections_silent{silent_for=\"1-5m\"} 3\n\
            c_connections_silent{silent_for=\"10-60s\"} 2\nc_connections_silent{silent_for=\"60m+\"} 4\n\
            c_detection_delay_seconds_count{cause=\"no_pong\"} 15\nc_detection_delay_seconds_count{cause=\"too_slow\"} 0\n";
        [first, second].map(|text| Scrape::parse(text).unwrap())
    }

    #[test]
    fn rates_are_the_growth_between_two_scrapes_and_the_busiest_cause_comes_first() {
        let [first, second] = scrapes();
        let figures = Figures::of(&second, Some((&first, Duration::from_secs(2))));
        assert_eq!((figures.opened, figures.closed), (Some(10.0), Some(4.5)));
        let causes: Vec<_> =
            figures.causes.iter().map(|cause| (cause.name.as_str(), cause.counted.rate, cause.counted.total)).collect();
        assert_eq!(causes, [("no_pong", Some(4.0), 15.0), ("client_gone", Some(0.5), 41.0)]);
        assert_eq!(figures.calls, Some(Counted { rate: Some(10.0), total: 30.0 }));
        // The 20 calls of these two seconds only.
        assert_eq!(figures.call_seconds.map(|(half, _)| half), Some(1.5));
        assert_eq!(figures.accept_queue, Some((90.0, 100.0)));
        let silence: Vec<_> = figures.silence.iter().map(|(span, held)| (span.as_str(), *held)).collect();
        assert_eq!(silence, [("0-10s", 1.0), ("10-60s", 2.0), ("1-5m", 3.0), ("60m+", 4.0)]);
        let no_pong = &figures.delays[0];
        assert_eq!((figures.delays.len(), no_pong.half, no_pong.bound), (1, Some(5.0), Some(20.0)));
    }

    #[test]
    fn there_are_no_rates_of_one_scrape_nor_over_a_restart() {
        let [first, second] = scrapes();
        for figures in [Figures::of(&second, None), Figures::of(&first, Some((&second, Duration::from_secs(2))))] {
            assert_eq!((figures.opened, figures.closed), (None, None));
            assert!(figures.causes.iter().all(|cause| cause.counted.rate.is_none()));
        }
    }

    #[test]
    fn what_a_server_does_not_have_is_not_there() {
        let figures = Figures::of(&Scrape::parse("c_connections_accepted_total 1\n").unwrap(), None);
        assert_eq!(figures, Figures::default());
    }
}
