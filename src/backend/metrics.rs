//! What the backend counts. Names are those of `contracts/ops.md` where the meaning is the same.

use crate::metrics;

metrics! {
    /// Calls to the app servers.
    pub struct BackendMetrics {
        /// Calls to the app that finished, whatever the result; canceled ones are not among them.
        rpc_call_total: Counter,
        /// Calls that failed on the way (time-outs included), and Disconnect calls that the app answered with an error.
        rpc_error_total: Counter,
        /// Attempts after the first one of a call.
        rpc_retries_total: Counter,
        /// Calls that did not end before their deadline.
        rpc_timeout_total: Counter,
        /// Calls given up because this server closed the session.
        rpc_canceled_total: Counter,
        /// Calls refused because too many were waiting, because they took too much memory, or because they waited too long
        /// for their turn.
        rpc_overloaded_total: Counter,
        /// Calls waiting for one of the concurrent calls to end.
        rpc_pending_num: Gauge,
        /// Bytes of the calls that wait.
        rpc_pending_bytes: Gauge,
        /// Established gRPC connections to app servers.
        grpc_active_conn_num: Gauge,
        /// Disconnect calls waiting to be sent.
        disconnect_queue_size: Gauge,
        /// Bytes of the Disconnect calls that wait.
        disconnect_queue_bytes: Gauge,
        /// Disconnect calls put back because the app could not be reached.
        disconnect_retries_total: Counter,
        /// Disconnect calls dropped because too many were waiting, or because they took too much memory.
        disconnect_dropped_total: Counter,
        /// Time from the first attempt of a call to its end, retries included, waiting for a turn not.
        rpc_call_seconds: Histogram,
    }
}
