//! Options of WebSockets and pings.

use std::time::Duration;

use crate::config::definition::{Unit, options};
use crate::model::PingPrecision;

options! {
    /// WebSockets: where they are, how large their messages are, how slow a client may be.
    Ws in ws, "WebSocket and pings";

    /// Paths of Action Cable, separated by commas. A segment may be `{name}`, the end may be `*`.
    paths: Vec<String> = "/cable", "path", "ws.paths";

    /// Path that sends every message back, for conformance suites. Off unless given.
    echo_path: Option<String> = "none", "echo-path", "ws.echo_path";

    /// Largest message of a client, all its fragments together; over it the client is closed with 1009.
    /// 0: no limit.
    max_message_size: usize = "64KiB", "max-message-size", "ws.max_message_size" [.live().unit(Unit::Bytes)];

    /// Longest channel identifier of a subscription; a longer one is rejected. 0: no limit.
    max_identifier_size: usize = "4KiB", "max-identifier-size", "ws.max_identifier_size" [.live().unit(Unit::Bytes)];

    /// Bytes kept for one session: its request, identifiers, names of streams, and states of the app. What would be over
    /// it is not kept, and a subscription is rejected. 0: no limit.
    max_session_size: usize = "256KiB", "max-session-size", "ws.max_session_size" [.live().unit(Unit::Bytes)];

    /// Most fragments in one message; over it the client is closed with 1009. 0: no limit.
    ///
    /// Fragments can be empty, so the size alone does not bound them. The default lets a message of the
    /// default largest size come in pieces of 64 bytes, less than any known client sends.
    max_fragments: u32 = "1024", "max-fragments", "ws.max_fragments" [.live()];

    /// Time a message may take from its first byte to its last, before its client is closed with 1008.
    message_timeout: Duration = "60s", "ws-message-timeout", "ws.message_timeout" [.live().unit(Unit::Seconds)];

    /// Time a client has to take what was written to it, before it is closed.
    write_timeout: Duration = "2s", "ws-write-timeout", "ws.write_timeout" [.live().unit(Unit::Seconds)];

    /// Bytes that may wait for one client; a client with more is closed as too slow. 0: no limit.
    ///
    /// Every message counts 64 bytes more than it is long: small ones cost memory, too.
    max_pending_size: usize = "1MiB", "ws-max-pending-size", "ws.max_pending_size" [.live().unit(Unit::Bytes)];

    /// Bytes kept for all clients together: requests and messages that are not complete, commands that wait for one
    /// before them, what clients have not taken yet. Over it those that hold most are closed. 0: no limit.
    ///
    /// Each shard has an equal part. Bytes that many clients wait for are kept once and counted once.
    max_buffers_size: usize = "512MiB", "ws-max-buffers-size", "ws.max_buffers_size" [.live().unit(Unit::Bytes)];

    /// Time between two pings to a client. 0: no pings. A client can choose its own with `?pi=`.
    ping_interval: Duration = "3s", "ping-interval", "app.ping_interval" [.unit(Unit::Seconds)];

    /// Unit of the time in a ping message: `s`, `ms` or `ns`.
    ping_timestamp_precision: PingPrecision = "s", "ping-timestamp-precision", "app.ping_timestamp_precision" [.hidden()];

    /// Time without a sign of life after a ping, after which a client is closed. 0: never.
    pong_timeout: Duration = "0s", "pong-timeout", "app.pong_timeout" [.unit(Unit::Seconds)];

    /// Time without a message of its own after which a client is closed, however alive it is. 0: never.
    ///
    /// Pings and pongs are no messages; what a client is sent does not count either. It is told `idle_timeout` and not to come
    /// back.
    idle_timeout: Duration = "0s", "idle-timeout", "app.idle_timeout" [.unit(Unit::Seconds)];

    /// Send a WebSocket ping frame after a ping message; its pong counts as a sign of life.
    ///
    /// It is left out where bytes of the client came since the ping before.
    native_pings: bool = "false", "enable-native-pings", "app.enable_native_ping";
}
