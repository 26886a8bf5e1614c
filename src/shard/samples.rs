//! How connections are, by looking at some of them.
//!
//! A sweep goes over the slots in steps, so that it looks at about [`SAMPLES_PER_SWEEP`] of them, however many there are,
//! and asks the kernel about each. It does a little of that in turns that the shard has anyway, and not more often than
//! every [`SAMPLE_EVERY`]; a shard that sleeps is not woken, and its samples stay as they are. What a whole sweep
//! has found is told as shares of the connections that there are when metrics are read.

use std::time::Duration;

use crate::telemetry::{Families, Gauge, Value};

use super::{Machine, Services, Shard, TcpInfo};

/// Connections that a sweep looks at. A share of 10 % is then right to 2 % nineteen times out of twenty.
const SAMPLES_PER_SWEEP: u32 = 1024;

/// Time between two turns that look at some: so at most 100 system calls a second, an eighth of a thousandth of a core. Each
/// touches a socket that nobody else has at hand, so a shard that only pings would notice more of them.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// Connections looked at in one turn.
const SAMPLES_PER_TURN: usize = 2;

/// Slots passed in one turn; most of a block may be free.
const SLOTS_PER_TURN: usize = 64;

/// Time between the end of a sweep and the next one.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Times since the last sign of life: what is below each bound, and its name. One more is for what is over all.
const SILENT: [(u64, &str); 5] = [(10, "0-10s"), (60, "10-60s"), (300, "1-5m"), (900, "5-15m"), (3600, "15-60m")];
const SILENT_LONGER: &str = "60m+";

/// Shares of the sampled connections whose round-trip time is at most so much, and their names. The label `quantile` is for
/// summaries only, which these are not.
const PERCENTILES: [(f64, &str); 3] = [(0.5, "50"), (0.9, "90"), (0.99, "99")];

/// What the last whole sweep has found.
#[derive(Debug, Default)]
pub(super) struct Samples {
    sampled: Gauge,
    silent: [Gauge; SILENT.len() + 1],
    unacked: Gauge,
    retransmits: Gauge,
    rtt_us: [Gauge; PERCENTILES.len()],
}

/// A sweep.
#[derive(Default)]
pub(super) struct Sampler {
    /// The next slot to look at.
    at: u32,
    /// From one slot to the next.
    step: u32,
    /// Sweeps that were begun: each begins at another slot.
    sweeps: u32,
    /// Nobody is looked at before.
    not_before: Duration,
    silent: [u32; SILENT.len() + 1],
    unacked: u32,
    retransmits: u64,
    rtts_us: Vec<u32>,
}

impl Sampler {
    fn add(&mut self, tcp_info: &TcpInfo) {
        let silent = tcp_info.silent().as_secs();
        self.silent[SILENT.partition_point(|(bound, _)| *bound <= silent)] += 1;
        self.unacked += u32::from(tcp_info.unacked > 0);
        self.retransmits += u64::from(tcp_info.retransmits);
        self.rtts_us.push(u32::try_from(tcp_info.rtt.as_micros()).unwrap_or(u32::MAX));
    }

    /// Tells what was found, and begins again.
    fn finish(&mut self, samples: &Samples, end: u32) {
        samples.sampled.set(self.rtts_us.len() as i64);
        for (gauge, count) in samples.silent.iter().zip(self.silent) {
            gauge.set(count.into());
        }
        samples.unacked.set(self.unacked.into());
        samples.retransmits.set(i64::try_from(self.retransmits).unwrap_or(i64::MAX));
        self.rtts_us.sort_unstable();
        for (gauge, (share, _)) in samples.rtt_us.iter().zip(PERCENTILES) {
            let nth = (self.rtts_us.len() as f64 * share) as usize;
            gauge.set(self.rtts_us.get(nth.min(self.rtts_us.len().saturating_sub(1))).map_or(0, |us| i64::from(*us)));
        }
        let step = (end / SAMPLES_PER_SWEEP).max(1);
        let sweeps = self.sweeps.wrapping_add(1);
        let mut rtts_us = std::mem::take(&mut self.rtts_us);
        rtts_us.clear();
        *self = Sampler { at: sweeps % step, step, sweeps, rtts_us, ..Sampler::default() };
    }
}

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Looks at some connections, if it is time.
    pub(super) fn sample_some(&mut self) {
        if self.now.mono < self.sampler.not_before {
            return;
        }
        self.sampler.not_before = self.now.mono + SAMPLE_EVERY;
        let end = self.slots.end();
        let mut sampled = 0;
        for _ in 0..SLOTS_PER_TURN {
            if self.sampler.at >= end {
                self.sampler.finish(&self.metrics.samples, end);
                self.sampler.not_before = self.now.mono + SWEEP_EVERY;
                return;
            }
            let index = self.sampler.at;
            self.sampler.at += self.sampler.step.max(1);
            if !self.is_live(index) {
                continue;
            }
            if let Some(tcp_info) = self.slots[index].socket.as_ref().and_then(|socket| self.machine.tcp_info(socket)) {
                self.sampler.add(&tcp_info);
                sampled += 1;
            }
            if sampled == SAMPLES_PER_TURN {
                return;
            }
        }
    }
}

