//! Options of what is remembered for clients: history, sessions, presence.

use std::time::Duration;

use crate::config::definition::{Unit, options};
use crate::config::setting::BrokerKind;

options! {
    /// What is remembered for clients that come back.
    Broker in broker, "History, sessions and presence (broker)";

    /// What keeps history, sessions and presence: `none`, `memory` for this process alone, `redis` (6.2 or newer) or `nats`
    /// (with JetStream) for all nodes.
    ///
    /// Beside pub/sub `memory` would keep for one node only, so it is carried out as `redis` or `nats` then.
    ///
    /// With it clients of @anycable/web and @anycable/core (protocol `actioncable-v1-ext-json`) miss nothing on a bad
    /// network: they get what was published while they were away, and go on with their session without a call to the app.
    kind: BrokerKind = "none", "broker", "broker.adapter";

    /// Begins the name of everything that is kept in Redis or NATS: letters, digits, - and _. Clusters that share one need
    /// different ones.
    prefix: String = "cableway", "broker-prefix", "broker.prefix";

    /// Messages kept of each stream.
    history_limit: u32 = "100", "history-limit", "broker.history_limit";

    /// How long a message is kept. A stream's count of messages is kept ten times as long.
    history_ttl: Duration = "300s", "history-ttl", "broker.history_ttl" [.unit(Unit::Seconds)];

    /// Memory for the history of all streams. When it is used up, the oldest messages of the streams that were published
    /// to least recently go.
    history_max_size: usize = "256MiB", "history-max-size", "broker.history_max_size" [.unit(Unit::Bytes)];

    /// How long a session is kept for a client that lost its connection. 0: not at all.
    sessions_ttl: Duration = "300s", "sessions-ttl", "broker.sessions_ttl" [.unit(Unit::Seconds)];

    /// Let clients go on with a session by its id alone, as those of AnyCable do. The welcome also has a token for it
    /// (`resume_token`), which is told to nobody else; with `false` only that will do.
    restore_by_sid: bool = "true", "restore-by-sid", "broker.restore_by_sid";

    /// Memory for kept sessions. When it is used up, the oldest go.
    sessions_max_size: usize = "128MiB", "sessions-max-size", "broker.sessions_max_size" [.unit(Unit::Bytes)];

    /// How long others are not told that somebody whose connection is over has left.
    presence_ttl: Duration = "15s", "presence-ttl", "broker.presence_ttl" [.unit(Unit::Seconds)];

    /// Memory for who is present. When it is used up, nobody more can join.
    presence_max_size: usize = "128MiB", "presence-max-size", "broker.presence_max_size" [.unit(Unit::Bytes)];
}
