//! How dead peers are found, and how long the longest of them stays: one table, for the boot log, the metric
//! `detection_bound_seconds`, the page `docs/reaping.md` and the tests.
//!
//! A bound is counted from the peer's last sign of life unless its row says from what else. `tests/dead_peers.rs` and
//! `cargo xtask dead-peers` measure that the bounds hold.

use std::time::Duration;

use crate::config::Config;
use crate::model::CloseCause;
use crate::shard::LINGER;
use crate::telemetry::{Families, Value};

use super::settings::user_timeouts;

/// One way for a peer to be dead.
pub(super) struct DeathKind {
    /// In the log and as the label `kind`.
    pub name: &'static str,
    /// What happened to the peer.
    pub what: &'static str,
    /// What finds it, with the options that decide.
    pub found_by: &'static str,
    /// The longest time until it is closed; `None`: nothing finds it with these settings.
    pub bound: fn(&Config) -> Option<Duration>,
    /// What to set to have it found.
    pub otherwise: &'static str,
    /// What its connection may be counted under.
    pub causes: &'static [CloseCause],
}

/// How much later than the sum of its deadlines a connection may end: the kernel's timers and ours are rounded up, and a
/// loaded machine is late.
const SLACK: Duration = Duration::from_secs(1);

/// When the kernel gives up sending again, without a user time-out and with its default of 15 for net.ipv4.tcp_retries2:
/// 924.6 s (Documentation/networking/ip-sysctl.rst), and up to `TCP_RTO_MAX` (120 s) more until its timer fires.
const KERNEL_GIVES_UP: Duration = Duration::from_secs(1045);

/// Every kind.
pub(super) const KINDS: &[DeathKind] = &[
    DeathKind {
        name: "vanished_pinged",
        what: "it is gone without a word (cable, NAT, one direction only) and was pinged",
        found_by: "--tcp-user-timeout after the ping, or --pong-timeout if all have to answer",
        bound: vanished_pinged,
        otherwise: "set --ping-interval",
        causes: &[CloseCause::PeerTimeout, CloseCause::NoPong],
    },
    DeathKind {
        name: "vanished_silent",
        what: "it is gone without a word and was sent nothing since",
        found_by: "TCP keepalive (--tcp-keepalive-time, -interval, -probes)",
        bound: keepalive,
        otherwise: "set --tcp-keepalive-time",
        causes: &[CloseCause::PeerTimeout],
    },
    DeathKind {
        name: "vanished_unacknowledged",
        what: "it is gone without a word and was sent something; from that on",
        found_by: "--tcp-user-timeout; as long as keepalive takes for clients that are not pinged",
        bound: |config| Some(user_timeout(config).unwrap_or(KERNEL_GIVES_UP) + SLACK),
        otherwise: "",
        causes: &[CloseCause::PeerTimeout, CloseCause::NoPong],
    },
    DeathKind {
        name: "frozen",
        what: "its kernel acknowledges, its program is dead",
        found_by: "--pong-timeout, with --enable-native-pings",
        bound: |config| no_pong_frame(config),
        otherwise: "set --enable-native-pings and --pong-timeout",
        causes: &[CloseCause::NoPong],
    },
    DeathKind {
        name: "frozen_extended",
        what: "the same, a client of actioncable-v1-ext-json",
        found_by: "--pong-timeout",
        bound: no_pong,
        otherwise: "set --pong-timeout",
        causes: &[CloseCause::NoPong],
    },
    DeathKind {
        name: "says_nothing",
        what: "it is alive and says nothing of its own; from its last message",
        found_by: "--idle-timeout",
        bound: |config| Some(config.ws.idle_timeout).filter(|time| !time.is_zero()).map(|time| time + SLACK),
        otherwise: "set --idle-timeout",
        causes: &[CloseCause::IdleTimeout],
    },
    DeathKind {
        name: "not_reading",
        what: "it never reads, and more is sent than the kernel takes; from the last byte that it took",
        found_by: "--ws-write-timeout, or earlier --ws-max-pending-size",
        bound: |config| Some(config.ws.write_timeout + SLACK),
        otherwise: "",
        causes: &[CloseCause::WriteTimeout, CloseCause::TooSlow, CloseCause::BuffersFull, CloseCause::PeerTimeout],
    },
    DeathKind {
        name: "window_shut",
        what: "it never reads, and the kernel holds what is sent; from the last byte that it took",
        found_by: "--tcp-user-timeout; as long as keepalive takes for clients that are not pinged",
        bound: |config| user_timeout(config).map(|time| time + SLACK),
        otherwise: "set --tcp-user-timeout",
        causes: &[CloseCause::PeerTimeout, CloseCause::NoPong],
    },
    DeathKind {
        name: "half_closed",
        what: "it ended its half of the stream without a close frame",
        found_by: "the end of the stream",
        bound: |_| Some(SLACK),
        otherwise: "",
        causes: &[CloseCause::ClientGone],
    },
    DeathKind {
        name: "reset",
        what: "it reset the connection",
        found_by: "the reset",
        bound: |_| Some(SLACK),
        otherwise: "",
        causes: &[CloseCause::PeerReset],
    },
    DeathKind {
        name: "handshake_stalled",
        what: "its request never begins or never ends; from the connect",
        found_by: "--handshake-timeout",
        bound: |config| Some(config.server.handshake_timeout + SLACK),
        otherwise: "",
        causes: &[CloseCause::HandshakeTimeout],
    },
    DeathKind {
        name: "message_stalled",
        what: "a message was begun and never ends; from its first byte",
        found_by: "--ws-message-timeout",
        bound: |config| Some(config.ws.message_timeout + SLACK),
        otherwise: "",
        causes: &[CloseCause::MessageTimeout],
    },
    DeathKind {
        name: "close_unfinished",
        what: "it said or was told that it is over, and keeps its socket open; from the close frame",
        found_by: "--ws-write-timeout and two seconds",
        bound: |config| Some(config.ws.write_timeout + LINGER + SLACK),
        otherwise: "",
        causes: &[CloseCause::ClientClosed],
    },
];

