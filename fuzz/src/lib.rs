//! What each fuzz target checks. The targets are one line each, and `tests/proto` runs the same checks on seeded
//! random bytes, so that every `cargo test` fuzzes a little.

pub mod cable;
pub mod frame;
pub mod handshake;
