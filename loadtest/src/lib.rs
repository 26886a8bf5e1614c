//! A load test for WebSocket servers that goes to millions of idle sockets on one machine and tells the truth.
//!
//! It shares no code with Cableway and can be pointed at any WebSocket server. [`engine`] holds the client
//! connections, [`bare`] is the yardstick that every figure is divided by, [`observe`] reads what the server costs,
//! [`mod@bench`] holds the comparisons whose limits are promised.
#![allow(clippy::disallowed_methods, reason = "a load test measures: it has no clock to be given")]

pub mod bare;
pub mod bench;
pub mod check;
pub mod clock;
pub mod control;
pub mod dead_peers;
pub mod engine;
pub mod fleet;
pub mod http1;
pub mod metrics;
pub mod observe;
pub mod os;
pub mod processes;
pub mod protocol;
pub mod publish;
pub mod report;
pub mod run;
pub mod scenario;
pub mod server;
pub mod steady;
pub mod template;
pub mod upgrade;
pub mod versus;
pub mod wire;
pub mod workers;
pub mod yardstick;