/// The longest time from the welcome or a ping to the next ping (`session::heartbeat`).
fn between_pings(config: &Config) -> Option<Duration> {
    Some(config.ws.ping_interval).filter(|interval| !interval.is_zero())
}

/// Silence up to the end of the last probe.
fn all_probes(config: &Config) -> Option<Duration> {
    let tcp = &config.tcp;
    let time = tcp.keepalive_time + tcp.keepalive_interval * tcp.keepalive_probes;
    (!tcp.keepalive_time.is_zero()).then_some(time)
}

fn keepalive(config: &Config) -> Option<Duration> {
    all_probes(config).map(|time| time + SLACK)
}

/// How long the kernel waits for acknowledgements, of whichever clients it waits for longest. `None`: no user time-out.
fn user_timeout(config: &Config) -> Option<Duration> {
    let timeouts = user_timeouts(config);
    // A client may ask for no pings.
    [config.ws.ping_interval, Duration::ZERO]
        .map(|interval| timeouts.of(interval))
        .into_iter()
        .try_fold(Duration::ZERO, |longest, time| (!time.is_zero()).then_some(longest.max(time)))
}

fn vanished_pinged(config: &Config) -> Option<Duration> {
    let gap = between_pings(config)?;
    let timeouts = user_timeouts(config);
    let timeout = match timeouts.of(config.ws.ping_interval) {
        Duration::ZERO => KERNEL_GIVES_UP,
        time => time,
    };
    // Pings so rare that probes come first: one may still be sent just before the last probe. From it on the kernel waits
    // for its acknowledgement and no longer counts probes.
    let silence = all_probes(config).map_or(gap, |probed| gap.min(probed));
    let acknowledged = silence + timeout + SLACK;
    Some(no_pong_frame(config).map_or(acknowledged, |no_pong| acknowledged.min(no_pong)))
}

/// For clients that are asked by ping frames. One is left out where bytes came since the ping before it, so the last sign
/// of life may be two intervals before the next.
fn no_pong_frame(config: &Config) -> Option<Duration> {
    let asked = config.ws.native_pings.then(|| no_pong(config)).flatten()?;
    Some(asked + between_pings(config)?)
}

/// For clients that answer ping messages.
fn no_pong(config: &Config) -> Option<Duration> {
    let timeout = config.ws.pong_timeout;
    if timeout.is_zero() { None } else { Some(between_pings(config)? + timeout + SLACK) }
}

/// What a connection costs when nothing happens on it, in packets of both directions: pinged, and not pinged.
fn packets_per_hour(config: &Config) -> (f64, f64) {
    // The ping and its acknowledgement; at every second one the pong frame acknowledges the ping and is acknowledged
    // itself.
    let per_ping = if config.ws.native_pings { 2.5 } else { 2.0 };
    let times = |every: Duration| if every.is_zero() { 0.0 } else { 3600.0 / every.as_secs_f64() };
    (per_ping * times(config.ws.ping_interval), 2.0 * times(config.tcp.keepalive_time))
}

