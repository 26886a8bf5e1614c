//! How soon a peer that vanished is noticed, as the log says it at boot, and a check that the settings allow it.

use std::time::Duration;

use crate::config::Config;

/// Logs how dead peers are found, and warns about settings that end connections too early.
pub(super) fn log(config: &Config) {
    let tcp = &config.tcp;
    let keepalive = if tcp.keepalive_time.is_zero() {
        "keepalive off".to_owned()
    } else {
        let (time, interval, probes) = (tcp.keepalive_time, tcp.keepalive_interval, tcp.keepalive_probes);
        format!("a silent peer that vanished is found in {:?}", time + interval * probes)
    };
    let user_timeout = if tcp.user_timeout.is_zero() {
        "one that owes acknowledgements when the kernel gives up (about 15 min)".to_owned()
    } else {
        format!("one that owes acknowledgements in {:?}", tcp.user_timeout)
    };
    tracing::info!("dead peers: {keepalive}, {user_timeout}");
    let until_given_up = tcp.keepalive_time + tcp.keepalive_interval * tcp.keepalive_probes;
    if one_lost_probe_ends_it(config.ws.ping_interval, tcp.keepalive_time, tcp.user_timeout, until_given_up) {
        tracing::warn!(
            "a connection ends at the first keepalive probe that is lost: pings are rarer than --tcp-keepalive-time \
             ({:?}) and --tcp-user-timeout ({:?}) counts from the last thing heard; ping more often, or raise it to \
             {until_given_up:?}",
            tcp.keepalive_time,
            tcp.user_timeout
        );
    }
}

/// Whether keepalive is what notices a dead peer, because pings are off or too rare, and the user time-out, which Linux
/// then measures from the last segment heard (tcp(7), `tcp_keepalive_timer`), leaves no room for a second probe.
fn one_lost_probe_ends_it(
    ping: Duration,
    keepalive: Duration,
    user_timeout: Duration,
    until_given_up: Duration,
) -> bool {
    let probing = !keepalive.is_zero() && (ping.is_zero() || ping >= keepalive);
    probing && !user_timeout.is_zero() && user_timeout < until_given_up
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_probe_is_fatal_only_where_keepalive_probes_and_the_user_timeout_is_shorter() {
        let s = Duration::from_secs;
        let fatal = |ping, user_timeout| one_lost_probe_ends_it(s(ping), s(300), s(user_timeout), s(350));
        assert!(!fatal(3, 30), "as by default: acknowledged pings keep the probes away");
        assert!(fatal(600, 30) && fatal(0, 30));
        assert!(!fatal(600, 350) && !fatal(600, 0));
        assert!(!one_lost_probe_ends_it(s(0), s(0), s(30), s(0)), "no keepalive, no probe");
    }
}
