//! What a shard counts. Equal names of several shards add up at a scrape.

use crate::metrics;
use crate::model::CloseCause;
use crate::telemetry::{Collect, Counter, Families, Gauge};

use super::buffers::{Buffer, Buffers};

metrics! {
    /// Counters of one shard; names as AnyCable's where the meaning is the same (`contracts/ops.md` section 3).
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
        connections_accepted_total: Counter,
        /// Refused connections.
        failed_auths_total: Counter,
        /// Messages of clients that could be read.
        client_msg_total: Counter,
        /// Messages of clients that could not be read or carried out.
        failed_client_msg_total: Counter,
        /// Bytes received from clients after the handshake, frame headers included.
        data_rcvd_total: Counter,
        /// Bytes sent to clients, frame headers included.
        data_sent_total: Counter,
        /// Messages sent to clients, pings not counted.
        server_msg_total: Counter,
        /// Pings sent to clients.
        pings_total: Counter,
        /// Connections lost while something was being written.
        failed_server_msg_total: Counter,
        /// Connections given up because nothing could be written for too long.
        timeout_server_msg_total: Counter,
        /// Clients closed because their outbox was full.
        disconnected_slow_clients_total: Counter,
        /// Answers of the app that came after their session had ended.
        late_answers_total: Counter,
        /// Times the shard could not accept for want of descriptors and had to pause.
        accept_pauses_total: Counter,
        /// Turns of the shard's loop.
        turns_total: Counter,
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
    closed: [Counter; CloseCause::ALL.len()],
    kept: [Gauge; Buffer::ALL.len()],
}

impl ShardMetrics {
    /// All at zero.
    pub fn new(shard: u16) -> ShardMetrics {
        ShardMetrics {
            shard: shard.to_string(),
            counters: ShardCounters::default(),
            closed: std::array::from_fn(|_| Counter::default()),
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
        for kind in Buffer::ALL {
            let help = "Bytes kept for clients by what they are; --ws-max-buffers-size bounds their sum.";
            into.put("buffers_bytes", help, &[("kind", kind.label())], (&self.kept[kind as usize]).into());
        }
        let help = "Connections held by each shard. The kernel spreads them by hash when they are accepted.";
        let gauge = (&self.counters.connections_num).into();
        into.put("shard_connections_num", help, &[("shard", &self.shard)], gauge);
    }
}