/// Logs how dead peers are found.
pub(super) fn log(config: &Config) {
    for line in lines(config) {
        tracing::info!("dead peers: {line}");
    }
}

/// What the boot log says: a heading, a line for each kind, and the cost.
fn lines(config: &Config) -> Vec<String> {
    let mut lines = vec!["closed at the latest after its last sign of life, by kind".to_owned()];
    for kind in KINDS {
        let (bound, by) = match (kind.bound)(config) {
            Some(bound) => (seconds(bound), kind.found_by),
            None => ("never".to_owned(), kind.otherwise),
        };
        lines.push(format!("{:<23} {bound:>8}  {}: {by}", kind.name, kind.what));
    }
    let (pinged, probed) = packets_per_hour(config);
    lines.push(format!("{pinged:.0} packets an hour for each client that is pinged, {probed:.0} for each that is not"));
    lines
}

/// A bound as people read it: tenths of seconds where there are some.
fn seconds(bound: Duration) -> String {
    format!("{} s", (bound.as_secs_f64() * 10.0).ceil() / 10.0)
}

/// Puts every bound among the metrics, under its kind and each cause that such a peer may be closed for. What is never
/// found has an infinite bound.
pub(super) fn collect(config: &Config, into: &mut Families) {
    for kind in KINDS {
        let bound = (kind.bound)(config).map_or(f64::INFINITY, |bound| bound.as_secs_f64());
        for cause in kind.causes {
            let labels = [("kind", kind.name), ("cause", cause.label())];
            let help = "Longest time until a dead peer of this kind is closed with the settings in force.";
            into.put("detection_bound_seconds", help, &labels, Value::Gauge(bound));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use crate::config::{self, Command};
    use crate::telemetry::Text;

    use super::*;

    fn with(arguments: &str) -> Config {
        let arguments = arguments.split_whitespace();
        match config::parse_with(arguments, &BTreeMap::new(), &|_| Err(std::io::ErrorKind::NotFound.into())) {
            Ok(config::Invocation { command: Command::Serve(config), .. }) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn bound(kind: &str, arguments: &str) -> Option<f64> {
        let kind = KINDS.iter().find(|known| known.name == kind).expect("a kind");
        (kind.bound)(&with(arguments)).map(|bound| bound.as_secs_f64())
    }

    #[test]
    fn every_bound_follows_from_the_options_that_its_row_names() {
        for (kind, arguments, wanted) in [
            ("vanished_pinged", "", Some(34.0)),
            ("vanished_pinged", "--ping-interval 0", None),
            ("vanished_pinged", "--tcp-user-timeout 0", Some(1049.0)),
            ("vanished_pinged", "--pong-timeout 6 --enable-native-pings", Some(13.0)),
            // Clients without pongs of their own are found as before.
            ("vanished_pinged", "--pong-timeout 6", Some(34.0)),
            // A ping just before the last probe.
            ("vanished_pinged", "--ping-interval 600", Some(350.0 + 345.0 + 1.0)),
            // A ping while keepalive would still probe: from then on the user time-out for probed clients counts.
            ("vanished_pinged", "--ping-interval 240", Some(240.0 + 345.0 + 1.0)),
            ("vanished_silent", "", Some(351.0)),
            ("vanished_silent", "--tcp-keepalive-time 0", None),
            (
                "vanished_silent",
                "--tcp-keepalive-time 3 --tcp-keepalive-interval 1 --tcp-keepalive-probes 3",
                Some(7.0),
            ),
            ("vanished_unacknowledged", "", Some(346.0)),
            ("vanished_unacknowledged", "--tcp-user-timeout 0", Some(1046.0)),
            ("vanished_unacknowledged", "--tcp-keepalive-time 0", Some(31.0)),
            ("frozen", "", None),
            ("frozen", "--pong-timeout 6", None),
            // The last sign of life came right after a ping, so the next one does not ask for another.
            ("frozen", "--pong-timeout 6 --enable-native-pings", Some(3.0 + 3.0 + 6.0 + 1.0)),
            ("frozen_extended", "--pong-timeout 6", Some(10.0)),
            ("says_nothing", "", None),
            ("says_nothing", "--idle-timeout 60", Some(61.0)),
            ("not_reading", "--ws-write-timeout 9", Some(10.0)),
            ("window_shut", "", Some(346.0)),
            ("window_shut", "--tcp-user-timeout 0", None),
            ("half_closed", "", Some(1.0)),
            ("reset", "", Some(1.0)),
            ("handshake_stalled", "--handshake-timeout 4", Some(5.0)),
            ("message_stalled", "--ws-message-timeout 4", Some(5.0)),
            ("close_unfinished", "", Some(5.0)),
        ] {
            assert_eq!(bound(kind, arguments), wanted, "{kind} with {arguments:?}");
        }
    }

    #[test]
    fn reaping_keeps_what_its_help_promises() {
        let aggressive = |kind| bound(kind, "--reaping aggressive").expect("a bound");
        assert!(aggressive("vanished_silent") < 60.0 && aggressive("vanished_pinged") < 10.0);
        assert!(aggressive("frozen") < 15.0 && aggressive("frozen_extended") < 10.0);
        for kind in KINDS {
            let bounds = ["--reaping aggressive", "", "--reaping relaxed"]
                .map(|arguments| (kind.bound)(&with(arguments)).unwrap_or(Duration::MAX));
            assert!(bounds.is_sorted(), "{}: {bounds:?}", kind.name);
        }
    }

    /// The table of `docs/reaping.md`: what the three words of `--reaping` lead to.
    fn page() -> String {
        let configs = ["relaxed", "default", "aggressive"].map(|word| with(&format!("--reaping {word}")));
        let mut page = "| kind | the peer | found by | relaxed | default | aggressive | cause |\n".to_owned();
        page.push_str("| --- | --- | --- | ---: | ---: | ---: | --- |\n");
        for kind in KINDS {
            let bounds = configs.each_ref().map(|config| (kind.bound)(config).map_or("never".to_owned(), seconds));
            let causes: Vec<_> = kind.causes.iter().map(|cause| format!("`{}`", cause.label())).collect();
            let DeathKind { name, what, found_by, .. } = kind;
            page.push_str(&format!(
                "| `{name}` | {what} | {found_by} | {} | {} |\n",
                bounds.join(" | "),
                causes.join(" ")
            ));
        }
        for (line, which) in ["packets an hour, pinged", "packets an hour, not pinged"].into_iter().zip(0..) {
            let costs = configs.each_ref().map(|config| {
                let (pinged, probed) = packets_per_hour(config);
                format!("{:.0}", [pinged, probed][which])
            });
            page.push_str(&format!("| {line} | | | {} | |\n", costs.join(" | ")));
        }
        page
    }

    #[test]
    fn the_page_for_operators_has_this_table() {
        let kept = include_str!("../../docs/reaping.md");
        assert!(kept.contains(&page()), "docs/reaping.md needs this table:\n{}", page());
    }

    #[test]
    fn the_table_names_each_kind_once_and_says_what_to_do_where_nothing_finds_it() {
        let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        for arguments in ["", "--ping-interval 0 --tcp-keepalive-time 0 --tcp-user-timeout 0", "--pong-timeout 3"] {
            let config = with(arguments);
            for kind in KINDS {
                assert!((kind.bound)(&config).is_some() || !kind.otherwise.is_empty(), "{}", kind.name);
                assert!(!kind.causes.is_empty(), "{}", kind.name);
            }
        }
    }

    #[test]
    fn the_boot_log_has_a_line_for_each_kind_and_says_what_the_settings_cost() {
        let lines = lines(&with("--ping-interval 4 --enable-native-pings --tcp-keepalive-time 60"));
        assert_eq!(lines.len(), KINDS.len() + 2);
        assert!(
            lines.iter().any(|line| line.starts_with("vanished_pinged             35 s  it is gone")),
            "{lines:#?}"
        );
        assert!(lines.iter().any(|line| line.contains("never") && line.contains("--pong-timeout")), "{lines:#?}");
        assert!(
            lines.last().is_some_and(|last| last.starts_with("2250 packets") && last.contains("120 for")),
            "{lines:?}"
        );
    }

    #[test]
    fn the_metric_has_every_kind_with_each_of_its_causes() {
        let mut families = Families::default();
        collect(&Config::default(), &mut families);
        let text = families.to_text("t_", Text::Prometheus);
        for kind in KINDS {
            for cause in kind.causes {
                let sample =
                    format!("t_detection_bound_seconds{{kind=\"{}\",cause=\"{}\"}} ", kind.name, cause.label());
                assert!(text.contains(&sample), "{sample} is not in {text}");
            }
        }
        assert!(text.contains("{kind=\"frozen\",cause=\"no_pong\"} inf\n"), "{text}");
    }
}
