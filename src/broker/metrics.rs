//! What the broker counts.

use crate::metrics;

metrics! {
    /// Counts of what is remembered.
    pub struct BrokerMetrics {
        /// Messages in the history of all streams.
        history_messages_num: Gauge,
        /// Streams with a history, those of which only the count of messages is kept included.
        history_streams_num: Gauge,
        /// Bytes of history, with what keeping it takes.
        history_bytes: Gauge,
        /// Messages dropped before their time because `--history-max-size` was reached.
        history_evicted_total: Counter,
        /// Requests of clients for what they missed that were answered with all of it.
        history_served_total: Counter,
        /// Requests of clients for what they missed that were rejected: not all of it was there any more.
        history_rejected_total: Counter,
        /// Who is present, over all streams.
        presence_records_num: Gauge,
        /// Bytes of presence, with what keeping it takes.
        presence_bytes: Gauge,
        /// Joins that were not carried out: under a second id, or because `--presence-max-size` was reached.
        presence_refused_total: Counter,
        /// Sessions kept for clients that may come back.
        saved_sessions_num: Gauge,
        /// Bytes of them.
        saved_sessions_bytes: Gauge,
        /// Clients that came back to their session.
        sessions_resumed_total: Counter,
        /// Clients that asked for a session that there was not, or that they may not have.
        sessions_refused_total: Counter,
        /// Sessions dropped before their time because `--sessions-max-size` was reached.
        sessions_evicted_total: Counter,
    }
}
