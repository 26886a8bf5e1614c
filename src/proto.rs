//! The languages on the wire: bytes or typed values in, the other out.
//!
//! Nothing here has a socket, a clock, a task or a log line; all of it can be tested with literals and fuzzed.

pub mod cable;
pub mod carrier;
pub mod dialect;
pub mod frame;
pub mod handshake;
pub(crate) mod json;
pub mod publication;

pub use carrier::Carrier;
pub use dialect::{Dialect, Language};
