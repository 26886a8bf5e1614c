//! How soon a peer that vanished is noticed, as the log says it at boot.

use std::time::Duration;

use crate::config::Config;

/// Logs how dead peers are found. `tests/dead_peers.rs` measures that it is so.
pub(super) fn log(config: &Config) {
    tracing::info!("dead peers: {}; {}", pinged(config), probed(config));
}

/// Clients whose pings come more often than probes would.
fn pinged(config: &Config) -> String {
    let (interval, tcp) = (config.ws.ping_interval, &config.tcp);
    let time = if tcp.user_timeout.is_zero() {
        "when the kernel gives up (about 15 min)".to_owned()
    } else {
        // Until the next ping, and until its acknowledgement is missed.
        format!("within {:?}", interval * 3 / 2 + tcp.user_timeout)
    };
    match (interval.is_zero(), !tcp.keepalive_time.is_zero() && interval * 3 / 2 >= tcp.keepalive_time) {
        (true, _) => "no client is pinged unless it asks for it".to_owned(),
        (_, true) => format!("pings each {interval:?} are rarer than probes"),
        _ => format!("one that is pinged each {interval:?} is found {time}"),
    }
}

/// Clients that are not pinged, or rarely.
fn probed(config: &Config) -> String {
    let tcp = &config.tcp;
    if tcp.keepalive_time.is_zero() {
        return "one that is not pinged stays until something is sent to it (keepalive is off)".to_owned();
    }
    let time: Duration = tcp.keepalive_time + tcp.keepalive_interval * tcp.keepalive_probes;
    let probes = tcp.keepalive_probes;
    format!("one that is not pinged is found {time:?} after it was last heard, when {probes} probes stayed unanswered")
}