impl Samples {
    /// Puts the estimates for a shard that holds so many connections.
    pub fn collect(&self, shard: &str, connections: &Gauge, into: &mut Families) {
        let (sampled, connections) = (self.sampled.get(), connections.get());
        let scaled = |gauge: &Gauge| match sampled {
            0 => Value::Gauge(0.0),
            _ => Value::Gauge((gauge.get() as f64 * connections as f64 / sampled as f64).round()),
        };
        let names = SILENT.iter().map(|(_, name)| *name).chain([SILENT_LONGER]);
        for (gauge, name) in self.silent.iter().zip(names) {
            let help = "Estimate: connections by time since the last sign of life of their peer, bytes or an \
                        acknowledgement. Some are sampled when their shard is awake, and counted for all.";
            into.put("connections_silent", help, &[("silent_for", name)], scaled(gauge));
        }
        let labels = [("shard", shard)];
        let help = "Estimate: connections with something sent and not acknowledged, from samples.";
        into.put("connections_unacked", help, &labels, scaled(&self.unacked));
        let help =
            "Estimate: segments sent again to the connections that are open now, in their whole lives, from samples.";
        into.put("connections_retransmits", help, &labels, scaled(&self.retransmits));
        let help = "Connections that the last sweep of samples looked at.";
        into.put("connections_sampled", help, &labels, (&self.sampled).into());
        for (gauge, (_, percentile)) in self.rtt_us.iter().zip(PERCENTILES) {
            let help = "Estimate: round-trip time to clients, from samples.";
            let labels = [("shard", shard), ("percentile", percentile)];
            into.put("connections_rtt_seconds", help, &labels, Value::Gauge(gauge.get() as f64 / 1e6));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_info(silent_s: u64, rtt_us: u64) -> TcpInfo {
        let since = Duration::from_secs(silent_s);
        let rtt = Duration::from_micros(rtt_us);
        TcpInfo { since_data: since * 2, since_ack: since, rtt, retransmits: 2, unacked: 1, ..TcpInfo::default() }
    }

    #[test]
    fn a_sweep_is_told_as_shares_of_the_connections_there_are() {
        let (mut sampler, samples) = (Sampler::default(), Samples::default());
        for n in 0..100 {
            sampler.add(&tcp_info(if n < 25 { 9 } else { 10 }, n));
        }
        sampler.finish(&samples, 4 * SAMPLES_PER_SWEEP);
        assert_eq!((sampler.step, sampler.at, sampler.rtts_us.len()), (4, 1, 0));
        let connections = Gauge::default();
        connections.set(4000);
        let mut families = Families::default();
        samples.collect("3", &connections, &mut families);
        let text = families.to_text("", crate::telemetry::Text::Prometheus);
        for line in [
            "connections_silent{silent_for=\"0-10s\"} 1000",
            "connections_silent{silent_for=\"10-60s\"} 3000",
            "connections_silent{silent_for=\"60m+\"} 0",
            "connections_unacked{shard=\"3\"} 4000",
            "connections_retransmits{shard=\"3\"} 8000",
            "connections_rtt_seconds{shard=\"3\",percentile=\"90\"} 0.00009",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}: {text}");
        }
    }

    #[test]
    fn without_connections_there_is_nothing_silent() {
        let (mut sampler, samples) = (Sampler::default(), Samples::default());
        sampler.add(&tcp_info(4000, 1));
        sampler.finish(&samples, 1);
        let mut families = Families::default();
        samples.collect("0", &Gauge::default(), &mut families);
        let text = families.to_text("", crate::telemetry::Text::Prometheus);
        assert!(text.contains("connections_silent{silent_for=\"60m+\"} 0\n"), "{text}");
    }
}
