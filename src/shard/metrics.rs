//! What a shard counts. Equal names of several shards add up at a scrape.

use std::time::Duration;

use crate::metrics;
use crate::model::CloseCause;
use crate::telemetry::{Collect, Families, Gauge, Histogram, OwnCounter, SLOW};

use super::buffers::{Buffer, Buffers};
use super::samples::Samples;

metrics! {
    /// Counters of one shard, which its thread alone changes; names as AnyCable's where the meaning is the same (`contracts/ops.md` section 3).
    pub struct ShardCounters {
        /// Sessions that were let in and are connected.
        clients_num: Gauge,
        /// Streams with subscribers, added up over the shards.
        broadcast_streams_num: Gauge,
        /// Subscribers of streams: sessions times their identifiers times streams.
        subscriptions_num: Gauge,
        /// Connections in the hands of the shards, handshakes and closing ones included.
        connections_num: Gauge,
        /// Connections that have not finished their request yet.
        handshakes_num: Gauge,
        /// Connections accepted.
        connections_accepted_total: OwnCounter,
        /// Refused connections.
        failed_auths_total: OwnCounter,
        /// Messages of clients that could be read.
        client_msg_total: OwnCounter,
        /// Messages of clients that could not be read or carried out.
        failed_client_msg_total: OwnCounter,
        /// Bytes received from clients after the handshake, frame headers included.
        data_rcvd_total: OwnCounter,
        /// Bytes sent to clients, frame headers included.
        data_sent_total: OwnCounter,
        /// Messages sent to clients, pings not counted.
        server_msg_total: OwnCounter,
        /// Pings sent to clients.
        pings_total: OwnCounter,
        /// Connections lost while something was being written.
        failed_server_msg_total: OwnCounter,
        /// Connections given up because nothing could be written for too long.
        timeout_server_msg_total: OwnCounter,
        /// Clients closed because their outbox was full.
        disconnected_slow_clients_total: OwnCounter,
        /// Answers of the app that came after their session had ended.
        late_answers_total: OwnCounter,
        /// Times the shard could not accept for want of descriptors and had to pause.
        accept_pauses_total: OwnCounter,
        /// Turns of the shard's loop.
        turns_total: OwnCounter,
        /// Time from accepting a connection to answering its upgrade.
        handshake_seconds: Histogram,
        /// Time from starting to deliver a publication to the last write of it.
        fanout_seconds: Histogram,
    }
}

/// All metrics of one shard.
#[derive(Debug)]
pub struct ShardMetrics {
    shard: String,
    /// Plain counters.
    pub counters: ShardCounters,
    closed: [OwnCounter; CloseCause::ALL.len()],
    delays: [Histogram; CloseCause::ALL.len()],
    ages: [Histogram; CloseCause::ALL.len()],
    pub(super) samples: Samples,
    kept: [Gauge; Buffer::ALL.len()],
}

impl ShardMetrics {
    /// All at zero.
    pub fn new(shard: u16) -> ShardMetrics {
        ShardMetrics {
            shard: shard.to_string(),
            counters: ShardCounters::default(),
            closed: std::array::from_fn(|_| OwnCounter::default()),
            delays: std::array::from_fn(|_| Histogram::new(SLOW)),
            ages: std::array::from_fn(|_| Histogram::new(SLOW)),
            samples: Samples::default(),
            kept: std::array::from_fn(|_| Gauge::default()),
        }
    }

    /// Notes how many bytes are kept for clients.
    pub(super) fn kept(&self, buffers: &Buffers) {
        for kind in Buffer::ALL {
            self.kept[kind as usize].set(buffers.kept(kind) as i64);
        }
    }

    /// Counts the end of a connection.
    pub fn closed(&self, cause: CloseCause) {
        self.closed[cause as usize].inc();
    }

    /// Notes of a connection that ended how old it was, and how long its peer had given no sign of life.
    pub(super) fn ended(&self, cause: CloseCause, age: Duration, silent: Option<Duration>) {
        self.ages[cause as usize].observe(age);
        if let Some(silent) = silent {
            self.delays[cause as usize].observe(silent);
        }
    }

    /// Of how many connections that ended for this cause it is known how old they were, and how long they were silent.
    pub fn noted_for(&self, cause: CloseCause) -> (u64, u64) {
        (self.ages[cause as usize].count(), self.delays[cause as usize].count())
    }

    /// How many connections ended for this cause.
    pub fn closed_for(&self, cause: CloseCause) -> u64 {
        self.closed[cause as usize].get()
    }
}

impl Collect for ShardMetrics {
    fn collect(&self, labels: &[(&str, &str)], into: &mut Families) {
        self.counters.collect(labels, into);
        for cause in CloseCause::ALL {
            let help = "Connections ended, by cause; every connection ends for exactly one.";
            into.put(
                "connections_closed_total",
                help,
                &[("cause", cause.label())],
                (&self.closed[*cause as usize]).into(),
            );
        }
        // A histogram is many lines, and most causes are rare: those that have not come up are left out, but where
        // dead peers are found.
        for cause in CloseCause::ALL {
            let (delay, age) = (&self.delays[*cause as usize], &self.ages[*cause as usize]);
            let labels = [("cause", cause.label())];
            if cause.finds_dead_peers() || delay.count() > 0 {
                let help = "Time from the last sign of life of a peer to the end of its connection. Where a program is \
                            waited for (no_pong, message_timeout, handshake_timeout) only bytes are one; else an \
                            acknowledgement is one, too. Where the client ends it, it is how long it was quiet before.";
                into.put("detection_delay_seconds", help, &labels, delay.into());
            }
            if age.count() > 0 {
                into.put("connection_age_seconds", "Age of connections when they ended.", &labels, age.into());
            }
        }
        self.samples.collect(&self.shard, &self.counters.connections_num, into);
        for kind in Buffer::ALL {
            let help = "Bytes kept for clients by what they are; --ws-max-buffers-size bounds their sum.";
            into.put("buffers_bytes", help, &[("kind", kind.label())], (&self.kept[kind as usize]).into());
        }
        let help = "Connections held by each shard. The kernel spreads them by hash when they are accepted.";
        let gauge = (&self.counters.connections_num).into();
        into.put("shard_connections_num", help, &[("shard", &self.shard)], gauge);
    }
}
