//! Options of several nodes as one.

use crate::config::definition::options;
use crate::config::setting::PubSub;

options! {
    /// How nodes tell each other what was published.
    Cluster in cluster, "Several nodes (pub/sub)";

    /// What carries publications from node to node: `redis`, `nats`, or `none` for a node alone.
    ///
    /// `auto` is that of the broker if the broker is `redis` or `nats`; else `redis` if a Redis is given or `redisx` is
    /// among the broadcast adapters; else `none`.
    pubsub: PubSub = "auto", "pubsub", "pubsub_adapter";

    /// Begins the name of every channel (subject in NATS) of pub/sub, so that several clusters can share one Redis or NATS.
    /// Leave it empty in a cluster that has nodes of AnyCable too.
    prefix: String = "", "pubsub-prefix", "pubsub_prefix";

    /// Channel in Redis for what nodes tell each other beside publications.
    redis_channel: String = "__anycable_internal__", "redis-pubsub-channel", "redis_pubsub.channel" [.hidden()];

    /// Subject in NATS for what nodes tell each other beside publications.
    nats_channel: String = "__anycable_internal__", "nats-pubsub-channel", "nats_pubsub.channel" [.hidden()];
}
