//! Keepalive, congestion control and TIME_WAIT.

use crate::os::facts::Facts;

use super::fix::Fix;
use super::goal::Goal;
use super::numbers::grouped;
use super::row::{Layer, Row, Source, Verdict};
use super::settings::{
    CONGESTION_CONTROL, DEFAULT_QDISC, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, KEEPALIVE_TIME, TW_BUCKETS,
};

const AVAILABLE: &str = "net.ipv4.tcp_available_congestion_control";

/// Its checks.
pub(super) fn rows(facts: &Facts, goal: &Goal) -> Vec<Row> {
    let mut rows = vec![keepalive(facts, goal), congestion(facts, goal)];
    rows.extend(queue(facts, goal));
    rows.push(time_wait(facts, goal));
    rows
}

fn keepalive(facts: &Facts, goal: &Goal) -> Row {
    let system = [&KEEPALIVE_TIME, &KEEPALIVE_INTERVAL, &KEEPALIVE_PROBES]
        .map(|setting| facts.number(setting.name).map_or("?".to_owned(), |value| value.to_string()));
    let ours = goal.keepalive.map(|value| value.to_string()).join("/");
    let is_on = goal.keepalive[0] > 0;
    let why = if is_on {
        "The system's values are for programs that set none. Cableway sets time, interval and probes on every socket and a \
         TCP_USER_TIMEOUT beside them, because keepalive does not run while sent data is unacknowledged. [anycable] has \
         300/10/5, [millions] 300/30/3: the first finds the dead sooner and forgives more loss."
    } else {
        "Keepalive is off (--tcp-keepalive-time 0): a silent client that is gone stays for ever, whatever the system has."
    };
    let row = Row::new(
        Layer::Tcp,
        "TCP keepalive",
        if is_on { format!("{ours} on our sockets") } else { "off".to_owned() },
        "on our sockets",
        format!("System: {}. {why}", system.join("/")),
        &[Source::AnyCable, Source::Millions, Source::Measured],
    );
    if is_on { row } else { Row { is_option: true, verdict: Verdict::Warn, ..row } }
}

/// Whether BBR is used, and whether it could be.
fn bbr(facts: &Facts) -> (bool, bool, bool) {
    let used = facts.sysctls.get(CONGESTION_CONTROL.name).is_some_and(|name| name == "bbr");
    let listed = facts.sysctls.get(AVAILABLE).is_some_and(|names| names.split(' ').any(|name| name == "bbr"));
    (used, listed, facts.modules.iter().any(|module| module == "tcp_bbr"))
}

fn congestion(facts: &Facts, goal: &Goal) -> Row {
    let (used, listed, on_disk) = bbr(facts);
    let needs = if listed || on_disk { "bbr" } else { "any: no bbr here" };
    let known = facts.sysctls.get(CONGESTION_CONTROL.name).cloned();
    let setting = &CONGESTION_CONTROL;
    let row = Row::new(
        setting.layer,
        setting.name,
        known.as_deref().unwrap_or("not readable"),
        needs,
        setting.why,
        setting.sources,
    );
    match (known, used) {
        (None, _) => Row { verdict: Verdict::Unknown, ..row },
        (Some(_), true) => row,
        _ if listed => row.fail(Verdict::Warn, setting.fix(facts, goal)),
        _ if on_disk => row.fail(Verdict::Warn, [Fix::Module("tcp_bbr")].into_iter().chain(setting.fix(facts, goal))),
        _ => row,
    }
}

fn queue(facts: &Facts, goal: &Goal) -> Option<Row> {
    let (used, ..) = bbr(facts);
    let set = facts.sysctls.get(DEFAULT_QDISC.name)?;
    let row = Row::new(
        DEFAULT_QDISC.layer,
        DEFAULT_QDISC.name,
        set,
        if used { "fq" } else { "any without bbr" },
        DEFAULT_QDISC.why,
        DEFAULT_QDISC.sources,
    );
    Some(if used && set != "fq" { row.fail(Verdict::Warn, DEFAULT_QDISC.fix(facts, goal)) } else { row })
}

fn time_wait(facts: &Facts, goal: &Goal) -> Row {
    /// From here on, in parts of ten, it is nearly full.
    const FULL: u64 = 8;
    let waiting = facts.sockets.time_wait.unwrap_or(0);
    let row = Row::setting(&TW_BUCKETS, facts, goal, format!("above {}", grouped(waiting)), |most| {
        if waiting >= most / 10 * FULL { Verdict::Warn } else { Verdict::Ok }
    });
    Row { set: format!("{} ({} now)", row.set, grouped(waiting)), ..row }
}
