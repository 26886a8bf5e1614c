//! Every option: its names, its default, its help, where its value came from.
//!
//! Two steps, neither of which touches anything but the configuration file: [`parse`] reads the layers
//! (defaults, file, environment, flags) into a [`Config`], and a check refuses what cannot work together.
//! The options themselves are written down once, in the tables under `options/`.

mod definition;
mod options;
mod secrets;
mod setting;

pub use definition::{Definition, Kind, Status, Unit};
pub use options::{Api, App, Broadcast, Config, Disconnect, Jwt, Log, Metrics, Rpc, Server, Streams, Tcp, Ws, all};
pub use secrets::{ListenOn, Secrets};
pub use setting::{DisconnectMode, LogFormat, LogLevel, PingPrecision, RpcImplementation, Secret, Tags};
