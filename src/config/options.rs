//! Every option there is, and the struct that holds the values of those that work.

mod absent;
mod broadcast;
mod broker;
mod cluster;
mod nats;
mod observe;
mod redis;
mod rpc;
mod server;
mod streams;
mod ws;

pub use broadcast::{Api, Broadcast};
pub use broker::Broker;
pub use cluster::Cluster;
pub use nats::Nats;
pub use observe::{Admin, Log, Metrics};
pub use redis::Redis;
pub use rpc::{Disconnect, Rpc};
pub use server::{App, Server, Tcp};
pub use streams::{Jwt, Streams};
pub use ws::Ws;

use super::definition::Definition;

/// The whole configuration, as the server runs with it.
///
/// Filled from the layers by [`super::parse`]; the default is what an empty configuration means. Secrets are
/// kept as they were configured: [`super::Secrets::resolve`] works out which key protects what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Where and how the server listens.
    pub server: Server,
    /// Options of the sockets.
    pub tcp: Tcp,
    /// WebSockets and pings.
    pub ws: Ws,
    /// Calls to the app.
    pub rpc: Rpc,
    /// Calls that tell the app that a session is over.
    pub disconnect: Disconnect,
    /// Broadcasts from the app.
    pub broadcast: Broadcast,
    /// The HTTP API.
    pub api: Api,
    /// History, sessions and presence.
    pub broker: Broker,
    /// Several nodes as one.
    pub cluster: Cluster,
    /// The connection to Redis.
    pub redis: Redis,
    /// The connection to NATS.
    pub nats: Nats,
    /// Identity by token.
    pub jwt: Jwt,
    /// Streams without the app.
    pub streams: Streams,
    /// Logs.
    pub log: Log,
    /// Metrics.
    pub metrics: Metrics,
    /// What only operators may ask.
    pub admin: Admin,
    /// The server as a whole.
    pub app: App,
}

/// Every option, in the order of the help.
pub fn all() -> impl Iterator<Item = &'static Definition> {
    let tables: [&'static [Definition]; 18] = [
        Server::DEFINITIONS,
        App::DEFINITIONS,
        Tcp::DEFINITIONS,
        Ws::DEFINITIONS,
        Rpc::DEFINITIONS,
        Disconnect::DEFINITIONS,
        Broadcast::DEFINITIONS,
        Api::DEFINITIONS,
        Broker::DEFINITIONS,
        Cluster::DEFINITIONS,
        Redis::DEFINITIONS,
        Nats::DEFINITIONS,
        Jwt::DEFINITIONS,
        Streams::DEFINITIONS,
        Log::DEFINITIONS,
        Metrics::DEFINITIONS,
        Admin::DEFINITIONS,
        absent::DEFINITIONS,
    ];
    tables.into_iter().flatten()
}
